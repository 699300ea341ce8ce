//! The checkers that take minutes: the harnesses with a larger budget, Miri, loom and Kani, each where it can be had.

use std::process::Command;

use anyhow::Result;

use super::tools::{cargo, finding, output};
use super::{Finding, scan};
use crate::paths::{self, find_program};
use crate::setup::rust::{self, Toolchain};

/// Inputs for each harness; `.cargo/config.toml` has the number for `cargo test`.
const INPUTS: &str = "2048";
/// So many harnesses there must be.
const LEAST: usize = 20;
/// What Miri goes through: package, and which of its tests. Miri takes a hundred times as long as the processor, so
/// what sweeps through large spaces or fills whole machines of memory is left out.
const MIRI: &[(&str, &[&str])] = &[
    ("lamina-arch", &["--lib", "--", "--skip", "every_", "--skip", "rules"]),
    ("lamina-devices", &["--lib", "--", "pic::", "ioapic::", "i8042::", "keyboard::", "pci::", "--skip", "panic"]),
    ("lamina-vmm", &["--lib", "--", "bus::", "event::", "sched::", "config::", "pipe::", "--skip", "random_"]),
];

pub fn harnesses() -> Result<Finding> {
    let (named, astray) = found(&scan::files()?);
    if !astray.is_empty() {
        return Ok(Finding::Bad(format!("a harness that no deep check runs: {}", astray.join(", "))));
    }
    if named < LEAST {
        return Ok(Finding::Bad(format!("there are {named} harnesses, {LEAST} at least")));
    }
    let pure = ["test", "--quiet", "--package", "lamina-arch", "--package", "lamina-devices", "--test", "harness"];
    let machine = ["test", "--quiet", "--package", "lamina-vmm", "--lib", "harness"];
    let host = ["test", "--quiet", "--package", "xtask", "--lib", "config::harness"];
    let mut run = 0;
    for mut command in [cargo(&pure), cargo(&machine), cargo(&host)] {
        command.env("BOLERO_RANDOM_ITERATIONS", INPUTS);
        match output(command)? {
            Ok(words) => run += passed(&words),
            Err(words) => return Ok(Finding::Bad(words)),
        }
    }
    // What is looked at whole is among those that ran.
    if run < named {
        return Ok(Finding::Bad(format!("of {named} harnesses {run} ran")));
    }
    Ok(Finding::Told(format!("{named} harnesses with {INPUTS} inputs each; {} sweeps", run - named)))
}

/// How many harnesses there are, and the files that have some where [`harnesses`] does not look.
fn found(files: &[scan::File]) -> (usize, Vec<String>) {
    let (mut named, mut astray) = (0, Vec::new());
    for file in files.iter().filter(|file| file.path.ends_with(".rs")) {
        let here = scan::code_only(&file.text).matches("check!()").count();
        named += here;
        if here > 0 && !file.path.contains("harness") {
            astray.push(file.path.clone());
        }
    }
    (named, astray)
}

/// The tests that passed, of all programs of tests that `words` tell of.
fn passed(words: &str) -> usize {
    let counts = words
        .lines()
        .filter_map(|line| line.strip_prefix("test result: ok. ")?.split(' ').next()?.parse::<usize>().ok());
    counts.sum()
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

/// Loom goes through the interleavings of what is shared without a lock.
pub fn loom() -> Result<Finding> {
    let unmodelled = unmodelled(&scan::files()?);
    if !unmodelled.is_empty() {
        return Ok(Finding::Bad(format!("accesses are ordered without a model: {}", unmodelled.join(", "))));
    }
    let mut command = cargo(&["test", "--quiet", "--package", "lamina-vmm", "--lib", "loom_tests"]);
    // Everything is built with the flag: not where other builds are, which would be made anew each time.
    command.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", paths::workspace().join("target/loom"));
    Ok(match output(command)?.map(|words| passed(&words)) {
        Ok(0) => Finding::Bad("no model was run".to_owned()),
        Ok(models) => Finding::Told(format!("{models} models, every interleaving")),
        Err(words) => Finding::Bad(words),
    })
}

/// Files of the hypervisor that hand something over by the order of their accesses, and have no model for loom.
fn unmodelled(files: &[scan::File]) -> Vec<String> {
    const ORDERED: [&str; 5] =
        ["Ordering::Acquire", "Ordering::Release", "Ordering::AcqRel", "compare_exchange", "fetch_update"];
    let own = files.iter().filter(|file| file.path.starts_with("hypervisor/") && file.path.ends_with(".rs"));
    let ordered = own.filter(|file| {
        let code = scan::code_only(&file.text);
        ORDERED.iter().any(|word| code.contains(word)) && !code.contains("mod loom_tests")
    });
    ordered.map(|file| file.path.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> scan::File {
        scan::File { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn harnesses_are_counted_where_they_are_run() {
        let files = [
            file("hypervisor/arch/tests/harness.rs", "check!().a(); check!().b(); // check!()"),
            file("hypervisor/vmm/src/other.rs", "bolero::check!().a();"),
            file("xtask/src/config/harness.rs", "check!()"),
            file("docs/a.md", "check!()"),
        ];
        assert_eq!(found(&files), (4, vec!["hypervisor/vmm/src/other.rs".to_owned()]));
    }

    #[test]
    fn what_is_ordered_has_a_model() {
        let files = [
            file("hypervisor/a.rs", "x.load(Ordering::Acquire)"),
            file("hypervisor/b.rs", "x.load(Ordering::Acquire) mod loom_tests {}"),
            file("hypervisor/c.rs", "x.load(Ordering::Relaxed) // Ordering::Acquire"),
        ];
        assert_eq!(unmodelled(&files), ["hypervisor/a.rs"]);
    }

    #[test]
    fn passed_tests_are_summed() {
        assert_eq!(
            passed("running 2 tests\n..\ntest result: ok. 2 passed; 0 failed\n\ntest result: ok. 13 passed;"),
            15
        );
        assert_eq!(passed("test result: FAILED. 2 passed; 1 failed"), 0);
    }
}
