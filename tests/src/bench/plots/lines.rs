//! Lines from rate to rate, on a logarithmic axis.

use super::scale::{CAPTION, FONT, GRID, INK, TEXT, WIDTH, decades, tick, width};
use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// A plot of lines: percent by rate.
pub(super) struct Lines {
    pub(super) caption: &'static str,
    pub(super) lines: Vec<Line>,
}

/// One program's.
pub(super) struct Line {
    pub(super) name: String,
    pub(super) colour: RGBColor,
    pub(super) points: Vec<Point>,
}

/// At one rate.
pub(super) struct Point {
    pub(super) rate: f64,
    pub(super) percent: f64,
    /// All of them in time: late ones count as opened, too.
    pub(super) is_kept_up: bool,
}

impl Point {
    const fn place(&self) -> (f64, f64) {
        (self.rate, self.percent)
    }
}

const HEIGHT: u32 = 420;
const HEAD: u32 = 48;
const STEP: i32 = 26;

impl Lines {
    /// The SVG; nothing if there is not one point.
    pub(super) fn draw(&self) -> Result<Option<String>> {
        let lines: Vec<_> = self.lines.iter().filter(|line| !line.points.is_empty()).collect();
        let rates = lines.iter().flat_map(|line| &line.points).map(|point| point.rate);
        let rates: Vec<f64> = rates.collect();
        if rates.is_empty() {
            return Ok(None);
        }
        let names = width(lines.iter().map(|line| line.name.as_str())).saturating_add(44);
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
            area.fill(&WHITE)?;
            let text = TextStyle::from((FONT, TEXT)).color(&INK);
            let title = TextStyle::from((FONT, CAPTION)).color(&INK);
            area.draw(&Text::new(self.caption, (12, 10), title))?;
            let mut chart = ChartBuilder::on(&area)
                .margin_top(HEAD)
                .margin_right(names)
                .set_label_area_size(LabelAreaPosition::Left, 60)
                .set_label_area_size(LabelAreaPosition::Bottom, 36)
                .build_cartesian_2d(decades(&rates, 1.0).log_scale(), 0.0..105.0)?;
            chart
                .configure_mesh()
                .light_line_style(TRANSPARENT)
                .bold_line_style(GRID)
                .axis_style(GRID)
                .y_labels(6)
                .x_label_formatter(&|rate| tick(*rate))
                .y_label_formatter(&|percent| format!("{}%", tick(*percent)))
                .label_style(text.clone())
                .draw()?;
            // Those that stop early lie over those that go on.
            let mut in_order: Vec<_> = lines.iter().enumerate().collect();
            in_order.sort_by(|one, other| furthest(other.1).total_cmp(&furthest(one.1)));
            for (_, line) in in_order {
                let style = line.colour.stroke_width(2);
                chart.draw_series(LineSeries::new(line.points.iter().map(Point::place), style))?;
                let full = |point: &Point| Circle::new(point.place(), 4, line.colour.filled());
                chart.draw_series(line.points.iter().map(full))?;
                let late = line.points.iter().filter(|point| !point.is_kept_up);
                let hole = |point: &Point| Circle::new(point.place(), 2, WHITE.filled());
                chart.draw_series(late.map(hole))?;
            }
            let x = i32::try_from(WIDTH.saturating_sub(names))?.saturating_add(16);
            let mut y = i32::try_from(HEAD)?.saturating_add(12);
            for line in &lines {
                let style = line.colour.stroke_width(2);
                area.draw(&PathElement::new([(x, y), (x + 24, y)], style))?;
                area.draw(&Circle::new((x + 12, y), 4, line.colour.filled()))?;
                let middle = text.pos(Pos::new(HPos::Left, VPos::Center));
                area.draw(&Text::new(line.name.as_str(), (x + 32, y), middle))?;
                y += STEP;
            }
            area.present()?;
        }
        Ok(Some(svg))
    }
}

fn furthest(line: &Line) -> f64 {
    line.points.iter().map(|point| point.rate).fold(0.0, f64::max)
}
