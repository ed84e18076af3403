//! Ports behind which somebody else answers: another port of this host, another host, a container.

use crate::lab::{
    BOTH, CLIENT, INNER, INSIDE, Lab, NEIGHBOUR, NETWORK, STRANGER, admit, forward, plan, ports,
    withdraw,
};
use crate::probe::Seen::{At, Open, Refused, Silent};
use crate::probe::{Flow, Probe, Seen, Session, both, probe};
use crate::subject::Host;
use spa_server::gate::{Guarded, Mode, Plan, Refusal};
use spa_server::service::{Forward, Target};

fn with_targets(mut plan: Plan, targets: &[(&str, Target)]) -> Plan {
    let each = |(text, target): &(&str, Target)| Guarded {
        target: *target,
        ..Guarded::plain(ports(text))
    };
    plan.guarded.extend(targets.iter().map(each));
    plan
}

fn local(port: u16) -> Target {
    Target::LocalPort(port.try_into().unwrap())
}

/// Has the inner host write down the attempts that reach it from outside.
fn watch_inner(lab: &Lab) {
    lab.inner.feed(
        "nft -f -",
        "table inet seen {\n \
         set four { type ipv4_addr . inet_proto . inet_service . inet_service; flags dynamic; size 4096; }\n \
         set six { type ipv6_addr . inet_proto . inet_service . inet_service; flags dynamic; size 4096; }\n \
         chain note {\n \
         add @four { ip saddr . meta l4proto . th sport . th dport }\n \
         add @six { ip6 saddr . meta l4proto . th sport . th dport }\n }\n \
         chain entry {\n \
         type filter hook prerouting priority -400\n \
         tcp flags & (fin | syn | rst | ack) == syn jump note\n \
         meta l4proto udp jump note\n }\n}\n",
    );
}

/// Who has reached the inner host since this was last asked: source, protocol, its port, ours.
fn arrived_at_inner(lab: &Lab) -> Vec<String> {
    let mut arrived = Vec::new();
    for set in ["four", "six"] {
        let text = lab.inner.run(&format!("nft -n list set inet seen {set}"));
        lab.inner.run(&format!("nft flush set inet seen {set}"));
        if let Some((_, elements)) = text.split_once("elements = {") {
            let (elements, _) = elements.split_once('}').unwrap();
            arrived.extend(elements.split(',').map(|element| element.trim().to_owned()));
        }
    }
    arrived
}

/// What every port looks like to somebody.
fn each(who: [&str; 2], ports: &[(&str, Seen)]) -> Vec<Probe> {
    ports.iter().flat_map(|(port, seen)| both(who, port, *seen)).collect()
}

/// The same ports, none of which is open.
fn none(who: [&str; 2], ports: &[(&str, Seen)], closed: Seen) -> Vec<Probe> {
    ports.iter().flat_map(|(port, _)| both(who, port, closed)).collect()
}

fn closed(refusal: Refusal) -> Seen {
    if refusal == Refusal::Drop { Silent } else { Refused }
}

/// A host whose rules drop what the gate can't get past: that is said, and true.
fn is_barred(lab: &Lab, plan: &Plan, granted: &[&str], chain: &str) {
    let gate = lab.gate();
    let warnings = gate.install(plan).unwrap().warnings;
    assert!(warnings.iter().any(|warning| warning.contains(chain)), "{warnings:?}");
    for port in granted {
        gate.apply(&[&admit(CLIENT, port, 600)]);
        lab.see(&[&both(CLIENT, port, Silent)]);
    }
}

