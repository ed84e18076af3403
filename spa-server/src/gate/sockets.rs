//! Which sockets this host has, from the kernel's tables under `/proc/net`.

use super::GateError;
use super::types::{BusyKnockPort, Connection, Family, Guarded};
use spa_proto::{Port, Transport};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;

/// The tables of the network namespace of *this thread*: `/proc/net` is that of the process's
/// first one.
const TABLES: [(Transport, &str); 4] = [
    (Transport::Tcp, "/proc/thread-self/net/tcp"),
    (Transport::Tcp, "/proc/thread-self/net/tcp6"),
    (Transport::Udp, "/proc/thread-self/net/udp"),
    (Transport::Udp, "/proc/thread-self/net/udp6"),
];

/// `ESTABLISHED` and `CLOSE_WAIT` (linux/include/net/tcp_states.h): the peer still expects this
/// host to answer. A connected UDP socket is in the first.
const TALKING: [u8; 2] = [0x01, 0x08];

/// One line of a socket table. Addresses that are v4-mapped are IPv4 addresses here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Socket {
    /// TCP or UDP.
    pub transport: Transport,
    /// The end at this host.
    pub local: SocketAddr,
    /// The other end; unspecified if there is none.
    pub peer: SocketAddr,
    state: u8,
}

/// All sockets of the network namespace of this thread.
pub fn read() -> Result<Vec<Socket>, GateError> {
    let mut sockets = Vec::new();
    for (transport, path) in TABLES {
        match fs::read_to_string(path) {
            Ok(text) => sockets.extend(parse(transport, &text)),
            // A kernel without IPv6 has no table for it.
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.ends_with('6') => {}
            Err(source) => return Err(GateError::Read { path, source }),
        }
    }
    Ok(sockets)
}

/// Whether this kernel speaks IPv6 at all.
pub fn ipv6_is_there() -> bool {
    fs::exists("/proc/thread-self/net/if_inet6").unwrap_or(true)
}

/// Reads one table. Lines that make no sense are skipped: the first is a heading.
pub fn parse(transport: Transport, text: &str) -> Vec<Socket> {
    text.lines().filter_map(|line| parse_line(transport, line)).collect()
}

fn parse_line(transport: Transport, line: &str) -> Option<Socket> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let local = parse_end(words.next()?)?;
    let peer = parse_end(words.next()?)?;
    let state = u8::from_str_radix(words.next()?, 16).ok()?;
    Some(Socket { transport, local, peer, state })
}

