//! What grants cost: one more where some are there, and ten thousand at once.

use super::figures::{Figure, median};
use super::fleet::{Fleet, Level, counted};
use super::results::{Burst, GrantCost};
use super::sources::{Pool, admit, withdraw};
use super::station::Station;
use super::{BATCH, Extent, with_causes};
use crate::lab::Family;
use anyhow::Result;
use spa_server::gate::{AnyGate, Change, Gate as _};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// The samples of one level and family, one a round.
#[derive(Default)]
struct Cell {
    single: Vec<f64>,
    withdrawn: Vec<f64>,
    batch: Vec<f64>,
    spent: Duration,
    note: Option<String>,
}

/// Measures one more grant on all stations of all back-ends, in turns. For each back-end, a
/// cost for each level and family.
pub(super) fn one_more(fleets: &[&Fleet], extent: &Extent) -> Result<Vec<Vec<GrantCost>>> {
    let mut cells: Vec<Vec<[Cell; 2]>> = fleets
        .iter()
        .map(|fleet| fleet.levels.iter().map(|_| Default::default()).collect())
        .collect();
    for round in 0..extent.rounds {
        for (fleet, cells) in fleets.iter().zip(&mut cells) {
            // Now the fullest one first, now the emptiest.
            let mut turns: Vec<_> = fleet.levels.iter().zip(cells).collect();
            if round % 2 == 1 {
                turns.reverse();
            }
            for (level, cells) in turns {
                for (family, cell) in Family::BOTH.into_iter().zip(cells) {
                    sample(&level.station, family, cell, extent)?;
                }
            }
        }
    }
    Ok(fleets.iter().zip(&cells).map(|(fleet, cells)| costs(&fleet.levels, cells)).collect())
}

fn costs(levels: &[Level], cells: &[[Cell; 2]]) -> Vec<GrantCost> {
    let Some(empty) = cells.first() else { return Vec::new() };
    let mut costs = Vec::new();
    for (level, cells) in levels.iter().zip(cells) {
        for (family, (cell, empty)) in Family::BOTH.into_iter().zip(cells.iter().zip(empty)) {
            costs.push(GrantCost {
                family: family.to_string(),
                wanted: level.wanted,
                present: level.present(family),
                filled_in_seconds: level.filled_in.as_secs_f64(),
                note: level.note.clone().or_else(|| cell.note.clone()),
                single_us: Figure::of(&cell.single),
                single_ratio: Figure::of_ratios(&cell.single, &empty.single),
                withdraw_us: Figure::of(&cell.withdrawn),
                batch_us: Figure::of(&cell.batch),
                batch_ratio: Figure::of_ratios(&cell.batch, &empty.batch),
            });
        }
    }
    costs
}

/// One round at one station. What fails, or took too long already, is left out from then on.
fn sample(station: &Station, family: Family, cell: &mut Cell, extent: &Extent) -> Result<()> {
    if cell.note.is_some() || cell.spent > extent.cell {
        return Ok(());
    }
    // The first one finds everything cold, and is not counted.
    let first = admit(Pool::Measured, family, 0, 1)?;
    let singles = admit(Pool::Measured, family, 1, extent.singles)?;
    let batch = admit(Pool::Measured, family, 1 + extent.singles, BATCH)?;
    let start = Instant::now();
    // Where one alone takes long, a few of them have to do.
    let limit = extent.cell / 8;
    let sampled = station.run(move |gate, runtime| {
        timed(gate, runtime, &first)?;
        let single = one_by_one(gate, runtime, &singles, limit)?;
        let each = timed(gate, runtime, &batch)? / to_f64(batch.len());
        runtime.block_on(gate.apply(&withdraw(&batch)))?;
        timed(gate, runtime, &withdraw(&first))?;
        let undone = withdraw(&singles);
        let withdrawn = one_by_one(gate, runtime, &undone, limit)?;
        // No harm in what is withdrawn already.
        runtime.block_on(gate.apply(&undone))?;
        Ok((single, withdrawn, each))
    });
    cell.spent += start.elapsed();
    match sampled {
        Ok((single, withdrawn, each)) => {
            cell.single.push(single * 1e6);
            cell.withdrawn.push(withdrawn * 1e6);
            cell.batch.push(each * 1e6);
        }
        Err(error) => cell.note = Some(with_causes(&error)),
    }
    Ok(())
}

