//! The table of the gate as text for `nft`. Pure.
//!
//! [`Ruleset`] is the whole table, made for a plan; the scripts that bring it about are made by
//! [`super::script`]. Ports, targets and networks stand in the rules themselves; only what admits for
//! a time is in sets of its own name, so that rules can be changed and elements live on.
//!
//! # How a packet goes
//!
//! `prerouting` sees every packet before addresses are translated. One to a guarded port of this
//! host goes to `judge`: it is granted (an accept, after which the tables of others see it) or
//! refused there and then, by a drop or by an answer: no mark has to live until later. No rule
//! relies on finding something in a map: a packet that is on its way while the rules are exchanged
//! goes on with the old ones, but finds nothing in their maps any more. `input` judges
//! what came to an address that only a policy route makes local. What is granted and meant for another
//! port or host is translated in `dstnat`, which so sees nothing that isn't granted.

use super::segments::{Segment, segments};
use super::shape::Shape;
use crate::gate::types::{Family, Plan, Refusal};
use crate::service::{Connections, ForwardTo, Target};
use ipnet::IpNet;
use spa_proto::{PortRange, Transport};
use std::collections::BTreeSet;
use std::fmt;

/// Family and name of the table.
pub(super) const TABLE: &str = "inet spa";
/// The chain that no packet goes through: it tells whose the table is, see [`super::listing::Mark`].
pub(super) const MARK: &str = "spa-server";
/// Holds what is still refused, for a gate on trial.
pub(super) const ARMED: &str = "armed";
/// The bit of a connection's mark that says: it is the one that its grant lets in. Beside the bit
/// that the iptables back-ends use for packets that are to be rejected (`0x20000000`).
pub(super) const FIRST: &str = "0x10000000";
/// Destinations at which a packet ends here: all else is merely forwarded, and other hosts'
/// business. A published port of a container is still addressed to this host.
const HERE: &str = "{ local, anycast, broadcast, multicast }";
const KEPT: &str = "ct state established,related accept";

/// A whole table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ruleset {
    pub(super) sets: Vec<Set>,
    pub(super) chains: Vec<Chain>,
}

/// A set; its elements come and go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) name: String,
    /// How many elements it may hold.
    pub(super) size: Option<u32>,
    lines: Vec<String>,
}

/// A chain and its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: String,
    /// Where packets come in; none: from other chains.
    hook: Option<&'static str>,
    pub(super) rules: Vec<String>,
}

impl Ruleset {
    /// The table for a plan. `hidden` are the knock ports to hide, each family's; `shapes` are the
    /// sets to have, with room for `size` elements each.
    pub(super) fn new(
        plan: &Plan,
        hidden: &[(Family, Vec<u16>)],
        shapes: &BTreeSet<Shape>,
        size: u32,
    ) -> Self {
        let parts = Parts { plan, segments: segments(&plan.guarded), shapes };
        let mut sets: Vec<_> = shapes.iter().map(|shape| grants(*shape, size)).collect();
        if plan.trial_seconds.is_some() {
            let lines = ["type inet_proto", "flags timeout"].map(str::to_owned).to_vec();
            sets.push(Set { name: ARMED.to_owned(), size: None, lines });
        }
        let mut chains = vec![parts.refuse()];
        for family in Family::ALL {
            chains.extend(parts.judge(family));
        }
        chains.push(Chain {
            name: "judge".to_owned(),
            hook: None,
            rules: [KEPT, "meta nfproto ipv4 goto judge4", "goto judge6"]
                .map(str::to_owned)
                .to_vec(),
        });
        chains.push(Chain {
            name: "hide".to_owned(),
            hook: None,
            // An answer to a query that this host sent from this port by chance is still let in.
            rules: vec![KEPT.to_owned(), "goto refuse".to_owned()],
        });
        chains.push(parts.prerouting(hidden));
        chains.push(parts.input());
        chains.extend(parts.translations());
        Self { sets, chains }
    }
}

impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {TABLE} {{")?;
        for set in &self.sets {
            block(f, "set", &set.name, set.lines.iter())?;
        }
        for chain in &self.chains {
            let hook = chain.hook.map(str::to_owned);
            block(f, "chain", &chain.name, hook.iter().chain(&chain.rules))?;
        }
        writeln!(f, "}}")
    }
}

