//! Finds the chains of others that drop what the gate accepts. Pure.
//!
//! A packet must be accepted by *every* base chain of its hooks: an accept of ours ends the way
//! through our table only. What drops for certain is a chain whose policy
//! is to drop, or whose rules end in a drop or reject that applies to every packet. Rules that
//! drop some packets (bans, invalid ones) are none of the gate's business.

use super::saved::{Saved, SavedTable, is_unconditional, target};
use super::types::{Family, Guarded};
use serde_json::{Map, Value};
use spa_proto::PortRange;
use std::collections::BTreeSet;
use std::fmt;

/// How deep jumps are followed; the kernel itself allows 16.
const MAX_DEPTH: usize = 16;

/// A chain that drops what nothing in it accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropper {
    /// The families whose packets it sees.
    pub families: Vec<Family>,
    /// Which chain it is, as its administrator would call it.
    pub chain: String,
    /// What in it drops.
    pub how: &'static str,
    /// Whether its table speaks of connections whose destination was translated, and so may accept
    /// what is forwarded.
    pub speaks_of_translated: bool,
    /// The numbers of the ports that its table speaks of, and so may accept.
    ports: Vec<(u16, u16)>,
}

impl Dropper {
    /// Whether the chain's table speaks of these ports at all, of all of them together.
    pub fn mentions(&self, ports: PortRange) -> bool {
        let (lowest, highest) = (ports.first().get(), ports.last().get());
        self.ports.iter().any(|(first, last)| *first <= lowest && highest <= *last)
    }
}

impl fmt::Display for Dropper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.chain, self.how)
    }
}

const POLICY: &str = "has policy drop";
const RULE: &str = "ends in a rule that drops or rejects everything else";

/// The droppers among the base chains that `nft -j list ruleset` prints, for packets to this
/// host; but not the filter INPUT chains of iptables-nft, if those are where our rules are.
pub fn in_nft(json: &str, but_filter_input: bool) -> Result<Vec<Dropper>, String> {
    let ours = ["ip filter INPUT", "ip6 filter INPUT"];
    nft_droppers(json, &["input", "prerouting"], if but_filter_input { &ours } else { &[] })
}

/// The droppers among the base chains for packets that are forwarded; but not the filter FORWARD
/// chains of iptables-nft, if those are read by their own tool.
pub fn forwarding_in_nft(json: &str, but_filter_forward: bool) -> Result<Vec<Dropper>, String> {
    let known = ["ip filter FORWARD", "ip6 filter FORWARD"];
    nft_droppers(json, &["forward"], if but_filter_forward { &known } else { &[] })
}

fn nft_droppers(json: &str, hooks: &[&str], but: &[&str]) -> Result<Vec<Dropper>, String> {
    let ruleset: Value = serde_json::from_str(json).map_err(|error| error.to_string())?;
    let objects = ruleset
        .get("nftables")
        .and_then(Value::as_array)
        .ok_or_else(|| "no list named nftables".to_owned())?;
    let chains = objects.iter().filter_map(|object| object.get("chain"));
    let rules: Vec<&Value> = objects.iter().filter_map(|object| object.get("rule")).collect();

    let mut found = Vec::new();
    for chain in chains {
        let text = |key| chain.get(key).and_then(Value::as_str).unwrap_or_default();
        let (family, table, name) = (text("family"), text("table"), text("name"));
        let families = match family {
            "ip" => vec![Family::V4],
            "ip6" => vec![Family::V6],
            "inet" => Family::ALL.to_vec(),
            _ => continue,
        };
        if !hooks.contains(&text("hook")) || text("type") != "filter" {
            continue;
        }
        if but.contains(&format!("{family} {table} {name}").as_str()) {
            continue;
        }
        let of_table: Vec<_> = rules
            .iter()
            .filter(|rule| field(rule, "family") == family && field(rule, "table") == table)
            .copied()
            .collect();
        let how = if nft_ends(&of_table, name, 0) == End::Dropped {
            RULE
        } else if text("policy") == "drop" && nft_ends(&of_table, name, 0) != End::Accepted {
            POLICY
        } else {
            continue;
        };
        let mut ports = Vec::new();
        for rule in &of_table {
            nft_ports(rule, &mut ports);
        }
        let chain = format!("chain {name} of nft table {family} {table}");
        let speaks_of_translated = of_table.iter().any(|rule| nft_speaks_of_translated(rule));
        found.push(Dropper { families, chain, how, speaks_of_translated, ports });
    }
    Ok(found)
}

