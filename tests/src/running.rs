//! A machine that a scenario has booted, and what is expected of its lines.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use regex::Regex;
use xtask::machine::{Machine, Verdict};
use xtask::opinion::Opinion;

use crate::picture;

/// What was sent to the serial port is on the screen at once; a picture takes a moment.
const SCREEN_LIMIT: Duration = Duration::from_secs(60);

/// A running machine. What fails on it, fails with everything that it has printed.
///
/// Patterns are regular expressions, tested on each prefixed line, anchored nowhere.
#[derive(Debug)]
pub struct Running {
    machine: Machine,
    /// Lines before this one were expected already.
    next: usize,
}

impl Running {
    pub(crate) fn new(machine: Machine) -> Self {
        Self { machine, next: 0 }
    }

    /// Waits for a line that matches, of those behind the last one that was expected. Returns it.
    ///
    /// # Errors
    /// The machine, or its time, ended before that.
    pub fn expect(&mut self, pattern: &str) -> Result<String> {
        let line = self.wait(self.next, pattern)?;
        self.next = line.0 + 1;
        Ok(line.1)
    }

    /// Waits for lines that match these patterns, in any order. What is expected next comes behind all of them.
    ///
    /// # Errors
    /// The machine, or its time, ended before that.
    pub fn expect_all(&mut self, patterns: &[&str]) -> Result<()> {
        let first = self.next;
        for pattern in patterns {
            let line = self.wait(first, pattern)?;
            self.next = self.next.max(line.0 + 1);
        }
        Ok(())
    }

    /// Waits as [`Running::expect`], for a line whose first group is a decimal number. Returns the number.
    ///
    /// # Errors
    /// As [`Running::expect`]; or the group is no number.
    pub fn expect_number(&mut self, pattern: &str) -> Result<u64> {
        let line = self.expect(pattern)?;
        let captures = regex(pattern)?.captures(&line).and_then(|groups| Some(groups.get(1)?.as_str().to_owned()));
        captures.and_then(|digits| digits.parse().ok()).ok_or_else(|| self.failure(format!("no number in: {line}")))
    }

    /// Waits until the machine ends by itself, which must be with this status.
    ///
    /// # Errors
    /// It ended otherwise, or not in time.
    pub fn ends(&mut self, status: u32) -> Result<()> {
        match self.machine.wait_exit() {
            Ok(Verdict::Exit(found)) if found == status => Ok(()),
            Ok(Verdict::Exit(found)) => Err(self.failure(format!("the machine's status is {found}, not {status}"))),
            Ok(Verdict::Missing) => Err(self.failure("the machine ended without a last word".to_owned())),
            Err(stop) => Err(self.failure(format!("the machine did not end: {stop}"))),
        }
    }

    /// Has the emulator of a machine with a screen do this, a command of QEMU's monitor. The connection is to be kept until it
    /// is done.
    ///
    /// # Errors
    /// There is no monitor.
    pub fn tell_emulator(&self, command: &str) -> Result<UnixStream> {
        self.machine.tell_emulator(command)
    }

    /// Waits until a line on the machine's screen matches.
    ///
    /// # Errors
    /// It does not within a minute, or there is no screen.
    pub fn expect_on_screen(&self, pattern: &str) -> Result<()> {
        let regex = regex(pattern)?;
        let started = Instant::now();
        loop {
            let picture = self.machine.picture()?;
            let lines = picture::text(&picture).context("the picture of the screen is none")?;
            if lines.iter().any(|line| regex.is_match(line)) {
                return Ok(());
            }
            if started.elapsed() > SCREEN_LIMIT {
                let shown = lines.join("\n");
                return Err(self.failure(format!("there was no line like {pattern} on the screen, but:\n{shown}")));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// What was seen from outside, of a machine on a stage that is looked at.
    ///
    /// # Errors
    /// Nobody looked on, or he was not done.
    pub fn opinion(&self) -> Result<Opinion> {
        self.machine.opinion().map_err(|error| self.failure(format!("{error:#}")))
    }

    /// Types a line to the machine's console.
    pub fn type_line(&self, line: &str) {
        self.machine.send(format!("{line}\n"));
    }

    /// Types these bytes as they are.
    pub fn type_bytes(&self, bytes: &[u8]) {
        self.machine.send(bytes);
    }

    /// Every line so far that matches.
    ///
    /// # Errors
    /// The pattern is none.
    pub fn lines(&self, pattern: &str) -> Result<Vec<String>> {
        let pattern = regex(pattern)?;
        Ok(self.machine.transcript().lines().iter().filter(|line| pattern.is_match(line)).cloned().collect())
    }

    /// No line so far may match.
    ///
    /// # Errors
    /// One does.
    pub fn never(&self, pattern: &str) -> Result<()> {
        let found = self.lines(pattern)?;
        self.check(found.is_empty(), || format!("there must be no line like {pattern}: {found:?}"))
    }

    /// Fails, with `words`, where `holds` is false.
    ///
    /// # Errors
    /// It is.
    pub fn check(&self, holds: bool, words: impl FnOnce() -> String) -> Result<()> {
        if holds { Ok(()) } else { Err(self.failure(words())) }
    }

    /// The number and the text of the first line from `first` on that matches.
    fn wait(&mut self, first: usize, pattern: &str) -> Result<(usize, String)> {
        match self.machine.wait_for_from(first, &regex(pattern)?) {
            Ok(line) => Ok((line.index, line.text)),
            Err(stop) => Err(self.failure(format!("{stop}, and there was no line like {pattern}"))),
        }
    }

    fn failure(&self, words: String) -> anyhow::Error {
        let seconds = self.machine.elapsed().as_secs_f64();
        let report = self.machine.report(usize::MAX);
        anyhow!("{words} (after {seconds:.1} s)\n---- what the machine printed\n{report}----")
    }
}

fn regex(pattern: &str) -> Result<Regex> {
    Regex::new(pattern).with_context(|| format!("the scenario's pattern {pattern}"))
}
