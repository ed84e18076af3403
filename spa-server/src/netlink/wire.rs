//! Netlink messages and attributes as bytes. Pure: no sockets, and no knowledge of what any
//! subsystem's attributes mean.
//!
//! Sources: linux/include/uapi/linux/netlink.h and linux/include/uapi/linux/netfilter/nfnetlink.h.
//! Headers are in the byte order of the machine; what the attributes hold is up to the subsystem.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `struct nlmsghdr`
pub(super) const HEADER_BYTES: usize = 16;
/// `struct nlattr`
const ATTRIBUTE_HEADER_BYTES: usize = 4;
/// `NLA_F_NESTED`; kernels since 5.2 want it.
const NESTED: u16 = 0x8000;
/// `NLA_TYPE_MASK`
const ATTRIBUTE_KIND: u16 = 0x3fff;

/// How much memory is kept between requests.
const KEPT_BYTES: usize = 1 << 20;

/// `NLM_F_REQUEST`
pub(super) const REQUEST: u16 = 0x01;
/// `NLM_F_ACK`
pub(super) const ACK: u16 = 0x04;
/// `NLM_F_DUMP_INTR`: what is dumped changed meanwhile.
pub(super) const DUMP_INTERRUPTED: u16 = 0x10;
/// `NLM_F_DUMP`
pub(super) const DUMP: u16 = 0x300;
/// `NLM_F_EXCL`
pub(super) const EXCLUSIVE: u16 = 0x200;
/// `NLM_F_CREATE`
pub(super) const CREATE: u16 = 0x400;
/// `NLM_F_CAPPED`, in an answer: the request is not repeated whole.
const CAPPED: u16 = 0x100;
/// `NLM_F_ACK_TLVS`, in an answer: attributes follow.
const ACK_ATTRIBUTES: u16 = 0x200;

/// `NLMSG_ERROR`; with code 0 it is an acknowledgement.
pub(super) const ERROR: u16 = 2;
/// `NLMSG_DONE`
pub(super) const DONE: u16 = 3;

/// `NLMSGERR_ATTR_MSG`
const ERROR_TEXT: u16 = 1;

