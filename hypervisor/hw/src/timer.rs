//! The machine's time-stamp counter and its true rate.
//!
//! Owns the choice of the clock that it is measured against: the 8254, which every PC has, but not every one has counting;
//! else the HPET; else the ACPI PM timer. CPUID's leaf 0x15 is believed only where there is none of them: it describes the
//! processor, and under an emulator or another hypervisor the counter may run otherwise.

use alloc::vec::Vec;
use core::fmt;

use lamina_arch::time::{Frequency, Tsc};
use spin::Once;

use crate::control;
use crate::hpet::Hpet;
use crate::pit::Pit;
use crate::pm_timer::PmTimer;
use crate::reference::{Failure, measure, of_leaf_15};

/// What the TSC's rate can be had from, in the order in which they are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Channel 2 of the 8254.
    Pit,
    /// The HPET's main counter.
    Hpet,
    /// The ACPI PM timer.
    PmTimer,
    /// CPUID's leaf 0x15, where nothing can be measured.
    Cpuid,
}

impl Source {
    const ALL: [Source; 4] = [Source::Pit, Source::Hpet, Source::PmTimer, Source::Cpuid];
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Pit => "the 8254",
            Source::Hpet => "the HPET",
            Source::PmTimer => "the ACPI PM timer",
            Source::Cpuid => "CPUID's leaf 0x15",
        })
    }
}

/// A source that did not tell the rate, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miss {
    /// Which one.
    pub source: Source,
    /// Why not.
    pub failure: Failure,
}

/// What was tried, in that order: at its end is what worked, or nothing did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misses(pub Vec<Miss>);

impl fmt::Display for Misses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Miss { source, failure }) in self.0.iter().enumerate() {
            write!(f, "{}{source} {failure}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// The rate, and where it is from. Shown as the log's line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Calibration {
    /// The TSC's rate.
    pub frequency: Frequency,
    /// What it was measured against.
    pub source: Source,
    /// What was tried before.
    pub misses: Misses,
}

impl Calibration {
    /// The 8254 does not count: what it drives does not run either.
    pub fn pit_is_dead(&self) -> bool {
        self.misses.0.contains(&Miss { source: Source::Pit, failure: Failure::Dead })
    }
}

impl fmt::Display for Calibration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.source == Source::Cpuid { "taken from" } else { "measured against" };
        write!(f, "the TSC's rate was {how} {}", self.source)?;
        if self.misses.0.is_empty() { Ok(()) } else { write!(f, ": {}", self.misses) }
    }
}

/// The TSC's rate. Shared by all processors: they count alike.
static FREQUENCY: Once<Frequency> = Once::new();

/// The machine's time-stamp counter, now.
pub fn now() -> Tsc {
    // SAFETY: RDTSC only reads; CR4.TSD does not hold at CPL 0.
    Tsc(unsafe { core::arch::x86_64::_rdtsc() })
}

/// The measured rate.
///
/// # Panics
/// Before [`calibrate`].
pub fn frequency() -> Frequency {
    match FREQUENCY.get() {
        Some(frequency) => *frequency,
        None => panic!("the TSC's rate is used before it was measured"),
    }
}

/// Measures the TSC's rate, rounded to 1 kHz, against the first clock that works. Takes about 120 ms, and 100 ms for each
/// one before it that does not count. Interrupts must be off.
///
/// # Errors
/// [`Misses`], all of them, where there is nothing to measure against or no believable result.
pub fn calibrate(mut hpet: Option<Hpet>, pm_timer: Option<PmTimer>) -> Result<Calibration, Misses> {
    first(|source| match source {
        Source::Pit => measure(&mut Pit::start()),
        Source::Hpet => measure(&mut hpet.as_mut().ok_or(Failure::Absent)?.start()),
        Source::PmTimer => measure(&mut pm_timer.ok_or(Failure::Absent)?),
        Source::Cpuid => {
            let leaf = control::cpuid().get_tsc_info().ok_or(Failure::Absent)?;
            of_leaf_15(leaf.denominator(), leaf.numerator(), leaf.nominal_frequency())
        }
    })
    .inspect(|calibration| {
        FREQUENCY.call_once(|| calibration.frequency);
    })
}

/// The first source from which `rate` (unit: ticks per second) can be had.
fn first(mut rate: impl FnMut(Source) -> Result<u64, Failure>) -> Result<Calibration, Misses> {
    let mut misses = Misses(Vec::new());
    for source in Source::ALL {
        match rate(source) {
            Ok(hz) => {
                log::debug!("TSC at {hz} Hz by {source}");
                let frequency = Frequency::from_hz((hz + 500) / 1000 * 1000);
                return Ok(Calibration { frequency, source, misses });
            }
            Err(failure) => misses.0.push(Miss { source, failure }),
        }
    }
    Err(misses)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn clocks_are_tried_in_their_order_until_one_works() {
        let mut tried = Vec::new();
        let calibration = first(|source| {
            tried.push(source);
            match source {
                Source::Pit => Err(Failure::Dead),
                Source::Hpet => Err(Failure::Absent),
                _ => Ok(2_999_999_600),
            }
        })
        .unwrap();
        assert_eq!(tried, [Source::Pit, Source::Hpet, Source::PmTimer]);
        assert_eq!(calibration.frequency, Frequency::from_hz(3_000_000_000));
        assert!(calibration.pit_is_dead());
        assert_eq!(
            calibration.to_string(),
            "the TSC's rate was measured against the ACPI PM timer: the 8254 does not count, the HPET is not there"
        );
    }

    #[test]
    fn what_is_measured_at_once_says_nothing_of_the_rest() {
        let calibration = first(|_| Ok(100_000_000)).unwrap();
        assert!(!calibration.pit_is_dead());
        assert_eq!(calibration.to_string(), "the TSC's rate was measured against the 8254");
    }

    #[test]
    fn an_8254_that_counts_badly_is_not_dead() {
        let calibration =
            first(|source| if source == Source::Cpuid { Ok(1_000_000) } else { Err(Failure::Unsteady) }).unwrap();
        assert!(!calibration.pit_is_dead());
        assert!(
            calibration.to_string().starts_with("the TSC's rate was taken from CPUID's leaf 0x15: the 8254 does not")
        );
    }

    #[test]
    fn where_nothing_works_all_that_was_tried_is_said() {
        let misses = first(|source| {
            Err(match source {
                Source::Pit => Failure::Dead,
                Source::Hpet => Failure::Implausible(7),
                Source::PmTimer => Failure::Slow,
                Source::Cpuid => Failure::Untold,
            })
        })
        .unwrap_err();
        assert_eq!(
            misses.to_string(),
            "the 8254 does not count, the HPET makes it an impossible 7 Hz, the ACPI PM timer counts too slowly, \
             CPUID's leaf 0x15 tells no rate"
        );
    }
}
