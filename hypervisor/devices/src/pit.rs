//! The 8254 programmable interval timer (Intel 8254, "Programmable Interval Timer") and port 0x61, which holds its
//! gate and its output for the speaker (Intel 82371SB, "NMI Status and Control Register").
//!
//! Owns three counters and that port. Counts nothing by itself: every value and output level follows from the time.
//!
//! Output 0 is interrupt 0. Where several of its rising edges have passed since the last look, they are one: a late
//! guest gets one interrupt for all the ticks that it missed, as an edge-triggered input that is not served would give
//! it. A guest that counts ticks to keep time must look at a clock as well, as on a real machine that blocks
//! interrupts for long.

mod counter;

use crate::clock::Clock;
use counter::Counter;
use lamina_arch::time::{Frequency, Tsc};
use lamina_vmm::fault::{self, Site};

/// The input clock of each counter. Unit: Hz.
pub const PIT_HZ: u64 = 1_193_182;
/// Counter ticks start here, not at 0, so that a square wave may be said to have started before power-on.
const TICK_AT_POWER_ON: u64 = 1 << 20;
/// Port 0x61: gate of counter 2.
const GATE_2: u8 = 1 << 0;
/// Port 0x61: refresh cycle toggle.
const REFRESH: u8 = 1 << 4;
/// Port 0x61: output of counter 2.
const OUT_2: u8 = 1 << 5;
/// Port 0x61: what can be written; gate, speaker data, and two masks of NMI sources that this PC has not.
const WRITABLE: u8 = 0x0f;
/// How long the refresh toggle keeps a value (15.09 us). Unit: counter ticks.
const REFRESH_TICKS: u64 = 18;

/// The timer and port 0x61.
#[derive(Clone, Debug, PartialEq)]
pub struct Pit {
    clock: Clock,
    counters: [Counter; 3],
    control: u8,
    /// Up to where the rising edges of output 0 have been seen.
    seen: u64,
    edge: bool,
}

impl Pit {
    /// A timer whose counters have never been programmed, at `now`.
    pub const fn new(tsc: Frequency, now: Tsc) -> Pit {
        Pit {
            clock: Clock::new(tsc, Frequency::from_hz(PIT_HZ), now),
            // Counter 2's gate is bit 0 of port 0x61, the others' are tied high.
            counters: [Counter::new(true), Counter::new(true), Counter::new(false)],
            control: 0,
            seen: TICK_AT_POWER_ON,
            edge: false,
        }
    }

    /// Reads the port at `offset` from 0x40; the control word (offset 3) cannot be read.
    pub fn read(&mut self, now: Tsc, offset: u8) -> u8 {
        fault::point(Site::PitRead);
        fault::point(Site::HangDevice);
        let tick = self.tick(now);
        match self.counters.get_mut(usize::from(offset)) {
            Some(counter) => {
                counter.settle(tick);
                counter.read(tick)
            }
            None => 0xff,
        }
    }

    /// Writes the port at `offset` from 0x40.
    pub fn write(&mut self, now: Tsc, offset: u8, value: u8) {
        fault::point(Site::PitWrite);
        self.advance(now);
        let tick = self.tick(now);
        let was_high = self.counters[0].out(tick);
        for counter in &mut self.counters {
            counter.settle(tick);
        }
        if let Some(counter) = self.counters.get_mut(usize::from(offset)) {
            counter.write(value, tick);
        } else if value >> 6 == 3 {
            self.read_back(value, tick);
        } else if let Some(counter) = self.counters.get_mut(usize::from(value >> 6)) {
            counter.control(value, tick);
        }
        self.edge |= !was_high && self.counters[0].out(tick);
    }

    /// Reads port 0x61.
    pub fn read_control(&mut self, now: Tsc) -> u8 {
        let tick = self.tick(now);
        self.counters[2].settle(tick);
        let out = if self.counters[2].out(tick) { OUT_2 } else { 0 };
        let refresh = if (tick / REFRESH_TICKS) & 1 != 0 { REFRESH } else { 0 };
        self.control | out | refresh
    }

    /// Writes port 0x61.
    pub fn write_control(&mut self, now: Tsc, value: u8) {
        let tick = self.tick(now);
        self.control = value & WRITABLE;
        self.counters[2].settle(tick);
        self.counters[2].set_gate(value & GATE_2 != 0, tick);
    }

    /// Looks for rising edges of output 0 up to `now`.
    pub fn advance(&mut self, now: Tsc) {
        let tick = self.tick(now);
        if self.counters[0].next_rising_edge(self.seen).is_some_and(|edge| edge <= tick) {
            self.edge = true;
        }
        self.counters[0].settle(tick);
        self.seen = self.seen.max(tick);
    }

    /// Whether output 0 has risen since the last call.
    pub fn take_edge(&mut self) -> bool {
        core::mem::take(&mut self.edge)
    }

    /// The level of output 0.
    pub fn out0(&self, now: Tsc) -> bool {
        let mut counter = self.counters[0];
        let tick = self.tick(now);
        counter.settle(tick);
        counter.out(tick)
    }

    /// When output 0 rises next.
    pub fn next_deadline(&self) -> Option<Tsc> {
        let edge = self.counters[0].next_rising_edge(self.seen)?;
        self.clock.when(edge - TICK_AT_POWER_ON)
    }

    fn tick(&self, now: Tsc) -> u64 {
        self.clock.ticks(now).saturating_add(TICK_AT_POWER_ON)
    }

    fn read_back(&mut self, value: u8, tick: u64) {
        for (n, counter) in self.counters.iter_mut().enumerate() {
            if value & 2 << n == 0 {
                continue;
            }
            // Both bits are active low; with both latched, the status is read first.
            if value & 0x20 == 0 {
                counter.latch_count(tick);
            }
            if value & 0x10 == 0 {
                counter.latch_status(tick);
            }
        }
    }
}

#[cfg(test)]
#[path = "pit_tests.rs"]
mod tests;
