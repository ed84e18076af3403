//! The vectors of RFC 5769, answers that are none, and a server that is slow or wrong.

use super::*;
use std::net::TcpListener;
use std::thread;

/// The transaction of RFC 5769, sections 2.2 and 2.3.
const TRANSACTION: [u8; 12] =
    [0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae];

fn answer(attributes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(attributes.len()).unwrap().to_be_bytes();
    [&[1, 1], &length[..], &MAGIC_COOKIE, &TRANSACTION, attributes].concat()
}

/// SOFTWARE, whose value needs padding, as the vectors have it.
const SOFTWARE: [u8; 16] = *b"\x80\x22\x00\x0btest vector ";
const XOR_V4: [u8; 12] = [0x00, 0x20, 0x00, 0x08, 0x00, 0x01, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43];
const XOR_V6: [u8; 24] = [
    0x00, 0x20, 0x00, 0x14, 0x00, 0x02, 0xa1, 0x47, 0x01, 0x13, 0xa9, 0xfa, 0xa5, 0xd3, 0xf1, 0x79,
    0xbc, 0x25, 0xf4, 0xb5, 0xbe, 0xd2, 0xb9, 0xd9,
];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn the_addresses_of_the_published_vectors_are_read() {
    let read = |attributes: &[u8]| mapped_address(&answer(attributes), TRANSACTION);
    assert_eq!(read(&[&SOFTWARE[..], &XOR_V4].concat()), Some(ip("192.0.2.1")));
    assert_eq!(
        read(&[&SOFTWARE[..], &XOR_V6].concat()),
        Some(ip("2001:db8:1234:5678:11:2233:4455:6677"))
    );
    // What servers before RFC 5389 send; the other one, where there are both.
    let plain = [0, 1, 0, 8, 0, 1, 0x80, 0x55, 198, 51, 100, 7];
    assert_eq!(read(&plain), Some(ip("198.51.100.7")));
    assert_eq!(read(&[&plain[..], &XOR_V4].concat()), Some(ip("192.0.2.1")));
}

#[test]
fn what_is_no_answer_to_the_question_is_none() {
    let good = answer(&XOR_V4);
    assert!(mapped_address(&good, TRANSACTION).is_some());
    assert_eq!(mapped_address(&good, [0; 12]), None);
    for (at, byte) in [(0, 0), (1, 0x11), (4, 0), (25, 3)] {
        let mut wrong = good.clone();
        wrong[at] = byte;
        assert_eq!(mapped_address(&wrong, TRANSACTION), None, "byte {at}");
    }
    for length in 0..good.len() {
        assert_eq!(mapped_address(&good[..length], TRANSACTION), None, "{length}");
    }
    for unusable in [[0, 0, 0, 0], [224, 0, 0, 1]] {
        let plain = [&[0, 1, 0, 8, 0, 1, 0, 9][..], &unusable].concat();
        assert_eq!(mapped_address(&answer(&plain), TRANSACTION), None);
    }
    assert_eq!(mapped_address(&answer(&[0, 0x20, 0xff, 0xff]), TRANSACTION), None);
}

fn server(address: SocketAddr) -> Endpoint {
    address.to_string().parse().unwrap()
}

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Answers to the request it has got, with the transaction of it.
fn answered(request: &[u8]) -> Vec<u8> {
    let mut answer = [&[1, 1, 0, 12][..], &request[4..20]].concat();
    answer.extend([0, 1, 0, 8, 0, 1, 0, 9, 198, 51, 100, 7]);
    answer
}

#[test]
fn a_lost_question_is_asked_again_and_a_strange_answer_is_passed_over() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = socket.local_addr().unwrap();
    let answering = thread::spawn(move || {
        let mut buffer = [0; 64];
        let (first, _) = socket.recv_from(&mut buffer).unwrap();
        let asked = buffer[..first].to_vec();
        let (second, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(asked, buffer[..second]);
        socket.send_to(b"not at all", from).unwrap();
        socket.send_to(&answered(&asked), from).unwrap();
    });
    assert_eq!(lookup(&server(at), LOOPBACK, By::Udp).ok(), Some(ip("198.51.100.7")));
    answering.join().unwrap();
}

#[test]
fn the_same_question_goes_over_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let answering = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; HEADER];
        stream.read_exact(&mut request).unwrap();
        stream.write_all(&answered(&request)).unwrap();
    });
    assert_eq!(lookup(&server(at), LOOPBACK, By::Tcp).ok(), Some(ip("198.51.100.7")));
    answering.join().unwrap();
}

#[test]
fn a_server_that_is_silent_absent_or_of_the_other_family_is_told() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = server(silent.local_addr().unwrap());
    let told =
        |server: &Endpoint, like: IpAddr, by| lookup(server, like, by).unwrap_err().to_string();
    let start = Instant::now();
    assert_eq!(told(&at, LOOPBACK, By::Udp), "did not answer within 800 ms");
    assert!(start.elapsed() >= TIME_LIMIT);
    assert_eq!(told(&at, LOOPBACK, By::Tcp), "can't be asked: connection refused");
    assert_eq!(told(&at, Ipv6Addr::LOCALHOST.into(), By::Udp), "has no IPv6 address");
    drop(silent);
    assert_eq!(told(&at, LOOPBACK, By::Udp), "can't be asked: connection refused");
}
