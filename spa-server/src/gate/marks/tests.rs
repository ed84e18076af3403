//! Rules of others, and what is told of them.

use super::*;
use crate::gate::types::Guarded;

fn plan(mode: Mode, refusal: Refusal, guarded: Vec<Guarded>) -> Plan {
    Plan {
        mode,
        refusal,
        guarded,
        knock_ports: Vec::new(),
        always_admit: Vec::new(),
        max_elements: 9,
        trial_seconds: None,
    }
}

fn marks(mode: Mode, refusal: Refusal, connections: Connections) -> Marks {
    let one = Guarded { connections, ..Guarded::plain("tcp/22".parse().unwrap()) };
    Marks::of(&plan(mode, refusal, vec![one]))
}

const SAVED: &str = "*mangle\n:PREROUTING ACCEPT [0:0]\n:SPA-REFUSE - [0:0]\n:KUBE - [0:0]\n\
    -A PREROUTING -p tcp -j MARK --set-xmark 0x20000000/0x20000000\n\
    -A PREROUTING -m comment --comment \"-j MARK --set-xmark 0xf0000000\" -j MARK --set-xmark 0x1/0xffffffff\n\
    -A KUBE -j CONNMARK --set-xmark 0xf0000000/0xffffffff\n\
    -A KUBE -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff\n\
    -A SPA-REFUSE -j MARK --set-xmark 0x20000000/0x20000000\nCOMMIT\n";

fn found(
    saved: &str,
    is_ours: bool,
    (mode, refusal, connections): (Mode, Refusal, Connections),
) -> Vec<String> {
    let saved = Saved::parse(saved).unwrap();
    marks(mode, refusal, connections).touched_in_saved(Family::V4, &saved, is_ours)
}

#[test]
fn rules_of_others_that_set_bits_of_ours_are_found() {
    let found = |mode, refusal, connections| found(SAVED, true, (mode, refusal, connections));
    let connection = "-A KUBE -j CONNMARK --set-xmark 0xf0000000/0xffffffff (table mangle, IPv4) sets bits of the connection mark that the gate uses";
    let rejected = "what it marks may be rejected at knock ports, at guarded ports that are translated, and at ports with connections = 1";
    let let_in = "what it marks may be let in without a grant where connections = 1, local-port or forward is set";
    let packet = format!(
        "-A PREROUTING -p tcp -j MARK --set-xmark 0x20000000/0x20000000 (table mangle, IPv4) sets bits of the packet mark that the gate uses (0x20000000): {rejected}; have it use others"
    );
    let first = format!("{connection} (0x10000000): {let_in}; have it use others");
    let both = format!("{connection} (0x30000000): {rejected}; {let_in}; have it use others");
    let refused = format!("{connection} (0x20000000): {rejected}; have it use others");
    let [reject, drop] = [Refusal::Reject, Refusal::Drop];
    let [one, any] = [Connections::One, Connections::Any];
    assert_eq!(found(Mode::Guard, reject, one), [both, packet.clone()]);
    assert_eq!(found(Mode::Guard, reject, any), [refused, packet]);
    assert_eq!(found(Mode::Open, reject, one), [first.as_str()]);
    assert_eq!(found(Mode::Guard, drop, one), [first.as_str()]);
    assert!(found(Mode::Guard, drop, any).is_empty());
}

/// One rule in a table, in a chain that these built-in chains lead to.
fn one_rule(table: &str, from: &[&str], rule: &str) -> String {
    let built_in: Vec<_> =
        from.iter().map(|chain| format!(":{chain} ACCEPT [0:0]\n-A {chain} -j MINE\n")).collect();
    let built_in = built_in.concat();
    format!("*{table}\n{built_in}:MINE - [0:0]\n-A MINE {rule}\nCOMMIT\n")
}

