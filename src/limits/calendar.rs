//! Days and months of a time zone: when the one that a moment lies in ends. Pure; the shared store has the same rule.

use std::num::NonZeroU64;

const DAY_S: i64 = 24 * 60 * 60;

/// So many calls in each day or month.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Quota {
    pub calls: NonZeroU64,
    pub window: Window,
}

/// A piece of the calendar.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Window {
    Day,
    Month,
}

impl Window {
    pub fn as_str(self) -> &'static str {
        match self {
            Window::Day => "day",
            Window::Month => "month",
        }
    }

    /// When the one that `now_s` lies in is over, in seconds since the epoch. Zones have no summer time: a day has 24 hours.
    pub fn ends(self, now_s: u64, offset_s: i32) -> u64 {
        let offset_s = i64::from(offset_s);
        let today = i64::try_from(now_s).unwrap_or(i64::MAX / 2).saturating_add(offset_s).div_euclid(DAY_S);
        let end = match self {
            Window::Day => today + 1,
            Window::Month => next_month(today),
        };
        u64::try_from(end * DAY_S - offset_s).unwrap_or(0)
    }
}

/// The first day of the next month, in days since 1970-01-01. Years begin in March here, so that the leap day is the last.
fn next_month(day: i64) -> i64 {
    const ERA_DAYS: i64 = 146_097;
    let day = day + 719_468;
    let era = day.div_euclid(ERA_DAYS);
    let of_era = day.rem_euclid(ERA_DAYS);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let end = match month {
        11 => {
            let year = era * 400 + year + 1;
            365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400)
        }
        _ => day - of_year + (153 * (month + 1) + 2) / 5,
    };
    end - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `date -u -d … +%s`
    const CASES: [(u64, i32, u64, u64); 7] = [
        // 2026-11-21T22:10:00Z → 2026-11-22, 2026-12-01
        (1_795_299_000, 0, 1_795_305_600, 1_796_083_200),
        // The same moment at +02:00 is the 22nd already, at 00:10.
        (1_795_299_000, 7200, 1_795_384_800, 1_796_076_000),
        // 2024-02-28T12:00:00Z: a leap year.
        (1_709_121_600, 0, 1_709_164_800, 1_709_251_200),
        // 2026-02-28T12:00:00Z: none.
        (1_772_280_000, 0, 1_772_323_200, 1_772_323_200),
        // 2026-12-31T23:59:59Z → 2027-01-01
        (1_798_761_599, 0, 1_798_761_600, 1_798_761_600),
        // 2026-12-31T23:59:59Z at -05:00 is still the afternoon of the 31st.
        (1_798_761_599, -18_000, 1_798_779_600, 1_798_779_600),
        // The first second of a month belongs to it: 2026-03-01T00:00:00Z
        (1_772_323_200, 0, 1_772_409_600, 1_775_001_600),
    ];

    #[test]
    fn days_and_months_end_where_the_calendar_says() {
        for (now, offset, day, month) in CASES {
            assert_eq!(
                (Window::Day.ends(now, offset), Window::Month.ends(now, offset)),
                (day, month),
                "{now} {offset}"
            );
        }
    }

    #[test]
    fn a_month_has_28_to_31_days_and_begins_where_the_one_before_ended() {
        let (mut now, mut months) = (0, 0);
        while now < 4_102_444_800 {
            let end = Window::Month.ends(now, 0);
            assert!((28..=31).contains(&((end - now) / 86_400)), "{now}");
            assert_eq!(Window::Month.ends(end - 1, 0), end);
            (now, months) = (end, months + 1);
        }
        assert_eq!((now, months), (4_102_444_800, 130 * 12), "2100-01-01");
    }
}
