//! Physical memory: the loader's map cut into heap and pool, the direct map's arithmetic, and the heap itself.
//!
//! Owns the addresses of the direct map and the allocator behind `alloc`. The pool, everything usable that the heap
//! did not get, is only listed here: frames are handed out by `lamina_vmm`, and touched through
//! [`crate::guest_ram::GuestRam`]. Never gives out memory below 1 MiB, where firmware keeps things it does not tell of.

use alloc::alloc::{alloc_zeroed, dealloc, handle_alloc_error};
use alloc::vec::Vec;
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;
use lamina_arch::addr::{Hpa, PAGE_2M, PAGE_4K};
use linked_list_allocator::Heap;
use spin::{Mutex, Once};

/// Where all of physical memory is mapped, writable and never executable: host-physical address 0 is here. The loader
/// is asked for its own map at the same address, so that pointers live through the change of page tables.
pub const DIRECT_MAP: u64 = 0xffff_8000_0000_0000;
/// Length of the address range kept for the direct map. Unit: bytes.
pub const DIRECT_MAP_SIZE: u64 = 64 << 40;
/// Below this, memory belongs to firmware (and, one day, to the start-up code of other processors).
const LOW_MEMORY: Hpa = Hpa(1 << 20);
/// The heap, on a machine that has room for it. Unit: bytes.
const HEAP_SIZE: u64 = 32 << 20;
/// On a machine with much memory, the heap is this part of it: the lists of frames are on it.
const HEAP_SHARE: u64 = 1 << 12;
/// The least heap that bring-up gets along with. Unit: bytes.
const HEAP_LEAST: u64 = 4 << 20;

/// What a region of the loader's memory map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionKind {
    /// Memory free for use.
    Usable,
    /// Memory that holds the loader's tables, the hypervisor's image or the bundle: mapped, never handed out.
    InUse,
    /// Memory with ACPI tables: mapped, never handed out.
    Acpi,
    /// Not known to be memory: not mapped.
    Other,
}

/// One region of the loader's memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First byte.
    pub start: Hpa,
    /// First byte after it.
    pub end: Hpa,
    /// What it is.
    pub kind: RegionKind,
}

impl Region {
    /// The whole pages in the region, above `least`: start and end, or `None` where there are none.
    fn pages_above(&self, least: Hpa) -> Option<(Hpa, Hpa)> {
        let start = self.start.max(least).checked_add(PAGE_4K - 1)?.align_down(PAGE_4K);
        let end = self.end.align_down(PAGE_4K);
        (start < end).then_some((start, end))
    }

    /// The pages that nobody may have for a part of it: start and end, or `None` where it is usable.
    fn taken(&self) -> Option<(Hpa, Hpa)> {
        let end = self.end.checked_add(PAGE_4K - 1).unwrap_or(self.end).align_down(PAGE_4K);
        (self.kind != RegionKind::Usable && self.start < self.end).then_some((self.start.align_down(PAGE_4K), end))
    }
}

/// Chooses the heap: the start of the largest usable region, at a multiple of 2 MiB so that what follows keeps that
/// alignment. Returns its address and length (unit: bytes), or `None` on a machine too small to start on.
pub fn choose_heap(regions: impl Iterator<Item = Region> + Clone) -> Option<(Hpa, u64)> {
    let usable = regions.clone().filter(|r| r.kind == RegionKind::Usable);
    let pages = usable.filter_map(|r| r.pages_above(LOW_MEMORY));
    let all = pages.clone().fold(0u64, |all, (start, end)| all.saturating_add(end - start));
    let free = pages.map(|run| largest_free(run, regions.clone()));
    let (start, end) = free.max_by_key(|&(start, end)| end - start)?;
    let start = start.checked_add(PAGE_2M - 1)?.align_down(PAGE_2M);
    let room = end.0.checked_sub(start.0)?;
    let wanted = HEAP_SIZE.max((all / HEAP_SHARE) & !(PAGE_2M - 1));
    let length = wanted.min(((room / 4) & !(PAGE_2M - 1)).max(HEAP_LEAST));
    (length <= room).then_some((start, length))
}

/// A large part of `run` that no region but usable ones has: firmware's maps can overlap, and then what is not usable counts.
fn largest_free(run: (Hpa, Hpa), regions: impl Iterator<Item = Region>) -> (Hpa, Hpa) {
    regions.filter_map(|r| r.taken()).fold(run, |(start, end), (first, last)| {
        let (below, above) = ((start, first.clamp(start, end)), (last.clamp(start, end), end));
        match () {
            () if last <= start || end <= first => (start, end),
            () if below.1 - below.0 < above.1 - above.0 => above,
            () => below,
        }
    })
}

