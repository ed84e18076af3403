//! Grants of one connection, and connections that are cut.

use super::*;

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
