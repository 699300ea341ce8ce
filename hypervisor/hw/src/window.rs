//! Windows: the only places where the hypervisor's tables map memory that virtual machines may own.
//!
//! Owns a range of virtual addresses with one page table for pages of 4 KiB, each of which is mapped when it is first
//! reached and stays until its window is wanted for another or all are closed; and one entry for 2 MiB, which is open only
//! while they are cleared. Never knows which addresses are a VM's: that is [`crate::guest_ram`]'s check. One processor's:
//! another has windows of its own.

use core::cell::Cell;
use lamina_arch::addr::{Hpa, PAGE_2M, PAGE_4K};
use x86_64::VirtAddr;
use x86_64::instructions::tlb;
use x86_64::structures::paging::PageTableFlags as Flags;

use crate::paging;

/// Windows for pages of 4 KiB.
const COUNT: usize = 256;
/// Stands for no page.
const CLOSED: u64 = u64::MAX;

/// Never executable, and not global: they come and go.
const PAGE: Flags = Flags::PRESENT.union(Flags::WRITABLE).union(Flags::NO_EXECUTE);

/// The windows of one processor.
#[derive(Debug)]
pub struct Windows {
    tables: paging::WindowTables,
    /// The number of the page that each shows.
    shown: [Cell<u64>; COUNT],
    /// Those that are open, in the order in which they were opened: as many as `open` says.
    order: [Cell<u8>; COUNT],
    open: Cell<usize>,
}

impl Windows {
    /// Windows that are all closed. One for the machine.
    pub fn closed() -> Windows {
        Windows {
            tables: paging::window_tables(),
            shown: [const { Cell::new(CLOSED) }; COUNT],
            order: [const { Cell::new(0) }; COUNT],
            open: Cell::new(0),
        }
    }

    /// Which window shows page `number`. Neighbours are in different ones, and so are the pages of a region's start and
    /// those 1 MiB further on.
    #[inline]
    const fn window_of(number: u64) -> usize {
        let folded = (number ^ number >> 8) & (COUNT as u64 - 1);
        // Below `COUNT`, so nothing is cut off.
        #[allow(clippy::cast_possible_truncation)]
        let window = folded as usize;
        window
    }

    /// Where the byte at `at` is reached, up to the end of its page, until another page is or [`Windows::close`] comes.
    /// `check` is called before a page is mapped that was not.
    ///
    /// # Safety
    /// `at` is memory that holds no object of Rust's, or `check` does not return.
    #[inline]
    pub unsafe fn reach(&self, at: Hpa, check: impl FnOnce()) -> *mut u8 {
        let number = at.0 / PAGE_4K;
        let window = Self::window_of(number);
        if self.shown[window].get() != number {
            check();
            // SAFETY: the caller's promise.
            unsafe { self.show(window, number) };
        }
        let offset = window as u64 * PAGE_4K + at.offset_in(PAGE_4K);
        paging::window(offset)
    }

    /// # Safety
    /// The page is memory that holds no object of Rust's.
    #[cold]
    #[inline(never)]
    unsafe fn show(&self, window: usize, number: u64) {
        let before = self.shown[window].replace(number);
        // SAFETY: the entry is this window's, through which nothing is reached now: accesses do not outlive a call to
        // this module's user. What it maps is the caller's promise.
        unsafe { self.tables.set_page(window, (number * PAGE_4K) | PAGE.bits()) };
        if before == CLOSED {
            // An entry that was not present is in no TLB (SDM vol. 3, "Caching Translation Information").
            let open = self.open.get();
            // Each window is in the order once: below 256.
            #[allow(clippy::cast_possible_truncation)]
            self.order[open].set(window as u8);
            self.open.set(open + 1);
        } else {
            tlb::flush(VirtAddr::from_ptr(paging::window(window as u64 * PAGE_4K)));
        }
    }

    /// Closes all: no VM's memory is mapped any more.
    #[inline]
    pub fn close(&self) {
        if self.open.get() != 0 {
            self.close_open();
        }
    }

    #[cold]
    fn close_open(&self) {
        for window in &self.order[..self.open.replace(0)] {
            let window = usize::from(window.get());
            self.shown[window].set(CLOSED);
            // SAFETY: as in `show`; the entry maps nothing.
            unsafe { self.tables.set_page(window, 0) };
            tlb::flush(VirtAddr::from_ptr(paging::window(window as u64 * PAGE_4K)));
        }
    }

    /// Closes all, whatever is believed of them: whoever was opening or closing one may have been stopped in the middle.
    pub fn reset(&self) {
        self.open.set(0);
        for (window, shown) in self.shown.iter().enumerate() {
            shown.set(CLOSED);
            // SAFETY: as in `show`; the entry maps nothing.
            unsafe { self.tables.set_page(window, 0) };
            tlb::flush(VirtAddr::from_ptr(paging::window(window as u64 * PAGE_4K)));
        }
        // SAFETY: it maps nothing.
        unsafe { self.tables.set_large(0) };
        tlb::flush(VirtAddr::from_ptr(paging::window(PAGE_2M)));
    }

    /// Has `what` reach the 2 MiB at `at`, which is a multiple of that.
    ///
    /// # Safety
    /// They are memory that holds no object of Rust's.
    pub unsafe fn reach_large(&self, at: Hpa, what: impl FnOnce(*mut u8)) {
        let place: *mut u8 = paging::window(PAGE_2M);
        // SAFETY: the entry is nobody else's; what it maps is the caller's promise.
        unsafe { self.tables.set_large(at.0 | (PAGE | Flags::HUGE_PAGE).bits()) };
        what(place);
        // SAFETY: it maps nothing.
        unsafe { self.tables.set_large(0) };
        tlb::flush(VirtAddr::from_ptr(place));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vms_tables_and_code_are_in_windows_of_their_own() {
        // A page table's path as Linux has it, the code, a stack, and a device's neighbours.
        let numbers = [0x2_a001, 0x2_a002, 0x2_a003, 0x1_0203, 0x1_0204, 0x3_0500];
        for (index, one) in numbers.iter().enumerate() {
            for other in &numbers[..index] {
                assert_ne!(Windows::window_of(*one), Windows::window_of(*other), "{one:#x} {other:#x}");
            }
        }
        for number in 0..COUNT as u64 {
            assert_eq!(Windows::window_of(number), usize::try_from(number).unwrap());
        }
    }
}
