//! The table of nftables against the real kernel: what is particular to it.

use crate::lab::{
    CLIENT, INNER, Lab, OPEN, REFUSED, SERVER, SILENT, STRANGER, Seen, Variant, admit,
    at_fresh_port, at_once, block_on, element, hears, plan as any_plan, uninterrupted, withdraw,
};
use spa_proto::Transport;
use spa_server::causes::with_causes;
use spa_server::gate::{
    Change, Connection, Cut, Doubt, Element, Family, Gate as _, GateError, Guarded, InstallReport,
    Mode, NftablesGate, Plan, Refusal, ToolOverrides,
};
use spa_server::service::{Connections, Forward, ForwardTo, Target};
use std::future::Future;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tokio::net::TcpSocket;

const NFT: &str = "/usr/sbin/nft";

/// How often the rules are exchanged under fire.
const ROUNDS: usize = 5;

fn lab() -> Lab {
    Lab::new(Variant::Nft)
}

fn plan() -> Plan {
    any_plan(Mode::Guard, Refusal::Drop)
}

fn guarded(ports: &str) -> Guarded {
    Guarded::plain(ports.parse().unwrap())
}

/// Runs async code on a thread in the server's namespace, with a gate that has just been made.
fn with_tool<T: Send, F: Future<Output = T>>(
    lab: &Lab,
    nft: Option<PathBuf>,
    code: impl FnOnce(NftablesGate) -> F + Send,
) -> T {
    let overrides = ToolOverrides { nft, ..ToolOverrides::default() };
    lab.inside("s", || block_on(code(NftablesGate::new(&overrides).unwrap())))
}

fn with_gate<T: Send, F: Future<Output = T>>(
    lab: &Lab,
    code: impl FnOnce(NftablesGate) -> F + Send,
) -> T {
    with_tool(lab, None, code)
}

fn install(lab: &Lab, plan: &Plan) -> InstallReport {
    with_gate(lab, |gate| async move { gate.install(plan).await.unwrap() })
}

fn apply(lab: &Lab, plan: &Plan, changes: &[Change]) {
    with_gate(lab, |gate| async move {
        gate.install(plan).await.unwrap();
        gate.apply(changes).await.unwrap();
    });
}

fn remove(lab: &Lab) {
    with_gate(lab, |gate| async move { gate.remove().await.unwrap() });
}

fn admitted(lab: &Lab, plan: &Plan) -> Vec<Element> {
    with_gate(lab, |gate| async move {
        gate.install(plan).await.unwrap();
        let mut found: Vec<_> =
            gate.snapshot().await.unwrap().into_iter().map(|live| live.element).collect();
        found.sort_unstable();
        found
    })
}

fn ruleset(lab: &Lab) -> String {
    lab.on("s", "nft -s list ruleset")
}

/// The whole networks that the client and the stranger are in.
const NETWORKS: [&str; 2] = ["192.0.2.0/24", "2001:db8:1::/64"];

