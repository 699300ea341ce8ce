//! Turning VMX on (SDM vol. 3, "Enabling and Entering VMX Operation"), and what every virtual processor shares: the
//! controls computed from the capability MSRs and the bitmaps.

use alloc::boxed::Box;
use alloc::string::String;
use core::arch::asm;
use core::fmt;

use lamina_arch::msr;
use lamina_arch::speculation::{Mitigations, Plan};
use lamina_arch::vmx::capabilities::Capabilities;
use lamina_arch::vmx::controls::{
    EntryControls, EptVpidCapabilities, ExitControls, PinBased, ProcessorBased, Secondary, adjust,
};
use lamina_arch::vmx::speculation::plan;
use raw_cpuid::CpuId;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags};
use x86_64::registers::model_specific::Msr;

use super::bitmaps;
use super::vcpu::VmxVcpu;
use crate::memory::HostPage;
use crate::msr_safe::wrmsr_safe;
use crate::platform::Backend;
use crate::{speculation, xstate};

/// IA32_FEATURE_CONTROL: locked.
const LOCKED: u64 = 1;
/// IA32_FEATURE_CONTROL: VMX outside SMX.
const VMX_OUTSIDE_SMX: u64 = 1 << 2;
/// Width of linear addresses where tables may have five levels. Unit: bits.
const WIDE: u8 = 57;

/// Why VMX cannot be used here. Its display is one line for the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// CPUID does not show VMX.
    NoVmx,
    /// The firmware locked it off.
    LockedOff,
    /// No EPT, or not with what is needed of it.
    NoEpt,
    /// No unrestricted guest.
    NoUnrestrictedGuest,
    /// No XSAVE.
    NoXsave,
    /// Controls of this kind are missing; the bits.
    Controls(&'static str, u32),
    /// Accesses to CR3 always exit; the controls.
    ForcedExits(u32),
    /// VMXON failed.
    VmxonFailed,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unsupported::NoVmx => write!(f, "this processor has no VT-x (CPUID.1:ECX.VMX is 0)"),
            Unsupported::LockedOff => {
                write!(f, "VT-x is locked off in IA32_FEATURE_CONTROL: turn it on in the firmware's set-up")
            }
            Unsupported::NoEpt => {
                write!(f, "this processor's VT-x lacks EPT with four levels, write-back tables, INVEPT and VPID")
            }
            Unsupported::NoUnrestrictedGuest => write!(f, "this processor's VT-x lacks unrestricted guest"),
            Unsupported::NoXsave => write!(f, "this processor has no XSAVE"),
            Unsupported::Controls(kind, bits) => {
                write!(f, "this processor's VT-x lacks {kind} controls {bits:#x}")
            }
            Unsupported::ForcedExits(bits) => {
                write!(f, "this processor's VT-x cannot run a guest without exits for CR3 (controls {bits:#x})")
            }
            Unsupported::VmxonFailed => write!(f, "VMXON failed"),
        }
    }
}

/// The control fields that all virtual processors start with.
#[derive(Clone, Copy, Debug)]
pub struct Controls {
    /// Pin-based.
    pub pin: u32,
    /// Primary processor-based.
    pub processor: u32,
    /// Secondary processor-based.
    pub secondary: u32,
    /// VM-exit.
    pub exit: u32,
    /// VM-entry.
    pub entry: u32,
}

/// What every virtual processor refers to; lives as long as the machine.
pub struct Shared {
    /// The processor's capabilities.
    pub capabilities: Capabilities,
    /// The controls.
    pub controls: Controls,
    /// What is done against speculation.
    pub plan: Plan,
    /// Whether a guest's linear addresses may have 57 bits.
    pub wide_addresses: bool,
    /// Which MSRs do not exit.
    pub msr_bitmap: HostPage,
    /// And where the processor virtualizes the guest's x2APIC.
    pub x2apic_bitmap: HostPage,
    /// Which ports below 0x8000 do not exit.
    pub io_bitmap_a: HostPage,
    /// Which ports from 0x8000 do not exit.
    pub io_bitmap_b: HostPage,
    /// The VMXON region: the processor's while VMX is on.
    _vmxon: HostPage,
}

/// VMX, turned on.
pub struct Vmx {
    shared: &'static Shared,
}

