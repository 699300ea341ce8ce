//! What a scripted guest does, step by step.

use std::boxed::Box;

use lamina_arch::event::Event;
use lamina_arch::exit::Exit;

use super::vcpu::FakeVcpu;
use crate::vcpu::EntryFailure;

/// What a guest does: asked for the next step whenever one is over.
pub type Program = Box<dyn FnMut(&mut FakeVcpu) -> Step>;

pub(super) type Act = Box<dyn FnOnce(&mut FakeVcpu)>;

pub(super) enum Outcome {
    Exit(Exit),
    Refused(EntryFailure),
    None,
}

/// What a guest does next: some time passes, registers and memory change, and then it exits or goes on.
pub struct Step {
    pub(super) ticks: u64,
    pub(super) act: Option<Act>,
    pub(super) outcome: Outcome,
    pub(super) length: Option<u8>,
    pub(super) interrupted: Option<Event>,
}

impl Step {
    const fn new(ticks: u64, outcome: Outcome) -> Step {
        Step { ticks, act: None, outcome, length: Some(2), interrupted: None }
    }

    /// After one tick, an instruction of two bytes exits.
    pub const fn exit(exit: Exit) -> Step {
        Step::new(1, Outcome::Exit(exit))
    }

    /// The processor refuses to enter.
    pub const fn refused(failure: EntryFailure) -> Step {
        Step::new(0, Outcome::Refused(failure))
    }

    /// Computes for `ticks` and does not exit.
    pub const fn compute(ticks: u64) -> Step {
        Step::new(ticks, Outcome::None)
    }

    /// Does `act` in no time and does not exit: also the place to look at what the step before gave.
    pub fn act(act: impl FnOnce(&mut FakeVcpu) + 'static) -> Step {
        Step::new(0, Outcome::None).with(act)
    }

    /// `cli; jmp $`.
    pub fn spin() -> Step {
        Step::compute(u64::MAX)
    }

    /// The same, but after `ticks`.
    #[must_use]
    pub fn after(mut self, ticks: u64) -> Step {
        self.ticks = ticks;
        self
    }

    /// The same, with `act` done when the time is over, before the exit.
    #[must_use]
    pub fn with(mut self, act: impl FnOnce(&mut FakeVcpu) + 'static) -> Step {
        let before = self.act.take();
        self.act = Some(Box::new(move |cpu| {
            if let Some(before) = before {
                before(cpu);
            }
            act(cpu);
        }));
        self
    }

    /// The same, of an instruction of `length` bytes.
    #[must_use]
    pub fn length(mut self, length: u8) -> Step {
        self.length = Some(length);
        self
    }

    /// The same, but the processor does not tell the instruction's length.
    #[must_use]
    pub fn untold(mut self) -> Step {
        self.length = None;
        self
    }

    /// The same, but the exit interrupts the delivery of `event`.
    #[must_use]
    pub fn interrupting(mut self, event: Event) -> Step {
        self.interrupted = Some(event);
        self
    }
}

/// A guest that does `steps` one after another and then spins with interrupts as they are.
pub fn script(steps: impl IntoIterator<Item = Step>) -> Program {
    let mut steps: std::collections::VecDeque<Step> = steps.into_iter().collect();
    Box::new(move |_| steps.pop_front().unwrap_or_else(Step::spin))
}
