//! Every clock of the PC keeps the time of the time-stamp counter, and none runs backwards, while neighbours that never
//! halt keep the VM off the processor two thirds of the time.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario =
    Scenario { name: "clocks", needs: Needs::Machine, limit: 600, long: false, run: |stage| run(stage, 10) };

/// A minute of the guest's time.
pub const LONG: Scenario =
    Scenario { name: "clocks_long", needs: Needs::Machine, limit: 1800, long: true, run: |stage| run(stage, 60) };

fn run(stage: &Stage, seconds: u32) -> Result<()> {
    let hog = |name| format!("[[vm]]\nname = \"{name}\"\nkernel = \"guest:hog\"\nmemory = \"16M\"\n");
    let clocks = format!(
        "[[vm]]\nname = \"clocks\"\nkernel = \"guest:clocks\"\ncmdline = \"seconds={seconds}\"\nmemory = \"16M\"\nhpet = true\n"
    );
    let mut machine = stage.boot(&[clocks, hog("one"), hog("two")].concat())?;
    machine.expect(r"^\[clocks\] 0 clocks are off, the time-stamp counter ran backwards 0 times$")?;
    machine.expect(r"^\[lamina\] clocks stopped: .+ \(status 0\)$")?;
    // They have had the processor: more of it than the VM that halts.
    machine.type_line("quit");
    machine.ends(0)
}
