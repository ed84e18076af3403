//! How programs that open doors do under fire: how soon a knock opens, alone and amid noise, how
//! many open a second, and what noise costs. Ours and those of others in one run, in turns.
//!
//! Everything happens in namespaces, and is bounded in time and number. The noise comes from
//! addresses that nobody has, over a virtual cable that takes packets in the sender's own time; so
//! the sender has a processor for itself, and what is under fire has the others.

mod bars;
mod costs;
mod counter;
mod crowds;
mod noise;
mod page;
mod rates;
mod results;
mod shots;
mod singles;
mod soak;
mod usage;
mod wire;

pub use bars::{FireBar, fire_bars};
pub use counter::count_for_ever;
pub use page::fire_part;
pub use results::{Crowd, Fire, Latency, NoiseCost, Of, Rate, Role, UnderNoise};
pub use soak::{Criterion, Sample, Soak, soak};

use super::contenders::{Answers, Contender, Link};
use super::elements::to_f64;
use super::results::Outcome;
use super::sources::{Pool, source};
use super::station::new_host;
use super::volley::{received, stay_on_one_processor};
use super::{machine, step, with_causes};
use crate::lab::{Family, Host, Lab};
use anyhow::Result;
use std::fs;
use std::net::{IpAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use usage::Processes;
use wire::Wire;

/// How much is measured.
#[derive(Debug, Clone)]
pub struct FireExtent {
    quick: bool,
    /// Knocks of each program on their own.
    singles: usize,
    /// Knocks amid noise of each kind, and how long noise comes alone before.
    amid: usize,
    alone: Duration,
    /// Different frames of noise.
    frames: usize,
    /// Rounds of noise whose cost is measured, and how long each is.
    rounds: usize,
    round: Duration,
    /// The slower rate of that, datagrams a second.
    moderate: u64,
    /// Knocks a second, each for so long.
    rates: Vec<u64>,
    rate: Duration,
    /// Numbers of clients, and knocks at each.
    crowds: Vec<usize>,
    crowd_knocks: usize,
}

impl FireExtent {
    /// Some minutes.
    pub fn full() -> Self {
        Self {
            quick: false,
            singles: 200,
            amid: 200,
            alone: Duration::from_secs(2),
            frames: 16_384,
            rounds: 5,
            round: Duration::from_secs(1),
            moderate: 100_000,
            rates: vec![10, 30, 100, 300, 600, 1_000, 3_000, 10_000, 20_000, 30_000, 50_000],
            rate: Duration::from_secs(1),
            crowds: vec![1, 1_000, 100_000],
            crowd_knocks: 100,
        }
    }

    /// Only to show that it works.
    pub fn quick() -> Self {
        Self {
            quick: true,
            singles: 4,
            amid: 5,
            alone: Duration::from_millis(50),
            frames: 256,
            rounds: 1,
            round: Duration::from_millis(50),
            moderate: 20_000,
            rates: vec![50],
            rate: Duration::from_millis(200),
            crowds: vec![1, 50],
            crowd_knocks: 3,
        }
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// One knock on its own.
    Singles,
    /// Knocks amid noise.
    Noise,
    /// What noise costs.
    Costs,
    /// Knocks a second.
    Rates,
    /// Few and many clients.
    Crowds,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Singles, Self::Noise, Self::Costs, Self::Rates, Self::Crowds];

    /// As it is called on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Singles => "singles",
            Self::Noise => "noise",
            Self::Costs => "costs",
            Self::Rates => "rates",
            Self::Crowds => "crowds",
        }
    }
}

/// Measures these parts. What can't be measured here is told in the results; an error is what
/// keeps the benchmark itself from running.
pub fn fire(extent: &FireExtent, parts: &[Part]) -> Result<Fire> {
    let start = Instant::now();
    let mut fire = Fire { machine: machine::describe(), quick: extent.quick, ..Fire::default() };
    let lab = Lab::new()?;
    for part in parts {
        step(start, part.name());
        match part {
            Part::Singles => fire.singles = singles::measure(&lab, extent)?,
            Part::Noise => fire.noise = noise::measure(&lab, extent)?,
            Part::Costs => fire.costs = costs::measure(&lab, extent)?,
            Part::Rates => fire.rates = rates::measure(&lab, extent)?,
            Part::Crowds => {
                fire.crowds = match crowds::measure(&lab, extent) {
                    Ok(crowds) => Outcome::Measured(crowds),
                    Err(error) => Outcome::NotRun(with_causes(&error)),
                }
            }
        }
    }
    fire.machine.load.1 = machine::load();
    fire.seconds = start.elapsed().as_secs_f64();
    Ok(fire)
}

