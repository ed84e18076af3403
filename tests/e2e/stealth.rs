//! What the gate looks like from outside: like nothing.

use anyhow::{Result, ensure};
use spa_tests::{
    Capture, Family, Host, Listener, PortState, SSH_PORT, Scan, Scene, WEB_PORT, at_once,
};
use std::collections::{BTreeMap, BTreeSet};

/// TCP ports that nothing guards and nobody listens on.
const CLOSED: [u16; 3] = [9, 1234, 40_000];
/// A port that the host itself shows to everybody: proof that the scanner sees.
const SHOWN: u16 = 7777;
const KNOCK_PORT: u16 = 62201;
const DNS_PORT: u16 = 8053;

/// Scans the hidden ports together with closed ones; a scanner must learn the same of all.
fn ensure_hidden_ports_look_closed(scene: &Scene, scan: Scan, family: Family) -> Result<()> {
    let hidden: &[u16] = match scan {
        Scan::Udp => &[DNS_PORT, KNOCK_PORT],
        _ => &[SSH_PORT, WEB_PORT, KNOCK_PORT],
    };
    let ports: Vec<u16> = CLOSED.iter().chain(hidden).copied().collect();
    let found = scan.run(scene.lab.other(), scene.lab.server(), family, &ports)?;
    let looks: BTreeSet<_> = found.values().collect();
    ensure!(looks.len() == 1, "nmap {} {family:?} tells ports apart: {found:?}", scan.option());
    Ok(())
}

/// All kinds of scans by both families, with the control that nmap sees the port that is shown,
/// and that it saw the protected port before there was a gate.
fn scans_learn_nothing(scene: &mut Scene) -> Result<()> {
    for family in Family::BOTH {
        let found =
            Scan::Syn.run(scene.lab.other(), scene.lab.server(), family, &[SHOWN, CLOSED[0]])?;
        ensure!(found[&SHOWN].state == "open", "{found:?}");
        ensure!(found[&SHOWN] != found[&CLOSED[0]], "{found:?}");
    }
    scene.server.start()?;
    for family in Family::BOTH {
        at_once(Scan::ALL, |scan| ensure_hidden_ports_look_closed(scene, scan, family))?;
        let found = Scan::Syn.run(scene.lab.other(), scene.lab.server(), family, &[SHOWN])?;
        ensure!(found[&SHOWN].state == "open", "{found:?}");
    }
    // While the port is open for the owner, nobody else sees it.
    for family in Family::BOTH {
        scene.ensure_owner_gets_in(family)?;
        at_once([Scan::Syn, Scan::Fin], |scan| {
            ensure_hidden_ports_look_closed(scene, scan, family)
        })?;
    }
    scene.server.ensure_unharmed()
}

#[test]
fn nmap_learns_nothing_of_a_host_that_drops() -> Result<()> {
    let mut scene = Scene::prepared(|_| {})?;
    let _shown = Listener::tcp(scene.lab.server(), SHOWN)?;
    for tables in ["iptables", "ip6tables"] {
        for rule in [
            "-A INPUT -i lo -j ACCEPT".to_owned(),
            "-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT".to_owned(),
            format!("-A INPUT -p tcp --dport {SHOWN} -j ACCEPT"),
            "-P INPUT DROP".to_owned(),
        ] {
            scene.lab.server().sh(&format!("{tables} {rule}"))?;
        }
    }
    scene.lab.server().sh("ip6tables -A INPUT -p icmpv6 --icmpv6-type 135 -j ACCEPT")?;
    scene.lab.server().sh("ip6tables -A INPUT -p icmpv6 --icmpv6-type 136 -j ACCEPT")?;
    scans_learn_nothing(&mut scene)
}

#[test]
fn nmap_learns_nothing_of_a_host_that_rejects() -> Result<()> {
    let mut scene = Scene::prepared(|configuration| configuration.gate.refuse = "reject".into())?;
    let _shown = Listener::tcp(scene.lab.server(), SHOWN)?;
    scans_learn_nothing(&mut scene)
}

