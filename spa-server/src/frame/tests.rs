//! Every link type, every header; and that no bytes at all make the parser panic.

use super::sample::{
    AUTHENTICATION, DESTINATION_OPTIONS, DESTINATION_V4, DESTINATION_V6, FRAGMENT, HOP_BY_HOP,
    IPV4, IPV6, ROUTING, SOURCE_PORT, SOURCE_V4, SOURCE_V6, UDP, ethernet, ipv4, ipv6, ipv6_with,
    sll, sll2, tagged, udp,
};
use super::*;
use proptest::prelude::*;
use std::net::{Ipv4Addr, Ipv6Addr};

const PORT: u16 = 62_201;
const PAYLOAD: [u8; 216] = [0x5a; 216];
/// TCP.
const OTHER_PROTOCOL: u8 = 6;

fn v4() -> Vec<u8> {
    ipv4(UDP, &[], &udp(PORT, &PAYLOAD))
}

fn v6() -> Vec<u8> {
    ipv6(UDP, &udp(PORT, &PAYLOAD))
}

fn raw(packet: &[u8]) -> Result<Datagram<'_>, FrameError> {
    parse(LinkType::RawIp, packet)
}

/// One valid frame of every kind.
fn valid_frames() -> Vec<(LinkType, Vec<u8>)> {
    use LinkType::{Ethernet, LinuxSll, LinuxSll2, Loop, Null, RawIp};
    let (v4, v6) = (v4(), v6());
    let datagram = udp(PORT, &PAYLOAD);
    let behind = |header: &[u8], packet: &[u8]| [header, packet].concat();
    let mut frames = vec![
        (Ethernet, ethernet(&[], IPV4, &v4)),
        (Ethernet, ethernet(&[], IPV6, &v6)),
        (Ethernet, ethernet(&[0x8100], IPV4, &v4)),
        (Ethernet, ethernet(&[0x88a8, 0x8100], IPV6, &v6)),
        (Ethernet, ethernet(&[0x9100, 0x8100], IPV4, &v4)),
        (LinuxSll, sll(0, &[], IPV4, &v4)),
        (LinuxSll, sll(1, &[0x8100], IPV6, &v6)),
        (LinuxSll2, sll2(0, 7, IPV4, &v4)),
        (LinuxSll2, sll2(3, 7, IPV6, &v6)),
        (LinuxSll2, sll2(0, 7, 0x88a8, &vlan_body(&[], &v6))),
        (RawIp, v4.clone()),
        (RawIp, v6.clone()),
        (Null, behind(&2_u32.to_le_bytes(), &v4)),
        (Null, behind(&2_u32.to_be_bytes(), &v4)),
        (Null, behind(&10_u32.to_le_bytes(), &v6)),
        (Loop, behind(&2_u32.to_be_bytes(), &v4)),
        (Loop, behind(&24_u32.to_be_bytes(), &v6)),
        (RawIp, ipv4(UDP, &[7, 7, 4, 0, 0, 0, 0, 0], &datagram)),
        (RawIp, ipv4(UDP, &[1; 40], &datagram)),
    ];
    for headers in [
        &[HOP_BY_HOP][..],
        &[DESTINATION_OPTIONS],
        &[ROUTING],
        &[AUTHENTICATION],
        &[FRAGMENT],
        &[HOP_BY_HOP, DESTINATION_OPTIONS],
        &[HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION],
    ] {
        frames.push((Ethernet, ethernet(&[], IPV6, &ipv6_with(headers, UDP, &datagram))));
    }
    frames
}

/// What follows the tag protocol identifier where that stands in the header itself.
fn vlan_body(inner_tags: &[u16], packet: &[u8]) -> Vec<u8> {
    let ethertype = if packet[0] >> 4 == 4 { IPV4 } else { IPV6 };
    [&[0x20, 10][..], &tagged(inner_tags, ethertype), packet].concat()
}

