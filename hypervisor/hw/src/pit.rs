//! Channel 2 of the 8254 as a clock of known rate (Intel 8254 data sheet, "Counter Latch Command").
//!
//! Owns that channel; its gate is in [`nmi_status`]'s port. Chipsets can gate the 8254's clock off, and
//! firmware that was started as UEFI often does: then it takes its programming and does not count.

use x86_64::instructions::port::Port;

use crate::nmi_status;
use crate::reference::{Counter, Rate};

const CHANNEL_2: u16 = 0x42;
const COMMAND: u16 = 0x43;
/// Channel 2, low byte then high byte, mode 2 (rate generator), binary.
const RATE_GENERATOR: u8 = 0xb4;
const LATCH_CHANNEL_2: u8 = 0x80;

/// The channel, counting.
#[derive(Debug)]
pub struct Pit {
    command: Port<u8>,
    data: Port<u8>,
}

impl Pit {
    /// Starts it, its speaker off, counting down from 65536 again and again.
    pub fn start() -> Pit {
        let mut pit = Pit { command: Port::new(COMMAND), data: Port::new(CHANNEL_2) };
        nmi_status::start_channel_2();
        // SAFETY: the ports of the 8254 reach no memory, and only this module uses channel 2.
        unsafe {
            pit.command.write(RATE_GENERATOR);
            pit.data.write(0);
            pit.data.write(0);
        }
        pit
    }
}

impl Counter for Pit {
    fn rate(&self) -> Rate {
        // 14.318181… MHz / 12.
        Rate { steps: 13_125_000, seconds: 11 }
    }

    fn mask(&self) -> u32 {
        0xffff
    }

    fn read(&mut self) -> u32 {
        // SAFETY: as in `start`.
        let count = unsafe {
            self.command.write(LATCH_CHANNEL_2);
            let low = self.data.read();
            u16::from_le_bytes([low, self.data.read()])
        };
        // It counts down.
        u32::from(!count)
    }
}
