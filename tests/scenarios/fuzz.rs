//! 200,000 random privileged and device operations beside a witness: no panic, no stall, no harm. What
//! `cargo xtask fuzz` does, with its seed.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};
use xtask::fuzz;

pub const SCENARIO: Scenario = Scenario { name: "fuzz", needs: Needs::Machine, limit: 1200, long: false, run };
/// Twenty times as many, and another seed.
pub const LONG: Scenario =
    Scenario { name: "fuzz_long", needs: Needs::Machine, limit: 1200, long: true, run: run_long };
/// Refused at once.
pub const USAGE: Scenario = Scenario { name: "fuzz_usage", needs: Needs::Host, limit: 60, long: false, run: usage };

fn run(stage: &Stage) -> Result<()> {
    fuzz::run(1, fuzz::STEPS, Some(stage.backend()?)).map(drop)
}

fn run_long(stage: &Stage) -> Result<()> {
    fuzz::run(2, 20 * fuzz::STEPS, Some(stage.backend()?)).map(drop)
}

fn usage(stage: &Stage) -> Result<()> {
    let directory = tempfile::tempdir()?;
    for wrong in [["--seed", "x"], ["--seed", "-1"], ["--steps", "0"], ["--steps", "many"], ["--on", "vbox"]] {
        let outcome = stage.xtask(&["fuzz", wrong[0], wrong[1]], directory.path())?;
        anyhow::ensure!(outcome.status == Some(2) && outcome.errors.contains(wrong[1]), "{wrong:?}: {outcome:#?}");
    }
    Ok(())
}
