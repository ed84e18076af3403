//! Services that are forwarded, or lead to another port.

use super::*;

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
