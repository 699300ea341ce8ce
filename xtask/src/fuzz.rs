//! `cargo xtask fuzz`: a guest that does random privileged and device operations, beside a witness.
//!
//! Owns the judgement of such a run. The operations are `guest/hostile`'s, and the seed alone decides them.

use std::fmt;
use std::process::ExitCode;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, Error, Result, bail};
use clap::Args;
use regex::Regex;

use crate::backend::Name;
use crate::machine::{Machine, Stop};
use crate::paths;
use crate::report::say;
use crate::session::Request;

/// Steps in a run of every day, more of them exits than not.
pub const STEPS: u64 = 200_000;
/// Least share of the processor that the witness gets, of 1000: 95 % of its half.
const SHARE: u64 = 475;
/// What may pass until the guest says how far it is, which it does each 100,000 steps at least; far more than does, to end
/// what hangs.
const LIMIT: Duration = Duration::from_secs(600);
/// What the hypervisor may take to say what a guest that hangs is doing.
const ANSWER: Duration = Duration::from_secs(30);
/// Lines of the machine's that are shown where it failed.
const SHOWN: usize = 60;

/// The last line that the console's command `exits` prints.
static EXITS_END: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^\[lamina\] made in \d+ ticks; \d+ exits").expect("a regular expression"));

/// `cargo xtask fuzz`
#[derive(Args, Debug)]
pub struct Arguments {
    /// What the operations are made from: the same seed, the same operations
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// How many operations
    #[arg(long, value_name = "M", default_value_t = STEPS, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub steps: u64,
    /// What to boot on; by default the first backend that works here
    #[arg(long, value_name = "BACKEND")]
    pub on: Option<Name>,
}

/// Runs it, and says how to repeat it where it failed.
///
/// # Errors
/// Nothing can be booted.
pub fn command(arguments: &Arguments) -> Result<ExitCode> {
    match run(arguments.seed, arguments.steps, arguments.on) {
        Ok(outcome) => {
            println!("{outcome}");
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            say(format_args!("{error:#}"));
            Ok(ExitCode::FAILURE)
        }
    }
}

/// What a run came to that went well.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    seed: u64,
    steps: u64,
    /// Exits of the fuzzing guest, as the hypervisor has counted them.
    pub exits: u64,
    /// Time of the processor that the witness had, and the time that passed. Unit: 1000 ticks.
    ran: u64,
    of: u64,
    took: Duration,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome { seed, steps, exits, ran, of, took } = self;
        write!(f, "fuzz: seed {seed}, {steps} steps, {exits} exits in {} s, no panic, no stall; ", took.as_secs())?;
        write!(f, "the witness ran for {ran} of {of} kiloticks")
    }
}

/// One run; what it came to.
///
/// # Errors
/// The machine could not be booted, or something happened that must not: a panic, the end of the VM, a stall, a witness
/// that was harmed. It says how to repeat the run.
pub fn run(seed: u64, steps: u64, on: Option<Name>) -> Result<Outcome> {
    run_built_with(None, seed, steps, on)
}

/// The same, with the hypervisor built with this feature of its crate.
///
/// # Errors
/// As [`run`].
pub fn run_built_with(feature: Option<&'static str>, seed: u64, steps: u64, on: Option<Name>) -> Result<Outcome> {
    let config = format!(
        "[[vm]]\nname = \"fuzz\"\nkernel = \"guest:hostile\"\nmemory = \"16M\"\ncmdline = \"seed={seed} steps={steps}\"\n\
         [[vm]]\nname = \"witness\"\nkernel = \"guest:witness\"\nmemory = \"16M\"\n"
    );
    let prepared = Request::text(config, paths::workspace()).on(on).timeout(LIMIT).built_with(feature).prepare()?;
    let backend = prepared.backend().name();
    let mut machine = prepared.start()?;
    judge(&mut machine, seed, steps).map_err(|error| {
        if error.downcast_ref::<Stop>() == Some(&Stop::Timeout) {
            inquire(&mut machine);
        }
        let printed = machine.report(SHOWN);
        let again = format!("again: cargo xtask fuzz --seed {seed} --steps {steps} --on {backend}");
        error.context(format!("seed {seed} failed\n{printed}{again}"))
    })
}

fn judge(machine: &mut Machine, seed: u64, steps: u64) -> Result<Outcome> {
    let told = Regex::new(
        r"^\[fuzz\] fuzz (step|seed \d+: \d+ steps done$)|^\[lamina\] (fuzz|witness) stopped: |^\[fuzz\] panicked",
    )?;
    let mut line = wait(machine, 0, &told)?;
    while let Some(far) = line.1.strip_prefix("[fuzz] fuzz step ") {
        say(format_args!("seed {seed}: step {far}"));
        machine.allow(LIMIT);
        line = wait(machine, line.0, &told)?;
    }
    if !line.1.ends_with("steps done") {
        // The guest's last words come behind the first of them, and are among what is shown.
        let end = Regex::new(r"^\[lamina\] fuzz stopped: ")?;
        drop(machine.wait_for_from(line.0 - 1, &end));
        bail!("it must not end: {}", line.1);
    }
    let window = Regex::new(
        r"^\[witness\] window \d+: ran (\d+) of (\d+) kiloticks, .*$|^\[witness\] MEMORY|^\[lamina\] witness ",
    )?;
    let line = wait(machine, line.0, &window)?;
    let found = window.captures(&line.1).context("the witness says something else now")?;
    let number = |at: usize| found.get(at).and_then(|digits| digits.as_str().parse::<u64>().ok());
    let (Some(ran), Some(of)) = (number(1), number(2)) else { bail!("the witness was harmed: {}", line.1) };
    if ran * 1000 < of * SHARE {
        bail!("the witness ran for {ran} of {of} kiloticks, less than 95 % of a half");
    }
    // The fuzzing guest has ended by now, or does at once.
    let end = Regex::new(r"^\[lamina\] fuzz stopped: powered off \(status 0\)$")?;
    let line = wait(machine, 0, &end)?;
    machine.send("vms\n");
    let row = Regex::new(r"^\[lamina\] fuzz +stopped .* (\d+)$")?;
    let exits = wait(machine, line.0, &row)?.1;
    let exits = row.captures(&exits).and_then(|found| found.get(1)?.as_str().parse().ok()).context("not a number")?;
    let took = machine.elapsed();
    machine.send("quit\n");
    match machine.wait_exit() {
        Ok(crate::machine::Verdict::Exit(0)) => {}
        other => bail!("the machine must end with 0: {other:?}"),
    }
    Ok(Outcome { seed, steps, exits, ran, of, took })
}

/// The next line that matches: its number and its text.
fn wait(machine: &mut Machine, from: usize, pattern: &Regex) -> Result<(usize, String)> {
    match machine.wait_for_from(from, pattern) {
        Ok(line) => Ok((line.index + 1, line.text)),
        Err(stop) => Err(Error::new(stop).context(format!("there was no line like {pattern}"))),
    }
}

/// Has the hypervisor say what the guest that hangs is doing: twice, since only what grows is being done now.
fn inquire(machine: &mut Machine) {
    let mut from = machine.transcript().lines().len();
    machine.allow(ANSWER);
    for _ in 0..2 {
        machine.send("exits fuzz\n");
        // Where there is no answer either, the lines that are shown say so.
        let Ok(end) = machine.wait_for_from(from, &EXITS_END) else { return };
        from = end.index + 1;
    }
}
