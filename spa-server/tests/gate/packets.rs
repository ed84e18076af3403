//! What gets through the gate, and what does not.

use crate::lab::{
    CLIENT, INNER, LINK_LOCAL, Lab, OPEN, REFUSED, SERVER, SILENT, STRANGER, Seen, admit,
    at_fresh_port, at_once, element, hears, plan, uninterrupted, with_both_variants, withdraw,
};
use spa_server::gate::{
    Family, Gate as _, GateError, Guarded, IptablesGate, LiveElement, Mode, Refusal,
};
use std::net::{SocketAddr, SocketAddrV6, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

with_both_variants!(
    guard_hides_the_port_and_a_grant_opens_it_for_its_source_only,
    reject_looks_like_a_closed_port,
    no_scan_tells_a_guarded_port_from_a_closed_one,
    broadcasts_and_multicasts_do_not_get_around_the_gate,
    the_kernel_closes_by_itself,
    an_established_session_outlives_its_grant,
    knock_ports_are_hidden_but_for_those_of_real_services,
    loopback_and_own_addresses_pass,
    addresses_that_only_a_policy_route_makes_local_are_guarded_too,
    a_port_that_the_host_redirects_to_a_guarded_one_is_not_guarded_itself,
    the_marks_of_forwarded_packets_are_other_peoples,
    a_published_port_is_judged_by_its_number_before_translation,
    traffic_to_other_hosts_is_not_touched,
    an_idle_session_survives_the_installation_where_nothing_was_tracked,
    a_half_tracked_session_survives_the_installation,
    a_snapshot_tells_what_is_admitted,
    changes_that_no_plan_covers_are_refused,
    a_full_set_is_told,
);

fn guard_hides_the_port_and_a_grant_opens_it_for_its_source_only(lab: &Lab) {
    let plan = plan(Mode::Guard, Refusal::Drop);
    assert_eq!(lab.both(STRANGER, 22), OPEN);
    lab.install(&plan);
    assert_eq!(lab.both(CLIENT, 22), SILENT);
    assert_eq!(lab.both(CLIENT, 80), OPEN);

    lab.apply(&plan, &admit(CLIENT, "tcp/22", 600));
    assert_eq!(lab.both(CLIENT, 22), OPEN);
    assert_eq!(lab.both(STRANGER, 22), SILENT);

    lab.apply(&plan, &withdraw(CLIENT, "tcp/22"));
    assert_eq!(lab.both(CLIENT, 22), SILENT);

    // So are the addresses of the link itself.
    let (mine, its) = LINK_LOCAL;
    assert_eq!(lab.tcp(mine, its, 80), Seen::Open);
    assert_eq!(lab.tcp(mine, its, 22), Seen::Silent);
    lab.apply(&plan, &admit([CLIENT[0], mine], "tcp/22", 600));
    assert_eq!(lab.tcp(mine, its, 22), Seen::Open);

    // UDP alike: guarded, then granted.
    let socket = lab.inside("s", || UdpSocket::bind("[::]:5000").unwrap());
    let udp = || at_once(|family| lab.udp(family, 5000, Some(&socket)));
    assert_eq!(udp(), SILENT);
    lab.apply(&plan, &admit(CLIENT, "udp/5000", 600));
    assert_eq!(udp(), OPEN);
    lab.remove();
    assert_eq!(lab.both(CLIENT, 22), OPEN);
}

fn reject_looks_like_a_closed_port(lab: &Lab) {
    let plan = plan(Mode::Guard, Refusal::Reject);
    lab.install(&plan);
    assert_eq!(lab.both(CLIENT, 22), REFUSED);
    assert_eq!(lab.both(CLIENT, 23), REFUSED, "what a closed port looks like");
    assert_eq!(at_once(|family| lab.udp(family, 5000, None)), REFUSED);
    assert_eq!(at_once(|family| lab.udp(family, 62201, None)), REFUSED);
    lab.apply(&plan, &admit(CLIENT, "tcp/22", 600));
    assert_eq!(lab.both(CLIENT, 22), OPEN);
    assert_eq!(lab.both(STRANGER, 22), REFUSED);

    // A rule of the host's own that takes packet marks off comes too late.
    lab.rules(lab.variant, &["-t mangle -A PREROUTING -j MARK --set-mark 0"]);
    assert_eq!(lab.both(STRANGER, 22), REFUSED);

    // Nor does it help to take them off on the way to table filter, as whoever routes by the marks
    // of connections does.
    lab.nft(
        "table inet uplinks {\n chain entry {\n type filter hook prerouting priority -149\n \
         meta mark set ct mark\n }\n}\n",
    );
    assert_eq!(lab.both(STRANGER, 22), REFUSED);
    assert_eq!(lab.both(CLIENT, 22), OPEN);
    lab.on("s", "nft delete table inet uplinks");

    // To the other refusal and back, live.
    lab.install(&crate::lab::plan(Mode::Guard, Refusal::Drop));
    assert_eq!(lab.both(STRANGER, 22), SILENT);
    lab.install(&plan);
    assert_eq!(lab.both(STRANGER, 22), REFUSED);
    assert_eq!(lab.both(CLIENT, 22), OPEN);
}

fn no_scan_tells_a_guarded_port_from_a_closed_one(lab: &Lab) {
    const TCP: [&str; 7] = ["-sS", "-sA", "-sF", "-sN", "-sX", "-sM", "-sW"];
    let tcp = |family, seen_alike| {
        let [guarded, closed] = lab.nmap(family, &TCP, [22, 23]);
        assert_eq!(guarded == closed, seen_alike, "{guarded:?} {closed:?}");
    };
    let udp = |family, seen_alike| {
        let [guarded, closed] = lab.nmap(family, &["-sU"], [5000, 5001]);
        assert_eq!(guarded == closed, seen_alike, "{guarded:?} {closed:?}");
        let [knock, closed] = lab.nmap(family, &["-sU"], [62201, 62202]);
        assert_eq!(knock, closed);
    };
    let _socket = lab.inside("s", || UdpSocket::bind("[::]:5000").unwrap());
    // Without the gate, both are told from closed ones.
    tcp(0, false);
    udp(0, false);
    lab.install(&plan(Mode::Guard, Refusal::Reject));
    (0..2).for_each(|family| tcp(family, true));
    (0..2).for_each(|family| udp(family, true));
    // And in pieces, of which the first has no more than the ports.
    let [guarded, closed] = lab.nmap(0, &["-sS -f"], [22, 23]);
    assert_eq!(guarded, closed);

    lab.install(&plan(Mode::Guard, Refusal::Drop));
    lab.rules(lab.variant, &["-A INPUT -p icmpv6 -j ACCEPT", "-A INPUT -i lo -j ACCEPT"]);
    lab.rules(lab.variant, &["-P INPUT DROP"]);
    (0..2).for_each(|family| tcp(family, true));
    (0..2).for_each(|family| udp(family, true));
}

fn broadcasts_and_multicasts_do_not_get_around_the_gate(lab: &Lab) {
    let socket = lab.inside("s", || UdpSocket::bind("[::]:5000").unwrap());
    socket.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
    let link = lab.inside("c", || nix::net::if_::if_nametoindex("up").unwrap());
    let arrives = |to: SocketAddr| {
        let from = if to.is_ipv4() { CLIENT[0] } else { CLIENT[1] };
        let sender = lab.inside("c", || at_fresh_port(|port| UdpSocket::bind((from, port))));
        sender.set_broadcast(true).unwrap();
        sender.send_to(b"anybody there?", to).unwrap();
        uninterrupted(|| socket.recv(&mut [0; 64])).is_ok()
    };
    let broadcast: SocketAddr = "192.0.2.255:5000".parse().unwrap();
    let all_nodes = SocketAddrV6::new("ff02::1".parse().unwrap(), 5000, 0, link).into();
    assert!(arrives(broadcast) && arrives(all_nodes));
    lab.install(&plan(Mode::Guard, Refusal::Drop));
    assert!(!arrives(broadcast) && !arrives(all_nodes));
    lab.remove();
    assert!(arrives(broadcast) && arrives(all_nodes));
}

fn the_kernel_closes_by_itself(lab: &Lab) {
    let plan = plan(Mode::Guard, Refusal::Drop);
    lab.apply(&plan, &admit(CLIENT, "tcp/22", 3));
    // No gate lives any more: the process could be dead.
    assert_eq!(lab.both(CLIENT, 22), OPEN);
    let began = Instant::now();
    while lab.tcp(CLIENT[0], SERVER[0], 22) == Seen::Open {
        assert!(began.elapsed() < Duration::from_secs(30), "still open");
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(lab.both(CLIENT, 80), OPEN);
}

fn an_established_session_outlives_its_grant(lab: &Lab) {
    let plan = plan(Mode::Guard, Refusal::Drop);
    // On a host that drops everything else, even what is established.
    lab.rules(lab.variant, &["-P INPUT DROP", "-A INPUT -i lo -j ACCEPT"]);
    lab.rules(lab.variant, &["-I INPUT -p icmpv6 -j ACCEPT"]);
    lab.apply(&plan, &admit(CLIENT, "tcp/22", 600));
    let mut sessions = [0, 1].map(|family| lab.session(family, 22));
    lab.apply(&plan, &withdraw(CLIENT, "tcp/22"));
    assert_eq!(lab.both(CLIENT, 22), SILENT);
    for (near, far) in &mut sessions {
        assert!(hears(near, far) && hears(far, near));
    }
    // To port 80, which nobody accepts, nothing ever came through.
    assert_eq!(lab.both(CLIENT, 80), SILENT);
}

fn knock_ports_are_hidden_but_for_those_of_real_services(lab: &Lab) {
    let mut plan = plan(Mode::Guard, Refusal::Drop);
    plan.knock_ports = vec![53, 62201];
    let socket = lab.inside("s", || UdpSocket::bind("[::]:53").unwrap());
    assert_eq!(at_once(|family| lab.udp(family, 62201, None)), REFUSED);
    let report = lab.with_gate(&lab.variant.overrides(), |gate| async move {
        let seen = gate.examine(&plan).await.unwrap();
        let report = gate.install(&plan).await.unwrap();
        assert_eq!(seen.busy_knock_ports, report.busy_knock_ports);
        assert!(seen.changed && report.changed);
        assert!(!gate.examine(&plan).await.unwrap().changed);
        report
    });
    assert_eq!(at_once(|family| lab.udp(family, 62201, None)), SILENT);
    assert_eq!(at_once(|family| lab.udp(family, 53, Some(&socket))), OPEN);
    let busy: Vec<_> = report.busy_knock_ports.iter().map(|b| (b.port, b.family)).collect();
    assert_eq!(busy, [(53, Family::V4), (53, Family::V6)]);
}

fn loopback_and_own_addresses_pass(lab: &Lab) {
    lab.install(&plan(Mode::Guard, Refusal::Drop));
    for (from, to) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1")] {
        assert_eq!(lab.tcp_on("s", from, to, 22), Seen::Open);
    }
    for own in SERVER {
        assert_eq!(lab.tcp_on("s", own, own, 22), Seen::Open);
    }
    assert_eq!(lab.both(CLIENT, 22), SILENT);
}

fn addresses_that_only_a_policy_route_makes_local_are_guarded_too(lab: &Lab) {
    // An address of this host that the routing table "local" doesn't know, as in a VRF.
    let addresses = ["203.0.113.7", "2001:db8:9::7"];
    for (four, address, via) in [(true, addresses[0], SERVER[0]), (false, addresses[1], SERVER[1])]
    {
        let family = if four { "-4" } else { "-6" };
        lab.on("s", &format!("ip {family} route add local {address} dev lo table 100"));
        lab.on("s", &format!("ip {family} rule add pref 50 lookup 100"));
        lab.on("c", &format!("ip {family} route add {address} via {via}"));
    }
    let socket = lab.inside("s", || UdpSocket::bind("[::]:5000").unwrap());
    socket.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
    let arrives = |family: usize| {
        let sender =
            lab.inside("c", || at_fresh_port(|port| UdpSocket::bind((CLIENT[family], port))));
        sender.send_to(b"anybody there?", (addresses[family], 5000)).unwrap();
        uninterrupted(|| socket.recv(&mut [0; 64])).is_ok()
    };
    assert!(arrives(0) && arrives(1));
    let plan = plan(Mode::Guard, Refusal::Drop);
    lab.install(&plan);
    assert!(!arrives(0) && !arrives(1));
    lab.apply(&plan, &admit(CLIENT, "udp/5000", 600));
    assert!(arrives(0) && arrives(1));
}

fn a_published_port_is_judged_by_its_number_before_translation(lab: &Lab) {
    // As a container's port is published: the inner host's 22 is the server's 2222, 2223.
    let [four, six] = lab.variant.commands();
    for port in [2222, 2223] {
        let rule = format!("-t nat -A PREROUTING -i ext -p tcp --dport {port} -j DNAT");
        lab.on("s", &format!("{four} {rule} --to-destination {}:22", INNER[0]));
        lab.on("s", &format!("{six} {rule} --to-destination [{}]:22", INNER[1]));
    }
    assert_eq!(lab.both(CLIENT, 2222), OPEN);
    for (refusal, seen) in [(Refusal::Drop, SILENT), (Refusal::Reject, REFUSED)] {
        let mut plan = plan(Mode::Guard, refusal);
        plan.guarded.push(Guarded::plain("tcp/2222".parse().unwrap()));
        lab.install(&plan);
        assert_eq!(lab.both(CLIENT, 2222), seen);
        // Translated to a guarded number, but not itself guarded.
        assert_eq!(lab.both(CLIENT, 2223), OPEN);
        lab.apply(&plan, &admit(CLIENT, "tcp/2222", 600));
        assert_eq!(lab.both(CLIENT, 2222), OPEN);
        assert_eq!(lab.both(STRANGER, 2222), seen);
        assert_eq!(lab.both(CLIENT, 22), seen);
        lab.apply(&plan, &withdraw(CLIENT, "tcp/2222"));
    }
}

fn a_port_that_the_host_redirects_to_a_guarded_one_is_not_guarded_itself(lab: &Lab) {
    lab.rules(
        lab.variant,
        &["-t nat -A PREROUTING -i ext -p tcp --dport 2222 -j REDIRECT --to-ports 22"],
    );
    for refusal in [Refusal::Drop, Refusal::Reject] {
        lab.install(&plan(Mode::Guard, refusal));
        assert_eq!(lab.both(CLIENT, 2222), OPEN);
        assert_ne!(lab.both(CLIENT, 22), OPEN);
    }
}

fn the_marks_of_forwarded_packets_are_other_peoples(lab: &Lab) {
    lab.install(&plan(Mode::Guard, Refusal::Reject));
    lab.rules(
        lab.variant,
        &["-t mangle -A PREROUTING -p tcp --dport 22 -j MARK --set-xmark 0xffffffff"],
    );
    for family in 0..2 {
        assert_eq!(lab.tcp(CLIENT[family], INNER[family], 22), Seen::Open);
    }
    assert_eq!(lab.both(CLIENT, 22), REFUSED);
}

fn traffic_to_other_hosts_is_not_touched(lab: &Lab) {
    for refusal in [Refusal::Drop, Refusal::Reject] {
        lab.install(&plan(Mode::Guard, refusal));
        for family in 0..2 {
            assert_eq!(lab.tcp(CLIENT[family], INNER[family], 22), Seen::Open);
            assert_ne!(lab.tcp(CLIENT[family], SERVER[family], 22), Seen::Open);
        }
    }
}

fn an_idle_session_survives_the_installation_where_nothing_was_tracked(lab: &Lab) {
    let plan = plan(Mode::Guard, Refusal::Drop);
    let mut more = plan.clone();
    more.guarded.push(Guarded::plain("tcp/80".parse().unwrap()));
    let mut kept = [0, 1].map(|family| lab.session(family, 22));
    let mut kept_later = [0, 1].map(|family| lab.session(family, 80));
    let report = lab.with_gate(&lab.variant.overrides(), |gate| async move {
        gate.install(&plan).await.unwrap()
    });
    // Those of earlier probes are there as well, in a state that counts.
    assert!(report.connections_kept >= 2, "{report:?}");
    // The kernel forgets an established connection after five days; that is soon enough to say
    // nothing of it.
    assert!(report.warnings.is_empty(), "{report:?}");
    for (near, far) in &mut kept {
        assert!(hears(near, far), "the client's next packet is let in");
        assert!(hears(far, near));
    }
    // A port that is guarded only later: its idle sessions are entered then.
    let later = lab.with_gate(&lab.variant.overrides(), |gate| async move {
        gate.install(&more).await.unwrap()
    });
    assert_eq!(later.connections_kept, 2, "{later:?}");
    for (near, far) in &mut kept_later {
        assert!(hears(near, far) && hears(far, near));
    }

    // Positive control: without its entry in connection tracking, a session dies.
    lab.on("s", "conntrack -F");
    for (near, far) in &mut kept {
        assert!(!hears(near, far));
    }
}

fn a_half_tracked_session_survives_the_installation(lab: &Lab) {
    // Tracking began in the middle of the session, and has seen one direction only: an entry is
    // there, and all that the client sends is still NEW.
    let (near, far) = lab.session(0, 22);
    let (mut near, mut far) = (near, far);
    let client = near.local_addr().unwrap();
    lab.rules(lab.variant, &["-A INPUT -m conntrack --ctstate NEW -j ACCEPT"]);
    lab.on(
        "s",
        &format!(
            "conntrack -I -p tcp -s {} -d {} --sport {} --dport 22 --state ESTABLISHED -t 300",
            CLIENT[0],
            SERVER[0],
            client.port()
        ),
    );
    let plan = plan(Mode::Guard, Refusal::Drop);
    lab.install(&plan);
    let entries = lab.on("s", "conntrack -L -p tcp");
    let entry = entries.lines().find(|line| line.contains(&format!("sport={}", client.port())));
    assert!(entry.is_some_and(|entry| entry.contains("[ASSURED]")), "{entries}");
    assert!(hears(&mut near, &mut far) && hears(&mut far, &mut near));
}

fn a_snapshot_tells_what_is_admitted(lab: &Lab) {
    let plan = plan(Mode::Guard, Refusal::Drop);
    let elements = async |gate: &IptablesGate| gate.snapshot().await.unwrap();
    lab.with_gate(&lab.variant.overrides(), |gate| async move {
        let error = gate.snapshot().await.unwrap_err();
        assert!(matches!(error, GateError::NotInstalled), "{error}");
        let error = gate.apply(&admit(CLIENT, "tcp/22", 1)).await.unwrap_err();
        assert!(matches!(error, GateError::NotInstalled), "{error}");

        gate.install(&plan).await.unwrap();
        assert_eq!(elements(&gate).await, []);
        let mut changes = admit(CLIENT, "tcp/22", 500);
        changes.extend(admit(STRANGER, "udp/5000", 2_147_483));
        gate.apply(&changes).await.unwrap();
        let mut found = elements(&gate).await;
        found.sort_unstable();
        let admitted: Vec<_> = found.iter().map(|live| live.element).collect();
        assert_eq!(
            admitted,
            [
                element(CLIENT[0], "tcp/22"),
                element(STRANGER[0], "udp/5000"),
                element(CLIENT[1], "tcp/22"),
                element(STRANGER[1], "udp/5000"),
            ]
        );
        let left = |at: usize| found.get(at).map_or(0, |live: &LiveElement| live.seconds_left);
        assert!((400..=500).contains(&left(0)), "{found:?}");
        assert!((2_147_000..=2_147_483).contains(&left(1)), "{found:?}");

        // Admitting again sets the time; withdrawing twice does no harm.
        gate.apply(&admit(CLIENT, "tcp/22", 900)).await.unwrap();
        gate.apply(&withdraw(STRANGER, "udp/5000")).await.unwrap();
        gate.apply(&withdraw(STRANGER, "udp/5000")).await.unwrap();
        let found = elements(&gate).await;
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(|live| live.seconds_left > 800), "{found:?}");
    });
}

