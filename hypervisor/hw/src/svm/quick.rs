//! Exits that are answered while the vCPU stays on the processor: what they may touch, and how RIP moves behind them.
//!
//! Never decodes more than the exit code and a port access' information, and never answers anything itself: that is the
//! run loop's [`Quick`].

use lamina_arch::addr::{Gla, Gpa};
use lamina_arch::cr::{Cr0, Cr4, Efer, Rflags};
use lamina_arch::exit::{Direction, Kind};
use lamina_arch::regs::Gprs;
use lamina_arch::svm::event::VALID;
use lamina_arch::svm::exit::{self, code};
use lamina_arch::svm::segment::rights;
use lamina_arch::svm::vmcb::{self, Vmcb};
use lamina_arch::time::Tsc;
use lamina_vmm::vcpu::{Answer, Quick, QuickRegisters};
use lamina_vmm::walk::Paging;

use super::entry::Frame;
use crate::xstate::ExtendedState;

/// What an answer may touch while the vCPU stays where it is.
pub struct InGuest<'a> {
    /// The general-purpose registers, with RAX.
    pub frame: &'a mut Frame,
    /// The VMCB.
    pub vmcb: &'a Vmcb,
    /// XCR0 is in it.
    pub extended: &'a ExtendedState,
}

impl QuickRegisters for InGuest<'_> {
    #[inline(always)]
    fn gprs(&mut self) -> &mut Gprs {
        &mut self.frame.gprs
    }

    fn cr4(&mut self) -> u64 {
        self.vmcb.read(vmcb::CR4)
    }

    fn xcr0(&mut self) -> u64 {
        self.extended.xcr0()
    }

    fn rsp(&mut self) -> u64 {
        self.vmcb.read(vmcb::RSP)
    }

    #[inline(always)]
    fn code(&mut self, physical_bits: u32) -> Option<(Gla, Paging, u8)> {
        let cpl = self.cpl_of_64_bit_code()?;
        let vmcb = self.vmcb;
        let paging = Paging {
            cr0: Cr0::from_bits_retain(vmcb.read(vmcb::CR0)),
            cr3: vmcb.read(vmcb::CR3),
            cr4: Cr4::from_bits_retain(vmcb.read(vmcb::CR4)),
            efer: Efer::from_bits_retain(vmcb.read(vmcb::EFER)),
            // Of data accesses only.
            alignment_check: false,
            pkru: None,
            physical_bits,
        };
        Some((Gla(vmcb.read(vmcb::RIP)), paging, cpl))
    }

    #[inline(always)]
    fn cpl_of_64_bit_code(&mut self) -> Option<u8> {
        let is_long = rights(self.vmcb.read(vmcb::CS_ATTRIBUTES)).is_long();
        let long = self.vmcb.read(vmcb::EFER) & Efer::LMA.bits() != 0 && is_long;
        long.then(|| self.vmcb.read(vmcb::CPL))
    }

    #[inline(always)]
    fn can_take_interrupt(&mut self) -> bool {
        let enabled = self.vmcb.read(vmcb::RFLAGS) & Rflags::IF.bits() != 0;
        enabled && self.vmcb.read(vmcb::INTERRUPT_STATE) & vmcb::INTERRUPT_SHADOW == 0
    }
}

/// Offers the exit to `quick`, if it is of a kind that may be answered. Where the processor does not tell the next RIP
/// (`tells_next_rip`), that is what tells it by itself, or needs none: port accesses, first touches and windows. Accesses to
/// devices in memory are not offered: the processor does not tell the linear address.
#[inline(always)]
pub fn offer<Q: Quick>(registers: &mut InGuest<'_>, tells_next_rip: bool, at: Tsc, quick: &mut Q) -> (Answer, Kind) {
    // Breakpoints are looked at on the long way.
    let watched = || registers.vmcb.read(vmcb::DR7) & BREAKPOINTS_ENABLED != 0;
    match registers.vmcb.read(vmcb::EXITCODE) {
        code::IO | code::NPF if watched() => (Answer::Refused, Kind::Other),
        code::IO => (port_access(registers, at, quick), Kind::Io),
        code::NPF => (touch(registers.vmcb, quick), Kind::Nested),
        code::VINTR => (quick.window(), Kind::Window),
        code::VMMCALL if tells_next_rip => (quick.hypercall(registers), Kind::Hypercall),
        code::CPUID if tells_next_rip => (quick.cpuid(registers), Kind::Cpuid),
        code::MSR if tells_next_rip => match registers.vmcb.read(vmcb::EXITINFO1) {
            exit::MSR_READ => (quick.rdmsr(registers, at), Kind::Rdmsr),
            exit::MSR_WRITE => (quick.wrmsr(registers, at), Kind::Wrmsr),
            _ => (Answer::Refused, Kind::Other),
        },
        _ => (Answer::Refused, Kind::Other),
    }
}

