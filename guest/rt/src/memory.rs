//! Memory that no part of a program is in: from 16 MiB on, up to what the VM was given.
//!
//! Never reaches the program itself, its stack or the tables of its paging, which all are below.

use core::arch::asm;

/// First address. Unit: bytes.
pub const FIRST: u64 = 16 << 20;
/// First address behind what is mapped. Unit: bytes.
const END: u64 = 4 << 30;

/// The word at `at`, which the VM has memory at.
///
/// # Panics
/// Where `at` is below [`FIRST`], not mapped, or not a multiple of 8.
pub fn read(at: u64) -> u64 {
    check(at);
    let value;
    // SAFETY: the address is mapped, and nothing of Rust's is there.
    unsafe { asm!("mov {}, [{}]", out(reg) value, in(reg) at, options(nostack, preserves_flags, readonly)) };
    value
}

/// Puts `value` at `at`, which the VM has memory at.
///
/// # Panics
/// As [`read`].
pub fn write(at: u64, value: u64) {
    check(at);
    // SAFETY: as in `read`.
    unsafe { asm!("mov [{}], {}", in(reg) at, in(reg) value, options(nostack, preserves_flags)) };
}

fn check(at: u64) {
    assert!((FIRST..END).contains(&at) && at.is_multiple_of(8), "{at:#x} is not a program's to touch");
}
