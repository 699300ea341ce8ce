//! GRUB on a CD loads a Multiboot image under SeaBIOS, beside a Linux and a guest program that Lamina loads itself: three
//! ways to start, from one file.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario =
    Scenario { name: "grub_multiboot", needs: Needs::Machine, limit: 1200, long: false, run };

fn run(stage: &Stage) -> Result<()> {
    let mut machine = stage.boot(
        r#"
        [[vm]]
        name = "pc"
        firmware = "debian:seabios"
        memory = "64M"
        vga = true
        hpet = true
        fw_cfg = { "etc/boot-menu-wait" = 10 }
        [vm.cdrom]
        grub = """
        multiboot /boot/image words of GRUB
        module /boot/module a module of GRUB
        boot
        """
        files = { "boot/image" = "guest:multiboot1", "boot/module" = "LICENSE-MIT" }
        [[vm]]
        name = "ticker"
        kernel = "guest:ticker"
        cmdline = "count=2"
        memory = "16M"
        [[vm]]
        name = "debian"
        kernel = "debian:linux-image-cloud-amd64"
        initrd = "builtin:busybox"
        cmdline = "console=ttyS0 quiet cryptomgr.notests"
        memory = "256M"
        "#,
    )?;
    machine.expect_all(&[
        r"^\[pc\] .*Welcome to GRUB",
        r"^\[pc\] .*magic 0x2badb002, ",
        r"^\[pc\] .*loader: GRUB 2\.",
        r"^\[pc\] .*command line: .*words of GRUB",
        r#"^\[pc\] .*module 0: "a module of GRUB": "MIT License"#,
        r"^\[pc\] .*memory 0x0 0x9fc00 1",
        r"^\[lamina\] pc stopped: .* \(status 0\)$",
        r"^\[ticker\] 200 ticks$",
        r"^\[lamina\] ticker stopped: .* \(status 0\)$",
        r"^\[debian\] .*This is Linux 6\.",
    ])?;
    machine.never("FAILED")?;
    machine.type_line("quit");
    machine.ends(0)
}
