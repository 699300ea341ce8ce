//! A local APIC by the processor and one by the hypervisor: `conformance` finds the same in both, test by test.
//! (Scenario `conformance` compares the one that a VM gets without a word with the bare machine's.)

use anyhow::Result;
use lamina_tests::{Needs, Running, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "apic", needs: Needs::Vmx, limit: 400, long: false, run };

fn run(stage: &Stage) -> Result<()> {
    let (_, virtualized) = verdicts(stage, "virtualized")?;
    let (machine, emulated) = verdicts(stage, "emulated")?;
    machine.check(virtualized.len() > 320, || format!("only {} tests", virtualized.len()))?;
    let differ: Vec<_> = virtualized.iter().zip(&emulated).filter(|(one, other)| one != other).collect();
    machine.check(virtualized.len() == emulated.len() && differ.is_empty(), || format!("not the same: {differ:#?}"))
}

/// What each test found, in order. A VM by itself: beside another, lines come in pieces.
fn verdicts(stage: &Stage, apic: &str) -> Result<(Running, Vec<String>)> {
    let mut machine = stage.boot(&format!(
        "[[vm]]\nname = \"vm\"\nkernel = \"guest:conformance\"\nmemory = \"32M\"\napic = \"{apic}\"\n"
    ))?;
    machine.expect(r"^\[vm\] done: \d+ failed$")?;
    let lines = machine.lines(r"^\[vm\] (PASS|FAIL) ")?;
    Ok((machine, lines))
}
