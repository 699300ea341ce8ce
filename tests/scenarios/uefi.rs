//! The image for UEFI boots on UEFI's firmware: a guest runs, and what the serial port says is on the screen too.

use anyhow::Result;
use lamina_tests::{Firmware, Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "uefi", needs: Needs::Qemu, limit: 600, long: false, run };

fn run(stage: &Stage) -> Result<()> {
    let mut machine = stage.boot_with_screen(
        r#"
        [[vm]]
        name = "first"
        kernel = "guest:hello"
        memory = "16M"
        "#,
        Firmware::Uefi,
        None,
    )?;
    machine.expect(r"^\[first\] Hello from a guest with 16 MiB of memory$")?;
    machine.expect(r"^\[lamina\] first stopped: powered off \(status 0\)$")?;
    machine.expect(r"^\[lamina\] exit 0$")?;
    machine.expect_on_screen(r"^\[first\] Hello from a guest with 16 MiB of memory$")?;
    machine.expect_on_screen(r"^\[lamina\] exit 0$")
}
