//! A window of 512 pages beside the one-to-one mapping, in which anything can be mapped.

use core::arch::asm;

use crate::engine::Pages;

/// First address of the window.
pub const BASE: u64 = 0x80_0000_0000;
/// Page-table bits.
pub const PRESENT: u64 = 1;
/// See [`PRESENT`].
pub const WRITABLE: u64 = 1 << 1;
/// Present, writable, for privilege level 3.
pub const USER: u64 = PRESENT | WRITABLE | 1 << 2;
/// Present and writable.
pub const KERNEL: u64 = PRESENT | WRITABLE;
/// Accessed.
pub const ACCESSED: u64 = 1 << 5;
/// Dirty.
pub const DIRTY: u64 = 1 << 6;

/// Slots that the engine uses.
pub const CODE: u64 = 0;
/// See [`CODE`].
pub const STACK: u64 = 2;
/// First slot for everything else.
pub const FREE: u64 = 8;

static TOP: Pages<4096> = Pages::new();
static POINTERS: Pages<4096> = Pages::new();
static DIRECTORY: Pages<4096> = Pages::new();
static TABLE: Pages<4096> = Pages::new();

/// Puts page tables with the window in place of the loader's, of which they keep what is below 512 GiB.
pub fn install() {
    let loaders: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr3", out(reg) loaders, options(nomem, nostack, preserves_flags)) };
    // SAFETY: the loader's tables lie below 4 GiB, mapped one to one.
    let first = unsafe { ((loaders & !0xfff) as *const u64).read_volatile() };
    TOP.put(0, &first.to_le_bytes());
    TOP.put(8, &(POINTERS.address() | USER).to_le_bytes());
    POINTERS.put(0, &(DIRECTORY.address() | USER).to_le_bytes());
    DIRECTORY.put(0, &(TABLE.address() | USER).to_le_bytes());
    load();
}

/// Loads the tables (again).
pub fn load() {
    // SAFETY: everything that was mapped below 512 GiB stays so.
    unsafe { asm!("mov cr3, {}", in(reg) TOP.address(), options(nostack, preserves_flags)) };
}

/// Maps page `slot` (0 to 511) to physical address `frame` with these bits, or to nothing. Returns where it is.
pub fn map(slot: u64, frame: u64, bits: u64) -> u64 {
    let slot = slot & 511;
    TABLE.put(8 * slot as usize, &(frame | bits).to_le_bytes());
    let address = BASE + slot * 4096;
    // SAFETY: only drops what the processor remembers.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags)) };
    address
}

/// The page-table entry of a slot.
pub fn entry(slot: u64) -> u64 {
    TABLE.word(8 * (slot & 511) as usize)
}

/// Puts an entry into the top table, at an index that the program does not use (2 to 511).
pub fn break_top(index: usize, entry: u64) {
    TOP.put(8 * index.clamp(2, 511), &entry.to_le_bytes());
}

/// Address of the window's own page table.
pub fn table() -> u64 {
    TABLE.address()
}
