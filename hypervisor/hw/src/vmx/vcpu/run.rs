//! Into the guest and out of it, again and again: exits that are answered quickly, and those that are not.
//!
//! Owns the loop of the short way, its order of reads and writes, and what a failed entry is called. What an answer is,
//! the run loop's [`Quick`] knows.

use alloc::format;
use alloc::string::String;

use lamina_arch::event::Event;
use lamina_arch::exit::Kind;
use lamina_arch::time::Tsc;
use lamina_arch::vmx::controls::ProcessorBased;
use lamina_arch::vmx::exit::{ENTRY_FAILURE, decode, unblocked_nmi};
use lamina_arch::vmx::{field, interruption, rules};
use lamina_vmm::vcpu::{Answer, EntryFailure, Quick, Ran};

use super::super::capture::capture;
use super::super::entry::{self, Entered};
use super::super::quick::{
    CPUID, EPT_VIOLATION, INTERRUPT_WINDOW, IO, InGuest, MOV_DR, PREEMPTION_TIMER, RDMSR, VMCALL, WRMSR, nested,
    port_access, step, step_by,
};
use super::super::resume::{resume, set_timer};
use super::{BLOCKING_BY_NMI, VmxVcpu, set_control};
use crate::{timer, watchdog};

impl VmxVcpu {
    /// Enters the guest, answers its exits as far as `quick` can, and returns at the first that it cannot.
    #[inline(never)]
    pub(super) fn enter<Q: Quick>(&mut self, mut deadline: Tsc, quick: &mut Q) -> Result<Ran, EntryFailure> {
        let shift = self.shared.capabilities.preemption_timer_shift();
        let mut vmcs = self.vmcs.current();
        resume(&mut vmcs, &mut self.cache, self.event.take(), deadline, shift);
        // Nothing is known of the registers any more once the guest runs.
        self.cache.forget();
        self.trap_pending = false;
        self.frame.defences.before_first_entry();
        // SAFETY, of both here and of the one below: this VMCS is current, `setup` wrote its host state on this processor,
        // and `load` moved this vCPU's extended state and MSRs in (the run loop loads before it runs).
        let mut entered = if vmcs.is_launched() {
            // SAFETY: as said above.
            unsafe { entry::resume(&mut self.frame) }
        } else {
            // SAFETY: as said above.
            unsafe { entry::launch(&mut self.frame) }
        };
        let reason = loop {
            let at = timer::now();
            watchdog::exited(at);
            if entered.is_refused() {
                return Err(self.refused(entered));
            }
            let reason = vmcs.read(field::EXIT_REASON);
            let registers = &mut InGuest { frame: &mut self.frame, vmcs: &vmcs, extended: &self.extended };
            // Full reasons: with bit 31, of an entry that failed, it is none of these.
            let (answer, kind) = match reason {
                VMCALL => (quick.hypercall(registers), Kind::Hypercall),
                CPUID => (quick.cpuid(registers), Kind::Cpuid),
                RDMSR => (quick.rdmsr(registers, at), Kind::Rdmsr),
                WRMSR => (quick.wrmsr(registers, at), Kind::Wrmsr),
                IO if !self.watched => (port_access(registers, at, quick), Kind::Io),
                EPT_VIOLATION if !self.watched => {
                    let (answer, length) = nested(registers, at, quick);
                    let stepped = match answer {
                        Answer::Done => Answer::Again,
                        Answer::Look => Answer::LookHere,
                        answer => answer,
                    };
                    if stepped != answer && !step_by::<true>(&mut vmcs, length.into()) {
                        self.step_carefully(Some(length));
                        vmcs = self.vmcs.current();
                    }
                    (stepped, Kind::Nested)
                }
                PREEMPTION_TIMER => (Answer::LookHere, Kind::SliceEnd),
                INTERRUPT_WINDOW => {
                    let answer = quick.window();
                    if answer != Answer::Refused {
                        let window = ProcessorBased::INTERRUPT_WINDOW_EXITING;
                        set_control(&mut vmcs, &mut self.processor_controls, window, false);
                    }
                    (answer, Kind::Window)
                }
                // Tried again, with registers of the guest's own.
                MOV_DR => {
                    self.switched.touch_breakpoints();
                    self.watched = true;
                    set_control(&mut vmcs, &mut self.processor_controls, ProcessorBased::MOV_DR_EXITING, false);
                    (Answer::Again, Kind::Other)
                }
                _ => break reason,
            };
            if answer == Answer::Refused {
                break reason;
            }
            if answer.advances() && !step(&mut vmcs) {
                self.step_carefully(None);
                vmcs = self.vmcs.current();
            }
            if answer.looks() {
                let registers = &mut InGuest { frame: &mut self.frame, vmcs: &vmcs, extended: &self.extended };
                // A trap that is pending goes before any interrupt, and the run loop knows how.
                let next = if self.trap_pending { None } else { quick.look(registers, at) };
                let Some(next) = next else {
                    quick.account(kind, timer::now().0.wrapping_sub(at.0));
                    vmcs.set_launched();
                    return Ok(Ran::Look);
                };
                deadline = next.deadline;
                let window = ProcessorBased::INTERRUPT_WINDOW_EXITING;
                set_control(&mut vmcs, &mut self.processor_controls, window, next.window);
                if let Some(vector) = next.interrupt {
                    let information = interruption::encode(&Event::external(vector));
                    vmcs.write_on(field::ENTRY_INTERRUPTION_INFORMATION, information);
                }
            }
            let now = timer::now();
            quick.account(kind, now.0.wrapping_sub(at.0));
            set_timer(&mut vmcs, deadline, now, shift);
            // SAFETY: as said above; it has been launched, as the guest has exited.
            entered = unsafe { entry::resume(&mut self.frame) };
        };
        self.trap_pending = false;
        self.captured = capture(&vmcs, reason);
        if reason & ENTRY_FAILURE != 0 {
            return Err(self.failed_late());
        }
        vmcs.set_launched();
        if unblocked_nmi(&self.captured) {
            // The IRET is executed again.
            let state = vmcs.read(field::GUEST_INTERRUPTIBILITY);
            vmcs.write(field::GUEST_INTERRUPTIBILITY, state | BLOCKING_BY_NMI);
        }
        Ok(Ran::Exit(decode(&self.captured)))
    }

    /// Past an instruction of `length` bytes, or of the length that the processor tells.
    #[cold]
    fn step_carefully(&mut self, length: Option<u8>) {
        let told = || self.vmcs.current().read(field::EXIT_INSTRUCTION_LENGTH).into();
        let length = length.map_or_else(told, u64::from);
        self.step(length);
        self.cache.write_back(&mut self.vmcs.current());
        self.cache.forget();
    }

    #[cold]
    fn failed_late(&mut self) -> EntryFailure {
        let reason = (self.captured.reason & 0xffff) as u16;
        let error = format!("exit reason {reason}: {}", rules::entry_failure(reason, self.captured.qualification));
        self.failure(error)
    }

    #[cold]
    fn refused(&mut self, entered: Entered) -> EntryFailure {
        let error = match entered {
            Entered::FAIL_VALID => {
                let number = self.vmcs.current().read(field::INSTRUCTION_ERROR);
                format!("VM-instruction error {number}: {}", rules::instruction_error(number))
            }
            _ => String::from("no VMCS is current"),
        };
        self.failure(error)
    }
}
