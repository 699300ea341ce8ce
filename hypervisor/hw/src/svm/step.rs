//! NMI blocking and single steps: what VMX has controls for and SVM has not.
//!
//! Owns two facts that the VMCB does not hold: whether the guest handles an NMI, and whether one instruction of the
//! guest's is being stepped over with RFLAGS.TF. NMI blocking ends with the handler's IRET; its intercept comes before
//! it is executed, so it is stepped over. Not where it ends a nested task: TF would be saved with the flags of that task,
//! which is switched from in software. An interrupt shadow is stepped over too where somebody waits for its end:
//! not every processor gives the guest its shadow back at VMRUN, and a virtual interrupt would come too early there.

use lamina_arch::cr::{Cr0, Efer, Rflags};
use lamina_arch::event::{Event, vector};
use lamina_arch::svm::exit::code;
use lamina_arch::svm::intercept::First;
use lamina_arch::svm::vmcb::{self, Vmcb};

/// DR6.BS: a single step.
const SINGLE_STEP: u64 = 1 << 14;
/// RFLAGS.NT.
const NESTED_TASK: u64 = 1 << 14;
/// DR6.B0 to B3.
const BREAKPOINTS: u64 = 0xf;
/// What says of a debug exception why it came.
const STATUS: u64 = SINGLE_STEP | BREAKPOINTS;

/// Why an instruction is stepped over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// It is the IRET of an NMI's handler.
    Iret,
    /// It is in an interrupt shadow.
    Shadow,
}

/// A step that is under way.
#[derive(Clone, Copy, Debug)]
struct Step {
    purpose: Purpose,
    /// Where the instruction is.
    rip: u64,
    /// The guest's own TF.
    trap: u64,
    /// The guest's DR6 before.
    dr6: u64,
}

/// What follows from an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follows {
    /// It is to be decoded.
    Decode,
    /// It was ours: enter again.
    Again,
    /// It was ours, and the guest can take an NMI.
    NmiWindow,
    /// The handler's IRET switches tasks, and is to be finished in software; NMIs are blocked until then.
    TaskSwitch,
}

/// NMI blocking and single steps of one virtual processor.
#[derive(Debug, Default)]
pub struct Stepper {
    nmi_blocked: bool,
    /// The next instruction is the handler's IRET.
    at_iret: bool,
    step: Option<Step>,
}

impl Stepper {
    /// NMIs are blocked until the next IRET is done.
    pub const fn is_nmi_blocked(&self) -> bool {
        self.nmi_blocked
    }

    /// An instruction is being stepped over: whatever exit comes must be seen by [`Stepper::after_exit`].
    pub const fn is_stepping(&self) -> bool {
        self.step.is_some()
    }

    /// NMIs are blocked until the next IRET is done, or no longer.
    pub fn set_nmi_blocked(&mut self, vmcb: &mut Vmcb, blocked: bool) {
        self.nmi_blocked = blocked;
        self.at_iret = false;
        intercept_iret(vmcb, blocked);
    }

    /// An NMI is injected by the coming entry.
    pub fn nmi_injected(&mut self, vmcb: &mut Vmcb) {
        self.nmi_blocked = true;
        self.at_iret = false;
        intercept_iret(vmcb, true);
    }

    /// Before an entry that injects something (`injects`) or not, while somebody waits for the end of a shadow
    /// (`awaited`) or not. Returns whether a shadow is stepped over, so that no virtual interrupt may be offered.
    pub fn before_entry(&mut self, vmcb: &mut Vmcb, injects: bool, awaited: bool) -> bool {
        let shadow = vmcb.read(vmcb::INTERRUPT_STATE) & vmcb::INTERRUPT_SHADOW != 0;
        if injects && self.at_iret {
            self.wait_for_iret(vmcb);
        }
        let purpose = match () {
            // The event goes first, and its handler must not find TF set on its stack.
            () if injects => None,
            () if self.at_iret => Some(Purpose::Iret),
            () if shadow && awaited => Some(Purpose::Shadow),
            () => None,
        };
        self.step = purpose.map(|purpose| {
            let flags = vmcb.read(vmcb::RFLAGS);
            vmcb.write(vmcb::RFLAGS, flags | Rflags::TF.bits());
            let trap = flags & Rflags::TF.bits();
            let dr6 = vmcb.read(vmcb::DR6);
            // What an earlier exception has left there would be taken for the step's.
            if dr6 & STATUS != 0 {
                vmcb.write(vmcb::DR6, dr6 & !STATUS);
            }
            Step { purpose, rip: vmcb.read(vmcb::RIP), trap, dr6 }
        });
        purpose == Some(Purpose::Shadow)
    }

