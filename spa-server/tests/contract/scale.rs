//! Many at once.

use crate::lab::{Lab, SERVER, STRANGER, elements, plan};
use crate::probe::Seen::{Open, Silent};
use crate::probe::{both, probe};
use spa_server::gate::{Change, Doubt, Element, Plan};
use spa_server::source::Source;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address of the clients' ([`crate::lab::MANY`]); half of them IPv4.
fn address(number: u16) -> IpAddr {
    let half = number / 2;
    if number.is_multiple_of(2) {
        let [high, low] = half.to_be_bytes();
        Ipv4Addr::new(10, 77, high, low).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, half + 1).into()
    }
}

pub(crate) fn a_thousand_at_once_are_all_there_and_open(lab: &Lab) {
    many(lab, 1000);
}

pub(crate) fn ten_thousand_at_once_are_all_there_and_open(lab: &Lab) {
    if lab.subject.promises.sets {
        many(lab, 10_000);
    } else {
        // Nobody promises that rules, one a grant, are as good: but what is told is true.
        many(lab, 2000);
    }
}

fn many(lab: &Lab, count: u16) {
    let port = "tcp/22".parse().unwrap();
    let all: Vec<_> = (2..count + 2)
        .map(|number| Change::Admit {
            element: Element { source: Source::host(address(number)), ports: port },
            seconds: 600 + u32::from(number),
        })
        .collect();
    let gate = lab.installed(&Plan { max_elements: 16_384, ..plan(&["tcp/22"]) });
    gate.apply(&[&all]);
    let live = gate.snapshot();
    let mut wanted: Vec<_> = all.iter().map(Change::element).collect();
    wanted.sort_unstable();
    assert_eq!(elements(&live), wanted);
    assert_eq!(gate.look(Doubt::Elements).elements, u64::from(count));
    let sample = |seen| {
        let numbers = [2, 3, count / 2, count / 2 + 1, count, count + 1];
        numbers.map(|number| {
            let from = address(number);
            let to = SERVER[usize::from(from.is_ipv6())];
            probe(&from.to_string(), to, "tcp/22", seen)
        })
    };
    let others = [0x8000, 0x8001].map(|number| {
        let from = address(number);
        probe(&from.to_string(), SERVER[usize::from(from.is_ipv6())], "tcp/22", Silent)
    });
    lab.see(&[&sample(Open), &others, &both(STRANGER, "tcp/22", Silent)]);
    let half: Vec<_> =
        all.iter().step_by(2).map(|c| Change::Withdraw { element: c.element() }).collect();
    gate.apply(&[&half]);
    assert_eq!(gate.snapshot().len(), all.len() - half.len());
    let rest: Vec<_> = all.iter().map(|c| Change::Withdraw { element: c.element() }).collect();
    gate.apply(&[&rest]);
    assert_eq!(gate.snapshot(), []);
    lab.see(&[&sample(Silent)]);
}

pub(crate) fn a_full_set_is_told_and_the_rest_goes_on(lab: &Lab) {
    let plan = Plan { max_elements: 2, ..plan(&["tcp/22"]) };
    let gate = lab.installed(&plan);
    let some: Vec<_> = (2..8)
        .step_by(2)
        .map(|number| Change::Admit {
            element: Element {
                source: Source::host(address(number)),
                ports: "tcp/22".parse().unwrap(),
            },
            seconds: 600,
        })
        .collect();
    gate.apply(&[&some[..2]]);
    let error = gate.try_to_apply(&[&some[2..]]).unwrap_err();
    assert!(error.to_string().contains("full"), "{error}");
    assert_eq!(gate.snapshot().len(), 2);
    gate.apply(&[&[Change::Withdraw { element: some[0].element() }], &some[2..]]);
    assert_eq!(gate.snapshot().len(), 2);
}
