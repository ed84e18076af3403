//! Networks that are admitted without a grant.

use crate::lab::{
    BOTH, CLIENT, Lab, NEIGHBOUR, NETWORK, STRANGER, admit, forward, plan, ports, withdraw,
};
use crate::probe::Seen::{At, Open, Silent};
use crate::probe::{Probe, Seen, Session, both};
use crate::subject::Host;
use spa_server::gate::{Doubt, Guarded, Plan};
use spa_server::service::{Connections, Target};

fn everything(lab: &Lab) -> Plan {
    let mut plan = plan(&["tcp/22", "udp/10000-10100"]);
    let guarded = |text, target| Guarded { target, ..Guarded::plain(ports(text)) };
    plan.guarded.push(guarded("tcp/2222", Target::LocalPort(8022.try_into().unwrap())));
    plan.guarded.push(guarded("tcp/3322", forward(Some(22), false)));
    if lab.subject.promises.one_connection {
        let connections = Connections::One;
        plan.guarded.push(Guarded { connections, ..guarded("tcp/7001", Target::Here) });
    }
    plan.always_admit = NETWORK.map(|network| network.parse().unwrap()).to_vec();
    plan
}

const PORTS: [(&str, Seen); 5] = [
    ("tcp/22", Open),
    ("udp/10050", Open),
    ("tcp/2222", At("server", 8022)),
    ("tcp/3322", At("inner", 22)),
    ("tcp/7001", Open),
];

fn open(lab: &Lab, who: [&str; 2]) -> Vec<Probe> {
    let count = if lab.subject.promises.one_connection { 5 } else { 4 };
    PORTS[..count].iter().flat_map(|(port, seen)| both(who, port, *seen)).collect()
}

fn closed(lab: &Lab, who: [&str; 2]) -> Vec<Probe> {
    open(lab, who).into_iter().map(|probe| Probe { expected: Silent, ..probe }).collect()
}

pub(crate) fn who_is_always_admitted_needs_no_grant(lab: &Lab) {
    let plan = everything(lab);
    for host in Host::BOTH {
        host.prepare(lab);
        let gate = lab.gate();
        gate.install(&plan).unwrap();
        lab.see(&[&closed(lab, STRANGER)]);
        if host == Host::Drops && !lab.subject.promises.passes_default_drop {
            lab.see(&[&closed(lab, CLIENT)]);
            return;
        }
        // As often as they like, even where a grant is for one connection.
        for _ in 0..2 {
            lab.see(&[&open(lab, CLIENT), &open(lab, NEIGHBOUR)]);
        }
        let other = if host == Host::Drops { Silent } else { Open };
        lab.see(&[&both(CLIENT, "tcp/80", other), &both(CLIENT, "udp/10101", other)]);
        assert_eq!(gate.snapshot(), []);
        assert_eq!(gate.look(Doubt::Everything).elements, 0);
        // A grant of theirs that ends takes nothing from them.
        gate.apply(&[&admit(CLIENT, "tcp/22", 600)]);
        gate.apply(&[&withdraw(CLIENT, "tcp/22")]);
        lab.see(&[&open(lab, CLIENT)]);
        gate.remove();
    }
}

pub(crate) fn a_new_list_takes_the_place_of_the_old_one(lab: &Lab) {
    let plan = everything(lab);
    lab.installed(&plan);
    let list = |who: [&str; 2]| Plan {
        always_admit: who
            .map(|address| address.parse::<std::net::IpAddr>().unwrap().into())
            .to_vec(),
        ..plan.clone()
    };
    lab.see(&[&open(lab, CLIENT), &open(lab, NEIGHBOUR), &closed(lab, STRANGER)]);
    let mut sessions = BOTH.map(|family| lab.session(NEIGHBOUR, family, 22));
    for (who, others) in [(CLIENT, [NEIGHBOUR, STRANGER]), (STRANGER, [CLIENT, NEIGHBOUR])] {
        let gate = lab.gate();
        assert!(gate.examine(&list(who)).unwrap().changed);
        assert!(gate.install(&list(who)).unwrap().changed);
        assert!(!gate.install(&list(who)).unwrap().changed);
        lab.see(&[&open(lab, who), &closed(lab, others[0]), &closed(lab, others[1])]);
    }
    let gate = lab.gate();
    gate.install(&Plan { always_admit: Vec::new(), ..plan.clone() }).unwrap();
    lab.see(&[&closed(lab, CLIENT), &closed(lab, NEIGHBOUR), &closed(lab, STRANGER)]);
    assert!(sessions.iter_mut().all(Session::lives));
}