/// A host with a service behind the door that is to be opened.
struct Site<'a> {
    lab: &'a Lab,
    host: Host,
    interface: String,
    directory: PathBuf,
    _service: TcpListener,
}

impl<'a> Site<'a> {
    fn new(lab: &'a Lab) -> Result<Self> {
        Self::with_files_in(lab, lab.directory())
    }

    /// With the program's files below this directory.
    fn with_files_in(lab: &'a Lab, directory: &Path) -> Result<Self> {
        let (host, interface) = new_host(lab)?;
        let service = wire::service(&host)?;
        let directory = directory.join(&interface);
        fs::create_dir_all(&directory)?;
        Ok(Self { lab, host, interface, directory, _service: service })
    }

    fn link(&self) -> Link<'_> {
        Link { from: self.lab.owner(), interface: &self.interface }
    }

    /// How many packets have come to the host so far.
    fn arrived(&self) -> Result<u64> {
        self.host.inside(|| received("eth0"))
    }

    /// Starts the program here, afresh.
    fn start(&self, contender: &mut dyn Contender) -> Result<()> {
        contender.start(&self.host, &self.link(), &self.directory, &[])?;
        self.leave_a_processor()
    }

    /// What runs here is to leave one processor to the sender, as if that were another machine.
    fn leave_a_processor(&self) -> Result<()> {
        Processes::of(&self.host)?.leave_that_processor()
    }

    /// Does something with the cable to it, on one processor, where nobody else is to be.
    fn on_the_wire<T: Send>(&self, work: impl FnOnce(&Wire) -> Result<T> + Send) -> Result<T> {
        self.in_dialogue(None, work)
    }

    /// The same, with answers to what comes back.
    fn in_dialogue<T: Send>(
        &self,
        answers: Option<Answers>,
        work: impl FnOnce(&Wire) -> Result<T> + Send,
    ) -> Result<T> {
        self.lab.owner().inside(|| {
            stay_on_one_processor()?;
            work(&Wire::on(&self.interface, answers)?)
        })
    }
}

/// What came of it, for the results.
fn of<T>(contender: &dyn Contender, outcome: Result<T>) -> Of<T> {
    let role = match (contender.ours(), contender.is_floor()) {
        (true, _) => Role::Ours,
        (_, true) => Role::Floor,
        _ => Role::Peer,
    };
    let outcome = match outcome {
        Ok(found) => Outcome::Measured(found),
        Err(error) => Outcome::NotRun(with_causes(&error)),
    };
    Of { name: contender.name(), role, outcome }
}

/// Those who knock, from the `first` on.
fn knockers(first: usize, count: usize) -> Vec<IpAddr> {
    (first..first + count).map(|n| source(Pool::Measured, Family::V4, n)).collect()
}

impl Latency {
    /// How many never opened.
    fn lost(&self) -> f64 {
        to_f64(self.knocks.saturating_sub(self.opened))
    }

    /// Of knocks that opened after this time, or never.
    fn of(found: &[Option<Duration>]) -> Self {
        let mut sorted: Vec<_> =
            found.iter().flatten().map(|latency| latency.as_secs_f64() * 1e3).collect();
        sorted.sort_by(f64::total_cmp);
        let at = |percent: usize| {
            let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
            sorted.get(index).copied().unwrap_or_default()
        };
        Self {
            knocks: found.len(),
            opened: sorted.len(),
            median_ms: at(50),
            p99_ms: at(99),
            slowest_ms: at(100),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knocks_that_never_opened_have_no_latency_but_count() {
        let mut found: Vec<_> = (1..=200).map(|ms| Some(Duration::from_millis(ms))).collect();
        found.push(None);
        let latency = Latency::of(&found);
        assert_eq!((latency.knocks, latency.opened), (201, 200));
        assert!((latency.median_ms - 101.0).abs() < 1e-9, "{latency:?}");
        assert!((latency.p99_ms - 199.0).abs() < 1e-9, "{latency:?}");
        assert_eq!(Latency::of(&[None]).opened, 0);
    }
}
