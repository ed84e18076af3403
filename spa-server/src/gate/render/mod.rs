//! The rules of the gate as text for `iptables-restore`. Pure.
//!
//! A table of ours is described whole ([`OwnTable`]); [`transition`] finds the batch that turns
//! what is there into what is wanted, and none if there is nothing to do. Rules are written just
//! as `iptables-save` prints them, so that the two can be compared.
//!
//! The skeleton of the rules is the same wherever grants are held. What asks "is it granted?" is
//! made in `granted`, and looks into sets or at a chain of rules.

mod cut;
mod filter;
mod granted;
mod held;
mod mangle;
mod nat;
mod ports;

pub use cut::{CutRule, cut};
pub use granted::{Armed, Grants};
pub use held::{HeldRule, exchange, held, held_in, holds_grants, is_held, read_held, rule_in};
pub use mangle::{DISCARD_TRACK, armed_until, judges, refusal_in, track};

use super::saved::{SavedTable, target};
use super::types::{Family, Guarded, Mode, Plan, Refusal};
use ipnet::IpNet;
use std::collections::BTreeSet;

/// In table mangle: which packets are judged.
const GUARD: &str = "SPA-GUARD";
/// In table mangle: established, granted, or refused.
const JUDGE: &str = "SPA-JUDGE";
/// In table mangle: the same, where a grant lets in one connection.
const ONCE: &str = "SPA-ONCE";
/// In table mangle: marks the one connection.
const FIRST: &str = "SPA-FIRST";
/// In table mangle: what happens to refused packets.
const REFUSE: &str = "SPA-REFUSE";
/// In table mangle, during an installation: keeps connection tracking on.
const TRACK: &str = "SPA-TRACK";
/// Where there are no sets, in each table: a rule for each grant.
const GRANTS: &str = "SPA-GRANTS";
/// In table nat: which packets are sent elsewhere.
const NAT: &str = "SPA-NAT";
/// In table nat: to where.
const TARGET: &str = "SPA-TARGET";
/// In table nat: which get this host's address as their source.
const MASQUERADE: &str = "SPA-MASQUERADE";
/// In table filter: what the host's own rules must not drop.
const INPUT: &str = "SPA-INPUT";
/// In table filter: the same for one guarded port, and the second refusal.
const ADMIT: &str = "SPA-ADMIT";
/// In table filter: what is forwarded by the gate, or was refused and then translated.
const FORWARD: &str = "SPA-FORWARD";
/// In table filter: accepts what table nat has sent elsewhere.
const SENT: &str = "SPA-SENT";
/// In table filter: which of the marked packets are refused ones.
const MARKED: &str = "SPA-MARKED";
/// In table filter: the answer of a closed port.
const REJECT: &str = "SPA-REJECT";
/// In table filter: connections that are being cut.
const CUT: &str = "SPA-CUT";
/// Every chain that is ours. No other is ever touched.
const OWN_CHAINS: [&str; 17] = [
    GUARD, JUDGE, ONCE, FIRST, REFUSE, TRACK, GRANTS, NAT, TARGET, MASQUERADE, INPUT, ADMIT,
    FORWARD, SENT, MARKED, REJECT, CUT,
];

/// The mark of a refused packet, and of its connection, on the way from the judgement in table mangle, the only
/// one before address translation, to table filter, the only one that can send a reset.
///
/// The bit may be somebody else's as well. It alone refuses nothing: the packet must begin
/// something new, at a port that the gate hides.
const REFUSED: &str = "0x20000000/0x20000000";
/// Takes [`REFUSED`] off.
const NOT_REFUSED: &str = "0x0/0x20000000";
/// The connection mark of the one connection that a grant let in.
///
/// It is set before the grant is taken away: so a repeated first packet, which belongs to the same
/// connection and still opens it, passes. Two first packets that two processors handle at the same
/// instant may both find the grant, and then both pass. Whoever else has set the bit on a
/// connection before it was let in has it taken off again, before it is asked for.
const FIRST_MARK: &str = "0x10000000/0x10000000";
/// Takes [`FIRST_MARK`] off.
const NO_FIRST_MARK: &str = "0x0/0x10000000";
/// The connection mark of what table nat has sent elsewhere.
///
/// It is asked for when a connection begins and not later: programs that keep marks of their own
/// may take it off.
const SENT_MARK: &str = "0x40000000/0x40000000";

