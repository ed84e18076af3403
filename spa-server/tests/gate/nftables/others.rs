//! The tables of others beside ours.

use super::*;

#[test]
fn a_table_of_somebody_elses_is_left_alone() {
    let lab = lab();
    lab.nft("table inet spa {\n chain wellness {\n tcp dport 22 accept\n }\n}\n");
    let before = ruleset(&lab);
    with_gate(&lab, |gate| async move {
        for error in [
            gate.install(&plan()).await.unwrap_err(),
            gate.examine(&plan()).await.unwrap_err(),
            gate.snapshot().await.unwrap_err(),
        ] {
            assert!(matches!(error, GateError::ForeignTable | GateError::NotInstalled), "{error}");
        }
        gate.remove().await.unwrap();
    });
    assert_eq!(ruleset(&lab), before);
}

#[test]
fn chains_that_lose_granted_packets_are_named() {
    let lab = lab();
    let mut plan = plan();
    plan.guarded = vec![
        guarded("tcp/22"),
        forward("tcp/2222", [Some(INNER[0]), Some(INNER[1])], Some(22), false),
    ];
    assert!(install(&lab, &plan).warnings.is_empty());
    lab.nft("table inet strict {\n chain entry {\n type filter hook input priority 10; policy drop\n }\n}\n");
    lab.rules(Variant::Legacy, &["-P FORWARD DROP"]);
    lab.rules(Variant::Nft, &["-P FORWARD DROP"]);
    let warnings = install(&lab, &plan).warnings;
    for wanted in [
        "chain entry of nft table inet strict has policy drop and doesn't speak of tcp/22:",
        "chain FORWARD of iptables-nft table filter (IPv4) has policy drop and doesn't speak of translated",
        "chain FORWARD of iptables-nft table filter (IPv6) has policy drop",
        "chain FORWARD of iptables-legacy table filter (IPv4) has policy drop",
        "chain FORWARD of iptables-legacy table filter (IPv6) has policy drop",
    ] {
        assert!(warnings.iter().any(|one| one.contains(wanted)), "{wanted}: {warnings:#?}");
    }
    // As it is advised, all is well.
    lab.nft("add rule inet strict entry tcp dport 22 accept\n");
    for variant in [Variant::Nft, Variant::Legacy] {
        lab.rules(variant, &["-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"]);
        lab.rules(variant, &["-A FORWARD -m conntrack --ctstate DNAT -j ACCEPT"]);
    }
    assert!(install(&lab, &plan).warnings.is_empty(), "{:#?}", install(&lab, &plan).warnings);
    apply(&lab, &plan, &admit(CLIENT, "tcp/2222", 600));
    assert_eq!(lab.both(CLIENT, 2222), OPEN);
    // Nor does anything come through where the kernel doesn't forward.
    lab.on("s", "sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0");
    let warnings = install(&lab, &plan).warnings;
    assert_eq!(warnings.len(), 2, "{warnings:#?}");
    assert!(warnings[0].contains("net.ipv4.ip_forward = 1"), "{warnings:#?}");
    assert!(warnings[1].contains("net.ipv6.conf.all.forwarding = 1"), "{warnings:#?}");
}

#[test]
fn chains_that_end_connection_tracking_are_named() {
    let lab = lab();
    let told =
        || with_gate(&lab, |gate| async move { gate.examine(&plan()).await.unwrap().warnings });
    let untrack = "-t raw -A PREROUTING -p tcp --dport";
    lab.rules(Variant::Nft, &[&format!("{untrack} 22 -j ACCEPT")]);
    assert!(told().is_empty());
    lab.nft(
        "table inet early {\n chain entry {\n type filter hook prerouting priority raw\n \
         tcp dport 22 notrack\n }\n}\n",
    );
    lab.rules(Variant::Nft, &[&format!("{untrack} 22 -j CT --notrack")]);
    let warnings = told();
    assert_eq!(warnings.len(), 3, "{warnings:#?}");
    for wanted in [
        "chain entry of nft table inet early takes some packets",
        "chain PREROUTING of nft table ip raw may take some packets",
        "chain PREROUTING of nft table ip6 raw may take some packets",
    ] {
        assert!(warnings.iter().any(|one| one.contains(wanted)), "{wanted}: {warnings:#?}");
    }
}

