//! The prefilter in the kernel: what it lets through, on every kind of link.

use crate::links::{ethertype, knocks, others};
use crate::net::{Namespace, Sender, Tun};
use crate::sample::{IPV4, UDP, ethernet, ipv4, udp};
use crate::{
    Event, Events, LENGTH, OTHER_PORT, PATIENCE, PORT, add_veth, is_retrying, is_running, named,
    settings, wait_for, with_veth,
};
use spa_proto::{
    ClientId, Freshness, MaskKey, MessageType, Nonce, PacketLength, PairSecret, Receiver, Request,
    Sender as Sealer, ServerKey, Settings, UnixMicros, seal,
};
use spa_server::capture::{Capture, CaptureSettings, Interfaces};
use spa_server::prefilter::{Dropped, Prefilter, Shape};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Instant;

const NOW: UnixMicros = UnixMicros::from_secs(1_800_000_000);
const MASK: [u8; 32] = [9; 32];

fn secret(of: u8) -> PairSecret {
    PairSecret::new([of; 32], [2; 32], [3; 32])
}

/// A receiver that knows clients with these secrets.
fn receiver(clients: impl IntoIterator<Item = u8>) -> Receiver {
    let mut receiver = Receiver::new(Settings::default(), MaskKey::new(MASK));
    receiver.set_clients(clients.into_iter().map(|of| (ClientId([of; 32]), secret(of))));
    receiver.roll(NOW);
    receiver
}

fn knock(of: u8, mask: [u8; 32], at: UnixMicros, nonce: [u8; 24]) -> Vec<u8> {
    let request = Request {
        message_type: MessageType::Open,
        items: "ssh".parse::<spa_proto::Item>().unwrap().try_into().unwrap(),
        bound_source: None,
        lifetime: None,
    };
    let (mask, length) = (MaskKey::new(mask), PacketLength::default());
    seal(&secret(of), &mask, &request, at, Nonce(nonce), length).unwrap()
}

/// One of client 1.
fn knock_of_one() -> Vec<u8> {
    knock(1, MASK, NOW, [7; 24])
}

/// Of the right length, whatever else it is.
fn noise() -> Vec<u8> {
    vec![0x5a; LENGTH]
}

fn prefilter() -> Arc<Prefilter> {
    let capture = settings(Interfaces::All);
    let snap_length = CaptureSettings::snap_length(LENGTH).unsigned_abs();
    let shape = Shape { ports: capture.ports, packet_length: LENGTH, snap_length };
    Arc::new(Prefilter::load(shape, 1).unwrap())
}

/// Captures what the prefilter lets through.
fn start(interfaces: Interfaces, prefilter: &Arc<Prefilter>) -> (Capture, mpsc::Receiver<Event>) {
    let (sender, events) = mpsc::channel();
    let settings =
        CaptureSettings { kernel_filter: Some(Arc::clone(prefilter) as _), ..settings(interfaces) };
    let capture = Capture::start(&settings, |_| Events(sender.clone())).unwrap();
    (capture, events)
}

fn frame(payload: &[u8]) -> Vec<u8> {
    ethernet(&[], IPV4, &ipv4(UDP, &[], &udp(PORT, payload)))
}

fn arrives(events: &mpsc::Receiver<Event>, payload: &[u8], what: &str) {
    match events.recv_timeout(PATIENCE) {
        Ok(Event::Datagram(_, _, _, found)) => assert_eq!(found, payload, "{what}"),
        other => panic!("{other:?} instead of {what}"),
    }
}

/// Knocks arrive in whatever they come, and nothing else does.
fn only_knocks_pass(
    interfaces: Interfaces,
    wrappings: &[&[u16]],
    mut send: impl FnMut(&[u16], &[u8]),
) {
    let prefilter = prefilter();
    prefilter.know(&receiver([1]).sieve(), 1, NOW, Prefilter::HOLDS).unwrap();
    let (capture, events) = start(interfaces, &prefilter);
    assert!(prefilter.is_everywhere());
    let (knock, noise) = (knock_of_one(), noise());
    let mut sent = 0;
    for tags in wrappings {
        let others = others(&knock);
        let shapes = knocks(&knock).into_iter().zip(knocks(&noise));
        for ((good, bad), other) in shapes.zip(others.iter().cycle()) {
            for packet in [&bad, other, &good] {
                send(tags, packet);
            }
            sent += 1;
            arrives(&events, &knock, &format!("{good:02x?} behind {tags:x?}"));
        }
    }
    assert_eq!(prefilter.dropped().unwrap().unknown_tag, sent);
    drop(capture);
    assert_eq!(events.try_recv().ok(), None);
}