/// The droppers among the built-in chains of an iptables variant that isn't ours.
pub fn in_saved(family: Family, variant: &str, saved: &Saved) -> Vec<Dropper> {
    saved_droppers(family, variant, saved, &["PREROUTING", "INPUT"])
}

/// The droppers among the built-in chains for packets that are forwarded.
pub fn forwarding_in_saved(family: Family, variant: &str, saved: &Saved) -> Vec<Dropper> {
    saved_droppers(family, variant, saved, &["FORWARD"])
}

fn saved_droppers(family: Family, variant: &str, saved: &Saved, hooks: &[&str]) -> Vec<Dropper> {
    let mut found = Vec::new();
    for (name, table) in saved.tables().filter(|(name, _)| *name != "nat") {
        for chain in hooks {
            if let Some(how) = drops(table, chain) {
                let mut ports = Vec::new();
                let rules = || table.chains().flat_map(|chain| table.rules(chain));
                rules().for_each(|rule| saved_ports(rule, &mut ports));
                let speaks_of_translated = rules().any(|rule| rule.contains("DNAT"));
                let chain = format!("chain {chain} of {variant} table {name} ({family})");
                let families = vec![family];
                found.push(Dropper { families, chain, how, speaks_of_translated, ports });
            }
        }
    }
    found
}

/// Whether and how a built-in chain drops what nothing in it accepts.
pub fn drops(table: &SavedTable, chain: &str) -> Option<&'static str> {
    match saved_ends(table, chain, 0) {
        End::Dropped => Some(RULE),
        End::Open if table.policy(chain) == Some("DROP") => Some(POLICY),
        End::Open | End::Accepted => None,
    }
}

/// Whether a table takes packets out of connection tracking.
pub fn untracks(saved: &Saved) -> bool {
    let raw = saved.table("raw");
    raw.chains()
        .flat_map(|chain| raw.rules(chain))
        .any(|rule| rule.contains("--notrack") || target(rule) == Some("NOTRACK"))
}

/// The chains that take packets out of connection tracking among what `nft -j list ruleset` prints,
/// each as a warning; but not what iptables-nft has in table raw, if that is read by its own tool.
///
/// `nft` doesn't show what a target of iptables does to connections, only that it does something.
pub fn untracking_in_nft(json: &str, but_raw: bool) -> Result<BTreeSet<String>, String> {
    let ruleset: Value = serde_json::from_str(json).map_err(|error| error.to_string())?;
    let objects = ruleset.get("nftables").and_then(Value::as_array).into_iter().flatten();
    let mut found = BTreeSet::new();
    for rule in objects.filter_map(|object| object.get("rule")) {
        let (family, table) = (field(rule, "family"), field(rule, "table"));
        let is_known = but_raw && table == "raw" && matches!(family, "ip" | "ip6");
        let statements = rule.get("expr").and_then(Value::as_array).into_iter().flatten();
        for statement in statements {
            let is_target = |xt| matches!(field(xt, "name"), "CT" | "NOTRACK");
            let takes = if statement.get("notrack").is_some() {
                "takes"
            } else if !is_known && statement.get("xt").is_some_and(is_target) {
                "may take"
            } else {
                continue;
            };
            found.insert(format!(
                "chain {} of nft table {family} {table} {takes} some packets out of connection tracking: a connection among them ends with its grant",
                field(rule, "chain")
            ));
        }
    }
    Ok(found)
}

