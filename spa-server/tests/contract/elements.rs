//! What can be admitted: addresses and networks, ports and ranges, alone and in batches.

use crate::lab::{
    CLIENT, Lab, NEIGHBOUR, NETWORK, STRANGER, admit, admitted, element, elements, plan, withdraw,
};
use crate::probe::Seen::{Open, Silent};
use crate::probe::both;
use spa_server::gate::{Change, GateError};
use std::time::Instant;

pub(crate) fn a_network_is_admitted_whole_and_apart_from_its_members(lab: &Lab) {
    let gate = lab.installed(&plan(&["tcp/22", "udp/5000"]));
    let see = |client, neighbour| {
        let client = both(CLIENT, "tcp/22", client);
        let neighbour = both(NEIGHBOUR, "tcp/22", neighbour);
        let other_port = both(CLIENT, "udp/5000", Silent);
        lab.see(&[&client, &neighbour, &both(STRANGER, "tcp/22", Silent), &other_port]);
    };
    see(Silent, Silent);
    gate.apply(&[&admit(NETWORK, "tcp/22", 600)]);
    see(Open, Open);
    gate.apply(&[&admit(CLIENT, "tcp/22", 600)]);
    assert_eq!(
        elements(&gate.snapshot()),
        admitted(&[&admit(NETWORK, "tcp/22", 1), &admit(CLIENT, "tcp/22", 1)])
    );
    gate.apply(&[&withdraw(NETWORK, "tcp/22")]);
    see(Open, Silent);
    gate.apply(&[&admit(NETWORK, "tcp/22", 600), &withdraw(CLIENT, "tcp/22")]);
    see(Open, Open);
    // A smaller network in a larger one: the client's, and not the neighbour's.
    let small = ["192.0.2.0/31", "2001:db8:1::/127"];
    gate.apply(&[&admit(small, "tcp/22", 600)]);
    gate.apply(&[&withdraw(NETWORK, "tcp/22")]);
    see(Open, Silent);
    gate.apply(&[&admit(NETWORK, "tcp/22", 600), &withdraw(small, "tcp/22")]);
    see(Open, Open);
    assert_eq!(elements(&gate.snapshot()), admitted(&[&admit(NETWORK, "tcp/22", 1)]));
    gate.apply(&[&withdraw(NETWORK, "tcp/22")]);
    see(Silent, Silent);
}

pub(crate) fn a_range_is_admitted_whole_or_port_by_port(lab: &Lab) {
    let outside = both(STRANGER, "udp/10101", Open);
    let gate = lab.installed(&plan(&["udp/10000-10100", "tcp/7000-7002"]));
    let see = |who, [first, middle, last]: [_; 3]| {
        let [first, middle, last] = [
            both(who, "udp/10000", first),
            both(who, "udp/10050", middle),
            both(who, "udp/10100", last),
        ];
        let others = [
            both(STRANGER, "udp/10000", Silent),
            both(STRANGER, "udp/10050", Silent),
            both(STRANGER, "udp/10100", Silent),
            both(who, "tcp/7001", Silent),
        ];
        lab.see(&[&first, &middle, &last, &others.concat(), &outside]);
    };
    see(CLIENT, [Silent; 3]);
    gate.apply(&[&admit(CLIENT, "udp/10000-10100", 600)]);
    see(CLIENT, [Open; 3]);
    see(NEIGHBOUR, [Silent; 3]);
    // One port of it, which is an element of its own.
    gate.apply(&[&admit(CLIENT, "udp/10050", 600)]);
    assert_eq!(gate.snapshot().len(), 4);
    gate.apply(&[&withdraw(CLIENT, "udp/10000-10100")]);
    see(CLIENT, [Silent, Open, Silent]);
    gate.apply(&[&withdraw(CLIENT, "udp/10050")]);
    see(CLIENT, [Silent; 3]);
    // Ranges and networks.
    gate.apply(&[&admit(NETWORK, "udp/10000-10100", 600)]);
    see(NEIGHBOUR, [Open; 3]);
    gate.apply(&[&withdraw(NETWORK, "udp/10000-10100"), &admit(NETWORK, "udp/10100", 600)]);
    see(NEIGHBOUR, [Silent, Silent, Open]);
    gate.apply(&[&withdraw(NETWORK, "udp/10100"), &admit(CLIENT, "tcp/7000-7002", 600)]);
    let tcp = ["tcp/7000", "tcp/7001", "tcp/7002"];
    let probes = |who, seen| tcp.map(|port| both(who, port, seen)).concat();
    lab.see(&[&probes(CLIENT, Open), &probes(STRANGER, Silent), &both(STRANGER, "tcp/7003", Open)]);
}

