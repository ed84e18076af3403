//! Programs that open a port for a valid knock: ours, and those that others have written. A further
//! one is one entry more.

mod fwknop;
mod knockd;
mod letmein;
mod process;
mod recent;
mod ruroco;
mod sequence;
mod spa;

pub(super) use fwknop::base64;
pub(super) use spa::{SpaServer, random_noise};

use super::backends::{CANDIDATES, Candidate};
use super::sources::{Pool, source};
use crate::frames::Frame;
use crate::lab::{Family, Host};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// A program in one place, from its start to its stop.
pub(super) trait Contender {
    /// As the reports call it.
    fn name(&self) -> String;

    /// Whether it is ours.
    fn ours(&self) -> bool {
        false
    }

    /// Whether it is the kernel alone, without any program.
    fn is_floor(&self) -> bool {
        false
    }

    /// How many knocks a round has.
    fn knocks(&self) -> usize;

    /// With how many grants there it is measured.
    fn levels(&self) -> &'static [usize];

    /// Starts it afresh on this host, with its files below `directory`, and with so many grants
    /// there already, whose sources are the first ones of `sources`.
    fn start(
        &mut self,
        host: &Host,
        link: &Link<'_>,
        directory: &Path,
        sources: &[IpAddr],
    ) -> Result<()>;

    /// The packets of one valid knock for each source, in the order in which they have to come.
    fn packets(&mut self, host: &Host, sources: &[IpAddr]) -> Result<Vec<Frame>>;

    /// How many grants it says it has made since it was started, those from before included. It
    /// costs little to ask.
    fn heard(&mut self) -> Result<usize>;

    /// How many grants there are in the kernel.
    fn granted(&self, host: &Host) -> Result<usize>;

    /// Its process.
    fn pid(&self) -> Result<u32>;

    /// Ends it, with all it has started, and takes away what it has left in the kernel.
    fn stop(&mut self, host: &Host) -> Result<()>;

    /// What its client answers to a frame that comes back, where a knock is a dialogue and `packets`
    /// are only its beginning.
    fn answers(&self, _: &Host) -> Option<Answers> {
        None
    }

    /// What it says became of knocks that opened nothing, if it says so.
    fn losses(&self) -> Result<String> {
        Ok(String::new())
    }

    /// Waits until it is done with what came, if that can be told.
    fn await_rest(&self) -> Result<()> {
        Ok(())
    }

    /// Which kinds of noise mean something to it.
    fn noises(&self) -> &'static [Noise] {
        &[Noise::Random]
    }

    /// So many frames of noise of that kind. None of them may open anything.
    fn noise(
        &mut self,
        host: &Host,
        link: &Link<'_>,
        kind: Noise,
        count: usize,
    ) -> Result<Vec<Frame>>;

    /// The files that grow with what it writes: logs first, then what it remembers.
    fn files(&self) -> (Vec<PathBuf>, Vec<PathBuf>) {
        Default::default()
    }
}

/// See [`Contender::answers`].
pub(super) type Answers = Box<dyn Fn(&[u8]) -> Option<Frame> + Send>;

/// What comes beside valid knocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Noise {
    /// Of the right port and length, and nothing else right about it.
    Random,
    /// Knocks of a real client with another last byte: the tag is right, the MAC is not.
    BrokenMac,
    /// Knocks of a real client that were accepted, once more.
    Replays,
    /// Knocks of a real client that are two minutes old, and were never seen.
    Stale,
}

impl Noise {
    /// As the reports call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::BrokenMac => "right tag, broken MAC",
            Self::Replays => "replays",
            Self::Stale => "stale",
        }
    }
}

/// The `n`-th sender of noise: scattered over a network of a million, all of them forged.
fn noisy(n: usize) -> SocketAddr {
    let port = 1024 + u16::try_from(n * 31 % 38_000).unwrap_or_default();
    SocketAddr::new(source(Pool::Strangers, Family::V4, n * 7_919), port)
}

/// How packets come to a host.
pub(super) struct Link<'a> {
    /// Who sends them.
    pub(super) from: &'a Host,
    /// On which interface.
    pub(super) interface: &'a str,
}

impl Link<'_> {
    /// Sends them, whatever they say about their sender.
    pub(super) fn send(&self, frames: &[Frame]) -> Result<()> {
        self.from.inject_on(self.interface, frames)
    }
}

/// All there are.
pub(super) fn all() -> Vec<Box<dyn Contender>> {
    let mut all: Vec<Box<dyn Contender>> = vec![
        Box::new(fwknop::Fwknopd::capturing()),
        Box::new(fwknop::Fwknopd::listening()),
        Box::new(knockd::Knockd::default()),
    ];
    for candidate in CANDIDATES {
        all.push(Box::new(spa::SpaServer::with(candidate)));
    }
    all
}

/// Those that are measured under fire. The first is the floor: the kernel alone.
pub(super) fn under_fire() -> Vec<Box<dyn Contender>> {
    let mut all: Vec<Box<dyn Contender>> = vec![
        Box::new(recent::Recent),
        Box::new(fwknop::Fwknopd::capturing()),
        Box::new(fwknop::Fwknopd::listening()),
        Box::new(knockd::Knockd::default()),
        Box::new(letmein::Letmein::default()),
        Box::new(ruroco::Ruroco::default()),
    ];
    for candidate in ours_under_fire() {
        all.push(Box::new(SpaServer::with(candidate)));
    }
    all
}

/// The back-ends that keep grants in sets: those of the first tools, and that of nftables.
pub(super) fn ours_under_fire() -> impl Iterator<Item = Candidate> {
    CANDIDATES.into_iter().filter(|candidate| {
        candidate.keeping == super::results::Keeping::Sets && candidate.iptables != Some("legacy")
    })
}
