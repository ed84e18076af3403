//! Spans of time as people write them: `30s`, `5m`, `1h`.

use core::fmt;
use core::num::NonZeroU32;
use core::str::FromStr;
use core::time::Duration;

/// How long a grant is to last: whole seconds, at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lifetime(pub NonZeroU32);

impl fmt::Display for Lifetime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.get() {
            seconds if seconds.is_multiple_of(3600) => write!(f, "{}h", seconds / 3600),
            seconds if seconds.is_multiple_of(60) => write!(f, "{}m", seconds / 60),
            seconds => write!(f, "{seconds}s"),
        }
    }
}

impl FromStr for Lifetime {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        let bad = || DurationError(text.into());
        let duration = parse(text)?;
        if duration.subsec_nanos() != 0 {
            return Err(bad());
        }
        u32::try_from(duration.as_secs()).ok().and_then(NonZeroU32::new).map(Self).ok_or_else(bad)
    }
}

/// Not a span of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no span of time; write a number and a unit, as in 30s, 5m or 1h30m")]
pub struct DurationError(String);

/// In the order in which they may follow each other, with their milliseconds. Those of the server,
/// so that what it shows can be asked for; and `ms`.
const UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Reads `500ms`, `30s`, `5m`, `1h30m` or `1d`.
pub(crate) fn parse(text: &str) -> Result<Duration, DurationError> {
    let bad = || DurationError(text.into());
    let mut units = UNITS.iter();
    let mut milliseconds: u64 = 0;
    let mut rest = text;
    loop {
        let (number, after) =
            rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?);
        let (unit, next) =
            after.split_at(after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len()));
        let number: u64 = number.parse().map_err(|_| bad())?;
        let (_, factor) = units.find(|(name, _)| *name == unit).ok_or_else(bad)?;
        milliseconds = number
            .checked_mul(*factor)
            .and_then(|more| milliseconds.checked_add(more))
            .ok_or_else(bad)?;
        if next.is_empty() {
            return Ok(Duration::from_millis(milliseconds));
        }
        rest = next;
    }
}

/// Writes a span for a message: `250 ms`, `10 s`, `1.5 s`.
pub(crate) fn spoken(span: Duration) -> String {
    match (span.as_secs(), span.subsec_millis()) {
        (0, milliseconds) => format!("{milliseconds} ms"),
        (seconds, 0) => format!("{seconds} s"),
        (_, _) => format!("{:.1} s", span.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_read_and_written_in_the_largest_whole_unit() {
        for (text, seconds, shown) in [
            ("1s", 1, "1s"),
            ("90s", 90, "90s"),
            ("120s", 120, "2m"),
            ("5m", 300, "5m"),
            ("60m", 3600, "1h"),
            ("1h30m", 5400, "90m"),
            ("1d1h1m1s", 90_061, "90061s"),
        ] {
            let lifetime: Lifetime = text.parse().unwrap();
            assert_eq!((lifetime.0.get(), lifetime.to_string().as_str()), (seconds, shown));
        }
    }

    #[test]
    fn what_is_no_lifetime_is_refused() {
        for text in [
            "",
            "s",
            "30",
            "0s",
            "-1s",
            "1.5s",
            "500ms",
            "1w",
            "5 m",
            "5m ",
            "1m1h",
            "1s1s",
            "1h30",
            "h1m",
            "4294967296s",
            "99999999999999999999s",
            "18446744073709551615h",
        ] {
            assert_eq!(text.parse::<Lifetime>(), Err(DurationError(text.into())), "{text}");
        }
    }

    #[test]
    fn spans_are_spoken_shortly() {
        for (milliseconds, text) in [(3, "3 ms"), (1000, "1 s"), (1499, "1.5 s"), (10_000, "10 s")]
        {
            assert_eq!(spoken(Duration::from_millis(milliseconds)), text);
        }
    }
}
