//! A gate on trial: it stops refusing by itself, whatever has become of the daemon.

use crate::gates::LiveGate;
use crate::hammer::Hammer;
use crate::lab::{BOTH, CLIENT, Lab, STRANGER, admit, forward, plan, ports};
use crate::probe::Seen::{Open, Refused, Silent};
use crate::probe::{Probe, both, misjudged, until};
use crate::subject::Host;
use spa_server::gate::{Backend, Doubt, Guarded, Plan, Refusal};
use spa_server::service::Connections;
use std::thread;
use std::time::{Duration, Instant};

/// Long enough to look before it is over.
const SHORT: u32 = 4;

fn on_trial(seconds: Option<u32>, refusal: Refusal) -> Plan {
    let mut plan = plan(&["tcp/22", "udp/5000", "udp/10000-10100"]);
    plan.guarded
        .push(Guarded { target: forward(Some(22), false), ..Guarded::plain(ports("tcp/3322")) });
    Plan { trial_seconds: seconds, refusal, ..plan }
}

fn all(who: [&str; 2], seen: crate::probe::Seen) -> Vec<Probe> {
    ["tcp/22", "udp/5000", "udp/10050"].iter().flat_map(|port| both(who, port, seen)).collect()
}

pub(crate) fn a_trial_ends_by_itself_with_nobody_alive(lab: &Lab) {
    for (refusal, seen) in [(Refusal::Drop, Silent), (Refusal::Reject, Refused)] {
        let mut plan = on_trial(Some(SHORT), refusal);
        let one = Guarded { connections: Connections::One, ..Guarded::plain(ports("tcp/7003")) };
        plan.guarded.push(one);
        let gate = lab.installed(&plan);
        gate.apply(&[&admit(CLIENT, "tcp/22", 600)]);
        drop(gate);
        let hidden = [both(STRANGER, "tcp/22", seen), both(STRANGER, "udp/10050", seen)].concat();
        lab.see(&[&hidden, &both(CLIENT, "tcp/22", Open)]);
        until("over", || misjudged(&lab.clients, &all(STRANGER, Open)).is_empty());
        // What a closed port looks like is what the knock port now looks like.
        lab.see(&[&both(CLIENT, "udp/62201", Refused), &both(STRANGER, "udp/62201", Refused)]);
        lab.see(&[&both(CLIENT, "tcp/22", Open)]);
        // Nor does it refuse what others have marked, as its own rules would have.
        let mark = "table inet uplinks {\n chain entry {\n \
                    type filter hook prerouting priority -160\n meta mark set 0xffffffff\n }\n}\n";
        lab.server.feed("nft -f -", mark);
        lab.see(&[&both(STRANGER, "tcp/7003", Open), &both(STRANGER, "tcp/22", Open)]);
        lab.server.run("nft delete table inet uplinks");
        lab.gate().remove();
    }
}

pub(crate) fn what_is_confirmed_stays_without_a_gap(lab: &Lab) {
    let gate = lab.installed(&on_trial(Some(SHORT), Refusal::Drop));
    let began = Instant::now();
    let hammer = Hammer::start(lab, STRANGER, 5000);
    // As another process would.
    let report = lab.gate().install(&on_trial(None, Refusal::Drop)).unwrap();
    assert!(report.changed);
    drop(gate);
    assert!(
        began.elapsed() < Duration::from_secs(SHORT.into()),
        "the machine is too slow for this"
    );
    while began.elapsed() < Duration::from_secs(u64::from(SHORT) + 2) {
        lab.see(&[&all(STRANGER, Silent)]);
    }
    hammer.sends_on();
    assert_eq!(hammer.received(), 0);
    assert!(!lab.gate().install(&on_trial(None, Refusal::Drop)).unwrap().changed);
    lab.gate().remove();
    hammer.passes();
}

pub(crate) fn a_trial_can_be_made_longer_and_shorter(lab: &Lab) {
    let gate = lab.installed(&on_trial(Some(SHORT), Refusal::Drop));
    let began = Instant::now();
    let hammer = Hammer::start(lab, STRANGER, 5000);
    gate.install(&on_trial(Some(600), Refusal::Drop)).unwrap();
    while began.elapsed() < Duration::from_secs(u64::from(SHORT) + 2) {
        thread::sleep(Duration::from_millis(100));
    }
    hammer.sends_on();
    assert_eq!(hammer.received(), 0);
    // A gate that stands for good goes on trial, too.
    gate.install(&on_trial(None, Refusal::Drop)).unwrap();
    lab.gate().install(&on_trial(Some(1), Refusal::Drop)).unwrap();
    hammer.passes();
    lab.see(&[&all(STRANGER, Open)]);
    // One that is over can be begun again.
    gate.install(&on_trial(Some(600), Refusal::Drop)).unwrap();
    lab.see(&[&all(STRANGER, Silent)]);
    gate.remove();
}

