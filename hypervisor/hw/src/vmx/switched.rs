//! Registers that no VMCS holds and that move when a vCPU comes in or goes out: reading and writing them.
//!
//! Never decides when, nor what is in them.

use core::arch::asm;

use x86_64::registers::model_specific::Msr;

use crate::events::{self, Event};

/// Reads an MSR of those that move.
pub(super) fn read_msr(index: u32) -> u64 {
    events::count(Event::Rdmsr);
    // SAFETY: reading one of `SWITCHED`, which the caller knows this processor to have, changes nothing.
    unsafe { Msr::new(index).read() }
}

/// Writes one.
pub(super) fn write_msr(index: u32, value: u64) {
    events::count(Event::Wrmsr);
    // SAFETY: one of `SWITCHED` that this processor has: none of them has an effect on our own code, which uses neither SYSCALL, SWAPGS nor
    // RDTSCP. The value is one that the guest wrote by itself, so the processor has accepted it before, or 0.
    unsafe { Msr::new(index).write(value) };
}

/// CR2.
pub(super) fn read_cr2() -> u64 {
    x86_64::registers::control::Cr2::read_raw()
}

/// Sets CR2.
pub(super) fn write_cr2(value: u64) {
    // SAFETY: CR2 is only a report; a page fault of our own writes it anew.
    unsafe { asm!("mov cr2, {}", in(reg) value, options(nostack, nomem, preserves_flags)) };
}

/// DR0 to DR3, and DR6.
pub(super) fn read_debug() -> [u64; 5] {
    let [a, b, c, d, e]: [u64; 5];
    // SAFETY: reading debug registers changes nothing; DR7.GD is clear in the host, as every exit sets DR7 to 0x400.
    unsafe {
        asm!(
            "mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3", "mov {}, dr6",
            out(reg) a, out(reg) b, out(reg) c, out(reg) d, out(reg) e,
            options(nostack, nomem, preserves_flags),
        );
    }
    [a, b, c, d, e]
}

/// Sets DR0 to DR3, and DR6.
pub(super) fn write_debug(values: &[u64; 5]) {
    let [a, b, c, d, e] = *values;
    // SAFETY: breakpoints count only with DR7, which is 0x400 in the host: the addresses have no effect on us. The
    // values were read from the registers, or are those after reset.
    unsafe {
        asm!(
            "mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}", "mov dr6, {}",
            in(reg) a, in(reg) b, in(reg) c, in(reg) d, in(reg) e,
            options(nostack, nomem, preserves_flags),
        );
    }
}
