//! The way out.

use crate::{cpu, port, serial};

const STATUS_PORT: u16 = 0xf4;
const SHUTDOWN_PORT: u16 = 0x8900;

/// Ends the machine with `status`: 0 for success.
pub fn exit(status: u32) -> ! {
    serial::flush();
    // SAFETY: the port records the value and does nothing else.
    unsafe { port::write_u32(STATUS_PORT, status) };
    for &letter in b"Shutdown" {
        // SAFETY: the word ends the machine, its letters do nothing.
        unsafe { port::write_u8(SHUTDOWN_PORT, letter) };
    }
    cpu::halt_forever()
}
