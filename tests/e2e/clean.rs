//! The Debian packages on a clean Debian with the real systemd: what becomes of the gate, of what is open
//! and of what the administrator has made, from the first installation to the last trace.
//!
//! `make test-packages` says where the programs and that Debian are: `SPA_PACKAGED` and `SPA_CLEAN`.

use anyhow::{Context, Result, ensure};
use spa_tests::{
    Capture, Family, Finished, Lab, Laptop, Listener, Machine, PortState, SSH_PORT, Sshd, WEB_PORT,
    Watch, eventually, finish, workspace,
};
use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

const UNIT: &str = "spa-server.service";
const CONFIG: &str = "/etc/spa/server.toml";
/// The revisions that are packed of one version: the second is an upgrade from the first.
const REVISIONS: [&str; 2] = ["1", "2"];
/// What our packages need: there before and after them, so that these alone make the difference.
const NEEDED: &str = "iptables nftables libpcap0.8 dbus";
/// What changes by itself, or says what was done.
const VOLATILE: [&str; 10] = [
    "/dev",
    "/proc",
    "/run",
    "/sys",
    "/tmp",
    "/var/cache",
    "/var/lib/apt",
    "/var/lib/dpkg",
    "/var/log",
    "/var/lib/systemd",
];

struct Clean {
    machine: Machine,
    sshd: Sshd,
    laptop: Laptop,
    /// The link and the hosts on it; last, because it removes them.
    lab: Lab,
}

impl Clean {
    /// A machine that has nothing of ours.
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let seed = lab.directory().join("seed");
        for revision in REVISIONS {
            let mut pack = Command::new(workspace()?.join("packaging/debian/pack"));
            pack.arg(told("SPA_PACKAGED")?).arg(seed.join("root").join(revision));
            pack.envs([("DEB_REVISION", revision), ("DEB_COMPRESSION", "none")]);
            finish(&mut pack)?.ok()?;
        }
        let sshd = Sshd::start(lab.server(), &lab.directory().join("ssh"), SSH_PORT)?;
        let machine = Machine::boot_clean(&lab, &told("SPA_CLEAN")?, &seed)?;
        let laptop = Laptop::new(&lab, lab.owner(), "laptop");
        Ok(Self { machine, sshd, laptop, lab })
    }

    /// One where the first revision is installed, set up and runs.
    fn running() -> Result<Self> {
        let clean = Self::new()?;
        clean.install("1")?.ok()?;
        clean.set_up()?;
        clean.machine.sh("systemctl enable --now spa-server")?;
        Ok(clean)
    }

    /// Installs, or upgrades to, this revision of both packages, without a network.
    fn install(&self, revision: &str) -> Result<Finished> {
        let mut debs = Vec::new();
        for entry in fs::read_dir(self.machine.path_of(&format!("/root/{revision}")))? {
            debs.push(format!("/root/{revision}/{}", entry?.file_name().to_string_lossy()));
        }
        ensure!(debs.len() == 2, "{debs:?}");
        self.apt(&format!("install {}", debs.join(" ")))
    }

    fn apt(&self, words: &str) -> Result<Finished> {
        self.machine.run(&format!("env DEBIAN_FRONTEND=noninteractive apt-get -q -y {words}"))
    }

    /// What the README says, up to the start.
    fn set_up(&self) -> Result<()> {
        let server_key = self.machine.sh("spa-server init")?;
        let config = self.machine.read(CONFIG)?;
        let web = format!("\n[services.web]\nports = [\"tcp/{WEB_PORT}\"]\n");
        self.machine.write(CONFIG, &(config + &web))?;
        let key = self.laptop.keygen()?;
        let added = format!("spa-server client add laptop --public-key {key} --allow ssh,web");
        self.machine.sh(&added)?;
        let key = server_key.trim();
        self.laptop
            .run(&["server", "add", "work", "--host", "gateway", "--public-key", key])?
            .ok()?;
        Ok(())
    }

    fn pid(&self) -> Result<String> {
        self.machine.property(UNIT, "MainPID")
    }

    fn is_active(&self) -> Result<bool> {
        Ok(self.machine.property(UNIT, "ActiveState")? == "active")
    }

    fn ensure_sees(&self, from: &spa_tests::Host, wanted: PortState) -> Result<()> {
        for family in Family::BOTH {
            let seen = from.tcp(self.lab.server().at(family, SSH_PORT))?;
            ensure!(
                seen == wanted,
                "{} sees {seen} by {family:?}, not {wanted}\n{}",
                from.namespace(),
                self.machine.journal("*")?
            );
        }
        Ok(())
    }

    fn open(&self) -> Result<()> {
        let opened = self.laptop.run(&["open", "ssh", "--wait", "--fresh", "--lifetime", "10m"])?;
        ensure!(opened.success(), "{opened}\n{}", self.machine.journal(UNIT)?);
        for family in Family::BOTH {
            self.lab.owner().await_open(self.lab.server().at(family, SSH_PORT))?;
        }
        Ok(())
    }

    /// The main job: hidden from strangers, and open for who knocks, who then logs in.
    fn ensure_a_knock_opens(&self) -> Result<()> {
        self.ensure_sees(self.lab.other(), PortState::Filtered)?;
        self.open()?;
        self.ensure_sees(self.lab.owner(), PortState::Open)?;
        self.ensure_sees(self.lab.other(), PortState::Filtered)?;
        for family in Family::BOTH {
            let answer = self.sshd.login(self.lab.owner(), family, "echo hello")?.ok()?;
            ensure!(answer == "hello\n", "{answer}");
        }
        Ok(())
    }

    /// That the kernel has nothing of ours, by whichever tool one looks.
    fn ensure_no_trace_in_the_kernel(&self) -> Result<()> {
        let server = self.lab.server();
        for look in ["iptables-save", "ip6tables-save", "nft list ruleset", "ipset list -name"] {
            let found = server.sh(look)?;
            let ours = ["SPA-", "spa4", "spa6", "table inet spa"];
            ensure!(!ours.iter().any(|mark| found.contains(mark)), "{look}: {found}");
        }
        Ok(())
    }

    /// The files that were not there before, or are not any more.
    fn files(&self) -> Result<BTreeSet<String>> {
        let mut line = "find / -xdev".to_owned();
        for path in VOLATILE {
            line.extend([" -path ", path, " -prune -o"]);
        }
        let listed = self.machine.sh(&(line + " -print"))?;
        Ok(listed.lines().map(Into::into).collect())
    }

    fn version(&self) -> Result<String> {
        self.machine.sh("dpkg-query --show --showformat ${Version} spa-server")
    }
}

