//! `cargo xtask test`: the host tests, then the boot scenarios, and one count of both.
//!
//! Owns which backends the scenarios run on, and the last line. What is tested stands in the crates and in `tests/`.

mod counts;

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use clap::Args;

use crate::backend::{self, Host, Name, Probe};
use crate::paths;
use crate::setup::rust;
use counts::{Counts, Skipped};

/// Names the backends to the scenarios, separated by commas.
const BACKENDS: &str = "LAMINA_ON";
/// Names this program to the scenarios.
const PROGRAM: &str = "LAMINA_XTASK";
/// Nothing is tested: the filter is wrong.
const NOTHING: u8 = 2;

/// `cargo xtask test`
#[derive(Args, Debug)]
pub struct Arguments {
    /// Run only what has this in its name
    #[arg(value_name = "FILTER")]
    pub filter: Option<String>,
    /// What to boot the scenarios on; by default everything that this host offers
    #[arg(long, value_name = "BACKEND")]
    pub on: Option<Name>,
    /// The scenarios that take long too
    #[arg(long)]
    pub all: bool,
}

/// Tests, and says at last how many passed, failed and were skipped.
///
/// # Errors
/// The backend that was asked for cannot be had, or no test could be started at all.
pub fn command(arguments: &Arguments) -> Result<ExitCode> {
    // Scenarios call the hypervisor's build, and so does a host test that looks for the target.
    rust::ensure_workspace()?;
    let filter = arguments.filter.as_deref();

    let mut host = cargo_test(&["--no-fail-fast"]);
    pass_on(&mut host, filter, &[]);
    let host = run(host, "host tests", &|line| !is_noise(line))?;

    let mut scenarios = Counts::default();
    let mut unused = Vec::new();
    if any_scenario(filter)? {
        let (backends, not_run) = backends(arguments.on, &Host::USUAL)?;
        unused = not_run;
        let names = backends.iter().map(Name::to_string).collect::<Vec<_>>().join(",");
        let mut command = scenario_tests();
        let threads = threads(&backends).to_string();
        let mut options = vec!["--test-threads", &threads];
        options.extend(arguments.all.then_some("--include-ignored"));
        pass_on(&mut command, filter, &options);
        command.env(BACKENDS, names).env(PROGRAM, std::env::current_exe().context("where is this program?")?);
        scenarios = run(command, "scenarios", &|line| {
            // The summary has them all.
            !line.trim().is_empty() && !line.starts_with("skipped: ")
        })?;
    }
    Ok(conclude(&host, &scenarios, &unused, filter))
}

