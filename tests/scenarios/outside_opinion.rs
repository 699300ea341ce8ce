//! Somebody looks on from outside of the machine. What guests do to memory, beside each other and one of them hostile,
//! stays in what the hypervisor has given them; and where the hypervisor's own tables give a guest more, that is seen at
//! the guest's first access. Long, because the Bochs that looks on is one more to build.

use anyhow::Result;
use lamina_tests::{Needs, Running, Scenario, Stage};

pub const SCENARIO: Scenario =
    Scenario { name: "outside_opinion", needs: Needs::Bochs, limit: 900, long: true, run: sound };
pub const CONTAINED: Scenario = Scenario { name: "outside_opinion_contained", run: contained, ..SCENARIO };
pub const PLANTED: Scenario = Scenario { name: "outside_opinion_planted", run: planted, ..SCENARIO };

/// What Linux alone does until its shell is a multiple of these.
const DATA_LEAST: u64 = 100_000_000;
const FETCHES_LEAST: u64 = 300_000_000;
const WALKS_LEAST: u64 = 1_000_000;

const VMS: &str = r#"
    [[vm]]
    name = "debian"
    kernel = "debian:linux-image-cloud-amd64"
    initrd = "builtin:busybox"
    cmdline = "console=ttyS0 quiet"
    memory = "256M"

    [[vm]]
    name = "ticker"
    kernel = "guest:ticker"
    memory = "16M"

    [[vm]]
    name = "greeter"
    kernel = "guest:greeter"
    memory = "16M"

    [[vm]]
    name = "hostile"
    kernel = "guest:hostile"
    cmdline = "seed=5 steps=20000"
    memory = "16M"

    [[vm]]
    name = "toucher"
    kernel = "guest:toucher"
    cmdline = "touch=40"
    memory = "64M"
    backing = "lazy"
"#;

/// The first two end by a bug of ours; the last two are still at work then.
const CONTAINED_VMS: &str = r#"
    [[vm]]
    name = "touch"
    kernel = "guest:hostile"
    cmdline = "seed=1 steps=100000000 fault=touch"
    memory = "16M"
    backing = "lazy"

    [[vm]]
    name = "cpuid"
    kernel = "guest:hostile"
    cmdline = "seed=1 steps=100000000 fault=cpuid"
    memory = "16M"

    [[vm]]
    name = "toucher"
    kernel = "guest:toucher"
    cmdline = "touch=200"
    memory = "256M"
    backing = "lazy"

    [[vm]]
    name = "witness"
    kernel = "guest:witness"
    memory = "16M"
"#;

/// The first one is told what to read when its tables have been harmed.
const PLANTED_VMS: &str = r#"
    [[vm]]
    name = "reader"
    kernel = "guest:outside"
    cmdline = "at=0xd0000000 wait=1"
    memory = "16M"

    [[vm]]
    name = "victim"
    kernel = "guest:ticker"
    memory = "16M"
"#;

fn sound(stage: &Stage) -> Result<()> {
    let Some(stage) = stage.looked_at() else { return Ok(()) };
    let mut machine = stage.boot(VMS)?;
    machine.expect_all(&[
        r"^\[lamina\] toucher stopped: powered off \(status 0\)$",
        r"^\[hostile\] fuzz seed 5: 20000 steps done$",
        r"^\[debian\] .*busybox shell",
        r"^\[ticker\] 100 ticks$",
        r"^\[greeter\] greeting 1 ",
    ])?;
    machine.type_line("stop ticker");
    machine.expect(r"^\[lamina\] ticker stopped: ")?;
    machine.type_line("quit");
    machine.ends(0)?;

    let opinion = machine.opinion()?;
    let words = || format!("seen from outside:\n{opinion}");
    machine.check(opinion.violations == 0, words)?;
    machine.check(opinion.data >= DATA_LEAST && opinion.fetches >= FETCHES_LEAST, words)?;
    machine.check(opinion.walks >= WALKS_LEAST && opinion.structures > 0, words)?;
    let exits: u64 = opinion.exits.iter().map(|exits| exits.count).sum();
    // What was entered last is not left before the report.
    machine.check(opinion.entries - exits <= 1, words)
}

/// A VM that ends by a bug of ours is never asked what it had: its memory is told by counting, and goes to others.
fn contained(stage: &Stage) -> Result<()> {
    let Some(stage) = stage.looked_at() else { return Ok(()) };
    let mut machine = stage.built_with("fault").boot(CONTAINED_VMS)?;
    machine.expect_all(&[
        r"^\[lamina\] touch stopped: a bug of the hypervisor's: ",
        r"^\[lamina\] cpuid stopped: a bug of the hypervisor's: ",
        r"^\[lamina\] toucher stopped: powered off \(status 0\)$",
    ])?;
    machine.expect(r"^\[witness\] window \d+: .*, memory as it was$")?;
    machine.type_line("quit");
    machine.ends(101)?;
    let opinion = machine.opinion()?;
    machine.check(opinion.is_good(), || format!("seen from outside:\n{opinion}"))
}

fn planted(stage: &Stage) -> Result<()> {
    let Some(stage) = stage.looked_at() else { return Ok(()) };
    for (kind, whose) in [
        ("shared-frame", "which is memory of VM 2"),
        ("table-frame", "which is no memory of a VM"),
        ("hypervisor-frame", "which is no memory of a VM"),
    ] {
        let mut machine = stage.built_with("plant").boot(PLANTED_VMS)?;
        machine.expect(r"^\[reader\] waiting$")?;
        machine.type_line(&format!("plant {kind}"));
        machine.expect(&format!(r"^\[lamina\] plant: {kind} is done$"))?;
        machine.type_line("attach reader");
        machine.type_line("go");
        machine.expect(r"^\[reader\] it held Ok\([0-9a-f]+\)$")?;
        machine.type_bytes(b"\x01d\n");
        machine.type_line("quit");
        // The audit sees it too, where the table is still there.
        read_only_once(&mut machine, kind, whose)?;
    }
    Ok(())
}

/// The machine ends, and what was wrong is one read by the first VM.
fn read_only_once(machine: &mut Running, kind: &str, whose: &str) -> Result<()> {
    machine.expect(r"^\[lamina\] exit \d+$")?;
    let opinion = machine.opinion()?;
    let right = |line: &String| line.starts_with("VM 1 reads 0x") && line.contains(&format!("(data), {whose}; rip 0x"));
    machine.check(opinion.violations == 1 && opinion.told.iter().all(right), || format!("{kind}: {opinion}"))
}
