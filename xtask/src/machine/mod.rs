//! A machine that runs: what it prints, what is typed to it, how it ends.
//!
//! Owns the emulator's process and the directory of its run; both are gone when a [`Machine`] is dropped. The verdict
//! is the hypervisor's last line alone, never the emulator's own status.

mod lines;
mod serial;

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use regex::Regex;
use tempfile::TempDir;
use thiserror::Error;

pub use lines::Transcript;
use serial::Serial;

use crate::backend::{self, Backend};
use crate::opinion::Opinion;
use crate::session::MONITOR;

/// How long the port is silent before an unfinished line counts as one that the hypervisor has flushed.
const SILENCE: Duration = Duration::from_millis(100);
/// How long an emulator may take to end after the machine has said its last line.
const GRACE: Duration = Duration::from_secs(3);
/// How long a picture of the screen may take.
const PICTURE_LIMIT: Duration = Duration::from_secs(30);
/// How much of the emulator's own words goes into a report. Unit: lines.
const WORDS: usize = 12;

/// What the threads around a machine report.
#[derive(Debug)]
pub(crate) enum Event {
    /// Bytes from the serial port.
    Serial(Vec<u8>),
    /// There will be no more.
    SerialClosed,
    /// This process was sent a signal.
    Signal(i32),
    /// The person at the terminal wants to leave, whatever the machine does.
    Leave,
}

/// A line that the machine has printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its number, from 0.
    pub index: usize,
    /// Without CR and line feed.
    pub text: String,
}

/// How a machine ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its last line said so, with this status; 0 is success.
    Exit(u32),
    /// It ended without a word, which is a failure.
    Missing,
}

/// Why a wait ended without what it waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Stop {
    /// The machine has ended.
    #[error("the machine ended ({0:?})")]
    Ended(Verdict),
    /// Its time is over.
    #[error("time is over")]
    Timeout,
    /// This process was sent a signal.
    #[error("signal {0}")]
    Signal(i32),
    /// The person at the terminal left.
    #[error("left")]
    Left,
    /// Nobody takes the machine's output any more.
    #[error("standard output was closed")]
    OutputClosed,
}

/// What one turn of [`Machine::pump`] brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Output,
    Silence,
}

/// Where the machine's output goes besides the transcript, as bytes, unchanged.
pub type Sink = Box<dyn Write + Send>;

/// Whether these are all the bytes of a PPM file (`P6 WIDTH HEIGHT 255`, then three bytes for each pixel).
fn is_whole_picture(bytes: &[u8]) -> bool {
    let mut fields = bytes.splitn(4, u8::is_ascii_whitespace);
    let (Some(b"P6"), Some(width), Some(height), Some(rest)) =
        (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return false;
    };
    let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse::<usize>().ok();
    let (Some(width), Some(height)) = (number(width), number(height)) else { return false };
    rest.strip_prefix(b"255\n").is_some_and(|pixels| pixels.len() == width * height * 3)
}

/// A running machine.
///
/// The emulator is a child that dies with the thread that started it: keep that thread.
pub struct Machine {
    child: Child,
    serial: Serial,
    events: Receiver<Event>,
    sender: Sender<Event>,
    sink: Option<Sink>,
    transcript: Transcript,
    started: Instant,
    deadline: Option<Instant>,
    last_output: Instant,
    stopped: Option<Stop>,
    status: Option<ExitStatus>,
    directory: TempDir,
}

impl Machine {
    /// Starts a machine on a backend. `directory` is of this run alone and goes with it; `timeout` is counted from here.
    ///
    /// # Errors
    /// The emulator cannot be started.
    pub fn start(
        backend: &Backend,
        machine: backend::Machine,
        directory: TempDir,
        timeout: Option<Duration>,
        sink: Option<Sink>,
    ) -> Result<Self> {
        let (sender, events) = channel();
        let serial = Serial::listen(sender.clone(), machine.first_words)?;
        let machine = backend::Machine { serial: serial.port(), directory: directory.path().to_owned(), ..machine };
        let mut command = backend.command(&machine)?;
        let words = fs::File::create(words(directory.path()))?;
        // A process group of its own: Ctrl-C is for this program to act on.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command.stdin(Stdio::null()).stdout(words.try_clone()?).stderr(words).spawn();
        let child = child.with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let started = Instant::now();
        Ok(Self {
            child,
            serial,
            events,
            sender,
            sink,
            transcript: Transcript::default(),
            started,
            deadline: timeout.and_then(|timeout| started.checked_add(timeout)),
            last_output: started,
            stopped: None,
            status: None,
            directory,
        })
    }

