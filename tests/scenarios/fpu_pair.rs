//! Two guests hold patterns in all of their x87 and vector registers, side by side: neither sees the other's.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "fpu_pair", needs: Needs::Machine, limit: 300, long: false, run };

fn run(stage: &Stage) -> Result<()> {
    // A round is some tens of milliseconds: longer than a time slice, so that most are interrupted.
    let mut machine = stage.boot(
        r#"
        [[vm]]
        name = "left"
        kernel = "guest:fpu"
        cmdline = "seed=1 rounds=20"
        memory = "16M"
        [[vm]]
        name = "right"
        kernel = "guest:fpu"
        cmdline = "seed=2 rounds=20"
        memory = "16M"
        "#,
    )?;
    // Both have begun before one has ended, or they were not side by side.
    machine.expect_all(&[r"^\[left\] holding patterns of seed 1 ", r"^\[right\] holding patterns of seed 2 "])?;
    machine.never("undisturbed")?;
    machine.expect_all(&[r"^\[left\] 20 rounds undisturbed$", r"^\[right\] 20 rounds undisturbed$"])?;
    machine.ends(0)
}
