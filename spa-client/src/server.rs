//! A server as the client knows it.

use crate::duration::Lifetime;
use crate::endpoint::Endpoint;
use crate::key_source::{KeyError, KeySource, NoPassphrase, Unlock};
use crate::source::BindSource;
use core::borrow::Borrow;
use core::fmt;
use core::net::Ipv6Addr;
use core::num::NonZeroU16;
use core::str::FromStr;
use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};
use spa_keys::{ClientKeys, PublicKey};
use spa_proto::{Item, PacketLength, Port, PortRange, ServiceName, Transport};
use std::collections::BTreeMap;

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
    /// More names or addresses of the same server, which are knocked on as well.
    pub more_hosts: Vec<Host>,
    /// The server's identity.
    pub public_key: PublicKey,
    /// Where knocks go, the preferred port first.
    pub knock_ports: Vec<NonZeroU16>,
    /// Where the client's private key is, and perhaps a pre-shared key with it.
    pub identity: KeySource,
    /// Where the pre-shared key is, when it is kept apart.
    pub pre_shared_key: Option<KeySource>,
    /// How long this server's packets are.
    pub length: PacketLength,
    /// The lifetime to ask for; `None`: the server's default.
    pub lifetime: Option<Lifetime>,
    /// Whether knocks are bound to a source address.
    pub bind_source: BindSource,
    /// Who is asked by which address this machine is seen, where its own says nothing (RFC 8489).
    pub stun_server: Option<Endpoint>,
    /// Where services listen: what is probed after a knock. The well-known ones need no entry.
    pub services: BTreeMap<ServiceName, Service>,
}

/// Where a service listens, and how many connections a knock opens it for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The ports.
    pub ports: Vec<PortRange>,
    /// How many connections.
    pub connections: Connections,
}

/// How many connections a knock opens a service for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Connections {
    /// As many as come while it is open.
    #[default]
    Any,
    /// One: a probe would use it up.
    One,
}

impl Service {
    /// Ports, with as many connections as come.
    pub fn plain(ports: impl IntoIterator<Item = PortRange>) -> Self {
        Self { ports: ports.into_iter().collect(), connections: Connections::Any }
    }

    /// The ports that can be probed: those of TCP that stand alone.
    pub fn probed(&self) -> impl Iterator<Item = Port> + '_ {
        let probed = self.ports.iter().filter(|_| self.connections == Connections::Any);
        let single = probed.filter_map(|ports| ports.single());
        single.filter(|port| port.transport == Transport::Tcp)
    }
}

/// As `config.toml` has it: the ports alone, where there is nothing else to say.
impl Serialize for Service {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.connections {
            Connections::Any => self.ports.serialize(serializer),
            Connections::One => {
                let mut map = serializer.serialize_map(Some(2))?;
                map.serialize_entry("ports", &self.ports)?;
                map.serialize_entry("connections", &1)?;
                map.end()
            }
        }
    }
}

impl Server {
    /// A server with the default of everything that has one.
    pub fn new(
        name: ServerName,
        host: Host,
        public_key: PublicKey,
        identity: impl Into<KeySource>,
    ) -> Self {
        Self {
            name,
            host,
            more_hosts: Vec::new(),
            public_key,
            knock_ports: vec![DEFAULT_KNOCK_PORT],
            identity: identity.into(),
            pre_shared_key: None,
            length: PacketLength::default(),
            lifetime: None,
            bind_source: BindSource::default(),
            stun_server: None,
            services: BTreeMap::new(),
        }
    }

    /// The client's keys for this server, from where they are kept; `unlock` is asked for a
    /// passphrase where one is needed.
    pub fn keys(&self, unlock: &mut dyn Unlock) -> Result<ClientKeys, KeyError> {
        let mut keys = self.identity.keys(unlock)?;
        if let Some(other) = &self.pre_shared_key {
            if keys.pre_shared.is_some() {
                return Err(KeyError::TwoPreSharedKeys {
                    identity: self.identity.to_string(),
                    other: other.to_string(),
                });
            }
            keys.pre_shared = Some(other.pre_shared_key(unlock)?);
        }
        Ok(keys)
    }

    /// The same, where nobody has to be asked: all of them stand in files, and under no passphrase.
    pub(crate) fn keys_at_hand(&self) -> Result<Option<ClientKeys>, KeyError> {
        let mut sources =
            [Some(&self.identity), self.pre_shared_key.as_ref()].into_iter().flatten();
        if sources.any(|source| source.file().is_none()) {
            return Ok(None);
        }
        match self.keys(&mut NoPassphrase) {
            Err(KeyError::Locked { .. }) => Ok(None),
            keys => keys.map(Some),
        }
    }

