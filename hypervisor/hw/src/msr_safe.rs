//! Accesses to an MSR that the processor may refuse.
//!
//! Owns the two instructions whose #GP is an answer and no bug, and the way on behind them. For trials while the processor
//! is set up; never on the way of an exit.

use core::arch::naked_asm;

use crate::idt::TrapFrame;

/// #GP.
const GENERAL_PROTECTION: u64 = 13;

/// Writes `value` to the MSR `index`; false where the processor gives #GP instead.
///
/// # Safety
/// Where the processor takes the value, it does no harm to the hypervisor.
pub unsafe fn wrmsr_safe(index: u32, value: u64) -> bool {
    // SAFETY: the caller's.
    unsafe { write(index, value, value >> 32) == 0 }
}

/// The MSR `index`; `None` where the processor gives #GP instead.
pub fn rdmsr_safe(index: u32) -> Option<u64> {
    let mut value = 0;
    // SAFETY: reading an MSR changes nothing, and the value is ours.
    let refused = unsafe { read(index, &raw mut value) };
    (refused == 0).then_some(value)
}

/// WRMSR; 0 where it was executed. EDI: the MSR, RSI: the value, RDX: its upper half.
///
/// # Safety
/// As for [`wrmsr_safe`].
#[unsafe(naked)]
unsafe extern "sysv64" fn write(index: u32, value: u64, upper: u64) -> u64 {
    naked_asm!("mov ecx, edi", "mov rax, rsi", "wrmsr", "xor eax, eax", "ret")
}

/// Length of `mov ecx, edi` and `mov rax, rsi`. Unit: bytes.
const BEFORE_WRITE: u64 = 2 + 3;

/// RDMSR; 0 where it was executed. EDI: the MSR, RSI: where its value goes.
///
/// # Safety
/// `value` may be written.
#[unsafe(naked)]
unsafe extern "sysv64" fn read(index: u32, value: *mut u64) -> u64 {
    naked_asm!("mov ecx, edi", "rdmsr", "mov [rsi], eax", "mov [rsi + 4], edx", "xor eax, eax", "ret")
}

/// Length of `mov ecx, edi`. Unit: bytes.
const BEFORE_READ: u64 = 2;

/// Where [`write()`] and [`read`] go on that are refused.
#[unsafe(naked)]
extern "sysv64" fn refused() -> u64 {
    naked_asm!("mov eax, 1", "ret")
}

/// Whether the exception of `frame` is an answer: then it goes on behind [`wrmsr_safe`] or [`rdmsr_safe`].
pub fn recover(frame: &mut TrapFrame) -> bool {
    let write = (write as *const ()).expose_provenance() as u64 + BEFORE_WRITE;
    let read = (read as *const ()).expose_provenance() as u64 + BEFORE_READ;
    let mine = frame.vector == GENERAL_PROTECTION && [write, read].contains(&frame.rip);
    if mine {
        frame.rip = (refused as *const ()).expose_provenance() as u64;
    }
    mine
}
