//! The terminal in raw mode, and what it types.

use std::io::{IsTerminal, Read};
use std::sync::mpsc::Sender;
use std::thread;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::machine::Event;

/// Whether a person sits at both ends: what they type comes in, and what is printed goes to their screen.
pub fn is_interactive() -> bool {
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
}

/// Keys go to the machine one by one and unchanged until this is dropped.
#[derive(Debug)]
pub struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Switches the terminal over; `None` if standard input is no terminal.
    pub fn enter() -> Option<Self> {
        let before = tcgetattr(std::io::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        // The machine ends its lines with CR and LF; what this program itself prints meanwhile has only the LF.
        raw.output_modes |= rustix::termios::OutputModes::OPOST | rustix::termios::OutputModes::ONLCR;
        tcsetattr(std::io::stdin(), OptionalActions::Drain, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, &self.before);
    }
}

/// The console's own escape character, Ctrl-A.
const ESCAPE: u8 = 0x01;
/// Behind it: leave, whatever the machine does.
const LEAVE: u8 = b'x';

/// Feeds standard input to the machine until its end, which is not the machine's. With `keys`, Ctrl-A x leaves.
pub(crate) fn feed(input: Sender<Vec<u8>>, events: Sender<Event>, keys: bool) {
    thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = [0; 1024];
        let mut escaped = false;
        while let Ok(length) = stdin.read(&mut buffer) {
            let Some(bytes) = buffer.get(..length).filter(|bytes| !bytes.is_empty()) else { break };
            if keys && leaves(bytes, &mut escaped) {
                drop(events.send(Event::Leave));
                break;
            }
            if input.send(bytes.to_vec()).is_err() {
                break;
            }
        }
    });
}

/// Whether these keys leave; `escaped` is whether the last one before them was the escape character.
fn leaves(bytes: &[u8], escaped: &mut bool) -> bool {
    bytes.iter().any(|byte| {
        let leaves = *escaped && *byte == LEAVE;
        // Twice is the character itself, so a third one starts anew.
        *escaped = *byte == ESCAPE && !*escaped;
        leaves
    })
}

#[cfg(test)]
mod tests {
    use super::leaves;

    #[test]
    fn ctrl_a_x_leaves() {
        let after = |keys: &[&[u8]]| {
            let mut escaped = false;
            keys.iter().any(|bytes| leaves(bytes, &mut escaped))
        };
        assert!(after(&[b"\x01x"]));
        assert!(after(&[b"a\x01", b"x"]));
        assert!(!after(&[b"\x01d", b"x"]));
        assert!(!after(&[b"\x01\x01x"]));
        assert!(after(&[b"\x01\x01\x01x"]));
        assert!(!after(&[b"x"]));
    }
}
