//! How one state of the rules becomes another, whatever it was.

use super::super::saved::Saved;
use super::super::types::{Connection, Cut, Element};
use super::*;
use crate::service::{Connections, Forward, ForwardTo, Target};
use insta::assert_snapshot;
use proptest::prelude::*;
use spa_proto::Transport;

fn plan(mode: Mode, refusal: Refusal) -> Plan {
    Plan {
        mode,
        refusal,
        guarded: ["tcp/22", "udp/443", "tcp/443", "tcp/22"]
            .map(|p| Guarded::plain(p.parse().unwrap()))
            .to_vec(),
        always_admit: Vec::new(),
        trial_seconds: None,
        knock_ports: vec![62201, 443, 53],
        max_elements: 65536,
    }
}

fn layout(plan: &Plan) -> Layout<'_> {
    Layout {
        family: Family::V4,
        plan,
        knock_ports: &[62201],
        grants: Grants::InSets,
        armed: Armed::ForGood,
        cut: &[],
    }
}

const INSTALLED: &str = "\
*mangle
:PREROUTING ACCEPT [0:0]
:HOST - [0:0]
:SPA-GUARD - [0:0]
:SPA-JUDGE - [0:0]
:SPA-REFUSE - [0:0]
-A PREROUTING -j HOST
-A PREROUTING -j SPA-GUARD
-A PREROUTING -j SPA-GUARD
-A HOST -s 192.0.2.1/32 -m comment --comment \"to ours -j SPA\" -j SPA-REFUSE
-A SPA-GUARD -i lo -j RETURN
-A SPA-JUDGE -m set --match-set spa4 src,dst -j RETURN
-A SPA-JUDGE -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
-A SPA-JUDGE -j SPA-REFUSE
-A SPA-REFUSE -j DROP
COMMIT
";

