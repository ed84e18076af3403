use super::*;
use crate::gate::nftables::{samples, shape};
use crate::gate::types::Guarded;
use crate::service::Forward;

fn ruleset(plan: &Plan) -> String {
    let hidden = Family::ALL.map(|family| (family, plan.knock_ports.clone()));
    Ruleset::new(plan, &hidden, &shape::of_plan(plan), plan.max_elements).to_string()
}

/// A chain or a set of a ruleset.
fn part(ruleset: &str, name: &str) -> String {
    let begin = ruleset.find(&format!(" {name} {{\n")).unwrap_or_else(|| panic!("{ruleset}"));
    let text = &ruleset[begin..];
    text.lines()
        .skip(1)
        .take_while(|line| *line != "\t}")
        .map(|l| l.trim().to_owned() + "\n")
        .collect()
}

fn guarded(ports: &str) -> Guarded {
    Guarded::plain(ports.parse().unwrap())
}

fn to(text: &str) -> ForwardTo {
    match text.parse::<std::net::SocketAddr>() {
        Ok(end) => ForwardTo { address: end.ip(), port: std::num::NonZeroU16::new(end.port()) },
        Err(_) => ForwardTo { address: text.parse().unwrap(), port: None },
    }
}

fn forward(ports: &str, v4: Option<&str>, v6: Option<&str>, masquerade: bool) -> Guarded {
    let target = Target::Forward(Forward { v4: v4.map(to), v6: v6.map(to), masquerade });
    Guarded { target, ..guarded(ports) }
}

