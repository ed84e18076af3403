//! Our own server, from the wire to the kernel.

use super::process::Tail;
use super::{Contender, Link, Noise, noisy};
use crate::bench::backends::Candidate;
use crate::bench::results::Keeping;
use crate::bench::sources::{Pool, source};
use crate::bench::station::KNOCK_PORT;
use crate::config::{Client, Configuration, Rate};
use crate::device::{Device, Identity, random};
use crate::frames::Frame;
use crate::lab::{Family, Host};
use crate::server::Server;
use crate::wait::{at_once, eventually, eventually_within};
use anyhow::{Context, Result, ensure};
use spa_keys::{Overwrite, PublicKey, write_private_key};
use spa_proto::PacketLength;
use spa_server::gate::{Gate as _, GateError};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};

/// Among whom the knocks are shared out: the replay window of one holds 4,096 of them.
const CLIENTS: usize = 10;
/// How many of very many clients knock.
const KNOCKING: usize = 1_000;
/// Accepted knocks that are sent again and again as noise.
const REPLAYED: usize = 512;
/// How old a stale knock is: outside of the freshness window, but its client is still found.
const STALE: i64 = -120;
/// A start with very many clients takes no longer.
const START: Duration = Duration::from_secs(120);
/// Who judges nothing for this long has nothing left to judge.
const STILL: Duration = Duration::from_millis(500);
/// Knocks at a time while grants are put there: the capture's buffer holds far more.
const CHUNK: usize = 2_000;

/// See the module's text.
pub(in crate::bench) struct SpaServer {
    candidate: Candidate,
    clients: usize,
    /// As the configuration has it.
    prefilter: &'static str,
    server: Option<Server>,
    /// Its key.
    key: Option<PublicKey>,
    /// How long the process took from its start until it answered.
    started_in: Duration,
    /// It says so when the kernel has taken a grant. Asking for the status would cost it more.
    audit: Option<Tail>,
    devices: Vec<Device>,
}

impl SpaServer {
    /// With this back-end.
    pub(in crate::bench) fn with(candidate: Candidate) -> Self {
        Self {
            candidate,
            clients: CLIENTS,
            prefilter: "auto",
            server: None,
            key: None,
            started_in: Duration::ZERO,
            audit: None,
            devices: Vec::new(),
        }
    }

    /// With this many clients.
    pub(in crate::bench) fn of_clients(self, clients: usize) -> Self {
        Self { clients, ..self }
    }

    /// Where noise wakes it.
    pub(in crate::bench) fn without_prefilter(self) -> Self {
        Self { prefilter: "off", ..self }
    }

    /// How long the process took from its start until it answered.
    pub(in crate::bench) fn started_in(&self) -> Duration {
        self.started_in
    }

    /// Stops it, and starts it again; says how long that took until it answered.
    pub(in crate::bench) fn start_again(&mut self) -> Result<Duration> {
        let server = self.server_mut()?;
        server.stop()?;
        let start = Instant::now();
        server.start_within(START)?;
        let took = start.elapsed();
        let log = server.directory().join("server.log");
        self.audit = Some(Tail::of(&log, "event=opened ")?);
        Ok(took)
    }

    /// How many datagrams it has judged since its start.
    pub(in crate::bench) fn judged(&self) -> Result<u64> {
        let status = self.server()?.status()?;
        Ok(status.accepted + status.dropped.values().sum::<u64>())
    }

    /// The one that runs.
    pub(in crate::bench) fn server(&self) -> Result<&Server> {
        self.server.as_ref().context("spa-server does not run")
    }

    /// The same, to be changed.
    pub(in crate::bench) fn server_mut(&mut self) -> Result<&mut Server> {
        self.server.as_mut().context("spa-server does not run")
    }

    /// Those who knock.
    pub(in crate::bench) fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// A client that the server does not know yet, and its device.
    pub(in crate::bench) fn newcomer(&self, name: &str) -> Result<(Client, Device)> {
        let identity = Identity::generate()?;
        let key = self.key.context("spa-server was never started")?;
        Ok((client(name.to_owned(), &identity), identity.device(key)?))
    }

