//! Lines for the suite, each given to the console as a whole: what is printed through the serial port may come out in
//! pieces, where another VM has its turn in between.

use core::fmt::{self, Write};

use guest_rt::hypercall::Lamina;
use guest_rt::serial;

/// Longest line. Unit: bytes.
const LONGEST: usize = 160;

/// Characters that the console adds to a line, about.
const PREFIX: u64 = 20;
/// What a character takes on the machine's serial port, and a little. Unit: nanoseconds.
const CHARACTER_NS: u64 = 110_000;

/// A line that is being made.
pub struct Line {
    bytes: [u8; LONGEST],
    length: usize,
}

impl Line {
    /// Prints what is formatted, as a line; what is too long is cut.
    pub fn print(words: fmt::Arguments) {
        let mut line = Line { bytes: [0; LONGEST], length: 0 };
        // What does not fit is left out.
        let _ = line.write_fmt(words);
        line.bytes[line.length] = b'\n';
        let whole = &line.bytes[..=line.length];
        if Lamina::find().is_none_or(|lamina| lamina.console_write(whole).is_err()) {
            serial::write(whole);
        }
        pause(line.length as u64 + PREFIX);
    }
}

/// Waits until so many characters have left the machine, so that the next line finds room for all of it.
fn pause(characters: u64) {
    let Some(lamina) = Lamina::find() else { return };
    let now = || lamina.clock().unwrap_or(u64::MAX);
    let end = now().saturating_add(characters * CHARACTER_NS);
    while now() < end && lamina.yield_now().is_ok() {}
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = LONGEST - 1 - self.length;
        let taken = text.len().min(room);
        self.bytes[self.length..self.length + taken].copy_from_slice(&text.as_bytes()[..taken]);
        self.length += taken;
        if taken == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

/// Prints a line for the suite.
macro_rules! report {
    ($($arguments:tt)*) => { $crate::report::Line::print(format_args!($($arguments)*)) };
}
