//! Finds the rules of others that set or clear bits of marks which ours use. Pure.

use super::render::{FIRST_BIT, REFUSED_BIT, SENT_BIT, is_own_chain};
use super::saved::{Saved, SavedTable, target};
use super::types::{Family, Mode, Plan, Refusal};
use crate::service::{Connections, Target};
use serde_json::Value;
use std::collections::BTreeSet;

/// The bits that nobody else should touch, for a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Marks {
    /// Those of which our rules make more than they should, if others set them.
    set: Bits,
    /// Those that our rules miss, if others clear them.
    cleared: Bits,
}

/// Bits of both marks there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bits {
    packet: u32,
    connection: u32,
}

impl Bits {
    const fn of(self, kind: Kind) -> u32 {
        match kind {
            Kind::Packet => self.packet,
            Kind::Connection => self.connection,
        }
    }
}

impl Marks {
    /// Those that the rules of iptables for this plan use.
    pub(super) fn of(plan: &Plan) -> Self {
        let opens = plan.mode == Mode::Open;
        let rejects = !opens && plan.refusal == Refusal::Reject;
        let bit = |is_used, bit| if is_used { bit } else { 0 };
        let limits = plan.guarded.iter().any(|one| one.connections == Connections::One);
        let sends = plan.guarded.iter().any(|one| one.target != Target::Here);
        let packet = bit(rejects, REFUSED_BIT);
        // Where table mangle drops it takes the first connection's bit off before anybody sets it,
        // but not at an address that it takes for another host's.
        let connection = packet | bit(limits, FIRST_BIT);
        Self {
            set: Bits { packet, connection: connection | bit(sends && opens, SENT_BIT) },
            cleared: Bits { packet, connection: connection | bit(sends, SENT_BIT) },
        }
    }

    /// The rules of others that touch them, in one variant of iptables, which is ours or the other
    /// one; each a sentence.
    pub(super) fn touched_in_saved(
        self,
        family: Family,
        saved: &Saved,
        is_ours: bool,
    ) -> Vec<String> {
        let mut found = Vec::new();
        for (name, table) in saved.tables() {
            let exposed = Exposed::of(name, table, is_ours);
            for chain in table.chains().filter(|chain| !is_own_chain(chain)) {
                for rule in table.rules(chain) {
                    let Some(mut change) = Change::by_rule(rule) else { continue };
                    change.cleared &= exposed.bits(chain);
                    let place = format!("-A {chain} {rule} (table {name}, {family})");
                    found.extend(self.warnings(change, &place));
                }
            }
        }
        found
    }

    /// The same, in what `nft -j list ruleset` prints; the gate's own chains aside.
    pub(super) fn touched_in_nft(self, json: &str) -> Result<Vec<String>, String> {
        let ruleset: Value = serde_json::from_str(json).map_err(|error| error.to_string())?;
        let objects = ruleset.get("nftables").and_then(Value::as_array).into_iter().flatten();
        let late: BTreeSet<_> = objects
            .clone()
            .filter_map(|object| object.get("chain"))
            .filter(|chain| !is_between(chain))
            .map(|chain| (text(chain, "family"), text(chain, "table"), text(chain, "name")))
            .collect();
        let mut found = Vec::new();
        for rule in objects.filter_map(|object| object.get("rule")) {
            let (family, table, chain) =
                (text(rule, "family"), text(rule, "table"), text(rule, "chain"));
            // Some versions print rules of iptables as if they were those of nftables.
            let is_iptables = matches!(family, "ip" | "ip6");
            if (family, table) == ("inet", "spa") || is_iptables && is_own_chain(chain) {
                continue;
            }
            let statements = rule.get("expr").and_then(Value::as_array).into_iter().flatten();
            for statement in statements.filter_map(|statement| statement.get("mangle")) {
                let Some(mut change) = Change::by_statement(statement) else { continue };
                if late.contains(&(family, table, chain)) {
                    change.cleared = 0;
                }
                let place = format!("chain {chain} of nft table {family} {table}");
                found.extend(self.warnings(change, &place));
            }
        }
        found.dedup();
        Ok(found)
    }

