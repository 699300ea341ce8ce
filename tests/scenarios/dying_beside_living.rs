//! Guests that die beside one that lives: each stops with its own reason, and the living one counts on.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario =
    Scenario { name: "dying_beside_living", needs: Needs::Machine, limit: 300, long: false, run };

fn run(stage: &Stage) -> Result<()> {
    let mut machine = stage.boot(
        r#"
        [[vm]]
        name = "triple"
        kernel = "guest:triple"
        memory = "16M"
        [[vm]]
        name = "living"
        kernel = "guest:ticker"
        cmdline = "count=5"
        memory = "16M"
        [[vm]]
        name = "outside"
        kernel = "guest:outside"
        memory = "16M"
        "#,
    )?;
    machine.expect_all(&[
        r"^\[lamina\] triple stopped: triple fault ",
        r"^\[lamina\] outside stopped: read outside its memory at 0x80000000",
        r"^\[living\] 100 ticks$",
    ])?;
    machine.type_line("vms");
    machine.expect_all(&[r"^\[lamina\] triple +stopped ", r"^\[lamina\] outside +stopped "])?;
    for ticks in [200, 300, 400, 500] {
        machine.expect(&format!(r"^\[living\] {ticks} ticks$"))?;
    }
    machine.expect(r"^\[lamina\] living stopped: .+ \(status 0\)$")?;
    machine.ends(1)
}
