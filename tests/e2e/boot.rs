//! From the start of the machine on: the gate stands before the network is up, and longer than the
//! daemon, under the real systemd.

use anyhow::{Context, Result, ensure};
use spa_tests::{
    Family, Finished, Lab, Laptop, Listener, Machine, PortState, SSH_PORT, Scene, eventually,
};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

const GATE: &str = "spa-gate.service";
const DAEMON: &str = "spa-server.service";
const CONFIG: &str = "/etc/spa/server.toml";
const LAST_GATE: &str = "/var/lib/spa-gate/last-gate";
/// What nobody should write into a configuration.
const WRONG: &str = "\n[services.web]\nports = \"tcp/http\"\n";
/// What brings the network up: it writes down how the firewall is at that moment.
const NETWORK: &str = "\
[Unit]
DefaultDependencies=no
After=network-pre.target
Wants=network-pre.target
Before=network.target
Wants=network.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'iptables-save >/run/rules4; ip6tables-save >/run/rules6'
";

/// Who needs no knock, where a test says so.
const ALWAYS_ADMITTED: [&str; 2] = ["10.66.0.2", "fd66::2"];

/// A machine that the administrator has set up, and that is started anew.
struct Reboot {
    machine: Machine,
    laptop: Laptop,
    lab: Lab,
}

impl Reboot {
    /// `change` may do what it likes to the files, which are below the path that it gets, before
    /// the machine is started again. The gate stands for good, and both units are enabled.
    fn after(change: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        Self::of(|machine| machine.sh("systemctl start spa-server").map(drop), change)
    }

