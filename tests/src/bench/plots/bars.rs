//! Bars that lie, a group of them for each row; what they say stands at their end.

use super::scale::{
    CAPTION, FONT, GRID, INK, TEXT, WIDTH, decades, from_zero, middle, tick, width,
};
use anyhow::Result;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::ops::Range;

/// A plot of bars.
pub(super) struct Bars {
    pub(super) caption: &'static str,
    /// Whether ten times as much is one step further.
    pub(super) is_log: bool,
    /// What the bars of each row are.
    pub(super) series: Vec<String>,
    pub(super) rows: Vec<Row>,
}

/// The bars of one thing.
pub(super) struct Row {
    pub(super) name: String,
    pub(super) colour: RGBColor,
    /// One a series.
    pub(super) values: Vec<Option<f64>>,
    /// What stands beside them.
    pub(super) told: String,
}

const ROW: u32 = 38;
/// Which part of a row its bars fill.
const FILLED: f64 = 0.74;
const HEAD: u32 = 64;
const FOOT: u32 = 32;
/// How solid the bars of a row are: the first, and the others.
const SOLID: f64 = 1.0;
const PALE: f64 = 0.45;

impl Bars {
    /// The SVG; nothing if there is not one bar.
    pub(super) fn draw(&self) -> Result<Option<String>> {
        let values = self.rows.iter().flat_map(|row| row.values.iter().flatten()).copied();
        let values: Vec<f64> = values.filter(|value| value.is_finite() && *value > 0.0).collect();
        if values.is_empty() {
            return Ok(None);
        }
        if self.is_log {
            // The bar of what is a power of ten is not to have no length.
            let range = decades(&values, 0.8);
            let start = range.start;
            return self.on(range.log_scale(), start).map(Some);
        }
        self.on(from_zero(&values), 0.0).map(Some)
    }

    fn on<X>(&self, axis: X, start: f64) -> Result<String>
    where
        X: AsRangedCoord<Value = f64>,
        X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let count = u32::try_from(self.rows.len())?;
        let height = HEAD.saturating_add(ROW.saturating_mul(count)).saturating_add(FOOT);
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
            area.fill(&WHITE)?;
            let text = TextStyle::from((FONT, TEXT)).color(&INK);
            let title = TextStyle::from((FONT, CAPTION)).color(&INK);
            area.draw(&Text::new(self.caption, (12, 10), title))?;
            self.legend(&area, &text)?;

            let mut chart = ChartBuilder::on(&area)
                .margin_top(HEAD)
                .margin_right(width(self.rows.iter().map(|row| row.told.as_str())))
                .set_label_area_size(
                    LabelAreaPosition::Left,
                    width(self.rows.iter().map(|row| row.name.as_str())),
                )
                .set_label_area_size(LabelAreaPosition::Bottom, FOOT)
                .build_cartesian_2d(axis, middle(self.rows.len()) - 0.5..0.0)?;
            chart
                .configure_mesh()
                .disable_y_mesh()
                .disable_y_axis()
                .light_line_style(TRANSPARENT)
                .bold_line_style(GRID)
                .axis_style(GRID)
                .x_label_formatter(&|value| tick(*value))
                .x_label_style(text.clone())
                .draw()?;
            for (at, row) in self.rows.iter().enumerate() {
                let mut end = start;
                for (bar, solid, value) in self.bars(at, row) {
                    let corners = [(start, bar.start), (value, bar.end)];
                    chart
                        .plotting_area()
                        .draw(&Rectangle::new(corners, row.colour.mix(solid).filled()))?;
                    end = end.max(value);
                }
                let left = text.pos(Pos::new(HPos::Left, VPos::Center));
                let right = text.pos(Pos::new(HPos::Right, VPos::Center));
                let (x, y) = chart.backend_coord(&(start, middle(at)));
                area.draw(&Text::new(row.name.as_str(), (x - 8, y), right))?;
                let (x, y) = chart.backend_coord(&(end, middle(at)));
                area.draw(&Text::new(row.told.as_str(), (x + 8, y), left))?;
            }
            area.present()?;
        }
        Ok(svg)
    }

    /// Where each bar of the row is, how solid and how long.
    fn bars(&self, at: usize, row: &Row) -> Vec<(Range<f64>, f64, f64)> {
        let each = FILLED / (middle(self.series.len()) - 0.5);
        let top = middle(at) - FILLED / 2.0;
        let all = row.values.iter().enumerate().filter_map(|(n, value)| {
            let value = (*value).filter(|value| value.is_finite() && *value > 0.0)?;
            let from = top + each * (middle(n) - 0.5);
            Some((from..from + each, solid(n), value))
        });
        all.collect()
    }

    fn legend(
        &self,
        area: &DrawingArea<SVGBackend<'_>, Shift>,
        text: &TextStyle<'_>,
    ) -> Result<()> {
        let mut x = 12;
        for (n, series) in self.series.iter().enumerate() {
            let box_of = [(x, 40), (x + 14, 52)];
            area.draw(&Rectangle::new(box_of, INK.mix(solid(n)).filled()))?;
            let middle = text.pos(Pos::new(HPos::Left, VPos::Center));
            area.draw(&Text::new(series.as_str(), (x + 20, 46), middle))?;
            x += i32::try_from(width(std::iter::once(series.as_str())))?.saturating_add(28);
        }
        Ok(())
    }
}

fn solid(n: usize) -> f64 {
    if n == 0 { SOLID } else { PALE }
}
