use super::*;
use alloc::vec::Vec;
use proptest::prelude::*;

/// One tick of the counter is 16 of the TSC.
const HZ: u64 = 1_000_000_000;
const TICK: u64 = 16;

struct Rig {
    hpet: Hpet,
    now: u64,
}

impl Rig {
    fn new() -> Rig {
        Rig { hpet: Hpet::new(Frequency::from_hz(HZ), Tsc(0)), now: 0 }
    }

    fn running() -> Rig {
        let mut rig = Rig::new();
        rig.write(0x10, ENABLE);
        rig
    }

    fn read(&mut self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.hpet.read(Tsc(self.now), offset, &mut data);
        u64::from_le_bytes(data)
    }

    fn write(&mut self, offset: u64, value: u64) {
        self.hpet.write(Tsc(self.now), offset, &value.to_le_bytes());
    }

    fn write32(&mut self, offset: u64, value: u32) {
        self.hpet.write(Tsc(self.now), offset, &value.to_le_bytes());
    }

    /// Lets time pass until the counter has gone `ticks` further; the timers with an edge.
    fn pass(&mut self, ticks: u64) -> u8 {
        self.now += ticks * TICK;
        self.hpet.advance(Tsc(self.now));
        self.hpet.take_edges()
    }

    fn deadline(&self) -> Option<u64> {
        self.hpet.next_deadline().map(|tsc| tsc.0 / TICK)
    }
}

#[test]
fn the_capabilities_tell_of_three_timers_of_64_bits() {
    let mut rig = Rig::new();
    assert_eq!(rig.read(0), 16_000_000 << 32 | 0x8086_a201);
    rig.write(0, u64::MAX);
    assert_eq!(rig.read(0), 16_000_000 << 32 | 0x8086_a201);
    assert_eq!(rig.read(0x100), 0x00f0_0000_0000_0030);
    assert_eq!(rig.read(0x160), 0, "no fourth");
    assert_eq!(PERIOD_FS * HPET_HZ, 1_000_000_000_000_000);
}

#[test]
fn the_counter_runs_while_enabled_and_can_be_set_while_not() {
    let mut rig = Rig::new();
    rig.pass(1000);
    assert_eq!(rig.read(0xf0), 0);
    rig.write(0x10, ENABLE);
    rig.pass(1000);
    assert_eq!(rig.read(0xf0), 1000);
    rig.write(0xf0, 5);
    assert_eq!(rig.read(0xf0), 1000, "not while it runs");
    rig.write(0x10, 0);
    rig.pass(1000);
    assert_eq!(rig.read(0xf0), 1000);
    rig.write32(0xf4, 7);
    assert_eq!(rig.read(0xf0), 7 << 32 | 1000, "by halves, too");
    rig.write(0x10, ENABLE);
    rig.pass(3);
    assert_eq!(rig.read(0xf0), 7 << 32 | 1003);
}

#[test]
fn one_shot_fires_once_at_the_comparator() {
    let mut rig = Rig::running();
    rig.pass(100);
    rig.write(0x100, INTERRUPT);
    rig.write(0x108, 1100);
    assert_eq!(rig.deadline(), Some(1100));
    assert_eq!(rig.pass(999), 0);
    assert_eq!(rig.pass(1), 0b001);
    assert_eq!(rig.deadline(), None);
    assert_eq!(rig.pass(1 << 40), 0);
    rig.write(0x108, 50);
    assert_eq!(rig.deadline(), None, "behind the counter is a whole round away");
}

#[test]
fn a_32_bit_timer_wraps_with_the_low_half_of_the_counter() {
    let mut rig = Rig::new();
    rig.write(0xf0, 0x1_ffff_ff00);
    rig.write(0x10, ENABLE);
    rig.write(0x120, INTERRUPT | BITS_32);
    rig.write(0x128, 0x10);
    assert_eq!(rig.pass(0x10f), 0);
    assert_eq!(rig.pass(1), 0b010);
    assert_eq!(rig.pass((1 << 32) - 1), 0);
    assert_eq!(rig.pass(1), 0b010);
    // Wraps that were missed are one interrupt, and the next is ahead.
    assert_eq!(rig.pass(5 << 32), 0b010);
    assert_eq!(rig.pass(0), 0);
    assert_eq!(rig.deadline(), Some(rig.now / TICK + (1 << 32)));
}