#[test]
fn the_datagram_is_found_on_every_link_type_and_behind_every_header() {
    for (link, frame) in valid_frames() {
        let datagram = parse(link, &frame).unwrap_or_else(|e| panic!("{link:?} {frame:?}: {e}"));
        let (source, destination): (IpAddr, IpAddr) = if datagram.source.is_ipv4() {
            (Ipv4Addr::from(SOURCE_V4).into(), Ipv4Addr::from(DESTINATION_V4).into())
        } else {
            (Ipv6Addr::from(SOURCE_V6).into(), Ipv6Addr::from(DESTINATION_V6).into())
        };
        let expected = Datagram {
            source,
            source_port: SOURCE_PORT,
            destination,
            destination_port: PORT,
            interface_index: (link == LinkType::LinuxSll2).then_some(7),
            payload: &PAYLOAD,
        };
        assert_eq!(datagram, expected, "{link:?} {frame:?}");
    }
}

#[test]
fn no_truncation_of_a_valid_frame_yields_a_datagram() {
    for (link, frame) in valid_frames() {
        assert!(parse(link, &frame).is_ok());
        for length in 0..frame.len() {
            assert_eq!(parse(link, &frame[..length]), Err(FrameError::Truncated), "{link:?}");
        }
    }
}

#[test]
fn bytes_behind_the_packet_are_ignored() {
    for (link, mut frame) in valid_frames() {
        let length = parse(link, &frame).unwrap().payload.len();
        frame.extend_from_slice(&[0xee; 46]);
        assert_eq!(parse(link, &frame).unwrap().payload.len(), length, "{link:?}");
    }
}

#[test]
fn the_payload_is_as_long_as_the_udp_header_says() {
    let mut shorter = v4();
    shorter[24..26].copy_from_slice(&(8_u16 + 100).to_be_bytes());
    assert_eq!(raw(&shorter).unwrap().payload, &PAYLOAD[..100]);

    let mut empty = v4();
    empty[24..26].copy_from_slice(&8_u16.to_be_bytes());
    assert_eq!(raw(&empty).unwrap().payload, b"");

    for length in [0_u16, 7, 225, u16::MAX] {
        let mut lie = v4();
        lie[24..26].copy_from_slice(&length.to_be_bytes());
        lie.extend_from_slice(&[0; 1000]);
        assert_eq!(raw(&lie), Err(FrameError::BadHeader), "{length}");
    }
}

#[test]
fn ip_lengths_that_contradict_each_other_are_refused() {
    for (offset, value) in [
        (0, 0x44),     // a header of 16 bytes
        (0, 0x40),     // of none
        (0, 0x4f),     // options over the UDP header
        (0, 0x65),     // version 6, behind a link header that says 4
        (3, 19),       // a packet shorter than its header
        (3, 20 + 7),   // shorter than the UDP header
        (3, 20 + 100), // shorter than the UDP length
    ] {
        let mut packet = v4();
        packet[offset] = value;
        if offset == 3 {
            packet[2] = 0;
        }
        let frame = ethernet(&[], IPV4, &packet);
        let error = parse(LinkType::Ethernet, &frame).unwrap_err();
        assert_eq!(error, FrameError::BadHeader, "byte {offset} = {value}");
    }

    let mut version = v6();
    version[0] = 0x40;
    let frame = ethernet(&[], IPV6, &version);
    assert_eq!(parse(LinkType::Ethernet, &frame), Err(FrameError::BadHeader));

    for length in [0_u16, 7, 100] {
        let mut packet = v6();
        packet[4..6].copy_from_slice(&length.to_be_bytes());
        assert_eq!(raw(&packet), Err(FrameError::BadHeader), "{length}");
    }
}

