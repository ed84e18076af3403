//! The filter is compiled by libpcap and run on frames, as the kernel runs it.

use super::*;
use crate::frame::sample::{
    AUTHENTICATION, DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, IPV4, IPV6, ROUTING, UDP, ethernet,
    ipv4, ipv6, ipv6_with, sll, sll2, udp,
};
use crate::frame::{self};
use pcap::{BpfProgram, Linktype};

const LENGTH: usize = 216;
const PORTS: [u16; 3] = [53, 443, 62_201];
const PORT: u16 = 62_201;

fn compile(link: LinkType, ports: &[u16]) -> BpfProgram {
    let text = expression(link, ports, LENGTH);
    let dead = pcap::Capture::dead(Linktype(link.number())).unwrap();
    dead.compile(&text, true).unwrap_or_else(|error| panic!("{link:?}: {error}: {text}"))
}

fn knock(port: u16) -> Vec<u8> {
    udp(port, &[0x5a; LENGTH])
}

/// IPv4 and IPv6 packets that carry `datagram` in every way that the filter follows.
fn packets(datagram: &[u8]) -> Vec<Vec<u8>> {
    let mut packets = vec![
        ipv4(UDP, &[], datagram),
        ipv4(UDP, &[7, 7, 4, 0, 0, 0, 0, 0], datagram),
        ipv4(UDP, &[1; 40], datagram),
        ipv6(UDP, datagram),
    ];
    let first = [HOP_BY_HOP, DESTINATION_OPTIONS, ROUTING, FRAGMENT];
    for headers in first.iter().map(|&one| vec![one]).chain([vec![AUTHENTICATION]]) {
        packets.push(ipv6_with(&headers, UDP, datagram));
    }
    for &one in &first {
        for two in [DESTINATION_OPTIONS, ROUTING, FRAGMENT] {
            packets.push(ipv6_with(&[one, two], UDP, datagram));
        }
    }
    packets
}

/// `packet` in every frame of the link type that the filter follows.
fn frames(link: LinkType, packet: &[u8]) -> Vec<Vec<u8>> {
    let is_v4 = packet[0] >> 4 == 4;
    let ethertype = if is_v4 { IPV4 } else { IPV6 };
    let family: u32 = if is_v4 { 2 } else { 10 };
    match link {
        LinkType::Ethernet => {
            [&[][..], &[0x8100], &[0x88a8], &[0x88a8, 0x8100], &[0x8100, 0x8100], &[0x9100, 0x8100]]
                .iter()
                .map(|tags| ethernet(tags, ethertype, packet))
                .collect()
        }
        LinkType::LinuxSll => vec![sll(0, &[], ethertype, packet)],
        LinkType::LinuxSll2 => vec![sll2(0, 7, ethertype, packet)],
        LinkType::RawIp => vec![packet.to_vec()],
        LinkType::Null => vec![[&family.to_ne_bytes()[..], packet].concat()],
        LinkType::Loop => vec![[&family.to_be_bytes()[..], packet].concat()],
    }
}

#[test]
fn knocks_pass_on_every_link_type_behind_every_header() {
    for &link in LinkType::ALL {
        let program = compile(link, &PORTS);
        for port in PORTS {
            for packet in packets(&knock(port)) {
                for frame in frames(link, &packet) {
                    assert!(program.filter(&frame), "{link:?} {frame:02x?}");
                    assert!(frame::parse(link, &frame).is_ok(), "{link:?} {frame:02x?}");
                }
            }
        }
    }
}

#[test]
fn other_ports_and_lengths_do_not_pass() {
    for &link in LinkType::ALL {
        let program = compile(link, &PORTS);
        let others = [
            knock(54),
            knock(PORT - 1),
            udp(PORT, &[0x5a; LENGTH - 1]),
            udp(PORT, &[0x5a; LENGTH + 1]),
            udp(PORT, &[]),
        ];
        for datagram in others {
            for packet in packets(&datagram) {
                for frame in frames(link, &packet) {
                    assert!(!program.filter(&frame), "{link:?} {frame:02x?}");
                }
            }
        }
    }
}

#[test]
fn other_protocols_do_not_pass() {
    // TCP, ICMP, ESP, "no next header".
    for protocol in [6, 1, 50, 59] {
        for &link in LinkType::ALL {
            let program = compile(link, &PORTS);
            let datagram = knock(PORT);
            let packets = [
                ipv4(protocol, &[], &datagram),
                ipv6(protocol, &datagram),
                ipv6_with(&[HOP_BY_HOP], protocol, &datagram),
                ipv6_with(&[HOP_BY_HOP, ROUTING], protocol, &datagram),
            ];
            for frame in packets.iter().flat_map(|packet| frames(link, packet)) {
                assert!(!program.filter(&frame), "{link:?} {frame:02x?}");
            }
        }
    }
}

