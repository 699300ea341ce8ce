//! The hypervisor's own page tables (SDM vol. 3, "4-Level Paging").
//!
//! Owns the tables, the host's IA32_PAT, and the hypervisor's virtual address space:
//! - [`DIRECT_MAP`]: all memory that no VM may have, never executable; read-only where the hypervisor's code and
//!   constants and the bundle are;
//! - [`WINDOWS`]: what the hypervisor is using of VMs' memory ([`crate::window`]), never executable;
//! - [`STACKS`]: the boot stack, then one stack after the other with an unmapped page on both sides of each;
//! - [`DEVICES`]: registers of devices, uncacheable, and the framebuffer, write-combining;
//! - the image, as the loader mapped it.
//!
//! Nothing else is mapped, page 0 least of all, and no page is both writable and executable.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;
use lamina_arch::addr::{Hpa, PAGE_1G, PAGE_2M, PAGE_4K};
use lamina_arch::msr;
use spin::Mutex;
use x86_64::registers::control::{Cr3, Cr3Flags};
use x86_64::registers::model_specific::Msr;
use x86_64::structures::paging::mapper::{Mapper, TranslateResult};
use x86_64::structures::paging::{
    FrameAllocator, OffsetPageTable, Page, PageSize, PageTable, PageTableFlags as Flags, PageTableIndex, PhysFrame,
    Size1GiB, Size2MiB, Size4KiB, Translate,
};
use x86_64::{PhysAddr, VirtAddr};

use crate::memory::{DIRECT_MAP, HostPage, direct};

/// Stacks are here. The loader is asked to put the boot stack at the start.
pub const STACKS: u64 = 0xffff_d000_0000_0000;
/// Stacks other than the boot stack, from here on.
const MORE_STACKS: u64 = STACKS + PAGE_1G;
/// Registers of devices are here.
pub const DEVICES: u64 = 0xffff_e000_0000_0000;
/// Windows to memory that VMs may have are here.
pub const WINDOWS: u64 = 0xffff_f000_0000_0000;

const DATA: Flags = Flags::PRESENT.union(Flags::WRITABLE).union(Flags::NO_EXECUTE).union(Flags::GLOBAL);
const CONSTANT: Flags = Flags::PRESENT.union(Flags::NO_EXECUTE).union(Flags::GLOBAL);
/// PCD and PWT select entry 3 of [`MEMORY_TYPES`]: uncacheable.
const REGISTERS: Flags = DATA.union(Flags::NO_CACHE).union(Flags::WRITE_THROUGH);
/// PWT alone selects entry 1: stores may be combined on their way, and are many times as fast.
const PICTURE: Flags = DATA.union(Flags::WRITE_THROUGH);
/// IA32_PAT, entry 0 in the lowest byte: WB, WC, UC-, UC, and again with WT
/// second, as after reset (SDM vol. 3, "Page Attribute Table (PAT)").
const MEMORY_TYPES: u64 = 0x0007_0406_0007_0106;

/// What the page tables are made from.
pub struct AddressSpace<'a> {
    /// What the direct map shall have: start and end, ascending, disjoint.
    pub ram: &'a [(Hpa, Hpa)],
    /// Addresses among which the loader mapped the image.
    pub image: Range<u64>,
    /// The boot stack.
    pub stack: Range<u64>,
    /// Memory that nothing shall write from now on: start and end, whole pages.
    pub read_only: &'a [(Hpa, Hpa)],
}

struct Tables {
    table: OffsetPageTable<'static>,
    next_stack: u64,
    next_device: u64,
}

/// `None` until [`activate`]. Shared by all processors: they use the same tables.
static TABLES: Mutex<Option<Tables>> = Mutex::new(None);

/// Whether somebody holds the lock of the tables.
pub fn is_locked() -> bool {
    TABLES.is_locked()
}

/// Page tables come from the heap and stay for good.
struct TableFrames;

// SAFETY: each frame is a page of the heap that nobody else has.
unsafe impl FrameAllocator<Size4KiB> for TableFrames {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        Some(PhysFrame::containing_address(PhysAddr::new(HostPage::new().leak().0)))
    }
}

/// The tables whose top is at `top`, reached through the direct map.
///
/// # Safety
/// `top` is a top table, mapped in the direct map like everything below it, and nobody else uses them meanwhile.
unsafe fn tables_at(top: Hpa) -> OffsetPageTable<'static> {
    // SAFETY: the caller guarantees that a table is there, and that it is ours.
    unsafe { OffsetPageTable::new(&mut *direct(top).cast::<PageTable>(), VirtAddr::new(DIRECT_MAP)) }
}

fn top_table() -> Hpa {
    Hpa(Cr3::read().0.start_address().as_u64())
}

