//! The daemon under the real systemd: how it starts, stops, and comes back, whatever becomes of it.

#[path = "systemd/journal.rs"]
mod journal;
#[path = "systemd/sandbox.rs"]
mod sandbox;
#[path = "systemd/users.rs"]
mod users;

use anyhow::{Context, Result, ensure};
use spa_tests::{
    Capture, Family, Lab, Laptop, Listener, Machine, PortState, SSH_PORT, Sshd, WEB_PORT, Watch,
    eventually, eventually_within,
};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

const UNIT: &str = "spa-server.service";
const CONFIG: &str = "/etc/spa/server.toml";
/// While this file is there, a tool hangs.
const HANG: &str = "/run/hang";
/// Where a tool that hangs says so: a place that the sandbox lets it write.
const HANGS: &str = "/var/lib/spa-gate/tool-hangs";

/// A machine where the administrator has done what the README says, up to the start.
struct Installation {
    machine: Machine,
    laptop: Laptop,
    /// The link and the hosts on it; last, because it removes them.
    lab: Lab,
}

impl Installation {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let machine = Machine::boot(&lab)?;
        let server_key = machine.sh("spa-server init")?;
        let laptop = Laptop::new(&lab, lab.owner(), "laptop");
        let key = laptop.keygen()?;
        machine.sh(&format!("spa-server client add laptop --public-key {key} --allow ssh"))?;
        let key = server_key.trim();
        laptop.run(&["server", "add", "work", "--host", "gateway", "--public-key", key])?.ok()?;
        Ok(Self { machine, laptop, lab })
    }

    /// One whose service runs.
    fn started() -> Result<Self> {
        let installation = Self::new()?;
        installation.machine.sh("systemctl start spa-server")?;
        Ok(installation)
    }

    fn sshd(&self) -> Result<Sshd> {
        Sshd::start(self.lab.server(), &self.lab.directory().join("ssh"), SSH_PORT)
    }

    /// Knocks, and waits until the port is open.
    fn open(&self, lifetime: &str) -> Result<()> {
        let opened =
            self.laptop.run(&["open", "ssh", "--wait", "--fresh", "--lifetime", lifetime])?;
        ensure!(opened.success(), "{opened}\n{}", self.machine.journal(UNIT)?);
        // The client is content with one family.
        for family in Family::BOTH {
            self.lab.owner().await_open(self.lab.server().at(family, SSH_PORT))?;
        }
        Ok(())
    }

    fn ensure_sees(&self, from: &spa_tests::Host, wanted: PortState) -> Result<()> {
        for family in Family::BOTH {
            let seen = from.tcp(self.lab.server().at(family, SSH_PORT))?;
            ensure!(
                seen == wanted,
                "{} sees {seen} by {family:?}, not {wanted}\n{}",
                from.namespace(),
                self.machine.journal(UNIT)?
            );
        }
        Ok(())
    }

    /// That the gate stands: open for the owner, who has knocked, and for nobody else.
    fn ensure_open_for_the_owner_only(&self) -> Result<()> {
        self.ensure_sees(self.lab.owner(), PortState::Open)?;
        self.ensure_sees(self.lab.other(), PortState::Filtered)
    }

    /// Waits until another process than this one is ready.
    fn await_successor(&self, pid: &str) -> Result<String> {
        eventually_within(Duration::from_secs(60), "systemd is to start it again", || {
            let active = self.machine.property(UNIT, "ActiveState")? == "active";
            let main = self.machine.property(UNIT, "MainPID")?;
            Ok((active && main != pid && main != "0").then_some(main))
        })
        .with_context(|| self.machine.journal(UNIT).unwrap_or_default())
    }

    fn pid(&self) -> Result<String> {
        self.machine.property(UNIT, "MainPID")
    }

    /// Puts a program before `iptables-restore` that does nothing while that file exists, and has
    /// grants be rules: they then wait for it.
    fn have_the_tool_hang_while_there_is(&self, file: &str) -> Result<()> {
        let path = "/usr/local/sbin/iptables-restore";
        let script = format!(
            "#!/bin/sh\n\
             while [ -e {file} ]; do echo >{HANGS}; sleep 0.05; done\n\
             exec /usr/sbin/iptables-restore \"$@\"\n"
        );
        self.machine.write(path, &script)?;
        fs::set_permissions(self.machine.path_of(path), Permissions::from_mode(0o755))?;
        let config = self.machine.read(CONFIG)?;
        let config = config.replace("[gate]\n", "[gate]\nbackend = \"iptables\"\n");
        let tools = format!("[gate.tools]\niptables-restore = \"{path}\"\n");
        self.machine.write(CONFIG, &format!("{config}\n{tools}"))
    }

    fn await_hanging_tool(&self) -> Result<()> {
        eventually("the daemon is to wait for its tool", || {
            Ok(self.machine.path_of(HANGS).exists().then_some(()))
        })
        .with_context(|| self.machine.journal(UNIT).unwrap_or_default())
    }

    /// The whole of the main job.
    fn ensure_a_knock_opens(&self) -> Result<()> {
        self.ensure_sees(self.lab.other(), PortState::Filtered)?;
        self.open("10m")?;
        self.ensure_open_for_the_owner_only()
    }
}

