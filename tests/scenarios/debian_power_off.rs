//! `poweroff` in a Linux: ACPI's soft-off ends that VM as intended, and with it the machine.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario =
    Scenario { name: "debian_power_off", needs: Needs::Machine, limit: 900, long: false, run };

fn run(stage: &Stage) -> Result<()> {
    let mut machine = stage.boot(super::debian_reboot::DEBIAN)?;
    machine.expect(r"^\[debian\] \S+ # ")?;
    machine.type_line("attach debian");
    machine.type_line("poweroff -f");
    machine.expect(r"^\[lamina\] debian stopped: powered off \(status 0\)$")?;
    machine.ends(0)
}
