//! Cleared frames, at hand for a VM that touches memory for the first time.
//!
//! Owns which frames those are. They count as taken in the pool. Filled ahead, by time in which nobody runs, so that a
//! first touch does not wait for the clearing; never grows while a guest waits, and never holds a frame that anybody
//! else can reach.

use alloc::vec::Vec;

use lamina_arch::addr::{Hpa, PAGE_4K};

use super::{FramePool, FrameSize};
use crate::change::Change;
use crate::host::HostMemory;

/// Most frames that the stock holds when it is filled ahead (2 MiB).
pub const STOCK_FULL: usize = 512;
/// Fewer than these, and it is filled before a guest runs on: what one exit may write to at most, a piece of a device's
/// transfer of 128 KiB and the tables to it (256 KiB).
pub const STOCK_LOW: usize = 64;

/// Cleared frames of 4 KiB.
#[derive(Clone, Debug, Default)]
pub struct FrameStock {
    frames: Vec<Hpa>,
    change: Change,
}

impl FrameStock {
    /// How many are left.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Takes a frame: all of it is zero.
    pub fn take(&mut self) -> Option<Hpa> {
        self.frames.pop()
    }

    /// Whether a change of the stock was left in the middle.
    pub fn is_broken(&self) -> bool {
        self.change.is_open()
    }

    /// Gets room for `count` more, so that [`FrameStock::put`] allocates nothing.
    fn reserve(&mut self, count: usize) {
        self.change.begin();
        self.frames.reserve(count);
        Change::end(self, |stock| &mut stock.change);
    }

    /// Puts a cleared frame in.
    fn put(&mut self, frame: Hpa) {
        self.change.begin();
        self.frames.push(frame);
        Change::end(self, |stock| &mut stock.change);
    }

    /// The frames, in no order.
    pub fn frames(&self) -> &[Hpa] {
        &self.frames
    }
}

/// Gives the stock of `host` back to `pool`.
pub fn empty_stock(host: &mut impl HostMemory, pool: &mut FramePool) {
    while let Some(frame) = host.stock().take() {
        if let Err(error) = pool.free(frame, FrameSize::Size4K) {
            // A bug of ours. To lose the frame harms nobody; to stop all VMs for it would.
            log::error!("stock of frames: {error}");
            debug_assert!(false, "{error}");
        }
    }
}

/// Fills the stock of `host` up to `count` frames from `pool`, and clears them. False where the pool ran dry.
pub fn fill_stock(host: &mut impl HostMemory, pool: &mut FramePool, count: usize) -> bool {
    let missing = count.saturating_sub(host.stock().len());
    if missing as u64 > pool.free_bytes() / PAGE_4K {
        return false;
    }
    host.stock().reserve(missing);
    for _ in 0..missing {
        let Some(frame) = pool.allocate(FrameSize::Size4K) else { return false };
        // Else a planted bug, found by `planted_bugs`.
        if cfg!(not(feature = "plant-dirty")) {
            host.zero(frame, PAGE_4K);
        }
        host.stock().put(frame);
    }
    true
}
