//! The end of the machine: what an emulator takes as power-off, and a halt where there is none.
//!
//! Prints nothing: the verdict line is whoever's who decides it.

use x86_64::instructions::port::Port;

use crate::{serial, watchdog};

/// Bochs ends its run when this port receives the string `Shutdown`, a byte at a time.
const BOCHS_SHUTDOWN_PORT: u16 = 0x8900;
/// QEMU's isa-debug-exit device: ends with status `value << 1 | 1`.
const QEMU_EXIT_PORT: u16 = 0xf4;

/// Waits for the serial port to be empty and ends the machine; on one that cannot be ended, halts for good.
pub fn end_machine(status: u32) -> ! {
    x86_64::instructions::interrupts::disable();
    serial::flush_polled();
    for &byte in b"Shutdown" {
        // SAFETY: on a machine without this device the port is not decoded; with it, the run ends, which is wanted.
        unsafe { Port::<u8>::new(BOCHS_SHUTDOWN_PORT).write(byte) };
    }
    // SAFETY: as above.
    unsafe { Port::<u32>::new(QEMU_EXIT_PORT).write(status) };
    loop {
        x86_64::instructions::hlt();
        // The watchdog's interrupts end HLT, and find nothing to complain of.
        watchdog::progress_if_up();
    }
}
