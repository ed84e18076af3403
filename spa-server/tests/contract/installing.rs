//! Installing and removing: what changes, what doesn't, and that nothing of others does.

use crate::gates::LiveGate;
use crate::hammer::Hammer;
use crate::lab::{
    BOTH, CLIENT, Lab, NETWORK, STRANGER, admit, admitted, assert_same, elements, forward, plan,
    ports, withdraw,
};
use crate::probe::Seen::{Open, Refused, Silent};
use crate::probe::{Session, both};
use crate::subject::Host;
use spa_proto::Transport;
use spa_server::gate::{Change, Connection, Cut, Doubt, Element, Guarded, Mode, Plan, Refusal};
use spa_server::service::{Connections, Target};

/// Rules as a host may have them, in every table that a gate may write to.
const HOST_RULES: [&str; 9] = [
    "-N HOST",
    "-A HOST -p tcp --dport 80 -j ACCEPT",
    "-A INPUT -i lo -j ACCEPT",
    "-A INPUT -j HOST",
    "-A INPUT -m comment --comment a\"b -j HOST",
    "-A FORWARD -p tcp --dport 97 -j DROP",
    "-t mangle -A PREROUTING -p tcp --dport 99 -j MARK --set-mark 0x1",
    "-t nat -A PREROUTING -p tcp --dport 98 -j REDIRECT --to-ports 80",
    "-t nat -A POSTROUTING -o ext -p tcp --dport 96 -j MASQUERADE",
];

const NATIVE: &str = "\
table inet hosts {
    set bad { type ipv4_addr; elements = { 198.18.0.1, 198.18.0.2 } }
    chain entry {
        type filter hook input priority 10; policy accept;
        ip saddr @bad drop
        tcp dport 95 counter accept
    }
    chain way {
        type nat hook prerouting priority -101; policy accept;
        tcp dport 94 redirect to :80
    }
}
table ip6 spare {
    chain spare {
        tcp dport 93 drop
    }
}
";

/// A plan that has everything in it that the back-end can do.
fn everything(lab: &Lab) -> Plan {
    let mut plan = plan(&["tcp/22", "udp/5000", "udp/10000-10100", "tcp/7000-7002"]);
    plan.guarded.extend([
        Guarded { target: Target::LocalPort(8022.try_into().unwrap()), ..guarded("tcp/2222") },
        Guarded { target: forward(Some(22), true), ..guarded("tcp/3322") },
        Guarded { target: forward(None, false), ..guarded("udp/20000-20010") },
    ]);
    if lab.subject.promises.one_connection {
        plan.guarded.push(Guarded { connections: Connections::One, ..guarded("tcp/4422") });
    }
    plan.always_admit = ["198.18.5.0/24", "2001:db8:18::/64"].map(|n| n.parse().unwrap()).to_vec();
    plan
}

/// What the client and the network are granted of it.
fn everything_admitted(plan: &Plan) -> Vec<Change> {
    let each = |guarded: &Guarded| {
        let port = guarded.ports.to_string();
        [admit(CLIENT, &port, 600), admit(NETWORK, &port, 600)].concat()
    };
    let any = plan.guarded.iter().filter(|guarded| guarded.connections == Connections::Any);
    any.flat_map(each).collect()
}

fn guarded(text: &str) -> Guarded {
    Guarded::plain(ports(text))
}

/// Plans of all kinds, with a name for each.
fn plans(lab: &Lab) -> Vec<(&'static str, Plan)> {
    let all = everything(lab);
    let mut plans = vec![
        ("plain", plan(&["tcp/22", "udp/5000"])),
        ("reject", Plan { refusal: Refusal::Reject, ..plan(&["tcp/22"]) }),
        ("everything", all.clone()),
        ("everything, rejected", Plan { refusal: Refusal::Reject, ..all.clone() }),
        ("on trial", Plan { trial_seconds: Some(600), ..all.clone() }),
    ];
    if lab.subject.promises.open_mode {
        plans.push(("open", Plan { mode: Mode::Open, ..all }));
    }
    plans
}

