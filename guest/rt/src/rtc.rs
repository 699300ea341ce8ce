//! The clock in the CMOS (MC146818A datasheet, "Time, Calendar, and Alarm Locations").

use crate::port;

const INDEX: u16 = 0x70;
const DATA: u16 = 0x71;
const SECONDS: u8 = 0;

/// The seconds, which it keeps in BCD.
pub fn seconds() -> u8 {
    // SAFETY: chooses the register that is read next, with NMIs let through.
    unsafe { port::write_u8(INDEX, SECONDS) };
    let value = port::read_u8(DATA);
    (value >> 4) * 10 + (value & 0xf)
}