/// Seconds for a change by itself: the median of these, as many as there is time for.
fn one_by_one(
    gate: &AnyGate,
    runtime: &Runtime,
    changes: &[Change],
    limit: Duration,
) -> Result<f64> {
    let mut times = Vec::new();
    let start = Instant::now();
    for change in changes.chunks(1) {
        if !times.is_empty() && start.elapsed() > limit {
            break;
        }
        times.push(timed(gate, runtime, change)?);
    }
    Ok(median(&times).unwrap_or_default())
}

fn timed(gate: &AnyGate, runtime: &Runtime, changes: &[Change]) -> Result<f64> {
    let start = Instant::now();
    runtime.block_on(gate.apply(changes))?;
    Ok(start.elapsed().as_secs_f64())
}

/// Ten thousand grants as fast as they go, in batches as the daemon makes them, on the empty
/// station of each back-end.
pub(super) fn bursts(fleets: &[&Fleet], extent: &Extent) -> Vec<Vec<Burst>> {
    let mut bursts: Vec<Vec<_>> = fleets
        .iter()
        .map(|_| Family::BOTH.map(|_| (Vec::new(), Vec::new(), extent.burst, None)).into())
        .collect();
    for _ in 0..extent.burst_rounds {
        for (fleet, bursts) in fleets.iter().zip(&mut bursts) {
            for (family, (seconds, reading, read_back, note)) in
                Family::BOTH.into_iter().zip(bursts)
            {
                if note.is_some() || seconds.iter().sum::<f64>() > extent.filling.as_secs_f64() {
                    continue;
                }
                let (wanted, limit) = (extent.burst, extent.filling);
                let one = fleet
                    .control
                    .run(move |gate, runtime| burst(gate, runtime, family, wanted, limit));
                // What is left of one must not be in the way of the next.
                let one = one.and_then(|one| match one.note {
                    None => Ok(one),
                    Some(_) => fleet.control.reset().map(|()| one),
                });
                match one {
                    Ok(one) => {
                        *read_back = one.read_back.min(*read_back);
                        reading.push(one.reading);
                        if one.note.is_none() {
                            seconds.push(one.seconds);
                        }
                        *note = one.note;
                    }
                    Err(error) => {
                        *note = Some(with_causes(&error));
                        *read_back = 0;
                    }
                }
            }
        }
    }
    bursts
        .into_iter()
        .map(|of_fleet| {
            Family::BOTH
                .into_iter()
                .zip(of_fleet)
                .map(|(family, (seconds, reading, read_back, note))| Burst {
                    family: family.to_string(),
                    wanted: extent.burst,
                    read_back,
                    note,
                    seconds: Figure::of(&seconds),
                    reading_seconds: Figure::of(&reading),
                })
                .collect()
        })
        .collect()
}

struct OneBurst {
    seconds: f64,
    reading: f64,
    read_back: usize,
    note: Option<String>,
}

fn burst(
    gate: &AnyGate,
    runtime: &Runtime,
    family: Family,
    wanted: usize,
    limit: Duration,
) -> Result<OneBurst> {
    let changes = admit(Pool::Measured, family, 0, wanted)?;
    let mut done = 0;
    let mut note = None;
    let start = Instant::now();
    for batch in changes.chunks(BATCH) {
        if start.elapsed() > limit {
            note = Some(format!("only {done} of {wanted} in {} s", limit.as_secs()));
            break;
        }
        if let Err(error) = runtime.block_on(gate.apply(batch)) {
            note = Some(with_causes(&error.into()));
            break;
        }
        done += batch.len();
    }
    let seconds = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let read_back = counted(gate, runtime)?.into_iter().sum();
    let reading = start.elapsed().as_secs_f64();
    if note.is_none() {
        for batch in withdraw(&changes).chunks(BATCH * 4) {
            if let Err(error) = runtime.block_on(gate.apply(batch)) {
                note = Some(format!("they were not withdrawn: {}", with_causes(&error.into())));
                break;
            }
        }
    }
    Ok(OneBurst { seconds, reading, read_back, note })
}

/// Counts are small.
pub(super) fn to_f64(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::MAX, f64::from)
}
