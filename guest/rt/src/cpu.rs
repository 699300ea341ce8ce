//! The processor.

use core::arch::asm;
use core::arch::x86_64::__cpuid_count;

/// EAX, EBX, ECX, EDX of a CPUID leaf.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let result = __cpuid_count(leaf, subleaf);
    [result.eax, result.ebx, result.ecx, result.edx]
}

/// Whether `bit` of `register` (0 to 3 for EAX to EDX) is set in a leaf; false where the processor has no such leaf.
pub fn has(leaf: u32, subleaf: u32, register: usize, bit: u32) -> bool {
    let highest = cpuid(leaf & 0x8000_0000, 0)[0];
    leaf <= highest && cpuid(leaf, subleaf)[register] >> bit & 1 != 0
}

/// The time-stamp counter, read when everything before it is done.
pub fn tsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a counter.
    unsafe { asm!("lfence", "rdtsc", "lfence", out("eax") low, out("edx") high, options(nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Lets interrupts in, halts until one has been handled, and keeps them out again.
pub fn wait_for_interrupt() {
    // SAFETY: the handlers are in place (`trap::install` ran before `main`), and STI lets the first interrupt in only
    // after HLT has begun, so none that is already pending is slept through.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}

/// Keeps interrupts out.
pub fn disable_interrupts() {
    // SAFETY: only makes things quieter.
    unsafe { asm!("cli", options(nomem, nostack)) };
}

/// Does nothing more, for good.
pub fn halt_forever() -> ! {
    loop {
        // SAFETY: stops this processor, which has nothing left to do.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// Spins with interrupts disabled, for good: what no well-behaved guest does.
pub fn hog() -> ! {
    // SAFETY: touches nothing.
    unsafe { asm!("cli", "2: jmp 2b", options(nomem, nostack, noreturn)) }
}