#[test]
fn so_are_those_that_clear_bits_of_ours() {
    let limited = (Mode::Guard, Refusal::Drop, Connections::One);
    let save = "-j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff";
    assert_eq!(
        found(&one_rule("mangle", &["PREROUTING"], save), true, limited),
        [format!(
            "-A MINE {save} (table mangle, IPv4) clears bits of the connection mark that the gate uses (0x10000000): where it applies, services with connections = 1 may let nobody in, though the grant is used up; give it a mask that leaves them alone"
        )]
    );
    for (clears, rule) in [
        (true, "-j CONNMARK --save-mark"),
        (false, "-j CONNMARK --save-mark --mask 0xff"),
        (false, "-j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xff"),
        (true, "-j CONNMARK --set-xmark 0x1/0xffffffff"),
        (true, "-j CONNMARK --set-xmark 0x10000000/0x0"),
        (false, "-j CONNMARK --set-xmark 0x10000000/0x10000000"),
        (false, "-j CONNMARK --set-xmark 0x0/0xff"),
        (false, "-j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff"),
        (false, "-j MARK --set-xmark 0x1/0xffffffff"),
        (false, "-m comment --comment \"-j CONNMARK --save-mark\" -j ACCEPT"),
    ] {
        let told = found(&one_rule("mangle", &["PREROUTING"], rule), true, limited);
        let clears_it = told.iter().any(|one| one.contains(" clears "));
        assert_eq!(clears_it, clears, "{rule}: {told:?}");
    }
}

#[test]
fn bits_that_are_cleared_too_early_or_too_late_do_no_harm() {
    let limited = (Mode::Guard, Refusal::Drop, Connections::One);
    let rejecting = (Mode::Guard, Refusal::Reject, Connections::Any);
    let save = "-j CONNMARK --save-mark";
    let restore = "-j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff";
    for (count, table, from, rule, is_ours, plan) in [
        (1, "mangle", "INPUT", save, true, limited),
        (1, "mangle", "FORWARD", save, true, limited),
        (0, "mangle", "OUTPUT", save, true, limited),
        (0, "mangle", "POSTROUTING", save, true, limited),
        (1, "nat", "PREROUTING", save, true, limited),
        (0, "raw", "PREROUTING", save, true, limited),
        (0, "filter", "INPUT", save, true, limited),
        (1, "filter", "INPUT", save, false, limited),
        // Table mangle accepts what it has marked as refused.
        (0, "mangle", "PREROUTING", restore, true, rejecting),
        (1, "mangle", "PREROUTING", restore, false, rejecting),
        (1, "mangle", "FORWARD", restore, true, rejecting),
        (1, "mangle", "INPUT", "-j MARK --set-xmark 0x1/0xffffffff", true, rejecting),
        (0, "mangle", "PREROUTING", save, true, rejecting),
        (1, "mangle", "INPUT", save, true, rejecting),
    ] {
        let told = found(&one_rule(table, &[from], rule), is_ours, plan);
        assert_eq!(told.len(), count, "{table} {from} {rule}: {told:?}");
    }
    let either = one_rule("mangle", &["OUTPUT", "INPUT"], save);
    assert_eq!(found(&either, true, limited).len(), 1);
}

#[test]
fn what_is_led_on_is_marked_in_either_mode() {
    for mode in [Mode::Guard, Mode::Open] {
        let mut led = Guarded::plain("tcp/22".parse().unwrap());
        led.target = Target::LocalPort(80.try_into().unwrap());
        let marks = Marks::of(&plan(mode, Refusal::Drop, vec![led]));
        let saved =
            Saved::parse(&one_rule("mangle", &["INPUT"], "-j CONNMARK --save-mark")).unwrap();
        let told = marks.touched_in_saved(Family::V4, &saved, true);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("(0x40000000): what local-port and forward lead on"), "{told:?}");
    }
}

