//! memtest86+ for 64-bit processors tests all memory of a VM for a minute of the VM's time and finds no error; its
//! screen says so.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "memtest_x64", needs: Needs::Machine, limit: 1800, long: true, run };

fn run(stage: &Stage) -> Result<()> {
    tests_for_a_minute(stage, "memtest86+x64.bin")
}

/// Its screen stands in the VGA's text buffer, and comes out on the serial port too. It runs with interrupts off from
/// beginning to end.
pub fn tests_for_a_minute(stage: &Stage, image: &str) -> Result<()> {
    let mut machine = stage.boot(&format!(
        r#"
        [[vm]]
        name = "memtest"
        kernel = "debian:memtest86+/{image}"
        cmdline = "console=ttyS0,115200"
        memory = "64M"
        vga = true
        "#
    ))?;
    machine.expect(r"^\[memtest\] .*Memtest86\+ v")?;
    machine.expect(r"#3  \[Moving inversions")?;
    machine.expect(r"Time:  0:01:\d\d ")?;
    machine.expect(r"Errors: 0 ")?;
    machine.type_line("screen memtest");
    machine.expect(r"^\[lamina\] screen of memtest, \d+ lines:$")?;
    machine.expect(r"^\[lamina\] \| +Memtest86\+ v")?;
    machine.expect(r"^\[lamina\] \| .*Time:  0:0[1-9]:\d\d ")?;
    machine.expect(r"^\[lamina\] \| .*Errors: 0$")?;
    machine.never(r"Errors: +[1-9]")?;
    machine.type_line("stop memtest");
    machine.expect(r"^\[lamina\] memtest stopped: ")?;
    machine.ends(0)
}
