//! What ipset says over netlink, as bytes. Pure.
//!
//! Source: linux/include/uapi/linux/netfilter/ipset/ip_set.h. All numbers are in network byte
//! order, and say so in the kind of their attribute.

use super::{Entry, SetChange, SetInfo, SetKind, SetSize};
use crate::netlink::wire::{self, Attributes, Message, Writer};
use crate::netlink::{FAMILY_V4, Family, NETFILTER_HEADER, protocol_number, transport};
use ipnet::IpNet;
use spa_proto::Port;
use std::net::IpAddr;
use std::num::NonZeroU16;

/// `NFNL_SUBSYS_IPSET`, in the upper half of a message's kind.
const SUBSYSTEM: u16 = 6 << 8;
pub(super) const PROTOCOL: u16 = SUBSYSTEM | 1;
pub(super) const CREATE: u16 = SUBSYSTEM | 2;
pub(super) const DESTROY: u16 = SUBSYSTEM | 3;
pub(super) const FLUSH: u16 = SUBSYSTEM | 4;
pub(super) const RENAME: u16 = SUBSYSTEM | 5;
pub(super) const SWAP: u16 = SUBSYSTEM | 6;
pub(super) const LIST: u16 = SUBSYSTEM | 7;
const ADD: u16 = SUBSYSTEM | 9;
const DELETE: u16 = SUBSYSTEM | 0x0a;
pub(super) const TYPE: u16 = SUBSYSTEM | 0x0d;

/// `IPSET_PROTOCOL_MIN`: what every kernel takes.
const VERSION: u8 = 6;
/// `IPSET_FLAG_LIST_SETNAME`
const LIST_NAME: u32 = 2;
/// `IPSET_FLAG_LIST_HEADER`
const LIST_HEADER: u32 = 4;
/// `NLA_F_NET_BYTEORDER`
const NETWORK_ORDER: u16 = 0x4000;

/// Attributes of commands.
mod command {
    pub(super) const VERSION: u16 = 1;
    pub(super) const NAME: u16 = 2;
    pub(super) const KIND: u16 = 3;
    /// In the place of [`KIND`] where two names are given.
    pub(super) const OTHER_NAME: u16 = 3;
    pub(super) const REVISION: u16 = 4;
    pub(super) const FAMILY: u16 = 5;
    pub(super) const FLAGS: u16 = 6;
    pub(super) const DATA: u16 = 7;
    pub(super) const ELEMENTS: u16 = 8;
    pub(super) const OLDEST_REVISION: u16 = 10;
}

/// Attributes of sets and elements, within [`command::DATA`].
mod data {
    pub(super) const ADDRESS: u16 = 1;
    pub(super) const PREFIX_LENGTH: u16 = 3;
    pub(super) const PORT: u16 = 4;
    pub(super) const TIMEOUT: u16 = 6;
    pub(super) const PROTOCOL: u16 = 7;
    pub(super) const HASH_SIZE: u16 = 18;
    pub(super) const MAX_ELEMENTS: u16 = 19;
    pub(super) const ENTRIES: u16 = 24;
    pub(super) const REFERENCES: u16 = 25;

    /// Within [`ADDRESS`].
    pub(super) const IPV4: u16 = 1;
    pub(super) const IPV6: u16 = 2;
}

/// A command about sets of these names: none, one or two.
pub(super) fn write_names(writer: &mut Writer, names: &[&str]) {
    write_head(writer);
    for (kind, name) in [command::NAME, command::OTHER_NAME].into_iter().zip(names) {
        writer.text(kind, name);
    }
}

/// The question which revisions of a kind of sets there are.
pub(super) fn write_type(writer: &mut Writer, kind: SetKind, family: Family) {
    write_head(writer);
    writer.text(command::KIND, kind.as_str());
    writer.attribute(command::FAMILY, &[family.number()]);
}

/// The oldest and the newest revision, from the answer to [`write_type`].
pub(super) fn read_revisions(message: &Message<'_>) -> Option<(u8, u8)> {
    let attributes = message.attributes(NETFILTER_HEADER);
    let newest = attributes.u8(command::REVISION)?;
    Some((attributes.u8(command::OLDEST_REVISION).unwrap_or(newest), newest))
}