/// What becomes of a packet that no conditional rule of a chain takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    Accepted,
    Dropped,
}

fn saved_ends(table: &SavedTable, chain: &str, depth: usize) -> End {
    let unconditional = table.rules(chain).iter().filter(|rule| is_unconditional(rule));
    for rule in unconditional {
        let end = match target(rule) {
            Some("DROP" | "REJECT") => End::Dropped,
            Some("ACCEPT") => End::Accepted,
            Some("RETURN") => return End::Open,
            Some(to) if depth < MAX_DEPTH => saved_ends(table, to, depth + 1),
            _ => End::Open,
        };
        if end != End::Open || rule.starts_with("-g ") {
            return end;
        }
    }
    End::Open
}

/// `--dport 22`, `--dport 20:25`, `--dports 22,80:90`.
pub(super) fn saved_ports(rule: &str, ports: &mut Vec<(u16, u16)>) {
    let mut words = rule.split(' ');
    while let Some(word) = words.next() {
        if !matches!(word, "--dport" | "--dports") {
            continue;
        }
        for range in words.next().unwrap_or_default().split(',') {
            let (first, last) = range.split_once(':').unwrap_or((range, range));
            if let (Ok(first), Ok(last)) = (first.parse(), last.parse()) {
                ports.push((first, last));
            }
        }
    }
}

fn field<'a>(object: &'a Value, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn nft_ends(table: &[&Value], chain: &str, depth: usize) -> End {
    for rule in table.iter().filter(|rule| field(rule, "chain") == chain) {
        let Some(statements) = rule.get("expr").and_then(Value::as_array) else { continue };
        let statements: Vec<_> = statements.iter().filter_map(Value::as_object).collect();
        if !statements.iter().all(|statement| applies_to_all(statement)) {
            continue;
        }
        for statement in statements {
            let called = |key| statement.get(key).map(|call| field(call, "target"));
            let is_reject = statement
                .get("xt")
                .is_some_and(|xt| matches!(field(xt, "name"), "REJECT" | "DROP"));
            if statement.contains_key("drop") || statement.contains_key("reject") || is_reject {
                return End::Dropped;
            }
            if statement.contains_key("accept") {
                return End::Accepted;
            }
            if statement.contains_key("return") {
                return End::Open;
            }
            if depth < MAX_DEPTH {
                if let Some(to) = called("goto") {
                    return nft_ends(table, to, depth + 1);
                }
                if let Some(to) = called("jump") {
                    match nft_ends(table, to, depth + 1) {
                        End::Open => {}
                        end => return end,
                    }
                }
            }
        }
    }
    End::Open
}

/// Statements that don't choose among packets. All that isn't known is taken to choose.
fn applies_to_all(statement: &Map<String, Value>) -> bool {
    const KNOWN: [&str; 9] =
        ["counter", "log", "drop", "reject", "accept", "return", "jump", "goto", "notrack"];
    statement.keys().all(|key| KNOWN.contains(&key.as_str()))
        || statement.get("xt").is_some_and(|xt| field(xt, "type") == "target")
}

/// The ports in a rule's matches on `dport`: numbers, ranges and anonymous sets of them.
fn nft_ports(rule: &Value, ports: &mut Vec<(u16, u16)>) {
    let statements = rule.get("expr").and_then(Value::as_array).into_iter().flatten();
    for matching in statements.filter_map(|statement| statement.get("match")) {
        let names_port = matching
            .get("left")
            .and_then(|left| left.get("payload"))
            .is_some_and(|payload| field(payload, "field") == "dport");
        if names_port && let Some(right) = matching.get("right") {
            nft_numbers(right, ports);
        }
    }
}

/// `ct status dnat`
fn nft_speaks_of_translated(rule: &Value) -> bool {
    let statements = rule.get("expr").and_then(Value::as_array).into_iter().flatten();
    statements.filter_map(|statement| statement.get("match")).any(|matching| {
        let text = matching.to_string();
        text.contains("\"ct\"") && text.contains("dnat")
    })
}

