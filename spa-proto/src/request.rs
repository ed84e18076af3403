//! The request inside a knock, and its fixed plaintext layout (§5).

use crate::item::{Item, Items, Port, ServiceName, Transport};
use crate::time::UnixMicros;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv6Addr};
use core::num::{NonZeroU16, NonZeroU32};

/// The protocol version that this crate speaks.
const VERSION: u8 = 1;
/// Bytes before the first item: version, type, timestamp, bound source, lifetime, item count.
const FIXED_LENGTH: usize = 1 + 1 + 8 + 16 + 4 + 1;
const ITEM_TCP: u8 = 0x40;
const ITEM_UDP: u8 = 0x41;

/// What the client wants done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageType {
    /// Open the items for the source address.
    Open,
    /// Close what this client had opened for the source address.
    Close,
}

impl MessageType {
    /// `"open"` or `"close"`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Close => "close",
        }
    }
}

/// What a knock asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Open or close.
    pub message_type: MessageType,
    /// What to open or close.
    pub items: Items,
    /// The only address that the knock may come from; `None`: the one it is observed from.
    pub bound_source: Option<IpAddr>,
    /// How long new connections are admitted, in seconds; `None`: the server's default.
    pub lifetime: Option<NonZeroU32>,
}

impl Request {
    /// Writes the plaintext of §5.1 into `plaintext`, zero padded to its end.
    ///
    /// # Errors
    ///
    /// `Err(needed)`, in bytes, when the items do not fit.
    pub(crate) fn encode(&self, stamp: UnixMicros, plaintext: &mut [u8]) -> Result<(), usize> {
        let mut bytes = Vec::with_capacity(plaintext.len());
        bytes.push(VERSION);
        bytes.push(match self.message_type {
            MessageType::Open => 1,
            MessageType::Close => 2,
        });
        bytes.extend_from_slice(&stamp.0.to_be_bytes());
        bytes.extend_from_slice(&self.bound_source.map_or([0; 16], address_bytes));
        bytes.extend_from_slice(&self.lifetime.map_or(0, NonZeroU32::get).to_be_bytes());
        bytes.push(u8::try_from(self.items.as_slice().len()).unwrap_or(u8::MAX));
        for item in &self.items {
            match item {
                Item::Service(name) => {
                    bytes.push(u8::try_from(name.as_str().len()).unwrap_or(u8::MAX));
                    bytes.extend_from_slice(name.as_str().as_bytes());
                }
                Item::Port(port) => {
                    bytes.push(match port.transport {
                        Transport::Tcp => ITEM_TCP,
                        Transport::Udp => ITEM_UDP,
                    });
                    bytes.extend_from_slice(&port.number.get().to_be_bytes());
                }
            }
        }
        let (head, padding) = plaintext.split_at_mut_checked(bytes.len()).ok_or(bytes.len())?;
        head.copy_from_slice(&bytes);
        padding.fill(0);
        Ok(())
    }

    /// Reads a plaintext; `None` when any byte is not as §5.1 has it, the padding included.
    pub(crate) fn decode(plaintext: &[u8]) -> Option<(Self, UnixMicros)> {
        let mut reader = Reader(plaintext);
        if reader.byte()? != VERSION {
            return None;
        }
        let message_type = match reader.byte()? {
            1 => MessageType::Open,
            2 => MessageType::Close,
            _ => return None,
        };
        let stamp = UnixMicros(u64::from_be_bytes(*reader.array()?));
        let bound_source = bound_source(reader.array()?)?;
        let lifetime = NonZeroU32::new(u32::from_be_bytes(*reader.array()?));
        let count = usize::from(reader.byte()?);
        if count > Items::MAX {
            return None;
        }
        let items = (0..count).map(|_| reader.item()).collect::<Option<Vec<_>>>()?;
        let items = Items::try_from(items).ok()?;
        let padded = reader.0.iter().all(|byte| *byte == 0);
        padded.then_some((Self { message_type, items, bound_source, lifetime }, stamp))
    }

    /// The room for items in a plaintext of `length` bytes.
    pub(crate) const fn room(length: usize) -> usize {
        length.saturating_sub(FIXED_LENGTH)
    }
}

