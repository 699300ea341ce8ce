//! The high precision event timer (IA-PC HPET Specification 1.0a): a counter and three timers.
//!
//! Owns the registers, and which timers have fired. Counts nothing by itself: the counter follows from the time. Where
//! several periods of a timer have passed since the last look, they are one interrupt, as with the 8254.
//!
//! In legacy replacement the first two timers take the place of the 8254's and the clock's interrupts; where an
//! interrupt goes is told by [`Hpet::route`], and to wire it is the caller's part.

use crate::clock::Clock;
use lamina_arch::time::{Frequency, Tsc};
use lamina_vmm::fault::{self, Site};
use lamina_vmm::layout;

/// Rate of the counter: 16 ns per tick. Unit: Hz.
pub const HPET_HZ: u64 = 62_500_000;
/// Length of a tick. Unit: 1e-15 seconds.
const PERIOD_FS: u64 = 16_000_000;
/// Timers.
pub const TIMERS: usize = 3;
/// Revision 1, three timers, a counter of 64 bits, legacy replacement, vendor.
const CAPABILITIES: u64 = PERIOD_FS << 32 | layout::HPET_BLOCK_ID as u64;
const _: () = assert!(layout::HPET_BLOCK_ID as usize >> 8 & 0x1f == TIMERS - 1);
/// I/O APIC pins that a timer can be routed to: those of no ISA interrupt.
const PINS: u32 = 0x00f0_0000;
/// The least time between two interrupts of a periodic timer: a guest that asks for more would get nothing else done.
/// Unit: ticks (10 us).
const PERIOD_MIN: u64 = 625;
/// Configuration: the counter runs.
const ENABLE: u64 = 1 << 0;
/// Configuration: legacy replacement.
const LEGACY: u64 = 1 << 1;
/// Timer: level-triggered.
const LEVEL: u64 = 1 << 1;
const INTERRUPT: u64 = 1 << 2;
const PERIODIC: u64 = 1 << 3;
/// Timer can be periodic; has 64 bits.
const CAPABLE: u64 = 1 << 4 | 1 << 5;
/// Timer: the next write sets the comparator of a periodic timer, not only its period.
const SET_VALUE: u64 = 1 << 6;
const BITS_32: u64 = 1 << 8;
const ROUTE: u64 = 0x1f << 9;
/// Timer: what can be written.
const WRITABLE: u64 = LEVEL | INTERRUPT | PERIODIC | SET_VALUE | BITS_32 | ROUTE;

/// Where a timer's interrupt goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// In place of the 8254's.
    Pit,
    /// In place of the clock's.
    Rtc,
    /// To this pin of the I/O APIC.
    Pin(u8),
}

/// One timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Timer {
    config: u64,
    comparator: u64,
    period: u64,
    /// When the counter gets there; `None` where it does not, or has been.
    due: Option<u64>,
}

impl Timer {
    /// The comparator's bits that count.
    const fn mask(&self) -> u64 {
        if self.config & BITS_32 != 0 { 0xffff_ffff } else { u64::MAX }
    }

    /// Looks from `counter` for the next time that the counter matches.
    fn arm(&mut self, counter: u64) {
        let ahead = self.comparator.wrapping_sub(counter) & self.mask();
        // Zero ahead is now: the match has been, or is just happening; the guest sees one interrupt at once.
        self.due = counter.checked_add(ahead);
    }

    /// Has it fired by `counter`? Then the next match is looked for.
    fn fire(&mut self, counter: u64) -> bool {
        let Some(due) = self.due.filter(|&due| due <= counter) else { return false };
        if self.config & PERIODIC != 0 && self.period != 0 {
            let passed = (counter - due) / self.period + 1;
            let periods = passed.max(PERIOD_MIN.div_ceil(self.period));
            let step = periods.checked_mul(self.period);
            self.due = step.and_then(|step| due.checked_add(step));
            self.comparator = self.comparator.wrapping_add(periods.wrapping_mul(self.period)) & self.mask();
        } else {
            // A 32-bit timer matches again when the counter has wrapped.
            // However often it has by now, that was one interrupt.
            let wraps = (self.config & BITS_32 != 0).then(|| ((counter - due) >> 32) + 1);
            self.due = wraps.and_then(|wraps| wraps.checked_mul(1 << 32)).and_then(|step| due.checked_add(step));
        }
        true
    }
}

