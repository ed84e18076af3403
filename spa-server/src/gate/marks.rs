//! Finds the rules of others that set bits of marks which ours use. Pure.

use super::render::{FIRST_BIT, REFUSED_BIT, SENT_BIT, is_own_chain};
use super::saved::{Saved, target};
use super::types::{Family, Mode, Plan, Refusal};
use crate::service::{Connections, Target};
use serde_json::Value;

/// The bits that nobody else should set, for a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Marks {
    /// Of the marks of packets.
    packet: u32,
    /// Of the marks of connections.
    connection: u32,
}

impl Marks {
    /// Those of which rules of iptables for this plan make more than they should, if others set
    /// them: where the gate drops in table mangle, before anybody else, a mark tells nothing.
    pub(super) fn of(plan: &Plan) -> Self {
        let opens = plan.mode == Mode::Open;
        let rejects = !opens && plan.refusal == Refusal::Reject;
        let bit = |is_used, bit| if is_used { bit } else { 0 };
        let limits = plan.guarded.iter().any(|one| one.connections == Connections::One);
        let sends = plan.guarded.iter().any(|one| one.target != Target::Here);
        Self {
            packet: bit(rejects, REFUSED_BIT),
            connection: bit(limits && (opens || rejects), FIRST_BIT)
                | bit(sends && opens, SENT_BIT),
        }
    }

    /// The rules of others that set them, in one variant of iptables; each a sentence.
    pub(super) fn set_in_saved(self, family: Family, saved: &Saved) -> Vec<String> {
        let mut found = Vec::new();
        for (name, table) in saved.tables() {
            for chain in table.chains().filter(|chain| !is_own_chain(chain)) {
                for rule in table.rules(chain) {
                    let Some((kind, bits)) = set_by(rule) else { continue };
                    let place = format!("-A {chain} {rule} (table {name}, {family})");
                    found.extend(self.warning(kind, bits, &place));
                }
            }
        }
        found
    }

    /// The same, in what `nft -j list ruleset` prints; the gate's own table aside.
    pub(super) fn set_in_nft(self, json: &str) -> Result<Vec<String>, String> {
        let ruleset: Value = serde_json::from_str(json).map_err(|error| error.to_string())?;
        let objects = ruleset.get("nftables").and_then(Value::as_array).into_iter().flatten();
        let mut found = Vec::new();
        for rule in objects.filter_map(|object| object.get("rule")) {
            let text = |key| rule.get(key).and_then(Value::as_str).unwrap_or_default();
            let (family, table, chain) = (text("family"), text("table"), text("chain"));
            let statements = rule.get("expr").and_then(Value::as_array).into_iter().flatten();
            for statement in statements.filter_map(|statement| statement.get("mangle")) {
                let is_mark = |of| {
                    statement.pointer(&format!("/key/{of}/key")).and_then(Value::as_str)
                        == Some("mark")
                };
                let kind = match (is_mark("meta"), is_mark("ct")) {
                    (true, _) => Kind::Packet,
                    (_, true) => Kind::Connection,
                    _ => continue,
                };
                let bits = statement.get("value").map_or(0, set_by_value);
                let place = format!("chain {chain} of nft table {family} {table}");
                if (family, table) != ("inet", "spa") {
                    found.extend(self.warning(kind, bits, &place));
                }
            }
        }
        found.dedup();
        Ok(found)
    }

