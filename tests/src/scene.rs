//! The usual cast: a lab, sshd and two other services behind the gate, and one client.

use crate::command::Finished;
use crate::config::{Client, Configuration, Rate};
use crate::device::{Device, Identity};
use crate::lab::{Family, Host, Lab};
use crate::probe::{Listener, PortState};
use crate::server::Server;
use crate::ssh::Sshd;
use crate::wait::{DEADLINE, at_once, eventually_within};
use anyhow::{Context, Result, ensure};
use spa_keys::{Overwrite, write_private_key};
use std::net::SocketAddr;
use std::time::Duration;

/// Where sshd listens: the service `ssh`.
pub const SSH_PORT: u16 = 22;
/// Where an echo service listens: the service `web`.
pub const WEB_PORT: u16 = 8080;
/// Where a UDP echo service listens: the service `dns`.
const DNS_PORT: u16 = 8053;
/// The name of the client.
const CLIENT: &str = "laptop";

/// See the module's text. The client `laptop` may open `ssh` and `web`, for an hour at most, from
/// anywhere.
pub struct Scene {
    /// The server's process and files.
    pub server: Server,
    /// The owner's device.
    pub laptop: Device,
    /// The owner's key.
    pub identity: Identity,
    /// The server's key.
    pub server_identity: Identity,
    /// The sshd behind the gate.
    pub sshd: Sshd,
    /// The link and the hosts on it; last, because it removes them.
    pub lab: Lab,
    _services: [Listener; 2],
}

impl Scene {
    /// The usual one, running.
    pub fn new() -> Result<Self> {
        Self::with(|_| {})
    }

    /// One with a changed configuration, running.
    pub fn with(change: impl FnOnce(&mut Configuration)) -> Result<Self> {
        let mut scene = Self::prepared(change)?;
        scene.server.start()?;
        Ok(scene)
    }

    /// One whose server is not started yet.
    pub fn prepared(change: impl FnOnce(&mut Configuration)) -> Result<Self> {
        let lab = Lab::new()?;
        let host = lab.server();
        let sshd = Sshd::start(host, &lab.directory().join("ssh"), SSH_PORT)?;
        let services = [Listener::tcp(host, WEB_PORT)?, Listener::udp(host, DNS_PORT)?];

        let identity = Identity::generate()?;
        let server_identity = Identity::generate()?;
        let directory = lab.server_directory();
        let mut configuration = Configuration::new(&directory);
        configuration.clients.push(Client {
            name: CLIENT.into(),
            public_key: identity.public().to_string(),
            allow: vec!["ssh".into(), "web".into()],
            // No test but those of the rate is to meet its limit.
            rate: Some(Rate { per_minute: 6000, burst: 5000 }),
            ..Client::default()
        });
        change(&mut configuration);
        let server = Server::new(host, &directory, configuration)?;
        write_private_key(
            &server.configuration().private_key_file,
            server_identity.private(),
            Overwrite::Replace,
        )?;
        let laptop = identity.device(server_identity.public())?;
        Ok(Self { server, laptop, identity, server_identity, sshd, lab, _services: services })
    }

    /// A further client of the server's, and its device. The running server does not know of it.
    pub fn add_client(
        &mut self,
        name: &str,
        change: impl FnOnce(&mut Client),
    ) -> Result<(Identity, Device)> {
        let identity = Identity::generate()?;
        let device = identity.device(self.server_identity.public())?;
        let mut client = Client {
            name: name.into(),
            public_key: identity.public().to_string(),
            allow: vec!["ssh".into(), "web".into()],
            ..Client::default()
        };
        change(&mut client);
        self.server.reconfigure(|configuration| configuration.clients.push(client))?;
        Ok((identity, device))
    }

    /// Where knocks go.
    pub fn door(&self, family: Family) -> SocketAddr {
        let port = self.server.configuration().knock_ports.first().copied().unwrap_or_default();
        self.lab.server().at(family, port)
    }

    /// Sends a datagram to the knock port.
    pub fn knock(&self, from: &Host, family: Family, datagram: &[u8]) -> Result<()> {
        from.send_udp(self.door(family), datagram)
    }

    /// Sends a datagram to the knock port with a forged source address.
    pub fn knock_as(&self, source: SocketAddr, datagram: &[u8]) -> Result<()> {
        let family = if source.is_ipv4() { Family::V4 } else { Family::V6 };
        let server = self.lab.server();
        self.lab.other().send_udp_as(source, server, self.door(family), datagram)
    }

    /// How a TCP port of the server looks.
    pub fn sees(&self, from: &Host, family: Family, port: u16) -> Result<PortState> {
        from.tcp(self.lab.server().at(family, port))
    }

    /// That a TCP port of the server looks like that.
    pub fn ensure_sees(
        &self,
        from: &Host,
        family: Family,
        port: u16,
        wanted: PortState,
    ) -> Result<()> {
        let seen = self.sees(from, family, port)?;
        ensure!(
            seen == wanted,
            "tcp/{port} is {seen} by {family:?} from {}, not {wanted}\n{}",
            from.namespace(),
            self.server.account()
        );
        Ok(())
    }

    /// That nothing is open for anybody: as the kernel has it, and as all hosts see it.
    pub fn ensure_shut(&self) -> Result<()> {
        let elements = self.server.elements()?;
        ensure!(elements.is_empty(), "the kernel admits {elements:?}\n{}", self.server.account());
        // Side by side: each probe waits for an answer that does not come.
        let hosts = [self.lab.owner(), self.lab.other()];
        let views = hosts.into_iter().flat_map(|from| Family::BOTH.map(|family| (from, family)));
        at_once(views, |(from, family)| {
            self.ensure_sees(from, family, SSH_PORT, PortState::Filtered)
        })?;
        Ok(())
    }

    /// Waits until a TCP port of the server looks like that.
    pub fn await_state(
        &self,
        from: &Host,
        family: Family,
        port: u16,
        wanted: PortState,
    ) -> Result<()> {
        from.await_state(self.lab.server().at(family, port), wanted)
            .with_context(|| self.server.account())
    }

    /// Waits until a TCP port of the server is open.
    pub fn await_open(&self, from: &Host, family: Family, port: u16) -> Result<()> {
        self.await_state(from, family, port, PortState::Open)
    }

    /// The positive control: the owner knocks afresh, and `ssh` opens for the owner.
    pub fn ensure_owner_gets_in(&self, family: Family) -> Result<()> {
        self.knock(self.lab.owner(), family, &self.laptop.open("ssh").seal()?)?;
        self.await_open(self.lab.owner(), family, SSH_PORT).context("a right knock did not open")
    }

    /// Closes everything by the administrator's command.
    pub fn revoke_all(&self) -> Result<Finished> {
        let finished = self.server.admin(&["grants", "revoke", "--all"])?;
        ensure!(finished.success(), "{finished}");
        Ok(finished)
    }

    /// Waits until the kernel admits nobody, at most for `lifetime` and some more.
    pub fn await_shut(&self, lifetime: Duration) -> Result<()> {
        eventually_within(lifetime + DEADLINE, "the kernel is to close", || {
            Ok(self.server.elements()?.is_empty().then_some(()))
        })
        .with_context(|| self.server.account())
    }
}