    fn warnings(self, change: Change, place: &str) -> impl Iterator<Item = String> {
        let what = match change.kind {
            Kind::Packet => "packet",
            Kind::Connection => "connection",
        };
        let sentence = |does: &str, bits: u32, harms: &[(u32, &str)], advice: &str| {
            let harms: Vec<_> =
                harms.iter().filter(|(of, _)| bits & of != 0).map(|(_, harm)| *harm).collect();
            (bits != 0).then(|| {
                format!(
                    "{place} {does} bits of the {what} mark that the gate uses ({bits:#x}): {}; {advice}",
                    harms.join("; ")
                )
            })
        };
        let set = change.set & self.set.of(change.kind);
        let cleared = change.cleared & self.cleared.of(change.kind);
        [
            sentence("sets", set, &IF_SET, "have it use others"),
            sentence("clears", cleared, &IF_CLEARED, "give it a mask that leaves them alone"),
        ]
        .into_iter()
        .flatten()
    }
}

/// What comes of bits that are set, by bits.
const IF_SET: [(u32, &str); 2] = [
    (
        REFUSED_BIT,
        "what it marks may be rejected at knock ports, at guarded ports that are translated, and at ports with connections = 1",
    ),
    (
        FIRST_BIT | SENT_BIT,
        "what it marks may be let in without a grant where connections = 1, local-port or forward is set",
    ),
];

/// What comes of bits that are cleared.
const IF_CLEARED: [(u32, &str); 3] = [
    (
        FIRST_BIT,
        "where it applies, services with connections = 1 may let nobody in, though the grant is used up",
    ),
    (
        REFUSED_BIT,
        "what is refused at published ports, or at ports that are translated, may not be rejected",
    ),
    (SENT_BIT, "what local-port and forward lead on may be lost"),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Packet,
    Connection,
}

/// What a rule does to a mark, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Change {
    kind: Kind,
    /// The bits that are set then, whatever was there.
    set: u32,
    /// The bits that may be gone then.
    cleared: u32,
}

impl Change {
    /// Of a rule of iptables: `-j MARK --set-xmark 0x1/0xffffffff`.
    fn by_rule(rule: &str) -> Option<Self> {
        let target = target(rule)?;
        if !matches!(target, "MARK" | "CONNMARK") {
            return None;
        }
        // The options of a target stand behind it; in a comment there may be anything.
        let (_, options) = rule.rsplit_once(&format!("-j {target}"))?;
        let value = |name| {
            let mut words = options.split(' ');
            words.find(|word| *word == name).and_then(|_| words.next())
        };
        let mask = |name| value(name).or_else(|| value("--mask")).map_or(Some(u32::MAX), number);
        let has = |name| options.split(' ').any(|word| word == name);
        let kind = if target == "MARK" { Kind::Packet } else { Kind::Connection };
        if let Some(value) = value("--set-xmark") {
            let (set, mask) = value.split_once('/').unwrap_or((value, "0xffffffff"));
            let (set, mask) = (number(set)?, number(mask)?);
            // What is in the mask is cleared first; what is in the value is turned over then.
            Some(Self { kind, set, cleared: mask ^ set })
        } else if target == "CONNMARK" && has("--save-mark") {
            Some(Self { kind, set: 0, cleared: mask("--ctmask")? })
        } else if target == "CONNMARK" && has("--restore-mark") {
            Some(Self { kind: Kind::Packet, set: 0, cleared: mask("--nfmask")? })
        } else {
            None
        }
    }

