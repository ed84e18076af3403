//! Grants for one connection: with it they are used up.

use crate::lab::{
    BOTH, CLIENT, Lab, NEIGHBOUR, NETWORK, STRANGER, admit, at, elements, forward, plan, ports,
};
use crate::lab::{SERVER, element};
use crate::probe::Seen::{At, Open, Refused, Silent};
use crate::probe::{Flow, PATIENCE, Session, both, until};
use crate::subject::Host;
use spa_server::gate::{Doubt, Guarded, Plan, Refusal};
use spa_server::service::{Connections, Target};
use std::thread;

fn once(text: &str, target: Target) -> Guarded {
    Guarded { target, connections: Connections::One, ports: ports(text) }
}

/// A plan in which these ports let one connection in; `None` if this back-end can't: then it has
/// said so, and changed nothing.
fn installed(lab: &Lab, guarded: Vec<Guarded>) -> Option<crate::gates::LiveGate> {
    let mut plan: Plan = plan(&["tcp/80"]);
    plan.guarded.extend(guarded);
    if lab.subject.promises.one_connection {
        return Some(lab.installed(&plan));
    }
    let before = lab.ruleset();
    let error = lab.gate().install(&plan).unwrap_err().to_string();
    assert!(error.contains("connection"), "{error}");
    assert!(lab.gate().examine(&plan).is_err());
    assert_eq!(lab.ruleset(), before);
    lab.see(&[&both(CLIENT, "tcp/22", Open)]);
    None
}

pub(crate) fn the_first_connection_uses_a_grant_up(lab: &Lab) {
    if lab.subject.promises.passes_default_drop {
        Host::Drops.prepare(lab);
    }
    let Some(gate) = installed(lab, vec![once("tcp/22", Target::Here)]) else { return };
    gate.apply(&[&admit(CLIENT, "tcp/22", 600), &admit(STRANGER, "tcp/22", 600)]);
    assert_eq!(gate.look(Doubt::Elements).elements, 4);
    let mut sessions = BOTH.map(|family| lab.session(CLIENT, family, 22));
    lab.see(&[&both(CLIENT, "tcp/22", Silent), &both(NEIGHBOUR, "tcp/22", Silent)]);
    assert!(sessions.iter_mut().all(Session::lives));
    // It is gone from the kernel; the stranger's isn't.
    let left = STRANGER.map(|source| element(source, "tcp/22"));
    assert_eq!(elements(&gate.snapshot()), left);
    assert_eq!(gate.look(Doubt::Elements).elements, 2);
    lab.see(&[&both(STRANGER, "tcp/22", Open)]);
    lab.see(&[&both(STRANGER, "tcp/22", Silent)]);
    assert_eq!(gate.snapshot(), []);
    // The next grant is for the next one.
    gate.apply(&[&admit(CLIENT, "tcp/22", 600)]);
    lab.see(&[&both(CLIENT, "tcp/22", Open)]);
    lab.see(&[&both(CLIENT, "tcp/22", Silent)]);
    assert!(sessions.iter_mut().all(Session::lives));
    // Other ports are as they are.
    gate.apply(&[&admit(CLIENT, "tcp/80", 600)]);
    lab.see(&[&both(CLIENT, "tcp/80", Open)]);
    lab.see(&[&both(CLIENT, "tcp/80", Open)]);
}

pub(crate) fn a_repeated_first_packet_belongs_to_the_connection(lab: &Lab) {
    let Some(gate) = installed(lab, vec![once("tcp/22", Target::Here)]) else { return };
    // Answers are lost before anybody has seen them: tracking still calls what comes new. What the
    // gate has let in is counted.
    lab.server.feed(
        "nft -f -",
        "table inet lossy {\n counter came {}\n counter passed {}\n \
         chain entry {\n type filter hook prerouting priority -310\n \
         tcp dport 22 tcp flags & (syn | ack) == syn counter name came\n }\n \
         chain arrival {\n type filter hook input priority 300\n \
         tcp dport 22 tcp flags & (syn | ack) == syn counter name passed\n }\n \
         chain answers {\n type filter hook output priority -310\n \
         tcp sport 22 drop\n }\n}\n",
    );
    let counted = |name: &str| -> u64 {
        let text = lab.server.run(&format!("nft list counter inet lossy {name}"));
        let mut words = text.split_whitespace().skip_while(|word| *word != "packets");
        words.nth(1).unwrap().parse().unwrap()
    };
    for family in BOTH {
        gate.apply(&[&admit(CLIENT, "tcp/22", 600)[family..=family]]);
        let (came, passed) = (counted("came"), counted("passed"));
        let connecting = thread::scope(|scope| {
            let connect = scope.spawn(|| {
                Session::open(&lab.clients, at(CLIENT[family], 0), at(SERVER[family], 22))
            });
            until("two more came", || counted("came") >= came + 2);
            until("two more passed", || counted("passed") >= passed + 2);
            assert_eq!(gate.snapshot(), [], "the first one has used the grant up");
            lab.server.run("nft flush chain inet lossy answers");
            connect.join().unwrap()
        });
        assert!(connecting.unwrap().lives());
        assert_eq!(counted("came"), counted("passed"));
        lab.see(&[&both(CLIENT, "tcp/22", Silent)]);
        // Positive control: what the second connection sends comes, and doesn't pass.
        assert!(counted("came") > counted("passed"));
        lab.server.run("nft reset counters table inet lossy");
        lab.server.run("nft add rule inet lossy answers tcp sport 22 drop");
    }
}