/// Prints the summary; the last line is the one that counts.
fn conclude(host: &Counts, scenarios: &Counts, unused: &[String], filter: Option<&str>) -> ExitCode {
    let mut lines = Vec::new();
    let unsaid = [(host, "marked as ignored"), (scenarios, "takes long; `cargo xtask test --all` runs it")];
    for (counts, otherwise) in unsaid {
        for Skipped { name, reason } in &counts.skipped {
            lines.push(format!("skipped: {name}: {}", reason.as_deref().unwrap_or(otherwise)));
        }
    }
    lines.push(format!("host tests: {}", host.line()));
    for (kind, counts) in scenarios.by_kind() {
        lines.push(format!("scenarios on {kind}: {}", counts.line()));
    }
    lines.extend(unused.iter().cloned());
    let all = host.plus(scenarios);
    let nothing = all.is_nothing();
    if nothing {
        lines.push(format!("no test and no scenario has {:?} in its name", filter.unwrap_or_default()));
    }
    lines.push(all.line());
    let mut out = std::io::stdout().lock();
    for line in lines {
        // The status says it too, where nobody reads.
        drop(writeln!(out, "{line}"));
    }
    drop(out.flush());
    if nothing {
        ExitCode::from(NOTHING)
    } else if all.failed > 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn cargo_test(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.arg("test").args(arguments).current_dir(paths::workspace()).stdin(Stdio::null());
    command
}

fn scenario_tests() -> Command {
    cargo_test(&["--quiet", "--package", "lamina-tests", "--no-fail-fast", "--test", "scenarios", "--test", "hostile"])
}

/// What the test programs themselves are given.
fn pass_on(command: &mut Command, filter: Option<&str>, options: &[&str]) {
    command.arg("--").args(options).args(filter);
}

/// Whether a scenario has the filter in its name.
fn any_scenario(filter: Option<&str>) -> Result<bool> {
    let mut command = scenario_tests();
    pass_on(&mut command, filter, &["--list"]);
    let output = command.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    anyhow::ensure!(output.status.success(), "the scenarios do not build");
    Ok(String::from_utf8_lossy(&output.stdout).lines().any(|line| line.ends_with(": test")))
}

/// The backends to run on, and a line for each that this host does not offer.
fn backends(on: Option<Name>, probe: &impl Probe) -> Result<(Vec<Name>, Vec<String>)> {
    if let Some(name) = on {
        return Ok((vec![backend::choose(Some(name), probe)?.backend.name()], Vec::new()));
    }
    let (mut names, mut unused) = (Vec::new(), Vec::new());
    for name in Name::TRIED {
        match probe.find(name) {
            Ok(_) => names.push(name),
            Err(reason) => unused.push(format!("no scenarios on {name}: {reason}")),
        }
    }
    unused.push("no scenarios on bochs-svm: only `--on bochs-svm` runs them there".to_owned());
    anyhow::ensure!(!names.is_empty(), "nothing here can run the scenarios: {}", unused.join("; "));
    Ok((names, unused))
}

/// How many scenarios run at once. Bochs and QEMU's emulation take one processor
/// each, and their machines' time is not the host's; on KVM it is.
fn threads(backends: &[Name]) -> usize {
    if backends.iter().all(|backend| matches!(backend, Name::Bochs | Name::BochsSvm | Name::Tcg)) {
        std::thread::available_parallelism().map_or(1, |n| n.get().min(4))
    } else {
        1
    }
}

/// Runs tests and counts; lines that `shown` likes go to standard output as they come.
fn run(mut command: Command, what: &str, shown: &dyn Fn(&str) -> bool) -> Result<Counts> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let mut counts = Counts::default();
    let output = child.stdout.take().context("cargo has no output")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        counts.line_of_output(&line);
        if shown(&line) {
            drop(writeln!(std::io::stdout(), "{line}"));
        }
    }
    let status = child.wait()?;
    if !status.success() && counts.failed == 0 {
        // They did not build, or a test program died: then there is no line that counts.
        drop(writeln!(std::io::stdout(), "{what}: cargo test failed ({status})"));
        counts.failed += 1;
    }
    Ok(counts)
}

/// A line that says nothing but that all is well, of which there are hundreds.
fn is_noise(line: &str) -> bool {
    let passed = line.starts_with("test ") && line.ends_with(" ... ok");
    let summary =
        line.starts_with("running ") || line.starts_with("all doctests ran") || line.starts_with("test result: ok.");
    passed || summary || line.trim().is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_what_passed() {
        for line in ["", "running 12 tests", "test a::b ... ok", "test result: ok. 1 passed; 0 failed; 0 ignored;"] {
            assert!(is_noise(line), "{line}");
        }
        for line in ["test a::b ... FAILED", "test a ... ignored", "test result: FAILED. 0 passed; 1 failed;", "words"]
        {
            assert!(!is_noise(line), "{line}");
        }
    }

    #[test]
    fn machines_whose_time_is_the_hosts_run_alone() {
        assert_eq!(threads(&[Name::Kvm]), 1);
        assert_eq!(threads(&[Name::Kvm, Name::Bochs]), 1);
        assert_eq!(threads(&[Name::Kvm, Name::Tcg]), 1);
        assert!((1..=4).contains(&threads(&[Name::Bochs])));
        assert_eq!(threads(&[Name::Bochs, Name::Tcg]), threads(&[Name::Bochs]));
    }
}
