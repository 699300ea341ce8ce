//! The machine's memory for tests: sparse, bounded, and it remembers every write to a table.

#![allow(clippy::cast_possible_truncation)]

use std::cell::RefCell;
use std::collections::HashMap;

use lamina_arch::addr::Hpa;

use crate::frames::FrameStock;
use crate::host::HostMemory;
use crate::ownership::Announcement;

/// One change of an aligned 64-bit word, in the order in which the changes happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where.
    pub at: Hpa,
    /// What it holds from then on.
    pub value: u64,
}

/// Memory from 0 to `size`. What was never written reads as a pattern that is no valid table entry.
#[derive(Clone, Debug, Default)]
pub struct FakeMemory {
    /// Pages that were written, by number; `None` is a page of zeros.
    pages: HashMap<u64, Option<Box<[u64; 512]>>>,
    size: u64,
    /// Every word written while `recording`.
    pub log: Vec<Change>,
    /// Whether writes are logged.
    pub recording: bool,
    stock: FrameStock,
    /// What was said of who owns what.
    pub announced: RefCell<Vec<Announcement>>,
}

/// What memory holds that nobody has written: whoever forgets to clear a frame gets to see it.
pub const DIRTY: u64 = 0xdead_beef_dead_beef;

impl FakeMemory {
    /// Memory of `size` bytes.
    pub fn new(size: u64) -> Self {
        FakeMemory { size, ..Default::default() }
    }

    fn check(&self, at: Hpa, length: u64) {
        assert!(at.0.checked_add(length).is_some_and(|end| end <= self.size), "{at:?}+{length:#x} is outside");
    }

    fn word(&self, at: u64) -> u64 {
        match self.pages.get(&(at / 4096)) {
            None => DIRTY,
            Some(None) => 0,
            Some(Some(words)) => words[(at % 4096 / 8) as usize],
        }
    }

    fn set_word(&mut self, at: u64, value: u64) {
        let fill = if self.pages.contains_key(&(at / 4096)) { 0 } else { DIRTY };
        let page = self.pages.entry(at / 4096).or_default();
        page.get_or_insert_with(|| Box::new([fill; 512]))[(at % 4096 / 8) as usize] = value;
        if self.recording {
            self.log.push(Change { at: Hpa(at & !7), value });
        }
    }
}

impl HostMemory for FakeMemory {
    const ANNOUNCES: bool = true;

    fn announce(&self, announcement: Announcement) {
        self.announced.borrow_mut().push(announcement);
    }

    fn read(&self, from: Hpa, data: &mut [u8]) {
        self.check(from, data.len() as u64);
        let mut at = from.0;
        let mut rest = data;
        while !rest.is_empty() {
            let offset = (at % 8) as usize;
            let count = rest.len().min(8 - offset);
            let (now, later) = rest.split_at_mut(count);
            now.copy_from_slice(&self.word(at).to_le_bytes()[offset..offset + count]);
            at += count as u64;
            rest = later;
        }
    }

    fn write(&mut self, to: Hpa, data: &[u8]) {
        self.check(to, data.len() as u64);
        let mut at = to.0;
        let mut rest = data;
        while !rest.is_empty() {
            let offset = (at % 8) as usize;
            let count = rest.len().min(8 - offset);
            let mut bytes = self.word(at).to_le_bytes();
            bytes[offset..offset + count].copy_from_slice(&rest[..count]);
            self.set_word(at, u64::from_le_bytes(bytes));
            at += count as u64;
            rest = &rest[count..];
        }
    }

    fn zero(&mut self, at: Hpa, length: u64) {
        self.check(at, length);
        assert!(at.0.is_multiple_of(8) && length.is_multiple_of(8));
        let end = at.0 + length;
        let mut at = at.0;
        while at < end {
            if !self.recording && at.is_multiple_of(4096) && end - at >= 4096 {
                self.pages.insert(at / 4096, None);
                at += 4096;
            } else {
                self.set_word(at, 0);
                at += 8;
            }
        }
    }

    fn read_u64(&self, at: Hpa) -> u64 {
        self.check(at, 8);
        assert!(at.0.is_multiple_of(8));
        self.word(at.0)
    }

    fn write_u64(&mut self, at: Hpa, value: u64) {
        self.check(at, 8);
        assert!(at.0.is_multiple_of(8));
        self.set_word(at.0, value);
    }

    fn stock(&mut self) -> &mut FrameStock {
        &mut self.stock
    }
}
