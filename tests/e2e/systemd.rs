//! The unit under the real systemd: what its directives promise, in the sandbox that they make.

use anyhow::{Context, Result, ensure};
use spa_tests::{
    Capture, Family, Lab, Laptop, Listener, Machine, PortState, SSH_PORT, Sshd, WEB_PORT, Watch,
    eventually, eventually_within, finish_reading,
};
use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::iter;
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

const UNIT: &str = "spa-server.service";
const CONFIG: &str = "/etc/spa/server.toml";
/// `CAP_NET_RAW` of capabilities(7).
const CAPTURES: &str = "0000000000002000";
/// `CAP_NET_ADMIN`, and `CAP_NET_RAW`, by which the legacy variant of iptables reads its rules.
const GUARDS: &str = "0000000000003000";
/// What its unit gives the worker: `CAP_BPF` besides, until the prefilter is loaded.
const BOUND: &str = "0000008000002000";
const NOTHING: &str = "0000000000000000";
/// The processes' units.
const UNITS: [&str; 4] = [UNIT, "spa-gate.service", "spa-helper@.service", "spa-metrics@.service"];
/// What the aim is, by `systemd-analyze security`.
const EXPOSURE: f64 = 1.5;

/// A program that connects to the gate helper.
const MEET: &str = "/usr/local/bin/meet";
const MEETING: &str = "#!/usr/bin/perl
use Socket;
socket(my $socket, PF_UNIX, SOCK_STREAM, 0) or die $!;
connect($socket, pack_sockaddr_un('/run/spa-helper.sock')) or die $!;
";
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
fn the_worker_can_capture_and_its_helper_change_the_firewall_and_no_more() -> Result<()> {
    let installation = Installation::started()?;
    let (machine, worker) = (&installation.machine, installation.pid()?);
    let helper = machine.sh("pgrep --full gate-helper")?;
    // The kernel's filter is loaded before there is a helper.
    for (pid, user, is, bound, inherited) in [
        (worker.as_str(), "spa", CAPTURES, BOUND, NOTHING),
        // What it executes has to get it, too.
        (helper.trim(), "spa-gate", GUARDS, GUARDS, GUARDS),
    ] {
        let uid = machine.sh(&format!("id --user {user}"))?;
        let ids = iter::repeat_n(uid.trim(), 4).collect::<Vec<_>>().join("\t");
        ensure!(uid.trim() != "0");
        let mut threads = 0;
        for thread in machine.sh(&format!("ls /proc/{pid}/task"))?.split_whitespace() {
            let task = format!("/proc/{pid}/task/{thread}");
            let status = match machine.read(&format!("{task}/status")) {
                // A thread that waits for work in vain ends, which was just now.
                Err(_) if !machine.path_of(&task).exists() => continue,
                status => status?,
            };
            let field = |name: &str| {
                let line =
                    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
                line.map(str::trim).with_context(|| format!("no {name} in {status}"))
            };
            for (name, is) in [
                ("Uid", ids.as_str()),
                ("CapPrm", is),
                ("CapEff", is),
                ("CapBnd", bound),
                ("CapAmb", inherited),
                ("CapInh", inherited),
            ] {
                ensure!(field(name)? == is, "{name} of {}: {status}", field("Name")?);
            }
            ensure!(field("NoNewPrivs")? == "1", "{status}");
            // 2: a filter of system calls.
            ensure!(field("Seccomp")? == "2", "{status}");
            threads += 1;
        }
        ensure!(threads >= 2, "each has several threads, and there are {threads} of {pid}");
    }
    let journal = machine.sh("journalctl --unit spa-server --output cat")?;
    ensure!(journal.contains("ready") && !journal.contains("confined"), "{journal}");
    // With these they have all that they can do.
    let status = machine.sh("spa-server status")?;
    ensure!(status.contains("prefilter     in the kernel\n"), "{status}");
    // The control: systemd itself has more than that.
    let systemd = machine.sh("cat /proc/1/status")?;
    ensure!(!systemd.contains(&format!("CapEff:\t{GUARDS}")), "{systemd}");
    Ok(())
}