fn nft_numbers(value: &Value, ports: &mut Vec<(u16, u16)>) {
    let number = |value: &Value| value.as_u64().and_then(|number| u16::try_from(number).ok());
    if let Some(port) = number(value) {
        ports.push((port, port));
    } else if let Some(range) = value.get("range").and_then(Value::as_array) {
        if let [first, last] = range.as_slice()
            && let (Some(first), Some(last)) = (number(first), number(last))
        {
            ports.push((first, last));
        }
    } else if let Some(set) = value.get("set").and_then(Value::as_array) {
        for value in set {
            nft_numbers(value, ports);
        }
    }
}

/// The droppers as sentences for a report in guard mode: where granted packets may be lost.
pub fn warnings(droppers: &[Dropper], guarded: &[Guarded]) -> Vec<String> {
    let mut warned = BTreeSet::new();
    for dropper in droppers {
        let silent: Vec<_> = guarded
            .iter()
            .map(|guarded| guarded.ports)
            .filter(|ports| !dropper.mentions(*ports))
            .map(|ports| ports.to_string())
            .collect();
        if !silent.is_empty() {
            warned.insert(format!(
                "{dropper} and doesn't speak of {}: granted packets are lost there; accept these ports in it, the gate guards them",
                silent.join(", ")
            ));
        }
    }
    warned.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nft(objects: &str) -> Vec<String> {
        let json = format!("{{\"nftables\": [{objects}]}}");
        in_nft(&json, true).unwrap().iter().map(ToString::to_string).collect()
    }

    fn chain(family: &str, table: &str, name: &str, policy: &str) -> String {
        format!(
            r#"{{"chain": {{"family": "{family}", "table": "{table}", "name": "{name}", "type": "filter", "hook": "input", "prio": 0, "policy": "{policy}"}}}}"#
        )
    }

    fn rule(chain: &str, expr: &str) -> String {
        format!(
            r#"{{"rule": {{"family": "inet", "table": "t", "chain": "{chain}", "expr": [{expr}]}}}}"#
        )
    }

    #[test]
    fn a_policy_of_drop_is_found_and_named() {
        let drop = chain("inet", "t", "in", "drop");
        assert_eq!(nft(&drop), ["chain in of nft table inet t has policy drop"]);
        assert!(nft(&chain("inet", "t", "in", "accept")).is_empty());
        assert!(nft(&chain("bridge", "t", "in", "drop")).is_empty());
    }

    #[test]
    fn the_chain_that_our_rules_are_in_is_no_stranger() {
        let ours = chain("ip", "filter", "INPUT", "drop");
        assert!(nft(&ours).is_empty());
        let json = format!("{{\"nftables\": [{ours}]}}");
        assert_eq!(in_nft(&json, false).unwrap().len(), 1);
        assert_eq!(nft(&chain("ip", "mangle", "INPUT", "drop")).len(), 1);
    }

    #[test]
    fn a_final_reject_is_found_through_jumps_as_firewalld_has_it() {
        let base = chain("inet", "t", "in", "accept");
        let lo = rule(
            "in",
            r#"{"match": {"op": "==", "left": {"meta": {"key": "iif"}}, "right": "lo"}}, {"accept": null}"#,
        );
        let jump = rule("in", r#"{"counter": null}, {"jump": {"target": "zones"}}"#);
        let reject = rule("zones", r#"{"reject": {"type": "icmpx"}}"#);
        let back = rule("zones", r#"{"return": null}"#);
        assert_eq!(
            nft(&[base.clone(), lo.clone(), jump.clone(), reject.clone()].join(",")),
            ["chain in of nft table inet t ends in a rule that drops or rejects everything else"]
        );
        assert!(nft(&[base.clone(), lo, jump, back, reject].join(",")).is_empty());
        let some = rule(
            "in",
            r#"{"match": {"op": "==", "left": {"ct": {"key": "state"}}, "right": "invalid"}}, {"drop": null}"#,
        );
        assert!(nft(&[base, some].join(",")).is_empty());
    }

    #[test]
    fn a_guarded_port_that_the_chain_speaks_of_is_not_warned_of() {
        let dport = |right: &str| {
            rule(
                "in",
                &format!(
                    r#"{{"match": {{"op": "==", "left": {{"payload": {{"protocol": "tcp", "field": "dport"}}}}, "right": {right}}}}}, {{"accept": null}}"#
                ),
            )
        };
        let warned = |right: &str| {
            let objects = [chain("inet", "t", "in", "drop"), dport(right)].join(",");
            let droppers = in_nft(&format!("{{\"nftables\": [{objects}]}}"), true).unwrap();
            warnings(&droppers, &[Guarded::plain("tcp/22".parse().unwrap())])
        };
        for right in ["22", r#"{"set": [80, 22]}"#, r#"{"set": [{"range": [20, 25]}]}"#] {
            assert!(warned(right).is_empty(), "{right}");
        }
        assert_eq!(warned("80").len(), 1);
        assert!(warned("80")[0].contains("tcp/22"));
    }

    #[test]
    fn rules_that_end_connection_tracking_are_found() {
        let of = |family: &str, table: &str, expr: &str| {
            format!(
                r#"{{"rule": {{"family": "{family}", "table": "{table}", "chain": "c", "expr": [{expr}]}}}}"#
            )
        };
        let found = |rules: &[String], but_raw| {
            let json = format!("{{\"nftables\": [{}]}}", rules.join(", "));
            untracking_in_nft(&json, but_raw).unwrap().into_iter().collect::<Vec<_>>()
        };
        let native = r#"{"counter": null}, {"notrack": null}"#;
        let target = |name: &str| format!(r#"{{"xt": {{"type": "target", "name": "{name}"}}}}"#);
        assert_eq!(
            found(&[of("inet", "t", native), of("inet", "t", native)], true),
            [
                "chain c of nft table inet t takes some packets out of connection tracking: a connection among them ends with its grant"
            ]
        );
        for name in ["CT", "NOTRACK"] {
            let rule = [of("ip", "raw", &target(name))];
            assert_eq!(
                found(&rule, false),
                [
                    "chain c of nft table ip raw may take some packets out of connection tracking: a connection among them ends with its grant"
                ]
            );
            assert!(found(&rule, true).is_empty(), "its own tool says so");
            assert_eq!(found(&[of("inet", "raw", &target(name))], true).len(), 1);
        }
        // What iptables-nft can't read, though it is in its table.
        assert_eq!(found(&[of("ip6", "raw", native)], true).len(), 1);
        assert!(
            found(&[of("ip", "raw", &target("TRACE")), rule("c", r#"{"drop": null}"#)], false)
                .is_empty()
        );
        assert!(untracking_in_nft("{", true).is_err());
    }

    #[test]
    fn chains_of_the_other_variant_are_judged_alike() {
        let found = |filter: &str| {
            let saved = Saved::parse(&format!("*filter\n{filter}COMMIT\n")).unwrap();
            in_saved(Family::V4, "iptables-legacy", &saved)
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            found(":INPUT DROP [0:0]\n"),
            ["chain INPUT of iptables-legacy table filter (IPv4) has policy drop"]
        );
        assert!(found(":INPUT ACCEPT [0:0]\n-A INPUT -s 192.0.2.1/32 -j DROP\n").is_empty());
        assert!(found(":INPUT DROP [0:0]\n-A INPUT -j ACCEPT\n").is_empty());
        let jump = ":INPUT ACCEPT [0:0]\n:A - [0:0]\n-A INPUT -i lo -j ACCEPT\n-A INPUT -j A\n";
        assert_eq!(found(&format!("{jump}-A A -j REJECT --reject-with tcp-reset\n")).len(), 1);
        assert!(found(&format!("{jump}-A A -j RETURN\n-A A -j DROP\n")).is_empty());
    }
}
