//! The real-time clock and its CMOS memory (Motorola MC146818A, "Real-Time Clock plus RAM").
//!
//! Owns the index register, 128 bytes and the level of the interrupt line. The time follows from the wall clock at
//! power-on and the guest's TSC; the clock is never ticked, and setting it moves only this guest's idea of the time.
//! The divider (register A, bits 6:4) has no effect: the time base always runs.

mod calendar;

use crate::clock::Clock;
use calendar::{DAY, DateTime};
use lamina_arch::time::{Frequency, Tsc};
use lamina_vmm::fault::{self, Site};

/// The time base. Unit: Hz.
const BASE_HZ: u64 = 32_768;
/// How long before an update the update-in-progress bit is set (244 us) and how long the update takes (1984 us), in
/// ticks of the time base: here both lie before the new time shows.
const UPDATE_TICKS: u64 = 73;
const SECONDS: u8 = 0x00;
const SECONDS_ALARM: u8 = 0x01;
const MINUTES: u8 = 0x02;
const MINUTES_ALARM: u8 = 0x03;
const HOURS: u8 = 0x04;
const HOURS_ALARM: u8 = 0x05;
const WEEKDAY: u8 = 0x06;
const DAY_OF_MONTH: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;
/// The century, where ACPI's FADT says.
pub const CENTURY: u8 = 0x32;
const A_UPDATE_IN_PROGRESS: u8 = 1 << 7;
const B_SET: u8 = 1 << 7;
const B_PERIODIC: u8 = 1 << 6;
const B_ALARM: u8 = 1 << 5;
const B_UPDATE_ENDED: u8 = 1 << 4;
const B_BINARY: u8 = 1 << 2;
const B_24_HOURS: u8 = 1 << 1;
const C_INTERRUPT: u8 = 1 << 7;
const D_VALID: u8 = 1 << 7;
const PM: u8 = 1 << 7;
/// Bits of the index that name a register; all of them in the build with a planted bug, which `planted_bugs` finds.
const INDEX_MASK: u8 = if cfg!(feature = "plant-bounds") { 0xff } else { 0x7f };
/// An alarm byte with both top bits set matches everything.
const ANY: u8 = 0xc0;

/// The clock.
#[derive(Clone, Debug, PartialEq)]
pub struct Rtc {
    clock: Clock,
    index: u8,
    /// All registers. Those of the time hold it only while register B's SET bit stops updates.
    cmos: [u8; 128],
    /// The guest's time at `base_tick`. Unit: seconds since 1970-01-01 00:00.
    base_seconds: u64,
    /// When a second of the guest's time began.
    base_tick: u64,
    /// How far the guest's day of the week is ahead of the calendar's.
    weekday_shift: u8,
    /// Up to where flags have been raised.
    seen: u64,
}

impl Rtc {
    /// A clock that shows `unix_seconds` (since 1970-01-01 00:00 UTC) at `now`, in 24-hour BCD, and whose CMOS tells of
    /// `below_4g` bytes of memory below 4 GiB and `above_4g` bytes beyond.
    pub fn new(tsc: Frequency, now: Tsc, unix_seconds: u64, below_4g: u64, above_4g: u64) -> Rtc {
        let mut cmos = [0; 128];
        cmos[usize::from(REGISTER_A)] = 0x26;
        cmos[usize::from(REGISTER_B)] = B_24_HOURS;
        let le16 = |value: u64| u16::try_from(value).unwrap_or(u16::MAX).to_le_bytes();
        // Base memory and memory from 1 MiB in KiB, memory from 16 MiB and from 4 GiB in 64 KiB.
        [cmos[0x15], cmos[0x16]] = le16(640);
        let extended = le16(below_4g.saturating_sub(1 << 20) >> 10);
        [cmos[0x17], cmos[0x18]] = extended;
        [cmos[0x30], cmos[0x31]] = extended;
        [cmos[0x34], cmos[0x35]] = le16(below_4g.saturating_sub(16 << 20) >> 16);
        let [low, middle, high, ..] = (above_4g >> 16).min(0xff_ffff).to_le_bytes();
        [cmos[0x5b], cmos[0x5c], cmos[0x5d]] = [low, middle, high];
        let sum: u16 = cmos[0x10..=0x2d].iter().map(|&byte| u16::from(byte)).sum();
        [cmos[0x2e], cmos[0x2f]] = sum.to_be_bytes();
        let clock = Clock::new(tsc, Frequency::from_hz(BASE_HZ), now);
        Rtc { clock, index: 0, cmos, base_seconds: unix_seconds, base_tick: 0, weekday_shift: 0, seen: 0 }
    }

    /// What firmware would have left in a register of the CMOS memory that is none of the clock's (from 0x0e on).
    pub fn preset(&mut self, index: u8, value: u8) {
        if index > REGISTER_D {
            self.set_register(index, value);
        }
    }