    /// Whom the kernel admits.
    pub(in crate::bench) fn admitted(&self, host: &Host) -> Result<Vec<IpAddr>> {
        let candidate = self.candidate;
        host.inside(move || {
            runtime()?.block_on(async {
                match candidate.gate()?.snapshot().await {
                    Ok(live) => Ok(live.iter().map(|one| one.element.source.address()).collect()),
                    Err(GateError::NotInstalled) => Ok(Vec::new()),
                    Err(error) => Err(error.into()),
                }
            })
        })
    }

    fn configuration(&self, directory: &Path, clients: &[Identity]) -> Configuration {
        let mut configuration = Configuration::new(directory);
        configuration.default_lifetime = "2h".into();
        configuration.prefilter = self.prefilter.into();
        configuration.gate.backend = Some(self.candidate.backend.to_string());
        configuration.gate.tools =
            self.candidate.tools().into_iter().map(|(n, path)| (n.into(), path.into())).collect();
        configuration.clients = clients
            .iter()
            .enumerate()
            .map(|(number, identity)| client(format!("client-{number}"), identity))
            .collect();
        configuration
    }
}

impl Contender for SpaServer {
    fn name(&self) -> String {
        let without = if self.prefilter == "off" { ", without the prefilter" } else { "" };
        format!("spa-server, {}{without}", self.candidate.name)
    }

    fn ours(&self) -> bool {
        true
    }

    fn knocks(&self) -> usize {
        1_000
    }

