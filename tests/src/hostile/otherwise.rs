//! What must happen otherwise on a backend, because its processor does something else by itself: on the bare machine too,
//! or where no hypervisor could see it. Each with the reason.

use xtask::backend::Name;

use super::expected::{Case, Expected};

/// Cases with one reason.
#[derive(Debug)]
pub struct Otherwise {
    /// Where.
    pub on: &'static [Name],
    /// Why.
    pub why: &'static str,
    /// Which cases, and what must happen there.
    pub cases: &'static [(&'static str, Expected)],
}

/// Cases that a backend cannot run, with one reason.
#[derive(Debug)]
pub struct NotRun {
    /// Where.
    pub on: &'static [Name],
    /// Why.
    pub why: &'static str,
    /// Which.
    pub cases: &'static [&'static str],
}

const TCG: &[Name] = &[Name::Tcg];
const BOCHS_SVM: &[Name] = &[Name::BochsSvm];
/// Those with an AMD processor.
const SVM: &[Name] = &[Name::Tcg, Name::BochsSvm];

/// All that go otherwise.
pub const OTHERWISE: &[Otherwise] = &[
    Otherwise {
        on: TCG,
        why: "QEMU's emulation gives #GP where the stack's address is not canonical",
        cases: &[("entry-stack-non-canonical", Expected::Sees("#GP(0x0)"))],
    },
    Otherwise {
        on: TCG,
        why: "QEMU's emulation takes STI and what is behind it for one step",
        cases: &[("entry-sti-single-step", Expected::Sees("deviates: how far it got is 0x2, not 0x1"))],
    },
    Otherwise {
        on: TCG,
        why: "QEMU's emulation does not know INT1",
        cases: &[
            ("entry-icebp", Expected::Sees("#UD")),
            ("entry-mov-ss-icebp", Expected::Sees("#UD")),
            ("entry-mov-ss-icebp-single-step", Expected::Sees("#UD")),
            ("entry-sti-icebp", Expected::Sees("#UD")),
        ],
    },
    Otherwise {
        on: TCG,
        why: "QEMU's emulation names a gate by its offset in 64-bit mode",
        cases: &[
            ("entry-interrupt-beyond-table", Expected::Sees("#GP(0x802)")),
            ("entry-interrupt-at-3", Expected::Sees("#GP(0x202)")),
        ],
    },
    Otherwise {
        on: TCG,
        why: "QEMU's emulation takes a table's address that is not canonical, and finds nothing there",
        cases: &[
            ("entry-lgdt-non-canonical", Expected::Stops("triple fault")),
            ("entry-lidt-non-canonical", Expected::Stops("triple fault")),
        ],
    },
    Otherwise {
        on: TCG,
        why: "QEMU's emulation takes what a processor refuses",
        cases: &[
            ("cr0-upper-half", Expected::Sees("completes")),
            ("msr-fs-base-non-canonical", Expected::Sees("completes")),
            ("msr-gs-base-non-canonical", Expected::Sees("completes")),
            ("msr-kernel-gs-base-non-canonical", Expected::Sees("completes")),
            ("msr-sysenter-esp-non-canonical", Expected::Sees("completes")),
            ("msr-sysenter-eip-non-canonical", Expected::Sees("completes")),
            ("xrstor-bad-mxcsr", Expected::Sees("completes")),
        ],
    },
    Otherwise {
        on: TCG,
        why: "QEMU's emulation does not know DR7.GD",
        cases: &[("dr7-general-detect", Expected::Sees("completes"))],
    },
    Otherwise {
        on: TCG,
        why: "QEMU's emulation executes UMWAIT as MFENCE on every processor",
        cases: &[("umwait", Expected::Sees("completes"))],
    },
    Otherwise {
        on: TCG,
        why: "QEMU's emulation says of a reserved bit not that the page is present",
        cases: &[
            ("paging-reserved-bit", Expected::Sees("#PF(0x8)")),
            ("paging-no-execute-off-is-reserved", Expected::Sees("#PF(0x8)")),
        ],
    },
    Otherwise {
        on: TCG,
        why: "AMD's processors have no SYSENTER in long mode (APM vol. 3, SYSENTER)",
        cases: &[("entry-sysenter-without-segment", Expected::Sees("#UD"))],
    },
    Otherwise {
        on: SVM,
        why: "AMD's processors say of every walk of the guest's tables that it writes (APM vol. 2, 15.25.6)",
        cases: &[
            ("end-page-tables-nowhere", Expected::Stops("write outside its memory at 0x80000000")),
            ("end-page-table-nowhere", Expected::Stops("write outside its memory at 0x80000000")),
            ("end-page-tables-in-mmio", Expected::Stops("write outside its memory at 0xfee00000")),
        ],
    },
    Otherwise {
        on: BOCHS_SVM,
        why: "SVM cannot intercept CLZERO, XSAVES and XRSTORS, which Bochs' `ryzen` has",
        cases: &[
            ("clzero", Expected::Sees("completes")),
            ("xsaves", Expected::Sees("completes")),
            ("xrstors", Expected::Sees("#GP(0x0)")),
        ],
    },
    Otherwise {
        on: BOCHS_SVM,
        why: "SVM has no place for a debug trap that waits behind MOV SS when the next instruction exits",
        cases: &[("entry-mov-ss-watched", Expected::Sees("completes"))],
    },
];

/// All that are not run.
pub const NOT_RUN: &[NotRun] = &[
    NotRun {
        on: TCG,
        why: "QEMU's emulation ends itself at the next exception: `invalid tss`",
        cases: &["entry-ltr-null"],
    },
    NotRun {
        on: TCG,
        why: "QEMU's emulation ends itself, where it counts instructions: `Raised interrupt while not in I/O function`",
        cases: &["hold-db-delivery"],
    },
];

/// What must happen in `case` on the backend `on`.
pub fn expected(case: &Case, on: Name) -> Expected {
    let here = OTHERWISE.iter().filter(|other| other.on.contains(&on)).flat_map(|other| other.cases);
    here.clone().find(|(name, _)| *name == case.name).map_or(case.expected, |(_, expected)| *expected)
}

/// Why the case of this name is not run on the backend `on`, if it is not.
pub fn not_run(name: &str, on: Name) -> Option<&'static str> {
    NOT_RUN.iter().find(|not| not.on.contains(&on) && not.cases.contains(&name)).map(|not| not.why)
}

/// All names that the lists have.
pub fn names() -> impl Iterator<Item = &'static str> {
    let otherwise = OTHERWISE.iter().flat_map(|other| other.cases).map(|(name, _)| *name);
    otherwise.chain(NOT_RUN.iter().flat_map(|not| not.cases).copied())
}
