//! Memory that is backed on first touch: VMs that were promised more than the machine has, each with what it touches;
//! stock Linux among them; and one that touches more than is left, which alone is stopped.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "lazy", needs: Needs::Machine, limit: 600, long: false, run };

fn run(stage: &Stage) -> Result<()> {
    let mut machine = stage.boot_in(
        512 << 20,
        r#"
        [[vm]]
        name = "first"
        kernel = "guest:toucher"
        cmdline = "touch=24"
        memory = "1G"
        backing = "lazy"

        [[vm]]
        name = "second"
        kernel = "guest:toucher"
        cmdline = "touch=24"
        memory = "3G"
        backing = "lazy"

        [[vm]]
        name = "greedy"
        kernel = "guest:toucher"
        cmdline = "touch=2048"
        memory = "3G"
        backing = "lazy"

        [[vm]]
        name = "debian"
        kernel = "debian:linux-image-cloud-amd64"
        initrd = "builtin:busybox"
        cmdline = "console=ttyS0 quiet"
        memory = "1G"
        backing = "lazy"
        "#,
    )?;
    machine.expect_all(&[
        r"^\[first\] touched 24 MiB$",
        r"^\[second\] touched 24 MiB$",
        r"^\[lamina\] first stopped: powered off \(status 0\)$",
        r"^\[lamina\] second stopped: powered off \(status 0\)$",
        r"^\[lamina\] greedy stopped: the machine has no memory left for what it touched first \(status 0\)$",
    ])?;
    // What it gave back is there for the others.
    machine.expect(r"^\[debian\] .*busybox shell")?;
    machine.type_line("vms");
    machine.expect(r"^\[lamina\] debian +(running|waiting) +1024 MiB +\d+ MiB ")?;
    machine.type_line("quit");
    machine.ends(0)
}