/// The memory that virtual machines may have: every usable page above 1 MiB but the heap's, and but those that another
/// region has too. Address and length (unit: bytes, a multiple of 4096), ascending, disjoint, adjacent regions as one:
/// UEFI's maps have many.
pub fn pool(regions: &[Region], heap: (Hpa, u64)) -> Vec<(Hpa, u64)> {
    let usable = regions.iter().filter(|r| r.kind == RegionKind::Usable);
    let usable = merged(usable.filter_map(|r| r.pages_above(LOW_MEMORY)));
    let heap = (heap.0, heap.0 + heap.1);
    let taken = merged(regions.iter().filter_map(Region::taken).chain([heap]));
    let taken: Vec<_> = taken.iter().map(|&(start, end)| (start, end - start)).collect();
    without(&usable, &taken).iter().map(|&(start, end)| (start, end - start)).collect()
}

/// `runs` (start and end) ascending and disjoint, neighbours as one.
fn merged(runs: impl Iterator<Item = (Hpa, Hpa)>) -> Vec<(Hpa, Hpa)> {
    let mut runs: Vec<_> = runs.collect();
    runs.sort_unstable();
    runs.dedup_by(|next, last| {
        let joins = next.0 <= last.1;
        if joins {
            last.1 = last.1.max(next.1);
        }
        joins
    });
    runs
}

/// What the direct map holds: all whole pages of memory but the first and those of `pool`, adjacent regions as one. Address
/// and end, ascending, disjoint.
pub fn ram(regions: &[Region], pool: &[(Hpa, u64)]) -> Vec<(Hpa, Hpa)> {
    let of_memory = regions.iter().filter(|r| r.kind != RegionKind::Other);
    without(&merged(of_memory.filter_map(|r| r.pages_above(Hpa(PAGE_4K)))), pool)
}

/// `regions` without `pool`; both ascending and disjoint.
fn without(regions: &[(Hpa, Hpa)], pool: &[(Hpa, u64)]) -> Vec<(Hpa, Hpa)> {
    let mut left = Vec::new();
    for &(start, end) in regions {
        let mut at = start;
        for &(first, size) in pool {
            let (first, last) = (first.clamp(at, end), (first + size).clamp(at, end));
            left.push((at, first));
            at = last;
        }
        left.push((at, end));
    }
    left.retain(|(start, end)| start < end);
    left
}

/// Where the direct map has the byte at `hpa`.
///
/// # Panics
/// Where `hpa` is beyond every address that the direct map can hold: a bug of ours.
#[inline]
pub fn direct(hpa: Hpa) -> *mut u8 {
    assert!(hpa.0 < DIRECT_MAP_SIZE, "{hpa:?} is beyond the direct map");
    core::ptr::with_exposed_provenance_mut(direct_index(DIRECT_MAP + hpa.0))
}

/// The host-physical address of a byte that is reached through the direct map, as everything on the heap is.
///
/// # Panics
/// Where `pointer` is not into the direct map: a bug of ours.
pub fn hpa_of<T: ?Sized>(pointer: *const T) -> Hpa {
    let address = pointer.cast::<u8>().expose_provenance() as u64;
    let offset = address.wrapping_sub(DIRECT_MAP);
    assert!(offset < DIRECT_MAP_SIZE, "{address:#x} is not in the direct map");
    Hpa(offset)
}

const fn direct_index(address: u64) -> usize {
    // The target is 64 bits wide, so nothing is cut off.
    #[allow(clippy::cast_possible_truncation)]
    let index = address as usize;
    index
}

/// The heap that is in use.
static HEAP: Once<&KernelHeap> = Once::new();

/// Whether somebody holds the heap's lock.
pub fn heap_is_locked() -> bool {
    HEAP.get().is_some_and(|heap| heap.0.is_locked())
}

/// The heap, for `#[global_allocator]`. Shared by all processors; interrupt handlers do not allocate.
pub struct KernelHeap(Mutex<Heap>);

impl KernelHeap {
    /// A heap without memory.
    pub const fn empty() -> Self {
        KernelHeap(Mutex::new(Heap::empty()))
    }

    /// Gives `length` bytes from `start` to the heap.
    ///
    /// # Safety
    /// Called once. The memory is usable, mapped writable at its place in the direct map for good, and nobody else's.
    pub unsafe fn init(&'static self, start: Hpa, length: u64) {
        HEAP.call_once(|| self);
        // SAFETY: the caller guarantees that the memory is mapped, ours alone, and stays so.
        unsafe { self.0.lock().init(direct(start), direct_index(length)) };
    }

