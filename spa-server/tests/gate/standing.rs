//! How long the gate stands, what notices that it doesn't, and how connections are cut.

use crate::lab::{
    CLIENT, INNER, Lab, OPEN, REFUSED, SERVER, SILENT, STRANGER, Seen, Variant, admit,
    at_fresh_port, hears, plan, uninterrupted, with_all_gates,
};
use spa_proto::Transport;
use spa_server::gate::{
    Connection, Cut, Doubt, Gate as _, GateError, Guarded, Mode, Plan, Refusal,
};
use spa_server::service::{Forward, ForwardTo, Target};
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

with_all_gates!(
    a_gate_on_trial_stops_refusing_by_itself,
    what_is_missing_is_noticed_and_named,
    a_disturbance_is_noticed_at_once_and_own_changes_are_none,
    connections_are_cut_and_others_are_not,
    a_cut_that_was_left_over_is_cleaned_up,
);

pub(crate) fn led_elsewhere(refusal: Refusal) -> Plan {
    let mut plan = plan(Mode::Guard, refusal);
    let to =
        |address: &str| ForwardTo { address: address.parse().unwrap(), port: 22.try_into().ok() };
    let forward = Forward { v4: Some(to(INNER[0])), v6: Some(to(INNER[1])), masquerade: false };
    let mut service = Guarded::plain("tcp/2222".parse().unwrap());
    service.target = Target::Forward(forward);
    plan.guarded.push(service);
    plan
}

fn a_gate_on_trial_stops_refusing_by_itself(lab: &Lab) {
    for (refusal, shut) in [(Refusal::Drop, SILENT), (Refusal::Reject, REFUSED)] {
        let forever = led_elsewhere(refusal);
        let on_trial = |seconds| Plan { trial_seconds: Some(seconds), ..led_elsewhere(refusal) };
        lab.install(&on_trial(600));
        assert_eq!([lab.both(CLIENT, 22), lab.both(CLIENT, 2222)], [shut; 2]);
        lab.apply(&on_trial(600), &admit(CLIENT, "tcp/22", 600));
        // Installed again, the time begins anew; and nobody is there when it is over.
        lab.install(&on_trial(4));
        assert_eq!(lab.both(STRANGER, 22), shut);
        lab.wait("the end of the trial", || lab.both(STRANGER, 22) == OPEN);
        assert_eq!(lab.both(CLIENT, 22), OPEN);
        // What no grant leads elsewhere is still led nowhere.
        assert_eq!(lab.both(STRANGER, 2222), REFUSED);

        // Once more, and this time it is confirmed.
        lab.install(&on_trial(600));
        assert_eq!([lab.both(STRANGER, 22), lab.both(CLIENT, 22)], [shut, OPEN]);
        lab.installed(&forever.clone(), |gate| async move {
            let report = gate.examine(&forever).await.unwrap();
            assert_eq!(report.differences, [""; 0]);
            assert!(gate.examine(&on_trial(4)).await.unwrap().changed);
            assert_eq!(gate.snapshot().await.unwrap().len(), 2);
        });
        assert_eq!([lab.both(STRANGER, 22), lab.both(CLIENT, 22)], [shut, OPEN]);
        let rules = lab.ruleset();
        assert!(!rules.contains("armed") && !rules.contains("SPA-REFUSE -m"), "{rules}");
        lab.remove();
    }
}

