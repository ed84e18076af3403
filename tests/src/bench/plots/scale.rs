//! Axes and lettering that all plots share. Widths of text are estimated: the viewer has the fonts.

use super::super::elements::to_f64;
use super::super::figures::short;
use plotters::style::RGBColor;
use std::ops::Range;

pub(super) const WIDTH: u32 = 960;
pub(super) const FONT: &str = "sans-serif";
pub(super) const CAPTION: u32 = 20;
pub(super) const TEXT: u32 = 15;
/// Dark enough on the white that each plot brings along, in light and dark surroundings.
pub(super) const INK: RGBColor = RGBColor(40, 40, 40);
pub(super) const GRID: RGBColor = RGBColor(222, 222, 222);

/// How wide the longest of these may be.
pub(super) fn width<'a>(texts: impl Iterator<Item = &'a str>) -> u32 {
    let longest = texts.map(|text| text.chars().count()).max().unwrap_or_default();
    u32::try_from(longest).unwrap_or(u32::MAX).saturating_mul(7).saturating_add(16)
}

/// From the power of ten below all of them, by this part of the least, to a little more than the most.
pub(super) fn decades(values: &[f64], part: f64) -> Range<f64> {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    10f64.powf((least * part).log10().floor())..most * 1.1
}

/// From nothing to a little more than all of them.
pub(super) fn from_zero(values: &[f64]) -> Range<f64> {
    0.0..values.iter().copied().fold(0.0, f64::max) * 1.05
}

/// A number at an axis.
pub(super) fn tick(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    if value >= 1.0 {
        let text = short(value);
        return if text.contains('.') {
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        } else {
            text
        };
    }
    let text = format!("{value:.5}");
    text.trim_end_matches('0').to_owned()
}

/// The middle of the `n`-th row, from the top, where each is one high.
pub(super) fn middle(n: usize) -> f64 {
    to_f64(n) + 0.5
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_of_decades_holds_all_values() {
        for (values, part, start) in [
            ([0.11, 20.0], 0.8, 0.01),
            ([0.15, 0.2], 0.8, 0.1),
            ([0.1, 10.0], 1.0, 0.1),
            ([0.1, 10.0], 0.8, 0.01),
            ([1_000.0, 1_000.0], 1.0, 1_000.0),
        ] {
            let range = decades(&values, part);
            assert!((range.start / start - 1.0).abs() < 1e-9 && range.end > values[1], "{range:?}");
        }
    }

    #[test]
    fn ticks_have_no_more_digits_than_they_need() {
        let written = [0.0, 0.01, 0.1, 0.1 + 0.2, 1.0, 2.5, 10.0, 100.0, 20_000.0];
        let expected = ["0", "0.01", "0.1", "0.3", "1", "2.5", "10", "100", "20,000"];
        assert_eq!(written.map(tick), expected);
    }
}