/// 16 bytes: an IPv6 address, or an IPv4 address mapped into `::ffff:0:0/96`.
pub(crate) fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// `None`: not allowed (`::ffff:0.0.0.0`). `Some(None)`: as observed.
#[expect(clippy::option_option, reason = "the outer one is the malformed field")]
pub(crate) fn bound_source(bytes: &[u8; 16]) -> Option<Option<IpAddr>> {
    let address = Ipv6Addr::from(*bytes);
    if address.is_unspecified() {
        return Some(None);
    }
    let canonical = address.to_canonical();
    (!canonical.is_unspecified()).then_some(Some(canonical))
}

/// A bounded reader over bytes from the network.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn array<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(head)
    }

    pub(crate) fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| *byte)
    }

    fn item(&mut self) -> Option<Item> {
        let kind = self.byte()?;
        let transport = match kind {
            ITEM_TCP => Transport::Tcp,
            ITEM_UDP => Transport::Udp,
            length => {
                let (name, rest) = self.0.split_at_checked(usize::from(length))?;
                self.0 = rest;
                return ServiceName::from_bytes(name).map(Item::Service);
            }
        };
        let number = NonZeroU16::new(u16::from_be_bytes(*self.array()?))?;
        Some(Item::Port(Port { transport, number }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn any_item() -> impl Strategy<Value = Item> {
        prop_oneof![
            "[a-z][a-z0-9_.-]{0,11}".prop_map(|name| Item::Service(name.parse().unwrap())),
            (any::<bool>(), 1..=u16::MAX).prop_map(|(tcp, number)| Item::Port(Port {
                transport: if tcp { Transport::Tcp } else { Transport::Udp },
                number: NonZeroU16::new(number).unwrap(),
            })),
        ]
    }

    fn any_request() -> impl Strategy<Value = Request> {
        let items = proptest::collection::btree_set(any_item(), 1..=7)
            .prop_map(|set| Items::try_from(set.into_iter().collect::<Vec<_>>()).unwrap());
        let source = prop_oneof![
            Just(None),
            any::<[u8; 4]>().prop_map(|b| Some(IpAddr::from(b))),
            any::<[u8; 16]>().prop_map(|b| Some(IpAddr::from(b).to_canonical())),
        ]
        .prop_filter("an unspecified address is no source", |s| {
            !s.is_some_and(|address| address.is_unspecified())
        });
        (any::<bool>(), items, source, any::<u32>()).prop_map(
            |(open, items, bound_source, lifetime)| Request {
                message_type: if open { MessageType::Open } else { MessageType::Close },
                items,
                bound_source,
                lifetime: NonZeroU32::new(lifetime),
            },
        )
    }

    proptest! {
        #[test]
        fn every_request_survives_the_wire(request in any_request(), stamp in any::<u64>()) {
            let mut plaintext = [0xaa; 128];
            request.encode(UnixMicros(stamp), &mut plaintext).unwrap();
            prop_assert_eq!(Request::decode(&plaintext), Some((request, UnixMicros(stamp))));
        }

        #[test]
        fn what_decodes_is_encoded_to_the_same_bytes(mut plaintext in any::<[u8; 64]>(), kind in 1u8..3, count in 0u8..9) {
            // Steered past the first bytes, which chance would never get right.
            plaintext[0] = VERSION;
            plaintext[1] = kind;
            plaintext[30] = count;
            if let Some((request, stamp)) = Request::decode(&plaintext) {
                let mut again = [0xaa; 64];
                request.encode(stamp, &mut again).unwrap();
                prop_assert_eq!(plaintext, again);
            }
        }

        #[test]
        fn no_bytes_panic(plaintext in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Request::decode(&plaintext);
        }
    }

    #[test]
    fn eight_names_of_eleven_letters_fit_the_default_length() {
        let names =
            (0..8).map(|n| alloc::format!("admin-web-{n}").parse().unwrap()).collect::<Vec<Item>>();
        let request = Request {
            message_type: MessageType::Open,
            items: Items::try_from(names).unwrap(),
            bound_source: None,
            lifetime: None,
        };
        let mut plaintext = [0xaa; 128];
        assert_eq!(request.encode(UnixMicros(0), &mut plaintext), Ok(()));
        assert_eq!(Request::decode(&plaintext), Some((request.clone(), UnixMicros(0))));
        assert_eq!(request.encode(UnixMicros(0), &mut [0; 126]), Err(127));
    }
}
