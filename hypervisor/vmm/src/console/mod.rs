//! The machine's console: one serial port for the hypervisor's log, its prompt and every guest's output and input.
//!
//! Owns the guests' unfinished lines, the queue to the serial port, the prompt and what is attached. Never touches the
//! port, never waits and never asks for the time: bytes, times and room come in through its methods, so all of it runs
//! under test.
//!
//! What scripts and people may rely on:
//! - Each line is whole: `[NAME] …` and CR LF, `[lamina] …` for the hypervisor's own. A partial line is given out after
//!   50 ms of silence or 256 bytes; what continues it gets a prefixed line of its own, unless that is nothing but the
//!   end of the line. A CR with text behind it starts a line of its own, so no guest can write over its prefix. Other
//!   control characters and escapes pass as they come.
//! - Nothing a guest writes is lost: when its share of the queue is full, its transmitter stays busy
//!   ([`Console::guest_byte`] is false). One guest's share is not another's. The hypervisor's own lines always find
//!   room up to [`OWN_SHARE`]; only behind a port that takes nothing at all are some left out, and then counted.
//! - Without a terminal (`interactive` false): no prompt, no echo, no colour. Input is commands, line by line. `attach
//!   NAME` gives what follows to that VM until Ctrl-A d, which drops an unfinished command where nothing is attached.
//!   Output stays as it is, of all VMs, since a script waits for lines and does not look at a screen.
//! - With one: a prompt, which steps aside for lines; a coloured prefix. `attach NAME` gives the terminal to that VM,
//!   raw in both directions, until Ctrl-A d (Ctrl-A Ctrl-A sends Ctrl-A). What others print meanwhile is kept, each
//!   within its share, and shown afterwards. A line that took the prompt's place stands behind a carriage return and
//!   an erasing escape.
//! - The line of [`Console::exit`] is the last, and plain in both modes.

mod command;
mod keys;
mod line;
mod prompt;
mod queue;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::mem;
use lamina_arch::time::{Frequency, Tsc};

use crate::change::Change;
use crate::config::RESERVED_NAME;
pub use command::Command;
use command::Parsed;
use line::LineAssembler;
use prompt::{ERASE_LINE, Key, Prompt};
use queue::{Owner, Queue};

/// Bytes of one VM that may wait for the serial port before its transmitter stays busy; a line that is begun below the
/// limit is finished above it.
pub const VM_SHARE: usize = 8 << 10;
/// Bytes of the hypervisor's own that may wait before lines are left out. Unit: bytes.
pub const OWN_SHARE: usize = 64 << 10;
/// Bytes of input that may wait for one VM. Unit: bytes.
pub const INPUT_SHARE: usize = 4 << 10;
/// A partial line is given out after this silence. Unit: nanoseconds.
const PARTIAL_SILENCE_NS: u64 = 50_000_000;
/// Longest line of input without a terminal. Unit: bytes.
const COMMAND_MAX: usize = 256;

const CTRL_A: u8 = 0x01;

/// `line` without control characters: it is one line, whatever stands in it.
fn clean(line: &str) -> String {
    line.chars().map(|c| if c.is_control() && c != '\t' { '?' } else { c }).collect()
}

/// Something that input asks of the run loop. To be acted on before the next byte is given to [`Console::input`]:
/// where that byte belongs may depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Do this.
    Command(Command),
    /// Input waits for this VM: see [`Console::give_input`].
    GuestInput {
        /// The VM's number.
        vm: usize,
    },
}

/// What the console keeps of one VM.
#[derive(Debug)]
struct Source {
    name: String,
    line: LineAssembler,
    /// Bytes in the queue or kept. At most [`VM_SHARE`] and one line.
    queued: usize,
    /// At most [`INPUT_SHARE`].
    input: VecDeque<u8>,
}

/// The VM that gets the input.
#[derive(Debug)]
struct Attached {
    vm: usize,
    /// Ctrl-A came last.
    escape: bool,
}

/// Where input goes that is not for a VM.
#[derive(Debug)]
enum Typing {
    /// To the prompt. `visible`: it stands on the terminal now, below the last line.
    Terminal { prompt: Box<Prompt>, visible: bool },
    /// To a line that a script writes. `overlong`: its rest is left out.
    /// `escape`: Ctrl-A came last.
    Script { line: String, overlong: bool, escape: bool },
}

/// The console.
#[derive(Debug)]
pub struct Console {
    silence: u64,
    sources: Vec<Source>,
    typing: Typing,
    attached: Option<Attached>,
    output: Queue,
    /// Lines that wait until the terminal is ours again.
    kept: Queue,
    own_queued: usize,
    lost: u64,
    ended: bool,
    /// A VM may have a partial line, or input: set when one gets something, and found out anew by [`Console::poll`].
    stirred: bool,
    change: Change,
}

