//! Established connections are ended: those of a revoked grant on demand, and those that slipped in
//! while somebody had flushed the gate. The server talks all the time, so that deleting what
//! connection tracking knows would not be enough.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use spa_tests::{
    Backend, Device, Family, Frame, Hearer, Host, PortState, Ruleset, Scene, Service, Talker,
    eventually,
};
use std::fs;

/// A guarded port that nobody else of the scene listens on.
const TALK_PORT: u16 = 9022;

/// A port of another host's, which this one talks to.
const THEIR_PORT: u16 = 4443;

/// A scene with a service `talk`, two clients who may open it, and the second one's device.
fn scene(change: impl FnOnce(&mut spa_tests::Configuration)) -> Result<(Scene, Device)> {
    let mut scene = Scene::prepared(|configuration| {
        let ports = vec![format!("tcp/{TALK_PORT}"), format!("udp/{TALK_PORT}")];
        configuration.services.insert("talk".into(), Service { ports, ..Service::default() });
        for client in &mut configuration.clients {
            client.allow.push("talk".into());
        }
        change(configuration);
    })?;
    let (_, neighbour) =
        scene.add_client("neighbour", |client| client.allow = vec!["talk".into()])?;
    scene.server.start()?;
    Ok((scene, neighbour))
}

/// The owner's host knocks with a device, and the knock is carried out.
fn open(scene: &Scene, device: &Device, family: Family, what: &str) -> Result<()> {
    let accepted = scene.server.status()?.accepted;
    let knock = device.open(what).lifetime(600).seal()?;
    scene.knock(scene.lab.owner(), family, &knock)?;
    scene.server.await_accepted(accepted + 1)
}

/// One of the administrator's commands that cuts, which ends so many connections.
fn cut(scene: &Scene, words: &[&str], ended: u64) -> Result<()> {
    let done = scene.server.admin(words)?;
    let plural = if ended == 1 { "" } else { "s" };
    let said = format!("{ended} connection{plural} ended\n");
    ensure!(done.success() && done.said().contains(&said), "{done}");
    Ok(())
}

#[test]
fn a_revocation_with_cut_ends_the_sessions_and_one_without_does_not() -> Result<()> {
    let (scene, _) = scene(|_| {})?;
    let owner = scene.lab.owner().clone();
    let talker = Talker::tcp(scene.server.host(), TALK_PORT)?;
    let revoke_talk = ["grants", "revoke", "laptop", "--service", "talk", "--cut"];
    for (round, family) in (0..).zip(Family::BOTH) {
        let to = scene.lab.server().at(family, TALK_PORT);
        open(&scene, &scene.laptop, family, "talk ssh")?;
        let mut hearer = Hearer::tcp(&owner, to)?;
        let mut session = scene.sshd.session(&owner, family)?;

        // The control.
        scene.revoke_all()?;
        scene.await_state(&owner, family, TALK_PORT, PortState::Filtered)?;
        hearer.ensure_hears()?;

        // The grant has ended, and its session is known to be of it.
        cut(&scene, &revoke_talk, 1)?;
        hearer.await_silence()?;
        talker.await_lost(2 * round + 1)?;
        session.ensure_alive().context("another service's session was ended")?;

        // One that is live.
        open(&scene, &scene.laptop, family, "talk")?;
        let mut hearer = Hearer::tcp(&owner, to)?;
        cut(&scene, &revoke_talk, 1)?;
        hearer.await_silence()?;
        talker.await_lost(2 * round + 2)?;
        ensure!(owner.tcp(to)? == PortState::Filtered);
        cut(&scene, &revoke_talk, 0)?;
        session.ensure_alive()?;
    }
    Ok(())
}

/// Where the talker sits, and how packets get there.
enum Place {
    /// On the server itself.
    Here,
    /// In a container, whose engine publishes the port.
    Published,
    /// On a host behind the server, to which the gate forwards.
    Behind,
    /// On the server, on another port than the one that is asked for.
    OtherPort,
}

