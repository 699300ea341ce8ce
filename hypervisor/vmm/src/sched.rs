//! Who runs next: preemptive, fair by weight.
//!
//! Owns each VM's virtual run time: processor time divided by weight. The runnable VM with the least of it runs, for a
//! slice at most; VMs of equal weight so take turns. A VM that wakes starts no further behind than a slice, so that
//! sleeping saves up no claim to the processor. Knows no time but what it is told, and no VM but its number.

use alloc::vec::Vec;
use lamina_arch::time::{Frequency, Tsc};

/// Longest time that a VM runs while others wait. Unit: nanoseconds.
const SLICE_NS: u64 = 5_000_000;
/// Where virtual time ends, so that there is a time behind all.
const VIRTUAL_TIME_MAX: u64 = u64::MAX - 1;
/// The weight that runs at the rate of the clock.
const WEIGHT_ONE: u64 = 100;

#[derive(Clone, Copy, Debug)]
struct Entry {
    weight: u64,
    /// Unit: ticks at weight 100.
    virtual_time: u64,
    runnable: bool,
    /// Processor time in all. Unit: ticks.
    ran: u64,
}

/// The scheduler of one processor.
#[derive(Debug)]
pub struct Scheduler {
    entries: Vec<Entry>,
    slice: u64,
    current: Option<Current>,
    /// No runnable VM was ever behind this.
    floor: u64,
    /// How many VMs are runnable.
    runnable: usize,
}

#[derive(Clone, Copy, Debug)]
struct Current {
    vm: usize,
    until: Tsc,
}

impl Scheduler {
    /// A scheduler without VMs, for a counter of rate `tsc`.
    pub fn new(tsc: Frequency) -> Scheduler {
        Scheduler { entries: Vec::new(), slice: tsc.ticks_in_ns(SLICE_NS).max(1), current: None, floor: 0, runnable: 0 }
    }

    /// Adds a VM that is not runnable yet; its number is how many there were before.
    pub fn add(&mut self, weight: u32) -> usize {
        let weight = u64::from(weight).max(1);
        self.entries.push(Entry { weight, virtual_time: self.floor, runnable: false, ran: 0 });
        self.entries.len() - 1
    }

    /// VM `vm` can run.
    pub fn wake(&mut self, vm: usize) {
        let (floor, slice) = (self.floor, self.slice);
        if let Some(entry) = self.entries.get_mut(vm)
            && !entry.runnable
        {
            entry.runnable = true;
            self.runnable += 1;
            entry.virtual_time = entry.virtual_time.max(floor.saturating_sub(slice));
        }
    }

    /// VM `vm` waits, or is gone.
    pub fn block(&mut self, vm: usize) {
        if let Some(entry) = self.entries.get_mut(vm)
            && entry.runnable
        {
            entry.runnable = false;
            self.runnable -= 1;
        }
        if self.current.is_some_and(|c| c.vm == vm) {
            self.current = None;
        }
    }

    /// The VM that runs gives up the rest of its slice.
    pub fn give_up(&mut self) {
        self.current = None;
    }

    /// Whether VM `vm` can run.
    pub fn is_runnable(&self, vm: usize) -> bool {
        self.entries.get(vm).is_some_and(|e| e.runnable)
    }

    /// How many VMs can run.
    pub const fn runnable(&self) -> usize {
        self.runnable
    }

    /// Which VM runs from `now` on and when its slice ends; `None` where none can.
    pub fn pick(&mut self, now: Tsc) -> Option<(usize, Tsc)> {
        if self.runnable == 0 {
            return None;
        }
        // The first of those with the least virtual time, which is below `u64::MAX`. A plain loop: it is gone through at
        // each turn.
        let (mut vm, mut least) = (0, u64::MAX);
        for (index, entry) in self.entries.iter().enumerate() {
            if entry.runnable && entry.virtual_time < least {
                (vm, least) = (index, entry.virtual_time);
            }
        }
        if let Some(current) = self.current
            && now < current.until
            && self.entries[current.vm].virtual_time.saturating_sub(least) <= self.slice
        {
            return Some((current.vm, current.until));
        }
        self.floor = self.floor.max(least);
        let until = now + self.slice;
        self.current = Some(Current { vm, until });
        Some((vm, until))
    }

