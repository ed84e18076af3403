//! What a service can be: ranges, networks, other ports, other hosts, one connection.

use crate::lab::{
    CLIENT, INNER, Lab, OPEN, REFUSED, SERVER, SILENT, STRANGER, Seen, admit, at_fresh_port,
    at_once, element, hears, plan, uninterrupted, with_all_gates, withdraw,
};
use spa_server::gate::{Change, Gate as _, Guarded, Mode, Plan, Refusal};
use spa_server::service::{Connections, Forward, ForwardTo, Target};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

with_all_gates!(
    ranges_are_opened_whole_and_in_part,
    networks_are_admitted,
    some_are_always_admitted,
    a_service_leads_to_another_local_port,
    a_service_leads_to_another_host,
    a_service_that_a_family_lacks_stays_shut_there,
    one_connection_uses_a_grant_up,
    one_exchange_of_datagrams_uses_a_grant_up,
    one_connection_to_another_host_uses_a_grant_up,
    a_changed_plan_takes_the_grants_with_it,
    open_mode_leads_on_and_counts_connections_too,
);

/// Both families, and a verdict for each.
const DEFAULT_DROP: [&str; 5] = [
    "-A INPUT -i lo -j ACCEPT",
    "-A INPUT -p icmpv6 -j ACCEPT",
    "-A FORWARD -p icmpv6 -j ACCEPT",
    "-P INPUT DROP",
    "-P FORWARD DROP",
];

fn guarded(ports: &str) -> Guarded {
    Guarded::plain(ports.parse().unwrap())
}

fn with(mode: Mode, refusal: Refusal, services: &[Guarded]) -> Plan {
    let mut plan = plan(mode, refusal);
    plan.guarded.extend(services);
    plan
}

fn forward(port: Option<u16>, masquerade: bool) -> Target {
    let to = |address: &str| ForwardTo {
        address: address.parse().unwrap(),
        port: port.and_then(|port| port.try_into().ok()),
    };
    Target::Forward(Forward { v4: Some(to(INNER[0])), v6: Some(to(INNER[1])), masquerade })
}

fn listen(lab: &Lab, place: &str, port: u16) -> TcpListener {
    lab.inside(place, || TcpListener::bind(("::", port)).unwrap())
}

fn bind(lab: &Lab, place: &str, port: u16) -> UdpSocket {
    lab.inside(place, || UdpSocket::bind(("::", port)).unwrap())
}

fn ranges_are_opened_whole_and_in_part(lab: &Lab) {
    let _listeners = [8000, 8005, 8010, 8011].map(|port| listen(lab, "s", port));
    let sockets = [10000, 10100, 10101].map(|port| bind(lab, "s", port));
    for (refusal, shut) in [(Refusal::Drop, SILENT), (Refusal::Reject, REFUSED)] {
        let plan = with(Mode::Guard, refusal, &["tcp/8000-8010", "udp/10000-10100"].map(guarded));
        lab.install(&plan);
        assert_eq!(lab.both(CLIENT, 8011), OPEN);
        for port in [8000, 8005, 8010] {
            assert_eq!(lab.both(CLIENT, port), shut);
        }
        lab.apply(&plan, &admit(CLIENT, "tcp/8000-8010", 600));
        for port in [8000, 8005, 8010] {
            assert_eq!(lab.both(CLIENT, port), OPEN);
        }
        assert_eq!(lab.both(STRANGER, 8005), shut);
        assert_eq!(lab.both(CLIENT, 22), shut);
        lab.apply(&plan, &withdraw(CLIENT, "tcp/8000-8010"));
        assert_eq!(lab.both(CLIENT, 8005), shut);

        // One port of it.
        lab.apply(&plan, &admit(CLIENT, "tcp/8005", 600));
        assert_eq!([lab.both(CLIENT, 8005), lab.both(CLIENT, 8000)], [OPEN, shut]);

        let udp = |at: usize| {
            let port = sockets[at].local_addr().unwrap().port();
            at_once(|family| lab.udp(family, port, Some(&sockets[at])))
        };
        assert_eq!([udp(0), udp(1), udp(2)], [shut, shut, OPEN]);
        lab.apply(&plan, &admit(CLIENT, "udp/10000-10100", 600));
        assert_eq!([udp(0), udp(1), udp(2)], [OPEN; 3]);

        let found = lab.installed(&plan, |gate| async move {
            let found = gate.snapshot().await.unwrap();
            gate.apply(&withdraw(CLIENT, "tcp/8005")).await.unwrap();
            gate.apply(&withdraw(CLIENT, "udp/10000-10100")).await.unwrap();
            assert_eq!(gate.snapshot().await.unwrap(), []);
            found
        });
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(found.iter().any(|live| live.element == element(CLIENT[1], "udp/10000-10100")));
    }
}

