//! Time as the processor counts it.

use core::num::NonZeroU64;
use core::ops::{Add, Sub};

/// A reading of a time-stamp counter. Unit: ticks of that counter; whose counter (the machine's or a guest's, which
/// differ by the TSC offset) is said where the value is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
#[repr(transparent)]
pub struct Tsc(pub u64);

impl Tsc {
    /// The ticks from `earlier` to `self`, or 0 where `earlier` is later.
    pub const fn since(self, earlier: Tsc) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<u64> for Tsc {
    type Output = Tsc;
    fn add(self, ticks: u64) -> Tsc {
        Tsc(self.0.saturating_add(ticks))
    }
}

impl Sub<u64> for Tsc {
    type Output = Tsc;
    fn sub(self, ticks: u64) -> Tsc {
        Tsc(self.0.saturating_sub(ticks))
    }
}

/// The rate of a counter. Unit: ticks per second; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frequency(NonZeroU64);

impl Frequency {
    /// A rate of `hz` ticks per second; 0 is taken as 1, so that no division by it can fail.
    pub const fn from_hz(hz: u64) -> Frequency {
        match NonZeroU64::new(hz) {
            Some(hz) => Frequency(hz),
            None => Frequency(NonZeroU64::MIN),
        }
    }

    /// Ticks per second.
    pub const fn hz(self) -> u64 {
        self.0.get()
    }

    /// How many whole ticks of a counter of rate `other` pass while this one counts `ticks`, rounded down. Saturates.
    pub const fn convert(self, ticks: u64, other: Frequency) -> u64 {
        // A division of 128 bits costs ten of these, and hours fit.
        if let Some(product) = ticks.checked_mul(other.hz()) {
            return product / self.hz();
        }
        saturate(ticks as u128 * other.hz() as u128 / self.hz() as u128)
    }

    /// How many ticks of a counter of rate `other` must pass until this one has counted `ticks`, rounded up. Saturates.
    pub const fn convert_up(self, ticks: u64, other: Frequency) -> u64 {
        if let Some(product) = ticks.checked_mul(other.hz()) {
            return product.div_ceil(self.hz());
        }
        saturate((ticks as u128 * other.hz() as u128).div_ceil(self.hz() as u128))
    }

    /// Ticks in `nanoseconds`, rounded down.
    pub const fn ticks_in_ns(self, nanoseconds: u64) -> u64 {
        Frequency::from_hz(1_000_000_000).convert(nanoseconds, self)
    }

    /// Nanoseconds in `ticks`, rounded down.
    pub const fn ns_in_ticks(self, ticks: u64) -> u64 {
        self.convert(ticks, Frequency::from_hz(1_000_000_000))
    }
}

#[allow(clippy::cast_possible_truncation, reason = "the larger values were replaced")]
const fn saturate(value: u128) -> u64 {
    if value > u64::MAX as u128 { u64::MAX } else { value as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversion_rounds_as_said_and_saturates() {
        let pit = Frequency::from_hz(1_193_182);
        let tsc = Frequency::from_hz(100_000_000);
        assert_eq!(pit.convert(1, tsc), 83);
        assert_eq!(pit.convert_up(1, tsc), 84);
        assert_eq!(tsc.convert(84, pit), 1);
        assert_eq!(tsc.convert(83, pit), 0);
        assert_eq!(pit.convert(u64::MAX, tsc), u64::MAX);
        assert_eq!(tsc.ticks_in_ns(50_000_000), 5_000_000);
        assert_eq!(Frequency::from_hz(0).hz(), 1);
    }
}
