//! What a processor's VMX can do, as its capability MSRs say (SDM vol. 3, appendix "VMX Capability Reporting
//! Facility").
//!
//! Owns the raw values and their meaning. Reads no MSR itself: [`Capabilities::read`] asks its caller for them.

use super::controls::{EptVpidCapabilities, ProcessorBased, Secondary};
use crate::msr;

/// IA32_VMX_TRUE_* exist (IA32_VMX_BASIC).
const BASIC_TRUE_CONTROLS: u64 = 1 << 55;
/// VMX structures lie below 4 GiB (IA32_VMX_BASIC).
const BASIC_32_BIT_ADDRESSES: u64 = 1 << 48;
/// A hardware exception of any vector may be injected with or without an error code (IA32_VMX_BASIC).
const BASIC_ANY_ERROR_CODE: u64 = 1 << 56;
/// "Activate tertiary controls" among the primary processor-based controls.
const ACTIVATE_TERTIARY: u32 = 17;
/// "Activate secondary controls", among the primary processor-based controls and among the exit controls.
const ACTIVATE_SECONDARY: u32 = 31;

/// Whether a capability MSR lets control `bit` be 1.
const fn allows(capability: u64, bit: u32) -> bool {
    capability >> 32 >> bit & 1 != 0
}

/// The capability MSRs of one processor, and the widths of its addresses. An MSR that the processor does not have
/// is 0 here. In the control MSRs, bits 31:0 must be 1 in the control field and bits 63:32 may be 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// IA32_VMX_BASIC.
    pub basic: u64,
    /// IA32_VMX_PINBASED_CTLS.
    pub pin: u64,
    /// IA32_VMX_PROCBASED_CTLS.
    pub processor: u64,
    /// IA32_VMX_EXIT_CTLS.
    pub exit: u64,
    /// IA32_VMX_ENTRY_CTLS.
    pub entry: u64,
    /// IA32_VMX_TRUE_PINBASED_CTLS.
    pub true_pin: u64,
    /// IA32_VMX_TRUE_PROCBASED_CTLS.
    pub true_processor: u64,
    /// IA32_VMX_TRUE_EXIT_CTLS.
    pub true_exit: u64,
    /// IA32_VMX_TRUE_ENTRY_CTLS.
    pub true_entry: u64,
    /// IA32_VMX_PROCBASED_CTLS2.
    pub secondary: u64,
    /// IA32_VMX_PROCBASED_CTLS3: all 64 bits are controls that may be 1.
    pub tertiary: u64,
    /// IA32_VMX_EXIT_CTLS2: all 64 bits are controls that may be 1.
    pub secondary_exit: u64,
    /// IA32_VMX_MISC.
    pub misc: u64,
    /// IA32_VMX_CR0_FIXED0: what is 1 here is 1 in CR0.
    pub cr0_fixed0: u64,
    /// IA32_VMX_CR0_FIXED1: what is 0 here is 0 in CR0.
    pub cr0_fixed1: u64,
    /// IA32_VMX_CR4_FIXED0: what is 1 here is 1 in CR4.
    pub cr4_fixed0: u64,
    /// IA32_VMX_CR4_FIXED1: what is 0 here is 0 in CR4.
    pub cr4_fixed1: u64,
    /// IA32_VMX_EPT_VPID_CAP.
    pub ept_vpid: u64,
    /// IA32_VMX_VMFUNC: the VM functions that may be enabled.
    pub vmfunc: u64,
    /// CPUID leaf 0x80000008, EAX bits 7:0. Unit: bits.
    pub physical_address_width: u8,
    /// CPUID leaf 0x80000008, EAX bits 15:8. Unit: bits.
    pub linear_address_width: u8,
}

