//! Durations and instants as people write them.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use spa_proto::UnixMicros;
use std::time::Duration;

const UNITS: [(&str, u64); 4] = [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)];

/// Reads a duration: numbers with the units `d`, `h`, `m`, `s`, in this order, as in `90s` or
/// `1h30m`.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let bad = || DurationError(text.into());
    let mut units = UNITS.iter();
    let mut rest = text;
    let mut seconds = 0u64;
    while !rest.is_empty() || seconds == 0 {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at_checked(digits).ok_or_else(bad)?;
        let number: u64 = number.parse().map_err(|_| bad())?;
        let (unit, factor) =
            units.find(|(unit, _)| after.starts_with(unit)).copied().ok_or_else(bad)?;
        rest = after.strip_prefix(unit).ok_or_else(bad)?;
        seconds = number
            .checked_mul(factor)
            .and_then(|more| seconds.checked_add(more))
            .ok_or_else(bad)?;
        if rest.is_empty() {
            break;
        }
    }
    Ok(Duration::from_secs(seconds))
}

/// Writes a duration so that [`parse_duration`] reads it again; less than a second is left out.
pub fn format_duration(duration: Duration) -> String {
    let mut left = duration.as_secs();
    let mut parts = Vec::new();
    for (unit, factor) in UNITS {
        let number = left / factor;
        left %= factor;
        if number > 0 {
            parts.push(format!("{number}{unit}"));
        }
    }
    if parts.is_empty() { "0s".into() } else { parts.concat() }
}

/// Reads an instant: RFC 3339 with its offset, or a date, which means its beginning in UTC.
pub fn parse_timestamp(text: &str) -> Result<UnixMicros, TimestampError> {
    let bad = || TimestampError(text.into());
    let timestamp = match text.parse::<Timestamp>() {
        Ok(timestamp) => timestamp,
        // A date and a time without an offset would pass for a date.
        Err(_) if text.len() == "2027-01-31".len() => text
            .parse::<Date>()
            .and_then(|date| date.to_zoned(TimeZone::UTC))
            .map_err(|_| bad())?
            .timestamp(),
        Err(_) => return Err(bad()),
    };
    u64::try_from(timestamp.as_microsecond()).map(UnixMicros).map_err(|_| bad())
}

/// Writes an instant in RFC 3339, in UTC, to the second.
pub fn format_timestamp(instant: UnixMicros) -> String {
    i64::try_from(instant.as_secs())
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .map_or_else(|| "after the year 9999".into(), |timestamp| timestamp.to_string())
}

/// Not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no duration; write numbers with the units d, h, m, s, as in 30s or 1h30m")]
pub struct DurationError(pub String);

/// Not an instant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no point in time; write a date, as in 2027-01-31, or date, time and offset, as in 2027-01-31T18:00:00Z"
)]
pub struct TimestampError(pub String);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_read() {
        for (text, seconds) in [
            ("0s", 0),
            ("30s", 30),
            ("90s", 90),
            ("5m", 300),
            ("1h", 3600),
            ("1h30m", 5400),
            ("2d", 172_800),
            ("1d1h1m1s", 90_061),
            ("0h5s", 5),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in [
            "",
            "30",
            "s",
            "-5s",
            "+5s",
            "1.5h",
            "5 m",
            "5m ",
            "1m1h",
            "1s1s",
            "1w",
            "1ms",
            "½h",
            "0s5",
            "99999999999999999999s",
            "300000000000000d",
            "1H",
        ] {
            let error = parse_duration(text).expect_err(text);
            assert!(error.to_string().contains("as in 30s or 1h30m"));
        }
    }

    #[test]
    fn instants_are_read_and_written() {
        for (text, written) in [
            ("2027-01-31", "2027-01-31T00:00:00Z"),
            ("2027-01-31T18:00:00Z", "2027-01-31T18:00:00Z"),
            ("2027-01-31T18:00:00+02:00", "2027-01-31T16:00:00Z"),
            ("2027-01-31 18:00:00.5z", "2027-01-31T18:00:00Z"),
        ] {
            assert_eq!(format_timestamp(parse_timestamp(text).expect(text)), written);
        }
        assert_eq!(parse_timestamp("1970-01-01T00:00:01.000002Z"), Ok(UnixMicros(1_000_002)));
        assert_eq!(format_timestamp(UnixMicros(u64::MAX)), "after the year 9999");
    }

    #[test]
    fn what_is_no_instant_is_refused() {
        for text in [
            "",
            "tomorrow",
            "2027",
            "2027-02-30",
            "2027-01-31T18:00:00",
            "1969-12-31",
            "18:00",
            "2027-01-31T18:00",
            "31.01.2027",
        ] {
            let error = parse_timestamp(text).expect_err(text);
            assert!(error.to_string().contains("is no point in time"));
        }
    }

    proptest! {
        #[test]
        fn a_duration_is_read_as_it_was_written(seconds: u32) {
            let duration = Duration::from_secs(seconds.into());
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn no_text_panics(text in ".{0,20}") {
            let _ = parse_duration(&text);
            let _ = parse_timestamp(&text);
        }
    }
}
