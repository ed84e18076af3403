//! Grants that are rules of their own.

use super::*;

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