#[test]
fn networks_and_ranges_are_granted_as_wholes_and_in_part() {
    let lab = lab();
    let mut plan = plan();
    plan.guarded.push(guarded("tcp/20-25"));
    install(&lab, &plan);
    assert_eq!(lab.both(CLIENT, 22), SILENT);
    apply(&lab, &plan, &admit([CLIENT[0], CLIENT[1]], "tcp/80", 1).split_off(2));
    // One port of the range, and the range.
    let wide = [NETWORKS[0], NETWORKS[1]];
    for (sources, ports) in
        [(wide, "tcp/22"), (wide, "tcp/20-25"), (["192.0.2.0/31", CLIENT[1]], "tcp/20-25")]
    {
        apply(&lab, &plan, &admit(sources, ports, 600));
        assert_eq!(lab.both(CLIENT, 22), OPEN, "{ports}");
        let of_stranger = if sources == wide { OPEN } else { SILENT };
        assert_eq!(lab.both(STRANGER, 22), of_stranger, "{ports}");
        // Nobody listens: the host says so itself, if anything gets through.
        let whole = ports != "tcp/22";
        for port in [20, 25] {
            assert_eq!(lab.both(CLIENT, port) == REFUSED, whole, "{port} of {ports}");
        }
        assert_eq!(admitted(&lab, &plan), sources.map(|source| element(source, ports)));
        apply(&lab, &plan, &withdraw(sources, ports));
        assert_eq!(lab.both(CLIENT, 22), SILENT);
        assert_eq!(admitted(&lab, &plan), []);
    }
    // Networks in one another: each lives for itself.
    apply(&lab, &plan, &admit(["192.0.0.0/16", "2001:db8::/32"], "tcp/22", 600));
    apply(&lab, &plan, &admit(wide, "tcp/22", 600));
    apply(&lab, &plan, &withdraw(wide, "tcp/22"));
    assert_eq!(lab.both(STRANGER, 22), OPEN);
    apply(&lab, &plan, &withdraw(["192.0.0.0/16", "2001:db8::/32"], "tcp/22"));
    assert_eq!(lab.both(STRANGER, 22), SILENT);
}

fn forward(ports: &str, ends: [Option<&str>; 2], port: Option<u16>, masquerade: bool) -> Guarded {
    let [v4, v6] = ends.map(|end| {
        end.map(|end| ForwardTo {
            address: end.parse().unwrap(),
            port: port.and_then(NonZeroU16::new),
        })
    });
    Guarded { target: Target::Forward(Forward { v4, v6, masquerade }), ..guarded(ports) }
}

#[test]
fn what_is_granted_is_forwarded_and_nothing_else_is() {
    let lab = lab();
    // Whoever comes to the inner host is counted there.
    lab.on("i", "nft add table inet seen");
    lab.on("i", "nft add chain inet seen in { type filter hook input priority 0; }");
    let rule = |source: &str| {
        lab.on("i", &format!("nft add rule inet seen in {source} tcp flags syn counter accept"));
    };
    for (family, source) in ["ip saddr 192.0.2.3", "ip6 saddr 2001:db8:1::3"].iter().enumerate() {
        rule(source);
        assert_eq!(lab.tcp(STRANGER[family], INNER[family], 22), Seen::Open, "a way is there");
    }
    let strangers = || lab.on("i", "nft list chain inet seen in").matches("packets 1 ").count();
    assert_eq!(strangers(), 2);
    // Once: while another test starts a program, that has it open too, and nobody can bind it again.
    let listener = lab.inside("i", || TcpListener::bind("[::]:23").unwrap());
    for masquerade in [false, true] {
        let mut plan = plan();
        plan.guarded = vec![
            forward("tcp/2222", [Some(INNER[0]), Some(INNER[1])], Some(23), masquerade),
            forward("tcp/20-22", [Some(INNER[0]), None], None, masquerade),
        ];
        install(&lab, &plan);
        assert_eq!(lab.both(CLIENT, 2222), SILENT);
        apply(&lab, &plan, &admit(CLIENT, "tcp/2222", 600));
        apply(&lab, &plan, &admit([CLIENT[0]; 2], "tcp/20-22", 600));
        assert_eq!(lab.both(STRANGER, 2222), SILENT);
        assert_eq!(lab.both(STRANGER, 22), SILENT);
        assert_eq!(strangers(), 2, "nothing of the stranger's came through");
        assert_eq!(lab.both(CLIENT, 2222), OPEN);
        (0..2).for_each(|_| drop(listener.accept().unwrap()));
        // The range keeps the port, and isn't there over IPv6, for nobody.
        assert_eq!(lab.both(CLIENT, 22), [Seen::Open, Seen::Silent]);
        plan.always_admit = vec!["2001:db8::/32".parse().unwrap()];
        install(&lab, &plan);
        assert_eq!(lab.both(CLIENT, 22), [Seen::Open, Seen::Silent]);
        plan.always_admit.clear();
        install(&lab, &plan);
        // Whom the inner host sees: this host, if so asked; and whom it merely routes, always.
        for (family, through) in ["198.51.100.1", "2001:db8:2::1"].into_iter().enumerate() {
            let seen = |to: &str, port: u16| {
                assert_eq!(lab.tcp(CLIENT[family], to, port), Seen::Open);
                listener.accept().unwrap().1.ip().to_canonical().to_string()
            };
            let source = if masquerade { through } else { CLIENT[family] };
            assert_eq!(seen(SERVER[family], 2222), source);
            assert_eq!(seen(INNER[family], 23), CLIENT[family]);
        }
        apply(&lab, &plan, &withdraw(CLIENT, "tcp/2222"));
        assert_eq!(lab.both(CLIENT, 2222), SILENT);
        apply(&lab, &plan, &withdraw([CLIENT[0]; 2], "tcp/20-22"));
    }
}

