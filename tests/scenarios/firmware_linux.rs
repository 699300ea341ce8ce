//! The way of a PC: SeaBIOS finds a CD, GRUB on it loads Debian's kernel, which comes to
//! its shell with the memory map and the tables that the firmware gives it, finds PCI's functions, takes interrupts where
//! the tables say, and powers the VM off.

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
    machine.type_line("attach pc");
    machine.type_line(
        "dmesg | grep -E 'e820|ACPI: |MMCONFIG'; cat /proc/bus/pci/devices /proc/interrupts; echo all $((40 + 2)) told",
    );
    machine.expect_all(&[
        r"^\[pc\] .*BIOS-e820: \[mem 0x0{16}-0x000000000009fbff\] usable",
        r"^\[pc\] .*BIOS-e820: \[mem 0x0{11}f0000-0x0{11}fffff\] reserved",
        r"^\[pc\] .*BIOS-e820: \[mem 0x0{10}100000-0x0{8}0ff\w{5}\] usable",
        r"^\[pc\] .*BIOS-e820: \[mem 0x0{8}e0000000-0x0{8}efffffff\] reserved",
        r"^\[pc\] .*ACPI: RSDP 0x0{11}F\w{4} ",
        r"^\[pc\] .*ACPI: FACP 0x\w{16} \w+ \(v06 LAMINA LAMINAPC",
        r"^\[pc\] .*ACPI: DSDT 0x\w{16} \w+ \(v02 LAMINA LAMINAPC",
        r"^\[pc\] .*ACPI: APIC 0x\w{16} ",
        r"^\[pc\] .*PCI: MMCONFIG for domain 0000 \[bus 00-ff\] at \[mem 0xe0000000-0xefffffff\]",
        r"^\[pc\] .*PCI: MMCONFIG at .* reserved",
        r"^\[pc\] 0000\t80861237\t",
        r"^\[pc\] 0008\t80867000\t",
        r"^\[pc\] 0009\t80867010\t",
        r"^\[pc\] 000b\t80867113\t",
        r"^\[pc\] +4: +\d+ .*IO-APIC +4-edge +ttyS0$",
        r"^\[pc\] +9: +\d+ .*IO-APIC +9-fasteoi +acpi$",
        r"^\[pc\] LOC: +[1-9]\d* ",
        r"^\[pc\] ERR: +0$",
        r"^\[pc\] MIS: +0$",
        r"^\[pc\] all 42 told$",
    ])?;
    machine.never(r"(?i)ACPI.*(error|warning|bug)|nobody cared|not using MMCONFIG|SPU: +[1-9]")?;
    machine.type_line("poweroff");
    machine.expect(r"^\[lamina\] pc stopped: powered off \(status 0\)$")?;
    machine.ends(0)
}
