//! A guest that reads where there is no memory ends, with a reason that names the address, and the machine fails.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "outside", needs: Needs::Machine, limit: 300, long: false, run };

fn run(stage: &Stage) -> Result<()> {
    let mut machine = stage.boot(
        r#"
        [[vm]]
        name = "outside"
        kernel = "guest:outside"
        cmdline = "at=0x90000008"
        memory = "16M"
        "#,
    )?;
    machine.expect(r"^\[outside\] about to read 0x90000008$")?;
    machine
        .expect(r"^\[lamina\] outside stopped: read outside its memory at 0x90000008, rip 0x[0-9a-f]+ \(status 0\)$")?;
    machine.never(r"^\[outside\] it held")?;
    machine.ends(1)
}
