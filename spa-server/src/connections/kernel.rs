//! The connections of this network namespace, from connection tracking and the socket tables.

use super::{BySocket, Connections, ConnectionsError, Ended, Inventory, guarded_by, socket_ports};
use crate::gate::{Connection, Cut, Guarded};
use crate::netlink::conntrack::{Conntrack, Filter, Flow, TcpState, Tuple};
use crate::netlink::sock_diag::{InetSocket, SockDiag, State, States};
use crate::netlink::{NetlinkError, Reason};
use spa_proto::PortRange;
use spa_proto::Transport::{Tcp, Udp};
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;

/// The states of a TCP connection in connection tracking in which it lives, or begins or ends
/// (`enum tcp_conntrack`, `SYN_SENT` to `LAST_ACK`).
const LIVING: RangeInclusive<u8> = 1..=6;

/// Those of the network namespace of the thread that asks.
#[derive(Debug, Clone, Copy, Default)]
pub struct KernelConnections;

impl Connections for KernelConnections {
    fn list(&self, guarded: &[Guarded]) -> Result<Inventory, ConnectionsError> {
        let own = own_addresses()?;
        let mut tracking = Conntrack::open()?;
        let flows = flows(&mut tracking, guarded)?;
        let mut diag = SockDiag::open()?;
        let sockets = sockets(&mut diag, guarded)?;
        let listeners = listeners_on(&mut diag, guarded, &sockets)?;
        let is_answered = |socket: &InetSocket| {
            socket.transport == Tcp && listeners.contains(&socket.local.port())
        };
        // Connections that this host has begun from a port that is guarded, by chance.
        let begun_here: HashSet<_> = sockets
            .iter()
            .filter(|socket| socket.transport == Tcp && !is_answered(socket))
            .map(|socket| (socket.peer, socket.local))
            .collect();
        let mut found: Inventory = flows
            .iter()
            .filter(|flow| {
                let ends = (flow.original.source, flow.reply.source);
                !(flow.begun_unseen && begun_here.contains(&ends))
            })
            .map(connection_of)
            .filter(|connection| is_from_outside(connection, &own))
            .collect();
        // What is not tracked, or was first tracked from this host's side: whoever is heard first
        // is taken for the one who began. A TCP connection of a port that a program listens on was
        // begun by its peer all the same. Of UDP nothing like that is known: a socket with a peer
        // may be that of a query of this host's. To cut those off would harm the host; the gate
        // refuses the datagrams of strangers that no program here has spoken to.
        for socket in sockets.iter().filter(|socket| is_answered(socket)) {
            let connection = connection_of_socket(socket);
            if !is_from_outside(&connection, &own)
                || guarded_by(&connection, guarded).is_none()
                || found.contains(&connection)
            {
                continue;
            }
            let answers = tuple_of(&connection).reversed();
            // Else it is tracked by the port that was asked for, before the translation.
            if tracking.find(&answers)?.is_none_or(|flow| flow.original == answers) {
                found.insert(connection);
            }
        }
        Ok(found)
    }

    fn established(
        &self,
        those: &Inventory,
        guarded: &[Guarded],
    ) -> Result<Vec<Cut>, ConnectionsError> {
        let mut found = HashMap::new();
        for flow in flows(&mut Conntrack::open()?, guarded)? {
            let connection = connection_of(&flow);
            if is_established(&flow) && those.contains(&connection) {
                let rank = if flow.status.assured() { Rank::Assured } else { Rank::Answered };
                found.insert(connection, (rank, flow.reply.source));
            }
        }
        let by_socket = BySocket::new(those, guarded);
        for socket in sockets(&mut SockDiag::open()?, guarded)? {
            if socket.state == State::SynReceived {
                continue;
            }
            for connection in by_socket.of(socket.transport, socket.local, socket.peer) {
                let (rank, _) = found.entry(*connection).or_insert((Rank::Here, socket.local));
                *rank = Rank::Here;
            }
        }
        let mut cuts: Vec<_> = found
            .into_iter()
            .map(|(connection, (rank, answered_from))| (rank, Cut { connection, answered_from }))
            .collect();
        cuts.sort_unstable();
        Ok(cuts.into_iter().map(|(_, cut)| cut).collect())
    }