    /// Writes the index port (0x70). Bit 7 masks NMIs, of which this PC has no source.
    pub const fn write_index(&mut self, value: u8) {
        self.index = value & INDEX_MASK;
    }

    /// Reads the data port (0x71).
    pub fn read_data(&mut self, now: Tsc) -> u8 {
        fault::point(Site::RtcRead);
        self.advance(now);
        let tick = self.clock.ticks(now);
        let value = self.register(self.index);
        match self.index {
            index if is_time(index) && !self.stopped() => self.time_register(index, tick),
            REGISTER_A if self.updating(tick) => value | A_UPDATE_IN_PROGRESS,
            REGISTER_C => {
                self.set_register(REGISTER_C, 0);
                if value & self.register(REGISTER_B) & 0x70 != 0 { value | C_INTERRUPT } else { value }
            }
            REGISTER_D => D_VALID,
            _ => value,
        }
    }

    /// Writes the data port (0x71).
    pub fn write_data(&mut self, now: Tsc, value: u8) {
        fault::point(Site::RtcWrite);
        self.advance(now);
        let tick = self.clock.ticks(now);
        match self.index {
            index if is_time(index) => {
                let stopped = self.stopped();
                if !stopped {
                    self.show(tick);
                }
                self.set_register(index, value);
                if !stopped {
                    let into_second = tick.saturating_sub(self.base_tick) % BASE_HZ;
                    self.set(tick - into_second.min(tick));
                }
            }
            REGISTER_A => self.set_register(REGISTER_A, value & 0x7f),
            REGISTER_B => self.write_b(value, tick),
            REGISTER_C | REGISTER_D => {}
            index => self.set_register(index, value),
        }
    }

    /// The level of the interrupt line.
    pub fn irq(&self) -> bool {
        self.register(REGISTER_C) & self.register(REGISTER_B) & 0x70 != 0
    }

    /// Raises the flags of what has happened up to `now`.
    pub fn advance(&mut self, now: Tsc) {
        let tick = self.clock.ticks(now);
        if tick <= self.seen {
            return;
        }
        let mut flags = 0;
        if self.period().is_some_and(|period| tick / period != self.seen / period) {
            flags |= B_PERIODIC;
        }
        if !self.stopped() {
            let (before, after) = (self.seconds(self.seen), self.seconds(tick));
            if before != after {
                flags |= B_UPDATE_ENDED;
                if self.next_alarm(before).is_some_and(|alarm| alarm <= after) {
                    flags |= B_ALARM;
                }
            }
        }
        self.set_register(REGISTER_C, self.register(REGISTER_C) | flags);
        self.seen = tick;
    }

    /// When the line rises next.
    pub fn next_deadline(&self) -> Option<Tsc> {
        if self.irq() {
            return None;
        }
        let enabled = self.register(REGISTER_B);
        let period = self.period().filter(|_| enabled & B_PERIODIC != 0);
        let periodic = period.and_then(|period| (self.seen / period + 1).checked_mul(period));
        let second = self.seconds(self.seen);
        let update = (enabled & B_UPDATE_ENDED != 0 && !self.stopped()).then(|| second.saturating_add(1));
        let alarm = if enabled & B_ALARM != 0 && !self.stopped() { self.next_alarm(second) } else { None };
        let second_begins = |second: u64| {
            let ticks = second.saturating_sub(self.base_seconds).checked_mul(BASE_HZ)?;
            self.base_tick.checked_add(ticks)
        };
        let next = [periodic, update.and_then(second_begins), alarm.and_then(second_begins)];
        self.clock.when(next.into_iter().flatten().min()?)
    }

    fn register(&self, index: u8) -> u8 {
        self.cmos[usize::from(index & INDEX_MASK)]
    }

    fn set_register(&mut self, index: u8, value: u8) {
        self.cmos[usize::from(index & INDEX_MASK)] = value;
    }

    fn stopped(&self) -> bool {
        self.register(REGISTER_B) & B_SET != 0
    }

    fn updating(&self, tick: u64) -> bool {
        !self.stopped() && tick.saturating_sub(self.base_tick) % BASE_HZ >= BASE_HZ - UPDATE_TICKS
    }

    /// The guest's time at `tick`.
    fn seconds(&self, tick: u64) -> u64 {
        self.base_seconds.saturating_add(tick.saturating_sub(self.base_tick) / BASE_HZ)
    }

