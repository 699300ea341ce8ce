//! Guest memory: which guest-physical addresses are a VM's memory, and which frames of the machine back them.
//!
//! Owns the frames. Every access by the hypervisor on a guest's behalf goes through [`GuestMemory::read`] and
//! [`GuestMemory::write`], which check all of it before they copy any of it, and copy once. An address never becomes a
//! pointer, and whoever needs a value twice keeps the copy.
//!
//! As in a PC, a VM with `size` bytes has memory from 0 to `size`, where what the legacy video area covers is lost and
//! what does not fit below [`PCI_HOLE`] goes on at [`ABOVE_4G`].
//!
//! What is memory ([`GuestMemory::regions`]) is kept apart from what is backed. A VM may have all of it backed from the
//! start, in the largest frames that fit, or each page when it is first touched ([`Backing`]): by the guest, which then
//! exits ([`GuestMemory::touch`]), or by the hypervisor's own [`GuestMemory::write`].

use alloc::vec::Vec;
use core::fmt;

use lamina_arch::addr::{Gpa, Hpa, PAGE_2M, PAGE_4K};
use serde::{Deserialize, Serialize};

use self::lazy::Lazy;
use crate::frames::{FramePool, FrameSize, STOCK_LOW};
use crate::host::HostMemory;
use crate::layout::{
    ABOVE_4G, ECAM, ECAM_SIZE, FIRMWARE_TABLES, FIRMWARE_TABLES_SIZE, HIGH_MEMORY, LOW_MEMORY_END, OPTION_ROMS,
    PCI_HOLE,
};
use crate::nested::{Access, EntryFormat, Flush, MapError, NestedTables, TableFrames};

mod lazy;
mod owned;
mod watch;

/// When memory is backed by frames of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backing {
    /// When the VM is made.
    #[default]
    Eager,
    /// When it is first touched.
    Lazy,
}

/// A run of guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub start: Gpa,
    /// Unit: bytes.
    pub length: u64,
}

impl Region {
    /// First address behind the region.
    pub const fn end(self) -> Gpa {
        Gpa(self.start.0 + self.length)
    }

    /// Whether all of the `length` bytes from `start` are in the region.
    pub const fn holds(self, start: Gpa, length: u64) -> bool {
        match start.checked_add(length) {
            Some(end) => self.start.0 <= start.0 && end.0 <= self.end().0,
            None => false,
        }
    }
}

/// Not all of an access is guest memory. Nothing was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotMemory {
    /// Where the access starts.
    pub gpa: Gpa,
    /// Unit: bytes.
    pub length: u64,
}

impl fmt::Display for NotMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} bytes at guest address {:#x} are not memory", self.length, self.gpa)
    }
}

/// Guest memory cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocateError {
    /// The size is 0 or not a multiple of 4 KiB. Unit: bytes.
    Size(u64),
    /// Firmware of this length has no place. Unit: bytes.
    Rom(u64),
    /// No heap is left to keep track of so much memory. Unit: bytes.
    Directory(u64),
    /// The machine has less. Unit: bytes.
    OutOfMemory {
        /// What the VM wants.
        wanted: u64,
        /// What is free.
        free: u64,
    },
}

impl fmt::Display for AllocateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AllocateError::Size(size) => write!(f, "{size} bytes of memory are not a multiple of 4096"),
            AllocateError::Rom(length) => {
                write!(f, "firmware of {length} bytes: it must be a multiple of 4096, from 1 to {} MiB", ROM_MAX >> 20)
            }
            AllocateError::Directory(size) => write!(f, "{size} bytes of memory are more than can be kept track of"),
            AllocateError::OutOfMemory { wanted, free } => {
                write!(f, "{} KiB of memory are wanted and {} KiB are free", wanted >> 10, free >> 10)
            }
        }
    }
}

/// Kind of a range in the memory map that firmware gives (ACPI specification, "Address Range Types").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum E820Kind {
    /// For the guest to use.
    Ram = 1,
    /// For the guest to leave alone.
    Reserved = 2,
}

/// One range of the memory map that firmware gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct E820Entry {
    /// Where.
    pub region: Region,
    /// What for.
    pub kind: E820Kind,
}

