//! A guest that ends with a status other than 0 is told as such, and the machine fails.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "hello_status", needs: Needs::Machine, limit: 300, long: false, run };

fn run(stage: &Stage) -> Result<()> {
    let mut machine = stage.boot(
        r#"
        [[vm]]
        name = "hello"
        kernel = "guest:hello"
        cmdline = "status=7"
        memory = "16M"
        "#,
    )?;
    machine.expect(r"^\[lamina\] hello stopped: .+ \(status 7\)$")?;
    machine.ends(1)
}
