//! Where the short way is closed.

use lamina_arch::addr::{Gla, Gpa};
use lamina_arch::exit::{Kind, Width};
use lamina_arch::time::Tsc;

use crate::vcpu::{Answer, Next, Quick, QuickRegisters};

/// Refuses every exit, so that each goes through the run loop, where it is recorded.
#[derive(Clone, Copy, Debug)]
pub struct LongWay;

impl Quick for LongWay {
    fn cpuid<R: QuickRegisters>(&mut self, _: &mut R) -> Answer {
        Answer::Refused
    }

    fn hypercall<R: QuickRegisters>(&mut self, _: &mut R) -> Answer {
        Answer::Refused
    }

    fn rdmsr<R: QuickRegisters>(&mut self, _: &mut R, _: Tsc) -> Answer {
        Answer::Refused
    }

    fn wrmsr<R: QuickRegisters>(&mut self, _: &mut R, _: Tsc) -> Answer {
        Answer::Refused
    }

    fn port_in<R: QuickRegisters>(&mut self, _: &mut R, _: Tsc, _: u16, _: Width) -> Answer {
        Answer::Refused
    }

    fn port_out<R: QuickRegisters>(&mut self, _: &mut R, _: Tsc, _: u16, _: Width) -> Answer {
        Answer::Refused
    }

    fn touch(&mut self, _: Gpa) -> Answer {
        Answer::Refused
    }

    fn is_device(&self, _: Gpa) -> bool {
        false
    }

    fn device<R: QuickRegisters>(&mut self, _: &mut R, _: Tsc, _: Gpa, _: Gla, _: bool) -> (Answer, u8) {
        (Answer::Refused, 0)
    }

    fn window(&mut self) -> Answer {
        Answer::Refused
    }

    fn look<R: QuickRegisters>(&mut self, _: &mut R, _: Tsc) -> Option<Next> {
        None
    }

    fn account(&mut self, _: Kind, _: u64) {}
}