fn what_is_missing_is_noticed_and_named(lab: &Lab) {
    let mut plan = led_elsewhere(Refusal::Reject);
    plan.guarded.push(Guarded::plain("udp/10000-10100".parse().unwrap()));
    let [four, six] = lab.variant.commands();
    lab.installed(&plan, |gate| async {
        let gate = gate;
        let look = async |doubt| gate.look(doubt).await.unwrap();
        for doubt in [Doubt::Elements, Doubt::Everything] {
            assert_eq!(look(doubt).await, spa_server::gate::Look::default());
        }
        let mut changes = admit(CLIENT, "tcp/22", 600);
        changes.extend(admit(CLIENT, "udp/10000-10100", 600));
        changes.extend(admit(["192.0.2.0/24", "2001:db8::/64"], "tcp/2222", 600));
        gate.apply(&changes).await.unwrap();
        let whole = look(Doubt::Everything).await;
        assert_eq!((whole.missing, whole.elements), (Vec::new(), 6));

        for (mischief, named) in [
            (format!("{four} -t mangle -F"), "chain SPA-GUARD of mangle (IPv4) has 0 rules of 5"),
            (format!("{six} -F SPA-ADMIT"), "chain SPA-ADMIT of filter (IPv6)"),
            (format!("{six} -t nat -D SPA-NAT 1"), "chain SPA-NAT of nat (IPv6)"),
            (
                format!("{four} -R SPA-ADMIT 1 -p udp -j ACCEPT"),
                "chain SPA-ADMIT of filter (IPv4) has other rules",
            ),
            (
                format!("{four} -I INPUT -j ACCEPT"),
                "chain INPUT of filter (IPv4) doesn't begin with a jump to SPA-INPUT",
            ),
        ] {
            lab.on("s", &mischief);
            let found = look(Doubt::Everything).await.missing;
            assert!(found.iter().any(|what| what.contains(named)), "{mischief}: {found:?}");
            let seen = gate.examine(&plan).await.unwrap();
            assert!(seen.differences.iter().any(|what| what.contains(named)), "{seen:?}");
            assert!(seen.changed);
            let report = gate.install(&plan).await.unwrap();
            assert!(report.changed && report.differences == seen.differences, "{report:?}");
            assert_eq!(look(Doubt::Everything).await.missing, [""; 0]);
        }
        lab.on("s", &format!("{four} -D INPUT -j ACCEPT"));

        if lab.in_sets {
            lab.on("s", "ipset flush spa4-net");
        } else {
            lab.on("s", &format!("{four} -t nat -F SPA-GRANTS"));
        }
        assert_eq!(look(Doubt::Elements).await.elements, 5);
        lab.rules(lab.variant, &["-F", "-t mangle -F", "-t nat -F"]);
        lab.on("s", "ipset destroy");
        let found = look(Doubt::Elements).await;
        assert_eq!(found.elements, 0);
        let missing = if lab.in_sets {
            "set spa6-udp-10000-10100 is missing"
        } else {
            "chain SPA-INPUT of filter (IPv6) has 0 rules of 4"
        };
        assert!(found.missing.iter().any(|what| what == missing), "{found:?}");
        gate.install(&plan).await.unwrap();
        let whole = look(Doubt::Everything).await;
        assert_eq!((whole.missing, whole.elements), (Vec::new(), 0));
        gate.remove().await.unwrap();
        let error = gate.look(Doubt::Elements).await.unwrap_err();
        assert!(matches!(error, GateError::NotInstalled), "{error}");
    });
}

fn a_disturbance_is_noticed_at_once_and_own_changes_are_none(lab: &Lab) {
    let plan = plan(Mode::Guard, Refusal::Drop);
    let [four, six] = lab.variant.commands();
    let tells = lab.variant == Variant::Nft;
    lab.installed(&plan, |gate| async {
        let gate = gate;
        let second = |future| tokio::time::timeout(Duration::from_secs(1), future);
        // What the installation itself has made others hear.
        while second(gate.disturbed()).await == Ok(Doubt::Everything) && tells {}
        for mischief in [
            format!("{four} -F"),
            format!("{six} -t mangle -D SPA-JUDGE 1"),
            format!("{four} -t mangle -I PREROUTING -j RETURN"),
        ] {
            lab.on("s", &mischief);
            let mut missing = Vec::new();
            // In the sets nothing has changed.
            while missing.is_empty() {
                let doubt = second(gate.disturbed()).await.expect("in time");
                missing = gate.look(doubt).await.unwrap().missing;
            }
            gate.install(&plan).await.unwrap();
        }
        lab.on("s", &format!("{four} -t mangle -D PREROUTING -j RETURN"));
        // Nobody waits for a change all the time, and it is heard of nevertheless.
        while second(gate.disturbed()).await == Ok(Doubt::Everything) && tells {}
        lab.on("s", &format!("{six} -F SPA-INPUT"));
        drop(tokio::time::timeout(Duration::from_millis(10), gate.disturbed()).await);
        while second(gate.disturbed()).await.expect("in time") != Doubt::Everything {}
        gate.install(&plan).await.unwrap();
        if lab.in_sets && tells {
            while second(gate.disturbed()).await == Ok(Doubt::Everything) {}
            gate.apply(&admit(CLIENT, "tcp/22", 600)).await.unwrap();
            assert_eq!(second(gate.disturbed()).await, Ok(Doubt::Elements));
        }
    });
}

/// A connection both ends of which talk all the time.
struct Talk {
    near: TcpStream,
    far: TcpStream,
}

impl Talk {
    fn new((near, far): (TcpStream, TcpStream)) -> Self {
        Self { near, far }
    }

    /// Lets both ends say something, and says of each whether the connection is still there.
    fn goes_on(&mut self) -> (bool, bool) {
        let says = |end: &mut TcpStream| end.write_all(b"still here").is_ok();
        (says(&mut self.near), says(&mut self.far))
    }
}

