//! Somebody's daily work: OpenSSH's programs and what stands on them, with `spa-client` as their
//! way to the server.

use crate::capture::Capture;
use crate::command::{Finished, finish};
use crate::config::Configuration;
use crate::lab::{Family, Host, SERVER_NAME};
use crate::laptop::Laptop;
use crate::programs::our_binary;
use crate::scene::Scene;
use anyhow::{Result, ensure};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// A running scene, and a laptop that was set up by the real commands: it knows the server as
/// `work`, at the host `gateway`.
pub struct Desk {
    /// What ran `spa-client keygen`.
    pub laptop: Laptop,
    /// The server and all around it; last, because its lab removes the namespaces.
    pub scene: Scene,
}

impl Desk {
    /// The usual one.
    pub fn new() -> Result<Self> {
        Self::with(&[], |_| {})
    }

    /// One whose server is added with these words more, and has a changed configuration.
    pub fn with(words: &[&str], change: impl FnOnce(&mut Configuration)) -> Result<Self> {
        let scene = Scene::with(change)?;
        let laptop = Laptop::new(&scene.lab, scene.lab.owner(), "owner");
        let public = laptop.keygen()?;
        let add = ["client", "add", "mine", "--public-key", &public, "--allow", "ssh,web"];
        scene.server.admin(&add)?.ok()?;
        // Nothing here is to meet the limit of knocks.
        let file = scene.server.directory().join("clients.d/mine.toml");
        let text = fs::read_to_string(&file)?;
        fs::write(file, format!("{text}rate = {{ per-minute = 6000, burst = 5000 }}\n"))?;
        scene.server.admin(&["reload"])?.ok()?;
        let desk = Self { laptop, scene };
        desk.add_server("work", SERVER_NAME, words)?;
        Ok(desk)
    }

    /// Tells the laptop the server by another name, or host.
    pub fn add_server(&self, name: &str, host: &str, words: &[&str]) -> Result<()> {
        let key = self.scene.server_identity.public().to_string();
        let add = ["server", "add", name, "--host", host, "--public-key", &key];
        self.laptop.run(&[&add, words].concat())?.ok()?;
        Ok(())
    }

    /// Where the owner sits.
    pub fn owner(&self) -> &Host {
        self.scene.lab.owner()
    }

    /// Writes a configuration of ssh: `lines`, then what every login here needs.
    pub fn ssh_config(&self, lines: &str) -> Result<PathBuf> {
        let path = self.scene.lab.directory().join("ssh_config");
        fs::write(&path, format!("{lines}\nHost *\n{}", self.scene.sshd.client_lines()))?;
        Ok(path)
    }

    /// The line that has ssh come here by `spa-client proxy`, with these words more.
    pub fn proxy_command(&self, words: &str) -> Result<String> {
        let program = our_binary("spa-client")?;
        Ok(format!("    ProxyCommand {} proxy {words} %h %p\n", program.display()))
    }

    /// One of Debian's programs on the laptop.
    pub fn command(&self, program: &str) -> Result<Command> {
        let mut command = self.owner().command(program)?;
        command.env_remove("SSH_AUTH_SOCK");
        for (variable, value) in self.laptop.environment() {
            command.env(variable, value);
        }
        Ok(command)
    }

    /// Runs it to its end.
    pub fn run(&self, program: &str, words: &[&str]) -> Result<Finished> {
        finish(self.command(program)?.args(words))
    }

    /// Listens for knocks that leave the laptop.
    pub fn knocks(&self) -> Result<Knocks> {
        Ok(Knocks(Capture::on(self.owner(), "udp port 62201")?))
    }

    /// How many connections from the laptop sshd has accepted.
    pub fn connections(&self) -> Result<usize> {
        Ok(self.connections_by(Family::V4)? + self.connections_by(Family::V6)?)
    }

    /// The same of one family.
    pub fn connections_by(&self, family: Family) -> Result<usize> {
        let from = format!("Connection from {} port ", self.owner().address(family));
        Ok(self.scene.sshd.log()?.matches(&from).count())
    }
}

/// The knocks of a laptop.
pub struct Knocks(Capture);

impl Knocks {
    /// How many knocks have left so far; one has a datagram for each address of the server.
    pub fn count(&self, addresses: usize) -> Result<usize> {
        let packets = self.0.packets()?.len();
        ensure!(packets.is_multiple_of(addresses), "{packets} datagrams");
        Ok(packets / addresses)
    }
}
