//! Connections that are refused although they are established.

use crate::gates::LiveGate;
use crate::lab::{
    BOTH, CLIENT, INNER, Lab, NEIGHBOUR, SERVER, STRANGER, admit, assert_same, at, forward, plan,
    ports, withdraw,
};
use crate::probe::Seen::{At, Open, Silent};
use crate::probe::{Flow, LONG, Session, both, probe, uninterrupted, until};
use crate::services::{End, Services, TALK};
use crate::subject::Host;
use jiff::Timestamp;
use spa_proto::Transport;
use spa_server::gate::{Connection, Cut, Guarded, Plan};
use spa_server::service::Target;
use std::net::{SocketAddr, UdpSocket};

/// Forwarded with this host's address in place of the client's.
const MASQUERADED: u16 = 3323;

fn guarding() -> Plan {
    let mut plan = plan(&["tcp/22", "udp/5000"]);
    let guarded = |text, target| Guarded { target, ..Guarded::plain(ports(text)) };
    plan.guarded.push(guarded("tcp/2222", Target::LocalPort(8022.try_into().unwrap())));
    plan.guarded.push(guarded("tcp/3322", forward(Some(22), false)));
    plan.guarded.push(guarded("tcp/3323", forward(Some(22), true)));
    plan.guarded.push(guarded("udp/3324", forward(Some(5000), false)));
    plan
}

fn installed(lab: &Lab) -> LiveGate {
    let gate = lab.installed(&guarding());
    let all = guarding().guarded;
    let changes: Vec<_> = [CLIENT, NEIGHBOUR]
        .into_iter()
        .flat_map(|who| all.iter().flat_map(move |g| admit(who, &g.ports.to_string(), 600)))
        .collect();
    gate.apply(&[&changes]);
    gate
}

/// A connection to a port that [`guarding`] guards, with the end that answers there.
fn cut(transport: Transport, peer: SocketAddr, local: SocketAddr) -> Cut {
    let inner = |port| at(INNER[usize::from(local.is_ipv6())], port);
    let answered_from = match local.port() {
        2222 => SocketAddr::new(local.ip(), 8022),
        3322 | MASQUERADED => inner(22),
        3324 => inner(5000),
        _ => local,
    };
    Cut { connection: Connection { transport, peer, local }, answered_from }
}

fn tcp(session: &Session) -> Cut {
    cut(Transport::Tcp, session.near, session.far)
}

fn udp(flow: &Flow) -> Cut {
    cut(Transport::Udp, flow.near, flow.far)
}

/// Has tracking forget a connection, as the daemon does when it cuts one.
fn forget(lab: &Lab, session: &Session) {
    let (ip, port) = (session.near.ip(), session.near.port());
    let family = if ip.is_ipv4() { "ipv4" } else { "ipv6" };
    let which = format!("--orig-src {ip} --orig-port-src {port}");
    lab.server.run(&format!("conntrack -D -f {family} -p tcp {which}"));
}

/// Both ends of a connection, one of which talks, are reset.
fn is_cut(session: &mut Session, services: &Services, peer: SocketAddr) {
    assert_eq!(session.end(), Some(End::Reset), "the client's end of {session:?}");
    until(&format!("the other end of {session:?}"), || services.end_of(peer) == Some(End::Reset));
}

/// Connections that nobody cuts, to each port.
fn others(lab: &Lab, host: Host) -> Vec<Session> {
    let mut all = Vec::new();
    for family in BOTH {
        for port in [22, 2222, 3322, 3323] {
            all.extend([CLIENT, NEIGHBOUR].map(|who| lab.session(who, family, port)));
        }
        if host == Host::Accepts {
            // Nobody guards this one.
            all.push(lab.session(CLIENT, family, 80));
        }
    }
    all.iter_mut().for_each(Session::let_it_talk);
    all
}