fn block<'a>(
    f: &mut fmt::Formatter<'_>,
    what: &str,
    name: &str,
    lines: impl Iterator<Item = &'a String>,
) -> fmt::Result {
    writeln!(f, "\t{what} {name} {{")?;
    for line in lines {
        writeln!(f, "\t\t{line}")?;
    }
    writeln!(f, "\t}}")
}

fn grants(shape: Shape, size: u32) -> Set {
    let mut lines = vec![format!("type {}", shape.key_type()), format!("size {size}")];
    match shape.connections {
        Connections::Any => lines.push("flags timeout".to_owned()),
        Connections::One => {
            lines.push("flags dynamic,timeout".to_owned());
            // Two packets that are looked up at the same instant both find the element; only one
            // of them gets by its limit.
            lines.push("limit rate 1/week burst 1 packets".to_owned());
        }
    }
    Set { name: shape.to_string(), size: Some(size), lines }
}

/// What the chains are made of.
struct Parts<'a> {
    plan: &'a Plan,
    segments: Vec<Segment<'a>>,
    shapes: &'a BTreeSet<Shape>,
}

impl Parts<'_> {
    /// Every refusal of the gate's ends here.
    fn refuse(&self) -> Chain {
        let mut rules = Vec::new();
        if self.plan.trial_seconds.is_some() {
            rules.push(format!("meta l4proto != @{ARMED} accept"));
        }
        rules.extend(refusal(self.plan.refusal).map(str::to_owned));
        Chain { name: "refuse".to_owned(), hook: None, rules }
    }

    /// The chains in which new packets of a family are granted or not.
    fn judge(&self, family: Family) -> Vec<Chain> {
        let mut rules = Vec::new();
        let unserved =
            self.choose(|segment| !segment.guarded.iter().all(|one| serves(&one.target, family)));
        rules.extend(unserved.iter().map(|ports| format!("{ports} goto refuse")));
        rules.extend(always(&self.plan.always_admit, family));
        let once = self.choose(|segment| connections(segment) == Connections::One);
        rules.extend(once.iter().map(|ports| format!("{ports} goto once{}", digit(family))));
        let (any, mut chains) = self.look_up(family, Connections::Any);
        rules.extend(any);
        if !once.is_empty() {
            // A first packet that comes once more belongs to the connection that it began. The mark
            // alone would tell nothing of a packet that begins one: others may set it.
            let mut rules = vec![
                format!("ct state new ct status confirmed ct mark & {FIRST} == {FIRST} accept"),
                "ct state != new goto refuse".to_owned(),
                // A stray packet of an older connection must not use the grant up.
                "tcp flags & (fin | syn | rst | ack) != syn goto refuse".to_owned(),
            ];
            let (one, more) = self.look_up(family, Connections::One);
            rules.extend(one);
            chains.extend(more);
            chains.push(Chain { name: format!("once{}", digit(family)), hook: None, rules });
        }
        chains.push(Chain { name: format!("judge{}", digit(family)), hook: None, rules });
        chains
    }

    /// Rules that accept what is granted, and then refuse; with the chains that they go to.
    fn look_up(&self, family: Family, connects: Connections) -> (Vec<String>, Vec<Chain>) {
        let sets = |range: Option<PortRange>| {
            let fits = move |shape: &&Shape| {
                (shape.family, shape.connections, shape.range) == (family, connects, range)
            };
            // The single addresses, of which there are most, before the networks.
            self.shapes.iter().rev().filter(fits).map(|shape| accept(*shape))
        };
        let mut rules: Vec<_> = sets(None).collect();
        let mut ways = Vec::new();
        let mut chains = Vec::new();
        for segment in self.segments.iter().filter(|one| connections(one) == connects) {
            let mut rules: Vec<_> =
                segment.guarded.iter().flat_map(|one| sets(Some(one.ports))).collect();
            if rules.is_empty() {
                continue;
            }
            rules.push("goto refuse".to_owned());
            let name = format!("ports{}-{}", digit(family), dashed(segment.ports));
            ways.push(format!("{} : goto {name}", concatenated(segment.ports)));
            chains.push(Chain { name, hook: None, rules });
        }
        if !ways.is_empty() {
            rules.push(format!("meta l4proto . th dport vmap {{ {} }}", ways.join(", ")));
        }
        rules.push("goto refuse".to_owned());
        (rules, chains)
    }

    fn prerouting(&self, hidden: &[(Family, Vec<u16>)]) -> Chain {
        let mut rules = Vec::new();
        let guarded = self.choose(|_| true);
        rules.extend(
            guarded
                .iter()
                .map(|ports| format!("{ports} iif != lo fib daddr type {HERE} goto judge")),
        );
        for (family, ports) in hidden {
            let is_service = |port: u16| {
                let port = format!("udp/{port}").parse::<PortRange>();
                port.is_ok_and(|port| self.plan.guarded_at(port).is_some())
            };
            let ports: BTreeSet<_> = ports.iter().filter(|port| !is_service(**port)).collect();
            let ports: Vec<_> = ports.into_iter().map(ToString::to_string).collect();
            if !ports.is_empty() {
                rules.push(format!(
                    "meta nfproto ipv{} udp dport {{ {} }} iif != lo fib daddr type {HERE} goto hide",
                    digit(*family),
                    ports.join(", ")
                ));
            }
        }
        let hook = Some("type filter hook prerouting priority mangle; policy accept;");
        Chain { name: "prerouting".to_owned(), hook, rules }
    }

    /// An address of this host that isn't in the routing table "local" (a VRF has its own) passed
    /// `prerouting` as another host's. What was translated to a guarded port was judged by the port
    /// that it had before.
    fn input(&self) -> Chain {
        let mut rules = vec!["ct status dnat accept".to_owned()];
        let guarded = self.choose(|_| true);
        rules.extend(
            guarded
                .iter()
                .map(|ports| format!("{ports} iif != lo fib daddr type != {HERE} goto judge")),
        );
        let hook = Some("type filter hook input priority filter; policy accept;");
        Chain { name: "input".to_owned(), hook, rules }
    }

    fn translations(&self) -> Vec<Chain> {
        let mut chains = Vec::new();
        let mut ways = Vec::new();
        let mut back: Vec<(Transport, String)> = Vec::new();
        for segment in &self.segments {
            let Some(target) = segment.guarded.first().map(|one| one.target) else { continue };
            let transport = segment.ports.transport();
            let (rules, hosts) = match target {
                Target::Here => continue,
                Target::LocalPort(port) => {
                    (vec![format!("meta l4proto {transport} redirect to :{port}")], Vec::new())
                }
                Target::Forward(forward) => {
                    let ends: Vec<_> = [forward.v4, forward.v6].into_iter().flatten().collect();
                    let rules = ends.iter().map(|end| translate(transport, end)).collect();
                    (rules, if forward.masquerade { ends } else { Vec::new() })
                }
            };
            let name = format!("to-{}", dashed(segment.ports));
            ways.push(format!("{} : goto {name}", concatenated(segment.ports)));
            chains.push(Chain { name, hook: None, rules });
            if !hosts.is_empty() {
                let name = format!("from-{}", dashed(segment.ports));
                let rules = hosts.iter().map(masquerade).collect();
                back.push((transport, format!("{} : goto {name}", numbers(segment.ports))));
                chains.push(Chain { name, hook: None, rules });
            }
        }
        if !ways.is_empty() {
            let mut rules = Vec::new();
            if self.plan.trial_seconds.is_some() {
                // When nothing is refused any more, what comes here need not be granted.
                rules.push(format!("meta l4proto != @{ARMED} accept"));
            }
            rules.push(format!(
                "ct state new iif != lo fib daddr type local meta l4proto . th dport vmap {{ {} }}",
                ways.join(", ")
            ));
            // Before the translations of others, so that they can't take what is ours.
            let hook = Some("type nat hook prerouting priority dstnat - 1; policy accept;");
            chains.push(Chain { name: "dstnat".to_owned(), hook, rules });
        }
        if !back.is_empty() {
            let mut rules = vec!["ct status & dnat == 0 accept".to_owned()];
            for transport in [Transport::Tcp, Transport::Udp] {
                let of_transport = back.iter().filter(|(of, _)| *of == transport);
                let ways: Vec<_> = of_transport.map(|(_, way)| way.as_str()).collect();
                if !ways.is_empty() {
                    rules.push(format!(
                        "meta l4proto {transport} ct original proto-dst vmap {{ {} }}",
                        ways.join(", ")
                    ));
                }
            }
            let hook = Some("type nat hook postrouting priority srcnat - 1; policy accept;");
            chains.push(Chain { name: "srcnat".to_owned(), hook, rules });
        }
        chains
    }

    /// Matches the ports of these segments, each in one or in another way.
    ///
    /// Not in one set of ranges: the kernel fills that a moment after the rules that look into it
    /// are in force.
    fn choose(&self, wanted: impl Fn(&Segment<'_>) -> bool) -> Vec<String> {
        let wanted = self.segments.iter().filter(|segment| wanted(segment));
        let (single, ranges): (Vec<_>, Vec<_>) =
            wanted.map(|segment| segment.ports).partition(|ports| ports.single().is_some());
        let single: Vec<_> = single.into_iter().map(concatenated).collect();
        let mut matches = Vec::new();
        if !single.is_empty() {
            matches.push(format!("meta l4proto . th dport {{ {} }}", single.join(", ")));
        }
        let range = |ports: PortRange| format!("{} dport {}", ports.transport(), numbers(ports));
        matches.extend(ranges.into_iter().map(range));
        matches
    }
}

