//! What a request names: services, or single ports (§5.2).

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::num::NonZeroU16;
use core::str::FromStr;

/// The transport protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP, written `tcp`.
    Tcp,
    /// UDP, written `udp`.
    Udp,
}

impl Transport {
    /// `"tcp"` or `"udp"`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One port of one transport protocol, written `tcp/22`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    /// TCP or UDP.
    pub transport: Transport,
    /// 1 to 65535.
    pub number: NonZeroU16,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.transport, self.number)
    }
}

impl FromStr for Port {
    type Err = ItemError;

    fn from_str(text: &str) -> Result<Self, ItemError> {
        let bad = || ItemError::Port(text.into());
        let (transport, number) = text.split_once('/').ok_or_else(bad)?;
        let transport = match transport {
            "tcp" => Transport::Tcp,
            "udp" => Transport::Udp,
            _ => return Err(bad()),
        };
        if !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        let number = number.parse().map_err(|_| bad())?;
        Ok(Self { transport, number })
    }
}

/// Ports of one transport protocol that follow each other, written `udp/10000-10100`; a range of
/// one port is written as that port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    transport: Transport,
    first: NonZeroU16,
    last: NonZeroU16,
}

impl PortRange {
    /// The ports from `first` to `last`, both included; `None` if they are the wrong way round.
    pub fn new(transport: Transport, first: NonZeroU16, last: NonZeroU16) -> Option<Self> {
        (first <= last).then_some(Self { transport, first, last })
    }

    /// TCP or UDP.
    pub const fn transport(self) -> Transport {
        self.transport
    }

    /// The lowest port number.
    pub const fn first(self) -> NonZeroU16 {
        self.first
    }

    /// The highest port number.
    pub const fn last(self) -> NonZeroU16 {
        self.last
    }

    /// The port, if there is only one.
    pub fn single(self) -> Option<Port> {
        (self.first == self.last).then_some(Port { transport: self.transport, number: self.first })
    }

    /// Whether this port is one of them.
    pub fn contains(self, port: Port) -> bool {
        self.overlaps(port.into())
    }

    /// Whether all ports of the other range are among these.
    pub fn covers(self, other: Self) -> bool {
        self.transport == other.transport && self.first <= other.first && other.last <= self.last
    }

    /// Whether the two have a port in common.
    pub fn overlaps(self, other: Self) -> bool {
        self.transport == other.transport && self.first <= other.last && other.first <= self.last
    }
}

impl From<Port> for PortRange {
    fn from(port: Port) -> Self {
        Self { transport: port.transport, first: port.number, last: port.number }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.transport, self.first)?;
        if self.last > self.first { write!(f, "-{}", self.last) } else { Ok(()) }
    }
}

impl FromStr for PortRange {
    type Err = ItemError;

    fn from_str(text: &str) -> Result<Self, ItemError> {
        let Some((first, last)) = text.split_once('-') else {
            return text.parse::<Port>().map(Self::from);
        };
        let bad = || ItemError::PortRange(text.into());
        let first: Port = first.parse().map_err(|_| bad())?;
        if !last.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        let last = last.parse().map_err(|_| bad())?;
        Self::new(first.transport, first.number, last).ok_or_else(bad)
    }
}

/// The name of a service: 1 to 32 of `a-z`, `0-9`, `-`, `_`, `.`, the first a letter.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName(String);

impl ServiceName {
    /// The longest name, in bytes.
    pub const MAX_LENGTH: usize = 32;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let well_formed = bytes.len() <= Self::MAX_LENGTH
            && bytes.first().is_some_and(u8::is_ascii_lowercase)
            && bytes.iter().all(|byte| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(byte)
            });
        if !well_formed {
            return None;
        }
        core::str::from_utf8(bytes).ok().map(|name| Self(name.into()))
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl FromStr for ServiceName {
    type Err = ItemError;

    fn from_str(text: &str) -> Result<Self, ItemError> {
        Self::from_bytes(text.as_bytes()).ok_or_else(|| ItemError::Name(text.into()))
    }
}

/// One thing that a request asks for: a service by name, or a port of a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Item {
    /// All ports of the service of this name.
    Service(ServiceName),
    /// This one port.
    Port(Port),
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => name.fmt(f),
            Self::Port(port) => port.fmt(f),
        }
    }
}

/// A text with a `/` is a port, any other a service's name.
impl FromStr for Item {
    type Err = ItemError;

    fn from_str(text: &str) -> Result<Self, ItemError> {
        if text.contains('/') {
            text.parse().map(Self::Port)
        } else {
            text.parse().map(Self::Service)
        }
    }
}

/// 1 to 8 items, none of them twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Items(Vec<Item>);

impl Items {
    /// The largest number of items in one request.
    pub const MAX: usize = 8;

    /// The items, in the order in which they were asked for.
    pub fn as_slice(&self) -> &[Item] {
        &self.0
    }

    /// The items, in the order in which they were asked for.
    pub fn iter(&self) -> core::slice::Iter<'_, Item> {
        self.0.iter()
    }
}