#[test]
fn periodic_as_linux_sets_it_up() {
    let mut rig = Rig::running();
    rig.pass(500);
    rig.write32(0x100, 0x14c);
    rig.write32(0x108, 500 + 10_000);
    assert_eq!(rig.read(0x100) & SET_VALUE, 0, "the bit clears itself");
    rig.write32(0x108, 10_000);
    let fired: Vec<u64> = (0..3)
        .map(|_| {
            let deadline = rig.deadline().unwrap();
            let now = rig.now / TICK;
            assert_eq!(rig.pass(deadline - now - 1), 0);
            assert_eq!(rig.pass(1), 1);
            deadline
        })
        .collect();
    assert_eq!(fired, [10_500, 20_500, 30_500]);
    assert_eq!(rig.read(0x108), 40_500);
    assert_eq!(rig.pass(35_000), 1, "three that were missed are one");
    assert_eq!(rig.deadline(), Some(70_500));
}

#[test]
fn no_period_is_too_short_to_live_with() {
    let mut rig = Rig::running();
    rig.write(0x100, INTERRUPT | PERIODIC | SET_VALUE);
    rig.write(0x108, 1);
    for _ in 0..10 {
        let before = rig.now / TICK;
        let deadline = rig.deadline().unwrap();
        rig.pass(deadline - before);
        assert!(rig.deadline().unwrap() - deadline >= PERIOD_MIN);
    }
}

#[test]
fn a_level_stands_until_a_one_is_written_to_the_status() {
    let mut rig = Rig::running();
    rig.write(0x140, INTERRUPT | LEVEL | 21 << 9);
    rig.write(0x148, 100);
    assert_eq!(rig.pass(100), 0, "no edge");
    assert!(rig.hpet.level(2));
    assert_eq!(rig.read(0x20), 0b100);
    rig.write(0x20, 0b011);
    assert!(rig.hpet.level(2));
    rig.write32(0x20, 0b100);
    assert!(!rig.hpet.level(2));
    assert_eq!(rig.hpet.route(2), Some(Route::Pin(21)));
}

#[test]
fn routes() {
    let mut rig = Rig::new();
    assert_eq!([0, 1, 2].map(|n| rig.hpet.route(n)), [None; 3]);
    rig.write(0x100, 23 << 9);
    rig.write(0x120, 2 << 9);
    assert_eq!([0, 1].map(|n| rig.hpet.route(n)), [Some(Route::Pin(23)), None], "pin 2 is not offered");
    rig.write(0x10, LEGACY);
    assert!(rig.hpet.replaces_legacy());
    assert_eq!([0, 1, 2].map(|n| rig.hpet.route(n)), [Some(Route::Pit), Some(Route::Rtc), None]);
}

proptest! {
    #[test]
    fn no_access_panics_and_deadlines_lie_ahead(hz in prop_oneof![Just(HZ), 1u64..100, any::<u64>()],
        accesses in prop::collection::vec((
            prop_oneof![2 => prop::sample::select(vec![0x10u64, 0x20, 0xf0, 0x100, 0x108, 0x120, 0x128, 0x148]),
                        1 => any::<u16>().prop_map(u64::from), 1 => any::<u64>()],
            prop_oneof![any::<u64>(), 0u64..0x200], 0usize..=8, any::<bool>(),
            prop_oneof![0u64..100_000, any::<u64>()]), 0..100)) {
        let mut hpet = Hpet::new(Frequency::from_hz(hz), Tsc(0));
        let mut now = Tsc(0);
        for (offset, value, width, store, later) in accesses {
            now = now + later;
            let mut data = value.to_le_bytes();
            if store {
                hpet.write(now, offset, &data[..width]);
            } else {
                hpet.read(now, offset, &mut data[..width]);
            }
            hpet.advance(now);
            hpet.take_edges();
            if let Some(deadline) = hpet.next_deadline() {
                prop_assert!(deadline > now || now.0 > u64::MAX / 2, "{:?} {:?}", deadline, now);
            }
        }
    }
}
