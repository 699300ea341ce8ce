//! Announcements of who owns which memory, in builds with the feature `announce`: to an emulator that listens at a port.
//! Nobody else does, and other builds have nothing of this.

#[cfg(feature = "announce")]
use core::arch::asm;

use lamina_vmm::ownership::Announcement;
#[cfg(feature = "announce")]
use lamina_vmm::ownership::PORT;

/// Whether this build announces.
pub const ANNOUNCES: bool = cfg!(feature = "announce");

/// Says it.
#[inline(always)]
pub fn announce(announcement: Announcement) {
    #[cfg(feature = "announce")]
    {
        let (word, rcx, rsi, rdi) = announcement.registers();
        // SAFETY: no device of a PC is at that port, and a write where none is does nothing.
        unsafe {
            asm!(
                "out dx, eax",
                in("dx") PORT,
                in("eax") word,
                in("rcx") rcx,
                in("rsi") rsi,
                in("rdi") rdi,
                options(nostack, preserves_flags),
            );
        }
    }
    #[cfg(not(feature = "announce"))]
    let _ = announcement;
}
