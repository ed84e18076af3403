//! What listens on the machines of a lab: services that say where they are and whom they see.

use crate::space::Space;
use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::oneshot;
use tokio::task;

/// How often a service that talks says something.
pub(crate) const BETWEEN_WORDS: Duration = Duration::from_millis(50);
/// To a service that has heard this: talk.
pub(crate) const TALK: &[u8] = b"talk";

/// Services over TCP and UDP on one machine, over both families.
///
/// Each one begins with a line that says where it is (`server 22 192.0.2.1:40000`: the machine,
/// its own port, its peer). Over TCP it then repeats what it hears; over UDP it answers each
/// datagram with the line. Asked to, it talks by itself from then on.
#[derive(Debug)]
pub(crate) struct Services {
    seen: Seen,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What the services have seen.
#[derive(Debug, Clone, Default)]
struct Seen {
    /// How a TCP connection of a peer has ended.
    ends: Arc<Mutex<HashMap<SocketAddr, End>>>,
    /// How many datagrams have come, by port and peer.
    datagrams: Arc<Mutex<HashMap<(u16, SocketAddr), usize>>>,
}

/// How a connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The other end closed it.
    Closed,
    /// It was reset.
    Reset,
}

impl Services {
    /// Begins to listen; what is bound is bound when this returns.
    pub(crate) fn start(place: &'static str, space: &Space, tcp: &[u16], udp: &[u16]) -> Self {
        let seen = Seen::default();
        let (stop, stopped) = oneshot::channel();
        let (ready, bound) = std::sync::mpsc::channel();
        let (space, kept, tcp, udp) = (space.clone(), seen.clone(), tcp.to_vec(), udp.to_vec());
        let serve = async move {
            for port in tcp {
                let listener = TcpListener::bind(("::", port)).await.unwrap();
                task::spawn_local(accept(place, port, listener, kept.clone()));
            }
            for port in udp {
                let socket = UdpSocket::bind(("::", port)).await.unwrap();
                task::spawn_local(answer(place, port, Arc::new(socket), kept.clone()));
            }
            ready.send(()).unwrap();
            let _ = stopped.await;
        };
        let thread = thread::spawn(move || {
            space.enter();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            task::LocalSet::new().block_on(&runtime.unwrap(), serve);
        });
        bound.recv().unwrap();
        Self { seen, stop: Some(stop), thread: Some(thread) }
    }

    /// How the connection of a peer has ended, if it has.
    pub(crate) fn end_of(&self, peer: SocketAddr) -> Option<End> {
        self.seen.ends.lock().unwrap().get(&peer).copied()
    }

    /// How many datagrams have come to a port from an address.
    pub(crate) fn datagrams(&self, port: u16, peer: SocketAddr) -> usize {
        self.seen.datagrams.lock().unwrap().get(&(port, peer)).copied().unwrap_or(0)
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(place: &'static str, port: u16, listener: TcpListener, seen: Seen) {
    loop {
        let (stream, peer) = listener.accept().await.unwrap();
        let (peer, seen) = (canonical(peer), seen.clone());
        task::spawn_local(async move {
            let end = converse(place, port, stream, peer).await;
            seen.ends.lock().unwrap().insert(peer, end);
        });
    }
}

async fn converse(place: &str, port: u16, mut stream: TcpStream, peer: SocketAddr) -> End {
    let mut heard = [0; 64];
    let mut talks = false;
    if stream.write_all(banner(place, port, peer).as_bytes()).await.is_err() {
        return End::Reset;
    }
    loop {
        let said = tokio::select! {
            read = stream.read(&mut heard) => match read {
                Ok(0) => return End::Closed,
                Ok(count) => {
                    talks |= &heard[..count] == TALK;
                    stream.write_all(&heard[..count]).await
                }
                Err(error) => Err(error),
            },
            () = tokio::time::sleep(BETWEEN_WORDS), if talks => stream.write_all(b"x").await,
        };
        if let Err(error) = said {
            let known = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
            assert!(known.contains(&error.kind()), "{place} {port}: {error}");
            return End::Reset;
        }
    }
}

async fn answer(place: &'static str, port: u16, socket: Arc<UdpSocket>, seen: Seen) {
    let mut heard = [0; 64];
    loop {
        // An answer that could not be delivered comes back as an error of the next read.
        let Ok((count, peer)) = socket.recv_from(&mut heard).await else { continue };
        *seen.datagrams.lock().unwrap().entry((port, canonical(peer))).or_default() += 1;
        let _ = socket.send_to(banner(place, port, canonical(peer)).as_bytes(), peer).await;
        if &heard[..count] == TALK {
            let socket = Arc::clone(&socket);
            task::spawn_local(async move {
                loop {
                    tokio::time::sleep(BETWEEN_WORDS).await;
                    let _ = socket.send_to(b"x", peer).await;
                }
            });
        }
    }
}

fn banner(place: &str, port: u16, peer: SocketAddr) -> String {
    format!("{place} {port} {peer}\n")
}

/// A socket for both families sees IPv4 addresses mapped.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
