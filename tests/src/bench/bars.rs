//! What the gate has to reach, and whether it did. Pure.

use super::figures::{Figure, short};
use super::results::{BackendFigures, Keeping, PacketKind, Results};

/// How much dearer the dearest grant may be than the cheapest.
const FLAT: f64 = 2.0;
/// The seconds that a burst may take.
const BURST: f64 = 1.0;
/// The least that is to be left of the rate of packets.
const RATE: f64 = 0.9;

/// How many in a thousand SYNs have to be answered, else their rate is none.
const ANSWERED: usize = 990;

/// One thing that a back-end has to reach.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// Whose.
    pub backend: String,
    /// What.
    pub what: String,
    /// Whether it does.
    pub verdict: Verdict,
    /// The figure that decided.
    pub found: String,
}

/// Whether a bar is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is.
    Met,
    /// It is not.
    Missed,
    /// It was not asked of this back-end; the figure is told all the same.
    NotAsked,
    /// It could not be measured.
    NotRun,
}

impl Verdict {
    /// In a word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "**missed**",
            Self::NotAsked => "(not asked of it)",
            Self::NotRun => "not run",
        }
    }
}

/// All bars of all back-ends, judged.
pub fn bars(results: &Results) -> Vec<Bar> {
    let mut bars = Vec::new();
    for backend in &results.backends {
        let Some(figures) = backend.outcome.measured() else {
            for what in WHAT {
                bars.push(Bar {
                    backend: backend.name.clone(),
                    what: what.to_owned(),
                    verdict: Verdict::NotRun,
                    found: String::new(),
                });
            }
            continue;
        };
        for (what, (reached, found)) in WHAT.iter().zip([
            flat(figures, |cost| cost.single_ratio, |cost| cost.single_us),
            flat(figures, |cost| cost.batch_ratio, |cost| cost.batch_us),
            burst(figures),
            rate(figures),
        ]) {
            let verdict = match (reached, backend.keeping) {
                (true, _) => Verdict::Met,
                (false, Keeping::Sets) => Verdict::Missed,
                (false, Keeping::Rules) => Verdict::NotAsked,
            };
            let backend = backend.name.clone();
            bars.push(Bar { backend, what: (*what).to_owned(), verdict, found });
        }
    }
    bars
}

const WHAT: [&str; 4] = [
    "one grant costs the same within 2x, with 0 to 100,000 there",
    "the same for each grant of a batch of 256",
    "10,000 grants in under 1 s, all of them read back",
    "packet rate with 100,000 grants within 10% of that with none",
];

type Cost = super::results::GrantCost;

/// The dearest level by the cheapest, in the worse family.
fn flat(
    figures: &BackendFigures,
    ratio: impl Fn(&Cost) -> Option<Figure>,
    cost: impl Fn(&Cost) -> Option<Figure>,
) -> (bool, String) {
    let mut worst: f64 = 0.0;
    for of_family in ["IPv4", "IPv6"] {
        let mut lowest = f64::INFINITY;
        let mut highest: f64 = 0.0;
        for level in figures.grants.iter().filter(|cost| cost.family == of_family) {
            let (Some(ratio), Some(_)) = (ratio(level), cost(level)) else {
                return (false, format!("not measured with {}", short_count(level.wanted)));
            };
            if level.present < level.wanted {
                return (
                    false,
                    format!(
                        "only {} of {} could be put there",
                        short_count(level.present),
                        short_count(level.wanted)
                    ),
                );
            }
            lowest = lowest.min(ratio.median);
            highest = highest.max(ratio.median);
        }
        worst = worst.max(highest / lowest);
    }
    (worst > 0.0 && worst <= FLAT, format!("{}x", short(worst)))
}

fn burst(figures: &BackendFigures) -> (bool, String) {
    let mut worst: f64 = 0.0;
    for burst in &figures.bursts {
        let Some(seconds) = burst.seconds else {
            return (false, burst.note.clone().unwrap_or_default());
        };
        if burst.read_back < burst.wanted {
            return (false, format!("only {} of them read back", short_count(burst.read_back)));
        }
        worst = worst.max(seconds.median);
    }
    (!figures.bursts.is_empty() && worst < BURST, format!("{} s", short(worst)))
}

