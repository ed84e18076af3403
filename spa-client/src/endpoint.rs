//! A host and a port of it: where a server of another kind (STUN, NTP) is asked.

use crate::server::{Host, HostError};
use core::fmt;
use core::net::{Ipv6Addr, SocketAddr};
use core::num::NonZeroU16;
use core::str::FromStr;
use std::io;
use std::net::ToSocketAddrs as _;

/// `stun.example.org`, `192.0.2.1:3478`, `[2001:db8::1]:123`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// A name to resolve, or an address.
    pub host: Host,
    /// The port; `None`: the usual one of what is asked there.
    pub port: Option<NonZeroU16>,
}

impl Endpoint {
    /// Its addresses, with `usual` for a port that is not named.
    pub(crate) fn resolve(&self, usual: u16) -> io::Result<Vec<SocketAddr>> {
        let port = self.port.map_or(usual, NonZeroU16::get);
        Ok((self.host.as_str(), port).to_socket_addrs()?.collect())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) if self.host.as_str().contains(':') => write!(f, "[{}]:{port}", self.host),
            Some(port) => write!(f, "{}:{port}", self.host),
            None => self.host.fmt(f),
        }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let wrong = || EndpointError::Port(text.into());
        // The colons of an IPv6 address that stands alone belong to no port.
        let alone = text.parse::<Ipv6Addr>().is_ok() || text.contains('%') || text.ends_with(']');
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !alone => (host, Some(port.parse().map_err(|_| wrong())?)),
            _ => (text, None),
        };
        Ok(Self { host: host.parse()?, port })
    }
}

/// Not a host and a port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// What stands before the port.
    #[error(transparent)]
    Host(#[from] HostError),
    /// What stands after the colon.
    #[error(
        "{0:?} ends in no port; write HOST or HOST:PORT, an IPv6 address with a port as [ADDRESS]:PORT"
    )]
    Port(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_written_as_they_are_read() {
        for text in ["stun.example.org", "192.0.2.1:3478", "[2001:db8::1]:123", "2001:db8::1"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        let parsed = "[2001:db8::1]".parse::<Endpoint>().unwrap();
        assert_eq!((parsed.host.as_str(), parsed.port), ("2001:db8::1", None));
        for text in ["", "gw:", "gw:0", "gw:65536", "gw:ntp", ":123", "a b:1", "stun://gw:1"] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_port_that_is_not_named_is_the_usual_one() {
        let at = |text: &str| text.parse::<Endpoint>().unwrap().resolve(3478).unwrap();
        assert_eq!(at("127.0.0.1"), ["127.0.0.1:3478".parse().unwrap()]);
        assert_eq!(at("[::1]:99"), ["[::1]:99".parse().unwrap()]);
    }
}