pub(crate) fn a_connection_that_is_cut_ends_at_both_ends(lab: &Lab) {
    for host in Host::BOTH {
        host.prepare(lab);
        let gate = installed(lab);
        if host == Host::Drops && !lab.subject.promises.passes_default_drop {
            // Nobody gets in there, so there is nothing to cut.
            return lab.see(&[&both(CLIENT, "tcp/22", Silent)]);
        }
        // Others accept what is established before anything else.
        for chain in ["INPUT", "FORWARD", "OUTPUT"] {
            lab.rules(&[&format!("-I {chain} -m conntrack --ctstate ESTABLISHED -j ACCEPT")]);
        }
        let mut others = others(lab, host);
        let mut doomed: Vec<_> = BOTH
            .into_iter()
            .flat_map(|f| [22, 2222, 3322, 3323].map(|port| (port, lab.session(CLIENT, f, port))))
            .collect();
        for (_, session) in &mut doomed {
            session.let_it_talk();
        }
        // Positive control: they are well.
        assert!(doomed.iter_mut().all(|(_, session)| session.lives()));
        let cuts: Vec<_> = doomed.iter().map(|(_, session)| tcp(session)).collect();
        gate.sever(&cuts);
        for (port, session) in &mut doomed {
            let services = if *port < 3000 { &lab.at_server } else { &lab.at_inner };
            let peer = session.line.split(' ').nth(2).unwrap().trim().parse().unwrap();
            if *port == MASQUERADED {
                // What the kernel sends to the other end doesn't have the address that this end
                // knows: it hears nothing any more, until tracking forgets the connection too.
                assert_eq!(session.end(), Some(End::Reset));
                assert_eq!(services.end_of(peer), None);
                forget(lab, session);
                // Then this host is asked, who knows of no connection; if its rules let it answer.
                if host == Host::Accepts {
                    until("the other end", || services.end_of(peer) == Some(End::Reset));
                }
            } else {
                is_cut(session, services, peer);
            }
        }
        assert!(others.iter_mut().all(Session::lives), "those beside them live on");
        // A new one is none of these.
        for family in BOTH {
            assert!(lab.session(CLIENT, family, 22).lives());
            assert!(lab.session(CLIENT, family, 3322).lives());
        }
        gate.lift();
        assert!(others.iter_mut().all(Session::lives));
        assert!(!lab.ruleset().contains("CUT"));
        gate.remove();
    }
}

/// A peer may be anybody, under an address that is not his: this host and those behind it go on talking
/// with whoever has it.
pub(crate) fn what_is_cut_is_one_connection_and_no_other_with_its_peer(lab: &Lab) {
    const THEIRS: u16 = 4443;
    let _services = Services::start("client", &lab.clients, &[THEIRS], &[]);
    let gate = installed(lab);
    for family in BOTH {
        let peer = at(CLIENT[family], THEIRS);
        let places = [(&lab.server, SERVER[family]), (&lab.inner, INNER[family])];
        let talk = || {
            places.map(|(space, from)| Session::open(space, at(from, 0), peer)).map(Result::unwrap)
        };
        let theirs = lab.clients.inside(|| UdpSocket::bind(peer).unwrap());
        theirs.set_read_timeout(Some(LONG)).unwrap();
        let flows = || places.map(|(space, from)| Flow::new(space, from.parse().unwrap(), peer));
        let is_answered = |flow: &Flow| {
            flow.send(b"anybody there?");
            let asked = uninterrupted(|| theirs.recv_from(&mut [0; 64]));
            asked.is_ok_and(|(_, from)| {
                theirs.send_to(b"yes", from).unwrap();
                flow.receive(LONG).is_some()
            })
        };
        let (mut sessions, datagrams) = (talk(), flows());
        sessions.iter_mut().for_each(Session::let_it_talk);
        assert!(datagrams.iter().all(is_answered));
        let to = |transport, port| cut(transport, peer, at(SERVER[family], port));
        let [tcp, udp] = [Transport::Tcp, Transport::Udp];
        gate.sever(&[
            to(tcp, 22),
            to(tcp, 2222),
            to(tcp, 3322),
            to(tcp, MASQUERADED),
            to(udp, 5000),
            to(udp, 3324),
        ]);
        assert!(sessions.iter_mut().all(Session::lives), "{}", lab.ruleset());
        assert!(talk().iter_mut().all(Session::lives));
        assert!(datagrams.iter().all(is_answered) && flows().iter().all(is_answered));
        gate.lift();
    }
}

pub(crate) fn a_cut_connection_can_be_made_again_once_it_is_lifted(lab: &Lab) {
    let gate = installed(lab);
    for family in BOTH {
        for port in [22, 3322] {
            let mut session = lab.session(CLIENT, family, port);
            let (near, far) = (session.near, session.far);
            session.let_it_talk();
            gate.sever(&[tcp(&session)]);
            assert_eq!(session.end(), Some(End::Reset));
            drop(session);
            let again = || Session::open(&lab.clients, near, far);
            let error = again().expect_err("it is refused as long as it is cut");
            assert_ne!(error.kind(), std::io::ErrorKind::AddrInUse, "{error}");
            gate.lift();
            until("again", || again().is_ok_and(|mut session| session.lives()));
        }
    }
}