    fn levels(&self) -> &'static [usize] {
        match self.candidate.keeping {
            Keeping::Sets => &[0, 1_000, 10_000],
            Keeping::Rules => &[0, 1_000],
        }
    }

    fn start(
        &mut self,
        host: &Host,
        link: &Link<'_>,
        directory: &Path,
        sources: &[IpAddr],
    ) -> Result<()> {
        // A back-end that is not there would end the server at its start.
        self.candidate.gate()?;
        let key = Identity::generate()?;
        self.key = Some(key.public());
        let clients = identities(self.clients)?;
        self.devices = clients
            .iter()
            .take(KNOCKING)
            .map(|client| client.device(key.public()))
            .collect::<Result<_>>()?;
        if directory.exists() {
            fs::remove_dir_all(directory)?;
        }
        let configuration = self.configuration(directory, &clients);
        let mut server = Server::new(host, directory, configuration)?;
        server.as_in_the_unit();
        let key_file = &server.configuration().private_key_file;
        write_private_key(key_file, key.private(), Overwrite::Replace)?;
        let start = Instant::now();
        server.start_within(START)?;
        self.started_in = start.elapsed();
        // What is measured is what is said to be measured.
        let prefilter = server.status()?.prefilter;
        let expected =
            if self.prefilter == "off" { "off, by the configuration" } else { "in the kernel" };
        ensure!(prefilter == expected, "the prefilter is {prefilter}");
        self.audit = Some(Tail::of(&directory.join("server.log"), "event=opened ")?);
        self.server = Some(server);
        for (at, chunk) in sources.chunks(CHUNK).enumerate() {
            let packets = self.packets(host, chunk)?;
            link.send(&packets)?;
            let wanted = at * CHUNK + chunk.len();
            eventually_within(Duration::from_secs(30), "the first grants are to be there", || {
                Ok((self.heard()? >= wanted).then_some(()))
            })?;
        }
        let there = self.granted(host)?;
        ensure!(there == sources.len(), "{there} grants are there before, not {}", sources.len());
        Ok(())
    }

    fn packets(&mut self, host: &Host, sources: &[IpAddr]) -> Result<Vec<Frame>> {
        let destination = host.at(Family::V4, KNOCK_PORT);
        sources
            .iter()
            .zip(self.devices.iter().cycle())
            .map(|(source, device)| {
                let from = SocketAddr::new(*source, 40_001);
                Frame::udp(host, from, destination, &device.open("ssh").seal()?)
            })
            .collect()
    }

    fn heard(&mut self) -> Result<usize> {
        self.audit.as_mut().context("spa-server does not run")?.count()
    }

    fn granted(&self, host: &Host) -> Result<usize> {
        Ok(self.admitted(host)?.len())
    }

    fn pid(&self) -> Result<u32> {
        // What changes the firewall.
        self.server()?.helper_pid()
    }

    fn stop(&mut self, host: &Host) -> Result<()> {
        let Some(mut server) = self.server.take() else { return Ok(()) };
        server.stop()?;
        let candidate = self.candidate;
        host.inside(move || Ok(runtime()?.block_on(async { candidate.gate()?.remove().await })?))?;
        let left = self.granted(host)?;
        ensure!(left == 0, "{left} grants are left without a gate");
        Ok(())
    }

    fn losses(&self) -> Result<String> {
        let status = self.server()?.status()?;
        let mut all = vec![
            ("dropped by the kernel".to_owned(), status.kernel_drops),
            ("failed".to_owned(), status.failed),
        ];
        all.extend(status.dropped);
        all.retain(|(_, count)| *count > 0);
        Ok(all.iter().map(|(why, count)| format!("{count} {why}")).collect::<Vec<_>>().join(", "))
    }

    /// It has judged all that came.
    fn await_rest(&self) -> Result<()> {
        let mut last = self.judged()?;
        eventually("the server is to come to rest", || {
            sleep(STILL);
            let now = self.judged()?;
            Ok((std::mem::replace(&mut last, now) == now).then_some(()))
        })
    }

    fn noises(&self) -> &'static [Noise] {
        &[Noise::Random, Noise::BrokenMac, Noise::Replays, Noise::Stale]
    }

    fn noise(
        &mut self,
        host: &Host,
        link: &Link<'_>,
        kind: Noise,
        count: usize,
    ) -> Result<Vec<Frame>> {
        let to = host.at(Family::V4, KNOCK_PORT);
        // All of it seems to come from one client, who knocks as well.
        let device = self.devices.first().cloned().context("there are no clients")?;
        let mut payloads = Vec::with_capacity(count);
        match kind {
            Noise::Random => return random_noise(host, count),
            Noise::BrokenMac => {
                for _ in 0..count {
                    let mut knock = device.open("ssh").seal()?;
                    if let Some(last) = knock.last_mut() {
                        *last ^= 1;
                    }
                    payloads.push(knock);
                }
            }
            Noise::Stale => {
                for _ in 0..count {
                    payloads.push(device.with_clock_ahead(STALE).open("ssh").seal()?);
                }
            }
            Noise::Replays => {
                // Whoever the noise comes from, these are granted to none of its senders.
                let granted: Vec<_> = (0..REPLAYED.min(count))
                    .map(|n| source(Pool::Senders, Family::V4, n))
                    .collect();
                let knocks = granted
                    .iter()
                    .map(|ip| {
                        let from = SocketAddr::new(*ip, 40_001);
                        Frame::udp(host, from, to, &device.open("ssh").seal()?)
                    })
                    .collect::<Result<Vec<_>>>()?;
                let wanted = self.server()?.status()?.accepted + u64::try_from(knocks.len())?;
                link.send(&knocks)?;
                self.server()?.await_accepted(wanted)?;
                payloads.extend(knocks.iter().map(|knock| knock.payload().to_vec()));
            }
        }
        let payloads = payloads.iter().cycle().take(count).enumerate();
        payloads.map(|(n, payload)| Frame::udp(host, noisy(n), to, payload)).collect()
    }

    fn files(&self) -> (Vec<PathBuf>, Vec<PathBuf>) {
        let Some(server) = &self.server else { return Default::default() };
        let state = server.configuration().state_directory.clone();
        (vec![server.directory().join("server.log")], vec![state])
    }
}

/// Random bytes, as many as a knock of the default length has.
pub(in crate::bench) fn random_noise(host: &Host, count: usize) -> Result<Vec<Frame>> {
    let length = PacketLength::default().packet();
    (0..count)
        .map(|n| {
            let mut bytes = random::<512>()?.to_vec();
            bytes.truncate(length);
            Frame::udp(host, noisy(n), host.at(Family::V4, KNOCK_PORT), &bytes)
        })
        .collect()
}

/// A client whose limits no measurement meets.
fn client(name: String, identity: &Identity) -> Client {
    Client {
        name,
        public_key: identity.public().to_string(),
        allow: vec!["ssh".into()],
        max_sources: Some(65_536),
        max_lifetime: Some("2h".into()),
        rate: Some(Rate { per_minute: 60_000, burst: 10_000 }),
        ..Client::default()
    }
}

/// So many clients. With very many, two threads are none too many.
fn identities(count: usize) -> Result<Vec<Identity>> {
    let halves = [count / 2, count - count / 2];
    let made = at_once(halves, |count| (0..count).map(|_| Identity::generate()).collect())?;
    Ok(made.into_iter().flat_map(|half: Vec<_>| half).collect())
}

fn runtime() -> Result<Runtime> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}
