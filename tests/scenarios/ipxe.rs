//! iPXE, which starts in real mode with a BIOS only: by GRUB's `linux16` under SeaBIOS. Its banner stands on the VGA text
//! screen, and its prompt takes what is typed on the keyboard.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "ipxe", needs: Needs::Machine, limit: 1200, long: false, run };

fn run(stage: &Stage) -> Result<()> {
    let mut machine = stage.boot(
        r#"
        [[vm]]
        name = "pc"
        firmware = "debian:seabios"
        vga = true
        memory = "64M"
        fw_cfg = { "etc/boot-menu-wait" = 10 }
        cdrom = { grub = "linux16 /boot/ipxe.lkrn shell\nboot", files = { "boot/ipxe.lkrn" = "debian:ipxe/ipxe.lkrn" } }
        "#,
    )?;
    machine.expect(r"^\[pc\] .*iPXE initialising devices")?;
    // The same text goes to the serial port, in pieces.
    machine.expect(r"^\[pc\] .*Features:")?;
    machine.expect(r"^\[pc\] .*iPXE> ")?;
    // Longer than what a BIOS keeps of keys.
    machine.type_line("type pc echo a line of many more keys than the fifteen that a BIOS keeps<enter>");
    // The echo of the line, and what it says.
    machine.expect(r"^\[pc\] .*a BIOS keeps?")?;
    machine.expect(r"^\[pc\] .*iPXE>")?;
    machine.type_line("screen pc");
    machine.expect(r"^\[lamina\] screen of pc, \d+ lines:$")?;
    machine.expect(r"^\[lamina\] \| iPXE \S+ .*-- Open Source Network Boot Firmware -- http")?;
    machine.expect(r"^\[lamina\] \| iPXE> echo a line of many more keys than the fifteen that a BIOS keeps$")?;
    machine.expect(r"^\[lamina\] \| a line of many more keys than the fifteen that a BIOS keeps$")?;
    machine.type_line("quit");
    machine.ends(0)
}