#[test]
fn arp_and_three_vlan_tags_do_not_pass() {
    let program = compile(LinkType::Ethernet, &PORTS);
    let packet = ipv4(UDP, &[], &knock(PORT));
    assert!(program.filter(&ethernet(&[0x8100, 0x8100], IPV4, &packet)));
    assert!(!program.filter(&ethernet(&[0x8100, 0x8100, 0x8100], IPV4, &packet)));
    assert!(!program.filter(&ethernet(&[], 0x0806, &packet)));
    assert!(!program.filter(&ethernet(&[0x8100], 0x0806, &packet)));
}

#[test]
fn fragments_do_not_pass() {
    for &link in LinkType::ALL {
        let program = compile(link, &PORTS);
        for flags in [0x2000_u16, 0x2001, 0x0001, 0x1fff] {
            let mut packet = ipv4(UDP, &[], &knock(PORT));
            packet[6..8].copy_from_slice(&flags.to_be_bytes());
            for frame in frames(link, &packet) {
                assert!(!program.filter(&frame), "{link:?} {flags:#x}");
            }
            packet[6..8].copy_from_slice(&0x4000_u16.to_be_bytes());
            for frame in frames(link, &packet) {
                assert!(program.filter(&frame), "{link:?}: \"don't fragment\" is no fragment");
            }
        }
        for offset_and_more in [1_u16, 8, 0xfff9] {
            let mut packet = ipv6_with(&[FRAGMENT], UDP, &knock(PORT));
            packet[42..44].copy_from_slice(&offset_and_more.to_be_bytes());
            for frame in frames(link, &packet) {
                assert!(!program.filter(&frame), "{link:?} {offset_and_more:#x}");
            }
        }
    }
}

/// Every value of every byte of the headers: what the parser takes for a knock, the filter must
/// let through, or knocks get lost without a trace.
#[test]
fn whatever_the_parser_takes_for_a_knock_passes_the_filter() {
    let (mut knocks, mut refused) = (0_u32, 0_u32);
    for &link in LinkType::ALL {
        let program = compile(link, &[PORT]);
        let datagram = knock(PORT);
        let headers = [
            ipv4(UDP, &[], &datagram),
            ipv4(UDP, &[1; 8], &datagram),
            ipv6(UDP, &datagram),
            ipv6_with(&[HOP_BY_HOP], UDP, &datagram),
            ipv6_with(&[DESTINATION_OPTIONS, ROUTING], UDP, &datagram),
        ];
        for original in headers.iter().flat_map(|packet| frames(link, packet)) {
            // libpcap knows only this system's numbers of the address families.
            let first = if matches!(link, LinkType::Null | LinkType::Loop) { 4 } else { 0 };
            for at in first..original.len() - LENGTH {
                for value in 0..=u8::MAX {
                    let mut frame = original.clone();
                    frame[at] = value;
                    match frame::parse(link, &frame) {
                        Ok(found)
                            if found.destination_port == PORT && found.payload.len() == LENGTH =>
                        {
                            knocks += 1;
                            assert!(program.filter(&frame), "{link:?} byte {at} = {value:#x}");
                        }
                        Ok(_) => {
                            refused += 1;
                            assert!(!program.filter(&frame), "{link:?} byte {at} = {value:#x}");
                        }
                        Err(_) => {}
                    }
                }
            }
        }
    }
    assert!(knocks > 50_000 && refused > 1_000, "{knocks} knocks, {refused} others");
}

#[test]
fn the_program_fits_the_kernel_with_as_many_ports_as_are_allowed() {
    /// `BPF_MAXINSNS`. A longer program would not fail: libpcap would run it in the daemon, on
    /// every packet of the host.
    const KERNEL_LIMIT: usize = 4096;
    let ports: Vec<u16> = (1..=u16::try_from(MAX_PORTS).unwrap()).collect();
    for &link in LinkType::ALL {
        let program = compile(link, &ports);
        let length = program.get_instructions().len();
        assert!(length <= KERNEL_LIMIT, "{link:?}: {length}");
        for &port in &ports {
            for frame in frames(link, &ipv6_with(&[HOP_BY_HOP, ROUTING], UDP, &knock(port))) {
                assert!(program.filter(&frame), "{link:?} {port}");
            }
        }
    }
}

#[test]
fn the_inbound_filter_compiles_for_every_link_type_that_linux_has() {
    for link in [LinkType::Ethernet, LinkType::LinuxSll, LinkType::LinuxSll2, LinkType::RawIp] {
        let dead = pcap::Capture::dead(Linktype(link.number())).unwrap();
        dead.compile(&inbound_expression(link, &PORTS, LENGTH), true).unwrap();
    }
}
