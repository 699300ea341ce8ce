//! `cargo xtask run`: boots a configuration and gives the terminal to Lamina's console.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use regex::Regex;
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::backend::Name;
use crate::config::size;
use crate::machine::{Event, Machine, Stop, Verdict};
use crate::report::say;
use crate::session::{self, Request};
use crate::terminal::{self, RawMode};

/// `cargo xtask run`
#[derive(Args, Debug)]
pub struct Arguments {
    /// The machines to boot
    #[arg(long, value_name = "FILE", default_value_os_t = session::default_config())]
    pub config: PathBuf,
    /// What to boot on; by default the first of kvm, bochs and tcg that works here
    #[arg(long, value_name = "BACKEND")]
    pub on: Option<Name>,
    /// Processors of the machine
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub cpus: u32,
    /// Memory of the machine, like 2G; by default enough for the configuration
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    pub memory: Option<u64>,
    /// End with success once a line of the machine's output matches this regular expression
    #[arg(long, value_name = "REGEX")]
    pub until: Option<Regex>,
    /// On a Bochs with somebody looking on from outside: checks each access of each guest against who owns what, counts what
    /// lies between exits and entries, and shows both at the end; with --until, types `quit` there. Fails where a guest
    /// got at what is not its own
    #[arg(long, conflicts_with = "cpus")]
    pub instrumented: bool,
    /// End with status 124 after this long, counted from the emulator's start
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<Duration>,
}

