//! EVENTINJ and EXITINTINFO (APM vol. 2, "Event Injection" and "EXITINTINFO Pseudo-Code").

use crate::event::{Event, EventKind, vector};

/// Bit 11: an error code belongs to the event.
pub const ERROR_CODE_VALID: u64 = 1 << 11;
/// Bit 31: the field holds an event.
pub const VALID: u64 = 1 << 31;

/// Types, bits 10:8.
#[allow(missing_docs, reason = "each constant is the type of its name")]
pub mod kind {
    pub const INTERRUPT: u64 = 0;
    pub const NMI: u64 = 2;
    pub const EXCEPTION: u64 = 3;
    pub const SOFTWARE_INTERRUPT: u64 = 4;
}

/// The field that injects `event`. INT3, INTO and INT1 have the type of exceptions here.
pub const fn encode(event: &Event) -> u64 {
    let kind = match event.kind {
        EventKind::External => kind::INTERRUPT,
        EventKind::Nmi => kind::NMI,
        EventKind::SoftwareInterrupt => kind::SOFTWARE_INTERRUPT,
        EventKind::HardwareException | EventKind::PrivilegedSoftwareException | EventKind::SoftwareException => {
            kind::EXCEPTION
        }
    };
    let error = match event.error {
        Some(error) => ERROR_CODE_VALID | (error as u64) << 32,
        None => 0,
    };
    VALID | error | kind << 8 | event.vector as u64
}

/// The event in EXITINTINFO that must be injected again; `None` where there is none, where the type is reserved, and
/// for what an instruction raised by itself (INT n, INT3, INTO): RIP is at that instruction, and it is executed again.
pub const fn decode(field: u64) -> Option<Event> {
    if field & VALID == 0 {
        return None;
    }
    let vector = (field & 0xff) as u8;
    let kind = match field >> 8 & 7 {
        kind::INTERRUPT => EventKind::External,
        kind::NMI => EventKind::Nmi,
        kind::EXCEPTION if vector == vector::BP || vector == vector::OF => return None,
        kind::EXCEPTION => EventKind::HardwareException,
        _ => return None,
    };
    let error = if field & ERROR_CODE_VALID != 0 { Some((field >> 32) as u32) } else { None };
    Some(Event { kind, vector, error, length: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_interrupted_can_be_injected_again() {
        for kind in [EventKind::External, EventKind::Nmi, EventKind::HardwareException] {
            for vector in (0..=255).filter(|v| kind != EventKind::HardwareException || !matches!(v, 3 | 4)) {
                for error in [None, Some(0x8000_1234)] {
                    let event = Event { kind, vector, error, length: 0 };
                    assert_eq!(decode(encode(&event)), Some(event));
                }
            }
        }
    }

    #[test]
    fn fields_are_those_of_the_manual() {
        assert_eq!(encode(&Event::external(0x30)), 0x8000_0030);
        assert_eq!(encode(&Event::exception(14, Some(6))), 0x6_8000_0b0e);
        let nmi = Event { kind: EventKind::Nmi, vector: 2, error: None, length: 0 };
        assert_eq!(encode(&nmi), 0x8000_0202);
        let software = Event { kind: EventKind::SoftwareInterrupt, vector: 0x80, error: None, length: 2 };
        assert_eq!(encode(&software), 0x8000_0480);
    }

    #[test]
    fn an_instruction_is_executed_again_instead() {
        assert_eq!(decode(0x8000_0480), None);
        assert_eq!(decode(0x8000_0303), None);
        assert_eq!(decode(0x8000_0304), None);
    }

    #[test]
    fn nothing_comes_out_of_invalid_or_reserved() {
        assert_eq!(decode(0x30e), None);
        for kind in [1, 5, 6, 7] {
            assert_eq!(decode(VALID | kind << 8), None);
        }
    }
}