/// `0100007F:0016`: words of 32 bits as this machine holds them in memory, then the port.
fn parse_end(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let address: IpAddr = match address.len() {
        8 => Ipv4Addr::from(parse_word(address)?).into(),
        32 => {
            let mut bytes = [0; 16];
            for (at, four) in bytes.chunks_exact_mut(4).enumerate() {
                four.copy_from_slice(&parse_word(address.get(at * 8..at * 8 + 8)?)?);
            }
            IpAddr::from(Ipv6Addr::from(bytes)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(address, port))
}

fn parse_word(text: &str) -> Option<[u8; 4]> {
    u32::from_str_radix(text, 16).ok().map(u32::to_ne_bytes)
}

/// The established connections to guarded ports, loopback aside, which the gate never judges.
pub fn established(sockets: &[Socket], guarded: &[Guarded]) -> Vec<Connection> {
    let is_guarded = |socket: &Socket| {
        NonZeroU16::new(socket.local.port()).is_some_and(|number| {
            let port = Port { transport: socket.transport, number };
            guarded.iter().any(|guarded| guarded.ports.contains(port))
        })
    };
    let mut found: Vec<_> = sockets
        .iter()
        .filter(|socket| TALKING.contains(&socket.state) && !socket.peer.ip().is_unspecified())
        .filter(|socket| !socket.local.ip().is_loopback() && is_guarded(socket))
        .map(|&Socket { transport, local, peer, .. }| Connection { transport, peer, local })
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// The knock ports on which a real service listens for other hosts.
///
/// A socket on the IPv6 wildcard address may serve IPv4 as well; the tables don't tell.
pub fn busy_knock_ports(sockets: &[Socket], knock_ports: &[u16]) -> Vec<BusyKnockPort> {
    let mut busy: Vec<BusyKnockPort> = Vec::new();
    for socket in sockets {
        let port = socket.local.port();
        let listens = socket.transport == Transport::Udp
            && !TALKING.contains(&socket.state)
            && !socket.local.ip().is_loopback()
            && knock_ports.contains(&port);
        if !listens {
            continue;
        }
        let everywhere = socket.local.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let families =
            Family::ALL.into_iter().filter(|f| everywhere || *f == Family::of(socket.local.ip()));
        for family in families {
            if !busy.iter().any(|found| found.port == port && found.family == family) {
                busy.push(BusyKnockPort { port, family, listener: socket.local });
            }
        }
    }
    busy.sort_unstable();
    busy
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0
   1: 020200C0:0016 010200C0:D431 01 00000000:00000000 02:000A0000 00000000     0        0 2 2 0
   2: 0100007F:0016 0100007F:D432 01 00000000:00000000 02:000A0000 00000000     0        0 3 2 0
   3: 020200C0:0050 010200C0:D433 01 00000000:00000000 02:000A0000 00000000     0        0 4 2 0
   4: 020200C0:0016 010200C0:D434 08 00000000:00000000 02:000A0000 00000000     0        0 5 2 0
   5: 020200C0:0016 010200C0:D435 06 00000000:00000000 02:000A0000 00000000     0        0 0 2 0
";
    const TCP6: &str = "\
  sl  local_address                         remote_address                        st
   0: 0000000000000000FFFF0000020200C0:0016 0000000000000000FFFF0000010200C0:D431 01 0
   1: B80D0120000000000000000002000000:0016 B80D0120000000000000000001000000:D436 01 0
   2: B80D0120000000000000000002000000:0016 short:D436 01 0
";

    fn ssh() -> Vec<Guarded> {
        vec![Guarded::plain("tcp/22".parse().unwrap())]
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn connections_to_guarded_ports_are_found_once_each() {
        let mut sockets = parse(Transport::Tcp, TCP);
        sockets.extend(parse(Transport::Tcp, TCP6));
        let found: Vec<_> = established(&sockets, &ssh())
            .into_iter()
            .map(|c| format!("{} {} {}", c.transport, c.peer, c.local))
            .collect();
        assert_eq!(
            found,
            [
                "tcp 192.0.2.1:54321 192.0.2.2:22",
                "tcp 192.0.2.1:54324 192.0.2.2:22",
                "tcp [2001:db8::1]:54326 [2001:db8::2]:22",
            ]
        );
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn only_what_listens_for_other_hosts_keeps_a_knock_port() {
        let udp = "\
  sl  local_address rem_address   st
   0: 3500007F:0035 00000000:0000 07
   1: 020200C0:01BB 00000000:0000 07
   2: 020200C0:F2F9 010200C0:0035 01
";
        let udp6 = "\
  sl
   0: 00000000000000000000000000000000:0035 00000000000000000000000000000000:0000 07
";
        let sockets = parse(Transport::Udp, udp);
        let busy = |sockets: &[Socket]| {
            busy_knock_ports(sockets, &[53, 443, 62201])
                .iter()
                .map(|b| format!("{} {} {}", b.port, b.family, b.listener))
                .collect::<Vec<_>>()
        };
        assert_eq!(busy(&sockets), ["443 IPv4 192.0.2.2:443"]);
        assert_eq!(busy(&parse(Transport::Udp, udp6)), ["53 IPv4 [::]:53", "53 IPv6 [::]:53"]);
    }

    #[test]
    fn the_tables_of_this_machine_are_read() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let local = socket.local_addr().unwrap();
        assert!(read().unwrap().iter().any(|found| found.local == local));
    }
}
