//! What the boot scenarios are made of: a [`Scenario`] boots machines on a [`Stage`] and says what it [expects] of
//! their lines.
//!
//! Owns how a scenario is described, run and reported. Never says what is expected: the scenarios do, one file each.
//! What scenarios may rely on of a machine's lines stands in `docs/guide/console.md`.
//!
//! [expects]: Running::expect
#![forbid(unsafe_code)]

mod command;
pub mod hostile;
mod picture;
mod running;
mod stage;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::ValueEnum;
use libtest_mimic::{Arguments, Failed, Trial};
use xtask::backend::{self, Host, Name};

pub use command::{Outcome, cargo_test};
pub use running::Running;
pub use stage::Stage;
/// What a machine is booted on.
pub use xtask::backend::Name as Backend;
/// What a machine starts with.
pub use xtask::image::Firmware;

/// Where `cargo xtask test` says which backends to run on: names, separated by commas.
pub const BACKENDS: &str = "LAMINA_ON";
/// The kind of a scenario that needs no machine, as it is shown.
const HOST: &str = "host";
/// The kind of one that does, where it is not yet known on what.
const BOOT: &str = "boot";

/// One scenario.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name, which filters look at.
    pub name: &'static str,
    /// What it needs.
    pub needs: Needs,
    /// The time that each of its machines has, on the wall, from the emulator's start: far more than it takes, so that
    /// a slow host fails nothing. It ends what hangs; it is never what is tested. Unit: seconds.
    pub limit: u64,
    /// It takes too long for every day: only `--all` (libtest's `--include-ignored`) runs it.
    pub long: bool,
    /// What it does.
    pub run: fn(&Stage) -> anyhow::Result<()>,
}

/// What a scenario needs to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing but the host: what it tries is refused before anything boots.
    Host,
    /// A machine: it is run once on each backend.
    Machine,
    /// A machine of QEMU's, for its firmware or its screen.
    Qemu,
    /// A machine with VMX, of which what is written is true.
    Vmx,
    /// A machine of Bochs', which can be built with somebody in it who looks on.
    Bochs,
    /// A machine of QEMU's own emulation, for a processor with some feature, or a PC with some device, more or less.
    Tcg,
}

/// Runs the scenarios as an ordinary test program would its tests. Does not return.
pub fn main(scenarios: &[Scenario]) -> ! {
    let mut arguments = Arguments::from_args();
    // Emulators are heavy, and what a machine does must not depend on what else the host has to do.
    arguments.test_threads.get_or_insert(1);
    let backends = if arguments.list { Ok(vec![None]) } else { backends() };
    let backends = backends.unwrap_or_else(|error| {
        eprintln!("scenarios: {error:#}");
        std::process::exit(2);
    });
    let skipped = Skipped::default();
    let trials = scenarios.iter().flat_map(|scenario| match scenario.needs {
        Needs::Host => vec![trial(*scenario, None, &skipped)],
        _ => {
            let wanted = arguments.filter.as_ref().is_none_or(|filter| scenario.name.contains(filter.as_str()));
            let fit = backends.iter().filter(|backend| {
                let Some((name, reason)) = backend.and_then(|name| Some((name, lacks(scenario.needs, name)?))) else {
                    return true;
                };
                if wanted {
                    let line = format!("skipped: [{name}] {}: {reason}", scenario.name);
                    skipped.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                }
                false
            });
            fit.map(|backend| trial(*scenario, *backend, &skipped)).collect()
        }
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    for line in skipped.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        println!("{line}");
    }
    conclusion.exit()
}

/// Why a backend has not what a scenario needs.
fn lacks(needs: Needs, backend: Name) -> Option<&'static str> {
    match (needs, backend) {
        (Needs::Qemu, Name::Bochs | Name::BochsSvm) => Some("Bochs has neither UEFI nor a screen to look at"),
        (Needs::Vmx, Name::BochsSvm | Name::Tcg) => Some("what is written is of VMX"),
        (Needs::Bochs, name) if name != Name::Bochs => Some("nobody can look into it from outside"),
        (Needs::Tcg, name) if name != Name::Tcg => {
            Some("only QEMU's emulation has processors with single features, or PCs with single devices, more or less")
        }
        _ => None,
    }
}

/// A line for each part of a scenario that was left out, shown behind all results.
type Skipped = Arc<Mutex<Vec<String>>>;

fn trial(scenario: Scenario, backend: Option<Name>, skipped: &Skipped) -> Trial {
    let skipped = Arc::clone(skipped);
    let kind = match (scenario.needs, backend) {
        (Needs::Host, _) => HOST.to_owned(),
        (_, Some(backend)) => backend.to_string(),
        (_, None) => BOOT.to_owned(),
    };
    let run = move || {
        let stage = Stage::new(backend, Duration::from_secs(scenario.limit));
        let result = (scenario.run)(&stage).map_err(|error| Failed::from(format!("{error:#}")));
        let on = backend.map_or(HOST.to_owned(), |backend| backend.to_string());
        let left_out = stage.take_skipped().into_iter();
        let lines = left_out.map(|(part, reason)| format!("skipped: [{on}] {}/{part}: {reason}", scenario.name));
        skipped.lock().unwrap_or_else(PoisonError::into_inner).extend(lines);
        result
    };
    Trial::test(scenario.name, run).with_kind(kind).with_ignored_flag(scenario.long)
}

/// What the environment names, else the first backend that works here.
fn backends() -> anyhow::Result<Vec<Option<Name>>> {
    let named = std::env::var(BACKENDS).unwrap_or_default();
    if named.is_empty() {
        return Ok(vec![Some(backend::choose(None, &Host::USUAL)?.backend.name())]);
    }
    let parse = |name: &str| Name::from_str(name, false).map_err(|error| anyhow::anyhow!("{BACKENDS}: {error}"));
    named.split(',').map(|name| parse(name).map(Some)).collect()
}