#[test]
fn the_thread_that_reads_knocks_goes_before_others() -> Result<()> {
    let installation = Installation::started()?;
    let (machine, pid) = (&installation.machine, installation.pid()?);
    let mut niceness = BTreeMap::new();
    for thread in machine.sh(&format!("ls /proc/{pid}/task"))?.split_whitespace() {
        // See proc_pid_stat(5): the name may hold anything, and the niceness is the 17th behind it.
        let Ok(stat) = machine.read(&format!("/proc/{pid}/task/{thread}/stat")) else { continue };
        let (name, fields) = stat.rsplit_once(") ").context("stat has no name")?;
        let name = name.split_once('(').context("stat has no name")?.1.to_owned();
        let nice = fields.split_whitespace().nth(16).context("stat is short")?.to_owned();
        niceness.insert(name, nice);
    }
    let limits = machine.read(&format!("/proc/{pid}/limits"))?;
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max nice priority"));
    let limit = limit.and_then(|line| line.split_whitespace().next()).context("no limit")?;
    // Where systemd itself may not raise a limit (it takes CAP_SYS_RESOURCE), all goes on as before.
    let expected = if limit == "25" { "-5" } else { "0" };
    let of = |name: &str| niceness.get(name).map(String::as_str);
    ensure!(of("spa-server") == Some("0"), "{niceness:?}");
    ensure!(of("capture-any") == Some(expected), "{niceness:?} by a limit of {limit}");
    let asked = machine.sh("systemctl show --property LimitNICE spa-server")?;
    ensure!(asked == "LimitNICE=25\n", "{asked}");
    Ok(())
}

#[test]
fn the_audit_trail_is_asked_in_the_journal() -> Result<()> {
    let installation = Installation::started()?;
    let machine = &installation.machine;
    let _ssh = Listener::tcp(installation.lab.server(), SSH_PORT)?;
    installation.open("10m")?;
    // Somebody else's words are none of ours.
    let forged = "MESSAGE=event=opened client=mallory\nTARGET=audit\n";
    finish_reading(forged, machine.command("logger")?.arg("--journald"))?.ok()?;
    eventually("the forged line is in the journal", || {
        let all = machine.sh("journalctl --output=cat TARGET=audit")?;
        Ok(all.contains("mallory").then_some(()))
    })?;
    let of = |words: &str| machine.sh(&format!("spa-server log {words}"));
    eventually("the journal has it", || {
        Ok((of("--client laptop --since 1h")?.lines().count() == 2).then_some(()))
    })?;
    let all = of("--json")?;
    for line in all.lines() {
        let entry: serde_json::Value = serde_json::from_str(line)?;
        ensure!(entry["event"] == "opened" && entry["client"] == "laptop", "{all}");
        ensure!(entry["services"] == "ssh" && entry["time"].as_u64().is_some(), "{all}");
    }
    let source = installation.lab.owner().address(Family::V4);
    ensure!(of(&format!("--source {source} --service ssh"))?.lines().count() == 1);
    let nothing = machine.run("spa-server log --client laptop --until 1h")?;
    ensure!(nothing.success() && nothing.stdout.is_empty(), "{nothing}");
    ensure!(nothing.stderr.contains("nothing of that"), "{nothing}");

    // A journal that goes on in other files has the old lines, and takes new ones.
    machine.sh("journalctl --rotate")?;
    installation.open("20m")?;
    eventually("the journal has both", || {
        Ok((of("--client laptop --since 1h")?.lines().count() == 4).then_some(()))
    })?;
    Ok(())
}