#[test]
fn the_unit_is_active_when_the_daemon_is_ready_and_not_before() -> Result<()> {
    let installation = Installation::new()?;
    let machine = &installation.machine;
    let _ssh = Listener::tcp(installation.lab.server(), SSH_PORT)?;
    // The daemon can't be ready while one of its tools takes its time.
    installation.have_the_tool_hang_while_there_is(HANG)?;
    machine.write(HANG, "")?;
    machine.sh("systemctl start --no-block spa-server")?;
    installation.await_hanging_tool()?;
    for _ in 0..5 {
        ensure!(machine.property(UNIT, "ActiveState")? == "activating");
        ensure!(machine.property(UNIT, "MainPID")? != "0");
    }
    fs::remove_file(machine.path_of(HANG))?;
    eventually("the unit is to become active", || {
        Ok((machine.property(UNIT, "ActiveState")? == "active").then_some(()))
    })?;
    // Ready means all of it: the gate stands, the socket answers, knocks are captured.
    ensure!(machine.status()?.gate == "installed", "{:?}", machine.status()?);
    installation.ensure_a_knock_opens()
}

#[test]
fn a_start_that_fails_says_so_and_is_tried_again() -> Result<()> {
    let installation = Installation::new()?;
    let machine = &installation.machine;
    let _ssh = Listener::tcp(installation.lab.server(), SSH_PORT)?;
    let config = machine.read(CONFIG)?;
    machine.write(CONFIG, &config.replace("tcp/22", "tcp/0"))?;
    let started = machine.run("systemctl start spa-server")?;
    ensure!(!started.success(), "{started}");
    machine.await_journal(UNIT, CONFIG)?;
    // Whoever mends it needs no second start.
    machine.write(CONFIG, &config)?;
    installation.await_successor("0")?;
    installation.ensure_a_knock_opens()
}

#[test]
fn a_first_start_that_fails_hides_nothing() -> Result<()> {
    let installation = Installation::new()?;
    let (machine, lab) = (&installation.machine, &installation.lab);
    let _ssh = Listener::tcp(lab.server(), SSH_PORT)?;
    machine.sh("systemctl enable spa-server")?;
    machine.sh("mv /etc/spa/server.key /etc/spa/moved.key")?;
    let started = machine.run("systemctl start spa-server")?;
    ensure!(!started.success(), "{started}");
    machine.await_journal(UNIT, "server.key")?;
    installation.ensure_sees(lab.other(), PortState::Open)?;
    machine.sh("mv /etc/spa/moved.key /etc/spa/server.key")?;
    installation.await_successor("0")?;
    installation.ensure_a_knock_opens()
}

