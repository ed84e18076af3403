//! What nftables says over netlink, as bytes. Pure.
//!
//! Source: linux/include/uapi/linux/netfilter/nf_tables.h. Numbers are in network byte order.

use super::{Element, LiveElement, SetName, TableFamily};
use crate::netlink::wire::{self, Attributes, Message, Writer};
use crate::netlink::{FAMILY_ANY, NETFILTER_HEADER, protocol_number, transport};
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// `NFNL_SUBSYS_NFTABLES`
const SUBSYSTEM_NUMBER: u16 = 10;
/// In the upper half of a message's kind.
pub(in crate::netlink) const SUBSYSTEM: u16 = SUBSYSTEM_NUMBER << 8;
/// `NFNL_MSG_BATCH_BEGIN`
const BEGIN: u16 = 0x10;
/// `NFNL_MSG_BATCH_END`
const END: u16 = 0x11;
pub(super) const GET_CHAIN: u16 = SUBSYSTEM | 0x04;
const NEW_ELEMENTS: u16 = SUBSYSTEM | 0x0c;
pub(super) const GET_ELEMENTS: u16 = SUBSYSTEM | 0x0d;
const DELETE_ELEMENTS: u16 = SUBSYSTEM | 0x0e;
pub(super) const GET_GENERATION: u16 = SUBSYSTEM | 0x10;
/// Deletes those that are there, and doesn't mind the others: since Linux 6.3.
const DESTROY_ELEMENTS: u16 = SUBSYSTEM | 0x1e;

/// How long a list of elements gets: its length has sixteen bits.
const LIST_BYTES: usize = 32 << 10;

/// Of every message about something within a table.
pub(in crate::netlink) const TABLE: u16 = 1;
/// Of messages about chains.
const CHAIN: u16 = 3;
/// Of messages about elements.
pub(in crate::netlink) const SET: u16 = 2;
const ELEMENTS: u16 = 3;
/// Within [`ELEMENTS`].
const ELEMENT: u16 = 1;

/// Within [`ELEMENT`].
mod element {
    pub(super) const KEY: u16 = 1;
    pub(super) const TIMEOUT: u16 = 4;
    pub(super) const EXPIRATION: u16 = 5;
    pub(super) const KEY_END: u16 = 10;

    /// Within [`KEY`] and [`KEY_END`].
    pub(super) const VALUE: u16 = 1;
}

/// `NFTA_GEN_ID`
const GENERATION: u16 = 1;
/// `NFTA_GEN_PROC_PID`, which is a thread's.
const GENERATION_THREAD: u16 = 2;

/// What becomes of the elements of one set.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PutTogether<'a, 'c> {
    pub(super) set: SetName<'a>,
    /// Each element once.
    pub(super) elements: Vec<(&'c Element, Fate)>,
}

/// What becomes of an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It stays, with this time if any.
    Stays(Option<Duration>),
    /// It goes.
    Goes,
}

/// How elements go that may be there or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Clearing {
    /// They are added first, so that they can be deleted; for that they need room.
    Added,
    /// As new kernels can do it.
    Destroyed,
}

/// Writes a transaction. Notes of which set each message is; returns the number of the last one.
pub(super) fn write_transaction<'a>(
    writer: &mut Writer,
    first: u32,
    wanted: &[PutTogether<'a, '_>],
    clearing: Clearing,
    of_sets: &mut Vec<(u32, SetName<'a>)>,
) -> u32 {
    writer.message(BEGIN, wire::REQUEST, first, |writer| {
        writer.netfilter_header(FAMILY_ANY, SUBSYSTEM_NUMBER);
    });
    // Each part goes into messages of a bounded length.
    let mut messages = Vec::new();
    for together in wanted {
        let chunks = || together.elements.chunks(elements_in_a_list());
        let clear = match clearing {
            Clearing::Added => &[NEW_ELEMENTS, DELETE_ELEMENTS][..],
            Clearing::Destroyed => &[DESTROY_ELEMENTS],
        };
        for kind in clear {
            messages.extend(chunks().map(|some| (*kind, together.set, some)));
        }
        // Once more, those that are to stay.
        messages.extend(
            chunks()
                .filter(|some| some.iter().any(|(_, fate)| *fate != Fate::Goes))
                .map(|some| (AGAIN, together.set, some)),
        );
    }
    let mut sequence = first;
    let mut left = messages.len();
    for (kind, set, elements) in messages {
        sequence = sequence.wrapping_add(1);
        of_sets.push((sequence, set));
        left = left.saturating_sub(1);
        let (kind, all) = if kind == AGAIN { (NEW_ELEMENTS, false) } else { (kind, true) };
        let new = kind == NEW_ELEMENTS;
        let flags = wire::REQUEST
            | if new { wire::CREATE } else { 0 }
            // Of the end of a transaction only new kernels (6.10) give an acknowledgement.
            | if left == 0 { wire::ACK } else { 0 };
        writer.message(kind, flags, sequence, |writer| {
            write_list(writer, set);
            writer.nest(ELEMENTS, |writer| {
                for (element, fate) in elements {
                    let timeout = match fate {
                        Fate::Stays(timeout) if new => *timeout,
                        Fate::Goes if !all => continue,
                        _ => None,
                    };
                    writer.nest(ELEMENT, |writer| write_element(writer, element, timeout));
                }
            });
        });
    }
    writer.message(END, wire::REQUEST, sequence.wrapping_add(1), |writer| {
        writer.netfilter_header(FAMILY_ANY, SUBSYSTEM_NUMBER);
    });
    sequence
}

