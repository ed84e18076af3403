//! The stations of one back-end: with no grants, with some, with very many, and a second one with
//! none, which shows how alike two equal ones are measured.

use super::backends::Candidate;
use super::sources::{Pool, admit};
use super::station::Station;
use super::{Extent, with_causes};
use crate::lab::{Family, Lab};
use anyhow::Result;
use spa_server::gate::{AnyGate, Gate as _};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Changes a batch while a station is filled.
const CHUNK: usize = 1_000;

/// One station, and how many grants it has.
pub(super) struct Level {
    pub(super) station: Station,
    /// How many of each family there were to be.
    pub(super) wanted: usize,
    /// How many there are, read back: IPv4, IPv6.
    pub(super) present: [usize; 2],
    pub(super) filled_in: Duration,
    /// Why there are fewer.
    pub(super) note: Option<String>,
}

impl Level {
    /// How many grants of this family there are.
    pub(super) fn present(&self, family: Family) -> usize {
        let [v4, v6] = self.present;
        match family {
            Family::V4 => v4,
            Family::V6 => v6,
        }
    }
}

/// All stations of one back-end.
pub(super) struct Fleet {
    /// The fewest grants first: none.
    pub(super) levels: Vec<Level>,
    /// Another one with none.
    pub(super) control: Station,
}

impl Fleet {
    /// Makes the stations and fills them. An error says why this back-end can't be measured.
    pub(super) fn new(lab: &Lab, candidate: Candidate, extent: &Extent) -> Result<Self> {
        // First: one that doesn't work here shows at the first installation.
        let control = Station::new(lab, candidate)?;
        let mut levels = Vec::new();
        for wanted in extent.levels.iter().copied() {
            let station = Station::new(lab, candidate)?;
            let limit = extent.filling;
            let filled = station.run(move |gate, runtime| fill(gate, runtime, wanted, limit))?;
            levels.push(Level {
                station,
                wanted,
                present: filled.present,
                filled_in: filled.took,
                note: filled.note,
            });
        }
        Ok(Self { levels, control })
    }
}

struct Filled {
    present: [usize; 2],
    took: Duration,
    note: Option<String>,
}

/// Puts so many grants of each family there, as far as it goes in `limit`.
fn fill(gate: &AnyGate, runtime: &Runtime, wanted: usize, limit: Duration) -> Result<Filled> {
    let start = Instant::now();
    let mut note = None;
    'filling: for first in (0..wanted).step_by(CHUNK) {
        for family in Family::BOTH {
            if start.elapsed() > limit {
                note = Some(format!("no more in {} s", limit.as_secs()));
                break 'filling;
            }
            let count = CHUNK.min(wanted - first);
            let changes = admit(Pool::Present, family, first, count)?;
            if let Err(error) = runtime.block_on(gate.apply(&changes)) {
                note = Some(with_causes(&error.into()));
                break 'filling;
            }
        }
    }
    let took = start.elapsed();
    Ok(Filled { present: counted(gate, runtime)?, took, note })
}

/// How many grants the kernel holds: IPv4, IPv6.
pub(super) fn counted(gate: &AnyGate, runtime: &Runtime) -> Result<[usize; 2]> {
    let elements = runtime.block_on(gate.snapshot())?;
    let v4 = elements.iter().filter(|live| live.element.source.address().is_ipv4()).count();
    Ok([v4, elements.len() - v4])
}
