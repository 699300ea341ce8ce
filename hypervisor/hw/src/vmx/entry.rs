//! Into the guest and back: the only code that runs with the guest's general-purpose registers.
//!
//! Owns the frame through which they pass. Saves and loads 15 registers, nothing else: the rest is the VMCS's or moves
//! when another vCPU comes in.

use core::arch::naked_asm;

use lamina_arch::regs::Gprs;
use lamina_arch::speculation::Plan;

use crate::speculation::{Defences, VERW_OPERAND, after_exit};

/// What the entry code works on; its layout is known to the assembly below.
#[repr(C, align(16))]
#[derive(Debug)]
pub struct Frame {
    /// The guest's registers. The RSP slot is not used.
    pub gprs: Gprs,
    /// Our stack pointer while the guest runs.
    host_rsp: u64,
    /// What is done beside.
    pub defences: Defences,
}

impl Frame {
    /// Of registers that are 0.
    pub fn new(plan: &Plan) -> Frame {
        Frame { gprs: Gprs::default(), host_rsp: 0, defences: Defences::new(plan) }
    }

    /// What HOST_RIP is, for good.
    pub fn host_rip(&self) -> u64 {
        let exit = if self.defences.at_exit() { exit_from_guest_defended } else { exit_from_guest };
        exit as *const () as u64
    }

    /// What HOST_RSP is, for good: behind the registers, so that they are pushed into their places.
    pub fn host_rsp(&self) -> u64 {
        &raw const self.host_rsp as u64
    }
}

const _: () = assert!(core::mem::offset_of!(Frame, gprs) == 0);
const _: () = assert!(core::mem::offset_of!(Frame, host_rsp) == 128);
const _: () = assert!(core::mem::offset_of!(Frame, defences) == 136);

/// What came of an entry: what the code below returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entered(u64);

impl Entered {
    /// VMfailValid: the VM-instruction error tells. VMfailInvalid is 1.
    pub const FAIL_VALID: Entered = Entered(2);

    /// Whether the processor refused to enter.
    #[inline(always)]
    pub const fn is_refused(self) -> bool {
        self.0 != 0
    }
}

/// Calls one of the two ways in. The compiler keeps what it needs behind the call in memory, and not in registers that
/// would have to be saved beside those of the guest.
macro_rules! enter {
    ($function:ident, $frame:ident) => {{
        let code: u64;
        core::arch::asm!(
            "push rbp",
            "push rbx",
            "call {function}",
            "pop rbx",
            "pop rbp",
            function = sym $function,
            inout("rdi") core::ptr::from_mut($frame) => _,
            out("rax") code,
            out("rcx") _,
            out("rdx") _,
            out("rsi") _,
            out("r8") _,
            out("r9") _,
            out("r10") _,
            out("r11") _,
            out("r12") _,
            out("r13") _,
            out("r14") _,
            out("r15") _,
        );
        code
    }};
}

/// Enters the guest of the current VMCS for the first time since it was cleared, and returns when it exits.
///
/// # Safety
/// A VMCS is current whose host state is this processor's as `setup` wrote it, it is not launched, and extended state
/// and MSRs that no exit switches are the guest's.
pub unsafe fn launch(frame: &mut Frame) -> Entered {
    frame.defences.before_entry();
    // SAFETY: the caller's promise; the frame is borrowed mutably for the call, which gives back RBX, RBP and RSP.
    Entered(unsafe { enter!(launch_guest, frame) })
}

/// As [`launch`], of a VMCS that is launched.
///
/// # Safety
/// As for [`launch`], but the VMCS is launched.
#[inline(always)]
pub unsafe fn resume(frame: &mut Frame) -> Entered {
    if frame.defences.at_entry() {
        frame.defences.before_entry();
        // SAFETY: the caller's promise; the frame is borrowed mutably for the call, which gives back RBX, RBP and RSP.
        return Entered(unsafe { enter!(resume_guest_cleared, frame) });
    }
    // SAFETY: as above.
    Entered(unsafe { enter!(resume_guest, frame) })
}

/// The code of both ways in. RDI: the frame. Returns in RAX 0 after an exit, 1 after VMfailInvalid, 2 after
/// VMfailValid; the other registers hold anything. Instructions with those of `enter`: 20 on the way in, 21 on the way
/// out; with VERW one more. VERW is the last: what it reads after the guest's registers is a selector.
macro_rules! enter_by {
    ($clear:literal, $instruction:literal $(, $($operand:tt)+)?) => {
        naked_asm!(
            "mov [rdi + 128], rsp",
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
            $clear,
            $instruction,
            // Still here: the entry failed. CF is VMfailInvalid, ZF is VMfailValid.
            "mov eax, 1",
            "mov ecx, 2",
            "cmovz eax, ecx",
            "ret",
            $($($operand)+)?
        )
    };
}

/// # Safety
/// As [`launch`], and by `enter` only: it keeps no register but RSP.
#[unsafe(naked)]
unsafe extern "sysv64" fn launch_guest(frame: *mut Frame) -> u64 {
    enter_by!("verw word ptr [rip + {verw}]", "vmlaunch", verw = sym VERW_OPERAND)
}

/// # Safety
/// As [`resume`], and by `enter` only: it keeps no register but RSP.
#[unsafe(naked)]
unsafe extern "sysv64" fn resume_guest(frame: *mut Frame) -> u64 {
    enter_by!("", "vmresume")
}

/// # Safety
/// As [`resume`], and by `enter` only: it keeps no register but RSP.
#[unsafe(naked)]
unsafe extern "sysv64" fn resume_guest_cleared(frame: *mut Frame) -> u64 {
    enter_by!("verw word ptr [rip + {verw}]", "vmresume", verw = sym VERW_OPERAND)
}

/// The code of both ways out. Whatever may interrupt these instructions (an NMI, a machine check) has a stack of its own.
macro_rules! exit_by {
    ($($rest:expr),*) => {
        naked_asm!(
            "push r15",
            "push r14",
            "push r13",
            "push r12",
            "push r11",
            "push r10",
            "push r9",
            "push r8",
            "push rdi",
            "push rsi",
            "push rbp",
            // RSP's place, which nobody uses.
            "push rax",
            "push rbx",
            "push rdx",
            "push rcx",
            "push rax",
            $($rest,)*
            "xor eax, eax",
            "ret",
        )
    };
}

/// Where every exit arrives, with the guest's registers and the stack pointer at the end of the frame's registers:
/// HOST_RIP.
///
/// # Safety
/// Never called: the processor jumps here.
#[unsafe(naked)]
unsafe extern "sysv64" fn exit_from_guest() {
    exit_by!("mov rsp, [rsp + 128]")
}

/// The same where something is done against what the guest left in the processor.
///
/// # Safety
/// Never called: the processor jumps here.
#[unsafe(naked)]
unsafe extern "sysv64" fn exit_from_guest_defended() {
    exit_by!("lea rdi, [rsp + 136]", "mov rsp, [rsp + 128]", after_exit!())
}