/// The timer block.
#[derive(Clone, Debug, PartialEq)]
pub struct Hpet {
    clock: Clock,
    config: u64,
    /// Levels of timers that are level-triggered, bit per timer.
    status: u64,
    /// The counter when it last stood still.
    base: u64,
    /// The clock when the counter began to run from there.
    started: u64,
    timers: [Timer; TIMERS],
    /// Timers whose edge has not been taken.
    edges: u8,
}

impl Hpet {
    /// As after reset: nothing runs.
    pub const fn new(tsc: Frequency, now: Tsc) -> Hpet {
        let timer = Timer { config: 0, comparator: u64::MAX, period: 0, due: None };
        Hpet {
            clock: Clock::new(tsc, Frequency::from_hz(HPET_HZ), now),
            config: 0,
            status: 0,
            base: 0,
            started: 0,
            timers: [timer; TIMERS],
            edges: 0,
        }
    }

    /// Reads from `offset` in the page, in accesses of up to 8 bytes.
    pub fn read(&mut self, now: Tsc, offset: u64, data: &mut [u8]) {
        fault::point(Site::HpetRead);
        self.advance(now);
        for (at, byte) in (offset & 0xfff..).zip(data) {
            // All bytes of an access are of one moment.
            let value = self.register(now, at & !7);
            *byte = value.to_le_bytes()[(at & 7) as usize];
        }
    }

    /// Writes to `offset` in the page, in accesses of up to 8 bytes; what crosses the end of a register is lost.
    pub fn write(&mut self, now: Tsc, offset: u64, data: &[u8]) {
        fault::point(Site::HpetWrite);
        self.advance(now);
        let offset = offset & 0xfff;
        let mut bytes = self.written_over(now, offset & !7).to_le_bytes();
        let mut mask = [0; 8];
        for (at, &byte) in ((offset & 7) as usize..8).zip(data) {
            (bytes[at], mask[at]) = (byte, 0xff);
        }
        self.set_register(now, offset & !7, u64::from_le_bytes(bytes), u64::from_le_bytes(mask));
    }

    /// Looks which timers have fired by `now`.
    pub fn advance(&mut self, now: Tsc) {
        if self.config & ENABLE == 0 {
            return;
        }
        let counter = self.counter(now);
        for (n, timer) in self.timers.iter_mut().enumerate() {
            if !timer.fire(counter) {
                continue;
            }
            if timer.config & LEVEL != 0 {
                self.status |= 1 << n;
            } else if timer.config & INTERRUPT != 0 {
                self.edges |= 1 << n;
            }
        }
    }

    /// When a timer that interrupts fires next.
    pub fn next_deadline(&self) -> Option<Tsc> {
        if self.config & ENABLE == 0 {
            return None;
        }
        // A level that stands already does not rise.
        let waits = |n: usize, timer: &Timer| timer.config & INTERRUPT != 0 && self.status >> n & 1 == 0;
        let timers = self.timers.iter().enumerate().filter(|(n, timer)| waits(*n, timer));
        let due = timers.filter_map(|(_, timer)| timer.due).min()?;
        // The counter is at `due` when the clock is that much further than it was.
        self.clock.when(due.saturating_sub(self.base).checked_add(self.started)?)
    }

    /// Timers with an edge since the last call, bit per timer.
    pub fn take_edges(&mut self) -> u8 {
        core::mem::take(&mut self.edges)
    }

    /// The level of a timer that is level-triggered.
    pub fn level(&self, timer: usize) -> bool {
        let interrupts = self.timers.get(timer).is_some_and(|timer| timer.config & INTERRUPT != 0);
        interrupts && self.status >> timer & 1 != 0
    }

