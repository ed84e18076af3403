//! Table mangle: the judgement, by the port that was asked for, before any address translation.

use super::granted::{self, Grants};
use super::held;
use super::{
    FIRST, FIRST_MARK, GRANTS, GUARD, JUDGE, KEPT, Layout, NO_FIRST_MARK, NOT_REFUSED, ONCE,
    OwnTable, REFUSE, REFUSED, TRACK, TableName, ports,
};
use crate::gate::foreign::saved_ports;
use crate::gate::saved::{SavedTable, target};
use crate::gate::types::{Connection, Family, Refusal};
use crate::service::Connections;
use spa_proto::{Port, PortRange, Transport};
use std::num::NonZeroU16;

pub(super) fn table(layout: &Layout<'_>) -> OwnTable {
    let of = |wanted: Connections| {
        layout.served().filter(move |one| one.connections == wanted).map(|one| one.ports)
    };
    let limited = of(Connections::One).next().is_some();
    let refusal = layout.refusal();
    let mut own = OwnTable::default();
    if refusal.is_none() && !limited {
        return own;
    }
    // Forwarded packets are other hosts' business, but those to a published port of a container
    // are still addressed to this one; broadcasts and the like end here, too. In the IPv6 match
    // MULTICAST would have to be met *besides* one of the others (xt_addrtype.c).
    let elsewhere = match layout.family {
        Family::V4 => "-m addrtype ! --dst-type LOCAL,BROADCAST,MULTICAST -j RETURN",
        Family::V6 => "! -d ff00::/8 -m addrtype ! --dst-type LOCAL,ANYCAST -j RETURN",
    };
    // All further ways are without return: a RETURN ends the judgement.
    let mut guard = vec!["-i lo -j RETURN".to_owned(), elsewhere.to_owned()];
    if refusal.is_some() {
        guard.extend(ports::each(of(Connections::Any), &format!("-g {JUDGE}")));
    }
    guard.extend(ports::each(of(Connections::One), &format!("-g {ONCE}")));
    if refusal.is_some() {
        // An answer to a query that this host sent from this port by chance is still let in.
        let refuse = format!("-m conntrack ! --ctstate RELATED,ESTABLISHED -j {REFUSE}");
        guard.extend(ports::each(closed(layout), &refuse));
    }
    own.add(GUARD, guard);
    own.jump_from("PREROUTING", GUARD);
    if refusal.is_some() {
        own.add(JUDGE, judge(layout));
    }
    if limited {
        own.add(ONCE, once(layout));
    }
    if let Grants::InRules(rules) = layout.grants {
        let mut grants = held::of_table(TableName::Mangle, layout, rules);
        grants.extend(refusal.map(|_| format!("-j {REFUSE}")));
        own.add(GRANTS, grants);
        if limited {
            own.add(FIRST, vec![format!("-j CONNMARK --set-xmark {FIRST_MARK}")]);
        }
    }
    if let Some(refusal) = refusal {
        let condition = layout.armed.condition(layout);
        let verdicts = match refusal {
            Refusal::Drop => vec!["-j DROP".to_owned()],
            // The accept ends the way through table mangle: no later rule there can take the mark
            // off. Chains elsewhere can (that of wg-quick gives a packet the mark of its
            // connection), so the connection is marked as well.
            Refusal::Reject => vec![
                format!("-j CONNMARK --set-xmark {REFUSED}"),
                format!("-j MARK --set-xmark {REFUSED}"),
                "-j ACCEPT".to_owned(),
            ],
        };
        own.add(REFUSE, verdicts.into_iter().map(|verdict| condition.clone() + &verdict).collect());
    }
    own
}

/// What is let in for nobody: knock ports, and ports of services that aren't there over this
/// family.
pub(super) fn closed(layout: &Layout<'_>) -> Vec<PortRange> {
    let unserved =
        layout.plan.guarded.iter().filter(|one| !layout.serves(one)).map(|one| one.ports);
    let knocks = layout
        .knock_ports
        .iter()
        .filter_map(|port| NonZeroU16::new(*port))
        .map(|number| Port { transport: Transport::Udp, number })
        .filter(|port| !layout.plan.guarded.iter().any(|guarded| guarded.ports.contains(*port)))
        .map(PortRange::from);
    unserved.chain(knocks).collect()
}

