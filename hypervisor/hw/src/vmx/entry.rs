//! Into the guest and back: the only code that runs with the guest's general-purpose registers.
//!
//! Owns the frame through which they pass. Saves and loads 15 registers, nothing else: the rest is the VMCS's or moves
//! when another vCPU comes in.

use core::arch::naked_asm;

use lamina_arch::regs::Gprs;
use lamina_arch::vmx::field;

/// What the entry code works on; its layout is known to the assembly below.
#[repr(C, align(16))]
#[derive(Debug, Default)]
pub struct Frame {
    /// The guest's registers. The RSP slot is not used.
    pub gprs: Gprs,
    /// What HOST_RSP holds, so that it is written only when it changes.
    host_rsp: u64,
}

const _: () = assert!(core::mem::offset_of!(Frame, gprs) == 0);
const _: () = assert!(core::mem::offset_of!(Frame, host_rsp) == 128);

/// How an attempt to enter ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    /// The guest ran, or the entry failed late: the exit reason tells.
    Exited,
    /// VMfailInvalid.
    FailedInvalid,
    /// VMfailValid: the VM-instruction error tells.
    FailedValid,
}

/// Enters the guest of the current VMCS and returns when it exits.
///
/// # Safety
/// A VMCS is current whose host state is this processor's as `setup` wrote it, `launched` says whether it was
/// launched, and extended state and MSRs that no exit switches are the guest's.
pub unsafe fn enter(frame: &mut Frame, launched: bool) -> Entered {
    // SAFETY: the caller's promise; the frame is borrowed mutably for the call.
    match unsafe { enter_guest(frame, u64::from(launched)) } {
        0 => Entered::Exited,
        1 => Entered::FailedInvalid,
        _ => Entered::FailedValid,
    }
}

/// RDI: the frame, RSI: whether to resume. Returns 0 after an exit, 1 after VMfailInvalid, 2 after VMfailValid.
/// Instructions: 27 on the way in (30 where HOST_RSP changes), 26 on the way out.
///
/// # Safety
/// As [`enter`].
#[unsafe(naked)]
unsafe extern "sysv64" fn enter_guest(frame: *mut Frame, launched: u64) -> u64 {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdi",
        // HOST_RSP is written only when this call is at another depth than the last.
        "cmp rsp, [rdi + 128]",
        "je 2f",
        "mov [rdi + 128], rsp",
        "mov eax, {host_rsp}",
        "vmwrite rax, rsp",
        "2:",
        "test rsi, rsi",
        "mov rax, [rdi + 0]",
        "mov rcx, [rdi + 8]",
        "mov rdx, [rdi + 16]",
        "mov rbx, [rdi + 24]",
        "mov rbp, [rdi + 40]",
        "mov rsi, [rdi + 48]",
        "mov r8, [rdi + 64]",
        "mov r9, [rdi + 72]",
        "mov r10, [rdi + 80]",
        "mov r11, [rdi + 88]",
        "mov r12, [rdi + 96]",
        "mov r13, [rdi + 104]",
        "mov r14, [rdi + 112]",
        "mov r15, [rdi + 120]",
        "mov rdi, [rdi + 56]",
        "jnz 3f",
        "vmlaunch",
        "jmp 4f",
        "3:",
        "vmresume",
        "4:",
        // Still here: the entry failed. CF is VMfailInvalid, ZF is VMfailValid.
        "mov eax, 1",
        "mov ecx, 2",
        "cmovz eax, ecx",
        "pop rdi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
        host_rsp = const field::HOST_RSP.encoding(),
    )
}

/// Where every exit arrives, with the guest's registers and our stack as [`enter_guest`] left it: HOST_RIP.
///
/// # Safety
/// Never called: the processor jumps here.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn exit_from_guest() {
    naked_asm!(
        "push rdi",
        "mov rdi, [rsp + 8]",
        "mov [rdi + 0], rax",
        "mov [rdi + 8], rcx",
        "mov [rdi + 16], rdx",
        "mov [rdi + 24], rbx",
        "mov [rdi + 40], rbp",
        "mov [rdi + 48], rsi",
        "pop qword ptr [rdi + 56]",
        "mov [rdi + 64], r8",
        "mov [rdi + 72], r9",
        "mov [rdi + 80], r10",
        "mov [rdi + 88], r11",
        "mov [rdi + 96], r12",
        "mov [rdi + 104], r13",
        "mov [rdi + 112], r14",
        "mov [rdi + 120], r15",
        "pop rdi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "xor eax, eax",
        "ret",
    )
}
