//! The instructions that are measured, one function each. All run at privilege level 0 with memory mapped one to one.

use core::arch::asm;

/// The time-stamp counter, not ordered with anything else: one instruction is one tick where this counts.
#[inline(always)]
pub fn rdtsc() -> u64 {
    let value: u64;
    // SAFETY: reads a counter.
    unsafe { asm!("rdtsc", "shl rdx, 32", "or rax, rdx", out("rax") value, out("rdx") _, options(nostack)) };
    value
}

/// A hundred NOPs, which show what a tick is.
#[inline(always)]
pub fn nops() {
    // SAFETY: nothing is done.
    unsafe { asm!(".rept 100", "nop", ".endr", options(nostack)) };
}

/// CPUID.
#[inline(always)]
pub fn cpuid(leaf: u32) {
    // SAFETY: reads; RBX, which the compiler keeps for itself, is put back.
    unsafe {
        asm!("mov {rbx}, rbx", "cpuid", "mov rbx, {rbx}", rbx = out(reg) _,
            inout("eax") leaf => _, inout("ecx") 0 => _, out("edx") _, options(nostack));
    }
}

/// RDMSR.
///
/// # Safety
/// The MSR exists.
#[inline(always)]
pub unsafe fn rdmsr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller's duty.
    unsafe { asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// WRMSR.
///
/// # Safety
/// The MSR exists, takes the value, and leaves memory and mode as they are with it.
#[inline(always)]
pub unsafe fn wrmsr(msr: u32, value: u64) {
    let (low, high) = ((value & 0xffff_ffff) as u32, (value >> 32) as u32);
    // SAFETY: the caller's duty.
    unsafe { asm!("wrmsr", in("ecx") msr, in("eax") low, in("edx") high, options(nostack)) };
}

/// IN of a byte.
#[inline(always)]
pub fn inb(port: u16) {
    // SAFETY: no device touches memory for it.
    unsafe { asm!("in al, dx", in("dx") port, out("al") _, options(nostack)) };
}

/// MOV of a doubleword to memory.
///
/// # Safety
/// The address is a device's register that takes the value, or memory that nobody else uses.
#[inline(always)]
pub unsafe fn store(address: u64, value: u32) {
    // SAFETY: the caller's duty.
    unsafe { asm!("mov [{}], {:e}", in(reg) address, in(reg) value, options(nostack)) };
}

/// MOV of a doubleword from memory.
///
/// # Safety
/// Reading the address has no effect that matters.
#[inline(always)]
pub unsafe fn load(address: u64) {
    // SAFETY: the caller's duty.
    unsafe { asm!("mov {:e}, [{}]", out(reg) _, in(reg) address, options(nostack)) };
}

/// Clears the page at `page`.
///
/// # Safety
/// It is memory, and nobody keeps anything there.
#[inline(always)]
pub unsafe fn clear(page: u64) {
    // SAFETY: the caller's duty; REP STOS needs DF clear, as the ABI keeps it.
    unsafe { asm!("rep stosq", inout("rcx") 512 => _, inout("rdi") page => _, in("rax") 0, options(nostack)) };
}

/// The hypercall that does nothing, as Lamina counts (RAX 0); other hypervisors know none of this number.
#[inline(always)]
pub fn hypercall(amd: bool) {
    // SAFETY: no call without arguments changes memory; all registers that an interface may change are given up.
    unsafe {
        if amd {
            asm!("vmmcall", inout("rax") 0u64 => _, out("rcx") _, out("rdx") _, out("rsi") _, options(nostack));
        } else {
            asm!("vmcall", inout("rax") 0u64 => _, out("rcx") _, out("rdx") _, out("rsi") _, options(nostack));
        }
    }
}

/// Lets interrupts in and spins until `count` at the address is no longer `before`.
#[inline(always)]
pub fn spin_while(count: *const u64, before: u64) {
    // SAFETY: the address is of a static that a handler counts up.
    unsafe { asm!("sti", "2: cmp [{}], {}", "je 2b", "cli", in(reg) count, in(reg) before, options(nostack)) };
}

/// Lets interrupts in and halts until `count` at the address is no longer `before`.
#[inline(always)]
pub fn halt_while(count: *const u64, before: u64) {
    // SAFETY: as above; STI lets nothing in before HLT has begun.
    unsafe { asm!("2: sti", "hlt", "cli", "cmp [{}], {}", "je 2b", in(reg) count, in(reg) before, options(nostack)) };
}

/// Lets what is pending in, and keeps it out again.
pub fn drain() {
    // SAFETY: every vector that can be pending has a handler.
    unsafe { asm!("sti", "nop", "nop", "cli", options(nostack)) };
}