    /// After an exit with `exit_code`.
    pub fn after_exit(&mut self, vmcb: &mut Vmcb, exit_code: u64) -> Follows {
        let step = self.step.take();
        let done = exit_code == code::DEBUG && vmcb.read(vmcb::DR6) & SINGLE_STEP != 0;
        if let Some(step) = step
            && !done
        {
            // Not executed, or it faulted and the fault was delivered, which cleared TF: with it set in the flags that
            // were pushed.
            take_back_tf(vmcb, &step);
            let dr6 = vmcb.read(vmcb::DR6);
            let kept = step.dr6 & if dr6 & BREAKPOINTS == 0 { STATUS } else { SINGLE_STEP };
            if kept != 0 {
                vmcb.write(vmcb::DR6, dr6 | kept);
            }
            if step.purpose == Purpose::Iret && vmcb.read(vmcb::RIP) != step.rip {
                self.wait_for_iret(vmcb);
            }
        }
        if exit_code == code::IRET && ends_task(vmcb) {
            return Follows::TaskSwitch;
        }
        if exit_code == code::IRET {
            self.at_iret = true;
            intercept_iret(vmcb, false);
            return Follows::Again;
        }
        let Some(step) = step.filter(|_| done) else { return Follows::Decode };
        let dr6 = vmcb.read(vmcb::DR6);
        match step.purpose {
            // RFLAGS is what IRET has loaded.
            Purpose::Iret => {
                self.at_iret = false;
                self.nmi_blocked = false;
            }
            Purpose::Shadow => take_back_tf(vmcb, &step),
        }
        if step.trap != 0 {
            // The guest steps too: the exception is its own.
            return Follows::Decode;
        }
        if dr6 & BREAKPOINTS != 0 {
            vmcb.write(vmcb::DR6, dr6 & !SINGLE_STEP | step.dr6 & SINGLE_STEP);
            return Follows::Decode;
        }
        vmcb.write(vmcb::DR6, step.dr6);
        if self.nmi_blocked { Follows::Again } else { Follows::NmiWindow }
    }

    /// The guest is not at its IRET any more: the next one counts, whosever it is, as on a processor without us.
    fn wait_for_iret(&mut self, vmcb: &mut Vmcb) {
        self.at_iret = false;
        intercept_iret(vmcb, true);
    }
}

/// TF is what it was before the step.
fn take_back_tf(vmcb: &mut Vmcb, step: &Step) {
    let flags = vmcb.read(vmcb::RFLAGS) & !Rflags::TF.bits();
    vmcb.write(vmcb::RFLAGS, flags | step.trap);
}

/// What a processor does behind an instruction, where we have finished that: RF is over, and a single step traps (APM
/// vol. 2, "Single Stepping"). The exception to be injected.
pub fn behind_instruction(vmcb: &mut Vmcb) -> Option<Event> {
    let flags = vmcb.read(vmcb::RFLAGS);
    if flags & (Rflags::TF | Rflags::RF).bits() == 0 {
        return None;
    }
    vmcb.write(vmcb::RFLAGS, flags & !Rflags::RF.bits());
    if flags & Rflags::TF.bits() == 0 {
        return None;
    }
    vmcb.write(vmcb::DR6, vmcb.read(vmcb::DR6) & !BREAKPOINTS | SINGLE_STEP);
    Some(Event::exception(vector::DB, None))
}

/// Whether IRET leads to the task that the current one is nested in.
fn ends_task(vmcb: &Vmcb) -> bool {
    let flags = vmcb.read(vmcb::RFLAGS);
    let protected = vmcb.read(vmcb::CR0) & Cr0::PE.bits() != 0 && vmcb.read(vmcb::EFER) & Efer::LMA.bits() == 0;
    protected && flags & (NESTED_TASK | Rflags::VM.bits()) == NESTED_TASK
}