pub(crate) fn another_local_port_answers_who_is_granted(lab: &Lab) {
    let targets = [
        ("tcp/2222", local(8022)),
        // One whose own port is guarded, too.
        ("tcp/2322", local(22)),
        ("udp/2223", local(5000)),
        ("udp/20000-20010", local(9000)),
    ];
    let open = [
        ("tcp/2222", At("server", 8022)),
        ("tcp/2322", At("server", 22)),
        ("udp/2223", At("server", 5000)),
        ("udp/20000", At("server", 9000)),
        ("udp/20010", At("server", 9000)),
    ];
    for host in Host::BOTH {
        host.prepare(lab);
        if host == Host::Drops && !lab.subject.promises.passes_default_drop {
            let plan = with_targets(plan(&["tcp/22", "udp/5000"]), &targets);
            return is_barred(lab, &plan, &["tcp/2222", "udp/2223"], "INPUT");
        }
        for refusal in [Refusal::Drop, Refusal::Reject] {
            let plain = Plan { refusal, ..plan(&["tcp/22", "udp/5000"]) };
            let plan = with_targets(plain, &targets);
            let closed = closed(refusal);
            let directly = if host == Host::Drops { Silent } else { Open };
            let gate = lab.gate();
            let warnings = gate.install(&plan).unwrap().warnings;
            // The others' own ports are guarded, or not: that is said of those.
            let named = ["8022", "9000", "to 22", "5000"]
                .map(|port| warnings.iter().any(|warning| warning.contains(port)));
            assert_eq!(named, [true, true, false, false], "{warnings:?}");
            lab.see(&[&none(CLIENT, &open, closed), &both(CLIENT, "tcp/8022", directly)]);

            let granted: Vec<_> =
                targets.iter().flat_map(|(port, _)| admit(CLIENT, port, 600)).collect();
            gate.apply(&[&granted]);
            lab.see(&[&each(CLIENT, &open), &none(STRANGER, &open, closed)]);
            let others = [("tcp/22", closed), ("udp/5000", closed), ("tcp/8022", directly)];
            lab.see(&[&each(CLIENT, &others), &each(STRANGER, &others)]);

            let mut sessions = BOTH.map(|family| lab.session(CLIENT, family, 2222));
            let flows = BOTH.map(|family| lab.flow(CLIENT, family, 2223));
            assert!(flows.iter().all(Flow::answers));
            gate.apply(&[&withdraw(CLIENT, "tcp/2222"), &withdraw(CLIENT, "udp/2223")]);
            lab.see(&[&none(CLIENT, &[open[0], open[2]], closed), &each(CLIENT, &open[1..2])]);
            assert!(sessions.iter_mut().all(Session::lives));
            assert!(flows.iter().all(Flow::answers));
            gate.apply(&[&admit(NETWORK, "tcp/2222", 600)]);
            lab.see(&[&each(NEIGHBOUR, &open[..1]), &none(STRANGER, &open[..1], closed)]);
            gate.remove();
            lab.see(&[&both(CLIENT, "tcp/8022", directly)]);
        }
    }
}

pub(crate) fn a_host_behind_this_one_answers_who_is_granted(lab: &Lab) {
    forwards(lab, false);
}

pub(crate) fn a_masqueraded_forward_needs_no_way_back(lab: &Lab) {
    // The inner host knows no way to anybody outside.
    lab.inner.run("ip route del default");
    lab.inner.run("ip -6 route del default");
    forwards(lab, true);
}

