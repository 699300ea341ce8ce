use std::collections::BTreeSet;

use proptest::prelude::*;

use super::FrameSize::{Size1G, Size2M, Size4K};
use super::*;

#[test]
fn regions_are_clipped_to_whole_frames() {
    let pool = FramePool::new(&[
        (Hpa(0x1001), 0x2fff),
        (Hpa(0x8000), 0xfff),
        (Hpa(0x1_0000), 0),
        (Hpa(u64::MAX - 10), 10),
        (Hpa(0x2_0000), 0x1800),
        (Hpa(0x2_1800), 0x800),
    ]);
    assert_eq!(pool.total(), 3 * PAGE_4K);
    assert!(pool.contains(Hpa(0x2000), 0x2000));
    assert!(!pool.contains(Hpa(0x1fff), 2));
    assert!(!pool.contains(Hpa(0x3fff), 2));
    assert!(pool.contains(Hpa(0x2_0000), 0x1000));
    assert!(!pool.contains(Hpa(0x2_1000), 1));
    assert!(!pool.contains(Hpa(u64::MAX), 2));
}

#[test]
fn overlapping_regions_count_once() {
    let mut pool = FramePool::new(&[(Hpa(0x4000), 0x3000), (Hpa(0x2000), 0x3000), (Hpa(0x4000), 0x1000)]);
    assert_eq!(pool.total(), 5 * PAGE_4K);
    let taken: BTreeSet<_> = core::iter::from_fn(|| pool.allocate(Size4K)).collect();
    assert_eq!(taken, (2..7).map(|n| Hpa(n * PAGE_4K)).collect());
}

#[test]
fn an_empty_pool_gives_nothing() {
    let mut pool = FramePool::new(&[]);
    assert_eq!([Size4K, Size2M, Size1G].map(|size| pool.allocate(size)), [None; 3]);
    assert_eq!(pool.free(Hpa(0), Size4K), Err(FreeError::Foreign(Hpa(0))));
}

#[test]
fn small_and_large_frames_come_from_opposite_ends() {
    let mut pool = FramePool::new(&[(Hpa(PAGE_2M), 4 * PAGE_2M)]);
    assert_eq!(pool.allocate(Size4K), Some(Hpa(5 * PAGE_2M - PAGE_4K)));
    assert_eq!(pool.allocate(Size2M), Some(Hpa(PAGE_2M)));
    assert_eq!(pool.allocate(Size4K), Some(Hpa(5 * PAGE_2M - 2 * PAGE_4K)));
    assert_eq!(pool.allocate(Size2M), Some(Hpa(2 * PAGE_2M)));
}

#[test]
fn small_frames_use_up_broken_blocks_first() {
    // 1 MiB below the first whole block: enough for 256 small frames that break nothing.
    let mut pool = FramePool::new(&[(Hpa(0x10_0000), 3 * PAGE_2M - 0x10_0000)]);
    for _ in 0..256 {
        assert!(pool.allocate(Size4K).unwrap() < Hpa(PAGE_2M));
    }
    assert!(pool.allocate(Size2M).is_some());
    assert!(pool.allocate(Size2M).is_some());
}

#[test]
fn a_1g_frame_is_found_only_where_all_of_it_is_free() {
    let mut pool = FramePool::new(&[(Hpa(PAGE_1G - PAGE_2M), 3 * PAGE_1G)]);
    assert_eq!(pool.allocate(Size2M), Some(Hpa(PAGE_1G - PAGE_2M)));
    assert_eq!(pool.allocate(Size2M), Some(Hpa(PAGE_1G)));
    assert_eq!(pool.allocate(Size1G), Some(Hpa(2 * PAGE_1G)));
    assert_eq!(pool.allocate(Size1G), None);
    pool.free(Hpa(PAGE_1G), Size2M).unwrap();
    assert_eq!(pool.allocate(Size1G), Some(Hpa(PAGE_1G)));
}

