//! The benchmark of the gate: what a grant costs, what a packet costs, and both beside what other
//! programs do, in one run.
//!
//! Everything happens in the namespaces of one [`Lab`]. What is compared is measured in turns, so
//! that what else the machine does hits all alike; what counts are ratios. Figures are told as
//! they are; whether they are good enough is said by [`bars`].

mod backends;
mod bars;
mod client;
mod contenders;
mod elements;
mod figures;
mod findings;
pub mod fire;
mod fleet;
mod flushes;
mod knocks;
mod machine;
mod packets;
mod plots;
mod report;
mod results;
mod sources;
mod station;
mod volley;
mod whole;

pub use bars::{Bar, Verdict, bars};
pub use client::{ClientResults, client_part, measure_client};
pub use contenders::Noise;
pub use figures::Figure;
pub use findings::Findings;
pub use plots::{Plot, plots};
pub use report::{gate_part, table};
pub use results::{Outcome, Results};
pub use whole::Report;

use crate::lab::Lab;
use anyhow::Result;
use backends::{CANDIDATES, Candidate};
use fleet::Fleet;
use results::{BackendFigures, BackendResults};
use std::io::Write as _;
use std::time::{Duration, Instant};

/// Changes a batch, as the daemon makes them at most.
pub(crate) const BATCH: usize = 256;

/// How much is measured.
#[derive(Debug, Clone)]
pub struct Extent {
    /// Too little for figures that mean something.
    quick: bool,
    /// Grants there, of each family; the first is 0.
    levels: Vec<usize>,
    /// How long putting them there may take, a level.
    filling: Duration,
    /// Rounds of one more grant, and grants a round.
    rounds: usize,
    singles: usize,
    /// How long one cell of that may take in all.
    cell: Duration,
    /// Grants of a burst, and how many bursts.
    burst: usize,
    burst_rounds: usize,
    /// Packets of a volley at most, how long one may take, and how many.
    packets: usize,
    volley: Duration,
    packet_rounds: usize,
    /// Flushes of the firewall with each back-end: not so many that they are a fight.
    flushes: u64,
    /// Knocks a round at most, with how many grants there at most, and rounds.
    knocks: usize,
    knocked: usize,
    knock_rounds: usize,
    /// How long knocks of a round may take to open.
    drain: Duration,
    /// Knocks while executed programs are counted.
    traced: usize,
}

impl Extent {
    /// Some minutes.
    pub fn full() -> Self {
        Self {
            quick: false,
            levels: vec![0, 1_000, 10_000, 100_000],
            filling: Duration::from_secs(10),
            rounds: 15,
            singles: 10,
            cell: Duration::from_secs(4),
            burst: 10_000,
            burst_rounds: 5,
            packets: 10_000,
            volley: Duration::from_millis(100),
            packet_rounds: 15,
            flushes: 10,
            knocks: 1_000,
            knocked: 10_000,
            knock_rounds: 3,
            drain: Duration::from_secs(30),
            traced: 20,
        }
    }

    /// Only to show that it works.
    pub fn quick() -> Self {
        Self {
            quick: true,
            levels: vec![0, 500],
            filling: Duration::from_secs(5),
            rounds: 2,
            singles: 2,
            cell: Duration::from_secs(2),
            burst: 500,
            burst_rounds: 1,
            packets: 400,
            volley: Duration::from_millis(20),
            packet_rounds: 1,
            flushes: 1,
            knocks: 20,
            knocked: 0,
            knock_rounds: 1,
            drain: Duration::from_secs(20),
            traced: 3,
        }
    }
}

/// Measures everything. What can't be measured here is told in the results; an error is what
/// keeps the benchmark itself from running.
pub fn run(extent: &Extent) -> Result<Results> {
    let start = Instant::now();
    let mut machine = machine::describe();
    let lab = Lab::new()?;
    let backends = of_backends(&lab, extent)?;
    step(start, "flushes");
    let flushes = flushes::measure(extent);
    step(start, "whole programs, knock by knock");
    let programs = knocks::measure(&lab, extent)?;
    machine.load.1 = machine::load();
    Ok(Results {
        machine,
        quick: extent.quick,
        seconds: start.elapsed().as_secs_f64(),
        batch: BATCH,
        backends,
        flushes,
        programs,
    })
}

fn of_backends(lab: &Lab, extent: &Extent) -> Result<Vec<BackendResults>> {
    let start = Instant::now();
    let mut fleets: Vec<(Candidate, Result<Fleet>)> = Vec::new();
    for candidate in CANDIDATES {
        step(start, &format!("filling: {}", candidate.name));
        fleets.push((candidate, Fleet::new(lab, candidate, extent)));
    }
    let working: Vec<_> = fleets.iter().filter_map(|(_, fleet)| fleet.as_ref().ok()).collect();
    step(start, "one more grant");
    let grants = elements::one_more(&working, extent)?;
    step(start, "bursts");
    let bursts = elements::bursts(&working, extent);
    step(start, "packets");
    let packets = packets::measure(lab, &working, extent)?;
    let mut figures = grants.into_iter().zip(bursts).zip(packets).map(
        |((grants, bursts), packets)| match packets {
            Ok(packets) => BackendFigures { grants, bursts, packets, no_packets: None },
            Err(error) => BackendFigures {
                grants,
                bursts,
                packets: Vec::new(),
                no_packets: Some(with_causes(&error)),
            },
        },
    );
    Ok(fleets
        .iter()
        .map(|(candidate, fleet)| BackendResults {
            name: candidate.name.to_owned(),
            keeping: candidate.keeping,
            outcome: match fleet {
                Ok(_) => Outcome::Measured(figures.next().unwrap_or_default()),
                Err(error) => Outcome::NotRun(with_causes(error)),
            },
        })
        .collect())
}

/// Tells on standard error how far it is.
fn step(start: Instant, what: &str) {
    let _ = writeln!(std::io::stderr(), "{:6.1} s  {what}", start.elapsed().as_secs_f64());
}

/// An error with all of its causes, on one line.
fn with_causes(error: &anyhow::Error) -> String {
    format!("{error:#}").replace('\n', "; ")
}