fn forwards(lab: &Lab, masquerade: bool) {
    watch_inner(lab);
    let targets = [
        ("tcp/3322", forward(Some(22), masquerade)),
        ("tcp/7000-7002", forward(None, masquerade)),
        ("udp/20050", forward(Some(5000), masquerade)),
    ];
    let open = [
        ("tcp/3322", At("inner", 22)),
        ("tcp/7000", At("inner", 7000)),
        ("tcp/7002", At("inner", 7002)),
        ("udp/20050", At("inner", 5000)),
    ];
    for host in Host::BOTH {
        host.prepare(lab);
        if host == Host::Drops && !lab.subject.promises.passes_default_drop {
            let plan = with_targets(plan(&["tcp/22"]), &targets);
            arrived_at_inner(lab);
            is_barred(lab, &plan, &["tcp/3322", "udp/20050"], "FORWARD");
            assert_eq!(arrived_at_inner(lab), [] as [&str; 0]);
            return;
        }
        for refusal in [Refusal::Drop, Refusal::Reject] {
            let plan = with_targets(Plan { refusal, ..plan(&["tcp/22"]) }, &targets);
            let closed = closed(refusal);
            let gate = lab.installed(&plan);
            arrived_at_inner(lab);
            lab.see(&[&none(CLIENT, &open, closed)]);
            assert_eq!(arrived_at_inner(lab), [] as [&str; 0]);

            let granted: Vec<_> =
                targets.iter().flat_map(|(port, _)| admit(CLIENT, port, 600)).collect();
            gate.apply(&[&granted]);
            lab.see(&[&each(CLIENT, &open)]);
            // Positive control of the watch, and nobody else gets that far.
            assert_ne!(arrived_at_inner(lab), [] as [&str; 0]);
            lab.see(&[&none(STRANGER, &open, closed), &none(NEIGHBOUR, &open, closed)]);
            assert_eq!(arrived_at_inner(lab), [] as [&str; 0]);

            let mut sessions = BOTH.map(|family| lab.session(CLIENT, family, 3322));
            for (family, session) in sessions.iter().enumerate() {
                let seen = if masquerade { INSIDE[family] } else { CLIENT[family] };
                assert!(session.line.contains(seen), "{}", session.line);
            }
            let flows = BOTH.map(|family| lab.flow(CLIENT, family, 20050));
            assert!(flows.iter().all(Flow::answers));
            gate.apply(&[&withdraw(CLIENT, "tcp/3322"), &withdraw(CLIENT, "udp/20050")]);
            lab.see(&[&none(CLIENT, &[open[0], open[3]], closed), &each(CLIENT, &open[1..3])]);
            assert!(sessions.iter_mut().all(Session::lives));
            assert!(flows.iter().all(Flow::answers));

            gate.apply(&[&admit(NETWORK, "tcp/3322", 600), &admit(CLIENT, "tcp/7001", 600)]);
            gate.apply(&[&withdraw(CLIENT, "tcp/7000-7002")]);
            lab.see(&[&each(NEIGHBOUR, &open[..1]), &none(STRANGER, &open[..1], closed)]);
            let single = [("tcp/7000", closed), ("tcp/7001", At("inner", 7001))];
            lab.see(&[&each(CLIENT, &single)]);
            // Whatever is granted: straight to the other host there is no more way than before.
            if !masquerade {
                let directly = if host == Host::Drops { Silent } else { At("inner", 22) };
                lab.see(&[&BOTH.map(|f| probe(CLIENT[f], INNER[f], "tcp/22", directly))]);
            }
            gate.remove();
        }
    }
}

pub(crate) fn only_forwarded_connections_are_masqueraded(lab: &Lab) {
    let plan = with_targets(plan(&["tcp/22"]), &[("tcp/3322", forward(Some(22), true))]);
    lab.installed(&plan).apply(&[&admit(CLIENT, "tcp/3322", 600)]);
    for family in BOTH {
        let line = |to: &str, port| {
            let [from, to] = [crate::lab::at(CLIENT[family], 0), crate::lab::at(to, port)];
            Session::open(&lab.clients, from, to).unwrap().line
        };
        assert!(line(crate::lab::SERVER[family], 3322).contains(INSIDE[family]));
        assert!(line(INNER[family], 22).contains(CLIENT[family]));
    }
}

/// Rules of the host's own that send these ports where services of ours send them, for everybody.
fn send_too(lab: &Lab) {
    lab.rules(&["-t nat -A PREROUTING -i ext -p tcp --dport 2222 -j REDIRECT --to-ports 8022"]);
    for (command, to) in lab.subject.variant.commands().iter().zip(INNER) {
        let to = crate::lab::at(to, 22);
        lab.server.run(&format!(
            "{command} -t nat -A PREROUTING -i ext -p tcp --dport 3322 -j DNAT --to-destination {to}"
        ));
    }
}

pub(crate) fn what_others_send_to_the_same_place_is_theirs(lab: &Lab) {
    send_too(lab);
    let open = [("tcp/2222", At("server", 8022)), ("tcp/3322", At("inner", 22))];
    // Positive control: their rules lead there.
    lab.see(&[&each(STRANGER, &open)]);
    let targets = [("tcp/2222", local(8022)), ("tcp/3322", forward(Some(22), true))];
    let guarding = with_targets(plan(&["tcp/22"]), &targets);
    let granted = [admit(CLIENT, "tcp/2222", 600), admit(CLIENT, "tcp/3322", 600)].concat();
    for refusal in [Refusal::Drop, Refusal::Reject] {
        let gate = lab.installed(&Plan { refusal, ..guarding.clone() });
        gate.apply(&[&granted]);
        lab.see(&[&each(CLIENT, &open), &none(STRANGER, &open, closed(refusal))]);
        gate.remove();
    }
    if !lab.subject.promises.open_mode {
        return;
    }
    // Where the host's rules refuse, they go on refusing what the gate hasn't sent.
    Host::Drops.prepare(lab);
    let gate = lab.installed(&Plan { mode: Mode::Open, ..guarding });
    lab.see(&[&none(CLIENT, &open, Silent)]);
    gate.apply(&[&granted]);
    lab.see(&[&each(CLIENT, &open), &none(STRANGER, &open, Silent)]);
    let mut sessions: Vec<_> = BOTH
        .into_iter()
        .flat_map(|family| [2222, 3322].map(|port| lab.session(CLIENT, family, port)))
        .collect();
    // Programs that keep connection marks of their own may take off ours.
    lab.rules(&["-t mangle -A PREROUTING -j CONNMARK --set-xmark 0x0"]);
    assert!(sessions.iter_mut().all(Session::lives));
}

