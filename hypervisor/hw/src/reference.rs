//! The TSC's rate, measured against a clock whose rate is known.
//!
//! Owns the measurement and its arithmetic, the same for every such clock: the 8254, the HPET and the ACPI PM timer are
//! a [`Counter`] each. Never touches a device itself.

use core::fmt;
use core::ops::RangeInclusive;

use lamina_arch::time::Tsc;

use crate::timer;

/// Steps of the counter that one reading is the average of: the moment of a step is known to the time of an access, or to
/// a microsecond in an emulator, and the average of many to less.
const STEPS: u32 = 64;
/// So many spans between readings would be a second. A span is 40 ms: less than one turn of 16 bits at the 8254's rate.
const SPANS_PER_SECOND: u64 = 25;
/// Readings, with a span between each two.
const READINGS: usize = 4;
/// Reads of the counter without a change after which it counts as dead. A counter that lives takes a step with each read
/// or with one of ten; a read takes up to 5 µs, so that a dead one is known after 100 ms.
const PATIENCE: u32 = 20_000;
/// What a processor's counter can run at. Unit: ticks per second.
const PLAUSIBLE: RangeInclusive<u64> = 1_000_000..=10_000_000_000;
/// Ticks of the TSC after which a measurement is given up. It takes 120 ms; at the highest rate this is 200 ms, so a
/// counter that is not done by then is too slow to be what it is said to be.
const LIMIT: u64 = *PLAUSIBLE.end() / 5;
/// How often the measurement is repeated where its spans do not agree.
const ATTEMPTS: u32 = 5;

/// A rate as a fraction, so that those that are no whole number of hertz are exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// So many steps …
    pub steps: u64,
    /// … in this time, which is not 0. Unit: seconds.
    pub seconds: u64,
}

/// A counter of known rate that counts up and starts again at 0.
pub trait Counter {
    /// Its rate, 1 MHz or more.
    fn rate(&self) -> Rate;
    /// Its bits, from bit 0 on: the value after which it starts again.
    fn mask(&self) -> u32;
    /// Its value. Bits above [`Counter::mask`] mean nothing.
    fn read(&mut self) -> u32;
    /// The TSC, now.
    fn tsc(&mut self) -> Tsc {
        timer::now()
    }
}

/// Why a clock did not tell the TSC's rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The machine has none, or its firmware tells of none.
    Absent,
    /// It is there, and has no rate to tell.
    Untold,
    /// It does not count.
    Dead,
    /// It counts, but far slower than it should.
    Slow,
    /// The result is no rate that a processor can have. Unit: ticks per second.
    Implausible(u64),
    /// Spans that are equal by the clock differed by more than 1 in 1000 by the TSC, every time.
    Unsteady,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Absent => f.write_str("is not there"),
            Failure::Untold => f.write_str("tells no rate"),
            Failure::Dead => f.write_str("does not count"),
            Failure::Slow => f.write_str("counts too slowly"),
            Failure::Implausible(hz) => write!(f, "makes it an impossible {hz} Hz"),
            Failure::Unsteady => f.write_str("does not keep step with it"),
        }
    }
}

/// A moment by both clocks, each as the sum over [`STEPS`] steps of the counter.
#[derive(Clone, Copy)]
struct Reading {
    /// Steps since the measurement began. Unit: 1/[`STEPS`] of the counter's period.
    steps: u64,
    /// Unit: 1/[`STEPS`] of a tick, since the measurement began.
    ticks: u64,
}

/// One measurement that is under way.
struct Measurement<'c, C> {
    counter: &'c mut C,
    last: u32,
    /// Steps of the counter since the measurement began.
    elapsed: u64,
    origin: Tsc,
}

