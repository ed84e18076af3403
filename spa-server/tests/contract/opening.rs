//! What a grant opens, for whom, and until when.

use crate::lab::{
    BOTH, CLIENT, Lab, NEIGHBOUR, NETWORK, SERVER, STRANGER, admit, admitted, elements, plan,
    withdraw,
};
use crate::probe::Seen::{Open, Refused, Silent};
use crate::probe::{Flow, Probe, Session, both, misjudged, probe, until};
use crate::subject::Host;
use spa_server::gate::{Plan, Refusal};
use std::thread;
use std::time::Duration;

/// All that there is to see of a plan with `tcp/22` and `udp/5000` when this is all that the
/// client is granted.
fn seen(client: [crate::probe::Seen; 2], others: crate::probe::Seen) -> Vec<Probe> {
    let mut probes = both(CLIENT, "tcp/22", client[0]).to_vec();
    probes.extend(both(CLIENT, "udp/5000", client[1]));
    for who in [NEIGHBOUR, STRANGER] {
        probes.extend(both(who, "tcp/22", others));
        probes.extend(both(who, "udp/5000", others));
    }
    probes
}

pub(crate) fn a_grant_opens_for_its_source_only_and_hides_from_all_others(lab: &Lab) {
    let not_guarded = [both(CLIENT, "tcp/80", Open), both(STRANGER, "udp/9000", Open)].concat();
    lab.see(&[&seen([Open, Open], Open), &not_guarded]);
    let gate = lab.installed(&plan(&["tcp/22", "udp/5000"]));
    lab.see(&[&seen([Silent, Silent], Silent), &not_guarded]);
    gate.apply(&[&admit(CLIENT, "tcp/22", 600)]);
    lab.see(&[&seen([Open, Silent], Silent)]);
    gate.apply(&[&admit(CLIENT, "udp/5000", 600)]);
    lab.see(&[&seen([Open, Open], Silent), &not_guarded]);
    gate.apply(&[&withdraw(CLIENT, "tcp/22")]);
    lab.see(&[&seen([Silent, Open], Silent)]);
    gate.remove();
    lab.see(&[&seen([Open, Open], Open)]);
}

pub(crate) fn a_rejected_port_looks_like_a_closed_one(lab: &Lab) {
    let plan = Plan { refusal: Refusal::Reject, ..plan(&["tcp/22", "udp/5000"]) };
    let closed = [both(CLIENT, "tcp/23", Refused), both(CLIENT, "udp/5001", Refused)].concat();
    lab.see(&[&closed]);
    let gate = lab.installed(&plan);
    let knock_port = both(CLIENT, "udp/62201", Refused);
    lab.see(&[&seen([Refused, Refused], Refused), &knock_port, &closed]);
    gate.apply(&[&admit(CLIENT, "tcp/22", 600)]);
    lab.see(&[&seen([Open, Refused], Refused)]);
    // To the other refusal and back, live.
    gate.install(&Plan { refusal: Refusal::Drop, ..plan.clone() }).unwrap();
    lab.see(&[&seen([Open, Silent], Silent)]);
    gate.install(&plan).unwrap();
    lab.see(&[&seen([Open, Refused], Refused)]);
}

pub(crate) fn what_is_granted_passes_the_hosts_default_drop(lab: &Lab) {
    Host::Drops.prepare(lab);
    lab.see(&[&seen([Silent, Silent], Silent)]);
    let plan = plan(&["tcp/22", "udp/5000"]);
    for refusal in [Refusal::Drop, Refusal::Reject] {
        let refused = if refusal == Refusal::Drop { Silent } else { Refused };
        let plan = Plan { refusal, ..plan.clone() };
        let gate = lab.gate();
        let warnings = gate.install(&plan).unwrap().warnings;
        gate.apply(&[&admit(CLIENT, "tcp/22", 600)]);
        if lab.subject.promises.passes_default_drop {
            assert!(warnings.is_empty(), "{warnings:?}");
        } else {
            // It says where the way is barred, and what is to be done; once that is done, it works.
            assert!(warnings.iter().any(|w| w.contains("INPUT")), "{warnings:?}");
            lab.see(&[&both(CLIENT, "tcp/22", Silent)]);
            lab.rules(&["-A INPUT -p tcp --dport 22 -j ACCEPT"]);
        }
        lab.see(&[&seen([Open, refused], refused), &both(CLIENT, "tcp/80", Silent)]);
        gate.apply(&[&withdraw(CLIENT, "tcp/22")]);
        lab.see(&[&seen([refused, refused], refused)]);
        gate.remove();
        if !lab.subject.promises.passes_default_drop {
            lab.rules(&["-D INPUT -p tcp --dport 22 -j ACCEPT"]);
        }
        lab.see(&[&seen([Silent, Silent], Silent)]);
    }
}

pub(crate) fn an_established_connection_outlives_its_grant(lab: &Lab) {
    if lab.subject.promises.passes_default_drop {
        // On a host that drops what is established as well.
        Host::Drops.prepare(lab);
    }
    let gate = lab.installed(&plan(&["tcp/22", "udp/5000"]));
    gate.apply(&[&admit(CLIENT, "tcp/22", 600), &admit(CLIENT, "udp/5000", 600)]);
    let mut sessions = BOTH.map(|family| lab.session(CLIENT, family, 22));
    let flows = BOTH.map(|family| lab.flow(CLIENT, family, 5000));
    assert!(flows.iter().all(Flow::answers));
    gate.apply(&[&withdraw(CLIENT, "tcp/22"), &withdraw(CLIENT, "udp/5000")]);
    lab.see(&[&seen([Silent, Silent], Silent)]);
    assert!(sessions.iter_mut().all(Session::lives));
    assert!(flows.iter().all(Flow::answers));
    // And the gate itself, and its return.
    gate.remove();
    gate.install(&plan(&["tcp/22", "udp/5000"])).unwrap();
    assert!(sessions.iter_mut().all(Session::lives));
    lab.see(&[&seen([Silent, Silent], Silent)]);
}

