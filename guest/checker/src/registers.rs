//! Writes to registers that every processor refuses, and some that it takes (SDM vol. 3, "Control Registers",
//! "XCR0"; vol. 2, the instructions' pages).

use guest_rt::extended::Width;
use guest_rt::trap::Fault;
use guest_rt::{cpu, extended, probe};

use crate::Report;

const IA32_APIC_BASE: u32 = 0x1b;
const IA32_PAT: u32 = 0x277;
const IA32_EFER: u32 = 0xc000_0080;
const IA32_FS_BASE: u32 = 0xc000_0100;
const NON_CANONICAL: u64 = 0x8000_0000_0000_0000;

pub(crate) fn check(report: &mut Report) {
    exceptions(report);
    control_registers(report);
    msrs(report);
    extended_control(report);
}

fn exceptions(report: &mut Report) {
    report.unknown("ud2", probe::ud2());
    let result = probe::divide_by_zero();
    report.check("divide-by-zero", result == Err(Fault { vector: 0, error: 0 }), result);
    let result = probe::int3();
    report.check("int3", result == Err(Fault { vector: 3, error: 0 }), result);
}

fn control_registers(report: &mut Report) {
    report.refuses("cr0-paging-without-protection", probe::cr0(|value| value & !1));
    report.refuses("cr0-not-write-through-without-cache-disable", probe::cr0(|value| value & !(1 << 30) | 1 << 29));
    report.refuses("cr0-upper-half", probe::cr0(|value| value | 1 << 32));
    report.refuses("cr4-pae-off-in-long-mode", probe::cr4(|value| value & !(1 << 5)));
    report.refuses("cr4-upper-half", probe::cr4(|value| value | 1 << 63));
    report.refuses("cr8-above-15", probe::cr8(|_| 16));
    report.refuses("dr7-upper-half", probe::dr7(|value| value | 1 << 32));
    for (name, result) in [
        ("cr0-write-protect", probe::cr0(|value| value ^ 1 << 16)),
        ("cr0-task-switched", probe::cr0(|value| value ^ 1 << 3)),
        ("cr4-global-pages", probe::cr4(|value| value ^ 1 << 7)),
        ("cr8-15", probe::cr8(|_| 15)),
    ] {
        report.check(name, result.is_ok(), result);
    }
}

fn msrs(report: &mut Report) {
    let efer = probe::rdmsr(IA32_EFER).unwrap_or(0);
    report.check("efer-long-mode", efer & 0x500 == 0x500, efer);
    report.refuses("efer-reserved", probe::wrmsr(IA32_EFER, efer | 1 << 1));
    report.refuses("efer-long-mode-off", probe::wrmsr(IA32_EFER, efer & !(1 << 8)));
    if !cpu::has(0x8000_0001, 0, 2, 2) {
        report.refuses("efer-svme", probe::wrmsr(IA32_EFER, efer | 1 << 12));
    }
    report.refuses("fs-base-not-canonical", probe::wrmsr(IA32_FS_BASE, NON_CANONICAL));
    report.refuses("pat-reserved-type", probe::wrmsr(IA32_PAT, 0x0007_0406_0007_0402));
    let result = probe::wrmsr(IA32_PAT, 0x0007_0406_0007_0406);
    report.check("pat", result.is_ok(), result);
    let apic_base = probe::rdmsr(IA32_APIC_BASE);
    report.check("apic-base", apic_base.is_ok_and(|value| value & 0xf_ffff_f000 == 0xfee0_0000), apic_base);
    report.check("apic-boot-processor", apic_base.is_ok_and(|value| value & 1 << 8 != 0), apic_base);
    report.refuses("apic-base-reserved", probe::wrmsr(IA32_APIC_BASE, 1));
}

fn extended_control(report: &mut Report) {
    let enabled = |extended: bool| cpu::has(1, 0, 2, 27) == extended;
    if !cpu::has(1, 0, 2, 26) {
        return;
    }
    report.check("osxsave-off-at-start", enabled(false), cpu::cpuid(1, 0));
    report.unknown("xsetbv-without-osxsave", probe::xsetbv(0, 1));
    let extended = extended::Extended::enable();
    report.check("osxsave-follows-cr4", enabled(true), cpu::cpuid(1, 0));
    let [low, area, _, high] = cpu::cpuid(0xd, 0);
    let all = u64::from(high) << 32 | u64::from(low);
    report.check("xcr0-x87-and-sse", all & 3 == 3, all);
    report.refuses("xcr0-without-x87", probe::xsetbv(0, all & !1));
    report.refuses("xcr0-unreported", probe::xsetbv(0, all | 1 << 62));
    report.refuses("xcr1", probe::xsetbv(1, 1));
    if extended.width() != Width::Xmm {
        report.refuses("xcr0-avx-without-sse", probe::xsetbv(0, 0b101));
    }
    let before = probe::xgetbv();
    let result = probe::xsetbv(0, all);
    report.check("xcr0-all-that-is-reported", result.is_ok(), result);
    report.check("xcr0-reads-back", probe::xgetbv() == before, probe::xgetbv());
    // SDM vol. 1, "Standard Format of XSAVE Area", with the offsets that every processor reports for these states.
    let least = match extended.width() {
        Width::Xmm => 576,
        Width::Ymm => 832,
        Width::Zmm => 2688,
    };
    report.check("xsave-area", area >= least, area);
    let held = extended.hold(7, 1000);
    report.check("registers-hold", held.is_ok(), held);
}
