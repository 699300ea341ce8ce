//! Where `unsafe` may be.

use anyhow::Result;
use regex::Regex;

use super::Finding;
use super::scan::{self, File};

/// Crates that must forbid it, so that not even an attribute lets it in.
const FORBID: &[&str] = &["hypervisor/arch", "hypervisor/vmm", "hypervisor/devices", "xtask", "tests"];
/// Directories in which it may be: the crate for it, the few lines that take over from the loader, the guests' runtime,
/// and the programs whose purpose it is.
const MAY: &[&str] = &[
    "hypervisor/hw/",
    "hypervisor/kernel/",
    "hypervisor/probe/",
    "guest/rt/",
    "guest/bench/",
    "guest/conformance/",
    "guest/hostile/",
];
/// The two vendors' halves, whose files have the same names.
const ALIKE: &[(&str, &str)] =
    &[("hypervisor/hw/src/vmx/", "hypervisor/hw/src/svm/"), ("hypervisor/arch/src/vmx/", "hypervisor/arch/src/svm/")];
/// Names that only one vendor's manual has a thing for.
const OWN: &[&str] = &[
    "vmcs.rs",
    "vmcb.rs",
    "field.rs",
    "capabilities.rs",
    "rules.rs",
    "explain.rs",
    // What reading a VMCS costs is kept in a cache; a VMCB is memory.
    "cache.rs",
    // Answers while the vCPU stays on the processor want the length of the instruction, which VMX alone always tells.
    "quick.rs",
    // The local APIC, virtualized: AMD's way is not used.
    "apic.rs",
    // Steps over an instruction where VMX has controls for NMI blocking.
    "step.rs",
    // Guests share identifiers where there are few; VMX has 65,535.
    "asid.rs",
    // What VMX has guest/host masks and read shadows for.
    "read_shadow.rs",
    // What decides an exit: controls with allowed settings, or intercept vectors and CPUID bits.
    "controls.rs",
    "intercept.rs",
    "features.rs",
    // The formats of an event and of segment attributes.
    "interruption.rs",
    "event.rs",
    "segment.rs",
];

pub fn check() -> Result<Finding> {
    let files = scan::files()?;
    let mut problems = forbidden(&files);
    problems.extend(strayed(&files)?);
    problems.extend(unlike(&files));
    Ok(Finding::of(&problems))
}

fn forbidden(files: &[File]) -> Vec<String> {
    let missing = FORBID.iter().filter(|directory| {
        let path = format!("{directory}/src/lib.rs");
        let file = files.iter().find(|file| file.path == path);
        !file.is_some_and(|file| scan::code_only(&file.text).contains("#![forbid(unsafe_code)]"))
    });
    missing.map(|directory| format!("{directory}/src/lib.rs must say #![forbid(unsafe_code)]")).collect()
}

fn strayed(files: &[File]) -> Result<Vec<String>> {
    let word = Regex::new(r"\bunsafe\b")?;
    let mut problems = Vec::new();
    for file in files.iter().filter(|file| file.path.ends_with(".rs")) {
        if MAY.iter().any(|directory| file.path.starts_with(directory)) {
            continue;
        }
        for (number, line) in scan::code_only(&file.text).lines().enumerate() {
            if word.is_match(line) {
                problems.push(format!("{}:{}: no unsafe code here", file.path, number + 1));
            }
        }
    }
    Ok(problems)
}

/// Files of one vendor's half that the other lacks, once both halves are there.
fn unlike(files: &[File]) -> Vec<String> {
    let mut problems = Vec::new();
    for (one, other) in ALIKE {
        let names = |directory: &str| -> Vec<&str> {
            let names = files.iter().filter_map(|file| file.path.strip_prefix(directory));
            names.filter(|name| !name.contains('/') && !OWN.contains(name)).collect()
        };
        let (ours, theirs) = (names(one), names(other));
        if ours.is_empty() || theirs.is_empty() {
            continue;
        }
        problems
            .extend(ours.iter().filter(|name| !theirs.contains(name)).map(|name| format!("{other}{name} is missing")));
        problems
            .extend(theirs.iter().filter(|name| !ours.contains(name)).map(|name| format!("{one}{name} is missing")));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn unsafe_code_that_strayed_is_found() {
        let files = [
            file("xtask/src/a.rs", "// unsafe\nlet a = \"unsafe\";\n#![deny(unsafe_code)]\n"),
            file("guest/rt/src/a.rs", "unsafe {}"),
            file("guest/hello/src/main.rs", "\nunsafe {}"),
            file("hypervisor/vmm/src/a.rs", "#[unsafe(naked)]"),
            file("docs/a.md", "unsafe"),
        ];
        assert_eq!(
            strayed(&files).unwrap(),
            ["guest/hello/src/main.rs:2: no unsafe code here", "hypervisor/vmm/src/a.rs:1: no unsafe code here"]
        );
    }

    #[test]
    fn crates_that_do_not_forbid_it_are_found() {
        let mut files: Vec<_> = FORBID
            .iter()
            .map(|directory| file(&format!("{directory}/src/lib.rs"), "#![forbid(unsafe_code)]"))
            .collect();
        assert!(forbidden(&files).is_empty());
        files[1].text = "// #![forbid(unsafe_code)]".to_owned();
        assert_eq!(forbidden(&files), ["hypervisor/vmm/src/lib.rs must say #![forbid(unsafe_code)]"]);
    }

    #[test]
    fn halves_that_differ_are_found_once_there_are_two() {
        let one = vec![file("hypervisor/hw/src/vmx/entry.rs", ""), file("hypervisor/hw/src/vmx/vmcs.rs", "")];
        assert!(unlike(&one).is_empty());
        let both = [one, vec![file("hypervisor/hw/src/svm/run.rs", "")]].concat();
        assert_eq!(
            unlike(&both),
            ["hypervisor/hw/src/svm/entry.rs is missing", "hypervisor/hw/src/vmx/run.rs is missing"]
        );
    }
}