/// A talker there, heard by the owner, is cut off: it hears nothing of him, and he nothing of it.
fn is_cut_off(place: &Place, transport: &str) -> Result<()> {
    let other_port = TALK_PORT + 1;
    let (scene, _) = scene(|configuration| {
        let ports = vec![format!("{transport}/{TALK_PORT}")];
        let mut service = Service { ports, ..Service::default() };
        match place {
            Place::Behind => {
                service.forward = Some(vec!["10.77.0.2".into(), "fd77::2".into()]);
            }
            Place::OtherPort => service.local_port = Some(other_port),
            Place::Here | Place::Published => {}
        }
        configuration.services.insert("talk".into(), service);
    })?;
    let owner = scene.lab.owner().clone();
    let server = scene.server.host().clone();
    let (host, port) = match place {
        Place::Here => (server.clone(), TALK_PORT),
        Place::OtherPort => (server.clone(), other_port),
        Place::Behind | Place::Published => (scene.lab.container()?, TALK_PORT),
    };
    if matches!(place, Place::Published) {
        for (tables, to) in [("iptables", "10.77.0.2"), ("ip6tables", "[fd77::2]")] {
            server.sh(&format!(
                "{tables} -t nat -A PREROUTING -p {transport} --dport {TALK_PORT} -m addrtype --dst-type LOCAL -j DNAT --to-destination {to}:{TALK_PORT}"
            ))?;
        }
    }
    let is_tcp = transport == "tcp";
    let talker = if is_tcp { Talker::tcp(&host, port)? } else { Talker::udp(&host, port)? };
    for (round, family) in (0..).zip(Family::BOTH) {
        let to = server.at(family, TALK_PORT);
        open(&scene, &scene.laptop, family, "talk")?;
        let hear = if is_tcp { Hearer::tcp } else { Hearer::udp };
        let mut hearer = hear(&owner, to)?;
        // The control: a revocation alone ends nothing.
        scene.revoke_all()?;
        hearer.ensure_hears()?;
        cut(&scene, &["grants", "revoke", "laptop", "--cut"], 1)?;
        hearer.await_silence().with_context(|| scene.server.account())?;
        if is_tcp {
            talker.await_lost(2 * round + 1)?;
        }
        let heard = talker.heard();
        hearer.say();
        hearer.await_silence()?;
        ensure!(talker.heard() == heard, "he is still heard");
        // Who knocks again comes in again, from the same port at once.
        open(&scene, &scene.laptop, family, "talk")?;
        if is_tcp {
            Hearer::tcp(&owner, to)?;
        } else {
            eventually("the same flow is to work again", || {
                hearer.say();
                Ok((talker.heard() > heard).then_some(()))
            })?;
            hearer.ensure_hears()?;
        }
        ensure!(scene.server.admin(&["grants", "revoke", "--all", "--cut"])?.success());
        if is_tcp {
            talker.await_lost(2 * round + 2)?;
        }
    }
    Ok(())
}

#[test]
fn a_server_of_this_host_that_talks_over_udp_is_cut_off() -> Result<()> {
    is_cut_off(&Place::Here, "udp")
}

#[test]
fn a_server_on_another_port_of_this_host_is_cut_off() -> Result<()> {
    is_cut_off(&Place::OtherPort, "tcp")
}

#[test]
fn a_container_that_talks_is_cut_off() -> Result<()> {
    is_cut_off(&Place::Published, "tcp")
}

#[test]
fn a_container_that_talks_over_udp_is_cut_off() -> Result<()> {
    is_cut_off(&Place::Published, "udp")
}

#[test]
fn a_host_behind_this_one_that_talks_is_cut_off() -> Result<()> {
    is_cut_off(&Place::Behind, "tcp")
}

#[test]
fn a_host_behind_this_one_that_talks_over_udp_is_cut_off() -> Result<()> {
    is_cut_off(&Place::Behind, "udp")
}