/// What is said to those whose packets are refused.
pub(super) fn refusal(refusal: Refusal) -> impl Iterator<Item = &'static str> {
    const DROP: &[&str] = &["drop"];
    const REJECT: &[&str] = &["meta l4proto tcp reject with tcp reset", "reject"];
    match refusal {
        Refusal::Drop => DROP,
        Refusal::Reject => REJECT,
    }
    .iter()
    .copied()
}

/// Marked first, used up then: a packet that comes once more is of a connection that is marked.
fn accept(shape: Shape) -> String {
    let key = shape.packet_key();
    match shape.connections {
        Connections::Any => format!("{key} @{shape} accept"),
        Connections::One => format!(
            "{key} @{shape} ct mark set ct mark | {FIRST} delete @{shape} {{ {key} }} accept"
        ),
    }
}

fn always(nets: &[IpNet], family: Family) -> Option<String> {
    let of_family: Vec<_> =
        nets.iter().filter(|net| Family::of(net.addr()) == family).map(IpNet::trunc).collect();
    let nets: Vec<_> = IpNet::aggregate(&of_family).iter().map(ToString::to_string).collect();
    let key = match family {
        Family::V4 => "ip saddr",
        Family::V6 => "ip6 saddr",
    };
    (!nets.is_empty()).then(|| format!("{key} {{ {} }} accept", nets.join(", ")))
}

