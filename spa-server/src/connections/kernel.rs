//! The connections of this network namespace, from connection tracking and the socket tables.

use super::{
    Connections, ConnectionsError, Ended, Inventory, guarded_by, is_socket_of, socket_ports,
};
use crate::gate::{Connection, Guarded};
use crate::netlink::conntrack::{Conntrack, Filter, Flow, TcpState, Tuple};
use crate::netlink::sock_diag::{InetSocket, SockDiag, State, States};
use crate::netlink::{Family, NetlinkError, Reason};
use spa_proto::{PortRange, Transport};
use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;

/// The states of a TCP connection in connection tracking in which it lives, or begins or ends
/// (`enum tcp_conntrack`, `SYN_SENT` to `LAST_ACK`).
const LIVING: RangeInclusive<u8> = 1..=6;
const TRANSPORTS: [Transport; 2] = [Transport::Tcp, Transport::Udp];

/// Those of the network namespace of the thread that asks.
#[derive(Debug, Clone, Copy, Default)]
pub struct KernelConnections;

impl Connections for KernelConnections {
    fn list(&self, guarded: &[Guarded]) -> Result<Inventory, ConnectionsError> {
        let own = own_addresses()?;
        let mut tracking = Conntrack::open()?;
        let mut found: Inventory = flows(&mut tracking, guarded)?
            .iter()
            .map(connection_of)
            .filter(|connection| is_from_outside(connection, &own))
            .collect();
        let mut diag = SockDiag::open()?;
        let mut listeners = None;
        for socket in sockets(&mut diag, guarded)? {
            let connection = connection_of_socket(&socket);
            if !is_from_outside(&connection, &own)
                || guarded_by(&connection, guarded).is_none()
                || found.contains(&connection)
            {
                continue;
            }
            let answers = tuple_of(&connection).reversed();
            let is_theirs = match tracking.find(&answers)? {
                None => true,
                Some(flow) if flow.original == answers => {
                    let listeners = match &mut listeners {
                        Some(known) => known,
                        none => none.insert(listeners_on(&mut diag, guarded)?),
                    };
                    socket.transport == Transport::Tcp && listeners.contains(&socket.local.port())
                }
                // It is tracked by the port that was asked for, before the translation.
                Some(_) => false,
            };
            if is_theirs {
                found.insert(connection);
            }
        }
        Ok(found)
    }

    fn end(&self, those: &Inventory, guarded: &[Guarded]) -> Result<Ended, ConnectionsError> {
        let mut ended = Ended::default();
        let mut tracking = Conntrack::open()?;
        for flow in flows(&mut tracking, guarded)? {
            if those.contains(&connection_of(&flow)) {
                tracking.delete(&flow)?;
            }
        }
        let mut diag = SockDiag::open()?;
        for socket in sockets(&mut diag, guarded)? {
            let is_of = |connection: &&Connection| {
                connection.transport == socket.transport
                    && is_socket_of(connection, socket.local, socket.peer, guarded)
            };
            let Some(connection) = those.iter().find(is_of) else { continue };
            // One that was tracked only from an answer on.
            let answers = Tuple {
                transport: socket.transport,
                source: socket.local,
                destination: socket.peer,
            };
            if let Some(flow) = tracking.find(&answers)?
                && flow.original == answers
            {
                tracking.delete(&flow)?;
            }
            match diag.destroy(&socket) {
                Ok(_) => drop(ended.destroyed.insert(*connection)),
                Err(error) => ended.trouble = Some(crate::causes::with_causes(&error)),
            }
        }
        let left = self.list(guarded)?;
        let with_socket: Vec<_> = sockets(&mut diag, guarded)?;
        let is_gone = |connection: &&Connection| {
            !left.contains(connection)
                && !with_socket
                    .iter()
                    .any(|socket| is_socket_of(connection, socket.local, socket.peer, guarded))
        };
        ended.gone = those.iter().filter(is_gone).copied().collect();
        Ok(ended)
    }

    fn talked_to(&self, those: &Inventory) -> Result<Inventory, ConnectionsError> {
        let mut tracking = Conntrack::open()?;
        let ports: HashSet<u16> = those.iter().map(|connection| connection.peer.port()).collect();
        let ports: Vec<_> = ports.into_iter().map(|port| port..=port).collect();
        let mut talked_to = Inventory::new();
        for flow in dump(&mut tracking, |_| ports.clone())? {
            let Tuple { transport, destination, .. } = flow.original;
            talked_to.extend(those.iter().filter(|connection| {
                connection.transport == transport && connection.peer == destination
            }));
        }
        Ok(talked_to)
    }
}

