//! The guest program `checker`: what a guest may rely on is there, and what CPUID does not report does not work.

use anyhow::Result;
use lamina_tests::{Backend, Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "checker", needs: Needs::Machine, limit: 600, long: false, run };

/// Checks that a machine fails by itself, without a hypervisor between: the instructions and registers that they are about
/// do not exit, so Lamina cannot mend it.
const KNOWN: &[(Backend, &str, &str)] = &[
    (Backend::Tcg, "cr0-upper-half", "QEMU's emulation drops bits 63:32 of what is moved to CR0 instead of #GP"),
    (Backend::Tcg, "fs-base-not-canonical", "QEMU's emulation takes any FS base"),
    (Backend::Tcg, "absent-instruction-RDSEED", "QEMU's emulation executes RDSEED wherever it shows RDRAND"),
    (Backend::Tcg, "absent-instruction-TPAUSE", "QEMU's emulation executes TPAUSE as MFENCE on every processor"),
    (
        Backend::BochsSvm,
        "absent-instruction-XSAVES",
        "SVM has no means to take XSAVES away from a guest; IA32_XSS is 0",
    ),
];

fn run(stage: &Stage) -> Result<()> {
    let backend = stage.backend()?;
    let known: Vec<_> = KNOWN.iter().filter(|(on, ..)| *on == backend).collect();
    let names: Vec<_> = known.iter().map(|(_, name, _)| *name).collect();
    let mut machine = stage.boot(&format!(
        r#"
        [[vm]]
        name = "checker"
        kernel = "guest:checker"
        memory = "64M"
        cmdline = "except={}"
        "#,
        names.join(",")
    ))?;
    let checks = machine.expect_number(r"^\[checker\] (\d+) checks, 0 failed$")?;
    let lines = machine.lines(r"^\[checker\] ok ")?.len() as u64;
    machine.check(checks > 0 && lines == checks, || format!("{checks} checks, but {lines} lines of checks"))?;
    let skipped = machine.lines(r"^\[checker\] skipped ")?.len();
    machine.check(skipped == known.len(), || format!("{skipped} checks skipped, not {}", known.len()))?;
    for (_, name, reason) in known {
        stage.skipped(name, reason);
    }
    machine.expect(r"^\[lamina\] checker stopped: .+ \(status 0\)$")?;
    machine.ends(0)
}