/// IN and OUT, but no strings.
#[inline(always)]
fn port_access<Q: Quick>(registers: &mut InGuest<'_>, at: Tsc, quick: &mut Q) -> Answer {
    let information = registers.vmcb.read(vmcb::EXITINFO1);
    if information & exit::IO_STRING != 0 {
        return Answer::Refused;
    }
    match exit::port_access(information) {
        Some((port, width, Direction::In)) => quick.port_in(registers, at, port, width),
        Some((port, width, Direction::Out)) => quick.port_out(registers, at, port, width),
        None => Answer::Refused,
    }
}

/// The first touch of a page, which is tried again. Not where an event's delivery touched it, which is to be injected
/// again then, or where the fault is our tables'.
#[inline(always)]
fn touch<Q: Quick>(vmcb: &Vmcb, quick: &mut Q) -> Answer {
    let ours = vmcb.read(vmcb::EXITINFO1) & exit::NESTED_RESERVED != 0;
    let gpa = Gpa(vmcb.read(vmcb::EXITINFO2));
    if ours || vmcb.read(vmcb::EXITINTINFO) & VALID != 0 || quick.is_device(gpa) {
        return Answer::Refused;
    }
    quick.touch(gpa)
}

/// DR7, bits 7:0: breakpoints are enabled.
const BREAKPOINTS_ENABLED: u64 = 0xff;

/// Where the instruction behind the answered one is.
#[inline(always)]
pub fn next_rip(vmcb: &Vmcb) -> u64 {
    if vmcb.read(vmcb::EXITCODE) == code::IO { vmcb.read(vmcb::EXITINFO2) } else { vmcb.read(vmcb::NEXT_RIP) }
}

/// Past the instruction that exited, to `rip`, in the common case: nothing else than RIP changes; false where there is
/// more to it, and nothing was done.
#[inline(always)]
pub fn step(vmcb: &mut Vmcb, rip: u64) -> bool {
    let old = vmcb.read(vmcb::RIP);
    let traps = vmcb.read(vmcb::RFLAGS) & (Rflags::TF | Rflags::RF).bits();
    let shadow = vmcb.read(vmcb::INTERRUPT_STATE) & vmcb::INTERRUPT_SHADOW;
    let simple = traps | shadow | (rip ^ old) >> 32 == 0;
    if simple {
        vmcb.write(vmcb::RIP, rip);
    }
    simple
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_simple_where_only_rip_changes() {
        let mut vmcb = Vmcb::new();
        vmcb.write(vmcb::RIP, 0x1000);
        vmcb.write(vmcb::RFLAGS, 0x202);
        assert!(step(&mut vmcb, 0x1002));
        assert_eq!(vmcb.read(vmcb::RIP), 0x1002);
        for (flags, shadow, rip) in [
            (0x302, 0, 0x1004),
            (0x202 | Rflags::RF.bits(), 0, 0x1004),
            (0x202, vmcb::INTERRUPT_SHADOW, 0x1004),
            (0x202, 0, 0x1_0000_0000),
        ] {
            vmcb.write(vmcb::RFLAGS, flags);
            vmcb.write(vmcb::INTERRUPT_STATE, shadow);
            let before = vmcb.clone();
            assert!(!step(&mut vmcb, rip), "{flags:#x} {shadow} {rip:#x}");
            assert!(vmcb == before);
        }
    }
}
