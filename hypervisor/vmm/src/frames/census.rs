//! A count of who has which frame, to be held against what the pool believes.
//!
//! Owns one bit for each frame of the pool while it lasts, and the set of frames that nobody turned out to have. Never
//! changes the pool.

use alloc::vec::Vec;
use core::fmt;

use lamina_arch::addr::{Hpa, PAGE_2M, PAGE_4K};

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
        let mut lost: Option<((usize, usize), u64)> = None;
        self.each_lost(|block, frame| lost.get_or_insert(((block, frame), 0)).1 += 1);
        lost.map(|((block, frame), count)| (self.pool.address_of(block) + frame as u64 * PAGE_4K, count))
    }

    /// The same frames. `None` where the heap has no room for a bit for each frame of the pool.
    pub fn all_lost(&self) -> Option<FrameSet> {
        let mut bits = Vec::new();
        bits.try_reserve_exact(self.accounted.len()).ok()?;
        bits.resize(self.accounted.len(), [0; 8]);
        self.each_lost(|block, frame| bits[block][frame / 64] |= 1 << (frame % 64));
        Some(FrameSet { bits })
    }

    /// Tells the block of each, and its number there. Block by block: a large machine has some hundred million frames.
    fn each_lost(&self, mut tell: impl FnMut(usize, usize)) {
        for &(start, end) in &self.pool.regions {
            let mut at = start;
            while at < end {
                let next = ((at / PAGE_2M + 1) * PAGE_2M).min(end);
                if let Some((block, first)) = self.pool.locate(at)
                    && self.accounted[block] != [u64::MAX; 8]
                {
                    let words = &self.accounted[block];
                    // Within a block, so it fits.
                    let count = ((next - at) / PAGE_4K) as usize;
                    let frames = first..first + count;
                    for frame in frames.filter(|frame| words[frame / 64] & 1 << (frame % 64) == 0) {
                        tell(block, frame);
                    }
                }
                at = next;
            }
        }
    }
}

/// Some of a pool's frames of 4 KiB.
#[derive(Debug, Default)]
pub struct FrameSet {
    /// For each block of the pool, one bit for each frame; nothing at all where the set is empty.
    bits: Vec<[u64; 8]>,
}

impl FrameSet {
    /// How many there are.
    pub fn count(&self) -> u64 {
        self.bits.iter().flatten().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Each of them, upwards. `pool` is the one that they are of.
    pub fn iter<'a>(&'a self, pool: &'a FramePool) -> impl Iterator<Item = Hpa> + 'a {
        let blocks = self.bits.iter().enumerate().filter(|(_, words)| **words != [0; 8]);
        blocks.flat_map(|(block, words)| {
            let first = pool.address_of(block);
            let frames = (0..512usize).filter(|frame| words[frame / 64] & 1 << (frame % 64) != 0);
            frames.map(move |frame| first + frame as u64 * PAGE_4K)
        })
    }

    /// Takes one out, of the last block first; `None` where there is none left.
    pub fn take(&mut self, pool: &FramePool) -> Option<Hpa> {
        loop {
            let block = self.bits.len().checked_sub(1)?;
            let words = &mut self.bits[block];
            if let Some(index) = words.iter().position(|word| *word != 0) {
                let bit = words[index].trailing_zeros();
                words[index] &= words[index] - 1;
                return Some(pool.address_of(block) + (64 * index as u64 + u64::from(bit)) * PAGE_4K);
            }
            self.bits.pop();
        }
    }

    /// Those of `other` too; both are of one pool.
    pub fn add(&mut self, mut other: FrameSet) {
        if self.bits.len() < other.bits.len() {
            core::mem::swap(&mut self.bits, &mut other.bits);
        }
        for (word, more) in self.bits.iter_mut().flatten().zip(other.bits.into_iter().flatten()) {
            *word |= more;
        }
    }
}

#[cfg(test)]
mod tests {
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
        let lost = census.all_lost().unwrap();
        assert_eq!((lost.count(), lost.iter(&pool).collect::<Vec<_>>()), (1, alloc::vec![small]));
        assert_eq!(census.claim(large + 5 * PAGE_4K, FrameSize::Size4K), Err(Claim::Twice(large + 5 * PAGE_4K)));
        assert_eq!(census.claim(free, FrameSize::Size4K), Err(Claim::Free(free)));
        assert_eq!(census.claim(Hpa(0), FrameSize::Size4K), Err(Claim::Foreign(Hpa(0))));
        assert_eq!(census.claim(small + 1, FrameSize::Size4K), Err(Claim::Foreign(small + 1)));
        assert_eq!(census.claim(Hpa(PAGE_2M), FrameSize::Size1G), Err(Claim::Foreign(Hpa(PAGE_2M))));
        assert_eq!(census.claim(small, FrameSize::Size4K), Ok(()));
        assert_eq!((census.lost(), census.claimed()), (None, 513));
    }

    #[test]
    fn sets_of_frames_are_joined_and_emptied() {
        let mut pool = FramePool::new(&[(Hpa(PAGE_2M - 3 * PAGE_4K), 8 * PAGE_2M)]);
        let frames: Vec<Hpa> = (0..600).map(|_| pool.allocate(FrameSize::Size4K).unwrap()).collect();
        let all_but = |kept: usize| {
            let mut census = Census::new(&pool).unwrap();
            for (index, &at) in frames.iter().enumerate() {
                if index != kept {
                    census.claim(at, FrameSize::Size4K).unwrap();
                }
            }
            census.all_lost().unwrap()
        };
        let mut set = FrameSet::default();
        assert_eq!((set.count(), set.take(&pool)), (0, None));
        for lost in [1, 599, 1] {
            set.add(all_but(lost));
        }
        let mut expected = [frames[1], frames[599]];
        expected.sort();
        assert_eq!((set.count(), set.iter(&pool).collect::<Vec<_>>()), (2, expected.to_vec()));
        assert_eq!([set.take(&pool), set.take(&pool), set.take(&pool)], [Some(expected[1]), Some(expected[0]), None]);
    }
}