impl Console {
    /// A console without VMs. `interactive`: a person sits at a terminal. `tsc`: the rate of the counter that times are
    /// given in.
    pub fn new(interactive: bool, tsc: Frequency) -> Console {
        let typing = if interactive {
            Typing::Terminal { prompt: Box::new(Prompt::new()), visible: false }
        } else {
            Typing::Script { line: String::new(), overlong: false, escape: false }
        };
        Console {
            silence: tsc.ticks_in_ns(PARTIAL_SILENCE_NS),
            sources: Vec::new(),
            typing,
            attached: None,
            output: Queue::default(),
            kept: Queue::default(),
            own_queued: 0,
            lost: 0,
            ended: false,
            stirred: false,
            change: Change::default(),
        }
    }

    /// Adds a VM; returns its number: 0 for the first, one more for each.
    pub fn add_vm(&mut self, name: &str) -> usize {
        self.sources.push(Source {
            name: name.to_string(),
            line: LineAssembler::default(),
            queued: 0,
            input: VecDeque::new(),
        });
        self.sources.len() - 1
    }

    /// The VM of this name.
    pub fn find_vm(&self, name: &str) -> Option<usize> {
        self.sources.iter().position(|source| source.name == name)
    }

    /// A byte that VM `vm` transmits. False where there is no room for it: the guest's transmitter stays busy, and the
    /// byte is to be given again after [`Console::drain`] has moved something.
    pub fn guest_byte(&mut self, vm: usize, byte: u8, now: Tsc) -> bool {
        self.change.begin();
        let taken = self.take_byte(vm, byte, now);
        Change::end(self, |console| &mut console.change);
        taken
    }

    /// Whether a change of the console was left in the middle.
    pub fn is_broken(&self) -> bool {
        self.change.is_open()
    }

    fn take_byte(&mut self, vm: usize, byte: u8, now: Tsc) -> bool {
        let raw = self.is_raw(vm);
        let Some(source) = self.sources.get_mut(vm) else {
            return true;
        };
        if source.queued >= VM_SHARE {
            return false;
        }
        if raw {
            source.line.pass_raw(byte);
            source.queued += 1;
            self.output.push(Some(vm), &[byte]);
        } else {
            self.stirred = true;
            if let Some(line) = source.line.accept(byte, now) {
                self.emit(Some(vm), &line);
            }
        }
        true
    }

    /// Writes `text` as the hypervisor's own; each of its lines is prefixed.
    pub fn log_line(&mut self, text: &str) {
        for line in text.lines() {
            let line = clean(line);
            if self.own_queued + line.len() > OWN_SHARE {
                self.lost += 1;
            } else {
                self.tell_lost();
                self.emit(None, line.as_bytes());
            }
        }
    }

    /// Writes a line of the hypervisor's own that is never left out: one of few, such as the end of a VM.
    pub fn announce(&mut self, line: &str) {
        let line = clean(line);
        self.change.begin();
        self.tell_lost();
        self.emit(None, line.as_bytes());
        Change::end(self, |console| &mut console.change);
    }

    /// Writes what a command answers; as [`Console::log_line`].
    pub fn reply(&mut self, text: &str) {
        self.log_line(text);
    }

    /// Gives out partial lines that have seen 50 ms of silence at `now`.
    pub fn poll(&mut self, now: Tsc) {
        for vm in 0..self.sources.len() {
            let due = |since: Tsc| now.since(since) >= self.silence;
            if self.sources[vm].line.waiting_since().is_some_and(due) {
                self.flush(vm);
            }
        }
        let stirs = |source: &Source| !source.input.is_empty() || source.line.waiting_since().is_some();
        self.stirred = self.sources.iter().any(stirs);
    }

    /// When [`Console::poll`] must next be called; `None` where no partial line waits.
    pub fn next_deadline(&self) -> Option<Tsc> {
        if !self.stirred {
            return None;
        }
        self.sources.iter().filter_map(|source| source.line.waiting_since()).min().map(|since| since + self.silence)
    }

    /// Gives waiting output to `write`, which returns how many bytes it took, until it takes fewer than offered.
    pub fn drain(&mut self, write: &mut dyn FnMut(&[u8]) -> usize) {
        loop {
            let Console { output, sources, own_queued, .. } = self;
            output.drain(write, &mut |owner, count| {
                let queued = match owner {
                    Some(vm) => &mut sources[vm].queued,
                    None => &mut *own_queued,
                };
                *queued -= count;
            });
            if !self.output.is_empty() {
                return;
            }
            self.tell_lost();
            self.show_prompt();
            if self.output.is_empty() {
                return;
            }
        }
    }

