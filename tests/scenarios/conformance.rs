//! The guest program `conformance`: test by test the same verdict in a VM as on the bare machine.
//!
//! Where an emulator is no measure, the test is named here with the reason and counted as skipped: what the bare machine
//! does not come back from, and what it gets wrong that Lamina, or the exit to it, gets right.

use std::collections::BTreeMap;

use anyhow::Result;
use lamina_tests::{Backend, Needs, Running, Scenario, Stage};

pub const SCENARIO: Scenario = Scenario { name: "conformance", needs: Needs::Machine, limit: 300, long: false, run };

/// Tests that a bare machine is no measure of, and why.
struct Known {
    on: &'static [Backend],
    why: &'static str,
    /// Names, or what they begin with where a `*` ends it.
    tests: &'static [&'static str],
}

impl Known {
    fn of(list: &'static [Known], on: Backend, name: &str) -> Option<&'static str> {
        let is = |test: &&str| test.strip_suffix('*').map_or(*test == name, |begin| name.starts_with(begin));
        list.iter().find(|known| known.on.contains(&on) && known.tests.iter().any(is)).map(|known| known.why)
    }
}

/// The bare machine does not come back from them; they must pass in the VM.
const NOT_NATIVELY: &[Known] = &[
    Known {
        on: &[Backend::Tcg],
        why: "QEMU's emulation answers reserved bits of CR3 and CR4 by an exit, also where there is no hypervisor",
        tests: &[
            "cr4 reserved",
            "cr4 without pae",
            "breakpoint on what faults",
            "resume flag of a general protection fault",
            DOUBLE_FAULT,
            "order: exception goes before what waits",
            "paging: cr3 reserved bits",
            "paging: cr3 bit 63 without pcid",
            "paging: la57 in long mode",
        ],
    },
    Known { on: &[Backend::Tcg], why: ZEROS, tests: &["operand: jump through the hole"] },
];

const DOUBLE_FAULT: &str = "delivery: double fault of a fault that a hypervisor injects";
const ZEROS: &str = "on QEMU's machine an address where nothing answers reads as zeros";
const BOCHS: &[Backend] = &[Backend::Bochs, Backend::BochsSvm];

/// They pass in the VM only.
const BETTER: &[Known] = &[
    Known {
        on: BOCHS,
        why: "a deadline that has passed still stands in Bochs' MSR",
        tests: &["apic timer tsc deadline is cleared"],
    },
    Known {
        on: BOCHS,
        why: "reserved bits of an interrupt command are no fault in Bochs",
        tests: &["x2apic reserved bits"],
    },
    Known {
        on: BOCHS,
        why: "Bochs' I/O APIC has an identification of eight bits and no arbitration register",
        tests: &["ioapic identification has four bits", "ioapic arbitration follows identification"],
    },
    Known {
        on: BOCHS,
        why: "Bochs' I/O APIC forgets an input that is still active at the end of its interrupt",
        tests: &["ioapic level that stays comes again", "ioapic remote irr until the end of the interrupt"],
    },
    Known {
        on: BOCHS,
        why: "a local APIC that was switched off never comes back in Bochs",
        tests: &["apic disabled *"],
    },
    Known { on: BOCHS, why: "IA32_MISC_ENABLE keeps nothing in Bochs", tests: &["msr misc enable*"] },
    Known {
        on: &[Backend::BochsSvm],
        why: "Bochs' `ryzen` has neither x2APIC nor IA32_TSC_ADJUST, and MSRs that are not there do not fault",
        tests: &["x2apic registers before it is on", "tsc written", "tsc adjusted"],
    },
    Known {
        on: &[Backend::Tcg],
        why: "QEMU's emulation takes what a processor refuses",
        tests: &[
            "msr pat with a reserved type",
            "msr efer lme while paging",
            "msr efer reserved",
            "msr lstar not canonical",
            "msr apic base reserved",
            "msr mtrr fixed with a reserved type",
            "msr mtrr capabilities are read-only",
            "cr0 nw without cd",
            "cr0 pg without pe",
            "cr0 reserved bits are ignored",
            "cr4 bits agree with cpuid",
            "cr8",
            "efer bits agree with cpuid",
            "paging: pcid",
            "operand: locked form without a lock",
        ],
    },
    Known {
        on: &[Backend::Tcg],
        why: "QEMU's emulation has no effect of IA32_MISC_ENABLE",
        tests: &["msr misc enable takes execute disable away"],
    },
    Known {
        on: &[Backend::Tcg],
        why: "QEMU's emulation traps at the end of a repeated OUTS only, on ports without CR4.DE, and forgets a step beside \
              a breakpoint",
        tests: &[
            "watchpoint on a port, each iteration of rep outs",
            "watchpoint on a port, without debugging extensions",
            "watchpoint on a device, and a step",
        ],
    },
    Known { on: &[Backend::Tcg], why: "QEMU's emulation has no RDPMC", tests: &["rdpmc"] },
    Known {
        on: &[Backend::Tcg],
        why: "QEMU's time-stamp counter cannot be written",
        tests: &["tsc written", "tsc adjusted"],
    },
    Known {
        on: &[Backend::Tcg],
        why: "QEMU's emulation takes a repeated string instruction for one step",
        tests: &["steps: each iteration of rep outs", "steps: each iteration of rep movs to a device"],
    },
    Known {
        on: &[Backend::Tcg],
        why: ZEROS,
        tests: &[
            "paging: access across two pages of devices",
            "device: push and pop",
            "hole: *",
            "operand: cmpxchg8b and cmpxchg16b",
            "operand: repe cmps",
            "operand: rep movs out of the hole, backwards",
            "operand: push and pop of words",
            "operand: stack in the hole",
            "operand: segment selector",
            "operand: far pointer",
            "operand: call through the hole",
        ],
    },
    Known {
        on: &[Backend::Tcg],
        why: "QEMU's local APIC answers doublewords only",
        tests: &[
            "device: movzx, movsx",
            "operand: xlat",
            "operand: scas",
            "paging of 32 bits: a device",
            "pae paging: a device",
        ],
    },
    Known {
        on: &[Backend::Tcg],
        why: "QEMU's local APIC has no x2APIC mode and cannot be switched off",
        tests: &["x2apic extension without enable", "x2apic registers before it is on", "apic disabled *"],
    },
    Known {
        on: &[Backend::Tcg],
        why: "QEMU's local APIC reports no illegal vector",
        tests: &["apic error of an illegal vector"],
    },
    Known {
        on: &[Backend::Tcg],
        why: "the local vector table of QEMU's local APIC can be unmasked while that is disabled",
        tests: &["apic lvt masked after software disable"],
    },
    Known {
        on: &[Backend::Tcg],
        why: "the timer of QEMU's local APIC begins anew at the end of a one-shot, and counts on in the host's time",
        tests: &["apic timer one-shot", "apic timer mode changed while it counts"],
    },
];

/// They fail in the VM only, and no hypervisor can help it.
const WORSE: &[Known] = &[
    Known {
        on: &[Backend::Tcg],
        why: "QEMU's emulation forgets at once that what VMRUN injects is an exception, so another one is no double fault",
        tests: &[DOUBLE_FAULT],
    },
    Known {
        on: &[Backend::BochsSvm],
        why: "under nested paging SVM reads page-directory pointers when they are needed, so CR3 and CR0 take bad ones",
        tests: &["pae paging: pointers with reserved bits, by cr3", "pae paging: pointers with reserved bits, by cr0"],
    },
    Known {
        on: &[Backend::BochsSvm],
        why: "SVM has no place for a debug trap that waits behind MOV SS when the next instruction exits",
        tests: &["watchpoint on mov ss, then cpuid"],
    },
];

fn run(stage: &Stage) -> Result<()> {
    let on = stage.backend()?;
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

    let left_out: Vec<_> = found.keys().filter_map(|name| Some((name, Known::of(NOT_NATIVELY, on, name)?))).collect();
    let names: Vec<_> = left_out.iter().map(|(name, _)| word(name)).collect();
    let mut bare = stage.boot_natively_with("conformance", &format!("skip={}", names.join(",")))?;
    bare.expect(r"^done: \d+ failed$")?;
    let mut expected = verdicts(&bare, "")?;
    bare.check(expected.values().filter(|&&verdict| verdict == Verdict::LeftOut).count() == names.len(), || {
        format!("it did not leave out {names:?}")
    })?;
    for (name, why) in left_out {
        stage.skipped(&word(name), why);
        expected.insert(name.clone(), Verdict::Passed);
    }
    let same_tests = found.keys().eq(expected.keys());
    bare.check(same_tests, || format!("{} tests, not {}", found.len(), expected.len()))?;
    let mut differ = Vec::new();
    for (name, verdict) in found.iter().filter(|(name, verdict)| expected.get(*name) != Some(verdict)) {
        let known = if *verdict == Verdict::Passed { BETTER } else { WORSE };
        match Known::of(known, on, name) {
            Some(why) => stage.skipped(&word(name), why),
            None => differ.push(format!("{name}: {verdict:?} in the VM")),
        }
    }
    bare.check(differ.is_empty(), || format!("it is otherwise on the bare machine: {differ:#?}"))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Passed,
    Failed,
    LeftOut,
}

/// The verdict on each test: what was found where it failed may differ from machine to machine.
fn verdicts(machine: &Running, prefix: &str) -> Result<BTreeMap<String, Verdict>> {
    let words = [("PASS ", Verdict::Passed), ("FAIL ", Verdict::Failed), ("SKIP ", Verdict::LeftOut)];
    let lines = machine.lines(&format!("^{prefix}(PASS|FAIL|SKIP) "))?;
    let verdict = |line: &String| {
        let (at, verdict) = words.iter().find_map(|(word, verdict)| Some((line.find(word)? + word.len(), *verdict)))?;
        let name = line[at..].rsplit_once(": 0x").map_or(&line[at..], |(name, _)| name);
        Some((name.trim().to_owned(), verdict))
    };
    Ok(lines.iter().filter_map(verdict).collect())
}

/// The name of a test as one word of a command line.
fn word(name: &str) -> String {
    name.replace([' ', ','], "-")
}