#[test]
fn a_neighbour_behind_the_same_address_keeps_his_session_while_his_grant_lives() -> Result<()> {
    let (scene, neighbour) = scene(|_| {})?;
    let owner = scene.lab.owner().clone();
    let _talker = Talker::tcp(scene.server.host(), TALK_PORT)?;
    open(&scene, &scene.laptop, Family::V4, "talk")?;
    open(&scene, &neighbour, Family::V4, "talk")?;
    let mut hearer = Hearer::tcp(&owner, scene.lab.server().at(Family::V4, TALK_PORT))?;
    cut(&scene, &["grants", "revoke", "laptop", "--cut"], 0)?;
    hearer.ensure_hears()?;
    // The control: it is his grant that protects it.
    cut(&scene, &["grants", "revoke", "neighbour", "--cut"], 1)?;
    hearer.await_silence()
}

#[test]
fn a_client_that_is_locked_out_with_cut_is_out() -> Result<()> {
    let (scene, neighbour) = scene(|_| {})?;
    let owner = scene.lab.owner().clone();
    let _talker = Talker::tcp(scene.server.host(), TALK_PORT)?;
    let to = scene.lab.server().at(Family::V4, TALK_PORT);
    open(&scene, &scene.laptop, Family::V4, "talk")?;
    let mut hearer = Hearer::tcp(&owner, to)?;
    ensure!(scene.server.admin(&["client", "disable", "laptop"])?.success());
    ensure!(scene.server.grants()?.is_empty());
    hearer.ensure_hears().context("without --cut it lives on")?;
    cut(&scene, &["client", "disable", "laptop", "--cut"], 1)?;
    hearer.await_silence()?;

    open(&scene, &neighbour, Family::V4, "talk")?;
    let mut hearer = Hearer::tcp(&owner, to)?;
    cut(&scene, &["client", "remove", "neighbour", "--cut"], 1)?;
    hearer.await_silence()?;
    ensure!(owner.tcp(to)? == PortState::Filtered);
    Ok(())
}

#[test]
fn who_slips_in_while_the_gate_is_flushed_is_thrown_out_and_nobody_else() -> Result<()> {
    let (scene, _) = scene(|configuration| {
        configuration.gate.always_admit = vec!["10.66.0.4".into()];
    })?;
    let (owner, stranger) = (scene.lab.owner().clone(), scene.lab.other().clone());
    let talker = Talker::tcp(scene.server.host(), TALK_PORT)?;
    let to = scene.lab.server().at(Family::V4, TALK_PORT);
    open(&scene, &scene.laptop, Family::V4, "talk")?;
    let mut before = Hearer::tcp(&owner, to)?;
    ensure!(stranger.tcp(to)? == PortState::Filtered);
    // Its session outlives its grant: it was there before.
    scene.revoke_all()?;
    open(&scene, &scene.laptop, Family::V6, "talk")?;

    let to_v6 = scene.lab.server().at(Family::V6, TALK_PORT);
    scene.server.host().sh("iptables -t mangle -F PREROUTING")?;
    scene.server.host().sh("iptables -F INPUT")?;
    scene.server.host().sh("ip6tables -t mangle -F PREROUTING")?;
    let mut slipped_in = Hearer::tcp(&stranger, to)?;
    let mut granted = Hearer::tcp(&owner, to_v6)?;
    let mut admitted = Hearer::tcp(scene.lab.third(), to)?;
    eventually("the gate is to be put back", || {
        Ok((scene.server.status()?.restored > 0).then_some(()))
    })
    .with_context(|| scene.server.account())?;
    slipped_in.await_silence().with_context(|| scene.server.account())?;
    talker.await_lost(1)?;
    ensure!(stranger.tcp(to)? == PortState::Filtered);
    for (who, hearer) in
        [("before", &mut before), ("granted", &mut granted), ("admitted", &mut admitted)]
    {
        hearer.ensure_hears().with_context(|| format!("{who}\n{}", scene.server.account()))?;
    }
    await_slipped_in(&scene, 1)
}

