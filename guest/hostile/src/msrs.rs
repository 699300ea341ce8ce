//! Model-specific registers: every index and the values that one must not take (SDM vol. 4).

use guest_rt::trap::Fault;
use guest_rt::{cpu, probe};

use crate::registers::{read, try_write, write};
use crate::seen::{Checked, GP0, Seen, all, expect, works_or_gp0};
use crate::{Case, registers};

const NON_CANONICAL: u64 = 1 << 47;

/// MSRs that sweeps leave alone: they move the clock, the local APIC, or the mode. Cases of their own try them.
const NOT_SWEPT: [u32; 5] = [0x10, 0x1b, 0x3b, 0x6e0, registers::EFER];

const LOW: (u32, u32) = (0, 0x1fff);
const HIGH: (u32, u32) = (0xc000_0000, 0xc000_1fff);
const AMD: (u32, u32) = (0xc001_0000, 0xc001_1fff);
/// Where other hypervisors have their own.
const SYNTHETIC: (u32, u32) = (0x4000_0000, 0x4000_0fff);
const LINUX_KVM: (u32, u32) = (0x4b56_4d00, 0x4b56_4dff);

pub const CASES: &[Case] = &[
    ("msr-read-low", || reads(LOW)),
    ("msr-read-high", || reads(HIGH)),
    ("msr-read-amd", || reads(AMD)),
    ("msr-read-synthetic", || reads(SYNTHETIC)),
    ("msr-read-other-hypervisors", || reads(LINUX_KVM)),
    ("msr-read-end-of-numbers", || reads((0xffff_ff00, 0xffff_fffe))),
    ("msr-write-zero-low", || writes(LOW, |_| 0)),
    ("msr-write-ones-low", || writes(LOW, |_| u64::MAX)),
    ("msr-write-random-low", || writes(LOW, random)),
    ("msr-write-zero-high", || writes(HIGH, |_| 0)),
    ("msr-write-ones-high", || writes(HIGH, |_| u64::MAX)),
    ("msr-write-random-high", || writes(HIGH, random)),
    ("msr-write-same", || {
        all(|| {
            sweep(LOW, |msr| match probe::rdmsr(msr) {
                Ok(value) => works_or_gp0(msr.into(), try_write(msr, value)),
                Err(_) => Ok(()),
            })
        })
    }),
    ("msr-debugctl-branch-trace", || attempt(0x1d9, 1 << 6 | 1 << 7)),
    ("msr-debugctl-last-branch", || attempt(0x1d9, 1)),
    ("msr-debugctl-reserved", || attempt(0x1d9, 1 << 40)),
    ("msr-ds-area", || attempt(0x600, 0x1000)),
    ("msr-lstar-non-canonical", || attempt(0xc000_0082, NON_CANONICAL)),
    ("msr-cstar-non-canonical", || attempt(0xc000_0083, NON_CANONICAL)),
    ("msr-fs-base-non-canonical", || attempt(0xc000_0100, NON_CANONICAL)),
    ("msr-gs-base-non-canonical", || attempt(0xc000_0101, NON_CANONICAL)),
    ("msr-kernel-gs-base-non-canonical", || attempt(0xc000_0102, NON_CANONICAL)),
    ("msr-sysenter-esp-non-canonical", || attempt(0x175, NON_CANONICAL)),
    ("msr-sysenter-eip-non-canonical", || attempt(0x176, NON_CANONICAL)),
    ("msr-fmask-upper-half", || attempt(0xc000_0084, 1 << 32)),
    ("msr-tsc-aux-upper-half", || attempt(0xc000_0103, 1 << 32)),
    ("msr-apic-base-reserved", || attempt(0x1b, 1)),
    ("msr-apic-base-beyond-the-width", || attempt(0x1b, 1 << 55 | 0x900)),
    ("msr-apic-base-over-memory", apic_over_memory),
    ("msr-mtrr-bad-type", || attempt(0x200, 2)),
    ("msr-mtrr-reserved-bits", || attempt(0x201, 1)),
    ("msr-mtrr-beyond-the-width", || attempt(0x201, 1 << 60)),
    ("msr-mtrr-fixed-bad-type", || attempt(0x250, 0x0606_0606_0306_0606)),
    ("msr-mtrr-default-bad-type", || attempt(0x2ff, 0xc02)),
    ("msr-mtrr-capabilities", || attempt(0xfe, 0)),
    ("msr-mtrrs-off", || {
        let before = read(0x2ff);
        all(|| {
            expect("MTRRs off", u64::from(write(0x2ff, 0)), 1)?;
            expect("the default type", read(0x2ff), 0)?;
            expect("MTRRs on", u64::from(write(0x2ff, before)), 1)
        })
    }),
    ("msr-pat-bad-type", || attempt(0x277, 0x0007_0406_0007_0402)),
    ("msr-pat-keeps", || {
        let before = read(0x277);
        all(|| {
            expect("PAT taken", u64::from(write(0x277, 0x0001_0405_0600_0106)), 1)?;
            expect("PAT", read(0x277), 0x0001_0405_0600_0106)?;
            write(0x277, before);
            Ok(())
        })
    }),
    ("msr-microcode-update", || attempt(0x79, 0x20_0000)),
    ("msr-microcode-revision", || attempt(0x8b, u64::MAX)),
    ("msr-spec-ctrl-reserved", || attempt(0x48, u64::MAX)),
    ("msr-pred-cmd-reserved", || attempt(0x49, u64::MAX)),
    ("msr-feature-control", || attempt(0x3a, 5)),
    ("msr-misc-enable-reserved", || attempt(0x1a0, u64::MAX)),
    ("msr-machine-check-banks", || {
        all(|| (0x400..0x480).try_for_each(|msr| works_or_gp0(msr.into(), try_write(msr, u64::MAX))))
    }),
    ("msr-vmx-capabilities", || {
        all(|| {
            (0x480..=0x493).try_for_each(|msr| match probe::rdmsr(msr) {
                Err(GP0) => Ok(()),
                other => Err(Seen::Deviates("a VMX capability", other.unwrap_or(0), 0)),
            })
        })
    }),
    ("msr-svm-controls", || attempt(0xc001_0114, 0)),
    ("msr-performance-counters", || {
        all(|| {
            [0xc1, 0x186, 0x309, 0x38d, 0x38f, 0x390]
                .into_iter()
                .try_for_each(|msr| works_or_gp0(msr.into(), try_write(msr, 1)))
        })
    }),
    ("msr-xss-unreported", || attempt(0xda0, u64::MAX)),
    ("msr-shadow-stack", || attempt(0x6a2, 1)),
    ("msr-protection-keys", || attempt(0x6e1, 1)),
    ("msr-smm-base", || attempt(0x9e, 0)),
    ("msr-capture-of-the-clock", || {
        all(|| {
            // Whatever the clock is set to, it goes on from there.
            for value in [0, u64::MAX >> 1, u64::MAX - 1_000_000_000, 12345] {
                expect("the clock's writing", u64::from(write(0x10, value)), 1)?;
                let passed = cpu::tsc().wrapping_sub(value);
                expect("the clock is off", u64::from(passed > 1 << 32), 0)?;
            }
            write(0x3b, 0);
            Ok(())
        })
    }),
    ("msr-tsc-adjust-extremes", || {
        all(|| {
            for value in [u64::MAX, 1 << 63, 1, 0] {
                expect("the adjustment's writing", u64::from(write(0x3b, value)), 1)?;
                expect("the adjustment", read(0x3b), value)?;
            }
            Ok(())
        })
    }),
    ("msr-efer-zero", || attempt(registers::EFER, 0)),
    ("msr-efer-ones", || attempt(registers::EFER, u64::MAX)),
];