/// Guest memory that is backed by machine memory without a gap.
#[derive(Clone, Copy, Debug)]
struct Extent {
    gpa: Gpa,
    hpa: Hpa,
    length: u64,
}

/// The memory of one VM.
#[derive(Debug, Default)]
pub struct GuestMemory {
    size: u64,
    /// What is memory, sorted.
    regions: Vec<Region>,
    /// What is backed, sorted.
    extents: Vec<Extent>,
    /// What can be read but not written, with what else is allowed: firmware's ROM; without firmware, the empty ROMs of
    /// adapters, which read as all ones. Kernels look through all of those, so they are mapped and cost no exit.
    roms: Vec<(Extent, Access)>,
    /// What was taken from the pool, and where it stands; with backing on first touch, only the ROMs.
    frames: Vec<(Gpa, Hpa, FrameSize)>,
    /// What is backed of memory that is backed on first touch; there are no extents then.
    lazy: Option<Lazy>,
    written: watch::Writes,
    /// Whose it is, where somebody is told of that; else 0.
    owner: u16,
}

/// What [`GuestMemory::touch`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touched {
    /// The frame of this size that is to be mapped at this address.
    Backed {
        /// Aligned to the size.
        gpa: Gpa,
        /// The frame.
        hpa: Hpa,
        /// Its size.
        size: FrameSize,
    },
    /// The address is no memory, or all memory was backed and mapped when the VM was made.
    NotLazy,
    /// The machine has no frame left.
    NoFrame,
}

/// What is memory in a VM of `size` bytes that starts without firmware, sorted; no two of the regions touch.
pub fn regions_of(size: u64) -> impl Iterator<Item = Region> {
    regions_from(size, FIRMWARE_TABLES)
}

/// What is memory in a VM of `size` bytes where it goes on at `upper` behind the video window.
fn regions_from(size: u64, upper: Gpa) -> impl Iterator<Item = Region> {
    let low = size.min(PCI_HOLE.0);
    let between = move |start: Gpa, end: u64| Region { start, length: end.min(low).saturating_sub(start.0) };
    let above = Region { start: ABOVE_4G, length: size.saturating_sub(PCI_HOLE.0) };
    [between(Gpa(0), LOW_MEMORY_END.0), between(upper, low), above].into_iter().filter(|region| region.length != 0)
}

/// The memory map that firmware gives in a VM of `size` bytes, sorted: all memory, where the area of the firmware
/// tables is reserved; and PCI's configuration space, which is no memory.
pub fn e820_of(size: u64) -> impl Iterator<Item = E820Entry> {
    const { assert!(PCI_HOLE.0 <= ECAM.0 && ECAM.0 + ECAM_SIZE <= ABOVE_4G.0) }
    let ecam = E820Entry { region: Region { start: ECAM, length: ECAM_SIZE }, kind: E820Kind::Reserved };
    let below = memory_map_of(size).filter(|entry| entry.region.start < ECAM);
    below.chain([ecam]).chain(memory_map_of(size).filter(|entry| entry.region.start > ECAM))
}

/// The part of it that is memory.
fn memory_map_of(size: u64) -> impl Iterator<Item = E820Entry> {
    const { assert!(FIRMWARE_TABLES.0 + FIRMWARE_TABLES_SIZE == HIGH_MEMORY.0) }
    regions_of(size).flat_map(|region| {
        let start = region.start;
        let reserved = if start == FIRMWARE_TABLES { region.length.min(FIRMWARE_TABLES_SIZE) } else { 0 };
        let parts = [
            E820Entry { region: Region { start, length: reserved }, kind: E820Kind::Reserved },
            E820Entry {
                region: Region { start: start + reserved, length: region.length - reserved },
                kind: E820Kind::Ram,
            },
        ];
        parts.into_iter().filter(|entry| entry.region.length != 0)
    })
}

/// Largest ROM of firmware. Unit: bytes.
pub const ROM_MAX: u64 = 16 << 20;
/// How much of firmware's ROM is copied below 1 MiB. Unit: bytes.
const SHADOW: usize = 128 << 10;
/// A page of an empty ROM.
const EMPTY_PAGE: [u8; 4096] = [0xff; 4096];

