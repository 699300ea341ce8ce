//! A count of who has which frame, to be held against what the pool believes.
//!
//! Owns one bit for each frame of the pool while it lasts. Never changes the pool.

use alloc::vec::Vec;
use core::fmt;

use lamina_arch::addr::{Hpa, PAGE_4K};

use super::{FramePool, FrameSize};

/// A claim that cannot be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The frame, or a part of it, is not the pool's.
    Foreign(Hpa),
    /// The pool believes that it is free.
    Free(Hpa),
    /// Somebody has claimed it before.
    Twice(Hpa),
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Claim::Foreign(at) => write!(f, "frame {at:#x} is not memory for virtual machines"),
            Claim::Free(at) => write!(f, "frame {at:#x} is free"),
            Claim::Twice(at) => write!(f, "frame {at:#x} has another owner"),
        }
    }
}

/// The count.
#[derive(Debug)]
pub struct Census<'a> {
    pool: &'a FramePool,
    /// For each block of the pool, one bit for each frame: 1 where it is free or claimed.
    accounted: Vec<[u64; 8]>,
    /// Frames of 4 KiB that were claimed.
    claimed: u64,
}

impl<'a> Census<'a> {
    /// Nobody has claimed anything yet. `None` where the heap has no room for the bits.
    pub fn new(pool: &'a FramePool) -> Option<Census<'a>> {
        let mut accounted = Vec::new();
        accounted.try_reserve_exact(pool.blocks.len()).ok()?;
        accounted.extend(pool.blocks.iter().map(|block| block.free_bits));
        Some(Census { pool, accounted, claimed: 0 })
    }

    /// Somebody has the frame at `at`.
    ///
    /// # Errors
    /// [`Claim`], of the first part that cannot be his; all the others are claimed then.
    pub fn claim(&mut self, at: Hpa, size: FrameSize) -> Result<(), Claim> {
        if !at.is_aligned(PAGE_4K) || !self.pool.contains(at, size.bytes()) {
            return Err(Claim::Foreign(at));
        }
        let mut wrong = None;
        for part in (0..size.bytes()).step_by(4096).map(|offset| at + offset) {
            let (block, frame) = self.pool.locate(part.0).ok_or(Claim::Foreign(part))?;
            let (word, bit) = (&mut self.accounted[block][frame / 64], 1 << (frame % 64));
            if self.pool.blocks[block].is_free(frame) {
                wrong.get_or_insert(Claim::Free(part));
            } else if *word & bit != 0 {
                wrong.get_or_insert(Claim::Twice(part));
            } else {
                *word |= bit;
                self.claimed += 1;
            }
        }
        wrong.map_or(Ok(()), Err)
    }

    /// How many frames of 4 KiB were claimed.
    pub fn claimed(&self) -> u64 {
        self.claimed
    }

    /// The frames that are taken and that nobody has claimed: the first, and how many of 4 KiB. `None` where there are
    /// none.
    pub fn lost(&self) -> Option<(Hpa, u64)> {
        let mut lost: Option<(Hpa, u64)> = None;
        self.each_lost(|at| lost.get_or_insert((at, 0)).1 += 1);
        lost
    }

    /// The same frames as runs of neighbours: the first of each, and how many of 4 KiB.
    pub fn lost_runs(&self) -> Vec<(Hpa, u64)> {
        let mut runs: Vec<(Hpa, u64)> = Vec::new();
        self.each_lost(|at| match runs.last_mut() {
            Some((first, count)) if first.0 + *count * PAGE_4K == at.0 => *count += 1,
            _ => runs.push((at, 1)),
        });
        runs
    }

    fn each_lost(&self, mut tell: impl FnMut(Hpa)) {
        for &(start, end) in &self.pool.regions {
            for at in (start..end).step_by(4096) {
                let Some((block, frame)) = self.pool.locate(at) else { continue };
                if self.accounted[block][frame / 64] & 1 << (frame % 64) == 0 {
                    tell(Hpa(at));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use lamina_arch::addr::PAGE_2M;

    use super::*;

    #[test]
    fn every_frame_is_free_or_claimed_once() {
        let mut pool = FramePool::new(&[(Hpa(PAGE_2M - 3 * PAGE_4K), 8 * PAGE_2M)]);
        let small = pool.allocate(FrameSize::Size4K).unwrap();
        let large = pool.allocate(FrameSize::Size2M).unwrap();
        let free = pool.allocate(FrameSize::Size4K).unwrap();
        pool.free(free, FrameSize::Size4K).unwrap();
        let mut census = Census::new(&pool).unwrap();
        assert_eq!(census.lost().unwrap().1, 513);
        assert_eq!(census.claim(large, FrameSize::Size2M), Ok(()));
        assert_eq!(census.lost(), Some((small, 1)));
        assert_eq!(census.lost_runs(), [(small, 1)]);
        assert_eq!(census.claim(large + 5 * PAGE_4K, FrameSize::Size4K), Err(Claim::Twice(large + 5 * PAGE_4K)));
        assert_eq!(census.claim(free, FrameSize::Size4K), Err(Claim::Free(free)));
        assert_eq!(census.claim(Hpa(0), FrameSize::Size4K), Err(Claim::Foreign(Hpa(0))));
        assert_eq!(census.claim(small + 1, FrameSize::Size4K), Err(Claim::Foreign(small + 1)));
        assert_eq!(census.claim(Hpa(PAGE_2M), FrameSize::Size1G), Err(Claim::Foreign(Hpa(PAGE_2M))));
        assert_eq!(census.claim(small, FrameSize::Size4K), Ok(()));
        assert_eq!((census.lost(), census.claimed()), (None, 513));
    }
}