#[test]
fn a_knock_opens_ssh_for_its_sender_and_the_journal_tells_it() -> Result<()> {
    let installation = Installation::new()?;
    let (machine, lab) = (&installation.machine, &installation.lab);
    let sshd = installation.sshd()?;
    machine.sh("spa-server check")?;
    installation.ensure_sees(lab.other(), PortState::Open)?;
    // Whoever is in already stays in.
    let mut session = sshd.session(lab.owner(), Family::V4)?;
    machine.sh("systemctl enable --now spa-server")?;
    ensure!(machine.sh("systemctl is-enabled spa-server")? == "enabled\n");
    installation.ensure_sees(lab.owner(), PortState::Filtered)?;
    installation.ensure_a_knock_opens()?;
    for family in Family::BOTH {
        let answer = sshd.login(lab.owner(), family, "echo hello")?.ok()?;
        ensure!(answer == "hello\n", "{answer}");
        let source = lab.owner().address(family);
        let line = machine.await_journal(UNIT, &format!("source={source} "))?;
        for part in ["event=opened", "client=laptop", "services=ssh", "lifetime=600"] {
            ensure!(line.contains(part), "the audit line has no {part}: {line}");
        }
    }
    let trail = "journalctl --quiet --no-pager --output cat TARGET=audit";
    ensure!(machine.sh(trail)?.lines().count() == 2, "{}", machine.sh(trail)?);
    session.ensure_alive()?;
    machine.sh("spa-server check")?;
    Ok(())
}

#[test]
fn a_restart_keeps_gate_grants_and_sessions_and_shows_the_port_to_nobody() -> Result<()> {
    let installation = Installation::started()?;
    let (machine, lab) = (&installation.machine, &installation.lab);
    let _ssh = Listener::tcp(lab.server(), SSH_PORT)?;
    installation.open("10m")?;
    installation.ensure_open_for_the_owner_only()?;
    let began = Instant::now();
    let before = machine.grants()?;
    ensure!(before.len() == 2, "{before:?}");

    let wire = Capture::on(lab.server(), "tcp and src port 22")?;
    let watches: Vec<_> = Family::BOTH
        .into_iter()
        .flat_map(|family| {
            let port = lab.server().at(family, SSH_PORT);
            [
                Watch::on(lab.other(), port, PortState::Filtered),
                Watch::on(lab.owner(), port, PortState::Open),
            ]
        })
        .collect();
    let mut pids = vec![installation.pid()?];
    for _ in 0..3 {
        let tries: Vec<_> = watches.iter().map(Watch::tries).collect();
        machine.sh("systemctl restart spa-server")?;
        for (watch, before) in watches.iter().zip(tries) {
            ensure!(watch.tries() > before, "nobody has looked during the restart");
            watch.await_tries(5)?;
        }
        pids.push(installation.pid()?);
    }
    for watch in watches {
        watch.finish()?;
    }
    pids.dedup();
    ensure!(pids.len() == 4, "it was not restarted: {pids:?}");
    let said = wire.packets()?;
    for family in Family::BOTH {
        let to = |host: &spa_tests::Host| {
            let address = host.address(family);
            said.iter().filter(|packet| packet.destination() == Some(address)).count()
        };
        ensure!(to(lab.owner()) > 0, "the capture does not see what the server says");
        ensure!(to(lab.other()) == 0, "the server has spoken to a stranger by {family:?}");
    }

    let (after, passed) = (machine.grants()?, began.elapsed().as_secs());
    ensure!(after.len() == before.len(), "{before:?} has become {after:?}");
    for grant in &after {
        let same = before.iter().find(|other| other.request_id == grant.request_id);
        let same = same.with_context(|| format!("a new grant has come up: {grant:?}"))?;
        ensure!((grant.source, &grant.client) == (same.source, &same.client), "{grant:?}");
        ensure!(grant.seconds_left <= same.seconds_left, "{same:?} has become {grant:?}");
        ensure!(grant.seconds_left + passed + 2 >= same.seconds_left, "{same:?}, {grant:?}");
    }
    let listed = machine.sh("spa-server grants list")?;
    ensure!(listed.lines().filter(|line| line.starts_with("laptop ")).count() == 2, "{listed}");
    // No barrier: a clean stop leaves nothing in doubt, and a fresh knock is taken at once.
    ensure!(machine.status()?.barrier_until.is_none(), "{:?}", machine.status()?);
    installation.open("10m")
}

