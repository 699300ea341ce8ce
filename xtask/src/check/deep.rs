//! The checkers that take minutes: the harnesses with a larger budget, Miri, loom and Kani, each where it can be had.

use std::time::{SystemTime, UNIX_EPOCH};

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::Finding;
use super::tools::{all, cargo, finding};
use crate::paths::{self, find_program};
use crate::setup::rust::{self, Toolchain};

/// Inputs for each harness; `.cargo/config.toml` has the number for `cargo test`.
const INPUTS: &str = "2048";
/// The seed of every `cargo test`, as `.cargo/config.toml` has it: a deep check looks elsewhere.
const DAILY_SEED: &str = "1";
/// What Miri goes through: package, and which of its tests. Miri takes a hundred times as long as the processor, so
/// what sweeps through large spaces or fills whole machines of memory is left out.
const MIRI: &[(&str, &[&str])] = &[
    ("lamina-arch", &["--lib", "--", "--skip", "every_", "--skip", "rules"]),
    ("lamina-devices", &["--lib", "--", "pic::", "ioapic::", "i8042::", "keyboard::", "pci::", "--skip", "panic"]),
    ("lamina-vmm", &["--lib", "--", "bus::", "event::", "sched::", "config::", "--skip", "random_"]),
];

pub fn harnesses() -> Result<Finding> {
    let pure = ["test", "--quiet", "--package", "lamina-arch", "--package", "lamina-devices", "--test", "harness"];
    let machine = ["test", "--quiet", "--package", "lamina-vmm", "--lib", "harness"];
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let seed = std::env::var("BOLERO_RANDOM_SEED").ok().filter(|seed| seed != DAILY_SEED);
    let seed = seed.unwrap_or_else(|| now.to_string());
    all([cargo(&pure), cargo(&machine)].map(|mut command| {
        command.env("BOLERO_RANDOM_ITERATIONS", INPUTS).env("BOLERO_RANDOM_SEED", &seed);
        command
    }))
}

pub fn miri() -> Result<Finding> {
    // The only nightly that is pinned is the image builder's.
    let mut toolchain = Toolchain::of(&paths::workspace().join("boot"))?;
    toolchain.components = vec!["miri".to_owned(), "rust-src".to_owned()];
    toolchain.targets.clear();
    if let Err(error) = toolchain.ensure("Miri is a part of the nightly compiler") {
        return Ok(Finding::Skipped(format!("{error:#}")));
    }
    for (package, tests) in MIRI {
        let found = finding(under_miri(&toolchain.channel, package, tests))?;
        if found != Finding::Good {
            return Ok(found);
        }
    }
    Ok(Finding::Good)
}

fn under_miri(channel: &str, package: &str, tests: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    rust::without_toolchain(&mut command)
        .args(["miri", "test", "--quiet", "--package", package])
        .args(tests)
        .env("RUSTUP_TOOLCHAIN", channel)
        // Files of failed cases are read, and nothing is written.
        .env("MIRIFLAGS", "-Zmiri-disable-isolation")
        .env("PROPTEST_CASES", "2")
        .env("CARGO_TARGET_DIR", paths::workspace().join("target/miri"))
        .current_dir(paths::workspace());
    command
}

/// Kani comes from no package registry: nothing may depend on it.
pub fn kani() -> Result<Finding> {
    if find_program("cargo-kani").is_none() {
        return Ok(Finding::Skipped("there is no cargo-kani in PATH".to_owned()));
    }
    let prove = ["kani", "--package", "lamina-arch", "--tests", "--harness", "addresses_align_down"];
    finding(cargo(&prove))
}

/// Loom explores the interleavings of what processors share.
pub fn loom() -> Result<Finding> {
    let sources = paths::workspace().join("hypervisor");
    let own = ["compare_exchange", "fetch_update"];
    let shared = atomics(&sources, &own)?;
    if shared.is_empty() {
        return Ok(Finding::Skipped("no lock or ring of our own is shared by processors yet".to_owned()));
    }
    Ok(Finding::Skipped(format!("there is no model yet of what is shared in {}", shared.join(", "))))
}

/// Files under `directory` that use one of `words`: a lock or a ring of their own.
fn atomics(directory: &Path, words: &[&str]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(atomics(&path, words)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path)?;
            if words.iter().any(|word| text.contains(word)) {
                found.push(path.strip_prefix(paths::workspace()).unwrap_or(&path).display().to_string());
            }
        }
    }
    found.sort();
    Ok(found)
}