impl Vmx {
    /// Checks that this processor can do what is needed, and turns VMX on, and the defences that are wanted.
    ///
    /// # Errors
    /// [`Unsupported`], with nothing changed but CR0 and CR4 perhaps.
    pub fn enable(wanted: Mitigations) -> Result<Vmx, Unsupported> {
        let cpuid = CpuId::new();
        let features = cpuid.get_feature_info().ok_or(Unsupported::NoVmx)?;
        if !features.has_vmx() {
            return Err(Unsupported::NoVmx);
        }
        if !features.has_xsave() {
            return Err(Unsupported::NoXsave);
        }
        unlock()?;
        let widths = cpuid.get_processor_capacity_feature_info();
        let physical = widths.as_ref().map_or(36, |w| w.physical_address_bits());
        let linear = widths.as_ref().map_or(48, |w| w.linear_address_bits());
        let capabilities = Capabilities::read(read_msr, physical, linear);
        let controls = controls(&capabilities)?;
        let vmxon = turn_on(&capabilities)?;
        xstate::enable();
        let plan = plan(wanted, &speculation::enumerated());
        speculation::begin(&plan);
        let wide_addresses = linear == WIDE && holds_wide_addresses();
        let shared = Box::leak(Box::new(Shared {
            capabilities,
            controls,
            plan,
            wide_addresses,
            msr_bitmap: bitmaps::msr_bitmap(controls.secondary),
            x2apic_bitmap: bitmaps::x2apic_bitmap(controls.secondary),
            io_bitmap_a: bitmaps::low_ports(),
            io_bitmap_b: bitmaps::all_exit(),
            _vmxon: vmxon,
        }));
        Ok(Vmx { shared })
    }

    /// The processor's capabilities.
    pub const fn capabilities(&self) -> &Capabilities {
        &self.shared.capabilities
    }
}

impl Backend for Vmx {
    type Vcpu = VmxVcpu;

    fn create_vcpu(&mut self, vm: u16) -> Result<VmxVcpu, String> {
        Ok(VmxVcpu::new(self.shared, vm))
    }
}

/// Reads an MSR that the caller knows to exist.
fn read_msr(index: u32) -> u64 {
    // SAFETY: reading an MSR changes nothing; that it exists is what the capability logic asks first, and where it
    // does not, the #GP is reported as a bug of ours.
    unsafe { Msr::new(index).read() }
}

/// Makes IA32_FEATURE_CONTROL allow VMXON.
fn unlock() -> Result<(), Unsupported> {
    let control = read_msr(msr::IA32_FEATURE_CONTROL);
    if control & LOCKED != 0 {
        return if control & VMX_OUTSIDE_SMX != 0 { Ok(()) } else { Err(Unsupported::LockedOff) };
    }
    // SAFETY: the MSR is not locked, and these bits only allow VMXON.
    unsafe { Msr::new(msr::IA32_FEATURE_CONTROL).write(control | LOCKED | VMX_OUTSIDE_SMX) };
    Ok(())
}

/// Whether MSRs that hold a linear address take one of 57 bits while the hypervisor's own have 48, as a processor does that
/// has five levels (SDM vol. 3, "Canonicality Checking"): a guest's addresses go through them at a switch. Not every
/// emulator's do.
fn holds_wide_addresses() -> bool {
    let highest = 1 << (WIDE - 2);
    [msr::IA32_KERNEL_GS_BASE, msr::IA32_LSTAR].into_iter().all(|index| {
        // SAFETY: the hypervisor executes neither SWAPGS nor SYSCALL, so nothing is ever taken from these.
        unsafe { wrmsr_safe(index, highest) && wrmsr_safe(index, 0) }
    })
}

/// Whether the processor has IA32_TSC_AUX, and so RDTSCP or RDPID.
pub fn has_tsc_aux() -> bool {
    let cpuid = CpuId::new();
    let rdtscp = cpuid.get_extended_processor_and_feature_identifiers().is_some_and(|features| features.has_rdtscp());
    rdtscp || cpuid.get_extended_feature_info().is_some_and(|features| features.has_rdpid())
}

