//! Registers that no VMCB holds and that move when a vCPU comes in or goes out: reading and writing them.
//!
//! Never decides when, nor what is in them.

use core::arch::asm;

use lamina_arch::msr;
use x86_64::registers::model_specific::Msr;

/// Sets IA32_TSC_AUX, which the caller knows the processor to have.
pub(super) fn write_tsc_aux(value: u64) {
    // SAFETY: the caller asked whether the processor has it. Our own code does not use RDTSCP, and no bit of the upper half
    // is set: `lamina_vmm::msr::watched` has seen to it.
    unsafe { Msr::new(msr::IA32_TSC_AUX).write(value) };
}

/// DR0 to DR3.
pub(super) fn read_debug() -> [u64; 4] {
    let [a, b, c, d]: [u64; 4];
    // SAFETY: reading debug registers changes nothing; DR7.GD is clear in the host, as every exit disables DR7.
    unsafe {
        asm!(
            "mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3",
            out(reg) a, out(reg) b, out(reg) c, out(reg) d,
            options(nostack, nomem, preserves_flags),
        );
    }
    [a, b, c, d]
}

/// Sets DR0 to DR3.
pub(super) fn write_debug(values: &[u64; 4]) {
    let [a, b, c, d] = *values;
    // SAFETY: breakpoints count only with DR7, which every exit disables: the addresses have no effect on us.
    unsafe {
        asm!(
            "mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}",
            in(reg) a, in(reg) b, in(reg) c, in(reg) d,
            options(nostack, nomem, preserves_flags),
        );
    }
}
