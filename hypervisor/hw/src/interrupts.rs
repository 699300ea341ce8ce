//! The machine's interrupts: which vector is whose, and what happens with each.
//!
//! Owns the map of vectors; non-maskable interrupts are the [`crate::watchdog`]'s. [`dispatch`] is called from the interrupt descriptor table while the hypervisor idles, and
//! directly, with the acknowledged vector, when an interrupt ended a guest's run.

use core::sync::atomic::Ordering;
use x86_64::instructions::interrupts::{disable, enable};
use x86_64::instructions::nop;

use crate::percpu::{self, count};
use crate::{apic, serial};

/// Where the two 8259s are put, out of the exceptions' way; all their inputs are masked. 16 vectors.
pub const LEGACY_PIC: u8 = 0x20;
/// The serial port.
pub const SERIAL: u8 = 0x41;
/// The local APIC's timer.
pub const TIMER: u8 = 0xe0;
/// An error that the local APIC found.
pub const APIC_ERROR: u8 = 0xfe;
/// The local APIC's spurious interrupt. Its low four bits are ones, as the oldest APICs demand.
pub const SPURIOUS: u8 = 0xff;

/// Handles the interrupt `vector`, which the local APIC has delivered, up to its end of interrupt.
pub fn dispatch(vector: u8) {
    let cpu = percpu::current();
    match vector {
        TIMER => {
            count(&cpu.timer_interrupts);
            cpu.timer_deadline.store(0, Ordering::Relaxed);
        }
        SERIAL => {
            count(&cpu.serial_interrupts);
            serial::handle_interrupt();
        }
        // Not delivered through the in-service register: an end of interrupt would end another one.
        SPURIOUS => return count(&cpu.unexpected_interrupts),
        _ => {
            count(&cpu.unexpected_interrupts);
            if vector == APIC_ERROR {
                apic::clear_error();
            }
            if !apic::in_service(vector) {
                return;
            }
        }
    }
    apic::end_of_interrupt();
}

/// Takes the interrupts that are pending. An interrupt ends a guest's run, so none should be; but a Bochs that the set-up
/// has not built keeps masking them in a guest with IF clear when they were masked here last, until that guest changes IF.
/// One that never does would cut the console off.
pub fn accept_pending() {
    enable();
    // The instruction behind STI still runs with interrupts blocked.
    nop();
    disable();
}