    /// Whether [`Console::drain`] would give anything.
    pub fn has_output(&self) -> bool {
        !self.output.is_empty() || self.lost > 0 || self.wants_prompt()
    }

    /// Whether the console has nothing to do at `now` by itself: no output, no input for a VM, no partial line that is due.
    pub fn is_quiet(&self, now: Tsc) -> bool {
        let waits = |source: &Source| {
            !source.input.is_empty()
                || source.line.waiting_since().is_some_and(|since| now.since(since) >= self.silence)
        };
        !(self.has_output() || self.stirred && self.sources.iter().any(waits))
    }

    /// Whether [`Console::input`] has room for a byte; where not, it is to be left in the port's own buffer.
    pub fn accepts_input(&self) -> bool {
        match &self.attached {
            Some(attached) => self.sources[attached.vm].input.len() < INPUT_SHARE,
            None => true,
        }
    }

    /// A byte that the machine's serial port received.
    pub fn input(&mut self, byte: u8) -> Option<Event> {
        if let Some(attached) = &mut self.attached {
            let vm = attached.vm;
            if mem::take(&mut attached.escape) {
                match byte {
                    CTRL_A => {}
                    b'd' | b'D' => {
                        self.detach();
                        return None;
                    }
                    _ => return None,
                }
            } else if byte == CTRL_A {
                attached.escape = true;
                return None;
            }
            let input = &mut self.sources[vm].input;
            if input.len() < INPUT_SHARE {
                input.push_back(byte);
                self.stirred = true;
            }
            return Some(Event::GuestInput { vm });
        }
        let words = self.typed(byte)?;
        match command::parse(&words) {
            Parsed::Command(command) => return Some(Event::Command(command)),
            Parsed::Answer(lines) => lines.iter().for_each(|line| self.reply(line)),
            Parsed::Nothing => {}
        }
        None
    }

    /// Gives the input that waits for VM `vm` to `receive`, which returns how many bytes it took, until it takes fewer
    /// than offered.
    pub fn give_input(&mut self, vm: usize, receive: &mut dyn FnMut(&[u8]) -> usize) {
        let Some(source) = self.sources.get_mut(vm) else {
            return;
        };
        loop {
            let offered = source.input.as_slices().0;
            let length = offered.len();
            if length == 0 {
                return;
            }
            let count = receive(offered).min(length);
            self.change.begin();
            source.input.drain(..count);
            Change::end(&mut self.change, |change| change);
            if count < length {
                return;
            }
        }
    }

    /// Whether input waits for VM `vm`.
    pub fn has_input(&self, vm: usize) -> bool {
        self.sources.get(vm).is_some_and(|source| !source.input.is_empty())
    }

    /// Gives the input, and in an interactive run the terminal, to VM `vm`, until Ctrl-A d or the VM's end.
    pub fn attach(&mut self, vm: usize) {
        self.detach();
        let Some(source) = self.sources.get(vm) else {
            return;
        };
        let hint = format!("attached to {}; Ctrl-A d detaches", source.name);
        self.reply(&hint);
        self.attached = Some(Attached { vm, escape: false });
        if let Typing::Terminal { visible, .. } = &mut self.typing {
            if mem::take(visible) {
                self.push(None, ERASE_LINE);
            }
            let unfinished = self.sources[vm].line.begin_raw();
            self.push(Some(vm), &unfinished);
        }
    }

    /// Takes the input back from the VM that has it, and shows what was kept.
    pub fn detach(&mut self) {
        let Some(Attached { vm, .. }) = self.attached.take() else {
            return;
        };
        if self.is_interactive() && self.sources[vm].line.end_raw() {
            self.push(None, b"\r\n");
        }
        let hint = format!("detached from {}", self.sources[vm].name);
        self.reply(&hint);
        self.output.append(&mut self.kept);
    }

    /// The VM that has the input.
    pub fn attached(&self) -> Option<usize> {
        self.attached.as_ref().map(|attached| attached.vm)
    }

    /// VM `vm` has ended or starts anew: gives out its partial line, drops its input, and detaches it. To be called
    /// before the line that says so, with all of the VM's output given.
    pub fn vm_stopped(&mut self, vm: usize) {
        if self.attached() == Some(vm) {
            self.detach();
        }
        if vm < self.sources.len() {
            self.flush(vm);
            self.sources[vm].input.clear();
        }
    }

