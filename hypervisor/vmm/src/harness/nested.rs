//! Nested tables: only what was asked is mapped, no two VMs share a frame, and tables outlive their invalidation.

use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use bolero::check;
use lamina_arch::addr::{Gpa, Hpa, PAGE_2M, PAGE_4K};

use crate::fake_memory::FakeMemory;
use crate::frames::{FramePool, FrameSize};
use crate::nested::ept::Ept;
use crate::nested::npt::Npt;
use crate::nested::{Access, EntryFormat, Flush, NestedTables, TableFrames, Visited};

const SIZE: u64 = 16 << 20;

/// What to do, the page and how many, and the frame's page.
type Step = (u8, u16, u16, u16);

/// Frames for tables, and which are lent.
struct Lender {
    free: Vec<Hpa>,
    lent: BTreeSet<Hpa>,
}

impl TableFrames for Lender {
    fn allocate_table(&mut self) -> Option<Hpa> {
        let table = self.free.pop()?;
        assert!(self.lent.insert(table), "lent twice");
        Some(table)
    }

    fn free_table(&mut self, table: Hpa) {
        assert!(self.lent.remove(&table), "given back, but not lent");
        self.free.push(table);
    }
}

/// Every page that is mapped, in pages of 4 KiB.
fn mapped<F: EntryFormat>(tables: &NestedTables<F>, host: &FakeMemory) -> (BTreeMap<u64, (u64, Access)>, Vec<Hpa>) {
    let (mut pages, mut reached) = (BTreeMap::new(), Vec::new());
    tables.visit(host, &mut |visited| match visited {
        Visited::Table(table) => reached.push(table),
        Visited::Page { gpa, hpa, size, access } => {
            for at in (0..size.bytes()).step_by(4096) {
                assert!(pages.insert(gpa.0 + at, (hpa.0 + at, access)).is_none(), "mapped twice");
            }
        }
    });
    (pages, reached)
}

fn only_what_is_asked<F: EntryFormat>(format: F, steps: &[Step]) {
    let mut host = FakeMemory::new(SIZE);
    let mut lender = Lender { free: (1..24).map(|n| Hpa(n * PAGE_4K)).collect(), lent: BTreeSet::new() };
    let mut tables = NestedTables::new(format, &mut host, &mut lender).unwrap();
    let mut model: BTreeMap<u64, (u64, Access)> = BTreeMap::new();
    let mut pending: Vec<Flush> = Vec::new();
    for &(kind, page, count, frame) in steps.iter().take(8) {
        // Around the boundaries of large pages, and in two of the tables' regions.
        let gpa = (u64::from(page & 0x3ff) << 12) + (u64::from(page >> 15) << 30);
        let length = if kind & 0x40 == 0 { u64::from(count & 0x3f) << 12 } else { PAGE_2M };
        let gpa = if kind & 0x20 == 0 { gpa } else { gpa & !(PAGE_2M - 1) };
        let hpa = if kind & 0x10 == 0 { u64::from(frame) << 12 } else { u64::from(frame) << 21 };
        let access = [Access::RWX, Access::R, Access::RX][usize::from(kind >> 2) % 3];
        let done = match kind & 3 {
            0 => tables.unmap(&mut host, &mut lender, Gpa(gpa), length).map(|flush| (flush, None)),
            1 => {
                let free = !model.contains_key(&gpa);
                let done = tables.map_absent(&mut host, Gpa(gpa), Hpa(hpa), access);
                assert!(free || !done, "mapped over what was there");
                if done {
                    model.insert(gpa, (hpa, access));
                }
                continue;
            }
            2 => {
                pending.drain(..).for_each(|flush| flush.acknowledge(&mut lender));
                continue;
            }
            _ => tables
                .map(&mut host, &mut lender, Gpa(gpa), Hpa(hpa), length, access)
                .map(|flush| (flush, Some((hpa, access)))),
        };
        // Where there is no frame for tables, nothing has changed.
        if let Ok((flush, target)) = done {
            for at in (0..length).step_by(4096) {
                match target {
                    Some((hpa, access)) => model.insert(gpa + at, (hpa + at, access)),
                    None => model.remove(&(gpa + at)),
                };
            }
            pending.push(flush);
        }
        let (pages, reached) = mapped(&tables, &host);
        assert!(pages == model, "what is mapped is not what was asked for");
        assert!(reached.iter().all(|table| lender.lent.contains(table)), "a table in use was given back");
        let walked = tables.walk(&host, Gpa(gpa + 5)).map(|found| (found.hpa.0 - 5, found.access));
        assert_eq!(walked, model.get(&gpa).copied());
    }
    pending.drain(..).for_each(|flush| flush.acknowledge(&mut lender));
    tables.destroy(&host).acknowledge(&mut lender);
    assert!(lender.lent.is_empty(), "a table is lost");
}

