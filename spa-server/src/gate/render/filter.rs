//! Table filter: what the host's own rules must not drop, and the refusals that table mangle can't
//! make.

use super::granted::{self, Grants};
use super::mangle::closed;
use super::{
    ADMIT, FORWARD, GRANTS, INPUT, KEPT, Layout, MARKED, OwnTable, REFUSED, REJECT, SENT,
    SENT_MARK, TableName, held, nat, ports,
};
use crate::gate::types::{Family, Refusal};
use crate::service::{Connections, Target};
use spa_proto::PortRange;
use std::collections::BTreeSet;
use std::num::NonZeroU16;

pub(super) fn table(layout: &Layout<'_>) -> OwnTable {
    let mut own = OwnTable::default();
    let rejects = layout.refusal() == Some(Refusal::Reject);
    let forwarded = nat::forwarded(layout);
    let sent = sent(layout);
    own.add(INPUT, input(layout, rejects, !sent.is_empty()));
    own.jump_from("INPUT", INPUT);
    own.add(ADMIT, admit(layout));
    if let Grants::InRules(rules) = layout.grants {
        own.add(GRANTS, held::of_table(TableName::Filter, layout, rules));
    }
    let forward = forward(layout, rejects, !forwarded.is_empty());
    if !forward.is_empty() {
        own.add(FORWARD, forward);
        own.jump_from("FORWARD", FORWARD);
    }
    let forwarded = forwarded.into_iter().map(|(to, _)| format!("{to} -j ACCEPT"));
    let accepts: Vec<_> = sent.into_iter().chain(forwarded).collect();
    if !accepts.is_empty() {
        let others =
            format!("-m conntrack --ctstate NEW -m connmark ! --mark {SENT_MARK} -j RETURN");
        own.add(SENT, [others].into_iter().chain(accepts).collect());
    }
    if rejects {
        own.add(MARKED, marked(layout));
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

fn input(layout: &Layout<'_>, rejects: bool, sends: bool) -> Vec<String> {
    let mut rules = Vec::new();
    if rejects {
        let armed = layout.armed.condition(layout);
        rules.push(format!("{armed}-m mark --mark {REFUSED} -j {MARKED}"));
        // What was not translated is judged once more below, without any mark.
        rules.push(format!(
            "{armed}-m connmark --mark {REFUSED} -m conntrack --ctstate DNAT -j {MARKED}"
        ));
    }
    if sends {
        rules.push(format!("-m conntrack --ctstate DNAT -j {SENT}"));
    }
    rules.extend(granted::first(TableName::Filter, layout, "-j ACCEPT"));
    let guarded = layout.plan.guarded.iter().map(|guarded| guarded.ports);
    rules.extend(ports::each(guarded, &format!("-g {ADMIT}")));
    rules
}

/// What accepts the connections to other ports of this host that table nat has sent there.
fn sent(layout: &Layout<'_>) -> Vec<String> {
    let sent: BTreeSet<_> = layout
        .served()
        .filter_map(|guarded| match guarded.target {
            Target::LocalPort(to) => Some((guarded.ports, to)),
            Target::Here | Target::Forward(_) => None,
        })
        .collect();
    let accept = |(asked, to): (PortRange, NonZeroU16)| {
        let transport = asked.transport();
        format!(
            "-p {transport} -m {transport} --dport {to} -m conntrack --ctstate DNAT --ctorigdstport {} -j ACCEPT",
            ports::numbers(asked)
        )
    };
    sent.into_iter().map(accept).collect()
}

/// Rejects those of the marked packets that are refused ones, as far as [`admit`] can't tell: what
/// begins anew at a port that is open to nobody or to one connection, or came to a hidden one
/// before it was translated.
///
/// Whose bit the mark is as well, nobody knows. So whatever came to other ports, or belongs to a
/// connection, goes on.
fn marked(layout: &Layout<'_>) -> Vec<String> {
    let untranslated = format!("-m conntrack ! --ctstate DNAT -j {REJECT}");
    let translated = |asked: PortRange| {
        let protocol = ports::protocol(asked.transport());
        format!(
            "-m conntrack --ctstate DNAT --ctproto {protocol} --ctorigdstport {} -j {REJECT}",
            ports::numbers(asked)
        )
    };
    let closed: BTreeSet<_> = closed(layout).into_iter().collect();
    let limited = layout.served().filter(|guarded| guarded.connections == Connections::One);
    let guarded: BTreeSet<_> = layout.plan.guarded.iter().map(|guarded| guarded.ports).collect();

    let mut rules = vec![format!("{KEPT} -j RETURN")];
    rules.extend(ports::each(closed.iter().copied(), &untranslated));
    rules.extend(closed.iter().copied().map(translated));
    rules.extend(layout.always("-j RETURN"));
    rules.extend(ports::each(limited.map(|guarded| guarded.ports), &untranslated));
    rules.extend(guarded.difference(&closed).copied().map(translated));
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

fn forward(layout: &Layout<'_>, rejects: bool, forwards: bool) -> Vec<String> {
    let mut rules = Vec::new();
    if forwards {
        // What else is forwarded doesn't pass a rule for each service.
        rules.push("-m conntrack ! --ctstate DNAT -j RETURN".to_owned());
    }
    if rejects {
        // Only what was translated was to this host at first: the marks of packets that it merely
        // forwards are other people's.
        let armed = layout.armed.condition(layout);
        for mark in ["mark", "connmark"] {
            rules.push(format!(
                "{armed}-m {mark} --mark {REFUSED} -m conntrack --ctstate DNAT -j {MARKED}"
            ));
        }
    }
    if forwards {
        rules.push(format!("-j {SENT}"));
    }
    rules
}
