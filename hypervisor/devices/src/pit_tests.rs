use super::counter::Counter;
use super::*;
use proptest::prelude::*;

/// One TSC tick is one counter tick.
const TSC: Frequency = Frequency::from_hz(PIT_HZ);

/// Levels of the output of a counter for ticks 0 to `n` after the count was written, as a string of `_` and `-`.
fn wave(counter: &Counter, from: u64, n: u64) -> String {
    let mut counter = *counter;
    (from..from + n)
        .map(|tick| {
            counter.settle(tick);
            if counter.out(tick) { '-' } else { '_' }
        })
        .collect()
}

/// Counter values for the same ticks.
fn values(counter: &Counter, from: u64, n: u64) -> Vec<u16> {
    (from..from + n)
        .map(|tick| {
            let mut counter = *counter;
            counter.settle(tick);
            u16::from_le_bytes([counter.read(tick), counter.read(tick)])
        })
        .collect()
}

/// A counter in `mode`, with `count` written at tick 100.
fn counter(mode: u8, count: u16) -> Counter {
    let mut counter = Counter::new(true);
    counter.control(0x30 | mode << 1, 100);
    let [low, high] = count.to_le_bytes();
    counter.write(low, 100);
    counter.write(high, 100);
    counter
}

#[test]
fn mode_0_interrupt_on_terminal_count() {
    let counter = counter(0, 4);
    // Low until N + 1 pulses after the write.
    assert_eq!(wave(&counter, 100, 8), "_____---");
    assert_eq!(values(&counter, 101, 6), [4, 3, 2, 1, 0, 0xffff]);
}

#[test]
fn mode_0_gate_holds_the_count_and_the_first_byte_stops_it() {
    let mut held = counter(0, 4);
    held.set_gate(false, 103);
    assert_eq!(values(&held, 103, 3), [2, 2, 2]);
    held.set_gate(true, 110);
    assert_eq!(wave(&held, 110, 4), "__--");

    let mut rewritten = counter(0, 4);
    assert!(rewritten.out(105));
    rewritten.write(9, 106);
    assert!(!rewritten.out(106), "low at once");
    assert!(!rewritten.out(500), "and not counting");
    rewritten.write(0, 200);
    assert_eq!(rewritten.next_rising_edge(200), Some(210));
}

#[test]
fn mode_1_one_shot_starts_and_starts_again_with_the_gate() {
    let mut counter = counter(1, 3);
    assert_eq!(wave(&counter, 100, 5), "-----");
    counter.set_gate(false, 110);
    counter.set_gate(true, 111);
    assert_eq!(wave(&counter, 112, 5), "___--");
    counter.set_gate(false, 113);
    counter.set_gate(true, 113);
    assert_eq!(wave(&counter, 114, 5), "___--");
}

#[test]
fn mode_2_rate_generator() {
    let counter = counter(2, 4);
    assert_eq!(wave(&counter, 101, 12), "---_---_---_");
    assert_eq!(values(&counter, 101, 6), [4, 3, 2, 1, 4, 3]);
    assert_eq!(counter.next_rising_edge(100), Some(105));
    assert_eq!(counter.next_rising_edge(105), Some(109));
}

#[test]
fn mode_2_a_new_count_waits_for_the_end_of_the_cycle() {
    let mut counter = counter(2, 4);
    counter.write(6, 102);
    counter.write(0, 102);
    assert_eq!(wave(&counter, 101, 16), "---_-----_-----_");
    assert_eq!(counter.next_rising_edge(102), Some(105));
    assert_eq!(counter.next_rising_edge(105), Some(111));
}

#[test]
fn mode_2_gate_forces_the_output_high_and_restarts() {
    let mut counter = counter(2, 4);
    assert!(!counter.out(104));
    counter.set_gate(false, 104);
    assert!(counter.out(104));
    assert_eq!(counter.next_rising_edge(104), None);
    counter.set_gate(true, 120);
    assert_eq!(wave(&counter, 121, 8), "---_---_");
}

#[test]
fn mode_3_square_wave_even_and_odd() {
    assert_eq!(wave(&counter(3, 4), 101, 8), "--__--__");
    assert_eq!(values(&counter(3, 4), 101, 6), [4, 2, 4, 2, 4, 2]);
    assert_eq!(wave(&counter(3, 5), 101, 10), "---__---__");
    assert_eq!(values(&counter(3, 5), 101, 7), [4, 2, 0, 4, 2, 4, 2]);
}

#[test]
fn mode_3_a_new_count_waits_for_the_end_of_the_half_cycle() {
    let mut early = counter(3, 4);
    early.write(6, 101);
    early.write(0, 101);
    assert_eq!(wave(&early, 101, 11), "--___---___");
    assert_eq!(early.next_rising_edge(101), Some(106));
    let mut late = counter(3, 4);
    late.write(6, 103);
    late.write(0, 103);
    assert_eq!(wave(&late, 103, 8), "__---___");
}

