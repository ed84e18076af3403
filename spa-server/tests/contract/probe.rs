//! What a client sees of a port, and connections that it keeps.

use crate::lab::{BOTH, SERVER};
use crate::services::{BETWEEN_WORDS, End, TALK};
use crate::space::Space;
use spa_proto::{Port, Transport};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpSocket;

/// How long is waited before it is said that nothing answers. Every test that sees nothing has
/// seen before, or sees beside it, that this path answers within milliseconds.
pub(crate) const PATIENCE: Duration = Duration::from_millis(700);
/// How long is waited for what must come.
pub(crate) const LONG: Duration = Duration::from_secs(15);
/// How often a datagram is sent again that nobody has answered.
const AGAIN: Duration = Duration::from_secs(1);

/// What is to be seen of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// The server's service of that port answers.
    Open,
    /// Another service answers: that of this machine, at this port.
    At(&'static str, u16),
    /// It is closed.
    Refused,
    /// Nothing.
    Silent,
}

/// One look at one port.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Probe {
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    pub(crate) port: Port,
    pub(crate) expected: Seen,
}

/// A look of somebody at a port of the server, over both families.
pub(crate) fn both(who: [&str; 2], port: &str, expected: Seen) -> [Probe; 2] {
    BOTH.map(|family| probe(who[family], SERVER[family], port, expected))
}

/// A look at any address.
pub(crate) fn probe(from: &str, to: &str, port: &str, expected: Seen) -> Probe {
    let (from, to, port) = (from.parse().unwrap(), to.parse().unwrap(), port.parse().unwrap());
    Probe { from, to, port, expected }
}

/// Makes all looks at once, from one machine; those that see something else than what they expect,
/// with what they see.
pub(crate) fn misjudged(space: &Space, probes: &[Probe]) -> Vec<String> {
    let look = async {
        let mut looks = tokio::task::JoinSet::new();
        for probe in probes.iter().copied() {
            looks.spawn(async move { (probe, probe.look().await) });
        }
        looks.join_all().await
    };
    let seen = space.inside(|| {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(look)
    });
    let wrong = seen.into_iter().filter(|(probe, seen)| !probe.agrees(seen));
    let mut wrong: Vec<_> = wrong
        .map(|(probe, seen)| {
            let Probe { from, to, port, expected } = probe;
            format!("{from} -> {to} {port} should be {expected:?}, and is {seen:?}")
        })
        .collect();
    wrong.sort();
    wrong
}

impl Probe {
    /// The line of the service that answers, or how it is silent.
    async fn look(self) -> Result<String, Seen> {
        let patience = if self.expected == Seen::Silent { PATIENCE } else { LONG };
        let look = async {
            match self.port.transport {
                Transport::Tcp => self.look_tcp().await,
                Transport::Udp => self.look_udp().await,
            }
        };
        match tokio::time::timeout(patience, look).await {
            Err(_) => Err(Seen::Silent),
            Ok(Ok(line)) => Ok(line),
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => Err(Seen::Refused),
            Ok(Err(error)) => panic!("{self:?}: {error}"),
        }
    }

    async fn look_tcp(self) -> std::io::Result<String> {
        let socket = if self.from.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.bind((self.from, 0).into())?;
        let mut stream = socket.connect((self.to, self.port.number.get()).into()).await?;
        let mut line = [0; 128];
        let count = stream.read(&mut line).await?;
        Ok(String::from_utf8_lossy(&line[..count]).into_owned())
    }

    async fn look_udp(self) -> std::io::Result<String> {
        let socket = tokio::net::UdpSocket::from_std(fresh_socket(self.from))?;
        socket.connect((self.to, self.port.number.get())).await?;
        let mut line = [0; 128];
        loop {
            socket.send(b"anybody there?").await?;
            if let Ok(received) = tokio::time::timeout(AGAIN, socket.recv(&mut line)).await {
                return Ok(String::from_utf8_lossy(&line[..received?]).into_owned());
            }
        }
    }

    fn agrees(self, seen: &Result<String, Seen>) -> bool {
        let begins = |place, port| seen.as_ref().is_ok_and(|s| is_line_of(s, place, port));
        match self.expected {
            Seen::Open => begins("server", self.port.number.get()),
            Seen::At(place, port) => begins(place, port),
            expected @ (Seen::Refused | Seen::Silent) => *seen == Err(expected),
        }
    }
}

fn is_line_of(line: &str, place: &str, port: u16) -> bool {
    line.starts_with(&format!("{place} {port} "))
}

/// A TCP connection to a service.
#[derive(Debug)]
pub(crate) struct Session {
    stream: TcpStream,
    /// What the service said of itself and us.
    pub(crate) line: String,
    pub(crate) near: SocketAddr,
    pub(crate) far: SocketAddr,
}