#[test]
fn a_journal_that_hangs_keeps_nobody_out_and_hears_of_it_afterwards() -> Result<()> {
    let installation = Installation::started()?;
    let machine = &installation.machine;
    let _ssh = Listener::tcp(installation.lab.server(), SSH_PORT)?;
    let pid = installation.pid()?;
    machine.sh("systemctl kill --signal=STOP systemd-journald")?;
    // Until whoever waits for it would wait for ever. One sender alone has no room before the journal
    // has none: full it is when another one's first line doesn't fit.
    let socket = machine.path_of("/run/systemd/journal/socket");
    let mut others = Vec::new();
    loop {
        let sender = UnixDatagram::unbound()?;
        sender.set_nonblocking(true)?;
        let send = || sender.send_to(b"PRIORITY=7\nMESSAGE=others\n", &socket);
        let sent = iter::repeat_with(send).take_while(Result::is_ok).count();
        others.push(sender);
        if sent == 0 {
            break;
        }
    }
    ensure!(others.len() > 1, "nothing can be sent to the journal");
    for _ in 0..3 {
        installation.open("10m")?;
    }
    ensure!(machine.grants()?.len() == 2, "{:?}", machine.grants()?);
    machine.sh("systemctl kill --signal=CONT systemd-journald")?;
    eventually("the journal is to have it", || {
        let told = machine.sh("spa-server log --client laptop --event opened")?;
        Ok((told.lines().count() == 6).then_some(()))
    })?;
    ensure!(installation.pid()? == pid, "it was started again");
    Ok(())
}

#[test]
fn metrics_are_read_by_http_once_the_socket_is_enabled() -> Result<()> {
    let installation = Installation::started()?;
    let (machine, server) = (&installation.machine, installation.lab.server());
    let metrics = || {
        server.inside(|| {
            let mut stream = TcpStream::connect(("127.0.0.1", 9463))?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })
    };
    ensure!(metrics().is_err(), "it is off by default");
    machine.sh("systemctl enable --now spa-metrics.socket")?;
    let _ssh = Listener::tcp(installation.lab.server(), SSH_PORT)?;
    installation.open("10m")?;
    let answer = metrics()?;
    ensure!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}\n{}", machine.journal("*")?);
    ensure!(answer.contains("\nspa_up 1\n"), "{answer}");
    let grants = machine.grants()?.len();
    ensure!(answer.contains(&format!("\nspa_grants {grants}\n")), "{answer}");
    // Nobody has to be root to read it, and nobody gets at more by it.
    machine.sh("systemctl stop spa-server")?;
    let answer = metrics()?;
    ensure!(answer.contains("\nspa_up 0\n"), "{answer}\n{}", machine.journal("*")?);
    let score = machine.run("systemd-analyze security --threshold=15 spa-metrics@0.service")?;
    ensure!(score.success(), "{score}");
    Ok(())
}