#[test]
fn mode_4_software_strobe() {
    let counter = counter(4, 3);
    assert_eq!(wave(&counter, 100, 8), "----_---");
    assert_eq!(counter.next_rising_edge(100), Some(105));
    assert_eq!(counter.next_rising_edge(105), None);
}

#[test]
fn mode_5_hardware_strobe() {
    let mut counter = counter(5, 3);
    assert_eq!(counter.next_rising_edge(100), None);
    counter.set_gate(false, 150);
    counter.set_gate(true, 199);
    assert_eq!(wave(&counter, 200, 6), "---_--");
}

#[test]
fn a_count_of_0_is_the_largest() {
    assert_eq!(counter(0, 0).next_rising_edge(100), Some(101 + 0x1_0000));
    let mut bcd = Counter::new(true);
    bcd.control(0x31, 100);
    bcd.write(0, 100);
    bcd.write(0, 100);
    assert_eq!(bcd.next_rising_edge(100), Some(101 + 10_000));
    assert_eq!(values(&bcd, 102, 2), [0x9999, 0x9998]);
}

#[test]
fn bcd_counts_in_decimal_digits() {
    let mut bcd = Counter::new(true);
    bcd.control(0x35, 100);
    bcd.write(0x00, 100);
    bcd.write(0x12, 100);
    assert_eq!(values(&bcd, 101, 2), [0x1200, 0x1199]);
    assert_eq!(bcd.next_rising_edge(100), Some(101 + 1200));
}

#[test]
fn one_byte_access_leaves_the_other_byte_zero() {
    let mut low = Counter::new(true);
    low.control(0x14, 100);
    low.write(9, 100);
    assert_eq!(low.next_rising_edge(100), Some(110));
    let mut high = Counter::new(true);
    high.control(0x24, 100);
    high.write(2, 100);
    assert_eq!(high.next_rising_edge(100), Some(101 + 0x200));
    assert_eq!(high.read(101), 2);
}

fn pit() -> Pit {
    Pit::new(TSC, Tsc(0))
}

fn program(pit: &mut Pit, now: u64, control: u8, count: u16) {
    pit.write(Tsc(now), 3, control);
    for byte in count.to_le_bytes() {
        pit.write(Tsc(now), control >> 6, byte);
    }
}

#[test]
fn the_latch_command_freezes_a_count_until_both_bytes_are_read() {
    let mut pit = pit();
    program(&mut pit, 0, 0x34, 0x1000);
    pit.write(Tsc(1), 3, 0x00);
    pit.write(Tsc(7), 3, 0x00);
    assert_eq!([pit.read(Tsc(100), 0), pit.read(Tsc(200), 0)], 0x1000u16.to_le_bytes());
    assert_eq!([pit.read(Tsc(2), 0), pit.read(Tsc(2), 0)], 0x0fffu16.to_le_bytes());
}

#[test]
fn read_back_latches_status_before_count_of_the_counters_named() {
    let mut pit = pit();
    program(&mut pit, 0, 0x34, 100);
    program(&mut pit, 0, 0xb0, 50);
    // Counters 0 and 2, both. Counter 2's gate is low: its count stands.
    pit.write(Tsc(11), 3, 0xc0 | 0x02 | 0x08);
    assert_eq!(pit.read(Tsc(60), 0), 0xb4, "output high, both bytes, mode 2");
    assert_eq!([pit.read(Tsc(60), 0), pit.read(Tsc(60), 0)], [90, 0]);
    assert_eq!(pit.read(Tsc(60), 2), 0x30, "output low, mode 0");
    assert_eq!([pit.read(Tsc(60), 2), pit.read(Tsc(60), 2)], [50, 0]);
}

#[test]
fn null_count_is_set_until_the_count_is_loaded() {
    let mut pit = pit();
    let status = |pit: &mut Pit, now| {
        pit.write(Tsc(now), 3, 0xe2);
        pit.read(Tsc(now), 0)
    };
    pit.write(Tsc(0), 3, 0x34);
    assert_eq!(status(&mut pit, 0) & 0x40, 0x40);
    program(&mut pit, 10, 0x34, 100);
    assert_eq!(status(&mut pit, 10) & 0x40, 0x40);
    assert_eq!(status(&mut pit, 11) & 0x40, 0);
    for byte in 50u16.to_le_bytes() {
        pit.write(Tsc(20), 0, byte);
    }
    assert_eq!(status(&mut pit, 110) & 0x40, 0x40);
    assert_eq!(status(&mut pit, 111) & 0x40, 0);
}