fn changes_that_no_plan_covers_are_refused(lab: &Lab) {
    let plan = plan(Mode::Guard, Refusal::Drop);
    lab.installed(&plan, |gate| async move {
        for (source, port, seconds) in [
            (CLIENT[0], "tcp/23", 30),
            (CLIENT[0], "udp/22", 30),
            (CLIENT[0], "tcp/22", 0),
            (CLIENT[0], "tcp/22", 2_147_484),
            ("0.0.0.0", "tcp/22", 30),
            ("224.0.0.1", "tcp/22", 30),
            ("0.0.0.0/0", "tcp/22", 30),
        ] {
            let mut changes = admit(CLIENT, "tcp/22", 30);
            changes.extend(admit([source, CLIENT[1]], port, seconds));
            let error = gate.apply(&changes).await.unwrap_err();
            assert!(error.to_string().contains("refused to admit"), "{error}");
        }
        assert_eq!(gate.snapshot().await.unwrap(), [], "nothing of a bad batch is made");
        gate.apply(&admit(CLIENT, "tcp/22", 30)).await.unwrap();
        assert_eq!(gate.snapshot().await.unwrap().len(), 2);
    });
}

fn a_full_set_is_told(lab: &Lab) {
    let mut plan = plan(Mode::Guard, Refusal::Drop);
    plan.max_elements = 1;
    lab.installed(&plan, |gate| async move {
        gate.apply(&admit(CLIENT, "tcp/22", 30)).await.unwrap();
        let error = gate.apply(&admit(STRANGER, "tcp/22", 30)).await.unwrap_err();
        assert!(matches!(&error, GateError::Full { name } if name == "set spa4"), "{error:?}");
    });
}