    /// The same, of a machine where the administrator has done `first`.
    fn of(
        first: impl FnOnce(&Machine) -> Result<()>,
        change: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Self> {
        let lab = Lab::new()?;
        let seed = lab.directory().join("seed");
        let laptop = Laptop::new(&lab, lab.owner(), "laptop");
        {
            let machine = Machine::boot(&lab)?;
            let server_key = machine.sh("spa-server init")?;
            let key = laptop.keygen()?;
            machine.sh(&format!("spa-server client add laptop --public-key {key} --allow ssh"))?;
            let key = server_key.trim();
            laptop
                .run(&["server", "add", "work", "--host", "gateway", "--public-key", key])?
                .ok()?;
            machine.write("/etc/systemd/system/test-network.service", NETWORK)?;
            first(&machine)?;
            machine.sh("systemctl enable spa-server")?;
            enable(&machine.path_of("/etc/systemd/system"), "test-network.service")?;
            machine.sh("systemctl stop spa-server")?;
            for directory in ["etc/spa", "etc/systemd/system", "var/lib/spa", "var/lib/spa-gate"] {
                let to = seed.join(directory);
                fs::create_dir_all(&to)?;
                let from = machine.path_of(&format!("/{directory}/."));
                if !from.exists() {
                    continue;
                }
                let copied = Command::new("cp").arg("-a").args([&from, &to]).status()?;
                ensure!(copied.success(), "{directory} was not copied");
            }
            // The network outlives this machine, and a kernel forgets.
            machine.sh("spa-server gate remove")?;
        }
        change(&seed)?;
        let machine = Machine::boot_with(&lab, &seed)?;
        Ok(Self { machine, laptop, lab })
    }

    fn ensure_sees(&self, from: &spa_tests::Host, wanted: PortState) -> Result<()> {
        for family in Family::BOTH {
            let seen = from.tcp(self.lab.server().at(family, SSH_PORT))?;
            let journals = || {
                let of = |unit| self.machine.journal(unit).unwrap_or_default();
                format!("{}\n{}", of(GATE), of(DAEMON))
            };
            ensure!(seen == wanted, "{seen} by {family:?}, not {wanted}\n{}", journals());
        }
        Ok(())
    }

    /// When a unit began to be started, and when it was, in microseconds.
    fn started(&self, unit: &str) -> Result<(u64, u64)> {
        let at = |name| -> Result<u64> {
            let text = self.machine.property(unit, name)?;
            text.parse().with_context(|| format!("{name} of {unit} is {text:?}"))
        };
        Ok((at("InactiveExitTimestampMonotonic")?, at("ActiveEnterTimestampMonotonic")?))
    }

    fn await_state(&self, unit: &str, state: &str) -> Result<()> {
        eventually(&format!("{unit} is to be {state}"), || {
            Ok((self.machine.property(unit, "ActiveState")? == state).then_some(()))
        })
        .with_context(|| self.machine.journal(unit).unwrap_or_default())
    }

    fn ensure_addresses(&self) -> Result<()> {
        for (family, address) in Family::BOTH.into_iter().zip(ALWAYS_ADMITTED) {
            let owner = self.lab.owner().address(family).to_string();
            ensure!(owner == address, "the owner of this lab is {owner}, not {address}");
        }
        Ok(())
    }

    fn knock(&self) -> Result<()> {
        let opened = self.laptop.run(&["open", "ssh", "--wait", "--fresh", "--lifetime", "10m"])?;
        ensure!(opened.success(), "{opened}\n{}", self.machine.journal(DAEMON)?);
        Ok(())
    }
}

fn enable(units: &Path, name: &str) -> Result<()> {
    let wants = units.join("multi-user.target.wants");
    fs::create_dir_all(&wants)?;
    symlink(PathBuf::from("..").join(name), wants.join(name))?;
    Ok(())
}

#[test]
fn the_gate_stands_before_the_network_is_up() -> Result<()> {
    let reboot = Reboot::after(|_| Ok(()))?;
    let (machine, lab) = (&reboot.machine, &reboot.lab);
    let _ssh = Listener::tcp(lab.server(), SSH_PORT)?;
    reboot.await_state(DAEMON, "active")?;
    for family in ["rules4", "rules6"] {
        let rules = machine.read(&format!("/run/{family}"))?;
        for chain in ["-A PREROUTING -j SPA-GUARD", "-A INPUT -j SPA-INPUT"] {
            ensure!(rules.contains(chain), "no {chain} when the network came up:\n{rules}");
        }
    }
    let (_, gate) = reboot.started(GATE)?;
    let (network_pre, _) = reboot.started("network-pre.target")?;
    let (network, _) = reboot.started("test-network.service")?;
    let (daemon, _) = reboot.started(DAEMON)?;
    ensure!(
        gate > 0 && gate <= network_pre && network_pre <= network,
        "{gate} {network_pre} {network}"
    );
    ensure!(gate <= daemon, "the daemon came first: {daemon}, {gate}");
    // The whole of it works.
    reboot.ensure_sees(lab.other(), PortState::Filtered)?;
    reboot.knock()?;
    reboot.ensure_sees(lab.owner(), PortState::Open)?;
    reboot.ensure_sees(lab.other(), PortState::Filtered)?;

    // Whoever stops both has changed nothing for those outside; who removes the gate has.
    machine.sh("systemctl disable --now spa-server spa-gate")?;
    reboot.await_state(GATE, "inactive")?;
    reboot.ensure_sees(lab.other(), PortState::Filtered)?;
    machine.sh("spa-server gate remove")?;
    reboot.ensure_sees(lab.other(), PortState::Open)
}

#[test]
fn a_daemon_that_fails_to_start_leaves_the_ports_hidden_but_for_those_always_admitted() -> Result<()>
{
    let reboot = Reboot::after(|seed| {
        fs::write(seed.join("etc/spa/server.key"), "nonsense\n")?;
        let path = seed.join("etc/spa/server.toml");
        Ok(fs::write(&path, always_admitting(&fs::read_to_string(&path)?))?)
    })?;
    let lab = &reboot.lab;
    reboot.ensure_addresses()?;
    let _ssh = Listener::tcp(lab.server(), SSH_PORT)?;
    reboot.await_state(GATE, "active")?;
    reboot.machine.await_journal(DAEMON, "server.key")?;
    ensure!(reboot.machine.property(DAEMON, "ActiveState")? != "active");
    reboot.ensure_sees(lab.other(), PortState::Filtered)?;
    reboot.ensure_sees(lab.owner(), PortState::Open)
}

/// The user that puts the gate up at boot is not to speak to the daemon: where he finds no way to its socket
/// that is no sign of a daemon.
#[test]
fn a_control_socket_that_the_gate_s_user_does_not_get_at_keeps_no_gate_away() -> Result<()> {
    let reboot = Reboot::of(
        |machine| {
            let config = machine.read(CONFIG)?;
            let elsewhere = "control-socket = \"/var/lib/spa/control.sock\"\n";
            machine.write(CONFIG, &format!("{elsewhere}{config}"))?;
            machine.sh("systemctl start spa-server").map(drop)
        },
        |seed| Ok(fs::write(seed.join("etc/spa/server.key"), "nonsense\n")?),
    )?;
    let lab = &reboot.lab;
    let _ssh = Listener::tcp(lab.server(), SSH_PORT)?;
    reboot.await_state(GATE, "active")?;
    ensure!(reboot.machine.property(DAEMON, "ActiveState")? != "active");
    reboot.ensure_sees(lab.other(), PortState::Filtered)
}

#[test]
fn a_wrong_configuration_leaves_the_ports_hidden_but_for_those_always_admitted_before() -> Result<()>
{
    let reboot = Reboot::of(
        |machine| {
            let config = machine.read(CONFIG)?;
            machine.write(CONFIG, &always_admitting(&config))?;
            machine.sh("systemctl start spa-server").map(drop)
        },
        |seed| {
            let path = seed.join("etc/spa/server.toml");
            Ok(fs::write(&path, fs::read_to_string(&path)? + WRONG)?)
        },
    )?;
    let (machine, lab) = (&reboot.machine, &reboot.lab);
    reboot.ensure_addresses()?;
    let _ssh = Listener::tcp(lab.server(), SSH_PORT)?;
    // The unit says that something is wrong, and holds up nothing.
    reboot.await_state(GATE, "failed")?;
    machine.await_journal(GATE, "AS IT LAST STOOD FOR GOOD")?;
    machine.await_journal(GATE, CONFIG)?;
    ensure!(machine.property(GATE, "ExecMainStatus")? == "78");
    reboot.await_state("test-network.service", "active")?;
    let (network, _) = reboot.started("test-network.service")?;
    let gate: u64 = machine.property(GATE, "InactiveEnterTimestampMonotonic")?.parse()?;
    ensure!(gate > 0 && gate <= network, "the network was first: {network}, {gate}");
    machine.await_journal(DAEMON, CONFIG)?;
    ensure!(machine.property(DAEMON, "ActiveState")? != "active");
    reboot.ensure_sees(lab.other(), PortState::Filtered)?;
    reboot.ensure_sees(lab.owner(), PortState::Open)?;

    // Whoever mends it has all as it was.
    let wrong = machine.read(CONFIG)?;
    let sound = wrong.replace(WRONG, "");
    machine.write(CONFIG, &sound)?;
    machine.sh("systemctl restart spa-server spa-gate")?;
    reboot.await_state(GATE, "active")?;
    reboot.ensure_sees(lab.other(), PortState::Filtered)?;
    reboot.knock()?;

    // Damaged: nothing is put up, whatever there was.
    machine.write(CONFIG, &wrong)?;
    machine.sh("systemctl stop spa-server")?;
    let remembered = machine.read(LAST_GATE)?;
    lab.server().sh("nft flush ruleset")?;
    let half = remembered.get(..remembered.len() / 2).context("it is no text")?;
    machine.write(LAST_GATE, half)?;
    ensure!(!machine.run("systemctl restart spa-gate")?.success());
    machine.await_journal(GATE, "is damaged")?;
    reboot.ensure_sees(lab.other(), PortState::Open)?;
    // The control: as it was written it serves.
    machine.write(LAST_GATE, &remembered)?;
    ensure!(!machine.run("systemctl restart spa-gate")?.success());
    reboot.ensure_sees(lab.other(), PortState::Filtered)?;

    // At three in the morning: it is gone, and stays so.
    machine.sh("spa-server gate remove")?;
    reboot.ensure_sees(lab.other(), PortState::Open)?;
    ensure!(!machine.run("systemctl restart spa-gate")?.success());
    machine.await_journal(GATE, "no gate is remembered")?;
    reboot.ensure_sees(lab.other(), PortState::Open)
}

#[test]
fn a_boot_hides_nothing_before_a_gate_has_stood_for_good() -> Result<()> {
    let reboot = Reboot::of(
        // Enabled, and never started.
        |_| Ok(()),
        |seed| Ok(fs::rename(seed.join("etc/spa/server.key"), seed.join("etc/spa/moved.key"))?),
    )?;
    let (machine, lab) = (&reboot.machine, &reboot.lab);
    let _ssh = Listener::tcp(lab.server(), SSH_PORT)?;
    reboot.await_state(GATE, "active")?;
    machine.await_journal(GATE, "left to the daemon")?;
    machine.await_journal(DAEMON, "server.key")?;
    reboot.ensure_sees(lab.other(), PortState::Open)?;
    // The daemon does it as soon as it can open it.
    machine.sh("mv /etc/spa/moved.key /etc/spa/server.key")?;
    reboot.await_state(DAEMON, "active")?;
    reboot.ensure_sees(lab.other(), PortState::Filtered)?;
    reboot.knock()?;
    // From then on it is the boot's business.
    machine.sh("systemctl stop spa-server")?;
    lab.server().sh("nft flush ruleset")?;
    reboot.ensure_sees(lab.other(), PortState::Open)?;
    machine.sh("systemctl restart spa-gate")?;
    reboot.ensure_sees(lab.other(), PortState::Filtered)
}

#[test]
fn what_can_not_be_put_up_by_the_configuration_is_put_up_as_it_last_stood() -> Result<()> {
    let mut scene = Scene::prepared(|_| {})?;
    let ensure_all = |scene: &Scene, wanted| -> Result<()> {
        Family::BOTH
            .into_iter()
            .try_for_each(|family| scene.ensure_sees(scene.lab.other(), family, SSH_PORT, wanted))
    };
    let boot = |scene: &Scene| -> Result<Finished> {
        // As a boot finds the kernel.
        scene.server.host().sh("nft flush ruleset")?;
        ensure_all(scene, PortState::Open)?;
        scene.server.admin(&["gate", "install", "--boot"])
    };
    ensure!(scene.server.admin(&["gate", "install"])?.success());
    ensure_all(&scene, PortState::Filtered)?;
    // The file makes sense, and yet it can't be used.
    scene.server.reconfigure(|configuration| {
        configuration.gate.tools.insert("nft".into(), "/nowhere/nft".into());
    })?;
    let booted = boot(&scene)?;
    let said = booted.said();
    ensure!(!booted.success() && said.contains("/nowhere/nft"), "{booted}");
    ensure!(said.contains("AS IT LAST STOOD FOR GOOD"), "{booted}");
    ensure_all(&scene, PortState::Filtered)?;

    // What was not confirmed is not put up, nor what had stood before it.
    fs::write(scene.server.configuration().gate_directory().join("trial"), "\"lapsed\"\n")?;
    fs::write(scene.server.config_path(), fs::read_to_string(scene.server.config_path())? + WRONG)?;
    let booted = boot(&scene)?;
    ensure!(!booted.success() && booted.said().contains("not confirmed"), "{booted}");
    ensure_all(&scene, PortState::Open)
}

fn always_admitting(config: &str) -> String {
    config.replace("[gate]\n", &format!("[gate]\nalways-admit = {ALWAYS_ADMITTED:?}\n"))
}

#[test]
fn a_trial_that_nobody_confirmed_is_not_put_up_by_a_boot() -> Result<()> {
    let reboot = Reboot::after(|seed| {
        // It goes on when the machine is switched off.
        let of_another_boot = r#"{"running":{"boot-id":"1","stands-since":1,"deadline":9}}"#;
        for directory in ["spa", "spa-gate"] {
            fs::write(seed.join("var/lib").join(directory).join("trial"), of_another_boot)?;
        }
        Ok(())
    })?;
    let (machine, lab) = (&reboot.machine, &reboot.lab);
    let _ssh = Listener::tcp(lab.server(), SSH_PORT)?;
    reboot.await_state(GATE, "active")?;
    machine.await_journal(GATE, "was not confirmed")?;
    reboot.await_state(DAEMON, "active")?;
    ensure!(!machine.status()?.guards, "{:?}", machine.status()?);
    reboot.ensure_sees(lab.other(), PortState::Open)?;
    // Until somebody wants it.
    machine.sh("spa-server gate install")?;
    reboot.ensure_sees(lab.other(), PortState::Filtered)?;
    reboot.knock()?;
    reboot.ensure_sees(lab.owner(), PortState::Open)
}

/// What other firewalls' units say of their place in the boot, as Debian ships them.
#[test]
fn no_other_firewall_makes_a_circle_of_the_order() -> Result<()> {
    // firewalld and nftables.service exclude each other.
    ensure_order_with(&["nftables.service", "ufw.service"])?;
    ensure_order_with(&["firewalld.service", "ufw.service"])
}

/// A circle makes systemd leave out one of the units in it.
fn ensure_order_with(others: &[&str]) -> Result<()> {
    let reboot = Reboot::after(|seed| {
        let units = seed.join("etc/systemd/system");
        for name in others {
            let text = fs::read_to_string(Path::new("/lib/systemd/system").join(name))
                .with_context(|| format!("{name} is not installed"))?;
            // Only the order matters here: what they start would need what this machine hasn't.
            let text: Vec<_> = text
                .lines()
                .filter(|line| {
                    !["Exec", "Type=", "BusName="].iter().any(|key| line.starts_with(key))
                })
                .map(|line| match line {
                    "[Service]" => {
                        "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true"
                    }
                    other => other,
                })
                .collect();
            fs::write(units.join(name), text.join("\n") + "\n")?;
            let wanted_by = if *name == "nftables.service" { "sysinit" } else { "multi-user" };
            let wants = units.join(format!("{wanted_by}.target.wants"));
            fs::create_dir_all(&wants)?;
            symlink(PathBuf::from("..").join(name), wants.join(name))?;
        }
        Ok(())
    })?;
    reboot.await_state(GATE, "active")?;
    reboot.await_state(DAEMON, "active")?;
    let journal = reboot.machine.sh("journalctl --quiet --no-pager --output cat _PID=1")?;
    ensure!(journal.contains("spa-gate"), "the control: systemd tells of units\n{journal}");
    ensure!(!journal.contains("ordering cycle"), "{journal}");
    let (gate, _) = reboot.started(GATE)?;
    for name in others {
        reboot.await_state(name, "active")?;
        let (_, other) = reboot.started(name)?;
        ensure!(other <= gate, "{name} came after the gate");
    }
    Ok(())
}