#[test]
fn only_what_differs_is_mended() {
    let saved = Saved::parse(INSTALLED).unwrap();
    let plan = plan(Mode::Guard, Refusal::Drop);
    let wanted = wanted(TableName::Mangle, &layout(&plan));
    assert_snapshot!(transition(TableName::Mangle, saved.table("mangle"), &wanted).unwrap(), @r"
    *mangle
    :SPA-GUARD - [0:0]
    :SPA-JUDGE - [0:0]
    -A SPA-GUARD -i lo -j RETURN
    -A SPA-GUARD -m addrtype ! --dst-type LOCAL,BROADCAST,MULTICAST -j RETURN
    -A SPA-GUARD -p tcp -m multiport --dports 22,443 -g SPA-JUDGE
    -A SPA-GUARD -p udp -m udp --dport 443 -g SPA-JUDGE
    -A SPA-GUARD -p udp -m udp --dport 62201 -m conntrack ! --ctstate RELATED,ESTABLISHED -j SPA-REFUSE
    -A SPA-JUDGE -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
    -A SPA-JUDGE -m set --match-set spa4 src,dst -j RETURN
    -A SPA-JUDGE -m set --match-set spa4-net src,dst -j RETURN
    -A SPA-JUDGE -j SPA-REFUSE
    -D PREROUTING -j SPA-GUARD
    -D PREROUTING -j SPA-GUARD
    -I PREROUTING 1 -j SPA-GUARD
    COMMIT
    ");
}

#[test]
fn differences_are_told_as_an_administrator_would() {
    let saved = Saved::parse(INSTALLED).unwrap();
    let plan = plan(Mode::Guard, Refusal::Reject);
    let differences = |table: TableName| {
        let wanted = wanted(table, &layout(&plan));
        wanted.differences(Family::V4, table, saved.table(table.as_str())).join("\n")
    };
    assert_snapshot!(differences(TableName::Mangle), @r"
    chain SPA-GUARD of mangle (IPv4) has 1 rules of 5
    chain SPA-JUDGE of mangle (IPv4) has 3 rules of 5
    chain SPA-REFUSE of mangle (IPv4) has 1 rules of 3
    chain PREROUTING of mangle (IPv4) doesn't begin with a jump to SPA-GUARD
    ");
    assert_snapshot!(differences(TableName::Filter), @r"
    chain SPA-INPUT of filter (IPv4) is missing
    chain SPA-ADMIT of filter (IPv4) is missing
    chain SPA-FORWARD of filter (IPv4) is missing
    chain SPA-MARKED of filter (IPv4) is missing
    chain SPA-REJECT of filter (IPv4) is missing
    chain FORWARD of filter (IPv4) doesn't begin with a jump to SPA-FORWARD
    ");
    assert_snapshot!(differences(TableName::Nat), @"");
    let nothing = OwnTable::default();
    let left = nothing.differences(Family::V6, TableName::Mangle, saved.table("mangle"));
    assert_snapshot!(left.join("\n"), @r"
    chain SPA-GUARD of mangle (IPv6) is one too many
    chain SPA-JUDGE of mangle (IPv6) is one too many
    chain SPA-REFUSE of mangle (IPv6) is one too many
    ");
}

#[test]
fn what_is_ours_is_taken_away_and_nothing_else() {
    let saved = Saved::parse(INSTALLED).unwrap();
    let batch = transition(TableName::Mangle, saved.table("mangle"), &OwnTable::default());
    assert_snapshot!(batch.unwrap(), @r#"
    *mangle
    -D HOST -s 192.0.2.1/32 -m comment --comment "to ours -j SPA" -j SPA-REFUSE
    -D PREROUTING -j SPA-GUARD
    -D PREROUTING -j SPA-GUARD
    -F SPA-GUARD
    -F SPA-JUDGE
    -F SPA-REFUSE
    -X SPA-GUARD
    -X SPA-JUDGE
    -X SPA-REFUSE
    COMMIT
    "#);
}

#[test]
fn what_was_ours_is_brought_back() {
    let before = Saved::parse(INSTALLED).unwrap();
    let own = OwnTable::of(before.table("mangle"));
    assert_eq!(
        own.missing_in(Saved::default().table("mangle")).as_deref(),
        Some("chain SPA-GUARD has 0 rules of 1")
    );
    let none = Saved::default();
    assert_snapshot!(transition(TableName::Mangle, none.table("mangle"), &own).unwrap(), @r"
    *mangle
    :SPA-GUARD - [0:0]
    :SPA-JUDGE - [0:0]
    :SPA-REFUSE - [0:0]
    -A SPA-GUARD -i lo -j RETURN
    -A SPA-JUDGE -m set --match-set spa4 src,dst -j RETURN
    -A SPA-JUDGE -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
    -A SPA-JUDGE -j SPA-REFUSE
    -A SPA-REFUSE -j DROP
    -I PREROUTING 1 -j SPA-GUARD
    COMMIT
    ");
}

#[test]
fn tracking_is_turned_on_only_where_it_is_not() {
    assert_snapshot!(track(Saved::default().table("mangle")).unwrap(), @r"
    *mangle
    :SPA-TRACK - [0:0]
    -A SPA-TRACK -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
    COMMIT
    ");
    assert_eq!(track(Saved::parse(INSTALLED).unwrap().table("mangle")), None);
}

#[test]
fn connections_that_are_judged_already_are_known() {
    let connection = |transport, local: &str| Connection {
        transport,
        peer: "192.0.2.1:50000".parse().unwrap(),
        local: local.parse().unwrap(),
    };
    let tcp = |port: u16| connection(Transport::Tcp, &format!("192.0.2.2:{port}"));
    // As an earlier version wrote it.
    let text = INSTALLED.replace("-i lo -j RETURN", "-p tcp -m tcp --dport 22 -j SPA-JUDGE");
    let old = Saved::parse(&text).unwrap();
    assert!(judges(old.table("mangle"), &tcp(22)));
    assert!(!judges(old.table("mangle"), &tcp(222)));

    let mut plan = plan(Mode::Guard, Refusal::Drop);
    plan.guarded.push(Guarded::plain("tcp/8000-8010".parse().unwrap()));
    let wanted = wanted(TableName::Mangle, &layout(&plan));
    let batch = transition(TableName::Mangle, Saved::default().table("mangle"), &wanted).unwrap();
    let empty = play(&Saved::default(), TableName::Mangle, ":PREROUTING\n");
    let now = play(&empty, TableName::Mangle, &batch);
    let judged = |connection| judges(now.table("mangle"), &connection);
    assert!(judged(tcp(22)) && judged(tcp(8005)));
    assert!(!judged(tcp(8011)) && !judged(connection(Transport::Udp, "192.0.2.2:8005")));
}

#[test]
fn cutting_connections_leaves_the_rest_as_it_is() {
    let filter = Saved::parse(
        "*filter\n:INPUT DROP [0:0]\n:SPA-INPUT - [0:0]\n-A INPUT -j SPA-INPUT\n-A INPUT -j ACCEPT\nCOMMIT\n",
    )
    .unwrap();
    let cut_off = |transport, peer: &str, local: &str, answered_from: &str| {
        let (peer, local) = (peer.parse().unwrap(), local.parse().unwrap());
        let connection = Connection { transport, peer, local };
        let cut = Cut { connection, answered_from: answered_from.parse().unwrap() };
        CutRule { cut, until: 1_800_000_000 }
    };
    let cuts = [
        cut_off(Transport::Tcp, "192.0.2.1:50000", "192.0.2.2:22", "192.0.2.2:22"),
        cut_off(Transport::Udp, "192.0.2.1:50001", "192.0.2.2:443", "198.51.100.2:8443"),
        cut_off(Transport::Tcp, "[2001:db8::1]:50000", "[2001:db8::2]:22", "[2001:db8::2]:22"),
    ];
    let own = OwnTable::of(filter.table("filter"));
    let cutting = own.clone().cutting(cut(Family::V4, &cuts));
    let batch = transition(TableName::Filter, filter.table("filter"), &cutting).unwrap();
    assert_snapshot!(batch, @r"
    *filter
    :SPA-CUT - [0:0]
    -A SPA-CUT -s 192.0.2.1/32 -d 192.0.2.2/32 -p tcp -m tcp --sport 50000 --dport 22 ! --tcp-flags RST RST -m time --datestop 2027-01-15T08:00:00 -j REJECT --reject-with tcp-reset
    -A SPA-CUT -s 192.0.2.2/32 -d 192.0.2.1/32 -p tcp -m tcp --sport 22 --dport 50000 ! --tcp-flags RST RST -m time --datestop 2027-01-15T08:00:00 -j REJECT --reject-with tcp-reset
    -A SPA-CUT -s 192.0.2.1/32 -d 198.51.100.2/32 -p udp -m udp --sport 50001 --dport 8443 -m time --datestop 2027-01-15T08:00:00 -j DROP
    -A SPA-CUT -s 198.51.100.2/32 -d 192.0.2.1/32 -p udp -m udp --sport 8443 --dport 50001 -m time --datestop 2027-01-15T08:00:00 -j DROP
    -A SPA-CUT -s 192.0.2.1/32 -d 192.0.2.2/32 -p udp -m udp --sport 50001 --dport 443 -m time --datestop 2027-01-15T08:00:00 -j DROP
    -I FORWARD 1 -j SPA-CUT
    -D INPUT -j SPA-INPUT
    -I INPUT 1 -j SPA-CUT
    -I INPUT 2 -j SPA-INPUT
    -I OUTPUT 1 -j SPA-CUT
    COMMIT
    ");
    // iptables makes the built-in chains that a batch speaks of.
    let all = filter_with_all_chains(&filter);
    let now = play(&all, TableName::Filter, &batch);
    let lifted = OwnTable::of(now.table("filter")).cutting(Vec::new());
    assert_eq!(lifted, own);
    let batch = transition(TableName::Filter, now.table("filter"), &lifted).unwrap();
    assert_snapshot!(batch, @r"
    *filter
    -D FORWARD -j SPA-CUT
    -D INPUT -j SPA-CUT
    -D OUTPUT -j SPA-CUT
    -F SPA-CUT
    -X SPA-CUT
    COMMIT
    ");
    assert_eq!(play(&now, TableName::Filter, &batch), all);
    assert_snapshot!(cut(Family::V6, &cuts).join("\n"), @r"
    -s 2001:db8::1/128 -d 2001:db8::2/128 -p tcp -m tcp --sport 50000 --dport 22 ! --tcp-flags RST RST -m time --datestop 2027-01-15T08:00:00 -j REJECT --reject-with tcp-reset
    -s 2001:db8::2/128 -d 2001:db8::1/128 -p tcp -m tcp --sport 22 --dport 50000 ! --tcp-flags RST RST -m time --datestop 2027-01-15T08:00:00 -j REJECT --reject-with tcp-reset
    ");
}

fn filter_with_all_chains(filter: &Saved) -> Saved {
    play(filter, TableName::Filter, ":FORWARD\n:OUTPUT\n")
}

/// Plays a batch on a table, as `iptables-restore --noflush` would.
fn play(saved: &Saved, table: TableName, batch: &str) -> Saved {
    let mut chains: Vec<(String, String, Vec<String>)> = Vec::new();
    let old = saved.table(table.as_str());
    for chain in old.chains() {
        let policy = old.policy(chain).unwrap_or("-").to_owned();
        chains.push((chain.to_owned(), policy, old.rules(chain).to_vec()));
    }
    for line in batch.lines().filter(|line| !line.starts_with('*') && *line != "COMMIT") {
        if let Some(declared) = line.strip_prefix(':') {
            let name = declared.split(' ').next().unwrap().to_owned();
            chains.retain(|(chain, ..)| *chain != name);
            chains.push((name, "-".to_owned(), Vec::new()));
            continue;
        }
        let words: Vec<_> = line.splitn(3, ' ').collect();
        let at = chains.iter().position(|(chain, ..)| chain == words[1]).expect("a chain");
        let rest = words.get(2).map(ToString::to_string).unwrap_or_default();
        let rules = &mut chains[at].2;
        match words[0] {
            "-A" => rules.push(rest),
            "-I" => {
                let (place, rule) = rest.split_once(' ').unwrap();
                rules.insert(place.parse::<usize>().unwrap() - 1, rule.to_owned());
            }
            "-D" => {
                let at = rules.iter().position(|rule| *rule == rest).expect("a rule");
                rules.remove(at);
            }
            "-F" => rules.clear(),
            "-X" => {
                assert!(rules.is_empty());
                let name = chains.remove(at).0;
                let called = |rule: &String| target(rule) == Some(name.as_str());
                assert!(!chains.iter().any(|(.., rules)| rules.iter().any(called)), "{name}");
            }
            other => panic!("{other}"),
        }
    }
    let mut text = format!("*{}\n", table.as_str());
    for (chain, policy, _) in &chains {
        text += &[":", chain, " ", policy, " [0:0]\n"].concat();
    }
    for (chain, _, rules) in &chains {
        for rule in rules {
            text += &["-A ", chain, " ", rule, "\n"].concat();
        }
    }
    Saved::parse(&(text + "COMMIT\n")).unwrap()
}

fn any_guarded() -> impl Strategy<Value = Guarded> {
    let target = prop_oneof![
        Just(Target::Here),
        Just(Target::LocalPort(3.try_into().unwrap())),
        any::<(bool, bool)>().prop_map(|(v4, masquerade)| Target::Forward(Forward {
            v4: v4.then(|| ForwardTo { address: [10, 0, 0, 5].into(), port: 443.try_into().ok() }),
            v6: None,
            masquerade,
        })),
    ];
    let connections = prop_oneof![Just(Connections::Any), Just(Connections::One)];
    (any::<bool>(), 1..6u16, 0..3u16, target, connections).prop_map(
        |(tcp, first, more, target, connections)| {
            let transport = if tcp { "tcp" } else { "udp" };
            let ports = format!("{transport}/{first}-{}", first + more).parse().unwrap();
            Guarded { ports, target, connections }
        },
    )
}

fn any_plan() -> impl Strategy<Value = Plan> {
    (
        prop_oneof![Just(Mode::Guard), Just(Mode::Open)],
        prop_oneof![Just(Refusal::Drop), Just(Refusal::Reject)],
        proptest::collection::vec(any_guarded(), 1..4),
        proptest::collection::vec(1..6u16, 0..3),
        any::<(bool, bool)>(),
    )
        .prop_map(|(mode, refusal, guarded, knock_ports, (always, trial))| Plan {
            mode,
            refusal,
            guarded,
            knock_ports,
            always_admit: if always { vec!["192.0.2.0/24".parse().unwrap()] } else { vec![] },
            max_elements: 9,
            trial_seconds: trial.then_some(60),
        })
}

/// Grants in rules, or not; and connections that are being cut.
fn any_state() -> impl Strategy<Value = (Option<Vec<HeldRule>>, Vec<CutRule>)> {
    let held = (any::<bool>(), 1..6u16).prop_map(|(once, port)| HeldRule {
        element: Element {
            source: "192.0.2.7".parse().unwrap(),
            ports: format!("tcp/{port}").parse().unwrap(),
        },
        until: 1_800_000_000,
        list: once.then(|| "spa-1".to_owned()),
    });
    let held = proptest::option::of(proptest::collection::vec(held, 0..3));
    let cut = Cut {
        connection: Connection {
            transport: Transport::Tcp,
            peer: "192.0.2.1:50000".parse().unwrap(),
            local: "192.0.2.2:22".parse().unwrap(),
        },
        answered_from: "192.0.2.2:2222".parse().unwrap(),
    };
    (held, 0..2usize)
        .prop_map(move |(held, cuts)| (held, vec![CutRule { cut, until: 1_800_000_000 }; cuts]))
}

/// What others may have in a table, rules that go to chains of ours among it.
fn any_foreign() -> impl Strategy<Value = Vec<String>> {
    let rule = prop_oneof![
        Just("PREROUTING -p tcp -j ACCEPT"),
        Just("INPUT -i lo -j ACCEPT"),
        Just("HOST -j RETURN"),
        Just("INPUT -j HOST"),
        Just("INPUT -j SPA-INPUT"),
        Just("PREROUTING -j SPA-GUARD"),
        Just("FORWARD -s 192.0.2.1/32 -j SPA-REJECT"),
    ];
    proptest::collection::vec(rule.prop_map(|rule| format!("-A {rule}\n")), 0..6)
}

fn others(table: &SavedTable) -> Vec<String> {
    let is_ours = |name: &str| name.starts_with("SPA-");
    table
        .chains()
        .filter(|chain| !is_ours(chain))
        .flat_map(|chain| table.rules(chain).iter().map(move |rule| format!("{chain} {rule}")))
        .filter(|rule| !target(rule).is_some_and(is_ours))
        .collect()
}

proptest! {
    #[test]
    fn from_any_state_any_plan_is_reached_and_left_without_a_trace(
        plans in proptest::collection::vec((any_plan(), any_state()), 1..4),
        foreign in any_foreign(),
    ) {
        for table in TableName::ALL {
            let chains = "PREROUTING INPUT FORWARD OUTPUT POSTROUTING HOST SPA-INPUT SPA-GUARD SPA-REJECT";
            let mut text = format!("*{}\n", table.as_str());
            for chain in chains.split(' ') {
                let policy = if chain.ends_with("PUT") && !chain.starts_with("SPA") || chain.ends_with("ING") || chain == "FORWARD" { "DROP" } else { "-" };
                text += &[":", chain, " ", policy, " [0:0]\n"].concat();
            }
            text += &foreign.concat();
            let start = Saved::parse(&(text + "COMMIT\n")).unwrap();
            let mut now = start.clone();
            for (plan, (held, cut)) in &plans {
                let wanted = wanted(table, &Layout {
                    family: Family::V4,
                    plan,
                    knock_ports: &plan.knock_ports,
                    grants: held.as_ref().map_or(Grants::InSets, |held| Grants::InRules(held)),
                    armed: if plan.trial_seconds.is_some() { Armed::BySet } else { Armed::ForGood },
                    cut,
                });
                let before = OwnTable::of(now.table(table.as_str()));
                let earlier = now.clone();
                if let Some(batch) = transition(table, now.table(table.as_str()), &wanted) {
                    now = play(&now, table, &batch);
                }
                let reached = now.table(table.as_str());
                prop_assert_eq!(transition(table, reached, &wanted), None);
                prop_assert_eq!(wanted.missing_in(reached), None);
                prop_assert!(wanted.differences(Family::V4, table, reached).is_empty());
                // No rule goes where nothing is.
                for rule in reached.chains().flat_map(|chain| reached.rules(chain)) {
                    let to = target(rule).unwrap_or_default();
                    prop_assert!(!to.starts_with("SPA-") || reached.has_chain(to), "{}", rule);
                }
                prop_assert_eq!(others(reached), others(start.table(table.as_str())));
                // And back, as after a failure: the same chains with the same rules.
                let back = transition(table, reached, &before).map_or(now.clone(), |batch| play(&now, table, &batch));
                let back = OwnTable::of(back.table(table.as_str()));
                prop_assert_eq!(back, OwnTable::of(earlier.table(table.as_str())));
            }
            if let Some(batch) = transition(table, now.table(table.as_str()), &OwnTable::default()) {
                now = play(&now, table, &batch);
            }
            let left = now.table(table.as_str());
            prop_assert!(!left.chains().any(|chain| chain.starts_with("SPA-")));
            prop_assert_eq!(others(left), others(start.table(table.as_str())));
        }
    }
}
