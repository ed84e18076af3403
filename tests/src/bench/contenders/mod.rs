//! Programs that open a port for a valid knock: ours, and those that others have written. A further
//! one is one entry more.

mod fwknop;
mod knockd;
mod process;
mod spa;

pub(super) use fwknop::base64;

use super::backends::CANDIDATES;
use crate::frames::Frame;
use crate::lab::Host;
use anyhow::Result;
use std::net::IpAddr;
use std::path::Path;

/// A program in one place, from its start to its stop.
pub(super) trait Contender {
    /// As the reports call it.
    fn name(&self) -> String;

    /// Whether it is ours.
    fn ours(&self) -> bool {
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
