//! A machine with more memory than the lists of a small one hold: it starts, and the audit comes to its end.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "large_memory", needs: Needs::Tcg, limit: 300, long: false, run };

fn run(stage: &Stage) -> Result<()> {
    let mut machine = stage.boot_in(
        300 << 30,
        r#"
        [[vm]]
        name = "vm"
        kernel = "guest:ticker"
        memory = "4G"
        backing = "lazy"
        "#,
    )?;
    machine.expect(r"^\[lamina\] memory: 30\d{4} MiB for virtual machines, 74 MiB heap$")?;
    machine.expect(r"^\[vm\] ")?;
    machine.type_line("audit");
    machine.expect(r"^\[lamina\] audit: looked at \d+ frames and \d+ nested pages: 0 violations$")?;
    machine.type_line("quit");
    machine.ends(0)
}