impl Capabilities {
    /// Collects the MSRs through `rdmsr`, which is asked only for those that the others say exist. The widths are
    /// those of CPUID leaf 0x80000008. Unit: bits.
    pub fn read(mut rdmsr: impl FnMut(u32) -> u64, physical_address_width: u8, linear_address_width: u8) -> Self {
        let mut c = Capabilities {
            basic: rdmsr(msr::IA32_VMX_BASIC),
            pin: rdmsr(msr::IA32_VMX_PINBASED_CTLS),
            processor: rdmsr(msr::IA32_VMX_PROCBASED_CTLS),
            exit: rdmsr(msr::IA32_VMX_EXIT_CTLS),
            entry: rdmsr(msr::IA32_VMX_ENTRY_CTLS),
            misc: rdmsr(msr::IA32_VMX_MISC),
            cr0_fixed0: rdmsr(msr::IA32_VMX_CR0_FIXED0),
            cr0_fixed1: rdmsr(msr::IA32_VMX_CR0_FIXED1),
            cr4_fixed0: rdmsr(msr::IA32_VMX_CR4_FIXED0),
            cr4_fixed1: rdmsr(msr::IA32_VMX_CR4_FIXED1),
            physical_address_width,
            linear_address_width,
            ..Capabilities::default()
        };
        if c.true_controls() {
            c.true_pin = rdmsr(msr::IA32_VMX_TRUE_PINBASED_CTLS);
            c.true_processor = rdmsr(msr::IA32_VMX_TRUE_PROCBASED_CTLS);
            c.true_exit = rdmsr(msr::IA32_VMX_TRUE_EXIT_CTLS);
            c.true_entry = rdmsr(msr::IA32_VMX_TRUE_ENTRY_CTLS);
        }
        if allows(c.processor_controls(), ACTIVATE_SECONDARY) {
            c.secondary = rdmsr(msr::IA32_VMX_PROCBASED_CTLS2);
        }
        if allows(c.processor_controls(), ACTIVATE_TERTIARY) {
            c.tertiary = rdmsr(msr::IA32_VMX_PROCBASED_CTLS3);
        }
        if allows(c.exit_controls(), ACTIVATE_SECONDARY) {
            c.secondary_exit = rdmsr(msr::IA32_VMX_EXIT_CTLS2);
        }
        let secondary = c.allowed_secondary();
        if secondary.intersects(Secondary::ENABLE_EPT.union(Secondary::ENABLE_VPID)) {
            c.ept_vpid = rdmsr(msr::IA32_VMX_EPT_VPID_CAP);
        }
        if secondary.contains(Secondary::ENABLE_VMFUNC) {
            c.vmfunc = rdmsr(msr::IA32_VMX_VMFUNC);
        }
        c
    }

    /// Whether the IA32_VMX_TRUE_* MSRs exist: then they, not the older ones, say which controls may be 0.
    pub const fn true_controls(&self) -> bool {
        self.basic & BASIC_TRUE_CONTROLS != 0
    }

    /// The MSR that counts for the pin-based controls.
    pub const fn pin_controls(&self) -> u64 {
        if self.true_controls() { self.true_pin } else { self.pin }
    }

    /// The MSR that counts for the primary processor-based controls.
    pub const fn processor_controls(&self) -> u64 {
        if self.true_controls() { self.true_processor } else { self.processor }
    }

    /// The MSR that counts for the VM-exit controls.
    pub const fn exit_controls(&self) -> u64 {
        if self.true_controls() { self.true_exit } else { self.exit }
    }

    /// The MSR that counts for the VM-entry controls.
    pub const fn entry_controls(&self) -> u64 {
        if self.true_controls() { self.true_entry } else { self.entry }
    }

    /// The MSR that counts for the secondary processor-based controls.
    pub const fn secondary_controls(&self) -> u64 {
        self.secondary
    }

    /// The secondary processor-based controls that may be 1.
    pub const fn allowed_secondary(&self) -> Secondary {
        Secondary::from_bits_retain((self.secondary >> 32) as u32)
    }

    /// Whether the processor virtualizes local APICs in both their modes, registers and delivery of interrupts.
    pub const fn virtualizes_apic(&self) -> bool {
        let all = Secondary::VIRTUALIZE_APIC_ACCESSES
            .union(Secondary::VIRTUALIZE_X2APIC_MODE)
            .union(Secondary::APIC_REGISTER_VIRTUALIZATION)
            .union(Secondary::VIRTUAL_INTERRUPT_DELIVERY);
        let primary = ProcessorBased::from_bits_retain((self.processor_controls() >> 32) as u32);
        primary.contains(ProcessorBased::USE_TPR_SHADOW) && self.allowed_secondary().contains(all)
    }

    /// What EPT and VPID can do.
    pub const fn ept_vpid(&self) -> EptVpidCapabilities {
        EptVpidCapabilities::from_bits_retain(self.ept_vpid)
    }