/// Writes messages one behind the other.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    /// Writes one message.
    pub(super) fn message(
        &mut self,
        kind: u16,
        flags: u16,
        sequence: u32,
        body: impl FnOnce(&mut Self),
    ) {
        let start = self.0.len();
        self.0.extend([0; 4]);
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(flags.to_ne_bytes());
        self.0.extend(sequence.to_ne_bytes());
        // The sender's port: the kernel knows it.
        self.0.extend([0; 4]);
        body(self);
        let length = u32::try_from(self.0.len().saturating_sub(start)).unwrap_or(u32::MAX);
        self.patch(start, &length.to_ne_bytes());
    }

    /// Writes bytes that are no attribute, such as the fixed header of a subsystem.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        self.align();
    }

    /// Writes `struct nfgenmsg`, the fixed header of everything of netfilter.
    pub(super) fn netfilter_header(&mut self, family: u8, resource: u16) {
        let [high, low] = resource.to_be_bytes();
        self.raw(&[family, 0, high, low]);
    }

    /// Writes one attribute. One that is too long is written so that the kernel refuses it.
    pub(super) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = value.len().saturating_add(ATTRIBUTE_HEADER_BYTES);
        self.0.extend(u16::try_from(length).unwrap_or(u16::MAX).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.raw(value);
    }

    /// Writes text with a zero byte behind it.
    pub(super) fn text(&mut self, kind: u16, text: &str) {
        let length = text.len().saturating_add(ATTRIBUTE_HEADER_BYTES).saturating_add(1);
        self.0.extend(u16::try_from(length).unwrap_or(u16::MAX).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend_from_slice(text.as_bytes());
        self.raw(&[0]);
    }

    /// Writes an attribute that holds attributes.
    pub(super) fn nest(&mut self, kind: u16, content: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend((kind | NESTED).to_ne_bytes());
        content(self);
        let length = u16::try_from(self.0.len().saturating_sub(start)).unwrap_or(u16::MAX);
        self.patch(start, &length.to_ne_bytes());
    }

    /// How many bytes are written.
    pub(super) const fn len(&self) -> usize {
        self.0.len()
    }

    /// All that is written.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Begins anew.
    pub(super) fn clear(&mut self) {
        // One large transaction is no reason to keep so much memory.
        self.0.clear();
        self.0.shrink_to(KEPT_BYTES);
    }

    fn align(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn patch(&mut self, at: usize, with: &[u8]) {
        if let Some(place) = self.0.get_mut(at..).and_then(|rest| rest.get_mut(..with.len())) {
            place.copy_from_slice(with);
        }
    }
}

/// A message that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Message<'a> {
    /// What it is.
    pub(super) kind: u16,
    /// `NLM_F_*`
    pub(super) flags: u16,
    /// The number of the request that it answers.
    pub(super) sequence: u32,
    /// What follows the header.
    pub(super) payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The first message in these bytes, and the bytes behind it.
    pub(super) fn split_from(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (length, rest) = bytes.split_first_chunk()?;
        let (kind, rest) = rest.split_first_chunk()?;
        let (flags, rest) = rest.split_first_chunk()?;
        let (sequence, _) = rest.split_first_chunk()?;
        let length = usize::try_from(u32::from_ne_bytes(*length)).ok()?;
        let payload = bytes.get(HEADER_BYTES..length)?;
        let next = bytes.get(length.checked_next_multiple_of(4)?..).unwrap_or_default();
        let message = Self {
            kind: u16::from_ne_bytes(*kind),
            flags: u16::from_ne_bytes(*flags),
            sequence: u32::from_ne_bytes(*sequence),
            payload,
        };
        Some((message, next))
    }

    /// The error code of an [`ERROR`] or [`DONE`] message, positive, 0 for success; and what the
    /// kernel says about it.
    pub(super) fn outcome(&self) -> Option<(i32, Option<String>)> {
        let (code, rest) = match self.payload.split_first_chunk() {
            Some((code, rest)) => (i32::from_ne_bytes(*code), rest),
            // The end of a dump may come without.
            None if self.kind == DONE => (0, [].as_slice()),
            None => return None,
        };
        if self.flags & ACK_ATTRIBUTES == 0 {
            return Some((code.saturating_neg(), None));
        }
        let attributes = if self.kind == DONE {
            rest
        } else {
            // The header of the request stands in between, or all of it.
            let length = u32::from_ne_bytes(*rest.first_chunk()?);
            let repeated = if self.flags & CAPPED == 0 && code != 0 {
                usize::try_from(length).ok()?.checked_next_multiple_of(4)?
            } else {
                HEADER_BYTES
            };
            rest.get(repeated..)?
        };
        let text = Attributes(attributes).get(ERROR_TEXT).map(text);
        Some((code.saturating_neg(), text))
    }

    /// The attributes behind a fixed header of this many bytes.
    pub(super) fn attributes(&self, fixed: usize) -> Attributes<'a> {
        Attributes(self.payload.get(fixed..).unwrap_or_default())
    }
}

/// A sequence of attributes. One that is cut off ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// The attributes in these bytes.
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Each attribute, kind and value, in order.
    pub(super) fn each(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (kind, value, next) = split_attribute(rest)?;
            rest = next;
            Some((kind, value))
        })
    }

    /// The first attribute of this kind.
    pub(super) fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.each().find(|(found, _)| *found == kind).map(|(_, value)| value)
    }

    /// What is in the first attribute of this kind.
    pub(super) fn nested(self, kind: u16) -> Option<Self> {
        self.get(kind).map(Attributes)
    }

    /// A number of one byte.
    pub(super) fn u8(self, kind: u16) -> Option<u8> {
        self.get(kind)?.first().copied()
    }

    /// A number in network byte order.
    pub(super) fn be16(self, kind: u16) -> Option<u16> {
        self.get(kind)?.first_chunk().copied().map(u16::from_be_bytes)
    }

    /// A number in network byte order.
    pub(super) fn be32(self, kind: u16) -> Option<u32> {
        self.get(kind)?.first_chunk().copied().map(u32::from_be_bytes)
    }

    /// A number in network byte order.
    pub(super) fn be64(self, kind: u16) -> Option<u64> {
        self.get(kind)?.first_chunk().copied().map(u64::from_be_bytes)
    }

    /// Text up to a zero byte.
    pub(super) fn text(self, kind: u16) -> Option<String> {
        self.get(kind).map(text)
    }

    /// An address of four or sixteen bytes.
    pub(super) fn address(self, kind: u16) -> Option<IpAddr> {
        address(self.get(kind)?)
    }
}