/// What a host answers, without what differs from packet to packet.
fn fingerprint(frame: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = frame.get(14..)?.to_vec();
    let header = if bytes.first()? >> 4 == 4 {
        // Identification and checksum.
        bytes.get_mut(4..6)?.fill(0);
        bytes.get_mut(10..12)?.fill(0);
        20
    } else {
        // Flow label.
        bytes.get_mut(1..4)?.fill(0);
        40
    };
    // Ports, sequence and acknowledgement numbers, and the checksum of TCP.
    let tcp = bytes.get_mut(header..)?;
    tcp.get_mut(..12)?.fill(0);
    tcp.get_mut(16..18)?.fill(0);
    Some(bytes)
}

#[test]
fn the_reset_of_a_hidden_port_is_byte_for_byte_that_of_a_closed_one() -> Result<()> {
    let scene = Scene::with(|configuration| configuration.gate.refuse = "reject".into())?;
    let (server, other) = (scene.lab.server(), scene.lab.other());
    for family in Family::BOTH {
        for scan in [Scan::Syn, Scan::Ack, Scan::Fin, Scan::Null, Scan::Xmas] {
            let mut looks = BTreeMap::new();
            for port in [CLOSED[0], SSH_PORT] {
                let wire = Capture::on(server, &format!("src port {port}"))?;
                scan.run(other, server, family, &[port])?;
                let prints: BTreeSet<_> = wire
                    .packets()?
                    .into_iter()
                    .filter(|packet| packet.is_from(server))
                    .filter_map(|packet| fingerprint(&packet.0))
                    .collect();
                ensure!(!prints.is_empty(), "tcp/{port} did not answer {scan:?}");
                looks.insert(port, prints);
            }
            ensure!(
                looks[&CLOSED[0]] == looks[&SSH_PORT],
                "{scan:?} by {family:?} tells the ports apart: {looks:02x?}"
            );
        }
    }
    Ok(())
}

/// Everything that a stranger can think of, at the ports that the gate hides.
fn bother(scene: &Scene, from: &Host, family: Family) -> Result<()> {
    let server = scene.lab.server();
    let knock = scene.laptop.open("ssh").seal()?;
    for port in [SSH_PORT, WEB_PORT] {
        ensure!(from.tcp(server.at(family, port))? == PortState::Filtered);
    }
    for port in [KNOCK_PORT, DNS_PORT] {
        ensure!(from.udp(server.at(family, port))? == PortState::Filtered);
    }
    let mut datagrams: Vec<Vec<u8>> = (0..knock.len()).step_by(7).map(|n| vec![0; n]).collect();
    datagrams.push(vec![0xff; knock.len()]);
    datagrams.push(vec![0; 1400]);
    let mut tampered = knock.clone();
    tampered[200] ^= 1;
    datagrams.push(tampered);
    datagrams.push(scene.laptop.with_clock_ahead(-100).open("ssh").seal()?);
    datagrams.push(scene.laptop.open("no-such-service").seal()?);
    datagrams.push(scene.laptop.open("ssh").bound_to("192.0.2.1".parse()?).seal()?);
    from.send_udp_all(scene.door(family), &datagrams)?;
    at_once(Scan::ALL, |scan| match scan {
        Scan::Udp => scan.run(from, server, family, &[DNS_PORT, KNOCK_PORT]),
        _ => scan.run(from, server, family, &[SSH_PORT, WEB_PORT]),
    })?;
    Ok(())
}