    /// VM `vm` has run for `ticks`.
    pub fn charge(&mut self, vm: usize, ticks: u64) {
        if let Some(entry) = self.entries.get_mut(vm) {
            entry.ran = entry.ran.saturating_add(ticks);
            // A division of 128 bits costs ten of these, and no turn is so long.
            let scaled =
                if entry.weight == WEIGHT_ONE { ticks } else { ticks.saturating_mul(WEIGHT_ONE) / entry.weight };
            entry.virtual_time = entry.virtual_time.saturating_add(scaled.max(1)).min(VIRTUAL_TIME_MAX);
        }
    }

    /// Processor time of VM `vm` in all. Unit: ticks.
    pub fn ran(&self, vm: usize) -> u64 {
        self.entries.get(vm).map_or(0, |e| e.ran)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLICE: u64 = 5_000;

    fn scheduler(weights: &[u32]) -> Scheduler {
        let mut s = Scheduler::new(Frequency::from_hz(1_000_000));
        for &weight in weights {
            let vm = s.add(weight);
            s.wake(vm);
        }
        s
    }

    /// Runs `rounds` slices, of which each VM uses all.
    fn shares(s: &mut Scheduler, rounds: usize) -> Vec<u64> {
        let mut now = Tsc(0);
        for _ in 0..rounds {
            let (vm, until) = s.pick(now).unwrap();
            s.charge(vm, until.since(now));
            now = until;
        }
        (0..s.entries.len()).map(|vm| s.ran(vm)).collect()
    }

    #[test]
    fn equal_weights_take_turns() {
        assert_eq!(shares(&mut scheduler(&[100, 100, 100]), 300), [100 * SLICE; 3]);
    }

    #[test]
    fn shares_follow_weights() {
        let got = shares(&mut scheduler(&[100, 300]), 400);
        assert!(got[0].abs_diff(100 * SLICE) <= SLICE && got[1].abs_diff(300 * SLICE) <= SLICE, "{got:?}");
    }

    #[test]
    fn one_that_sleeps_gets_the_processor_soon_but_no_arrears() {
        let mut s = scheduler(&[100, 100]);
        s.block(1);
        let mut now = Tsc(0);
        for _ in 0..50 {
            let (vm, until) = s.pick(now).unwrap();
            assert_eq!(vm, 0);
            s.charge(0, until.since(now));
            now = until;
        }
        s.wake(1);
        let mut first = Vec::new();
        for _ in 0..8 {
            let (vm, until) = s.pick(now).unwrap();
            s.charge(vm, until.since(now));
            now = until;
            first.push(vm);
        }
        assert_eq!(first[0], 1);
        assert!(first.iter().filter(|&&vm| vm == 1).count() <= 6, "{first:?}");
    }

    #[test]
    fn an_interruption_does_not_end_the_slice_and_giving_up_does() {
        let mut s = scheduler(&[100, 100]);
        let (vm, until) = s.pick(Tsc(0)).unwrap();
        s.charge(vm, 10);
        assert_eq!(s.pick(Tsc(10)), Some((vm, until)));
        s.give_up();
        assert_ne!(s.pick(Tsc(10)).unwrap().0, vm);
    }

    #[test]
    fn nobody_runs_when_all_wait() {
        let mut s = scheduler(&[100]);
        s.block(0);
        assert_eq!(s.pick(Tsc(0)), None);
        assert!(!s.is_runnable(0));
        assert_eq!(s.runnable(), 0);
    }

    #[test]
    fn one_whose_time_has_ended_runs_on() {
        let mut s = scheduler(&[1, 100]);
        s.charge(0, u64::MAX);
        s.charge(1, u64::MAX);
        assert_eq!(s.pick(Tsc(0)).map(|(vm, _)| vm), Some(0));
        s.block(0);
        assert_eq!(s.pick(Tsc(0)).map(|(vm, _)| vm), Some(1));
    }

    #[test]
    fn those_that_can_run_are_counted_once() {
        let mut s = scheduler(&[100, 100, 100]);
        for vm in [1, 1, 9] {
            s.wake(vm);
            assert_eq!(s.runnable(), 3);
        }
        for vm in [1, 1, 9] {
            s.block(vm);
            assert_eq!(s.runnable(), 2);
        }
    }
}