#[test]
fn only_knocks_pass_on_ethernet_untagged_and_behind_vlan_tags() {
    with_veth(|_| {
        let mut far = Sender::on("far");
        let tags: &[&[u16]] = &[&[], &[0x8100], &[0x88a8], &[0x88a8, 0x8100], &[0x8100, 0x8100]];
        only_knocks_pass(named("near"), tags, |tags, packet| {
            far.send(&ethernet(tags, ethertype(packet), packet));
        });
    });
}

#[test]
fn only_knocks_pass_on_any() {
    with_veth(|_| {
        let mut far = Sender::on("far");
        only_knocks_pass(Interfaces::All, &[&[], &[0x8100]], |tags, packet| {
            far.send(&ethernet(tags, ethertype(packet), packet));
        });
    });
}

#[test]
fn only_knocks_pass_on_tun() {
    let namespace = Namespace::new();
    namespace.inside(|| {
        let mut tun = Tun::new("tun0");
        namespace.ip("link set tun0 up");
        only_knocks_pass(named("tun0"), &[&[]], |_, packet| tun.receive(packet));
    });
}

/// Of some network cards not even all headers are in the linear part of the kernel's buffer, where
/// nothing has pulled them there.
#[test]
fn only_knocks_pass_in_fragments_of_the_kernel_s_buffer() {
    for linear in [14, 34, 42, 60] {
        let namespace = Namespace::new();
        namespace.inside(|| {
            let mut tap = Tun::in_fragments("tap0", linear);
            namespace.ip("link set tap0 up");
            let gro = ["-K", "tap0", "gro", "off"];
            assert!(std::process::Command::new("ethtool").args(gro).status().unwrap().success());
            only_knocks_pass(named("tap0"), &[&[]], |tags, packet| {
                tap.receive(&ethernet(tags, ethertype(packet), packet));
            });
        });
    }
}

/// The kernel takes the mask off as [`seal`] has put it on, whatever the nonce, and knows the tags of
/// all clients and epochs.
#[test]
fn each_knock_of_each_client_passes() {
    with_veth(|_| {
        let prefilter = prefilter();
        let clients = 1..=200;
        prefilter.know(&receiver(clients.clone()).sieve(), 1, NOW, Prefilter::HOLDS).unwrap();
        let (capture, events) = start(named("near"), &prefilter);
        let mut far = Sender::on("far");
        let window = Freshness::default().get();
        let nonces = (0..=255_u8).map(|n| {
            let mut nonce = [n; 24];
            nonce[usize::from(n) % 12] ^= 0x81;
            nonce
        });
        let nonces = nonces.chain([[0; 24], [0xff; 24]]);
        for (client, nonce) in clients.cycle().zip(nonces) {
            for at in [NOW, NOW.saturating_sub(window), NOW.saturating_add(window)] {
                let knock = knock(client, MASK, at, nonce);
                far.send(&frame(&knock));
                arrives(&events, &knock, &format!("a knock of {client} with {nonce:02x?}"));
            }
        }
        drop(capture);
        assert_eq!(prefilter.dropped().unwrap(), Dropped::default());
    });
}