/// The bit of [`REFUSED`].
pub(super) const REFUSED_BIT: u32 = 0x2000_0000;
/// The bit of [`FIRST_MARK`].
pub(super) const FIRST_BIT: u32 = 0x1000_0000;
/// The bit of [`SENT_MARK`].
pub(super) const SENT_BIT: u32 = 0x4000_0000;

/// The order in which tables are brought to a gate that refuses so: what marks a packet must not be
/// there before what rejects a marked one is, nor stay longer.
pub const fn order(refusal: Refusal) -> [TableName; 3] {
    match refusal {
        Refusal::Reject => [TableName::Nat, TableName::Filter, TableName::Mangle],
        Refusal::Drop => [TableName::Nat, TableName::Mangle, TableName::Filter],
    }
}

/// From which built-in chains chains of ours are jumped to; of one built-in chain in this order.
const JUMPS: [(&str, &str); 8] = [
    ("PREROUTING", GUARD),
    ("PREROUTING", NAT),
    ("POSTROUTING", MASQUERADE),
    ("INPUT", CUT),
    ("INPUT", INPUT),
    ("FORWARD", CUT),
    ("FORWARD", FORWARD),
    ("OUTPUT", CUT),
];

/// What belongs to a connection that has been let in.
const KEPT: &str = "-m conntrack --ctstate RELATED,ESTABLISHED";

/// A table that holds chains of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TableName {
    /// Sends granted packets elsewhere.
    Nat,
    /// Judges before address translation.
    Mangle,
    /// Accepts and rejects.
    Filter,
}

impl TableName {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Nat, Self::Mangle, Self::Filter];

    /// The kernel's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Mangle => "mangle",
            Self::Filter => "filter",
        }
    }
}

/// What the rules of a family are made from.
#[derive(Debug, Clone, Copy)]
pub struct Layout<'a> {
    /// IPv4 or IPv6.
    pub family: Family,
    /// What is guarded.
    pub plan: &'a Plan,
    /// The knock ports of the plan that no service uses.
    pub knock_ports: &'a [u16],
    /// Where grants are held.
    pub grants: Grants<'a>,
    /// While what holds the gate refuses.
    pub armed: Armed,
    /// The connections that are being cut, of any family.
    pub cut: &'a [CutRule],
}

impl Layout<'_> {
    /// How the gate refuses, if it does.
    const fn refusal(&self) -> Option<Refusal> {
        match self.plan.mode {
            Mode::Guard => Some(self.plan.refusal),
            Mode::Open => None,
        }
    }

    /// What is guarded, and who answers there over this family.
    fn served(&self) -> impl Iterator<Item = &Guarded> {
        self.plan.guarded.iter().filter(|guarded| self.serves(guarded))
    }

    fn serves(&self, guarded: &Guarded) -> bool {
        guarded.target.serves(match self.family {
            Family::V4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        })
    }

    /// Rules for those who need no grant.
    fn always(&self, verdict: &str) -> impl Iterator<Item = String> {
        let networks: BTreeSet<_> = self
            .plan
            .always_admit
            .iter()
            .map(IpNet::trunc)
            .filter(|net| self.is_of(*net))
            .collect();
        networks.into_iter().map(move |net| format!("{}{verdict}", from(net)))
    }

    const fn is_of(&self, net: IpNet) -> bool {
        matches!((self.family, net), (Family::V4, IpNet::V4(_)) | (Family::V6, IpNet::V6(_)))
    }
}

