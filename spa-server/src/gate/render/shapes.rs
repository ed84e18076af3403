//! What is rendered, as text: every shape there is.

use super::super::saved::Saved;
use super::super::types::Element;
use super::*;
use crate::service::{Connections, Forward, ForwardTo, Target};
use insta::assert_snapshot;

fn guarded(ports: &str) -> Guarded {
    Guarded::plain(ports.parse().unwrap())
}

fn forward(v4: Option<&str>, v6: Option<&str>, masquerade: bool) -> Target {
    let to = |text: &str| {
        let at = text.parse::<std::net::SocketAddr>().ok();
        ForwardTo {
            address: at.map_or_else(|| text.parse().unwrap(), |at| at.ip()),
            port: at.and_then(|at| at.port().try_into().ok()),
        }
    };
    Target::Forward(Forward { v4: v4.map(to), v6: v6.map(to), masquerade })
}

fn plan(mode: Mode, refusal: Refusal, guarded: &[Guarded]) -> Plan {
    Plan {
        mode,
        refusal,
        guarded: guarded.to_vec(),
        always_admit: Vec::new(),
        trial_seconds: None,
        knock_ports: vec![62201, 443, 53],
        max_elements: 65536,
    }
}

/// The services of most of these: 443 is a knock port, too.
fn plain() -> [Guarded; 4] {
    ["tcp/22", "udp/443", "tcp/443", "tcp/22"].map(guarded)
}

fn layout(family: Family, plan: &Plan) -> Layout<'_> {
    let armed = if plan.trial_seconds.is_some() { Armed::BySet } else { Armed::ForGood };
    // 53 is not among the knock ports: a real service listens there.
    let knock_ports = &[62201, 443];
    Layout { family, plan, knock_ports, grants: Grants::InSets, armed, cut: &[] }
}

