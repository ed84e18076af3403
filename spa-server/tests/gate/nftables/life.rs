//! How the table comes, is exchanged, and goes.

use super::*;

/// How often the rules are exchanged under fire.
const ROUNDS: usize = 5;

fn until_open(lab: &Lab) {
    let began = Instant::now();
    while lab.both(STRANGER, 22) != OPEN {
        assert!(began.elapsed() < Duration::from_secs(30), "still refused");
    }
}

#[test]
fn a_gate_on_trial_stops_refusing_by_itself() {
    let lab = lab();
    for refusal in [Refusal::Drop, Refusal::Reject] {
        let mut plan = Plan { trial_seconds: Some(3), ..any_plan(Mode::Guard, refusal) };
        install(&lab, &plan);
        assert_ne!(lab.both(STRANGER, 22), OPEN);
        // No gate lives any more: the process could be dead.
        until_open(&lab);
        // Once more: it refuses again.
        assert!(!install(&lab, &plan).changed);
        assert_ne!(lab.both(STRANGER, 22), OPEN);
        // Confirmed in time: it stays.
        plan.trial_seconds = Some(6);
        install(&lab, &plan);
        let began = Instant::now();
        plan.trial_seconds = None;
        assert!(install(&lab, &plan).changed);
        while began.elapsed() < Duration::from_secs(8) {
            assert_ne!(lab.both(STRANGER, 22), OPEN);
        }
        remove(&lab);
    }
}

#[test]
fn the_table_comes_and_goes_without_a_trace() {
    let lab = lab();
    lab.nft("table inet host {\n chain in {\n type filter hook input priority 0\n tcp dport 99 drop\n }\n}\n");
    let before = ruleset(&lab);
    let mut plan = plan();
    plan.guarded.push(forward("tcp/2222", [Some(INNER[0]), None], None, true));
    for refusal in [Refusal::Drop, Refusal::Reject] {
        plan.refusal = refusal;
        let seen = with_gate(&lab, |gate| {
            let plan = &plan;
            async move { gate.examine(plan).await.unwrap() }
        });
        assert!(seen.changed);
        assert_eq!(seen.differences, ["table inet spa is missing"]);
        assert_eq!(ruleset(&lab), before);
        assert!(install(&lab, &plan).changed);
        apply(&lab, &plan, &admit(NETWORKS, "tcp/22", 600));
        let installed = ruleset(&lab);
        // Another process finds all in place.
        assert!(!install(&lab, &plan).changed);
        assert_eq!(ruleset(&lab), installed);
        let seen = with_gate(&lab, |gate| {
            let plan = &plan;
            async move { gate.examine(plan).await.unwrap() }
        });
        assert!(!seen.changed && seen.differences.is_empty(), "{seen:?}");
        remove(&lab);
        assert_eq!(ruleset(&lab), before);
        remove(&lab);
    }
}

#[test]
fn there_is_no_open_mode() {
    let lab = lab();
    let before = ruleset(&lab);
    with_gate(&lab, |gate| async move {
        let open = any_plan(Mode::Open, Refusal::Drop);
        for error in
            [gate.install(&open).await.unwrap_err(), gate.examine(&open).await.unwrap_err()]
        {
            assert!(error.to_string().contains("no open mode"), "{error}");
        }
    });
    assert_eq!(ruleset(&lab), before);
}

#[test]
fn a_failing_tool_leaves_what_was_there_before() {
    let lab = lab();
    let before = ruleset(&lab);
    let first = plan();
    let mut other = any_plan(Mode::Guard, Refusal::Reject);
    other.guarded.push(guarded("tcp/80"));
    let failing = |when: &str| Some(lab.failing(Path::new(NFT), when));
    let fails =
        |plan: &Plan, when: &str| {
            let error = with_tool(&lab, failing(when), |gate| async move {
                gate.install(plan).await.unwrap_err()
            });
            assert!(!matches!(error, GateError::NotUndone { .. }), "{when}: {error}");
        };
    for when in
        ["--version", "ruleset", "list table", "chain track", "chain refuse", "return comment"]
    {
        fails(&first, when);
        assert_eq!(ruleset(&lab), before, "{when}");
    }
    // The sets are the same: all but the time that is left.
    let without_times = || {
        let text = ruleset(&lab);
        let mut words: Vec<_> = text.split([' ', '\n']).collect();
        let is_time = |word: &str| {
            word.starts_with(|first: char| first.is_ascii_digit())
                && word.ends_with(['h', 'm', 's'])
                && word.chars().all(|one| one.is_ascii_digit() || "dhms".contains(one))
        };
        words.retain(|word| !is_time(word));
        words.join(" ")
    };
    apply(&lab, &first, &admit(CLIENT, "tcp/22", 600));
    let installed = without_times();
    for when in ["list ruleset", "list table", "tcp . 80", "reject with tcp reset"] {
        fails(&other, when);
        assert_eq!(without_times(), installed, "{when}");
        assert_eq!(lab.both(CLIENT, 22), OPEN);
        assert_eq!(lab.both(STRANGER, 22), SILENT);
    }
    assert!(!install(&lab, &first).changed);
    // A kernel without it, a tool without it.
    let says = |what: &str| {
        let script = lab.failing(Path::new(NFT), "ruleset");
        let text = std::fs::read_to_string(&script).unwrap().replace("out of luck", what);
        std::fs::write(&script, text).unwrap();
        with_tool(
            &lab,
            Some(script),
            |gate| async move { gate.install(&plan()).await.unwrap_err() },
        )
    };
    let error = says("netlink: Error: Unable to initialize Netlink socket: Protocol not supported");
    assert!(matches!(error, GateError::NoNftables { .. }), "{error}");
    assert!(
        NftablesGate::new(&ToolOverrides { nft: Some("/gone".into()), ..Default::default() })
            .is_err()
    );
}

