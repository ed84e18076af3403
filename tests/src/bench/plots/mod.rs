//! The plots of the report: SVG, drawn of the results and of nothing else. Pure: the same results
//! make the same bytes. What was not measured is not drawn, and a plot of nothing is not there.

mod bars;
mod lines;
mod scale;

use super::contenders::Noise;
use super::elements::to_f64;
use super::figures::milliseconds;
use super::fire::{Fire, Latency, Of, Role, UnderNoise};
use anyhow::Result;
use bars::{Bars, Row};
use lines::{Line, Lines, Point};
use plotters::style::RGBColor;
use std::collections::BTreeSet;

/// One plot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plot {
    /// Its file is called so, and `.svg`.
    pub name: &'static str,
    /// What it shows, in words.
    pub caption: &'static str,
    /// The file's text.
    pub svg: String,
}

/// What draws one plot, if there is anything to draw.
type Draw = fn(&Fire) -> Result<Option<String>>;

/// All plots, as the results have figures for them.
pub fn plots(fire: &Fire) -> Result<Vec<Plot>> {
    let all: [(_, _, Draw); 5] = [
        ("one-knock", ONE_KNOCK, one_knock),
        ("amid-noise", AMID_NOISE, amid_noise),
        ("memory", MEMORY, memory),
        ("noise-cost", NOISE_COST, noise_cost),
        ("knocks-a-second", KNOCKS_A_SECOND, knocks_a_second),
    ];
    let drawn = all.into_iter().filter_map(|(name, caption, draw)| {
        Some(draw(fire).transpose()?.map(|svg| Plot { name, caption, svg }))
    });
    drawn.collect()
}

const ONE_KNOCK: &str = "One knock to open: milliseconds, median and p99";
const AMID_NOISE: &str = "One knock to open amid noise: milliseconds, median and p99";
const MEMORY: &str = "Resident memory before and after random noise: MiB";
const NOISE_COST: &str = "Processor time for a datagram of random noise: nanoseconds";
const KNOCKS_A_SECOND: &str =
    "Knocks that opened: percent, by knocks a second; a ring where it did not keep up";

/// How long one knock takes to open, of each program.
fn one_knock(fire: &Fire) -> Result<Option<String>> {
    let palette = Palette::of(fire);
    let rows = measured(&fire.singles).map(|(name, found)| latency(&palette, name, name, found));
    let rows = rows.collect();
    Bars { caption: ONE_KNOCK, is_log: true, series: vec!["median".into(), "p99".into()], rows }
        .draw()
}

/// The same amid noise, of each program and kind of noise.
fn amid_noise(fire: &Fire) -> Result<Option<String>> {
    let palette = Palette::of(fire);
    let rows = measured(&fire.noise).flat_map(|(name, kinds)| {
        let palette = &palette;
        kinds.iter().map(move |one| {
            let title = format!("{name}: {}", one.kind.name());
            latency(palette, name, &title, &one.latency)
        })
    });
    let rows = rows.collect();
    Bars { caption: AMID_NOISE, is_log: true, series: vec!["median".into(), "p99".into()], rows }
        .draw()
}

/// What each program has in memory, and what random noise adds. The kernel's own is not known.
fn memory(fire: &Fire) -> Result<Option<String>> {
    let palette = Palette::of(fire);
    let of = |(name, one): (&str, &UnderNoise)| {
        let mib = [one.resident_before, one.resident_after].map(|kib| count(kib) / 1024.0);
        Row {
            name: name.to_owned(),
            colour: palette.colour(name),
            values: mib.map(Some).to_vec(),
            told: mib.map(milliseconds).join(", "),
        }
    };
    let random = measured(&fire.noise).filter_map(|(name, kinds)| {
        let mut kinds = kinds.iter();
        let random = kinds.find(|one| one.kind == Noise::Random && one.resident_before > 0)?;
        Some((name, random))
    });
    let rows = random.map(of).collect();
    Bars { caption: MEMORY, is_log: false, series: vec!["before".into(), "after".into()], rows }
        .draw()
}

