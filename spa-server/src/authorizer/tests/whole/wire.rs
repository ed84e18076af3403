//! A knock on its way: what harms it, and the frame around it.

use super::model::Harm;
use super::steps::{Shape, Wound};
use crate::frame::sample;
use spa_proto::PacketLength;
use std::net::IpAddr;

pub(super) fn harm_of(wound: Wound) -> Harm {
    match wound {
        // 16 bytes of tag, which is masked by the first 12 bytes of the nonce behind it.
        Wound::Bit(bit) => match bit.index(PacketLength::default().packet() * 8) / 8 {
            6..16 => Harm::TagEnd,
            0..28 => Harm::Tag,
            _ => Harm::Body,
        },
        Wound::ForAnotherServer | Wound::OfAStranger => Harm::Tag,
        Wound::Cut | Wound::Longer => Harm::Length,
        Wound::Fragment => Harm::Frame("fragment"),
        Wound::FromEverybody => Harm::Frame("bad-source"),
        Wound::CutFrame => Harm::Frame("truncated"),
        Wound::NotUdp => Harm::Frame("not-udp"),
        Wound::NotIp => Harm::Frame("not-ip"),
    }
}

/// An Ethernet frame from there.
pub(super) fn framed(packet: &[u8], source: IpAddr, shape: Shape, wound: Option<Wound>) -> Vec<u8> {
    let is_long = matches!(shape, Shape::Longer);
    let udp = sample::udp(62201, packet);
    let protocol = if matches!(wound, Some(Wound::NotUdp)) { 6 } else { sample::UDP };
    let (mut ethertype, mut ip) = match source {
        IpAddr::V4(address) => {
            let mut ip = sample::ipv4(protocol, &[1; 4][..if is_long { 4 } else { 0 }], &udp);
            ip[12..16].copy_from_slice(&address.octets());
            (sample::IPV4, ip)
        }
        IpAddr::V6(address) => {
            let headers = [sample::HOP_BY_HOP, sample::FRAGMENT];
            let headers = &headers[..if is_long { 2 } else { 0 }];
            let mut ip = sample::ipv6_with(headers, protocol, &udp);
            ip[8..24].copy_from_slice(&address.octets());
            (sample::IPV6, ip)
        }
    };
    let is_v4 = source.is_ipv4();
    match wound {
        Some(Wound::Fragment) if is_v4 => ip[6] |= 0x20,
        Some(Wound::Fragment) => {
            ip = sample::ipv6(
                sample::FRAGMENT,
                &[&[sample::UDP, 0, 0, 1, 0, 0, 0, 7], &*udp].concat(),
            );
        }
        Some(Wound::FromEverybody) => {
            ip[if is_v4 { 12 } else { 8 }] = if is_v4 { 224 } else { 0xff }
        }
        Some(Wound::CutFrame) => drop(ip.pop()),
        Some(Wound::NotIp) => ethertype = 0x0806,
        _ => {}
    }
    let tags: &[u16] = if matches!(shape, Shape::Tagged) { &[0x8100] } else { &[] };
    let mut frame = sample::ethernet(tags, ethertype, &ip);
    if matches!(shape, Shape::Padded) && !matches!(wound, Some(Wound::CutFrame)) {
        frame.extend([0x5a; 7]);
    }
    frame
}