pub(crate) fn a_family_without_an_address_stays_refused(lab: &Lab) {
    watch_inner(lab);
    for family in BOTH {
        let Target::Forward(whole) = forward(Some(22), false) else { unreachable!() };
        let half = match family {
            0 => Forward { v6: None, ..whole },
            _ => Forward { v4: None, ..whole },
        };
        let plan = with_targets(plan(&["tcp/22"]), &[("tcp/3322", Target::Forward(half))]);
        let gate = lab.installed(&plan);
        // Whether it takes the grant that nobody can use or not: nothing opens by it.
        let [four, six] =
            [&admit(CLIENT, "tcp/3322", 600)[..1], &admit(CLIENT, "tcp/3322", 600)[1..]];
        let [served, other] = if family == 0 { [four, six] } else { [six, four] };
        gate.apply(&[served]);
        let _ = gate.try_to_apply(&[other]);
        let mut probes = both(CLIENT, "tcp/3322", Silent);
        probes[family].expected = At("inner", 22);
        lab.see(&[&probes]);
        gate.remove();
    }
}

pub(crate) fn a_host_that_does_not_forward_is_told_of(lab: &Lab) {
    let plan = with_targets(plan(&["tcp/22"]), &[("tcp/3322", forward(Some(22), false))]);
    let warnings = || lab.gate().examine(&plan).unwrap().warnings;
    assert_eq!(warnings(), [] as [&str; 0]);
    for (key, name) in [
        ("ipv4/ip_forward", "net.ipv4.ip_forward"),
        ("ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding"),
    ] {
        lab.server.set(key, "0");
        let warned = warnings();
        assert!(warned.len() == 1 && warned[0].contains(name), "{warned:?}");
        assert_eq!(lab.gate().install(&plan).unwrap().warnings, warned);
        lab.server.set(key, "1");
    }
    assert_eq!(warnings(), [] as [&str; 0]);
}

/// As container engines publish a port: translated in a chain of theirs, to a bridge.
fn publish(lab: &Lab) {
    let [four, six] = lab.subject.variant.commands();
    lab.rules(&[
        "-t nat -N DOCKER",
        "-t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
        "-N DOCKER",
        "-A FORWARD -o inside -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A FORWARD -o inside -j DOCKER",
        "-A FORWARD -i inside ! -o inside -j ACCEPT",
        "-A DOCKER ! -i inside -o inside -p tcp --dport 22 -j ACCEPT",
        "-A DOCKER ! -i inside -o inside -p udp --dport 5000 -j ACCEPT",
    ]);
    for (proto, published, inner) in [("tcp", 8443, 22), ("tcp", 8444, 22), ("udp", 8445, 5000)] {
        let rule = format!("-t nat -A DOCKER ! -i inside -p {proto} --dport {published} -j DNAT");
        lab.server.run(&format!("{four} {rule} --to-destination {}:{inner}", INNER[0]));
        lab.server.run(&format!("{six} {rule} --to-destination [{}]:{inner}", INNER[1]));
    }
}