fn networks_are_admitted(lab: &Lab) {
    let _listener = listen(lab, "s", 8005);
    let networks = ["192.0.2.0/30", "2001:db8:1::/126"];
    let plan = with(Mode::Guard, Refusal::Drop, &[guarded("tcp/8000-8010")]);
    lab.install(&plan);
    assert_eq!([lab.both(CLIENT, 22), lab.both(CLIENT, 8005)], [SILENT; 2]);
    let mut changes = admit(networks, "tcp/22", 600);
    changes.extend(admit(networks, "tcp/8000-8010", 600));
    lab.apply(&plan, &changes);
    for port in [22, 8005] {
        assert_eq!([lab.both(CLIENT, port), lab.both(STRANGER, port)], [OPEN; 2]);
    }
    // The stranger is in it, but not in a smaller one.
    let smaller = ["192.0.2.0/31", "2001:db8:1::/127"];
    lab.apply(&plan, &[withdraw(networks, "tcp/22"), admit(smaller, "tcp/22", 600)].concat());
    assert_eq!([lab.both(CLIENT, 22), lab.both(STRANGER, 22)], [OPEN, SILENT]);
    lab.installed(&plan, |gate| async move {
        let mut found: Vec<_> =
            gate.snapshot().await.unwrap().into_iter().map(|live| live.element).collect();
        found.sort_unstable();
        let mut expected = [
            smaller.map(|source| element(source, "tcp/22")),
            networks.map(|source| element(source, "tcp/8000-8010")),
        ]
        .concat();
        expected.sort_unstable();
        assert_eq!(found, expected);
    });
}

fn some_are_always_admitted(lab: &Lab) {
    lab.rules(lab.variant, &DEFAULT_DROP);
    let mut led = guarded("tcp/2222");
    led.target = Target::LocalPort(80.try_into().unwrap());
    let mut behind = guarded("tcp/8443");
    behind.target = forward(Some(22), false);
    let mut once = guarded("tcp/80");
    once.connections = Connections::One;
    let mut plan = with(Mode::Guard, Refusal::Reject, &[led, behind, once]);
    plan.always_admit =
        CLIENT.map(|address| address.parse::<std::net::IpAddr>().unwrap().into()).to_vec();
    lab.install(&plan);
    for port in [22, 2222, 8443, 80, 80] {
        assert_eq!([lab.both(CLIENT, port), lab.both(STRANGER, port)], [OPEN, REFUSED], "{port}");
    }
    // Never more than the guarded ports.
    let _listener = listen(lab, "s", 8081);
    assert_eq!(lab.both(CLIENT, 8081), SILENT);
    plan.always_admit.clear();
    lab.install(&plan);
    assert_eq!(lab.both(CLIENT, 22), REFUSED);
    lab.remove();
    lab.rules(lab.variant, &["-P INPUT ACCEPT"]);
    assert_eq!(lab.both(CLIENT, 8081), OPEN);
}

fn a_service_leads_to_another_local_port(lab: &Lab) {
    for host_drops in [false, true] {
        if host_drops {
            lab.rules(lab.variant, &DEFAULT_DROP);
        }
        for (refusal, shut) in [(Refusal::Drop, SILENT), (Refusal::Reject, REFUSED)] {
            let mut led = guarded("tcp/2222");
            led.target = Target::LocalPort(22.try_into().unwrap());
            // To a port that is guarded, and to one that isn't.
            let mut range = guarded("tcp/8000-8010");
            range.target = Target::LocalPort(80.try_into().unwrap());
            let plan = with(Mode::Guard, refusal, &[led, range]);
            let warnings = lab.with_gate(&lab.variant.overrides(), |gate| {
                let plan = plan.clone();
                async move { gate.install(&plan).await.unwrap().warnings }
            });
            assert!(warnings.len() == 1 && warnings[0].contains("tcp/80"), "{warnings:?}");
            assert_eq!(lab.both(CLIENT, 2222), shut);
            lab.apply(&plan, &admit(CLIENT, "tcp/2222", 600));
            assert_eq!([lab.both(CLIENT, 2222), lab.both(CLIENT, 22)], [OPEN, shut]);
            assert_eq!(lab.both(STRANGER, 2222), shut);
            lab.apply(&plan, &admit(CLIENT, "tcp/8000-8010", 600));
            assert_eq!([lab.both(CLIENT, 8003), lab.both(STRANGER, 8003)], [OPEN, shut]);

            // What is established lives on.
            let mut session = meet(lab, 1, 2222, &lab.listener("s", 22));
            lab.apply(&plan, &withdraw(CLIENT, "tcp/2222"));
            assert_eq!(lab.both(CLIENT, 2222), shut);
            assert!(hears(&mut session.0, &mut session.1) && hears(&mut session.1, &mut session.0));
            lab.remove();
        }
    }
}

