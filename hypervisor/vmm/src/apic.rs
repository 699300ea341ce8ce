//! The page that holds the registers of a local APIC (Intel SDM vol. 3, "APIC Virtualization and Virtual Interrupts":
//! "Virtual APIC State").
//!
//! Owns its layout, and nothing of what the registers do: that is the chipset's. A register is a doubleword at a
//! multiple of 16 bytes. A processor that virtualizes APICs reads and writes the page while its guest runs, and only
//! then: between an exit and the next entry nobody else touches it. The atomics stand for that other party.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, Ordering};

/// Interrupts in service, eight registers of 32 vectors each.
const ISR: usize = 0x100;
/// Which of the accepted interrupts are level-triggered.
const TMR: usize = 0x180;
/// Interrupts requested.
const IRR: usize = 0x200;

/// How the processor virtualizes a local APIC while the guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApicMode {
    /// Not at all: every access exits, and interrupts are injected.
    Off,
    /// Its registers are in memory.
    Xapic,
    /// Its registers are MSRs.
    X2apic,
}

/// Size of a doubleword. Unit: bytes.
const WORD: usize = 4;
/// Doublewords in the page.
const WORDS: usize = 1024;

/// A page of registers, aligned as a processor wants it.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct ApicPage([AtomicU32; WORDS]);

const _: () = assert!(size_of::<ApicPage>() == WORDS * WORD && align_of::<ApicPage>() == 4096);

impl ApicPage {
    /// A page of zeros.
    pub fn new() -> Arc<ApicPage> {
        Arc::new(ApicPage([const { AtomicU32::new(0) }; WORDS]))
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        &self.0[offset / WORD % WORDS]
    }

    /// The doubleword at `offset`, of which the lowest two bits and those above the twelfth do not count. Unit: bytes.
    #[inline]
    pub fn read(&self, offset: usize) -> u32 {
        self.word(offset).load(Ordering::Relaxed)
    }

    /// Sets the doubleword at `offset`, as [`ApicPage::read`] counts it.
    #[inline]
    pub fn write(&self, offset: usize, value: u32) {
        self.word(offset).store(value, Ordering::Relaxed);
    }

    /// The vector of the highest priority in the eight registers from `offset`; 0 where there is none.
    fn highest(&self, offset: usize) -> u8 {
        let found = (0..8u8).rev().find_map(|n| {
            let bit = self.read(offset + usize::from(n) * 16).checked_ilog2()?;
            Some(n << 5 | u8::try_from(bit).ok()?)
        });
        found.unwrap_or(0)
    }

    /// The guest interrupt status: the highest vector requested in bits 7:0, the highest in service in bits 15:8 ("Guest
    /// Interrupt Status").
    pub fn interrupt_status(&self) -> u16 {
        u16::from_le_bytes([self.highest(IRR), self.highest(ISR)])
    }

    /// The level-triggered vectors, 64 in each: those whose end of interrupt an I/O APIC is to hear of.
    pub fn level_triggered(&self) -> [u64; 4] {
        let register = |n: usize| u64::from(self.read(TMR + n * 16));
        core::array::from_fn(|n| register(2 * n) | register(2 * n + 1) << 32)
    }

    /// Sets all of it to zero.
    pub fn clear(&self) {
        self.0.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }

    /// Another page with the same contents.
    #[must_use]
    pub fn copy(&self) -> Arc<ApicPage> {
        let copy = ApicPage::new();
        for (to, from) in copy.0.iter().zip(&self.0) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        copy
    }
}

impl PartialEq for ApicPage {
    fn eq(&self, other: &ApicPage) -> bool {
        let value = |word: &AtomicU32| word.load(Ordering::Relaxed);
        self.0.iter().map(value).eq(other.0.iter().map(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_processor_goes_by_follows_from_the_registers() {
        let page = ApicPage::new();
        assert_eq!((page.interrupt_status(), page.level_triggered()), (0, [0; 4]));
        for (offset, value) in [(0x210, 1 << 31), (0x240, 1 << 3 | 1), (0x100, 1 << 16), (0x1f0, 1 << 31), (0x190, 2)] {
            page.write(offset, value);
        }
        assert_eq!(page.interrupt_status(), 0x1083);
        assert_eq!(page.level_triggered(), [2 << 32, 0, 0, 1 << 63]);
        page.write(0x270, 1 << 31);
        assert_eq!(page.interrupt_status(), 0x10ff);
    }

    #[test]
    fn registers_are_where_they_were_written_and_copies_are_apart() {
        let page = ApicPage::new();
        page.write(0x80, 0x20);
        page.write(0xffc, 7);
        assert_eq!((page.read(0x80), page.read(0x83), page.read(0x84), page.read(0x1ffc)), (0x20, 0x20, 0, 7));
        let copy = page.copy();
        assert_eq!(copy, page);
        page.clear();
        assert_eq!((page.read(0x80), copy.read(0x80)), (0, 0x20));
        assert_ne!(copy, page);
    }
}