    /// Where the interrupt of `timer` goes; `None` where it goes nowhere.
    pub fn route(&self, timer: usize) -> Option<Route> {
        match timer {
            0 if self.replaces_legacy() => Some(Route::Pit),
            1 if self.replaces_legacy() => Some(Route::Rtc),
            _ => {
                let pin = self.timers.get(timer)?.config >> 9 & 0x1f;
                (PINS >> pin & 1 != 0).then_some(Route::Pin((pin & 0x1f) as u8))
            }
        }
    }

    /// Whether the interrupts of the 8254 and of the clock are cut off.
    pub const fn replaces_legacy(&self) -> bool {
        self.config & LEGACY != 0
    }

    fn counter(&self, now: Tsc) -> u64 {
        if self.config & ENABLE == 0 {
            return self.base;
        }
        // Saturates after nine thousand years, and so never passes a comparator that it has passed.
        self.base.saturating_add(self.clock.ticks(now).saturating_sub(self.started))
    }

    fn register(&self, now: Tsc, offset: u64) -> u64 {
        match offset {
            0x00 => CAPABILITIES,
            0x10 => self.config,
            0x20 => self.status,
            0xf0 => self.counter(now),
            _ => match self.timer(offset) {
                Some((timer, 0x00)) => timer.config | CAPABLE | u64::from(PINS) << 32,
                Some((timer, 0x08)) => timer.comparator,
                _ => 0,
            },
        }
    }

    /// What an access that does not write all of a register leaves of it.
    fn written_over(&self, now: Tsc, offset: u64) -> u64 {
        match self.timer(offset) {
            // Half a write to a periodic timer's period is added to the other half of the period.
            Some((timer, 0x08)) if timer.config & PERIODIC != 0 && timer.config & SET_VALUE == 0 => timer.period,
            // What is not written is no 1 that clears.
            _ if offset == 0x20 => 0,
            _ => self.register(now, offset),
        }
    }

    fn timer(&self, offset: u64) -> Option<(&Timer, u64)> {
        let from = offset.checked_sub(0x100)?;
        let timer = self.timers.get(usize::try_from(from / 0x20).ok()?)?;
        Some((timer, from % 0x20))
    }

    fn set_register(&mut self, now: Tsc, offset: u64, value: u64, mask: u64) {
        let counter = self.counter(now);
        match offset {
            0x10 => {
                self.base = counter;
                self.started = self.clock.ticks(now);
                self.config = value & (ENABLE | LEGACY);
            }
            0x20 => self.status &= !(value & mask),
            // The counter may be written while it stands still.
            0xf0 if self.config & ENABLE == 0 => {
                self.base = value;
                self.timers.iter_mut().for_each(|timer| timer.arm(value));
            }
            _ => self.set_timer(offset, value, counter),
        }
    }

    fn set_timer(&mut self, offset: u64, value: u64, counter: u64) {
        let Some(from) = offset.checked_sub(0x100) else { return };
        let timer = usize::try_from(from / 0x20).ok().and_then(|n| self.timers.get_mut(n).map(|timer| (n, timer)));
        match (timer, from % 0x20) {
            (Some((n, timer)), 0x00) => {
                let narrowed = (timer.config ^ value) & BITS_32 != 0;
                timer.config = value & WRITABLE;
                if timer.config & LEVEL == 0 {
                    self.status &= !(1 << n);
                }
                if narrowed {
                    timer.comparator &= timer.mask();
                    timer.period &= timer.mask();
                    timer.arm(counter);
                }
            }
            (Some((_, timer)), 0x08) => {
                let value = value & timer.mask();
                let periodic = timer.config & PERIODIC != 0;
                if periodic {
                    timer.period = value;
                }
                if !periodic || timer.config & SET_VALUE != 0 {
                    timer.comparator = value;
                    timer.arm(counter);
                }
                timer.config &= !SET_VALUE;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
#[path = "hpet_tests.rs"]
mod tests;
