//! Valid knocks of different clients from different addresses, at one rate after the other. What a
//! program keeps up with is the highest rate at which all of them open.

use super::results::{Of, Rate};
use super::wire::as_f64;
use super::{FireExtent, Site, knockers, of};
use crate::bench::contenders::{self, Contender, SpaServer, ours_under_fire};
use crate::bench::elements::to_f64;
use crate::lab::Lab;
use anyhow::{Context as _, Result};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

/// Among how many clients our knocks are shared out.
const CLIENTS: usize = 1_000;
/// All knocks have to be open so soon after the last one was sent: what only waits in a queue is
/// not kept up with.
pub(super) const BEHIND: Duration = Duration::from_millis(300);
/// Nothing more will open when nothing has for so long.
const STUCK: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(2);
/// Nobody is waited for longer than this.
const LIMIT: Duration = Duration::from_secs(15);

/// Measures all programs, one after the other. A program that has not kept up with a rate is not
/// asked for a higher one.
pub(super) fn measure(lab: &Lab, extent: &FireExtent) -> Result<Vec<Of<Vec<Rate>>>> {
    let others = contenders::under_fire().into_iter();
    // The floor has lists of a hundred addresses each.
    let others = others.filter(|one| !one.ours() && !one.is_floor());
    let ours = ours_under_fire().map(|candidate| -> Box<dyn Contender> {
        Box::new(SpaServer::with(candidate).of_clients(CLIENTS.min(extent.frames)))
    });
    let mut all = Vec::new();
    for mut contender in others.chain(ours) {
        let found = ramp(&Site::new(lab)?, contender.as_mut(), extent);
        all.push(of(contender.as_ref(), found));
    }
    Ok(all)
}

fn ramp(site: &Site<'_>, contender: &mut dyn Contender, extent: &FireExtent) -> Result<Vec<Rate>> {
    let mut rates = Vec::new();
    for rate in &extent.rates {
        let found = site.start(contender).and_then(|()| at(site, contender, *rate, extent.rate));
        let stopped = contender.stop(&site.host);
        let found = found?;
        stopped?;
        let keeps_up = found.keeps_up();
        rates.push(found);
        if !keeps_up {
            break;
        }
    }
    Ok(rates)
}

impl Rate {
    /// Whether all were open in time.
    pub fn keeps_up(&self) -> bool {
        let limit = BEHIND.as_secs_f64() * 1e3;
        self.opened == self.knocks && self.behind_ms.is_some_and(|behind| behind <= limit)
    }
}

fn at(
    site: &Site<'_>,
    contender: &mut dyn Contender,
    rate: u64,
    duration: Duration,
) -> Result<Rate> {
    let knocks = usize::try_from(rate * u64::try_from(duration.as_millis())? / 1_000)?;
    let frames = contender.packets(&site.host, &knockers(0, knocks))?;
    let each = to_f64(frames.len() / knocks.max(1));
    let answers = contender.answers(&site.host);
    let is_over = &AtomicBool::new(false);
    let frames = &frames;
    let (tell, told) = channel();
    let (took, behind) = thread::scope(|scope| {
        // Who has sent the beginnings of dialogues goes on with them.
        let sender = scope.spawn(move || {
            site.in_dialogue(answers, move |wire| {
                let took = wire.barrage(frames).once(as_f64(rate) * each)?;
                tell.send((took, Instant::now()))?;
                wire.converse_until(is_over)
            })
        });
        let found = told.recv().context("nothing was sent").and_then(|(took, sent)| {
            let behind = all_open(contender, knocks, sent)?;
            Ok((took, behind))
        });
        is_over.store(true, Ordering::Relaxed);
        sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        found
    })?;
    Ok(Rate {
        wanted: rate,
        sent: to_f64(knocks) / took.as_secs_f64(),
        knocks,
        opened: contender.granted(&site.host)?,
        behind_ms: behind.map(|behind| behind.as_secs_f64() * 1e3),
        losses: contender.losses()?,
    })
}

/// How long after the last one was sent all of them are open, if ever. What it says costs less to ask
/// than what the kernel has, but only that counts.
fn all_open(
    contender: &mut dyn Contender,
    knocks: usize,
    sent: Instant,
) -> Result<Option<Duration>> {
    let (mut last, mut since) = (contender.heard()?, Instant::now());
    while sent.elapsed() < LIMIT && since.elapsed() < STUCK {
        if last >= knocks {
            return Ok(Some(sent.elapsed()));
        }
        sleep(PAUSE);
        let heard = contender.heard()?;
        if heard != last {
            (last, since) = (heard, Instant::now());
        }
    }
    Ok(None)
}
