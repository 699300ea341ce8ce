//! The checks that others' tools make: rustfmt, clippy, rustdoc and cargo-deny.

use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::Finding;
use super::layers::{self, Package};
use crate::artifacts::TARGET;
use crate::paths;
use crate::setup::{self, rust};

/// Cases of each property test in a deep check; proptest's own number is 256.
const CASES: &str = "1280";

/// Gets the toolchain with rustfmt and clippy.
pub fn set_up() -> Result<()> {
    rust::Toolchain::of(paths::workspace())?.ensure("checking needs rustfmt and clippy")
}

pub(super) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(paths::workspace());
    command
}

/// Runs it; where it fails, everything that it said is what is wrong.
pub(super) fn finding(command: Command) -> Result<Finding> {
    Ok(output(command)?.map_or_else(Finding::Bad, |_| Finding::Good))
}

/// Runs it, and returns everything that it said; as an error where it fails.
pub(super) fn output(mut command: Command) -> Result<Result<String, String>> {
    let output = command.stdin(Stdio::null()).output().context("cannot start cargo")?;
    let words = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    Ok(if output.status.success() { Ok(words) } else { Err(words) })
}

/// The first that is not good.
pub(super) fn all(commands: impl IntoIterator<Item = Command>) -> Result<Finding> {
    for command in commands {
        match finding(command)? {
            Finding::Good => {}
            bad => return Ok(bad),
        }
    }
    Ok(Finding::Good)
}

pub fn format() -> Result<Finding> {
    // The image builder is a workspace of its own, with a compiler that may have no rustfmt: ours does.
    let boot = cargo(&["fmt", "--manifest-path", "boot/Cargo.toml", "--", "--check"]);
    all([cargo(&["fmt", "--all", "--", "--check"]), boot])
}

/// Names the packages for which `wanted` holds.
fn of(command: &mut Command, wanted: impl Fn(&Package) -> bool) -> Result<()> {
    for package in layers::packages()?.iter().filter(|package| wanted(package)) {
        command.args(["--package", &package.name]);
    }
    Ok(())
}

pub fn clippy_host() -> Result<Finding> {
    let mut command = cargo(&["clippy", "--quiet", "--all-targets"]);
    of(&mut command, |package| !package.is_bare())?;
    command.args(["--", "-Dwarnings"]);
    finding(command)
}

pub fn clippy_bare() -> Result<Finding> {
    let mut command = cargo(&["clippy", "--quiet", "--target", TARGET]);
    of(&mut command, Package::is_bare)?;
    command.args(["--", "-Dwarnings"]);
    finding(command)
}

pub fn documentation() -> Result<Finding> {
    let mut host = cargo(&["doc", "--quiet", "--no-deps", "--lib"]);
    of(&mut host, |package| !package.is_bare())?;
    let mut bare = cargo(&["doc", "--quiet", "--no-deps", "--target", TARGET]);
    of(&mut bare, Package::is_bare)?;
    all([host, bare].map(|mut command| {
        command.env("RUSTDOCFLAGS", "-Dwarnings");
        command
    }))
}

/// cargo-deny for the workspace, and for the image builder's.
fn deny(what: &[&str]) -> Result<[Command; 2]> {
    let program = setup::deny::program()?;
    Ok(["Cargo.toml", "boot/Cargo.toml"].map(|manifest| {
        let mut command = Command::new(&program);
        command
            .args(["--log-level", "error", "--manifest-path", manifest, "--config", "deny.toml", "check"])
            .args(what);
        command.current_dir(paths::workspace());
        command
    }))
}

pub fn dependencies() -> Result<Finding> {
    all(deny(&["bans", "licenses", "sources"])?)
}

pub fn advisories() -> Result<Finding> {
    match all(deny(&["advisories"])?)? {
        Finding::Bad(words) if words.contains("failed to fetch advisory database") => {
            Ok(Finding::Skipped("the database of advisories cannot be reached from here".to_owned()))
        }
        finding => Ok(finding),
    }
}

pub fn properties() -> Result<Finding> {
    // The hypervisor's; `harnesses` has had more inputs than they get here.
    let hypervisor = ["--package", "lamina-arch", "--package", "lamina-vmm", "--package", "lamina-devices"];
    let mut command = cargo(&["test", "--quiet"]);
    command
        .args(hypervisor)
        .args(["--lib", "--bins", "--tests", "--", "--skip", "harness"])
        .env("PROPTEST_CASES", CASES);
    finding(command)
}
