//! Exits that are answered while the vCPU stays on the processor: what they may touch, and how RIP moves behind them.
//!
//! Never decodes more than the exit's reason and a port's qualification, and never answers anything itself: that is the
//! run loop's [`Quick`].

use lamina_arch::addr::{Gla, Gpa};
use lamina_arch::cr::{Cr0, Cr4, Efer, Rflags};
use lamina_arch::exit::Direction;
use lamina_arch::regs::Gprs;
use lamina_arch::segment::{AccessRights, SegmentName};
use lamina_arch::time::Tsc;
use lamina_arch::vmx::exit;
use lamina_arch::vmx::field;
use lamina_arch::vmx::interruption::VALID;
use lamina_vmm::vcpu::{Answer, Quick, QuickRegisters};
use lamina_vmm::walk::Paging;

use super::entry::Frame;
use super::vcpu::{BLOCKING_BY_MOV_SS, BLOCKING_BY_STI};
use super::vmcs::Current;
use crate::xstate::ExtendedState;

/// What an answer may touch while the vCPU stays where it is.
pub struct InGuest<'a> {
    /// The general-purpose registers.
    pub frame: &'a mut Frame,
    /// The VMCS, which is current.
    pub vmcs: &'a Current<'a>,
    /// XCR0 is in it.
    pub extended: &'a ExtendedState,
}

impl QuickRegisters for InGuest<'_> {
    #[inline(always)]
    fn gprs(&mut self) -> &mut Gprs {
        &mut self.frame.gprs
    }

    /// VMREADs: one.
    fn cr4(&mut self) -> u64 {
        self.vmcs.read_on(field::GUEST_CR4)
    }

    fn xcr0(&mut self) -> u64 {
        self.extended.xcr0()
    }

    /// VMREADs: one.
    fn rsp(&mut self) -> u64 {
        self.vmcs.read_on(field::GUEST_RSP)
    }

    /// VMREADs: EFER, rights of CS, RIP, CR0, CR3, CR4, rights of SS.
    #[inline(always)]
    fn code(&mut self, physical_bits: u32) -> Option<(Gla, Paging, u8)> {
        let vmcs = self.vmcs;
        let rights = |name| AccessRights(vmcs.read_on(field::segment(name).3));
        let efer = Efer::from_bits_retain(vmcs.read_on(field::GUEST_EFER));
        if !efer.contains(Efer::LMA) || !rights(SegmentName::Cs).is_long() {
            return None;
        }
        let rip = Gla(vmcs.read_on(field::GUEST_RIP));
        let paging = Paging {
            cr0: Cr0::from_bits_retain(vmcs.read_on(field::GUEST_CR0)),
            cr3: vmcs.read_on(field::GUEST_CR3),
            cr4: Cr4::from_bits_retain(vmcs.read_on(field::GUEST_CR4)),
            efer,
            // Of data accesses only.
            alignment_check: false,
            pkru: None,
            physical_bits,
        };
        Some((rip, paging, rights(SegmentName::Ss).dpl()))
    }

    /// VMREADs: EFER, rights of CS and SS.
    #[inline(always)]
    fn cpl_of_64_bit_code(&mut self) -> Option<u8> {
        let rights = |name| AccessRights(self.vmcs.read_on(field::segment(name).3));
        let long = self.vmcs.read_on(field::GUEST_EFER) & Efer::LMA.bits() != 0 && rights(SegmentName::Cs).is_long();
        long.then(|| rights(SegmentName::Ss).dpl())
    }

    /// VMREADs: RFLAGS, interruptibility.
    #[inline(always)]
    fn can_take_interrupt(&mut self) -> bool {
        let enabled = self.vmcs.read_on(field::GUEST_RFLAGS) & Rflags::IF.bits() != 0;
        let state = self.vmcs.read_on(field::GUEST_INTERRUPTIBILITY);
        enabled && state & (BLOCKING_BY_STI | BLOCKING_BY_MOV_SS) == 0
    }
}