pub(super) fn write_create(
    writer: &mut Writer,
    name: &str,
    kind: SetKind,
    revision: u8,
    family: Family,
    size: SetSize,
) {
    write_head(writer);
    writer.text(command::NAME, name);
    writer.text(command::KIND, kind.as_str());
    writer.attribute(command::REVISION, &[revision]);
    writer.attribute(command::FAMILY, &[family.number()]);
    writer.nest(command::DATA, |writer| {
        write_u32(writer, data::TIMEOUT, 0);
        write_u32(writer, data::HASH_SIZE, size.buckets);
        write_u32(writer, data::MAX_ELEMENTS, size.max_elements);
    });
}

/// The question what there is of a set: without the elements, or with.
pub(super) fn write_list(writer: &mut Writer, name: &str, header_only: bool) {
    write_head(writer);
    writer.text(command::NAME, name);
    if header_only {
        write_u32(writer, command::FLAGS, LIST_HEADER);
    }
}

/// The question what sets there are.
pub(super) fn write_list_names(writer: &mut Writer) {
    write_head(writer);
    write_u32(writer, command::FLAGS, LIST_NAME);
}

/// The name of a set, from the answer to [`write_list_names`].
pub(super) fn read_name(message: &Message<'_>) -> Option<String> {
    message.attributes(NETFILTER_HEADER).text(command::NAME)
}

/// One change, as a message of its own. Without `EXCLUSIVE`, adding what is there and deleting
/// what isn't there is no error.
pub(super) fn write_change(
    writer: &mut Writer,
    sequence: u32,
    acknowledged: bool,
    change: &SetChange<'_>,
) {
    let (command, set, entry, seconds) = match change {
        SetChange::Add { set, entry, seconds } => {
            (ADD, set, entry, Some(seconds.map_or(0, u32::from)))
        }
        SetChange::Delete { set, entry } => (DELETE, set, entry, None),
    };
    let flags = wire::REQUEST | if acknowledged { wire::ACK } else { 0 };
    writer.message(command, flags, sequence, |writer| {
        write_head(writer);
        writer.text(command::NAME, set);
        writer.nest(command::DATA, |writer| {
            write_entry(writer, entry);
            if let Some(seconds) = seconds {
                write_u32(writer, data::TIMEOUT, seconds);
            }
        });
    });
}

fn write_head(writer: &mut Writer) {
    writer.netfilter_header(FAMILY_V4, 0);
    writer.attribute(command::VERSION, &[VERSION]);
}

fn write_u32(writer: &mut Writer, kind: u16, value: u32) {
    writer.attribute(kind | NETWORK_ORDER, &value.to_be_bytes());
}

fn write_entry(writer: &mut Writer, entry: &Entry) {
    let (address, prefix, port) = match *entry {
        Entry::Address(address) => (address, None, None),
        Entry::AddressPort(address, port) => (address, None, Some(port)),
        Entry::Network(network) => (network.network(), Some(network.prefix_len()), None),
        Entry::NetworkPort(network, port) => {
            (network.network(), Some(network.prefix_len()), Some(port))
        }
    };
    writer.nest(data::ADDRESS, |writer| {
        let kind = match address {
            IpAddr::V4(_) => data::IPV4,
            IpAddr::V6(_) => data::IPV6,
        };
        wire::octets(address, |octets| writer.attribute(kind | NETWORK_ORDER, octets));
    });
    if let Some(prefix) = prefix {
        writer.attribute(data::PREFIX_LENGTH, &[prefix]);
    }
    if let Some(Port { transport, number }) = port {
        writer.attribute(data::PORT | NETWORK_ORDER, &number.get().to_be_bytes());
        writer.attribute(data::PROTOCOL, &[protocol_number(transport)]);
    }
}

/// What a set is, from the answer to [`write_list`].
pub(super) fn read_info(message: &Message<'_>) -> Option<SetInfo> {
    let attributes = message.attributes(NETFILTER_HEADER);
    let about = attributes.nested(command::DATA)?;
    let timeout = about.be32(data::TIMEOUT);
    Some(SetInfo {
        kind: attributes.text(command::KIND)?,
        family: attributes.u8(command::FAMILY).and_then(Family::from_number),
        max_elements: about.be32(data::MAX_ELEMENTS),
        has_timeout: timeout.is_some(),
        default_timeout: timeout.unwrap_or(0),
        entries: about.be32(data::ENTRIES).unwrap_or(0),
        references: about.be32(data::REFERENCES).unwrap_or(0),
    })
}

