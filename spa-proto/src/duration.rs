//! Spans of time as people write them: the one notation of both programs, in their
//! configurations and on their command lines.

use alloc::borrow::ToOwned as _;
use alloc::string::String;
use core::fmt::Write as _;
use core::time::Duration;

const UNITS: [(&str, u64); 4] = [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)];

/// Reads a duration: numbers with the units `d`, `h`, `m`, `s`, in this order, each once at most,
/// as in `90s` or `1h30m`.
///
/// ```
/// # use core::time::Duration;
/// assert_eq!(spa_proto::parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
/// assert!(spa_proto::parse_duration("30").is_err());
/// ```
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let bad = || DurationError(text.to_owned());
    let mut units = UNITS.iter();
    let mut rest = text;
    let mut seconds = 0u64;
    loop {
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
            return Ok(Duration::from_secs(seconds));
        }
    }
}

/// Reads what [`parse_duration`] reads, or a plain number of seconds: for command lines, where
/// the option beside it says what is meant.
pub fn parse_duration_or_seconds(text: &str) -> Result<Duration, DurationError> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        let seconds = text.parse().map_err(|_| DurationError(text.to_owned()))?;
        return Ok(Duration::from_secs(seconds));
    }
    parse_duration(text)
}

/// Writes a duration so that [`parse_duration`] reads it again; less than a second is left out.
pub fn format_duration(duration: Duration) -> String {
    let mut left = duration.as_secs();
    let mut text = String::new();
    for (unit, factor) in UNITS {
        let number = left.checked_div(factor).unwrap_or_default();
        left = left.checked_rem(factor).unwrap_or_default();
        if number > 0 {
            // Writing to a text in memory does not fail.
            let _ = write!(text, "{number}{unit}");
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// Not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no duration; write numbers with the units d, h, m, s, as in 30s or 1h30m")]
pub struct DurationError(pub String);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::ToString as _;

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
            let duration = Ok(Duration::from_secs(seconds));
            assert_eq!(parse_duration(text), duration, "{text}");
            assert_eq!(parse_duration_or_seconds(text), duration, "{text}");
        }
    }

    #[test]
    fn durations_are_written_without_what_is_zero() {
        for (seconds, text) in [(0, "0s"), (30, "30s"), (3600, "1h"), (90_000, "1d1h")] {
            assert_eq!(format_duration(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_plain_number_is_seconds_where_that_is_asked_for() {
        for (text, seconds) in [("0", 0), ("3", 3), ("030", 30), ("90", 90)] {
            assert_eq!(parse_duration_or_seconds(text), Ok(Duration::from_secs(seconds)));
            assert_eq!(parse_duration(text), Err(DurationError(text.to_owned())));
        }
        assert!(parse_duration_or_seconds("99999999999999999999").is_err());
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in [
            "",
            "s",
            "-5s",
            "+5s",
            "+5",
            "1.5h",
            "5 m",
            "5m ",
            "1m1h",
            "1s1s",
            "1w",
            "1ms",
            "½h",
            "0s5",
            "1h30",
            "h1m",
            "99999999999999999999s",
            "300000000000000d",
            "1H",
        ] {
            for error in [parse_duration(text), parse_duration_or_seconds(text)] {
                let error = error.expect_err(text);
                assert!(error.to_string().contains("as in 30s or 1h30m"));
            }
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
            let _ = parse_duration_or_seconds(&text);
        }
    }
}
