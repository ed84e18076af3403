//! Sockets: made by the standard library, listed here and by `ss`, and ended from outside.

use crate::place::Place;
use spa_server::netlink::sock_diag::{InetSocket, SockDiag, State, States};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

/// A listener of both families on a port, and a connection to it: client's end, server's end.
fn session(listener: &TcpListener, to: &str) -> (TcpStream, TcpStream) {
    let port = listener.local_addr().unwrap().port();
    let near = TcpStream::connect((to, port)).unwrap();
    let far = loop {
        let (far, peer) = listener.accept().unwrap();
        if peer.port() == near.local_addr().unwrap().port() {
            break far;
        }
    };
    for end in [&near, &far] {
        end.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    }
    (near, far)
}

fn ends(sockets: &[InetSocket]) -> Vec<String> {
    let mut ends: Vec<_> = sockets
        .iter()
        .map(|socket| {
            format!("{} {} {} {:?}", socket.transport, socket.local, socket.peer, socket.state)
        })
        .collect();
    ends.sort_unstable();
    ends
}

#[test]
fn sockets_on_the_wanted_ports_in_the_wanted_states_are_found() {
    let place = Place::new();
    place.inside(|| {
        let listeners = [22, 80, 2222].map(|port| TcpListener::bind(("::", port)).unwrap());
        let (near4, far4) = session(&listeners[0], "127.0.0.1");
        let (near6, far6) = session(&listeners[0], "::1");
        let (_near80, _far80) = session(&listeners[1], "127.0.0.1");
        let (near2222, _far2222) = session(&listeners[2], "127.0.0.1");
        let mut diag = SockDiag::open().unwrap();

        let found = diag.tcp_sockets(States::TALKING, &[22..=22]).unwrap();
        let peers = [&near4, &near6].map(|near| near.local_addr().unwrap());
        let mut expected = [
            format!("tcp 127.0.0.1:22 {} Established", peers[0]),
            format!("tcp [::1]:22 {} Established", peers[1]),
        ];
        expected.sort_unstable();
        assert_eq!(ends(&found), expected);
        for (socket, far) in
            found.iter().map(|socket| (socket, if socket.local.is_ipv4() { &far4 } else { &far6 }))
        {
            let link = std::fs::read_link(format!("/proc/self/fd/{}", far.as_raw_fd())).unwrap();
            assert_eq!(link.to_str().unwrap(), format!("socket:[{}]", socket.inode));
            assert_eq!(socket.uid, 0);
            assert_ne!(socket.cookie, 0);
        }

        let found = diag.tcp_sockets(States::LISTENING, &[1..=100]).unwrap();
        assert_eq!(ends(&found), ["tcp [::]:22 [::]:0 Listen", "tcp [::]:80 [::]:0 Listen"]);
        let found = diag.tcp_sockets(States::TALKING, &[80..=80, 1..=21, 2000..=3000]).unwrap();
        let ports: Vec<_> = found.iter().map(|socket| socket.local.port()).collect();
        assert!(ports.len() == 2 && ports.contains(&80) && ports.contains(&2222), "{ports:?}");
        // Half closed: the peer still expects an answer.
        near2222.shutdown(std::net::Shutdown::Write).unwrap();
        let found = diag.tcp_sockets(States::TALKING, &[2222..=2222]).unwrap();
        assert_eq!(found[0].state, State::CloseWait);
        assert_eq!(diag.tcp_sockets(States::ALL, &[23..=79]).unwrap(), []);
        assert_eq!(diag.tcp_sockets(States::ALL, &[]).unwrap(), []);

        // As many ranges as no program can hold are compared here.
        let many: Vec<_> = (22..=22).cycle().take(4000).map(|port| port..=port).collect();
        assert_eq!(diag.tcp_sockets(States::TALKING, &many).unwrap().len(), 2);

        let everything = diag.tcp_sockets(States::ALL, &[0..=u16::MAX]).unwrap();
        let listed = place.on("ss -Htan");
        assert_eq!(everything.len(), listed.lines().count(), "{listed}\n{everything:#?}");
    });
}

#[test]
fn udp_sockets_with_and_without_a_peer_are_found() {
    let place = Place::new();
    place.inside(|| {
        let bound = UdpSocket::bind("127.0.0.1:53").unwrap();
        let wildcard = UdpSocket::bind("[::]:443").unwrap();
        let connected = UdpSocket::bind("[::1]:53").unwrap();
        connected.connect("[::1]:9").unwrap();
        let mut diag = SockDiag::open().unwrap();
        let found = diag.udp_sockets(States::ALL, &[53..=53, 443..=443]).unwrap();
        assert_eq!(
            ends(&found),
            [
                "udp 127.0.0.1:53 0.0.0.0:0 Closed",
                "udp [::1]:53 [::1]:9 Established",
                "udp [::]:443 [::]:0 Closed",
            ]
        );
        let found = diag.udp_sockets(States::WITH_PEER, &[53..=53, 443..=443]).unwrap();
        assert_eq!(ends(&found), ["udp [::1]:53 [::1]:9 Established"]);

        assert!(diag.destroy(&found[0]).unwrap());
        connected.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let error = connected.recv(&mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "{error}");
        drop((bound, wildcard));
    });
}

#[test]
fn a_connection_is_ended_and_its_neighbour_lives_on() {
    let place = Place::new();
    place.inside(|| {
        let listener = TcpListener::bind("[::]:22").unwrap();
        let mut diag = SockDiag::open().unwrap();
        for to in ["127.0.0.1", "::1"] {
            let (mut near, mut far) = session(&listener, to);
            let (mut other_near, mut other_far) = session(&listener, to);
            let found = diag.tcp_sockets(States::TALKING, &[22..=22]).unwrap();
            let peer = near.local_addr().unwrap();
            let socket = found.iter().find(|socket| socket.peer == peer).unwrap();

            assert!(diag.destroy(socket).unwrap());
            assert!(!diag.destroy(socket).unwrap());
            let error = far.read_exact(&mut [0; 1]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "{error}");
            let error = near.read_exact(&mut [0; 1]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");

            other_near.write_all(b"x").unwrap();
            other_far.read_exact(&mut [0; 1]).unwrap();
        }
    });
}

#[test]
fn a_successor_between_the_same_ends_is_left_alone() {
    let place = Place::new();
    place.inside(|| {
        let listener = TcpListener::bind("127.0.0.1:22").unwrap();
        let mut diag = SockDiag::open().unwrap();
        let connect = || {
            let socket =
                socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.set_reuse_address(true).unwrap();
            let from: std::net::SocketAddr = "127.0.0.1:5000".parse().unwrap();
            let to: std::net::SocketAddr = "127.0.0.1:22".parse().unwrap();
            socket.bind(&from.into()).unwrap();
            socket.connect(&to.into()).unwrap();
            (TcpStream::from(socket), listener.accept().unwrap().0)
        };
        let first = connect();
        let found = diag.tcp_sockets(States::TALKING, &[22..=22]).unwrap();
        let [socket] = found.as_slice() else { panic!("{found:?}") };
        assert!(diag.destroy(socket).unwrap());
        drop(first);
        let (mut near, mut far) = connect();
        let found = diag.tcp_sockets(States::TALKING, &[22..=22]).unwrap();
        assert_eq!((found[0].local, found[0].peer), (socket.local, socket.peer));
        assert!(!diag.destroy(socket).unwrap());
        near.write_all(b"x").unwrap();
        far.read_exact(&mut [0; 1]).unwrap();
        // The detector detects.
        assert!(diag.destroy(&found[0]).unwrap());
        assert!(far.read_exact(&mut [0; 1]).is_err());
    });
}
