//! The sockets of a network namespace: listed, and closed from outside.
//!
//! Source: linux/include/uapi/linux/inet_diag.h; linux/net/ipv4/inet_diag.c.

mod filter;

use super::error::{NetlinkError, Reason};
use super::socket::{Channel, Doing, Head, Subsystem};
use super::wire::{Message, Writer};
use super::{Family, protocol_number};
use spa_proto::Transport;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

/// `SOCK_DIAG_BY_FAMILY`
const LIST: u16 = 20;
/// `SOCK_DESTROY`
const DESTROY: u16 = 21;
/// `INET_DIAG_REQ_BYTECODE`
const BYTECODE: u16 = 1;
/// `struct inet_diag_sockid`
const ID_BYTES: usize = 48;

/// The state of a socket (linux/include/net/tcp_states.h). A UDP socket with a peer is
/// [`State::Established`], one without [`State::Closed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "these are the names of RFC 9293")]
pub enum State {
    Established = 1,
    SynSent,
    SynReceived,
    FinWait1,
    FinWait2,
    TimeWait,
    Closed,
    CloseWait,
    LastAck,
    Listen,
    Closing,
}

impl State {
    const ALL: [Self; 11] = [
        Self::Established,
        Self::SynSent,
        Self::SynReceived,
        Self::FinWait1,
        Self::FinWait2,
        Self::TimeWait,
        Self::Closed,
        Self::CloseWait,
        Self::LastAck,
        Self::Listen,
        Self::Closing,
    ];

    /// `TCP_NEW_SYN_RECV`, a half-open connection, is the kernel's own business.
    fn from_number(number: u8) -> Option<Self> {
        if number == 12 {
            return Some(Self::SynReceived);
        }
        Self::ALL.into_iter().find(|state| *state as u8 == number)
    }
}

/// A set of states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct States(u32);

impl States {
    /// Every state.
    pub const ALL: Self = Self(0x1ffe);
    /// The peer still expects this host to answer.
    pub const TALKING: Self = Self(1 << State::Established as u8 | 1 << State::CloseWait as u8);
    /// There is a peer with whom something is still to be said, or was said a moment ago.
    pub const WITH_PEER: Self =
        Self(Self::ALL.0 & !(1 << State::Listen as u8 | 1 << State::Closed as u8));
    /// TCP: waits for connections.
    pub const LISTENING: Self = Self(1 << State::Listen as u8);
    /// UDP: takes datagrams from anybody.
    pub const UNCONNECTED: Self = Self(1 << State::Closed as u8);
}

/// A TCP or UDP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InetSocket {
    /// TCP or UDP.
    pub transport: Transport,
    /// The end at this host; an IPv4 address also if the socket is an IPv6 one.
    pub local: SocketAddr,
    /// The other end; unspecified if there is none.
    pub peer: SocketAddr,
    /// What it is doing.
    pub state: State,
    /// Whose it is; 0 if nobody has it any more or yet.
    pub uid: u32,
    /// Its number in `/proc/PID/fd`; 0 if no process has it.
    pub inode: u32,
    /// What tells it from another socket that later has the same ends.
    pub cookie: u64,
    /// The family of the socket itself: an IPv6 one may have IPv4 addresses.
    family: Family,
    /// How the kernel wants it to be named.
    id: [u8; ID_BYTES],
}

/// The sockets of a network namespace.
#[derive(Debug)]
pub struct SockDiag {
    channel: Channel,
}