impl GuestMemory {
    /// Memory of `size` bytes (a multiple of 4 KiB) for a VM that starts without firmware: clear, and backed as
    /// `backing` says.
    ///
    /// # Errors
    /// [`AllocateError`]; nothing was taken then.
    pub fn allocate(
        size: u64,
        backing: Backing,
        pool: &mut FramePool,
        host: &mut impl HostMemory,
    ) -> Result<GuestMemory, AllocateError> {
        let regions = regions_of(size).collect();
        let place = Region { start: OPTION_ROMS, length: FIRMWARE_TABLES - OPTION_ROMS };
        if backing == Backing::Lazy {
            let mut memory = Self::back_none(size, regions)?;
            let frame = pool.allocate(FrameSize::Size4K);
            let frame = frame.ok_or(AllocateError::OutOfMemory { wanted: PAGE_4K, free: 0 })?;
            host.write(frame, &EMPTY_PAGE);
            memory.frames.push((place.start, frame, FrameSize::Size4K));
            // One page stands for all.
            let extent = |page| (Extent { gpa: place.start + page, hpa: frame, length: PAGE_4K }, Access::R);
            memory.roms = (0..place.length).step_by(EMPTY_PAGE.len()).map(extent).collect();
            return Ok(memory);
        }
        let mut memory = Self::back_all(size, regions, 0, pool, host)?;
        let empty = memory.backing(&place);
        for extent in &empty {
            for page in (0..extent.length).step_by(EMPTY_PAGE.len()) {
                host.write(extent.hpa + page, &EMPTY_PAGE);
            }
        }
        memory.roms = empty.into_iter().map(|extent| (extent, Access::R)).collect();
        Ok(memory)
    }

    /// The same for a VM that starts with firmware: `rom` (a multiple of 4 KiB, at most [`ROM_MAX`]) stands below 4 GiB,
    /// to be read and run, and its last 128 KiB below 1 MiB, where memory begins behind the video window. As on a PC
    /// whose chipset was told to, that copy can be written.
    ///
    /// # Errors
    /// [`AllocateError`]; nothing was taken then.
    pub fn allocate_with_firmware(
        size: u64,
        backing: Backing,
        rom: &[u8],
        pool: &mut FramePool,
        host: &mut impl HostMemory,
    ) -> Result<GuestMemory, AllocateError> {
        let length = rom.len() as u64;
        if length == 0 || !length.is_multiple_of(PAGE_4K) || length > ROM_MAX {
            return Err(AllocateError::Rom(length));
        }
        if size < HIGH_MEMORY.0 {
            return Err(AllocateError::Size(size));
        }
        let regions = regions_from(size, OPTION_ROMS).collect();
        let mut memory = match backing {
            Backing::Eager => Self::back_all(size, regions, length, pool, host)?,
            Backing::Lazy => Self::back_none(size, regions)?,
        };
        let place = Region { start: Gpa(ABOVE_4G.0 - length), length };
        if !memory.back(place, pool, host) {
            let free = pool.free_bytes();
            memory.release(host, pool);
            return Err(AllocateError::OutOfMemory { wanted: length, free });
        }
        let mut rest = rom;
        for extent in memory.backing(&place) {
            let (part, behind) = rest.split_at(rest.len().min(usize::try_from(extent.length).unwrap_or(0)));
            host.write(extent.hpa, part);
            rest = behind;
            memory.roms.push((extent, Access::RX));
        }
        let copy = &rom[rom.len().saturating_sub(SHADOW)..];
        // All of it is memory, since the VM has at least 1 MiB.
        if let Err(error) = memory.write(host, Gpa(HIGH_MEMORY.0 - copy.len() as u64), copy) {
            log::error!("firmware: {error}");
        }
        Ok(memory)
    }

    /// Memory that is backed on first touch.
    fn back_none(size: u64, regions: Vec<Region>) -> Result<GuestMemory, AllocateError> {
        check_size(size)?;
        let lazy = Lazy::new(size).ok_or(AllocateError::Directory(size))?;
        Ok(GuestMemory { lazy: Some(lazy), ..Self::unbacked(size, regions) })
    }

