use std::collections::BTreeSet;

use lamina_arch::addr::{PAGE_1G, PAGE_2M};
use proptest::prelude::*;

use super::ept::Ept;
use super::npt::Npt;
use super::*;
use crate::fake_memory::FakeMemory;

const FULL: Ept = Ept { execute_only: false, largest: FrameSize::Size1G };

/// Lends frames from a stack, so that one that is given back too early is reused at once.
struct Frames {
    spare: Vec<Hpa>,
    lent: BTreeSet<Hpa>,
}

impl Frames {
    fn new(count: u64) -> Frames {
        Frames { spare: (1..=count).map(|n| Hpa(n * PAGE_4K)).collect(), lent: BTreeSet::new() }
    }
}

impl TableFrames for Frames {
    fn allocate_table(&mut self) -> Option<Hpa> {
        let table = self.spare.pop()?;
        assert!(self.lent.insert(table));
        Some(table)
    }

    fn free_table(&mut self, table: Hpa) {
        assert!(self.lent.remove(&table), "{table:?} was not lent");
        self.spare.push(table);
    }
}

/// A vendor's entries as its manual has them, without any code of the module under test.
trait Reference: EntryFormat {
    /// What an entry allows: bit 0 read, bit 1 write, bit 2 execute; 0 where it is not present.
    fn allows(entry: u64) -> u64;

    /// Refuses what the processor would.
    fn check(entry: u64, is_leaf: bool);
}

impl Reference for Ept {
    fn allows(entry: u64) -> u64 {
        entry & 7
    }

    fn check(entry: u64, is_leaf: bool) {
        if is_leaf {
            assert_eq!(entry >> 3 & 7, 6, "not write-back");
        } else {
            assert_eq!(entry & 0xff8, 0, "reserved bits are set");
        }
    }
}

impl Reference for Npt {
    fn allows(entry: u64) -> u64 {
        if entry & 1 == 0 { 0 } else { 1 | entry & 2 | (entry >> 63 ^ 1) << 2 }
    }

    fn check(entry: u64, is_leaf: bool) {
        assert_eq!(entry & 4, 4, "not for users");
        assert_eq!(entry & 0x18, 0, "not write-back");
        if !is_leaf {
            assert_eq!(entry & (0xf00 | 0x80), 0, "reserved bits are set");
            assert_eq!(Self::allows(entry), 7, "a table restricts");
        }
    }
}

struct Bench<F> {
    host: FakeMemory,
    frames: Frames,
    tables: NestedTables<F>,
}

impl<F: EntryFormat> Bench<F> {
    fn new(format: F, frame_count: u64) -> Bench<F> {
        let mut host = FakeMemory::new((frame_count + 1) * PAGE_4K);
        let mut frames = Frames::new(frame_count);
        let tables = NestedTables::new(format, &mut host, &mut frames).unwrap();
        Bench { host, frames, tables }
    }

    fn map(&mut self, gpa: u64, hpa: u64, length: u64, access: Access) -> Result<Flush, MapError> {
        self.tables.map(&mut self.host, &mut self.frames, Gpa(gpa), Hpa(hpa), length, access)
    }

    fn unmap(&mut self, gpa: u64, length: u64) -> Result<Flush, MapError> {
        self.tables.unmap(&mut self.host, &mut self.frames, Gpa(gpa), length)
    }

    fn walk(&self, gpa: u64) -> Option<(u64, FrameSize, Access)> {
        self.tables.walk(&self.host, Gpa(gpa)).map(|found| (found.hpa.0, found.size, found.access))
    }
}

/// Walks tables as the manual says, without any code of the module under test. Notes the tables it came by in `path`.
fn reference_walk<F: Reference>(host: &FakeMemory, root: Hpa, gpa: u64, path: &mut Vec<u64>) -> Option<(u64, u64)> {
    let mut table = root.0;
    path.clear();
    for shift in [39, 30, 21, 12] {
        path.push(table);
        let entry = host.read_u64(Hpa(table + (gpa >> shift & 511) * 8));
        if F::allows(entry) == 0 {
            return None;
        }
        let address = entry & 0x000f_ffff_ffff_f000;
        if shift == 12 || entry & 0x80 != 0 {
            assert!(shift != 39, "a page at the top level");
            F::check(entry, true);
            let mask = (1 << shift) - 1;
            assert_eq!(address & mask, 0, "reserved address bits are set");
            return Some((address | gpa & mask, F::allows(entry)));
        }
        F::check(entry, false);
        table = address;
    }
    unreachable!()
}

