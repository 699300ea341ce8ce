//! Guest memory and what walks through it: accesses stay inside, and what is refused changes nothing.

use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

use bolero::check;
use lamina_arch::addr::{Gla, Gpa, Hpa};
use lamina_arch::cr::{Cr0, Cr4, Efer};

use crate::fake_memory::FakeMemory;
use crate::frames::{FramePool, STOCK_LOW, fill_stock};
use crate::layout::ECAM;
use crate::memory::{Backing, GuestMemory, Touched, e820_of, regions_of};
use crate::walk::{Access, Paging, Tables};

const MACHINE: u64 = 16 << 20;
const MEMORY: u64 = 4 << 20;

/// Where: near a boundary of memory, or anywhere.
fn place(base: u8, offset: i16, anywhere: u64) -> Gpa {
    let bases = [0, 0xa_0000, 0xc_0000, 0xe_0000, 0x10_0000, MEMORY, 1 << 32, u64::MAX];
    match base {
        0..=199 => Gpa(bases[usize::from(base) % 8].wrapping_add_signed(i64::from(offset))),
        _ => Gpa(anywhere),
    }
}

/// Write or only read, where (see [`place`]), how much, and what.
type Step = (bool, (u8, i16, u64), u16, u8);

/// Reads and writes against a map of bytes.
fn accesses(backing: Backing, steps: &[Step]) {
    let mut host = FakeMemory::new(MACHINE);
    let mut pool = FramePool::new(&[(Hpa(0x1000), MACHINE - 0x1000)]);
    let mut memory = GuestMemory::allocate(MEMORY, backing, &mut pool, &mut host).unwrap();
    let mut model: BTreeMap<u64, u8> = BTreeMap::new();
    for &(write, (base, offset, anywhere), length, value) in steps.iter().take(6) {
        assert!(fill_stock(&mut host, &mut pool, STOCK_LOW));
        let (gpa, length) = (place(base, offset, anywhere), usize::from(length % 5000));
        let end = gpa.0.checked_add(length as u64);
        let inside = length == 0
            || end.is_some_and(|end| {
                regions_of(MEMORY).any(|region| region.start.0 <= gpa.0 && end <= region.start.0 + region.length)
            });
        assert_eq!(memory.is_memory(gpa, length as u64), inside);
        let mut data = vec![value; length];
        if write {
            assert_eq!(memory.write(&mut host, gpa, &data).is_ok(), inside);
            if inside {
                model.extend((0..length as u64).map(|at| (gpa.0 + at, value)));
            }
        }
        assert_eq!(memory.read(&host, gpa, &mut data).is_ok(), inside);
        for (at, &byte) in (0..).zip(&data) {
            let expected = if inside { model.get(&(gpa.0 + at)).copied().unwrap_or(0) } else { value };
            assert_eq!(byte, expected, "{gpa:?}+{at:#x}");
        }
        let touched = memory.touch(&mut host, &mut pool, gpa);
        let lazy = backing == Backing::Lazy && memory.is_memory(gpa, 1);
        assert_eq!(matches!(touched, Touched::Backed { .. }), lazy, "{gpa:?}: {touched:?}");
    }
    memory.release(&host, &mut pool);
    crate::frames::empty_stock(&mut host, &mut pool);
    assert_eq!(pool.used(), 0, "frames are lost");
}

#[test]
fn eager_memory_holds_what_is_written_and_nothing_outside() {
    check!().with_type::<Vec<Step>>().for_each(|steps| accesses(Backing::Eager, steps));
}

#[test]
fn lazy_memory_holds_what_is_written_and_nothing_outside() {
    check!().with_type::<Vec<Step>>().for_each(|steps| accesses(Backing::Lazy, steps));
}

#[test]
fn regions_and_the_memory_map_agree() {
    check!().with_type::<u32>().cloned().for_each(|pages| {
        let size = u64::from(pages) << 12;
        let mut end = 0;
        for region in regions_of(size) {
            assert!(region.start.0 >= end && region.length > 0);
            end = region.start.0 + region.length;
        }
        let mut last = 0;
        for entry in e820_of(size) {
            assert!(entry.region.start.0 >= last, "sorted, and apart");
            last = entry.region.start.0 + entry.region.length;
            let memory = regions_of(size).any(|region| region.holds(entry.region.start, entry.region.length));
            assert!(memory || entry.region.start == ECAM);
        }
    });
}

/// Page tables whose entries come from the input, by address.
struct Entries<'a> {
    values: &'a [u64],
    marked: Vec<(Gpa, u8)>,
}

impl Tables for Entries<'_> {
    fn entry(&mut self, at: Gpa, width: usize) -> Option<u64> {
        let index = usize::try_from(at.0 >> 3 ^ at.0 >> 12).unwrap_or(0) % (self.values.len() + 1);
        let value = *self.values.get(index)?;
        Some(if width == 4 { value & 0xffff_ffff } else { value })
    }

    fn mark(&mut self, at: Gpa, flags: u8) {
        self.marked.push((at, flags));
    }
}

#[test]
fn a_walk_of_the_guests_tables_ends_and_marks_only_when_it_finds() {
    check!().with_type::<(Vec<u64>, u64, u64, [u64; 3], u8, u8)>().for_each(
        |(values, address, cr3, [cr0, cr4, efer], kind, width)| {
            // Present more often than not.
            let values: Vec<u64> =
                values.iter().map(|&value| if value >> 9 & 7 == 0 { value } else { value | 7 }).collect();
            let paging = Paging {
                pkru: (kind & 64 != 0).then_some(u32::from(*kind) * 0x0101_0101),
                cr0: Cr0::from_bits_truncate(*cr0) | Cr0::PE | Cr0::PG,
                cr3: *cr3,
                cr4: Cr4::from_bits_truncate(*cr4),
                efer: Efer::from_bits_truncate(*efer),
                alignment_check: kind & 1 != 0,
                physical_bits: 32 + u32::from(width % 21),
            };
            let mut tables = Entries { values: &values, marked: Vec::new() };
            let access = match kind >> 1 & 3 {
                0 => Access::fetch(kind >> 3 & 3),
                1 => Access::system(kind & 8 != 0),
                _ => Access::data(kind >> 3 & 3, kind & 32 != 0),
            };
            match paging.translate(Gla(*address), access, &mut tables) {
                Ok(gpa) => assert_eq!(gpa.0 & 0xfff, address & 0xfff),
                Err(_) => assert_eq!(tables.marked, [], "a fault marks nothing"),
            }
        },
    );
}
