//! What is rendered, as text.

use super::super::saved::Saved;
use super::super::types::Guarded;
use super::*;
use insta::assert_snapshot;
use proptest::prelude::*;

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

/// The batches for a family where nothing is yet, table after table.
fn batches(family: Family, plan: &Plan, knock_ports: &[u16]) -> String {
    let none = Saved::default();
    TableName::ALL
        .into_iter()
        .filter_map(|table| {
            let wanted = wanted(family, table, plan, knock_ports);
            transition(table, none.table(table.as_str()), &wanted)
        })
        .collect()
}

#[test]
fn guard_mode_that_drops() {
    // 53 is not among the knock ports: a real service listens there.
    assert_snapshot!(batches(Family::V4, &plan(Mode::Guard, Refusal::Drop), &[62201, 443]), @r"
    *mangle
    :SPA-GUARD - [0:0]
    :SPA-JUDGE - [0:0]
    :SPA-REFUSE - [0:0]
    -A SPA-GUARD -i lo -j RETURN
    -A SPA-GUARD -m addrtype ! --dst-type LOCAL,BROADCAST,MULTICAST -j RETURN
    -A SPA-GUARD -p tcp -m tcp --dport 22 -j SPA-JUDGE
    -A SPA-GUARD -p tcp -m tcp --dport 443 -j SPA-JUDGE
    -A SPA-GUARD -p udp -m udp --dport 443 -j SPA-JUDGE
    -A SPA-GUARD -p udp -m udp --dport 62201 -m conntrack ! --ctstate RELATED,ESTABLISHED -j SPA-REFUSE
    -A SPA-JUDGE -m set --match-set spa4 src,dst -j RETURN
    -A SPA-JUDGE -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
    -A SPA-JUDGE -j SPA-REFUSE
    -A SPA-REFUSE -j DROP
    -I PREROUTING 1 -j SPA-GUARD
    COMMIT
    *filter
    :SPA-INPUT - [0:0]
    -A SPA-INPUT -m set --match-set spa4 src,dst -j ACCEPT
    -A SPA-INPUT -p tcp -m tcp --dport 22 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -A SPA-INPUT -p tcp -m tcp --dport 443 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -A SPA-INPUT -p udp -m udp --dport 443 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -A SPA-INPUT ! -i lo -p tcp -m tcp --dport 22 -m conntrack ! --ctstate DNAT -j DROP
    -A SPA-INPUT ! -i lo -p tcp -m tcp --dport 443 -m conntrack ! --ctstate DNAT -j DROP
    -A SPA-INPUT ! -i lo -p udp -m udp --dport 443 -m conntrack ! --ctstate DNAT -j DROP
    -I INPUT 1 -j SPA-INPUT
    COMMIT
    ");
}

#[test]
fn guard_mode_that_rejects() {
    assert_snapshot!(batches(Family::V6, &plan(Mode::Guard, Refusal::Reject), &[62201, 443, 53]), @r"
    *mangle
    :SPA-GUARD - [0:0]
    :SPA-JUDGE - [0:0]
    :SPA-REFUSE - [0:0]
    -A SPA-GUARD -i lo -j RETURN
    -A SPA-GUARD ! -d ff00::/8 -m addrtype ! --dst-type LOCAL,ANYCAST -j RETURN
    -A SPA-GUARD -p tcp -m tcp --dport 22 -j SPA-JUDGE
    -A SPA-GUARD -p tcp -m tcp --dport 443 -j SPA-JUDGE
    -A SPA-GUARD -p udp -m udp --dport 443 -j SPA-JUDGE
    -A SPA-GUARD -p udp -m udp --dport 53 -m conntrack ! --ctstate RELATED,ESTABLISHED -j SPA-REFUSE
    -A SPA-GUARD -p udp -m udp --dport 62201 -m conntrack ! --ctstate RELATED,ESTABLISHED -j SPA-REFUSE
    -A SPA-JUDGE -m set --match-set spa6 src,dst -j RETURN
    -A SPA-JUDGE -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
    -A SPA-JUDGE -j SPA-REFUSE
    -A SPA-REFUSE -j MARK --set-xmark 0x20000000/0x20000000
    -A SPA-REFUSE -j ACCEPT
    -I PREROUTING 1 -j SPA-GUARD
    COMMIT
    *filter
    :SPA-INPUT - [0:0]
    :SPA-FORWARD - [0:0]
    :SPA-REJECT - [0:0]
    -A SPA-INPUT -m mark --mark 0x20000000/0x20000000 -j SPA-REJECT
    -A SPA-INPUT -m set --match-set spa6 src,dst -j ACCEPT
    -A SPA-INPUT -p tcp -m tcp --dport 22 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -A SPA-INPUT -p tcp -m tcp --dport 443 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -A SPA-INPUT -p udp -m udp --dport 443 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -A SPA-INPUT ! -i lo -p tcp -m tcp --dport 22 -m conntrack ! --ctstate DNAT -j SPA-REJECT
    -A SPA-INPUT ! -i lo -p tcp -m tcp --dport 443 -m conntrack ! --ctstate DNAT -j SPA-REJECT
    -A SPA-INPUT ! -i lo -p udp -m udp --dport 443 -m conntrack ! --ctstate DNAT -j SPA-REJECT
    -A SPA-FORWARD -m mark --mark 0x20000000/0x20000000 -m conntrack --ctstate DNAT -j SPA-REJECT
    -A SPA-REJECT -p tcp -j REJECT --reject-with tcp-reset
    -A SPA-REJECT -j REJECT --reject-with icmp6-port-unreachable
    -I INPUT 1 -j SPA-INPUT
    -I FORWARD 1 -j SPA-FORWARD
    COMMIT
    ");
}

#[test]
fn open_mode() {
    assert_snapshot!(batches(Family::V4, &plan(Mode::Open, Refusal::Reject), &[62201]), @r"
    *filter
    :SPA-INPUT - [0:0]
    -A SPA-INPUT -m set --match-set spa4 src,dst -j ACCEPT
    -A SPA-INPUT -p tcp -m tcp --dport 22 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -A SPA-INPUT -p tcp -m tcp --dport 443 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -A SPA-INPUT -p udp -m udp --dport 443 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -I INPUT 1 -j SPA-INPUT
    COMMIT
    ");
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
    let wanted = wanted(Family::V4, TableName::Mangle, &plan(Mode::Guard, Refusal::Drop), &[62201]);
    assert_snapshot!(transition(TableName::Mangle, saved.table("mangle"), &wanted).unwrap(), @r"
    *mangle
    :SPA-GUARD - [0:0]
    -A SPA-GUARD -i lo -j RETURN
    -A SPA-GUARD -m addrtype ! --dst-type LOCAL,BROADCAST,MULTICAST -j RETURN
    -A SPA-GUARD -p tcp -m tcp --dport 22 -j SPA-JUDGE
    -A SPA-GUARD -p tcp -m tcp --dport 443 -j SPA-JUDGE
    -A SPA-GUARD -p udp -m udp --dport 443 -j SPA-JUDGE
    -A SPA-GUARD -p udp -m udp --dport 62201 -m conntrack ! --ctstate RELATED,ESTABLISHED -j SPA-REFUSE
    -D PREROUTING -j SPA-GUARD
    -D PREROUTING -j SPA-GUARD
    -I PREROUTING 1 -j SPA-GUARD
    COMMIT
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

fn live(source: &str, port: &str, seconds_left: u32) -> LiveElement {
    let element =
        super::super::Element { source: source.parse().unwrap(), ports: port.parse().unwrap() };
    LiveElement { element, seconds_left }
}

#[test]
fn sets_and_their_changes() {
    let admit =
        |live: LiveElement| Change::Admit { element: live.element, seconds: live.seconds_left };
    let four = live("192.0.2.1", "tcp/22", 30);
    let six = live("2001:db8::1", "udp/443", 3600);
    assert_snapshot!(create_set(Family::V6, set_name(Family::V6), 65536), @"create spa6 hash:ip,port family inet6 maxelem 65536 timeout 0");
    assert_snapshot!(changes(&[admit(four), admit(six), Change::Withdraw { element: six.element }]), @r"
    add spa4 192.0.2.1,tcp:22 timeout 30
    add spa6 2001:db8::1,udp:443 timeout 3600
    del spa6 2001:db8::1,udp:443
    ");
    assert_snapshot!(resize_set(Family::V4, 100, &[four, live("192.0.2.2", "tcp/22", 2_147_483)]), @r"
    create spa4-new hash:ip,port family inet maxelem 100 timeout 0
    add spa4-new 192.0.2.1,tcp:22 timeout 31
    add spa4-new 192.0.2.2,tcp:22 timeout 2147483
    swap spa4-new spa4
    destroy spa4-new
    ");
}

#[test]
fn a_set_that_is_not_ours_is_told_from_one_that_is() {
    let listed = |kind: &str, header: &str| {
        let text =
            format!("Name: spa4\nType: {kind}\nRevision: 7\nHeader: {header}\nReferences: 0\n");
        own_set_size(Family::V4, &text)
    };
    let header = "family inet hashsize 1024 maxelem 65536 timeout 0 bucketsize 12 initval 0x1";
    assert_eq!(listed("hash:ip,port", header), Ok(65536));
    assert!(listed("hash:net", header).is_err());
    assert!(listed("hash:ip,port", "family inet6 hashsize 1024 maxelem 65536 timeout 0").is_err());
    assert!(listed("hash:ip,port", "family inet hashsize 1024 maxelem 65536").is_err());
    assert!(listed("hash:ip,port", "family inet hashsize 1024 maxelem 65536 timeout 60").is_err());
    assert!(own_set_size(Family::V4, "").is_err());
}

#[test]
fn a_saved_set_is_read() {
    let text = "\
create spa6 hash:ip,port family inet6 hashsize 1024 maxelem 65536 timeout 0
add spa6 2001:db8::1,tcp:22 timeout 29
add spa6 2001:db8::2,udp:53 timeout 0
add spa6 2001:db8::3,sctp:53 timeout 7
";
    assert_eq!(
        read_elements(text),
        [live("2001:db8::1", "tcp/22", 29), live("2001:db8::2", "udp/53", 0)]
    );
}

#[test]
fn connections_for_the_conntrack_tool() {
    let connection = |transport, peer: &str, local: &str| Connection {
        transport,
        peer: peer.parse().unwrap(),
        local: local.parse().unwrap(),
    };
    let tcp = connection(Transport::Tcp, "192.0.2.1:50000", "192.0.2.2:22");
    let udp = connection(Transport::Udp, "[2001:db8::1]:50000", "[2001:db8::2]:443");
    assert_snapshot!(enter_connection(&tcp), @"-I -p tcp -s 192.0.2.1 -d 192.0.2.2 --sport 50000 --dport 22 --state ESTABLISHED -t 432000 -u SEEN_REPLY,ASSURED");
    assert_snapshot!(enter_connection(&udp), @"-I -p udp -s 2001:db8::1 -d 2001:db8::2 --sport 50000 --dport 443 -t 120 -u SEEN_REPLY,ASSURED");
    assert_snapshot!(confirm_connection(&tcp), @"-U -p tcp -s 192.0.2.1 -d 192.0.2.2 --sport 50000 --dport 22 -u SEEN_REPLY,ASSURED");
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
            "-I" => rules.insert(0, rest.strip_prefix("1 ").unwrap().to_owned()),
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

fn any_plan() -> impl Strategy<Value = Plan> {
    let port = (any::<bool>(), 1..6u16).prop_map(|(tcp, number)| {
        format!("{}/{number}", if tcp { "tcp" } else { "udp" }).parse().unwrap()
    });
    (
        prop_oneof![Just(Mode::Guard), Just(Mode::Open)],
        prop_oneof![Just(Refusal::Drop), Just(Refusal::Reject)],
        proptest::collection::vec(port, 1..4),
        proptest::collection::vec(1..6u16, 0..3),
    )
        .prop_map(|(mode, refusal, ports, knock_ports)| Plan {
            mode,
            refusal,
            guarded: ports.into_iter().map(Guarded::plain).collect(),
            knock_ports,
            always_admit: Vec::new(),
            max_elements: 9,
            trial_seconds: None,
        })
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
        plans in proptest::collection::vec(any_plan(), 1..4),
        foreign in any_foreign(),
    ) {
        for table in TableName::ALL {
            let chains = "PREROUTING INPUT FORWARD HOST SPA-INPUT SPA-GUARD SPA-REJECT";
            let mut text = format!("*{}\n", table.as_str());
            for chain in chains.split(' ') {
                let policy = if matches!(chain, "PREROUTING" | "INPUT" | "FORWARD") { "DROP" } else { "-" };
                text += &[":", chain, " ", policy, " [0:0]\n"].concat();
            }
            text += &foreign.concat();
            let start = Saved::parse(&(text + "COMMIT\n")).unwrap();
            let mut now = start.clone();
            for plan in &plans {
                let wanted = wanted(Family::V4, table, plan, &plan.knock_ports);
                let before = OwnTable::of(now.table(table.as_str()));
                let earlier = now.clone();
                if let Some(batch) = transition(table, now.table(table.as_str()), &wanted) {
                    now = play(&now, table, &batch);
                }
                let reached = now.table(table.as_str());
                prop_assert_eq!(transition(table, reached, &wanted), None);
                prop_assert_eq!(wanted.missing_in(reached), None);
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