pub(crate) fn the_first_flow_of_datagrams_uses_a_grant_up(lab: &Lab) {
    let guarded = vec![once("udp/5000", Target::Here), once("udp/10000-10100", Target::Here)];
    let Some(gate) = installed(lab, guarded) else { return };
    gate.apply(&[&admit(CLIENT, "udp/5000", 600), &admit(CLIENT, "udp/10000-10100", 600)]);
    for port in [5000, 10050] {
        let first = BOTH.map(|family| lab.flow(CLIENT, family, port));
        assert!(first.iter().all(Flow::answers));
        let second = BOTH.map(|family| lab.flow(CLIENT, family, port));
        assert!(second.iter().all(Flow::is_silent));
        assert!(first.iter().all(Flow::answers));
    }
    // A range has been used up by one of its ports.
    assert_eq!(gate.snapshot(), []);
    lab.see(&[&both(CLIENT, "udp/10000", Silent)]);

    // Datagrams that nobody answers are one flow all the same.
    lab.server.feed(
        "nft -f -",
        "table inet mute {\n chain answers {\n type filter hook output priority -310\n \
         udp sport 5000 drop\n }\n}\n",
    );
    gate.apply(&[&admit(CLIENT, "udp/5000", 600)]);
    for family in BOTH {
        let flow = lab.flow(CLIENT, family, 5000);
        let other = lab.flow(CLIENT, family, 5000);
        for count in 1..=5 {
            flow.send(b"x");
            until("arrived", || lab.at_server.datagrams(5000, flow.near) == count);
        }
        other.send(b"x");
        thread::sleep(PATIENCE);
        assert_eq!(lab.at_server.datagrams(5000, other.near), 0);
    }
}

pub(crate) fn a_network_is_never_granted_one_connection(lab: &Lab) {
    let guarded = vec![once("tcp/22", Target::Here), once("tcp/7000-7002", Target::Here)];
    let Some(gate) = installed(lab, guarded) else { return };
    for port in ["tcp/22", "tcp/7001", "tcp/7000-7002"] {
        let error = gate.try_to_apply(&[&admit(NETWORK, port, 600)]).unwrap_err();
        assert!(error.to_string().contains("not from a network"), "{error}");
        assert_eq!(gate.snapshot(), []);
        // Positive control: an address is. Of a range, any port uses all of it up.
        gate.apply(&[&admit(NEIGHBOUR, port, 600)]);
        let number = if port == "tcp/22" { port } else { "tcp/7001" };
        lab.see(&[&both(NEIGHBOUR, number, Open), &both(CLIENT, number, Silent)]);
        lab.see(&[&both(NEIGHBOUR, number, Silent), &both(NEIGHBOUR, "tcp/7000", Silent)]);
        assert_eq!(gate.snapshot(), []);
    }
}

pub(crate) fn a_forward_for_one_connection(lab: &Lab) {
    let local = Target::LocalPort(8022.try_into().unwrap());
    let guarded = vec![once("tcp/3322", forward(Some(22), false)), once("tcp/2222", local)];
    let Some(gate) = installed(lab, guarded) else { return };
    gate.apply(&[&admit(CLIENT, "tcp/3322", 600), &admit(CLIENT, "tcp/2222", 600)]);
    let open =
        [both(CLIENT, "tcp/3322", At("inner", 22)), both(CLIENT, "tcp/2222", At("server", 8022))];
    let closed = [both(CLIENT, "tcp/3322", Silent), both(CLIENT, "tcp/2222", Silent)];
    lab.see(&[&open.concat()]);
    lab.see(&[&closed.concat()]);
    gate.apply(&[&admit(CLIENT, "tcp/3322", 600), &admit(CLIENT, "tcp/2222", 600)]);
    let mut sessions: Vec<_> = BOTH
        .into_iter()
        .flat_map(|f| [3322, 2222].map(|port| lab.session(CLIENT, f, port)))
        .collect();
    lab.see(&[&closed.concat()]);
    assert!(sessions.iter_mut().all(Session::lives));
    assert_eq!(gate.snapshot(), []);
}

pub(crate) fn a_mark_of_others_lets_nobody_in(lab: &Lab) {
    let guarded = vec![once("tcp/22", Target::Here), once("tcp/3322", forward(Some(22), false))];
    for (refusal, shut) in [(Refusal::Drop, Silent), (Refusal::Reject, Refused)] {
        let mut plan = Plan { refusal, ..plan(&["tcp/80"]) };
        plan.guarded.extend(&guarded);
        let gate = lab.installed(&plan);
        // On every connection: before the gate has judged it, and after that.
        for priority in [-160, -149] {
            lab.server.feed(
                "nft -f -",
                &format!(
                    "table inet uplinks {{\n chain entry {{\n \
                     type filter hook prerouting priority {priority}\n \
                     ct mark set 0xffffffff\n }}\n}}\n"
                ),
            );
            let closed = |who| [both(who, "tcp/22", shut), both(who, "tcp/3322", shut)].concat();
            lab.see(&[&closed(CLIENT)]);
            gate.apply(&[&admit(CLIENT, "tcp/22", 600), &admit(CLIENT, "tcp/3322", 600)]);
            lab.see(&[&closed(STRANGER)]);
            lab.see(&[&both(CLIENT, "tcp/22", Open), &both(CLIENT, "tcp/3322", At("inner", 22))]);
            lab.see(&[&closed(CLIENT)]);
            assert_eq!(gate.snapshot(), []);
            lab.server.run("nft delete table inet uplinks");
        }
        gate.remove();
    }
}
