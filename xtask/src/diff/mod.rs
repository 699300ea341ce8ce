//! `cargo xtask diff`: one guest on two machines, VMX against SVM, and the first thing that it sees differently.
//!
//! Owns running both, comparing what the hypervisor recorded ([`lamina_vmm::trace`]) and telling the difference. What is
//! allowed to differ stands in one file, with a reason each ([`allowed`]). It needs no single-stepping: the guest's own
//! exits, in its own order, are the points of comparison, and the registers at each are what all instructions before it
//! have made of them.

pub mod allowed;
pub mod compare;
pub mod show;
pub mod trace;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use regex::Regex;
use toml::Value;

use crate::backend::Name;
use crate::config::ConfigError;
use crate::machine::Stop;
use crate::paths;
use crate::report::say;
use crate::session::{Prepared, Request};
use allowed::{Allowed, Guest, Rule};
use trace::Trace;

/// What the VM is called.
const VM: &str = "guest";
/// How many records are made where the file does not say. Enough for every guest program.
const RECORDS: u32 = 100_000;

/// `cargo xtask diff`
#[derive(Args, Debug)]
pub struct Arguments {
    /// A guest program of guest/, or a guest that tests/diff-allowed.toml describes
    #[arg(value_name = "GUEST")]
    pub guest: String,
    /// One side
    #[arg(long, value_name = "BACKEND", default_value = "bochs")]
    pub left: Name,
    /// The other side
    #[arg(long, value_name = "BACKEND", default_value = "tcg")]
    pub right: Name,
    /// The guest's command line instead of the one that the file names
    #[arg(long, value_name = "TEXT")]
    pub cmdline: Option<String>,
    /// The command line on the other side, where it is to be another: to see a difference found
    #[arg(long, value_name = "TEXT")]
    pub right_cmdline: Option<String>,
    /// Compare no more than this many records
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub records: Option<u32>,
    /// Compare what two machines printed before instead of booting any: the outputs of `run` with a VM that is called
    /// `guest` and has the key `trace`
    #[arg(long, value_names = ["LEFT", "RIGHT"], num_args = 2, conflicts_with_all = ["cmdline", "right_cmdline", "records"])]
    pub recorded: Option<Vec<PathBuf>>,
    /// How long each side may take
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub timeout: u64,
}

/// Runs both sides and compares them.
///
/// # Errors
/// The guest is refused, a backend does not work here, or a machine does not come to its end.
pub fn command(arguments: &Arguments) -> Result<ExitCode> {
    let allowed = Allowed::load()?;
    let guest = allowed.guests.get(&arguments.guest).cloned().unwrap_or_default();
    if let Some(reason) = guest.refused.clone() {
        return Err(ConfigError::Refused {
            file: allowed::FILE.to_owned(),
            key: "GUEST".to_owned(),
            value: format!("{:?}", arguments.guest),
            reason,
        }
        .into());
    }
    let [(a, left), (b, right)] = match arguments.recorded.as_deref() {
        Some([left, right]) => [printed(left)?, printed(right)?],
        _ => run(arguments, &guest)?,
    };
    conclude(&arguments.guest, [&a, &b], [&left, &right], &allowed.rules_for(&arguments.guest))
}

/// Says what came out.
fn conclude(guest: &str, names: [&str; 2], traces: [&Trace; 2], rules: &[Rule]) -> Result<ExitCode> {
    let result = compare::compare(traces[0], traces[1], rules);
    let explained: Vec<_> = result.allowed.iter().map(|(rule, count)| format!("{rule} {count}")).collect();
    let explained = if explained.is_empty() { "none".to_owned() } else { explained.join(", ") };
    let [x, y] = result.detoured;
    let detoured = if x + y > 0 { format!(" ({x} and {y} records on detours)") } else { String::new() };
    let ended = result.ended_by.map(|rule| format!(", up to the first {rule}")).unwrap_or_default();
    let [a, b] = names;
    println!(
        "{guest}: {} records compared between {a} and {b}{ended}; allowed differences: {explained}{detoured}",
        result.compared
    );
    match result.difference {
        None if result.compared == 0 => bail!("nothing was compared"),
        None => Ok(ExitCode::SUCCESS),
        Some(difference) => {
            print!("{}", show::difference(names, traces, &difference));
            Ok(ExitCode::FAILURE)
        }
    }
}

/// A run as a file holds it.
fn printed(path: &Path) -> Result<(String, Trace)> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let text = String::from_utf8_lossy(&text);
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok((name, Trace::read(VM, text.lines()).with_context(|| path.display().to_string())?))
}

/// Boots both sides, one after the other, once both are known to work here.
fn run(arguments: &Arguments, guest: &Guest) -> Result<[(String, Trace); 2]> {
    let right_cmdline = arguments.right_cmdline.as_ref().or(arguments.cmdline.as_ref());
    let left = prepare(arguments, guest, arguments.cmdline.as_ref(), arguments.left)?;
    let right = prepare(arguments, guest, right_cmdline, arguments.right)?;
    let names = [left.backend().name().to_string(), right.backend().name().to_string()];
    let [a, b] = names;
    Ok([(a, record(left)?), (b, record(right)?)])
}

fn prepare(arguments: &Arguments, guest: &Guest, cmdline: Option<&String>, on: Name) -> Result<Prepared> {
    let kernel = guest.kernel.clone().unwrap_or_else(|| format!("guest:{}", arguments.guest));
    let records = arguments.records.or(guest.records).unwrap_or(RECORDS);
    let cmdline = cmdline.cloned().unwrap_or_else(|| guest.cmdline.clone());
    let text = |text: &str| Value::String(text.to_owned()).to_string();
    let mut config = format!(
        "[[vm]]\nname = \"{VM}\"\nkernel = {}\ncmdline = {}\nmemory = {}\ntrace = {records}\n",
        text(&kernel),
        text(&cmdline),
        text(guest.memory.as_deref().unwrap_or("32M")),
    );
    for (key, value) in [("initrd", &guest.initrd), ("cpu", &guest.cpu)] {
        if let Some(value) = value {
            config.push_str(&format!("{key} = {}\n", text(value)));
        }
    }
    Request::text(config, paths::workspace()).on(Some(on)).timeout(Duration::from_secs(arguments.timeout)).prepare()
}

/// Runs one side to its end, or until it has made all its records.
fn record(prepared: Prepared) -> Result<Trace> {
    let name = prepared.backend().name();
    say(format_args!("recording on {} ({})", prepared.backend(), prepared.choice.why));
    let mut machine = prepared.start()?;
    let over = Regex::new(&format!(r"^\[lamina\] (trace {VM} end|{VM} stopped: .*)$"))?;
    match machine.wait_for(&over) {
        Ok(_) => {}
        Err(stop) => {
            let report = machine.report(20);
            let words = match stop {
                Stop::Timeout => "did not come to its end in the time given by --timeout".to_owned(),
                other => other.to_string(),
            };
            bail!("on {name}: {words}\n{report}");
        }
    }
    Trace::read(VM, machine.transcript().lines().iter().map(String::as_str)).with_context(|| format!("on {name}"))
}

#[cfg(test)]
mod tests;
