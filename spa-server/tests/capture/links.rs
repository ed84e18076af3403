//! Knocks arrive on every kind of link that the kernel of a test machine has, and nothing else
//! does: the kernel filters.

use crate::net::{Namespace, Sender, Tun, index};
use crate::sample::{
    AUTHENTICATION, DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, IPV4, IPV6, ROUTING, SOURCE_V4,
    SOURCE_V6, UDP, ethernet, ipv4, ipv6, ipv6_with, udp,
};
use crate::{
    Event, LENGTH, OTHER_PORT, PATIENCE, PORT, named, next_mark, payload, start, with_veth,
};
use spa_server::capture::{Interfaces, filter};
use spa_server::frame::{FrameError, LinkType};
use std::net::{IpAddr, UdpSocket};

/// IP packets that carry a knock: each its own way.
pub(crate) fn knocks(knock: &[u8]) -> Vec<Vec<u8>> {
    let datagram = udp(PORT, knock);
    vec![
        ipv4(UDP, &[], &datagram),
        ipv4(UDP, &[], &udp(OTHER_PORT, knock)),
        ipv4(UDP, &[7, 7, 4, 0, 0, 0, 0, 0], &datagram),
        ipv6(UDP, &datagram),
        ipv6_with(&[HOP_BY_HOP], UDP, &datagram),
        ipv6_with(&[AUTHENTICATION], UDP, &datagram),
        ipv6_with(&[FRAGMENT], UDP, &datagram),
        ipv6_with(&[HOP_BY_HOP, DESTINATION_OPTIONS], UDP, &datagram),
        ipv6_with(&[DESTINATION_OPTIONS, ROUTING], UDP, &datagram),
    ]
}

/// IP packets that are nearly a knock.
pub(crate) fn others(knock: &[u8]) -> Vec<Vec<u8>> {
    let datagram = udp(PORT, knock);
    let mut fragment = ipv4(UDP, &[], &datagram);
    fragment[6] = 0x20;
    vec![
        ipv4(UDP, &[], &udp(PORT + 1, knock)),
        ipv4(UDP, &[], &udp(PORT, &[2; LENGTH + 1])),
        ipv4(6, &[], &datagram),
        fragment,
        ipv6(UDP, &udp(PORT + 1, knock)),
        ipv6_with(&[HOP_BY_HOP], UDP, &udp(PORT, &[2; LENGTH - 1])),
        ipv6_with(&[HOP_BY_HOP], 6, &datagram),
    ]
}

pub(crate) fn ethertype(packet: &[u8]) -> u16 {
    if packet[0] >> 4 == 4 { IPV4 } else { IPV6 }
}

fn source(packet: &[u8]) -> IpAddr {
    if packet[0] >> 4 == 4 { SOURCE_V4.into() } else { SOURCE_V6.into() }
}

/// The whole program is in the kernel; libpcap would quietly do without.
fn assert_kernel_filters(link: LinkType, namespace: &Namespace) {
    let text = filter::inbound_expression(link, &[PORT, OTHER_PORT], LENGTH);
    let dead = pcap::Capture::dead(pcap::Linktype(link.number())).unwrap();
    let length = dead.compile(&text, true).unwrap().get_instructions().len();
    let filters = namespace.kernel_filters();
    assert!(filters.contains(&length), "{length} instructions are not among {filters:?}");
}

#[test]
fn ethernet_delivers_knocks_untagged_and_behind_one_or_two_vlan_tags() {
    with_veth(|namespace| {
        let (capture, events) = start(named("near")).unwrap();
        let mut far = Sender::on("far");
        for packet in knocks(&payload(1)) {
            for tags in [&[][..], &[0x8100], &[0x88a8], &[0x88a8, 0x8100], &[0x8100, 0x8100]] {
                for other in others(&payload(2)) {
                    far.send(&ethernet(tags, ethertype(&other), &other));
                }
                far.send(&ethernet(tags, ethertype(&packet), &packet));
                let Ok(Event::Datagram(interface, from, _, found)) = events.recv_timeout(PATIENCE)
                else {
                    panic!("nothing arrived of {packet:02x?} behind {tags:x?}");
                };
                assert_eq!((interface, from), (index("near"), source(&packet)));
                assert_eq!(found, payload(1), "{tags:x?}");
            }
        }
        assert_kernel_filters(LinkType::Ethernet, namespace);
        drop(capture);
    });
}

