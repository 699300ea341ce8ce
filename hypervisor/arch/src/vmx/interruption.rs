//! The three interruption-information formats: VM entry, VM exit and IDT vectoring (SDM vol. 3, "VM-Entry Controls
//! for Event Injection", "Information for VM Exits Due to Vectored Events", "… That Occur During Event Delivery").

use crate::event::{Event, EventKind};

/// Bit 11: an error code belongs to the event.
pub const ERROR_CODE_VALID: u32 = 1 << 11;
/// Bit 31: the field holds an event.
pub const VALID: u32 = 1 << 31;

/// Bits 10:8 for `kind`.
const fn type_code(kind: EventKind) -> u32 {
    match kind {
        EventKind::External => 0,
        EventKind::Nmi => 2,
        EventKind::HardwareException => 3,
        EventKind::SoftwareInterrupt => 4,
        EventKind::PrivilegedSoftwareException => 5,
        EventKind::SoftwareException => 6,
    }
}

/// The VM-entry interruption information that injects `event`.
pub const fn encode(event: &Event) -> u32 {
    let error = if event.error.is_some() { ERROR_CODE_VALID } else { 0 };
    VALID | error | type_code(event.kind) << 8 | event.vector as u32
}

/// Whether the field holds a software event, whose instruction length counts.
pub const fn is_software(information: u32) -> bool {
    information & VALID != 0 && matches!(information >> 8 & 7, 4..=6)
}

/// The event in an interruption-information field of a VM exit or of IDT vectoring; `None` where the field holds
/// none, or a type that the manual reserves.
pub const fn decode(information: u32, error: u32, length: u32) -> Option<Event> {
    if information & VALID == 0 {
        return None;
    }
    let kind = match information >> 8 & 7 {
        0 => EventKind::External,
        2 => EventKind::Nmi,
        3 => EventKind::HardwareException,
        4 => EventKind::SoftwareInterrupt,
        5 => EventKind::PrivilegedSoftwareException,
        6 => EventKind::SoftwareException,
        _ => return None,
    };
    Some(Event {
        kind,
        vector: (information & 0xff) as u8,
        error: if information & ERROR_CODE_VALID != 0 { Some(error) } else { None },
        length: if is_software(information) { (length & 0xf) as u8 } else { 0 },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_survives_the_round_trip() {
        for kind in [
            EventKind::External,
            EventKind::Nmi,
            EventKind::HardwareException,
            EventKind::SoftwareInterrupt,
            EventKind::PrivilegedSoftwareException,
            EventKind::SoftwareException,
        ] {
            for vector in 0..=255 {
                for error in [None, Some(0x1234)] {
                    let event = Event { kind, vector, error, length: 0 };
                    assert_eq!(decode(encode(&event), error.unwrap_or(0), 0), Some(event));
                }
            }
        }
    }

    #[test]
    fn nothing_comes_out_of_invalid_or_reserved() {
        assert_eq!(decode(0x0000_030e, 0, 0), None);
        assert_eq!(decode(VALID | 1 << 8, 0, 0), None);
        assert_eq!(decode(VALID | 7 << 8, 0, 0), None);
    }

    #[test]
    fn only_software_events_have_a_length() {
        assert_eq!(decode(VALID | 3 << 8 | 14, 0, 5).unwrap().length, 0);
        assert_eq!(decode(VALID | 4 << 8 | 0x80, 0, 2).unwrap().length, 2);
    }
}
