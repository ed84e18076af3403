//! A server that talks without being asked, and those who listen to it: a connection is over only
//! when neither end hears the other.

use crate::lab::Host;
use crate::wait::{DEADLINE, eventually, uninterrupted};
use anyhow::{Context, Result, bail, ensure};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// It talks this often.
const EVERY: Duration = Duration::from_millis(50);

/// A server that says something to each peer every 50 ms, from the moment that it heard of it.
pub struct Talker {
    stop: Arc<AtomicBool>,
    heard: Arc<AtomicU64>,
    lost: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Talker {
    /// Over TCP, to whoever connects.
    pub fn tcp(host: &Host, port: u16) -> Result<Self> {
        let listener = host.inside(|| {
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
                .with_context(|| format!("cannot listen on tcp/{port}"))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })?;
        Ok(Self::run(move |talker| {
            let mut streams: Vec<TcpStream> = Vec::new();
            while !talker.stop.load(Ordering::Relaxed) {
                while let Ok((stream, _)) = listener.accept() {
                    if stream.set_nonblocking(true).is_ok() {
                        streams.push(stream);
                    }
                }
                streams.retain_mut(|stream| {
                    let lives = talker.hear(stream) && talks(stream);
                    if !lives {
                        talker.lost.fetch_add(1, Ordering::Relaxed);
                    }
                    lives
                });
                thread::sleep(EVERY);
            }
        }))
    }

    /// Over UDP, to whoever has sent something once.
    pub fn udp(host: &Host, port: u16) -> Result<Self> {
        let socket = host.inside(|| {
            let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))
                .with_context(|| format!("cannot bind udp/{port}"))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })?;
        Ok(Self::run(move |talker| {
            let mut peers: Vec<SocketAddr> = Vec::new();
            while !talker.stop.load(Ordering::Relaxed) {
                while let Ok((_, peer)) = socket.recv_from(&mut [0; 64]) {
                    talker.heard.fetch_add(1, Ordering::Relaxed);
                    if !peers.contains(&peer) {
                        peers.push(peer);
                    }
                }
                for peer in &peers {
                    // A refusal is no reason to stop.
                    let _ = socket.send_to(b"tick", peer);
                }
                thread::sleep(EVERY);
            }
        }))
    }

    /// How often it has heard something.
    pub fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    /// Waits until so many of its TCP connections have broken.
    pub fn await_lost(&self, connections: u64) -> Result<()> {
        eventually("the server is to lose connections", || {
            Ok((self.lost.load(Ordering::Relaxed) >= connections).then_some(()))
        })
    }

    fn run(work: impl FnOnce(&Self) + Send + 'static) -> Self {
        let new = |thread| Self {
            stop: Arc::default(),
            heard: Arc::default(),
            lost: Arc::default(),
            thread,
        };
        let mut talker = new(None);
        let inner = Self {
            stop: Arc::clone(&talker.stop),
            heard: Arc::clone(&talker.heard),
            lost: Arc::clone(&talker.lost),
            thread: None,
        };
        talker.thread = Some(thread::spawn(move || work(&inner)));
        talker
    }

    /// Takes what has come; whether the connection lives.
    fn hear(&self, stream: &mut TcpStream) -> bool {
        match stream.read(&mut [0; 1024]) {
            Ok(0) => false,
            Ok(_) => {
                self.heard.fetch_add(1, Ordering::Relaxed);
                true
            }
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        }
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.stop.store(true, Ordering::Relaxed);
            let _ = thread.join();
        }
    }
}

fn talks(stream: &mut TcpStream) -> bool {
    // When nobody takes it any more, it goes on waiting, as real servers do.
    stream.write_all(b"t").map_or_else(|error| error.kind() == ErrorKind::WouldBlock, |()| true)
}

/// The other end of a conversation with a [`Talker`].
pub enum Hearer {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over UDP.
    Udp(UdpSocket),
}

impl Hearer {
    /// Connects, and hears it.
    pub fn tcp(host: &Host, to: SocketAddr) -> Result<Self> {
        let Ok(stream) = host.tcp_connect(to)? else { bail!("{to} is not open") };
        let mut hearer = Self::Tcp(stream);
        hearer.ensure_hears()?;
        Ok(hearer)
    }

    /// Sends a datagram, and hears it.
    pub fn udp(host: &Host, to: SocketAddr) -> Result<Self> {
        let socket = host.inside(|| {
            let socket = UdpSocket::bind((if to.is_ipv4() { "0.0.0.0" } else { "::" }, 0))?;
            socket.connect(to)?;
            socket.send(b"hello")?;
            Ok(socket)
        })?;
        let mut hearer = Self::Udp(socket);
        hearer.ensure_hears()?;
        Ok(hearer)
    }

    /// That what is said from now on is heard.
    pub fn ensure_hears(&mut self) -> Result<()> {
        self.drain()?;
        ensure!(self.hears_within(DEADLINE)?, "nothing is heard for {DEADLINE:?}");
        Ok(())
    }

    /// Waits until nothing was heard for ten times the time between two words.
    pub fn await_silence(&mut self) -> Result<()> {
        let began = Instant::now();
        while began.elapsed() < DEADLINE {
            if !self.hears_within(EVERY * 10)? {
                return Ok(());
            }
        }
        bail!("it is still heard after {DEADLINE:?}")
    }

    /// Says something, whether anybody hears it or not.
    pub fn say(&mut self) {
        let _ = match self {
            Self::Tcp(stream) => stream.write(b"hello"),
            Self::Udp(socket) => socket.send(b"hello"),
        };
    }

    fn drain(&mut self) -> Result<()> {
        while self.hears_within(Duration::from_millis(1))? {}
        Ok(())
    }

    /// Whether anything comes in that time; an end is nothing.
    fn hears_within(&mut self, time: Duration) -> Result<bool> {
        let mut buffer = [0; 1024];
        let heard = match self {
            Self::Tcp(stream) => {
                stream.set_read_timeout(Some(time))?;
                uninterrupted(|| stream.read(&mut buffer))
            }
            Self::Udp(socket) => {
                socket.set_read_timeout(Some(time))?;
                uninterrupted(|| socket.recv(&mut buffer))
            }
        };
        match heard {
            Ok(length) => Ok(length > 0),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock
                | ErrorKind::TimedOut
                | ErrorKind::ConnectionReset
                | ErrorKind::ConnectionRefused => Ok(false),
                _ => Err(error.into()),
            },
        }
    }
}
