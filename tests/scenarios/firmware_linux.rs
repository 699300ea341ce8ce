//! The way of a PC: SeaBIOS finds a CD, GRUB on it loads Debian's kernel, which comes to
//! its shell with the memory map and the tables that the firmware gives it.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario =
    Scenario { name: "firmware_linux", needs: Needs::Machine, limit: 1200, long: false, run };

fn run(stage: &Stage) -> Result<()> {
    let mut machine = stage.boot(
        r#"
        [[vm]]
        name = "pc"
        firmware = "debian:seabios"
        memory = "256M"
        fw_cfg = { "etc/boot-menu-wait" = 10 }
        [vm.cdrom]
        grub = """
        linux /boot/linux console=ttyS0 quiet cryptomgr.notests
        initrd /boot/initrd
        boot
        """
        files = { "boot/linux" = "debian:linux-image-cloud-amd64", "boot/initrd" = "builtin:busybox" }
        "#,
    )?;
    machine.expect(r"^\[pc\] .*SeaBIOS \(version ")?;
    machine.expect(r"^\[pc\] .*Welcome to GRUB")?;
    machine.expect(r"^\[pc\] .*This is Linux 6\.")?;
    machine.expect(r"^\[pc\] .*# ")?;
    machine.type_line("quit");
    machine.ends(0)
}
