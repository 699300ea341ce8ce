//! The prompt of an interactive console: line editing and history.
//!
//! The editing is `embedded-cli`'s: alive, no_std without allocation, fed byte by byte, MIT or Apache-2.0 (`noline`
//! does the same but is under the MPL). This shell around it adds what it lacks: the keys that terminals send beyond
//! the arrows, and the place of the cursor when the line is drawn anew. Its completion and help need macros of its
//! own and are left off.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::convert::Infallible;
use core::fmt;
use embedded_cli::arguments::Arg;
use embedded_cli::cli::{Cli, CliBuilder, CliHandle};
use embedded_cli::command::RawCommand;
use embedded_cli::service::{Autocomplete, Help};
use embedded_io::{ErrorType, Write};
use spin::Mutex;

/// What stands before the line that is typed.
pub(super) const PROMPT: &str = "lamina> ";
/// Takes the cursor to the left edge and erases the line (ECMA-48, EL).
pub(super) const ERASE_LINE: &[u8] = b"\r\x1b[2K";

/// Longest line. Unit: bytes.
const LINE_MAX: usize = 128;
/// Room for old lines. Unit: bytes.
const HISTORY_SIZE: usize = 1024;
/// Longest escape sequence of a key that is looked at. Unit: bytes.
const ESCAPE_MAX: usize = 16;

const ESC: u8 = 0x1b;
const BACKSPACE: u8 = 0x08;
const UP: &[u8] = b"\x1b[A";
const DOWN: &[u8] = b"\x1b[B";
const RIGHT: &[u8] = b"\x1b[C";
const LEFT: &[u8] = b"\x1b[D";

/// Where the editor writes; shared, because the editor keeps its writer to itself.
#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl ErrorType for Screen {
    type Error = Infallible;
}

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Infallible> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// The editor's own help and completion, both off.
struct NoService;
impl Autocomplete for NoService {}
impl Help for NoService {}

/// What a key did.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// It changed the line: the bytes that show so on the terminal.
    Echo(Vec<u8>),
    /// It ended the line: its words.
    Line(Vec<String>),
}

/// The line that is being typed, with the lines before it.
pub(super) struct Prompt {
    cli: Cli<Screen, Infallible, [u8; LINE_MAX], [u8; HISTORY_SIZE]>,
    screen: Screen,
    /// An escape sequence of which more is to come. The editor gets it whole, so that it is never fed within one.
    escape: Vec<u8>,
}

impl fmt::Debug for Prompt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prompt").field("escape", &self.escape).finish_non_exhaustive()
    }
}

impl Prompt {
    /// An empty line.
    pub(super) fn new() -> Prompt {
        let screen = Screen::default();
        let built = CliBuilder::default()
            .writer(screen.clone())
            .command_buffer([0; LINE_MAX])
            .history_buffer([0; HISTORY_SIZE])
            .prompt(PROMPT)
            .build();
        let Ok(cli) = built;
        let prompt = Prompt { cli, screen, escape: Vec::new() };
        prompt.taken();
        prompt
    }

    /// Takes a byte of the terminal's.
    pub(super) fn key(&mut self, byte: u8) -> Key {
        if self.escape.is_empty() {
            return self.single(byte);
        }
        self.escape.push(byte);
        match self.escape.as_slice() {
            [_, b'[' | b'O'] => {}
            [_, b'[' | b'O', parameters @ .., last @ 0x40..=0x7e] => {
                let (parameters, last) = (parameters.to_vec(), *last);
                self.escape.clear();
                self.sequence(&parameters, last);
            }
            [_, b'[' | b'O', ..] if self.escape.len() < ESCAPE_MAX => {}
            _ => {
                // No sequence that a key sends: the byte counts by itself.
                self.escape.clear();
                return self.single(byte);
            }
        }
        Key::Echo(self.taken())
    }

