//! The guest program `hog` alone: it has interrupts off and never gives the processor back, and the console works all
//! the same.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "hog", needs: Needs::Machine, limit: 300, long: false, run };

fn run(stage: &Stage) -> Result<()> {
    let mut machine = stage.boot(
        r#"
        [[vm]]
        name = "hog"
        kernel = "guest:hog"
        memory = "16M"
        "#,
    )?;
    machine.expect(r"^\[hog\] I keep the processor from here on$")?;
    machine.type_line("vms");
    machine.expect(r"^\[lamina\] hog +running ")?;
    machine.type_line("stop hog");
    machine.expect(r"^\[lamina\] hog stopped: .*console.* \(status 0\)$")?;
    machine.ends(0)
}