fn attempt(msr: u32, value: u64) -> Seen {
    try_write(msr, value).map_or(Seen::Completes, Seen::Fault)
}

fn sweep((first, last): (u32, u32), mut one: impl FnMut(u32) -> Checked) -> Checked {
    (first..=last).filter(|msr| !NOT_SWEPT.contains(msr) && !(0x800..0x900).contains(msr)).try_for_each(&mut one)
}

fn reads(range: (u32, u32)) -> Seen {
    all(|| sweep(range, |msr| works_or_gp0(msr.into(), probe::rdmsr(msr).err())))
}

/// Writes a value to each, and puts back what was there. What is taken must read back, or be an MSR of another kind.
fn writes(range: (u32, u32), value: fn(u32) -> u64) -> Seen {
    all(|| {
        sweep(range, |msr| {
            let before = probe::rdmsr(msr);
            let fault: Option<Fault> = try_write(msr, value(msr));
            works_or_gp0(msr.into(), fault)?;
            if let (Ok(before), None) = (before, fault) {
                works_or_gp0(msr.into(), try_write(msr, before))?;
            }
            Ok(())
        })
    })
}

fn random(msr: u32) -> u64 {
    let mixed = (u64::from(msr) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

/// The local APIC's registers moved over memory: refused, or memory is what it was afterwards.
fn apic_over_memory() -> Seen {
    let data = &crate::engine::DATA;
    data.fill(0x5a);
    let before = read(0x1b);
    let taken = write(0x1b, data.address() | 0x900);
    let after = data.word(0x20);
    if taken {
        write(0x1b, before);
    }
    all(|| {
        expect("the base", read(0x1b), before)?;
        // A processor may show either; what it may not is lose what is there.
        expect("memory after it", data.word(0x20), 0x5a5a_5a5a_5a5a_5a5a)?;
        expect("memory under it", u64::from(!taken && after != 0x5a5a_5a5a_5a5a_5a5a), 0)
    })
}