/// Breakpoints that the instruction behind us has met (bits 3:0), besides what [`behind_instruction`] has found. The
/// exception to be injected.
pub fn met(vmcb: &mut Vmcb, breakpoints: u64) -> Event {
    let flags = vmcb.read(vmcb::RFLAGS);
    let steps = if flags & Rflags::TF.bits() != 0 { SINGLE_STEP } else { 0 };
    vmcb.write(vmcb::DR6, vmcb.read(vmcb::DR6) & !BREAKPOINTS | breakpoints | steps);
    Event::exception(vector::DB, None)
}

fn intercept_iret(vmcb: &mut Vmcb, on: bool) {
    let mut intercepts = First::from_bits_retain(vmcb.read(vmcb::FIRST_INTERCEPTS));
    if intercepts.contains(First::IRET) != on {
        intercepts.set(First::IRET, on);
        vmcb.write(vmcb::FIRST_INTERCEPTS, intercepts.bits());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TF: u64 = Rflags::TF.bits();

    fn guest() -> (Stepper, Vmcb) {
        let mut vmcb = Vmcb::new();
        vmcb.write(vmcb::RFLAGS, 0x202);
        vmcb.write(vmcb::RIP, 0x1000);
        vmcb.write(vmcb::DR6, 0xffff_0ff0);
        (Stepper::default(), vmcb)
    }

    fn intercepts_iret(vmcb: &Vmcb) -> bool {
        vmcb.read(vmcb::FIRST_INTERCEPTS) & First::IRET.bits() != 0
    }

    /// The guest has executed one instruction with TF set.
    fn stepped(stepper: &mut Stepper, vmcb: &mut Vmcb, flags: u64) -> Follows {
        assert_ne!(vmcb.read(vmcb::RFLAGS) & TF, 0);
        vmcb.write(vmcb::RIP, vmcb.read(vmcb::RIP) + 2);
        vmcb.write(vmcb::RFLAGS, flags);
        vmcb.write(vmcb::DR6, vmcb.read(vmcb::DR6) | SINGLE_STEP);
        stepper.after_exit(vmcb, code::DEBUG)
    }

    #[test]
    fn nmis_are_blocked_until_iret_is_done() {
        let (mut stepper, mut vmcb) = guest();
        stepper.nmi_injected(&mut vmcb);
        stepper.before_entry(&mut vmcb, true, false);
        assert!(stepper.is_nmi_blocked() && intercepts_iret(&vmcb));
        assert_eq!(vmcb.read(vmcb::RFLAGS) & TF, 0, "the handler must not find TF on its stack");
        assert_eq!(stepper.after_exit(&mut vmcb, code::IRET), Follows::Again);
        assert!(stepper.is_nmi_blocked() && !intercepts_iret(&vmcb));
        assert!(!stepper.before_entry(&mut vmcb, false, false));
        // An interrupt of the machine's comes before IRET is executed; it is stepped over the next time.
        assert_eq!(stepper.after_exit(&mut vmcb, code::INTR), Follows::Decode);
        assert_eq!(vmcb.read(vmcb::RFLAGS), 0x202);
        stepper.before_entry(&mut vmcb, false, false);
        assert_eq!(stepped(&mut stepper, &mut vmcb, 0x246), Follows::NmiWindow);
        assert!(!stepper.is_nmi_blocked() && !intercepts_iret(&vmcb));
        assert_eq!((vmcb.read(vmcb::RFLAGS), vmcb.read(vmcb::DR6)), (0x246, 0xffff_0ff0));
        assert!(!stepper.before_entry(&mut vmcb, false, true));
        assert_eq!(vmcb.read(vmcb::RFLAGS) & TF, 0);
    }

    #[test]
    fn an_iret_that_faults_does_not_end_the_blocking() {
        let (mut stepper, mut vmcb) = guest();
        stepper.nmi_injected(&mut vmcb);
        stepper.after_exit(&mut vmcb, code::IRET);
        stepper.before_entry(&mut vmcb, false, false);
        vmcb.write(vmcb::RIP, 0x5000);
        vmcb.write(vmcb::RFLAGS, 2);
        assert_eq!(stepper.after_exit(&mut vmcb, code::CPUID), Follows::Decode);
        assert!(stepper.is_nmi_blocked() && intercepts_iret(&vmcb));
        assert!(!stepper.before_entry(&mut vmcb, false, false));
        assert_eq!(vmcb.read(vmcb::RFLAGS) & TF, 0);
    }

    #[test]
    fn an_iret_that_ends_a_task_is_not_stepped_over() {
        for (flags, cr0, efer, ends) in [
            (0x4002, 0x11, Efer::SVME, true),
            (0x0002, 0x11, Efer::SVME, false),
            (0x2_4002, 0x11, Efer::SVME, false),
            (0x4002, 0x10, Efer::SVME, false),
            (0x4002, 0x8000_0011, Efer::SVME | Efer::LMA, false),
        ] {
            let (mut stepper, mut vmcb) = guest();
            stepper.nmi_injected(&mut vmcb);
            vmcb.write(vmcb::RFLAGS, flags);
            vmcb.write(vmcb::CR0, cr0);
            vmcb.write(vmcb::EFER, efer.bits());
            let follows = if ends { Follows::TaskSwitch } else { Follows::Again };
            assert_eq!(stepper.after_exit(&mut vmcb, code::IRET), follows);
            // Whatever becomes of it in software, the next IRET counts until somebody says otherwise.
            assert_eq!((stepper.is_nmi_blocked(), intercepts_iret(&vmcb)), (true, ends));
            stepper.before_entry(&mut vmcb, false, false);
            assert_eq!(vmcb.read(vmcb::RFLAGS) & TF == 0, ends);
        }
    }

    #[test]
    fn an_event_at_the_iret_goes_first() {
        let (mut stepper, mut vmcb) = guest();
        stepper.nmi_injected(&mut vmcb);
        stepper.after_exit(&mut vmcb, code::IRET);
        stepper.before_entry(&mut vmcb, true, false);
        assert_eq!(vmcb.read(vmcb::RFLAGS) & TF, 0);
        assert!(stepper.is_nmi_blocked() && intercepts_iret(&vmcb));
    }

    #[test]
    fn a_shadow_is_stepped_over_only_where_somebody_waits() {
        let (mut stepper, mut vmcb) = guest();
        vmcb.write(vmcb::INTERRUPT_STATE, vmcb::INTERRUPT_SHADOW);
        assert!(!stepper.before_entry(&mut vmcb, false, false));
        assert!(!stepper.before_entry(&mut vmcb, true, true));
        assert_eq!(vmcb.read(vmcb::RFLAGS) & TF, 0);
        assert!(stepper.before_entry(&mut vmcb, false, true));
        // It may have been an NMI that waited.
        assert_eq!(stepped(&mut stepper, &mut vmcb, 0x202 | TF), Follows::NmiWindow);
        assert_eq!((vmcb.read(vmcb::RFLAGS), vmcb.read(vmcb::DR6)), (0x202, 0xffff_0ff0));
        stepper.nmi_injected(&mut vmcb);
        assert!(stepper.before_entry(&mut vmcb, false, true));
        assert_eq!(stepped(&mut stepper, &mut vmcb, 0x202 | TF), Follows::Again);
    }

    #[test]
    fn a_handlers_iret_in_a_shadow_keeps_nothing_of_that_step() {
        for (nested, follows) in [(0, Follows::Again), (0x4000, Follows::TaskSwitch)] {
            let (mut stepper, mut vmcb) = guest();
            vmcb.write(vmcb::RFLAGS, 0x202 | nested);
            vmcb.write(vmcb::CR0, 0x11);
            stepper.nmi_injected(&mut vmcb);
            vmcb.write(vmcb::INTERRUPT_STATE, vmcb::INTERRUPT_SHADOW);
            assert!(stepper.before_entry(&mut vmcb, false, true));
            assert_eq!(stepper.after_exit(&mut vmcb, code::IRET), follows);
            assert_eq!((stepper.is_stepping(), vmcb.read(vmcb::RFLAGS)), (false, 0x202 | nested));
        }
    }

    #[test]
    fn what_an_earlier_exception_left_in_dr6_is_not_taken_for_the_steps() {
        let (mut stepper, mut vmcb) = guest();
        vmcb.write(vmcb::DR6, 0xffff_4ff2);
        stepper.nmi_injected(&mut vmcb);
        stepper.after_exit(&mut vmcb, code::IRET);
        stepper.before_entry(&mut vmcb, false, false);
        // A breakpoint on the IRET, which was not executed.
        vmcb.write(vmcb::DR6, vmcb.read(vmcb::DR6) | 1);
        assert_eq!(stepper.after_exit(&mut vmcb, code::DEBUG), Follows::Decode);
        assert!(stepper.is_nmi_blocked());
        assert_eq!(vmcb.read(vmcb::DR6), 0xffff_4ff1);

        vmcb.write(vmcb::DR6, 0xffff_4ff2);
        stepper.before_entry(&mut vmcb, false, false);
        assert_eq!(stepper.after_exit(&mut vmcb, code::INTR), Follows::Decode);
        assert_eq!(vmcb.read(vmcb::DR6), 0xffff_4ff2);
        stepper.before_entry(&mut vmcb, false, false);
        assert_eq!(stepped(&mut stepper, &mut vmcb, 0x246), Follows::NmiWindow);
        assert_eq!(vmcb.read(vmcb::DR6), 0xffff_4ff2);
    }

    #[test]
    fn an_instruction_that_exits_in_a_shadow_is_seen_as_it_is() {
        let (mut stepper, mut vmcb) = guest();
        vmcb.write(vmcb::INTERRUPT_STATE, vmcb::INTERRUPT_SHADOW);
        stepper.before_entry(&mut vmcb, false, true);
        assert_eq!(stepper.after_exit(&mut vmcb, code::HLT), Follows::Decode);
        assert_eq!(vmcb.read(vmcb::RFLAGS), 0x202);
    }

    #[test]
    fn the_guests_own_steps_and_breakpoints_stay_the_guests() {
        let (mut stepper, mut vmcb) = guest();
        vmcb.write(vmcb::RFLAGS, 0x202 | TF);
        vmcb.write(vmcb::INTERRUPT_STATE, vmcb::INTERRUPT_SHADOW);
        stepper.before_entry(&mut vmcb, false, true);
        assert_eq!(stepped(&mut stepper, &mut vmcb, 0x202 | TF), Follows::Decode);
        assert_eq!((vmcb.read(vmcb::RFLAGS), vmcb.read(vmcb::DR6)), (0x202 | TF, 0xffff_4ff0));

        let (mut stepper, mut vmcb) = guest();
        vmcb.write(vmcb::INTERRUPT_STATE, vmcb::INTERRUPT_SHADOW);
        stepper.before_entry(&mut vmcb, false, true);
        vmcb.write(vmcb::DR6, 0xffff_0ff1);
        assert_eq!(stepped(&mut stepper, &mut vmcb, 0x202 | TF), Follows::Decode);
        assert_eq!((vmcb.read(vmcb::RFLAGS), vmcb.read(vmcb::DR6)), (0x202, 0xffff_0ff1));
    }

    #[test]
    fn behind_an_instruction_a_single_step_traps_and_rf_is_over() {
        let (_, mut vmcb) = guest();
        assert_eq!(behind_instruction(&mut vmcb), None);
        vmcb.write(vmcb::RFLAGS, 0x202 | Rflags::RF.bits());
        assert_eq!(behind_instruction(&mut vmcb), None);
        assert_eq!((vmcb.read(vmcb::RFLAGS), vmcb.read(vmcb::DR6)), (0x202, 0xffff_0ff0));
        vmcb.write(vmcb::RFLAGS, 0x202 | (Rflags::TF | Rflags::RF).bits());
        vmcb.write(vmcb::DR6, 0xffff_2ff5);
        assert_eq!(behind_instruction(&mut vmcb), Some(Event::exception(vector::DB, None)));
        assert_eq!((vmcb.read(vmcb::RFLAGS), vmcb.read(vmcb::DR6)), (0x202 | TF, 0xffff_6ff0), "BD stays");
    }

    #[test]
    fn exits_without_a_step_are_not_touched() {
        let (mut stepper, mut vmcb) = guest();
        stepper.before_entry(&mut vmcb, false, true);
        vmcb.write(vmcb::DR6, 0xffff_4ff0);
        let before = vmcb.clone();
        assert_eq!(stepper.after_exit(&mut vmcb, code::DEBUG), Follows::Decode);
        assert!(vmcb == before);
    }
}
