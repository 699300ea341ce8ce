//! `cargo xtask bench`: what Lamina costs, measured.
//!
//! Owns which benchmarks there are and how their tables look. A benchmark measures; whether that is good enough, the
//! row's own bound says.

mod exits;
mod linux;
pub mod native;
mod page;
mod peer;
mod plot;
mod table;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{ArgGroup, Args, ValueEnum};
use thiserror::Error;

use crate::backend::{self, Name};
use crate::report::say;
use crate::setup::rust;
use peer::Peer;
use table::Table;

/// `cargo xtask bench`
#[derive(Args, Debug)]
#[command(group(ArgGroup::new("made").args(["plot", "page"]).multiple(true)))]
pub struct Arguments {
    /// The benchmark; by default all of them
    #[arg(value_name = "NAME")]
    pub name: Option<Benchmark>,
    /// What to measure on: Bochs alone, where a tick of the TSC is an instruction
    #[arg(long, value_name = "BACKEND", default_value = "bochs")]
    pub on: Name,
    /// How often `linux` is measured [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub runs: Option<u32>,
    /// Measure this hypervisor too, in the place of the figures of it that are stored
    #[arg(long, value_name = "PEER")]
    pub peer: Option<Peer>,
    /// Write the figures to a file, as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write a picture of the exits to a file, as SVG
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
    /// Write the table to a file, as Markdown
    #[arg(long, value_name = "FILE")]
    pub page: Option<PathBuf>,
    /// Measure nothing, and make picture and page from what `--json` wrote
    #[arg(long, value_name = "FILE", requires = "made", conflicts_with_all = ["name", "runs", "peer", "json"])]
    pub from: Option<PathBuf>,
}

/// The benchmarks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Benchmark {
    /// What an exit costs, kind by kind, and from one VM to another
    Exits,
    /// From a stock Linux' entry to its /init, natively and as the only VM
    Linux,
}

/// Options that make no sense.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct Usage(String);

/// How often `linux` is measured where nobody says.
const RUNS: u32 = 3;

impl Arguments {
    /// The picture's place as the page names it: both are made for the documentation, where the picture is in the directory
    /// above the page's, or in the page's own.
    fn picture(&self) -> Option<String> {
        let (plot, page) = (self.plot.as_ref()?, self.page.as_ref()?);
        let name = plot.file_name()?.to_str()?;
        Some(if plot.parent() == page.parent() { name.to_owned() } else { format!("../{name}") })
    }

    /// Refuses what makes no sense together, before anything slow is done.
    fn check(&self) -> Result<(), Usage> {
        let refuse = |words: String| Err(Usage(words));
        match (self.on, self.name, self.peer, self.runs, &self.plot) {
            (on, ..) if on != Name::Bochs => {
                refuse(format!("--on {on}: figures of benchmarks are instructions, which only bochs counts"))
            }
            (_, Some(Benchmark::Linux), Some(_), ..) => refuse("--peer: it is measured beside `exits` only".to_owned()),
            (_, Some(Benchmark::Linux), .., Some(_)) => refuse("--plot: the picture is of `exits`".to_owned()),
            (_, Some(Benchmark::Exits), _, Some(_), _) => {
                refuse("--runs: only `linux` is measured several times; an exit is, a thousand times".to_owned())
            }
            _ => Ok(()),
        }
    }
}

