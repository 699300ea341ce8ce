//! The pair of 8259 interrupt controllers (datasheet: "Initialization Command Words").

use crate::port;
use crate::trap::FIRST_IRQ_VECTOR;

const MASTER: u16 = 0x20;
const SLAVE: u16 = 0xa0;
const END_OF_INTERRUPT: u8 = 0x20;

fn write(port: u16, value: u8) {
    // SAFETY: called with the registers of the two controllers only, whose vectors lie behind the exceptions, where
    // `trap` has entries for all of them.
    unsafe { port::write_u8(port, value) };
}

/// Gives the 16 lines the vectors from [`FIRST_IRQ_VECTOR`] on and masks all of them.
pub fn init() {
    write(MASTER, 0x11); // ICW1: edge-triggered, cascade, ICW4 follows
    write(SLAVE, 0x11);
    write(MASTER + 1, FIRST_IRQ_VECTOR); // ICW2: first vector
    write(SLAVE + 1, FIRST_IRQ_VECTOR + 8);
    write(MASTER + 1, 1 << 2); // ICW3: the slave is at line 2
    write(SLAVE + 1, 2);
    write(MASTER + 1, 1); // ICW4: 8086 mode
    write(SLAVE + 1, 1);
    write(MASTER + 1, 0xff); // OCW1: mask
    write(SLAVE + 1, 0xff);
}

/// Lets line `irq` of the first controller through (0 to 7; others are none).
pub fn unmask(irq: u8) {
    let mask = port::read_u8(MASTER + 1);
    write(MASTER + 1, mask & !1u8.checked_shl(irq.into()).unwrap_or(0));
}

/// Tells the first controller that its interrupt has been handled.
pub fn end_of_interrupt() {
    write(MASTER, END_OF_INTERRUPT);
}
