//! The machine around the processor: its memory, its ports, and that its clocks agree.

use guest_rt::hypercall::Lamina;
use guest_rt::{Boot, cpu, pit, port, probe};

use crate::Report;

/// A port where no device of a PC is.
const NO_PORT: u16 = 0x5670;

pub(crate) fn check(report: &mut Report, boot: &Boot) {
    report.check("hypervisor-bit", cpu::has(1, 0, 2, 31), cpu::cpuid(1, 0));
    report.check("long-mode-bit", cpu::has(0x8000_0001, 0, 3, 29), cpu::cpuid(0x8000_0001, 0));
    report.check("local-apic-bit", cpu::has(1, 0, 3, 9), cpu::cpuid(1, 0));
    report.check("open-bus-8", port::read_u8(NO_PORT) == 0xff, port::read_u8(NO_PORT));
    report.check("open-bus-16", port::read_u16(NO_PORT) == 0xffff, port::read_u16(NO_PORT));
    report.check("open-bus-32", port::read_u32(NO_PORT) == 0xffff_ffff, port::read_u32(NO_PORT));
    // Above this the hole for devices comes first.
    let last = boot.memory.min(0xc000_0000).saturating_sub(8);
    let read = probe::read_memory(last);
    report.check("memory-to-its-end", read.is_ok(), (last, read));
    if report.wants("clock") {
        clocks(report);
    }
}

fn clocks(report: &mut Report) {
    // The shortest of some: what was in between can only make one longer.
    let tsc = (0..5).map(|_| pit::measure_tsc(50)).min().unwrap_or(0);
    let agrees = |claimed: u64| claimed.abs_diff(tsc) <= tsc / 100;
    if cpu::cpuid(0, 0)[0] >= 0x15 {
        let [denominator, numerator, crystal, _] = cpu::cpuid(0x15, 0).map(u64::from);
        let claimed = (crystal * numerator).checked_div(denominator).unwrap_or(0);
        report.check("clock-leaf-0x15", agrees(claimed), (claimed, tsc));
    } else {
        report.check("clock-leaf-0x15", false, "no such leaf");
    }
    if let Some(lamina) = Lamina::find() {
        let [khz, apic] = lamina.timing();
        report.check("clock-timing-leaf", agrees(u64::from(khz) * 1000), (khz, tsc));
        report.check("clock-apic-rate", apic > 0, apic);
        let (before, start) = (lamina.clock().unwrap_or(0), cpu::tsc());
        pit::measure_tsc(50);
        let (after, end) = (lamina.clock().unwrap_or(0), cpu::tsc());
        let claimed = (end - start) * 1_000_000_000 / after.saturating_sub(before).max(1);
        report.check("clock-call", agrees(claimed), (claimed, tsc));
    }
}
