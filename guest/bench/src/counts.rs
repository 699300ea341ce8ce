//! What instructions do not show: how often the hypervisor reads and writes its structures and MSRs for an operation.

use core::sync::atomic::{AtomicBool, Ordering};

use guest_rt::hypercall::{Error, Lamina};
use guest_rt::println;

/// What is counted, in the order of [`Lamina::counts`].
type Counts = [u64; 5];

/// Rounds of which the least counts: in some, a timer of the machine's comes in between.
const ROUNDS: usize = 16;

/// Operations are counted, and not timed.
static COUNTING: AtomicBool = AtomicBool::new(false);

/// From here on, operations are counted.
pub fn enable() {
    COUNTING.store(true, Ordering::Relaxed);
}

/// Whether operations are counted.
pub fn is_enabled() -> bool {
    COUNTING.load(Ordering::Relaxed)
}

/// Counts `operation`, once warm, net of what asking for the counts costs, and prints it: `C NAME VMREADS VMWRITES
/// RDMSRS WRMSRS INVALIDATIONS`. Nothing where the hypervisor does not count.
pub fn operation(name: &str, mut operation: impl FnMut()) {
    let Some(lamina) = Lamina::find() else { return };
    operation();
    let counts = least(lamina, || ()).and_then(|empty| Ok((empty, least(lamina, &mut operation)?)));
    if let Ok((empty, with)) = counts {
        let [reads, writes, rdmsrs, wrmsrs, invalidations] =
            core::array::from_fn(|n: usize| with[n].saturating_sub(empty[n]));
        println!("C {name} {reads} {writes} {rdmsrs} {wrmsrs} {invalidations}");
    }
}

fn least(lamina: Lamina, mut operation: impl FnMut()) -> Result<Counts, Error> {
    let mut least = [u64::MAX; 5];
    for _ in 0..ROUNDS {
        let before = lamina.counts()?;
        operation();
        let after = lamina.counts()?;
        for (least, (before, after)) in least.iter_mut().zip(before.into_iter().zip(after)) {
            *least = (*least).min(after.wrapping_sub(before) & Lamina::COUNTS_MASK);
        }
    }
    Ok(least)
}