/// The elements in a part of the answer to [`write_list`].
pub(super) fn read_entries(message: &Message<'_>, found: &mut Vec<(Entry, Option<u32>)>) {
    let Some(elements) = message.attributes(NETFILTER_HEADER).nested(command::ELEMENTS) else {
        return;
    };
    found.extend(
        elements
            .each()
            .filter(|(kind, _)| *kind == command::DATA)
            .filter_map(|(_, value)| read_entry(Attributes::new(value))),
    );
}

fn read_entry(element: Attributes<'_>) -> Option<(Entry, Option<u32>)> {
    let address = element.nested(data::ADDRESS)?;
    let address = address.address(data::IPV4).or_else(|| address.address(data::IPV6))?;
    let network = match element.u8(data::PREFIX_LENGTH) {
        Some(length) => Some(IpNet::new(address, length).ok()?),
        None => None,
    };
    let port = match element.be16(data::PORT) {
        Some(number) => Some(Port {
            transport: transport(element.u8(data::PROTOCOL)?)?,
            number: NonZeroU16::new(number)?,
        }),
        None => None,
    };
    let entry = match (network, port) {
        (None, None) => Entry::Address(address),
        (None, Some(port)) => Entry::AddressPort(address, port),
        (Some(network), None) => Entry::Network(network),
        (Some(network), Some(port)) => Entry::NetworkPort(network, port),
    };
    Some((entry, element.be32(data::TIMEOUT).filter(|seconds| *seconds != 0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::num::NonZeroU32;

    /// `ipset add spa4 192.0.2.7,tcp:22 timeout 30`
    #[test]
    #[cfg(target_endian = "little")]
    fn an_added_element_is_written_as_the_kernel_wants_it() {
        let mut writer = Writer::default();
        let change = SetChange::Add {
            set: "spa4",
            entry: Entry::AddressPort("192.0.2.7".parse().unwrap(), "tcp/22".parse().unwrap()),
            seconds: NonZeroU32::new(30),
        };
        write_change(&mut writer, 5, true, &change);
        let expected = [
            [80, 0, 0, 0, 9, 6, 5, 0, 5, 0, 0, 0, 0, 0, 0, 0].as_slice(),
            &[2, 0, 0, 0],
            &[5, 0, 1, 0, 6, 0, 0, 0],
            &[9, 0, 2, 0, b's', b'p', b'a', b'4', 0, 0, 0, 0],
            &[40, 0, 7, 0x80],
            &[12, 0, 1, 0x80, 8, 0, 1, 0x40, 192, 0, 2, 7],
            &[6, 0, 4, 0x40, 0, 22, 0, 0],
            &[5, 0, 7, 0, 6, 0, 0, 0],
            &[8, 0, 6, 0x40, 0, 0, 0, 30],
        ]
        .concat();
        assert_eq!(writer.bytes(), expected);
    }

    fn entries() -> impl Strategy<Value = Entry> {
        (any::<IpAddr>(), 1u8..=32, any::<NonZeroU16>(), any::<bool>(), 0..4).prop_map(
            |(address, length, number, tcp, shape)| {
                let transport =
                    if tcp { spa_proto::Transport::Tcp } else { spa_proto::Transport::Udp };
                let port = Port { transport, number };
                let network = IpNet::new(address, length).unwrap().trunc();
                match shape {
                    0 => Entry::Address(address),
                    1 => Entry::AddressPort(address, port),
                    2 => Entry::Network(network),
                    _ => Entry::NetworkPort(network, port),
                }
            },
        )
    }

    proptest! {
        #[test]
        fn entries_come_back(entry in entries(), seconds in any::<u32>()) {
            let mut writer = Writer::default();
            writer.message(LIST, 0, 1, |writer| {
                write_head(writer);
                writer.nest(command::ELEMENTS, |writer| writer.nest(command::DATA, |writer| {
                    write_entry(writer, &entry);
                    write_u32(writer, data::TIMEOUT, seconds);
                }));
            });
            let (message, _) = Message::split_from(writer.bytes()).unwrap();
            let mut found = Vec::new();
            read_entries(&message, &mut found);
            prop_assert_eq!(found, [(entry, Some(seconds).filter(|seconds| *seconds != 0))]);
        }

        #[test]
        fn any_answer_is_read_without_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let message = Message { kind: LIST, flags: 0, sequence: 1, payload: &payload };
            let _ = (read_info(&message), read_revisions(&message));
            read_entries(&message, &mut Vec::new());
        }
    }
}
