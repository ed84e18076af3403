//! Time as the protocol sees it: microseconds since the Unix epoch, always passed in.

use core::fmt;
use core::time::Duration;

/// Microseconds since 1970-01-01T00:00:00Z, as a knock carries them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
pub struct UnixMicros(pub u64);

impl UnixMicros {
    /// The instant `seconds` after 1970-01-01T00:00:00Z.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1_000_000))
    }

    /// Whole seconds since 1970-01-01T00:00:00Z.
    pub const fn as_secs(self) -> u64 {
        self.0 / 1_000_000
    }

    /// `self + duration`, at most the end of time.
    pub fn saturating_add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(micros(duration)))
    }

    /// `self - duration`, at least 1970-01-01T00:00:00Z.
    pub fn saturating_sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(micros(duration)))
    }

    /// How far the two instants lie apart, whichever is the earlier.
    pub fn distance(self, other: Self) -> Duration {
        Duration::from_micros(self.0.abs_diff(other.0))
    }
}

/// The freshness window W: how far a knock's timestamp may lie from the server's clock, in
/// either direction (§6.4). Between 10 and 120 seconds, 60 by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freshness(Duration);

impl Freshness {
    /// The smallest window that leaves room for a slow network and a clock that is a little off.
    pub const MIN: Duration = Duration::from_secs(10);
    /// The largest window: beyond it the eight epochs of the tag table no longer cover it twice.
    pub const MAX: Duration = Duration::from_secs(120);

    /// W as a duration.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl Default for Freshness {
    fn default() -> Self {
        Self(Duration::from_secs(60))
    }
}

impl TryFrom<Duration> for Freshness {
    type Error = FreshnessError;

    fn try_from(window: Duration) -> Result<Self, FreshnessError> {
        if (Self::MIN..=Self::MAX).contains(&window) {
            Ok(Self(window))
        } else {
            Err(FreshnessError)
        }
    }
}

/// A freshness window outside [`Freshness::MIN`]`..=`[`Freshness::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreshnessError;

impl fmt::Display for FreshnessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a freshness window lies between {} and {} seconds",
            Freshness::MIN.as_secs(),
            Freshness::MAX.as_secs()
        )
    }
}

impl core::error::Error for FreshnessError {}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
