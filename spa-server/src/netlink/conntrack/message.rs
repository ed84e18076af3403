//! What connection tracking says over netlink, as bytes. Pure.
//!
//! Source: linux/include/uapi/linux/netfilter/nfnetlink_conntrack.h and
//! linux/net/netfilter/nf_conntrack_netlink.c. Numbers are in network byte order, but for the
//! flags of filters.

use super::{Filter, Flow, Status, TcpState, Tuple};
use crate::netlink::wire::{self, Attributes, Message, Writer};
use crate::netlink::{FAMILY_ANY, Family, NETFILTER_HEADER, protocol_number, transport};
use spa_proto::Transport;
use std::net::{IpAddr, SocketAddr};

/// `NFNL_SUBSYS_CTNETLINK`, in the upper half of a message's kind.
const SUBSYSTEM: u16 = 1 << 8;
pub(super) const NEW: u16 = SUBSYSTEM;
pub(super) const GET: u16 = SUBSYSTEM | 1;
pub(super) const DELETE: u16 = SUBSYSTEM | 2;
pub(super) const GET_STATS: u16 = SUBSYSTEM | 5;

/// `IPS_CONFIRMED`; the kernel sets it itself, and refuses a status that would take it away.
pub(super) const CONFIRMED: u32 = 1 << 3;

/// What the kernel itself gives an established TCP connection that is idle: five days.
const TCP_SECONDS: u32 = 432_000;
/// What the kernel itself gives an answered UDP flow.
const UDP_SECONDS: u32 = 120;

/// `IP_CT_TCP_FLAG_SACK_PERM`
const TCP_SACK: u8 = 0x02;
/// `IP_CT_TCP_FLAG_BE_LIBERAL`: nobody has seen the beginning, and sequence numbers aren't compared.
const TCP_LIBERAL: u8 = 0x08;
const TCP_FLAGS: u8 = TCP_SACK | TCP_LIBERAL;

const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const STATUS: u16 = 3;
const PROTOCOL_INFO: u16 = 4;
const TIMEOUT: u16 = 7;
const MARK: u16 = 8;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;

/// Within a tuple.
mod tuple {
    pub(super) const ADDRESSES: u16 = 1;
    pub(super) const PROTOCOL: u16 = 2;

    /// Within [`ADDRESSES`].
    pub(super) const V4_SOURCE: u16 = 1;
    pub(super) const V4_DESTINATION: u16 = 2;
    pub(super) const V6_SOURCE: u16 = 3;
    pub(super) const V6_DESTINATION: u16 = 4;

    /// Within [`PROTOCOL`].
    pub(super) const NUMBER: u16 = 1;
    pub(super) const SOURCE_PORT: u16 = 2;
    pub(super) const DESTINATION_PORT: u16 = 3;
}

/// Within [`PROTOCOL_INFO`].
mod tcp {
    pub(super) const TCP: u16 = 1;
    pub(super) const STATE: u16 = 1;
    pub(super) const FLAGS_ORIGINAL: u16 = 4;
    pub(super) const FLAGS_REPLY: u16 = 5;
}

/// Within [`FILTER`]: what of the original direction is compared.
mod filter {
    pub(super) const ORIGINAL_FLAGS: u16 = 1;
    pub(super) const REPLY_FLAGS: u16 = 2;
    pub(super) const PROTOCOL: u32 = 1 << 3;
    pub(super) const DESTINATION_PORT: u32 = 1 << 5;
}