    /// The revision identifier that VMXON regions and VMCSs begin with; bit 31 is 0.
    pub const fn revision(&self) -> u32 {
        (self.basic & 0x7fff_ffff) as u32
    }

    /// How much memory a VMXON region or a VMCS takes, at most 4096. Unit: bytes.
    pub const fn region_size(&self) -> usize {
        (self.basic >> 32 & 0x1fff) as usize
    }

    /// How far the TSC is shifted right for the VMX-preemption timer: it counts down once every 2^this TSC ticks.
    pub const fn preemption_timer_shift(&self) -> u32 {
        (self.misc & 0x1f) as u32
    }

    /// The activity states HLT (1), shutdown (2) and wait-for-SIPI (3) that the guest may be entered in; active (0)
    /// always.
    pub const fn activity_state(&self, state: u32) -> bool {
        match state {
            0 => true,
            1..=3 => self.misc >> (5 + state) & 1 != 0,
            _ => false,
        }
    }

    /// How many CR3-target values there are.
    pub const fn cr3_targets(&self) -> u32 {
        (self.misc >> 16 & 0x1ff) as u32
    }

    /// Whether a software event may be injected with an instruction length of 0.
    pub const fn zero_length_injection(&self) -> bool {
        self.misc & 1 << 30 != 0
    }

    /// Whether a hardware exception of any vector may be injected with or without an error code.
    pub const fn any_error_code(&self) -> bool {
        self.basic & BASIC_ANY_ERROR_CODE != 0
    }

    /// The bits that a physical address may have.
    pub const fn physical_mask(&self) -> u64 {
        mask(self.physical_address_width)
    }

    /// The bits that the address of a VMX structure (VMCS, bitmap, MSR area) may have.
    pub const fn structure_mask(&self) -> u64 {
        if self.basic & BASIC_32_BIT_ADDRESSES != 0 { 0xffff_ffff } else { self.physical_mask() }
    }
}

/// The low `bits` bits.
const fn mask(bits: u8) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

/// Bochs' `corei7_skylake_x`: its CR0 and CR4 as every processor with VMX has them.
#[cfg(test)]
pub(crate) const SKYLAKE_X: Capabilities = Capabilities {
    basic: 0x00d8_1000_0000_002b,
    pin: 0x0000_007f_0000_0016,
    processor: 0xf7f9_fffe_0401_e172,
    exit: 0x007f_ffff_0003_6dff,
    entry: 0x0000_ffff_0000_11ff,
    true_pin: 0x0000_007f_0000_0016,
    true_processor: 0xf7f9_fffe_0400_6172,
    true_exit: 0x007f_ffff_0003_6dfb,
    true_entry: 0x0000_ffff_0000_11fb,
    secondary: 0x0217_7fff_0000_0000,
    tertiary: 0,
    secondary_exit: 0,
    misc: 0x6004_01e0,
    cr0_fixed0: 0x8000_0021,
    cr0_fixed1: 0xffff_ffff,
    cr4_fixed0: 0x2000,
    cr4_fixed1: 0x37_27ff,
    ept_vpid: 0x0000_0f01_0633_4141,
    vmfunc: 0,
    physical_address_width: 40,
    linear_address_width: 48,
};

#[cfg(test)]
mod tests {
    use super::*;