pub(crate) fn datagrams_of_a_flow_that_is_cut_go_nowhere(lab: &Lab) {
    let gate = installed(lab);
    for (port, services) in [(5000, &lab.at_server), (3324, &lab.at_inner)] {
        for family in BOTH {
            let [one, other] = [(); 2].map(|()| lab.flow(CLIENT, family, port));
            let stopped = |flow: &Flow| {
                flow.drain();
                let before = services.datagrams(5000, flow.near);
                flow.is_silent() && services.datagrams(5000, flow.near) == before
            };
            for flow in [&one, &other] {
                assert!(flow.answers());
                flow.send(TALK);
            }
            gate.sever(&[udp(&one)]);
            until("silent", || stopped(&one));
            assert!(other.answers());
            // Another list takes the place of this one.
            gate.sever(&[udp(&other)]);
            until("silent", || stopped(&other));
            assert!(one.answers());
            gate.lift();
            assert!(one.answers() && other.answers());
        }
    }
}

pub(crate) fn what_is_cut_stays_so_for_a_gate_that_is_installed_again_or_gone(lab: &Lab) {
    let before = lab.ruleset();
    let gate = installed(lab);
    let whole = lab.ruleset();
    gate.sever(&[cut(Transport::Tcp, at(CLIENT[0], 40000), at(SERVER[0], 22))]);
    assert_ne!(lab.ruleset(), whole);
    drop(gate);
    // Nobody lifts what a daemon that died has cut, but the next one.
    let gate = lab.installed(&guarding());
    assert_same(&lab.ruleset(), &whole, &"installed");
    gate.sever(&[cut(Transport::Udp, at(CLIENT[1], 40000), at(SERVER[1], 5000))]);
    drop(gate);
    lab.gate().remove();
    assert_same(&lab.ruleset(), &before, &"removed");
    // Nothing to lift does no harm.
    let gate = installed(lab);
    gate.lift();
    gate.sever(&[]);
    gate.lift();
    assert_same(&lab.ruleset(), &whole, &"installed");
    lab.see(&[&both(CLIENT, "tcp/22", Open), &both(STRANGER, "tcp/22", Silent)]);
}

/// A peer may come again with the ports that it had.
pub(crate) fn what_a_dead_daemon_has_cut_is_refused_for_a_while_only(lab: &Lab) {
    const LONGEST: i64 = 600;
    let gate = installed(lab);
    let flows = BOTH.map(|family| lab.flow(CLIENT, family, 5000));
    assert!(flows.iter().all(Flow::answers));
    gate.sever(&flows.each_ref().map(udp));
    until("silent", || flows.iter().all(Flow::is_silent));
    drop(gate);
    if !lab.subject.uses_iptables() {
        let listed = lab.server.run("nft list table inet spa-cut");
        return assert_eq!(listed.matches("\t\ttimeout 10m\n").count(), 4, "{listed}");
    }
    for command in lab.subject.variant.commands() {
        let saved = lab.server.run(&format!("{command}-save -t filter"));
        let mut over = String::from("*filter\n:SPA-CUT - [0:0]\n");
        for rule in saved.lines().filter(|line| line.starts_with("-A SPA-CUT ")) {
            let (_, end) = rule.split_once("--datestop ").expect(rule);
            let end = end.split(' ').next().unwrap();
            let left = format!("{end}Z").parse::<Timestamp>().unwrap().as_second()
                - Timestamp::now().as_second();
            assert!((LONGEST / 2..=LONGEST).contains(&left), "{rule}");
            over += &(rule.replace(end, "2026-01-01T00:00:00") + "\n");
        }
        assert_eq!(over.matches("-A SPA-CUT ").count(), 2, "{saved}");
        // What they are when that time is over.
        lab.server.feed(&format!("{command}-restore --noflush -w 5"), &(over + "COMMIT\n"));
    }
    assert!(flows.iter().all(Flow::answers));
}

pub(crate) fn very_many_can_be_cut_at_once(lab: &Lab) {
    let gate = installed(lab);
    let mut session = lab.session(CLIENT, 1, 22);
    session.let_it_talk();
    let mut all: Vec<_> = (1..=500)
        .flat_map(|port| {
            BOTH.map(|f| cut(Transport::Tcp, at(STRANGER[f], port), at(SERVER[f], 22)))
        })
        .collect();
    all.push(tcp(&session));
    gate.sever(&all);
    let peer = session.near;
    is_cut(&mut session, &lab.at_server, peer);
    gate.lift();
    let forwarded = BOTH.map(|f| probe(CLIENT[f], INNER[f], "tcp/22", At("inner", 22)));
    lab.see(&[&forwarded, &both(CLIENT, "tcp/22", Open)]);
    gate.apply(&[&withdraw(CLIENT, "tcp/22")]);
    lab.see(&[&both(CLIENT, "tcp/22", Silent)]);
}