#[test]
fn what_is_known_changes_with_each_generation() {
    with_veth(|_| {
        let prefilter = prefilter();
        let (capture, events) = start(named("near"), &prefilter);
        let mut far = Sender::on("far");
        let (one, two) = (knock_of_one(), knock(2, MASK, NOW, [7; 24]));
        let of_previous = knock(3, [8; 32], NOW, [7; 24]);
        let all = [noise(), one, two, of_previous];
        let mut passes = |which: &[usize], what: &str| {
            // The port says which one is the last.
            let last = ethernet(&[], IPV4, &ipv4(UDP, &[], &udp(OTHER_PORT, &all[which[0]])));
            for payload in &all {
                far.send(&frame(payload));
            }
            far.send(&last);
            for payload in which.iter().map(|at| &all[*at]).chain([&all[which[0]]]) {
                arrives(&events, payload, what);
            }
        };
        passes(&[0, 1, 2, 3], "before it was told anything");
        let mut known = receiver([1, 2]);
        prefilter.know(&known.sieve(), 5, NOW, Prefilter::HOLDS).unwrap();
        passes(&[1, 2], "two clients");
        prefilter.know(&receiver([]).sieve(), 4, NOW, Prefilter::HOLDS).unwrap();
        passes(&[1, 2], "an older generation than is known");
        known.remove_client(ClientId([2; 32]));
        prefilter.know(&known.sieve(), 6, NOW, Prefilter::HOLDS).unwrap();
        passes(&[1], "one is gone");
        let three = (Sealer::Client(ClientId([3; 32])), secret(3));
        known.set_senders(ServerKey::Previous, MaskKey::new([8; 32]), [three]);
        // Its tags are not computed yet.
        prefilter.know(&known.sieve(), 7, NOW, Prefilter::HOLDS).unwrap();
        passes(&[0, 1, 2, 3], "tags that are not there yet");
        known.roll(NOW);
        known.add_client(ClientId([2; 32]), ServerKey::Present, secret(2));
        prefilter.know(&known.sieve(), 8, NOW, Prefilter::HOLDS).unwrap();
        passes(&[1, 2, 3], "a client of the previous identity as well");
        drop(capture);
    });
}

/// Nobody tells it tags any more: the daemon hangs, say.
#[test]
fn everything_passes_when_its_time_is_over() {
    with_veth(|_| {
        let prefilter = prefilter();
        let (begun, holds) = (Instant::now(), std::time::Duration::from_secs(1));
        prefilter.know(&receiver([1]).sieve(), 1, NOW, holds).unwrap();
        let (capture, events) = start(named("near"), &prefilter);
        let mut far = Sender::on("far");
        let end = Instant::now() + PATIENCE;
        while events.try_recv().is_err() {
            assert!(Instant::now() < end, "noise never passed");
            far.send(&frame(&noise()));
            std::thread::sleep(holds / 20);
        }
        assert!(begun.elapsed() >= holds);
        let dropped = prefilter.dropped().unwrap().unknown_tag;
        prefilter.know(&receiver([1]).sieve(), 2, NOW, Prefilter::HOLDS).unwrap();
        far.send(&frame(&noise()));
        far.send(&frame(&knock_of_one()));
        let knocks = std::iter::from_fn(|| events.recv_timeout(PATIENCE).ok());
        let is_knock = |event: &Event| matches!(event, Event::Datagram(_, _, _, payload) if *payload == knock_of_one());
        assert!(knocks.into_iter().any(|event| is_knock(&event)));
        assert_eq!(prefilter.dropped().unwrap().unknown_tag, dropped + 1);
        drop(capture);
    });
}

#[test]
fn a_capture_that_is_opened_anew_has_it_too() {
    let namespace = Namespace::new();
    add_veth(&namespace);
    namespace.inside(|| {
        let prefilter = prefilter();
        prefilter.know(&receiver([1]).sieve(), 1, NOW, Prefilter::HOLDS).unwrap();
        let (capture, events) = start(named("near"), &prefilter);
        for round in 1..=3 {
            let mut far = Sender::on("far");
            far.send(&frame(&noise()));
            far.send(&frame(&knock_of_one()));
            arrives(&events, &knock_of_one(), "a knock");
            let length = udp(PORT, &[1; LENGTH - 1]);
            far.send(&ethernet(&[], IPV4, &ipv4(UDP, &[], &length)));
            assert_eq!(prefilter.dropped().unwrap(), Dropped { unknown_tag: round, length: round });
            drop(far);
            namespace.ip("link del near");
            wait_for(&capture, "lost", is_retrying);
            add_veth(&namespace);
            wait_for(&capture, "captured again", is_running);
        }
        drop(capture);
    });
}
