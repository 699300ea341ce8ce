//! From a cause to the first instruction of a handler: interrupts to oneself, and the timer's deadline.
//!
//! Works in x2APIC mode and stays in it.

use core::arch::naked_asm;
use core::cell::UnsafeCell;

use guest_rt::trap;

use crate::counts;
use crate::instruction::{drain, halt_while, rdmsr, rdtsc, spin_while, wrmsr};
use crate::measure::{ROUNDS, report};

const IA32_APIC_BASE: u32 = 0x1b;
const ENABLED_X2APIC: u64 = 1 << 11 | 1 << 10;
const IA32_TSC_DEADLINE: u32 = 0x6e0;
const X2APIC_SPURIOUS: u32 = 0x80f;
const X2APIC_LVT_TIMER: u32 = 0x832;
const X2APIC_SELF_IPI: u32 = 0x83f;
/// Software enable; the spurious vector is the last that has an entry.
const SPURIOUS: u64 = 1 << 8 | 0x3f;
const TSC_DEADLINE_MODE: u64 = 2 << 17;
const VECTOR: u8 = 0x31;

/// What the handler writes.
#[repr(C)]
struct Seen {
    /// The counter at its first instruction, but for the two that save registers.
    tsc: u64,
    count: u64,
}

#[repr(C)]
struct Shared(UnsafeCell<Seen>);

// SAFETY: one processor; the program reads only with interrupts out.
unsafe impl Sync for Shared {}

static SEEN: Shared = Shared(UnsafeCell::new(Seen { tsc: 0, count: 0 }));

/// Notes when it was reached, and acknowledges.
#[unsafe(naked)]
unsafe extern "C" fn handler() {
    naked_asm!(
        "push rax",
        "push rdx",
        "rdtsc",
        "push rcx",
        "shl rdx, 32",
        "or rax, rdx",
        "mov [rip + {seen}], rax",
        "inc qword ptr [rip + {seen} + 8]",
        "mov ecx, 0x80b",
        "xor eax, eax",
        "xor edx, edx",
        "wrmsr",
        "pop rcx",
        "pop rdx",
        "pop rax",
        "iretq",
        seen = sym SEEN,
    )
}

fn seen() -> (u64, u64, *const u64) {
    let seen = SEEN.0.get();
    // SAFETY: interrupts are out, so the handler does not write now.
    unsafe { ((*seen).tsc, (*seen).count, &raw const (*seen).count) }
}

/// Switches to x2APIC mode with a timer that has a deadline.
pub fn enable() {
    // SAFETY: the handler keeps all registers and ends with IRETQ.
    unsafe { trap::set_entry(VECTOR, handler) };
    trap::set_handler(0x3f, |_| {});
    // SAFETY: the caller has found x2APIC mode and the deadline in CPUID; the vectors have handlers.
    unsafe {
        wrmsr(IA32_APIC_BASE, rdmsr(IA32_APIC_BASE) | ENABLED_X2APIC);
        wrmsr(X2APIC_SPURIOUS, SPURIOUS);
        wrmsr(X2APIC_LVT_TIMER, TSC_DEADLINE_MODE | u64::from(VECTOR));
    }
}

/// From the write to the self-IPI register to the handler.
#[inline(never)]
pub fn self_ipi() {
    let name = "ipi/x2apic-self";
    if counts::is_enabled() {
        return counts::operation(name, || {
            interrupt_itself();
        });
    }
    let mut samples = [0; ROUNDS];
    samples.fill_with(interrupt_itself);
    report(name, &mut samples);
}

/// How long it takes. Unit: ticks of the TSC.
#[inline(always)]
fn interrupt_itself() -> u64 {
    let (_, before, count) = seen();
    // SAFETY: interrupts are let in with a handler for the vector in place.
    unsafe { core::arch::asm!("sti") };
    let from = rdtsc();
    // SAFETY: x2APIC mode is on.
    unsafe { wrmsr(X2APIC_SELF_IPI, VECTOR.into()) };
    spin_while(count, before);
    seen().0 - from
}

/// From the deadline, `ahead` ticks in the future, to the handler, with the processor spinning or halted.
#[inline(never)]
pub fn deadline(name: &str, ahead: u64, halted: bool) {
    drain();
    let mut samples = [0; ROUNDS];
    for sample in &mut samples {
        let (_, before, count) = seen();
        let deadline = rdtsc() + ahead;
        // SAFETY: the timer is in this mode, with a vector that has a handler.
        unsafe { wrmsr(IA32_TSC_DEADLINE, deadline) };
        if halted {
            halt_while(count, before)
        } else {
            spin_while(count, before)
        }
        *sample = seen().0.saturating_sub(deadline);
    }
    report(name, &mut samples);
}