/// That so many connections have slipped in, by the audit trail, which has a line a second at the
/// most: it may come a moment after the connections have ended.
fn await_slipped_in(scene: &Scene, count: usize) -> Result<()> {
    let cut = |line: &String| line.split("cut=").nth(1)?.split(' ').next()?.parse::<usize>().ok();
    let told = || -> Result<usize> {
        let lines = scene.server.audit("gate-restored")?;
        Ok(lines.iter().filter_map(cut).sum())
    };
    eventually("the trail is to tell who has slipped in", || Ok((told()? >= count).then_some(())))
        .with_context(|| scene.server.account())?;
    ensure!(told()? == count, "{}", scene.server.account());
    Ok(())
}

/// Somebody flushes everything while the daemon stands still, and things happen; then it goes on,
/// and puts the gate back.
fn in_a_flush<T>(scene: &Scene, things: impl FnOnce() -> Result<T>) -> Result<T> {
    let flush = || scene.server.host().sh("nft flush ruleset");
    let await_restored = |more_than| {
        eventually("the gate is to be put back", || {
            Ok((scene.server.status()?.restored > more_than).then_some(()))
        })
        .with_context(|| scene.server.account())
    };
    // Whoever has mended it once knows which connections there are.
    flush()?;
    await_restored(0)?;
    let before = scene.server.status()?.restored;
    scene.server.signal(Signal::SIGSTOP)?;
    let happened = flush().and_then(|_| things());
    scene.server.signal(Signal::SIGCONT)?;
    let happened = happened?;
    await_restored(before)?;
    Ok(happened)
}

/// Connections and datagrams of a host's with another one's port, which talks.
fn hear(host: &Host, peer: &Host) -> Result<Vec<Hearer>> {
    let to = Family::BOTH.map(|family| peer.at(family, THEIR_PORT));
    let tcp = to.into_iter().map(|to| Hearer::tcp(host, to));
    tcp.chain(to.into_iter().map(|to| Hearer::udp(host, to))).collect()
}

#[test]
fn a_forged_sender_in_a_flush_costs_this_host_no_connection_of_its_own() -> Result<()> {
    for backend in Backend::ALL {
        let (scene, _) = scene(|configuration| backend.choose(configuration))?;
        let (server, peer) = (scene.server.host(), scene.lab.third());
        let stranger = scene.lab.other();
        let talker = Talker::tcp(server, TALK_PORT)?;
        let _theirs = (Talker::tcp(peer, THEIR_PORT)?, Talker::udp(peer, THEIR_PORT)?);
        let mut own = hear(server, peer)?;
        let (mut forged, mut listed) = (Vec::new(), Vec::new());
        for (family, tables) in Family::BOTH.into_iter().zip(["iptables", "ip6tables"]) {
            // Whoever has the address doesn't answer what he has not asked for.
            peer.sh(&format!("{tables} -A INPUT -p tcp --sport {TALK_PORT} -j DROP"))?;
            let (from, to) = (peer.at(family, THEIR_PORT), server.at(family, TALK_PORT));
            forged.push(Frame::syn(server, from, to)?);
            forged.push(Frame::udp(server, from, to, b"hello")?);
            let family = if tables == "iptables" { "ipv4" } else { "ipv6" };
            listed.extend(["tcp", "udp"].map(|transport| {
                format!(
                    "conntrack -L -f {family} -p {transport} -s {} --dport {TALK_PORT}",
                    from.ip()
                )
            }));
        }
        let mut slipped_in = in_a_flush(&scene, || {
            // Connections are tracked all the same.
            for tables in ["iptables", "ip6tables"] {
                server
                    .sh(&format!("{tables} -A FORWARD -m conntrack --ctstate INVALID -j DROP"))?;
            }
            stranger.inject(&forged)?;
            for list in &listed {
                eventually("what is forged is to be tracked", || {
                    let found = server.sh(list)?;
                    Ok(found.contains(&format!("dport={TALK_PORT}")).then_some(()))
                })?;
            }
            // The control: one whose sender is who he says.
            let to = Family::BOTH.map(|family| server.at(family, TALK_PORT));
            to.into_iter().map(|to| Hearer::tcp(stranger, to)).collect::<Result<Vec<_>>>()
        })?;
        for hearer in &mut slipped_in {
            hearer.await_silence().with_context(|| scene.server.account())?;
        }
        talker.await_lost(2)?;
        await_slipped_in(&scene, forged.len() + slipped_in.len())?;
        own.extend(hear(server, peer).with_context(|| scene.server.account())?);
        for hearer in &mut own {
            hearer.ensure_hears().with_context(|| scene.server.account())?;
        }
        for list in &listed {
            ensure!(!server.sh(list)?.contains(&format!("dport={TALK_PORT}")), "{list}");
        }
    }
    Ok(())
}