pub(crate) fn the_kernel_closes_by_itself_with_nobody_alive(lab: &Lab) {
    let gate = lab.installed(&plan(&["tcp/22", "udp/5000", "udp/10000-10100"]));
    gate.apply(&[
        &admit(CLIENT, "tcp/22", 3),
        &admit(NETWORK, "udp/5000", 3),
        &admit(CLIENT, "udp/10000-10100", 3),
        &admit(STRANGER, "tcp/22", 600),
    ]);
    drop(gate);
    let open = [("tcp/22", Open), ("udp/5000", Open), ("udp/10050", Open)];
    let probes = |seen| open.map(|(port, _)| both(CLIENT, port, seen)).concat();
    lab.see(&[&probes(Open), &both(STRANGER, "tcp/22", Open)]);
    let mut session = lab.session(CLIENT, 0, 22);
    until("closed", || misjudged(&lab.clients, &probes(Silent)).is_empty());
    lab.see(&[&both(STRANGER, "tcp/22", Open)]);
    assert!(session.lives());
    let left = lab.installed(&plan(&["tcp/22", "udp/5000", "udp/10000-10100"])).snapshot();
    assert_eq!(elements(&left), admitted(&[&admit(STRANGER, "tcp/22", 1)]));
}

pub(crate) fn a_refresh_moves_the_end(lab: &Lab) {
    let gate = lab.installed(&plan(&["tcp/22", "udp/10000-10100"]));
    let left = || -> Vec<u32> { gate.snapshot().iter().map(|live| live.seconds_left).collect() };
    for port in ["tcp/22", "udp/10000-10100"] {
        for who in [CLIENT, NETWORK] {
            for seconds in [600, 100, 900] {
                gate.apply(&[&admit(who, port, seconds)]);
                let left = left();
                assert!(
                    left.len() == 2 && left.iter().all(|l| l.abs_diff(seconds) < 15),
                    "{left:?}"
                );
            }
            gate.apply(&[&withdraw(who, port)]);
        }
        // One that is about to end is saved; the one beside it shows that the time has passed.
        gate.apply(&[&admit(CLIENT, port, 2), &admit(STRANGER, port, 2)]);
        gate.apply(&[&admit(CLIENT, port, 600)]);
        let number = if port == "tcp/22" { port } else { "udp/10000" };
        lab.see(&[&both(CLIENT, number, Open)]);
        until("closed", || misjudged(&lab.clients, &both(STRANGER, number, Silent)).is_empty());
        lab.see(&[&both(CLIENT, number, Open)]);
        gate.apply(&[&withdraw(CLIENT, port)]);
        assert_eq!(gate.snapshot(), []);
    }
}

pub(crate) fn loopback_passes_and_knock_ports_are_hidden(lab: &Lab) {
    lab.see(&[&both(CLIENT, "udp/62201", Refused), &both(CLIENT, "udp/53", Open)]);
    let gate = lab.gate();
    let plan = Plan { knock_ports: vec![53, 62201], ..plan(&["tcp/22", "udp/5000"]) };
    let report = gate.install(&plan).unwrap();
    let busy: Vec<_> = report.busy_knock_ports.iter().map(|busy| busy.port).collect();
    assert_eq!(busy, [53, 53], "a real service listens there");
    lab.see(&[&both(CLIENT, "udp/62201", Silent), &both(CLIENT, "udp/53", Open)]);
    let mut own = Vec::new();
    for (from, to) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1")] {
        own.extend(["tcp/22", "udp/5000"].map(|port| probe(from, to, port, Open)));
    }
    for address in SERVER {
        own.extend(["tcp/22", "udp/5000"].map(|port| probe(address, address, port, Open)));
    }
    assert_eq!(misjudged(&lab.server, &own), [] as [String; 0]);
    lab.see(&[&seen([Silent, Silent], Silent)]);
}

pub(crate) fn a_new_gate_finds_what_the_old_one_admitted(lab: &Lab) {
    let plan = plan(&["tcp/22", "udp/5000"]);
    let changes = [admit(CLIENT, "tcp/22", 600), admit(NETWORK, "udp/5000", 600)].concat();
    lab.installed(&plan).apply(&[&changes]);
    thread::sleep(Duration::from_millis(1100));
    let gate = lab.gate();
    assert_eq!(elements(&gate.snapshot()), admitted(&[&changes]), "before it installs");
    let report = gate.install(&plan).unwrap();
    assert!(!report.changed, "{report:?}");
    assert!(gate.snapshot().iter().all(|live| (580..600).contains(&live.seconds_left)));
    let neighbour = [both(NEIGHBOUR, "udp/5000", Open), both(NEIGHBOUR, "tcp/22", Silent)].concat();
    lab.see(&[&both(CLIENT, "tcp/22", Open), &neighbour]);
    gate.apply(&[&withdraw(CLIENT, "tcp/22")]);
    lab.see(&[&both(CLIENT, "tcp/22", Silent)]);
}