#[test]
fn missed_edges_are_one() {
    let mut pit = pit();
    program(&mut pit, 0, 0x34, 100);
    assert_eq!(pit.next_deadline(), Some(Tsc(101)));
    pit.advance(Tsc(100));
    assert!(!pit.take_edge());
    pit.advance(Tsc(101));
    assert!(pit.take_edge());
    assert!(!pit.take_edge());
    assert_eq!(pit.next_deadline(), Some(Tsc(201)));
    pit.advance(Tsc(1050));
    assert!(pit.take_edge());
    assert_eq!(pit.next_deadline(), Some(Tsc(1101)), "in step with the first");
}

#[test]
fn a_one_shot_has_no_deadline_afterwards() {
    let mut pit = pit();
    assert_eq!(pit.next_deadline(), None);
    program(&mut pit, 0, 0x38, 100);
    assert_eq!(pit.next_deadline(), Some(Tsc(102)));
    pit.advance(Tsc(102));
    assert!(pit.take_edge());
    assert_eq!(pit.next_deadline(), None);
}

#[test]
fn taking_the_output_up_by_a_new_mode_is_an_edge() {
    let mut pit = pit();
    pit.write(Tsc(0), 3, 0x30);
    assert!(!pit.take_edge());
    pit.write(Tsc(0), 3, 0x34);
    assert!(pit.take_edge());
}

/// How Linux measures the TSC: gate up, mode 0, wait for bit 5.
#[test]
fn port_61_gates_counter_2_and_shows_its_output() {
    let mut pit = pit();
    pit.write_control(Tsc(0), 0x01);
    program(&mut pit, 0, 0xb0, 1000);
    assert_eq!(pit.read_control(Tsc(1000)) & 0x21, 0x01);
    assert_eq!(pit.read_control(Tsc(1001)) & 0x21, 0x21);
    let mut pit = self::pit();
    program(&mut pit, 0, 0xb0, 1000);
    assert_eq!(pit.read_control(Tsc(5000)) & 0x20, 0, "gate low");
    pit.write_control(Tsc(5000), 0xff);
    assert_eq!(pit.read_control(Tsc(5999)) & 0x2f, 0x0f);
    assert_eq!(pit.read_control(Tsc(6001)) & 0x2f, 0x2f);
}

#[test]
fn the_refresh_bit_toggles_every_15_microseconds() {
    let mut pit = pit();
    let bits: Vec<bool> = (0..180).map(|now| pit.read_control(Tsc(now)) & 0x10 != 0).collect();
    let changes = bits.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert_eq!(changes, 10);
}

/// What a guest may do to a counter.
#[derive(Clone, Debug)]
enum Step {
    Control(u8),
    Write(u8),
    Gate(bool),
    Wait(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => any::<u8>().prop_map(Step::Control),
        6 => prop_oneof![0u8..12, any::<u8>()].prop_map(Step::Write),
        1 => any::<bool>().prop_map(Step::Gate),
        4 => (0u64..40).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn the_next_edge_is_where_the_output_first_rises(steps in prop::collection::vec(any_step(), 1..40)) {
        let mut counter = Counter::new(true);
        let mut tick = TICK_AT_POWER_ON;
        counter.control(0x16, tick);
        for step in steps {
            counter.settle(tick);
            match step {
                // Low byte only, so that counts are short.
                Step::Control(value) => counter.control(value & 0x0f | 0x10, tick),
                Step::Write(value) => counter.write(value, tick),
                Step::Gate(gate) => counter.set_gate(gate, tick),
                Step::Wait(ticks) => tick += ticks,
            }
            counter.settle(tick);
            let mut watched = counter;
            let mut level = watched.out(tick);
            let seen = (tick + 1..tick + 600).find(|&at| {
                watched.settle(at);
                let before = core::mem::replace(&mut level, watched.out(at));
                level && !before
            });
            let said = counter.next_rising_edge(tick).filter(|&at| at < tick + 600);
            prop_assert_eq!(said, seen, "{:?} at {}", counter, tick);
        }
    }

    #[test]
    fn no_access_panics(accesses in prop::collection::vec((any::<u64>(), 0u8..6, any::<u8>(), any::<bool>()), 0..100),
                        hz in prop_oneof![any::<u64>(), Just(1), Just(1_000_000_000)]) {
        let mut pit = Pit::new(Frequency::from_hz(hz), Tsc(0));
        let mut now = Tsc(0);
        for (wait, offset, value, write) in accesses {
            now = now + (wait >> (wait & 63));
            match (offset, write) {
                (0..=3, true) => pit.write(now, offset, value),
                (0..=3, false) => {
                    pit.read(now, offset);
                }
                (_, true) => pit.write_control(now, value),
                (_, false) => {
                    pit.read_control(now);
                }
            }
            pit.advance(now);
            pit.out0(now);
            if let Some(deadline) = pit.next_deadline() {
                prop_assert!(deadline > now || now.0 > u64::MAX / 2);
            }
        }
    }
}
