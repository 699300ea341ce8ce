//! The machine's clock of date and time (Motorola MC146818A data sheet), read once at start.

use x86_64::instructions::port::Port;

const INDEX: u16 = 0x70;
const DATA: u16 = 0x71;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const UPDATE_IN_PROGRESS: u8 = 1 << 7;
const BINARY: u8 = 1 << 2;
const HOURS_24: u8 = 1 << 1;
const AFTERNOON: u8 = 1 << 7;
/// Seconds, minutes, hours, day of month, month, year.
const TIME: [u8; 6] = [0, 2, 4, 7, 8, 9];
/// An update takes 2 ms and a read of a port about 1 µs.
const PATIENCE: u32 = 100_000;

fn cmos(register: u8) -> u8 {
    // SAFETY: the CMOS's ports reach nothing else, and only this module uses them. Bit 7 of the index, which masks
    // NMIs, stays clear.
    unsafe {
        Port::<u8>::new(INDEX).write(register);
        Port::<u8>::new(DATA).read()
    }
}

fn snapshot() -> [u8; 6] {
    let _ = (0..PATIENCE).find(|_| cmos(STATUS_A) & UPDATE_IN_PROGRESS == 0);
    TIME.map(cmos)
}

/// Seconds since 1970-01-01 00:00 UTC, taking the clock for UTC and its two-digit year for one of this century.
pub fn unix_seconds() -> u64 {
    let mut time = snapshot();
    // An update between two registers' reads shows as a second snapshot that differs.
    for _ in 0..4 {
        let again = snapshot();
        if again == time {
            break;
        }
        time = again;
    }
    to_unix(time, cmos(STATUS_B))
}

fn to_unix(time: [u8; 6], status_b: u8) -> u64 {
    let binary = status_b & BINARY != 0;
    let number = |value: u8| u64::from(if binary { value } else { (value >> 4) * 10 + (value & 15) });
    let [second, minute, hour, day, month, year] = time;
    let hour = if status_b & HOURS_24 != 0 {
        number(hour)
    } else {
        let noon = if hour & AFTERNOON != 0 { 12 } else { 0 };
        number(hour & !AFTERNOON) % 12 + noon
    };
    let days = days_since_1970(2000 + number(year), number(month).clamp(1, 12), number(day).clamp(1, 31));
    ((days * 24 + hour) * 60 + number(minute)) * 60 + number(second)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar in or after 1970.
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    const BEFORE_MONTH: [u64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let leaps_before = |year: u64| (year - 1) / 4 - (year - 1) / 100 + (year - 1) / 400;
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let months = BEFORE_MONTH[usize::try_from(month - 1).unwrap_or(0)] + u64::from(leap && month > 2);
    (year - 1970) * 365 + leaps_before(year) - leaps_before(1970) + months + day - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn converts_what_the_registers_show() {
        // Seconds, minutes, hours, day, month, year.
        assert_eq!(to_unix([0x00, 0x00, 0x00, 0x01, 0x01, 0x00], HOURS_24), 946_684_800);
        assert_eq!(to_unix([0x59, 0x59, 0x23, 0x29, 0x02, 0x24], HOURS_24), 1_709_251_199);
        assert_eq!(to_unix([21, 24, 18, 23, 11, 26], HOURS_24 | BINARY), 1_795_458_261);
    }

    #[test]
    fn twelve_o_clock_is_0_before_noon_and_12_after() {
        let at = |hour| to_unix([0, 0, hour, 0x01, 0x01, 0x00], 0) - 946_684_800;
        assert_eq!([at(0x12), at(0x01), at(0x92), at(0x91)], [0, 3600, 12 * 3600, 23 * 3600]);
    }

    #[test]
    fn an_impossible_date_is_no_panic() {
        for byte in [0x00, 0xff] {
            for status in [0, BINARY, HOURS_24, BINARY | HOURS_24] {
                to_unix([byte; 6], status);
            }
        }
    }
}