/// [`NEW_ELEMENTS`] for those that are to stay.
const AGAIN: u16 = 0;

/// The largest element takes two IPv6 keys and a time: 4 + 2 * (8 + 24) + 12 bytes.
const fn elements_in_a_list() -> usize {
    LIST_BYTES / 80
}

/// The question what a set holds, and the beginning of a message that changes it.
pub(super) fn write_list(writer: &mut Writer, set: SetName<'_>) {
    writer.netfilter_header(set.family.0, 0);
    writer.text(TABLE, set.table);
    writer.text(SET, set.set);
}

/// The question whether there is a chain.
pub(super) fn write_chain(writer: &mut Writer, family: TableFamily, table: &str, chain: &str) {
    writer.netfilter_header(family.0, 0);
    writer.text(TABLE, table);
    writer.text(CHAIN, chain);
}

/// The body of a message that says nothing.
pub(super) fn write_any_family(writer: &mut Writer) {
    writer.netfilter_header(FAMILY_ANY, 0);
}

fn write_element(writer: &mut Writer, element: &Element, timeout: Option<Duration>) {
    let (key, end) = keys(element);
    writer.nest(element::KEY, |writer| writer.attribute(element::VALUE, &key));
    if let Some(end) = end {
        writer.nest(element::KEY_END, |writer| writer.attribute(element::VALUE, &end));
    }
    if let Some(timeout) = timeout {
        let milliseconds = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        writer.attribute(element::TIMEOUT, &milliseconds.to_be_bytes());
    }
}

/// The first key of an element, and the last if that is another.
fn keys(element: &Element) -> (Vec<u8>, Option<Vec<u8>>) {
    match element {
        Element::Address(address) => {
            let mut key = Vec::new();
            wire::octets(*address, |octets| key.extend(octets));
            (key, None)
        }
        Element::Ports { source, transport, first, last } => {
            let key = |address, port: &u16| {
                let mut key = Vec::new();
                wire::octets(address, |octets| key.extend(octets));
                // Each field fills whole words of four bytes.
                key.extend([protocol_number(*transport), 0, 0, 0]);
                key.extend(port.to_be_bytes());
                key.extend([0; 2]);
                key
            };
            let (begin, end) = (key(source.network(), first), key(source.broadcast(), last));
            let end = Some(end).filter(|end| *end != begin);
            (begin, end)
        }
        Element::Key(key) => (key.clone(), None),
    }
}

/// The elements in a part of the answer to [`write_list`].
pub(super) fn read_elements(message: &Message<'_>, found: &mut Vec<LiveElement>) {
    let Some(elements) = message.attributes(NETFILTER_HEADER).nested(ELEMENTS) else { return };
    found.extend(
        elements
            .each()
            .filter(|(kind, _)| *kind == ELEMENT)
            .filter_map(|(_, value)| read_live_element(Attributes::new(value))),
    );
}

fn read_live_element(attributes: Attributes<'_>) -> Option<LiveElement> {
    let key = attributes.nested(element::KEY)?.get(element::VALUE)?;
    let end = attributes.nested(element::KEY_END).and_then(|end| end.get(element::VALUE));
    let time = |kind| attributes.be64(kind).filter(|time| *time != 0).map(Duration::from_millis);
    let timeout = time(element::TIMEOUT);
    Some(LiveElement {
        element: read_element(key, end.unwrap_or(key)),
        timeout,
        // Its last millisecond is no eternity.
        expires_in: time(element::EXPIRATION).or(timeout.map(|_| Duration::ZERO)),
    })
}

fn read_element(key: &[u8], end: &[u8]) -> Element {
    let element = wire::address(key)
        .filter(|_| key == end)
        .map(Element::Address)
        .or_else(|| read_ports(key, end));
    element.unwrap_or_else(|| Element::Key(key.to_vec()))
}

