//! Memory that virtual machines and their tables may own, read and written through windows ([`crate::window`]): it is
//! mapped nowhere else.
//!
//! Owns the check that every access lies in the pool: the hypervisor's own memory cannot be reached through here,
//! whatever address a caller computes. All accesses are assembly, opaque to the compiler: a guest may change the same
//! bytes at any time, from another processor too, and a value is fetched exactly once.

use alloc::vec::Vec;
use core::arch::asm;
use lamina_arch::addr::{Hpa, PAGE_2M, PAGE_4K};
use lamina_vmm::frames::FrameStock;
use lamina_vmm::host::HostMemory;

use crate::window::Windows;

/// The pool's memory.
#[derive(Debug)]
pub struct GuestRam {
    /// Address and length, ascending, disjoint; adjacent regions may be two.
    regions: Vec<(Hpa, u64)>,
    windows: Windows,
    stock: FrameStock,
}

impl GuestRam {
    /// Access to `regions`: address and length (unit: bytes), of whole pages.
    ///
    /// # Safety
    /// Called once. Each region is memory that is mapped nowhere, and holds no object of Rust's.
    pub unsafe fn new(regions: Vec<(Hpa, u64)>) -> GuestRam {
        GuestRam { regions, windows: Windows::closed(), stock: FrameStock::default() }
    }

    /// Closes all windows, also ones that were left half open.
    pub fn reset(&self) {
        self.windows.reset();
    }

    /// The regions: address and length (unit: bytes).
    pub fn regions(&self) -> &[(Hpa, u64)] {
        &self.regions
    }

    /// Where the byte at `at` is, up to the end of its page and until the next call.
    #[inline]
    fn locate(&self, at: Hpa) -> *mut u8 {
        // SAFETY: regions are whole pages, so a page with one byte of the pool's is the pool's, which holds no object of
        // Rust's; any other page is a panic.
        unsafe { self.windows.reach(at, || self.check(at, 1)) }
    }

    #[cold]
    fn check(&self, at: Hpa, length: u64) {
        let held = self.regions.iter().any(|region| holds(region, at, length));
        assert!(held, "{length:#x} bytes at {at:?} are not the pool's");
    }
}

/// Whether all of the `length` bytes from `at` are in the region.
#[inline]
fn holds(&(start, size): &(Hpa, u64), at: Hpa, length: u64) -> bool {
    at.0.checked_sub(start.0).is_some_and(|offset| offset <= size && length <= size - offset)
}

/// How many of `length` bytes from `at` are in its page.
#[inline]
fn in_page(at: Hpa, length: usize) -> usize {
    let left = PAGE_4K - at.offset_in(PAGE_4K);
    usize::try_from(left).map_or(length, |left| left.min(length))
}

impl HostMemory for GuestRam {
    fn read(&self, from: Hpa, data: &mut [u8]) {
        let (mut from, mut rest) = (from, data);
        while !rest.is_empty() {
            let (now, later) = rest.split_at_mut(in_page(from, rest.len()));
            let source = self.locate(from);
            // SAFETY: `locate` checked that the source's page is the pool's, of which no more is read; the target is a
            // slice of that length, and they cannot overlap, as the pool holds no object of Rust's.
            unsafe { copy(now.as_mut_ptr(), source, now.len()) };
            from = from + now.len() as u64;
            rest = later;
        }
    }

    fn write(&mut self, to: Hpa, data: &[u8]) {
        let (mut to, mut rest) = (to, data);
        while !rest.is_empty() {
            let (now, later) = rest.split_at(in_page(to, rest.len()));
            let target = self.locate(to);
            // SAFETY: as in `read`, the other way round.
            unsafe { copy(target, now.as_ptr(), now.len()) };
            to = to + now.len() as u64;
            rest = later;
        }
    }

    fn zero(&mut self, at: Hpa, length: u64) {
        let (mut at, mut left) = (at, length);
        while left > 0 {
            let now = if at.is_aligned(PAGE_2M) && left >= PAGE_2M {
                self.check(at, PAGE_2M);
                // SAFETY: `check` found that all of it is the pool's, which holds no object of Rust's.
                unsafe { self.windows.reach_large(at, |place| zero(place, PAGE_2M)) };
                PAGE_2M
            } else {
                let now = left.min(PAGE_4K - at.offset_in(PAGE_4K));
                // SAFETY: `locate` checked that the page is the pool's, of which no more is cleared.
                unsafe { zero(self.locate(at), now) };
                now
            };
            at = at + now;
            left -= now;
        }
    }

    fn release(&mut self) {
        self.windows.close();
    }

    #[inline]
    fn read_u64(&self, at: Hpa) -> u64 {
        assert!(at.is_aligned(8), "a table entry at {at:?}");
        let source = self.locate(at);
        let value;
        // SAFETY: `locate` checked the address; an aligned load of 64 bits is one access.
        unsafe { asm!("mov {}, [{}]", out(reg) value, in(reg) source, options(nostack, preserves_flags, readonly)) };
        value
    }

    fn write_u64(&mut self, at: Hpa, value: u64) {
        assert!(at.is_aligned(8), "a table entry at {at:?}");
        let target = self.locate(at);
        // SAFETY: `locate` checked the address; an aligned store of 64 bits is one access.
        unsafe { asm!("mov [{}], {}", in(reg) target, in(reg) value, options(nostack, preserves_flags)) };
    }

    fn stock(&mut self) -> &mut FrameStock {
        &mut self.stock
    }
}

/// Fills `length` bytes with zero.
///
/// # Safety
/// All of it is mapped, and holds no object of Rust's.
unsafe fn zero(target: *mut u8, length: u64) {
    // SAFETY: the caller's promise. REP STOS leaves RCX 0 and needs DF clear, as the ABI keeps it.
    unsafe {
        asm!(
            "rep stosq",
            "mov rcx, {rest}",
            "rep stosb",
            rest = in(reg) length % 8,
            inout("rcx") length / 8 => _,
            inout("rdi") target => _,
            in("rax") 0u64,
            options(nostack, preserves_flags),
        );
    }
}

/// Copies `length` bytes.
///
/// # Safety
/// Both are valid for `length` bytes and do not overlap.
unsafe fn copy(target: *mut u8, source: *const u8, length: usize) {
    // SAFETY: the caller guarantees both ranges. REP MOVS leaves RCX 0 and needs DF clear, as the ABI keeps it.
    unsafe {
        asm!(
            "rep movsq",
            "mov rcx, {rest}",
            "rep movsb",
            rest = in(reg) length % 8,
            inout("rcx") length / 8 => _,
            inout("rdi") target => _,
            inout("rsi") source => _,
            options(nostack, preserves_flags),
        );
    }
}