    /// Free and used bytes.
    pub fn usage(&self) -> (usize, usize) {
        let heap = self.0.lock();
        (heap.free(), heap.used())
    }
}

// SAFETY: `Heap` hands out each byte once until it is given back, with the layout's size and alignment; the lock makes
// that hold for several processors.
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.lock().allocate_first_fit(layout).map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        let Some(pointer) = NonNull::new(pointer) else { return };
        // SAFETY: the caller gives back what `alloc` returned for this layout.
        unsafe { self.0.lock().deallocate(pointer, layout) };
    }
}

/// One page of the heap, for structures that the processor reads by physical address (VMCS, bitmaps, page tables).
pub struct HostPage(NonNull<[u8; 4096]>);

// SAFETY: the page is owned, like the contents of a `Box`.
unsafe impl Send for HostPage {}

impl HostPage {
    const LAYOUT: Layout = Layout::new::<AlignedPage>();

    /// A page of zeros.
    pub fn new() -> Self {
        // SAFETY: the layout's size is not 0.
        let pointer = unsafe { alloc_zeroed(Self::LAYOUT) };
        match NonNull::new(pointer.cast()) {
            Some(page) => HostPage(page),
            None => handle_alloc_error(Self::LAYOUT),
        }
    }

    /// Where it is.
    pub fn hpa(&self) -> Hpa {
        hpa_of(self.0.as_ptr())
    }

    /// Its first byte. Valid as long as the page is owned.
    pub const fn as_ptr(&self) -> *mut u8 {
        self.0.as_ptr().cast()
    }

    /// Its bytes. What the processor writes on its own (a current VMCS) must not be read so.
    pub const fn bytes_mut(&mut self) -> &mut [u8; 4096] {
        // SAFETY: the page is ours, and borrowed mutably.
        unsafe { self.0.as_mut() }
    }

    /// Never gives it back: returns where it is.
    pub fn leak(self) -> Hpa {
        let hpa = self.hpa();
        core::mem::forget(self);
        hpa
    }
}

impl Default for HostPage {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for HostPage {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout, and nobody has it any more.
        unsafe { dealloc(self.as_ptr(), Self::LAYOUT) };
    }
}

/// Several pages of the heap in one piece, for structures of more than a page that the processor reads by physical
/// address.
pub struct HostBlock {
    pointer: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the pages are owned, like the contents of a `Box`.
unsafe impl Send for HostBlock {}
// SAFETY: through a shared reference only the address can be had.
unsafe impl Sync for HostBlock {}

impl HostBlock {
    /// At least `length` bytes of zeros (a multiple of 4096), at a multiple of 4096.
    pub fn new(length: usize) -> Self {
        let pages = length.div_ceil(4096).max(1);
        let layout = match Layout::array::<AlignedPage>(pages) {
            Ok(layout) => layout,
            Err(_) => handle_alloc_error(Layout::new::<AlignedPage>()),
        };
        // SAFETY: the layout's size is not 0.
        match NonNull::new(unsafe { alloc_zeroed(layout) }) {
            Some(pointer) => HostBlock { pointer, layout },
            None => handle_alloc_error(layout),
        }
    }

    /// Where it is.
    pub fn hpa(&self) -> Hpa {
        hpa_of(self.pointer.as_ptr())
    }

    /// Its bytes.
    pub const fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the block is ours, initialized, and borrowed mutably.
        unsafe { core::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.layout.size()) }
    }
}

impl Drop for HostBlock {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout, and nobody has it any more.
        unsafe { dealloc(self.pointer.as_ptr(), self.layout) };
    }
}

