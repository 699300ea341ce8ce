//! Guest memory: which guest-physical addresses are a VM's memory, and which frames of the machine back them.
//!
//! Owns the frames. Every access by the hypervisor on a guest's behalf goes through [`GuestMemory::read`] and
//! [`GuestMemory::write`], which check all of it before they copy any of it, and copy once. An address never becomes a
//! pointer, and whoever needs a value twice keeps the copy.
//!
//! As in a PC, a VM with `size` bytes has memory from 0 to `size`, where what the legacy video area covers is lost and
//! what does not fit below [`PCI_HOLE`] goes on at [`ABOVE_4G`].
//!
//! What is memory ([`GuestMemory::regions`]) is kept apart from what is backed (the extents). Today [`allocate`] backs
//! all of it at once. For backing on first touch, it leaves the extents empty, and a nested fault at an address inside
//! a region takes a frame, clears it, inserts an extent at its place in the sorted list and maps it; `read` and `write`
//! do the same where they now find no extent. Nobody outside of this module sees a difference.
//!
//! [`allocate`]: GuestMemory::allocate

use alloc::vec::Vec;
use core::fmt;

use lamina_arch::addr::{Gpa, Hpa, PAGE_4K};

use crate::frames::{FramePool, FrameSize};
use crate::host::HostMemory;
use crate::layout::{
    ABOVE_4G, FIRMWARE_TABLES, FIRMWARE_TABLES_SIZE, HIGH_MEMORY, LOW_MEMORY_END, OPTION_ROMS, PCI_HOLE,
};
use crate::nested::{Access, EntryFormat, Flush, MapError, NestedTables, TableFrames};

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
#[derive(Debug)]
pub struct GuestMemory {
    size: u64,
    /// What is memory, sorted.
    regions: Vec<Region>,
    /// What is backed, sorted.
    extents: Vec<Extent>,
    /// What can be read but not written, with what else is allowed: firmware's ROM; without firmware, the empty ROMs of
    /// adapters, which read as all ones. Kernels look through all of those, so they are mapped and cost no exit.
    roms: Vec<(Extent, Access)>,
    /// What was taken from the pool, and where it stands.
    frames: Vec<(Gpa, Hpa, FrameSize)>,
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
/// tables is reserved.
pub fn e820_of(size: u64) -> impl Iterator<Item = E820Entry> {
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
    /// Takes and clears frames for `size` bytes of memory (a multiple of 4 KiB), in the largest frames that fit, for a
    /// VM that starts without firmware.
    ///
    /// # Errors
    /// [`AllocateError`]; nothing was taken then.
    pub fn allocate(size: u64, pool: &mut FramePool, host: &mut impl HostMemory) -> Result<GuestMemory, AllocateError> {
        let mut memory = Self::back_all(size, regions_of(size).collect(), 0, pool, host)?;
        let empty = memory.backing(&Region { start: OPTION_ROMS, length: FIRMWARE_TABLES - OPTION_ROMS });
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
        let mut memory = Self::back_all(size, regions_from(size, OPTION_ROMS).collect(), length, pool, host)?;
        let place = Region { start: Gpa(ABOVE_4G.0 - length), length };
        if !memory.back(place, pool, host) {
            let free = pool.free_bytes();
            memory.release(pool);
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

    /// Takes frames for all of `size`, of which `regions` are memory; `spare` bytes more must be free.
    fn back_all(
        size: u64,
        regions: Vec<Region>,
        spare: u64,
        pool: &mut FramePool,
        host: &mut impl HostMemory,
    ) -> Result<GuestMemory, AllocateError> {
        if size == 0 || !size.is_multiple_of(PAGE_4K) || ABOVE_4G.checked_add(size).is_none() {
            return Err(AllocateError::Size(size));
        }
        let mut memory = GuestMemory { size, regions, extents: Vec::new(), roms: Vec::new(), frames: Vec::new() };
        // The legacy area is backed with the rest, so that a large frame can begin at 0; what is no memory of it, the
        // guest can get at only where it is a ROM.
        let low = Region { start: Gpa(0), length: size.min(PCI_HOLE.0) };
        let high = Region { start: ABOVE_4G, length: size - low.length };
        let (free, wanted) = (pool.free_bytes(), size.saturating_add(spare));
        if wanted > free || !memory.back(low, pool, host) || !memory.back(high, pool, host) {
            memory.release(pool);
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
    pub fn release(self, pool: &mut FramePool) {
        for (_, frame, size) in self.frames {
            if let Err(error) = pool.free(frame, size) {
                // A bug of ours. To lose the frame harms nobody; to stop all VMs for it would.
                log::error!("guest memory: {error}");
                debug_assert!(false, "{error}");
            }
        }
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

    /// The pieces of machine memory that back `length` bytes from `gpa`, with the offset of each in the access.
    ///
    /// # Errors
    /// [`NotMemory`] where a byte of it is not memory.
    fn pieces(&self, gpa: Gpa, length: usize) -> Result<impl Iterator<Item = (Hpa, usize, usize)>, NotMemory> {
        let not_memory = NotMemory { gpa, length: length as u64 };
        if !self.is_memory(gpa, length as u64) {
            return Err(not_memory);
        }
        let end = gpa.checked_add(length as u64).ok_or(not_memory)?;
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

    /// Copies from guest memory at `gpa` into `data`.
    ///
    /// # Errors
    /// [`NotMemory`]; `data` is unchanged then.
    pub fn read(&self, host: &impl HostMemory, gpa: Gpa, data: &mut [u8]) -> Result<(), NotMemory> {
        for (hpa, from, to) in self.pieces(gpa, data.len())? {
            host.read(hpa, &mut data[from..to]);
        }
        Ok(())
    }

    /// Copies `data` to guest memory at `gpa`.
    ///
    /// # Errors
    /// [`NotMemory`]; guest memory is unchanged then.
    pub fn write(&self, host: &mut impl HostMemory, gpa: Gpa, data: &[u8]) -> Result<(), NotMemory> {
        for (hpa, from, to) in self.pieces(gpa, data.len())? {
            host.write(hpa, &data[from..to]);
        }
        Ok(())
    }

    /// Makes all memory zero again, as for a VM that is loaded anew after a reset. The guest must not be running.
    pub fn clear(&self, host: &mut impl HostMemory) {
        for extent in &self.extents {
            host.zero(extent.hpa, extent.length);
        }
    }

    /// The memory map that firmware gives the guest, sorted by address.
    pub fn e820(&self) -> impl Iterator<Item = E820Entry> {
        e820_of(self.size)
    }

    /// Maps all memory, with everything allowed, and the ROMs.
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
        for (extent, access) in writable.chain(self.roms.iter().map(|(extent, access)| (extent, *access))) {
            flush = flush.and(tables.map(host, frames, extent.gpa, extent.hpa, extent.length, access)?);
        }
        Ok(flush)
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)]
mod tests {
    use lamina_arch::addr::{PAGE_1G, PAGE_2M};
    use proptest::prelude::*;

    use super::*;
    use crate::fake_memory::FakeMemory;
    use crate::nested::ept::Ept;

    const EPT: Ept = Ept { execute_only: false, largest: FrameSize::Size1G };

    fn machine(size: u64) -> (FramePool, FakeMemory) {
        (FramePool::new(&[(Hpa(PAGE_2M), size - PAGE_2M)]), FakeMemory::new(size))
    }

    fn region(start: u64, end: u64) -> Region {
        Region { start: Gpa(start), length: end - start }
    }

    #[test]
    fn regions_are_those_of_a_pc() {
        let regions = |size| regions_of(size).collect::<Vec<_>>();
        let low = region(0, 0xa_0000);
        assert_eq!(regions(0x8_0000), [region(0, 0x8_0000)]);
        assert_eq!(regions(128 << 20), [low, region(0xe_0000, 128 << 20)]);
        assert_eq!(regions(3 * PAGE_1G), [low, region(0xe_0000, 3 * PAGE_1G)]);
        let large = [low, region(0xe_0000, 0xc000_0000), region(1 << 32, (1 << 32) + PAGE_4K)];
        assert_eq!(regions(3 * PAGE_1G + PAGE_4K), large);
    }

    #[test]
    fn the_memory_map_reserves_the_firmware_tables() {
        let kinds: Vec<_> = e820_of(4 * PAGE_1G).map(|entry| (entry.region.start.0, entry.kind as u32)).collect();
        assert_eq!(kinds, [(0, 1), (0xe_0000, 2), (0x10_0000, 1), (0x1_0000_0000, 1)]);
    }

    #[test]
    fn large_frames_back_what_they_can_and_holes_are_not_mapped() {
        let (mut pool, mut host) = machine(6 * PAGE_1G);
        let memory = GuestMemory::allocate(PAGE_1G + 2 * PAGE_2M + PAGE_4K, &mut pool, &mut host).unwrap();
        let mut tables = NestedTables::new(EPT, &mut host, &mut pool).unwrap();
        assert!(!memory.map_into(&mut tables, &mut host, &mut pool).unwrap().is_needed());
        let size = |gpa| tables.walk(&host, Gpa(gpa)).map(|found| found.size);
        assert_eq!(size(0), Some(FrameSize::Size4K));
        assert_eq!(size(0x9_ffff), Some(FrameSize::Size4K));
        assert_eq!(size(0xa_0000), None);
        assert_eq!(size(0xb_ffff), None);
        assert_eq!(size(0xe_0000), Some(FrameSize::Size4K));
        assert_eq!(size(0x10_0000), Some(FrameSize::Size4K));
        assert_eq!(size(PAGE_2M), Some(FrameSize::Size2M));
        assert_eq!(size(PAGE_1G + PAGE_2M), Some(FrameSize::Size2M));
        assert_eq!(size(PAGE_1G + 2 * PAGE_2M), Some(FrameSize::Size4K));
        assert_eq!(size(PAGE_1G + 2 * PAGE_2M + PAGE_4K), None);
        tables.destroy(&host).acknowledge(&mut pool);
        memory.release(&mut pool);
        assert_eq!(pool.used(), 0);
    }

    #[test]
    fn empty_roms_read_as_all_ones_and_cannot_be_written_or_run() {
        let (mut pool, mut host) = machine(64 << 20);
        let memory = GuestMemory::allocate(16 << 20, &mut pool, &mut host).unwrap();
        let mut tables = NestedTables::new(EPT, &mut host, &mut pool).unwrap();
        memory.map_into(&mut tables, &mut host, &mut pool).unwrap().acknowledge(&mut pool);
        for gpa in (0xc_0000..0xe_0000).step_by(8) {
            let found = tables.walk(&host, Gpa(gpa)).unwrap();
            assert_eq!((found.access, host.read_u64(found.hpa)), (Access::R, u64::MAX), "{gpa:#x}");
            assert!(!memory.is_memory(Gpa(gpa), 1));
        }
        assert_eq!(tables.walk(&host, Gpa(0xe_0000)).unwrap().access, Access::RWX);
    }

    #[test]
    fn firmware_stands_below_4_gib_and_its_end_below_1_mib() {
        let (mut pool, mut host) = machine(64 << 20);
        let rom: Vec<u8> = (0..256 << 10).map(|i: u32| (i >> 8) as u8 ^ i as u8).collect();
        let memory = GuestMemory::allocate_with_firmware(16 << 20, &rom, &mut pool, &mut host).unwrap();
        let mut tables = NestedTables::new(EPT, &mut host, &mut pool).unwrap();
        memory.map_into(&mut tables, &mut host, &mut pool).unwrap().acknowledge(&mut pool);
        for at in (0..256 << 10).step_by(8) {
            let word = u64::from_le_bytes(rom[at as usize..][..8].try_into().unwrap());
            let found = tables.walk(&host, Gpa(ABOVE_4G.0 - (256 << 10) + at)).unwrap();
            assert_eq!((found.access, host.read_u64(found.hpa)), (Access::RX, word), "{at:#x}");
            if at >= 128 << 10 {
                let found = tables.walk(&host, Gpa(0xc_0000 + at)).unwrap();
                assert_eq!((found.access, host.read_u64(found.hpa)), (Access::RWX, word), "{at:#x}");
            }
        }
        assert!(memory.is_memory(Gpa(0xc_0000), 0x4_0000));
        assert!(!memory.is_memory(Gpa(ABOVE_4G.0 - 1), 1));
        tables.destroy(&host).acknowledge(&mut pool);
        memory.release(&mut pool);
        assert_eq!(pool.used(), 0);
        for bad in [0, 100, 4095, ROM_MAX as usize + 4096] {
            let refused = GuestMemory::allocate_with_firmware(32 << 20, &vec![0; bad], &mut pool, &mut host);
            assert_eq!(refused.unwrap_err(), AllocateError::Rom(bad as u64));
        }
    }

    #[test]
    fn too_little_memory_takes_nothing() {
        let (mut pool, mut host) = machine(64 << 20);
        let result = GuestMemory::allocate(64 << 20, &mut pool, &mut host);
        let free = 62 << 20;
        assert_eq!(result.unwrap_err(), AllocateError::OutOfMemory { wanted: 64 << 20, free });
        assert_eq!(pool.used(), 0);
        for size in [0, 1, 4097, u64::MAX, u64::MAX - 0xfff] {
            let result = GuestMemory::allocate(size, &mut pool, &mut host);
            assert_eq!(result.unwrap_err(), AllocateError::Size(size));
        }
    }

    #[test]
    fn memory_is_zero_at_first() {
        let (mut pool, mut host) = machine(16 << 20);
        let memory = GuestMemory::allocate(8 << 20, &mut pool, &mut host).unwrap();
        let mut data = vec![0xff; (7 << 20) - 3];
        memory.read(&host, Gpa(0x10_0001), &mut data).unwrap();
        assert!(data.iter().all(|&byte| byte == 0));

        memory.write(&mut host, Gpa(0x9_fffe), &[1, 2]).unwrap();
        memory.write(&mut host, Gpa((8 << 20) - 1), &[3]).unwrap();
        memory.clear(&mut host);
        for region in memory.regions() {
            let mut data = vec![0xff; region.length as usize];
            memory.read(&host, region.start, &mut data).unwrap();
            assert!(data.iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn an_access_is_all_memory_or_refused_and_nothing_copied() {
        let (mut pool, mut host) = machine(16 << 20);
        let memory = GuestMemory::allocate(4 << 20, &mut pool, &mut host).unwrap();
        let refused = |gpa: u64, length: u64| Err(NotMemory { gpa: Gpa(gpa), length });
        for (gpa, length) in [
            (0x9_ffff, 2),
            (0xa_0000, 1),
            (0xd_ffff, 2),
            (0, 0x10_0000),
            ((4 << 20) - 1, 2),
            (4 << 20, 1),
            (0xfee0_0000, 4),
            (u64::MAX, 1),
            (u64::MAX, 2),
            (u64::MAX - 7, 8),
        ] {
            let mut data = vec![0x55; length as usize];
            assert_eq!(memory.write(&mut host, Gpa(gpa), &data), refused(gpa, length));
            assert_eq!(memory.read(&host, Gpa(gpa), &mut data), refused(gpa, length));
            assert!(data.iter().all(|&byte| byte == 0x55));
        }
        let mut last = [0; 1];
        memory.read(&host, Gpa(0xf_ffff), &mut [0; 2]).unwrap();
        memory.read(&host, Gpa(0x9_ffff), &mut last).unwrap();
        assert_eq!(last, [0]);
        assert_eq!(memory.read(&host, Gpa(u64::MAX), &mut []), Ok(()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn what_is_written_is_read_across_frames(
            writes in prop::collection::vec((0u64..0x14_0000, prop::collection::vec(any::<u8>(), 0..9000)), 1..8),
        ) {
            // Single free frames between taken ones: no two pages of the guest are neighbours in the machine.
            let mut pool = FramePool::new(&[(Hpa(0), 16 << 20)]);
            let all: Vec<Hpa> = core::iter::from_fn(|| pool.allocate(FrameSize::Size4K)).collect();
            all.iter().step_by(2).for_each(|&frame| pool.free(frame, FrameSize::Size4K).unwrap());
            let mut host = FakeMemory::new(16 << 20);
            let memory = GuestMemory::allocate(0x14_0000, &mut pool, &mut host).unwrap();
            let mut model = vec![0u8; 0x20_0000];
            for (gpa, data) in &writes {
                let range = *gpa as usize..*gpa as usize + data.len();
                match memory.write(&mut host, Gpa(*gpa), data) {
                    Ok(()) => model[range].copy_from_slice(data),
                    Err(_) => prop_assert!(!memory.is_memory(Gpa(*gpa), data.len() as u64)),
                }
            }
            for region in memory.regions() {
                let mut data = vec![0; region.length as usize];
                memory.read(&host, region.start, &mut data).unwrap();
                prop_assert!(data == model[region.start.0 as usize..][..data.len()]);
            }
        }
    }
}
