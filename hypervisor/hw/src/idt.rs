//! The interrupt descriptor table and the one entry path behind all 256 vectors.
//!
//! Owns the saving and restoring of registers around a handler. An exception of the hypervisor's own is always a bug: it is
//! reported and ends the machine; but a trap that it cannot have raised is dropped. Interrupts go to [`crate::interrupts`], NMIs to [`crate::watchdog`], which may
//! have the interrupted code go on elsewhere.

use core::arch::naked_asm;
use spin::Once;
use x86_64::VirtAddr;
use x86_64::registers::debug::Dr7;
use x86_64::registers::model_specific::GsBase;
use x86_64::registers::rflags::RFlags;
use x86_64::structures::idt::InterruptDescriptorTable;

use crate::{gdt, interrupts, msr_safe, report, watchdog};

/// The registers of interrupted code, in the order in which the entry path and the processor push them.
#[repr(C)]
#[derive(Debug)]
#[allow(missing_docs, reason = "each field is the register of its name")]
pub struct TrapFrame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rax: u64,
    /// Which vector, 0 to 255.
    pub vector: u64,
    /// The error code, 0 where the vector has none.
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

const _: () = assert!(core::mem::size_of::<TrapFrame>() == 22 * 8);

/// Exceptions that push an error code, by bit (SDM vol. 3, "Exception and Interrupt Reference"): #DF, #TS, #NP, #SS,
/// #GP, #PF, #AC, #CP, #VC, #SX.
const WITH_ERROR_CODE: u32 = 0x6022_7d00;
/// L0, G0 to L3, G3 of DR7 (SDM vol. 3, "Debug Control Register (DR7)").
const ENABLED_BREAKPOINTS: u64 = 0xff;
/// Bytes from one vector's stub to the next.
const STUB: u64 = 16;

/// One stub of [`STUB`] bytes for each vector: pushes what makes all frames alike, and its vector.
#[unsafe(naked)]
extern "C" fn vector_stubs() {
    naked_asm!(
        ".set .Lvector, 0",
        ".rept 256",
        "2:",
        ".if (.Lvector < 32) && ((({with_error} >> (.Lvector & 31)) & 1) != 0)",
        ".else",
        "pushq $0",
        ".endif",
        "pushq $.Lvector",
        "jmp {common}",
        ".org 2b + {stub}, 0xcc",
        ".set .Lvector, .Lvector + 1",
        ".endr",
        with_error = const WITH_ERROR_CODE,
        stub = const STUB,
        common = sym common_entry,
        options(att_syntax),
    )
}

/// Saves the registers, calls [`trap`] with the frame, restores them. The processor aligns the stack to 16 before it
/// pushes, and the frame is a multiple of 16 long, so the call finds the stack as the ABI wants it. There is no user
/// mode, so GS holds the hypervisor's base already; no vector registers are saved, as this target uses none.
#[unsafe(naked)]
extern "C" fn common_entry() {
    naked_asm!(
        "push rax",
        "push rcx",
        "push rdx",
        "push rbx",
        "push rbp",
        "push rsi",
        "push rdi",
        "push r8",
        "push r9",
        "push r10",
        "push r11",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "cld",
        "mov rdi, rsp",
        "call {trap}",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop r11",
        "pop r10",
        "pop r9",
        "pop r8",
        "pop rdi",
        "pop rsi",
        "pop rbp",
        "pop rbx",
        "pop rdx",
        "pop rcx",
        "pop rax",
        "add rsp, 16",
        "iretq",
        trap = sym trap,
    )
}

/// Everything that came through the table.
extern "C" fn trap(frame: &mut TrapFrame) {
    match u8::try_from(frame.vector).unwrap_or(u8::MAX) {
        1 if is_carried_over(frame) => {}
        2 => watchdog::nmi(frame),
        0..=31 if msr_safe::recover(frame) => {}
        0..=31 => report::exception(frame),
        vector => interrupts::dispatch(vector),
    }
}

/// Whether this debug exception is a guest's, which the processor carried over its exit: the hypervisor steps nothing and
/// watches nothing. Bochs 3.0 does, under SVM, where an instruction exits that would have been followed by the trap of a
/// step, unless the set-up has built it; a processor forgets it. Comes before anything of the hypervisor's is loaded but stack and code, GS not.
fn is_carried_over(frame: &TrapFrame) -> bool {
    let steps = RFlags::from_bits_truncate(frame.rflags).contains(RFlags::TRAP_FLAG);
    let watches = Dr7::read().bits() & ENABLED_BREAKPOINTS != 0;
    !steps && !watches
}

/// The table, the same for all processors.
static IDT: Once<InterruptDescriptorTable> = Once::new();

/// The one before, whose handlers run by the loader's code segment and on the stack that is in use.
static EARLY: Once<InterruptDescriptorTable> = Once::new();

/// First of all: interrupts off, whatever the loader left, and a table in which exceptions are told. It holds
/// while the loader's page tables do, which have its segments; and a stack that overflows ends the machine without a word.
pub fn init_early() {
    x86_64::instructions::interrupts::disable();
    // So that nobody takes what firmware left for this processor's structure.
    GsBase::write(VirtAddr::zero());
    EARLY.call_once(|| table(false)).load();
}

/// Loads the table on this processor, after [`gdt::init`].
pub fn init() {
    IDT.call_once(|| table(true)).load();
}

/// The table, for the code segment that is loaded; `has_stacks`: and for the stacks of [`gdt::init`].
fn table(has_stacks: bool) -> InterruptDescriptorTable {
    let mut idt = InterruptDescriptorTable::new();
    let stubs = VirtAddr::from_ptr(vector_stubs as *const ());
    // SAFETY, for every block of this macro: the stub saves and restores everything as the processor's frame for this
    // vector, with or without error code, demands. A stack index belongs to this vector alone, and is set only where
    // `gdt::init` has given it a stack.
    macro_rules! entry {
        ($entry:expr, $vector:expr) => {
            // SAFETY: see above.
            unsafe { $entry.set_handler_addr(stubs + u64::from($vector as u8) * STUB) }
        };
        ($entry:expr, $vector:expr, $stack:expr) => {{
            let options = entry!($entry, $vector);
            if has_stacks {
                // SAFETY: see above.
                unsafe { options.set_stack_index($stack) };
            }
        }};
    }
    entry!(idt.divide_error, 0);
    entry!(idt.debug, 1);
    entry!(idt.non_maskable_interrupt, 2, gdt::NMI_STACK);
    entry!(idt.breakpoint, 3);
    entry!(idt.overflow, 4);
    entry!(idt.bound_range_exceeded, 5);
    entry!(idt.invalid_opcode, 6);
    entry!(idt.device_not_available, 7);
    entry!(idt.double_fault, 8, gdt::DOUBLE_FAULT_STACK);
    entry!(idt.invalid_tss, 10);
    entry!(idt.segment_not_present, 11);
    entry!(idt.stack_segment_fault, 12);
    entry!(idt.general_protection_fault, 13);
    entry!(idt.page_fault, 14);
    entry!(idt.x87_floating_point, 16);
    entry!(idt.alignment_check, 17);
    entry!(idt.machine_check, 18, gdt::MACHINE_CHECK_STACK);
    entry!(idt.simd_floating_point, 19);
    entry!(idt.virtualization, 20);
    entry!(idt.cp_protection_exception, 21);
    entry!(idt.hv_injection_exception, 28);
    entry!(idt.vmm_communication_exception, 29);
    entry!(idt.security_exception, 30);
    for vector in 32..=255u8 {
        entry!(idt[vector], vector);
    }
    idt
}