    /// Writes the machine's last line, `[lamina] exit STATUS`, behind everything else, and takes the prompt away. The
    /// queue is then still to be drained.
    pub fn exit(&mut self, status: u32) {
        for vm in 0..self.sources.len() {
            self.vm_stopped(vm);
        }
        self.tell_lost();
        self.ended = true;
        if let Typing::Terminal { visible, .. } = &mut self.typing
            && mem::take(visible)
        {
            self.push(None, b"\r\n");
        }
        self.push(None, format!("[{RESERVED_NAME}] exit {status}\r\n").as_bytes());
    }

    fn is_interactive(&self) -> bool {
        matches!(self.typing, Typing::Terminal { .. })
    }

    /// Whether what VM `vm` transmits goes to the terminal raw.
    fn is_raw(&self, vm: usize) -> bool {
        self.is_interactive() && self.attached() == Some(vm)
    }

    fn flush(&mut self, vm: usize) {
        if let Some(line) = self.sources[vm].line.flush() {
            self.emit(Some(vm), &line);
        }
    }

    fn tell_lost(&mut self) {
        if self.lost > 0 && self.own_queued < OWN_SHARE / 2 {
            let text = format!("{} lines lost", mem::take(&mut self.lost));
            self.emit(None, text.as_bytes());
        }
    }

    /// Queues one whole line.
    fn emit(&mut self, owner: Owner, payload: &[u8]) {
        let name = owner.map_or(RESERVED_NAME, |vm| &self.sources[vm].name);
        let mut line = match (self.is_interactive(), owner) {
            (false, _) => format!("[{name}] "),
            (true, None) => format!("\x1b[0;1m[{name}]\x1b[0m "),
            // The six colours that show on a dark and on a bright background.
            (true, Some(vm)) => format!("\x1b[0;{}m[{name}]\x1b[0m ", 31 + (vm + 5) % 6),
        }
        .into_bytes();
        line.extend_from_slice(payload);
        line.extend_from_slice(b"\r\n");
        if let Typing::Terminal { visible, .. } = &mut self.typing {
            if self.attached.is_some() {
                self.count(owner, line.len());
                self.kept.push(owner, &line);
                return;
            }
            if mem::take(visible) {
                self.push(None, ERASE_LINE);
            }
        }
        self.push(owner, &line);
    }

    fn push(&mut self, owner: Owner, bytes: &[u8]) {
        self.count(owner, bytes.len());
        self.output.push(owner, bytes);
    }

    fn count(&mut self, owner: Owner, bytes: usize) {
        match owner {
            Some(vm) => self.sources[vm].queued += bytes,
            None => self.own_queued += bytes,
        }
    }

    fn wants_prompt(&self) -> bool {
        let hidden = matches!(self.typing, Typing::Terminal { visible: false, .. });
        hidden && self.attached.is_none() && !self.ended
    }

    /// Draws the prompt where it is wanted and not there. Done when everything else went out: while lines stream by,
    /// drawing it behind each would cost more than the lines.
    fn show_prompt(&mut self) {
        if !self.wants_prompt() {
            return;
        }
        if let Typing::Terminal { prompt, visible } = &mut self.typing {
            *visible = true;
            let drawn = prompt.draw();
            self.push(None, &drawn);
        }
    }

    /// A byte for the prompt or for a script's line; gives the words of a line that it ends.
    fn typed(&mut self, byte: u8) -> Option<Vec<String>> {
        self.show_prompt();
        match &mut self.typing {
            Typing::Terminal { prompt, visible } => match prompt.key(byte) {
                Key::Echo(echo) => {
                    self.push(None, &echo);
                    None
                }
                Key::Line(words) => {
                    *visible = false;
                    self.push(None, b"\r\n");
                    Some(words)
                }
            },
            Typing::Script { line, overlong, escape } => match (byte, mem::replace(escape, byte == CTRL_A)) {
                (CTRL_A, _) => None,
                // A script that detaches cannot know that the VM has ended meanwhile: what it typed for that is no command.
                (b'd' | b'D', true) => {
                    line.clear();
                    *overlong = false;
                    None
                }
                (b'\r' | b'\n', _) => {
                    let line = mem::take(line);
                    if mem::take(overlong) {
                        self.reply(&format!("a command of more than {COMMAND_MAX} bytes is ignored"));
                        return None;
                    }
                    Some(line.split_whitespace().map(str::to_string).collect())
                }
                _ if line.len() >= COMMAND_MAX => {
                    *overlong = true;
                    None
                }
                // Commands are ASCII.
                _ => {
                    line.push(if byte.is_ascii() { char::from(byte) } else { '?' });
                    None
                }
            },
        }
    }
}
