//! ruroco: its server takes datagrams, and its commander runs a command for those that are valid, here
//! one of iptables. The datagrams are those of its own client.

use super::process::{Daemon, Tail, base_rules, clear_rules};
use super::{Contender, Link, Noise, noisy};
use crate::bench::station::{GUARDED, KNOCK_PORT};
use crate::command::finish;
use crate::device::random;
use crate::frames::Frame;
use crate::lab::{Family, Host};
use crate::programs::foreign_program;
use crate::wait::eventually;
use anyhow::{Context, Result, anyhow, bail};
use std::fs::{self, Permissions};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

const CHAIN: &str = "RUROCO";
/// Where its client sends to when datagrams are made: a datagram names the address that it is for.
const NOWHERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// What the client has sent is there at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// See the module's text.
#[derive(Default)]
pub(super) struct Ruroco {
    directory: PathBuf,
    /// That which runs commands, and that which has the socket.
    daemons: Vec<Daemon>,
    said: Option<Tail>,
}

impl Ruroco {
    fn key_file(&self) -> PathBuf {
        self.directory.join("conf/bench.key")
    }

    fn logs(&self) -> [PathBuf; 2] {
        ["commander.log", "server.log"].map(|name| self.directory.join(name))
    }

    /// Makes the files that it needs, and names its configuration and its commands.
    fn configure(&self, host: &Host, client: &Path) -> Result<[PathBuf; 2]> {
        if self.directory.exists() {
            fs::remove_dir_all(&self.directory)?;
        }
        let [conf, state, run] =
            ["conf", "state", "run"].map(|directory| self.directory.join(directory));
        for directory in [&conf, &state, &run, &self.directory.join("client")] {
            fs::create_dir_all(directory)?;
        }
        let key = finish(host.command(client)?.arg("gen"))?.ok()?;
        let files = [conf.join("config.toml"), conf.join("commands.toml")];
        let [config, commands] = &files;
        let address = host.address(Family::V4);
        // Both of its limits are out of the way: two requests a second of one address, a hundred of all.
        // The addresses here are none of the public internet.
        let config_text = format!(
            "ips = [\"{address}\", \"{NOWHERE}\"]\naddress = \"0.0.0.0:{KNOCK_PORT}\"\n\
             config_dir = \"{}\"\nblocklist_dir = \"{}\"\nsocket_dir = \"{}\"\n\
             socket_user = \"root\"\nsocket_group = \"root\"\nallow_non_routable_ips = true\n\
             max_requests_per_second = 1000000\nmax_requests_per_second_global = 1000000000\n",
            conf.display(),
            state.display(),
            run.display()
        );
        let command = format!(
            "exec /usr/sbin/iptables -A {CHAIN} -s $RUROCO_IP -p tcp --dport {GUARDED} -j ACCEPT"
        );
        let commands_text = format!("[commands]\ndefault = \"{command}\"\n");
        for (path, text) in
            [(config, config_text), (commands, commands_text), (&self.key_file(), key)]
        {
            fs::write(path, text)?;
            fs::set_permissions(path, Permissions::from_mode(0o600))?;
        }
        Ok(files)
    }
}

impl Contender for Ruroco {
    fn name(&self) -> String {
        "ruroco".into()
    }

    fn knocks(&self) -> usize {
        50
    }

    fn levels(&self) -> &'static [usize] {
        &[0]
    }

    fn start(&mut self, host: &Host, _: &Link<'_>, directory: &Path, _: &[IpAddr]) -> Result<()> {
        let client = theirs("ruroco-client")?;
        let (commander, server) = (theirs("ruroco-commander")?, theirs("ruroco-server")?);
        self.directory = directory.join("ruroco");
        let [config, commands] = self.configure(host, &client)?;
        base_rules(host)?;
        host.sh(&format!("iptables -A INPUT -p udp --dport {KNOCK_PORT} -j ACCEPT"))?;
        host.sh(&format!("iptables -N {CHAIN}"))?;
        host.sh(&format!("iptables -I INPUT 1 -j {CHAIN}"))?;
        let [commander, server, config, commands] =
            [&commander, &server, &config, &commands].map(|path| path.to_string_lossy());
        let [commander_log, server_log] = self.logs();
        let words = [&*commander, "--config", &config, "--commands", &commands];
        let commander = Daemon::start(host, &words, &commander_log, "Binding Unix Listener")?;
        self.said = Some(commander.count("Execution was successful")?);
        self.daemons.push(commander);
        eventually("ruroco-commander is to listen", || {
            Ok(self.directory.join("run/ruroco.socket").exists().then_some(()))
        })?;
        let words = [&*server, "--config", &config];
        self.daemons.push(Daemon::start(host, &words, &server_log, "Running server on")?);
        Ok(())
    }

    fn packets(&mut self, host: &Host, sources: &[IpAddr]) -> Result<Vec<Frame>> {
        let client = theirs("ruroco-client")?;
        let socket = host.inside(|| Ok(UdpSocket::bind((NOWHERE, 0))?))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let to = socket.local_addr()?.to_string();
        let mut frames = Vec::new();
        for source in sources {
            let mut command = host.command(&client)?;
            command.args(["send", "-a", &to, "-k"]).arg(self.key_file());
            command.env("RUROCO_CONF_DIR", self.directory.join("client"));
            finish(&mut command)?.ok()?;
            let mut buffer = [0; 512];
            let length = socket.recv(&mut buffer).context("nothing came of ruroco-client")?;
            let from = SocketAddr::new(*source, 40_001);
            let payload = buffer.get(..length).unwrap_or_default();
            frames.push(Frame::udp(host, from, host.at(Family::V4, KNOCK_PORT), payload)?);
        }
        Ok(frames)
    }

    fn heard(&mut self) -> Result<usize> {
        self.said.as_mut().context("it does not run")?.count()
    }

    fn granted(&self, host: &Host) -> Result<usize> {
        let rules = host.sh(&format!("iptables -S {CHAIN}"))?;
        Ok(rules.matches(&format!("--dport {GUARDED} ")).count())
    }

    fn pid(&self) -> Result<u32> {
        Ok(self.daemons.last().context("ruroco-server does not run")?.pid())
    }

    fn stop(&mut self, host: &Host) -> Result<()> {
        self.daemons.drain(..).try_for_each(|mut daemon| daemon.kill(host))?;
        clear_rules(host)
    }

    /// As long as a knock.
    fn noise(
        &mut self,
        host: &Host,
        _: &Link<'_>,
        kind: Noise,
        count: usize,
    ) -> Result<Vec<Frame>> {
        if kind != Noise::Random {
            bail!("no {} are made for ruroco", kind.name());
        }
        let knock = self.packets(host, &[noisy(0).ip()])?;
        let length = knock.first().map_or(0, |frame| frame.payload().len());
        let to = host.at(Family::V4, KNOCK_PORT);
        (0..count)
            .map(|n| {
                let bytes = random::<512>()?;
                Frame::udp(host, noisy(n), to, bytes.get(..length).unwrap_or_default())
            })
            .collect()
    }

    fn files(&self) -> (Vec<PathBuf>, Vec<PathBuf>) {
        (self.logs().into(), vec![self.directory.join("state")])
    }
}

/// Where one of its programs is. No registry has them, so nothing here installs them.
fn theirs(name: &str) -> Result<PathBuf> {
    foreign_program(name)
        .map_err(|_| anyhow!("{name} is not installed, which is to be done by hand"))
}