/// What is tracked to the guarded ports, and lives.
fn flows(tracking: &mut Conntrack, guarded: &[Guarded]) -> Result<Vec<Flow>, NetlinkError> {
    let ports = |transport| {
        let of_it = guarded.iter().filter(move |guarded| guarded.ports.transport() == transport);
        of_it.map(|guarded| numbers(guarded.ports)).collect()
    };
    let mut flows = dump(tracking, ports)?;
    flows.retain(|flow| flow.tcp_state.is_none_or(|TcpState(state)| LIVING.contains(&state)));
    Ok(flows)
}

fn dump(
    tracking: &mut Conntrack,
    ports: impl Fn(Transport) -> Vec<RangeInclusive<u16>>,
) -> Result<Vec<Flow>, NetlinkError> {
    let mut flows = Vec::new();
    for transport in TRANSPORTS {
        let ports = ports(transport);
        if ports.is_empty() {
            continue;
        }
        for family in [Family::V4, Family::V6] {
            match tracking.dump(family, Filter { transport, ports: Some(&ports) }) {
                Ok(found) => flows.extend(found),
                // Nothing is tracked on this host.
                Err(error) if error.reason() == Some(Reason::Unsupported) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(flows)
}

/// The sockets of this host's programs that have a peer, behind guarded ports.
fn sockets(diag: &mut SockDiag, guarded: &[Guarded]) -> Result<Vec<InetSocket>, NetlinkError> {
    let of = |transport| -> Vec<_> {
        let ports = socket_ports(guarded).filter(|ports| ports.transport() == transport);
        ports.map(numbers).collect()
    };
    let (tcp, udp) = (of(Transport::Tcp), of(Transport::Udp));
    let mut sockets = Vec::new();
    if !tcp.is_empty() {
        sockets.extend(diag.tcp_sockets(States::WITH_PEER, &tcp)?);
    }
    if !udp.is_empty() {
        sockets.extend(diag.udp_sockets(States::WITH_PEER, &udp)?);
    }
    // Both have said goodbye: nothing passes there any more.
    sockets.retain(|socket| socket.state != State::TimeWait && socket.peer.port() != 0);
    Ok(sockets)
}

/// The guarded TCP ports that programs of this host listen on. A connection from such a port was
/// begun by its peer, whatever connection tracking says: when it starts to track while connections
/// are there already, whoever speaks first is taken for the one who began.
fn listeners_on(diag: &mut SockDiag, guarded: &[Guarded]) -> Result<HashSet<u16>, NetlinkError> {
    let ports = socket_ports(guarded).filter(|ports| ports.transport() == Transport::Tcp);
    let ports: Vec<_> = ports.map(numbers).collect();
    let listeners = diag.tcp_sockets(States::LISTENING, &ports)?;
    Ok(listeners.into_iter().map(|socket| socket.local.port()).collect())
}

fn numbers(ports: PortRange) -> RangeInclusive<u16> {
    ports.first().get()..=ports.last().get()
}

fn connection_of(flow: &Flow) -> Connection {
    let Tuple { transport, source, destination } = flow.original;
    Connection { transport, peer: source, local: destination }
}

fn connection_of_socket(socket: &InetSocket) -> Connection {
    Connection { transport: socket.transport, peer: socket.peer, local: socket.local }
}

fn tuple_of(connection: &Connection) -> Tuple {
    let Connection { transport, peer, local } = *connection;
    Tuple { transport, source: peer, destination: local }
}

/// Whether another host began it, and meant this one.
fn is_from_outside(connection: &Connection, own: &HashSet<IpAddr>) -> bool {
    let (peer, local) = (connection.peer.ip(), connection.local.ip());
    !peer.is_loopback() && !own.contains(&peer) && own.contains(&local) && !local.is_loopback()
}

/// The addresses of this host. Those that are its own by a route alone are not known.
fn own_addresses() -> Result<HashSet<IpAddr>, ConnectionsError> {
    let addresses = nix::ifaddrs::getifaddrs()
        .map_err(|errno| ConnectionsError::Addresses(io::Error::from(errno)))?;
    Ok(addresses
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .collect())
}