#[test]
fn plain_ports_are_judged_by_their_number() {
    insta::assert_snapshot!(ruleset(&samples::plan()), @"
    table inet spa {
    	set spa4 {
    		type ipv4_addr . inet_proto . inet_service
    		size 1024
    		flags timeout
    	}
    	set spa6 {
    		type ipv6_addr . inet_proto . inet_service
    		size 1024
    		flags timeout
    	}
    	chain refuse {
    		drop
    	}
    	chain judge4 {
    		ip saddr . meta l4proto . th dport @spa4 accept
    		goto refuse
    	}
    	chain judge6 {
    		ip6 saddr . meta l4proto . th dport @spa6 accept
    		goto refuse
    	}
    	chain judge {
    		ct state established,related accept
    		meta nfproto ipv4 goto judge4
    		goto judge6
    	}
    	chain hide {
    		ct state established,related accept
    		goto refuse
    	}
    	chain prerouting {
    		type filter hook prerouting priority mangle; policy accept;
    		meta l4proto . th dport { tcp . 22, udp . 5000 } iif != lo fib daddr type { local, anycast, broadcast, multicast } goto judge
    		meta nfproto ipv4 udp dport { 62201 } iif != lo fib daddr type { local, anycast, broadcast, multicast } goto hide
    		meta nfproto ipv6 udp dport { 62201 } iif != lo fib daddr type { local, anycast, broadcast, multicast } goto hide
    	}
    	chain input {
    		type filter hook input priority filter; policy accept;
    		ct status dnat accept
    		meta l4proto . th dport { tcp . 22, udp . 5000 } iif != lo fib daddr type != { local, anycast, broadcast, multicast } goto judge
    	}
    }
    ");
}

#[test]
fn refused_packets_are_answered_at_once() {
    let plan = Plan { refusal: Refusal::Reject, ..samples::plan() };
    insta::assert_snapshot!(part(&ruleset(&plan), "refuse"), @"
    meta l4proto tcp reject with tcp reset
    reject
    ");
}

#[test]
fn a_gate_on_trial_refuses_what_is_armed() {
    let plan = Plan { trial_seconds: Some(60), ..samples::plan() };
    let text = ruleset(&plan);
    insta::assert_snapshot!(part(&text, "refuse") + &part(&text, "armed"), @"
    meta l4proto != @armed accept
    drop
    type inet_proto
    flags timeout
    ");
    // The time that it has is no part of the rules.
    assert_eq!(text, ruleset(&Plan { trial_seconds: Some(3), ..plan }));
}

#[test]
fn ranges_have_sets_of_their_own_and_networks_too() {
    let mut plan = samples::plan();
    plan.guarded = vec![guarded("udp/100-200"), guarded("udp/150-300"), guarded("tcp/22")];
    let mut shapes = shape::of_plan(&plan);
    for name in ["spa4-24", "spa6-64", "spa4-24-udp-100-200"] {
        shapes.insert(Shape::parse(name).unwrap());
    }
    let text = Ruleset::new(&plan, &[], &shapes, 9).to_string();
    insta::assert_snapshot!(part(&text, "judge4"), @"
    ip saddr . meta l4proto . th dport @spa4 accept
    ip saddr & 255.255.255.0 . meta l4proto . th dport @spa4-24 accept
    meta l4proto . th dport vmap { udp . 100-149 : goto ports4-udp-100-149, udp . 150-200 : goto ports4-udp-150-200, udp . 201-300 : goto ports4-udp-201-300 }
    goto refuse
    ");
    insta::assert_snapshot!(part(&text, "ports4-udp-150-200"), @"
    ip saddr @spa4-udp-100-200 accept
    ip saddr & 255.255.255.0 @spa4-24-udp-100-200 accept
    ip saddr @spa4-udp-150-300 accept
    goto refuse
    ");
    insta::assert_snapshot!(part(&text, "spa4-24-udp-100-200"), @"
    type ipv4_addr
    size 9
    flags timeout
    ");
    insta::assert_snapshot!(part(&text, "judge6"), @"
    ip6 saddr . meta l4proto . th dport @spa6 accept
    ip6 saddr & ffff:ffff:ffff:ffff:: . meta l4proto . th dport @spa6-64 accept
    meta l4proto . th dport vmap { udp . 100-149 : goto ports6-udp-100-149, udp . 150-200 : goto ports6-udp-150-200, udp . 201-300 : goto ports6-udp-201-300 }
    goto refuse
    ");
}

#[test]
fn a_grant_of_one_connection_is_marked_first_and_then_used_up() {
    let mut plan = samples::plan();
    plan.guarded.push(Guarded { connections: Connections::One, ..guarded("tcp/2022") });
    plan.guarded.push(Guarded { connections: Connections::One, ..guarded("udp/7-9") });
    let text = ruleset(&plan);
    insta::assert_snapshot!(part(&text, "judge4"), @"
    meta l4proto . th dport { tcp . 2022 } goto once4
    udp dport 7-9 goto once4
    ip saddr . meta l4proto . th dport @spa4 accept
    goto refuse
    ");
    insta::assert_snapshot!(part(&text, "once4"), @"
    ct state new ct status confirmed ct mark & 0x10000000 == 0x10000000 accept
    ct state != new goto refuse
    tcp flags & (fin | syn | rst | ack) != syn goto refuse
    ip saddr . meta l4proto . th dport @spa4-once ct mark set ct mark | 0x10000000 delete @spa4-once { ip saddr . meta l4proto . th dport } accept
    meta l4proto . th dport vmap { udp . 7-9 : goto ports4-udp-7-9 }
    goto refuse
    ");
    insta::assert_snapshot!(part(&text, "ports6-udp-7-9"), @"
    ip6 saddr @spa6-once-udp-7-9 ct mark set ct mark | 0x10000000 delete @spa6-once-udp-7-9 { ip6 saddr } accept
    goto refuse
    ");
    insta::assert_snapshot!(part(&text, "spa6-once"), @"
    type ipv6_addr . inet_proto . inet_service
    size 1024
    flags dynamic,timeout
    limit rate 1/week burst 1 packets
    ");
}

#[test]
fn granted_packets_are_translated_and_no_others() {
    let mut plan = samples::plan();
    plan.guarded = vec![
        forward("tcp/2222", Some("10.0.0.5:22"), Some("[fd00::5]:22"), true),
        forward("udp/100-200", Some("10.0.0.6"), None, false),
        Guarded {
            target: Target::LocalPort(std::num::NonZeroU16::new(8022).unwrap()),
            ..guarded("tcp/22")
        },
    ];
    let text = ruleset(&plan);
    let chains =
        ["dstnat", "srcnat", "to-tcp-2222", "from-tcp-2222", "to-udp-100-200", "to-tcp-22"];
    let parts = chains.map(|chain| format!("{chain}\n{}", part(&text, chain)));
    insta::assert_snapshot!(parts.concat(), @"
    dstnat
    type nat hook prerouting priority dstnat - 1; policy accept;
    ct state new iif != lo fib daddr type local meta l4proto . th dport vmap { tcp . 22 : goto to-tcp-22, tcp . 2222 : goto to-tcp-2222, udp . 100-200 : goto to-udp-100-200 }
    srcnat
    type nat hook postrouting priority srcnat - 1; policy accept;
    ct status & dnat == 0 accept
    meta l4proto tcp ct original proto-dst vmap { 2222 : goto from-tcp-2222 }
    to-tcp-2222
    meta nfproto ipv4 meta l4proto tcp dnat ip to 10.0.0.5:22
    meta nfproto ipv6 meta l4proto tcp dnat ip6 to [fd00::5]:22
    from-tcp-2222
    ip daddr 10.0.0.5 masquerade
    ip6 daddr fd00::5 masquerade
    to-udp-100-200
    meta nfproto ipv4 meta l4proto udp dnat ip to 10.0.0.6
    to-tcp-22
    meta l4proto tcp redirect to :8022
    ");
    // Over IPv6 nobody is behind the range.
    insta::assert_snapshot!(part(&text, "judge6"), @"
    udp dport 100-200 goto refuse
    ip6 saddr . meta l4proto . th dport @spa6 accept
    meta l4proto . th dport vmap { udp . 100-200 : goto ports6-udp-100-200 }
    goto refuse
    ");
    let on_trial = ruleset(&Plan { trial_seconds: Some(60), ..plan });
    assert!(part(&on_trial, "dstnat").contains("meta l4proto != @armed accept\nct state new"));
}

#[test]
fn some_are_always_admitted() {
    let mut plan = samples::plan();
    plan.always_admit =
        ["192.0.2.0/24", "192.0.2.7/32", "2001:db8::/32"].map(|n| n.parse().unwrap()).to_vec();
    let text = ruleset(&plan);
    assert!(part(&text, "judge4").starts_with("ip saddr { 192.0.2.0/24 } accept\n"), "{text}");
    assert!(part(&text, "judge6").starts_with("ip6 saddr { 2001:db8::/32 } accept\n"), "{text}");
    // Not to knock ports.
    assert!(part(&text, "prerouting").contains("udp dport { 62201 } iif != lo"), "{text}");
    assert!(!part(&text, "hide").contains("saddr"));
}

#[test]
fn a_knock_port_that_a_service_uses_is_judged_and_a_busy_one_left_alone() {
    let mut plan = samples::plan();
    plan.guarded.push(guarded("udp/62201"));
    assert!(!part(&ruleset(&plan), "prerouting").contains("hide"));
    let text =
        Ruleset::new(&samples::plan(), &[(Family::V6, vec![53])], &BTreeSet::new(), 9).to_string();
    assert_eq!(part(&text, "prerouting").matches("goto hide").count(), 1);
    assert!(part(&text, "prerouting").contains("meta nfproto ipv6 udp dport { 53 }"));
}
