//! The frame pool: which physical frames of the machine are free for guest memory and tables.
//!
//! Owns one bit for each frame. Never touches the frames themselves: whoever takes one clears it.
//!
//! Frames are counted in blocks of 2 MiB. Small frames come from blocks that are broken already, else from the
//! highest whole block; large frames come from the lowest whole blocks. So the two kinds grow towards each other, and
//! small frames do not break what large ones need.

use alloc::vec::Vec;
use core::fmt;

use lamina_arch::addr::{Hpa, PAGE_1G, PAGE_2M, PAGE_4K};

use crate::change::Change;

mod census;
mod stock;

pub use census::{Census, Claim, FrameSet};
pub use stock::{FrameStock, STOCK_FULL, STOCK_LOW, empty_stock, fill_stock};

/// Size of a frame or page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FrameSize {
    /// 4 KiB.
    Size4K,
    /// 2 MiB.
    Size2M,
    /// 1 GiB.
    Size1G,
}

impl FrameSize {
    /// Unit: bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            FrameSize::Size4K => PAGE_4K,
            FrameSize::Size2M => PAGE_2M,
            FrameSize::Size1G => PAGE_1G,
        }
    }
}

/// A frame cannot be given back: a bug of the caller's. The pool is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreeError {
    /// The address is not a multiple of the frame's size.
    Unaligned(Hpa),
    /// The frame, or a part of it, is not the pool's.
    Foreign(Hpa),
    /// The frame, or a part of it, is free already.
    AlreadyFree(Hpa),
}

impl fmt::Display for FreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FreeError::Unaligned(at) => write!(f, "frame {at:#x} is not aligned to its size"),
            FreeError::Foreign(at) => write!(f, "frame {at:#x} does not belong to the pool"),
            FreeError::AlreadyFree(at) => write!(f, "frame {at:#x} is free already"),
        }
    }
}

/// Small frames in a block.
const BLOCK_FRAMES: u16 = 512;
/// Blocks in a 1 GiB frame.
const BLOCKS_PER_1G: usize = 512;

/// 2 MiB of physical addresses, aligned.
#[derive(Clone, Debug)]
struct Block {
    /// One bit for each small frame: 1 where it is free. Frames that are not the pool's are never free.
    free_bits: [u64; 8],
    /// Number of ones in `free_bits`.
    free: u16,
}

impl Block {
    const EMPTY: Block = Block { free_bits: [0; 8], free: 0 };

    fn is_whole(&self) -> bool {
        self.free == BLOCK_FRAMES
    }

    fn is_free(&self, frame: usize) -> bool {
        self.free_bits[frame / 64] & 1 << (frame % 64) != 0
    }

    fn set_free(&mut self, frame: usize) {
        if !self.is_free(frame) {
            self.free_bits[frame / 64] |= 1 << (frame % 64);
            self.free += 1;
        }
    }

    /// Takes the highest free frame.
    fn take_highest(&mut self) -> Option<usize> {
        let word = self.free_bits.iter().rposition(|&bits| bits != 0)?;
        let bit = 63 - self.free_bits[word].leading_zeros() as usize;
        self.free_bits[word] &= !(1 << bit);
        self.free -= 1;
        Some(word * 64 + bit)
    }

    fn take_all(&mut self) {
        *self = Block::EMPTY;
    }

    fn free_all(&mut self) {
        *self = Block { free_bits: [u64::MAX; 8], free: BLOCK_FRAMES };
    }
}

/// A run of blocks that are neighbours in physical memory.
#[derive(Clone, Copy, Debug)]
struct Span {
    /// Address of the first block divided by 2 MiB.
    first_block: u64,
    /// Where that block is in the pool's list.
    index: usize,
    /// Number of blocks.
    count: usize,
}

/// The physical frames that VMs and their tables may own.
///
/// Costs 72 bytes of heap for each 2 MiB it manages.
#[derive(Clone, Debug)]
pub struct FramePool {
    /// Managed memory: first and end address, 4 KiB aligned, sorted, apart from each other.
    regions: Vec<(u64, u64)>,
    spans: Vec<Span>,
    blocks: Vec<Block>,
    /// No block below this one is whole.
    whole_hint: usize,
    /// Where the last small frame came from.
    small_hint: usize,
    total: u64,
    used: u64,
    change: Change,
}