/// Every leaf: its first guest-physical address, size, frame and access bits.
fn leaves<F: Reference>(host: &FakeMemory, table: u64, shift: u32, base: u64, found: &mut Vec<(u64, u64, u64, u64)>) {
    for index in 0..512 {
        let entry = host.read_u64(Hpa(table + index * 8));
        let (gpa, address) = (base + (index << shift), entry & 0x000f_ffff_ffff_f000);
        match F::allows(entry) {
            0 => {}
            bits if shift == 12 || entry & 0x80 != 0 => found.push((gpa, 1 << shift, address, bits)),
            _ => leaves::<F>(host, address, shift - 9, gpa, found),
        }
    }
}

#[test]
fn the_largest_page_that_fits_is_used() {
    let mut bench = Bench::new(FULL, 16);
    let flush = bench.map(PAGE_1G - PAGE_2M - PAGE_4K, PAGE_1G - PAGE_2M - PAGE_4K, 2 * PAGE_1G, Access::RWX);
    assert!(!flush.unwrap().is_needed());
    assert_eq!(bench.walk(PAGE_1G - PAGE_2M - 1), Some((PAGE_1G - PAGE_2M - 1, FrameSize::Size4K, Access::RWX)));
    assert_eq!(bench.walk(PAGE_1G - PAGE_2M), Some((PAGE_1G - PAGE_2M, FrameSize::Size2M, Access::RWX)));
    assert_eq!(bench.walk(PAGE_1G + 5), Some((PAGE_1G + 5, FrameSize::Size1G, Access::RWX)));
    assert_eq!(bench.walk(3 * PAGE_1G - PAGE_2M - PAGE_4K), None);
    assert_eq!(bench.walk(PAGE_1G - PAGE_2M - PAGE_4K - 1), None);
    assert_eq!(bench.walk(GPA_END), None);
    assert_eq!(bench.walk(u64::MAX), None);
}

#[test]
fn the_format_limits_page_sizes() {
    for (largest, expected) in [(FrameSize::Size2M, FrameSize::Size2M), (FrameSize::Size4K, FrameSize::Size4K)] {
        let mut bench = Bench::new(Ept { largest, ..FULL }, 520);
        let _ = bench.map(PAGE_1G, 0, PAGE_1G, Access::RW).unwrap();
        assert_eq!(bench.walk(PAGE_1G + PAGE_2M + 7), Some((PAGE_2M + 7, expected, Access::RW)));
    }
}

#[test]
fn an_unaligned_frame_gets_small_pages() {
    let mut bench = Bench::new(FULL, 16);
    let _ = bench.map(PAGE_2M, PAGE_2M + PAGE_4K, PAGE_2M, Access::R).unwrap();
    assert_eq!(bench.walk(PAGE_2M + 1), Some((PAGE_2M + PAGE_4K + 1, FrameSize::Size4K, Access::R)));
}

#[test]
fn a_hole_splits_a_huge_page_and_a_whole_page_closes_it() {
    let mut bench = Bench::new(FULL, 16);
    assert!(!bench.map(0, 0, PAGE_1G, Access::RWX).unwrap().is_needed());
    assert_eq!(bench.frames.lent.len(), 2);
    let flush = bench.unmap(PAGE_2M + PAGE_4K, PAGE_4K).unwrap();
    assert!(flush.is_needed());
    flush.acknowledge(&mut bench.frames);
    assert_eq!(bench.frames.lent.len(), 4);
    assert_eq!(bench.walk(PAGE_2M + PAGE_4K), None);
    assert_eq!(bench.walk(PAGE_2M + 2), Some((PAGE_2M + 2, FrameSize::Size4K, Access::RWX)));
    assert_eq!(bench.walk(PAGE_1G - 1), Some((PAGE_1G - 1, FrameSize::Size2M, Access::RWX)));

    let flush = bench.map(0, 0, PAGE_1G, Access::RWX).unwrap();
    assert!(flush.is_needed());
    assert_eq!(bench.frames.lent.len(), 4, "tables were given back before the acknowledgement");
    flush.acknowledge(&mut bench.frames);
    assert_eq!(bench.frames.lent.len(), 2);
}

#[test]
fn tables_that_map_nothing_are_unlinked() {
    let mut bench = Bench::new(FULL, 16);
    let _ = bench.map(0x7f_ffff_f000, 0, 2 * PAGE_4K, Access::RW).unwrap();
    assert_eq!(bench.frames.lent.len(), 7);
    bench.unmap(0x7f_ffff_f000, 2 * PAGE_4K).unwrap().acknowledge(&mut bench.frames);
    assert_eq!(bench.frames.lent.len(), 1);
    assert_eq!(bench.unmap(0, GPA_END).unwrap(), Flush::default());
}