    /// Memory without frames.
    fn unbacked(size: u64, regions: Vec<Region>) -> GuestMemory {
        GuestMemory { size, regions, ..GuestMemory::default() }
    }

    /// Takes frames for all of `size`, of which `regions` are memory; `spare` bytes more must be free.
    fn back_all(
        size: u64,
        regions: Vec<Region>,
        spare: u64,
        pool: &mut FramePool,
        host: &mut impl HostMemory,
    ) -> Result<GuestMemory, AllocateError> {
        check_size(size)?;
        let mut memory = Self::unbacked(size, regions);
        // The legacy area is backed with the rest, so that a large frame can begin at 0; what is no memory of it, the
        // guest can get at only where it is a ROM.
        let low = Region { start: Gpa(0), length: size.min(PCI_HOLE.0) };
        let high = Region { start: ABOVE_4G, length: size - low.length };
        let (free, wanted) = (pool.free_bytes(), size.saturating_add(spare));
        if wanted > free || !memory.back(low, pool, host) || !memory.back(high, pool, host) {
            memory.release(host, pool);
            return Err(AllocateError::OutOfMemory { wanted, free });
        }
        memory.extents = memory.regions.iter().flat_map(|region| memory.backing(region)).collect();
        Ok(memory)
    }

    /// Backs `range` with clear frames. False where the pool ran dry.
    fn back(&mut self, range: Region, pool: &mut FramePool, host: &mut impl HostMemory) -> bool {
        let mut at = range.start;
        while at < range.end() {
            let fits = |size: &FrameSize| at.is_aligned(size.bytes()) && range.holds(at, size.bytes());
            let taken = [FrameSize::Size1G, FrameSize::Size2M, FrameSize::Size4K]
                .into_iter()
                .filter(fits)
                .find_map(|size| pool.allocate(size).map(|frame| (frame, size)));
            let Some((frame, size)) = taken else { return false };
            host.zero(frame, size.bytes());
            self.frames.push((at, frame, size));
            at = at + size.bytes();
        }
        true
    }

    /// What backs `region`, in order and in as few pieces as there can be.
    fn backing(&self, region: &Region) -> Vec<Extent> {
        let mut extents: Vec<Extent> = Vec::new();
        for &(gpa, hpa, size) in &self.frames {
            let (start, end) = (gpa.max(region.start), (gpa + size.bytes()).min(region.end()));
            if start >= end {
                continue;
            }
            let extent = Extent { gpa: start, hpa: hpa + (start - gpa), length: end - start };
            match extents.last_mut() {
                Some(last) if last.gpa + last.length == extent.gpa && last.hpa + last.length == extent.hpa => {
                    last.length += extent.length;
                }
                _ => extents.push(extent),
            }
        }
        extents
    }

    /// Gives all frames back. Their content stays: whoever takes them next clears them. No processor may be able to
    /// reach them any more: the nested tables are gone and the invalidation is acknowledged.
    pub fn release(self, host: &impl HostMemory, pool: &mut FramePool) {
        self.renounce(host);
        for (_, frame, size) in self.frames {
            lazy::give_back(pool, frame, size);
        }
        if let Some(lazy) = self.lazy {
            lazy.release(host, pool);
        }
    }

    /// The guest touched memory at `gpa` that is not mapped: backs it, if it is memory that is backed on first touch.
    /// The frame is from the stock of cleared ones; a large one, where it pays, from `pool`.
    pub fn touch(&mut self, host: &mut impl HostMemory, pool: &mut FramePool, gpa: Gpa) -> Touched {
        if self.lazy.is_none() || !self.is_memory(gpa, 1) {
            return Touched::NotLazy;
        }
        let chunk = Region { start: gpa.align_down(PAGE_2M), length: PAGE_2M };
        let whole = self.is_memory(chunk.start, chunk.length);
        let Some(lazy) = &mut self.lazy else { return Touched::NotLazy };
        if let Some(hpa) = lazy.large(gpa) {
            return Touched::Backed { gpa: chunk.start, hpa, size: FrameSize::Size2M };
        }
        if whole
            && lazy.wants_large(gpa)
            && let Some(frame) = pool.allocate(FrameSize::Size2M)
        {
            host.zero(frame, PAGE_2M);
            lazy.back_large(host, gpa, frame);
            return Touched::Backed { gpa: chunk.start, hpa: frame, size: FrameSize::Size2M };
        }
        match lazy.back(host, gpa) {
            Some(hpa) => Touched::Backed { gpa: gpa.align_down(PAGE_4K), hpa, size: FrameSize::Size4K },
            None => Touched::NoFrame,
        }
    }