#[test]
fn a_port_leads_to_another_one_of_this_host() {
    let lab = lab();
    let mut plan = plan();
    let target = Target::LocalPort(NonZeroU16::new(80).unwrap());
    plan.guarded = vec![Guarded { target, ..guarded("tcp/8080") }];
    let report = install(&lab, &plan);
    let warned = |report: &InstallReport| report.warnings.iter().any(|one| one.contains("tcp/80 "));
    assert!(warned(&report), "{report:?}");
    assert_eq!(lab.both(CLIENT, 8080), SILENT);
    assert_eq!(lab.both(CLIENT, 80), OPEN);
    // The port that it leads to may itself be guarded.
    plan.guarded.push(guarded("tcp/80"));
    assert!(!warned(&install(&lab, &plan)));
    apply(&lab, &plan, &admit(CLIENT, "tcp/8080", 600));
    assert_eq!(lab.both(CLIENT, 8080), OPEN);
    assert_eq!(lab.both(CLIENT, 80), SILENT);
    assert_eq!(lab.both(STRANGER, 8080), SILENT);
}

fn once(ports: &[&str]) -> Plan {
    let mut plan = plan();
    let one = |ports: &&str| Guarded { connections: Connections::One, ..guarded(ports) };
    plan.guarded.extend(ports.iter().map(one));
    plan.guarded.remove(0);
    plan
}

#[test]
fn a_grant_of_one_connection_lets_in_one() {
    let lab = lab();
    let plan = once(&["tcp/22", "tcp/79-81"]);
    for (sources, ports, port) in
        [(CLIENT, "tcp/22", 22), (CLIENT, "tcp/79-81", 80), (CLIENT, "tcp/80", 80)]
    {
        apply(&lab, &plan, &admit(sources, ports, 600));
        assert_eq!(admitted(&lab, &plan).len(), 2, "{ports}");
        let mut sessions = [0, 1].map(|family| lab.session(family, port));
        assert_eq!(lab.both(CLIENT, port), SILENT, "{ports}");
        assert_eq!(admitted(&lab, &plan), [], "it is used up");
        for (near, far) in &mut sessions {
            assert!(hears(near, far) && hears(far, near));
        }
    }
    // A stray packet uses nothing up; nor does one of another source.
    apply(&lab, &plan, &admit(CLIENT, "tcp/22", 600));
    for scan in ["-sA", "-sF", "-sX"] {
        let from = format!("{scan} -e up -S {}", CLIENT[0]);
        lab.nmap(0, &[&from], [22, 23]);
    }
    assert_eq!(lab.both(STRANGER, 22), SILENT);
    assert_eq!(lab.both(CLIENT, 22), OPEN);
    assert_eq!(lab.both(CLIENT, 22), SILENT);
    // A mark that others give makes nothing of it.
    lab.nft("table inet marks {\n chain in {\n type filter hook prerouting priority -160\n ct mark set 0xffffffff\n }\n}\n");
    assert_eq!(lab.both(CLIENT, 22), SILENT);
    apply(&lab, &plan, &admit(CLIENT, "tcp/22", 600));
    assert_eq!(lab.both(CLIENT, 22), OPEN);
}