/// A question about all flows, or about those of one family that a filter wants: the kernel takes no
/// filter without a family.
pub(super) fn write_filter(writer: &mut Writer, filter: Option<(Family, Filter<'_>)>) {
    writer.netfilter_header(filter.map_or(FAMILY_ANY, |(family, _)| family.number()), 0);
    let Some((_, filter)) = filter else { return };
    let port = match filter.ports {
        Some([range]) if range.start() == range.end() => Some(*range.start()),
        _ => None,
    };
    writer.nest(ORIGINAL, |writer| {
        writer.nest(tuple::PROTOCOL, |writer| {
            writer.attribute(tuple::NUMBER, &[protocol_number(filter.transport)]);
            if let Some(port) = port {
                writer.attribute(tuple::DESTINATION_PORT, &port.to_be_bytes());
            }
        });
    });
    let flags = filter::PROTOCOL | if port.is_some() { filter::DESTINATION_PORT } else { 0 };
    writer.nest(FILTER, |writer| {
        writer.attribute(filter::ORIGINAL_FLAGS, &flags.to_ne_bytes());
        writer.attribute(filter::REPLY_FLAGS, &0u32.to_ne_bytes());
    });
}

pub(super) fn write_tuple_only(writer: &mut Writer, tuple: &Tuple) {
    write_head(writer, tuple);
    write_tuple(writer, ORIGINAL, tuple);
}

pub(super) fn write_new(writer: &mut Writer, tuple: &Tuple, status: u32) {
    write_head(writer, tuple);
    write_tuple(writer, ORIGINAL, tuple);
    write_tuple(writer, REPLY, &tuple.reversed());
    writer.attribute(STATUS, &status.to_be_bytes());
    let seconds = match tuple.transport {
        Transport::Tcp => TCP_SECONDS,
        Transport::Udp => UDP_SECONDS,
    };
    writer.attribute(TIMEOUT, &seconds.to_be_bytes());
    if tuple.transport == Transport::Tcp {
        writer.nest(PROTOCOL_INFO, |writer| {
            writer.nest(tcp::TCP, |writer| {
                writer.attribute(tcp::STATE, &[TcpState::ESTABLISHED.0]);
                for kind in [tcp::FLAGS_ORIGINAL, tcp::FLAGS_REPLY] {
                    // The flags, and which of them are meant.
                    writer.attribute(kind, &[TCP_FLAGS, TCP_FLAGS]);
                }
            });
        });
    }
}

pub(super) fn write_status(writer: &mut Writer, flow: &Flow, status: u32) {
    write_tuple_only(writer, &flow.original);
    write_zone(writer, flow);
    writer.attribute(STATUS, &status.to_be_bytes());
}

pub(super) fn write_flow_id(writer: &mut Writer, flow: &Flow) {
    write_tuple_only(writer, &flow.original);
    write_zone(writer, flow);
    writer.attribute(ID, &flow.id.to_be_bytes());
}

fn write_head(writer: &mut Writer, tuple: &Tuple) {
    writer.netfilter_header(Family::of(tuple.source.ip()).number(), 0);
}

fn write_zone(writer: &mut Writer, flow: &Flow) {
    if flow.zone != 0 {
        writer.attribute(ZONE, &flow.zone.to_be_bytes());
    }
}

fn write_tuple(writer: &mut Writer, kind: u16, tuple: &Tuple) {
    writer.nest(kind, |writer| {
        writer.nest(tuple::ADDRESSES, |writer| {
            for (address, v4, v6) in [
                (tuple.source.ip(), tuple::V4_SOURCE, tuple::V6_SOURCE),
                (tuple.destination.ip(), tuple::V4_DESTINATION, tuple::V6_DESTINATION),
            ] {
                let kind = if address.is_ipv4() { v4 } else { v6 };
                wire::octets(address, |octets| writer.attribute(kind, octets));
            }
        });
        writer.nest(tuple::PROTOCOL, |writer| {
            writer.attribute(tuple::NUMBER, &[protocol_number(tuple.transport)]);
            writer.attribute(tuple::SOURCE_PORT, &tuple.source.port().to_be_bytes());
            writer.attribute(tuple::DESTINATION_PORT, &tuple.destination.port().to_be_bytes());
        });
    });
}

/// A flow of TCP or UDP.
/// `CTA_STATS_GLOBAL_ENTRIES`
pub(super) fn read_entries(message: &Message<'_>) -> Option<u32> {
    message.attributes(NETFILTER_HEADER).be32(1)
}

pub(super) fn read_flow(message: &Message<'_>) -> Option<Flow> {
    let attributes = message.attributes(NETFILTER_HEADER);
    let tcp = || attributes.nested(PROTOCOL_INFO).and_then(|info| info.nested(tcp::TCP));
    Some(Flow {
        original: read_tuple(attributes.nested(ORIGINAL)?)?,
        reply: read_tuple(attributes.nested(REPLY)?)?,
        status: Status(attributes.be32(STATUS)?),
        tcp_state: tcp().and_then(|tcp| tcp.u8(tcp::STATE)).map(TcpState),
        begun_unseen: tcp()
            .and_then(|tcp| tcp.get(tcp::FLAGS_ORIGINAL)?.first().copied())
            .is_some_and(|flags| flags & TCP_LIBERAL != 0),
        mark: attributes.be32(MARK).unwrap_or(0),
        seconds_left: attributes.be32(TIMEOUT).unwrap_or(0),
        id: attributes.be32(ID)?,
        zone: attributes.be16(ZONE).unwrap_or(0),
    })
}

fn read_tuple(attributes: Attributes<'_>) -> Option<Tuple> {
    let addresses = attributes.nested(tuple::ADDRESSES)?;
    let protocol = attributes.nested(tuple::PROTOCOL)?;
    let end = |v4, v6, port| {
        let address: IpAddr = addresses.address(v4).or_else(|| addresses.address(v6))?;
        Some(SocketAddr::new(address, protocol.be16(port)?))
    };
    Some(Tuple {
        transport: transport(protocol.u8(tuple::NUMBER)?)?,
        source: end(tuple::V4_SOURCE, tuple::V6_SOURCE, tuple::SOURCE_PORT)?,
        destination: end(tuple::V4_DESTINATION, tuple::V6_DESTINATION, tuple::DESTINATION_PORT)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tuple() -> Tuple {
        Tuple {
            transport: Transport::Tcp,
            source: "192.0.2.1:5000".parse().unwrap(),
            destination: "192.0.2.2:22".parse().unwrap(),
        }
    }

    /// As `conntrack -I -p tcp -s 192.0.2.1 -d 192.0.2.2 --sport 5000 --dport 22
    /// --state ESTABLISHED -t 432000 -u SEEN_REPLY,ASSURED` (1.4.7) sends it, seen by strace.
    #[test]
    #[cfg(target_endian = "little")]
    fn a_connection_is_entered_as_the_tool_does_it() {
        let mut writer = Writer::default();
        write_new(&mut writer, &tuple(), CONFIRMED | Status::ESTABLISHED);
        let expected = [
            b"\x02\x00\x00\x00\x34\x00\x01\x80\x14\x00\x01\x80\x08\x00\x01\x00".as_slice(),
            b"\xc0\x00\x02\x01\x08\x00\x02\x00\xc0\x00\x02\x02\x1c\x00\x02\x80",
            b"\x05\x00\x01\x00\x06\x00\x00\x00\x06\x00\x02\x00\x13\x88\x00\x00",
            b"\x06\x00\x03\x00\x00\x16\x00\x00\x34\x00\x02\x80\x14\x00\x01\x80",
            b"\x08\x00\x01\x00\xc0\x00\x02\x02\x08\x00\x02\x00\xc0\x00\x02\x01",
            // The tool has a stray byte in this padding.
            b"\x1c\x00\x02\x80\x05\x00\x01\x00\x06\x00\x00\x00\x06\x00\x02\x00",
            b"\x00\x16\x00\x00\x06\x00\x03\x00\x13\x88\x00\x00\x08\x00\x03\x00",
            b"\x00\x00\x00\x0e\x08\x00\x07\x00\x00\x06\x97\x80\x20\x00\x04\x80",
            b"\x1c\x00\x01\x80\x05\x00\x01\x00\x03\x00\x00\x00\x06\x00\x04\x00",
            b"\x0a\x0a\x00\x00\x06\x00\x05\x00\x0a\x0a\x00\x00",
        ]
        .concat();
        assert_eq!(writer.bytes(), expected);
    }

    proptest! {
        #[test]
        fn flows_come_back(
            source in any::<(IpAddr, u16)>(),
            port in any::<u16>(),
            numbers in any::<(u32, u32, u16)>(),
        ) {
            let source = SocketAddr::from(source);
            let destination = SocketAddr::new(source.ip(), port);
            let tuple = Tuple { transport: Transport::Udp, source, destination };
            let (status, id, zone) = numbers;
            let mut writer = Writer::default();
            writer.message(NEW, 0, 1, |writer| {
                write_new(writer, &tuple, status);
                writer.attribute(ID, &id.to_be_bytes());
                writer.attribute(ZONE, &zone.to_be_bytes());
            });
            let (message, _) = Message::split_from(writer.bytes()).unwrap();
            prop_assert_eq!(read_flow(&message), Some(Flow {
                original: tuple,
                reply: tuple.reversed(),
                status: Status(status),
                tcp_state: None,
                begun_unseen: false,
                mark: 0,
                seconds_left: 120,
                id,
                zone,
            }));
        }

        #[test]
        fn any_answer_is_read_without_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let message = Message { kind: NEW, flags: 0, sequence: 1, payload: &payload };
            let _ = read_flow(&message);
        }
    }
}