pub(crate) fn a_second_installation_changes_nothing(lab: &Lab) {
    lab.rules(&HOST_RULES);
    for (name, plan) in plans(lab) {
        let gate = lab.gate();
        assert!(gate.examine(&plan).unwrap().changed, "{name}");
        assert!(gate.install(&plan).unwrap().changed, "{name}");
        gate.apply(&[&everything_admitted(&plan)]);
        let before = lab.ruleset();
        let admitted_before = elements(&gate.snapshot());
        assert_eq!(admitted_before, admitted(&[&everything_admitted(&plan)]), "{name}");
        for gate in [gate, lab.gate()] {
            let examined = gate.examine(&plan).unwrap();
            let report = gate.install(&plan).unwrap();
            // A trial begins anew: that its end changes is nobody's concern.
            if plan.trial_seconds.is_none() {
                assert_eq!(examined.differences, [] as [&str; 0], "{name}");
                assert!(!examined.changed && !report.changed, "{name}: {report:?}");
            }
            assert_same(&lab.ruleset(), &before, &name);
            assert_eq!(elements(&gate.snapshot()), admitted_before, "{name}");
            assert!(gate.snapshot().iter().all(|live| live.seconds_left > 500), "{name}");
            assert_eq!(gate.look(Doubt::Everything).missing, [] as [&str; 0], "{name}");
        }
        lab.gate().remove();
    }
}

pub(crate) fn rules_of_others_are_the_same_before_and_after(lab: &Lab) {
    for host_has_rules in [false, true] {
        if host_has_rules {
            lab.rules(&HOST_RULES);
            lab.rules_of(lab.subject.variant.other(), &HOST_RULES);
            lab.server.run("ipset create mine hash:ip timeout 600");
            lab.server.feed("nft -f -", NATIVE);
        }
        let before = lab.ruleset();
        assert_eq!(before.contains("HOST"), host_has_rules);
        for (name, plan) in plans(lab) {
            let gate = lab.installed(&plan);
            gate.apply(&[&everything_admitted(&plan)]);
            gate.sever(&[cut()]);
            assert_ne!(lab.ruleset(), before, "{name}");
            gate.remove();
            assert_same(&lab.ruleset(), &before, &name);
            // Removing what isn't there does no harm, to whoever has never seen it either.
            gate.remove();
            lab.gate().remove();
            assert_same(&lab.ruleset(), &before, &name);
        }
        // What this host can't have leaves nothing behind.
        if !lab.subject.promises.open_mode {
            let error = lab.gate().install(&Plan { mode: Mode::Open, ..plan(&["tcp/22"]) });
            assert!(error.unwrap_err().to_string().contains("open mode"));
            assert_eq!(lab.ruleset(), before);
        }
    }
}

fn cut() -> Cut {
    let connection = Connection {
        transport: Transport::Tcp,
        peer: "192.0.2.1:40000".parse().unwrap(),
        local: "192.0.2.2:22".parse().unwrap(),
    };
    Cut { connection, answered_from: connection.local }
}

pub(crate) fn a_new_plan_takes_the_place_of_the_old_one(lab: &Lab) {
    lab.rules(&HOST_RULES);
    let plans = plans(lab);
    // What each looks like on a host without another one before it.
    let fresh: Vec<_> = plans
        .iter()
        .map(|(_, plan)| {
            let gate = lab.installed(plan);
            // A back-end may keep what it has made room for elements with.
            gate.apply(&[&everything_admitted(plan)]);
            withdraw_all(&gate);
            let ruleset = lab.ruleset();
            gate.remove();
            ruleset
        })
        .collect();
    let last = plans.len() - 1;
    let pairs = (1..=last).flat_map(|at| [(0, at), (at, 0), (at, at % last + 1)]);
    for (from, to) in pairs {
        let ((from, before), (to, after), wanted) = (&plans[from], &plans[to], &fresh[to]);
        lab.installed(before).apply(&[&everything_admitted(before)]);
        let gate = lab.installed(after);
        let live = withdraw_all(&gate);
        let kept = everything_admitted(before).into_iter().map(|change| change.element());
        for element in kept.filter(|element| after.guarded_at(element.ports).is_some()) {
            assert!(live.contains(&element), "{from} -> {to}: {element} is lost");
        }
        // Nothing else is left: a later plan would find it.
        gate.apply(&[&everything_admitted(after)]);
        withdraw_all(&gate);
        assert_same(&lab.ruleset(), wanted, &format!("{from} -> {to}"));
    }
}

/// Withdraws all that is admitted, and tells it.
fn withdraw_all(gate: &LiveGate) -> Vec<Element> {
    let live = elements(&gate.snapshot());
    let all: Vec<_> = live.iter().map(|element| Change::Withdraw { element: *element }).collect();
    gate.apply(&[&all]);
    live
}