fn read_ports(key: &[u8], end: &[u8]) -> Option<Element> {
    let (from, protocol, first) = split_key(key)?;
    let (to, same_protocol, last) = split_key(end)?;
    if protocol != same_protocol {
        return None;
    }
    let source = prefix(from, to)?;
    Some(Element::Ports { source, transport: transport(protocol)?, first, last })
}

fn split_key(key: &[u8]) -> Option<(IpAddr, u8, u16)> {
    let (rest, port) = key.split_last_chunk::<4>()?;
    let (address, [protocol, ..]) = rest.split_last_chunk::<4>()?;
    Some((wire::address(address)?, *protocol, u16::from_be_bytes(*port.first_chunk()?)))
}

/// The prefix that reaches exactly from one address to another.
fn prefix(from: IpAddr, to: IpAddr) -> Option<IpNet> {
    let length = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            (Ipv4Addr::to_bits(from) ^ Ipv4Addr::to_bits(to)).leading_zeros()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            (Ipv6Addr::to_bits(from) ^ Ipv6Addr::to_bits(to)).leading_zeros()
        }
        _ => return None,
    };
    let prefix = IpNet::new(from, u8::try_from(length).ok()?).ok()?;
    (prefix.network() == from && prefix.broadcast() == to).then_some(prefix)
}

pub(in crate::netlink) fn read_generation(message: &Message<'_>) -> Option<u32> {
    message.attributes(NETFILTER_HEADER).be32(GENERATION)
}

pub(in crate::netlink) fn read_generation_thread(message: &Message<'_>) -> Option<u32> {
    message.attributes(NETFILTER_HEADER).be32(GENERATION_THREAD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ports(source: &str, first: u16, last: u16) -> Element {
        let transport = spa_proto::Transport::Tcp;
        Element::Ports { source: source.parse().unwrap(), transport, first, last }
    }

    #[test]
    fn keys_are_put_together_of_words() {
        let (key, end) = keys(&ports("192.0.2.7/32", 22, 22));
        assert_eq!((key, end), (vec![192, 0, 2, 7, 6, 0, 0, 0, 0, 22, 0, 0], None));
        let (key, end) = keys(&ports("192.0.2.0/24", 8000, 8010));
        assert_eq!(key, [192, 0, 2, 0, 6, 0, 0, 0, 0x1f, 0x40, 0, 0]);
        assert_eq!(end.unwrap(), [192, 0, 2, 255, 6, 0, 0, 0, 0x1f, 0x4a, 0, 0]);
    }

    #[test]
    fn what_is_no_prefix_is_read_as_its_first_key() {
        let key = [192, 0, 2, 1, 6, 0, 0, 0, 0, 22, 0, 0];
        let end = [192, 0, 2, 9, 6, 0, 0, 0, 0, 22, 0, 0];
        assert_eq!(read_element(&key, &key), ports("192.0.2.1/32", 22, 22));
        assert_eq!(read_element(&key, &end), Element::Key(key.to_vec()));
        assert_eq!(read_element(&[1], &[1]), Element::Key(vec![1]));
    }

    fn elements() -> impl Strategy<Value = Element> {
        (any::<IpAddr>(), 0u8..=32, any::<(u16, u16, bool, bool)>()).prop_map(
            |(address, length, (one, other, tcp, alone))| {
                let (first, last) = (one.min(other), one.max(other));
                let transport =
                    if tcp { spa_proto::Transport::Tcp } else { spa_proto::Transport::Udp };
                let source = IpNet::new(address, length).unwrap().trunc();
                if alone {
                    Element::Address(address)
                } else {
                    Element::Ports { source, transport, first, last }
                }
            },
        )
    }

    proptest! {
        #[test]
        fn elements_come_back(element in elements(), time in proptest::option::of(1u64..1 << 40)) {
            let timeout = time.map(Duration::from_millis);
            let mut writer = Writer::default();
            writer.message(NEW_ELEMENTS, 0, 1, |writer| {
                write_any_family(writer);
                writer.nest(ELEMENTS, |writer| {
                    writer.nest(ELEMENT, |writer| write_element(writer, &element, timeout));
                });
            });
            let (message, _) = Message::split_from(writer.bytes()).unwrap();
            let mut found = Vec::new();
            read_elements(&message, &mut found);
            let expires_in = timeout.map(|_| Duration::ZERO);
            prop_assert_eq!(found, [LiveElement { element, timeout, expires_in }]);
        }

        #[test]
        fn any_answer_is_read_without_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let message = Message { kind: NEW_ELEMENTS, flags: 0, sequence: 1, payload: &payload };
            read_elements(&message, &mut Vec::new());
            let _ = (read_generation(&message), read_generation_thread(&message));
            let _ = read_element(&payload, &payload);
        }
    }
}
