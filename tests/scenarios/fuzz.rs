//! Random privileged and device operations beside a witness, so many that there are 200,000 exits: no panic, no stall, no
//! harm. What `cargo xtask fuzz` does, with its seed.

use anyhow::{Result, ensure};
use lamina_tests::{Needs, Scenario, Stage};
use xtask::fuzz;

pub const SCENARIO: Scenario = Scenario { name: "fuzz", needs: Needs::Machine, limit: 1200, long: false, run };
/// Fifty times as many exits, of another seed: half an hour on Bochs.
pub const LONG: Scenario =
    Scenario { name: "fuzz_long", needs: Needs::Machine, limit: 7200, long: true, run: run_long };
/// Refused at once.
pub const USAGE: Scenario = Scenario { name: "fuzz_usage", needs: Needs::Host, limit: 60, long: false, run: usage };

fn run(stage: &Stage) -> Result<()> {
    exits(stage, 1, fuzz::STEPS, 200_000)
}

fn run_long(stage: &Stage) -> Result<()> {
    exits(stage, 2, 45 * fuzz::STEPS, 10_000_000)
}

/// A run that is to come to so many exits.
fn exits(stage: &Stage, seed: u64, steps: u64, least: u64) -> Result<()> {
    let outcome = fuzz::run(seed, steps, Some(stage.backend()?))?;
    println!("{outcome}");
    ensure!(outcome.exits >= least, "there were {} exits, not {least}", outcome.exits);
    Ok(())
}

fn usage(stage: &Stage) -> Result<()> {
    let directory = tempfile::tempdir()?;
    for wrong in [["--seed", "x"], ["--seed", "-1"], ["--steps", "0"], ["--steps", "many"], ["--on", "vbox"]] {
        let outcome = stage.xtask(&["fuzz", wrong[0], wrong[1]], directory.path())?;
        ensure!(outcome.status == Some(2) && outcome.errors.contains(wrong[1]), "{wrong:?}: {outcome:#?}");
    }
    Ok(())
}
