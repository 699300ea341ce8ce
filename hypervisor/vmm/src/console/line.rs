//! Lines out of the bytes that a guest transmits.
//!
//! Owns the unfinished line of one guest. Knows nothing of prefixes, queues or terminals.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::mem;
use lamina_arch::time::Tsc;

/// A partial line of this length is given out. Unit: bytes.
pub(super) const PARTIAL_MAX: usize = 256;

/// Cuts a stream of bytes into lines.
///
/// LF, CR LF and CR CR LF end a line. A CR with text behind it does so too (a progress bar gives one line per state):
/// were it passed on, the guest could write over its own prefix. Everything else, escapes too, is passed as it comes.
#[derive(Debug, Default)]
pub(super) struct LineAssembler {
    text: Vec<u8>,
    /// When the last byte of `text` came.
    touched: Tsc,
    /// A CR came last, and what follows decides what it means.
    carriage_return: bool,
    /// The line that goes on here was given out in part, so an end of line alone does not make an empty line.
    continued: bool,
    /// The last bytes of the unfinished line, given out or not: what a terminal would show of it.
    shown: VecDeque<u8>,
}

impl LineAssembler {
    /// Takes a byte; gives a line where the byte ends one or fills one.
    pub(super) fn accept(&mut self, byte: u8, now: Tsc) -> Option<Vec<u8>> {
        self.remember(byte);
        match byte {
            b'\r' => {
                self.carriage_return = true;
                None
            }
            b'\n' => {
                self.carriage_return = false;
                let ends_what_was_given_out = mem::take(&mut self.continued) && self.text.is_empty();
                (!ends_what_was_given_out).then(|| mem::take(&mut self.text))
            }
            _ => {
                let overwritten = mem::take(&mut self.carriage_return) && !self.text.is_empty();
                let ended = overwritten.then(|| mem::take(&mut self.text));
                self.text.push(byte);
                self.touched = now;
                self.continued = false;
                ended.or_else(|| if self.text.len() >= PARTIAL_MAX { self.flush() } else { None })
            }
        }
    }

    /// Gives out the partial line, where there is one.
    pub(super) fn flush(&mut self) -> Option<Vec<u8>> {
        if self.text.is_empty() {
            return None;
        }
        self.continued = true;
        Some(mem::take(&mut self.text))
    }

    /// When the last byte of the partial line came that was not given out yet; `None` without one.
    pub(super) fn waiting_since(&self) -> Option<Tsc> {
        (!self.text.is_empty()).then_some(self.touched)
    }

    /// Takes note of a byte that goes to the terminal raw.
    pub(super) fn pass_raw(&mut self, byte: u8) {
        self.remember(byte);
    }

    /// From here on bytes go to the terminal raw. Gives what the terminal should show of the unfinished line.
    pub(super) fn begin_raw(&mut self) -> Vec<u8> {
        self.text.clear();
        self.carriage_return = false;
        self.shown.iter().copied().collect()
    }

    /// From here on bytes are lines again. True where the terminal's cursor stands within a line.
    pub(super) fn end_raw(&mut self) -> bool {
        self.continued = !self.shown.is_empty();
        self.continued
    }

    fn remember(&mut self, byte: u8) {
        if byte == b'\n' || byte == b'\r' {
            self.shown.clear();
            return;
        }
        if self.shown.len() == PARTIAL_MAX {
            self.shown.pop_front();
        }
        self.shown.push_back(byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &[u8]) -> Vec<String> {
        let mut assembler = LineAssembler::default();
        let mut lines: Vec<_> = bytes.iter().filter_map(|&b| assembler.accept(b, Tsc(0))).collect();
        lines.extend(assembler.flush());
        lines.into_iter().map(|l| String::from_utf8(l).unwrap()).collect()
    }

    #[test]
    fn ends_of_line() {
        assert_eq!(lines(b"a\nb\r\nc\r\r\nd"), ["a", "b", "c", "d"]);
        assert_eq!(lines(b"a\n\n\r\nb\n"), ["a", "", "", "b"]);
    }

    #[test]
    fn a_lone_carriage_return_starts_a_line_of_its_own() {
        assert_eq!(lines(b"10%\r20%\r\rdone\n"), ["10%", "20%", "done"]);
        assert_eq!(lines(b"\rprompt"), ["prompt"]);
    }

    #[test]
    fn the_end_of_a_line_that_was_given_out_makes_no_empty_line() {
        let full = [b'x'; PARTIAL_MAX];
        let mut bytes = full.to_vec();
        bytes.extend_from_slice(b"\r\nnext\n");
        assert_eq!(lines(&bytes), [String::from_utf8(full.to_vec()).unwrap(), "next".into()]);

        let mut assembler = LineAssembler::default();
        assert_eq!(assembler.accept(b'$', Tsc(7)), None);
        assert_eq!(assembler.waiting_since(), Some(Tsc(7)));
        assert_eq!(assembler.flush().as_deref(), Some(&b"$"[..]));
        assert_eq!(assembler.waiting_since(), None);
        assert_eq!(assembler.accept(b'\n', Tsc(8)), None);
        assert_eq!(assembler.accept(b'\n', Tsc(9)).as_deref(), Some(&b""[..]));
    }

    #[test]
    fn raw_mode_shows_the_unfinished_line() {
        let mut assembler = LineAssembler::default();
        for &byte in b"motd\r\n/ # " {
            let _ = assembler.accept(byte, Tsc(0));
        }
        let _ = assembler.flush();
        assert_eq!(assembler.begin_raw(), b"/ # ");
        for &byte in b"ls\r\nfile\r\n" {
            assembler.pass_raw(byte);
        }
        assert!(!assembler.end_raw());
        assembler.pass_raw(b'/');
        assert!(assembler.end_raw());
    }
}