#[test]
fn fragments_are_refused_the_first_and_the_later_ones() {
    // Reserved bit and "don't fragment": whole packets.
    for flags in [0x4000_u16, 0x8000] {
        let mut packet = v4();
        packet[6..8].copy_from_slice(&flags.to_be_bytes());
        assert!(raw(&packet).is_ok(), "{flags:#x}");
    }
    for flags in [0x2000_u16, 0x2001, 0x0001, 0x1fff, 0x6000] {
        let mut packet = v4();
        packet[6..8].copy_from_slice(&flags.to_be_bytes());
        assert_eq!(raw(&packet), Err(FrameError::Fragment), "{flags:#x}");
    }

    let atomic = ipv6_with(&[FRAGMENT], UDP, &udp(PORT, &PAYLOAD));
    assert!(raw(&atomic).is_ok());
    for offset_and_more in [0x0001_u16, 0x0008, 0xfff8, 0xfff9] {
        let mut packet = atomic.clone();
        packet[42..44].copy_from_slice(&offset_and_more.to_be_bytes());
        assert_eq!(raw(&packet), Err(FrameError::Fragment), "{offset_and_more:#x}");
    }
}

#[test]
fn extension_headers_in_the_wrong_place_or_number_are_refused() {
    let datagram = udp(PORT, &PAYLOAD);
    let with = |headers: &[u8]| ipv6_with(headers, UDP, &datagram);

    assert!(raw(&with(&[DESTINATION_OPTIONS; 4])).is_ok());
    assert_eq!(raw(&with(&[DESTINATION_OPTIONS; 5])), Err(FrameError::TooManyHeaders));
    assert!(raw(&with(&[HOP_BY_HOP, DESTINATION_OPTIONS])).is_ok());
    assert_eq!(raw(&with(&[DESTINATION_OPTIONS, HOP_BY_HOP])), Err(FrameError::BadHeader));

    let mut segments_left = with(&[ROUTING]);
    segments_left[43] = 1;
    assert_eq!(raw(&segments_left), Err(FrameError::BadHeader));

    for header in [HOP_BY_HOP, ROUTING, AUTHENTICATION, DESTINATION_OPTIONS] {
        let mut too_long = with(&[header]);
        too_long[41] = 255;
        too_long.extend_from_slice(&[0; 4000]);
        assert_eq!(raw(&too_long), Err(FrameError::BadHeader), "{header}");
    }
    // 50 is ESP, 59 "no next header", 135 mobility.
    for header in [50, 59, 135, OTHER_PROTOCOL] {
        assert_eq!(raw(&ipv6(header, &datagram)), Err(FrameError::NotUdp), "{header}");
    }
}

#[test]
fn what_is_not_udp_over_ip_is_refused() {
    assert_eq!(raw(&ipv4(OTHER_PROTOCOL, &[], &[0; 40])), Err(FrameError::NotUdp));
    assert_eq!(parse(LinkType::Ethernet, &ethernet(&[], 0x0806, &[0; 46])), Err(FrameError::NotIp));
    assert_eq!(parse(LinkType::Ethernet, &ethernet(&[], 46, &v4())), Err(FrameError::NotIp));
    assert_eq!(parse(LinkType::LinuxSll2, &sll2(0, 1, 0x0003, &v4())), Err(FrameError::NotIp));
    assert_eq!(raw(&[0x50; 60]), Err(FrameError::NotIp));
    let appletalk = [&16_u32.to_be_bytes()[..], &v4()].concat();
    assert_eq!(parse(LinkType::Loop, &appletalk), Err(FrameError::NotIp));
    assert_eq!(parse(LinkType::Null, &appletalk), Err(FrameError::NotIp));
}

#[test]
fn a_third_vlan_tag_is_one_too_many() {
    let two = ethernet(&[0x88a8, 0x8100], IPV4, &v4());
    assert!(parse(LinkType::Ethernet, &two).is_ok());
    let three = ethernet(&[0x88a8, 0x8100, 0x8100], IPV4, &v4());
    assert_eq!(parse(LinkType::Ethernet, &three), Err(FrameError::TooManyHeaders));
}