    /// Of a statement of nftables: `ct mark set ct mark or 0x1`.
    fn by_statement(statement: &Value) -> Option<Self> {
        let key = statement.get("key")?;
        let is_mark = |of| key.get(of).is_some_and(|key| text(key, "key") == "mark");
        let kind = match (is_mark("meta"), is_mark("ct")) {
            (true, _) => Kind::Packet,
            (_, true) => Kind::Connection,
            _ => return None,
        };
        let value = statement.get("value")?;
        Some(Self { kind, set: set_by(value), cleared: cleared_by(value, key) })
    }
}

fn number(text: &str) -> Option<u32> {
    u32::from_str_radix(text.trim_start_matches("0x"), 16).ok()
}

fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The bits that a value of nftables is known to have: a number, or that besides others.
fn set_by(value: &Value) -> u32 {
    match (as_number(value), operands(value, "|")) {
        (Some(number), _) => number,
        (None, Some(parts)) => parts.iter().map(set_by).fold(0, |all, bits| all | bits),
        (None, None) => 0,
    }
}

/// The bits that a value of nftables may lack, though the mark of this key had them before.
fn cleared_by(value: &Value, key: &Value) -> u32 {
    let of = |part: &Value| cleared_by(part, key);
    if let Some(number) = as_number(value) {
        !number
    } else if let Some(parts) = operands(value, "|") {
        parts.iter().map(of).fold(u32::MAX, |all, bits| all & bits)
    } else if let Some(parts) = operands(value, "&") {
        parts.iter().map(of).fold(0, |all, bits| all | bits)
    } else if let Some(parts) = operands(value, "^") {
        parts
            .iter()
            .map(|part| as_number(part).unwrap_or_else(|| of(part)))
            .fold(0, |all, bits| all | bits)
    } else if value == key {
        0
    } else {
        u32::MAX
    }
}

fn as_number(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|number| u32::try_from(number).ok())
}

fn operands<'a>(value: &'a Value, operator: &str) -> Option<&'a Vec<Value>> {
    value.get(operator).and_then(Value::as_array)
}

/// Where in a table of iptables marks of ours can be cleared between our rule that sets them and
/// the one that asks for them.
struct Exposed<'a> {
    /// The chains where every bit can be.
    all: BTreeSet<&'a str>,
    /// Those where only what belongs to accepted packets can be: table mangle accepts what it
    /// marks as refused, so that it sees no further rule of that table and hook.
    accepted: BTreeSet<&'a str>,
}

impl<'a> Exposed<'a> {
    /// Ours stand first in each chain, but not before the other variant's.
    fn of(name: &str, table: &'a SavedTable, is_ours: bool) -> Self {
        let (all, accepted): (&[_], &[_]) = match (name, is_ours) {
            ("mangle", true) => (&["INPUT", "FORWARD"], &["PREROUTING"]),
            ("mangle", false) => (&["PREROUTING", "INPUT", "FORWARD"], &[]),
            ("nat", _) => (&["PREROUTING"], &[]),
            ("filter", false) => (&["INPUT", "FORWARD"], &[]),
            _ => (&[], &[]),
        };
        Self { all: reached(table, all), accepted: reached(table, accepted) }
    }

    fn bits(&self, chain: &str) -> u32 {
        if self.all.contains(chain) {
            u32::MAX
        } else if self.accepted.contains(chain) {
            !REFUSED_BIT
        } else {
            0
        }
    }
}

/// These chains, and those that they lead to.
fn reached<'a>(table: &'a SavedTable, from: &[&'a str]) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut next = from.to_vec();
    while let Some(chain) = next.pop() {
        if reached.insert(chain) {
            let targets = table.rules(chain).iter().filter_map(|rule| target(rule));
            next.extend(targets.filter(|to| table.has_chain(to)));
        }
    }
    reached
}

/// Whether a chain of nftables may come between table mangle's PREROUTING and table filter. One
/// that isn't a base chain may be jumped to from anywhere.
fn is_between(chain: &Value) -> bool {
    let priority = chain.get("prio").and_then(Value::as_i64).unwrap_or_default();
    match text(chain, "hook") {
        "" => true,
        "prerouting" => priority >= -150,
        "input" | "forward" => priority <= 0,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
