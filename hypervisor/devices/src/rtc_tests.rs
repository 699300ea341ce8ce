use super::*;
use proptest::prelude::*;

/// One TSC tick is one tick of the time base.
const TSC: Frequency = Frequency::from_hz(BASE_HZ);
/// 2024-02-29 23:59:58, a Thursday.
const LEAP_DAY: u64 = 1_709_251_198;
const SECOND: u64 = BASE_HZ;

fn rtc_at(seconds: u64) -> Rtc {
    Rtc::new(TSC, Tsc(0), seconds, 256 << 20, 0)
}

fn rtc() -> Rtc {
    rtc_at(LEAP_DAY)
}

fn read(rtc: &mut Rtc, now: u64, index: u8) -> u8 {
    rtc.write_index(index);
    rtc.read_data(Tsc(now))
}

fn write(rtc: &mut Rtc, now: u64, index: u8, value: u8) {
    rtc.write_index(index);
    rtc.write_data(Tsc(now), value);
}

/// Century, year, month, day, weekday, hour, minute, second.
fn time(rtc: &mut Rtc, now: u64) -> [u8; 8] {
    [CENTURY, YEAR, MONTH, DAY_OF_MONTH, WEEKDAY, HOURS, MINUTES, SECONDS].map(|index| read(rtc, now, index))
}

#[test]
fn shows_the_time_in_24_hour_bcd_and_counts() {
    let mut rtc = rtc();
    assert_eq!(time(&mut rtc, 0), [0x20, 0x24, 0x02, 0x29, 5, 0x23, 0x59, 0x58]);
    assert_eq!(time(&mut rtc, SECOND - 1), [0x20, 0x24, 0x02, 0x29, 5, 0x23, 0x59, 0x58]);
    assert_eq!(time(&mut rtc, SECOND), [0x20, 0x24, 0x02, 0x29, 5, 0x23, 0x59, 0x59]);
    assert_eq!(time(&mut rtc, 2 * SECOND), [0x20, 0x24, 0x03, 0x01, 6, 0x00, 0x00, 0x00]);
}

#[test]
fn shows_binary_and_12_hours_where_told() {
    let mut rtc = rtc();
    write(&mut rtc, 0, REGISTER_B, B_BINARY);
    assert_eq!(time(&mut rtc, 0), [20, 24, 2, 29, 5, 11 | PM, 59, 58]);
    assert_eq!(read(&mut rtc, 2 * SECOND, HOURS), 12, "midnight is 12 AM");
    assert_eq!(read(&mut rtc, (2 + 12 * 3600) * SECOND, HOURS), 12 | PM, "noon is 12 PM");
    write(&mut rtc, 3 * SECOND, REGISTER_B, 0);
    assert_eq!(read(&mut rtc, (2 + 11 * 3600) * SECOND, HOURS), 0x11);
}

#[test]
fn the_index_port_ignores_the_nmi_mask() {
    let mut rtc = rtc();
    rtc.write_index(0x80 | REGISTER_D);
    assert_eq!(rtc.read_data(Tsc(0)), D_VALID);
}

#[test]
fn set_holds_the_time_until_it_is_cleared() {
    let mut rtc = rtc();
    write(&mut rtc, 10, REGISTER_B, B_SET | B_24_HOURS);
    assert_eq!(read(&mut rtc, 5 * SECOND, SECONDS), 0x58);
    for (index, value) in [(CENTURY, 0x19), (YEAR, 0x99), (MONTH, 0x12), (DAY_OF_MONTH, 0x31), (WEEKDAY, 3)] {
        write(&mut rtc, 5 * SECOND, index, value);
    }
    for (index, value) in [(HOURS, 0x23), (MINUTES, 0x59), (SECONDS, 0x59)] {
        write(&mut rtc, 5 * SECOND, index, value);
    }
    let cleared = 5 * SECOND + 1000;
    write(&mut rtc, cleared, REGISTER_B, B_24_HOURS);
    assert_eq!(time(&mut rtc, cleared + SECOND - 1), [0x19, 0x99, 0x12, 0x31, 3, 0x23, 0x59, 0x59]);
    assert_eq!(time(&mut rtc, cleared + SECOND), [0x20, 0x00, 0x01, 0x01, 4, 0, 0, 0]);
}

#[test]
fn writing_one_register_of_the_running_time_keeps_the_others() {
    let mut rtc = rtc();
    write(&mut rtc, 100, MINUTES, 0x30);
    assert_eq!(time(&mut rtc, 100), [0x20, 0x24, 0x02, 0x29, 5, 0x23, 0x30, 0x58]);
    assert_eq!(read(&mut rtc, SECOND, SECONDS), 0x59, "the second goes on as it was");
    write(&mut rtc, SECOND, WEEKDAY, 1);
    assert_eq!(time(&mut rtc, SECOND), [0x20, 0x24, 0x02, 0x29, 1, 0x23, 0x30, 0x59]);
}