    fn warning(self, kind: Kind, bits: u32, place: &str) -> Option<String> {
        let (what, ours, harm) = match kind {
            Kind::Packet => (
                "packet",
                self.packet,
                "what it marks may be rejected at knock ports, and at guarded ports that are translated",
            ),
            Kind::Connection => (
                "connection",
                self.connection,
                "what it marks may be let in without a grant where connections = 1, local-port or forward is set",
            ),
        };
        (bits & ours != 0).then(|| {
            format!(
                "{place} sets bits of the {what} mark that the gate uses ({:#x}): {harm}; have it use others",
                bits & ours
            )
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Packet,
    Connection,
}

/// The bits that a rule of iptables sets: `-j MARK --set-xmark 0x1/0xffffffff`.
fn set_by(rule: &str) -> Option<(Kind, u32)> {
    let kind = match target(rule)? {
        "MARK" => Kind::Packet,
        "CONNMARK" => Kind::Connection,
        _ => return None,
    };
    let (_, value) = rule.rsplit_once("--set-xmark ")?;
    let value = value.split([' ', '/']).next()?;
    u32::from_str_radix(value.trim_start_matches("0x"), 16).ok().map(|bits| (kind, bits))
}

/// The bits that a value of nftables is known to have: a number, or that besides others.
fn set_by_value(value: &Value) -> u32 {
    let or = value.get("|").and_then(Value::as_array);
    match (value.as_u64(), or) {
        (Some(number), _) => u32::try_from(number).unwrap_or(0),
        (None, Some(parts)) => parts.iter().map(set_by_value).fold(0, |all, bits| all | bits),
        (None, None) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::types::Guarded;

    fn marks(mode: Mode, refusal: Refusal, connections: Connections) -> Marks {
        Marks::of(&Plan {
            mode,
            refusal,
            guarded: vec![Guarded { connections, ..Guarded::plain("tcp/22".parse().unwrap()) }],
            knock_ports: Vec::new(),
            always_admit: Vec::new(),
            max_elements: 9,
            trial_seconds: None,
        })
    }

    const SAVED: &str = "*mangle\n:PREROUTING ACCEPT [0:0]\n:SPA-REFUSE - [0:0]\n:KUBE - [0:0]\n\
        -A PREROUTING -p tcp -j MARK --set-xmark 0x20000000/0x20000000\n\
        -A PREROUTING -m comment --comment \"-j MARK --set-xmark 0xf0000000\" -j MARK --set-xmark 0x1/0xffffffff\n\
        -A KUBE -j CONNMARK --set-xmark 0xf0000000/0xffffffff\n\
        -A KUBE -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff\n\
        -A SPA-REFUSE -j MARK --set-xmark 0x20000000/0x20000000\nCOMMIT\n";

    #[test]
    fn rules_of_others_that_set_bits_of_ours_are_found() {
        let saved = Saved::parse(SAVED).unwrap();
        let found = |mode, refusal, connections| {
            marks(mode, refusal, connections).set_in_saved(Family::V4, &saved)
        };
        let rejecting = found(Mode::Guard, Refusal::Reject, Connections::One);
        assert_eq!(
            rejecting,
            [
                "-A KUBE -j CONNMARK --set-xmark 0xf0000000/0xffffffff (table mangle, IPv4) sets bits of the connection mark that the gate uses (0x10000000): what it marks may be let in without a grant where connections = 1, local-port or forward is set; have it use others",
                "-A PREROUTING -p tcp -j MARK --set-xmark 0x20000000/0x20000000 (table mangle, IPv4) sets bits of the packet mark that the gate uses (0x20000000): what it marks may be rejected at knock ports, and at guarded ports that are translated; have it use others",
            ]
        );
        assert_eq!(found(Mode::Guard, Refusal::Reject, Connections::Any), rejecting[1..]);
        assert_eq!(found(Mode::Open, Refusal::Reject, Connections::One), rejecting[..1]);
        assert!(found(Mode::Guard, Refusal::Drop, Connections::One).is_empty());
    }

    #[test]
    fn so_are_those_of_nftables() {
        let rule = |table: &str, key: &str, value: &str| {
            format!(
                r#"{{"rule": {{"family": "inet", "table": "{table}", "chain": "c", "expr": [{{"mangle": {{"key": {{"{key}": {{"key": "mark"}}}}, "value": {value}}}}}]}}}}"#
            )
        };
        let ct = r#"{"ct": {"key": "mark"}}"#;
        let json = |rules: &[String]| format!(r#"{{"nftables": [{}]}}"#, rules.join(", "));
        let marks = marks(Mode::Guard, Refusal::Reject, Connections::One);
        let count = |rules: &[String]| marks.set_in_nft(&json(rules)).unwrap().len();
        let or = format!(r#"{{"|": [{ct}, 268435456]}}"#);
        for (there, key, value) in [
            (1, "meta", "536870912"),
            (0, "meta", "268435456"),
            (1, "ct", "4294967295"),
            (1, "ct", &*or),
            (0, "meta", ct),
            (0, "ct", r#"{"&": [{"ct": {"key": "mark"}}, 4026531840]}"#),
        ] {
            assert_eq!(count(&[rule("fw", key, value)]), there, "{key} {value}");
        }
        assert_eq!(count(&[rule("spa", "ct", &or)]), 0, "it is the gate's own");
        assert!(marks.set_in_nft("{").is_err());
    }
}
