//! What can be opened: ports, and what stands behind them. Plain values.

use serde::{Deserialize, Serialize};
use spa_proto::PortRange;
use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

/// A service of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The ports that are opened, and hidden from all others.
    pub ports: BTreeSet<PortRange>,
    /// Who answers there.
    pub target: Target,
    /// How many connections a grant lets in.
    pub connections: Connections,
}

impl Service {
    /// Ports of this host's own, with as many connections as come.
    pub fn plain(ports: impl IntoIterator<Item = PortRange>) -> Self {
        let ports = ports.into_iter().collect();
        Self { ports, target: Target::Here, connections: Connections::Any }
    }
}

/// Who answers at a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// What listens there: a program of this host, or a container that publishes the port.
    #[default]
    Here,
    /// A program of this host that listens on another port.
    LocalPort(NonZeroU16),
    /// Another host, behind this one.
    Forward(Forward),
}

/// Another host, by its address in each family; at least one is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Forward {
    /// Where IPv4 packets go; `None`: the service isn't there over IPv4.
    pub v4: Option<ForwardTo>,
    /// Where IPv6 packets go; `None`: the service isn't there over IPv6.
    pub v6: Option<ForwardTo>,
    /// Whether the other host sees this one's address in place of the client's.
    pub masquerade: bool,
}

/// One address, and perhaps a port, to forward to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ForwardTo {
    /// The other host.
    pub address: IpAddr,
    /// The port there; `None`: the one that was asked for.
    pub port: Option<NonZeroU16>,
}

/// How many connections one grant lets in.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Connections {
    /// As many as come while it lasts.
    #[default]
    Any,
    /// One: with it the grant is used up.
    One,
}

impl Target {
    /// Whether there is anybody for packets of this family.
    pub const fn serves(&self, source: IpAddr) -> bool {
        match (self, source) {
            (Self::Here | Self::LocalPort(_), _) => true,
            (Self::Forward(forward), IpAddr::V4(_)) => forward.v4.is_some(),
            (Self::Forward(forward), IpAddr::V6(_)) => forward.v6.is_some(),
        }
    }
}

/// `10.0.0.5`, `10.0.0.5:443`, `[fd00::5]:443`
impl fmt::Display for ForwardTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.address, port.get()).fmt(f),
            None => self.address.fmt(f),
        }
    }
}