#[test]
fn ept_maps_only_what_is_asked() {
    check!().with_type::<Vec<Step>>().for_each(|steps| {
        only_what_is_asked(Ept { execute_only: false, largest: FrameSize::Size2M }, steps);
    });
}

#[test]
fn npt_maps_only_what_is_asked() {
    check!().with_type::<Vec<Step>>().for_each(|steps| {
        only_what_is_asked(Npt { largest: FrameSize::Size2M }, steps);
    });
}

/// Two VMs take frames from one pool, map them, lose them and give them back only behind the acknowledgement: at no
/// time does a frame have two owners, and none is both mapped and free.
#[test]
fn two_vms_never_share_a_frame() {
    check!().with_type::<Vec<(u8, u8)>>().for_each(|steps| {
        let mut host = FakeMemory::new(SIZE);
        let mut pool = FramePool::new(&[(Hpa(PAGE_4K), SIZE - PAGE_4K)]);
        let format = Ept { execute_only: false, largest: FrameSize::Size2M };
        let mut vms: Vec<_> = (0..2).map(|_| NestedTables::new(format, &mut host, &mut pool).unwrap()).collect();
        let mut pending: Vec<(Flush, Vec<Hpa>)> = Vec::new();
        for &(kind, page) in steps.iter().take(12) {
            let gpa = Gpa(u64::from(page & 0x1f) << 12);
            let vm = &mut vms[usize::from(kind & 1)];
            match kind >> 1 & 3 {
                0 | 1 => {
                    let Some(frame) = pool.allocate(FrameSize::Size4K) else { continue };
                    let old = vm.walk(&host, gpa).map(|found| found.hpa);
                    let flush = vm.map(&mut host, &mut pool, gpa, frame, PAGE_4K, Access::RWX).unwrap();
                    pending.push((flush, old.into_iter().collect()));
                }
                2 => {
                    let old = vm.walk(&host, gpa).map(|found| found.hpa);
                    let flush = vm.unmap(&mut host, &mut pool, gpa, PAGE_4K).unwrap();
                    pending.push((flush, old.into_iter().collect()));
                }
                _ => {
                    for (flush, frames) in pending.drain(..) {
                        flush.acknowledge(&mut pool);
                        frames.into_iter().for_each(|frame| pool.free(frame, FrameSize::Size4K).unwrap());
                    }
                }
            }
            // Where frames came back, and thus could be lent again: looking takes time.
            if kind >> 1 & 3 != 3 {
                continue;
            }
            let mut owned = BTreeSet::new();
            for vm in &vms {
                let (pages, tables) = mapped(vm, &host);
                for frame in pages.values().map(|&(hpa, _)| hpa).chain(tables.iter().map(|table| table.0)) {
                    assert!(owned.insert(frame), "{frame:#x} has two owners");
                }
            }
            // A frame that is in use cannot be free: taking everything that is free finds none of them.
            let mut rest = pool.clone();
            while let Some(free) = rest.allocate(FrameSize::Size4K) {
                assert!(!owned.contains(&free.0), "{free:?} is in use and free");
                if free.0 < SIZE / 2 {
                    break;
                }
            }
        }
    });
}

#[test]
fn a_pool_lends_no_frame_twice_and_takes_back_only_what_it_lent() {
    check!().with_type::<Vec<(u8, u16)>>().for_each(|steps| {
        let mut pool = FramePool::new(&[(Hpa(0x3000), 8 << 20), (Hpa(0x200_0000), 4 << 20)]);
        let mut taken: BTreeMap<u64, FrameSize> = BTreeMap::new();
        for &(kind, which) in steps {
            let size = if kind & 2 == 0 { FrameSize::Size4K } else { FrameSize::Size2M };
            if kind & 1 == 0 {
                let Some(frame) = pool.allocate(size) else { continue };
                assert!(frame.is_aligned(size.bytes()) && pool.contains(frame, size.bytes()));
                let before = taken.range(..frame.0 + size.bytes()).next_back();
                assert!(before.is_none_or(|(&at, size)| at + size.bytes() <= frame.0), "{frame:?} overlaps");
                taken.insert(frame.0, size);
            } else if let Some((&at, &size)) = taken.iter().nth(usize::from(which) % (taken.len() + 1)) {
                pool.free(Hpa(at), size).unwrap();
                taken.remove(&at);
                assert!(pool.clone().free(Hpa(at), size).is_err(), "freed twice");
            }
            let used: u64 = taken.values().map(|size| size.bytes()).sum();
            assert_eq!(pool.used(), used);
        }
    });
}