    /// All its names and addresses.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        core::iter::once(&self.host).chain(&self.more_hosts)
    }

    /// What is behind an item, as far as the client knows: a service that is configured, `ssh`,
    /// `http` and `https`, or a port asked for by number, which shares the limits of its service.
    pub fn service_of(&self, item: &Item) -> Option<Service> {
        let mut service = match item {
            Item::Port(port) => Service::plain([PortRange::from(*port)]),
            Item::Service(name) => {
                self.services.get(name).cloned().or_else(|| well_known(name.as_str()))?
            }
        };
        // By whatever name it is asked for: a connection to it uses up what any of them has.
        let shared = |ports: &PortRange| {
            let limited = self.services.values().filter(|it| it.connections == Connections::One);
            limited.flat_map(|it| &it.ports).any(|other| other.overlaps(*ports))
        };
        if service.ports.iter().any(shared) {
            service.connections = Connections::One;
        }
        Some(service)
    }

    /// All services whose ports are known here.
    pub fn known_services(&self) -> BTreeMap<ServiceName, Service> {
        let well_known = WELL_KNOWN
            .iter()
            .filter_map(|(name, _)| Some((name.parse::<ServiceName>().ok()?, well_known(name)?)));
        well_known.chain(self.services.clone()).collect()
    }
}

fn well_known(name: &str) -> Option<Service> {
    let (_, number) = WELL_KNOWN.iter().find(|(known, _)| *known == name)?;
    let port = Port { transport: Transport::Tcp, number: NonZeroU16::new(*number)? };
    Some(Service::plain([port.into()]))
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
        let (address, scope) = match inner.split_once('%') {
            Some((address, scope)) => (address, Some(scope)),
            None => (inner, None),
        };
        let is_v6 = address.parse::<Ipv6Addr>().is_ok() && scope.is_none_or(is_scope);
        let is_name = !text.is_empty()
            && text.chars().all(|c| c.is_alphanumeric() || c == '-' || c == '_' || c == '.')
            && !text.starts_with('-');
        if is_v6 || is_name { Ok(Self(inner.into())) } else { Err(bad()) }
    }
}

/// The name or number of an interface, as in `fe80::1%eth0`. Hosts are written into the files of
/// other programs, so that nothing else is to be in one.
fn is_scope(text: &str) -> bool {
    (1..=32).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
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
            let service = server.service_of(&item.parse().unwrap())?;
            Some(service.ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(ports(&server, "ssh").as_deref(), Some("tcp/22"));
        assert_eq!(ports(&server, "udp/53").as_deref(), Some("udp/53"));
        assert_eq!(ports(&server, "admin"), None);
        let other = Service::plain(["tcp/2222".parse().unwrap()]);
        server.services.insert("ssh".parse().unwrap(), other);
        assert_eq!(ports(&server, "ssh").as_deref(), Some("tcp/2222"));
        assert_eq!(server.known_services().len(), 3);
    }

    #[test]
    fn what_a_probe_would_use_up_or_could_not_see_is_not_probed() {
        let mut server = server();
        let ports = ["tcp/443", "tcp/5000-5010", "udp/443", "udp/10000-10100"];
        let mut service = Service::plain(ports.map(|ports| ports.parse().unwrap()));
        let probed = |server: &Server, item: &str| {
            let service = server.service_of(&item.parse().unwrap()).unwrap();
            service.probed().map(|port| port.to_string()).collect::<Vec<_>>()
        };
        server.services.insert("media".parse().unwrap(), service.clone());
        assert_eq!(probed(&server, "media"), ["tcp/443"]);
        assert_eq!(probed(&server, "tcp/5003"), ["tcp/5003"]);
        service.connections = Connections::One;
        server.services.insert("media".parse().unwrap(), service);
        for item in ["media", "tcp/443", "tcp/5003"] {
            assert!(probed(&server, item).is_empty(), "{item}");
        }
        assert_eq!(probed(&server, "tcp/5011"), ["tcp/5011"]);
        // Nor by another name for the same port.
        assert!(probed(&server, "https").is_empty());
        server
            .services
            .insert("all".parse().unwrap(), Service::plain(["tcp/5000".parse().unwrap()]));
        assert!(probed(&server, "all").is_empty() && probed(&server, "tcp/5000").is_empty());
        assert_eq!(probed(&server, "ssh"), ["tcp/22"]);
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
    fn behind_an_address_there_is_a_scope_and_nothing_that_another_program_would_read() {
        for text in ["fe80::1%eth0", "fe80::1%3", "[fe80::1%br-lan.7_x]"] {
            assert!(text.parse::<Host>().is_ok(), "{text}");
        }
        for scope in ["", "\n", "x\nProxyCommand evil", "\"", "\x1b[2J", "a b", "%", "a%h", "ü"] {
            let text = format!("fe80::1%{scope}");
            assert_eq!(text.parse::<Host>(), Err(HostError(text.clone())), "{text:?}");
        }
        assert!(format!("fe80::1%{}", "e".repeat(33)).parse::<Host>().is_err());
        assert!("gw.example.org%eth0".parse::<Host>().is_err());
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
