//! A triple fault ends the guest, with a reason that says where, and the machine fails.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "triple", needs: Needs::Machine, limit: 300, long: false, run };

fn run(stage: &Stage) -> Result<()> {
    let mut machine = stage.boot(
        r#"
        [[vm]]
        name = "triple"
        kernel = "guest:triple"
        memory = "16M"
        "#,
    )?;
    machine.expect(r"^\[triple\] about to triple-fault$")?;
    machine.expect(r"^\[lamina\] triple stopped: triple fault at rip 0x[0-9a-f]+ \(status 0\)$")?;
    machine.ends(1)
}