/// How every judgement begins.
fn kept(layout: &Layout<'_>) -> Vec<String> {
    let mut rules = vec![format!("{KEPT} -j RETURN")];
    if layout.refusal() == Some(Refusal::Reject) {
        // It may be another's, or of a packet that came before the grant.
        rules.push(format!("-j CONNMARK --set-xmark {NOT_REFUSED}"));
    }
    rules
}

fn judge(layout: &Layout<'_>) -> Vec<String> {
    let mut rules = kept(layout);
    rules.extend(layout.always("-j RETURN"));
    rules.extend(match layout.grants {
        Grants::InSets => {
            let mut rules = granted::rules(TableName::Mangle, layout, "-j RETURN");
            rules.push(format!("-j {REFUSE}"));
            rules
        }
        // The refusal stands at the end there.
        Grants::InRules(_) => vec![format!("-g {GRANTS}")],
    });
    rules
}

fn once(layout: &Layout<'_>) -> Vec<String> {
    let first = format!("-m connmark --mark {FIRST_MARK} -j RETURN");
    let refuse = match layout.refusal() {
        Some(_) => format!("-j {REFUSE}"),
        None => "-j RETURN".to_owned(),
    };
    let mut rules = kept(layout);
    rules.extend(layout.always("-j RETURN"));
    // A connection that nobody has let in yet can't be the one that a grant let in.
    rules.push(format!(
        "-m conntrack ! --ctstatus CONFIRMED -j CONNMARK --set-xmark {NO_FIRST_MARK}"
    ));
    rules.push(first.clone());
    // What opens no connection, a stray or a probe, uses no grant up.
    rules.push(format!("-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN {refuse}"));
    match layout.grants {
        Grants::InSets => {
            rules.extend(granted::consume(layout));
            rules.push(first);
            rules.push(refuse);
        }
        Grants::InRules(_) => rules.push(format!("-g {GRANTS}")),
    }
    rules
}

/// The batch that turns on connection tracking and changes nothing else, or none if rules of ours
/// have turned it on already.
pub fn track(saved: &SavedTable) -> Option<String> {
    let tracks = [JUDGE, ONCE]
        .into_iter()
        .flat_map(|chain| saved.rules(chain))
        .any(|rule| rule.contains("--ctstate"));
    (!tracks).then(|| format!("*mangle\n:{TRACK} - [0:0]\n-A {TRACK} {KEPT} -j RETURN\nCOMMIT\n"))
}

/// Ends a batch of [`track`], when other rules track.
pub const DISCARD_TRACK: &str = "*mangle\n:SPA-TRACK - [0:0]\n-X SPA-TRACK\nCOMMIT\n";

/// Whether the rules there judge the packets of a connection.
pub fn judges(saved: &SavedTable, connection: &Connection) -> bool {
    let transport = format!("-p {} ", connection.transport);
    let port = connection.local.port();
    let names_port = |rule: &String| {
        let mut ports = Vec::new();
        saved_ports(rule, &mut ports);
        ports.iter().any(|(first, last)| (*first..=*last).contains(&port))
    };
    track(saved).is_none()
        && saved.rules(GUARD).iter().any(|rule| {
            matches!(target(rule), Some(JUDGE | ONCE))
                && rule.starts_with(&transport)
                && names_port(rule)
        })
}

/// How the rules there refuse.
pub fn refusal_in(saved: &SavedTable) -> Refusal {
    let marks = saved.rules(REFUSE).iter().any(|rule| target(rule) == Some("MARK"));
    if marks { Refusal::Reject } else { Refusal::Drop }
}

/// Until which second the rules there refuse, if they say so themselves.
pub fn armed_until(saved: &SavedTable) -> Option<u64> {
    saved.rules(REFUSE).first().and_then(|rule| held::read_datestop(rule))
}