    /// Waits for a line that matches, among all that the machine prints, before this call or after it.
    ///
    /// # Errors
    /// The machine, or its time, ended before that.
    pub fn wait_for(&mut self, pattern: &Regex) -> Result<Line, Stop> {
        self.wait_for_from(0, pattern)
    }

    /// Waits for a line that matches, of those whose number is `first` or more. A line that has no end yet counts once
    /// the port is silent; its text may still grow afterwards.
    ///
    /// # Errors
    /// The machine, or its time, ended before that.
    pub fn wait_for_from(&mut self, first: usize, pattern: &Regex) -> Result<Line, Stop> {
        let mut next = first;
        loop {
            if let Some(line) = self.find(&mut next, pattern) {
                return Ok(line);
            }
            match self.pump() {
                Ok(Turn::Output) => {}
                Ok(Turn::Silence) => {
                    let index = self.transcript.lines().len();
                    if let Some(text) = self.transcript.partial().filter(|text| index >= next && pattern.is_match(text))
                    {
                        return Ok(Line { index, text });
                    }
                }
                Err(stop) => return self.find(&mut next, pattern).ok_or(stop),
            }
        }
    }

    /// Looks through the finished lines from `next` on, and moves it past them.
    fn find(&self, next: &mut usize, pattern: &Regex) -> Option<Line> {
        while let Some(text) = self.transcript.lines().get(*next) {
            let index = *next;
            *next += 1;
            if pattern.is_match(text) {
                return Some(Line { index, text: text.clone() });
            }
        }
        None
    }

    /// Waits until the machine ends by itself.
    ///
    /// # Errors
    /// Its time, or the wait, ended before that.
    pub fn wait_exit(&mut self) -> Result<Verdict, Stop> {
        loop {
            match self.pump() {
                Ok(_) => {}
                Err(Stop::Ended(verdict)) => return Ok(verdict),
                Err(stop) => return Err(stop),
            }
        }
    }