#[test]
fn what_ends_while_an_installation_fails_is_not_brought_back() {
    let lab = lab();
    let first = once(&["tcp/22", "tcp/79-81"]);
    let mut other = once(&["tcp/22"]);
    other.refusal = Refusal::Reject;
    let both = [admit(CLIENT, "tcp/22", 600), admit(STRANGER, "tcp/22", 600)].concat();
    apply(&lab, &first, &[both, admit(CLIENT, "tcp/79-81", 600)].concat());
    let all = admitted(&lab, &first);
    assert_eq!(all.len(), 6);
    // When all but the mark is written, the kernel takes one element out, as for a connection, and
    // another one has less time left.
    let [used, shorter] = [CLIENT, STRANGER].map(|sources| format!("{} . tcp . 22", sources[0]));
    let nft = lab.script(&format!(
        "input=$(/bin/cat; echo .); input=${{input%.}}\n\
         case \"$input\" in 'add chain'*)\n\
         {NFT} \"delete element inet spa spa4-once {{ {used}, {shorter} }}\" || exit\n\
         {NFT} \"add element inet spa spa4-once {{ {shorter} timeout 60s }}\" || exit\n\
         echo 'out of luck' >&2; exit 7;; esac\n\
         printf %s \"$input\" | exec {NFT} \"$@\"\n"
    ));
    let live = with_tool(&lab, Some(nft), |gate| async move {
        let error = gate.install(&other).await.unwrap_err();
        assert!(with_causes(&error).contains("out of luck"), "{error}");
        assert!(!matches!(error, GateError::NotUndone { .. }), "{error}");
        gate.snapshot().await.unwrap()
    });
    let left = |element: &Element| {
        live.iter().find(|live| live.element == *element).map(|live| live.seconds_left)
    };
    let [used, shorter] = [CLIENT, STRANGER].map(|sources| element(sources[0], "tcp/22"));
    assert_eq!(left(&used), None);
    assert!(left(&shorter).is_some_and(|left| left <= 61), "{live:?}");
    // Positive control: all others are back, those too that the other plan has no place for.
    for other in all.iter().filter(|one| ![used, shorter].contains(one)) {
        assert!(left(other).is_some_and(|left| left > 500), "{other}: {live:?}");
    }
    assert_eq!(lab.tcp(CLIENT[0], SERVER[0], 22), Seen::Silent);
    assert_eq!(lab.both(STRANGER, 22), OPEN);
    assert_eq!(lab.both(CLIENT, 80), OPEN);
}

#[test]
fn a_host_without_iptables_keeps_its_sessions() {
    let lab = lab();
    let mut sessions = [0, 1].map(|family| lab.session(family, 22));
    let report = install(&lab, &plan());
    assert!(report.connections_kept >= 2, "{report:?}");
    for (near, far) in &mut sessions {
        assert!(hears(near, far) && hears(far, near));
    }
    // A port that is guarded only later: only its sessions are entered then.
    let mut later = [0, 1].map(|family| lab.session(family, 80));
    let mut more = plan();
    more.guarded.push(guarded("tcp/80"));
    assert_eq!(install(&lab, &more).connections_kept, 2);
    for (near, far) in &mut later {
        assert!(hears(near, far) && hears(far, near));
    }
    assert_eq!(lab.both(CLIENT, 22), SILENT);
}

#[test]
fn a_knock_port_of_a_service_that_starts_later_is_no_change() {
    let lab = lab();
    install(&lab, &plan());
    let _socket = lab.inside("s", || UdpSocket::bind("[::]:62201").unwrap());
    let report = with_gate(&lab, |gate| async move { gate.examine(&plan()).await.unwrap() });
    assert!(!report.changed, "{report:?}");
    assert_eq!(report.busy_knock_ports.len(), Family::ALL.len());
}

#[test]
fn nothing_slips_through_while_rules_are_exchanged() {
    let lab = lab();
    let old = plan();
    let mut new = any_plan(Mode::Guard, Refusal::Reject);
    new.guarded.push(guarded("udp/6000-6010"));
    new.max_elements = 4096;
    let socket = lab.inside("s", || UdpSocket::bind("[::]:5000").unwrap());
    socket.set_nonblocking(true).unwrap();
    install(&lab, &old);
    let stop = AtomicBool::new(false);
    let sent = AtomicU64::new(0);
    thread::scope(|scope| {
        for family in 0..2 {
            let (lab, stop, sent) = (&lab, &stop, &sent);
            scope.spawn(move || {
                lab.inside("c", || {
                    // Each datagram is the first of its flow, mostly.
                    while !stop.load(Ordering::Relaxed) {
                        let sender = UdpSocket::bind((STRANGER[family], 0)).unwrap();
                        sender.send_to(b"let me in", (SERVER[family], 5000)).unwrap();
                        sent.fetch_add(1, Ordering::Relaxed);
                    }
                });
            });
        }
        with_gate(&lab, |gate| {
            let (old, new) = (&old, &new);
            async move {
                for _ in 0..ROUNDS {
                    assert!(gate.install(new).await.unwrap().changed);
                    assert!(gate.install(old).await.unwrap().changed);
                }
            }
        });
        stop.store(true, Ordering::Relaxed);
    });
    let mut slipped = 0;
    while socket.recv(&mut [0; 64]).is_ok() {
        slipped += 1;
    }
    assert_eq!(slipped, 0, "of {}", sent.load(Ordering::Relaxed));
    // Positive control: without the gate one gets through.
    remove(&lab);
    socket.set_nonblocking(false).unwrap();
    assert_eq!(at_once(|family| lab.udp(family, 5000, Some(&socket))), OPEN);
}
