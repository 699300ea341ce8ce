//! Taking samples and summing them up.

use core::sync::atomic::{AtomicU64, Ordering};

use guest_rt::println;

use crate::counts;
use crate::instruction::rdtsc;

/// Samples of each figure.
pub const ROUNDS: usize = 1000;

/// What two readings of the counter are apart with nothing in between.
static EMPTY: AtomicU64 = AtomicU64::new(0);

/// Finds out what a pair of readings costs by itself.
pub fn calibrate() {
    let mut samples = [0; ROUNDS];
    take(&mut samples, || ());
    report("empty", &mut samples);
    EMPTY.store(samples[0], Ordering::Relaxed);
}

/// Measures `operation`, once warm. One function for each: their samples would not fit on one stack together.
#[inline(never)]
pub fn operation(name: &str, operation: impl FnMut()) {
    if counts::is_enabled() {
        return counts::operation(name, operation);
    }
    let mut samples = [0; ROUNDS];
    take(&mut samples, operation);
    let empty = EMPTY.load(Ordering::Relaxed);
    for sample in &mut samples {
        *sample = sample.saturating_sub(empty);
    }
    report(name, &mut samples);
}

#[inline(always)]
fn take(samples: &mut [u64; ROUNDS], mut operation: impl FnMut()) {
    operation();
    for sample in samples {
        let before = rdtsc();
        operation();
        *sample = rdtsc() - before;
    }
}

/// Prints a figure.
#[inline(never)]
pub fn report(name: &str, samples: &mut [u64]) {
    samples.sort_unstable();
    let count = samples.len();
    let (Some(min), Some(median), Some(max)) = (samples.first(), samples.get(count / 2), samples.last()) else {
        return;
    };
    let mean = samples.iter().sum::<u64>() / count as u64;
    println!("R {name} {count} {min} {median} {mean} {max}");
}
