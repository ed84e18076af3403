//! Medians and ratios of what was measured. Pure.

use serde::{Deserialize, Serialize};

/// What many measurements of one thing come to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Half of them were below.
    pub median: f64,
    /// A tenth of them was below.
    pub low: f64,
    /// A tenth of them was above.
    pub high: f64,
    /// How many there were.
    pub count: usize,
}

impl Figure {
    /// Of these measurements; `None` if there are none.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |percent: usize| {
            let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
            sorted.get(index).copied()
        };
        Some(Self { median: at(50)?, low: at(10)?, high: at(90)?, count: sorted.len() })
    }

    /// Of the ratios of two series that were measured in turns: the noise of a moment is in both.
    pub fn of_ratios(over: &[f64], under: &[f64]) -> Option<Self> {
        let ratios: Vec<_> =
            over.iter().zip(under).filter(|(_, under)| **under > 0.0).map(|(o, u)| o / u).collect();
        Self::of(&ratios)
    }
}

/// The middle one of these.
pub(super) fn median(samples: &[f64]) -> Option<f64> {
    Figure::of(samples).map(|figure| figure.median)
}

/// As the reports write a number: three significant digits.
pub(super) fn short(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude >= 100.0 {
        let digits = format!("{value:.0}");
        let mut text = String::new();
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) && !text.ends_with('-') {
                text.push(',');
            }
            text.push(digit);
        }
        text
    } else if magnitude >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

/// The same of milliseconds: tens of microseconds are told, too.
pub(super) fn milliseconds(ms: f64) -> String {
    if ms < 1.0 { format!("{ms:.3}") } else { short(ms) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_that_of_the_sorted_series() {
        let samples: Vec<_> = (1..=11).rev().map(f64::from).collect();
        let expected = Figure { median: 6.0, low: 2.0, high: 10.0, count: 11 };
        assert_eq!(Figure::of(&samples), Some(expected));
        assert_eq!(Figure::of(&[]), None);
    }

    #[test]
    fn ratios_are_taken_pair_by_pair() {
        // A moment at which everything took ten times as long changes nothing.
        let ratio = Figure::of_ratios(&[2.0, 20.0, 2.0], &[1.0, 10.0, 1.0]).unwrap();
        assert!((ratio.high - 2.0).abs() < 1e-9 && (ratio.low - 2.0).abs() < 1e-9);
        assert_eq!(Figure::of_ratios(&[1.0], &[0.0]), None);
    }

    #[test]
    fn a_figure_that_is_read_again_is_the_same() {
        let median = 3_891_615.304_999_999_7;
        let figure = Figure { median, low: 0.1 + 0.2, high: 1e300 / 3.0, count: 1 };
        let text = serde_json::to_string(&figure).unwrap();
        assert_eq!(serde_json::from_str::<Figure>(&text).unwrap(), figure);
    }

    #[test]
    fn numbers_are_written_for_people() {
        let written: Vec<_> =
            [0.123_4, 4.567, 45.67, 456.7, 45_678.9, 1_234_567.0].map(short).into();
        assert_eq!(written, ["0.12", "4.57", "45.7", "457", "45,679", "1,234,567"]);
    }
}
