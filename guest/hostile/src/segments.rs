//! Segments beyond those of the runtime: privilege level 3, 32-bit code, a task-state segment with a stack for
//! exceptions.

use core::arch::asm;
use core::cell::UnsafeCell;

use guest_rt::trap;

use crate::engine::Pages;

/// Selectors.
pub const KERNEL_CODE: u16 = 0x08;
/// See [`KERNEL_CODE`].
pub const KERNEL_DATA: u16 = 0x10;
/// See [`KERNEL_CODE`].
pub const USER_DATA: u16 = 0x18 | 3;
/// See [`KERNEL_CODE`].
pub const USER_CODE: u16 = 0x20 | 3;
/// 32-bit code at privilege level 0.
pub const COMPATIBILITY_CODE: u16 = 0x28;
/// Data with a limit of one page.
pub const SMALL_DATA: u16 = 0x30;
/// The task-state segment.
pub const TASK: u16 = 0x38;
/// A segment that is not present.
pub const ABSENT: u16 = 0x48;
/// Data that may only be read.
pub const READ_ONLY: u16 = 0x50;
/// A task gate, which 64-bit mode does not know.
pub const TASK_GATE: u16 = 0x58;
/// Data whose base is the local APIC.
pub const APIC_DATA: u16 = 0x60;

const ENTRIES: usize = 14;

#[repr(C, align(16))]
struct Gdt(UnsafeCell<[u64; ENTRIES]>);

// SAFETY: written by `install` before it is loaded; the processor writes busy and accessed bits.
unsafe impl Sync for Gdt {}

static GDT: Gdt = Gdt(UnsafeCell::new([0; ENTRIES]));

/// 104 bytes, and the I/O permission map lies beyond the limit: no port for level 3.
static TASK_STATE: Pages<4096> = Pages::new();
const TASK_LIMIT: u64 = 103;
/// The stack for exceptions.
static EXCEPTIONS: Pages<16384> = Pages::new();
/// The one for NMIs.
static NMI: Pages<16384> = Pages::new();

#[repr(C, packed)]
struct PseudoDescriptor {
    limit: u16,
    base: u64,
}

/// Loads all of them.
pub fn install() {
    let base = TASK_STATE.address();
    let task = TASK_LIMIT | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
    let entries = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0x00cf_9b00_0000_ffff,
        0x0040_9300_0000_0fff,
        task,
        base >> 32,
        0x00cf_1300_0000_ffff,
        0x00cf_9100_0000_ffff,
        0x0000_8500_0000_0000 | (TASK as u64) << 16,
        0xfe40_93e0_0000_0fff,
        0,
    ];
    let top = EXCEPTIONS.address() + 16384;
    for offset in [4, 36] {
        // RSP0 and IST1.
        TASK_STATE.put(offset, &top.to_le_bytes());
    }
    // IST2.
    TASK_STATE.put(44, &(NMI.address() + 16384).to_le_bytes());
    TASK_STATE.put(102, &104u16.to_le_bytes());
    // SAFETY: nothing of the processor's points there yet, and the table holds what the runtime's does and more.
    unsafe {
        *GDT.0.get() = entries;
        refresh();
        asm!("ltr {0:x}", in(reg) TASK, options(nostack, preserves_flags));
    }
    trap::use_interrupt_stacks(1, 2);
}

/// Loads descriptor tables and data segments again, whatever was done to them.
pub fn refresh() {
    let descriptor = PseudoDescriptor { limit: (ENTRIES * 8 - 1) as u16, base: GDT.0.get() as u64 };
    // SAFETY: the table's first entries are those of the runtime.
    unsafe {
        asm!("lgdt [{}]", in(reg) &raw const descriptor, options(readonly, nostack, preserves_flags));
        asm!(
            "mov ds, {data:x}", "mov es, {data:x}", "mov ss, {data:x}", "mov fs, {null:x}", "mov gs, {null:x}",
            data = in(reg) KERNEL_DATA, null = in(reg) 0, options(nostack, preserves_flags)
        );
    }
    trap::reload();
}

/// The end of the stack for exceptions.
pub fn exception_stack() -> u64 {
    EXCEPTIONS.address() + 16384
}

/// Has exceptions use another stack, which ends at `top`. The processor does not come back from one, where it is none.
pub fn put_exception_stack(top: u64) {
    TASK_STATE.put(36, &top.to_le_bytes());
}
