//! Services of which a grant lets in one connection.

use super::*;

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
