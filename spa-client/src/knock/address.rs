//! Which of a server's addresses are knocked on.

use super::KnockError;
use crate::server::Server;
use crate::source::BindSource;
use core::fmt;
use core::net::{IpAddr, SocketAddr};
use std::net::ToSocketAddrs as _;

/// A name with more addresses than these is knocked at the first ones.
const MAX_ADDRESSES: usize = 8;

/// Which addresses are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Family {
    /// All: nobody knows which one the program takes that uses the port afterwards.
    #[default]
    Both,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

impl Family {
    const fn admits(self, address: IpAddr) -> bool {
        match self {
            Self::Both => true,
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
        }
    }

    /// What two options of a command line say, of which one at most is given.
    pub(crate) const fn of_flags(v4: bool, v6: bool) -> Self {
        match (v4, v6) {
            (true, _) => Self::V4,
            (_, true) => Self::V6,
            _ => Self::Both,
        }
    }

    const fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Both => "IP",
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

pub(super) fn resolve(
    server: &Server,
    family: Family,
    source: BindSource,
) -> Result<Vec<SocketAddr>, KnockError> {
    let mut found = Vec::new();
    let mut failed = None;
    for host in server.hosts() {
        match (host.as_str(), 0).to_socket_addrs() {
            Ok(addresses) => found.extend(addresses),
            Err(source) => {
                failed.get_or_insert(KnockError::Resolve { host: host.to_string(), source });
            }
        }
    }
    match failed {
        // One of several that is known is enough.
        Some(error) if found.is_empty() => Err(error),
        _ => select(found.into_iter(), server.host.as_str(), family, source),
    }
}

/// The distinct addresses that can be meant.
fn select(
    found: impl Iterator<Item = SocketAddr>,
    host: &str,
    family: Family,
    source: BindSource,
) -> Result<Vec<SocketAddr>, KnockError> {
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for address in found {
        // Only a mapped address changes; any other keeps its IPv6 scope.
        let address = match address.ip().to_canonical() {
            IpAddr::V4(v4) => SocketAddr::new(v4.into(), 0),
            IpAddr::V6(_) => address,
        };
        if family.admits(address.ip()) && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        return Err(KnockError::NoAddress { host: host.into(), family });
    }
    if let BindSource::Address(bound) = source {
        // From an address of the other family no datagram can come.
        let family = Family::of(bound);
        addresses.retain(|address| family.admits(address.ip()));
        if addresses.is_empty() {
            return Err(KnockError::SourceFamily { host: host.into(), bound, family });
        }
    }
    addresses.truncate(MAX_ADDRESSES);
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 0)).collect()
    }

    fn selected(found: &[&str], family: Family, source: BindSource) -> Result<Vec<String>, String> {
        select(addresses(found).into_iter(), "gw", family, source)
            .map(|addresses| addresses.iter().map(|address| address.ip().to_string()).collect())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn each_distinct_address_is_knocked_at_once_and_eight_at_most() {
        let found = ["192.0.2.1", "2001:db8::1", "192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2"];
        let all = BindSource::Auto;
        assert_eq!(
            selected(&found, Family::Both, all).unwrap(),
            ["192.0.2.1", "2001:db8::1", "192.0.2.2"]
        );
        assert_eq!(selected(&found, Family::V6, all).unwrap(), ["2001:db8::1"]);
        assert_eq!(selected(&found, Family::V4, all).unwrap(), ["192.0.2.1", "192.0.2.2"]);
        let many: Vec<String> = (1..20).map(|n| format!("192.0.2.{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(selected(&many, Family::Both, all).unwrap().len(), 8);
    }

    #[test]
    fn a_bound_source_leaves_the_addresses_of_its_own_family() {
        let bound = BindSource::Address("198.51.100.7".parse().unwrap());
        let both = ["2001:db8::1", "192.0.2.1"];
        assert_eq!(selected(&both, Family::Both, bound).unwrap(), ["192.0.2.1"]);
        assert_eq!(
            selected(&["2001:db8::1"], Family::Both, bound).unwrap_err(),
            "the knock is to be bound to 198.51.100.7, but gw has no IPv4 address; \
             name a source of the server's address family"
        );
        assert_eq!(
            selected(&["2001:db8::1"], Family::V4, BindSource::Auto).unwrap_err(),
            "gw has no IPv4 address; leave the choice of the address family away"
        );
    }
}
