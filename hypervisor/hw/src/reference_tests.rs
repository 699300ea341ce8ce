use super::*;

const PIT: Rate = Rate { steps: 13_125_000, seconds: 11 };
const PM_TIMER: Rate = Rate { steps: 39_375_000, seconds: 11 };
const HPET: Rate = Rate { steps: 1_000_000_000_000_000, seconds: 69_841_279 };
const TSC_HZ: u64 = 2_995_200_000;
/// A read of a port or a register. Unit: ns.
const ACCESS: u64 = 900;

/// A clock that runs with the accesses to it.
struct Simulated {
    rate: Rate,
    mask: u32,
    tsc_hz: u64,
    /// Unit: ns.
    now: u64,
    /// Its value at time 0.
    start: u32,
    reads: u64,
    /// How it really counts, by its time and the number of reads so far. Unit: steps.
    counts: fn(&Simulated) -> u64,
    /// How long the processor does something else at a read, by the read's number. Unit: ns.
    pause: fn(u64) -> u64,
}

impl Simulated {
    fn new(rate: Rate, mask: u32) -> Simulated {
        Simulated { rate, mask, tsc_hz: TSC_HZ, now: 0, start: 0, reads: 0, counts: in_time, pause: |_| 0 }
    }
}

fn in_time(clock: &Simulated) -> u64 {
    let steps = u128::from(clock.now) * u128::from(clock.rate.steps) / u128::from(clock.rate.seconds);
    u64::try_from(steps / 1_000_000_000).unwrap()
}

impl Counter for Simulated {
    fn rate(&self) -> Rate {
        self.rate
    }

    fn mask(&self) -> u32 {
        self.mask
    }

    fn read(&mut self) -> u32 {
        self.reads += 1;
        self.now += (self.pause)(self.reads) + ACCESS / 2;
        let count = (self.counts)(self) + u64::from(self.start);
        self.now += ACCESS - ACCESS / 2;
        // Bits that mean nothing are anything.
        u32::try_from(count & u64::from(self.mask)).unwrap() | (!self.mask & 0xa5a5_a5a5)
    }

    fn tsc(&mut self) -> Tsc {
        self.now += 8;
        Tsc(u64::try_from(u128::from(self.now) * u128::from(self.tsc_hz) / 1_000_000_000).unwrap())
    }
}

/// `hz` is right to 20 in a million.
fn right(hz: u64, expected: u64) -> bool {
    hz.abs_diff(expected) <= expected / 50_000
}

#[test]
fn every_clock_gives_the_same_rate_wherever_it_starts() {
    for (rate, mask) in [(PIT, 0xffff), (PM_TIMER, 0xff_ffff), (PM_TIMER, u32::MAX), (HPET, u32::MAX)] {
        // Those near the end start again at 0 in the middle of the measurement.
        for start in [0, mask, mask - 20_000, mask / 2, mask - mask / 4] {
            let hz = measure(&mut Simulated { start, ..Simulated::new(rate, mask) });
            assert!(hz.is_ok_and(|hz| right(hz, TSC_HZ)), "{rate:?} from {start:#x}: {hz:?}");
        }
    }
}

#[test]
fn counters_start_again_at_0() {
    assert_eq!(steps(0xff_fffe, 1, 0xff_ffff), 3);
    assert_eq!(steps(0xfff_fffe, 0x100_0001, 0xff_ffff), 3, "bits above the 24 do not count");
    assert_eq!(steps(u32::MAX, 0, u32::MAX), 1);
    assert_eq!(steps(7, 7, 0xffff), 0);
}

#[test]
fn slow_and_fast_processors_are_measured_and_impossible_ones_refused() {
    for tsc_hz in [1_100_000, 100_000_000, 9_900_000_000] {
        let hz = measure(&mut Simulated { tsc_hz, ..Simulated::new(HPET, u32::MAX) });
        assert!(hz.is_ok_and(|hz| right(hz, tsc_hz)), "{tsc_hz}: {hz:?}");
    }
    let slow = measure(&mut Simulated { tsc_hz: 900_000, ..Simulated::new(PIT, 0xffff) });
    assert!(matches!(slow, Err(Failure::Implausible(900_000..910_000))), "{slow:?}");
    let fast = measure(&mut Simulated { tsc_hz: 11_000_000_000, ..Simulated::new(PIT, 0xffff) });
    assert!(matches!(fast, Err(Failure::Implausible(10_900_000_000..11_100_000_000))), "{fast:?}");
}

#[test]
fn a_counter_that_stands_still_is_known_well_below_a_second() {
    let mut dead = Simulated { counts: |_| 0, ..Simulated::new(PIT, 0xffff) };
    assert_eq!(measure(&mut dead), Err(Failure::Dead));
    assert!(dead.now < 100_000_000, "{} ns", dead.now);
    // The gate closes in the middle.
    let mut dying = Simulated { counts: |clock| in_time(clock).min(60_000), ..Simulated::new(PIT, 0xffff) };
    assert_eq!(measure(&mut dying), Err(Failure::Dead));
    assert!(dying.now < 200_000_000, "{} ns", dying.now);
}

#[test]
fn a_counter_that_crawls_is_given_up() {
    let mut slow = Simulated { counts: |clock| in_time(clock) / 1000, ..Simulated::new(PIT, 0xffff) };
    assert_eq!(measure(&mut slow), Err(Failure::Slow));
    assert!(slow.now < 1_000_000_000, "{} ns", slow.now);
}

#[test]
fn spans_that_differ_are_measured_again_and_refused_in_the_end() {
    // 60 ms, of which 16 bits miss a turn, in one span of the three.
    let pause = |read: u64| if read % 90_011 == 20_000 { 60_000_000 } else { 0 };
    assert_eq!(measure(&mut Simulated { pause, ..Simulated::new(PIT, 0xffff) }), Err(Failure::Unsteady));
    // Wider counters miss nothing.
    let hz = measure(&mut Simulated { pause, ..Simulated::new(PM_TIMER, 0xff_ffff) });
    assert!(hz.is_ok_and(|hz| right(hz, TSC_HZ)), "{hz:?}");
    // Once is forgiven.
    let pause = |read| if read == 20_000 { 60_000_000 } else { 0 };
    let mut once = Simulated { pause, ..Simulated::new(PIT, 0xffff) };
    let hz = measure(&mut once);
    assert!(hz.is_ok_and(|hz| right(hz, TSC_HZ)), "{hz:?}");
    assert!(once.reads > 200_000, "it was measured twice: {} reads", once.reads);
}

#[test]
fn leaf_15_counts_where_nothing_of_it_is_0() {
    assert_eq!(of_leaf_15(2, 250, 24_000_000), Ok(3_000_000_000));
    for (eax, ebx, ecx) in [(0, 250, 24_000_000), (2, 0, 24_000_000), (2, 250, 0)] {
        assert_eq!(of_leaf_15(eax, ebx, ecx), Err(Failure::Untold));
    }
    assert_eq!(of_leaf_15(1, u32::MAX, u32::MAX), Err(Failure::Implausible(u64::from(u32::MAX) * u64::from(u32::MAX))));
    assert_eq!(of_leaf_15(u32::MAX, 1, 1), Err(Failure::Implausible(0)));
}
