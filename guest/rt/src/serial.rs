//! The console: the first serial port, a 16550, polled (its datasheet: "Line Status Register").

use core::fmt;

use crate::port;

const COM1: u16 = 0x3f8;
const LINE_STATUS: u16 = COM1 + 5;
/// DR: the receiver has a byte.
const DATA_READY: u8 = 1;
/// THRE: the transmitter takes a byte.
const HOLDING_EMPTY: u8 = 1 << 5;
/// TEMT: the last byte has left.
const TRANSMITTER_EMPTY: u8 = 1 << 6;

/// Sets the port to 115200 baud, 8 data bits, no parity, 1 stop bit, without interrupts.
pub(crate) fn init() {
    let registers = [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 0x03), (2, 0x07), (4, 0x03)];
    for (register, value) in registers {
        // SAFETY: the port's own registers: interrupts off, divisor 1 behind DLAB, 8N1, FIFOs on and cleared, DTR and
        // RTS.
        unsafe { port::write_u8(COM1 + register, value) };
    }
}

/// Transmits `bytes`, waiting for the transmitter where it is busy.
pub fn write(bytes: &[u8]) {
    for &byte in bytes {
        while port::read_u8(LINE_STATUS) & HOLDING_EMPTY == 0 {
            core::hint::spin_loop();
        }
        // SAFETY: the transmitter holding register; a byte there goes out on the line and nowhere else.
        unsafe { port::write_u8(COM1, byte) };
    }
}

/// Waits until everything has left the port.
pub fn flush() {
    while port::read_u8(LINE_STATUS) & TRANSMITTER_EMPTY == 0 {
        core::hint::spin_loop();
    }
}

/// Waits until a line has come in, and takes it.
pub fn wait_for_line() {
    loop {
        while port::read_u8(LINE_STATUS) & DATA_READY == 0 {
            core::hint::spin_loop();
        }
        if matches!(port::read_u8(COM1), b'\n' | b'\r') {
            return;
        }
    }
}

/// The console as a place to format to; LF becomes CR LF.
#[derive(Clone, Copy, Debug)]
pub struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.as_bytes().split_inclusive(|&b| b == b'\n') {
            match part.strip_suffix(b"\n") {
                Some(line) => {
                    write(line);
                    write(b"\r\n");
                }
                None => write(part),
            }
        }
        Ok(())
    }
}

/// Prints to the console.
#[macro_export]
macro_rules! print {
    ($($arguments:tt)*) => {{
        // Formatting to the console itself cannot fail.
        let _ = ::core::fmt::Write::write_fmt(&mut $crate::serial::Console, ::core::format_args!($($arguments)*));
    }};
}

/// Prints a line to the console.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($arguments:tt)*) => { $crate::print!("{}\n", ::core::format_args!($($arguments)*)) };
}
