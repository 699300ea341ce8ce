//! Exceptions and interrupts (SDM vol. 3, "Interrupt and Exception Handling").
//!
//! Owns the IDT. Vectors from 0 to 63 have entries; an exception that nobody awaits ends the machine with a report.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use crate::cpu;

/// Vectors with an entry.
pub const VECTORS: usize = 64;
/// Vector of the first interrupt of the 8259 pair, behind the exceptions.
pub const FIRST_IRQ_VECTOR: u8 = 32;

/// Vector of the non-maskable interrupt.
pub const NMI_VECTOR: u8 = 2;

/// What was interrupted, as the entry code leaves it on the stack.
#[repr(C)]
#[derive(Debug)]
pub struct Frame {
    /// R15, R14, R13, R12, R11, R10, R9, R8, RBP, RDI, RSI, RDX, RCX, RBX, RAX.
    pub registers: [u64; 15],
    /// The vector.
    pub vector: u64,
    /// The error code; 0 where the vector has none.
    pub error: u64,
    /// Where the handler returns to.
    pub rip: u64,
    /// Code segment.
    pub cs: u64,
    /// Flags.
    pub rflags: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Stack segment.
    pub ss: u64,
}

const _: () = assert!(size_of::<Frame>() == 22 * 8);

/// Handles one vector.
pub type Handler = fn(&mut Frame);

/// An exception that a probe awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The vector.
    pub vector: u8,
    /// The error code; 0 where the vector has none.
    pub error: u32,
}

static HANDLERS: [AtomicPtr<()>; VECTORS] = [const { AtomicPtr::new(core::ptr::null_mut()) }; VECTORS];

/// What an awaited exception interrupted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Code segment.
    pub cs: u64,
}

/// Where execution goes on after an exception that is awaited (an NMI is not, where it has a handler); 0 while none is. For
/// assembly code; it goes on at privilege level 0 with interrupts out, the stack pointer and all other registers as they
/// were.
pub static RECOVERY: AtomicU64 = AtomicU64::new(0);
/// RIP, RFLAGS, RSP and CS of the last such exception.
static PLACE: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];
/// Vector and error code of the last such exception: vector + 1 in the high half, so that 0 says none.
static CAUGHT: AtomicU64 = AtomicU64::new(0);

/// Selectors of `start`'s descriptor table, and the flags that nothing is wanted of.
const CODE_SELECTOR: u64 = 0x08;
const DATA_SELECTOR: u64 = 0x10;
const FLAGS: u64 = 2;

/// Present 64-bit interrupt gate, DPL 0 (SDM vol. 3, "64-Bit Mode IDT").
#[derive(Clone, Copy)]
#[repr(C)]
struct Gate {
    low: u64,
    high: u64,
}

#[repr(C, align(16))]
struct Idt(UnsafeCell<[Gate; VECTORS]>);

// SAFETY: written by `install` only, before interrupts are let in, on the one processor.
unsafe impl Sync for Idt {}

static IDT: Idt = Idt(UnsafeCell::new([Gate { low: 0, high: 0 }; VECTORS]));

/// Offset of the table's last byte.
#[allow(clippy::cast_possible_truncation, reason = "64 gates of 16 bytes")]
const LIMIT: u16 = (size_of::<[Gate; VECTORS]>() - 1) as u16;

/// What LIDT takes.
#[repr(C, packed)]
struct PseudoDescriptor {
    limit: u16,
    base: u64,
}

// One entry per vector, 16 bytes apart, so that an address follows from the number. The vectors without an error code
// push 0 in its place; the processor has aligned the stack before, and the frame keeps it so for the call.
global_asm!(
    ".balign 16",
    "guest_rt_entries:",
    ".set vector, 0",
    ".rept 64",
    "    .balign 16",
    "    .if (vector < 32) && ((0x60227d00 >> vector) & 1)",
    "    .else",
    "        push 0",
    "    .endif",
    "    push vector",
    "    jmp guest_rt_common",
    "    .set vector, vector + 1",
    ".endr",
    "guest_rt_common:",
    "    push rax",
    "    push rbx",
    "    push rcx",
    "    push rdx",
    "    push rsi",
    "    push rdi",
    "    push rbp",
    "    push r8",
    "    push r9",
    "    push r10",
    "    push r11",
    "    push r12",
    "    push r13",
    "    push r14",
    "    push r15",
    "    cld",
    "    mov rdi, rsp",
    "    call {dispatch}",
    "    pop r15",
    "    pop r14",
    "    pop r13",
    "    pop r12",
    "    pop r11",
    "    pop r10",
    "    pop r9",
    "    pop r8",
    "    pop rbp",
    "    pop rdi",
    "    pop rsi",
    "    pop rdx",
    "    pop rcx",
    "    pop rbx",
    "    pop rax",
    "    add rsp, 16",
    "    iretq",
    dispatch = sym dispatch,
);

unsafe extern "C" {
    /// The first entry; only its address counts.
    static guest_rt_entries: u8;
}

