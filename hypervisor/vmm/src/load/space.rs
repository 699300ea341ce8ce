//! Where parts of an image go in guest memory.

use alloc::vec::Vec;

use lamina_arch::addr::Gpa;

use super::{LoadError, Part};
use crate::layout::PCI_HOLE;
use crate::memory::{E820Entry, E820Kind, Region, e820_of};

/// What of a VM's memory is free for loading.
#[derive(Clone, Debug)]
pub struct Space {
    memory: u64,
    /// What a guest may use, by its memory map.
    usable: Vec<Region>,
    /// What is given away.
    taken: Vec<Region>,
}

impl Space {
    /// All usable memory of a VM with `memory` bytes.
    pub fn new(memory: u64) -> Space {
        let ram = e820_of(memory).filter(|entry| entry.kind == E820Kind::Ram).map(|entry| entry.region);
        Space { memory, usable: ram.collect(), taken: Vec::new() }
    }

    /// Size of the VM's memory. Unit: bytes.
    pub fn memory(&self) -> u64 {
        self.memory
    }

    /// The memory map that firmware gives the guest.
    pub fn memory_map(&self) -> impl Iterator<Item = E820Entry> + use<> {
        e820_of(self.memory)
    }

    /// End of the memory that lies below the hole for devices.
    pub fn low_end(&self) -> Gpa {
        let ends = self.usable.iter().map(|region| region.end());
        ends.filter(|end| *end <= PCI_HOLE).max().unwrap_or(Gpa(0))
    }

    fn overlapping(&self, start: Gpa, length: u64) -> Option<Region> {
        let end = start.0.saturating_add(length);
        self.taken.iter().copied().find(|taken| start < taken.end() && taken.start.0 < end)
    }

    /// Takes `length` bytes at `start`, which the image demands for `part`.
    ///
    /// # Errors
    /// [`LoadError::OutsideMemory`], [`LoadError::Overlap`].
    pub fn take(&mut self, part: Part, start: Gpa, length: u64) -> Result<(), LoadError> {
        if length == 0 {
            return Ok(());
        }
        if !self.usable.iter().any(|region| region.holds(start, length)) {
            return Err(LoadError::OutsideMemory { part, start, length });
        }
        if self.overlapping(start, length).is_some() {
            return Err(LoadError::Overlap { part, start, length });
        }
        self.taken.push(Region { start, length });
        Ok(())
    }

    /// Takes the lowest free `length` bytes from `floor` on and below the hole, aligned to `align` (a power of two).
    ///
    /// # Errors
    /// [`LoadError::NoRoom`].
    pub fn take_lowest(&mut self, part: Part, length: u64, align: u64, floor: Gpa) -> Result<Gpa, LoadError> {
        let no_room = LoadError::NoRoom { part, length, below: PCI_HOLE };
        let found = self.usable.iter().filter(|region| region.end() <= PCI_HOLE).find_map(|region| {
            let mut at = region.start.max(floor);
            loop {
                at = Gpa(at.0.checked_next_multiple_of(align)?);
                if !region.holds(at, length) {
                    return None;
                }
                match self.overlapping(at, length) {
                    Some(taken) => at = taken.end(),
                    None => return Some(at),
                }
            }
        });
        let start = found.ok_or(no_room)?;
        self.take(part, start, length).map(|()| start)
    }

    /// Takes the highest free `length` bytes that end at `below` or before it and below the hole, aligned to `align`
    /// (a power of two).
    ///
    /// # Errors
    /// [`LoadError::NoRoom`].
    pub fn take_highest(&mut self, part: Part, length: u64, align: u64, below: Gpa) -> Result<Gpa, LoadError> {
        let below = below.min(PCI_HOLE);
        let no_room = LoadError::NoRoom { part, length, below };
        let found = self.usable.iter().rev().filter(|region| region.end() <= PCI_HOLE).find_map(|region| {
            let mut end = region.end().min(below);
            loop {
                let at = Gpa(end.0.checked_sub(length)?).align_down(align);
                if !region.holds(at, length) {
                    return None;
                }
                match self.overlapping(at, length) {
                    Some(taken) => end = taken.start,
                    None => return Some(at),
                }
            }
        });
        let start = found.ok_or(no_room)?;
        self.take(part, start, length).map(|()| start)
    }
}
