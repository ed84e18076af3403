//! How long knocks take, from the moment at which the kernel captured one until its gate lets the
//! sender in. Always on: a knock costs some nanoseconds more by it, and noise nothing.

use crate::control::LatencyStatus;
use hdrhistogram::Histogram;
use std::time::Duration;

/// In microseconds: what takes longer counts as this.
const LONGEST: u64 = 60_000_000;
/// Whatever it is, it is kept to this many digits.
const DIGITS: u8 = 2;

/// See the module's text. The counts are those since the start.
#[derive(Debug)]
pub struct Latencies(Option<Histogram<u64>>);

impl Default for Latencies {
    fn default() -> Self {
        Self(Histogram::new_with_max(LONGEST, DIGITS).ok())
    }
}

impl Latencies {
    /// Notes what one knock took.
    pub fn note(&mut self, took: Duration) {
        if let Some(histogram) = &mut self.0 {
            histogram.saturating_record(u64::try_from(took.as_micros()).unwrap_or(LONGEST));
        }
    }

    /// The figures; none without a knock.
    pub fn status(&self) -> Option<LatencyStatus> {
        let histogram = self.0.as_ref().filter(|histogram| !histogram.is_empty())?;
        let at = |share| histogram.value_at_quantile(share);
        Some(LatencyStatus {
            knocks: histogram.len(),
            p50_micros: at(0.5),
            p90_micros: at(0.9),
            p99_micros: at(0.99),
            max_micros: histogram.max(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_kept_to_two_digits_and_nothing_is_lost() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.status(), None);
        for micros in 1..=1000 {
            latencies.note(Duration::from_micros(micros));
        }
        latencies.note(Duration::from_secs(3600));
        let status = latencies.status().unwrap();
        let near = |found: u64, wanted: u64| found.abs_diff(wanted) * 100 <= wanted;
        assert_eq!(status.knocks, 1001);
        assert!(near(status.p50_micros, 500) && near(status.p90_micros, 900), "{status:?}");
        assert!(near(status.p99_micros, 990) && near(status.max_micros, LONGEST), "{status:?}");
    }
}
