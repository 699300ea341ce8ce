//! One clock beside the time-stamp counter.

use guest_rt::lapic::LocalApic;
use guest_rt::{cpu, println};

/// How long a reading may take, so that nobody else had the processor in it. Unit: microseconds.
const READING: u64 = 500;

/// A clock, and what was seen of it.
pub struct Clock {
    name: &'static str,
    /// Unit: ticks in 1000 s.
    rate: u64,
    /// After this value it begins again with 0.
    last: u64,
    read: fn(&LocalApic) -> u64,
    /// By how much a change may be seen late. Unit: milliseconds.
    late: u64,
    /// The value at the latest change.
    value: Option<u64>,
    /// When the first change and the latest one were seen. Unit: ticks of the time-stamp counter.
    seen: Option<(u64, u64)>,
    /// Ticks between these.
    ticks: u64,
    /// The longest step; one of more than half a round is a step back. Unit: ticks.
    longest: u64,
}

impl Clock {
    /// A clock that `read` reads, of `rate` ticks in 1000 s, whose highest value is `last`. A change of it is seen within
    /// `late` milliseconds.
    pub const fn new(name: &'static str, rate: u64, last: u64, late: u64, read: fn(&LocalApic) -> u64) -> Clock {
        Clock { name, rate, last, read, late, value: None, seen: None, ticks: 0, longest: 0 }
    }

    /// Reads it.
    pub fn look(&mut self, apic: &LocalApic, tsc_khz: u64) {
        let (value, at) = loop {
            let before = cpu::tsc();
            let value = (self.read)(apic);
            // Off the processor in between, a reading tells nothing of its time.
            if cpu::tsc() - before < READING * tsc_khz / 1000 {
                break (value, before);
            }
        };
        let Some(before) = self.value.replace(value) else { return };
        let step = if value >= before { value - before } else { self.last - before + 1 + value };
        if step == 0 {
            return;
        }
        match &mut self.seen {
            None => self.seen = Some((at, at)),
            Some((_, latest)) => {
                *latest = at;
                self.ticks += step;
                self.longest = self.longest.max(step);
            }
        }
    }

    /// Prints what was seen; whether it was as it must be.
    pub fn tell(&self, tsc_khz: u64) -> bool {
        let Some((first, latest)) = self.seen else {
            println!("{}: stands still", self.name);
            return false;
        };
        let by_tsc = i128::from((latest - first) / (tsc_khz / 1000).max(1));
        let by_clock = i128::from(self.ticks) * 1_000_000_000 / i128::from(self.rate);
        let (off, allowed) = (by_clock - by_tsc, by_tsc / 1000 + i128::from(self.late) * 1000);
        let backwards = self.longest > self.last / 2;
        let well = off.abs() <= allowed && !backwards;
        let word = if well { "" } else { ": off" };
        let steps = if backwards { ", ran backwards" } else { "" };
        println!("{}: {by_clock} us in {by_tsc} us{steps}{word}", self.name);
        well
    }
}
