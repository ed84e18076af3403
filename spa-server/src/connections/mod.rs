//! The connections that there are to guarded ports, and their end.
//!
//! It knows connection tracking and sockets, but no rules: whether packets of a connection are
//! refused is the gate's business, and whom a connection belongs to is that of the grants.

mod kernel;

pub use kernel::KernelConnections;

use crate::gate::{Connection, Cut, Guarded};
use crate::helper::HelperError;
use crate::netlink::NetlinkError;
use crate::service::Target;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use spa_proto::{Port, PortRange, Transport};
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::time::Duration;

/// Connections, each as the peer addresses it: before any translation.
pub type Inventory = HashSet<Connection>;

/// Who lists connections and ends them. All of it blocks.
pub trait Connections: Send + Sync + 'static {
    /// The connections of others to these ports, whoever answers there: a program of this host, a
    /// container, or another host. Those of this host with itself are none of them.
    fn list(&self, guarded: &[Guarded]) -> Result<Inventory, ConnectionsError>;

    /// The same for whoever can wait, and the processor time that it took.
    fn list_behind(&self, guarded: &[Guarded]) -> Result<(Inventory, Duration), ConnectionsError> {
        let before = spent_by_this_thread();
        let found = self.list(guarded)?;
        Ok((found, spent_by_this_thread().saturating_sub(before)))
    }

    /// Those of these connections that are established, each with the end that answers; those that
    /// no socket of this host belongs to come first, since nothing ends them but refusing their
    /// packets.
    ///
    /// What is half-open, a SYN without the last packet of its handshake or a datagram without an
    /// answer, is none of them: anybody can send that under anybody's address.
    fn established(
        &self,
        those: &Inventory,
        guarded: &[Guarded],
    ) -> Result<Vec<Cut>, ConnectionsError>;

    /// Makes connection tracking forget these connections, and takes their sockets from the
    /// programs of this host. That is no end as long as packets pass: an end that talks brings
    /// them back. So one that is established by now, and none of `established`, is left.
    fn end(
        &self,
        those: &Inventory,
        established: &[Cut],
        guarded: &[Guarded],
    ) -> Result<Ended, ConnectionsError>;

    /// Of which of these the answering end has sent something, and begun them anew by that.
    fn talked_to(&self, those: &[Cut]) -> Result<Vec<Cut>, ConnectionsError>;
}

/// What came of ending connections.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Ended {
    /// Those of which nothing is left, neither an entry nor a socket.
    pub gone: Inventory,
    /// Those whose socket is gone, so that nobody is left on this host who could talk.
    pub destroyed: Inventory,
    /// Why a socket could not be taken from its program, of the last one.
    pub trouble: Option<String>,
}

/// Why connections could not be listed or ended.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionsError {
    /// The kernel could not be asked.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// What the gate helper said, or did not.
    #[error(transparent)]
    Helper(#[from] HelperError),
    /// The addresses of this host are not known.
    #[error("cannot list the addresses of this host")]
    Addresses(#[source] io::Error),
    /// The thread that asked has died.
    #[error("the connections were not looked at to the end")]
    Died,
}

/// The processor time of this thread so far; nothing, where the system does not tell.
pub(crate) fn spent_by_this_thread() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

/// The port that a connection was made to.
pub fn port_of(connection: &Connection) -> Option<Port> {
    let number = NonZeroU16::new(connection.local.port())?;
    Some(Port { transport: connection.transport, number })
}

/// Whether a connection is to a guarded port, and what is guarded there.
fn guarded_by<'a>(connection: &Connection, guarded: &'a [Guarded]) -> Option<&'a Guarded> {
    let port = port_of(connection)?;
    guarded.iter().find(|guarded| guarded.ports.contains(port))
}

/// Connections, found by the sockets of this host that are theirs.
struct BySocket(HashMap<(Transport, SocketAddr, u16), Vec<Connection>>);

impl BySocket {
    fn new<'a>(those: impl IntoIterator<Item = &'a Connection>, guarded: &[Guarded]) -> Self {
        let mut found: HashMap<_, Vec<_>> = HashMap::new();
        for connection in those {
            for port in ports_of_sockets(connection, guarded) {
                let Connection { transport, peer, .. } = *connection;
                found.entry((transport, peer, port)).or_default().push(*connection);
            }
        }
        Self(found)
    }

    /// Several, if the peer talks to several addresses of this host from one port.
    fn of(&self, transport: Transport, local: SocketAddr, peer: SocketAddr) -> &[Connection] {
        self.0.get(&(transport, peer, local.port())).map_or(&[], Vec::as_slice)
    }
}

/// The ports that the socket of a connection may have: it may listen on another one than that
/// which was asked for.
fn ports_of_sockets(
    connection: &Connection,
    guarded: &[Guarded],
) -> impl Iterator<Item = u16> + use<> {
    let asked_for = connection.local.port();
    let other = match guarded_by(connection, guarded).map(|guarded| guarded.target) {
        Some(Target::LocalPort(port)) => Some(port.get()).filter(|port| *port != asked_for),
        _ => None,
    };
    [asked_for].into_iter().chain(other)
}

/// The ports of this host's programs behind guarded ones: those that sockets have.
fn socket_ports(guarded: &[Guarded]) -> impl Iterator<Item = PortRange> {
    let redirected = guarded.iter().filter_map(|guarded| match guarded.target {
        Target::LocalPort(port) => PortRange::new(guarded.ports.transport(), port, port),
        Target::Here | Target::Forward(_) => None,
    });
    guarded.iter().map(|guarded| guarded.ports).chain(redirected)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::Connections as Limit;

    #[test]
    fn a_redirected_connection_has_its_socket_on_another_port() {
        let ports = "tcp/22".parse().unwrap();
        let target = Target::LocalPort(NonZeroU16::new(2222).unwrap());
        let guarded = [
            Guarded { ports, target, connections: Limit::Any },
            Guarded::plain("tcp/80".parse().unwrap()),
        ];
        let connection = |local: &str| Connection {
            transport: Transport::Tcp,
            peer: "192.0.2.7:50000".parse().unwrap(),
            local: local.parse().unwrap(),
        };
        let (redirected, plain) = (connection("192.0.2.1:22"), connection("192.0.2.1:80"));
        let by_socket = BySocket::new([&redirected, &plain], &guarded);
        let of = |local: &str, peer: &str| {
            by_socket.of(Transport::Tcp, local.parse().unwrap(), peer.parse().unwrap())
        };
        assert_eq!(of("192.0.2.1:2222", "192.0.2.7:50000"), [redirected]);
        assert_eq!(of("192.0.2.1:22", "192.0.2.7:50000"), [redirected]);
        assert_eq!(of("192.0.2.1:80", "192.0.2.7:50000"), [plain]);
        assert!(of("192.0.2.1:22", "192.0.2.7:50001").is_empty());
        assert!(guarded_by(&connection("192.0.2.1:443"), &guarded).is_none());
        let ports: Vec<_> = socket_ports(&guarded).map(|ports| ports.to_string()).collect();
        assert_eq!(ports, ["tcp/22", "tcp/80", "tcp/2222"]);
    }
}