#[test]
fn errors_change_nothing() {
    let mut bench = Bench::new(FULL, 5);
    let _ = bench.map(0, 0, PAGE_1G, Access::RWX).unwrap();
    bench.host.recording = true;
    let unaligned = |gpa, length| Err(MapError::Unaligned { gpa: Gpa(gpa), length });
    let beyond = |gpa, length| Err(MapError::Beyond { gpa: Gpa(gpa), length });
    assert_eq!(bench.map(0x800, 0, PAGE_4K, Access::R), unaligned(0x800, PAGE_4K));
    assert_eq!(bench.map(0, 0x800, PAGE_4K, Access::R), unaligned(0, PAGE_4K));
    assert_eq!(bench.unmap(0, 0x800), unaligned(0, 0x800));
    assert_eq!(bench.map(GPA_END - PAGE_4K, 0, 2 * PAGE_4K, Access::R), beyond(GPA_END - PAGE_4K, 2 * PAGE_4K));
    assert_eq!(bench.unmap(u64::MAX - 0xfff, PAGE_4K), beyond(u64::MAX - 0xfff, PAGE_4K));
    assert_eq!(bench.map(0, HPA_END, PAGE_4K, Access::R), beyond(0, PAGE_4K));
    let write_only = Access { read: false, write: true, execute: false };
    assert_eq!(bench.map(0, 0, PAGE_4K, write_only), Err(MapError::Access(write_only)));
    // Two huge pages to split, and frames for one and a half.
    let _ = bench.map(PAGE_1G, 0, PAGE_1G, Access::RWX).unwrap();
    bench.host.log.clear();
    assert_eq!(bench.unmap(PAGE_1G - PAGE_4K, 2 * PAGE_4K), Err(MapError::OutOfTableFrames));
    assert_eq!(bench.host.log, []);
    assert_eq!(bench.frames.lent.len(), 2);
}

#[derive(Clone, Debug)]
struct Step {
    gpa: u64,
    length: u64,
    /// `None` unmaps.
    to: Option<(u64, Access)>,
    /// The processors take their time to acknowledge.
    acknowledge_now: bool,
}

/// Addresses in a corner of the address space where pages of all sizes can be had, near the borders of large pages.
fn place() -> impl Strategy<Value = u64> {
    (0u64..4, 0u64..4, prop_oneof![Just(0u64), Just(1), Just(511), 0u64..512])
        .prop_map(|(giga, large, small)| giga * PAGE_1G + large * PAGE_2M + small * PAGE_4K)
}

fn step() -> impl Strategy<Value = Step> {
    let access = prop::sample::select(vec![Access::R, Access::RW, Access::RX, Access::RWX]);
    let long = prop_oneof![
        Just(PAGE_4K),
        Just(PAGE_2M),
        Just(PAGE_1G),
        (1u64..1200).prop_map(|pages| pages * PAGE_4K),
        (1u64..3, 0u64..600).prop_map(|(giga, pages)| giga * PAGE_1G + pages * PAGE_4K),
    ];
    let short = (1u64..1200).prop_map(|pages| pages * PAGE_4K);
    // In step with the guest's addresses mostly, so that large pages are possible.
    let large = (place(), long, prop::option::weighted(0.6, (Just(0), access.clone())));
    let small = (place(), short, (0u64..1024, access).prop_map(Some));
    (prop_oneof![3 => large.boxed(), 1 => small.boxed()], any::<bool>()).prop_map(
        |((gpa, length, to), acknowledge_now)| {
            let to = to.map(|(pages, access)| (gpa + 8 * PAGE_1G + pages * PAGE_4K, access));
            Step { gpa, length, to, acknowledge_now }
        },
    )
}

/// What an address means after `steps`, in the words of `reference_walk`.
fn model(steps: &[Step], gpa: u64) -> Option<(u64, u64)> {
    let last = steps.iter().rev().find(|step| step.gpa <= gpa && gpa < step.gpa + step.length)?;
    let (hpa, access) = last.to?;
    let bits = u64::from(access.read) | u64::from(access.write) << 1 | u64::from(access.execute) << 2;
    Some((hpa + (gpa - last.gpa), bits))
}

