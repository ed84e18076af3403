use super::*;
use crate::gate::nftables::{samples, script, shape};
use crate::gate::types::Family;

fn listing(objects: &[&str]) -> Option<Listing> {
    let objects: Vec<_> = objects
        .iter()
        .map(|object| object.replace("TABLE", r#""family": "inet", "table": "spa", "handle": 7"#))
        .collect();
    Listing::parse(&format!("{{\"nftables\": [{}]}}", objects.join(", "))).unwrap()
}

const OURS: &str = r#"{"table": {"family": "inet", "name": "spa", "handle": 1}}"#;
const OTHER: &str = r#"{"table": {"family": "ip", "name": "spa", "handle": 1}}"#;
const MARK_CHAIN: &str = r#"{"chain": {TABLE, "name": "spa-server"}}"#;
const JUDGE: &str = r#"{"chain": {TABLE, "name": "judge"}}"#;
const RULE: &str = r#"{"rule": {TABLE, "chain": "judge", "expr": [{"accept": null}]}}"#;
const DROP: &str = r#"{"rule": {TABLE, "chain": "judge", "expr": [{"drop": null}]}}"#;
const SET: &str = r#"{"set": {TABLE, "name": "spa4", "size": 9, "elem": ["192.0.2.1"]}}"#;

#[test]
fn a_table_without_our_mark_is_somebody_elses() {
    assert_eq!(
        listing(&[OTHER, r#"{"chain": {"family": "ip", "table": "spa", "name": "x"}}"#]),
        None
    );
    assert!(!listing(&[OURS, JUDGE]).unwrap().is_ours());
    let unfinished = listing(&[OURS, MARK_CHAIN]).unwrap();
    assert!(unfinished.is_ours() && !unfinished.judges());
}

#[test]
fn a_table_is_as_it_was_installed_until_something_is_changed() {
    let plan = samples::plan();
    let wanted = Ruleset::new(&plan, &[], &shape::of_plan(&plan), 9);
    let made = listing(&[OURS, SET, JUDGE, RULE]).unwrap();
    let mark = made.mark_of(&wanted).to_string();
    let comment = format!(
        r#"{{"rule": {{TABLE, "chain": "spa-server", "comment": "{mark}", "expr": [{{"return": null}}]}}}}"#
    );
    let marked = |rest: &[&str]| {
        let mut objects = vec![OURS, MARK_CHAIN, comment.as_str()];
        objects.extend(rest);
        listing(&objects).unwrap()
    };
    assert!(marked(&[SET, JUDGE, RULE]).holds(&wanted));
    // Elements come and go; handles are the kernel's.
    let other = SET.replace(r#""elem": ["192.0.2.1"]"#, r#""elem": []"#);
    assert!(marked(&[&other, JUDGE, &RULE.replace("expr", "index\": 3, \"expr")]).is_ours());
    assert!(marked(&[&other, JUDGE, RULE]).holds(&wanted));
    assert!(!marked(&[SET, JUDGE, DROP]).holds(&wanted));
    let other = Ruleset::new(&plan, &[(Family::V4, vec![1])], &shape::of_plan(&plan), 9);
    assert!(!marked(&[SET, JUDGE, RULE]).holds(&other));
    // A script that was interrupted before the end has no digests yet.
    assert!(script::mark(&Mark::unfinished()).contains("\"spa-server 1 \""));
}

#[test]
fn what_was_changed_is_named() {
    let made = listing(&[OURS, SET, JUDGE, RULE]).unwrap();
    let missing = |now: &[&str]| made.missing_in(&listing(now).unwrap());
    assert!(missing(&[OURS, SET, JUDGE, RULE]).is_empty());
    assert_eq!(missing(&[OURS, JUDGE, RULE]), ["set spa4 is missing in table inet spa"]);
    assert_eq!(missing(&[OURS, SET, JUDGE]), ["chain judge has 0 rules of 1 in table inet spa"]);
    assert_eq!(
        missing(&[OURS, SET, JUDGE, DROP]),
        ["chain judge has other rules in table inet spa"]
    );
    assert_eq!(missing(&[OURS, SET]), ["chain judge is missing in table inet spa"]);
    let more = r#"{"chain": {TABLE, "name": "x"}}"#;
    assert_eq!(
        missing(&[OURS, SET, JUDGE, RULE, more]),
        ["chain x is not the gate's in table inet spa"]
    );
    let plan = samples::plan();
    let wanted = Ruleset::new(&plan, &[], &shape::of_plan(&plan), 8);
    let differences = made.differences(&wanted);
    assert_eq!(differences[0], "set spa4 has another size in table inet spa");
    assert!(differences.contains(&"chain judge has 1 rules of 3 in table inet spa".to_owned()));
}

#[test]
fn the_ports_that_are_judged_are_read() {
    let rule = |left: &str, right: &str| {
        format!(
            r#"{{"rule": {{TABLE, "chain": "prerouting", "expr": [
                {{"match": {{"op": "==", "left": {left}, "right": {right}}}}},
                {{"goto": {{"target": "judge"}}}}]}}}}"#
        )
    };
    let both = r#"{"concat": [{"meta": {"key": "l4proto"}}, {"payload": {"protocol": "th"}}]}"#;
    let udp = r#"{"payload": {"protocol": "udp", "field": "dport"}}"#;
    let several = r#"{"set": [{"concat": ["tcp", 22]}, {"concat": ["udp", 53]}]}"#;
    for (left, right, ports) in [
        (both, several, vec!["tcp/22", "udp/53"]),
        (both, r#"{"concat": [6, 22]}"#, vec!["tcp/22"]),
        (udp, r#"{"range": [5, 9]}"#, vec!["udp/5-9"]),
        (udp, "7", vec!["udp/7"]),
    ] {
        let listing = listing(&[OURS, JUDGE, RULE, &rule(left, right)]).unwrap();
        let found: Vec<_> = listing.guarded().iter().map(ToString::to_string).collect();
        assert_eq!(found, ports);
    }
    let several = rule(both, several);
    assert_eq!(listing(&[OURS, &several]).unwrap().guarded(), []);
}
