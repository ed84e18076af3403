//! Finding out whether a port opened: TCP connections, and fresh knocks in between.
//!
//! One thread, no runtime: all attempts at all addresses wait together. As soon as one succeeds,
//! the others are dropped before their handshakes end, so that the service sees no more
//! connections than it must.

use crate::knock::{KnockError, Knocker, Sent, plain};
use crate::schedule::{ProbeGaps, knock_at};
use core::fmt;
use core::net::{IpAddr, SocketAddr};
use core::num::NonZeroU16;
use core::time::Duration;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use spa_proto::Item;
use std::collections::VecDeque;
use std::io;
use std::time::Instant;

/// Attempts at one address that wait for an answer at the same time; one more drops the oldest.
const MAX_PENDING: usize = 8;

/// A TCP port to probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The item that it was asked for by.
    pub item: Item,
    /// The port.
    pub port: NonZeroU16,
}

/// What happens while [`until_open`] waits.
#[derive(Debug)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// A port has accepted a connection.
    Opened {
        /// Which one.
        probe: &'a Probe,
        /// At which of the server's addresses.
        address: IpAddr,
        /// How long after the first knock.
        after: Duration,
    },
    /// Not all are open yet, and fresh knocks were sent.
    KnockedAgain {
        /// The datagrams.
        sent: &'a [Sent],
    },
}

/// How a probe ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// What was probed.
    pub probe: Probe,
    /// Where it was open first and how long after the first knock, or what each address did last.
    pub result: Result<(IpAddr, Duration), Vec<(IpAddr, Failure)>>,
}

/// What came of an attempt to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Nothing: the port is filtered, or the host is down.
    NoAnswer,
    /// The host says that nobody listens there.
    Refused,
    /// What the system says.
    Other(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAnswer => f.write_str("no answer"),
            Self::Refused => f.write_str("connection refused"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::TimedOut => Self::NoAnswer,
            _ => Self::Other(plain(&error)),
        }
    }
}

/// Probes until each port of `probes` is open at one of the server's addresses, or `timeout` has
/// passed since the first knock. Knocks when none was sent yet, and again, while a port is
/// closed, after 1, 3, 5 ... seconds.
///
/// # Errors
///
/// When the first knock can't be sent, or the system gives no means to wait.
pub fn until_open(
    knocker: &mut Knocker<'_>,
    probes: &[Probe],
    timeout: Duration,
    mut progress: impl FnMut(Progress<'_>),
) -> Result<Vec<Probed>, KnockError> {
    let mut poll = Poll::new().map_err(KnockError::Wait)?;
    let mut events = Events::with_capacity(64);
    let mut next_token: usize = 0;
    let start = if let Some(start) = knocker.first_sent() {
        start
    } else {
        let start = Instant::now();
        knocker.send()?;
        start
    };
    let mut doors: Vec<Door<'_>> = probes
        .iter()
        .map(|probe| {
            let lines = knocker.sockets().iter().map(|socket| Line::new(*socket, probe.port));
            Door { probe, opened: None, lines: lines.collect() }
        })
        .collect();
    loop {
        let now = start.elapsed();
        if now >= timeout || !knocker.is_wanted() || doors.iter().all(|door| door.opened.is_some())
        {
            break;
        }
        if now >= knock_at(knocker.rounds()) {
            // A failure is not the end: the knock before may open, the network may come back.
            if let Ok(sent) = knocker.send() {
                progress(Progress::KnockedAgain { sent: &sent });
            }
            for line in closed(&mut doors) {
                line.probe_soon(now);
            }
        }
        for line in closed(&mut doors) {
            if now >= line.next {
                line.attempt(now, Token(next_token), &poll);
                next_token = next_token.wrapping_add(1);
            }
        }
        let wake = closed(&mut doors)
            .map(|line| line.next)
            .chain([timeout, knock_at(knocker.rounds())])
            .min()
            .unwrap_or(timeout);
        match poll.poll(&mut events, Some(wake.saturating_sub(start.elapsed()))) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                return Err(KnockError::Wait(error));
            }
            _ => {}
        }
        for event in &events {
            for door in doors.iter_mut().filter(|door| door.opened.is_none()) {
                if let Some(address) = door.answer(event.token()) {
                    let after = start.elapsed();
                    door.open(address, after);
                    progress(Progress::Opened { probe: door.probe, address, after });
                }
            }
        }
    }
    Ok(doors.into_iter().map(Door::end).collect())
}