pub(crate) fn nothing_slips_through_while_a_plan_changes(lab: &Lab) {
    let plan = plan(&["tcp/22", "udp/5000"]);
    let gate = lab.installed(&plan);
    let hammer = Hammer::start(lab, STRANGER, 5000);
    let reject = Plan { refusal: Refusal::Reject, ..plan.clone() };
    let more = Plan { guarded: everything(lab).guarded, max_elements: 4096, ..plan.clone() };
    let other = Plan { max_elements: 4096, ..reject.clone() };
    for round in 0..4 {
        for next in [&more, &reject, &other, &plan] {
            let gate = lab.gate();
            gate.install(next).unwrap();
            gate.apply(&[&admit(CLIENT, "udp/5000", 600), &withdraw(CLIENT, "udp/5000")]);
            assert_eq!(hammer.received(), 0, "in round {round}");
        }
    }
    hammer.sends_on();
    assert_eq!(hammer.received(), 0);
    // Positive control: without the gate, everything gets through.
    gate.remove();
    hammer.passes();
}

pub(crate) fn an_idle_connection_survives_the_installation_where_nothing_was_tracked(lab: &Lab) {
    let mut sessions: Vec<_> = BOTH
        .into_iter()
        .flat_map(|f| [22, 7001].map(|port| lab.session(CLIENT, f, port)))
        .collect();
    let report = lab.gate().install(&plan(&["tcp/22"])).unwrap();
    assert!(report.connections_kept >= 2, "{report:?}");
    // A port that is guarded only later, with a range.
    lab.gate().install(&plan(&["tcp/22", "tcp/7000-7002"])).unwrap();
    lab.see(&[&both(CLIENT, "tcp/22", Silent), &both(CLIENT, "tcp/7001", Silent)]);
    assert!(sessions.iter_mut().all(Session::lives));
}

pub(crate) fn open_mode_leaves_refusing_to_the_host(lab: &Lab) {
    let open = Plan { mode: Mode::Open, ..plan(&["tcp/22", "udp/10000-10100"]) };
    if !lab.subject.promises.open_mode {
        let before = lab.ruleset();
        for gate in [lab.gate(), lab.installed(&plan(&["tcp/22"]))] {
            let error = gate.install(&open).unwrap_err();
            assert!(error.to_string().contains("open mode"), "{error}");
            assert!(gate.examine(&open).is_err());
            let same = if lab.ruleset() == before { Open } else { Silent };
            lab.see(&[&both(CLIENT, "tcp/22", same)]);
        }
        return;
    }
    // Nothing refuses, and that is said.
    let report = lab.gate().install(&open).unwrap();
    assert_eq!(report.warnings.len(), 2, "{report:?}");
    lab.see(&[&both(CLIENT, "tcp/22", Open)]);
    Host::Drops.prepare(lab);
    let gate = lab.gate();
    let report = gate.install(&open).unwrap();
    assert!(!report.changed && report.warnings.is_empty(), "{report:?}");
    let middle = |who, seen| both(who, "udp/10050", seen);
    lab.see(&[&both(CLIENT, "tcp/22", Silent), &middle(CLIENT, Silent)]);
    gate.apply(&[&admit(CLIENT, "tcp/22", 600), &admit(NETWORK, "udp/10000-10100", 600)]);
    lab.see(&[&both(CLIENT, "tcp/22", Open), &middle(CLIENT, Open)]);
    lab.see(&[&both(STRANGER, "tcp/22", Silent), &middle(STRANGER, Silent)]);
    // From the other mode and back, live.
    gate.install(&Plan { mode: Mode::Guard, refusal: Refusal::Reject, ..open.clone() }).unwrap();
    lab.see(&[&both(CLIENT, "tcp/22", Open), &both(STRANGER, "tcp/22", Refused)]);
    gate.install(&open).unwrap();
    lab.see(&[&both(CLIENT, "tcp/22", Open), &both(STRANGER, "tcp/22", Silent)]);
    // Where another chain drops, an accept of ours changes nothing.
    gate.remove();
    lab.rules_of(lab.subject.variant.other(), &["-P INPUT DROP"]);
    let before = lab.ruleset();
    let error = lab.gate().install(&open).unwrap_err();
    assert!(error.to_string().contains("INPUT"), "{error}");
    assert_eq!(lab.ruleset(), before);
}