/// Measures, and says whether every bound is kept.
///
/// # Errors
/// The options make no sense ([`Usage`]), or something could not be measured.
pub fn command(arguments: &Arguments) -> Result<ExitCode> {
    arguments.check()?;
    let mut plot = arguments.plot.as_deref().map(|path| create("--plot", path)).transpose()?;
    let mut page = arguments.page.as_deref().map(|path| create("--page", path)).transpose()?;
    if let Some(path) = &arguments.from {
        let wrong = |error: String| Usage(format!("--from {}: {error}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        let figures = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        let refused = |error: anyhow::Error| wrong(format!("{error:#}"));
        let svg = plot.is_some().then(|| plot::svg(&figures)).transpose().map_err(refused)?;
        let text = page.is_some().then(|| page::markdown(&figures, arguments.picture().as_deref())).transpose();
        let text = text.map_err(refused)?;
        write(plot.as_mut(), || Ok(svg.unwrap_or_default()))?;
        write(page.as_mut(), || Ok(text.unwrap_or_default()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut json = arguments.json.as_deref().map(|path| create("--json", path)).transpose()?;
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
        outcome = linux::measure(&choice.backend, arguments.runs.unwrap_or(RUNS), &mut table).context("bench linux");
    }
    // What did run is shown, whatever came of the rest.
    print!("{table}");
    let figures = table.json();
    write(json.as_mut(), || Ok(format!("{figures:#}\n")))?;
    outcome.and(beside)?;
    write(plot.as_mut(), || plot::svg(&figures))?;
    write(page.as_mut(), || page::markdown(&figures, arguments.picture().as_deref()))?;
    Ok(if table.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A file that will be written at the end: whether that can be is not found out after minutes.
fn create(option: &str, path: &Path) -> Result<File, Usage> {
    File::create(path).map_err(|error| Usage(format!("{option} {}: {error}", path.display())))
}

fn write(file: Option<&mut File>, text: impl FnOnce() -> Result<String>) -> Result<()> {
    match file {
        Some(file) => file.write_all(text()?.as_bytes()).context("cannot write the figures"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser, Debug)]
    struct Command {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parse(words: &str) -> Result<Arguments, i32> {
        let words = std::iter::once("bench").chain(words.split_ascii_whitespace());
        Command::try_parse_from(words).map(|command| command.arguments).map_err(|error| error.exit_code())
    }

    #[test]
    fn what_makes_no_sense_is_refused_before_anything_is_done() {
        for (words, part) in [
            ("--on tcg", "--on tcg: "),
            ("exits --on bochs-svm", "--on bochs-svm: "),
            ("linux --peer kvm", "--peer: "),
            ("exits --runs 2", "--runs: "),
            ("linux --plot x.svg", "--plot: "),
        ] {
            let refused = parse(words).unwrap().check().unwrap_err().to_string();
            assert!(refused.starts_with(part), "{words}: {refused}");
        }
        for words in
            ["", "exits --peer kvm", "linux --runs 2", "--peer kvm --runs 2", "--from a --plot b", "--from a --page b"]
        {
            assert_eq!(parse(words).unwrap().check(), Ok(()), "{words}");
        }
    }

    #[test]
    fn what_does_not_parse_has_status_2() {
        for words in [
            "exit",
            "--peer xen",
            "--peer",
            "--runs 0",
            "--runs 101",
            "--runs many",
            "--on vbox",
            "--json",
            "--from a",
            "--from a --plot b --peer kvm",
            "exits --from a --plot b",
            "exits linux",
        ] {
            assert_eq!(parse(words).map(drop), Err(2), "{words}");
        }
    }

    #[test]
    fn files_that_cannot_be_written_or_read_are_found_out_first() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        std::fs::write(path("text"), "no figures").unwrap();
        std::fs::write(path("none.json"), "{}").unwrap();
        for words in [
            format!("--json {}", path("no/where")),
            format!("--plot {}", path("no/where")),
            format!("--plot {} --from {}", path("a.svg"), path("missing")),
            format!("--plot {} --from {}", path("a.svg"), path("text")),
            format!("--plot {} --from {}", path("a.svg"), path("none.json")),
            format!("--page {}", path("no/where")),
            format!("--page {} --from {}", path("a.md"), path("none.json")),
        ] {
            let error = command(&parse(&words).unwrap()).unwrap_err();
            assert!(error.downcast_ref::<Usage>().is_some(), "{words}: {error}");
        }
    }
}
