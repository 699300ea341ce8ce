//! The guest program `ticker` alone: interrupts of its own timer, and HLT in between.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "ticker", needs: Needs::Machine, limit: 300, long: false, run };

fn run(stage: &Stage) -> Result<()> {
    let mut machine = stage.boot(
        r#"
        [[vm]]
        name = "ticker"
        kernel = "guest:ticker"
        cmdline = "count=3"
        memory = "16M"
        "#,
    )?;
    machine.expect(r"^\[ticker\] ticking at 100 Hz$")?;
    for ticks in [100, 200, 300] {
        machine.expect(&format!(r"^\[ticker\] {ticks} ticks$"))?;
    }
    machine.expect(r"^\[lamina\] ticker stopped: .+ \(status 0\)$")?;
    machine.ends(0)
}
