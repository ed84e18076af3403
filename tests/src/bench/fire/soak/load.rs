//! The load: round by round, so that at its end is known what has to be open and what must not be.

use crate::bench::contenders::{Contender as _, Noise, SpaServer};
use crate::bench::fire::shots::{schedule, shoot};
use crate::bench::fire::{Site, knockers};
use crate::bench::station::KNOCK_PORT;
use crate::device::{Ask, Device};
use crate::frames::Frame;
use crate::lab::Family;
use crate::wait::eventually;
use anyhow::{Context, Result, ensure};
use spa_server::control::Status;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::scope;
use std::time::{Duration, Instant};

/// Valid knocks of a round, each from another address, and the least pause between two; it may be as
/// much again. A round takes about five seconds.
const KNOCKS: usize = 250;
const PAUSE: Duration = Duration::from_millis(13);
/// How long one of them has time to open. How soon they open is for others to judge: here something
/// else may have the processors.
const PATIENCE: Duration = Duration::from_secs(8);
/// What they open ends after so many seconds. Who asks late, since something else has the processors,
/// must still find it open: the least is no less than the patience.
const LIFETIMES: [u32; 3] = [8, 10, 12];
const LONGEST: Duration = Duration::from_secs(12);
/// So many of them close what they have opened, which would have lasted so long.
const CLOSES: usize = 10;
const CLOSED_EARLY: u32 = 600;
/// Datagrams of noise a second, and different ones of each kind.
const NOISE_RATE: u64 = 2_000;
const NOISE_FRAMES: usize = 128;
const KINDS: [Noise; 4] = [Noise::Random, Noise::BrokenMac, Noise::Replays, Noise::Stale];
/// Once in so many rounds noise is made anew, since a tag is a client's for some minutes only; the
/// server reads changed clients; and it loses its link.
const NOISE_EVERY: usize = 6;
const RELOAD_EVERY: usize = 3;
const OUTAGE_EVERY: usize = 12;
/// Who comes with one reload, and goes with the next.
const NEWCOMER: &str = "newcomer";

/// What was done, and what came of it.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Knocks of which each had to open, and those that did not.
    pub(super) knocks: usize,
    pub(super) missed: Vec<String>,
    /// The longest that one took to open.
    pub(super) slowest: Duration,
    /// All that were valid, those that closed included.
    pub(super) valid: u64,
    pub(super) noise: u64,
    pub(super) closes: usize,
    pub(super) questions: usize,
    pub(super) reloads: usize,
    pub(super) outages: usize,
    /// What the server has accepted, what of it failed or was lost before, and what it dropped.
    pub(super) accepted: u64,
    pub(super) failed: u64,
    pub(super) dropped: BTreeMap<String, u64>,
}

/// See the module's text.
pub(super) struct Load<'a> {
    site: &'a Site<'a>,
    server: &'a mut SpaServer,
    noise: Vec<Frame>,
    newcomer: Option<Device>,
    /// How many addresses have knocked.
    used: usize,
    /// Who was let in, and when all of that has ended.
    ending: VecDeque<(Instant, BTreeSet<IpAddr>)>,
    tally: Tally,
}

impl<'a> Load<'a> {
    pub(super) fn on(site: &'a Site<'a>, server: &'a mut SpaServer) -> Self {
        Self {
            site,
            server,
            noise: Vec::new(),
            newcomer: None,
            used: 0,
            ending: VecDeque::new(),
            tally: Tally::default(),
        }
    }

    /// Keeps it up for so long.
    pub(super) fn last(mut self, start: Instant, duration: Duration) -> Result<Tally> {
        for number in 0.. {
            if start.elapsed() >= duration {
                break;
            }
            let round = self.round(number);
            round.with_context(|| format!("round {number}, after {:?}", start.elapsed()))?;
        }
        while self.await_first_end()? {}
        let Status { accepted, failed, kernel_drops, dropped, .. } =
            self.server.server()?.status()?;
        Ok(Tally { accepted, failed: failed + kernel_drops, dropped, ..self.tally })
    }

    fn round(&mut self, number: usize) -> Result<()> {
        if number.is_multiple_of(NOISE_EVERY) {
            self.make_noise()?;
        }
        if number % RELOAD_EVERY == 1 {
            self.reload(number)?;
        }
        if number % OUTAGE_EVERY == 2 {
            self.lose_link()?;
        }
        let sources = knockers(self.used, KNOCKS);
        let stay = KNOCKS - CLOSES;
        let opens = |at: usize, device: &Device| {
            let short = LIFETIMES.get(at % LIFETIMES.len()).filter(|_| at < stay);
            let ask = device.open("ssh").lifetime(short.copied().unwrap_or(CLOSED_EARLY));
            self.frame(at, &sources, &ask)
        };
        let frames = self.each(0..KNOCKS, opens)?;
        self.shoot(number, &frames, &sources)?;

        let closes = |at: usize, device: &Device| self.frame(at, &sources, &device.close("ssh"));
        self.site.link().send(&self.each(stay..KNOCKS, closes)?)?;
        self.tally.closes += CLOSES;
        self.tally.valid += u64::try_from(KNOCKS + CLOSES)?;
        self.await_end_of(&sources.iter().skip(stay).copied().collect())?;
        let ends = Instant::now() + LONGEST;
        self.ending.push_back((ends, sources.into_iter().take(stay).collect()));
        while self.ending.front().is_some_and(|(ends, _)| *ends <= Instant::now()) {
            self.await_first_end()?;
        }
        self.used += KNOCKS;

        self.server.server()?.admin(&["status"])?.ok()?;
        self.tally.questions += 1;
        Ok(())
    }

