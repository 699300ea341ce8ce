//! The local APIC's timer (Intel SDM vol. 3, "APIC Timer").
//!
//! Owns the initial count, the divide configuration and the deadline; mode and vector belong to the LVT and come in
//! with each call. The current count follows from the time. What the local APIC makes of an expiry is here too.

use super::{LVT_MASKED, Lapic, TIMER};
use lamina_arch::time::{Frequency, Tsc};
use lamina_vmm::apic::ApicMode;
use lamina_vmm::layout::APIC_TIMER_HZ;

/// What the timer counts, before the divider.
const INPUT: Frequency = Frequency::from_hz(APIC_TIMER_HZ);

/// The LVT's timer mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
    /// The encoding 3: the timer does not run.
    Reserved,
}

/// A count in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    origin: Tsc,
    /// The count at `origin`; later periods begin with the initial count.
    first: u32,
    /// How often it has reached zero.
    expiries: u64,
}

/// The timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timer {
    tsc: Frequency,
    initial: u32,
    divide: u32,
    run: Option<Run>,
    /// IA32_TSC_DEADLINE; 0 is disarmed.
    deadline: u64,
}

impl Timer {
    pub(super) const fn new(tsc: Frequency) -> Timer {
        Timer { tsc, initial: 0, divide: 0, run: None, deadline: 0 }
    }

    pub(super) const fn initial(&self) -> u32 {
        self.initial
    }

    /// Starts the count; 0 stops it.
    pub(super) fn set_initial(&mut self, now: Tsc, count: u32) {
        self.initial = count;
        self.run = (count > 0).then_some(Run { origin: now, first: count, expiries: 0 });
    }

    /// The divide configuration register.
    pub(super) const fn divide(&self) -> u32 {
        self.divide
    }

    /// Writes the divide configuration register. What is left of the count goes on at the new rate. The timer must
    /// have been brought up to `now`.
    pub(super) fn set_divide(&mut self, now: Tsc, value: u32) {
        let left = self.current(now);
        self.divide = value & 0b1011;
        if let Some(run) = &mut self.run {
            *run = Run { origin: now, first: left.max(1), expiries: 0 };
        }
    }

    pub(super) const fn deadline(&self) -> u64 {
        self.deadline
    }

    pub(super) const fn set_deadline(&mut self, deadline: u64) {
        self.deadline = deadline;
    }

    /// Stops both kinds of timer.
    pub(super) const fn disarm(&mut self) {
        self.run = None;
        self.deadline = 0;
    }

    /// The current count. The timer must have been brought up to `now`.
    pub(super) fn current(&self, now: Tsc) -> u32 {
        let Some(run) = self.run else { return 0 };
        let left = self.expiry(&run).saturating_sub(self.elapsed(&run, now));
        u32::try_from(left.div_ceil(self.divisor())).unwrap_or(u32::MAX)
    }

    /// Whether the deadline has come by `now`; it is none any more then.
    #[inline]
    pub(super) const fn meet(&mut self, now: Tsc) -> bool {
        let due = self.deadline != 0 && self.deadline <= now.0;
        if due {
            self.deadline = 0;
        }
        due
    }

    /// Whether the timer has expired by `now`, once or more often, since the last call.
    pub(super) fn expire(&mut self, now: Tsc, mode: Mode) -> bool {
        match mode {
            Mode::TscDeadline => self.meet(now),
            Mode::Reserved => false,
            Mode::OneShot | Mode::Periodic => {
                let Some(mut run) = self.run else { return false };
                let elapsed = self.elapsed(&run, now);
                if elapsed < self.expiry(&run) {
                    return false;
                }
                let period = u64::from(self.initial).saturating_mul(self.divisor());
                self.run = if mode == Mode::Periodic && period > 0 {
                    let first = u64::from(run.first).saturating_mul(self.divisor());
                    run.expiries = (elapsed.saturating_sub(first) / period).saturating_add(1);
                    Some(run)
                } else {
                    None
                };
                true
            }
        }
    }

    /// When the timer expires next.
    #[inline(never)]
    pub(super) fn next(&self, mode: Mode) -> Option<Tsc> {
        match mode {
            Mode::TscDeadline => (self.deadline != 0).then_some(Tsc(self.deadline)),
            Mode::Reserved => None,
            Mode::OneShot | Mode::Periodic => {
                let run = self.run?;
                let after = INPUT.convert_up(self.expiry(&run), self.tsc);
                run.origin.0.checked_add(after).map(Tsc)
            }
        }
    }

    /// Input ticks per count.
    const fn divisor(&self) -> u64 {
        match (self.divide >> 1 & 4) | (self.divide & 3) {
            7 => 1,
            code => 2 << code,
        }
    }

    /// Input ticks since the count's origin.
    const fn elapsed(&self, run: &Run, now: Tsc) -> u64 {
        self.tsc.convert(now.since(run.origin), INPUT)
    }

    /// When the count reaches zero next. Unit: input ticks from its origin.
    const fn expiry(&self, run: &Run) -> u64 {
        (self.initial as u64)
            .saturating_mul(run.expiries)
            .saturating_add(run.first as u64)
            .saturating_mul(self.divisor())
    }
}

/// LVT: the timer's mode.
const LVT_TIMER_MODE: u32 = 3 << 17;
const LVT_TSC_DEADLINE: u32 = 2 << 17;

impl Lapic {
    /// Raises the timer's interrupt where it is due by `now`.
    #[inline]
    pub fn advance(&mut self, now: Tsc) {
        // The mode of most guests is quick to tell.
        if self.has_tsc_deadline() {
            if self.timer.meet(now) {
                self.expired();
            }
        } else {
            self.advance_count(now);
        }
    }

    #[inline(never)]
    fn advance_count(&mut self, now: Tsc) {
        if self.timer.expire(now, self.timer_mode()) {
            self.expired();
        }
    }

    #[inline]
    fn expired(&mut self) {
        let entry = self.lvt[TIMER];
        if entry & LVT_MASKED == 0 {
            self.request((entry & 0xff) as u8, false);
        }
    }

    /// Whether `vector` is the timer's.
    #[inline]
    pub fn is_of_timer(&self, vector: u8) -> bool {
        self.lvt[TIMER] & 0xff == u32::from(vector)
    }

    /// When the timer raises its interrupt next; `None` while one of its interrupts still waits here, as the next would
    /// merge with it.
    #[inline]
    pub fn next_deadline(&self) -> Option<Tsc> {
        // Mostly so: it has just been met.
        if self.has_tsc_deadline() && self.timer.deadline() == 0 {
            return None;
        }
        let entry = self.lvt[TIMER];
        // The processor lets the guest have the one that waits without telling.
        let merges = self.mode == ApicMode::Off && self.irr.contains(&self.registers, (entry & 0xff) as u8);
        if entry & LVT_MASKED != 0 || merges {
            return None;
        }
        if self.has_tsc_deadline() { Some(Tsc(self.timer.deadline())) } else { self.timer.next(self.timer_mode()) }
    }

    /// Whether the timer's mode is that of a TSC deadline.
    #[inline]
    pub(super) const fn has_tsc_deadline(&self) -> bool {
        self.lvt[TIMER] & LVT_TIMER_MODE == LVT_TSC_DEADLINE
    }

    pub(super) fn timer_mode(&self) -> Mode {
        match self.lvt[TIMER] >> 17 & 3 {
            0 => Mode::OneShot,
            1 => Mode::Periodic,
            2 => Mode::TscDeadline,
            _ => Mode::Reserved,
        }
    }
}
