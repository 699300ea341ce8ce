//! What an exit costs beside its instructions: a hypervisor that counts finds what the table in `ARCHITECTURE.md` says,
//! no more and no less.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use lamina_tests::{Needs, Running, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "counts", needs: Needs::Vmx, limit: 300, long: false, run };

const VMS: &str = r#"
    [[vm]]
    name = "bench"
    kernel = "guest:bench"
    cmdline = "count=events"
    memory = "64M"
    backing = "lazy"
    apic = "emulated"
"#;

/// Rows of the table, and what `guest/bench` calls the operations that they are of.
const ROWS: &[(&str, &[&str])] = &[
    (
        "CPUID, RDMSR, WRMSR, the no-op hypercall",
        &["cpuid/0", "hypercall/nop", "rdmsr/apic-base", "wrmsr/apic-base", "rdmsr/misc-enable", "wrmsr/tsc-deadline"],
    ),
    ("CPUID leaf 1", &["cpuid/1"]),
    ("port access", &["port/pit", "port/pic", "port/uart"]),
    ("device in memory, by a simple MOV", &["mmio/apic-version", "mmio/apic-eoi"]),
    ("first touch of a page", &["touch/first"]),
];

/// Operations that a processor which virtualizes the local APIC leaves without an exit.
const WITHOUT_EXIT: &[&str] = &["mmio/apic-version", "mmio/apic-eoi", "ipi/x2apic-self"];

fn run(stage: &Stage) -> Result<()> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ARCHITECTURE.md");
    let page = std::fs::read_to_string(&page).with_context(|| format!("cannot read {}", page.display()))?;
    let mut machine = stage.built_with("count").boot(VMS)?;
    machine.expect(r"^\[bench\] R end$")?;
    let found = counts(&machine)?;
    for (row, operations) in ROWS {
        let [reads, writes] = written(&page, row).with_context(|| format!("no row {row:?} in ARCHITECTURE.md"))?;
        for operation in *operations {
            let got = found.get(*operation).with_context(|| format!("{operation} was not counted"))?;
            let expected = [reads, writes, 0, 0, 0];
            ensure!(
                got[..] == expected,
                "{operation}: VMREADs, VMWRITEs, RDMSRs, WRMSRs, invalidations are {got:?}, and written is {expected:?} ({row})"
            );
        }
    }
    machine.ends(0)?;

    let mut machine = stage.built_with("count").boot(&VMS.replace("emulated", "virtualized"))?;
    machine.expect(r"^\[bench\] R end$")?;
    let found = counts(&machine)?;
    for operation in WITHOUT_EXIT {
        let got = found.get(*operation).with_context(|| format!("{operation} was not counted"))?;
        ensure!(got.iter().all(|count| *count == 0), "{operation} exits with a virtualized APIC: {got:?}");
    }
    machine.ends(0)
}

/// What the guest said of each operation.
fn counts(machine: &Running) -> Result<BTreeMap<String, Vec<u64>>> {
    Ok(machine.lines("^.bench. C ")?.iter().filter_map(|line| counted(line)).collect())
}

/// VMREADs and VMWRITEs in the table's row.
fn written(page: &str, row: &str) -> Option<[u64; 2]> {
    page.lines().find_map(|line| {
        let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
        if cells.next()? != row {
            return None;
        }
        Some([cells.next()?.parse().ok()?, cells.next()?.parse().ok()?])
    })
}

/// `[bench] C NAME COUNT...`.
fn counted(line: &str) -> Option<(String, Vec<u64>)> {
    let mut words = line.strip_prefix("[bench] C ")?.split_ascii_whitespace();
    let name = words.next()?.to_owned();
    Some((name, words.map(str::parse).collect::<Result<_, _>>().ok()?))
}
