//! Valid knocks amid noise, as fast as one processor can send it.

use super::results::{Latency, Of, UnderNoise};
use super::shots::{PATIENCE, schedule, shoot};
use super::usage::{Processes, bytes};
use super::wire::as_f64;
use super::{FireExtent, Site, knockers, of};
use crate::bench::contenders::{self, Contender, Noise};
use crate::lab::Lab;
use crate::wait::eventually;
use anyhow::Result;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The least pause between two knocks; it may be as much again.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a program gets to write what the noise has given it to write.
const SETTLE: Duration = Duration::from_millis(500);

/// Measures all programs, one after the other: what is under fire needs the machine.
pub(super) fn measure(lab: &Lab, extent: &FireExtent) -> Result<Vec<Of<Vec<UnderNoise>>>> {
    let mut all = Vec::new();
    for mut contender in contenders::under_fire() {
        let site = Site::new(lab)?;
        let found = site.start(contender.as_mut()).and_then(|()| {
            let kinds = contender.noises().iter().enumerate();
            kinds.map(|(at, kind)| amid(&site, contender.as_mut(), *kind, at, extent)).collect()
        });
        let stopped = contender.stop(&site.host);
        all.push(of(contender.as_ref(), found.and_then(|found| stopped.map(|()| found))));
    }
    Ok(all)
}

fn amid(
    site: &Site<'_>,
    contender: &mut dyn Contender,
    kind: Noise,
    at: usize,
    extent: &FireExtent,
) -> Result<UnderNoise> {
    contender.await_rest()?;
    let noise = contender.noise(&site.host, &site.link(), kind, extent.frames)?;
    let processes = Processes::of(&site.host)?;
    let resident_before = processes.resident()?;
    let (logs, states) = contender.files();
    // What was accepted before, also to make noise of, is written down first.
    let sizes = || (bytes(&logs), bytes(&states));
    let mut before = sizes();
    eventually("the files are to come to rest", || {
        sleep(SETTLE / 2);
        let now = sizes();
        Ok((std::mem::replace(&mut before, now) == now).then_some(()))
    })?;

    // First the noise alone: what the files grow by then, they grow by for nothing.
    let alone = site.on_the_wire(|wire| {
        let mut barrage = wire.barrage(&noise);
        barrage.last(extent.alone, None)?;
        Ok(barrage.sent())
    })?;
    sleep(SETTLE);
    let (log, state) = sizes();
    let log_bytes = log.saturating_sub(before.0);
    let state_bytes = state.saturating_sub(before.1);

    let sources = knockers(at * extent.amid, extent.amid);
    let knocks = contender.packets(&site.host, &sources)?;
    let shots = schedule(&knocks, &sources, PAUSE)?;
    let arrived_before = site.arrived()?;
    let answers = contender.answers(&site.host);
    let (latencies, sent, seconds) = site.in_dialogue(answers, |wire| {
        let mut barrage = wire.barrage(&noise);
        let start = Instant::now();
        let latencies = shoot(wire, &site.host, &shots, PATIENCE, Some(&mut barrage))?;
        Ok((latencies, barrage.sent(), start.elapsed().as_secs_f64()))
    })?;
    let arrived = site.arrived()?.saturating_sub(arrived_before);
    sleep(SETTLE);
    Ok(UnderNoise {
        kind,
        sent_pps: as_f64(sent) / seconds,
        received_pps: as_f64(arrived) / seconds,
        seconds,
        latency: Latency::of(&latencies),
        alone,
        log_bytes,
        state_bytes,
        resident_before,
        resident_after: processes.resident()?,
    })
}
