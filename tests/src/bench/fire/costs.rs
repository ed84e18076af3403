//! What a datagram of noise costs our server, beside a program that only counts datagrams.

use super::counter::{Counter, Delivery};
use super::results::NoiseCost;
use super::usage::Processes;
use super::wire::as_f64;
use super::{FireExtent, Site};
use crate::bench::contenders::{Contender as _, SpaServer, ours_under_fire, random_noise};
use crate::bench::figures::median;
use crate::bench::station::KNOCK_PORT;
use crate::bench::volley::Spent;
use crate::frames::Frame;
use crate::lab::Lab;
use crate::wait::eventually;
use anyhow::{Result, bail};
use spa_proto::PacketLength;
use spa_server::capture::filter;
use spa_server::frame::LinkType;
use std::thread::sleep;
use std::time::Duration;

/// A program that does not count more than before for this long has nothing left to count.
const STILL: Duration = Duration::from_millis(150);

/// Less is not told from nothing: rounds in which nobody reads differ by more.
const LEAST_NS: f64 = 10.0;

/// One of those that are compared.
enum Reader {
    Server(Box<SpaServer>),
    Counter(Counter),
    Nobody,
}

/// What one round has found.
struct Sample {
    received_pps: f64,
    seen: f64,
    own_ns: f64,
    sender_ns: f64,
}

impl Sample {
    /// What it cost to read: its own time, and by how much the sender's time is longer than where
    /// nobody reads, for there the kernel filters, copies and wakes. A sender that keeps to a rate
    /// waits for the rest of its time, so that nothing is told by that.
    fn ns(&self, nobody: &Self, rate: Option<u64>) -> f64 {
        let for_it = if rate.is_some() { 0.0 } else { self.sender_ns - nobody.sender_ns };
        (self.own_ns + for_it).max(LEAST_NS)
    }
}

/// A host on which one of them runs.
pub(super) struct Target<'a> {
    pub(super) site: Site<'a>,
    name: String,
    reader: Reader,
    frames: Vec<Frame>,
}

/// Measures both rates. The counters come first: that which takes packets as the server does, then
/// the other.
pub(super) fn measure(lab: &Lab, extent: &FireExtent) -> Result<Vec<NoiseCost>> {
    let mut targets = Vec::new();
    for delivery in [Delivery::Immediate, Delivery::Gathered] {
        targets.push(Target::counter(lab, delivery, extent)?);
    }
    for candidate in ours_under_fire() {
        targets.push(Target::server(Site::new(lab)?, SpaServer::with(candidate), extent)?);
    }
    // What the prefilter gains.
    if let Some(candidate) = ours_under_fire().last() {
        let server = SpaServer::with(candidate).without_prefilter();
        targets.push(Target::server(Site::new(lab)?, server, extent)?);
    }
    let mut costs = Vec::new();
    for rate in [Some(extent.moderate), None] {
        costs.extend(at_rate(lab, &mut targets, rate, extent)?);
    }
    targets.into_iter().try_for_each(Target::stop)?;
    Ok(costs)
}