#[test]
fn a_stop_leaves_the_port_hidden() -> Result<()> {
    let installation = Installation::started()?;
    let (machine, lab) = (&installation.machine, &installation.lab);
    let sshd = installation.sshd()?;
    installation.open("10m")?;
    let mut session = sshd.session(lab.owner(), Family::V6)?;
    let pid = installation.pid()?;
    machine.sh("systemctl stop spa-server")?;
    ensure!(machine.property(UNIT, "ActiveState")? == "inactive");
    ensure!(machine.property(UNIT, "Result")? == "success");
    ensure!(!machine.path_of(&format!("/proc/{pid}")).exists(), "the process {pid} is still there");
    // What is open stays open until its time is over, and nobody else gets in.
    installation.ensure_open_for_the_owner_only()?;
    session.ensure_alive()?;

    machine.sh("systemctl start spa-server")?;
    ensure!(machine.grants()?.len() == 2, "{:?}", machine.grants()?);
    machine.sh("spa-server grants revoke --all")?;
    installation.ensure_sees(lab.owner(), PortState::Filtered)?;
    machine.sh("systemctl stop spa-server")?;
    installation.ensure_sees(lab.owner(), PortState::Filtered)?;
    session.ensure_alive()?;

    // As the unit says, this takes the gate away.
    machine.sh("spa-server gate remove")?;
    installation.ensure_sees(lab.other(), PortState::Open)
}

#[test]
fn a_killed_daemon_is_started_again() -> Result<()> {
    let installation = Installation::started()?;
    let machine = &installation.machine;
    let _ssh = Listener::tcp(installation.lab.server(), SSH_PORT)?;
    installation.open("10m")?;
    let mut pid = installation.pid()?;
    // More often than systemd would let it, if the unit did not say otherwise.
    for round in 1..=6 {
        machine.sh(&format!("kill -KILL {pid}"))?;
        pid = installation.await_successor(&pid)?;
        ensure!(machine.property(UNIT, "NRestarts")? == round.to_string());
        ensure!(machine.grants()?.len() == 2, "{:?}", machine.grants()?);
    }
    installation.ensure_open_for_the_owner_only()?;
    machine.sh("spa-server grants revoke --all")?;
    installation.ensure_a_knock_opens()
}

#[test]
fn a_frozen_daemon_is_killed_by_the_watchdog_and_started_again() -> Result<()> {
    let installation = Installation::started()?;
    let machine = &installation.machine;
    let _ssh = Listener::tcp(installation.lab.server(), SSH_PORT)?;
    let watchdog = machine.property(UNIT, "WatchdogUSec")?;
    ensure!(!["0", "infinity"].contains(&watchdog.as_str()), "the unit has no watchdog");
    machine.drop_in(UNIT, "[Service]\nWatchdogSec=6\n")?;
    machine.sh("systemctl restart spa-server")?;
    installation.open("10m")?;
    let pid = installation.pid()?;
    // The control: it lives on for longer than that, because it reports.
    let reported =
        || -> Result<u64> { Ok(machine.property(UNIT, "WatchdogTimestampMonotonic")?.parse()?) };
    let first = reported()?;
    eventually_within(Duration::from_secs(60), "the daemon is to outlive the watchdog", || {
        ensure!(installation.pid()? == pid, "{}", machine.journal(UNIT)?);
        Ok((reported()? > first + 7_000_000).then_some(()))
    })?;
    ensure!(machine.property(UNIT, "NRestarts")? == "0");

    machine.sh(&format!("kill -STOP {pid}"))?;
    // The kernel does not need the daemon.
    installation.ensure_open_for_the_owner_only()?;
    installation.await_successor(&pid)?;
    machine.await_journal(UNIT, "Watchdog timeout")?;
    ensure!(machine.property(UNIT, "NRestarts")? == "1");
    ensure!(machine.grants()?.len() == 2, "{:?}", machine.grants()?);
    machine.sh("spa-server grants revoke --all")?;
    installation.ensure_a_knock_opens()
}

