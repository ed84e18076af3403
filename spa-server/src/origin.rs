//! Where a command was given from: over a connection that came through the gate, over one that was
//! there before, or from the machine itself. Told by the processes above this one.

use crate::clock::BootMicros;
use crate::gate::Guarded;
use crate::netlink::NetlinkError;
use crate::netlink::sock_diag::{InetSocket, SockDiag, States};
use crate::service::Target;
use spa_proto::{Port, Transport};
use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU16;

/// More processes are not above one another.
const DEEPEST: usize = 256;
/// What `/proc/PID/stat` counts times in: `USER_HZ`, 100 on every platform that there is.
const TICK_MICROS: u64 = 10_000;
/// The session processes of OpenSSH, of whatever version, begin with this.
const SSHD: &str = "sshd";

/// A process above this one, and what tells where its orders come from.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ancestor {
    name: String,
    /// To a hundredth of a second, rounded down.
    started: BootMicros,
    connections: Vec<TcpConnection>,
}

/// A TCP connection of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TcpConnection {
    inode: u32,
    local: SocketAddr,
    peer: SocketAddr,
}

/// Where a command was given from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Over a connection from another host to a guarded port, or to sshd.
    Connection {
        /// The other end.
        peer: SocketAddr,
        /// When the process began that serves it; to a hundredth of a second.
        since: BootMicros,
    },
    /// Over a connection from this host itself, which goes through no gate.
    ThisHost,
    /// Over no connection that could be found: the console, or a terminal that outlives its
    /// connections, as tmux has.
    Console,
}

