//! The calendar: seconds since 1970 to date and time, and back.
//!
//! Owns arithmetic only. Proleptic Gregorian, UTC, no leap seconds.

/// A date and a time of day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DateTime {
    pub(super) year: u64,
    /// 1 to 12.
    pub(super) month: u8,
    /// 1 to 31.
    pub(super) day: u8,
    pub(super) hour: u8,
    pub(super) minute: u8,
    pub(super) second: u8,
    /// 1 (Sunday) to 7.
    pub(super) weekday: u8,
}

/// Unit: seconds.
pub(super) const DAY: u64 = 86_400;
/// Days of 400 years: the calendar repeats.
const ERA_DAYS: u64 = 146_097;
/// Days from 0000-03-01 to 1970-01-01.
const EPOCH: u64 = 719_468;

/// Low eight bits; for values that are known to be small.
const fn small(value: u64) -> u8 {
    (value & 0xff) as u8
}

impl DateTime {
    /// The date and time `seconds` after 1970-01-01 00:00.
    pub(super) const fn from_unix(seconds: u64) -> DateTime {
        let days = seconds / DAY;
        let of_day = seconds % DAY;
        // Years are reckoned from March, so that the leap day is the last.
        let since_march_0 = days + EPOCH;
        let era = since_march_0 / ERA_DAYS;
        let of_era = since_march_0 % ERA_DAYS;
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / (ERA_DAYS - 1)) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        // Months from March have 31 and 30 days in a pattern of 153 days for five.
        let month_from_march = (5 * of_year + 2) / 153;
        let day = of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = era * 400 + year_of_era + (month <= 2) as u64;
        DateTime {
            year,
            month: small(month),
            day: small(day),
            hour: small(of_day / 3600),
            minute: small(of_day / 60 % 60),
            second: small(of_day % 60),
            // 1970-01-01 was a Thursday.
            weekday: small((days + 4) % 7 + 1),
        }
    }

    /// Seconds from 1970-01-01 00:00, 0 where that is later. Fields out of range carry over, whatever they are.
    pub(super) const fn to_unix(self) -> u64 {
        let month = if self.month == 0 { 11 } else { self.month as u64 - 1 };
        let year = self.year + month / 12;
        let month = month % 12;
        let (year, month_from_march) = if month < 2 { (year.saturating_sub(1), month + 10) } else { (year, month - 2) };
        let of_year = (153 * month_from_march + 2) / 5 + (self.day as u64).saturating_sub(1);
        let year_of_era = year % 400;
        let of_era = 365 * year_of_era + year_of_era / 4 - year_of_era / 100 + of_year;
        let days = (year / 400 * ERA_DAYS + of_era).saturating_sub(EPOCH);
        days * DAY + self.hour as u64 * 3600 + self.minute as u64 * 60 + self.second as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_dates() {
        let at = |year, month, day, hour, minute, second, weekday| DateTime {
            year,
            month,
            day,
            hour,
            minute,
            second,
            weekday,
        };
        assert_eq!(DateTime::from_unix(0), at(1970, 1, 1, 0, 0, 0, 5));
        assert_eq!(DateTime::from_unix(951_782_400), at(2000, 2, 29, 0, 0, 0, 3));
        assert_eq!(DateTime::from_unix(1_709_251_199), at(2024, 2, 29, 23, 59, 59, 5));
        assert_eq!(DateTime::from_unix(4_107_542_400), at(2100, 3, 1, 0, 0, 0, 2));
    }

    proptest! {
        #[test]
        fn there_and_back(seconds in 0u64..400_000_000_000) {
            prop_assert_eq!(DateTime::from_unix(seconds).to_unix(), seconds);
        }

        #[test]
        fn nonsense_gives_some_time(year in 0u64..20_000, fields in any::<[u8; 5]>(), seconds in any::<u64>()) {
            let [month, day, hour, minute, second] = fields;
            DateTime { year, month, day, hour, minute, second, weekday: 0 }.to_unix();
            DateTime::from_unix(seconds);
        }
    }
}