pub(crate) fn a_port_that_a_container_publishes_is_hidden_like_any_other(lab: &Lab) {
    publish(lab);
    watch_inner(lab);
    let open = [("tcp/8443", At("inner", 22)), ("udp/8445", At("inner", 5000))];
    // Published, and not guarded; with a number behind it that is.
    let not_guarded = ("tcp/8444", At("inner", 22));
    for host in Host::BOTH {
        host.prepare(lab);
        lab.see(&[&each(STRANGER, &open)]);
        for refusal in [Refusal::Drop, Refusal::Reject] {
            let closed = closed(refusal);
            let gate =
                lab.installed(&Plan { refusal, ..plan(&["tcp/22", "tcp/8443", "udp/8445"]) });
            arrived_at_inner(lab);
            lab.see(&[&none(CLIENT, &open, closed), &none(STRANGER, &open, closed)]);
            assert_eq!(
                arrived_at_inner(lab),
                [] as [&str; 0],
                "nothing gets as far as the container"
            );
            lab.see(&[&each(CLIENT, &[not_guarded])]);
            gate.apply(&[&admit(CLIENT, "tcp/8443", 600), &admit(NETWORK, "udp/8445", 600)]);
            lab.see(&[&each(CLIENT, &open), &none(STRANGER, &open, closed)]);
            lab.see(&[&each(NEIGHBOUR, &open[1..]), &none(NEIGHBOUR, &open[..1], closed)]);
            let mut sessions = BOTH.map(|family| lab.session(CLIENT, family, 8443));
            gate.apply(&[&withdraw(CLIENT, "tcp/8443")]);
            lab.see(&[&none(CLIENT, &open[..1], closed)]);
            assert!(sessions.iter_mut().all(Session::lives));
            gate.remove();
        }
    }
}

pub(crate) fn a_mark_that_others_take_off_opens_nothing_that_is_published(lab: &Lab) {
    publish(lab);
    let open = [("tcp/8443", At("inner", 22)), ("udp/8445", At("inner", 5000))];
    let plan = Plan { refusal: Refusal::Reject, ..plan(&["tcp/22", "tcp/8443", "udp/8445"]) };
    // As of wg-quick, and of whoever routes by marks.
    for value in ["ct mark", "0"] {
        let cleared = format!(
            "table inet uplinks {{\n chain entry {{\n \
             type filter hook prerouting priority -149\n meta mark set {value}\n }}\n}}\n"
        );
        lab.server.feed("nft -f -", &cleared);
        // The control: without a gate they are there for everybody.
        lab.see(&[&each(STRANGER, &open)]);
        let gate = lab.installed(&plan);
        let hidden = [&open[..], &[("tcp/22", At("server", 22))]].concat();
        lab.see(&[&none(CLIENT, &hidden, Refused), &none(STRANGER, &hidden, Refused)]);
        gate.apply(&[&admit(CLIENT, "tcp/8443", 600), &admit(CLIENT, "udp/8445", 600)]);
        lab.see(&[&each(CLIENT, &open), &none(STRANGER, &hidden, Refused)]);
        lab.server.run("nft delete table inet uplinks");
        gate.remove();
    }
}

pub(crate) fn who_is_always_admitted_gets_to_what_is_published_whatever_others_mark(lab: &Lab) {
    publish(lab);
    let open = [("tcp/8443", At("inner", 22)), ("udp/8445", At("inner", 5000))];
    let who = [[CLIENT[0], "/32"].concat(), [CLIENT[1], "/128"].concat()];
    let always_admit = who.map(|network| network.parse().unwrap()).to_vec();
    let refusal = Refusal::Reject;
    let plan = Plan { refusal, always_admit, ..plan(&["tcp/8443", "udp/8445"]) };
    let gate = lab.installed(&plan);
    let mark = "table inet uplinks {\n chain entry {\n \
                type filter hook prerouting priority -149\n meta mark set 0xffffffff\n }\n}\n";
    lab.server.feed("nft -f -", mark);
    lab.see(&[&each(CLIENT, &open), &none(STRANGER, &open, Refused)]);
    lab.server.run("nft delete table inet uplinks");
    gate.remove();
}

pub(crate) fn what_is_merely_forwarded_is_nobodys_business(lab: &Lab) {
    for refusal in [Refusal::Drop, Refusal::Reject] {
        let plan = with_targets(
            Plan { refusal, ..plan(&["tcp/22", "udp/5000"]) },
            &[("tcp/3322", forward(Some(22), true))],
        );
        let gate = lab.installed(&plan);
        let through = BOTH.map(|f| probe(STRANGER[f], INNER[f], "tcp/22", At("inner", 22)));
        let too = BOTH.map(|f| probe(STRANGER[f], INNER[f], "udp/5000", At("inner", 5000)));
        lab.see(&[&through, &too, &both(STRANGER, "tcp/22", closed(refusal))]);
        gate.remove();
    }
}
