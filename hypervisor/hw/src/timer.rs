//! The machine's time-stamp counter and its true rate.
//!
//! Owns the measurement against channel 2 of the 8254 (Intel 8254 data sheet, "Counter Latch Command"), the one clock
//! of known rate that every PC has. CPUID's leaves 0x15 and 0x16 are not asked: they describe the processor, and under
//! an emulator or another hypervisor the counter runs otherwise.

use lamina_arch::time::{Frequency, Tsc};
use spin::Once;
use x86_64::instructions::port::Port;

use crate::nmi_status;

/// The 8254's input in units of 1/11 Hz: 14.318181… MHz / 12 is 13125000/11 Hz exactly.
const PIT_HZ_TIMES_11: u128 = 13_125_000;
const CHANNEL_2: u16 = 0x42;
const COMMAND: u16 = 0x43;
/// Channel 2, low byte then high byte, mode 2 (rate generator), binary.
const RATE_GENERATOR: u8 = 0xb4;
const LATCH_CHANNEL_2: u8 = 0x80;
/// Steps of the counter that one reading is the average of: the moment of a step is known to the time of a port
/// access, or to a microsecond in an emulator, and the average of many to less.
const STEPS: u32 = 64;
/// Steps of the counter between two readings, about 40 ms: less than one turn of its 16 bits.
const SPAN: u64 = 47_700;
/// Readings, with a span between each two.
const READINGS: usize = 4;
/// Reads of the counter without a change after which it counts as dead.
const PATIENCE: u32 = 1_000_000;
/// What a processor's counter can run at. Unit: ticks per second.
const PLAUSIBLE: core::ops::RangeInclusive<u64> = 1_000_000..=100_000_000_000;
/// How often the measurement is repeated where its spans do not agree.
const ATTEMPTS: u32 = 5;

/// Why the rate is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CalibrationError {
    /// The 8254 does not count.
    NoPit,
    /// The result is no rate a processor can have. Unit: ticks per second.
    Implausible(u64),
    /// Spans of equal length by the 8254 differed by more than 1 in 1000 by the TSC, every time.
    Unsteady,
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

/// A moment by both clocks, each as the sum over [`STEPS`] steps of the counter.
#[derive(Clone, Copy)]
struct Reading {
    /// Steps since the measurement began. Unit: 1/[`STEPS`] of the 8254's period.
    pit: u64,
    /// Unit: 1/[`STEPS`] of a tick, from the first step on.
    tsc: u64,
}

struct Pit {
    command: Port<u8>,
    data: Port<u8>,
    last: u16,
    /// Steps since the measurement began.
    elapsed: u64,
    origin: Tsc,
}

impl Pit {
    /// Starts channel 2, its speaker off, counting down from 65536 again and again.
    fn start() -> Pit {
        let mut pit =
            Pit { command: Port::new(COMMAND), data: Port::new(CHANNEL_2), last: 0, elapsed: 0, origin: now() };
        nmi_status::start_channel_2();
        // SAFETY: the ports of the 8254 reach no memory, and only this module uses channel 2.
        unsafe {
            pit.command.write(RATE_GENERATOR);
            pit.data.write(0);
            pit.data.write(0);
        }
        pit.last = pit.latch();
        pit
    }

    fn latch(&mut self) -> u16 {
        // SAFETY: as in `start`.
        unsafe {
            self.command.write(LATCH_CHANNEL_2);
            let low = self.data.read();
            u16::from_le_bytes([low, self.data.read()])
        }
    }

    /// Waits for the counter's next step; returns the TSC around it.
    fn step(&mut self) -> Result<Tsc, CalibrationError> {
        let mut before = now();
        for _ in 0..PATIENCE {
            let after = now();
            let count = self.latch();
            let steps = self.last.wrapping_sub(count);
            if steps != 0 {
                self.last = count;
                self.elapsed += u64::from(steps);
                return Ok(Tsc(before.0 + after.since(before) / 2));
            }
            before = after;
        }
        Err(CalibrationError::NoPit)
    }

    fn reading(&mut self) -> Result<Reading, CalibrationError> {
        let mut reading = Reading { pit: 0, tsc: 0 };
        for _ in 0..STEPS {
            let at = self.step()?;
            reading.pit += self.elapsed;
            reading.tsc += at.since(self.origin);
        }
        Ok(reading)
    }

    fn wait_until(&mut self, elapsed: u64) -> Result<(), CalibrationError> {
        while self.elapsed < elapsed {
            self.step()?;
        }
        Ok(())
    }
}

/// Ticks per second between two readings.
fn rate(from: Reading, to: Reading) -> u64 {
    let (ticks, steps) = (u128::from(to.tsc - from.tsc), u128::from(to.pit - from.pit) * 11);
    u64::try_from((ticks * PIT_HZ_TIMES_11 + steps / 2) / steps.max(1)).unwrap_or(u64::MAX)
}

/// One measurement over all spans, and whether they agree with each other.
fn measure() -> Result<(u64, bool), CalibrationError> {
    let mut pit = Pit::start();
    let first = pit.reading()?;
    let (mut last, mut least, mut most) = (first, u64::MAX, 0);
    for _ in 1..READINGS {
        let next = pit.elapsed + SPAN;
        pit.wait_until(next)?;
        let reading = pit.reading()?;
        let span = rate(last, reading);
        (least, most) = (least.min(span), most.max(span));
        last = reading;
    }
    // An SMI or a host's scheduler in the middle of a reading shows as spans that differ.
    Ok((rate(first, last), most - least <= least / 1000))
}

/// Measures the TSC's rate, rounded to 1 kHz. Takes about 120 ms. Interrupts must be off.
///
/// # Errors
/// [`CalibrationError`] where there is nothing to measure against or no believable result.
pub fn calibrate() -> Result<Frequency, CalibrationError> {
    for _ in 0..ATTEMPTS {
        let (hz, steady) = measure()?;
        if !steady {
            continue;
        }
        if !PLAUSIBLE.contains(&hz) {
            return Err(CalibrationError::Implausible(hz));
        }
        log::debug!("TSC measured at {hz} Hz");
        return Ok(*FREQUENCY.call_once(|| Frequency::from_hz((hz + 500) / 1000 * 1000)));
    }
    Err(CalibrationError::Unsteady)
}
