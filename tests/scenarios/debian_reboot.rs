//! `reboot` in a Linux: it starts again from its own pristine image.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "debian_reboot", needs: Needs::Machine, limit: 1800, long: true, run };

/// Debian's kernel alone, with as few words as possible: printing is most of its boot.
pub const DEBIAN: &str = r#"
    [[vm]]
    name = "debian"
    kernel = "debian:linux-image-cloud-amd64"
    initrd = "builtin:busybox"
    cmdline = "console=ttyS0 quiet cryptomgr.notests"
    memory = "256M"
"#;

fn run(stage: &Stage) -> Result<()> {
    let mut machine = stage.boot(DEBIAN)?;
    machine.expect(r"^\[debian\] \S+ # ")?;
    machine.type_line("attach debian");
    machine.type_line("touch /mark && ls /mark && reboot -f");
    machine.expect(r"^\[debian\] /mark$")?;
    machine.expect(r"^\[lamina\] debian reset$")?;
    machine.expect(r"^\[debian\] \S+ # ")?;
    // A reset detaches, and nothing is left of what was there before.
    machine.type_line("attach debian");
    machine.type_line("ls /mark; echo status $?");
    machine.expect(r"^\[debian\] status 1$")?;
    machine.type_bytes(b"\x01d");
    machine.type_line("quit");
    machine.ends(0)
}
