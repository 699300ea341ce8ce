//! What scripts rely on: the exit status of `cargo xtask run`, and that only the machine's output is on standard output.

use anyhow::{Result, ensure};
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "exit_statuses", needs: Needs::Machine, limit: 300, long: false, run };

fn run(stage: &Stage) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let backend = stage.backend()?.to_string();
    let hello = "kernel = \"guest:hello\"\nmemory = \"16M\"\n";
    let hog = "kernel = \"guest:hog\"\nmemory = \"16M\"\n";
    let cases: [(&str, &[&str], i32); 7] = [
        (hello, &[], 0),
        (hello, &["--until", r"^\[a\] Hello"], 0),
        (hello, &["--until", "never printed"], 1),
        ("kernel = \"guest:hello\"\ncmdline = \"status=3\"\n", &[], 1),
        ("kernel = \"guest:triple\"\n", &[], 1),
        // It would run for ever; the time is the wall's, from the emulator's start.
        (hog, &["--timeout", "2"], 124),
        (hog, &["--timeout", "2", "--until", "never printed"], 124),
    ];
    for (keys, options, status) in cases {
        std::fs::write(directory.path().join("a.toml"), format!("[[vm]]\nname = \"a\"\n{keys}"))?;
        let arguments = [&["run", "--config", "a.toml", "--on", &backend], options].concat();
        let outcome = stage.xtask(&arguments, directory.path())?;
        ensure!(outcome.status == Some(status), "{keys}{options:?} must end with {status}: {outcome:#?}");
        let foreign = outcome.output.lines().find(|line| !line.starts_with('[') && !line.is_empty());
        ensure!(foreign.is_none(), "{keys}{options:?}: a line without a prefix: {outcome:#?}");
    }
    Ok(())
}
