//! The users that the daemon's processes run as: what root leaves to them, and what is out of their reach.

use super::{CONFIG, Installation, UNIT};
use anyhow::{Result, ensure};
use spa_tests::{Laptop, Listener, PortState, SSH_PORT, eventually, finish_reading};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

/// A program that connects to the gate helper.
const MEET: &str = "/usr/local/bin/meet";
const MEETING: &str = "#!/usr/bin/perl
use Socket;
socket(my $socket, PF_UNIX, SOCK_STREAM, 0) or die $!;
connect($socket, pack_sockaddr_un('/run/spa-helper.sock')) or die $!;
";

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

/// So may the configuration, of which each unit then has its own copy, and pre-shared keys. Clients come
/// and go all the same.
#[test]
fn the_configuration_comes_as_a_credential_and_clients_are_still_revoked_at_once() -> Result<()> {
    let installation = Installation::new()?;
    let (machine, lab) = (&installation.machine, &installation.lab);
    let _ssh = Listener::tcp(lab.server(), SSH_PORT)?;
    machine.sh("env --chdir=/root spa-server client add tablet --psk --allow ssh")?;
    let handed_over = "/run/credentials/spa-server.service";
    machine.sh("mkdir --mode=700 /root/spa")?;
    for file in ["server.toml", "server.key", "clients.d/tablet.psk"] {
        machine.sh(&format!("mv /etc/spa/{file} /root/spa"))?;
    }
    machine
        .sh("chown root:root /root/spa/server.toml /root/spa/server.key /root/spa/tablet.psk")?;
    machine.sh("chmod go= /root/spa/server.toml /root/spa/server.key /root/spa/tablet.psk")?;
    let stated = format!(
        "private-key-file = \"{handed_over}/server.key\"\nclients-directory = \"/etc/spa/clients.d\"\n"
    );
    let config = machine.read("/root/spa/server.toml")?;
    machine.write("/root/spa/server.toml", &format!("{stated}{config}"))?;
    let tablet = "/etc/spa/clients.d/tablet.toml";
    let text = machine.read(tablet)?;
    machine.write(tablet, &text.replace("/etc/spa/clients.d/", &format!("{handed_over}/")))?;
    ensure!(machine.read(tablet)?.contains(&format!("{handed_over}/tablet.psk")), "{text}");
    let secrets = "LoadCredential=server.key:/root/spa/server.key\nLoadCredential=tablet.psk:/root/spa/tablet.psk\n";
    for (unit, command, more) in [
        (UNIT, "run --helper /run/spa-helper.sock", secrets),
        ("spa-helper@.service", "gate-helper", ""),
        ("spa-gate.service", "gate install --boot", ""),
    ] {
        let start = format!(
            "ExecStart=\nExecStart=/usr/sbin/spa-server --config %d/server.toml {command}\n"
        );
        let whole = "LoadCredential=server.toml:/root/spa/server.toml\n";
        machine.drop_in(unit, &format!("[Service]\n{start}{whole}{more}"))?;
    }
    machine.sh("systemctl start spa-server")?;
    installation.ensure_a_knock_opens()?;
    ensure!(machine.status()?.left_out.is_empty(), "{:?}", machine.status()?);
    let admin =
        |words: &str| machine.run(&format!("spa-server --config /root/spa/server.toml {words}"));
    for words in ["status", "check", "reload"] {
        let done = admin(words)?;
        ensure!(done.success(), "{done}");
    }
    let clients = admin("client list")?.ok()?;
    ensure!(clients.contains("laptop") && clients.contains("tablet"), "{clients}");
    machine.sh("systemctl restart spa-gate")?;
    // Whose laptop was stolen.
    admin("client remove laptop")?.ok()?;
    ensure!(machine.grants()?.is_empty(), "{:?}", machine.grants()?);
    installation.ensure_sees(lab.owner(), PortState::Filtered)?;
    let knocked = installation.laptop.run(&["open", "ssh", "--fresh"])?;
    ensure!(knocked.success(), "{knocked}");
    eventually("the knock is to be refused", || {
        let dropped = machine.status()?.dropped;
        Ok((dropped.values().sum::<u64>() > 0).then_some(()))
    })?;
    installation.ensure_sees(lab.owner(), PortState::Filtered)
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
        ("spa-metrics", MEET),
        ("spa-metrics", "cat /etc/spa/server.toml"),
        ("spa-metrics", "ls /run/spa"),
    ] {
        let refused = as_user(user, order)?;
        ensure!(refused.said().contains("ermission denied"), "{user}, {order}: {refused}");
    }
    // Prometheus is told how the daemon is by who can give it no orders.
    let as_observer = |order: &str| {
        let who = "--reuid spa-metrics --regid spa-metrics --groups spa-gate";
        machine.run(&format!("setpriv {who} spa-server {order}"))
    };
    as_observer("status")?.ok()?;
    for order in ["grants list", "gate remove", "grants revoke --all", "reload"] {
        let refused = as_observer(order)?;
        ensure!(!refused.success(), "{order}: {refused}");
    }
    let refused = as_observer("grants list")?;
    ensure!(refused.said().contains("may ask for the status only"), "{refused}");
    // Others don't get to the socket, and whoever does is asked who he is.
    let refused = as_user("spa-gate", "spa-server status")?;
    ensure!(refused.said().contains("control.sock is not for this user"), "{refused}");
    let who = "--reuid 65534 --regid spa-metrics --groups spa-gate";
    let refused = machine.run(&format!("setpriv {who} spa-server status"))?;
    ensure!(refused.said().contains("may not speak to the daemon"), "{refused}");
    ensure!(!machine.grants()?.is_empty(), "somebody has revoked them");
    installation.ensure_open_for_the_owner_only()
}