pub(crate) fn what_a_trial_accepts_it_goes_on_accepting(lab: &Lab) {
    if !lab.subject.promises.passes_default_drop {
        // It accepts nothing that the host drops, on trial or not.
        Host::Drops.prepare(lab);
        lab.installed(&on_trial(Some(1), Refusal::Drop)).apply(&[&admit(CLIENT, "tcp/22", 600)]);
        return lab.see(&[&both(CLIENT, "tcp/22", Silent)]);
    }
    let control = lab.installed(&on_trial(Some(1), Refusal::Drop));
    control.apply(&[&admit(CLIENT, "tcp/22", 600), &admit(CLIENT, "tcp/3322", 600)]);
    until("over", || misjudged(&lab.clients, &all(STRANGER, Open)).is_empty());
    Host::Drops.prepare(lab);
    let forwarded = both(CLIENT, "tcp/3322", crate::probe::Seen::At("inner", 22));
    lab.see(&[&all(STRANGER, Silent), &both(CLIENT, "tcp/22", Open), &forwarded]);
    for family in BOTH {
        assert!(lab.session(CLIENT, family, 3322).lives());
    }
}

/// What takes away that which lets a gate on trial refuse, and how its being missed begins.
fn disarming(lab: &Lab) -> Vec<(&'static str, &'static str)> {
    match lab.subject.backend {
        Backend::Ipset => vec![
            ("ipset flush spa4-armed", "set spa4-armed has 0 elements of 2"),
            ("ipset del spa6-armed ::/1", "set spa6-armed has 1 elements of 2"),
        ],
        Backend::Nftables => vec![
            ("nft flush set inet spa armed", "set armed has 0 elements of 2"),
            ("nft delete element inet spa armed { udp }", "set armed has 1 elements of 2"),
        ],
        // It is in the rules themselves.
        _ => Vec::new(),
    }
}

pub(crate) fn a_trial_that_others_end_is_missed_and_goes_on(lab: &Lab) {
    let plan = on_trial(Some(600), Refusal::Drop);
    let gate = lab.installed(&plan);
    let missing = |gate: &LiveGate, doubt| gate.look(doubt).missing;
    let doubts = [Doubt::Elements, Doubt::Everything];
    for (command, named) in disarming(lab) {
        for doubt in doubts {
            assert_eq!(missing(&gate, doubt), [""; 0], "{command}");
            lab.server.run(command);
            assert!(!misjudged(&lab.clients, &all(STRANGER, Silent)).is_empty(), "{command}");
            // As often as it is looked at.
            for _ in 0..2 {
                let found = missing(&gate, doubt);
                assert!(found.len() == 1 && found[0].starts_with(named), "{command}: {found:?}");
            }
            let differences = missing(&gate, doubt);
            let report = gate.install(&plan).unwrap();
            assert!(report.changed && report.differences == differences, "{report:?}");
            lab.see(&[&all(STRANGER, Silent)]);
        }
    }
    // A new length of prefix, which makes rules and sets, doesn't hide it.
    for (command, named) in disarming(lab) {
        lab.server.run(command);
        gate.apply(&[&admit(["198.18.0.0/15", "2001:db8:9::/48"], "tcp/22", 600)]);
        gate.apply(&[&admit(["198.18.0.0/16", "2001:db8:9::/49"], "tcp/22", 600)]);
        assert!(missing(&gate, Doubt::Elements)[0].starts_with(named), "{command}");
        gate.install(&plan).unwrap();
    }
    // When its time is over, nothing is missing.
    gate.install(&on_trial(Some(SHORT), Refusal::Drop)).unwrap();
    until("over", || {
        assert_eq!(missing(&gate, Doubt::Elements), [""; 0]);
        misjudged(&lab.clients, &all(STRANGER, Open)).is_empty()
    });
    assert_eq!(doubts.map(|doubt| missing(&gate, doubt)).concat(), [""; 0]);
    // Nor with a gate that stands for good.
    gate.install(&on_trial(None, Refusal::Drop)).unwrap();
    assert_eq!(doubts.map(|doubt| missing(&gate, doubt)).concat(), [""; 0]);
}
