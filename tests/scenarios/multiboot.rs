//! A Multiboot image of each version, with modules: each checks what it is told, and prints it.

use anyhow::Result;
use lamina_tests::{Needs, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "multiboot", needs: Needs::Machine, limit: 300, long: false, run };

fn run(stage: &Stage) -> Result<()> {
    let mut machine = stage.boot(
        r#"
        [[vm]]
        name = "one"
        kernel = "guest:multiboot1"
        memory = "16M"
        cmdline = "for the first"
        modules = [{ path = "LICENSE-MIT", cmdline = "text one" }, { path = "rustfmt.toml" }]
        [[vm]]
        name = "two"
        kernel = "guest:multiboot2"
        memory = "24M"
        cmdline = "for the second"
        modules = [{ path = "rustfmt.toml", cmdline = "text two" }]
        "#,
    )?;
    // Each is expected by its own lines: how the two take turns is nobody's business.
    machine.expect_all(&[
        r"^\[one\] magic 0x2badb002, ",
        r"^\[one\] loader: Lamina$",
        r"^\[one\] command line: for the first$",
        r"^\[one\] 640 KiB below, 15360 KiB above$",
        r#"^\[one\] module 0: "text one": "MIT License"#,
        r#"^\[one\] module 1: "": "max_width = "#,
        r"^\[one\] memory 0x0 0xa0000 1$",
        r"^\[one\] memory 0x100000 0xf00000 1$",
        r"^\[two\] magic 0x36d76289, ",
        r"^\[two\] loader: Lamina$",
        r"^\[two\] command line: for the second$",
        r#"^\[two\] module: "text two": "max_width = "#,
        r"^\[two\] memory 0x100000 0x1700000 1$",
        r"^\[two\] ACPI 2$",
        r"^\[lamina\] one stopped: .* \(status 0\)$",
        r"^\[lamina\] two stopped: .* \(status 0\)$",
    ])?;
    machine.never("FAILED")?;
    machine.ends(0)
}
