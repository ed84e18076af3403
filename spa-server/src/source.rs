//! Who is admitted: an address, or the network around it. Pure.

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// An address, or a network; written `192.0.2.7` or `192.0.2.0/24`.
///
/// Never a v4-mapped IPv6 address, and never with bits set behind the prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source(IpNet);

impl Source {
    /// One address.
    pub fn host(address: IpAddr) -> Self {
        Self(address.to_canonical().into())
    }

    /// The network of this prefix length around an address; lengths beyond the address's own
    /// mean the address alone.
    pub fn around(address: IpAddr, prefix: u8) -> Self {
        let address = address.to_canonical();
        IpNet::new(address, prefix).map_or_else(|_| Self::host(address), |net| Self(net.trunc()))
    }

    /// As a network.
    pub const fn net(self) -> IpNet {
        self.0
    }

    /// The address, or the first one of the network.
    pub fn address(self) -> IpAddr {
        self.0.addr()
    }

    /// Whether it is one address.
    pub fn is_host(self) -> bool {
        self.0.prefix_len() == self.0.max_prefix_len()
    }

    /// Whether an address is it, or in it.
    pub fn contains(self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }

    /// Whether they have an address in common: one lies within the other then.
    pub fn overlaps(self, other: Self) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// Whether all addresses of the other are among these.
    pub fn covers(self, other: Self) -> bool {
        self.0.contains(&other.0)
    }
}

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        Self::host(address)
    }
}

impl From<IpNet> for Source {
    fn from(net: IpNet) -> Self {
        match net.addr().to_canonical() {
            IpAddr::V4(v4) if net.addr().is_ipv6() => {
                Self::around(v4.into(), net.prefix_len().saturating_sub(96))
            }
            _ => Self(net.trunc()),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_host() { self.0.addr().fmt(f) } else { self.0.fmt(f) }
    }
}

/// Not an address, and not a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is neither an address nor a network; write 192.0.2.7, 192.0.2.0/24 or 2001:db8::/64"
)]
pub struct SourceError(String);

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::host(address));
        }
        text.parse::<IpNet>().map(Self::from).map_err(|_| SourceError(text.to_owned()))
    }
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Source {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        text.parse().unwrap()
    }

    #[test]
    fn sources_are_written_as_they_are_read() {
        for text in ["192.0.2.7", "192.0.2.0/24", "2001:db8::7", "2001:db8::/64", "0.0.0.0/0"] {
            assert_eq!(source(text).to_string(), text);
        }
        for (text, canonical) in [
            ("192.0.2.7/32", "192.0.2.7"),
            ("192.0.2.7/24", "192.0.2.0/24"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
            ("2001:db8::7/128", "2001:db8::7"),
        ] {
            assert_eq!(source(text).to_string(), canonical, "{text}");
        }
        for text in ["", "host", "192.0.2.7/33", "192.0.2", "::/129"] {
            assert!(text.parse::<Source>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_network_around_an_address_covers_it() {
        let address: IpAddr = "192.0.2.77".parse().unwrap();
        assert_eq!(Source::around(address, 24), source("192.0.2.0/24"));
        assert_eq!(Source::around(address, 64), source("192.0.2.77"));
        assert!(Source::around(address, 24).contains(address));
        assert!(Source::around(address, 24).covers(Source::host(address)));
        assert!(!Source::host(address).covers(Source::around(address, 24)));
        assert!(!source("192.0.2.0/24").contains("2001:db8::1".parse().unwrap()));
    }
}
