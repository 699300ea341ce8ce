//! SeaBIOS as a VM's firmware: from the reset vector through its self-test to its boot menu, on the serial port, and
//! from there to what was chosen. A reset begins all of it again.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "seabios", needs: Needs::Machine, limit: 600, long: false, run };

fn run(stage: &Stage) -> Result<()> {
    // A day for the menu's key: on an emulator, time in which nothing happens is over at once.
    let mut machine = stage.boot(
        r#"
        [[vm]]
        name = "bios"
        firmware = "debian:seabios"
        cdrom = { grub = "reboot" }
        memory = "64M"
        fw_cfg = { "etc/boot-menu-wait" = 86400000 }
        "#,
    )?;
    for _ in 0..2 {
        machine.expect(r"^\[bios\] .*SeaBIOS \(version ")?;
        machine.expect(r"^\[bios\] .*Press ESC for boot menu")?;
        machine.type_line("attach bios");
        machine.type_bytes(b"\x1b");
        machine.expect(r"^\[bios\] .*Select boot device:")?;
        machine.expect(r"^\[bios\] .*1\. DVD/CD \[ata1-0: LAMINA CD-ROM")?;
        machine.type_bytes(b"1");
        machine.expect(r"^\[bios\] .*Booting from DVD/CD")?;
        machine.expect(r"^\[bios\] .*Welcome to GRUB")?;
        // What the CD's menu says to do.
        machine.expect(r"^\[lamina\] bios reset$")?;
    }
    machine.type_line("quit");
    machine.ends(0)
}
