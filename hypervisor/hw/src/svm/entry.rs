//! Into the guest and back: the only code that runs with the guest's general-purpose registers.
//!
//! Owns the frame through which they pass. RAX and RSP are the VMCB's. GIF is clear from before the guest's segment
//! registers come in until the host's are back, so that nothing, no NMI either, runs on a mixture of both.

use core::arch::naked_asm;

use lamina_arch::addr::Hpa;
use lamina_arch::regs::Gprs;
use lamina_arch::speculation::Plan;

use crate::speculation::{Defences, VERW_OPERAND, after_exit};

/// What the entry code works on; its layout is known to the assembly below.
#[repr(C, align(16))]
#[derive(Debug)]
pub struct Frame {
    /// The guest's registers. The RSP slot is not used; RAX goes by way of the VMCB.
    pub gprs: Gprs,
    /// What is done beside.
    pub defences: Defences,
}

impl Frame {
    /// Of registers that are 0.
    pub fn new(plan: &Plan) -> Frame {
        Frame { gprs: Gprs::default(), defences: Defences::new(plan) }
    }
}

const _: () = assert!(core::mem::offset_of!(Frame, gprs) == 0);
const _: () = assert!(core::mem::offset_of!(Frame, defences) == 128);

/// Enters the guest of the VMCB at `guest` and returns when it exits. Interrupts are off before and after; those that
/// come while the guest runs end its run and stay pending.
///
/// # Safety
/// SVM is on with a host save area. `guest` is the address of a VMCB that `setup` made and nobody has borrowed, `host`
/// of one with this processor's state by VMSAVE, and extended state and MSRs that no exit switches are the guest's.
pub unsafe fn enter(frame: &mut Frame, guest: Hpa, host: Hpa) {
    if frame.defences.at_entry() || frame.defences.at_exit() {
        frame.defences.before_entry();
        // SAFETY: the caller's promise; the frame is borrowed mutably for the call.
        unsafe { enter_guest_defended(frame, guest.0, host.0) };
    } else {
        // SAFETY: as above.
        unsafe { enter_guest(frame, guest.0, host.0) };
    }
}

/// The code of both ways. RDI: the frame, RSI: the guest's VMCB, RDX: the host's. Instructions without what is done
/// beside: 31 on the way in, 28 on the way out. VERW is the last before VMRUN: what it reads is a selector.
macro_rules! enter_by {
    ($clear:literal, $after:expr $(, $($operand:tt)+)?) => {
        naked_asm!(
            "push rbp",
            "push rbx",
            "push r12",
            "push r13",
            "push r14",
            "push r15",
            "push rdx",
            "push rdi",
            "mov rax, rsi",
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
            "clgi",
            // The host's IF at VMRUN is what masks physical interrupts while the guest runs; with GIF clear none is taken
            // here.
            "sti",
            "vmload rax",
            $clear,
            "vmrun rax",
            // RAX is again what it was at VMRUN, and so is RSP.
            "vmsave rax",
            "mov rax, [rsp]",
            "mov [rax + 8], rcx",
            "mov [rax + 16], rdx",
            "mov [rax + 24], rbx",
            "mov [rax + 40], rbp",
            "mov [rax + 48], rsi",
            "mov [rax + 56], rdi",
            "mov [rax + 64], r8",
            "mov [rax + 72], r9",
            "mov [rax + 80], r10",
            "mov [rax + 88], r11",
            "mov [rax + 96], r12",
            "mov [rax + 104], r13",
            "mov [rax + 112], r14",
            "mov [rax + 120], r15",
            "mov rax, [rsp + 8]",
            "vmload rax",
            "cli",
            // With GIF still clear: nothing of ours has run before.
            $after,
            "stgi",
            "add rsp, 16",
            "pop r15",
            "pop r14",
            "pop r13",
            "pop r12",
            "pop rbx",
            "pop rbp",
            "ret",
            $($($operand)+)?
        )
    };
}

/// # Safety
/// As [`enter`].
#[unsafe(naked)]
unsafe extern "sysv64" fn enter_guest(frame: *mut Frame, guest: u64, host: u64) {
    enter_by!("", "")
}

/// # Safety
/// As [`enter`].
#[unsafe(naked)]
unsafe extern "sysv64" fn enter_guest_defended(frame: *mut Frame, guest: u64, host: u64) {
    enter_by!(
        "verw word ptr [rip + {verw}]",
        concat!("mov rdi, [rsp]\nadd rdi, 128\n", after_exit!()),
        verw = sym VERW_OPERAND
    )
}