impl FramePool {
    /// A pool of all whole 4 KiB frames in `usable`: pairs of start and length (unit: bytes) of any alignment, in any
    /// order, overlapping or not. A frame that only several regions together would cover is left out.
    pub fn new(usable: &[(Hpa, u64)]) -> FramePool {
        let mut clipped: Vec<(u64, u64)> = usable
            .iter()
            .filter_map(|&(start, length)| {
                let end = start.0.saturating_add(length) & !(PAGE_4K - 1);
                let start = start.0.checked_next_multiple_of(PAGE_4K)?;
                (start < end).then_some((start, end))
            })
            .collect();
        clipped.sort_unstable();
        let mut regions: Vec<(u64, u64)> = Vec::new();
        for (start, end) in clipped {
            match regions.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => regions.push((start, end)),
            }
        }

        let mut pool = FramePool {
            regions,
            spans: Vec::new(),
            blocks: Vec::new(),
            whole_hint: 0,
            small_hint: 0,
            total: 0,
            used: 0,
            change: Change::default(),
        };
        // At once: while a list grows, the old one is there too.
        let blocks = pool.regions.iter().map(|&(start, end)| (end - 1) / PAGE_2M - start / PAGE_2M + 1).sum::<u64>();
        pool.blocks.reserve_exact(usize::try_from(blocks).unwrap_or(0));
        for i in 0..pool.regions.len() {
            let (start, end) = pool.regions[i];
            pool.add_blocks(start / PAGE_2M, (end - 1) / PAGE_2M);
            let mut at = start;
            while at < end {
                if at.is_multiple_of(PAGE_2M) && end - at >= PAGE_2M {
                    if let Some((block, _)) = pool.locate(at) {
                        pool.blocks[block].free_all();
                    }
                    at += PAGE_2M;
                } else {
                    if let Some((block, frame)) = pool.locate(at) {
                        pool.blocks[block].set_free(frame);
                    }
                    at += PAGE_4K;
                }
            }
            pool.total += end - start;
        }
        pool.small_hint = pool.blocks.len().saturating_sub(1);
        pool
    }

    /// Makes sure that the blocks `first..=last` exist; called with rising numbers.
    fn add_blocks(&mut self, first: u64, last: u64) {
        let mut next = first;
        match self.spans.last() {
            Some(span) if first <= span.first_block + span.count as u64 => {
                next = span.first_block + span.count as u64;
            }
            _ => self.spans.push(Span { first_block: first, index: self.blocks.len(), count: 0 }),
        }
        while next <= last {
            self.blocks.push(Block::EMPTY);
            if let Some(span) = self.spans.last_mut() {
                span.count += 1;
            }
            next += 1;
        }
    }

    /// The index of the block that holds `address`, and the number of the small frame within it.
    fn locate(&self, address: u64) -> Option<(usize, usize)> {
        let number = address / PAGE_2M;
        let after = self.spans.partition_point(|span| span.first_block <= number);
        let span = self.spans.get(after.checked_sub(1)?)?;
        let offset = usize::try_from(number - span.first_block).ok()?;
        let frame = usize::try_from(address % PAGE_2M / PAGE_4K).ok()?;
        (offset < span.count).then_some((span.index + offset, frame))
    }

    /// Address of the first byte of the block at `index`.
    fn address_of(&self, index: usize) -> Hpa {
        let after = self.spans.partition_point(|span| span.index <= index);
        let span = &self.spans[after - 1];
        Hpa((span.first_block + (index - span.index) as u64) * PAGE_2M)
    }

    /// Takes a frame, aligned to its size. `None` where there is none of that size. What the frame holds is undefined.
    pub fn allocate(&mut self, size: FrameSize) -> Option<Hpa> {
        self.change.begin();
        let at = match size {
            FrameSize::Size4K => self.take_small(),
            FrameSize::Size2M => self.take_whole(1),
            FrameSize::Size1G => self.take_whole(BLOCKS_PER_1G),
        };
        if at.is_some() {
            self.used += size.bytes();
        }
        Change::end(self, |pool| &mut pool.change);
        at
    }

    /// Leaves a change in the middle.
    #[cfg(test)]
    pub(crate) fn leave_open(&mut self) {
        self.change.begin();
    }

    /// Whether a change of the pool was left in the middle.
    pub fn is_broken(&self) -> bool {
        self.change.is_open()
    }

    fn take_small(&mut self) -> Option<Hpa> {
        let broken = |block: &Block| block.free != 0 && !block.is_whole();
        let hint = self.small_hint.min(self.blocks.len().checked_sub(1)?);
        let index = if broken(&self.blocks[hint]) {
            hint
        } else {
            let (below, above) = self.blocks.split_at(hint);
            below
                .iter()
                .rposition(broken)
                .or_else(|| above.iter().rposition(broken).map(|i| i + hint))
                .or_else(|| self.blocks.iter().rposition(Block::is_whole))?
        };
        self.small_hint = index;
        let frame = self.blocks[index].take_highest()?;
        Some(self.address_of(index) + frame as u64 * PAGE_4K)
    }

    /// Takes `count` whole blocks, aligned to their size together.
    fn take_whole(&mut self, count: usize) -> Option<Hpa> {
        let first = if count == 1 {
            let offset = self.blocks.get(self.whole_hint..)?.iter().position(Block::is_whole);
            let found = offset.map(|offset| self.whole_hint + offset);
            self.whole_hint = found.map_or(self.blocks.len(), |index| index + 1);
            found?
        } else {
            self.spans.iter().find_map(|span| {
                let aligned = span.first_block.next_multiple_of(count as u64) - span.first_block;
                let candidates = (usize::try_from(aligned).ok()?..span.count).step_by(count);
                candidates.map(|offset| span.index + offset).find(|&index| {
                    let run = self.blocks.get(index..index + count);
                    index + count <= span.index + span.count && run.is_some_and(|run| run.iter().all(Block::is_whole))
                })
            })?
        };
        self.blocks[first..first + count].iter_mut().for_each(Block::take_all);
        Some(self.address_of(first))
    }

    /// Gives a frame back. A frame may come back in parts or joined with its neighbours, as long as all of it is
    /// taken.
    ///
    /// # Errors
    /// [`FreeError`]; the pool is then unchanged.
    pub fn free(&mut self, at: Hpa, size: FrameSize) -> Result<(), FreeError> {
        self.change.begin();
        let done = self.give_back(at, size);
        Change::end(self, |pool| &mut pool.change);
        done
    }

    fn give_back(&mut self, at: Hpa, size: FrameSize) -> Result<(), FreeError> {
        if !at.is_aligned(size.bytes()) {
            return Err(FreeError::Unaligned(at));
        }
        if !self.contains(at, size.bytes()) {
            return Err(FreeError::Foreign(at));
        }
        let (index, frame) = self.locate(at.0).ok_or(FreeError::Foreign(at))?;
        let count = match size {
            FrameSize::Size4K => {
                if self.blocks[index].is_free(frame) {
                    return Err(FreeError::AlreadyFree(at));
                }
                self.blocks[index].set_free(frame);
                0
            }
            FrameSize::Size2M => 1,
            FrameSize::Size1G => BLOCKS_PER_1G,
        };
        let blocks = &mut self.blocks[index..index + count];
        if blocks.iter().any(|block| block.free != 0) {
            return Err(FreeError::AlreadyFree(at));
        }
        blocks.iter_mut().for_each(Block::free_all);
        if self.blocks[index].is_whole() {
            self.whole_hint = self.whole_hint.min(index);
        }
        self.used -= size.bytes();
        Ok(())
    }

    /// Whether all of the `length` bytes from `at` are the pool's, taken or not. True for no bytes at all.
    pub fn contains(&self, at: Hpa, length: u64) -> bool {
        let Some(end) = at.0.checked_add(length) else { return false };
        let after = self.regions.partition_point(|&(start, _)| start <= at.0);
        length == 0 || after > 0 && end <= self.regions[after - 1].1
    }

    /// All memory of the pool. Unit: bytes.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Memory that is taken. Unit: bytes.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Memory that is free. Unit: bytes.
    pub fn free_bytes(&self) -> u64 {
        self.total - self.used
    }
}

#[cfg(test)]
mod tests;
