//! Memory that virtual machines and their tables may own, read and written through the direct map.
//!
//! Owns the check that every access lies in the pool: the hypervisor's own memory cannot be reached through here,
//! whatever address a caller computes. All accesses are assembly, opaque to the compiler: a guest may change the same
//! bytes at any time, from another processor too, and a value is fetched exactly once.

use alloc::vec::Vec;
use core::arch::asm;
use lamina_arch::addr::Hpa;
use lamina_vmm::frames::FrameStock;
use lamina_vmm::host::HostMemory;

use crate::memory::direct;

/// The pool's memory.
#[derive(Debug)]
pub struct GuestRam {
    /// Address and length, ascending, disjoint; adjacent regions may be two.
    regions: Vec<(Hpa, u64)>,
    /// The largest of them, where nearly every access goes.
    largest: (Hpa, u64),
    stock: FrameStock,
}

impl GuestRam {
    /// Access to `regions`: address and length (unit: bytes).
    ///
    /// # Safety
    /// Each region is memory, mapped writable in the direct map for good, and holds no object of Rust's.
    pub unsafe fn new(regions: Vec<(Hpa, u64)>) -> GuestRam {
        let largest = regions.iter().copied().max_by_key(|&(_, size)| size).unwrap_or_default();
        GuestRam { regions, largest, stock: FrameStock::default() }
    }

    /// The regions: address and length (unit: bytes).
    pub fn regions(&self) -> &[(Hpa, u64)] {
        &self.regions
    }

    /// Where `length` bytes from `at` are mapped, which all lie in one region.
    #[inline]
    fn locate(&self, at: Hpa, length: u64) -> *mut u8 {
        if !holds(&self.largest, at, length) {
            self.check(at, length);
        }
        direct(at)
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

impl HostMemory for GuestRam {
    fn read(&self, from: Hpa, data: &mut [u8]) {
        let source = self.locate(from, data.len() as u64);
        // SAFETY: `locate` checked that all of the source is the pool's; the target is a slice of that length, and
        // they cannot overlap, as the pool holds no object of Rust's.
        unsafe { copy(data.as_mut_ptr(), source, data.len()) };
    }

    fn write(&mut self, to: Hpa, data: &[u8]) {
        let target = self.locate(to, data.len() as u64);
        // SAFETY: as in `read`, the other way round.
        unsafe { copy(target, data.as_ptr(), data.len()) };
    }

    fn zero(&mut self, at: Hpa, length: u64) {
        let target = self.locate(at, length);
        // SAFETY: `locate` checked that all of the target is the pool's. REP STOS leaves RCX 0 and needs DF clear, as
        // the ABI keeps it.
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

    #[inline]
    fn read_u64(&self, at: Hpa) -> u64 {
        assert!(at.is_aligned(8), "a table entry at {at:?}");
        let source = self.locate(at, 8);
        let value;
        // SAFETY: `locate` checked the address; an aligned load of 64 bits is one access.
        unsafe { asm!("mov {}, [{}]", out(reg) value, in(reg) source, options(nostack, preserves_flags, readonly)) };
        value
    }

    fn write_u64(&mut self, at: Hpa, value: u64) {
        assert!(at.is_aligned(8), "a table entry at {at:?}");
        let target = self.locate(at, 8);
        // SAFETY: `locate` checked the address; an aligned store of 64 bits is one access.
        unsafe { asm!("mov [{}], {}", in(reg) target, in(reg) value, options(nostack, preserves_flags)) };
    }

    fn stock(&mut self) -> &mut FrameStock {
        &mut self.stock
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