fn rate(figures: &BackendFigures) -> (bool, String) {
    let mut worst: Option<(f64, String)> = None;
    for cost in &figures.packets {
        let Some(rate) = cost.rate else { return (false, "not measured".into()) };
        if let Some(permille) = cost.answered_permille.filter(|permille| *permille < ANSWERED) {
            let name = cost.kind.name();
            return (false, format!("only {permille} in 1,000 were answered ({name})"));
        }
        if worst.as_ref().is_none_or(|(least, _)| rate.median < *least) {
            let name = cost.kind.name();
            let told = format!(
                "{:.0}% ({name}, {}, with {})",
                rate.median * 100.0,
                cost.family,
                short_count(cost.present)
            );
            worst = Some((rate.median, told));
        }
    }
    match worst {
        Some((least, told)) => (least >= RATE, told),
        None => (false, figures.no_packets.clone().unwrap_or_else(|| "not measured".into())),
    }
}

pub(super) fn short_count(count: usize) -> String {
    let value = super::elements::to_f64(count);
    if value < 100.0 { count.to_string() } else { short(value) }
}

/// Kinds in the order of the reports.
pub(super) const KINDS: [PacketKind; 3] =
    [PacketKind::Granted, PacketKind::Refused, PacketKind::Unguarded];

#[cfg(test)]
mod tests {
    use super::super::results::{BackendResults, Burst, Machine, Outcome, PacketCost};
    use super::*;

    fn figure(median: f64) -> Option<Figure> {
        Figure::of(&[median])
    }

    fn level(wanted: usize, present: usize, ratio: f64) -> Cost {
        Cost {
            family: "IPv4".into(),
            wanted,
            present,
            filled_in_seconds: 0.0,
            note: None,
            single_us: figure(ratio),
            single_ratio: figure(ratio),
            withdraw_us: None,
            batch_us: figure(ratio),
            batch_ratio: figure(ratio),
        }
    }

    fn packets(rate: f64, answered: usize) -> PacketCost {
        PacketCost {
            family: "IPv6".into(),
            kind: PacketKind::Granted,
            present: 100_000,
            packets: 1,
            answered_permille: Some(answered),
            bare_ns: None,
            none_ns: None,
            many_ns: None,
            rate: figure(rate),
            control: None,
        }
    }

    fn burst_of(read_back: usize, seconds: f64) -> Burst {
        let (seconds, family) = (figure(seconds), "IPv4".into());
        Burst { family, wanted: 9, read_back, note: None, seconds, reading_seconds: None }
    }

    fn verdicts(keeping: Keeping, figures: BackendFigures) -> Vec<Verdict> {
        let outcome = Outcome::Measured(figures);
        let results = Results {
            machine: Machine::default(),
            quick: false,
            seconds: 0.0,
            batch: 256,
            backends: vec![BackendResults { name: "x".into(), keeping, outcome }],
            flushes: Vec::new(),
            programs: Vec::new(),
        };
        bars(&results).into_iter().map(|bar| bar.verdict).collect()
    }

    type Spoil = fn(&mut BackendFigures);

    #[test]
    fn every_bar_is_met_or_missed_for_its_own_reason() {
        let good = || BackendFigures {
            grants: vec![level(0, 0, 1.0), level(10, 10, 1.9)],
            bursts: vec![burst_of(9, 0.9)],
            packets: vec![packets(0.91, 999)],
            no_packets: None,
        };
        assert_eq!(verdicts(Keeping::Sets, good()), [Verdict::Met; 4]);
        let spoils: [(Spoil, &[usize]); 6] = [
            (|figures| figures.grants.push(level(99, 99, 2.1)), &[0, 1]),
            // What could not be filled proves nothing.
            (|figures| figures.grants.push(level(99, 98, 1.0)), &[0, 1]),
            (|figures| figures.bursts.push(burst_of(9, 1.1)), &[2]),
            (|figures| figures.bursts.push(burst_of(8, 0.1)), &[2]),
            (|figures| figures.packets.push(packets(0.89, 1000)), &[3]),
            (|figures| figures.packets.push(packets(1.0, 500)), &[3]),
        ];
        for (spoil, missed) in spoils {
            let mut figures = good();
            spoil(&mut figures);
            let wanted = [0, 1, 2, 3]
                .map(|bar| if missed.contains(&bar) { Verdict::Missed } else { Verdict::Met });
            assert_eq!(verdicts(Keeping::Sets, figures), wanted, "{missed:?}");
        }
        assert_eq!(verdicts(Keeping::Sets, BackendFigures::default()), [Verdict::Missed; 4]);
        assert_eq!(verdicts(Keeping::Rules, BackendFigures::default()), [Verdict::NotAsked; 4]);
    }
}