#[test]
fn the_unit_of_notifications_tells_what_the_journal_has_and_remembers_it() -> Result<()> {
    const NOTIFY: &str = "spa-notify.service";
    let installation = Installation::started()?;
    let machine = &installation.machine;
    let _ssh = Listener::tcp(installation.lab.server(), SSH_PORT)?;
    // What Debian does at boot: the group may read it.
    machine.sh("systemd-tmpfiles --create --prefix=/run/log/journal")?;
    let command = "/usr/local/bin/tell";
    machine.write(
        command,
        "#!/bin/sh\nid -u >/var/lib/spa-notify/user\ncat >>/var/lib/spa-notify/told\n",
    )?;
    fs::set_permissions(machine.path_of(command), Permissions::from_mode(0o755))?;
    machine.drop_in(
        NOTIFY,
        &format!("[Service]\nExecStart=\nExecStart=/usr/sbin/spa-server notify --event opened,revoked -- {command}\n"),
    )?;
    let told = || {
        let told = machine.read("/var/lib/private/spa-notify/told").unwrap_or_default();
        let told =
            told.lines().map(serde_json::from_str).collect::<Result<Vec<serde_json::Value>, _>>();
        told.context("not JSON")
    };
    let await_told = |count: usize| {
        eventually("it is to be told", || Ok(Some(told()?).filter(|told| told.len() >= count)))
            .with_context(|| machine.journal(NOTIFY).unwrap_or_default())
    };
    let enabled = machine.run("systemctl is-enabled spa-notify")?;
    ensure!(enabled.stdout == "disabled\n", "it is off by default: {enabled}");
    // Before it began.
    installation.open("10m")?;
    eventually("the journal has it", || {
        Ok((machine.sh("spa-server log --client laptop")?.lines().count() == 2).then_some(()))
    })?;
    // It begins with the second in which it is started.
    let before = Instant::now();
    eventually("another second is to begin", || {
        Ok((before.elapsed() > Duration::from_secs(1)).then_some(()))
    })?;
    machine.sh("systemctl enable --now spa-notify")?;
    machine.await_journal(NOTIFY, "follows the audit trail")?;
    // Somebody else's words are none of ours.
    let forged = "MESSAGE=event=opened client=mallory\nTARGET=audit\n";
    finish_reading(forged, machine.command("logger")?.arg("--journald"))?.ok()?;
    installation.open("20m")?;
    let events = await_told(2)?;
    let sources: Vec<_> = events.iter().filter_map(|event| event["source"].as_str()).collect();
    for family in Family::BOTH {
        let source = installation.lab.owner().address(family).to_string();
        ensure!(sources.contains(&source.as_str()), "{events:?}");
    }
    // The journal has them in fields, too.
    let fields = machine.sh("journalctl --output=cat SPA_CLIENT=laptop SPA_EVENT=opened")?;
    ensure!(fields.lines().count() == 4, "{fields}");

    machine.await_journal(NOTIFY, "told: ")?;
    machine.sh("systemctl stop spa-notify")?;
    ensure!(machine.property(NOTIFY, "Result")? == "success", "{}", machine.journal(NOTIFY)?);
    machine.sh("spa-server grants revoke --all")?;
    machine.sh("systemctl start spa-notify")?;
    let events = await_told(4)?;
    let names: Vec<_> = events.iter().filter_map(|event| event["event"].as_str()).collect();
    ensure!(names == ["opened", "opened", "revoked", "revoked"], "{events:?}");
    ensure!(events.iter().all(|event| event["client"] == "laptop"), "{events:?}");

    // It has no rights, and neither has what it runs.
    let user = machine.read("/var/lib/private/spa-notify/user")?;
    ensure!(user.trim() != "0", "it runs as user {user}");
    let status = machine.read(&format!("/proc/{}/status", machine.property(NOTIFY, "MainPID")?))?;
    for line in ["CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"] {
        ensure!(status.lines().any(|known| known == line), "{line}: {status}");
    }
    ensure!(!status.contains("\nUid:\t0"), "{status}");
    let score = machine.run("systemd-analyze security --threshold=15 spa-notify.service")?;
    ensure!(score.success(), "{score}");
    let verified = machine.run("systemd-analyze verify spa-notify.service")?;
    ensure!(verified.success() && verified.said().is_empty(), "{verified}");
    Ok(())
}

