//! `cargo xtask check`: everything that can be said of the sources without running them.
//!
//! Owns the list of checks and what a line of the report looks like. Each check says what is wrong, never changes
//! anything.

mod deep;
mod files;
mod layers;
mod scan;
mod tools;
mod unsafety;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::Args;

use crate::report;

/// `cargo xtask check`
#[derive(Args, Debug)]
pub struct Arguments {
    /// And what takes minutes: harnesses and property tests with many more cases, loom, Miri, Kani where it is installed,
    /// and the advisories of dependencies
    #[arg(long)]
    pub deep: bool,
}

/// What came of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// All is well.
    Good,
    /// All is well, and this much was looked at.
    Told(String),
    /// This is wrong.
    Bad(String),
    /// It could not be looked at here, for this reason.
    Skipped(String),
}

impl Finding {
    /// Good where nothing was found, else all that was found, a line each.
    fn of(problems: &[String]) -> Self {
        if problems.is_empty() { Self::Good } else { Self::Bad(problems.join("\n")) }
    }
}

/// One check: its name, and what finds out.
type Check = (&'static str, fn() -> Result<Finding>);

/// In the order in which they run: what takes no time first.
const CHECKS: &[Check] = &[
    ("layers: dependencies point one way", layers::check),
    ("unsafe: only where it belongs", unsafety::check),
    ("length: no file is too long to read", files::length),
    ("neutral: no addresses but known ones, no paths of a machine", files::neutral),
    ("fmt", tools::format),
    ("clippy, host", tools::clippy_host),
    ("clippy, bare metal", tools::clippy_bare),
    ("rustdoc", tools::documentation),
    ("dependencies: bans licenses sources", tools::dependencies),
];

const DEEP: &[Check] = &[
    ("dependencies: advisories", tools::advisories),
    ("loom", deep::loom),
    ("kani", deep::kani),
    ("harnesses, 8 times the inputs", deep::harnesses),
    ("miri", deep::miri),
    ("property tests, 5 times the cases", tools::properties),
];

/// Checks, and says of each check how it went.
///
/// # Errors
/// A tool cannot be had.
pub fn command(arguments: &Arguments) -> Result<ExitCode> {
    tools::set_up()?;
    let mut failed = 0;
    let deep = if arguments.deep { DEEP } else { &[] };
    for &(name, check) in CHECKS.iter().chain(deep) {
        let started = Instant::now();
        // Each takes minutes, and where the spinner is not seen, silence would look like a standstill.
        if !std::io::stderr().is_terminal() && DEEP.iter().any(|(deep, _)| *deep == name) {
            report::say(format_args!("checking: {name}"));
        }
        let finding = {
            let _activity = report::activity(name);
            check().unwrap_or_else(|error| Finding::Bad(format!("{error:#}")))
        };
        let seconds = started.elapsed().as_secs_f64();
        let mut out = std::io::stdout().lock();
        // The status says it too, where nobody reads.
        drop(match finding {
            Finding::Good => writeln!(out, "ok      {name} ({seconds:.1} s)"),
            Finding::Told(what) => writeln!(out, "ok      {name} ({seconds:.1} s): {what}"),
            Finding::Skipped(why) => writeln!(out, "skipped {name}: {why}"),
            Finding::Bad(what) => {
                failed += 1;
                writeln!(out, "FAILED  {name} ({seconds:.1} s)\n{}", what.trim_end())
            }
        });
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What holds of this very checkout, without any tool.
    #[test]
    fn the_sources_keep_the_rules() {
        for (name, check) in CHECKS.iter().filter(|(name, _)| name.contains(": ") && !name.starts_with("dependencies"))
        {
            assert_eq!(check().unwrap(), Finding::Good, "{name}");
        }
    }

    #[test]
    fn problems_are_told_a_line_each() {
        assert_eq!(Finding::of(&[]), Finding::Good);
        assert_eq!(Finding::of(&["a".to_owned(), "b".to_owned()]), Finding::Bad("a\nb".to_owned()));
    }
}