/// Computes the controls.
fn controls(capabilities: &Capabilities) -> Result<Controls, Unsupported> {
    let of = |kind, capability, required, optional| {
        adjust(capability, required, optional).map_err(|missing| Unsupported::Controls(kind, missing.0))
    };
    let pin = PinBased::EXTERNAL_INTERRUPT_EXITING
        | PinBased::NMI_EXITING
        | PinBased::VIRTUAL_NMIS
        | PinBased::PREEMPTION_TIMER;
    let processor = ProcessorBased::USE_TSC_OFFSETTING
        | ProcessorBased::HLT_EXITING
        | ProcessorBased::MWAIT_EXITING
        | ProcessorBased::MONITOR_EXITING
        | ProcessorBased::RDPMC_EXITING
        | ProcessorBased::CR8_LOAD_EXITING
        | ProcessorBased::CR8_STORE_EXITING
        // Until a guest executes it for the first time.
        | ProcessorBased::MOV_DR_EXITING
        | ProcessorBased::USE_IO_BITMAPS
        | ProcessorBased::USE_MSR_BITMAPS
        | ProcessorBased::ACTIVATE_SECONDARY_CONTROLS;
    let exit = ExitControls::SAVE_DEBUG_CONTROLS
        | ExitControls::HOST_ADDRESS_SPACE_SIZE
        | ExitControls::ACKNOWLEDGE_INTERRUPT
        | ExitControls::SAVE_PAT
        | ExitControls::LOAD_PAT
        | ExitControls::SAVE_EFER
        | ExitControls::LOAD_EFER;
    let entry = EntryControls::LOAD_DEBUG_CONTROLS | EntryControls::LOAD_PAT | EntryControls::LOAD_EFER;
    let processor = of("processor-based", capabilities.processor_controls(), processor.bits(), 0)?;
    let forced = processor & (ProcessorBased::CR3_LOAD_EXITING | ProcessorBased::CR3_STORE_EXITING).bits();
    if forced != 0 {
        return Err(Unsupported::ForcedExits(forced));
    }
    let allowed = capabilities.allowed_secondary();
    let ept = EptVpidCapabilities::WALK_LENGTH_4
        | EptVpidCapabilities::WRITE_BACK
        | EptVpidCapabilities::INVEPT
        | EptVpidCapabilities::INVEPT_SINGLE
        | EptVpidCapabilities::INVVPID
        | EptVpidCapabilities::INVVPID_SINGLE;
    if !allowed.contains(Secondary::ENABLE_EPT | Secondary::ENABLE_VPID) || !capabilities.ept_vpid().contains(ept) {
        return Err(Unsupported::NoEpt);
    }
    if !allowed.contains(Secondary::UNRESTRICTED_GUEST) {
        return Err(Unsupported::NoUnrestrictedGuest);
    }
    let mut required = Secondary::ENABLE_EPT | Secondary::ENABLE_VPID | Secondary::UNRESTRICTED_GUEST;
    // What CPUID shows to guests must work in them.
    required.set(Secondary::ENABLE_RDTSCP, has_tsc_aux());
    let extended = CpuId::new().get_extended_feature_info();
    required.set(Secondary::ENABLE_INVPCID, extended.is_some_and(|features| features.has_invpcid()));
    // SGX is not shown.
    let optional = Secondary::WBINVD_EXITING | Secondary::ENCLS_EXITING;
    Ok(Controls {
        pin: of("pin-based", capabilities.pin_controls(), pin.bits(), 0)?,
        processor,
        secondary: of("secondary", capabilities.secondary_controls(), required.bits(), optional.bits())?,
        exit: of("VM-exit", capabilities.exit_controls(), exit.bits(), 0)?,
        entry: of("VM-entry", capabilities.entry_controls(), entry.bits(), 0)?,
    })
}

/// Sets the control-register bits that VMX operation fixes, and executes VMXON.
fn turn_on(capabilities: &Capabilities) -> Result<HostPage, Unsupported> {
    // SAFETY: the fixed bits are those of a processor in long mode with paging, which is how we run, plus NE.
    unsafe {
        Cr0::update(|cr0| *cr0 |= Cr0Flags::NUMERIC_ERROR);
        Cr4::update(|cr4| *cr4 |= Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS);
    }
    let mut region = HostPage::new();
    region.bytes_mut()[..4].copy_from_slice(&capabilities.revision().to_le_bytes());
    let address = region.hpa().0;
    let failed: u8;
    // SAFETY: CR4.VMXE is set and IA32_FEATURE_CONTROL allows it; the region is a page of ours with the revision
    // identifier, which nobody else touches from here on.
    unsafe {
        asm!("vmxon [{}]", "setna {}", in(reg) &raw const address, out(reg_byte) failed, options(nostack));
    }
    if failed != 0 { Err(Unsupported::VmxonFailed) } else { Ok(region) }
}