/// A probe, and the way to it by each address.
struct Door<'a> {
    probe: &'a Probe,
    opened: Option<(IpAddr, Duration)>,
    lines: Vec<Line>,
}

impl Door<'_> {
    /// The address at which the attempt `token` got through.
    fn answer(&mut self, token: Token) -> Option<IpAddr> {
        self.lines.iter_mut().find_map(|line| line.answer(token).then(|| line.to.ip()))
    }

    fn open(&mut self, address: IpAddr, after: Duration) {
        self.opened = Some((address, after));
        self.lines.iter_mut().for_each(|line| line.pending.clear());
    }

    fn end(self) -> Probed {
        let failures = || self.lines.into_iter().map(|line| (line.to.ip(), line.last)).collect();
        Probed { probe: self.probe.clone(), result: self.opened.ok_or_else(failures) }
    }
}

/// All lines that lead to a door not open yet.
fn closed<'d>(doors: &'d mut [Door<'_>]) -> impl Iterator<Item = &'d mut Line> {
    doors.iter_mut().filter(|door| door.opened.is_none()).flat_map(|door| &mut door.lines)
}

/// The attempts at one address. Times are spans since the first knock.
struct Line {
    to: SocketAddr,
    next: Duration,
    gaps: ProbeGaps,
    pending: VecDeque<(Token, TcpStream)>,
    last: Failure,
}

impl Line {
    fn new(mut to: SocketAddr, port: NonZeroU16) -> Self {
        to.set_port(port.get());
        Self {
            to,
            next: Duration::ZERO,
            gaps: ProbeGaps::default(),
            pending: VecDeque::new(),
            last: Failure::NoAnswer,
        }
    }

    fn probe_soon(&mut self, now: Duration) {
        self.next = now;
        self.gaps = ProbeGaps::default();
    }

    fn attempt(&mut self, now: Duration, token: Token, poll: &Poll) {
        self.next = now.saturating_add(self.gaps.next_gap());
        let connected = TcpStream::connect(self.to).and_then(|mut stream| {
            poll.registry().register(&mut stream, token, Interest::WRITABLE)?;
            Ok(stream)
        });
        match connected {
            Ok(stream) => self.pending.push_back((token, stream)),
            Err(error) => self.last = error.into(),
        }
        if self.pending.len() > MAX_PENDING && self.pending.pop_front().is_some() {
            self.last = Failure::NoAnswer;
        }
    }

    /// Whether the attempt `token` is one of this line and got through.
    fn answer(&mut self, token: Token) -> bool {
        let Some(at) = self.pending.iter().position(|(pending, _)| *pending == token) else {
            return false;
        };
        let Some((_, stream)) = self.pending.get(at) else { return false };
        let failure = match stream.take_error() {
            Ok(Some(error)) | Err(error) => error.into(),
            Ok(None) => match (stream.local_addr(), stream.peer_addr()) {
                // A port of this very machine, chosen for the attempt by chance: TCP's
                // simultaneous open with itself.
                (Ok(own), Ok(peer)) if own == peer => Failure::Refused,
                (_, Ok(_)) => return true,
                (_, Err(error)) if error.kind() == io::ErrorKind::NotConnected => return false,
                (_, Err(error)) => error.into(),
            },
        };
        self.last = failure;
        self.pending.remove(at);
        false
    }
}