fn translate(transport: Transport, end: &ForwardTo) -> String {
    let key = if end.address.is_ipv4() { "ip" } else { "ip6" };
    let digit = digit(Family::of(end.address));
    format!("meta nfproto ipv{digit} meta l4proto {transport} dnat {key} to {end}")
}

fn masquerade(end: &ForwardTo) -> String {
    let key = if end.address.is_ipv4() { "ip" } else { "ip6" };
    format!("{key} daddr {} masquerade", end.address)
}

fn serves(target: &Target, family: Family) -> bool {
    match (target, family) {
        (Target::Here | Target::LocalPort(_), _) => true,
        (Target::Forward(forward), Family::V4) => forward.v4.is_some(),
        (Target::Forward(forward), Family::V6) => forward.v6.is_some(),
    }
}

fn connections(segment: &Segment<'_>) -> Connections {
    segment.guarded.first().map(|one| one.connections).unwrap_or_default()
}

pub(super) const fn digit(family: Family) -> char {
    match family {
        Family::V4 => '4',
        Family::V6 => '6',
    }
}

/// `tcp . 22`, `udp . 10000-10100`
fn concatenated(ports: PortRange) -> String {
    format!("{} . {}", ports.transport(), numbers(ports))
}

/// `22`, `10000-10100`
fn numbers(ports: PortRange) -> String {
    match ports.single() {
        Some(port) => port.number.to_string(),
        None => format!("{}-{}", ports.first(), ports.last()),
    }
}

/// `tcp-22`, `udp-10000-10100`
fn dashed(ports: PortRange) -> String {
    format!("{}-{}", ports.transport(), numbers(ports))
}

#[cfg(test)]
mod tests;
