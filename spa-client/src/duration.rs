//! How long a grant is to last, and how spans are spoken of.

use core::fmt;
use core::num::NonZeroU32;
use core::str::FromStr;
use core::time::Duration;
use spa_proto::{DurationError, format_duration, parse_duration};

/// How long a grant is to last: whole seconds, at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lifetime(pub NonZeroU32);

impl Lifetime {
    const MAX: Duration = Duration::from_secs(u32::MAX as u64);

    /// The lifetime as a duration.
    pub const fn get(self) -> Duration {
        Duration::from_secs(self.0.get() as u64)
    }
}

impl fmt::Display for Lifetime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format_duration(self.get()))
    }
}

impl FromStr for Lifetime {
    type Err = LifetimeError;

    fn from_str(text: &str) -> Result<Self, LifetimeError> {
        parse_duration(text)?.try_into()
    }
}

impl TryFrom<Duration> for Lifetime {
    type Error = LifetimeError;

    fn try_from(duration: Duration) -> Result<Self, LifetimeError> {
        let seconds = u32::try_from(duration.as_secs()).ok().and_then(NonZeroU32::new);
        seconds
            .filter(|_| duration.subsec_nanos() == 0)
            .map(Self)
            .ok_or(LifetimeError::Range(duration))
    }
}

/// Why a text is no lifetime.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LifetimeError {
    /// Not even a duration.
    #[error(transparent)]
    Duration(#[from] DurationError),
    /// None that a knock can ask for.
    #[error("{} is no lifetime; it is whole seconds, 1s to {}", format_duration(*.0), format_duration(Lifetime::MAX))]
    Range(Duration),
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
    fn lifetimes_are_read_and_written_as_the_server_writes_them() {
        for (text, seconds, shown) in [
            ("1s", 1, "1s"),
            ("90s", 90, "1m30s"),
            ("120s", 120, "2m"),
            ("1h30m", 5400, "1h30m"),
            ("60m", 3600, "1h"),
            ("2d", 172_800, "2d"),
        ] {
            let lifetime: Lifetime = text.parse().unwrap();
            assert_eq!((lifetime.0.get(), lifetime.to_string().as_str()), (seconds, shown));
        }
    }

    #[test]
    fn what_is_no_lifetime_is_refused() {
        for text in ["0s", "0d0s", "4294967296s", "49711d"] {
            let error = text.parse::<Lifetime>().unwrap_err();
            assert!(error.to_string().contains(" is no lifetime; "), "{text}: {error}");
        }
        for text in ["", "30", "500ms", "99999999999999999999s"] {
            let error = LifetimeError::Duration(DurationError(text.into()));
            assert_eq!(text.parse::<Lifetime>(), Err(error));
        }
        assert!(Lifetime::try_from(Duration::from_millis(1500)).is_err());
    }

    #[test]
    fn spans_are_spoken_shortly() {
        for (milliseconds, text) in [(3, "3 ms"), (1000, "1 s"), (1499, "1.5 s"), (10_000, "10 s")]
        {
            assert_eq!(spoken(Duration::from_millis(milliseconds)), text);
        }
    }
}