/// The addresses at which something may go wrong after `steps`.
fn interesting(steps: &[Step]) -> Vec<u64> {
    let mut places = BTreeSet::new();
    for step in steps {
        for border in [step.gpa, step.gpa + step.length] {
            for at in [border, border & !(PAGE_2M - 1), border & !(PAGE_1G - 1), border | (PAGE_2M - 1)] {
                places.extend([at.saturating_sub(1), at, at + PAGE_4K]);
            }
        }
    }
    places.into_iter().collect()
}

fn check_history<F: Reference>(format: F, steps: &[Step]) {
    let mut bench = Bench::new(format, 40_000);
    let root = bench.tables.root();
    let places = interesting(steps);
    let mut pending: Vec<(Flush, FakeMemory)> = Vec::new();
    for (done, step) in steps.iter().enumerate() {
        let mut replayed = bench.host.clone();
        bench.host.recording = true;
        let flush = match step.to {
            Some((hpa, access)) => bench.map(step.gpa, hpa, step.length, access),
            None => bench.unmap(step.gpa, step.length),
        };
        let flush = flush.unwrap();
        bench.host.recording = false;

        // A processor that walks at any instant finds the old mapping, the new one, or none; where both are the same,
        // it finds just that all the time. A change in a table that no walk comes by changes no walk.
        let mut expected: Vec<_> = places
            .iter()
            .map(|&at| {
                let mut path = Vec::new();
                reference_walk::<F>(&replayed, root, at, &mut path);
                (at, model(&steps[..done], at), model(&steps[..=done], at), path)
            })
            .collect();
        let mut reached: BTreeSet<u64> = expected.iter().flat_map(|(.., path)| path.clone()).collect();
        let mut changed_present = false;
        for change in core::mem::take(&mut bench.host.log) {
            replayed.write_u64(change.at, change.value);
            let table = change.at.0 & !0xfff;
            if !reached.contains(&table) {
                continue;
            }
            for (at, old, new, path) in expected.iter_mut().filter(|(.., path)| path.contains(&table)) {
                let (old, new) = (*old, *new);
                let now = reference_walk::<F>(&replayed, root, *at, path);
                reached.extend(&*path);
                assert!(now == old || now == new || now.is_none(), "{at:#x}: {now:x?} is not {old:x?} or {new:x?}");
                assert!(now.is_some() || old != new || old.is_none(), "{at:#x} was lost for a moment");
            }
        }
        for (at, old, new, mut path) in expected {
            assert_eq!(reference_walk::<F>(&replayed, root, at, &mut path), new, "{at:#x}");
            let found = bench.tables.walk(&bench.host, Gpa(at)).map(|found| found.hpa.0);
            assert_eq!(found, new.map(|(hpa, _)| hpa));
            changed_present |= old.is_some() && old != new;
        }
        assert!(flush.is_needed() || !changed_present, "a mapping changed and no invalidation is asked for");

        pending.push((flush, bench.host.clone()));
        if step.acknowledge_now {
            for (flush, then) in pending.drain(..) {
                // A processor may still have walked the unlinked tables until now.
                for &table in &flush.unlinked {
                    for entry in 0..512 {
                        let at = table + entry * 8;
                        assert_eq!(bench.host.read_u64(at), then.read_u64(at), "an unlinked table was changed");
                    }
                }
                flush.acknowledge(&mut bench.frames);
            }
        }
    }

    let mut found = Vec::new();
    leaves::<F>(&bench.host, root.0, 39, 0, &mut found);
    for (gpa, size, hpa, bits) in found {
        for offset in [0, (size / 2) & !0xfff, size - PAGE_4K] {
            assert_eq!(model(steps, gpa + offset), Some((hpa + offset, bits)), "{gpa:#x}+{offset:#x}");
        }
    }
    pending.into_iter().for_each(|(flush, _)| flush.acknowledge(&mut bench.frames));
    let flush = bench.tables.destroy(&bench.host);
    assert!(flush.is_needed());
    flush.acknowledge(&mut bench.frames);
    assert_eq!(bench.frames.lent, BTreeSet::new(), "frames were lost");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_update_is_safe_at_every_instant(steps in prop::collection::vec(step(), 1..7)) {
        check_history(FULL, &steps);
    }

    #[test]
    fn and_without_huge_pages(steps in prop::collection::vec(step(), 1..4)) {
        check_history(Ept { largest: FrameSize::Size2M, ..FULL }, &steps);
    }

    #[test]
    fn and_in_the_other_vendors_format(steps in prop::collection::vec(step(), 1..6)) {
        check_history(Npt { largest: FrameSize::Size1G }, &steps);
    }
}