/// A connection from the client to a port of the server, and the end that the listener has.
fn meet(lab: &Lab, family: usize, port: u16, listener: &TcpListener) -> (TcpStream, TcpStream) {
    lab.session_by(family, port, listener).expect("a connection")
}

fn a_service_leads_to_another_host(lab: &Lab) {
    let inner = lab.listener("i", 22);
    let before = lab.ruleset();
    for host_drops in [false, true] {
        if host_drops {
            lab.rules(lab.variant, &DEFAULT_DROP);
        }
        for (refusal, shut) in [(Refusal::Drop, SILENT), (Refusal::Reject, REFUSED)] {
            let masquerade = host_drops == (refusal == Refusal::Drop);
            let mut other_port = guarded("tcp/2222");
            other_port.target = forward(Some(22), masquerade);
            let mut same_port = guarded("tcp/20-30");
            same_port.target = forward(None, masquerade);
            let mut plan = plan(Mode::Guard, refusal);
            plan.guarded = vec![other_port, same_port];
            lab.install(&plan);
            assert_eq!([lab.both(CLIENT, 2222), lab.both(CLIENT, 22)], [shut; 2]);
            lab.apply(&plan, &admit(CLIENT, "tcp/2222", 600));
            assert_eq!([lab.both(CLIENT, 2222), lab.both(CLIENT, 22)], [OPEN, shut]);
            lab.apply(&plan, &admit(CLIENT, "tcp/20-30", 600));
            assert_eq!([lab.both(CLIENT, 22), lab.both(STRANGER, 22)], [OPEN, shut]);
            assert_eq!(lab.both(STRANGER, 2222), shut);
            // Nobody else's way is opened: to the other host itself.
            let direct = at_once(|family| lab.tcp(CLIENT[family], INNER[family], 22));
            assert_eq!(direct, if host_drops { SILENT } else { OPEN });

            for family in 0..2 {
                let (mut near, mut far) = meet(lab, family, 2222, &inner);
                let peer = far.peer_addr().unwrap().ip().to_canonical().to_string();
                assert_eq!(peer == CLIENT[family], !masquerade, "{peer}");
                assert!(hears(&mut near, &mut far) && hears(&mut far, &mut near));
                lab.apply(&plan, &withdraw(CLIENT, "tcp/2222"));
                assert_eq!(lab.tcp(CLIENT[family], SERVER[family], 2222), shut[family]);
                assert!(hears(&mut near, &mut far) && hears(&mut far, &mut near));
                lab.apply(&plan, &admit(CLIENT, "tcp/2222", 600));
            }
            lab.remove();
        }
    }
    lab.rules(lab.variant, &["-P INPUT ACCEPT", "-P FORWARD ACCEPT", "-F INPUT", "-F FORWARD"]);
    assert_eq!(lab.ruleset(), before);
}

fn a_service_that_a_family_lacks_stays_shut_there(lab: &Lab) {
    let _listener = listen(lab, "s", 2222);
    let mut service = guarded("tcp/2222");
    let Target::Forward(both) = forward(Some(22), false) else { unreachable!() };
    service.target = Target::Forward(Forward { v6: None, ..both });
    for (refusal, shut) in [(Refusal::Drop, Seen::Silent), (Refusal::Reject, Seen::Refused)] {
        let mut plan = with(Mode::Guard, refusal, &[service]);
        lab.apply(&plan, &admit(CLIENT, "tcp/2222", 600));
        assert_eq!(lab.both(CLIENT, 2222), [Seen::Open, shut]);
        plan.always_admit = vec!["2001:db8::/32".parse().unwrap()];
        lab.install(&plan);
        assert_eq!(lab.both(CLIENT, 2222), [Seen::Open, shut]);
    }
    lab.on("s", "sysctl -qw net.ipv4.ip_forward=0");
    let warnings = lab.with_gate(&lab.variant.overrides(), |gate| async move {
        gate.examine(&with(Mode::Guard, Refusal::Drop, &[service])).await.unwrap().warnings
    });
    assert!(warnings.len() == 1 && warnings[0].contains("net.ipv4.ip_forward"), "{warnings:?}");
}