impl Session {
    /// Connects, and reads the service's line.
    pub(crate) fn open(space: &Space, from: SocketAddr, to: SocketAddr) -> std::io::Result<Self> {
        let connect = async {
            let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            socket.set_reuseaddr(true)?;
            socket.bind(from)?;
            tokio::time::timeout(LONG, socket.connect(to)).await?
        };
        let stream = space.inside(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(connect).and_then(tokio::net::TcpStream::into_std)
        })?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(LONG))?;
        let mut session = Self { near: stream.local_addr()?, far: to, stream, line: String::new() };
        session.line = String::from_utf8_lossy(&session.read()?).into_owned();
        Ok(session)
    }

    fn read(&mut self) -> std::io::Result<Vec<u8>> {
        let mut heard = [0; 256];
        let count = uninterrupted(|| self.stream.read(&mut heard))?;
        Ok(heard[..count].to_vec())
    }

    /// Whether the service repeats what it hears.
    pub(crate) fn lives(&mut self) -> bool {
        let word = b"still there?";
        if self.stream.write_all(word).is_err() {
            return false;
        }
        let mut heard = Vec::new();
        while !heard.windows(word.len()).any(|words| words == word) {
            match self.read() {
                Ok(more) if !more.is_empty() => heard.extend(more),
                _ => return false,
            }
        }
        true
    }

    /// Has the service talk by itself from now on.
    pub(crate) fn let_it_talk(&mut self) {
        self.stream.write_all(TALK).unwrap();
        self.read().unwrap();
    }

    /// Says something now and then until the connection ends, and tells how.
    pub(crate) fn end(&mut self) -> Option<End> {
        self.stream.set_read_timeout(Some(BETWEEN_WORDS)).unwrap();
        let began = Instant::now();
        while began.elapsed() < LONG {
            let outcome = self.stream.write_all(b"x").and_then(|()| self.read());
            match outcome {
                Ok(heard) if heard.is_empty() => return Some(End::Closed),
                Ok(_) => {}
                Err(error) if is_timeout(&error) => {}
                Err(error) => {
                    let reset = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
                    assert!(reset.contains(&error.kind()), "{error}");
                    return Some(End::Reset);
                }
            }
        }
        None
    }
}

/// A UDP socket that always has the same peer.
#[derive(Debug)]
pub(crate) struct Flow {
    socket: UdpSocket,
    pub(crate) near: SocketAddr,
    pub(crate) far: SocketAddr,
}

impl Flow {
    pub(crate) fn new(space: &Space, from: IpAddr, to: SocketAddr) -> Self {
        let socket = space.inside(|| fresh_socket(from));
        socket.set_nonblocking(false).unwrap();
        socket.connect(to).unwrap();
        Self { near: socket.local_addr().unwrap(), far: to, socket }
    }

    pub(crate) fn send(&self, word: &[u8]) {
        // The error may be that of the datagram before.
        if self.socket.send(word).is_err() {
            self.socket.send(word).unwrap();
        }
    }

    /// What comes within this time.
    pub(crate) fn receive(&self, patience: Duration) -> Option<String> {
        let mut line = [0; 128];
        self.socket.set_read_timeout(Some(patience)).unwrap();
        match uninterrupted(|| self.socket.recv(&mut line)) {
            Ok(count) => Some(String::from_utf8_lossy(&line[..count]).into_owned()),
            Err(error) if is_timeout(&error) => None,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Takes away what has come already.
    pub(crate) fn drain(&self) {
        self.socket.set_nonblocking(true).unwrap();
        while self.socket.recv(&mut [0; 128]).is_ok() {}
        self.socket.set_nonblocking(false).unwrap();
    }

    /// Whether it is answered: for what must be.
    pub(crate) fn answers(&self) -> bool {
        self.drain();
        self.send(b"anybody there?");
        let began = Instant::now();
        // One that talks says other things, too.
        while let Some(line) = self.receive(LONG.saturating_sub(began.elapsed()).max(AGAIN)) {
            if line.ends_with('\n') {
                return true;
            }
            assert!(began.elapsed() < LONG, "it talks, and doesn't answer");
        }
        false
    }

    /// Whether it isn't: for what must not be.
    pub(crate) fn is_silent(&self) -> bool {
        self.drain();
        self.send(b"anybody there?");
        self.receive(PATIENCE).is_none()
    }
}

/// A socket for datagrams with a port that none of this process has had before.
///
/// Connection tracking remembers a flow for minutes after its socket is closed, and by rights it is
/// established that long. The kernel gives a port again now and then: what then is answered, or
/// seen further on, is that flow, and no grant has let it in.
fn fresh_socket(from: IpAddr) -> UdpSocket {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const PORTS: RangeInclusive<u16> = 32_768..=60_999;
    for _ in PORTS {
        let port =
            PORTS.start() + NEXT.fetch_add(1, Ordering::Relaxed) % (PORTS.end() - PORTS.start());
        match UdpSocket::bind((from, port)) {
            Ok(socket) => {
                socket.set_nonblocking(true).unwrap();
                return socket;
            }
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("no port is free");
}

/// Waits until something is so; fails after a generous time.
#[track_caller]
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < LONG, "still not: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A read that has a time limit is interrupted when the machine was frozen for a moment (signal(7)),
/// and by children that end elsewhere in this process.
pub(crate) fn uninterrupted<T>(mut read: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    loop {
        match read() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