impl SockDiag {
    /// Opens a socket to ask with.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { channel: Channel::open(Subsystem::SockDiag)? })
    }

    /// The TCP sockets of both families in one of these states, whose local port lies in one of
    /// these ranges. Connections of which only the first packet was seen are among them.
    pub fn tcp_sockets(
        &mut self,
        states: States,
        ports: &[RangeInclusive<u16>],
    ) -> Result<Vec<InetSocket>, NetlinkError> {
        self.sockets(Transport::Tcp, states, ports)
    }

    /// The UDP sockets of both families, likewise.
    pub fn udp_sockets(
        &mut self,
        states: States,
        ports: &[RangeInclusive<u16>],
    ) -> Result<Vec<InetSocket>, NetlinkError> {
        self.sockets(Transport::Udp, states, ports)
    }

    fn sockets(
        &mut self,
        transport: Transport,
        states: States,
        ports: &[RangeInclusive<u16>],
    ) -> Result<Vec<InetSocket>, NetlinkError> {
        // The kernel goes through its whole table, but only these are copied. Without a filter,
        // where one would be too long, all are.
        let program = filter::program(ports);
        let mut sockets = Vec::new();
        for family in [Family::V4, Family::V6] {
            sockets.extend(self.channel.dump(
                &Doing("list the sockets of protocol", Some(transport.as_str())),
                Head(LIST, 0),
                |writer| {
                    write_request(writer, family, transport, states, &[0; ID_BYTES]);
                    if let Some(program) = &program {
                        writer.attribute(BYTECODE, program);
                    }
                },
                |message, found| found.extend(read_socket(transport, &message)),
            )?);
        }
        let wanted =
            |socket: &InetSocket| ports.iter().any(|range| range.contains(&socket.local.port()));
        sockets.retain(wanted);
        Ok(sockets)
    }

    /// Ends a socket: its program gets an error (`ECONNABORTED`), a TCP peer a reset. Whether it
    /// was still there: another socket that has the same ends by now is left alone.
    ///
    /// A kernel without `CONFIG_INET_DIAG_DESTROY` says [`Reason::Unsupported`].
    pub fn destroy(&mut self, socket: &InetSocket) -> Result<bool, NetlinkError> {
        let ended = self.channel.tell(
            &Doing("end a connection of protocol", Some(socket.transport.as_str())),
            Head(DESTROY, 0),
            |writer| {
                write_request(writer, socket.family, socket.transport, States::ALL, &socket.id);
            },
        );
        match ended {
            Ok(()) => Ok(true),
            Err(error) if error.reason() == Some(Reason::Missing) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// `struct inet_diag_req_v2`
fn write_request(
    writer: &mut Writer,
    family: Family,
    transport: Transport,
    States(states): States,
    id: &[u8; ID_BYTES],
) {
    writer.raw(&[family.number(), protocol_number(transport), 0, 0]);
    writer.raw(&states.to_ne_bytes());
    writer.raw(id);
}

/// `struct inet_diag_msg`
fn read_socket(transport: Transport, message: &Message<'_>) -> Option<InetSocket> {
    let ([family, state, _timer, _retransmissions], rest) = message.payload.split_first_chunk()?;
    let (id, rest) = rest.split_first_chunk::<ID_BYTES>()?;
    // How long it lasts, and how full its queues are.
    let (_, rest) = rest.split_first_chunk::<12>()?;
    let (uid, rest) = rest.split_first_chunk()?;
    let (inode, _) = rest.split_first_chunk()?;

    let family = Family::from_number(*family)?;
    let (local_port, rest) = id.split_first_chunk()?;
    let (peer_port, rest) = rest.split_first_chunk()?;
    let (local, rest) = rest.split_first_chunk::<16>()?;
    let (peer, rest) = rest.split_first_chunk::<16>()?;
    let (_interface, cookie) = rest.split_first_chunk::<4>()?;
    let end = |address, port: &[u8; 2]| {
        Some(SocketAddr::new(read_address(family, address)?, u16::from_be_bytes(*port)))
    };
    Some(InetSocket {
        transport,
        local: end(local, local_port)?,
        peer: end(peer, peer_port)?,
        state: State::from_number(*state)?,
        uid: u32::from_ne_bytes(*uid),
        inode: u32::from_ne_bytes(*inode),
        cookie: u64::from_ne_bytes(cookie.try_into().ok()?),
        family,
        id: *id,
    })
}

fn read_address(family: Family, bytes: &[u8; 16]) -> Option<IpAddr> {
    Some(match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from(*bytes.first_chunk::<4>()?)),
        Family::V6 => IpAddr::V6(Ipv6Addr::from(*bytes)).to_canonical(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn a_socket_is_read() {
        let payload = [
            // AF_INET6, established
            [10, 1, 0, 0].as_slice(),
            &[0, 22, 0xd4, 0x31],
            &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 2],
            &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1],
            &[0, 0, 0, 0],
            &[7, 0, 0, 0, 1, 0, 0, 0],
            &[0; 12],
            &[0xe8, 3, 0, 0],
            &[0x39, 0x30, 0, 0],
        ]
        .concat();
        let message = Message { kind: LIST, flags: 0, sequence: 1, payload: &payload };
        let socket = read_socket(Transport::Tcp, &message).unwrap();
        assert_eq!(socket.local.to_string(), "192.0.2.2:22");
        assert_eq!(socket.peer.to_string(), "192.0.2.1:54321");
        assert_eq!((socket.state, socket.uid), (State::Established, 1000));
        assert_eq!((socket.inode, socket.cookie), (12345, 0x1_0000_0007));
        assert_eq!(socket.family, Family::V6);

        for length in 0..payload.len() {
            let message = Message { payload: &payload[..length], ..message };
            assert_eq!(read_socket(Transport::Tcp, &message), None);
        }
    }

    #[test]
    fn the_sets_of_states_hold_what_their_names_say() {
        let has = |States(set): States, state: State| set & (1 << state as u8) != 0;
        for state in State::ALL {
            assert!(has(States::ALL, state));
            let idle = matches!(state, State::Listen | State::Closed);
            assert_eq!(has(States::WITH_PEER, state), !idle, "{state:?}");
            assert_eq!(State::from_number(state as u8), Some(state));
        }
        assert!(has(States::TALKING, State::CloseWait) && !has(States::TALKING, State::TimeWait));
    }

    proptest! {
        #[test]
        fn any_answer_is_read_without_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let message = Message { kind: LIST, flags: 0, sequence: 1, payload: &payload };
            let _ = read_socket(Transport::Udp, &message);
        }
    }
}
