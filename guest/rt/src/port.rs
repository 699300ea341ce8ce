//! Port I/O.

use core::arch::asm;

/// IN, 8 bits.
///
/// Reading is safe: no device of the machine touches memory for it.
pub fn read_u8(port: u16) -> u8 {
    let value;
    // SAFETY: see above.
    unsafe { asm!("in al, dx", out("al") value, in("dx") port, options(nomem, nostack, preserves_flags)) };
    value
}

/// IN, 16 bits. Safe as [`read_u8`] is.
pub fn read_u16(port: u16) -> u16 {
    let value;
    // SAFETY: as for `read_u8`.
    unsafe { asm!("in ax, dx", out("ax") value, in("dx") port, options(nomem, nostack, preserves_flags)) };
    value
}

/// IN, 32 bits. Safe as [`read_u8`] is.
pub fn read_u32(port: u16) -> u32 {
    let value;
    // SAFETY: as for `read_u8`.
    unsafe { asm!("in eax, dx", out("eax") value, in("dx") port, options(nomem, nostack, preserves_flags)) };
    value
}

/// OUT, 8 bits.
///
/// # Safety
/// What the device does with the value must leave the program's memory and its interrupt vectors as they are.
pub unsafe fn write_u8(port: u16, value: u8) {
    // SAFETY: the caller's duty.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) };
}

/// OUT, 32 bits.
///
/// # Safety
/// As for [`write_u8`].
pub unsafe fn write_u32(port: u16, value: u32) {
    // SAFETY: the caller's duty.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags)) };
}
