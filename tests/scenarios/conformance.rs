//! The guest program `conformance`: test by test the same verdict in a VM as on the bare machine.

use anyhow::Result;
use lamina_tests::{Needs, Running, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "conformance", needs: Needs::Measure, limit: 300, long: false, run };

/// What Bochs itself gets wrong: a local APIC that was switched off never comes back there; a deadline that has passed
/// still stands in its MSR; IA32_MISC_ENABLE keeps nothing; reserved bits of an interrupt command are no fault; its I/O
/// APIC has an identification of eight bits and no arbitration register, and forgets an input that is still active at the
/// end of its interrupt.
fn is_known(name: &str) -> bool {
    matches!(
        name,
        "apic timer tsc deadline is cleared"
            | "x2apic reserved bits"
            | "ioapic identification has four bits"
            | "ioapic arbitration follows identification"
            | "ioapic level that stays comes again"
            | "ioapic remote irr until the end of the interrupt"
    ) || name.starts_with("apic disabled ")
        || name.starts_with("msr misc enable")
}

fn run(stage: &Stage) -> Result<()> {
    let mut machine = stage.boot(
        r#"
        [[vm]]
        name = "vm"
        kernel = "guest:conformance"
        memory = "32M"
        "#,
    )?;
    machine.expect(r"^\[vm\] done: \d+ failed$")?;
    let found = verdicts(&machine, r"\[vm\] ")?;
    machine.check(found.len() > 320, || format!("only {} tests", found.len()))?;

    let mut bare = stage.boot_natively("conformance")?;
    bare.expect(r"^done: \d+ failed$")?;
    let expected = verdicts(&bare, "")?;
    let names = |lines: &[String], word: &str| -> Vec<String> {
        lines.iter().filter_map(|line| line.strip_prefix(word)).map(|name| name.trim().to_owned()).collect()
    };
    let (passed, bare_passed) = (names(&found, "PASS"), names(&expected, "PASS"));
    let worse: Vec<_> = bare_passed.iter().filter(|name| !passed.contains(name)).collect();
    bare.check(worse.is_empty(), || format!("passed on the bare machine only: {worse:?}"))?;
    let better: Vec<_> = passed.iter().filter(|name| !bare_passed.contains(name) && !is_known(name)).collect();
    bare.check(better.is_empty(), || format!("passed in the VM only: {better:?}"))?;
    bare.check(found.len() == expected.len(), || format!("{} tests, not {}", found.len(), expected.len()))
}

/// `PASS` or `FAIL` and the name of each test: what was found instead may differ from machine to machine.
fn verdicts(machine: &Running, prefix: &str) -> Result<Vec<String>> {
    let whole = |line: String| {
        let at = line.find("PASS").or_else(|| line.find("FAIL")).unwrap_or(0);
        let text = &line[at..];
        match text.rfind(": 0x") {
            Some(end) => text[..end].to_owned(),
            None => text.to_owned(),
        }
    };
    Ok(machine.lines(&format!("^{prefix}(PASS|FAIL) "))?.into_iter().map(whole).collect())
}