#[test]
fn each_process_can_write_its_own_directories_only() -> Result<()> {
    let installation = Installation::started()?;
    let (machine, worker) = (&installation.machine, installation.pid()?);
    let helper = machine.sh("pgrep --full gate-helper")?;
    for (pid, own, others) in [
        (worker.as_str(), ["/var/lib/spa", "/run/spa"].as_slice(), ["/var/lib/spa-gate", "/run"]),
        (helper.trim(), &["/var/lib/spa-gate"], ["/var/lib/spa", "/run/spa"]),
    ] {
        // Files as the process sees them, through its own mounts, but with the rights of root.
        let touch = |path: &str| machine.run(&format!("touch /proc/{pid}/root{path}"));
        for directory in ["/etc/spa", "/root", "/usr/sbin", "/var/lib"].iter().chain(&others) {
            let touched = touch(&format!("{directory}/written"))?;
            ensure!(touched.said().contains("Read-only file system"), "{touched}");
        }
        for directory in own.iter().chain(&["/tmp"]) {
            touch(&format!("{directory}/written"))?.ok()?;
        }
        ensure!(!machine.path_of("/tmp/written").exists(), "it sees the /tmp of everybody");
        for directory in own {
            ensure!(machine.path_of(&format!("{directory}/written")).exists());
            let metadata = fs::metadata(machine.path_of(directory))?;
            let mode = metadata.permissions().mode() & 0o777;
            ensure!(mode == 0o700, "{directory} has mode {mode:o}");
            ensure!(metadata.uid() != 0, "{directory} is root's");
        }
    }
    // What the firewall's tools lock is everybody's.
    machine.run(&format!("touch /proc/{}/root/run/xtables.lock", helper.trim()))?.ok()?;
    Ok(())
}

/// Root writes files that only root can read; the processes that read them are not root.
#[test]
fn what_root_writes_of_the_configuration_is_handed_over() -> Result<()> {
    let installation = Installation::started()?;
    let (machine, lab) = (&installation.machine, &installation.lab);
    let _ssh = Listener::tcp(lab.server(), SSH_PORT)?;
    // With a pre-shared key, which is the daemon's alone to read.
    let phone = Laptop::new(lab, lab.other(), "phone");
    let key = phone.keygen()?;
    let add =
        format!("cd /root && spa-server client add phone --public-key {key} --allow ssh --psk");
    finish_reading("", machine.command("sh")?.args(["-c", &add]))?.ok()?;
    let of = |path: &str| {
        let listed = machine.sh(&format!("stat --format=%U:%G:%a {path}"))?;
        anyhow::Ok(listed.trim().to_owned())
    };
    for (path, is) in [
        ("/etc/spa", "root:spa-gate:750"),
        ("/etc/spa/server.toml", "root:spa-gate:640"),
        ("/etc/spa/server.key", "root:spa:640"),
        ("/etc/spa/clients.d", "root:spa-gate:750"),
        ("/etc/spa/clients.d/phone.toml", "root:spa-gate:640"),
        ("/etc/spa/clients.d/phone.psk", "root:spa:640"),
    ] {
        ensure!(of(path)? == is, "{path}: {}", of(path)?);
    }
    ensure!(machine.status()?.clients.total == 2, "{:?}", machine.status()?);
    machine.sh("spa-server check")?;

    // Whoever writes a file himself, and signals the daemon himself, is told.
    let path = "/etc/spa/clients.d/laptop.toml";
    let client = machine.read(path)?;
    machine.write(path, &format!("{client}max-sources = 3\n"))?;
    machine.sh(&format!("chown root:root {path}"))?;
    machine.sh(&format!("chmod 600 {path}"))?;
    machine.sh("systemctl kill --signal=HUP --kill-who=main spa-server")?;
    let told = machine.await_journal(UNIT, "laptop.toml")?;
    ensure!(told.contains("spa-server hand-over"), "{told}");
    installation.ensure_a_knock_opens()?;
    machine.sh("spa-server grants revoke --all")?;
    machine.sh("systemctl reload spa-server")?;
    ensure!(of(path)? == "root:spa-gate:640", "{}", of(path)?);
    installation.ensure_a_knock_opens()?;
    machine.sh("spa-server grants revoke --all")?;
    // As at a start.
    machine.sh("chown -R root:root /etc/spa")?;
    machine.sh("chmod -R go= /etc/spa")?;
    machine.sh("systemctl restart spa-server")?;
    installation.ensure_a_knock_opens()
}