    /// Ticks between periodic interrupts.
    fn period(&self) -> Option<u64> {
        match self.register(REGISTER_A) & 0xf {
            0 => None,
            // The two fastest rates of the table are those of 8 and 9 again.
            rate @ 1..=2 => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    fn write_b(&mut self, value: u8, tick: u64) {
        let stopped = self.stopped();
        let stop = value & B_SET != 0;
        if stop && !stopped {
            self.show(tick);
        }
        // SET takes the update-ended interrupt's enable away.
        let value = if stop { value & !B_UPDATE_ENDED } else { value };
        self.set_register(REGISTER_B, value);
        if stopped && !stop {
            self.set(tick);
        }
    }

    /// One register of the running time.
    fn time_register(&self, index: u8, tick: u64) -> u8 {
        let time = DateTime::from_unix(self.seconds(tick));
        let two_digits = |value: u64| u8::try_from(value % 100).unwrap_or(0);
        match index {
            SECONDS => self.encode(time.second),
            MINUTES => self.encode(time.minute),
            HOURS => self.encode_hour(time.hour),
            WEEKDAY => self.encode((time.weekday - 1 + self.weekday_shift) % 7 + 1),
            DAY_OF_MONTH => self.encode(time.day),
            MONTH => self.encode(time.month),
            YEAR => self.encode(two_digits(time.year)),
            _ => self.encode(two_digits(time.year / 100)),
        }
    }

    /// Writes the running time into its registers.
    fn show(&mut self, tick: u64) {
        for index in [SECONDS, MINUTES, HOURS, WEEKDAY, DAY_OF_MONTH, MONTH, YEAR, CENTURY] {
            self.set_register(index, self.time_register(index, tick));
        }
    }

    /// Takes the time from its registers; the second that they tell began at `tick`.
    fn set(&mut self, tick: u64) {
        let field = |index| self.decode(self.register(index));
        let time = DateTime {
            year: u64::from(field(CENTURY)) * 100 + u64::from(field(YEAR)),
            month: field(MONTH),
            day: field(DAY_OF_MONTH),
            hour: self.decode_hour(self.register(HOURS)),
            minute: field(MINUTES),
            second: field(SECONDS),
            weekday: 0,
        };
        let weekday = field(WEEKDAY);
        self.base_seconds = time.to_unix();
        self.base_tick = tick;
        self.weekday_shift = (weekday % 7 + 7 - DateTime::from_unix(self.base_seconds).weekday % 7) % 7;
    }

    fn encode(&self, value: u8) -> u8 {
        if self.register(REGISTER_B) & B_BINARY != 0 { value } else { ((value / 10 % 10) << 4) | (value % 10) }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.register(REGISTER_B) & B_BINARY != 0 { value } else { (value >> 4) * 10 + (value & 0xf) }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.register(REGISTER_B) & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let of_half = self.encode(if hour.is_multiple_of(12) { 12 } else { hour % 12 });
        if hour >= 12 { of_half | PM } else { of_half }
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.register(REGISTER_B) & B_24_HOURS != 0 {
            return self.decode(value);
        }
        let of_half = self.decode(value & !PM) % 12;
        if value & PM != 0 { of_half + 12 } else { of_half }
    }

    /// The first second after `second` that the alarm matches.
    fn next_alarm(&self, second: u64) -> Option<u64> {
        let first = second.checked_add(1)?;
        let midnight = first - first % DAY;
        let today = self.alarm_from(first % DAY).and_then(|at| midnight.checked_add(at));
        today.or_else(|| midnight.checked_add(DAY)?.checked_add(self.alarm_from(0)?))
    }

    /// The first second of a day, from `start` on, that the alarm matches.
    fn alarm_from(&self, start: u64) -> Option<u64> {
        let wanted = |index, decode: &dyn Fn(u8) -> u8| {
            let value = self.register(index);
            (value & ANY != ANY).then(|| u64::from(decode(value)))
        };
        let hour = wanted(HOURS_ALARM, &|value| self.decode_hour(value));
        let minute = wanted(MINUTES_ALARM, &|value| self.decode(value));
        let second = wanted(SECONDS_ALARM, &|value| self.decode(value));
        if second.is_some_and(|second| second >= 60) {
            return None;
        }
        let matches = |wanted: Option<u64>, value| wanted.is_none_or(|wanted| wanted == value);
        // At most one hour and one minute are entered without success, so this looks at few values.
        for h in (start / 3600..24).filter(|&h| matches(hour, h)) {
            for m in (0..60).filter(|&m| matches(minute, m) && h * 3600 + m * 60 + 59 >= start) {
                let found = (0..60).find(|&s| matches(second, s) && h * 3600 + m * 60 + s >= start);
                if let Some(s) = found {
                    return Some(h * 3600 + m * 60 + s);
                }
            }
        }
        None
    }
}

/// Whether the register at `index` holds part of the time.
const fn is_time(index: u8) -> bool {
    matches!(index, SECONDS | MINUTES | HOURS | WEEKDAY | DAY_OF_MONTH | MONTH | YEAR | CENTURY)
}

#[cfg(test)]
#[path = "rtc_tests.rs"]
mod tests;
