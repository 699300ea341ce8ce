//! What happens when a fault comes up while another event was being delivered (SDM vol. 3, "Interrupt 8—Double Fault
//! Exception", tables of contributory exceptions and conditions).

use lamina_arch::event::{Event, EventKind, GuestFault, vector};

/// What is to be delivered in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// This event.
    Event(Event),
    /// A fault in delivering a double fault: shutdown.
    TripleFault,
}

#[derive(PartialEq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
}

const fn class(vector: u8) -> Class {
    match vector {
        vector::DE | vector::TS | vector::NP | vector::SS | vector::GP => Class::Contributory,
        vector::PF => Class::PageFault,
        _ => Class::Benign,
    }
}

/// The event that results when `second` comes up in delivering `first`. A first event that is benign (an interrupt,
/// or a benign exception) is given up: a fault restarts the instruction, and an interrupt stays requested in its
/// controller only where the controller still has it, so the caller re-raises what must not be lost.
pub fn combine(first: Option<Event>, second: GuestFault) -> Delivery {
    let fault = Delivery::Event(Event::exception(second.vector, second.error));
    let Some(Event { kind: EventKind::HardwareException, vector: first, .. }) = first else {
        return fault;
    };
    if first == vector::DF {
        return if class(second.vector) == Class::Benign { fault } else { Delivery::TripleFault };
    }
    match (class(first), class(second.vector)) {
        (Class::Contributory, Class::Contributory) | (Class::PageFault, Class::Contributory | Class::PageFault) => {
            Delivery::Event(Event::exception(vector::DF, Some(0)))
        }
        _ => fault,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(vector: u8) -> GuestFault {
        GuestFault { vector, error: None, cr2: None }
    }

    fn after(first: u8, second: u8) -> Delivery {
        combine(Some(Event::exception(first, None)), fault(second))
    }

    #[test]
    fn the_table_of_double_faults() {
        let double = Delivery::Event(Event::exception(vector::DF, Some(0)));
        let contributory = [0, 10, 11, 12, 13];
        for first in contributory {
            for second in contributory {
                assert_eq!(after(first, second), double);
                assert_eq!(after(14, second), double);
            }
            assert_eq!(after(first, 14), Delivery::Event(Event::exception(14, None)));
            assert_eq!(after(1, first), Delivery::Event(Event::exception(first, None)));
            assert_eq!(after(8, first), Delivery::TripleFault);
        }
        assert_eq!(after(14, 14), double);
        assert_eq!(after(8, 14), Delivery::TripleFault);
        assert_eq!(after(14, 1), Delivery::Event(Event::exception(1, None)));
    }

    #[test]
    fn a_fault_in_delivering_an_interrupt_is_just_that_fault() {
        let gp = Delivery::Event(Event::exception(13, Some(0)));
        assert_eq!(combine(Some(Event::external(14)), GuestFault::GP0), gp);
        assert_eq!(combine(None, GuestFault::GP0), gp);
    }
}