/// Why it could not be told.
#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    /// The processes above this one could not be looked at.
    #[error("cannot tell where this command was given: /proc can't be read; run it as root")]
    Proc(#[from] io::Error),
    /// The sockets could not be looked at.
    #[error("cannot tell where this command was given")]
    Sockets(#[from] NetlinkError),
}

impl Origin {
    /// That of this process; `guarded` is what the gate guards.
    pub fn of_this_process(guarded: &[Guarded]) -> Result<Self, OriginError> {
        Ok(judge(&ancestors()?, guarded))
    }
}

/// The nearest connection counts: what is above it is older still.
fn judge(ancestors: &[Ancestor], guarded: &[Guarded]) -> Origin {
    let mut origin = Origin::Console;
    for ancestor in ancestors {
        let is_sshd = ancestor.name.starts_with(SSHD);
        for socket in &ancestor.connections {
            if !is_sshd && !is_guarded(socket.local, guarded) {
                continue;
            }
            if socket.peer.ip().is_loopback() || socket.peer.ip() == socket.local.ip() {
                origin = Origin::ThisHost;
                continue;
            }
            // A connection is as old as the oldest process that has it.
            let since = ancestors
                .iter()
                .filter(|other| other.connections.iter().any(|of| of.inode == socket.inode))
                .map(|other| other.started)
                .min()
                .unwrap_or(ancestor.started);
            return Origin::Connection { peer: socket.peer, since };
        }
        if origin != Origin::Console {
            return origin;
        }
    }
    // Its socket may be in a place that can't be seen from here.
    let has_sshd = ancestors.iter().any(|ancestor| ancestor.name.starts_with(SSHD));
    if has_sshd { Origin::ThisHost } else { Origin::Console }
}

fn is_guarded(local: SocketAddr, guarded: &[Guarded]) -> bool {
    let Some(number) = NonZeroU16::new(local.port()) else { return false };
    let port = Port { transport: Transport::Tcp, number };
    guarded.iter().any(|guarded| {
        guarded.ports.contains(port)
            || (guarded.ports.transport() == Transport::Tcp
                && guarded.target == Target::LocalPort(number))
    })
}

/// The processes above this one, the nearest first.
fn ancestors() -> Result<Vec<Ancestor>, OriginError> {
    let connections = connections()?;
    let mut ancestors = Vec::new();
    let mut pid = stat(std::process::id())?.parent;
    while pid != 0 && ancestors.len() < DEEPEST {
        let stat = stat(pid)?;
        let connections = inodes(pid).filter_map(|inode| connections.get(&inode).copied());
        let Stat { name, parent, started } = stat;
        ancestors.push(Ancestor { name, started, connections: connections.collect() });
        pid = parent;
    }
    Ok(ancestors)
}

/// All TCP connections of this host, by their inodes.
fn connections() -> Result<HashMap<u32, TcpConnection>, NetlinkError> {
    let sockets = SockDiag::open()?.tcp_sockets(States::TALKING, &[1..=u16::MAX])?;
    let connection =
        |InetSocket { inode, local, peer, .. }| (inode, TcpConnection { inode, local, peer });
    Ok(sockets.into_iter().map(connection).collect())
}

struct Stat {
    name: String,
    parent: u32,
    started: BootMicros,
}

fn stat(pid: u32) -> io::Result<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_stat(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// proc(5): `pid (name) state parent … started …`; the name may hold anything.
fn parse_stat(text: &str) -> Option<Stat> {
    let (before, after) = text.rsplit_once(')')?;
    let (_, name) = before.split_once('(')?;
    let mut words = after.split_ascii_whitespace().skip(1);
    let parent = words.next()?.parse().ok()?;
    // The 22nd field; the parent is the 4th.
    let ticks: u64 = words.nth(17)?.parse().ok()?;
    let started = BootMicros(ticks.saturating_mul(TICK_MICROS));
    Some(Stat { name: name.to_owned(), parent, started })
}

/// The numbers of the sockets that a process has; none of a process that can't be looked into.
fn inodes(pid: u32) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_is_read_whatever_the_name_is() {
        let tail = "S 41 43 43 34816 43 4194560 1 0 0 0 0 0 0 0 20 0 1 0 123456 0 0";
        for name in ["sshd", "a) b (c", "sshd: root@pts/0"] {
            let stat = parse_stat(&format!("43 ({name}) {tail}\n")).unwrap();
            assert_eq!((stat.name.as_str(), stat.parent), (name, 41));
            assert_eq!(stat.started, BootMicros(1_234_560_000));
        }
        for text in ["", "43 (sshd", "43 (sshd) S", "43 (sshd) S x"] {
            assert!(parse_stat(text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn this_process_began_not_long_ago() {
        let stat = stat(std::process::id()).unwrap();
        let now = BootMicros::now();
        assert!(stat.started <= now && now.since(stat.started).as_secs() < 3600);
        assert!(stat.parent > 0);
    }

    #[test]
    fn the_sockets_of_a_process_are_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let client = std::net::TcpStream::connect(to).unwrap();
        let local = client.local_addr().unwrap();
        let all = connections().unwrap();
        let found = all.values().find(|connection| connection.local == local).unwrap();
        assert_eq!(found.peer, to);
        assert!(inodes(std::process::id()).any(|inode| inode == found.inode));
    }

    mod judged {
        use super::super::*;

        fn socket(local: &str, peer: &str) -> TcpConnection {
            let peer: SocketAddr = peer.parse().unwrap();
            TcpConnection { inode: peer.port().into(), local: local.parse().unwrap(), peer }
        }

        fn ancestor(name: &str, started: u64, connections: &[TcpConnection]) -> Ancestor {
            Ancestor {
                name: name.into(),
                started: BootMicros(started),
                connections: connections.to_vec(),
            }
        }

        fn ssh() -> [Guarded; 1] {
            [Guarded::plain("tcp/22".parse().unwrap())]
        }

        #[test]
        fn the_nearest_connection_counts_and_its_oldest_process() {
            let near = socket("192.0.2.1:22", "198.51.100.7:4000");
            let far = socket("192.0.2.1:22", "198.51.100.7:3000");
            let chain = [
                ancestor("bash", 9, &[]),
                ancestor("sshd", 8, &[near]),
                ancestor("sshd", 7, &[near]),
                ancestor("sshd", 1, &[]),
                ancestor("tmux", 2, &[far]),
            ];
            let peer = "198.51.100.7:4000".parse().unwrap();
            let since = BootMicros(7);
            assert_eq!(judge(&chain, &ssh()), Origin::Connection { peer, since });
        }

        #[test]
        fn only_guarded_ports_and_sshd_count() {
            let outward = socket("192.0.2.1:40000", "198.51.100.7:443");
            let agent = [ancestor("sh", 9, &[]), ancestor("agent", 5, &[outward])];
            assert_eq!(judge(&agent, &ssh()), Origin::Console);
            // sshd on a port that is in no service.
            let other = socket("192.0.2.1:2222", "198.51.100.7:4000");
            let sshd = [ancestor("sshd-session", 5, &[other])];
            assert!(matches!(judge(&sshd, &ssh()), Origin::Connection { .. }));
            let redirected =
                Guarded { target: Target::LocalPort(NonZeroU16::new(2222).unwrap()), ..ssh()[0] };
            let shell = [ancestor("shelld", 5, &[other])];
            assert_eq!(judge(&shell, &ssh()), Origin::Console);
            assert!(matches!(judge(&shell, &[redirected]), Origin::Connection { .. }));
        }

        #[test]
        fn a_connection_of_this_host_with_itself_proves_nothing() {
            for peer in ["127.0.0.1:4000", "192.0.2.1:4000"] {
                let own = socket("192.0.2.1:22", peer);
                assert_eq!(judge(&[ancestor("sshd", 5, &[own])], &ssh()), Origin::ThisHost);
            }
            // Nor does one that can't be found.
            assert_eq!(judge(&[ancestor("sshd", 5, &[])], &ssh()), Origin::ThisHost);
            assert_eq!(judge(&[], &ssh()), Origin::Console);
        }
    }
}
