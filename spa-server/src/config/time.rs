//! Instants as people write them.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use spa_proto::UnixMicros;

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
        fn no_text_panics(text in ".{0,20}") {
            let _ = parse_timestamp(&text);
        }
    }
}