/// What the environment says.
fn told(name: &str) -> Result<PathBuf> {
    let path = env::var_os(name);
    path.map(Into::into).with_context(|| format!("{name} is not set: `make test-packages` does"))
}

#[test]
fn an_installation_starts_nothing_and_a_knock_opens_once_it_is_set_up() -> Result<()> {
    let clean = Clean::new()?;
    let machine = &clean.machine;
    clean.install("1")?.ok()?;
    ensure!(!clean.is_active()?, "it was started");
    for unit in
        ["spa-server.service", "spa-gate.service", "spa-metrics.socket", "spa-notify.service"]
    {
        let enabled = machine.run(&format!("systemctl is-enabled {unit}"))?;
        ensure!(enabled.stdout == "disabled\n", "{enabled}");
    }
    ensure!(!machine.path_of("/etc/spa").exists() && !machine.path_of("/var/lib/spa").exists());
    clean.ensure_no_trace_in_the_kernel()?;
    clean.ensure_sees(clean.lab.other(), PortState::Open)?;
    ensure!(machine.sh("spa-client --version")?.starts_with("spa-client "));

    clean.set_up()?;
    let examples = "/usr/share/doc/spa/examples";
    ensure!(machine.path_of(&format!("{examples}/server.toml")).is_file());
    let checked = machine.run("spa-server check")?;
    ensure!(checked.success(), "{checked}");
    machine.sh("systemctl enable --now spa-server")?;
    clean.ensure_a_knock_opens()
}

