//! What each mode and each way to refuse is rendered as.

use super::*;

#[test]
fn guard_mode_that_drops() {
    let plan = plan(Mode::Guard, Refusal::Drop, &plain());
    assert_snapshot!(batches(&layout(Family::V4, &plan)), @r"
    *mangle
    :SPA-GUARD - [0:0]
    :SPA-JUDGE - [0:0]
    :SPA-REFUSE - [0:0]
    -A SPA-GUARD -i lo -j RETURN
    -A SPA-GUARD -m addrtype ! --dst-type LOCAL,BROADCAST,MULTICAST -j RETURN
    -A SPA-GUARD -p tcp -m multiport --dports 22,443 -g SPA-JUDGE
    -A SPA-GUARD -p udp -m udp --dport 443 -g SPA-JUDGE
    -A SPA-GUARD -p udp -m udp --dport 62201 -m conntrack ! --ctstate RELATED,ESTABLISHED -j SPA-REFUSE
    -A SPA-JUDGE -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
    -A SPA-JUDGE -m set --match-set spa4 src,dst -j RETURN
    -A SPA-JUDGE -m set --match-set spa4-net src,dst -j RETURN
    -A SPA-JUDGE -j SPA-REFUSE
    -A SPA-REFUSE -j DROP
    -I PREROUTING 1 -j SPA-GUARD
    COMMIT
    *filter
    :SPA-INPUT - [0:0]
    :SPA-ADMIT - [0:0]
    -A SPA-INPUT -p tcp -m multiport --dports 22,443 -g SPA-ADMIT
    -A SPA-INPUT -p udp -m udp --dport 443 -g SPA-ADMIT
    -A SPA-ADMIT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -A SPA-ADMIT -m set --match-set spa4 src,dst -j ACCEPT
    -A SPA-ADMIT -m set --match-set spa4-net src,dst -j ACCEPT
    -A SPA-ADMIT -i lo -j RETURN
    -A SPA-ADMIT -m conntrack --ctstate DNAT -j RETURN
    -A SPA-ADMIT -j DROP
    -I INPUT 1 -j SPA-INPUT
    COMMIT
    ");
}

#[test]
fn guard_mode_that_rejects() {
    let plan = plan(Mode::Guard, Refusal::Reject, &plain());
    assert_snapshot!(batches(&layout(Family::V6, &plan)), @r"
    *mangle
    :SPA-GUARD - [0:0]
    :SPA-JUDGE - [0:0]
    :SPA-REFUSE - [0:0]
    -A SPA-GUARD -i lo -j RETURN
    -A SPA-GUARD ! -d ff00::/8 -m addrtype ! --dst-type LOCAL,ANYCAST -j RETURN
    -A SPA-GUARD -p tcp -m multiport --dports 22,443 -g SPA-JUDGE
    -A SPA-GUARD -p udp -m udp --dport 443 -g SPA-JUDGE
    -A SPA-GUARD -p udp -m udp --dport 62201 -m conntrack ! --ctstate RELATED,ESTABLISHED -j SPA-REFUSE
    -A SPA-JUDGE -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
    -A SPA-JUDGE -j CONNMARK --set-xmark 0x0/0x20000000
    -A SPA-JUDGE -m set --match-set spa6 src,dst -j RETURN
    -A SPA-JUDGE -m set --match-set spa6-net src,dst -j RETURN
    -A SPA-JUDGE -j SPA-REFUSE
    -A SPA-REFUSE -j CONNMARK --set-xmark 0x20000000/0x20000000
    -A SPA-REFUSE -j MARK --set-xmark 0x20000000/0x20000000
    -A SPA-REFUSE -j ACCEPT
    -I PREROUTING 1 -j SPA-GUARD
    COMMIT
    *filter
    :SPA-INPUT - [0:0]
    :SPA-ADMIT - [0:0]
    :SPA-FORWARD - [0:0]
    :SPA-MARKED - [0:0]
    :SPA-REJECT - [0:0]
    -A SPA-INPUT -m mark --mark 0x20000000/0x20000000 -j SPA-MARKED
    -A SPA-INPUT -m connmark --mark 0x20000000/0x20000000 -m conntrack --ctstate DNAT -j SPA-MARKED
    -A SPA-INPUT -p tcp -m multiport --dports 22,443 -g SPA-ADMIT
    -A SPA-INPUT -p udp -m udp --dport 443 -g SPA-ADMIT
    -A SPA-ADMIT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -A SPA-ADMIT -m set --match-set spa6 src,dst -j ACCEPT
    -A SPA-ADMIT -m set --match-set spa6-net src,dst -j ACCEPT
    -A SPA-ADMIT -i lo -j RETURN
    -A SPA-ADMIT -m conntrack --ctstate DNAT -j RETURN
    -A SPA-ADMIT -j SPA-REJECT
    -A SPA-FORWARD -m mark --mark 0x20000000/0x20000000 -m conntrack --ctstate DNAT -j SPA-MARKED
    -A SPA-FORWARD -m connmark --mark 0x20000000/0x20000000 -m conntrack --ctstate DNAT -j SPA-MARKED
    -A SPA-MARKED -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
    -A SPA-MARKED -p udp -m udp --dport 62201 -m conntrack ! --ctstate DNAT -j SPA-REJECT
    -A SPA-MARKED -m conntrack --ctstate DNAT --ctproto 17 --ctorigdstport 62201 -j SPA-REJECT
    -A SPA-MARKED -m conntrack --ctstate DNAT --ctproto 6 --ctorigdstport 22 -j SPA-REJECT
    -A SPA-MARKED -m conntrack --ctstate DNAT --ctproto 6 --ctorigdstport 443 -j SPA-REJECT
    -A SPA-MARKED -m conntrack --ctstate DNAT --ctproto 17 --ctorigdstport 443 -j SPA-REJECT
    -A SPA-REJECT -p tcp -j REJECT --reject-with tcp-reset
    -A SPA-REJECT -j REJECT --reject-with icmp6-port-unreachable
    -I FORWARD 1 -j SPA-FORWARD
    -I INPUT 1 -j SPA-INPUT
    COMMIT
    ");
}

#[test]
fn open_mode() {
    let plan = plan(Mode::Open, Refusal::Reject, &plain());
    assert_snapshot!(batches(&layout(Family::V4, &plan)), @r"
    *filter
    :SPA-INPUT - [0:0]
    :SPA-ADMIT - [0:0]
    -A SPA-INPUT -p tcp -m multiport --dports 22,443 -g SPA-ADMIT
    -A SPA-INPUT -p udp -m udp --dport 443 -g SPA-ADMIT
    -A SPA-ADMIT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -A SPA-ADMIT -m set --match-set spa4 src,dst -j ACCEPT
    -A SPA-ADMIT -m set --match-set spa4-net src,dst -j ACCEPT
    -I INPUT 1 -j SPA-INPUT
    COMMIT
    ");
}

#[test]
fn ranges_and_those_who_are_always_admitted() {
    let guarded = ["tcp/22", "udp/10000-10100", "udp/10050", "udp/62000-62300"].map(guarded);
    let mut plan = plan(Mode::Guard, Refusal::Drop, &guarded);
    plan.always_admit = ["192.0.2.0/24", "2001:db8::/64", "0.0.0.0/0", "192.0.2.0/24"]
        .map(|n| n.parse().unwrap())
        .to_vec();
    assert_snapshot!(batches(&layout(Family::V4, &plan)), @r"
    *mangle
    :SPA-GUARD - [0:0]
    :SPA-JUDGE - [0:0]
    :SPA-REFUSE - [0:0]
    -A SPA-GUARD -i lo -j RETURN
    -A SPA-GUARD -m addrtype ! --dst-type LOCAL,BROADCAST,MULTICAST -j RETURN
    -A SPA-GUARD -p tcp -m tcp --dport 22 -g SPA-JUDGE
    -A SPA-GUARD -p udp -m multiport --dports 10000:10100,10050,62000:62300 -g SPA-JUDGE
    -A SPA-GUARD -p udp -m udp --dport 443 -m conntrack ! --ctstate RELATED,ESTABLISHED -j SPA-REFUSE
    -A SPA-JUDGE -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
    -A SPA-JUDGE -j RETURN
    -A SPA-JUDGE -s 192.0.2.0/24 -j RETURN
    -A SPA-JUDGE -m set --match-set spa4 src,dst -j RETURN
    -A SPA-JUDGE -m set --match-set spa4-net src,dst -j RETURN
    -A SPA-JUDGE -p udp -m udp --dport 10000:10100 -m set --match-set spa4-udp-10000-10100 src -j RETURN
    -A SPA-JUDGE -p udp -m udp --dport 62000:62300 -m set --match-set spa4-udp-62000-62300 src -j RETURN
    -A SPA-JUDGE -j SPA-REFUSE
    -A SPA-REFUSE -j DROP
    -I PREROUTING 1 -j SPA-GUARD
    COMMIT
    *filter
    :SPA-INPUT - [0:0]
    :SPA-ADMIT - [0:0]
    -A SPA-INPUT -p tcp -m tcp --dport 22 -g SPA-ADMIT
    -A SPA-INPUT -p udp -m multiport --dports 10000:10100,10050,62000:62300 -g SPA-ADMIT
    -A SPA-ADMIT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -A SPA-ADMIT -j ACCEPT
    -A SPA-ADMIT -s 192.0.2.0/24 -j ACCEPT
    -A SPA-ADMIT -m set --match-set spa4 src,dst -j ACCEPT
    -A SPA-ADMIT -m set --match-set spa4-net src,dst -j ACCEPT
    -A SPA-ADMIT -p udp -m udp --dport 10000:10100 -m set --match-set spa4-udp-10000-10100 src -j ACCEPT
    -A SPA-ADMIT -p udp -m udp --dport 62000:62300 -m set --match-set spa4-udp-62000-62300 src -j ACCEPT
    -A SPA-ADMIT -i lo -j RETURN
    -A SPA-ADMIT -m conntrack --ctstate DNAT -j RETURN
    -A SPA-ADMIT -j DROP
    -I INPUT 1 -j SPA-INPUT
    COMMIT
    ");
}

#[test]
fn many_ports_take_few_rules() {
    let services: Vec<_> = (1..=20).map(|port| guarded(&format!("tcp/{port}"))).collect();
    let plan = plan(Mode::Guard, Refusal::Drop, &services);
    let mangle = wanted(TableName::Mangle, &layout(Family::V4, &plan));
    assert_snapshot!(mangle.chains[0].1.join("\n"), @r"
    -i lo -j RETURN
    -m addrtype ! --dst-type LOCAL,BROADCAST,MULTICAST -j RETURN
    -p tcp -m multiport --dports 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15 -g SPA-JUDGE
    -p tcp -m multiport --dports 16,17,18,19,20 -g SPA-JUDGE
    -p udp -m multiport --dports 443,62201 -m conntrack ! --ctstate RELATED,ESTABLISHED -j SPA-REFUSE
    ");
    let ranges = [
        "tcp/1-2",
        "tcp/3-4",
        "tcp/5-6",
        "tcp/7-8",
        "tcp/9-10",
        "tcp/11-12",
        "tcp/13-14",
        "tcp/15-16",
    ];
    let rules = ports::each(ranges.map(|ports| ports.parse().unwrap()), "-j X");
    assert_snapshot!(rules.join("\n"), @r"
    -p tcp -m multiport --dports 1:2,3:4,5:6,7:8,9:10,11:12,13:14 -j X
    -p tcp -m tcp --dport 15:16 -j X
    ");
}
