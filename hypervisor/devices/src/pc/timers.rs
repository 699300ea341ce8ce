//! When the devices' timers are due, and what happens when they are.
//!
//! Owns the deadlines and the earliest of them, which every VM entry asks for. The local APIC's is apart: it changes and
//! is due most, and then nothing need be known of the others than which is the first.

use super::Pc;
use crate::hpet::Hpet;
use lamina_arch::time::Tsc;
use lamina_vmm::fault::{self, Site};
use lamina_vmm::layout;

/// Stands for "no timer is running" among deadlines: a guest's TSC does not get there.
pub(super) const NEVER: u64 = u64::MAX;

/// The devices with a deadline, but for the local APIC, as indices.
#[derive(Clone, Copy, Debug)]
pub(super) enum Timer {
    Pit,
    Rtc,
    AcpiPm,
    Uart,
    Hpet,
    Keyboard,
}

/// All deadlines.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadlines {
    /// By [`Timer`].
    each: [u64; 6],
    /// The earliest of `each`.
    others: u64,
    /// The earliest of all.
    first: u64,
}

impl Deadlines {
    /// No timer runs.
    pub(super) const fn new() -> Deadlines {
        Deadlines { each: [NEVER; 6], others: NEVER, first: NEVER }
    }

    /// The earliest of all.
    #[inline]
    pub(super) fn first(&self) -> Option<Tsc> {
        (self.first != NEVER).then_some(Tsc(self.first))
    }

    /// Whether a timer is due at `now`.
    #[inline]
    pub(super) const fn is_due(&self, now: Tsc) -> bool {
        now.0 >= self.first
    }

    /// Whether one is due that is not the local APIC's.
    #[inline]
    const fn is_other_due(&self, now: Tsc) -> bool {
        now.0 >= self.others
    }

    const fn is_this_due(&self, timer: Timer, now: Tsc) -> bool {
        now.0 >= self.each[timer as usize]
    }
}

impl Pc {
    /// Brings the timers that are due up to now, with their interrupts.
    #[inline(never)]
    pub(super) fn expire(&mut self) {
        fault::point(Site::Timer);
        if self.deadlines.is_other_due(self.now) {
            self.expire_others();
        }
        if self.deadlines.is_due(self.now) {
            self.lapic.advance(self.now);
            self.apic_timer_changed();
            self.apic_interrupts_changed();
        }
    }

    #[cold]
    fn expire_others(&mut self) {
        let (now, due) = (self.now, self.deadlines);
        if due.is_this_due(Timer::Pit, now) {
            self.pit.advance(now);
            self.pit_changed();
        }
        if due.is_this_due(Timer::Rtc, now) {
            self.rtc.advance(now);
            self.rtc_changed();
        }
        if due.is_this_due(Timer::AcpiPm, now) {
            self.pm.advance(now);
            self.pm_changed();
        }
        if due.is_this_due(Timer::Uart, now) {
            self.uart.advance(now);
            self.uart_changed();
        }
        if due.is_this_due(Timer::Hpet, now) {
            self.hpet_changed();
        }
        if due.is_this_due(Timer::Keyboard, now) {
            self.i8042.advance(now);
            self.keyboard_changed();
        }
    }

    /// Asks a timer anew when it is due.
    pub(super) fn refresh(&mut self, timer: Timer) {
        let deadline = match timer {
            Timer::Pit => self.pit.next_deadline(),
            Timer::Rtc => self.rtc.next_deadline(),
            Timer::AcpiPm => self.pm.next_deadline(),
            Timer::Uart => self.uart.next_deadline(),
            Timer::Hpet => self.hpet.as_ref().and_then(Hpet::next_deadline),
            Timer::Keyboard => self.i8042.next_deadline(),
        };
        let deadline = deadline.map_or(NEVER, |tsc| tsc.0);
        let deadlines = &mut self.deadlines;
        let known = &mut deadlines.each[timer as usize];
        if *known != deadline {
            *known = deadline;
            deadlines.others = deadlines.each.into_iter().fold(NEVER, u64::min);
            self.apic_timer_changed();
        }
    }

    /// Asks the local APIC's timer anew when it is due.
    #[inline]
    pub(super) fn apic_timer_changed(&mut self) {
        let deadline = self.lapic.next_deadline().map_or(NEVER, |tsc| tsc.0);
        self.deadlines.first = self.deadlines.others.min(deadline);
    }

    /// An edge of the timer's output is a pulse here, so that one whose predecessor was not seen to fall counts too.
    pub(super) fn pit_changed(&mut self) {
        if self.pit.take_edge() && !self.hpet_replaces_legacy() {
            self.pulse(layout::PIT_IRQ);
        }
        self.refresh(Timer::Pit);
    }

    pub(super) fn rtc_changed(&mut self) {
        if !self.hpet_replaces_legacy() {
            self.drive(layout::RTC_IRQ, self.rtc.irq());
        }
        self.refresh(Timer::Rtc);
    }

    pub(super) fn pm_changed(&mut self) {
        self.drive(layout::SCI_IRQ, self.pm.sci());
        self.refresh(Timer::AcpiPm);
    }

    pub(super) fn uart_changed(&mut self) {
        self.drive(layout::COM1_IRQ, self.uart.irq());
        self.refresh(Timer::Uart);
    }

    pub(super) fn hpet_replaces_legacy(&self) -> bool {
        self.hpet.as_ref().is_some_and(Hpet::replaces_legacy)
    }
}
