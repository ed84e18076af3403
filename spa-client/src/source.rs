//! Whether a knock is bound to a source address, and to which.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::str::FromStr;

/// What a knock says about the address it comes from.
///
/// A knock that is bound opens nothing for anyone who intercepts it and sends it first from an
/// address of his own. It also opens nothing where a router on the way rewrites the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BindSource {
    /// Not bound: the server opens for whatever address it sees.
    Observed,
    /// Bound to this machine's own address where that is a global one, else as observed.
    #[default]
    Auto,
    /// Bound to this address: for whoever knows what the server will see.
    Address(IpAddr),
}

impl BindSource {
    /// The bound source of a knock that leaves this machine from `local`; `None`: as observed.
    pub(crate) fn bound(self, local: Option<IpAddr>) -> Option<IpAddr> {
        match self {
            Self::Observed => None,
            Self::Auto => local.filter(|address| is_global(*address)),
            Self::Address(address) => Some(address),
        }
    }
}

impl fmt::Display for BindSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Observed => f.write_str("observed"),
            Self::Auto => f.write_str("auto"),
            Self::Address(address) => address.fmt(f),
        }
    }
}

impl FromStr for BindSource {
    type Err = BindSourceError;

    fn from_str(text: &str) -> Result<Self, BindSourceError> {
        match text {
            "observed" => Ok(Self::Observed),
            "auto" => Ok(Self::Auto),
            _ => match text.parse::<IpAddr>().map(|address| address.to_canonical()) {
                Ok(address) if !address.is_unspecified() && !address.is_multicast() => {
                    Ok(Self::Address(address))
                }
                _ => Err(BindSourceError(text.into())),
            },
        }
    }
}

/// Not a source to bind a knock to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no source; write observed, auto, or the IP address that the server will see")]
pub struct BindSourceError(String);

/// Whether the whole Internet can know an address under this name (IANA's special-purpose
/// registries, RFC 6890). `IpAddr::is_global` is not stable.
fn is_global(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => is_global_v4(v4),
        IpAddr::V6(v6) => is_global_v6(v6),
    }
}

fn is_global_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(a == 0
        || address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || address.is_multicast()
        || a >= 240
        // Shared by the customers of one carrier (RFC 6598), IETF protocols, benchmarks.
        || (a == 100 && (b & 0xc0) == 64)
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && (b & 0xfe) == 18))
}

fn is_global_v6(address: Ipv6Addr) -> bool {
    let [first, second, ..] = address.segments();
    // Global unicast is 2000::/3; of it, documentation and the IETF's own 2001::/23 are not.
    (first & 0xe000) == 0x2000
        && !(first == 0x2001 && second == 0x0db8)
        && !(first == 0x3fff && second < 0x1000)
        && !(first == 0x2001 && second < 0x0200)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_everybody_sees_alike_are_bound() {
        let bound = |text: &str| BindSource::Auto.bound(Some(text.parse().unwrap())).is_some();
        for global in [
            "8.8.8.8",
            "193.99.144.80",
            "100.63.0.1",
            "100.128.0.1",
            "2606:4700::1111",
            "2a02:2e0::1",
        ] {
            assert!(bound(global), "{global}");
        }
        for local in [
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "127.0.0.1",
            "169.254.1.1",
            "100.64.0.1",
            "192.0.2.7",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "2001:db8::1",
            "2001::1",
            "3fff::1",
            "::ffff:10.0.0.1",
            "64:ff9b::1",
        ] {
            assert!(!bound(local), "{local}");
        }
        assert_eq!(BindSource::Auto.bound(None), None);
        assert_eq!(BindSource::Observed.bound(Some("8.8.8.8".parse().unwrap())), None);
        let named = BindSource::Address("10.0.0.1".parse().unwrap());
        assert_eq!(named.bound(None), Some("10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn sources_are_written_as_they_are_read() {
        for text in ["observed", "auto", "192.0.2.7", "2001:db8::1"] {
            assert_eq!(text.parse::<BindSource>().unwrap().to_string(), text);
        }
        assert_eq!(
            "::ffff:192.0.2.7".parse(),
            Ok(BindSource::Address("192.0.2.7".parse().unwrap()))
        );
        for text in ["", "0.0.0.0", "::", "ff02::1", "me", "192.0.2.0/24"] {
            assert_eq!(text.parse::<BindSource>(), Err(BindSourceError(text.into())));
        }
    }
}