extern "C" fn dispatch(frame: &mut Frame) {
    let index = (frame.vector & 0xff) as usize % VECTORS;
    let handler = HANDLERS[index].load(Ordering::Relaxed);
    // An NMI is nobody's fault: what it interrupts goes on where it was, be it a probe or another handler.
    let awaited = index != usize::from(NMI_VECTOR) || handler.is_null();
    if index < usize::from(FIRST_IRQ_VECTOR) && awaited {
        let recovery = RECOVERY.swap(0, Ordering::Relaxed);
        if recovery != 0 {
            CAUGHT.store((frame.vector + 1) << 32 | frame.error & 0xffff_ffff, Ordering::Relaxed);
            for (kept, value) in PLACE.iter().zip([frame.rip, frame.rflags, frame.rsp, frame.cs]) {
                kept.store(value, Ordering::Relaxed);
            }
            frame.rip = recovery;
            // What was tried may have left privilege level 0, and set flags that nobody wants here.
            frame.cs = CODE_SELECTOR;
            frame.ss = DATA_SELECTOR;
            frame.rflags = FLAGS;
            return;
        }
    }
    if !handler.is_null() {
        // SAFETY: `set_handler` alone stores there, and only values of this type.
        let handler = unsafe { core::mem::transmute::<*mut (), Handler>(handler) };
        handler(frame);
        return;
    }
    let cr2: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr2", out(reg) cr2, options(nomem, nostack, preserves_flags)) };
    panic!(
        "vector {} with error {:#x} at {:#x}, stack {:#x}, CR2 {cr2:#x}",
        frame.vector, frame.error, frame.rip, frame.rsp
    );
}

/// Has `handler` called for `vector`; below [`VECTORS`], others are refused with a panic.
pub fn set_handler(vector: u8, handler: Handler) {
    HANDLERS[usize::from(vector)].store(handler as *mut (), Ordering::Relaxed);
}

/// Has the processor enter `entry` for `vector` instead of calling a handler; below [`VECTORS`], others are refused with
/// a panic.
///
/// # Safety
/// `entry` is code that leaves every register and the memory of the program as they are and ends with IRETQ.
pub unsafe fn set_entry(vector: u8, entry: unsafe extern "C" fn()) {
    let address = entry as *const () as u64;
    assert!(usize::from(vector) < VECTORS, "vector {vector} has no entry");
    // SAFETY: the index is within the table; interrupts are out, so nobody reads it now.
    unsafe { (*IDT.0.get())[usize::from(vector)] = gate(address) };
}

const fn gate(entry: u64) -> Gate {
    Gate { low: entry & 0xffff | 0x08 << 16 | 0x8e00 << 32 | (entry >> 16 & 0xffff) << 48, high: entry >> 32 }
}

/// Fills and loads the IDT.
pub(crate) fn install() {
    let first = &raw const guest_rt_entries as u64;
    let gates = IDT.0.get();
    for vector in 0..VECTORS {
        // SAFETY: the index is within the table, and nobody reads it before LIDT below.
        unsafe { (*gates)[vector] = gate(first + 16 * vector as u64) };
    }
    reload();
}

/// Has the processor switch to stack `exceptions` (1 to 7) of the task-state segment's interrupt stack table for every
/// exception, and to stack `nmi` for an NMI, which may come while an exception is being handled and would overwrite its
/// frame on the same one; 0 keeps the stack that it has.
pub fn use_interrupt_stacks(exceptions: u8, nmi: u8) {
    let gates = IDT.0.get();
    for vector in 0..usize::from(FIRST_IRQ_VECTOR) {
        let number = if vector == usize::from(NMI_VECTOR) { nmi } else { exceptions };
        // SAFETY: the index is within the table; one processor, which takes no exception meanwhile.
        unsafe { (*gates)[vector].low = (*gates)[vector].low & !(7 << 32) | u64::from(number & 7) << 32 };
    }
}

/// Loads the IDT of the runtime.
pub fn reload() {
    load(IDT.0.get() as u64, LIMIT);
}

/// Address and limit of the IDT of the runtime. Unit: bytes.
pub fn table() -> (u64, u16) {
    (IDT.0.get() as u64, LIMIT)
}

/// Loads an IDT without entries: the next exception or interrupt shuts the processor down.
pub fn load_empty() {
    load(0, 0);
}

fn load(base: u64, limit: u16) {
    let descriptor = PseudoDescriptor { limit, base };
    // SAFETY: either the table of `install`, whose entries follow the calling convention, or none at all, where the
    // processor shuts down instead of running anything.
    unsafe { asm!("lidt [{}]", in(reg) &raw const descriptor, options(readonly, nostack, preserves_flags)) };
}

/// The exception that went to the recovery address, if there was one since this was last asked.
pub fn caught() -> Option<Fault> {
    let value = CAUGHT.swap(0, Ordering::Relaxed);
    let vector = (value >> 32).checked_sub(1)?;
    Some(Fault { vector: (vector & 0xff) as u8, error: (value & 0xffff_ffff) as u32 })
}

/// What the last awaited exception interrupted.
pub fn caught_at() -> Place {
    let [rip, rflags, rsp, cs] = [0, 1, 2, 3].map(|at| PLACE[at].load(Ordering::Relaxed));
    Place { rip, rflags, rsp, cs }
}

/// Executes #UD.
pub fn undefined_instruction() -> ! {
    // SAFETY: raises an exception, which never returns here.
    unsafe { asm!("ud2", options(nomem, nostack)) };
    cpu::halt_forever()
}
