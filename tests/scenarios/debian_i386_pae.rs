//! Debian's kernel of 32 bits: the 32-bit boot protocol, paging with PAE, and programs of 32 bits.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario =
    Scenario { name: "debian_i386_pae", needs: Needs::Machine, limit: 1800, long: true, run };

fn run(stage: &Stage) -> Result<()> {
    boots_to_a_shell(stage, "debian:linux-image-686-pae:i386", "i686")
}

/// A kernel as it comes from its publisher boots to a shell, says what it is, keeps time by the TSC, and powers off.
pub fn boots_to_a_shell(stage: &Stage, kernel: &str, machine_name: &str) -> Result<()> {
    let mut machine = stage.boot(&format!(
        r#"
        [[vm]]
        name = "debian"
        kernel = "{kernel}"
        initrd = "builtin:busybox"
        cmdline = "console=ttyS0"
        memory = "512M"
        "#
    ))?;
    machine.expect(r"^\[debian\] .*Run /init as init process")?;
    machine.expect(r"^\[debian\] \S+ # ")?;
    // What a kernel says where the clocks, the interrupts or the tables of the PC are not as it knows them.
    machine
        .never(r"(?i)unstable|lost (interrupt|timer)|nobody cared|ACPI.*(BIOS )?Error|MTRR.*(wrong|inconsistent)")?;
    machine.type_line("attach debian");
    machine.type_line("uname -m");
    machine.expect(&format!(r"^\[debian\] {machine_name}$"))?;
    machine.type_line("cat /sys/devices/system/clocksource/clocksource0/current_clocksource");
    machine.expect(r"^\[debian\] tsc$")?;
    machine.type_line("poweroff -f");
    machine.expect(r"^\[lamina\] debian stopped: powered off \(status 0\)$")?;
    machine.ends(0)
}