#[test]
fn any_delivers_knocks_with_the_index_of_their_interface() {
    with_veth(|namespace| {
        let (capture, events) = start(Interfaces::All).unwrap();
        let mut far = Sender::on("far");
        for packet in knocks(&payload(1)) {
            for other in others(&payload(2)) {
                far.send(&ethernet(&[], ethertype(&other), &other));
            }
            far.send(&ethernet(&[], ethertype(&packet), &packet));
            let Ok(Event::Datagram(interface, from, _, found)) = events.recv_timeout(PATIENCE)
            else {
                panic!("nothing arrived of {packet:02x?}");
            };
            assert_eq!((interface, from), (index("near"), source(&packet)));
            assert_eq!(found, payload(1));
        }
        assert_kernel_filters(LinkType::LinuxSll2, namespace);
        drop(capture);
    });
}

/// The kernel has taken the tag out of the frame.
#[test]
fn any_delivers_knocks_behind_a_vlan_tag_too() {
    with_veth(|_| {
        let (capture, events) = start(Interfaces::All).unwrap();
        let mut far = Sender::on("far");
        for packet in knocks(&payload(1)) {
            far.send(&ethernet(&[0x8100], ethertype(&packet), &packet));
            let arrived = events.recv_timeout(PATIENCE);
            let Ok(Event::Datagram(interface, from, _, found)) = arrived else {
                panic!("{arrived:?} instead of {packet:02x?}");
            };
            assert_eq!((interface, from), (index("near"), source(&packet)));
            assert_eq!(found, payload(1));
        }
        drop(capture);
    });
}

#[test]
fn tun_delivers_knocks_as_raw_ip() {
    let namespace = Namespace::new();
    namespace.inside(|| {
        let mut tun = Tun::new("tun0");
        namespace.ip("link set tun0 up");
        let (capture, events) = start(named("tun0")).unwrap();
        for packet in knocks(&payload(1)) {
            for other in others(&payload(2)) {
                tun.receive(&other);
            }
            tun.receive(&packet);
            let Ok(Event::Datagram(interface, from, _, found)) = events.recv_timeout(PATIENCE)
            else {
                panic!("nothing arrived of {packet:02x?}");
            };
            assert_eq!((interface, from), (index("tun0"), source(&packet)));
            assert_eq!(found, payload(1));
        }
        assert_kernel_filters(LinkType::RawIp, &namespace);
        drop(capture);
    });
}

/// The loopback interface shows every packet twice, once on its way out.
#[test]
fn loopback_delivers_each_datagram_once_on_lo_and_on_any() {
    for interfaces in [named("lo"), Interfaces::All] {
        let namespace = Namespace::new();
        namespace.inside(|| {
            let (capture, events) = start(interfaces).unwrap();
            for (address, mark) in [("127.0.0.1:0", 1), ("[::1]:0", 3)] {
                let socket = UdpSocket::bind(address).unwrap();
                let to = (socket.local_addr().unwrap().ip(), PORT);
                for mark in [mark, mark + 1] {
                    assert_eq!(socket.send_to(&payload(mark), to).unwrap(), LENGTH);
                    let Ok(Event::Datagram(interface, from, PORT, found)) =
                        events.recv_timeout(PATIENCE)
                    else {
                        panic!("nothing arrived from {address}");
                    };
                    assert_eq!((interface, from, found), (index("lo"), to.0, payload(mark)));
                }
            }
            drop(capture);
            assert_eq!(events.recv_timeout(PATIENCE).ok(), None, "nothing came twice");
        });
    }
}

#[test]
fn what_passes_the_filter_and_is_no_datagram_is_told_as_malformed() {
    with_veth(|_| {
        let (capture, events) = start(named("near")).unwrap();
        let mut packet = ipv6_with(&[ROUTING], UDP, &udp(PORT, &payload(1)));
        let mut far = Sender::on("far");
        // Segments left.
        packet[43] = 1;
        far.send(&ethernet(&[], IPV6, &packet));
        assert_eq!(events.recv_timeout(PATIENCE), Ok(Event::Malformed(FrameError::BadHeader)));
        packet[43] = 0;
        far.send(&ethernet(&[], IPV6, &packet));
        assert_eq!(next_mark(&events), 1);
        drop(capture);
    });
}

#[test]
fn what_the_host_sends_itself_is_not_captured() {
    for interfaces in [named("near"), Interfaces::All] {
        with_veth(|_| {
            let (capture, events) = start(interfaces).unwrap();
            let frame = |mark| ethernet(&[], IPV4, &ipv4(UDP, &[], &udp(PORT, &payload(mark))));
            // It leaves by "near", and arrives on "far", which only `any` sees.
            let on_any = capture.health()[0].name == "any";
            Sender::on("near").send(&frame(1));
            if on_any {
                let Ok(Event::Datagram(interface, ..)) = events.recv_timeout(PATIENCE) else {
                    panic!("nothing arrived");
                };
                assert_eq!(interface, index("far"));
            }
            Sender::on("far").send(&frame(2));
            assert_eq!(next_mark(&events), 2);
            drop(capture);
        });
    }
}
