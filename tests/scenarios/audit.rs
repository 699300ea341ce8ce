//! The audit of what isolates VMs: on the machine as it is, nothing is wrong; and in a build that does harm on command,
//! each kind of harm is found, on demand and at the machine's end.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "audit", needs: Needs::Machine, limit: 300, long: false, run: sound };
pub const PLANTED: Scenario = Scenario { name: "audit_planted", limit: 900, long: true, run: planted, ..SCENARIO };

const VMS: &str = r#"
    [[vm]]
    name = "first"
    kernel = "guest:ticker"
    memory = "16M"

    [[vm]]
    name = "second"
    kernel = "guest:toucher"
    cmdline = "touch=8 stay=1"
    memory = "64M"
    backing = "lazy"
"#;

fn sound(stage: &Stage) -> Result<()> {
    let mut machine = stage.boot(VMS)?;
    machine.expect(r"^\[second\] touched 8 MiB$")?;
    machine.type_line("audit");
    machine.expect(r"^\[lamina\] audit: looked at \d{4,} frames and \d{4,} nested pages: 0 violations$")?;
    machine.type_line("stop first");
    machine.expect(r"^\[lamina\] first stopped: ")?;
    machine.type_line("audit");
    machine.expect(r"^\[lamina\] audit: .*: 0 violations$")?;
    machine.type_line("quit");
    machine.ends(0)
}

fn planted(stage: &Stage) -> Result<()> {
    for (kind, found) in [
        ("shared-frame", r"first: 4 KiB at guest address 0xd0000000 are mapped to 0x[0-9a-f]+ for rwx"),
        ("table-frame", r"first: 4 KiB at guest address 0xd0000000 are mapped to 0x[0-9a-f]+ for rwx"),
        ("hypervisor-frame", r"first: 4 KiB at guest address 0xd0000000 are mapped to 0x1000 for rwx"),
        ("lost-frame", r"1 frames are taken and nobody has them, 0x[0-9a-f]+ first"),
        ("freed-frame", r"first: frame 0x[0-9a-f]+ is free"),
        ("dirty-frame", r"the stock: frame 0x[0-9a-f]+ is not clear"),
        ("mapped-frame", r"memory of VMs at 0x[0-9a-f]+ is mapped at 0x[0-9a-f]+ "),
        ("writable-code", r"the hypervisor's page at 0x[0-9a-f]+ can be written and run"),
    ] {
        let mut machine = stage.built_with("plant").boot(VMS)?;
        machine.expect(r"^\[second\] touched 8 MiB$")?;
        machine.type_line(&format!("plant {kind}"));
        machine.expect(&format!(r"^\[lamina\] plant: {kind} is done$"))?;
        machine.type_line("audit");
        machine.expect(r"^\[lamina\] audit: .*: 1 violations$")?;
        machine.expect(&format!(r"^\[lamina\] audit: {found}"))?;
        machine.type_line("quit");
        machine.expect(&format!(r"^\[lamina\] audit: {found}"))?;
        machine.ends(1)?;
    }
    Ok(())
}
