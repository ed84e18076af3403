//! Table filter: what the host's own rules must not drop, and the refusals that table mangle can't
//! make.

use super::granted::{self, Grants};
use super::{
    ADMIT, FORWARD, GRANTS, INPUT, KEPT, Layout, OwnTable, REFUSED, REJECT, TableName, held, nat,
    ports,
};
use crate::gate::types::{Family, Refusal};
use crate::service::Target;
use std::collections::BTreeSet;

pub(super) fn table(layout: &Layout<'_>) -> OwnTable {
    let mut own = OwnTable::default();
    let rejects = layout.refusal() == Some(Refusal::Reject);
    own.add(INPUT, input(layout, rejects));
    own.jump_from("INPUT", INPUT);
    own.add(ADMIT, admit(layout));
    if let Grants::InRules(rules) = layout.grants {
        own.add(GRANTS, held::of_table(TableName::Filter, layout, rules));
    }
    let forward = forward(layout, rejects);
    if !forward.is_empty() {
        own.add(FORWARD, forward);
        own.jump_from("FORWARD", FORWARD);
    }
    if rejects {
        let unreachable = match layout.family {
            Family::V4 => "icmp-port-unreachable",
            Family::V6 => "icmp6-port-unreachable",
        };
        let rules = vec![
            "-p tcp -j REJECT --reject-with tcp-reset".to_owned(),
            format!("-j REJECT --reject-with {unreachable}"),
        ];
        own.add(REJECT, rules);
    }
    own.cutting(super::cut(layout.family, layout.cut))
}

fn input(layout: &Layout<'_>, rejects: bool) -> Vec<String> {
    let mut rules = Vec::new();
    if rejects {
        rules.push(format!("-m mark --mark {REFUSED} -j {REJECT}"));
    }
    // Only what table nat has sent there, which asks for a grant itself, has both numbers.
    let sent: BTreeSet<_> = layout
        .served()
        .filter_map(|guarded| match guarded.target {
            Target::LocalPort(to) => Some((guarded.ports, to)),
            Target::Here | Target::Forward(_) => None,
        })
        .collect();
    rules.extend(sent.into_iter().map(|(asked, to)| {
        let transport = asked.transport();
        format!(
            "-p {transport} -m {transport} --dport {to} -m conntrack --ctstate DNAT --ctorigdstport {} -j ACCEPT",
            ports::numbers(asked)
        )
    }));
    rules.extend(granted::first(TableName::Filter, layout, "-j ACCEPT"));
    let guarded = layout.plan.guarded.iter().map(|guarded| guarded.ports);
    rules.extend(ports::each(guarded, &format!("-g {ADMIT}")));
    rules
}

fn admit(layout: &Layout<'_>) -> Vec<String> {
    let mut rules = vec![format!("{KEPT} -j ACCEPT")];
    rules.extend(layout.always("-j ACCEPT"));
    rules.extend(granted::rules(TableName::Filter, layout, "-j ACCEPT"));
    // Once more: somebody else's chain in between may have taken the mark off, and an address of
    // this host that isn't in the routing table "local" (a VRF has its own) passed as another
    // host's. What was translated to a guarded port was judged by the port that it had before.
    if let Some(refusal) = layout.refusal() {
        let refuse = if refusal == Refusal::Reject { REJECT } else { "DROP" };
        rules.push("-i lo -j RETURN".to_owned());
        rules.push("-m conntrack --ctstate DNAT -j RETURN".to_owned());
        rules.push(format!("{}-j {refuse}", layout.armed.condition(layout)));
    }
    rules
}

fn forward(layout: &Layout<'_>, rejects: bool) -> Vec<String> {
    let mut rules = Vec::new();
    if rejects {
        // Only what was translated was to this host at first: the marks of packets that it merely
        // forwards are other people's.
        rules.push(format!("-m mark --mark {REFUSED} -m conntrack --ctstate DNAT -j {REJECT}"));
    }
    let forwarded = nat::forwarded(layout);
    if !forwarded.is_empty() {
        // What else is forwarded doesn't pass a rule for each service.
        rules.insert(0, "-m conntrack ! --ctstate DNAT -j RETURN".to_owned());
    }
    rules.extend(forwarded.into_iter().map(|(to, _)| format!("{to} -j ACCEPT")));
    rules
}