    /// A picture of the machine's screen: a PPM file's bytes. Of a machine that was asked for one only.
    ///
    /// # Errors
    /// The emulator takes none.
    pub fn picture(&self) -> Result<Vec<u8>> {
        let file = self.directory.path().join("picture.ppm");
        drop(fs::remove_file(&file));
        // The file grows until it is whole; the monitor's prompt behind the command's echo says when, to whom reads it.
        let _monitor = self.tell_emulator(&format!("screendump {}", file.display()))?;
        let started = Instant::now();
        loop {
            if let Ok(bytes) = fs::read(&file)
                && is_whole_picture(&bytes)
            {
                return Ok(bytes);
            }
            ensure!(started.elapsed() < PICTURE_LIMIT, "the emulator took no picture");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Has the emulator do this, a command of QEMU's monitor. Of a machine with a screen only. Returns the connection, which
    /// lasts until the command is done.
    ///
    /// # Errors
    /// The emulator has no monitor.
    pub fn tell_emulator(&self, command: &str) -> Result<UnixStream> {
        let monitor = self.directory.path().join(MONITOR);
        let mut monitor = UnixStream::connect(&monitor).context("this machine's emulator has no monitor")?;
        writeln!(monitor, "{command}")?;
        Ok(monitor)
    }

    /// What somebody who looked on from outside saw, of a machine that was asked for that only.
    ///
    /// # Errors
    /// Nobody did, or his words cannot be understood.
    pub fn opinion(&self) -> Result<Opinion> {
        let words = fs::read_to_string(backend::opinion(self.directory.path())).context("nobody looked on")?;
        Opinion::parse(&words)
    }

    /// Gives it so much time more, counted from now, whatever it had left.
    pub fn allow(&mut self, time: Duration) {
        self.deadline = Instant::now().checked_add(time);
    }

    /// Types to the machine. What is typed before it listens is kept until then.
    pub fn send(&self, text: impl Into<Vec<u8>>) {
        // A machine that has ended hears nothing; the next wait says so.
        drop(self.serial.input().send(text.into()));
    }

    /// Where another thread can type to the machine.
    pub fn input(&self) -> Sender<Vec<u8>> {
        self.serial.input()
    }

    /// Lets another thread end every wait.
    pub(crate) fn events(&self) -> Sender<Event> {
        self.sender.clone()
    }

    /// All that the machine has printed so far, as of the last wait.
    pub fn transcript(&self) -> &Transcript {
        &self.transcript
    }

    /// Wall-clock time since the emulator was started.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// For a failure: the transcript's last `lines` lines, and what the emulator had to say for itself where the
    /// machine has not said it all.
    pub fn report(&self, lines: usize) -> String {
        let all = self.transcript.lines();
        let mut text: String = all[all.len().saturating_sub(lines)..].iter().map(|line| format!("{line}\n")).collect();
        if let Some(partial) = self.transcript.partial() {
            text.push_str(&partial);
            text.push('\n');
        }
        if !matches!(self.stopped, Some(Stop::Ended(Verdict::Exit(_)))) {
            text.push_str(&self.emulators_words());
        }
        text
    }

    /// The end of what the emulator had to say for itself; empty if it said nothing.
    pub fn emulators_words(&self) -> String {
        let read = |path: &Path| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let files = [backend::log(self.directory.path()), words(self.directory.path())];
        let all: Vec<_> = files.iter().filter_map(|path| read(path).ok()).collect();
        let all: Vec<_> = all.iter().flat_map(|text| text.lines()).filter(|line| !line.trim().is_empty()).collect();
        all[all.len().saturating_sub(WORDS)..].iter().map(|line| format!("emulator: {line}\n")).collect()
    }

    /// Takes in one event. Ends with the reason once the machine is over, the same each time.
    fn pump(&mut self) -> Result<Turn, Stop> {
        if let Some(stop) = self.stopped {
            return Err(stop);
        }
        let now = Instant::now();
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(now));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(self.stop(Stop::Timeout));
        }
        match self.events.recv_timeout(left.map_or(SILENCE, |left| left.min(SILENCE))) {
            Ok(Event::Serial(bytes)) => {
                self.last_output = Instant::now();
                self.transcript.push(&bytes);
                let written =
                    self.sink.as_mut().map_or(Ok(()), |sink| sink.write_all(&bytes).and_then(|()| sink.flush()));
                written.map(|()| Turn::Output).map_err(|_| self.stop(Stop::OutputClosed))
            }
            Ok(Event::Signal(signal)) => Err(self.stop(Stop::Signal(signal))),
            Ok(Event::Leave) => Err(self.stop(Stop::Left)),
            Ok(Event::SerialClosed) | Err(RecvTimeoutError::Disconnected) => Err(self.ended()),
            Err(RecvTimeoutError::Timeout) => {
                let silent = self.last_output.elapsed();
                let over = matches!(self.verdict(), Verdict::Exit(_)) && silent > GRACE;
                // An emulator that ended before it connected closes nothing. One that did connect is at its end when its
                // last bytes are here, which a busy host may bring later than the news of its end.
                let dead = matches!(self.child.try_wait(), Ok(Some(_))) && silent > GRACE;
                if over || dead { Err(self.ended()) } else { Ok(Turn::Silence) }
            }
        }
    }

    fn ended(&mut self) -> Stop {
        self.transcript.finish();
        let verdict = self.verdict();
        // The serial port is closed before the emulator has written down why.
        let limit = Instant::now() + Duration::from_secs(1);
        while Instant::now() < limit && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.stop(Stop::Ended(verdict))
    }

    /// Ends the emulator, whatever it does.
    fn stop(&mut self, stop: Stop) -> Stop {
        self.stopped = Some(stop);
        // It may have ended by itself: then there is nobody to kill.
        drop(self.child.kill());
        self.status = self.child.wait().ok();
        stop
    }

    /// What the last line says.
    fn verdict(&self) -> Verdict {
        if self.transcript.partial().is_some() {
            return Verdict::Missing;
        }
        let last = self.transcript.lines().iter().rev().find(|line| !line.is_empty());
        last.and_then(|line| lines::exit_status(line)).map_or(Verdict::Missing, Verdict::Exit)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.stopped.is_none() {
            self.stop(Stop::Left);
        }
    }
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").field("pid", &self.child.id()).field("stopped", &self.stopped).finish_non_exhaustive()
    }
}

/// Where an emulator's standard output and error go.
fn words(directory: &Path) -> std::path::PathBuf {
    directory.join("emulator.out")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_taken_when_it_is_whole() {
        let mut file = b"P6\n2 1\n255\n".to_vec();
        file.extend([0; 5]);
        assert!(!is_whole_picture(&file));
        file.push(0);
        assert!(is_whole_picture(&file));
        for broken in [&b""[..], b"P6\n2 1\n", b"P5\n0 0\n255\n", b"P6\nx 1\n255\n"] {
            assert!(!is_whole_picture(broken));
        }
    }
}