#[test]
fn so_are_rules_of_nftables() {
    let rule = |table: &str, key: &str, value: &str| {
        format!(
            r#"{{"rule": {{"family": "inet", "table": "{table}", "chain": "c", "expr": [{{"mangle": {{"key": {{"{key}": {{"key": "mark"}}}}, "value": {value}}}}}]}}}}"#
        )
    };
    let chain = |hook: &str, prio: i32| {
        format!(
            r#"{{"chain": {{"family": "inet", "table": "fw", "name": "c", "hook": "{hook}", "prio": {prio}}}}}"#
        )
    };
    let ct = r#"{"ct": {"key": "mark"}}"#;
    let meta = r#"{"meta": {"key": "mark"}}"#;
    let json = |rules: &[String]| format!(r#"{{"nftables": [{}]}}"#, rules.join(", "));
    let marks = marks(Mode::Guard, Refusal::Reject, Connections::One);
    let told = |rules: &[String]| marks.touched_in_nft(&json(rules)).unwrap();
    let and_or = |mask: u32, or: u32| format!(r#"{{"|": [{{"&": [{ct}, {mask}]}}, {or}]}}"#);
    for (set, cleared, key, value) in [
        ("0x20000000", "", "meta", "536870912".to_owned()),
        ("", "0x20000000", "meta", "268435456".to_owned()),
        ("0x30000000", "", "ct", "4294967295".to_owned()),
        ("", "0x30000000", "ct", "1".to_owned()),
        ("0x10000000", "", "ct", format!(r#"{{"|": [{ct}, 268435456]}}"#)),
        ("", "", "ct", format!(r#"{{"|": [{ct}, 1]}}"#)),
        ("", "", "ct", ct.to_owned()),
        ("", "0x30000000", "ct", meta.to_owned()),
        ("", "0x20000000", "meta", ct.to_owned()),
        ("", "0x30000000", "ct", r#"{"map": {"key": 1}}"#.to_owned()),
        ("", "0x30000000", "ct", format!(r#"{{"&": [{ct}, 255]}}"#)),
        ("", "", "ct", format!(r#"{{"&": [{ct}, 4026531840]}}"#)),
        ("", "0x30000000", "ct", format!(r#"{{"&": [{meta}, 4026531840]}}"#)),
        ("", "0x30000000", "ct", and_or(255, 1)),
        ("0x10000000", "0x20000000", "ct", and_or(255, 0x1000_0000)),
        ("", "0x10000000", "ct", format!(r#"{{"^": [{ct}, 268435456]}}"#)),
    ] {
        let told = told(&[rule("fw", key, &value)]);
        let has = |does: &str, bits: &str| {
            told.iter().any(|one| {
                one.contains(&format!("table inet fw {does} bits"))
                    && one.contains(&format!("({bits})"))
            })
        };
        assert!(set.is_empty() || has("sets", set), "{key} {value}: {told:?}");
        assert!(cleared.is_empty() || has("clears", cleared), "{key} {value}: {told:?}");
        let count = [set, cleared].iter().filter(|bits| !bits.is_empty()).count();
        assert_eq!(told.len(), count, "{key} {value}: {told:?}");
    }
    for (count, hook, prio) in [
        (1, "prerouting", -150),
        (1, "input", 0),
        (0, "prerouting", -200),
        (0, "input", 10),
        (0, "output", 0),
        (0, "postrouting", 0),
    ] {
        assert_eq!(told(&[chain(hook, prio), rule("fw", "ct", "1")]).len(), count, "{hook} {prio}");
    }
    assert!(told(&[rule("spa", "ct", "1")]).is_empty(), "it is the gate's own");
    let own = rule("mangle", "ct", "1")
        .replace("inet", "ip")
        .replace(r#""chain": "c""#, r#""chain": "SPA-ONCE""#);
    assert!(told(std::slice::from_ref(&own)).is_empty(), "so is that");
    assert_eq!(told(&[own.replace("SPA-ONCE", "MINE")]).len(), 1);
    assert!(marks.touched_in_nft("{").is_err());
}
