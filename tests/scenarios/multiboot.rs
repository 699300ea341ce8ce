//! A Multiboot image of each version, with modules: each checks what it is told, and prints it. The first version's once
//! more in an ELF file of 32 bits, as conformance suites are, with a module that says how many processors there are.

use anyhow::{Context, Result};
use lamina_tests::{Needs, Scenario, Stage};
use xtask::artifacts;

pub const SCENARIO: Scenario = Scenario { name: "multiboot", needs: Needs::Machine, limit: 300, long: false, run };

fn run(stage: &Stage) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let image = std::fs::read(artifacts::build("guest-multiboot1", "multiboot1")?)?;
    std::fs::write(directory.path().join("image"), elf32(&image).context("no ELF file of 64 bits")?)?;
    std::fs::write(directory.path().join("env"), "NR_CPUS=1\nMEMSIZE=32\n")?;
    let config = r#"
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
        [[vm]]
        name = "small"
        kernel = "DIRECTORY/image"
        memory = "32M"
        modules = [{ path = "DIRECTORY/env", cmdline = "env" }]
        "#;
    let path = directory.path().to_str().context("a path that is no text")?;
    let mut machine = stage.boot(&config.replace("DIRECTORY", path))?;
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
        r#"^\[small\] module 0: "env": "NR_CPUS=1\\nMEMSIZE=32\\n"$"#,
        r"^\[lamina\] small stopped: .* \(status 0\)$",
    ])?;
    machine.never("FAILED")?;
    machine.ends(0)
}

/// The program of an ELF file of 64 bits, loaded to the same places, in one of 32 bits.
fn elf32(image: &[u8]) -> Option<Vec<u8>> {
    const HEADER: u32 = 52;
    const ENTRY: u32 = 32;
    let number = |at: u64, width: usize| {
        let at = usize::try_from(at).ok()?;
        let bytes = image.get(at..at + width)?;
        u32::try_from(bytes.iter().rev().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte))).ok()
    };
    let (entry, table, count) = (number(24, 8)?, number(32, 8)?, number(56, 2)?);
    let behind = HEADER + count * ENTRY;
    let mut file = b"\x7fELF\x01\x01\x01".to_vec();
    file.resize(16, 0);
    // Executable, for the 386.
    file.extend([2u16, 3].map(u16::to_le_bytes).concat());
    file.extend([1, entry, HEADER, 0, 0].map(u32::to_le_bytes).concat());
    file.extend([52, 32, u16::try_from(count).ok()?, 40, 0, 0].map(u16::to_le_bytes).concat());
    for at in (u64::from(table)..).step_by(56).take(count as usize) {
        let [offset, virtual_at, physical, in_file, in_memory] = [8, 16, 24, 32, 40].map(|field| number(at + field, 8));
        let kind = number(at, 4)?;
        let fields = [kind, offset? + behind, virtual_at?, physical?, in_file?, in_memory?, number(at + 4, 4)?, 0];
        file.extend(fields.map(u32::to_le_bytes).concat());
    }
    file.extend_from_slice(image);
    Some(file)
}