#[test]
fn update_in_progress_shows_just_before_each_second() {
    let mut rtc = rtc();
    assert_eq!(read(&mut rtc, 0, REGISTER_A), 0x26);
    assert_eq!(read(&mut rtc, SECOND - UPDATE_TICKS - 1, REGISTER_A), 0x26);
    assert_eq!(read(&mut rtc, SECOND - UPDATE_TICKS, REGISTER_A), 0xa6);
    assert_eq!(read(&mut rtc, SECOND - 1, REGISTER_A), 0xa6);
    assert_eq!(read(&mut rtc, SECOND, REGISTER_A), 0x26);
    write(&mut rtc, SECOND, REGISTER_B, B_SET);
    assert_eq!(read(&mut rtc, 2 * SECOND - 1, REGISTER_A), 0x26);
}

#[test]
fn update_ended_interrupts_every_second_and_reading_c_clears_it() {
    let mut rtc = rtc();
    assert_eq!(rtc.next_deadline(), None);
    write(&mut rtc, 100, REGISTER_B, B_UPDATE_ENDED | B_24_HOURS);
    assert_eq!(rtc.next_deadline(), Some(Tsc(SECOND)));
    rtc.advance(Tsc(SECOND - 1));
    assert!(!rtc.irq());
    rtc.advance(Tsc(SECOND));
    assert!(rtc.irq());
    assert_eq!(rtc.next_deadline(), None);
    let flags = read(&mut rtc, SECOND, REGISTER_C);
    assert_eq!(flags & (C_INTERRUPT | B_UPDATE_ENDED | B_ALARM), C_INTERRUPT | B_UPDATE_ENDED);
    assert!(!rtc.irq());
    assert_eq!(read(&mut rtc, SECOND, REGISTER_C), 0);
    assert_eq!(rtc.next_deadline(), Some(Tsc(2 * SECOND)));
    // SET takes the enable away.
    write(&mut rtc, SECOND, REGISTER_B, B_SET | B_UPDATE_ENDED);
    assert_eq!(read(&mut rtc, SECOND, REGISTER_B), B_SET);
}

#[test]
fn flags_rise_without_their_enable_but_do_not_interrupt() {
    let mut rtc = rtc();
    rtc.advance(Tsc(SECOND));
    assert!(!rtc.irq());
    assert_eq!(read(&mut rtc, SECOND, REGISTER_C), B_PERIODIC | B_UPDATE_ENDED);
}

#[test]
fn periodic_rates() {
    for (rate, ticks) in [(1, 128), (2, 256), (3, 4), (6, 32), (15, 16_384)] {
        let mut rtc = rtc();
        write(&mut rtc, 0, REGISTER_A, 0x20 | rate);
        write(&mut rtc, 0, REGISTER_B, B_PERIODIC);
        assert_eq!(rtc.next_deadline(), Some(Tsc(ticks)), "rate {rate}");
        rtc.advance(Tsc(3 * ticks + 1));
        assert!(rtc.irq());
        read(&mut rtc, 3 * ticks + 1, REGISTER_C);
        assert_eq!(rtc.next_deadline(), Some(Tsc(4 * ticks)), "rate {rate}");
    }
    let mut rtc = rtc();
    write(&mut rtc, 0, REGISTER_A, 0x20);
    write(&mut rtc, 0, REGISTER_B, B_PERIODIC);
    assert_eq!(rtc.next_deadline(), None, "rate 0 is off");
}

#[test]
fn the_alarm_matches_the_time_with_wildcards() {
    let alarm = |hours, minutes, seconds| {
        let mut rtc = rtc();
        for (index, value) in [(HOURS_ALARM, hours), (MINUTES_ALARM, minutes), (SECONDS_ALARM, seconds)] {
            write(&mut rtc, 0, index, value);
        }
        write(&mut rtc, 0, REGISTER_B, B_ALARM | B_24_HOURS);
        rtc.next_deadline().map(|at| at.0 / SECOND)
    };
    // It is 23:59:58.
    assert_eq!(alarm(0x23, 0x59, 0x59), Some(1));
    assert_eq!(alarm(0x00, 0x00, 0x05), Some(7));
    assert_eq!(alarm(0x23, 0x59, 0x58), Some(86_400));
    assert_eq!(alarm(ANY, ANY, ANY), Some(1));
    assert_eq!(alarm(ANY, ANY, 0x10), Some(12));
    assert_eq!(alarm(ANY, 0x05, 0xff), Some(2 + 5 * 60));
    assert_eq!(alarm(0x24, 0x00, 0x00), None);
    assert_eq!(alarm(ANY, ANY, 0x60), None);
}

