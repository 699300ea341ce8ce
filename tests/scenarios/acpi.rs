//! ACPI's own compiler reads every table of a VM: `iasl` disassembles each, and compiles what it made of it, without an
//! error and without a warning.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lamina_tests::{Needs, Scenario, Stage};
use lamina_vmm::acpi::{self, Parts};
use lamina_vmm::layout::FIRMWARE_TABLES;
use xtask::paths::find_program;
use xtask::setup::apt;

pub const SCENARIO: Scenario = Scenario { name: "acpi", needs: Needs::Host, limit: 120, long: false, run };

fn run(_: &Stage) -> Result<()> {
    if find_program("iasl").is_none() {
        apt::install(&["acpica-tools"], "a VM's ACPI tables are read by ACPI's own compiler")?;
    }
    for parts in [
        Parts { apic_ids: &[0], keyboard: false, vga: false, hpet: false },
        Parts { apic_ids: &[0, 1, 2, 3], keyboard: true, vga: true, hpet: true },
    ] {
        let directory = tempfile::tempdir()?;
        let tables = tables(&acpi::build(&parts).bytes)?;
        let names: Vec<_> = tables.iter().map(|(name, _)| name.as_str()).collect();
        let expected = ["XSDT", "FACP", "APIC", "MCFG", "HPET", "RSDT", "FACS", "DSDT"];
        let expected: Vec<_> = expected.into_iter().filter(|name| parts.hpet || *name != "HPET").collect();
        ensure!(names == expected, "the tables are {names:?}, not {expected:?}");
        for (name, bytes) in &tables {
            looked_at(directory.path(), name, bytes).with_context(|| format!("{name} of {parts:?}"))?;
        }
    }
    Ok(())
}

/// Disassembles a table and compiles the result.
fn looked_at(directory: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let file = format!("{}.dat", name.to_lowercase());
    std::fs::write(directory.join(&file), bytes)?;
    let words = iasl(directory, &["-d", &file])?;
    ensure!(!complains(&words), "disassembled:\n{words}");
    let words = iasl(directory, &["-p", "again", &file.replace(".dat", ".dsl")])?;
    ensure!(words.contains(" 0 Errors, 0 Warnings"), "compiled again:\n{words}");
    Ok(())
}

fn complains(words: &str) -> bool {
    let words = words.to_lowercase();
    ["error", "warning", "invalid", "incorrect", "unknown"].iter().any(|word| words.contains(word))
}

fn iasl(directory: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new("iasl").args(arguments).current_dir(directory).output().context("cannot start iasl")?;
    let words = [output.stdout, output.stderr].concat();
    let words = String::from_utf8_lossy(&words).into_owned();
    ensure!(output.status.success(), "iasl {arguments:?} failed:\n{words}");
    Ok(words)
}

/// Every table with its signature: those that the root pointer leads to, and what the FADT leads to.
fn tables(bytes: &[u8]) -> Result<Vec<(String, Vec<u8>)>> {
    let number = |bytes: &[u8], at: usize, width: usize| -> Result<u64> {
        let field = bytes.get(at..at + width).context("a field outside of its table")?;
        Ok(field.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    let table = |address: u64| -> Result<(String, Vec<u8>)> {
        let start = usize::try_from(address - FIRMWARE_TABLES.0)?;
        let length = usize::try_from(number(bytes, start + 4, 4)?)?;
        let table = bytes.get(start..start + length).context("a table outside of the area")?;
        Ok((String::from_utf8_lossy(&table[..4]).into_owned(), table.to_vec()))
    };
    let xsdt = table(number(bytes, 24, 8)?)?;
    let listed: Vec<_> =
        (36..xsdt.1.len()).step_by(8).map(|at| table(number(&xsdt.1, at, 8)?)).collect::<Result<_>>()?;
    let fadt = listed.first().context("no table is listed")?.1.clone();
    let mut found = vec![xsdt];
    found.extend(listed);
    found.push(table(number(bytes, 16, 4)?)?);
    found.push(table(number(&fadt, 36, 4)?)?);
    found.push(table(number(&fadt, 40, 4)?)?);
    Ok(found)
}