/// Exit reasons of what may be answered quickly.
pub const VMCALL: u32 = exit::reason::VMCALL as u32;
pub const CPUID: u32 = exit::reason::CPUID as u32;
pub const RDMSR: u32 = exit::reason::RDMSR as u32;
pub const WRMSR: u32 = exit::reason::WRMSR as u32;
pub const IO: u32 = exit::reason::IO as u32;
pub const INTERRUPT_WINDOW: u32 = exit::reason::INTERRUPT_WINDOW as u32;
pub const MOV_DR: u32 = exit::reason::MOV_DR as u32;
pub const EPT_VIOLATION: u32 = exit::reason::EPT_VIOLATION as u32;
/// The end of the time given. It cuts no delivery short, comes between two instructions and asks for nothing but the run
/// loop's look.
pub const PREEMPTION_TIMER: u32 = exit::reason::PREEMPTION_TIMER as u32;

/// IN and OUT, but no strings. VMREADs: the qualification.
#[inline(always)]
pub fn port_access<Q: Quick>(registers: &mut InGuest<'_>, at: Tsc, quick: &mut Q) -> Answer {
    let qualification = registers.vmcs.read_on(field::EXIT_QUALIFICATION);
    if qualification & exit::IO_STRING != 0 {
        return Answer::Refused;
    }
    match exit::port_access(qualification) {
        Some((port, width, Direction::In)) => quick.port_in(registers, at, port, width),
        Some((port, width, Direction::Out)) => quick.port_out(registers, at, port, width),
        None => Answer::Refused,
    }
}

/// The first touch of a page, or an access to a device; with the length of the instruction, where one was finished (unit:
/// bytes). Not where an event's delivery was cut short, or an IRET that unblocked NMIs: there is more to do then.
/// VMREADs: interrupted event, qualification, guest-physical address; for a device, the linear address and those of
/// [`QuickRegisters::code`].
#[inline(always)]
pub fn nested<Q: Quick>(registers: &mut InGuest<'_>, at: Tsc, quick: &mut Q) -> (Answer, u8) {
    let vmcs = registers.vmcs;
    let event = vmcs.read_on(field::IDT_VECTORING_INFORMATION);
    let qualification = vmcs.read_on(field::EXIT_QUALIFICATION);
    if event & VALID != 0 || qualification & exit::UNBLOCKED_NMI != 0 {
        return (Answer::Refused, 0);
    }
    let gpa = Gpa(vmcs.read_on(field::GUEST_PHYSICAL_ADDRESS));
    if !quick.is_device(gpa) {
        return (quick.touch(gpa), 0);
    }
    if qualification & (exit::EPT_FETCH | exit::EPT_TRANSLATED) != exit::EPT_TRANSLATED {
        return (Answer::Refused, 0);
    }
    let linear = Gla(vmcs.read_on(field::GUEST_LINEAR_ADDRESS));
    quick.device(registers, at, gpa, linear, qualification & exit::EPT_WRITE != 0)
}

/// Past the instruction that exited. VMREADs: its length, and those of [`step_by`].
#[inline(always)]
pub fn step(vmcs: &mut Current<'_>) -> bool {
    let length = u64::from(vmcs.read_on(field::EXIT_INSTRUCTION_LENGTH));
    step_by::<false>(vmcs, length)
}

/// Past an instruction of `length` bytes, as [`Vcpu::advance_by`] does it in the common case: nothing else than RIP
/// changes; false where there is more to it, and nothing was done. An exit that is a FAULT has set RF, for the instruction
/// to be tried again, and it is over behind it. VMREADs: RIP, RFLAGS, interruptibility; VMWRITEs: RIP, and RFLAGS behind a
/// fault.
///
/// [`Vcpu::advance_by`]: lamina_vmm::vcpu::Vcpu::advance_by
#[inline(always)]
pub fn step_by<const FAULT: bool>(vmcs: &mut Current<'_>, length: u64) -> bool {
    let old = vmcs.read_on(field::GUEST_RIP);
    let flags = vmcs.read_on(field::GUEST_RFLAGS);
    let state = vmcs.read_on(field::GUEST_INTERRUPTIBILITY);
    let rip = old.wrapping_add(length);
    let rf = Rflags::RF.bits();
    let traps = flags & if FAULT { Rflags::TF.bits() } else { Rflags::TF.bits() | rf };
    let shadow = u64::from(state & (BLOCKING_BY_STI | BLOCKING_BY_MOV_SS));
    let simple = traps | shadow | (rip ^ old) >> 32 == 0;
    if simple {
        vmcs.write_on(field::GUEST_RIP, rip);
        if FAULT && flags & rf != 0 {
            vmcs.write_on(field::GUEST_RFLAGS, flags & !rf);
        }
    }
    simple
}