    /// RDMSR of Skylake-X that counts, and knows only what that model has.
    fn rdmsr(number: u32) -> u64 {
        match number {
            msr::IA32_VMX_BASIC => SKYLAKE_X.basic,
            msr::IA32_VMX_PINBASED_CTLS => SKYLAKE_X.pin,
            msr::IA32_VMX_PROCBASED_CTLS => SKYLAKE_X.processor,
            msr::IA32_VMX_EXIT_CTLS => SKYLAKE_X.exit,
            msr::IA32_VMX_ENTRY_CTLS => SKYLAKE_X.entry,
            msr::IA32_VMX_MISC => SKYLAKE_X.misc,
            msr::IA32_VMX_CR0_FIXED0 => SKYLAKE_X.cr0_fixed0,
            msr::IA32_VMX_CR0_FIXED1 => SKYLAKE_X.cr0_fixed1,
            msr::IA32_VMX_CR4_FIXED0 => SKYLAKE_X.cr4_fixed0,
            msr::IA32_VMX_CR4_FIXED1 => SKYLAKE_X.cr4_fixed1,
            msr::IA32_VMX_PROCBASED_CTLS2 => SKYLAKE_X.secondary,
            msr::IA32_VMX_EPT_VPID_CAP => SKYLAKE_X.ept_vpid,
            msr::IA32_VMX_VMFUNC => SKYLAKE_X.vmfunc,
            msr::IA32_VMX_TRUE_PINBASED_CTLS => SKYLAKE_X.true_pin,
            msr::IA32_VMX_TRUE_PROCBASED_CTLS => SKYLAKE_X.true_processor,
            msr::IA32_VMX_TRUE_EXIT_CTLS => SKYLAKE_X.true_exit,
            msr::IA32_VMX_TRUE_ENTRY_CTLS => SKYLAKE_X.true_entry,
            other => panic!("#GP: MSR {other:#x} is not there"),
        }
    }

    #[test]
    fn only_msrs_that_exist_are_read() {
        assert_eq!(Capabilities::read(rdmsr, 40, 48), SKYLAKE_X);
    }

    #[test]
    fn a_processor_of_the_first_generation_is_asked_for_no_newer_msr() {
        let c = Capabilities::read(
            |number| match number {
                msr::IA32_VMX_BASIC => 0x1a04_0000_0007 | 1 << 48,
                msr::IA32_VMX_PROCBASED_CTLS => 0x7781_fffe_0401_e172,
                0x481 | 0x483..=0x489 => rdmsr(number),
                other => panic!("#GP: MSR {other:#x} is not there"),
            },
            36,
            48,
        );
        assert!(!c.true_controls());
        assert_eq!(c.processor_controls(), 0x7781_fffe_0401_e172);
        assert_eq!((c.secondary, c.ept_vpid, c.vmfunc), (0, 0, 0));
        assert_eq!(c.structure_mask(), 0xffff_ffff);
        assert_eq!(c.physical_mask(), 0xf_ffff_ffff);
    }

    #[test]
    fn an_apic_is_virtualized_as_a_whole_or_not_at_all() {
        assert!(SKYLAKE_X.virtualizes_apic());
        for bit in [0, 4, 8, 9] {
            let less = Capabilities { secondary: SKYLAKE_X.secondary & !(1 << (32 + bit)), ..SKYLAKE_X };
            assert!(!less.virtualizes_apic(), "without bit {bit}");
        }
        let less = Capabilities { true_processor: SKYLAKE_X.true_processor & !(1 << (32 + 21)), ..SKYLAKE_X };
        assert!(!less.virtualizes_apic());
    }

    #[test]
    fn true_msrs_count_where_they_exist() {
        assert_eq!(SKYLAKE_X.processor_controls() & 0x1_8000, 0, "CR3 exiting may be off");
        let old = Capabilities { basic: SKYLAKE_X.basic & !BASIC_TRUE_CONTROLS, ..SKYLAKE_X };
        assert_eq!(old.processor_controls() & 0x1_8000, 0x1_8000);
        assert_eq!((old.exit_controls(), old.entry_controls()), (SKYLAKE_X.exit, SKYLAKE_X.entry));
        assert_eq!(old.pin_controls(), SKYLAKE_X.pin);
    }

    #[test]
    fn fields_of_basic_and_misc() {
        assert_eq!((SKYLAKE_X.revision(), SKYLAKE_X.region_size()), (0x2b, 4096));
        assert_eq!((SKYLAKE_X.preemption_timer_shift(), SKYLAKE_X.cr3_targets()), (0, 4));
        assert_eq!(Capabilities { misc: 0x1e5, ..SKYLAKE_X }.preemption_timer_shift(), 5);
        let hlt_only = Capabilities { misc: 1 << 6, ..SKYLAKE_X };
        assert!(hlt_only.activity_state(0) && hlt_only.activity_state(1));
        assert!(!hlt_only.activity_state(2) && !hlt_only.activity_state(3) && !hlt_only.activity_state(4));
        assert!(!SKYLAKE_X.activity_state(u32::MAX));
        assert_eq!(Capabilities { physical_address_width: 255, ..SKYLAKE_X }.physical_mask(), u64::MAX);
    }
}