#[test]
fn with_drop_the_server_sends_not_one_packet() -> Result<()> {
    // There is no other firewall: what is silent is silent by the gate.
    let scene = Scene::with(|configuration| configuration.gate.refuse = "drop".into())?;
    let server = scene.lab.server();
    let wire = Capture::on(server, "ip or ip6")?;
    for family in Family::BOTH {
        bother(&scene, scene.lab.other(), family)?;
        // An accepted knock is answered by silence, and so are its replays.
        let knock = scene.laptop.open("ssh").seal()?;
        let accepted = scene.server.status()?.accepted;
        scene.lab.owner().send_udp_all(scene.door(family), &vec![knock; 3])?;
        scene.server.await_accepted(accepted + 1)?;
        bother(&scene, scene.lab.other(), family)?;
    }
    wire.ensure_silence_of(server)?;
    // The control: the owner is answered, and the capture sees it.
    scene.ensure_owner_gets_in(Family::V4)?;
    ensure!(wire.ensure_silence_of(server).is_err(), "the capture sees nothing");
    Ok(())
}

#[test]
fn the_gate_on_a_host_without_firewall_leaves_an_idle_session_alive() -> Result<()> {
    for refuse in ["drop", "reject"] {
        let mut scene = Scene::prepared(|configuration| configuration.gate.refuse = refuse.into())?;
        let (server, other) = (scene.lab.server().clone(), scene.lab.other());
        let mut sessions = Vec::new();
        for family in Family::BOTH {
            sessions.push(scene.sshd.session(other, family)?);
        }
        let tracked = server.sh("cat /proc/sys/net/netfilter/nf_conntrack_count")?;
        ensure!(tracked.trim() == "0", "connection tracking was not idle: {tracked} entries");

        scene.server.start()?;
        for session in &mut sessions {
            session.ensure_alive()?;
        }
        // The control: it is the session that passes, not its host.
        for family in Family::BOTH {
            let hidden = if refuse == "drop" { PortState::Filtered } else { PortState::Closed };
            scene.ensure_sees(other, family, SSH_PORT, hidden)?;
        }
        // A second start, a crash and a stop do it no harm either.
        scene.server.restart()?;
        scene.server.kill9()?;
        scene.server.start()?;
        for session in &mut sessions {
            session.ensure_alive()?;
        }
        scene.server.stop()?;
        for session in &mut sessions {
            session.ensure_alive()?;
        }
    }
    Ok(())
}

#[test]
fn after_a_stop_the_ports_stay_hidden() -> Result<()> {
    let mut scene = Scene::new()?;
    for family in Family::BOTH {
        scene.ensure_owner_gets_in(family)?;
    }
    scene.server.stop()?;
    let rules = scene.server.rules()?;
    for family in Family::BOTH {
        scene.ensure_sees(scene.lab.other(), family, SSH_PORT, PortState::Filtered)?;
        scene.ensure_sees(scene.lab.owner(), family, SSH_PORT, PortState::Open)?;
    }
    scene.server.start()?;
    ensure!(scene.server.rules()? == rules, "a start has changed the rules");
    Ok(())
}

#[test]
fn removing_the_gate_leaves_the_host_as_it_was() -> Result<()> {
    let mut scene = Scene::prepared(|_| {})?;
    let server = scene.lab.server().clone();
    for tables in ["iptables", "ip6tables"] {
        server.sh(&format!("{tables} -A INPUT -p tcp --dport 9999 -j DROP"))?;
        server.sh(&format!("{tables} -t mangle -A PREROUTING -p tcp --dport 9998 -j DROP"))?;
    }
    let before = scene.server.rules()?;
    scene.server.start()?;
    scene.ensure_owner_gets_in(Family::V4)?;
    ensure!(scene.server.rules()? != before);
    scene.server.stop()?;
    scene.server.admin(&["gate", "remove"])?.ok()?;
    let after = scene.server.rules()?;
    for rule in before.lines() {
        ensure!(after.lines().any(|line| line == rule), "{rule:?} is gone");
    }
    let left: Vec<_> = after.lines().filter(|line| line.to_lowercase().contains("spa")).collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    ensure!(server.sh("ipset list -name")?.trim().is_empty(), "sets are left behind");
    scene.ensure_sees(scene.lab.other(), Family::V4, SSH_PORT, PortState::Open)
}