#[test]
fn an_upgrade_keeps_grants_sessions_and_the_configuration_and_shows_the_port_to_nobody()
-> Result<()> {
    let clean = Clean::running()?;
    let (machine, lab) = (&clean.machine, &clean.lab);
    let changed = machine.read(CONFIG)? + "# mine\n";
    machine.write(CONFIG, &changed)?;
    // A listener, which keeps up with the watch better than sshd does.
    let _web = Listener::tcp(lab.server(), WEB_PORT)?;
    clean.open()?;
    clean.laptop.run(&["open", "web", "--no-wait", "--lifetime", "10m"])?.ok()?;
    for family in Family::BOTH {
        lab.owner().await_open(lab.server().at(family, WEB_PORT))?;
    }
    let mut session = clean.sshd.session(lab.owner(), Family::V4)?;
    let (pid, before) = (clean.pid()?, machine.grants()?);
    ensure!(before.len() == 4, "{before:?}");
    ensure!(clean.version()?.ends_with("-1"), "{}", clean.version()?);

    let wire = Capture::on(lab.server(), "tcp and (src port 22 or src port 8080)")?;
    let mut watches = Vec::new();
    for family in Family::BOTH {
        let port = lab.server().at(family, WEB_PORT);
        watches.push(Watch::on(lab.other(), port, PortState::Filtered));
        watches.push(Watch::on(lab.owner(), port, PortState::Open));
    }
    clean.install("2")?.ok()?;
    for watch in watches {
        watch.await_tries(5)?;
        watch.finish()?;
    }
    for packet in wire.packets()? {
        let to = packet.destination();
        ensure!(
            Family::BOTH.iter().all(|family| to != Some(lab.other().address(*family))),
            "{to:?}"
        );
    }

    ensure!(clean.version()?.ends_with("-2"), "{}", clean.version()?);
    ensure!(clean.is_active()? && clean.pid()? != pid, "the old program still runs");
    let running = fs::read_link(machine.path_of(&format!("/proc/{}/exe", clean.pid()?)))?;
    ensure!(!running.to_string_lossy().ends_with("(deleted)"), "{}", running.display());
    let after = machine.grants()?;
    for grant in &before {
        ensure!(after.iter().any(|other| other.request_id == grant.request_id), "{after:?}");
    }
    ensure!(after.len() == before.len(), "{before:?}, {after:?}");
    session.ensure_alive()?;
    ensure!(machine.read(CONFIG)? == changed, "the configuration is another one");
    machine.sh("systemctl reload spa-server")?;
    ensure!(machine.status()?.last_reload.is_none(), "{:?}", machine.status()?);
    session.ensure_alive()?;
    machine.sh("spa-server grants revoke --all")?;
    clean.ensure_a_knock_opens()
}

#[test]
fn an_upgrade_that_finds_fault_leaves_the_old_program_running() -> Result<()> {
    let clean = Clean::running()?;
    let machine = &clean.machine;
    let (pid, good) = (clean.pid()?, machine.read(CONFIG)?);
    // As when a version no longer knows a setting.
    machine.write(CONFIG, &format!("no-longer-known = 1\n{good}"))?;
    ensure!(!machine.run("systemctl reload spa-server")?.success());
    let upgraded = clean.install("2")?;
    ensure!(upgraded.success(), "{upgraded}");
    ensure!(upgraded.said().contains("no-longer-known"), "{upgraded}");
    ensure!(upgraded.said().contains("the old one goes on running"), "{upgraded}");
    ensure!(clean.pid()? == pid && clean.is_active()?, "it was restarted");
    clean.ensure_a_knock_opens()?;
    // The control: mended, it restarts, though the old one remembers that something was wrong.
    machine.write(CONFIG, &good)?;
    let checked = machine.run("spa-server check")?;
    ensure!(checked.stdout.contains("error    control"), "{checked}");
    clean.apt("install --reinstall /root/2/spa-server_0.1.0-2_amd64.deb")?.ok()?;
    ensure!(clean.pid()? != pid && clean.is_active()?, "{}", machine.journal(UNIT)?);
    Ok(())
}

#[test]
fn an_upgrade_starts_nothing_that_was_stopped() -> Result<()> {
    let clean = Clean::running()?;
    clean.machine.sh("systemctl stop spa-server")?;
    clean.machine.sh("spa-server gate remove")?;
    let upgraded = clean.install("2")?;
    ensure!(upgraded.success() && upgraded.said().contains("does not run"), "{upgraded}");
    ensure!(!clean.is_active()?, "it was started");
    clean.ensure_no_trace_in_the_kernel()?;
    clean.ensure_sees(clean.lab.other(), PortState::Open)
}

#[test]
fn a_removal_takes_the_gate_away_and_a_return_finds_all_as_it_was() -> Result<()> {
    let clean = Clean::running()?;
    let (machine, lab) = (&clean.machine, &clean.lab);
    clean.open()?;
    let mut session = clean.sshd.session(lab.owner(), Family::V6)?;
    clean.ensure_sees(lab.other(), PortState::Filtered)?;
    let config = machine.read(CONFIG)?;
    let pid = clean.pid()?;
    let removed = clean.apt("remove spa-server")?;
    ensure!(removed.success(), "{removed}");
    ensure!(!machine.path_of(&format!("/proc/{pid}")).exists(), "the daemon still runs");
    ensure!(!machine.path_of("/usr/sbin/spa-server").exists());
    clean.ensure_no_trace_in_the_kernel()?;
    for host in [lab.other(), lab.owner()] {
        clean.ensure_sees(host, PortState::Open)?;
    }
    session.ensure_alive()?;

    // The configuration is the administrator's until it is purged. Nothing starts by itself.
    let returned = clean.install("1")?;
    ensure!(returned.success() && returned.said().contains("does not run"), "{returned}");
    ensure!(!clean.is_active()? && machine.read(CONFIG)? == config);
    clean.ensure_sees(lab.other(), PortState::Open)?;
    machine.sh("systemctl start spa-server")?;
    session.ensure_alive()?;
    clean.ensure_a_knock_opens()
}

