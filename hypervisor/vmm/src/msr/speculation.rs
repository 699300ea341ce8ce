//! A guest's control over the processor's speculation: IA32_SPEC_CTRL, IA32_PRED_CMD and IA32_ARCH_CAPABILITIES (SDM vol. 4,
//! "Architectural MSRs"; APM vol. 2, "Speculation Control MSRs").
//!
//! Owns what a guest has set, and which bits there are: those that CPUID shows, of either vendor's leaves. What the guest
//! sets is in force from then on while its virtual processor is loaded, in the hypervisor too: the bits only restrict.

use lamina_arch::event::GuestFault;
use lamina_arch::msr;

/// IA32_SPEC_CTRL: IBRS, STIBP, SSBD and PSFD.
const IBRS: u64 = 1 << 0;
const STIBP: u64 = 1 << 1;
const SSBD: u64 = 1 << 2;
const PSFD: u64 = 1 << 7;
/// IA32_PRED_CMD: the barrier for indirect branches.
const IBPB: u64 = 1 << 0;
/// IA32_ARCH_CAPABILITIES: what tells of the processor's own behaviour: RDCL_NO, IBRS_ALL, RSBA, SSB_NO, MDS_NO,
/// IF_PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, FB_CLEAR, RRSBA, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO. Bits that
/// tell of further MSRs, and of what concerns hypervisors, are not among them.
const CAPABILITIES: u64 = 0b11
    | 1 << 2
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 13
    | 1 << 14
    | 1 << 15
    | 1 << 17
    | 1 << 19
    | 1 << 20
    | 1 << 24
    | 1 << 26
    | 1 << 27;

/// What a write asks of the virtual processor.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Put this into IA32_SPEC_CTRL.
    Control(u64),
    /// The barrier for indirect branches.
    Barrier,
}

/// The three MSRs of one virtual processor; none of them is there by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Speculation {
    /// Bits of IA32_SPEC_CTRL that there are.
    control_bits: u64,
    control: u64,
    barrier: bool,
    capabilities: Option<u64>,
}

impl Speculation {
    /// What EDX of CPUID leaf 7 and EBX of leaf 0x80000008 show, with the processor's IA32_ARCH_CAPABILITIES.
    pub const fn shown(leaf7_edx: u32, leaf8_ebx: u32, capabilities: u64) -> Speculation {
        let bits = [
            (leaf7_edx & 1 << 26 != 0 || leaf8_ebx & 1 << 14 != 0, IBRS),
            (leaf7_edx & 1 << 27 != 0 || leaf8_ebx & 1 << 15 != 0, STIBP),
            (leaf7_edx & 1 << 31 != 0 || leaf8_ebx & 1 << 24 != 0, SSBD),
            (leaf8_ebx & 1 << 28 != 0, PSFD),
        ];
        let (mut control_bits, mut n) = (0, 0);
        while n < bits.len() {
            control_bits |= if bits[n].0 { bits[n].1 } else { 0 };
            n += 1;
        }
        let barrier = leaf7_edx & 1 << 26 != 0 || leaf8_ebx & 1 << 12 != 0;
        let capabilities = if leaf7_edx & 1 << 29 != 0 { Some(capabilities & CAPABILITIES) } else { None };
        Speculation { control_bits, control: 0, barrier, capabilities }
    }

    /// What RDMSR gives; `None` where the MSR is not there, or cannot be read.
    pub const fn get(&self, index: u32) -> Option<u64> {
        match index {
            msr::IA32_SPEC_CTRL if self.control_bits != 0 => Some(self.control),
            msr::IA32_ARCH_CAPABILITIES => self.capabilities,
            _ => None,
        }
    }

    /// WRMSR; `None` where the value asks for nothing.
    ///
    /// # Errors
    /// #GP(0) where the MSR is not there, or a bit that is not.
    pub fn write(&mut self, index: u32, value: u64) -> Result<Option<Effect>, GuestFault> {
        match index {
            msr::IA32_SPEC_CTRL if self.control_bits != 0 && value & !self.control_bits == 0 => {
                self.control = value;
                Ok(Some(Effect::Control(value)))
            }
            msr::IA32_PRED_CMD if self.barrier && value & !IBPB == 0 => Ok((value != 0).then_some(Effect::Barrier)),
            _ => Err(GuestFault::GP0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_shown_is_not_there() {
        let mut none = Speculation::default();
        for index in [msr::IA32_SPEC_CTRL, msr::IA32_PRED_CMD, msr::IA32_ARCH_CAPABILITIES] {
            assert_eq!((none.get(index), none.write(index, 0)), (None, Err(GuestFault::GP0)));
        }
    }

    #[test]
    fn bits_are_those_of_either_vendors_leaves() {
        let cases = [
            (1 << 26, 0, IBRS, true),
            (1 << 27, 0, STIBP, false),
            (1 << 31, 0, SSBD, false),
            (0, 1 << 12, 0, true),
            (0, 1 << 14, IBRS, false),
            (0, 1 << 15 | 1 << 24, STIBP | SSBD, false),
            (0, 1 << 28, PSFD, false),
        ];
        for (edx, ebx, bits, barrier) in cases {
            let mut found = Speculation::shown(edx, ebx, 0);
            for bit in 0..64 {
                let written = found.write(msr::IA32_SPEC_CTRL, 1 << bit);
                let good = bits & 1 << bit != 0;
                assert_eq!(written, if good { Ok(Some(Effect::Control(1 << bit))) } else { Err(GuestFault::GP0) });
            }
            assert_eq!(found.write(msr::IA32_PRED_CMD, 1).is_ok(), barrier, "{edx:#x} {ebx:#x}");
        }
    }

    #[test]
    fn control_is_kept_a_barrier_is_not_and_capabilities_are_the_processors_own() {
        let mut all = Speculation::shown(!0, !0, !0);
        assert_eq!(all.write(msr::IA32_SPEC_CTRL, 5), Ok(Some(Effect::Control(5))));
        assert_eq!(all.write(msr::IA32_SPEC_CTRL, 8), Err(GuestFault::GP0));
        assert_eq!(all.get(msr::IA32_SPEC_CTRL), Some(5));
        assert_eq!(all.write(msr::IA32_PRED_CMD, 1), Ok(Some(Effect::Barrier)));
        assert_eq!(all.write(msr::IA32_PRED_CMD, 0), Ok(None));
        assert_eq!(all.write(msr::IA32_PRED_CMD, 2), Err(GuestFault::GP0));
        assert_eq!(all.get(msr::IA32_PRED_CMD), None, "write-only");
        let capabilities = all.get(msr::IA32_ARCH_CAPABILITIES).unwrap();
        assert_eq!(
            capabilities & (1 << 3 | 1 << 7 | 1 << 10 | 1 << 11),
            0,
            "no MSR is promised, nothing of hypervisors"
        );
        assert_eq!(capabilities & 0b11, 0b11);
        assert_eq!(all.write(msr::IA32_ARCH_CAPABILITIES, capabilities), Err(GuestFault::GP0));
    }
}
