//! `cargo xtask bench`: what Lamina costs, measured.
//!
//! Owns which benchmarks there are and how their tables look. A benchmark measures; whether that is good enough, the
//! row's own bound says.

mod exits;
mod linux;
pub mod native;
mod peer;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::backend::{self, Name, Refusal};
use crate::report::say;
use crate::setup::rust;
use peer::Peer;
use table::Table;

/// `cargo xtask bench`
#[derive(Args, Debug)]
pub struct Arguments {
    /// The benchmark; by default all of them
    #[arg(value_name = "NAME")]
    pub name: Option<Benchmark>,
    /// What to measure on: Bochs alone so far, where a tick of the TSC is an instruction
    #[arg(long, value_name = "BACKEND", default_value = "bochs")]
    pub on: Name,
    /// How often each figure is measured
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub runs: u32,
    /// Measure this hypervisor too, in the place of the figures of it that are stored
    #[arg(long, value_name = "PEER")]
    pub peer: Option<Peer>,
    /// Write the figures to a file, as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// The benchmarks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Benchmark {
    /// What an exit costs, kind by kind, and from one VM to another
    Exits,
    /// From a stock Linux' entry to its /init, natively and as the only VM
    Linux,
}

/// Measures, and says whether every bound is kept.
///
/// # Errors
/// Something could not be measured.
pub fn command(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.on != Name::Bochs {
        let reason = "figures of benchmarks are instructions, which only Bochs counts".to_owned();
        return Err(Refusal::Unusable { name: arguments.on, reason }.into());
    }
    rust::ensure_workspace()?;
    let choice = backend::choose(Some(arguments.on), &backend::Host::USUAL)?;
    say(format_args!("measuring on {}", choice.backend));
    let mut table = Table::new(choice.backend.name());
    let wanted = |benchmark| arguments.name.is_none_or(|name| name == benchmark);
    let mut outcome = Ok(());
    if wanted(Benchmark::Exits) {
        outcome = exits::measure(&choice.backend, &mut table).context("bench exits");
    }
    let mut beside = Ok(());
    if outcome.is_ok()
        && let Some(Peer::Kvm) = arguments.peer
    {
        // That it cannot be had is no reason not to measure the rest.
        beside = peer::measure(&choice.backend).map(|kvm| table.measured(&kvm)).context("--peer kvm");
    }
    if outcome.is_ok() && wanted(Benchmark::Linux) {
        outcome = linux::measure(&choice.backend, arguments.runs, &mut table).context("bench linux");
    }
    // What did run is shown, whatever came of the rest.
    print!("{table}");
    if let Some(path) = &arguments.json {
        std::fs::write(path, table.json()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    outcome.and(beside)?;
    Ok(if table.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
