//! A write of an MSR that the processor may refuse.
//!
//! Owns the one instruction whose #GP is an answer and no bug, and the way on behind it. For trials while the processor is
//! set up; never on the way of an exit.

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

/// WRMSR; 0 where it was executed. EDI: the MSR, RSI: the value, RDX: its upper half.
///
/// # Safety
/// As for [`wrmsr_safe`].
#[unsafe(naked)]
unsafe extern "sysv64" fn write(index: u32, value: u64, upper: u64) -> u64 {
    naked_asm!("mov ecx, edi", "mov rax, rsi", "wrmsr", "xor eax, eax", "ret")
}

/// Where [`write`] would be refused.
#[unsafe(naked)]
extern "sysv64" fn refused() -> u64 {
    naked_asm!("mov eax, 1", "ret")
}

/// Length of `mov ecx, edi` and `mov rax, rsi`. Unit: bytes.
const BEFORE: u64 = 2 + 3;

/// Whether the exception of `frame` is an answer: then it goes on behind [`wrmsr_safe`].
pub fn recover(frame: &mut TrapFrame) -> bool {
    let here = (write as *const ()).expose_provenance() as u64 + BEFORE;
    let mine = frame.vector == GENERAL_PROTECTION && frame.rip == here;
    if mine {
        frame.rip = (refused as *const ()).expose_provenance() as u64;
    }
    mine
}
