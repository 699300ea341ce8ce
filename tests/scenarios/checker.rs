//! The guest program `checker`: what a guest may rely on is there, and what CPUID does not report does not work.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "checker", needs: Needs::Machine, limit: 600, long: false, run };

fn run(stage: &Stage) -> Result<()> {
    let mut machine = stage.boot(
        r#"
        [[vm]]
        name = "checker"
        kernel = "guest:checker"
        memory = "64M"
        "#,
    )?;
    let checks = machine.expect_number(r"^\[checker\] (\d+) checks, 0 failed$")?;
    let lines = machine.lines(r"^\[checker\] ok ")?.len() as u64;
    machine.check(checks > 0 && lines == checks, || format!("{checks} checks, but {lines} lines of checks"))?;
    machine.expect(r"^\[lamina\] checker stopped: .+ \(status 0\)$")?;
    machine.ends(0)
}