impl<'a> IntoIterator for &'a Items {
    type Item = &'a Item;
    type IntoIter = core::slice::Iter<'a, Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl TryFrom<Vec<Item>> for Items {
    type Error = ItemError;

    fn try_from(items: Vec<Item>) -> Result<Self, ItemError> {
        if items.is_empty() || items.len() > Self::MAX {
            return Err(ItemError::Count(items.len()));
        }
        let twice = items
            .iter()
            .enumerate()
            .find(|(at, item)| items.iter().take(*at).any(|earlier| earlier == *item));
        match twice {
            Some((_, item)) => Err(ItemError::Twice(item.clone())),
            None => Ok(Self(items)),
        }
    }
}

impl TryFrom<Item> for Items {
    type Error = ItemError;

    fn try_from(item: Item) -> Result<Self, ItemError> {
        Self::try_from(alloc::vec![item])
    }
}

/// Why a text or a list is not an item or a list of items.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ItemError {
    /// Not a port.
    #[error("{0:?} is not a port; write tcp/ or udp/ and a number from 1 to 65535, as in tcp/22")]
    Port(String),
    /// Not a range of ports.
    #[error("{0:?} is not a range of ports; write the lower number first, as in udp/10000-10100")]
    PortRange(String),
    /// Not a service's name.
    #[error(
        "{0:?} is not a service name; a name is 1 to 32 of a-z, 0-9, '-', '_', '.' and begins with a letter; a port is written tcp/22"
    )]
    Name(String),
    /// None, or more than eight.
    #[error("a request names 1 to {max} services or ports, not {0}", max = Items::MAX)]
    Count(usize),
    /// The same item twice.
    #[error("{0} is named twice")]
    Twice(Item),
}

#[cfg(feature = "serde")]
mod text {
    use super::{Item, Port, PortRange, ServiceName};
    use alloc::string::{String, ToString};
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    macro_rules! as_text {
        ($($type:ty),*) => {$(
            impl Serialize for $type {
                fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                    serializer.collect_str(self)
                }
            }

            impl<'de> Deserialize<'de> for $type {
                fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                    let text = String::deserialize(deserializer)?;
                    text.parse().map_err(|e: super::ItemError| D::Error::custom(e.to_string()))
                }
            }
        )*};
    }

    as_text!(Item, Port, PortRange, ServiceName);
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn items_are_read_and_written_alike() {
        for text in ["ssh", "web-admin_2.x", "tcp/22", "udp/65535"] {
            assert_eq!(text.parse::<Item>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_item_is_refused() {
        for text in [
            "",
            "22",
            "Ssh",
            "-a",
            "tcp/0",
            "tcp/65536",
            "tcp/+22",
            "tcp/",
            "sctp/22",
            "tcp/22/1",
            "a b",
            "é",
            "abcdefghijklmnopqrstuvwxyzabcdefg",
        ] {
            assert!(text.parse::<Item>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn ranges_are_read_written_and_compared() {
        let range = |text: &str| text.parse::<PortRange>().unwrap();
        for text in ["tcp/22", "udp/10000-10100", "tcp/1-65535"] {
            assert_eq!(range(text).to_string(), text);
        }
        assert_eq!(range("tcp/22-22").to_string(), "tcp/22");
        for text in ["tcp/2-1", "tcp/1-", "tcp/-1", "tcp/1-2-3", "tcp/0-2", "tcp/1-+2", "1-2", ""] {
            assert!(text.parse::<PortRange>().is_err(), "{text:?}");
        }
        let ten = range("tcp/10-20");
        assert_eq!(ten.single(), None);
        assert_eq!(range("tcp/10").single().unwrap().to_string(), "tcp/10");
        for (other, overlaps, covers) in [
            ("tcp/10-20", true, true),
            ("tcp/20", true, true),
            ("tcp/20-21", true, false),
            ("tcp/1-99", true, false),
            ("tcp/9", false, false),
            ("tcp/21", false, false),
            ("udp/10", false, false),
        ] {
            assert_eq!(ten.overlaps(range(other)), overlaps, "{other}");
            assert_eq!(ten.covers(range(other)), covers, "{other}");
            if let Some(port) = range(other).single() {
                assert_eq!(ten.contains(port), overlaps, "{other}");
            }
        }
    }

    #[test]
    fn a_list_holds_one_to_eight_different_items() {
        let port = |number: u16| {
            Item::Port(Port { transport: Transport::Tcp, number: NonZeroU16::new(number).unwrap() })
        };
        assert_eq!(Items::try_from(Vec::new()), Err(ItemError::Count(0)));
        assert_eq!(
            Items::try_from((1..=9).map(port).collect::<Vec<_>>()),
            Err(ItemError::Count(9))
        );
        assert_eq!(
            Items::try_from(alloc::vec![port(1), port(2), port(1)]),
            Err(ItemError::Twice(port(1)))
        );
        assert_eq!(
            Items::try_from((1..=8).map(port).collect::<Vec<_>>()).unwrap().as_slice().len(),
            8
        );
    }
}