#[test]
fn a_first_packet_that_comes_again_belongs_to_its_connection() {
    let lab = lab();
    let plan = once(&["tcp/22", "udp/5001"]);
    apply(&lab, &plan, &admit(CLIENT, "tcp/22", 600));
    // The client doesn't hear the answers, and what gets by the gate is counted.
    lab.nft(
        "table inet count {\n chain in {\n type filter hook input priority 10\n \
         tcp dport 22 tcp flags syn counter accept\n }\n}\n",
    );
    lab.on("c", "nft add table inet deaf");
    lab.on("c", "nft add chain inet deaf in { type filter hook input priority 0; }");
    for family in 0..2 {
        lab.on("c", "nft add rule inet deaf in tcp sport 22 drop");
        let before = counted(&lab);
        thread::scope(|scope| {
            let session = scope.spawn(|| lab.session(family, 22));
            let began = Instant::now();
            while counted(&lab) < before + 2 {
                assert!(began.elapsed() < Duration::from_secs(20), "it came only once");
                thread::sleep(Duration::from_millis(100));
            }
            lab.on("c", "nft flush chain inet deaf in");
            session.join().unwrap();
        });
    }
    lab.on("s", "nft delete table inet count");
    assert_eq!(lab.both(CLIENT, 22), SILENT);

    // And the datagrams of one exchange, before there was an answer.
    let socket = lab.inside("s", || UdpSocket::bind("[::]:5001").unwrap());
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    apply(&lab, &plan, &admit(CLIENT, "udp/5001", 600));
    for family in 0..2 {
        let sender =
            lab.inside("c", || at_fresh_port(|port| UdpSocket::bind((CLIENT[family], port))));
        for _ in 0..3 {
            sender.send_to(b"again", (SERVER[family], 5001)).unwrap();
            uninterrupted(|| socket.recv(&mut [0; 9])).unwrap();
        }
        assert_eq!(lab.udp(family, 5001, Some(&socket)), Seen::Silent);
    }
}

fn counted(lab: &Lab) -> u32 {
    let text = lab.on("s", "nft list chain inet count in");
    let count = text.split_once("packets ").and_then(|(_, rest)| rest.split(' ').next());
    count.unwrap().parse().unwrap()
}

#[test]
fn some_networks_need_no_grant() {
    let lab = lab();
    let mut plan = plan();
    plan.always_admit = [CLIENT[0], "192.0.2.0/31", "2001:db8:1::1/128"]
        .map(|net| net.parse().unwrap_or_else(|_| format!("{net}/32").parse().unwrap()))
        .to_vec();
    install(&lab, &plan);
    assert_eq!(lab.both(CLIENT, 22), OPEN);
    assert_eq!(lab.both(STRANGER, 22), SILENT);
    assert_eq!(at_once(|family| lab.udp(family, 62201, None)), SILENT, "knock ports stay hidden");
}

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
fn a_severed_connection_ends_even_if_the_server_talks() {
    let lab = lab();
    let mut plan = plan();
    plan.guarded.push(forward("tcp/2222", [Some(INNER[0]), Some(INNER[1])], Some(22), true));
    install(&lab, &plan);
    let inner = lab.inside("i", || TcpListener::bind("[::]:23").unwrap());
    plan.guarded.push(forward("tcp/2223", [Some(INNER[0]), Some(INNER[1])], Some(23), false));
    for (port, listener) in [(22, None), (2223, Some(&inner))] {
        for (family, server) in SERVER.into_iter().enumerate() {
            let ports = format!("tcp/{port}");
            apply(&lab, &plan, &admit(CLIENT, &ports, 600));
            let connect = || match listener {
                None => lab.session(family, port),
                Some(listener) => {
                    let near = connection(&lab, CLIENT[family], (server, port));
                    (near, listener.accept().unwrap().0)
                }
            };
            let (mut near, mut far) = connect();
            let (mut other_near, mut other_far) = connect();
            assert!(hears(&mut far, &mut near));
            let connection = Connection {
                transport: Transport::Tcp,
                peer: near.local_addr().unwrap(),
                local: SocketAddr::new(server.parse().unwrap(), port),
            };
            let answered_from = match listener {
                None => connection.local,
                Some(_) => SocketAddr::new(INNER[family].parse().unwrap(), 23),
            };
            let cut = Cut { connection, answered_from };
            let plan = &plan;
            with_gate(&lab, |gate| async move {
                gate.install(plan).await.unwrap();
                gate.sever(&[cut]).await.unwrap();
            });
            // Both are told when they talk, and hear nothing.
            assert!(ends(&mut far), "the server's end: {port}");
            assert!(ends(&mut near), "the client's end: {port}");
            assert!(hears(&mut other_near, &mut other_far));
            assert!(hears(&mut other_far, &mut other_near));
            // What a crash has left is lifted by the next installation, or here.
            assert!(ruleset(&lab).contains("spa-cut"));
            if family == 0 {
                install(&lab, plan);
            } else {
                with_gate(&lab, |gate| async move { gate.lift().await.unwrap() });
            }
            assert!(!ruleset(&lab).contains("spa-cut"));
        }
    }
}