    /// A frame for each of these knocks of a round, by the clients in turns; the newcomer is first.
    fn each(
        &self,
        range: std::ops::Range<usize>,
        frame: impl Fn(usize, &Device) -> Result<Frame>,
    ) -> Result<Vec<Frame>> {
        let devices = self.server.devices();
        let of = |at: usize| {
            let known = devices.get((self.used + at) % devices.len().max(1));
            let device = self.newcomer.as_ref().filter(|_| at == 0).or(known);
            frame(at, device.context("there are no clients")?)
        };
        range.map(of).collect()
    }

    fn frame(&self, at: usize, sources: &[IpAddr], ask: &Ask<'_>) -> Result<Frame> {
        let source = sources.get(at).context("there are as many sources as knocks")?;
        let (from, host) = (SocketAddr::new(*source, 40_001), &self.site.host);
        Frame::udp(host, from, host.at(Family::V4, KNOCK_PORT), &ask.seal()?)
    }

    /// Sends the knocks amid noise, and notes which did not open.
    fn shoot(&mut self, number: usize, frames: &[Frame], sources: &[IpAddr]) -> Result<()> {
        let shots = schedule(frames, sources, PAUSE)?;
        let (site, noise, is_over) = (self.site, &self.noise, AtomicBool::new(false));
        let (latencies, noise) = scope(|scope| {
            let noise = scope.spawn(|| {
                site.on_the_wire(|wire| {
                    let mut barrage = wire.barrage(noise);
                    while !is_over.load(Ordering::Relaxed) {
                        barrage.last(Duration::from_millis(100), Some(NOISE_RATE))?;
                    }
                    Ok(barrage.sent())
                })
            });
            let latencies =
                site.on_the_wire(|wire| shoot(wire, &site.host, &shots, PATIENCE, None));
            is_over.store(true, Ordering::Relaxed);
            let noise = noise.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (latencies, noise)
        });
        self.tally.noise += noise?;
        let latencies = latencies?;
        self.tally.knocks += latencies.len();
        let slowest = latencies.iter().flatten().max().copied().unwrap_or_default();
        self.tally.slowest = self.tally.slowest.max(slowest);
        let missed = latencies.iter().zip(sources).filter(|(latency, _)| latency.is_none());
        self.tally.missed.extend(missed.map(|(_, source)| format!("{source} in round {number}")));
        Ok(())
    }

    /// All kinds in turns, so that every moment has of each.
    fn make_noise(&mut self) -> Result<()> {
        let (host, link) = (&self.site.host, self.site.link());
        let mut kinds = Vec::new();
        for kind in KINDS {
            kinds.push(self.server.noise(host, &link, kind, NOISE_FRAMES)?.into_iter());
        }
        // What is replayed was valid once.
        self.tally.valid += u64::try_from(NOISE_FRAMES)?;
        self.noise.clear();
        for _ in 0..NOISE_FRAMES {
            self.noise.extend(kinds.iter_mut().filter_map(Iterator::next));
        }
        Ok(())
    }

    /// One client goes, another one comes, and one may do something else than before.
    fn reload(&mut self, number: usize) -> Result<()> {
        let (client, device) = self.server.newcomer(NEWCOMER)?;
        let server = self.server.server_mut()?;
        server.reconfigure(|configuration| {
            configuration.clients.retain(|client| client.name != NEWCOMER);
            configuration.clients.push(client);
            if let Some(first) = configuration.clients.first_mut() {
                let hours = 2 + number % 2;
                first.max_lifetime = Some(format!("{hours}h"));
            }
        })?;
        server.admin(&["reload"])?.ok()?;
        let clients = server.status()?.clients.total;
        let wanted = server.configuration().clients.len();
        ensure!(
            clients == u64::try_from(wanted)?,
            "{clients} clients after a reload, not {wanted}"
        );
        self.newcomer = Some(device);
        self.tally.reloads += 1;
        Ok(())
    }

    /// The server's interface goes down for a moment, and the server captures on it again.
    fn lose_link(&mut self) -> Result<()> {
        let server = self.server.server()?;
        let Site { host, interface, .. } = self.site;
        let uptime = server.status()?.uptime;
        host.without_link(interface, || {
            eventually("the server is to live without its interface", || {
                Ok((server.status()?.uptime > uptime + 1).then_some(()))
            })
        })?;
        eventually("the server is to capture again", || {
            let interfaces = server.status()?.interfaces;
            Ok(interfaces.iter().all(|one| one.state == "running").then_some(()))
        })?;
        self.tally.outages += 1;
        Ok(())
    }

    /// Waits until what was opened longest ago has ended, if there is anything.
    fn await_first_end(&mut self) -> Result<bool> {
        let Some((ends, sources)) = self.ending.pop_front() else { return Ok(false) };
        std::thread::sleep(ends.saturating_duration_since(Instant::now()));
        self.await_end_of(&sources)?;
        Ok(true)
    }

    /// Waits until the kernel admits none of these.
    fn await_end_of(&self, sources: &BTreeSet<IpAddr>) -> Result<()> {
        eventually("what has ended, or was closed, is to be closed in the kernel", || {
            let admitted = self.server.admitted(&self.site.host)?;
            Ok((!admitted.iter().any(|source| sources.contains(source))).then_some(()))
        })
    }
}