/// Whether a chain of this name is ours.
pub(super) fn is_own_chain(name: &str) -> bool {
    OWN_CHAINS.contains(&name)
}

/// `-s 192.0.2.0/24 `, and nothing for all addresses there are, as `iptables-save` has it.
fn from(net: IpNet) -> String {
    if net.prefix_len() == 0 { String::new() } else { format!("-s {net} ") }
}

/// What the plan wants in a table.
pub fn wanted(table: TableName, layout: &Layout<'_>) -> OwnTable {
    match table {
        TableName::Nat => nat::table(layout),
        TableName::Mangle => mangle::table(layout),
        TableName::Filter => filter::table(layout),
    }
}

/// All that is ours in one table of one family.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OwnTable {
    /// Our chains, each with its rules.
    chains: Vec<(&'static str, Vec<String>)>,
    /// From which built-in chains ours are jumped to, before all else, in this order.
    jumps: Vec<(&'static str, &'static str)>,
}

impl OwnTable {
    /// What is ours in a table as it stands, to come back to it later.
    pub fn of(saved: &SavedTable) -> Self {
        let chains: Vec<_> = OWN_CHAINS
            .into_iter()
            .filter(|chain| saved.has_chain(chain))
            .map(|chain| (chain, saved.rules(chain).to_vec()))
            .collect();
        let jumps =
            JUMPS.into_iter().filter(|(from, to)| saved.rules(from).contains(&jump(to))).collect();
        Self { chains, jumps }
    }

    fn add(&mut self, chain: &'static str, rules: Vec<String>) {
        self.chains.push((chain, rules));
    }

    fn jump_from(&mut self, from: &'static str, to: &'static str) {
        self.jumps.push((from, to));
    }

    /// The same, but with these rules for connections that are being cut.
    pub fn cutting(mut self, rules: Vec<String>) -> Self {
        self.chains.retain(|(chain, _)| *chain != CUT);
        self.jumps.retain(|(_, to)| *to != CUT);
        if !rules.is_empty() {
            self.add(CUT, rules);
            let jumps = JUMPS.into_iter().filter(|(_, to)| *to == CUT);
            self.jumps.splice(0..0, jumps);
        }
        self
    }

    /// The rules for connections that are being cut, as they stand.
    pub fn cuts(&self) -> Vec<String> {
        let cut = self.chains.iter().find(|(chain, _)| *chain == CUT);
        cut.map(|(_, rules)| rules.clone()).unwrap_or_default()
    }

    /// Names what is missing in a table, if anything: a chain, a rule, or our place before all
    /// else. Only the number of rules counts, since versions of the tools print them differently.
    pub fn missing_in(&self, saved: &SavedTable) -> Option<String> {
        for (chain, rules) in &self.chains {
            let found = saved.rules(chain).len();
            if !saved.has_chain(chain) || found != rules.len() {
                return Some(format!("chain {chain} has {found} rules of {}", rules.len()));
            }
        }
        self.displaced_in(saved)
            .map(|(from, to)| format!("{from} doesn't begin with a jump to {to}"))
    }

    /// What differs in a table, all of it but grants, as an administrator would call it.
    pub fn differences(&self, family: Family, table: TableName, saved: &SavedTable) -> Vec<String> {
        let place = format!("of {} ({family})", table.as_str());
        let mut differences = Vec::new();
        for (chain, rules) in &self.chains {
            let lasting = |rules: &[String]| -> Vec<String> {
                rules.iter().filter(|rule| *chain != GRANTS || !is_held(rule)).cloned().collect()
            };
            let (found, rules) = (lasting(saved.rules(chain)), lasting(rules));
            if !saved.has_chain(chain) {
                differences.push(format!("chain {chain} {place} is missing"));
            } else if found.len() != rules.len() {
                let (found, all) = (found.len(), rules.len());
                differences.push(format!("chain {chain} {place} has {found} rules of {all}"));
            } else if found != rules {
                differences.push(format!("chain {chain} {place} has other rules"));
            }
        }
        let displaced = self.displaced_in(saved);
        differences.extend(
            displaced.map(|(from, to)| {
                format!("chain {from} {place} doesn't begin with a jump to {to}")
            }),
        );
        for chain in OWN_CHAINS.into_iter().filter(|chain| saved.has_chain(chain)) {
            if !self.has(chain) {
                differences.push(format!("chain {chain} {place} is one too many"));
            }
        }
        differences
    }

