//! The port where firmware writes what it does, for developers (SeaBIOS, "Debugging"; the same as in QEMU).
//!
//! Owns the line that is being written. Interprets nothing.

use alloc::string::String;

/// Longest line; what is longer becomes several. Unit: bytes.
const LINE_MAX: usize = 200;

/// The port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DebugPort {
    line: String,
    /// It is complete.
    complete: bool,
}

impl DebugPort {
    /// How firmware knows that somebody listens.
    pub const READS_AS: u8 = 0xe9;

    /// A byte of text. True where a line is complete, which is then to be taken.
    pub fn write(&mut self, byte: u8) -> bool {
        if core::mem::take(&mut self.complete) {
            self.line.clear();
        }
        match byte {
            b'\n' => {}
            b'\r' => return false,
            b' '..=b'~' => self.line.push(char::from(byte)),
            _ => self.line.push('?'),
        }
        self.complete = byte == b'\n' || self.line.len() >= LINE_MAX;
        self.complete
    }

    /// The line that is complete.
    pub fn take_line(&mut self) -> Option<String> {
        core::mem::take(&mut self.complete).then(|| core::mem::take(&mut self.line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn lines(text: &[u8]) -> Vec<String> {
        let mut port = DebugPort::default();
        text.iter().filter_map(|&byte| if port.write(byte) { port.take_line() } else { None }).collect()
    }

    #[test]
    fn text_becomes_lines() {
        assert_eq!(lines(b"Sea\r\nBIOS\x1b\xff\n\nrest"), ["Sea", "BIOS??", ""]);
        let long = [b'a'; 2 * LINE_MAX + 1];
        assert_eq!(lines(&long), ["a".repeat(LINE_MAX), "a".repeat(LINE_MAX)]);
    }

    #[test]
    fn a_line_that_nobody_takes_is_dropped() {
        let mut port = DebugPort::default();
        assert_eq!(port.take_line(), None);
        assert!(port.write(b'\n'));
        assert!(!port.write(b'a'));
        assert_eq!(port.take_line(), None);
        assert!(port.write(b'\n'));
        assert_eq!(port.take_line().as_deref(), Some("a"));
        assert_eq!(port.take_line(), None);
    }
}
