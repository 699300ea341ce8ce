//! The guest program `hello` alone: its line comes out, and with its end the machine's.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "hello", needs: Needs::Machine, limit: 300, long: false, run };

fn run(stage: &Stage) -> Result<()> {
    let mut machine = stage.boot(
        r#"
        [[vm]]
        name = "first"
        kernel = "guest:hello"
        memory = "16M"
        "#,
    )?;
    machine.expect(r"^\[first\] Hello from a guest with 16 MiB of memory$")?;
    machine.expect(r"^\[lamina\] first stopped: .+ \(status 0\)$")?;
    machine.expect(r"^\[lamina\] all virtual machines have stopped$")?;
    machine.ends(0)
}