/// Only for its layout.
#[repr(C, align(4096))]
struct AlignedPage([u8; 4096]);

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    const MIB: u64 = 1 << 20;

    fn region(start: u64, end: u64, kind: RegionKind) -> Region {
        Region { start: Hpa(start), end: Hpa(end), kind }
    }

    fn pc(memory: u64) -> Vec<Region> {
        vec![
            region(0, 0x9_fc00, RegionKind::Usable),
            region(0x9_fc00, 0xa_0000, RegionKind::Other),
            region(0xf_0000, MIB, RegionKind::Other),
            region(MIB, 0x100_3000, RegionKind::Usable),
            region(0x100_3000, 0x115_2000, RegionKind::InUse),
            region(0x115_2000, memory - 0x1_0000, RegionKind::Usable),
            region(memory - 0x1_0000, memory, RegionKind::Acpi),
        ]
    }

    #[test]
    fn the_heap_comes_from_the_largest_region_at_a_large_page() {
        let regions = pc(256 * MIB);
        assert_eq!(choose_heap(regions.iter().copied()), Some((Hpa(0x120_0000), HEAP_SIZE)));
    }

    #[test]
    fn a_small_machine_gets_a_small_heap_and_a_tiny_one_none() {
        let (_, length) = choose_heap(pc(48 * MIB).into_iter()).unwrap();
        assert!((HEAP_LEAST..HEAP_SIZE).contains(&length));
        assert_eq!(choose_heap(core::iter::once(region(MIB, 5 * MIB, RegionKind::Usable))), None);
        assert_eq!(choose_heap(core::iter::empty()), None);
        assert_eq!(choose_heap(core::iter::once(region(u64::MAX - 8, u64::MAX, RegionKind::Usable))), None);
    }

    #[test]
    fn a_large_machine_gets_a_large_heap() {
        let mut regions = pc(256 * MIB);
        regions.push(region(1 << 32, 3 << 40, RegionKind::Usable));
        let (start, length) = choose_heap(regions.iter().copied()).unwrap();
        assert_eq!(start, Hpa(1 << 32));
        assert!((760 * MIB..=768 * MIB).contains(&length), "{length:#x}");
    }

    #[test]
    fn what_another_region_has_too_is_not_usable() {
        let mut regions = vec![region(MIB, 256 * MIB, RegionKind::Usable)];
        for (start, end, kind) in [
            (160 * MIB, 256 * MIB, RegionKind::Other),
            (8 * MIB + 10, 8 * MIB + 20, RegionKind::InUse),
            (64 * MIB, 64 * MIB + 1, RegionKind::Acpi),
        ] {
            regions.push(region(start, end, kind));
        }
        let (start, length) = choose_heap(regions.iter().copied()).unwrap();
        assert_eq!((start, length), (Hpa(66 * MIB), 22 * MIB));
        assert_eq!(
            pool(&regions, (start, length)),
            [
                (Hpa(MIB), 7 * MIB),
                (Hpa(8 * MIB + PAGE_4K), 56 * MIB - PAGE_4K),
                (Hpa(64 * MIB + PAGE_4K), 2 * MIB - PAGE_4K),
                (Hpa(88 * MIB), 72 * MIB),
            ]
        );
    }

    #[test]
    fn adjacent_regions_are_one_in_the_pool() {
        let usable = |start, end| region(start, end, RegionKind::Usable);
        let regions =
            [usable(2 * MIB, 3 * MIB), usable(MIB, 2 * MIB), usable(4 * MIB, 5 * MIB), usable(5 * MIB, 6 * MIB)];
        assert_eq!(pool(&regions, (Hpa(16 * MIB), 0)), [(Hpa(MIB), 2 * MIB), (Hpa(4 * MIB), 2 * MIB)]);
    }

    #[test]
    fn the_pool_is_what_is_usable_above_1_mib_without_the_heap() {
        let pool = pool(&pc(256 * MIB), (Hpa(0x120_0000), HEAP_SIZE));
        assert_eq!(
            pool,
            [
                (Hpa(MIB), 0x100_3000 - MIB),
                (Hpa(0x115_2000), 0xa_e000),
                (Hpa(0x320_0000), 256 * MIB - 0x1_0000 - 0x320_0000),
            ]
        );
    }

    #[test]
    fn the_pool_has_whole_pages_only() {
        let pool = pool(&[region(2 * MIB + 1, 3 * MIB + 4095, RegionKind::Usable)], (Hpa(0), 0));
        assert_eq!(pool, [(Hpa(2 * MIB + 4096), MIB - 4096)]);
    }

    #[test]
    fn the_direct_map_joins_neighbours_and_leaves_out_page_0_the_pool_and_what_is_no_memory() {
        let (low, all) = ((Hpa(0x1000), Hpa(0x9_f000)), (Hpa(MIB), Hpa(256 * MIB)));
        assert_eq!(ram(&pc(256 * MIB), &[]), [low, all]);
        let pool = [(Hpa(MIB), 3 * MIB), (Hpa(8 * MIB), 4096), (Hpa(200 * MIB), 56 * MIB)];
        let between = [(Hpa(4 * MIB), Hpa(8 * MIB)), (Hpa(8 * MIB + 4096), Hpa(200 * MIB))];
        assert_eq!(ram(&pc(256 * MIB), &pool), [&[low], &between[..]].concat());
    }
}
