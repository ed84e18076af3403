//! A server as the client knows it.

use crate::duration::Lifetime;
use crate::source::BindSource;
use core::borrow::Borrow;
use core::fmt;
use core::net::Ipv6Addr;
use core::num::NonZeroU16;
use core::str::FromStr;
use spa_keys::PublicKey;
use spa_proto::{Item, PacketLength, Port, ServiceName, Transport};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The knock port when none is configured.
pub(crate) const DEFAULT_KNOCK_PORT: NonZeroU16 = match NonZeroU16::new(62201) {
    Some(port) => port,
    None => NonZeroU16::MIN,
};

/// Where services listen whose ports need no configuration.
const WELL_KNOWN: [(&str, u16); 3] = [("http", 80), ("https", 443), ("ssh", 22)];

/// Everything that the client has to know to knock on a server.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Server {
    /// What the user calls it.
    pub name: ServerName,
    /// A name to resolve, or an address.
    pub host: Host,
    /// The server's identity.
    pub public_key: PublicKey,
    /// Where knocks go, the preferred port first.
    pub knock_ports: Vec<NonZeroU16>,
    /// The file of the client's private key.
    pub identity: PathBuf,
    /// The file of the pre-shared key, when there is one.
    pub pre_shared_key_file: Option<PathBuf>,
    /// How long this server's packets are.
    pub length: PacketLength,
    /// The lifetime to ask for; `None`: the server's default.
    pub lifetime: Option<Lifetime>,
    /// Whether knocks are bound to a source address.
    pub bind_source: BindSource,
    /// Where services listen: what is probed after a knock. The well-known ones need no entry.
    pub services: BTreeMap<ServiceName, Vec<Port>>,
}

impl Server {
    /// A server with the default of everything that has one.
    pub fn new(
        name: ServerName,
        host: Host,
        public_key: PublicKey,
        identity: impl Into<PathBuf>,
    ) -> Self {
        Self {
            name,
            host,
            public_key,
            knock_ports: vec![DEFAULT_KNOCK_PORT],
            identity: identity.into(),
            pre_shared_key_file: None,
            length: PacketLength::default(),
            lifetime: None,
            bind_source: BindSource::default(),
            services: BTreeMap::new(),
        }
    }

    /// The ports behind an item, as far as the client knows: those configured, those of `ssh`,
    /// `http` and `https`, and a port asked for by number.
    pub fn ports_of(&self, item: &Item) -> Option<Vec<Port>> {
        match item {
            Item::Port(port) => Some(vec![*port]),
            Item::Service(name) => {
                self.services.get(name).cloned().or_else(|| well_known(name.as_str()))
            }
        }
    }

    /// All services whose ports are known here.
    pub fn known_services(&self) -> BTreeMap<ServiceName, Vec<Port>> {
        let well_known = WELL_KNOWN
            .iter()
            .filter_map(|(name, _)| Some((name.parse::<ServiceName>().ok()?, well_known(name)?)));
        well_known.chain(self.services.clone()).collect()
    }
}

fn well_known(name: &str) -> Option<Vec<Port>> {
    let (_, number) = WELL_KNOWN.iter().find(|(known, _)| *known == name)?;
    Some(vec![Port { transport: Transport::Tcp, number: NonZeroU16::new(*number)? }])
}

/// Where a server is: a name to resolve, or an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host(String);

impl Host {
    /// The host as text; an IPv6 address without brackets.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Host {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        let bad = || HostError(text.into());
        let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        let address = inner.split_once('%').map_or(inner, |(address, _scope)| address);
        let is_v6 = address.parse::<Ipv6Addr>().is_ok();
        let is_name = !text.is_empty()
            && text.chars().all(|c| c.is_alphanumeric() || c == '-' || c == '_' || c == '.')
            && !text.starts_with('-');
        if is_v6 || is_name { Ok(Self(inner.into())) } else { Err(bad()) }
    }
}

/// Not a host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a host; write a name or an IP address alone, as in gw.example.org, without user, port or path"
)]
pub struct HostError(String);

/// What the user calls a server: 1 to 64 of `A-Z`, `a-z`, `0-9`, `-`, `_`, `.`, the first a
/// letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerName(String);

impl ServerName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for ServerName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for ServerName {
    type Err = ServerNameError;

    fn from_str(text: &str) -> Result<Self, ServerNameError> {
        let well_formed = text.len() <= 64
            && text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if well_formed { Ok(Self(text.into())) } else { Err(ServerNameError(text.into())) }
    }
}

/// Not the name of a server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not the name of a server; a name is 1 to 64 of A-Z, a-z, 0-9, '-', '_', '.' and begins with a letter or digit"
)]
pub struct ServerNameError(String);

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> Server {
        let key = PublicKey::from_bytes([9; 32]);
        Server::new("work".parse().unwrap(), "gw.example.org".parse().unwrap(), key, "identity.key")
    }

    #[test]
    fn well_known_services_need_no_entry_and_yield_to_one() {
        let mut server = server();
        let ports = |server: &Server, item: &str| {
            server
                .ports_of(&item.parse().unwrap())
                .map(|ports| ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(ports(&server, "ssh").as_deref(), Some("tcp/22"));
        assert_eq!(ports(&server, "udp/53").as_deref(), Some("udp/53"));
        assert_eq!(ports(&server, "admin"), None);
        server.services.insert("ssh".parse().unwrap(), vec!["tcp/2222".parse().unwrap()]);
        assert_eq!(ports(&server, "ssh").as_deref(), Some("tcp/2222"));
        assert_eq!(server.known_services().len(), 3);
    }

    #[test]
    fn a_host_is_a_name_or_an_address_and_nothing_more() {
        for (text, host) in [
            ("gw.example.org", "gw.example.org"),
            ("192.0.2.1", "192.0.2.1"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("fe80::1%eth0", "fe80::1%eth0"),
            ("bücher.example", "bücher.example"),
        ] {
            assert_eq!(text.parse::<Host>().unwrap().as_str(), host);
        }
        for text in
            ["", " ", "user@gw", "gw:22", "gw/", "ssh://gw", "a b", "[gw]", "-oProxy", "1:2"]
        {
            assert_eq!(text.parse::<Host>(), Err(HostError(text.into())));
        }
    }

    #[test]
    fn names_that_a_command_line_or_a_table_would_trip_over_are_refused() {
        for name in ["work", "Home", "gw.example.org", "a_b-c", "7"] {
            assert!(name.parse::<ServerName>().is_ok(), "{name}");
        }
        for name in ["", "-x", ".x", "a b", "a@b", "a/b", "ü", &"x".repeat(65)] {
            assert!(name.parse::<ServerName>().is_err(), "{name}");
        }
    }
}