/// The batches for a family where nothing is yet, table after table.
fn batches(layout: &Layout<'_>) -> String {
    let none = Saved::default();
    TableName::ALL
        .into_iter()
        .filter_map(|table| transition(table, none.table(table.as_str()), &wanted(table, layout)))
        .collect()
}

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
fn forwards_and_local_ports() {
    let mut services = ["tcp/22", "tcp/2222", "tcp/8443", "udp/10000-10100", "tcp/90"].map(guarded);
    services[1].target = Target::LocalPort(22.try_into().unwrap());
    services[2].target = forward(Some("10.0.0.5:443"), Some("[fd00::5]:443"), true);
    services[3].target = forward(Some("10.0.0.5"), Some("fd00::5"), false);
    // Not there over IPv6.
    services[4].target = forward(Some("10.0.0.6:90"), None, true);
    let plan = plan(Mode::Guard, Refusal::Reject, &services);
    assert_snapshot!(batches(&layout(Family::V4, &plan)), @r"
    *nat
    :SPA-NAT - [0:0]
    :SPA-TARGET - [0:0]
    :SPA-MASQUERADE - [0:0]
    -A SPA-NAT -i lo -j RETURN
    -A SPA-NAT -m addrtype ! --dst-type LOCAL -j RETURN
    -A SPA-NAT -m set --match-set spa4 src,dst -j SPA-TARGET
    -A SPA-NAT -m set --match-set spa4-net src,dst -j SPA-TARGET
    -A SPA-NAT -p udp -m udp --dport 10000:10100 -m set --match-set spa4-udp-10000-10100 src -j SPA-TARGET
    -A SPA-TARGET -j CONNMARK --set-xmark 0x40000000/0x40000000
    -A SPA-TARGET -j CONNMARK --set-xmark 0x0/0x20000000
    -A SPA-TARGET -p tcp -m tcp --dport 2222 -j REDIRECT --to-ports 22
    -A SPA-TARGET -p tcp -m tcp --dport 8443 -j DNAT --to-destination 10.0.0.5:443
    -A SPA-TARGET -p tcp -m tcp --dport 90 -j DNAT --to-destination 10.0.0.6:90
    -A SPA-TARGET -p udp -m udp --dport 10000:10100 -j DNAT --to-destination 10.0.0.5
    -A SPA-MASQUERADE -m conntrack --ctstate DNAT --ctproto 6 --ctreplsrc 10.0.0.5 --ctorigdstport 8443 -j MASQUERADE
    -A SPA-MASQUERADE -m conntrack --ctstate DNAT --ctproto 6 --ctreplsrc 10.0.0.6 --ctorigdstport 90 -j MASQUERADE
    -I POSTROUTING 1 -j SPA-MASQUERADE
    -I PREROUTING 1 -j SPA-NAT
    COMMIT
    *mangle
    :SPA-GUARD - [0:0]
    :SPA-JUDGE - [0:0]
    :SPA-REFUSE - [0:0]
    -A SPA-GUARD -i lo -j RETURN
    -A SPA-GUARD -m addrtype ! --dst-type LOCAL,BROADCAST,MULTICAST -j RETURN
    -A SPA-GUARD -p tcp -m multiport --dports 22,90,2222,8443 -g SPA-JUDGE
    -A SPA-GUARD -p udp -m udp --dport 10000:10100 -g SPA-JUDGE
    -A SPA-GUARD -p udp -m multiport --dports 443,62201 -m conntrack ! --ctstate RELATED,ESTABLISHED -j SPA-REFUSE
    -A SPA-JUDGE -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
    -A SPA-JUDGE -j CONNMARK --set-xmark 0x0/0x20000000
    -A SPA-JUDGE -m set --match-set spa4 src,dst -j RETURN
    -A SPA-JUDGE -m set --match-set spa4-net src,dst -j RETURN
    -A SPA-JUDGE -p udp -m udp --dport 10000:10100 -m set --match-set spa4-udp-10000-10100 src -j RETURN
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
    :SPA-SENT - [0:0]
    :SPA-MARKED - [0:0]
    :SPA-REJECT - [0:0]
    -A SPA-INPUT -m mark --mark 0x20000000/0x20000000 -j SPA-MARKED
    -A SPA-INPUT -m connmark --mark 0x20000000/0x20000000 -m conntrack --ctstate DNAT -j SPA-MARKED
    -A SPA-INPUT -m conntrack --ctstate DNAT -j SPA-SENT
    -A SPA-INPUT -p tcp -m multiport --dports 22,90,2222,8443 -g SPA-ADMIT
    -A SPA-INPUT -p udp -m udp --dport 10000:10100 -g SPA-ADMIT
    -A SPA-ADMIT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -A SPA-ADMIT -m set --match-set spa4 src,dst -j ACCEPT
    -A SPA-ADMIT -m set --match-set spa4-net src,dst -j ACCEPT
    -A SPA-ADMIT -i lo -j RETURN
    -A SPA-ADMIT -m conntrack --ctstate DNAT -j RETURN
    -A SPA-ADMIT -j SPA-REJECT
    -A SPA-FORWARD -m conntrack ! --ctstate DNAT -j RETURN
    -A SPA-FORWARD -m mark --mark 0x20000000/0x20000000 -m conntrack --ctstate DNAT -j SPA-MARKED
    -A SPA-FORWARD -m connmark --mark 0x20000000/0x20000000 -m conntrack --ctstate DNAT -j SPA-MARKED
    -A SPA-FORWARD -j SPA-SENT
    -A SPA-SENT -m conntrack --ctstate NEW -m connmark ! --mark 0x40000000/0x40000000 -j RETURN
    -A SPA-SENT -p tcp -m tcp --dport 22 -m conntrack --ctstate DNAT --ctorigdstport 2222 -j ACCEPT
    -A SPA-SENT -m conntrack --ctstate DNAT --ctproto 17 --ctreplsrc 10.0.0.5 --ctorigdstport 10000:10100 -j ACCEPT
    -A SPA-SENT -m conntrack --ctstate DNAT --ctproto 6 --ctreplsrc 10.0.0.5 --ctorigdstport 8443 -j ACCEPT
    -A SPA-SENT -m conntrack --ctstate DNAT --ctproto 6 --ctreplsrc 10.0.0.6 --ctorigdstport 90 -j ACCEPT
    -A SPA-MARKED -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
    -A SPA-MARKED -p udp -m multiport --dports 443,62201 -m conntrack ! --ctstate DNAT -j SPA-REJECT
    -A SPA-MARKED -m conntrack --ctstate DNAT --ctproto 17 --ctorigdstport 443 -j SPA-REJECT
    -A SPA-MARKED -m conntrack --ctstate DNAT --ctproto 17 --ctorigdstport 62201 -j SPA-REJECT
    -A SPA-MARKED -m conntrack --ctstate DNAT --ctproto 6 --ctorigdstport 22 -j SPA-REJECT
    -A SPA-MARKED -m conntrack --ctstate DNAT --ctproto 6 --ctorigdstport 90 -j SPA-REJECT
    -A SPA-MARKED -m conntrack --ctstate DNAT --ctproto 6 --ctorigdstport 2222 -j SPA-REJECT
    -A SPA-MARKED -m conntrack --ctstate DNAT --ctproto 6 --ctorigdstport 8443 -j SPA-REJECT
    -A SPA-MARKED -m conntrack --ctstate DNAT --ctproto 17 --ctorigdstport 10000:10100 -j SPA-REJECT
    -A SPA-REJECT -p tcp -j REJECT --reject-with tcp-reset
    -A SPA-REJECT -j REJECT --reject-with icmp-port-unreachable
    -I FORWARD 1 -j SPA-FORWARD
    -I INPUT 1 -j SPA-INPUT
    COMMIT
    ");
    assert_snapshot!(batches(&layout(Family::V6, &plan)), @r"
    *nat
    :SPA-NAT - [0:0]
    :SPA-TARGET - [0:0]
    :SPA-MASQUERADE - [0:0]
    -A SPA-NAT -i lo -j RETURN
    -A SPA-NAT -m addrtype ! --dst-type LOCAL -j RETURN
    -A SPA-NAT -m set --match-set spa6 src,dst -j SPA-TARGET
    -A SPA-NAT -m set --match-set spa6-net src,dst -j SPA-TARGET
    -A SPA-NAT -p udp -m udp --dport 10000:10100 -m set --match-set spa6-udp-10000-10100 src -j SPA-TARGET
    -A SPA-TARGET -j CONNMARK --set-xmark 0x40000000/0x40000000
    -A SPA-TARGET -j CONNMARK --set-xmark 0x0/0x20000000
    -A SPA-TARGET -p tcp -m tcp --dport 2222 -j REDIRECT --to-ports 22
    -A SPA-TARGET -p tcp -m tcp --dport 8443 -j DNAT --to-destination [fd00::5]:443
    -A SPA-TARGET -p udp -m udp --dport 10000:10100 -j DNAT --to-destination fd00::5
    -A SPA-MASQUERADE -m conntrack --ctstate DNAT --ctproto 6 --ctreplsrc fd00::5 --ctorigdstport 8443 -j MASQUERADE
    -I POSTROUTING 1 -j SPA-MASQUERADE
    -I PREROUTING 1 -j SPA-NAT
    COMMIT
    *mangle
    :SPA-GUARD - [0:0]
    :SPA-JUDGE - [0:0]
    :SPA-REFUSE - [0:0]
    -A SPA-GUARD -i lo -j RETURN
    -A SPA-GUARD ! -d ff00::/8 -m addrtype ! --dst-type LOCAL,ANYCAST -j RETURN
    -A SPA-GUARD -p tcp -m multiport --dports 22,2222,8443 -g SPA-JUDGE
    -A SPA-GUARD -p udp -m udp --dport 10000:10100 -g SPA-JUDGE
    -A SPA-GUARD -p tcp -m tcp --dport 90 -m conntrack ! --ctstate RELATED,ESTABLISHED -j SPA-REFUSE
    -A SPA-GUARD -p udp -m multiport --dports 443,62201 -m conntrack ! --ctstate RELATED,ESTABLISHED -j SPA-REFUSE
    -A SPA-JUDGE -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
    -A SPA-JUDGE -j CONNMARK --set-xmark 0x0/0x20000000
    -A SPA-JUDGE -m set --match-set spa6 src,dst -j RETURN
    -A SPA-JUDGE -m set --match-set spa6-net src,dst -j RETURN
    -A SPA-JUDGE -p udp -m udp --dport 10000:10100 -m set --match-set spa6-udp-10000-10100 src -j RETURN
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
    :SPA-SENT - [0:0]
    :SPA-MARKED - [0:0]
    :SPA-REJECT - [0:0]
    -A SPA-INPUT -m mark --mark 0x20000000/0x20000000 -j SPA-MARKED
    -A SPA-INPUT -m connmark --mark 0x20000000/0x20000000 -m conntrack --ctstate DNAT -j SPA-MARKED
    -A SPA-INPUT -m conntrack --ctstate DNAT -j SPA-SENT
    -A SPA-INPUT -p tcp -m multiport --dports 22,90,2222,8443 -g SPA-ADMIT
    -A SPA-INPUT -p udp -m udp --dport 10000:10100 -g SPA-ADMIT
    -A SPA-ADMIT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -A SPA-ADMIT -m set --match-set spa6 src,dst -j ACCEPT
    -A SPA-ADMIT -m set --match-set spa6-net src,dst -j ACCEPT
    -A SPA-ADMIT -i lo -j RETURN
    -A SPA-ADMIT -m conntrack --ctstate DNAT -j RETURN
    -A SPA-ADMIT -j SPA-REJECT
    -A SPA-FORWARD -m conntrack ! --ctstate DNAT -j RETURN
    -A SPA-FORWARD -m mark --mark 0x20000000/0x20000000 -m conntrack --ctstate DNAT -j SPA-MARKED
    -A SPA-FORWARD -m connmark --mark 0x20000000/0x20000000 -m conntrack --ctstate DNAT -j SPA-MARKED
    -A SPA-FORWARD -j SPA-SENT
    -A SPA-SENT -m conntrack --ctstate NEW -m connmark ! --mark 0x40000000/0x40000000 -j RETURN
    -A SPA-SENT -p tcp -m tcp --dport 22 -m conntrack --ctstate DNAT --ctorigdstport 2222 -j ACCEPT
    -A SPA-SENT -m conntrack --ctstate DNAT --ctproto 17 --ctreplsrc fd00::5 --ctorigdstport 10000:10100 -j ACCEPT
    -A SPA-SENT -m conntrack --ctstate DNAT --ctproto 6 --ctreplsrc fd00::5 --ctorigdstport 8443 -j ACCEPT
    -A SPA-MARKED -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
    -A SPA-MARKED -p tcp -m tcp --dport 90 -m conntrack ! --ctstate DNAT -j SPA-REJECT
    -A SPA-MARKED -p udp -m multiport --dports 443,62201 -m conntrack ! --ctstate DNAT -j SPA-REJECT
    -A SPA-MARKED -m conntrack --ctstate DNAT --ctproto 6 --ctorigdstport 90 -j SPA-REJECT
    -A SPA-MARKED -m conntrack --ctstate DNAT --ctproto 17 --ctorigdstport 443 -j SPA-REJECT
    -A SPA-MARKED -m conntrack --ctstate DNAT --ctproto 17 --ctorigdstport 62201 -j SPA-REJECT
    -A SPA-MARKED -m conntrack --ctstate DNAT --ctproto 6 --ctorigdstport 22 -j SPA-REJECT
    -A SPA-MARKED -m conntrack --ctstate DNAT --ctproto 6 --ctorigdstport 2222 -j SPA-REJECT
    -A SPA-MARKED -m conntrack --ctstate DNAT --ctproto 6 --ctorigdstport 8443 -j SPA-REJECT
    -A SPA-MARKED -m conntrack --ctstate DNAT --ctproto 17 --ctorigdstport 10000:10100 -j SPA-REJECT
    -A SPA-REJECT -p tcp -j REJECT --reject-with tcp-reset
    -A SPA-REJECT -j REJECT --reject-with icmp6-port-unreachable
    -I FORWARD 1 -j SPA-FORWARD
    -I INPUT 1 -j SPA-INPUT
    COMMIT
    ");
}

/// Services of which a grant lets in one connection, one of each kind.
fn limited() -> [Guarded; 4] {
    let mut services = ["tcp/22", "tcp/23", "udp/10000-10100", "tcp/8443"].map(guarded);
    for one in &mut services[1..] {
        one.connections = Connections::One;
    }
    services[3].target = forward(Some("10.0.0.5:443"), None, false);
    services
}

#[test]
fn one_connection() {
    let mut plan = plan(Mode::Guard, Refusal::Drop, &limited());
    plan.always_admit = vec!["192.0.2.0/24".parse().unwrap()];
    assert_snapshot!(batches(&layout(Family::V4, &plan)), @r"
    *nat
    :SPA-NAT - [0:0]
    :SPA-TARGET - [0:0]
    -A SPA-NAT -i lo -j RETURN
    -A SPA-NAT -m addrtype ! --dst-type LOCAL -j RETURN
    -A SPA-NAT -s 192.0.2.0/24 -j SPA-TARGET
    -A SPA-NAT -p tcp -m tcp --dport 8443 -m connmark --mark 0x10000000/0x10000000 -j SPA-TARGET
    -A SPA-NAT -m set --match-set spa4 src,dst -j SPA-TARGET
    -A SPA-NAT -m set --match-set spa4-net src,dst -j SPA-TARGET
    -A SPA-TARGET -j CONNMARK --set-xmark 0x40000000/0x40000000
    -A SPA-TARGET -p tcp -m tcp --dport 8443 -j DNAT --to-destination 10.0.0.5:443
    -I PREROUTING 1 -j SPA-NAT
    COMMIT
    *mangle
    :SPA-GUARD - [0:0]
    :SPA-JUDGE - [0:0]
    :SPA-ONCE - [0:0]
    :SPA-REFUSE - [0:0]
    -A SPA-GUARD -i lo -j RETURN
    -A SPA-GUARD -m addrtype ! --dst-type LOCAL,BROADCAST,MULTICAST -j RETURN
    -A SPA-GUARD -p tcp -m tcp --dport 22 -g SPA-JUDGE
    -A SPA-GUARD -p tcp -m multiport --dports 23,8443 -g SPA-ONCE
    -A SPA-GUARD -p udp -m udp --dport 10000:10100 -g SPA-ONCE
    -A SPA-GUARD -p udp -m multiport --dports 443,62201 -m conntrack ! --ctstate RELATED,ESTABLISHED -j SPA-REFUSE
    -A SPA-JUDGE -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
    -A SPA-JUDGE -s 192.0.2.0/24 -j RETURN
    -A SPA-JUDGE -m set --match-set spa4 src,dst -j RETURN
    -A SPA-JUDGE -m set --match-set spa4-net src,dst -j RETURN
    -A SPA-JUDGE -j SPA-REFUSE
    -A SPA-ONCE -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
    -A SPA-ONCE -s 192.0.2.0/24 -j RETURN
    -A SPA-ONCE -m conntrack ! --ctstatus CONFIRMED -j CONNMARK --set-xmark 0x0/0x10000000
    -A SPA-ONCE -m connmark --mark 0x10000000/0x10000000 -j RETURN
    -A SPA-ONCE -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j SPA-REFUSE
    -A SPA-ONCE -m set --match-set spa4-once src,dst -j CONNMARK --set-xmark 0x10000000/0x10000000
    -A SPA-ONCE -m connmark --mark 0x10000000/0x10000000 -j SET --del-set spa4-once src,dst
    -A SPA-ONCE -p udp -m udp --dport 10000:10100 -m set --match-set spa4-once-udp-10000-10100 src -j CONNMARK --set-xmark 0x10000000/0x10000000
    -A SPA-ONCE -p udp -m udp --dport 10000:10100 -m connmark --mark 0x10000000/0x10000000 -j SET --del-set spa4-once-udp-10000-10100 src
    -A SPA-ONCE -m connmark --mark 0x10000000/0x10000000 -j RETURN
    -A SPA-ONCE -j SPA-REFUSE
    -A SPA-REFUSE -j DROP
    -I PREROUTING 1 -j SPA-GUARD
    COMMIT
    *filter
    :SPA-INPUT - [0:0]
    :SPA-ADMIT - [0:0]
    :SPA-FORWARD - [0:0]
    :SPA-SENT - [0:0]
    -A SPA-INPUT -p tcp -m tcp --dport 23 -m connmark --mark 0x10000000/0x10000000 -j ACCEPT
    -A SPA-INPUT -p udp -m udp --dport 10000:10100 -m connmark --mark 0x10000000/0x10000000 -j ACCEPT
    -A SPA-INPUT -p tcp -m multiport --dports 22,23,8443 -g SPA-ADMIT
    -A SPA-INPUT -p udp -m udp --dport 10000:10100 -g SPA-ADMIT
    -A SPA-ADMIT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -A SPA-ADMIT -s 192.0.2.0/24 -j ACCEPT
    -A SPA-ADMIT -m set --match-set spa4 src,dst -j ACCEPT
    -A SPA-ADMIT -m set --match-set spa4-net src,dst -j ACCEPT
    -A SPA-ADMIT -i lo -j RETURN
    -A SPA-ADMIT -m conntrack --ctstate DNAT -j RETURN
    -A SPA-ADMIT -j DROP
    -A SPA-FORWARD -m conntrack ! --ctstate DNAT -j RETURN
    -A SPA-FORWARD -j SPA-SENT
    -A SPA-SENT -m conntrack --ctstate NEW -m connmark ! --mark 0x40000000/0x40000000 -j RETURN
    -A SPA-SENT -m conntrack --ctstate DNAT --ctproto 6 --ctreplsrc 10.0.0.5 --ctorigdstport 8443 -j ACCEPT
    -I FORWARD 1 -j SPA-FORWARD
    -I INPUT 1 -j SPA-INPUT
    COMMIT
    ");
}

#[test]
fn one_connection_in_open_mode() {
    let plan = plan(Mode::Open, Refusal::Drop, &limited()[..2]);
    assert_snapshot!(batches(&layout(Family::V6, &plan)), @r"
    *mangle
    :SPA-GUARD - [0:0]
    :SPA-ONCE - [0:0]
    -A SPA-GUARD -i lo -j RETURN
    -A SPA-GUARD ! -d ff00::/8 -m addrtype ! --dst-type LOCAL,ANYCAST -j RETURN
    -A SPA-GUARD -p tcp -m tcp --dport 23 -g SPA-ONCE
    -A SPA-ONCE -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
    -A SPA-ONCE -m conntrack ! --ctstatus CONFIRMED -j CONNMARK --set-xmark 0x0/0x10000000
    -A SPA-ONCE -m connmark --mark 0x10000000/0x10000000 -j RETURN
    -A SPA-ONCE -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j RETURN
    -A SPA-ONCE -m set --match-set spa6-once src,dst -j CONNMARK --set-xmark 0x10000000/0x10000000
    -A SPA-ONCE -m connmark --mark 0x10000000/0x10000000 -j SET --del-set spa6-once src,dst
    -A SPA-ONCE -m connmark --mark 0x10000000/0x10000000 -j RETURN
    -A SPA-ONCE -j RETURN
    -I PREROUTING 1 -j SPA-GUARD
    COMMIT
    *filter
    :SPA-INPUT - [0:0]
    :SPA-ADMIT - [0:0]
    -A SPA-INPUT -p tcp -m tcp --dport 23 -m connmark --mark 0x10000000/0x10000000 -j ACCEPT
    -A SPA-INPUT -p tcp -m multiport --dports 22,23 -g SPA-ADMIT
    -A SPA-ADMIT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -A SPA-ADMIT -m set --match-set spa6 src,dst -j ACCEPT
    -A SPA-ADMIT -m set --match-set spa6-net src,dst -j ACCEPT
    -I INPUT 1 -j SPA-INPUT
    COMMIT
    ");
}

#[test]
fn a_gate_on_trial() {
    let mut plan = plan(Mode::Guard, Refusal::Reject, &[guarded("tcp/22")]);
    plan.trial_seconds = Some(60);
    assert_snapshot!(batches(&layout(Family::V4, &plan)), @r"
    *mangle
    :SPA-GUARD - [0:0]
    :SPA-JUDGE - [0:0]
    :SPA-REFUSE - [0:0]
    -A SPA-GUARD -i lo -j RETURN
    -A SPA-GUARD -m addrtype ! --dst-type LOCAL,BROADCAST,MULTICAST -j RETURN
    -A SPA-GUARD -p tcp -m tcp --dport 22 -g SPA-JUDGE
    -A SPA-GUARD -p udp -m multiport --dports 443,62201 -m conntrack ! --ctstate RELATED,ESTABLISHED -j SPA-REFUSE
    -A SPA-JUDGE -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
    -A SPA-JUDGE -j CONNMARK --set-xmark 0x0/0x20000000
    -A SPA-JUDGE -m set --match-set spa4 src,dst -j RETURN
    -A SPA-JUDGE -m set --match-set spa4-net src,dst -j RETURN
    -A SPA-JUDGE -j SPA-REFUSE
    -A SPA-REFUSE -m set --match-set spa4-armed src -j CONNMARK --set-xmark 0x20000000/0x20000000
    -A SPA-REFUSE -m set --match-set spa4-armed src -j MARK --set-xmark 0x20000000/0x20000000
    -A SPA-REFUSE -m set --match-set spa4-armed src -j ACCEPT
    -I PREROUTING 1 -j SPA-GUARD
    COMMIT
    *filter
    :SPA-INPUT - [0:0]
    :SPA-ADMIT - [0:0]
    :SPA-FORWARD - [0:0]
    :SPA-MARKED - [0:0]
    :SPA-REJECT - [0:0]
    -A SPA-INPUT -m set --match-set spa4-armed src -m mark --mark 0x20000000/0x20000000 -j SPA-MARKED
    -A SPA-INPUT -m set --match-set spa4-armed src -m connmark --mark 0x20000000/0x20000000 -m conntrack --ctstate DNAT -j SPA-MARKED
    -A SPA-INPUT -p tcp -m tcp --dport 22 -g SPA-ADMIT
    -A SPA-ADMIT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -A SPA-ADMIT -m set --match-set spa4 src,dst -j ACCEPT
    -A SPA-ADMIT -m set --match-set spa4-net src,dst -j ACCEPT
    -A SPA-ADMIT -i lo -j RETURN
    -A SPA-ADMIT -m conntrack --ctstate DNAT -j RETURN
    -A SPA-ADMIT -m set --match-set spa4-armed src -j SPA-REJECT
    -A SPA-FORWARD -m set --match-set spa4-armed src -m mark --mark 0x20000000/0x20000000 -m conntrack --ctstate DNAT -j SPA-MARKED
    -A SPA-FORWARD -m set --match-set spa4-armed src -m connmark --mark 0x20000000/0x20000000 -m conntrack --ctstate DNAT -j SPA-MARKED
    -A SPA-MARKED -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
    -A SPA-MARKED -p udp -m multiport --dports 443,62201 -m conntrack ! --ctstate DNAT -j SPA-REJECT
    -A SPA-MARKED -m conntrack --ctstate DNAT --ctproto 17 --ctorigdstport 443 -j SPA-REJECT
    -A SPA-MARKED -m conntrack --ctstate DNAT --ctproto 17 --ctorigdstport 62201 -j SPA-REJECT
    -A SPA-MARKED -m conntrack --ctstate DNAT --ctproto 6 --ctorigdstport 22 -j SPA-REJECT
    -A SPA-REJECT -p tcp -j REJECT --reject-with tcp-reset
    -A SPA-REJECT -j REJECT --reject-with icmp-port-unreachable
    -I FORWARD 1 -j SPA-FORWARD
    -I INPUT 1 -j SPA-INPUT
    COMMIT
    ");
}

#[test]
fn grants_as_rules() {
    let mut services = ["tcp/22", "tcp/2222", "tcp/23", "udp/10000-10100"].map(guarded);
    services[1].target = Target::LocalPort(22.try_into().unwrap());
    services[2].connections = Connections::One;
    let held = |source: &str, ports: &str, list: Option<&str>| HeldRule {
        element: Element { source: source.parse().unwrap(), ports: ports.parse().unwrap() },
        until: 1_795_255_199,
        list: list.map(str::to_owned),
    };
    let held = [
        held("192.0.2.7", "tcp/22", None),
        held("192.0.2.0/24", "tcp/2222", None),
        held("192.0.2.7", "tcp/23", Some("spa-18d0-0")),
        held("192.0.2.7", "udp/10000-10100", None),
        held("192.0.2.7", "udp/10050", None),
        // Of another family, of another plan, of a plan that let in one connection.
        held("2001:db8::7", "tcp/22", None),
        held("192.0.2.7", "tcp/99", None),
        held("192.0.2.7", "tcp/22", Some("spa-18d0-1")),
    ];
    let plan = plan(Mode::Guard, Refusal::Drop, &services);
    let mut layout = layout(Family::V4, &plan);
    layout.grants = Grants::InRules(&held);
    layout.armed = Armed::Until(1_795_255_199);
    assert_snapshot!(batches(&layout), @r#"
    *nat
    :SPA-NAT - [0:0]
    :SPA-TARGET - [0:0]
    :SPA-GRANTS - [0:0]
    -A SPA-NAT -i lo -j RETURN
    -A SPA-NAT -m addrtype ! --dst-type LOCAL -j RETURN
    -A SPA-NAT -j SPA-GRANTS
    -A SPA-TARGET -j CONNMARK --set-xmark 0x40000000/0x40000000
    -A SPA-TARGET -p tcp -m tcp --dport 2222 -j REDIRECT --to-ports 22
    -A SPA-GRANTS -s 192.0.2.0/24 -p tcp -m tcp --dport 2222 -m time --datestop 2026-11-21T09:59:59 -m comment --comment "spa:tcp/2222 from 192.0.2.0/24:1795255199" -j SPA-TARGET
    -I PREROUTING 1 -j SPA-NAT
    COMMIT
    *mangle
    :SPA-GUARD - [0:0]
    :SPA-JUDGE - [0:0]
    :SPA-ONCE - [0:0]
    :SPA-GRANTS - [0:0]
    :SPA-FIRST - [0:0]
    :SPA-REFUSE - [0:0]
    -A SPA-GUARD -i lo -j RETURN
    -A SPA-GUARD -m addrtype ! --dst-type LOCAL,BROADCAST,MULTICAST -j RETURN
    -A SPA-GUARD -p tcp -m multiport --dports 22,2222 -g SPA-JUDGE
    -A SPA-GUARD -p udp -m udp --dport 10000:10100 -g SPA-JUDGE
    -A SPA-GUARD -p tcp -m tcp --dport 23 -g SPA-ONCE
    -A SPA-GUARD -p udp -m multiport --dports 443,62201 -m conntrack ! --ctstate RELATED,ESTABLISHED -j SPA-REFUSE
    -A SPA-JUDGE -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
    -A SPA-JUDGE -g SPA-GRANTS
    -A SPA-ONCE -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
    -A SPA-ONCE -m conntrack ! --ctstatus CONFIRMED -j CONNMARK --set-xmark 0x0/0x10000000
    -A SPA-ONCE -m connmark --mark 0x10000000/0x10000000 -j RETURN
    -A SPA-ONCE -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j SPA-REFUSE
    -A SPA-ONCE -g SPA-GRANTS
    -A SPA-GRANTS -s 192.0.2.7/32 -p tcp -m tcp --dport 22 -m time --datestop 2026-11-21T09:59:59 -m comment --comment "spa:tcp/22 from 192.0.2.7:1795255199" -j RETURN
    -A SPA-GRANTS -s 192.0.2.0/24 -p tcp -m tcp --dport 2222 -m time --datestop 2026-11-21T09:59:59 -m comment --comment "spa:tcp/2222 from 192.0.2.0/24:1795255199" -j RETURN
    -A SPA-GRANTS -s 192.0.2.7/32 -p tcp -m tcp --dport 23 -m time --datestop 2026-11-21T09:59:59 -m recent ! --rcheck --name spa-18d0-0 --mask 255.255.255.255 --rsource -m recent --set --name spa-18d0-0 --mask 255.255.255.255 --rsource -m comment --comment "spa:tcp/23 from 192.0.2.7:1795255199" -g SPA-FIRST
    -A SPA-GRANTS -s 192.0.2.7/32 -p udp -m udp --dport 10000:10100 -m time --datestop 2026-11-21T09:59:59 -m comment --comment "spa:udp/10000-10100 from 192.0.2.7:1795255199" -j RETURN
    -A SPA-GRANTS -s 192.0.2.7/32 -p udp -m udp --dport 10050 -m time --datestop 2026-11-21T09:59:59 -m comment --comment "spa:udp/10050 from 192.0.2.7:1795255199" -j RETURN
    -A SPA-GRANTS -j SPA-REFUSE
    -A SPA-FIRST -j CONNMARK --set-xmark 0x10000000/0x10000000
    -A SPA-REFUSE -m time --datestop 2026-11-21T09:59:59 -j DROP
    -I PREROUTING 1 -j SPA-GUARD
    COMMIT
    *filter
    :SPA-INPUT - [0:0]
    :SPA-ADMIT - [0:0]
    :SPA-GRANTS - [0:0]
    :SPA-SENT - [0:0]
    -A SPA-INPUT -m conntrack --ctstate DNAT -j SPA-SENT
    -A SPA-INPUT -p tcp -m tcp --dport 23 -m connmark --mark 0x10000000/0x10000000 -j ACCEPT
    -A SPA-INPUT -p tcp -m multiport --dports 22,23,2222 -g SPA-ADMIT
    -A SPA-INPUT -p udp -m udp --dport 10000:10100 -g SPA-ADMIT
    -A SPA-ADMIT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -A SPA-ADMIT -j SPA-GRANTS
    -A SPA-ADMIT -i lo -j RETURN
    -A SPA-ADMIT -m conntrack --ctstate DNAT -j RETURN
    -A SPA-ADMIT -m time --datestop 2026-11-21T09:59:59 -j DROP
    -A SPA-GRANTS -s 192.0.2.7/32 -p tcp -m tcp --dport 22 -m time --datestop 2026-11-21T09:59:59 -m comment --comment "spa:tcp/22 from 192.0.2.7:1795255199" -j ACCEPT
    -A SPA-GRANTS -s 192.0.2.7/32 -p udp -m udp --dport 10000:10100 -m time --datestop 2026-11-21T09:59:59 -m comment --comment "spa:udp/10000-10100 from 192.0.2.7:1795255199" -j ACCEPT
    -A SPA-GRANTS -s 192.0.2.7/32 -p udp -m udp --dport 10050 -m time --datestop 2026-11-21T09:59:59 -m comment --comment "spa:udp/10050 from 192.0.2.7:1795255199" -j ACCEPT
    -A SPA-SENT -m conntrack --ctstate NEW -m connmark ! --mark 0x40000000/0x40000000 -j RETURN
    -A SPA-SENT -p tcp -m tcp --dport 22 -m conntrack --ctstate DNAT --ctorigdstport 2222 -j ACCEPT
    -I INPUT 1 -j SPA-INPUT
    COMMIT
    "#);
    let mangle = wanted(TableName::Mangle, &layout);
    let (_, grants) = mangle.chains.iter().find(|(chain, _)| *chain == GRANTS).unwrap();
    let read: Vec<_> = grants.iter().filter_map(|rule| read_held(rule)).collect();
    assert_eq!(read, held[..5]);

    layout.family = Family::V6;
    let rule = rule_in(TableName::Filter, &layout, &held[5]).unwrap();
    assert_snapshot!(rule, @r#"-s 2001:db8::7/128 -p tcp -m tcp --dport 22 -m time --datestop 2026-11-21T09:59:59 -m comment --comment "spa:tcp/22 from 2001:db8::7:1795255199" -j ACCEPT"#);
    assert_eq!(read_held(&rule).as_ref(), held.get(5));
    let network = HeldRule {
        element: Element {
            source: "2001:db8::/56".parse().unwrap(),
            ports: "tcp/23".parse().unwrap(),
        },
        ..held[2].clone()
    };
    assert_snapshot!(rule_in(TableName::Mangle, &layout, &network).unwrap(), @r#"-s 2001:db8::/56 -p tcp -m tcp --dport 23 -m time --datestop 2026-11-21T09:59:59 -m recent ! --rcheck --name spa-18d0-0 --mask ffff:ffff:ffff:ff00:: --rsource -m recent --set --name spa-18d0-0 --mask ffff:ffff:ffff:ff00:: --rsource -m comment --comment "spa:tcp/23 from 2001:db8::/56:1795255199" -g SPA-FIRST"#);
}

#[test]
fn the_end_of_a_trial_is_read_back() {
    let text = "*mangle\n:SPA-REFUSE - [0:0]\n-A SPA-REFUSE -m time --datestop 2026-11-21T10:00:00 -j DROP\nCOMMIT\n";
    let saved = Saved::parse(text).unwrap();
    assert_eq!(armed_until(saved.table("mangle")), Some(1_795_255_200));
    assert_eq!(armed_until(Saved::default().table("mangle")), None);
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