#[test]
fn packets_that_this_host_sends_are_refused() {
    assert!(parse(LinkType::LinuxSll, &sll(0, &[], IPV4, &v4())).is_ok());
    assert_eq!(parse(LinkType::LinuxSll, &sll(4, &[], IPV4, &v4())), Err(FrameError::Outgoing));
    assert!(parse(LinkType::LinuxSll2, &sll2(0, 1, IPV4, &v4())).is_ok());
    assert_eq!(parse(LinkType::LinuxSll2, &sll2(4, 1, IPV4, &v4())), Err(FrameError::Outgoing));
}

#[test]
fn source_addresses_that_no_host_has_are_refused() {
    for source in [[0, 0, 0, 0], [224, 0, 0, 1], [255, 255, 255, 255]] {
        let mut packet = v4();
        assert!(raw(&packet).is_ok());
        packet[12..16].copy_from_slice(&source);
        assert_eq!(raw(&packet), Err(FrameError::BadSource), "{source:?}");
    }
    for source in ["::", "ff02::1", "::ffff:192.0.2.1"] {
        let mut packet = v6();
        assert!(raw(&packet).is_ok());
        let address: Ipv6Addr = source.parse().unwrap();
        packet[8..24].copy_from_slice(&address.octets());
        assert_eq!(raw(&packet), Err(FrameError::BadSource), "{source}");
    }
}

#[test]
fn link_types_have_the_numbers_of_libpcap() {
    for &link in LinkType::ALL {
        assert_eq!(LinkType::try_from(link.number()), Ok(link));
    }
    assert_eq!(LinkType::try_from(14), Ok(LinkType::RawIp));
    assert_eq!(LinkType::try_from(101), Ok(LinkType::RawIp));
    assert_eq!(LinkType::try_from(127), Err(UnsupportedLink(127)));
    for (name, link) in [("EN10MB", LinkType::Ethernet), ("LINUX_SLL2", LinkType::LinuxSll2)] {
        assert_eq!(pcap::Linktype::from_name(name).unwrap().0, link.number());
    }
    assert_eq!(pcap::Linktype::from_name("RAW").unwrap().0, LinkType::RawIp.number());
}

#[test]
fn every_error_has_a_name_of_its_own() {
    let names: std::collections::BTreeSet<_> =
        FrameError::ALL.iter().map(|error| error.as_str()).collect();
    assert_eq!(names.len(), FrameError::ALL.len());
}

fn links() -> impl Strategy<Value = LinkType> {
    proptest::sample::select(LinkType::ALL)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(link in links(), bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = parse(link, &bytes);
    }

    /// Random bytes seldom get past the first header, so valid frames are damaged as well.
    #[test]
    fn damaged_frames_never_panic_and_never_yield_bytes_from_outside(
        which in any::<prop::sample::Index>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let frames = valid_frames();
        let (link, mut frame) = frames[which.index(frames.len())].clone();
        // Most of the frame is payload; the headers are what is worth damaging.
        let headers = frame.len() - PAYLOAD.len();
        for (at, value) in damage {
            frame[at.index(headers)] = value;
        }
        frame.truncate(cut.index(frame.len() + 1).max(headers));
        if let Ok(datagram) = parse(link, &frame) {
            let inside = frame.as_ptr_range();
            prop_assert!(datagram.payload.is_empty()
                || (inside.contains(&datagram.payload.as_ptr())
                    && datagram.payload.as_ptr_range().end <= inside.end));
            prop_assert!(!datagram.source.is_multicast() && !datagram.source.is_unspecified());
        }
    }

    #[test]
    fn any_payload_comes_out_as_it_went_in(
        payload in prop::collection::vec(any::<u8>(), 0..400),
        port in any::<u16>(),
        options in 0_usize..=10,
        padding in 0_usize..50,
    ) {
        let mut frame = ethernet(&[], IPV4, &ipv4(UDP, &vec![1; options * 4], &udp(port, &payload)));
        frame.resize(frame.len() + padding, 0);
        let datagram = parse(LinkType::Ethernet, &frame).unwrap();
        prop_assert_eq!(datagram.payload, &payload[..]);
        prop_assert_eq!(datagram.destination_port, port);
    }
}
