//! One knock on its own, again and again: all programs run side by side, and knock in turns.

use super::results::{Latency, Of};
use super::shots::{PATIENCE, schedule, shoot};
use super::{FireExtent, Site, knockers, of};
use crate::bench::contenders::{self, Contender};
use crate::lab::Lab;
use anyhow::Result;
use std::time::Duration;

/// The least pause before a knock; it may be as much again.
const PAUSE: Duration = Duration::from_millis(10);

/// Measures all programs, the floor first.
pub(super) fn measure(lab: &Lab, extent: &FireExtent) -> Result<Vec<Of<Latency>>> {
    let mut all = Vec::new();
    for mut contender in contenders::under_fire() {
        let site = Site::new(lab)?;
        let found = site.start(contender.as_mut()).map(|()| Vec::new());
        all.push((site, contender, found));
    }
    for number in 0..extent.singles {
        for (site, contender, found) in &mut all {
            let Ok(latencies) = found else { continue };
            match knock(site, contender.as_mut(), number) {
                Ok(latency) => latencies.extend(latency),
                Err(error) => *found = Err(error),
            }
        }
    }
    let told = all.into_iter().map(|(site, mut contender, found)| {
        let stopped = contender.stop(&site.host);
        of(contender.as_ref(), found.and_then(|found| stopped.map(|()| Latency::of(&found))))
    });
    Ok(told.collect())
}

/// Knocks once, as the `number`-th one of this program.
pub(super) fn knock(
    site: &Site<'_>,
    contender: &mut dyn Contender,
    number: usize,
) -> Result<Vec<Option<Duration>>> {
    let sources = knockers(number, 1);
    let frames = contender.packets(&site.host, &sources)?;
    let shots = schedule(&frames, &sources, PAUSE)?;
    site.in_dialogue(contender.answers(&site.host), |wire| {
        shoot(wire, &site.host, &shots, PATIENCE, None)
    })
}
