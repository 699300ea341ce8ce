//! VMX against SVM: what the guest programs see is the same on both, but for what `tests/diff-allowed.toml` explains; a
//! planted difference is found and shown.
//!
//! It boots both sides itself, so it runs once, whatever the backend of the others is.

use anyhow::{Result, ensure};
use lamina_tests::{Needs, Outcome, Scenario, Stage};
use xtask::paths;

pub const SCENARIO: Scenario = Scenario { name: "diff", needs: Needs::Host, limit: 900, long: false, run };
/// Two machines for each guest, one after the other.
pub const LONG: Scenario = Scenario { name: "diff_long", needs: Needs::Host, limit: 1800, long: true, run: run_long };

pub const LINUX: Scenario =
    Scenario { name: "diff_linux", needs: Needs::Host, limit: 900, long: false, run: run_linux };
/// So many records there are at least of Linux' early boot, before time enters: it asks for each hypervisor that it knows.
const LINUX_RECORDS: u32 = 500;

/// One of each kind.
const GUESTS: [&str; 4] = ["hello", "toucher", "multiboot2", "triple"];
/// The others.
const LONG_GUESTS: [&str; 5] = ["outside", "multiboot1", "fpu", "greeter", "checker"];

fn diff(stage: &Stage, arguments: &[&str]) -> Result<Outcome> {
    stage.xtask(&[&["diff"], arguments].concat(), paths::workspace())
}

fn same(stage: &Stage, guests: &[&str]) -> Result<()> {
    for guest in guests {
        let Outcome { status, output, errors } = diff(stage, &[guest])?;
        ensure!(status == Some(0), "{guest}: status {status:?}\n{output}\n{errors}");
        ensure!(output.starts_with(&format!("{guest}: ")) && output.lines().count() == 1, "{guest}: {output}");
    }
    Ok(())
}

fn run(stage: &Stage) -> Result<()> {
    for wrong in ["nonsense", "hog", "ticker", "bench", "witness", "a\"b", "../hello"] {
        let Outcome { status, output, errors } = diff(stage, &[wrong])?;
        ensure!(status == Some(2) && errors.contains("error: "), "{wrong}: status {status:?}\n{output}\n{errors}");
    }
    let planted = diff(stage, &["hello", "--cmdline", "status=3", "--right-cmdline", "status=4"])?;
    let shown = planted.output.contains("first difference") && planted.output.contains("out dx,");
    ensure!(planted.status == Some(1) && shown, "not found: {planted:?}");
    same(stage, &GUESTS)
}

fn run_linux(stage: &Stage) -> Result<()> {
    let Outcome { status, output, errors } = diff(stage, &["linux"])?;
    ensure!(status == Some(0), "status {status:?}\n{output}\n{errors}");
    let compared = output.strip_prefix("linux: ").and_then(|rest| rest.split(' ').next()?.parse::<u32>().ok());
    ensure!(compared.is_some_and(|compared| compared >= LINUX_RECORDS), "too little was compared: {output}");
    ensure!(output.contains(", up to the first calibration; "), "it ended otherwise: {output}");
    Ok(())
}

fn run_long(stage: &Stage) -> Result<()> {
    same(stage, &LONG_GUESTS)
}