#[test]
fn the_watchdog_has_patience_with_a_tool_that_hangs() -> Result<()> {
    let installation = Installation::new()?;
    let machine = &installation.machine;
    let _ssh = Listener::tcp(installation.lab.server(), SSH_PORT)?;
    installation.have_the_tool_hang_while_there_is(HANG)?;
    machine.sh("systemctl start spa-server")?;
    let pid = installation.pid()?;
    machine.write(HANG, "")?;
    // One knock: each that fails takes its time.
    installation.laptop.run(&["open", "ssh", "--no-wait", "--ipv4"])?.ok()?;
    installation.await_hanging_tool()?;
    eventually_within(Duration::from_secs(120), "the knock is to be told as failed", || {
        ensure!(installation.pid()? == pid, "it was restarted:\n{}", machine.journal(UNIT)?);
        Ok(machine.journal(UNIT)?.contains("event=failed").then_some(()))
    })?;
    fs::remove_file(machine.path_of(HANG))?;
    installation.ensure_a_knock_opens()?;
    ensure!(installation.pid()? == pid, "it was restarted:\n{}", machine.journal(UNIT)?);
    Ok(())
}

#[test]
fn a_bad_reload_fails_and_changes_nothing_and_a_good_one_works() -> Result<()> {
    let installation = Installation::started()?;
    let (machine, lab) = (&installation.machine, &installation.lab);
    let _ssh = Listener::tcp(lab.server(), SSH_PORT)?;
    let _web = Listener::tcp(lab.server(), WEB_PORT)?;
    let web = |from: &spa_tests::Host| from.tcp(lab.server().at(Family::V4, WEB_PORT));
    installation.open("10m")?;
    let (pid, good) = (installation.pid()?, machine.read(CONFIG)?);

    let client = "/etc/spa/clients.d/laptop.toml";
    let good_client = machine.read(client)?;
    ensure!(good_client.contains("[\"ssh\"]"), "{good_client}");
    for (file, good, bad) in [
        (CONFIG, &good, good.replace("tcp/22", "tcp/0")),
        (client, &good_client, good_client.replace("[\"ssh\"]", "[\"no-such-service\"]")),
    ] {
        machine.write(file, &bad)?;
        let reloaded = machine.run("systemctl reload spa-server")?;
        ensure!(!reloaded.success(), "a bad {file} was taken: {reloaded}");
        machine.await_journal(UNIT, file)?;
        machine.write(file, good)?;
        ensure!(machine.property(UNIT, "ActiveState")? == "active");
        ensure!(installation.pid()? == pid, "it was restarted");
        installation.ensure_open_for_the_owner_only()?;
    }

    let better = format!("{good}\n[services.web]\nports = [\"tcp/{WEB_PORT}\"]\n");
    machine.write(CONFIG, &better)?;
    machine.write(client, &good_client.replace("[\"ssh\"]", "[\"ssh\", \"web\"]"))?;
    ensure!(web(lab.owner())? == PortState::Open);
    machine.sh("systemctl reload spa-server")?;
    ensure!(machine.status()?.last_reload.is_none(), "{:?}", machine.status()?);
    ensure!(installation.pid()? == pid, "it was restarted");
    ensure!(web(lab.owner())? == PortState::Filtered);
    installation.laptop.run(&["open", "web", "--wait"])?.ok()?;
    ensure!(web(lab.other())? == PortState::Filtered);
    installation.ensure_open_for_the_owner_only()
}