    /// The same, where it takes a page of the stock and no more: the page's address and frame. `None` for all else, of
    /// which nothing has changed then.
    pub fn touch_page(&mut self, host: &mut impl HostMemory, gpa: Gpa) -> Option<(Gpa, Hpa)> {
        let lazy = self.lazy.as_mut()?;
        let is_memory = self.regions.iter().any(|region| region.holds(gpa, 1));
        // Whoever fills the stock is asked in time.
        let low = host.stock().len() <= STOCK_LOW;
        if !is_memory || low || !lazy.is_small(gpa) && (lazy.large(gpa).is_some() || lazy.wants_large(gpa)) {
            return None;
        }
        Some((gpa.align_down(PAGE_4K), lazy.back(host, gpa)?))
    }

    /// Whether pages are backed on first touch, so that cleared frames must be at hand while the guest runs.
    pub fn is_lazy(&self) -> bool {
        self.lazy.is_some()
    }

    /// Whether the hypervisor itself found no frame for what it had to write: the guest cannot go on.
    pub fn is_starved(&self) -> bool {
        self.lazy.as_ref().is_some_and(Lazy::is_starved)
    }

    /// The size that the VM was given. Unit: bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What is memory, sorted by address.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Whether all of the `length` bytes from `gpa` are memory. True for no bytes at all.
    pub fn is_memory(&self, gpa: Gpa, length: u64) -> bool {
        length == 0 || self.regions.iter().any(|region| region.holds(gpa, length))
    }

    /// Where an access of `length` bytes from `gpa` ends.
    ///
    /// # Errors
    /// [`NotMemory`] where a byte of it is not memory.
    fn check(&self, gpa: Gpa, length: usize) -> Result<Gpa, NotMemory> {
        let not_memory = NotMemory { gpa, length: length as u64 };
        if !self.is_memory(gpa, length as u64) {
            return Err(not_memory);
        }
        gpa.checked_add(length as u64).ok_or(not_memory)
    }

    /// The pieces of machine memory that back `length` bytes from `gpa`, with the offset of each in the access.
    ///
    /// # Errors
    /// [`NotMemory`] where a byte of it is not memory.
    fn pieces(&self, gpa: Gpa, length: usize) -> Result<impl Iterator<Item = (Hpa, usize, usize)>, NotMemory> {
        let end = self.check(gpa, length)?;
        let first = self.extents.partition_point(|extent| extent.gpa + extent.length <= gpa);
        // All of a region is backed, so the extents from here on follow each other without a gap.
        Ok(self.extents[first..].iter().take_while(move |extent| extent.gpa < end).map(move |extent| {
            let start = extent.gpa.max(gpa);
            let stop = end.min(extent.gpa + extent.length);
            // Both are differences within the access, whose length is a usize.
            #[allow(clippy::cast_possible_truncation)]
            let (from, to) = ((start - gpa) as usize, (stop - gpa) as usize);
            (extent.hpa + (start - extent.gpa), from, to)
        }))
    }

    /// Where the byte at `gpa` is in the machine; `None` where it is no memory, or not backed. What is backed stays where
    /// it is as long as the VM lives.
    pub fn locate(&self, host: &impl HostMemory, gpa: Gpa) -> Option<Hpa> {
        if let Some(lazy) = &self.lazy {
            self.check(gpa, 1).ok()?;
            return Some(lazy.find(host, gpa)? + gpa.offset_in(PAGE_4K));
        }
        self.pieces(gpa, 1).ok()?.next().map(|(hpa, ..)| hpa)
    }

