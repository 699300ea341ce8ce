//! Waits for input without taking the processor from others.

use guest_rt::{cpu, pic, port, trap};

const COM1: u16 = 0x3f8;
const COM1_IRQ: u8 = 4;
const DATA_READY: u8 = 1;

fn write(port: u16, value: u8) {
    // SAFETY: called with registers of the serial port and of the first interrupt controller only; the interrupt has a
    // handler.
    unsafe { port::write_u8(port, value) };
}

/// Waits until a line has come in on the serial port.
pub fn for_line() {
    pic::init();
    trap::set_handler(trap::FIRST_IRQ_VECTOR + COM1_IRQ, |_| pic::end_of_interrupt());
    write(COM1 + 4, 0x0b); // DTR, RTS, and the interrupt's way out
    write(COM1 + 1, 1); // an interrupt for data
    pic::unmask(COM1_IRQ);
    loop {
        while port::read_u8(COM1 + 5) & DATA_READY == 0 {
            cpu::wait_for_interrupt();
        }
        if matches!(port::read_u8(COM1), b'\n' | b'\r') {
            break;
        }
    }
    write(COM1 + 1, 0);
    pic::init();
}