impl<C: Counter> Measurement<'_, C> {
    fn begin(counter: &mut C) -> Measurement<'_, C> {
        let (origin, last) = (counter.tsc(), counter.read());
        Measurement { counter, last, elapsed: 0, origin }
    }

    /// Waits for the counter's next step; returns the TSC around it.
    fn step(&mut self) -> Result<Tsc, Failure> {
        let mut before = self.counter.tsc();
        if before.since(self.origin) > LIMIT {
            return Err(Failure::Slow);
        }
        for _ in 0..PATIENCE {
            let after = self.counter.tsc();
            let count = self.counter.read();
            let steps = steps(self.last, count, self.counter.mask());
            if steps != 0 {
                self.last = count;
                self.elapsed += steps;
                return Ok(Tsc(before.0 + after.since(before) / 2));
            }
            before = after;
        }
        Err(Failure::Dead)
    }

    fn reading(&mut self) -> Result<Reading, Failure> {
        let mut reading = Reading { steps: 0, ticks: 0 };
        for _ in 0..STEPS {
            let at = self.step()?;
            reading.steps += self.elapsed;
            reading.ticks += at.since(self.origin);
        }
        Ok(reading)
    }

    fn wait_until(&mut self, elapsed: u64) -> Result<(), Failure> {
        while self.elapsed < elapsed {
            self.step()?;
        }
        Ok(())
    }

    /// The rate over all spans, and whether they agree with each other.
    fn run(mut self) -> Result<(u64, bool), Failure> {
        let rate = self.counter.rate();
        let span = rate.steps / rate.seconds.max(1) / SPANS_PER_SECOND;
        let first = self.reading()?;
        let (mut last, mut least, mut most) = (first, u64::MAX, 0);
        for _ in 1..READINGS {
            let next = self.elapsed + span;
            self.wait_until(next)?;
            let reading = self.reading()?;
            let hz = ticks_per_second(last, reading, rate);
            (least, most) = (least.min(hz), most.max(hz));
            last = reading;
        }
        // An SMI or a host's scheduler in the middle of a reading shows as spans that differ.
        Ok((ticks_per_second(first, last, rate), most - least <= least / 1000))
    }
}

/// Steps of a counter with the bits of `mask` that went from `from` to `to`, starting again at 0 at most once.
fn steps(from: u32, to: u32, mask: u32) -> u64 {
    u64::from(to.wrapping_sub(from) & mask)
}

/// Ticks of the TSC per second between two readings, to the nearest.
fn ticks_per_second(from: Reading, to: Reading, rate: Rate) -> u64 {
    let ticks = u128::from(to.ticks.saturating_sub(from.ticks)) * u128::from(rate.steps);
    let steps = u128::from(to.steps - from.steps) * u128::from(rate.seconds);
    u64::try_from((ticks + steps / 2) / steps.max(1)).unwrap_or(u64::MAX)
}

/// Measures the TSC's rate against `counter`. Takes 120 ms where all is well, and 100 ms where the counter is dead. Unit:
/// ticks per second. Interrupts must be off.
///
/// # Errors
/// [`Failure`] where the counter does not count, or gives no believable result.
pub fn measure(counter: &mut impl Counter) -> Result<u64, Failure> {
    for _ in 0..ATTEMPTS {
        let (hz, steady) = Measurement::begin(counter).run()?;
        if steady {
            return plausible(hz);
        }
    }
    Err(Failure::Unsteady)
}

/// `hz`, where a processor can have that rate.
fn plausible(hz: u64) -> Result<u64, Failure> {
    if PLAUSIBLE.contains(&hz) { Ok(hz) } else { Err(Failure::Implausible(hz)) }
}

/// The TSC's rate as CPUID's leaf 0x15 has it (SDM vol. 2, "CPUID": ECX * EBX / EAX). Unit: ticks per second.
///
/// # Errors
/// [`Failure::Untold`] where one of them is 0, which stands for "not enumerated"; [`Failure::Implausible`].
pub fn of_leaf_15(eax: u32, ebx: u32, ecx: u32) -> Result<u64, Failure> {
    if eax == 0 || ebx == 0 || ecx == 0 {
        return Err(Failure::Untold);
    }
    plausible(u64::from(ecx) * u64::from(ebx) / u64::from(eax))
}

#[cfg(test)]
#[path = "reference_tests.rs"]
mod tests;