fn one_connection_uses_a_grant_up(lab: &Lab) {
    let listener = lab.listener("s", 80);
    let mut service = guarded("tcp/80");
    service.connections = Connections::One;
    let mut range = guarded("tcp/8000-8010");
    range.connections = Connections::One;
    let ranged = listen(lab, "s", 8005);
    for host_drops in [false, true] {
        if host_drops {
            lab.rules(lab.variant, &DEFAULT_DROP);
        }
        for (refusal, shut) in [(Refusal::Drop, SILENT), (Refusal::Reject, REFUSED)] {
            let plan = with(Mode::Guard, refusal, &[service, range]);
            for (port, ports, listener) in
                [(80, "tcp/80", &listener), (8005, "tcp/8000-8010", &ranged)]
            {
                lab.apply(&plan, &admit(CLIENT, ports, 600));
                assert_eq!(lab.both(STRANGER, port), shut);
                // What opens no connection uses nothing up.
                let seen = lab.nmap(0, &["-sA", "-sF", "-sN"], [port, 23]);
                assert_eq!(seen[0].len(), 3);
                for family in 0..2 {
                    let (mut near, mut far) = meet(lab, family, port, listener);
                    assert_eq!(lab.tcp(CLIENT[family], SERVER[family], port), shut[family]);
                    assert!(hears(&mut near, &mut far) && hears(&mut far, &mut near));
                }
                lab.installed(&plan, |gate| async move {
                    assert_eq!(gate.snapshot().await.unwrap(), []);
                });
            }
            // As many as come through the other services.
            lab.apply(&plan, &admit(CLIENT, "tcp/22", 600));
            assert_eq!([lab.both(CLIENT, 22), lab.both(CLIENT, 22)], [OPEN; 2]);
            let networks = ["192.0.2.0/24", "2001:db8::/64"];
            lab.installed(&plan, |gate| async move {
                let error = gate.apply(&admit(networks, "tcp/80", 600)).await.unwrap_err();
                assert!(error.to_string().contains("one address only"), "{error}");
                gate.apply(&withdraw(CLIENT, "tcp/22")).await.unwrap();
            });
        }
    }
}

fn one_exchange_of_datagrams_uses_a_grant_up(lab: &Lab) {
    let socket = bind(lab, "s", 5000);
    socket.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
    let mut plan = plan(Mode::Guard, Refusal::Drop);
    plan.guarded[1].connections = Connections::One;
    lab.apply(&plan, &admit(CLIENT, "udp/5000", 600));
    for family in 0..2 {
        let sender = || {
            lab.inside("c", || {
                let sender = at_fresh_port(|port| UdpSocket::bind((CLIENT[family], port)));
                sender.connect((SERVER[family], 5000)).unwrap();
                sender
            })
        };
        let (first, second) = (sender(), sender());
        let arrives = |sender: &UdpSocket| {
            sender.send(b"anybody there?").unwrap();
            uninterrupted(|| socket.recv_from(&mut [0; 64])).ok()
        };
        // Also before anybody has answered.
        assert!(arrives(&first).is_some());
        assert!(arrives(&first).is_some());
        assert!(arrives(&second).is_none());
        let (_, peer) = arrives(&first).unwrap();
        socket.send_to(b"here", peer).unwrap();
        first.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let came = uninterrupted(|| first.recv(&mut [0; 64]));
        assert_eq!(came.unwrap(), 4);
        assert!(arrives(&first).is_some() && arrives(&second).is_none());
    }
}

