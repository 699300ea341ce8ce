//! The guest program `greeter` alone: console, yield, clock and exit by hypercalls, and the local APIC's timer.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "greeter", needs: Needs::Machine, limit: 300, long: false, run };

fn run(stage: &Stage) -> Result<()> {
    let mut machine = stage.boot(
        r#"
        [[vm]]
        name = "greeter"
        kernel = "guest:greeter"
        cmdline = "count=3 every=500"
        memory = "16M"
        "#,
    )?;
    for greeting in 1..=3 {
        let pattern = format!(r"^\[greeter\] greeting {greeting} to Lamina, (\d+) ms after my start$");
        let milliseconds = machine.expect_number(&pattern)?;
        let due = 500 * (greeting - 1);
        // It is alone, so it is late by the moment that its first steps took, no more.
        machine.check((due..due + 100).contains(&milliseconds), || {
            format!("greeting {greeting} was due {due} ms after the start")
        })?;
    }
    machine.expect(r"^\[lamina\] greeter stopped: exited \(status 0\)$")?;
    machine.ends(0)
}