fn split_attribute(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    let length = usize::from(u16::from_ne_bytes(*length));
    let kind = u16::from_ne_bytes(*rest.first_chunk()?);
    let value = bytes.get(ATTRIBUTE_HEADER_BYTES..length)?;
    // The last one may lack its padding.
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind & ATTRIBUTE_KIND, value, next))
}

/// An address of four or sixteen bytes.
pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(|four| IpAddr::V4(Ipv4Addr::from(four)))
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(|all| IpAddr::V6(Ipv6Addr::from(all))))
        .ok()
}

/// The bytes of an address: four or sixteen.
pub(super) fn octets(address: IpAddr, write: impl FnOnce(&[u8])) {
    match address {
        IpAddr::V4(address) => write(&address.octets()),
        IpAddr::V6(address) => write(&address.octets()),
    }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn a_message_is_written_as_the_kernel_wants_it() {
        let mut writer = Writer::default();
        writer.message(0x0602, REQUEST | ACK, 7, |writer| {
            writer.netfilter_header(2, 0);
            writer.attribute(1, &[6]);
            writer.text(2, "spa4");
            writer.nest(7, |writer| writer.attribute(6, &30u32.to_be_bytes()));
        });
        let expected = [
            [52, 0, 0, 0, 2, 6, 5, 0, 7, 0, 0, 0, 0, 0, 0, 0].as_slice(),
            &[2, 0, 0, 0],
            &[5, 0, 1, 0, 6, 0, 0, 0],
            &[9, 0, 2, 0, b's', b'p', b'a', b'4', 0, 0, 0, 0],
            &[12, 0, 7, 0x80, 8, 0, 6, 0, 0, 0, 0, 30],
        ]
        .concat();
        assert_eq!(writer.bytes(), expected);
        assert_eq!(writer.len(), 52);

        let (message, rest) = Message::split_from(&expected).unwrap();
        assert_eq!((message.kind, message.flags, message.sequence), (0x0602, 5, 7));
        assert!(rest.is_empty());
        let attributes = message.attributes(4);
        assert_eq!(attributes.u8(1), Some(6));
        assert_eq!(attributes.text(2).as_deref(), Some("spa4"));
        assert_eq!(attributes.nested(7).unwrap().be32(6), Some(30));
        assert_eq!(attributes.get(3), None);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_refusal_is_read_with_its_text() {
        let bytes = [
            // nlmsghdr with NLM_F_CAPPED | NLM_F_ACK_TLVS, then -ENOENT
            [48, 0, 0, 0, 2, 0, 0, 3, 9, 0, 0, 0, 0, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff].as_slice(),
            // the header of the request
            &[200, 0, 0, 0, 1, 6, 5, 0, 9, 0, 0, 0, 0, 0, 0, 0],
            &[9, 0, 1, 0, b'n', b'o', b'n', b'e', 0, 0, 0, 0],
        ]
        .concat();
        let (message, _) = Message::split_from(&bytes).unwrap();
        assert_eq!(message.outcome(), Some((2, Some("none".to_owned()))));
    }

    #[test]
    fn what_is_cut_off_is_no_message() {
        let mut writer = Writer::default();
        writer.message(1, 0, 1, |writer| writer.attribute(1, b"four"));
        for length in 0..writer.len() {
            assert_eq!(Message::split_from(&writer.bytes()[..length]), None);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut rest = bytes.as_slice();
            while let Some((message, next)) = Message::split_from(rest) {
                let _ = message.outcome();
                prop_assert!(message.attributes(4).each().count() <= bytes.len());
                prop_assert!(next.len() < rest.len());
                rest = next;
            }
            let attributes = Attributes::new(&bytes);
            let _ = (attributes.address(1), attributes.text(1), attributes.be64(1));
            prop_assert!(attributes.each().count() <= bytes.len());
        }

        #[test]
        fn attributes_come_back(values in proptest::collection::vec(
            (0u16..0x3fff, proptest::collection::vec(any::<u8>(), 0..50)), 0..10,
        )) {
            let mut writer = Writer::default();
            for (kind, value) in &values {
                writer.attribute(*kind, value);
            }
            let read: Vec<_> =
                Attributes::new(writer.bytes()).each().map(|(kind, value)| (kind, value.to_vec())).collect();
            prop_assert_eq!(read, values);
        }
    }
}