#[test]
fn a_gate_that_can_not_be_taken_away_keeps_the_package() -> Result<()> {
    let clean = Clean::running()?;
    let (machine, lab) = (&clean.machine, &clean.lab);
    let tools = ["xtables-nft-multi", "xtables-legacy-multi"];
    for tool in tools {
        machine.sh(&format!("mv /usr/sbin/{tool} /usr/sbin/{tool}.away"))?;
    }
    let removed = clean.apt("remove spa-server")?;
    ensure!(!removed.success() && removed.said().contains("the package stays"), "{removed}");
    for tool in tools {
        machine.sh(&format!("mv /usr/sbin/{tool}.away /usr/sbin/{tool}"))?;
    }
    ensure!(machine.path_of("/usr/sbin/spa-server").exists(), "the program is gone");
    eventually("the daemon is to run again", || Ok(clean.is_active()?.then_some(())))
        .with_context(|| machine.journal(UNIT).unwrap_or_default())?;
    clean.ensure_a_knock_opens()?;
    // The control: with its tools it goes.
    clean.apt("remove spa-server")?.ok()?;
    clean.ensure_no_trace_in_the_kernel()?;
    clean.ensure_sees(lab.other(), PortState::Open)
}

#[test]
fn a_removal_where_the_gate_is_not_ours_leaves_it_alone() -> Result<()> {
    let clean = Clean::running()?;
    let machine = &clean.machine;
    machine.sh("mkdir /srv/inner")?;
    machine.sh("mount --bind / /srv/inner")?;
    machine.sh("mount --bind /proc /srv/inner/proc")?;
    machine.sh("chroot /srv/inner sh /var/lib/dpkg/info/spa-server.prerm remove")?;
    clean.ensure_a_knock_opens()?;
    // The control: outside it does what it is for.
    machine.sh("sh /var/lib/dpkg/info/spa-server.prerm remove")?;
    clean.ensure_no_trace_in_the_kernel()?;
    // As in a container that has no say in its network: no gate, and no reason to stay.
    let powerless = "setpriv --bounding-set -net_admin --inh-caps -net_admin";
    let removed = machine.run(&format!("{powerless} spa-server gate remove"))?;
    ensure!(!removed.success(), "{removed}");
    machine.sh(&format!("{powerless} sh /var/lib/dpkg/info/spa-server.prerm remove"))?;
    Ok(())
}

#[test]
fn a_purge_leaves_what_the_administrator_made_and_nothing_else() -> Result<()> {
    let clean = Clean::new()?;
    let machine = &clean.machine;
    clean.apt(&format!("install {NEEDED}"))?.ok()?;
    let before = clean.files()?;
    for mine in [None, Some("/etc/spa/notes")] {
        clean.install("1")?.ok()?;
        let server_key = machine.sh("spa-server init")?;
        ensure!(server_key.starts_with("spa-public-"), "{server_key}");
        let key = "spa-public-wMhVlcx9xJF13OjNS9umBc3un8KC_CmV1VONnUazdnferDP3";
        let add = format!("spa-server client add somebody --allow ssh --psk --public-key {key}");
        machine.sh(&add)?;
        // The client's half, which nobody has brought to it.
        machine.sh("rm /somebody.psk")?;
        machine.sh("spa-server invite another --allow ssh --host gateway")?;
        machine.sh("systemctl enable --now spa-server spa-metrics.socket")?;
        machine.sh("spa-server rotate-key")?;
        clean.ensure_sees(clean.lab.other(), PortState::Filtered)?;
        if let Some(mine) = mine {
            machine.write(mine, "mine\n")?;
        }
        // The control: there is something to take away.
        let present = clean.files()?;
        ensure!(present.iter().filter(|path| path.starts_with("/etc/spa/clients.d/")).count() == 4);

        let purged = clean.apt("purge spa-server spa-client")?;
        ensure!(purged.success(), "{purged}");
        clean.ensure_no_trace_in_the_kernel()?;
        clean.ensure_sees(clean.lab.other(), PortState::Open)?;
        let left: Vec<_> = clean.files()?.difference(&before).cloned().collect();
        let expected: Vec<_> = mine.into_iter().flat_map(|mine| ["/etc/spa", mine]).collect();
        ensure!(left == expected, "{left:?} is left\n{purged}");
        ensure!(purged.said().contains("/etc/spa stays") == mine.is_some(), "{purged}");
        let gone: Vec<_> = before.difference(&clean.files()?).cloned().collect();
        ensure!(gone.is_empty(), "{gone:?} is gone");
    }
    Ok(())
}