/// What a datagram of noise costs ours, and programs that only count it.
fn noise_cost(fire: &Fire) -> Result<Option<String>> {
    let palette = Palette::of(fire);
    let mut rates = Vec::new();
    let mut names = Vec::new();
    for cost in &fire.costs {
        if !rates.contains(&cost.rate) {
            rates.push(cost.rate);
        }
        if !names.contains(&cost.name.as_str()) {
            names.push(&cost.name);
        }
    }
    let rows = names.into_iter().map(|name| {
        let at = |rate: &Option<u64>| {
            let mut all = fire.costs.iter();
            let found = all.find(|cost| cost.name == name && cost.rate == *rate);
            found.map(|cost| cost.ns).filter(|ns| ns.is_finite())
        };
        let values: Vec<_> = rates.iter().map(at).collect();
        let told: Vec<_> = values.iter().flatten().map(|ns| milliseconds(*ns)).collect();
        Row { name: name.to_owned(), colour: palette.colour(name), values, told: told.join(", ") }
    });
    let rows = rows.collect();
    let series = rates.iter().map(|rate| {
        rate.map_or_else(
            || "as fast as the sender can".to_owned(),
            |rate| format!("{} a second", super::figures::short(count(rate))),
        )
    });
    Bars { caption: NOISE_COST, is_log: false, series: series.collect(), rows }.draw()
}

/// Which part of the knocks opened at each rate, of each program.
fn knocks_a_second(fire: &Fire) -> Result<Option<String>> {
    let palette = Palette::of(fire);
    let lines = measured(&fire.rates).map(|(name, rates)| {
        let asked = rates.iter().filter(|rate| rate.knocks > 0 && rate.wanted > 0);
        let part = |opened, knocks| to_f64(opened) / to_f64(knocks) * 100.0;
        Line {
            name: name.to_owned(),
            colour: palette.colour(name),
            points: asked
                .map(|rate| Point {
                    rate: count(rate.wanted),
                    percent: part(rate.opened, rate.knocks),
                    is_kept_up: rate.keeps_up(),
                })
                .collect(),
        }
    });
    Lines { caption: KNOCKS_A_SECOND, lines: lines.collect() }.draw()
}

/// What was measured of each program.
fn measured<T>(all: &[Of<T>]) -> impl Iterator<Item = (&str, &T)> {
    all.iter().filter_map(|one| Some((one.name.as_str(), one.outcome.measured()?)))
}

fn latency(palette: &Palette<'_>, name: &str, title: &str, found: &Latency) -> Row {
    let times = [found.median_ms, found.p99_ms];
    let is_opened = found.opened > 0;
    let mut told = if is_opened { vec![times.map(milliseconds).join(", ")] } else { Vec::new() };
    if found.opened < found.knocks {
        told.push(format!("{} of {} opened", found.opened, found.knocks));
    }
    Row {
        name: title.to_owned(),
        colour: palette.colour(name),
        values: times.map(|ms| is_opened.then_some(ms)).to_vec(),
        told: told.join("; "),
    }
}

/// No count that is drawn needs more than 32 bits.
fn count(number: u64) -> f64 {
    u32::try_from(number).map_or(f64::MAX, f64::from)
}

/// Each program's colour: the same in all plots, from those of its role.
struct Palette<'a>(Vec<(&'a str, RGBColor)>);

impl<'a> Palette<'a> {
    fn of(fire: &'a Fire) -> Self {
        let singles = fire.singles.iter().map(|one| (one.name.as_str(), one.role));
        let noise = fire.noise.iter().map(|one| (one.name.as_str(), one.role));
        let rates = fire.rates.iter().map(|one| (one.name.as_str(), one.role));
        let (mut colours, mut known) = (Vec::new(), BTreeSet::new());
        let (mut ours, mut peers) = (OURS.iter().cycle(), PEERS.iter().cycle());
        for (name, role) in singles.chain(noise).chain(rates) {
            if known.insert(name) {
                let of_role = match role {
                    Role::Ours => ours.next(),
                    Role::Peer => peers.next(),
                    Role::Floor => None,
                };
                colours.push((name, of_role.copied().unwrap_or(NEUTRAL)));
            }
        }
        Self(colours)
    }

    fn colour(&self, name: &str) -> RGBColor {
        self.0.iter().find(|(known, _)| *known == name).map_or(NEUTRAL, |(_, colour)| *colour)
    }
}

/// Blue is ours.
const OURS: [RGBColor; 3] = [RGBColor(0, 90, 160), RGBColor(60, 150, 220), RGBColor(20, 190, 200)];
const PEERS: [RGBColor; 6] = [
    RGBColor(213, 94, 0),
    RGBColor(230, 159, 0),
    RGBColor(170, 70, 130),
    RGBColor(0, 140, 90),
    RGBColor(140, 86, 75),
    RGBColor(150, 150, 30),
];
/// The kernel alone, and what only counts.
const NEUTRAL: RGBColor = RGBColor(120, 120, 120);

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::example;
