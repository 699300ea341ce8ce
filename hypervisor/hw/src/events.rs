//! How often the hypervisor does what a count of instructions hides, in builds with the feature `count`; elsewhere
//! nothing is counted and nothing of this is left.

#[cfg(feature = "count")]
use core::sync::atomic::{AtomicU64, Ordering};

/// What is counted.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// VMREAD.
    Vmread,
    /// VMWRITE.
    Vmwrite,
    /// RDMSR.
    Rdmsr,
    /// WRMSR.
    Wrmsr,
    /// INVEPT or INVVPID.
    Invalidation,
}

/// Of all processors.
#[cfg(feature = "count")]
static COUNTS: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];

/// Counts one.
#[inline(always)]
pub fn count(event: Event) {
    #[cfg(feature = "count")]
    COUNTS[event as usize].fetch_add(1, Ordering::Relaxed);
    #[cfg(not(feature = "count"))]
    let _ = event;
}

/// All counts as the hypercall gives them (`lamina_arch::hypercall::COUNTS`).
#[cfg(feature = "count")]
pub fn packed() -> u64 {
    COUNTS.iter().rev().fold(0, |packed, count| packed << 12 | count.load(Ordering::Relaxed) & 0xfff)
}