#[test]
fn what_others_take_away_is_noticed_and_mended() {
    let lab = lab();
    let plan = plan();
    let lab = &lab;
    with_gate(lab, |gate| async move {
        gate.install(&plan).await.unwrap();
        gate.apply(&admit(CLIENT, "tcp/22", 600)).await.unwrap();
        let look = gate.look(Doubt::Everything).await.unwrap();
        assert_eq!((look.missing.len(), look.elements), (0, 2), "{look:?}");
        for (command, what, elements) in [
            ("flush ruleset", "table inet spa is missing", 0),
            ("delete table inet spa", "table inet spa is missing", 0),
            ("flush table inet spa", "chain hide has 0 rules of 2", 2),
            ("flush chain inet spa judge4", "chain judge4 has 0 rules of 2", 2),
            ("insert rule inet spa refuse accept", "chain refuse has 2 rules of 1", 2),
            ("add chain inet spa mine", "chain mine is not the gate's", 2),
        ] {
            lab.on("s", &format!("nft {command}"));
            let look = gate.look(Doubt::Everything).await.unwrap();
            assert!(look.missing[0].starts_with(what), "{command}: {look:?}");
            assert_eq!(look.elements, elements, "{command}");
            let report = gate.install(&plan).await.unwrap();
            assert!(report.changed && !report.differences.is_empty(), "{command}: {report:?}");
            assert_eq!(gate.look(Doubt::Everything).await.unwrap().missing, [""; 0]);
            gate.apply(&admit(CLIENT, "tcp/22", 600)).await.unwrap();
        }
        lab.on("s", "nft flush set inet spa spa4");
        let look = gate.look(Doubt::Elements).await.unwrap();
        assert_eq!((look.missing.len(), look.elements), (0, 1));
        assert_eq!(lab.both(CLIENT, 22), [Seen::Silent, Seen::Open]);
    });
}

#[test]
fn the_kernel_tells_what_others_change_and_not_what_the_gate_does() {
    let lab = lab();
    let plan = plan();
    let lab = &lab;
    with_gate(lab, |gate| async move {
        let disturbed = async |patience| tokio::time::timeout(patience, gate.disturbed()).await;
        let (soon, long) = (Duration::from_millis(300), Duration::from_secs(10));
        gate.install(&plan).await.unwrap();
        disturbed(soon).await.expect_err("nobody did anything");
        for at in 0..5 {
            gate.apply(&admit(CLIENT, "tcp/22", 600 + at)).await.unwrap();
            disturbed(soon).await.expect_err("it was the gate");
        }
        // Another length of prefix makes a set and rules.
        gate.apply(&admit(NETWORKS, "tcp/22", 600)).await.unwrap();
        disturbed(soon).await.expect_err("it was the gate");
        // What others do elsewhere is no business of the gate's, before a change of its own or
        // after.
        lab.nft("table inet other {\n}\n");
        disturbed(soon).await.expect_err("that is somewhere else");
        gate.apply(&admit(CLIENT, "tcp/22", 600)).await.unwrap();
        let _ = disturbed(soon).await;
        gate.look(Doubt::Everything).await.unwrap();
        gate.apply(&admit(CLIENT, "tcp/22", 600)).await.unwrap();
        disturbed(soon).await.expect_err("known again");

        for (command, least) in [
            ("flush set inet spa spa4", Doubt::Elements),
            ("flush chain inet spa judge4", Doubt::Everything),
            ("delete table inet spa", Doubt::Everything),
            ("flush ruleset", Doubt::Everything),
        ] {
            lab.on("s", &format!("nft {command}"));
            let began = Instant::now();
            let doubt = disturbed(long).await.expect(command);
            assert!(doubt >= least, "{command}: {doubt:?}");
            // Given up while it waited, it still knows.
            lab.nft("table inet spa {\n chain spa-server {\n }\n chain other {\n }\n}\n");
            if disturbed(Duration::ZERO).await.is_err() {
                disturbed(long).await.expect("again");
            }
            assert!(began.elapsed() < Duration::from_secs(1), "{command}");
            gate.install(&plan).await.unwrap();
            assert!(gate.look(Doubt::Everything).await.unwrap().missing.is_empty());
            disturbed(soon).await.expect_err("it was the gate");
        }
    });
}