/// One page that the loader mapped.
struct LoaderPage {
    virt: u64,
    hpa: Hpa,
    flags: Flags,
}

/// The 4 KiB pages that the current tables map in `range`.
fn loader_pages(range: Range<u64>) -> Vec<LoaderPage> {
    // SAFETY: the loader's tables are only read, and it mapped all memory at `DIRECT_MAP`, as it was asked to.
    let table = unsafe { tables_at(top_table()) };
    let mut pages = Vec::new();
    for virt in range.step_by(size(PAGE_4K)) {
        if let TranslateResult::Mapped { frame, offset, flags } = table.translate(VirtAddr::new(virt)) {
            let hpa = Hpa(frame.start_address().as_u64() + offset);
            pages.push(LoaderPage { virt, hpa, flags: flags & (Flags::PRESENT | Flags::WRITABLE | Flags::NO_EXECUTE) });
        }
    }
    pages
}

/// The host-physical address that the current tables map `virt` to, or `None`.
pub fn translate(virt: u64) -> Option<Hpa> {
    // SAFETY: only read from, and the current tables lie in the direct map (the loader's as well as ours).
    let table = unsafe { tables_at(top_table()) };
    table.translate_addr(VirtAddr::try_new(virt).ok()?).map(|at| Hpa(at.as_u64()))
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

fn map<S: PageSize + core::fmt::Debug>(table: &mut OffsetPageTable<'_>, virt: u64, hpa: Hpa, flags: Flags)
where
    for<'a> OffsetPageTable<'a>: Mapper<S>,
{
    let page = Page::<S>::containing_address(VirtAddr::new(virt));
    let frame = PhysFrame::containing_address(PhysAddr::new(hpa.0));
    // SAFETY: every caller maps addresses of this module's ranges, each once, and none of the mappings lets safe code
    // reach memory that Rust keeps objects in through a second writable path: heap and pool are reached through the
    // direct map only.
    match unsafe { table.map_to(page, frame, flags, &mut TableFrames) } {
        Ok(flush) => flush.flush(),
        Err(error) => panic!("cannot map {virt:#x} to {hpa:?}: {error:?}"),
    }
}

/// Maps memory from `start` to `end` at its place in the direct map, by the largest pages that fit.
fn map_direct(table: &mut OffsetPageTable<'_>, start: Hpa, end: Hpa, flags: Flags, huge: bool) {
    let mut at = start;
    while at < end {
        let (virt, left) = (DIRECT_MAP + at.0, end - at);
        let fits = |size: u64| at.is_aligned(size) && left >= size;
        at = if huge && fits(PAGE_1G) {
            map::<Size1GiB>(table, virt, at, flags);
            at + PAGE_1G
        } else if fits(PAGE_2M) {
            map::<Size2MiB>(table, virt, at, flags);
            at + PAGE_2M
        } else {
            map::<Size4KiB>(table, virt, at, flags);
            at + PAGE_4K
        };
    }
}

/// Builds the tables and makes them current on this processor. Returns how many pages of the image are mapped.
///
/// # Safety
/// Called once, with the loader's tables current, which map all memory at `DIRECT_MAP`; the code that runs, its stack
/// and everything it still needs lie in `space.image`, `space.stack` and the direct map. NX and write protection are
/// on. No reference into another mapping of the loader's is used afterwards.
pub unsafe fn activate(space: &AddressSpace<'_>) -> usize {
    let image = loader_pages(space.image.clone());
    let stack = loader_pages(space.stack.clone());
    for page in &image {
        let both = page.flags.contains(Flags::WRITABLE) && !page.flags.contains(Flags::NO_EXECUTE);
        assert!(!both, "the loader mapped {:#x} writable and executable", page.virt);
    }

    // What may not be written at its own address may not be written through the direct map either.
    let constant = image.iter().filter(|p| !p.flags.contains(Flags::WRITABLE));
    let mut read_only: Vec<_> =
        constant.map(|p| (p.hpa, p.hpa + PAGE_4K)).chain(space.read_only.iter().copied()).collect();
    read_only.sort_unstable();

    // SAFETY: every processor with long mode has the MSR; the loader's tables select entry 0 only, whose type is what it
    // is after reset.
    unsafe { Msr::new(msr::IA32_PAT).write(MEMORY_TYPES) };
    let top = HostPage::new().leak();
    // SAFETY: a page of zeros is an empty table, and it is ours.
    let mut table = unsafe { tables_at(top) };
    let huge = crate::control::has_huge_pages();
    for &(start, end) in space.ram {
        let mut at = start;
        for &(first, last) in &read_only {
            let (first, last) = (first.clamp(at, end), last.clamp(at, end));
            map_direct(&mut table, at, first, DATA, huge);
            map_direct(&mut table, first, last, CONSTANT, huge);
            at = last;
        }
        map_direct(&mut table, at, end, DATA, huge);
    }
    for page in &image {
        map::<Size4KiB>(&mut table, page.virt, page.hpa, page.flags | Flags::GLOBAL);
    }
    for page in &stack {
        map::<Size4KiB>(&mut table, page.virt, page.hpa, DATA);
    }

    // SAFETY: the new tables map the running code, its stack and the heap at the addresses they have now: copied from
    // the current tables above, or in the direct map, which the caller guarantees to be the same.
    unsafe { Cr3::write(PhysFrame::containing_address(PhysAddr::new(top.0)), Cr3Flags::empty()) };
    *TABLES.lock() = Some(Tables { table, next_stack: MORE_STACKS, next_device: DEVICES });
    image.len()
}

fn with_tables<R>(what: impl FnOnce(&mut Tables) -> R) -> R {
    let mut tables = TABLES.lock();
    match tables.as_mut() {
        Some(tables) => what(tables),
        None => panic!("the page tables are not there yet"),
    }
}

/// Maps `pages` pages for a stack, with an unmapped page on both sides. Returns the stack's top, a multiple of 16.
pub fn new_stack(pages: u64) -> u64 {
    with_tables(|tables| {
        let bottom = tables.next_stack + PAGE_4K;
        let top = bottom + pages * PAGE_4K;
        for virt in (bottom..top).step_by(size(PAGE_4K)) {
            map::<Size4KiB>(&mut tables.table, virt, HostPage::new().leak(), DATA);
        }
        tables.next_stack = top;
        top
    })
}

/// Maps one page of device registers at `hpa`, uncached. Returns where `hpa` itself is then.
pub fn map_registers(hpa: Hpa) -> *mut u8 {
    with_tables(|tables| {
        let virt = tables.next_device;
        map::<Size4KiB>(&mut tables.table, virt, hpa.align_down(PAGE_4K), REGISTERS);
        tables.next_device += PAGE_4K;
        core::ptr::with_exposed_provenance_mut(size(virt + hpa.offset_in(PAGE_4K)))
    })
}

/// The tables of [`WINDOWS`]: one of pages, and above it the entry for 2 MiB beside it.
#[derive(Debug)]
pub struct WindowTables {
    pages: *mut u64,
    large: *mut u64,
}

/// Makes them, with nothing mapped. Called once.
pub fn window_tables() -> WindowTables {
    with_tables(|tables| {
        // Mapping one page makes the tables on the way to it.
        map::<Size4KiB>(&mut tables.table, WINDOWS, HostPage::new().leak(), DATA);
        let page = Page::<Size4KiB>::containing_address(VirtAddr::new(WINDOWS));
        let below = |table: *mut PageTable, index: PageTableIndex| {
            // SAFETY: `table` is one of ours, in the direct map, and the lock on them is held.
            let entry = unsafe { &(&*table)[index] };
            direct(Hpa(entry.addr().as_u64())).cast::<PageTable>()
        };
        let top: *mut PageTable = tables.table.level_4_table_mut();
        let directory = below(below(top, page.p4_index()), page.p3_index());
        let table = below(directory, page.p2_index());
        // SAFETY: the entry of the page that was mapped just now, which nobody has used: the window is closed.
        unsafe { table.cast::<u64>().write_volatile(0) };
        x86_64::instructions::tlb::flush(page.start_address());
        // The entry behind the one that leads to the table: 512 of each.
        WindowTables { pages: table.cast(), large: directory.cast::<u64>().wrapping_add(1) }
    })
}

impl WindowTables {
    /// Has the page `window` (below 512) be what `entry` says.
    ///
    /// # Safety
    /// Nothing is reached through it meanwhile, and what it maps then holds no object of Rust's. Translations that are
    /// kept must be flushed where it mapped something.
    pub unsafe fn set_page(&self, window: usize, entry: u64) {
        assert!(window < 512, "no window {window}");
        // SAFETY: an entry of our table, which is kept for good; the rest is the caller's promise.
        unsafe { self.pages.add(window).write_volatile(entry) };
    }

    /// Has the 2 MiB behind the pages be what `entry` says.
    ///
    /// # Safety
    /// As for [`WindowTables::set_page`].
    pub unsafe fn set_large(&self, entry: u64) {
        // SAFETY: as in `set_page`.
        unsafe { self.large.write_volatile(entry) };
    }
}

/// The address at `offset` among the windows.
#[inline]
pub fn window(offset: u64) -> *mut u8 {
    core::ptr::with_exposed_provenance_mut(size(WINDOWS + offset))
}

/// Tells `violation` of every page that can be written and run, and of every page with memory of `pool` (address and
/// length in bytes), of which none is to be mapped while all windows are closed.
pub fn audit(pool: &[(Hpa, u64)], violation: &mut dyn FnMut(String)) {
    with_tables(|tables| {
        let top = tables.table.level_4_table();
        visit(top, 4, 0, Flags::WRITABLE, &mut |virt, hpa, length, flags| {
            let runs = !flags.contains(Flags::NO_EXECUTE);
            if runs && flags.contains(Flags::WRITABLE) {
                violation(format!("the hypervisor's page at {virt:#x} can be written and run"));
            }
            let pooled = pool.iter().any(|&(start, size)| start < hpa + length && hpa < start + size);
            if pooled {
                violation(format!("memory of VMs at {hpa:#x} is mapped at {virt:#x} ({flags:?})"));
            }
        });
    });
}

/// Shows `visitor` each page below `table`, a table of `level` for the addresses from `base`: address, where it is in
/// the machine, its length in bytes, and what all levels together allow; `above` is what those above do.
fn visit(table: &PageTable, level: u32, base: u64, above: Flags, visitor: &mut impl FnMut(u64, Hpa, u64, Flags)) {
    let span = PAGE_4K << (9 * (level - 1));
    for (index, entry) in (0u64..).zip(table.iter()).filter(|(_, entry)| entry.flags().contains(Flags::PRESENT)) {
        let flags = entry.flags();
        let virt = base + index * span;
        // The upper half of the addresses.
        let virt = if level == 4 && index >= 256 { virt | 0xffff_0000_0000_0000 } else { virt };
        let allowed = (flags & above & Flags::WRITABLE) | ((flags | above) & Flags::NO_EXECUTE);
        let hpa = Hpa(entry.addr().as_u64());
        if level == 1 || flags.contains(Flags::HUGE_PAGE) {
            visitor(virt, hpa, span, allowed);
        } else {
            // SAFETY: the entry names a table of ours, which lies in the direct map; the lock on the tables is held, so
            // nobody changes it.
            let below = unsafe { &*direct(hpa).cast_const().cast::<PageTable>() };
            visit(below, level - 1, virt, allowed, visitor);
        }
    }
}

/// Makes the page with this function's code writable; whether it could.
#[cfg(feature = "plant")]
pub fn plant_writable_code() -> bool {
    let code = VirtAddr::from_ptr(plant_writable_code as *const ());
    with_tables(|tables| {
        let page = Page::<Size4KiB>::containing_address(code);
        let flags = Flags::PRESENT | Flags::WRITABLE | Flags::GLOBAL;
        // SAFETY: the mapping stays what it was, but that stores would work; nobody stores there.
        let changed = unsafe { tables.table.update_flags(page, flags) };
        changed.map(|flush| flush.flush()).is_ok()
    })
}

/// Maps `frame` of a VM's in the direct map; whether it could.
#[cfg(feature = "plant")]
pub fn plant_mapping(frame: Hpa) -> bool {
    with_tables(|tables| {
        let page = Page::<Size4KiB>::containing_address(VirtAddr::new(DIRECT_MAP + frame.0));
        let to = PhysFrame::containing_address(PhysAddr::new(frame.0));
        // SAFETY: no object of Rust's is in a VM's memory, and nobody uses the mapping.
        let mapped = unsafe { tables.table.map_to(page, to, DATA, &mut TableFrames) };
        mapped.map(|flush| flush.flush()).is_ok()
    })
}

/// Maps `length` bytes of a framebuffer at `hpa`, write-combining. Returns where `hpa` itself is then.
pub fn map_framebuffer(hpa: Hpa, length: u64) -> *mut u8 {
    with_tables(|tables| {
        let virt = tables.next_device;
        let first = hpa.align_down(PAGE_4K);
        let pages = (length + hpa.offset_in(PAGE_4K)).div_ceil(PAGE_4K);
        for page in 0..pages {
            map::<Size4KiB>(&mut tables.table, virt + page * PAGE_4K, first + page * PAGE_4K, PICTURE);
        }
        tables.next_device += pages * PAGE_4K;
        core::ptr::with_exposed_provenance_mut(size(virt + hpa.offset_in(PAGE_4K)))
    })
}

/// Whether an address is mapped, by a walk of the current tables that takes no lock.
pub fn is_mapped(virt: u64) -> bool {
    translate(virt).is_some()
}

/// What lies around a faulting address, in words, for the report of a bug.
pub fn describe(virt: u64) -> &'static str {
    if virt < PAGE_4K {
        return "in page 0, which is never mapped";
    }
    match virt {
        STACKS..DEVICES if !is_mapped(virt) => "in a guard page: a stack overflowed",
        _ if VirtAddr::try_new(virt).is_err() => "not canonical",
        _ if is_mapped(virt) => "mapped, but not for this kind of access",
        _ => "not mapped",
    }
}

/// Host-physical address of the current top table.
pub fn root() -> Hpa {
    top_table()
}