/// What worked for a daemon that was root is told before it is restarted as another user.
#[test]
fn what_the_daemon_s_user_can_not_get_at_is_found_by_check() -> Result<()> {
    let installation = Installation::new()?;
    let machine = &installation.machine;
    let checked = machine.sh("spa-server check")?;
    ensure!(checked.contains("spa and spa-gate get to their files"), "{checked}");
    let config = machine.read(CONFIG)?;
    machine.sh("install -d -m 700 /srv/keys")?;
    machine.sh("cp -a /etc/spa/server.key /srv/keys/server.key")?;
    let elsewhere = format!("private-key-file = \"/srv/keys/server.key\"\n{config}");
    machine.write(CONFIG, &elsewhere)?;
    let checked = machine.run("spa-server check")?;
    let said = checked.said();
    ensure!(!checked.success() && said.contains("does not get into /srv/keys"), "{checked}");
    ensure!(!machine.run("systemctl start spa-server")?.success(), "it is right");
    machine.sh("systemctl stop spa-server")?;
    machine.sh("chmod o+x /srv/keys")?;
    machine.sh("spa-server check")?;
    machine.sh("systemctl start spa-server")?;

    machine.sh("install -d -m 700 /srv/state")?;
    machine.write(CONFIG, &format!("state-directory = \"/srv/state\"\n{config}"))?;
    let checked = machine.run("spa-server check")?;
    ensure!(checked.said().contains("chown -R spa:spa /srv/state"), "{checked}");
    Ok(())
}

/// Whoever had given the unit a command of his own, before there was a socket to meet the helper at, gets
/// a helper as well; and one that ends at once is told where to look.
#[test]
fn a_helper_is_met_without_being_named_and_one_that_fails_is_told() -> Result<()> {
    let installation = Installation::new()?;
    let machine = &installation.machine;
    let _ssh = Listener::tcp(installation.lab.server(), SSH_PORT)?;
    machine.drop_in(UNIT, "[Service]\nExecStart=\nExecStart=/usr/sbin/spa-server run\n")?;
    machine.sh("systemctl start spa-server")?;
    installation.ensure_a_knock_opens()?;
    machine.sh("spa-server grants revoke --all")?;
    machine.sh("systemctl stop spa-server")?;
    let helper = "spa-helper@.service";
    machine.drop_in(helper, "[Service]\nExecStart=\nExecStart=/bin/false\n")?;
    ensure!(!machine.run("systemctl start spa-server")?.success(), "with no helper");
    machine.await_journal(UNIT, "journalctl -u 'spa-helper@*'")?;
    machine.drop_in(helper, "")?;
    installation.await_successor("0")?;
    installation.ensure_a_knock_opens()
}

/// The server's key lies where only root gets, or is sealed: systemd hands it over at the start.
#[test]
fn the_server_s_key_comes_as_a_credential() -> Result<()> {
    let installation = Installation::new()?;
    let (machine, lab) = (&installation.machine, &installation.lab);
    let _ssh = Listener::tcp(lab.server(), SSH_PORT)?;
    machine.sh("mv /etc/spa/server.key /root/server.key")?;
    let config = machine.read(CONFIG)?;
    let there = "private-key-file = \"/run/credentials/spa-server.service/server.key\"\n";
    machine.write(CONFIG, &format!("{there}{config}"))?;
    // The control: the place is empty without it.
    let started = machine.run("systemctl start spa-server")?;
    ensure!(!started.success(), "{started}");
    machine.await_journal(UNIT, "server.key")?;
    machine.drop_in(UNIT, "[Service]\nLoadCredential=server.key:/root/server.key\n")?;
    installation.await_successor("0")?;
    installation.ensure_a_knock_opens()?;
    machine.sh("spa-server check")?;
    machine.sh("systemctl reload spa-server")?;
    let journal = machine.journal(UNIT)?;
    ensure!(!journal.contains("handed over"), "{journal}");
    Ok(())
}