/// Measures all of these in turns, and a host on which nobody reads. Ratios are those to the first
/// and to the second of them.
pub(super) fn at_rate(
    lab: &Lab,
    targets: &mut [Target<'_>],
    rate: Option<u64>,
    extent: &FireExtent,
) -> Result<Vec<NoiseCost>> {
    let mut nobody = Target::nobody(lab, extent)?;
    let mut of_nobody = Vec::new();
    let mut samples: Vec<Vec<Sample>> = targets.iter().map(|_| Vec::new()).collect();
    for _ in 0..extent.rounds {
        of_nobody.push(nobody.sample(rate, extent.round)?);
        for (target, samples) in targets.iter_mut().zip(&mut samples) {
            samples.push(target.sample(rate, extent.round)?);
        }
    }
    let of = |samples: &[Sample], figure: fn(&Sample) -> f64| {
        median(&samples.iter().map(figure).collect::<Vec<_>>()).unwrap_or_default()
    };
    let all_ns = |samples: &[Sample]| -> Vec<f64> {
        samples.iter().zip(&of_nobody).map(|(sample, nobody)| sample.ns(nobody, rate)).collect()
    };
    let ratio = |own: &[Sample], at: usize| {
        let by = all_ns(samples.get(at).map(Vec::as_slice).unwrap_or_default());
        let ratios: Vec<_> = all_ns(own).iter().zip(by).map(|(own, by)| own / by).collect();
        median(&ratios).unwrap_or_default()
    };
    let costs = targets.iter().zip(&samples).map(|(target, samples)| NoiseCost {
        name: target.name.clone(),
        ours: matches!(target.reader, Reader::Server(_)),
        rate,
        received_pps: of(samples, |one| one.received_pps),
        seen: of(samples, |one| one.seen),
        ns: median(&all_ns(samples)).unwrap_or_default(),
        own_ns: of(samples, |one| one.own_ns),
        ratio: ratio(samples, 0),
        ratio_to_gathered: ratio(samples, 1),
        sender_ns: of(samples, |one| one.sender_ns),
    });
    Ok(costs.collect())
}

impl<'a> Target<'a> {
    fn counter(lab: &'a Lab, delivery: Delivery, extent: &FireExtent) -> Result<Self> {
        let site = Site::new(lab)?;
        let length = PacketLength::default().packet();
        let text = filter::expression(LinkType::Ethernet, &[KNOCK_PORT], length);
        let reader = Reader::Counter(Counter::start(&site.host, delivery, &text)?);
        site.leave_a_processor()?;
        let frames = random_noise(&site.host, extent.frames)?;
        Ok(Self { site, name: format!("a counter, {delivery}"), reader, frames })
    }

    fn nobody(lab: &'a Lab, extent: &FireExtent) -> Result<Self> {
        let site = Site::new(lab)?;
        let frames = random_noise(&site.host, extent.frames)?;
        Ok(Self { site, name: "nobody".to_owned(), reader: Reader::Nobody, frames })
    }

    pub(super) fn server(
        site: Site<'a>,
        mut server: SpaServer,
        extent: &FireExtent,
    ) -> Result<Self> {
        site.start(&mut server)?;
        let frames = random_noise(&site.host, extent.frames)?;
        Ok(Self { site, name: server.name(), reader: Reader::Server(Box::new(server)), frames })
    }

    /// The server, if it is one.
    pub(super) fn running(&mut self) -> Result<(&Site<'a>, &mut SpaServer)> {
        match &mut self.reader {
            Reader::Server(server) => Ok((&self.site, server)),
            Reader::Counter(_) | Reader::Nobody => bail!("{} opens nothing", self.name),
        }
    }

    /// Ends it.
    pub(super) fn stop(mut self) -> Result<()> {
        match &mut self.reader {
            Reader::Server(server) => server.stop(&self.site.host),
            Reader::Counter(_) | Reader::Nobody => Ok(()),
        }
    }

    fn sample(&mut self, rate: Option<u64>, duration: Duration) -> Result<Sample> {
        let processes = Processes::of(&self.site.host)?;
        let seen_before = self.seen()?;
        let (cpu_before, arrived_before) = (processes.cpu(), self.site.arrived()?);
        let (sent, took, spent) = self.site.on_the_wire(|wire| {
            let mut barrage = wire.barrage(&self.frames);
            let before = Spent::now()?;
            let took = barrage.last(duration, rate)?;
            Ok((barrage.sent(), took, Spent::now()?.since(before)))
        })?;
        let arrived = self.site.arrived()?.saturating_sub(arrived_before);
        let cpu = at_rest(&processes)?.saturating_sub(cpu_before);
        let seen = self.seen()?.saturating_sub(seen_before);
        let each = |spent: Duration, count: u64| spent.as_secs_f64() * 1e9 / as_f64(count.max(1));
        Ok(Sample {
            received_pps: as_f64(arrived) / took.as_secs_f64(),
            seen: as_f64(seen) / as_f64(arrived.max(1)),
            own_ns: each(cpu, seen),
            sender_ns: each(spent, sent),
        })
    }

    /// How many datagrams its reader has seen since its start.
    fn seen(&mut self) -> Result<u64> {
        match &mut self.reader {
            Reader::Server(server) => server.judged(),
            Reader::Counter(counter) => counter.count(),
            Reader::Nobody => self.site.arrived(),
        }
    }
}

/// Their processor time when they have nothing left to do. Nobody asks them anything before: answers
/// would cost them more.
fn at_rest(processes: &Processes) -> Result<Duration> {
    let mut last = processes.cpu();
    eventually("the reader is to come to rest", || {
        sleep(STILL);
        let now = processes.cpu();
        // They do a little now and then.
        let still = now.saturating_sub(std::mem::replace(&mut last, now)) < STILL / 50;
        Ok(still.then_some(now))
    })
}