#[test]
fn an_alarm_that_passed_unseen_is_told() {
    let mut rtc = rtc();
    for index in [HOURS_ALARM, MINUTES_ALARM, SECONDS_ALARM] {
        write(&mut rtc, 0, index, 0x00);
    }
    write(&mut rtc, 0, REGISTER_B, B_ALARM | B_24_HOURS);
    rtc.advance(Tsc(1000 * SECOND));
    assert!(rtc.irq());
    assert_eq!(read(&mut rtc, 1000 * SECOND, REGISTER_C) & B_ALARM, B_ALARM);
    assert_eq!(rtc.next_deadline(), Some(Tsc((2 + 86_400) * SECOND)));
}

#[test]
fn cmos_tells_the_memory_sizes() {
    let mut rtc = Rtc::new(TSC, Tsc(0), 0, 0xc000_0000, 1 << 32);
    let mut le16 = |index| u16::from_le_bytes([read(&mut rtc, 0, index), read(&mut rtc, 0, index + 1)]);
    assert_eq!(le16(0x15), 640);
    assert_eq!((le16(0x17), le16(0x30)), (0xffff, 0xffff));
    assert_eq!(le16(0x34), 0xbf00);
    assert_eq!(le16(0x5b), 0x0000);
    assert_eq!(read(&mut rtc, 0, 0x5d), 1);
    let sum: u16 = (0x10..=0x2d).map(|index| u16::from(read(&mut rtc, 0, index))).sum();
    assert_eq!([read(&mut rtc, 0, 0x2e), read(&mut rtc, 0, 0x2f)], sum.to_be_bytes());
    let mut small = Rtc::new(TSC, Tsc(0), 0, 8 << 20, 0);
    assert_eq!([read(&mut small, 0, 0x30), read(&mut small, 0, 0x31)], (7 * 1024u16).to_le_bytes());
    assert_eq!([read(&mut small, 0, 0x34), read(&mut small, 0, 0x35)], [0, 0]);
}

#[test]
fn other_cmos_bytes_are_memory() {
    let mut rtc = rtc();
    write(&mut rtc, 0, 0x0f, 0x0a);
    write(&mut rtc, 0, 0x7f, 0x55);
    assert_eq!(read(&mut rtc, 0, 0x0f), 0x0a);
    assert_eq!(read(&mut rtc, 0, 0x7f), 0x55);
}

proptest! {
    #[test]
    fn the_next_alarm_is_the_first_second_that_matches(
        seconds in 0u64..200_000, hour in prop_oneof![0u8..26, Just(ANY)], minute in prop_oneof![0u8..62, Just(ANY)],
        second in prop_oneof![0u8..62, Just(ANY)]
    ) {
        let mut rtc = rtc_at(seconds);
        write(&mut rtc, 0, REGISTER_B, B_BINARY | B_24_HOURS);
        for (index, value) in [(HOURS_ALARM, hour), (MINUTES_ALARM, minute), (SECONDS_ALARM, second)] {
            write(&mut rtc, 0, index, value);
        }
        let matches = |wanted: u8, value: u64| wanted == ANY || u64::from(wanted) == value;
        let expected = (seconds + 1..=seconds + DAY).find(|at| {
            matches(hour, at / 3600 % 24) && matches(minute, at / 60 % 60) && matches(second, at % 60)
        });
        prop_assert_eq!(rtc.next_alarm(seconds), expected);
    }

    #[test]
    fn no_access_panics(accesses in prop::collection::vec((any::<u64>(), any::<u8>(), any::<u8>(), any::<bool>()),
                                                          0..100),
                        hz in prop_oneof![any::<u64>(), Just(1), Just(1_000_000_000)], start in any::<u64>()) {
        let mut rtc = Rtc::new(Frequency::from_hz(hz), Tsc(0), start, u64::MAX, u64::MAX);
        let mut now = Tsc(0);
        for (wait, index, value, is_write) in accesses {
            now = now + (wait >> (wait & 63));
            let index = if index & 0x80 == 0 { index & 0x0f } else { index };
            rtc.write_index(index);
            if is_write {
                rtc.write_data(now, value);
            } else {
                rtc.read_data(now);
            }
            rtc.advance(now);
            rtc.irq();
            if let Some(deadline) = rtc.next_deadline() {
                prop_assert!(deadline > now || now.0 > u64::MAX / 2);
            }
        }
    }
}