#[test]
fn wrong_frees_are_told_and_change_nothing() {
    let mut pool = FramePool::new(&[(Hpa(0), 2 * PAGE_2M)]);
    let large = pool.allocate(Size2M).unwrap();
    assert_eq!(pool.free(large + PAGE_4K, Size2M), Err(FreeError::Unaligned(large + PAGE_4K)));
    assert_eq!(pool.free(Hpa(2 * PAGE_2M), Size4K), Err(FreeError::Foreign(Hpa(2 * PAGE_2M))));
    assert_eq!(pool.free(Hpa(0), Size1G), Err(FreeError::Foreign(Hpa(0))));
    assert_eq!(pool.free(Hpa(PAGE_2M), Size2M), Err(FreeError::AlreadyFree(Hpa(PAGE_2M))));
    pool.free(large, Size4K).unwrap();
    assert_eq!(pool.free(large, Size2M), Err(FreeError::AlreadyFree(large)));
    assert_eq!(pool.used(), PAGE_2M - PAGE_4K);
}

/// The pool as it would be with nothing clever: a set of free small frames.
struct Model {
    free: BTreeSet<u64>,
}

impl Model {
    fn whole(&self, at: u64, size: FrameSize) -> bool {
        (at..at + size.bytes()).step_by(4096).all(|frame| self.free.contains(&frame))
    }

    fn has(&self, size: FrameSize) -> bool {
        self.free.iter().any(|&at| at.is_multiple_of(size.bytes()) && self.whole(at, size))
    }
}

#[derive(Clone, Debug)]
enum Step {
    Allocate(FrameSize),
    /// Frees the nth frame that was taken.
    Free(usize),
    /// Frees something that may be anything.
    FreeAnything(u64, FrameSize),
}

fn step() -> impl Strategy<Value = Step> {
    let small_or_large = prop_oneof![8 => Just(Size4K), 2 => Just(Size2M)];
    prop_oneof![
        6 => small_or_large.clone().prop_map(Step::Allocate),
        4 => any::<usize>().prop_map(Step::Free),
        1 => (0u64..0x1000, small_or_large).prop_map(|(frame, size)| Step::FreeAnything(frame * PAGE_4K, size)),
    ]
}

proptest! {
    #[test]
    fn agrees_with_a_naive_model(
        regions in prop::collection::vec((0u64..0x80_0000, 0u64..0x60_0000), 0..4),
        steps in prop::collection::vec(step(), 0..300),
    ) {
        let usable: Vec<_> = regions.iter().map(|&(start, length)| (Hpa(start), length)).collect();
        let mut pool = FramePool::new(&usable);
        let managed: BTreeSet<u64> = regions
            .iter()
            .flat_map(|&(start, length)| {
                (0..0x1000u64).map(|n| n * PAGE_4K).filter(move |at| *at >= start && at + PAGE_4K <= start + length)
            })
            .collect();
        let mut model = Model { free: managed.clone() };
        let mut taken: Vec<(Hpa, FrameSize)> = Vec::new();
        prop_assert_eq!(pool.total(), managed.len() as u64 * PAGE_4K);

        for step in steps {
            match step {
                Step::Allocate(size) => match pool.allocate(size) {
                    Some(at) => {
                        prop_assert!(at.is_aligned(size.bytes()));
                        prop_assert!(model.whole(at.0, size), "{:?} was not free", at);
                        (at.0..at.0 + size.bytes()).step_by(4096).for_each(|frame| { model.free.remove(&frame); });
                        taken.push((at, size));
                    }
                    None => prop_assert!(!model.has(size), "there was a frame"),
                },
                Step::Free(n) if !taken.is_empty() => {
                    let (at, size) = taken.swap_remove(n % taken.len());
                    prop_assert_eq!(pool.free(at, size), Ok(()));
                    model.free.extend((at.0..at.0 + size.bytes()).step_by(4096));
                }
                Step::Free(_) => {}
                Step::FreeAnything(at, size) => {
                    let frames: Vec<u64> = (at..at + size.bytes()).step_by(4096).collect();
                    let legal = at % size.bytes() == 0
                        && frames.iter().all(|f| managed.contains(f) && !model.free.contains(f));
                    if !legal {
                        prop_assert!(pool.free(Hpa(at), size).is_err());
                    }
                }
            }
            prop_assert_eq!(pool.free_bytes(), model.free.len() as u64 * PAGE_4K);
        }
        for (at, size) in taken {
            prop_assert_eq!(pool.free(at, size), Ok(()));
        }
        prop_assert_eq!(pool.used(), 0);
    }
}