pub(crate) fn a_batch_is_made_in_its_order(lab: &Lab) {
    let gate = lab.installed(&plan(&["tcp/22", "udp/5000", "udp/10000-10100"]));
    let all = [
        admit(CLIENT, "tcp/22", 600),
        admit(CLIENT, "udp/5000", 600),
        admit(NETWORK, "udp/5000", 600),
        admit(STRANGER, "udp/10000-10100", 600),
        admit(NETWORK, "udp/10000-10100", 600),
        admit(CLIENT, "udp/10001", 600),
    ]
    .concat();
    gate.apply(&[&all]);
    assert_eq!(elements(&gate.snapshot()), admitted(&[&all]));
    let out = |change: &Change| Change::Withdraw { element: change.element() };
    let withdrawn: Vec<_> = all.iter().map(out).collect();
    // Out and in again; in, and out at once; twice out does no harm.
    gate.apply(&[&withdrawn, &all]);
    assert_eq!(elements(&gate.snapshot()), admitted(&[&all]));
    gate.apply(&[&withdrawn, &all, &withdrawn, &withdrawn]);
    assert_eq!(gate.snapshot(), []);
    gate.apply(&[]);
    gate.apply(&[&admit(CLIENT, "tcp/22", 600), &admit(CLIENT, "tcp/22", 50)]);
    assert!(gate.snapshot().iter().all(|live| live.seconds_left <= 50));
}

pub(crate) fn a_bad_change_in_a_batch_is_refused_with_all_of_it(lab: &Lab) {
    let plan = plan(&["tcp/22", "udp/10000-10100"]);
    let not_installed = lab.gate().try_to_apply(&[&admit(CLIENT, "tcp/22", 1)]).unwrap_err();
    assert!(matches!(not_installed, GateError::NotInstalled), "{not_installed}");
    let gate = lab.installed(&plan);
    for (source, port, seconds) in [
        (CLIENT[0], "tcp/23", 30),
        (CLIENT[0], "udp/22", 30),
        // Neither a range that is guarded nor a single port in one.
        (CLIENT[0], "udp/10000-10099", 30),
        (CLIENT[0], "tcp/22-23", 30),
        (CLIENT[0], "tcp/22", 0),
        (CLIENT[0], "tcp/22", 2_147_484),
        ("0.0.0.0", "tcp/22", 30),
        ("224.0.0.1", "tcp/22", 30),
        ("0.0.0.0/0", "tcp/22", 30),
        ("::/0", "tcp/22", 30),
    ] {
        let bad = Change::Admit { element: element(source, port), seconds };
        let good = admit(CLIENT, "tcp/22", 30);
        let error = gate.try_to_apply(&[&good, &[bad], &good]).unwrap_err();
        assert!(error.to_string().contains("refused to admit"), "{error}");
        assert_eq!(gate.snapshot(), [], "nothing of a bad batch is made");
    }
    gate.apply(&[&admit(CLIENT, "tcp/22", 2_147_483)]);
    assert_eq!(gate.snapshot().len(), 2);
}

pub(crate) fn a_snapshot_tells_what_is_admitted_and_for_how_long(lab: &Lab) {
    let plan = plan(&["tcp/22", "udp/5000", "udp/10000-10100", "tcp/7000-7002"]);
    let unmade = lab.gate();
    let error = unmade.try_to_snapshot().unwrap_err();
    assert!(matches!(error, GateError::NotInstalled), "{error}");
    let gate = lab.installed(&plan);
    let mut changes = Vec::new();
    for (at, who) in [CLIENT, NEIGHBOUR, STRANGER, NETWORK].into_iter().enumerate() {
        let ports = ["tcp/22", "udp/5000", "udp/10000-10100", "udp/10007", "tcp/7000-7002"];
        for (nth, port) in ports.into_iter().enumerate() {
            let seconds = 1000 * (1 + u32::try_from(at * 10 + nth).unwrap());
            changes.extend(admit(who, port, seconds));
        }
    }
    changes.push(Change::Admit { element: element("198.18.0.0/15", "tcp/22"), seconds: 2_147_483 });
    let began = Instant::now();
    gate.apply(&[&changes]);
    let mut gate = Some(gate);
    for _ in 0..2 {
        // Then one that has not admitted anything itself.
        let live = gate.take().unwrap_or_else(|| lab.installed(&plan)).snapshot();
        assert_eq!(elements(&live), admitted(&[&changes]));
        for change in &changes {
            let Change::Admit { element, seconds } = *change else { unreachable!() };
            let left = live.iter().find(|live| live.element == element).unwrap().seconds_left;
            let passed = u32::try_from(began.elapsed().as_secs()).unwrap() + 2;
            assert!((seconds - passed..=seconds).contains(&left), "{element}: {left} of {seconds}");
        }
    }
}
