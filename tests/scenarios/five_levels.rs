//! A stock Linux uses five levels of paging where the processor has them and its guests' addresses may be so wide.

use anyhow::Result;
use lamina_tests::{Firmware, Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "five_levels", needs: Needs::Tcg, limit: 600, long: false, run };

fn run(stage: &Stage) -> Result<()> {
    let vm = |model: &str| {
        format!(
            r#"
            [[vm]]
            name = "{model}"
            cpu = "{model}"
            kernel = "debian:linux-image-cloud-amd64"
            initrd = "builtin:busybox"
            cmdline = "console=ttyS0 quiet cryptomgr.notests"
            memory = "256M"
            "#
        )
    };
    for (model, levels) in [("host", "57"), ("skylake", "48")] {
        let mut machine = stage.boot_with_screen(&vm(model), Firmware::Bios, Some(",+la57"))?;
        machine.expect(&format!(r"^\[{model}\] .*busybox shell"))?;
        machine.type_line(&format!("attach {model}"));
        machine
            .type_line("echo levels $(grep -c la57 /proc/cpuinfo) $(sed -n 's/^address sizes.*, //p' /proc/cpuinfo)");
        machine.expect(&format!(r"^\[{model}\] levels {} {levels} bits virtual", u8::from(levels == "57")))?;
        machine.type_line("poweroff -f");
        machine.expect(&format!(r"^\[lamina\] {model} stopped: powered off"))?;
        machine.ends(0)?;
    }
    Ok(())
}