    fn has(&self, chain: &str) -> bool {
        self.chains.iter().any(|(name, _)| *name == chain)
    }

    fn jumps_from<'a>(&'a self, from: &'a str) -> impl Iterator<Item = &'static str> {
        self.jumps.iter().filter(move |(of, _)| *of == from).map(|(_, to)| *to)
    }

    /// The first jump that isn't where it has to be.
    fn displaced_in(&self, saved: &SavedTable) -> Option<(&'static str, &'static str)> {
        let sources: BTreeSet<_> = self.jumps.iter().map(|(from, _)| *from).collect();
        sources.into_iter().find_map(|from| {
            let mut rules = saved.rules(from).iter();
            self.jumps_from(from).find(|to| rules.next() != Some(&jump(to))).map(|to| (from, to))
        })
    }
}

fn jump(to: &str) -> String {
    format!("-j {to}")
}

/// The batch that turns what is ours in a table into what is wanted; none if it is that already.
///
/// `:CHAIN` makes a chain or empties it, also with `--noflush`: it is only ever said of ours.
pub fn transition(table: TableName, saved: &SavedTable, wanted: &OwnTable) -> Option<String> {
    let stale: Vec<_> = OWN_CHAINS
        .into_iter()
        .filter(|chain| saved.has_chain(chain) && !wanted.has(chain))
        .collect();
    let is_to_stale = |rule: &String| target(rule).is_some_and(|to| stale.contains(&to));
    let different: Vec<_> = wanted
        .chains
        .iter()
        .filter(|(chain, rules)| !saved.has_chain(chain) || saved.rules(chain) != rules)
        .collect();

    let mut lines = Vec::new();
    lines.extend(different.iter().map(|(chain, _)| format!(":{chain} - [0:0]")));
    for (chain, rules) in &different {
        lines.extend(rules.iter().map(|rule| format!("-A {chain} {rule}")));
    }
    for from in JUMPS.map(|(from, _)| from).into_iter().collect::<BTreeSet<_>>() {
        let is_ours =
            |rule: &&String| JUMPS.iter().any(|(of, to)| *of == from && **rule == jump(to));
        let staying = || saved.rules(from).iter().filter(|rule| !is_to_stale(rule));
        let ours: Vec<_> = staying().filter(is_ours).collect();
        let want: Vec<_> = wanted.jumps_from(from).map(jump).collect();
        if ours.len() == want.len() && staying().zip(&want).all(|(rule, jump)| rule == jump) {
            continue;
        }
        lines.extend(ours.iter().map(|rule| format!("-D {from} {rule}")));
        lines.extend(want.iter().zip(1..).map(|(jump, place)| format!("-I {from} {place} {jump}")));
    }
    // A rule of anybody's that goes to a chain of ours can't stay when the chain goes.
    for chain in saved.chains().filter(|chain| !OWN_CHAINS.contains(chain)) {
        let rules = saved.rules(chain).iter().filter(|rule| is_to_stale(rule));
        lines.extend(rules.map(|rule| format!("-D {chain} {rule}")));
    }
    lines.extend(stale.iter().map(|chain| format!("-F {chain}")));
    lines.extend(stale.iter().map(|chain| format!("-X {chain}")));

    if lines.is_empty() {
        return None;
    }
    Some(format!("*{}\n{}\nCOMMIT\n", table.as_str(), lines.join("\n")))
}

#[cfg(test)]
mod shapes;
#[cfg(test)]
mod tests;