/// Commands of root's work on what the daemon's users have; and those can do nothing to what the other
/// one has, nor to what root has.
#[test]
fn root_s_commands_leave_to_each_process_what_is_its_own() -> Result<()> {
    let installation = Installation::new()?;
    let (machine, lab) = (&installation.machine, &installation.lab);
    let _ssh = Listener::tcp(lab.server(), SSH_PORT)?;
    let config = machine.read(CONFIG)?;
    let config = config.replace("[gate]\n", "[gate]\nbackend = \"nftables\"\n");
    machine.write(CONFIG, &format!("interfaces = [\"eth0\"]\n{config}"))?;
    machine.sh("systemctl start spa-server")?;
    installation.ensure_a_knock_opens()?;
    ensure!(machine.sh("nft list tables")?.contains("spa"));
    // By the daemon, and without it.
    for stopped in [false, true] {
        if stopped {
            machine.sh("systemctl stop spa-server")?;
        }
        machine.sh("spa-server gate install --trial 10m")?;
        machine.sh("spa-server gate install")?;
        machine.sh("spa-server gate remove")?;
        installation.ensure_sees(lab.other(), PortState::Open)?;
        machine.sh("spa-server gate install")?;
        machine.sh("spa-server invite tablet --allow ssh --host 10.66.0.1")?;
        machine.sh("spa-server client remove tablet")?;
        machine.sh("spa-server gate show")?;
        machine.sh("spa-server check")?;
        for (directory, user) in [("/var/lib/spa", "spa"), ("/var/lib/spa-gate", "spa-gate")] {
            let others = machine.sh(&format!("find {directory} ! -user {user}"))?;
            ensure!(others.is_empty(), "not {user}'s: {others}");
        }
    }
    // A backup that somebody has put back.
    machine.sh("chown root:root /var/lib/spa/lock")?;
    let checked = machine.run("spa-server check")?;
    ensure!(checked.said().contains("/var/lib/spa/lock is not the daemon's"), "{checked}");
    machine.sh("rm /var/lib/spa/lock")?;
    machine.sh("spa-server gate install")?;
    machine.sh("systemctl start spa-server")?;
    installation.ensure_a_knock_opens()?;

    let last = "/var/lib/spa-gate/last-gate";
    machine.write(MEET, MEETING)?;
    fs::set_permissions(machine.path_of(MEET), Permissions::from_mode(0o755))?;
    let as_user = |user: &str, order: &str| {
        machine.run(&format!("setpriv --reuid {user} --regid {user} --init-groups {order}"))
    };
    // The controls: each does so in its own place.
    as_user("spa", "cat /etc/spa/server.key /etc/spa/server.toml")?.ok()?;
    as_user("spa", "touch /var/lib/spa/written")?.ok()?;
    as_user("spa", MEET)?.ok()?;
    as_user("spa-gate", &format!("cat /etc/spa/server.toml {last}"))?.ok()?;
    for (user, order) in [
        ("spa", "cat /etc/shadow"),
        ("spa", "touch /etc/spa/clients.d/mallory.toml"),
        ("spa", "touch /run/spa-orders/written"),
        ("spa", &format!("cp /etc/passwd {last}")),
        ("spa", "mv /var/lib/spa-gate /var/lib/spa/gate"),
        ("spa-gate", "cat /etc/spa/server.key"),
        ("spa-gate", "cat /var/lib/spa/replay.log"),
        ("spa-gate", "touch /etc/spa/server.toml"),
        // Nobody else asks the gate helper anything.
        ("spa-gate", MEET),
        ("65534", MEET),
        ("65534", "cat /etc/spa/server.toml"),
    ] {
        let refused = as_user(user, order)?;
        ensure!(refused.said().contains("ermission denied"), "{user}: {refused}");
    }
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

#[test]
fn the_sandbox_lets_both_variants_of_iptables_and_both_modes_work() -> Result<()> {
    let installation = Installation::new()?;
    let (machine, lab) = (&installation.machine, &installation.lab);
    let _ssh = Listener::tcp(lab.server(), SSH_PORT)?;
    let config = machine.read(CONFIG)?;
    let legacy = "[gate.tools]\n\
         iptables-restore = \"/usr/sbin/iptables-legacy-restore\"\n\
         ip6tables-restore = \"/usr/sbin/ip6tables-legacy-restore\"\n\
         iptables-save = \"/usr/sbin/iptables-legacy-save\"\n\
         ip6tables-save = \"/usr/sbin/ip6tables-legacy-save\"\n";
    machine.write(CONFIG, &format!("{config}\n{legacy}"))?;
    machine.sh("systemctl start spa-server")?;
    installation.ensure_a_knock_opens()?;
    machine.sh("systemctl stop spa-server")?;
    machine.sh("spa-server gate remove")?;
    installation.ensure_sees(lab.other(), PortState::Open)?;

    for tables in ["iptables", "ip6tables"] {
        machine.sh(&format!("{tables} -A INPUT -p tcp --dport {SSH_PORT} -j DROP"))?;
    }
    machine.write(CONFIG, &config.replace("#mode = \"guard\"", "mode = \"open\""))?;
    machine.sh("systemctl start spa-server")?;
    ensure!(machine.status()?.mode == "open");
    installation.ensure_a_knock_opens()
}

#[test]
fn the_sandbox_lets_sessions_be_ended_and_a_flushed_gate_be_put_back() -> Result<()> {
    let installation = Installation::started()?;
    let (machine, lab) = (&installation.machine, &installation.lab);
    let sshd = installation.sshd()?;
    installation.open("10m")?;
    let mut session = sshd.session(lab.owner(), Family::V4)?;
    machine.sh("spa-server grants revoke --all")?;
    // The control: that alone ends nothing.
    session.ensure_alive()?;
    let cut = machine.run("spa-server grants revoke laptop --cut")?;
    ensure!(cut.success() && cut.said().contains("1 connection ended"), "{cut}");
    ensure!(session.ensure_alive().is_err(), "the session lives: {}", machine.journal(UNIT)?);

    installation.open("10m")?;
    machine.sh("nft flush ruleset")?;
    eventually("the gate is to be put back", || Ok((machine.status()?.restored > 0).then_some(())))
        .with_context(|| machine.journal(UNIT).unwrap_or_default())?;
    machine.await_journal(UNIT, "event=gate-restored")?;
    installation.ensure_open_for_the_owner_only()
}

#[test]
fn systemd_finds_no_fault_with_the_units_and_little_that_they_may_do() -> Result<()> {
    let installation = Installation::started()?;
    let machine = &installation.machine;
    for unit in ["spa-helper.socket", "spa-metrics.socket"].into_iter().chain(UNITS) {
        // An instance of its own is what there is of a template.
        let unit = unit.replace("@.", "@1.");
        let verified = machine.run(&format!("systemd-analyze verify {unit}"))?;
        ensure!(verified.success() && verified.said().is_empty(), "{unit}: {verified}");
    }
    // The control: it finds faults where there are some.
    let faulty = "[Service]\nExecStart=/nonexistent\nNoSuch=1\n";
    machine.write("/etc/systemd/system/faulty.service", faulty)?;
    let verified = machine.run("systemd-analyze verify faulty.service")?;
    ensure!(verified.said().contains("NoSuch"), "{verified}");

    for unit in UNITS {
        let security = machine.sh(&format!(
            "systemd-analyze security --offline=yes --no-pager /usr/lib/systemd/system/{unit}"
        ))?;
        let score = security.lines().find(|line| line.contains("Overall exposure level"));
        let score = score.with_context(|| format!("no score in {security}"))?.trim();
        spa_tests::report(score);
        let exposure: Option<f64> =
            score.split_once(": ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
        ensure!(exposure.is_some_and(|exposure| exposure <= EXPOSURE), "{score}: {security}");
    }
    Ok(())
}