fn one_connection_to_another_host_uses_a_grant_up(lab: &Lab) {
    lab.rules(lab.variant, &DEFAULT_DROP);
    let inner = lab.listener("i", 22);
    let mut service = guarded("tcp/2222");
    service.target = forward(Some(22), true);
    service.connections = Connections::One;
    let mut led = guarded("tcp/2223");
    led.target = Target::LocalPort(80.try_into().unwrap());
    led.connections = Connections::One;
    let server = lab.listener("s", 80);
    let plan = with(Mode::Guard, Refusal::Reject, &[service, led]);
    for (port, listener) in [(2222, &inner), (2223, &server)] {
        lab.apply(&plan, &admit(CLIENT, &format!("tcp/{port}"), 600));
        for family in 0..2 {
            let (mut near, mut far) = meet(lab, family, port, listener);
            assert_eq!(lab.tcp(CLIENT[family], SERVER[family], port), Seen::Refused);
            assert!(hears(&mut near, &mut far) && hears(&mut far, &mut near));
        }
    }
    // A repeated first packet belongs to the connection, though nobody has answered yet.
    lab.apply(&plan, &admit(CLIENT, "tcp/2222", 600));
    for family in 0..2 {
        lab.on("i", "nft add table inet lossy");
        lab.on("i", "nft add chain inet lossy in { type filter hook input priority 0 ; }");
        lab.on("i", "nft add rule inet lossy in tcp dport 22 counter drop");
        let lost = || {
            let listed = lab.on("i", "nft list chain inet lossy in");
            let packets = listed.split("packets ").nth(1).unwrap();
            packets.split(' ').next().unwrap().parse::<u32>().unwrap()
        };
        let session = std::thread::scope(|scope| {
            let connecting = scope.spawn(|| lab.session_by(family, 2222, &inner));
            lab.wait("a lost repeated packet", || lost() >= 2);
            assert_eq!(lab.tcp(CLIENT[family], SERVER[family], 2222), Seen::Refused);
            lab.on("i", "nft delete table inet lossy");
            connecting.join().unwrap()
        });
        let (mut near, mut far) = session.expect("a connection");
        assert!(hears(&mut near, &mut far) && hears(&mut far, &mut near));
    }
}

fn a_changed_plan_takes_the_grants_with_it(lab: &Lab) {
    let listener = listen(lab, "s", 8005);
    let any = with(Mode::Guard, Refusal::Drop, &[guarded("tcp/8000-8010")]);
    let mut once = any.clone();
    once.guarded.iter_mut().for_each(|one| one.connections = Connections::One);
    let ports = ["tcp/22", "tcp/8000-8010", "tcp/8006"];
    let changes: Vec<Change> = ports.iter().flat_map(|ports| admit(CLIENT, ports, 600)).collect();
    lab.apply(&any, &changes);
    assert_eq!([lab.both(CLIENT, 8005), lab.both(CLIENT, 8005)], [OPEN; 2]);
    let count = |plan: &Plan| {
        lab.installed(plan, |gate| async move { gate.snapshot().await.unwrap().len() })
    };
    assert_eq!(count(&once), 6);
    let _session = meet(lab, 0, 8005, &listener);
    assert_eq!(lab.both(CLIENT, 8005), [Seen::Silent, Seen::Open]);
    assert_eq!(count(&any), 4);
    assert_eq!(lab.both(CLIENT, 22), OPEN);
    if !lab.in_sets {
        return;
    }
    // The sets of what the plan no longer has are gone.
    let mut less = any;
    less.guarded.truncate(2);
    lab.install(&less);
    let sets = lab.on("s", "ipset list -n");
    let mut sets: Vec<_> = sets.lines().collect();
    sets.sort_unstable();
    assert_eq!(sets, ["spa4", "spa4-net", "spa6", "spa6-net"]);
    assert_eq!(lab.both(CLIENT, 22), OPEN);
}

fn open_mode_leads_on_and_counts_connections_too(lab: &Lab) {
    lab.rules(lab.variant, &DEFAULT_DROP);
    let inner = lab.listener("i", 22);
    let mut service = guarded("tcp/2222");
    service.target = forward(Some(22), false);
    let mut once = guarded("tcp/80");
    once.connections = Connections::One;
    let plan = with(Mode::Open, Refusal::Drop, &[service, once, guarded("tcp/8000-8010")]);
    lab.install(&plan);
    assert_eq!([lab.both(CLIENT, 2222), lab.both(CLIENT, 80)], [SILENT; 2]);
    let changes = [admit(CLIENT, "tcp/2222", 600), admit(CLIENT, "tcp/80", 600)].concat();
    lab.apply(&plan, &changes);
    assert_eq!([lab.both(CLIENT, 2222), lab.both(STRANGER, 2222)], [OPEN, SILENT]);
    let _session = meet(lab, 1, 2222, &inner);
    assert_eq!(lab.both(CLIENT, 80), OPEN);
    assert_eq!(lab.both(CLIENT, 80), SILENT);
}