fn connection(lab: &Lab, from: &str, (to, port): (&str, u16)) -> TcpStream {
    let to = SocketAddr::new(to.parse().unwrap(), port);
    let connect = async {
        let any = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let socket = any.unwrap();
        socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
        let stream = socket.connect(to).await.unwrap().into_std().unwrap();
        stream.set_nonblocking(false).unwrap();
        stream
    };
    lab.inside("c", || block_on(connect))
}

/// Whether an end that talks is told that the connection is over.
fn ends(stream: &mut TcpStream) -> bool {
    use std::io::Write as _;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        if stream.write_all(b"x").is_err() {
            return true;
        }
        thread::sleep(Duration::from_millis(20));
    }
    false
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

#[test]
fn a_hundred_thousand_grants_cost_each_what_the_first_did() {
    let lab = lab();
    let mut plan = plan();
    plan.max_elements = 200_000;
    with_gate(&lab, |gate| async move {
        gate.install(&plan).await.unwrap();
        let source = |n: u32| std::net::IpAddr::from((0x0a00_0000 + n).to_be_bytes());
        let grant = |n: u32| Change::Admit {
            element: Element { source: source(n).into(), ports: "tcp/22".parse().unwrap() },
            seconds: 3600,
        };
        let mut held = 0;
        while held < 100_000 {
            let some: Vec<_> = (held..held + 10_000).map(grant).collect();
            gate.apply(&some).await.unwrap();
            held += 10_000;
        }
        assert_eq!(gate.look(Doubt::Elements).await.unwrap().elements, u64::from(held));
        assert_eq!(gate.snapshot().await.unwrap().len(), usize::try_from(held).unwrap());
    });
}

#[test]
fn sets_are_resized_without_losing_an_element() {
    let lab = lab();
    let mut plan = plan();
    plan.guarded.push(guarded("udp/7-9"));
    let mut changes = admit(CLIENT, "tcp/22", 600);
    changes.extend(admit(NETWORKS, "udp/7-9", 600));
    apply(&lab, &plan, &changes);
    let sizes = |size: u32| ruleset(&lab).matches(&format!("size {size}\n")).count();
    assert_eq!(sizes(1024), 6);
    plan.max_elements = 7;
    assert_eq!(admitted(&lab, &plan).len(), 4);
    assert_eq!((sizes(1024), sizes(7)), (0, 6));
    assert_eq!(lab.both(CLIENT, 22), OPEN);
    assert_eq!(lab.both(STRANGER, 22), SILENT);
    // Smaller than what is in it: it stays as large until that is over.
    plan.max_elements = 1;
    assert_eq!(admitted(&lab, &plan).len(), 4);
    assert_eq!(sizes(7), 6);
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