    fn end(
        &self,
        those: &Inventory,
        established: &[Cut],
        guarded: &[Guarded],
    ) -> Result<Ended, ConnectionsError> {
        let mut ended = Ended::default();
        let known: Inventory = established.iter().map(|cut| cut.connection).collect();
        let mut tracking = Conntrack::open()?;
        for flow in flows(&mut tracking, guarded)? {
            let connection = connection_of(&flow);
            if !those.contains(&connection) {
                continue;
            }
            // Asked anew, since the list may have taken a while.
            if !known.contains(&connection)
                && tracking.find(&flow.original)?.is_some_and(|flow| is_established(&flow))
            {
                continue;
            }
            tracking.delete(&flow)?;
        }
        // What was tracked only from an answer on.
        for Cut { connection: Connection { transport, peer, .. }, answered_from } in established {
            let answers =
                Tuple { transport: *transport, source: *answered_from, destination: *peer };
            if let Some(flow) = tracking.find(&answers)?
                && flow.original == answers
            {
                tracking.delete(&flow)?;
            }
        }
        let by_socket = BySocket::new(those, guarded);
        let mut diag = SockDiag::open()?;
        for socket in sockets(&mut diag, guarded)? {
            let connections = by_socket.of(socket.transport, socket.local, socket.peer);
            if connections.is_empty() {
                continue;
            }
            match diag.destroy(&socket) {
                Ok(_) => ended.destroyed.extend(connections),
                Err(error) => ended.trouble = Some(crate::causes::with_causes(&error)),
            }
        }
        let mut left = self.list(guarded)?;
        for socket in sockets(&mut diag, guarded)? {
            left.extend(by_socket.of(socket.transport, socket.local, socket.peer));
        }
        ended.gone = those.difference(&left).copied().collect();
        Ok(ended)
    }

    fn talked_to(&self, those: &[Cut]) -> Result<Vec<Cut>, ConnectionsError> {
        let mut tracking = Conntrack::open()?;
        let mut talked_to = Vec::new();
        for cut in those {
            let Connection { transport, peer, .. } = cut.connection;
            let answers = Tuple { transport, source: cut.answered_from, destination: peer };
            if tracking.find(&answers)?.is_some_and(|flow| flow.original == answers) {
                talked_to.push(*cut);
            }
        }
        Ok(talked_to)
    }
}

/// How much an established connection needs its packets to be refused, most first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// This host has no socket of it.
    Assured,
    /// Neither, and it may be no more than an answer to a datagram.
    Answered,
    /// This host has its socket.
    Here,
}

/// Whether the peer must have received something, or a single packet of it was answered: that of
/// UDP, where there is no handshake.
///
/// The handshake of a TCP connection was seen to its end, or the connection is one that was tracked
/// only from the middle on, and both ends were heard.
fn is_established(flow: &Flow) -> bool {
    match flow.tcp_state {
        Some(state) => {
            flow.status.assured() || flow.status.seen_reply() && state >= TcpState::ESTABLISHED
        }
        None => flow.status.seen_reply(),
    }
}

/// What is tracked to the guarded ports, and lives.
fn flows(tracking: &mut Conntrack, guarded: &[Guarded]) -> Result<Vec<Flow>, NetlinkError> {
    let ports = |transport| -> Vec<_> {
        let of_it = guarded.iter().filter(|guarded| guarded.ports.transport() == transport);
        of_it.map(|guarded| numbers(guarded.ports)).collect()
    };
    let (tcp, udp) = (ports(Tcp), ports(Udp));
    let all = [(Tcp, tcp.as_slice()), (Udp, udp.as_slice())];
    let filters: Vec<_> = all
        .into_iter()
        .filter(|(_, ports)| !ports.is_empty())
        .map(|(transport, ports)| Filter { transport, ports: Some(ports) })
        .collect();
    let mut flows = match tracking.dump(&filters) {
        Ok(flows) => flows,
        // Nothing is tracked on this host.
        Err(error) if error.reason() == Some(Reason::Unsupported) => Vec::new(),
        Err(error) => return Err(error),
    };
    flows.retain(|flow| flow.tcp_state.is_none_or(|TcpState(state)| LIVING.contains(&state)));
    Ok(flows)
}

/// The sockets of this host's programs that have a peer, behind guarded ports.
fn sockets(diag: &mut SockDiag, guarded: &[Guarded]) -> Result<Vec<InetSocket>, NetlinkError> {
    let of = |transport| -> Vec<_> {
        let ports = socket_ports(guarded).filter(|ports| ports.transport() == transport);
        ports.map(numbers).collect()
    };
    let (tcp, udp) = (of(Tcp), of(Udp));
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

/// The TCP ports of these sockets that programs of this host listen on. A connection from such a
/// port was begun by its peer, whatever connection tracking says. One that a program has accepted
/// before it ceased to listen is not known by this.
fn listeners_on(
    diag: &mut SockDiag,
    guarded: &[Guarded],
    sockets: &[InetSocket],
) -> Result<HashSet<u16>, NetlinkError> {
    if !sockets.iter().any(|socket| socket.transport == Tcp) {
        return Ok(HashSet::new());
    }
    let ports = socket_ports(guarded).filter(|ports| ports.transport() == Tcp);
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