    /// Draws the prompt and the line, on a line of the terminal that is erased first, with the cursor at its place.
    pub(super) fn draw(&mut self) -> Vec<u8> {
        // The editor leaves the terminal's cursor behind the text; from its own cursor it takes this many steps there.
        let behind = self.steps(RIGHT);
        self.taken();
        let Ok(()) = self.cli.write(|_| Ok(()));
        for _ in 0..behind {
            self.feed(LEFT);
        }
        self.taken()
    }

    fn single(&mut self, byte: u8) -> Key {
        match byte {
            ESC => self.escape.push(byte),
            b'\r' | b'\n' => return self.enter(byte),
            0x01 => drop(self.steps(LEFT)),  // Ctrl-A
            0x02 => self.feed(LEFT),         // Ctrl-B
            0x03 | 0x15 => self.erase(),     // Ctrl-C, Ctrl-U
            0x04 => self.delete(),           // Ctrl-D
            0x05 => drop(self.steps(RIGHT)), // Ctrl-E
            0x06 => self.feed(RIGHT),        // Ctrl-F
            0x0e => self.feed(DOWN),         // Ctrl-N
            0x10 => self.feed(UP),           // Ctrl-P
            BACKSPACE | 0x7f => self.feed(&[BACKSPACE]),
            0x20..=0x7e => self.feed(&[byte]),
            // Commands are ASCII; other control characters mean nothing here.
            _ => {}
        }
        Key::Echo(self.taken())
    }

    fn sequence(&mut self, parameters: &[u8], last: u8) {
        match (parameters, last) {
            (b"", b'A') => self.feed(UP),
            (b"", b'B') => self.feed(DOWN),
            (b"", b'C') => self.feed(RIGHT),
            (b"", b'D') => self.feed(LEFT),
            (b"", b'H') | (b"1" | b"7", b'~') => drop(self.steps(LEFT)),
            (b"", b'F') | (b"4" | b"8", b'~') => drop(self.steps(RIGHT)),
            (b"3", b'~') => self.delete(),
            _ => {}
        }
    }

    fn enter(&mut self, byte: u8) -> Key {
        let mut words = Vec::new();
        let mut processor = RawCommand::processor(|_: &mut CliHandle<'_, Screen, Infallible>, command| {
            words.push(command.name().to_string());
            words.extend(command.args().args().flatten().map(|argument| match argument {
                Arg::DoubleDash => "--".to_string(),
                Arg::LongOption(name) => format!("--{name}"),
                Arg::ShortOption(name) => format!("-{name}"),
                Arg::Value(value) => value.to_string(),
            }));
            Ok(())
        });
        let Ok(()) = self.cli.process_byte::<NoService, _>(byte, &mut processor);
        drop(processor);
        // Where a CR comes with an LF behind it, the editor takes both for one key and is silent at the second.
        if self.taken().is_empty() { Key::Echo(Vec::new()) } else { Key::Line(words) }
    }

    /// Deletes the character under the cursor.
    fn delete(&mut self) {
        let before = self.screen.0.lock().len();
        self.feed(RIGHT);
        if self.screen.0.lock().len() > before {
            self.feed(&[BACKSPACE]);
        }
    }

    /// Deletes the line.
    fn erase(&mut self) {
        self.steps(RIGHT);
        for _ in 0..LINE_MAX {
            self.feed(&[BACKSPACE]);
        }
    }

    /// Moves the cursor as far as it goes; returns how many steps that were.
    fn steps(&mut self, direction: &[u8]) -> usize {
        let mut steps = 0;
        loop {
            let before = self.screen.0.lock().len();
            self.feed(direction);
            if self.screen.0.lock().len() == before || steps == LINE_MAX {
                return steps;
            }
            steps += 1;
        }
    }

    /// Feeds bytes to the editor that do not end the line.
    fn feed(&mut self, bytes: &[u8]) {
        let mut processor = RawCommand::processor(|_: &mut CliHandle<'_, Screen, Infallible>, _| Ok(()));
        for &byte in bytes {
            let Ok(()) = self.cli.process_byte::<NoService, _>(byte, &mut processor);
        }
    }

    /// What the editor wrote since this was last asked.
    fn taken(&self) -> Vec<u8> {
        core::mem::take(&mut self.screen.0.lock())
    }
}