#[test]
fn a_connection_that_this_host_begins_from_a_guarded_port_in_a_flush_is_its_own() -> Result<()> {
    const ASKED_FOR: u16 = 40000;
    for backend in Backend::ALL {
        let (scene, _) = scene(|configuration| {
            backend.choose(configuration);
            let ports = vec!["tcp/30000-60000".into()];
            configuration.services.insert("talk".into(), Service { ports, ..Service::default() });
        })?;
        let (server, peer) = (scene.server.host(), scene.lab.third());
        let (talker, _theirs) = (Talker::tcp(server, ASKED_FOR)?, Talker::tcp(peer, THEIR_PORT)?);
        server
            .inside(|| Ok(fs::write("/proc/sys/net/ipv4/ip_local_port_range", "45000 45100")?))?;
        let (mut own, mut slipped_in) = in_a_flush(&scene, || {
            let mut own = Vec::new();
            let mut slipped_in = Vec::new();
            for family in Family::BOTH {
                own.push(Hearer::tcp(server, peer.at(family, THEIR_PORT))?);
                let to = server.at(family, ASKED_FOR);
                slipped_in.push(Hearer::tcp(scene.lab.other(), to)?);
            }
            Ok((own, slipped_in))
        })?;
        for hearer in &mut slipped_in {
            hearer.await_silence().with_context(|| scene.server.account())?;
        }
        talker.await_lost(2)?;
        for hearer in &mut own {
            hearer.ensure_hears().with_context(|| scene.server.account())?;
        }
        await_slipped_in(&scene, slipped_in.len())?;
    }
    Ok(())
}

#[test]
fn nothing_is_refused_without_a_gate() -> Result<()> {
    for backend in Backend::ALL {
        let (scene, _) = scene(|configuration| backend.choose(configuration))?;
        let owner = scene.lab.owner();
        let talker = Talker::tcp(scene.server.host(), TALK_PORT)?;
        let to = scene.server.host().at(Family::V4, TALK_PORT);
        let refuses = || -> Result<bool> {
            let rules = Ruleset::of(scene.server.host())?;
            Ok(rules.mentions("SPA-CUT") || rules.mentions("spa-cut"))
        };
        let admin = |words: &[&str]| -> Result<()> {
            let done = scene.server.admin(words)?;
            ensure!(done.success(), "{done}");
            Ok(())
        };
        let revoke = ["grants", "revoke", "laptop", "--cut"];
        open(&scene, &scene.laptop, Family::V4, "talk")?;
        let mut hearer = Hearer::tcp(owner, to)?;
        cut(&scene, &revoke, 1)?;
        hearer.await_silence()?;
        // The control: it is refused for some seconds.
        ensure!(refuses()?);
        admin(&["gate", "remove"])?;
        ensure!(!refuses()?, "{}", scene.server.account());

        // Whoever is in without a gate is thrown out, too, and no rules stay of it.
        admin(&["gate", "install"])?;
        open(&scene, &scene.laptop, Family::V4, "talk")?;
        admin(&["gate", "remove"])?;
        let mut hearer = Hearer::tcp(owner, to)?;
        cut(&scene, &revoke, 1)?;
        ensure!(!refuses()?, "{}", scene.server.account());
        hearer.await_silence()?;
        talker.await_lost(2)?;
    }
    Ok(())
}
