//! A device's clock, derived from the guest's TSC.
//!
//! Owns the conversion between the two in both directions, and nothing that changes: a device asks how far its clock
//! has come, it is never ticked.

use lamina_arch::time::{Frequency, Tsc};

/// A counter of some rate that stood at 0 when the guest's TSC read `epoch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    tsc: Frequency,
    rate: Frequency,
    epoch: Tsc,
}

impl Clock {
    /// A clock of `rate` that starts at `epoch`, where the TSC counts at `tsc`.
    pub const fn new(tsc: Frequency, rate: Frequency, epoch: Tsc) -> Clock {
        Clock { tsc, rate, epoch }
    }

    /// Whole ticks of this clock from its epoch to `now`. Saturates.
    pub const fn ticks(&self, now: Tsc) -> u64 {
        self.tsc.convert(now.since(self.epoch), self.rate)
    }

    /// The first TSC value at which [`Clock::ticks`] gives at least `ticks`; `None` where the TSC never gets there.
    pub const fn when(&self, ticks: u64) -> Option<Tsc> {
        match self.rate.convert_up(ticks, self.tsc) {
            u64::MAX => None,
            after => match self.epoch.0.checked_add(after) {
                Some(tsc) => Some(Tsc(tsc)),
                None => None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_tick_has_come_exactly_when_said(tsc in 1u64..10_000_000_000, rate in 1u64..1_000_000_000,
                                             epoch in any::<u64>(), ticks in 1u64..) {
            let clock = Clock::new(Frequency::from_hz(tsc), Frequency::from_hz(rate), Tsc(epoch));
            if let Some(when) = clock.when(ticks) {
                prop_assert!(clock.ticks(when) >= ticks);
                prop_assert!(clock.ticks(when - 1) < ticks);
            }
        }
    }
}