    /// Copies from guest memory at `gpa` into `data`.
    ///
    /// # Errors
    /// [`NotMemory`]; `data` is unchanged then.
    pub fn read(&self, host: &impl HostMemory, gpa: Gpa, data: &mut [u8]) -> Result<(), NotMemory> {
        if let Some(lazy) = &self.lazy {
            self.check(gpa, data.len())?;
            for (page, from, to) in pages(gpa, data.len()) {
                match lazy.find(host, page) {
                    Some(frame) => host.read(frame + page.offset_in(PAGE_4K), &mut data[from..to]),
                    // What nobody has touched is still zero.
                    None => data[from..to].fill(0),
                }
            }
            return Ok(());
        }
        for (hpa, from, to) in self.pieces(gpa, data.len())? {
            host.read(hpa, &mut data[from..to]);
        }
        Ok(())
    }

    /// Copies `data` to guest memory at `gpa`.
    ///
    /// # Errors
    /// [`NotMemory`]; guest memory is unchanged then.
    pub fn write(&mut self, host: &mut impl HostMemory, gpa: Gpa, data: &[u8]) -> Result<(), NotMemory> {
        if self.lazy.is_some() {
            self.check(gpa, data.len())?;
        }
        self.note(gpa, data);
        if let Some(lazy) = &mut self.lazy {
            for (page, from, to) in pages(gpa, data.len()) {
                // Without a frame the VM is starved and does not run on: nobody sees that a part is missing.
                let Some(frame) = lazy.back(host, page) else { break };
                host.write(frame + page.offset_in(PAGE_4K), &data[from..to]);
            }
            return Ok(());
        }
        for (hpa, from, to) in self.pieces(gpa, data.len())? {
            host.write(hpa, &data[from..to]);
        }
        Ok(())
    }

    /// The memory map that firmware gives the guest, sorted by address.
    pub fn e820(&self) -> impl Iterator<Item = E820Entry> {
        e820_of(self.size)
    }

    /// Maps all memory that is backed, with everything allowed, and the ROMs.
    ///
    /// # Errors
    /// [`MapError`]; what was mapped until then stays.
    pub fn map_into<F: EntryFormat>(
        &self,
        tables: &mut NestedTables<F>,
        host: &mut impl HostMemory,
        frames: &mut impl TableFrames,
    ) -> Result<Flush, MapError> {
        let mut flush = Flush::default();
        let writable = self.extents.iter().map(|extent| (extent, Access::RWX));
        let backed: Vec<_> = self.lazy.iter().flat_map(|lazy| lazy.frames(host)).collect();
        let mut map = |flush: Flush, gpa, hpa, length, access| {
            // A single page next to others: the tables to it are there already.
            if length == PAGE_4K && tables.map_absent(host, gpa, hpa, access) {
                return Ok(flush);
            }
            Ok(flush.and(tables.map(host, frames, gpa, hpa, length, access)?))
        };
        for (extent, access) in writable.chain(self.roms.iter().map(|(extent, access)| (extent, *access))) {
            flush = map(flush, extent.gpa, extent.hpa, extent.length, access)?;
        }
        for (gpa, hpa, size) in backed {
            flush = map(flush, gpa, hpa, size.bytes(), Access::RWX)?;
        }
        Ok(flush)
    }
}

/// The parts of an access of `length` bytes from `gpa` that lie in one page each: address, and offsets in the access.
fn pages(gpa: Gpa, length: usize) -> impl Iterator<Item = (Gpa, usize, usize)> {
    let mut done = 0;
    core::iter::from_fn(move || {
        let at = Gpa(gpa.0.wrapping_add(done as u64));
        let left = usize::try_from(PAGE_4K - at.offset_in(PAGE_4K)).unwrap_or(0).min(length - done);
        let part = (at, done, done + left);
        done += left;
        (left != 0).then_some(part)
    })
}

/// Whether a VM can have `size` bytes of memory.
fn check_size(size: u64) -> Result<(), AllocateError> {
    if size == 0 || !size.is_multiple_of(PAGE_4K) || ABOVE_4G.checked_add(size).is_none() {
        return Err(AllocateError::Size(size));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
