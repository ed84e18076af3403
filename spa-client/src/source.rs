//! Whether a knock is bound to a source address, and to which.

use crate::endpoint::Endpoint;
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
    /// Bound to this machine's own address where that is a global one; else to the one that the
    /// configured STUN server sees; else as observed.
    #[default]
    Auto,
    /// Bound to this address: for whoever knows what the server will see.
    Address(IpAddr),
}

impl BindSource {
    /// How a knock is bound that leaves this machine from `local`; `seen` is what the STUN
    /// server said, where one was asked.
    pub(crate) fn binding(self, local: Option<IpAddr>, seen: Option<&Seen>) -> Binding {
        match (self, local, seen) {
            (Self::Observed, ..) => Binding::Observed(Unbound::Wanted),
            (Self::Address(address), ..) => Binding::Named(address),
            (Self::Auto, Some(own), _) if is_global(own) => Binding::Own(own),
            (Self::Auto, _, Some(Seen { by, address: Ok(address) })) => {
                Binding::Seen(*address, by.clone())
            }
            (Self::Auto, _, Some(Seen { by, address: Err(why) })) => {
                Binding::Observed(Unbound::NoAnswer(by.clone(), why.clone()))
            }
            (Self::Auto, Some(own), None) => Binding::Observed(Unbound::NotGlobal(own)),
            (Self::Auto, None, None) => Binding::Observed(Unbound::NoAddress),
        }
    }

    /// Whether a STUN server is to be asked for a knock that leaves from `local`.
    pub(crate) fn asks(self, local: Option<IpAddr>) -> bool {
        self == Self::Auto && !local.is_some_and(is_global)
    }
}

/// What a STUN server said about this machine's address, in one address family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) by: Endpoint,
    pub(crate) address: Result<IpAddr, String>,
}

impl Seen {
    /// What it is worth for a knock to that address: a server that is asked from within the same
    /// private network does not see what the Internet sees.
    pub(crate) fn towards(&self, to: IpAddr) -> Self {
        let address = match &self.address {
            Ok(seen) if is_global(to) && !is_global(*seen) => {
                Err(format!("sees {seen}, which is not a global one"))
            }
            address => address.clone(),
        };
        Self { by: self.by.clone(), address }
    }
}

/// Which source address a knock holds for, and how that came.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Binding {
    /// This machine's own address, which is a global one.
    Own(IpAddr),
    /// The address that this STUN server sees.
    Seen(IpAddr, Endpoint),
    /// The address that the user has named.
    Named(IpAddr),
    /// None: the server opens for whatever address it sees.
    Observed(Unbound),
}

/// Why a knock is not bound.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unbound {
    /// The user wants it so.
    Wanted,
    /// Others don't see this machine by its own address.
    NotGlobal(IpAddr),
    /// The STUN server gave no answer, and why.
    NoAnswer(Endpoint, String),
    /// It is not known from which address it leaves.
    NoAddress,
}

impl Binding {
    /// The address; `None`: as observed.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Own(address) | Self::Seen(address, _) | Self::Named(address) => Some(*address),
            Self::Observed(_) => None,
        }
    }
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(address) => write!(f, "bound to this machine's own address {address}"),
            Self::Seen(address, by) => {
                write!(f, "bound to {address}, as the STUN server {by} sees it")
            }
            Self::Named(address) => write!(f, "bound to {address}, as configured"),
            Self::Observed(why) => write!(f, "source as observed, because {why}"),
        }
    }
}

impl fmt::Display for Unbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wanted => f.write_str("it is configured so"),
            Self::NotGlobal(own) => write!(f, "the own address {own} is not a global one"),
            Self::NoAnswer(by, why) => write!(f, "the STUN server {by} {why}"),
            Self::NoAddress => f.write_str("the own address is not known"),
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

    fn bound_to(source: BindSource, local: Option<&str>) -> Option<IpAddr> {
        source.binding(local.map(|text| text.parse().unwrap()), None).address()
    }

    #[test]
    fn a_stun_server_is_believed_where_the_own_address_says_nothing() {
        let by: Endpoint = "stun.example.org:3479".parse().unwrap();
        let seen = Seen { by: by.clone(), address: Ok("198.51.100.7".parse().unwrap()) };
        let silent = Seen { by, address: Err("did not answer".into()) };
        let told = |source: BindSource, local: Option<&str>, seen: Option<&Seen>| {
            source.binding(local.map(|text| text.parse().unwrap()), seen).to_string()
        };
        let (private, auto) = (Some("10.0.0.1"), BindSource::Auto);
        assert_eq!(
            told(auto, private, Some(&seen)),
            "bound to 198.51.100.7, as the STUN server stun.example.org:3479 sees it"
        );
        assert_eq!(
            told(auto, private, Some(&silent)),
            "source as observed, because the STUN server stun.example.org:3479 did not answer"
        );
        assert_eq!(
            told(auto, private, None),
            "source as observed, because the own address 10.0.0.1 is not a global one"
        );
        assert_eq!(
            told(auto, Some("8.8.8.8"), Some(&seen)),
            "bound to this machine's own address 8.8.8.8"
        );
        assert_eq!(
            told(BindSource::Observed, private, Some(&seen)),
            "source as observed, because it is configured so"
        );
        let asks = |source: BindSource, local: &str| source.asks(Some(local.parse().unwrap()));
        assert!(asks(auto, "10.0.0.1") && asks(auto, "fd00::1") && auto.asks(None));
        assert!(!asks(auto, "8.8.8.8") && !asks(BindSource::Observed, "10.0.0.1"));
    }

    #[test]
    fn a_private_address_is_not_believed_towards_the_internet() {
        let by: Endpoint = "stun.example.org".parse().unwrap();
        let bound = |address: &str, to: &str| {
            let seen = Seen { by: by.clone(), address: Ok(address.parse().unwrap()) };
            let seen = seen.towards(to.parse().unwrap());
            BindSource::Auto.binding(Some("10.0.0.1".parse().unwrap()), Some(&seen)).address()
        };
        assert_eq!(bound("8.8.4.4", "8.8.8.8"), Some("8.8.4.4".parse().unwrap()));
        assert_eq!(bound("10.1.0.1", "10.2.0.1"), Some("10.1.0.1".parse().unwrap()));
        assert_eq!(bound("10.1.0.1", "8.8.8.8"), None);
    }

    #[test]
    fn only_addresses_that_everybody_sees_alike_are_bound() {
        let bound = |text: &str| bound_to(BindSource::Auto, Some(text)).is_some();
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
        assert_eq!(bound_to(BindSource::Auto, None), None);
        assert_eq!(bound_to(BindSource::Observed, Some("8.8.8.8")), None);
        let named = BindSource::Address("10.0.0.1".parse().unwrap());
        assert_eq!(bound_to(named, None), Some("10.0.0.1".parse().unwrap()));
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