fn connections_are_cut_and_others_are_not(lab: &Lab) {
    let inner = lab.listener("i", 22);
    let plan = led_elsewhere(Refusal::Drop);
    // Beside rules of the host's that let in what is established before all else.
    lab.rules(
        lab.variant,
        &["INPUT", "FORWARD"]
            .map(|chain| format!("-A {chain} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"))
            .each_ref()
            .map(String::as_str),
    );
    lab.installed(&plan, |gate| async {
        let gate = gate;
        let mut changes = admit(CLIENT, "tcp/22", 600);
        changes.extend(admit(CLIENT, "tcp/2222", 600));
        changes.extend(admit(CLIENT, "udp/5000", 600));
        gate.apply(&changes).await.unwrap();
        let socket = lab.inside("s", || UdpSocket::bind("[::]:5000").unwrap());
        let before = lab.ruleset();
        for family in 0..2 {
            let mut cut = [
                Talk::new(lab.session(family, 22)),
                Talk::new(lab.session_by(family, 2222, &inner).unwrap()),
            ];
            let mut kept = [lab.session(family, 22), lab.session_by(family, 2222, &inner).unwrap()];
            let talker = lab.inside("c", || {
                let talker = at_fresh_port(|port| UdpSocket::bind((CLIENT[family], port)));
                talker.connect((SERVER[family], 5000)).unwrap();
                talker
            });
            socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            let arrives = || {
                talker.send(b"anybody there?").unwrap();
                uninterrupted(|| socket.recv_from(&mut [0; 64])).ok()
            };
            let (_, peer) = arrives().expect("a datagram");
            socket.send_to(b"here", peer).unwrap();

            let at = |address: &str, port| SocketAddr::new(address.parse().unwrap(), port);
            let doomed = |transport, peer: SocketAddr, port, answered_from| {
                let local = at(SERVER[family], port);
                Cut { connection: Connection { transport, peer, local }, answered_from }
            };
            let mut cuts: Vec<_> = cut
                .iter()
                .zip([(22, at(SERVER[family], 22)), (2222, at(INNER[family], 22))])
                .map(|(talk, (port, answered_from))| {
                    let peer = talk.near.local_addr().unwrap();
                    doomed(Transport::Tcp, peer, port, answered_from)
                })
                .collect();
            let peer = talker.local_addr().unwrap();
            cuts.push(doomed(Transport::Udp, peer, 5000, at(SERVER[family], 5000)));
            gate.sever(&cuts).await.unwrap();
            assert_eq!(gate.look(Doubt::Everything).await.unwrap().missing, [""; 0]);
            for talk in &mut cut {
                let mut seen = (true, true);
                lab.wait("both ends to be reset", || {
                    seen = talk.goes_on();
                    seen == (false, false)
                });
            }
            assert!(arrives().is_none());
            for (near, far) in &mut kept {
                assert!(hears(near, far) && hears(far, near));
            }
            // Other connections still come about, and what was installed stands, also when it is
            // installed again.
            assert_eq!(lab.tcp(CLIENT[family], SERVER[family], 22), Seen::Open);
            assert!(!gate.install(&plan).await.unwrap().changed);
            assert!(lab.ruleset().contains("SPA-CUT"));
            gate.sever(&cuts[..1]).await.unwrap();
            assert!(arrives().is_some(), "the new list is instead of the old one");
            gate.lift().await.unwrap();
            gate.lift().await.unwrap();
            assert_eq!(gate.look(Doubt::Everything).await.unwrap().missing, [""; 0]);
            let times = |text: String| -> Vec<String> {
                text.lines().filter(|line| !line.contains(" timeout ")).map(Into::into).collect()
            };
            assert_eq!(times(lab.ruleset()), times(before.clone()));
            for (near, far) in &mut kept {
                assert!(hears(near, far) && hears(far, near));
            }
        }
    });
}

fn a_cut_that_was_left_over_is_cleaned_up(lab: &Lab) {
    let fresh = lab.ruleset();
    let plan = plan(Mode::Guard, Refusal::Drop);
    let connection = Connection {
        transport: Transport::Tcp,
        peer: SocketAddr::new(CLIENT[0].parse().unwrap(), 50000),
        local: SocketAddr::new(SERVER[0].parse().unwrap(), 22),
    };
    let cut = Cut { connection, answered_from: connection.local };
    lab.installed(&plan, |gate| async move { gate.sever(&[cut]).await.unwrap() });
    assert!(lab.ruleset().contains("SPA-CUT"));
    // Another process, after the crash of the first.
    lab.install(&plan);
    assert!(!lab.ruleset().contains("SPA-CUT"));
    lab.installed(&plan, |gate| async move { gate.sever(&[cut]).await.unwrap() });
    lab.remove();
    assert_eq!(lab.ruleset(), fresh);
}