fn memory(text: &str) -> Result<u64, String> {
    match size::parse(text) {
        Some(bytes) if bytes >= 64 << 20 && bytes.is_multiple_of(1 << 20) => Ok(bytes),
        Some(_) => Err("at least 64M, in whole M".to_owned()),
        None => Err("not a size; like 512M or 2G".to_owned()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// The exit status after the time was over.
const TIMED_OUT: u8 = 124;
/// The exit status after signal N is this and N.
const SIGNALLED: u8 = 128;

/// Boots and waits for the end.
///
/// # Errors
/// The configuration is refused, or the machine could not be started.
pub fn command(arguments: &Arguments) -> Result<ExitCode> {
    let interactive = terminal::is_interactive();
    let prepared = Request::file(&arguments.config)
        .on(arguments.on)
        .cpus(arguments.cpus)
        .memory(arguments.memory)
        .timeout(arguments.timeout)
        .interactive(interactive)
        .instrumented(arguments.instrumented)
        .prepare()?;
    say(format_args!("booting on {} ({})", prepared.backend(), prepared.choice.why));
    if interactive {
        say("`help` and Enter tells what the console can do; Ctrl-A x ends the machine at once");
    }
    let mut machine = prepared.sink(Box::new(std::io::stdout())).start()?;
    watch_signals(&machine)?;
    let raw = if interactive { RawMode::enter() } else { None };
    terminal::feed(machine.input(), machine.events(), raw.is_some());
    let ended = wait(&mut machine, arguments.until.as_ref());
    if arguments.instrumented && ended == Ended::Matched {
        // Who looks on tells all of it when the machine ends by itself.
        machine.send("quit\n");
        // Where that goes wrong, there is no opinion.
        let _ = machine.wait_exit();
    }
    drop(raw);
    finish_line(&machine);
    let status = conclude(&machine, ended, arguments.until.as_ref());
    let approved = !arguments.instrumented || is_approved(&machine);
    Ok(if approved || status != 0 { ExitCode::from(status) } else { ExitCode::FAILURE })
}

/// Shows what was seen from outside; whether that was good.
fn is_approved(machine: &Machine) -> bool {
    match machine.opinion() {
        Ok(opinion) => {
            opinion.to_string().lines().for_each(say);
            opinion.is_good()
        }
        Err(error) => {
            say(format_args!("{error:#}"));
            false
        }
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Matched,
    Stopped(Stop),
}

fn wait(machine: &mut Machine, until: Option<&Regex>) -> Ended {
    match until {
        Some(pattern) => machine.wait_for(pattern).map_or_else(Ended::Stopped, |_| Ended::Matched),
        None => match machine.wait_exit() {
            Ok(verdict) => Ended::Stopped(Stop::Ended(verdict)),
            Err(stop) => Ended::Stopped(stop),
        },
    }
}

/// Our own words start on a line of their own, also behind a prompt.
fn finish_line(machine: &Machine) {
    if machine.transcript().partial().is_some() {
        drop(std::io::stdout().write_all(b"\n"));
    }
}

/// The exit status; says what it means where that is not plain.
fn conclude(machine: &Machine, ended: Ended, until: Option<&Regex>) -> u8 {
    let (status, words) = outcome(ended, until.is_some());
    if let Some(words) = words {
        say(format_args!("{words} (after {:.1} s)", machine.elapsed().as_secs_f64()));
    }
    if ended == Ended::Stopped(Stop::Ended(Verdict::Missing)) {
        for line in machine.emulators_words().lines() {
            say(line);
        }
    }
    status
}

fn outcome(ended: Ended, until: bool) -> (u8, Option<String>) {
    let failed = |words: String| (1, Some(words));
    match ended {
        Ended::Matched => (0, None),
        Ended::Stopped(Stop::Ended(Verdict::Missing)) => {
            failed("the machine ended without saying `[lamina] exit STATUS`: it failed".to_owned())
        }
        Ended::Stopped(Stop::Ended(Verdict::Exit(status))) if until => {
            failed(format!("the machine ended with status {status} before a line matched --until"))
        }
        Ended::Stopped(Stop::Ended(Verdict::Exit(0))) => (0, None),
        Ended::Stopped(Stop::Ended(Verdict::Exit(status))) => failed(format!("the machine ended with status {status}")),
        Ended::Stopped(Stop::Timeout) => (TIMED_OUT, Some("the time given by --timeout is over".to_owned())),
        Ended::Stopped(Stop::Signal(signal)) => {
            (SIGNALLED.saturating_add(u8::try_from(signal).unwrap_or(0)), Some(format!("ended by signal {signal}")))
        }
        Ended::Stopped(Stop::Left) => failed("left; the machine was ended as it stood".to_owned()),
        Ended::Stopped(Stop::OutputClosed) => failed("standard output was closed".to_owned()),
    }
}

fn watch_signals(machine: &Machine) -> Result<()> {
    let events = machine.events();
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot catch signals")?;
    thread::spawn(move || {
        for signal in signals.forever() {
            if events.send(Event::Signal(signal)).is_err() {
                break;
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_what_scripts_rely_on() {
        let status = |ended, until| outcome(ended, until).0;
        assert_eq!(status(Ended::Matched, true), 0);
        assert_eq!(status(Ended::Stopped(Stop::Ended(Verdict::Exit(0))), false), 0);
        assert_eq!(status(Ended::Stopped(Stop::Ended(Verdict::Exit(0))), true), 1);
        assert_eq!(status(Ended::Stopped(Stop::Ended(Verdict::Exit(2))), false), 1);
        assert_eq!(status(Ended::Stopped(Stop::Ended(Verdict::Missing)), false), 1);
        assert_eq!(status(Ended::Stopped(Stop::Timeout), false), 124);
        assert_eq!(status(Ended::Stopped(Stop::Timeout), true), 124);
        assert_eq!(status(Ended::Stopped(Stop::Signal(SIGINT)), true), 130);
    }

    #[test]
    fn arguments_are_checked() {
        assert_eq!(memory("2G"), Ok(2 << 30));
        assert!(memory("1M").is_err() && memory("65537K").is_err() && memory("x").is_err());
        assert_eq!(seconds("1.5"), Ok(Duration::from_millis(1500)));
        assert!(seconds("-1").is_err() && seconds("x").is_err() && seconds("inf").is_err());
    }
}
