//! The connections that there are to guarded ports, and their end.
//!
//! It knows connection tracking and sockets, but no rules: whether packets of a connection are
//! refused is the gate's business, and whom a connection belongs to is that of the grants.

mod kernel;

pub use kernel::KernelConnections;

use crate::gate::{Connection, Guarded};
use crate::netlink::NetlinkError;
use crate::service::Target;
use spa_proto::{Port, PortRange};
use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU16;

/// Connections, each as the peer addresses it: before any translation.
pub type Inventory = HashSet<Connection>;

/// Who lists connections and ends them. All of it blocks.
pub trait Connections: Send + Sync + 'static {
    /// The connections of others to these ports, whoever answers there: a program of this host, a
    /// container, or another host. Those of this host with itself are none of them.
    fn list(&self, guarded: &[Guarded]) -> Result<Inventory, ConnectionsError>;

    /// Makes connection tracking forget these connections, and takes their sockets from the
    /// programs of this host. That is no end as long as packets pass: an end that talks brings
    /// them back.
    fn end(&self, those: &Inventory, guarded: &[Guarded]) -> Result<Ended, ConnectionsError>;

    /// Which of these peers somebody here, or behind this host, is sending to.
    fn talked_to(&self, those: &Inventory) -> Result<Inventory, ConnectionsError>;
}

/// What came of ending connections.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
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
    /// The addresses of this host are not known.
    #[error("cannot list the addresses of this host")]
    Addresses(#[source] io::Error),
    /// The thread that asked has died.
    #[error("the connections were not looked at to the end")]
    Thread(#[from] tokio::task::JoinError),
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

/// Whether a socket of this host, with this peer, is that of a connection: it may listen on another
/// port than the one that was asked for.
fn is_socket_of(
    connection: &Connection,
    local: SocketAddr,
    peer: SocketAddr,
    guarded: &[Guarded],
) -> bool {
    if connection.peer != peer {
        return false;
    }
    let asked_for = connection.local.port();
    match guarded_by(connection, guarded).map(|guarded| guarded.target) {
        Some(Target::LocalPort(port)) => [asked_for, port.get()].contains(&local.port()),
        _ => asked_for == local.port(),
    }
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
            transport: spa_proto::Transport::Tcp,
            peer: "192.0.2.7:50000".parse().unwrap(),
            local: local.parse().unwrap(),
        };
        let is = |asked_for: &str, local: &str, peer: &str| {
            let (local, peer) = (local.parse().unwrap(), peer.parse().unwrap());
            is_socket_of(&connection(asked_for), local, peer, &guarded)
        };
        assert!(is("192.0.2.1:22", "192.0.2.1:2222", "192.0.2.7:50000"));
        assert!(is("192.0.2.1:22", "192.0.2.1:22", "192.0.2.7:50000"));
        assert!(is("192.0.2.1:80", "192.0.2.1:80", "192.0.2.7:50000"));
        assert!(!is("192.0.2.1:80", "192.0.2.1:2222", "192.0.2.7:50000"));
        assert!(!is("192.0.2.1:22", "192.0.2.1:22", "192.0.2.7:50001"));
        assert!(guarded_by(&connection("192.0.2.1:443"), &guarded).is_none());
        let ports: Vec<_> = socket_ports(&guarded).map(|ports| ports.to_string()).collect();
        assert_eq!(ports, ["tcp/22", "tcp/80", "tcp/2222"]);
    }
}
