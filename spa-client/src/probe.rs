//! Finding out whether a port opened: TCP connections, and fresh knocks in between.
//!
//! One thread, no runtime: all attempts at all addresses wait together. The addresses begin one
//! after the other (RFC 8305). As soon as one attempt succeeds, the others are dropped before
//! their handshakes end: a service sees one connection, and counts no more against the client.

use crate::knock::{KnockError, Knocker, Sent, plain};
use crate::schedule::{FIRST_ATTEMPT, ProbeGaps, address_at, in_turn, knock_at};
use core::fmt;
use core::net::{IpAddr, SocketAddr};
use core::num::NonZeroU16;
use core::time::Duration;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use spa_proto::Item;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Attempts at one address that wait for an answer at the same time; one more drops the oldest,
/// which has then waited for seconds.
const MAX_PENDING: usize = 32;

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
    let start = if let Some(start) = knocker.first_sent() {
        start
    } else {
        knocker.look();
        let start = Instant::now();
        knocker.send()?;
        start
    };
    let wanted = knocker.wanted();
    let wait = Wait {
        start,
        timeout,
        rounds: knocker.rounds(),
        known: Known::Shut,
        wanted: wanted.as_deref(),
    };
    let doors = probes.iter().map(|probe| Door::new(probe, knocker.sockets())).collect();
    let ended = watch(&mut |_| knocker.send(), doors, wait, &mut progress)?;
    Ok(ended.into_iter().map(|door| door.end().0).collect())
}

/// Looks for that long whether the port accepts a connection, and knocks at nobody's.
pub(crate) fn until_open_without_knock(
    probe: &Probe,
    addresses: &[SocketAddr],
    timeout: Duration,
) -> Result<Probed, KnockError> {
    let start = Instant::now();
    let wait = Wait { start, timeout, rounds: 1, known: Known::Shut, wanted: None };
    let door = Door::new(probe, addresses);
    let ended = watch(&mut |_| Ok(Vec::new()), vec![door], wait, &mut |_| {})?;
    let probed = ended.into_iter().map(|door| door.end().0).next();
    Ok(probed.unwrap_or_else(|| Probed { probe: probe.clone(), result: Err(Vec::new()) }))
}

/// How to wait.
#[derive(Clone, Copy)]
pub(crate) struct Wait<'w> {
    /// When the first knock was sent, or would have been.
    pub(crate) start: Instant,
    pub(crate) timeout: Duration,
    /// How many knocks are behind us. With none, each address has its own when it is tried first.
    pub(crate) rounds: u32,
    /// What is thought of the ports.
    pub(crate) known: Known,
    /// Whether anybody still waits.
    pub(crate) wanted: Option<&'w AtomicBool>,
}

/// Whether a port is open before it was knocked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// A knock is on its way.
    Shut,
    /// A knock of before holds.
    Open,
}

/// Sends knocks: to all addresses, or to this one.
pub(crate) type Knock<'k> = dyn FnMut(Option<SocketAddr>) -> Result<Vec<Sent>, KnockError> + 'k;

/// Tries all doors until they are open, or until the time is over.
pub(crate) fn watch<'p>(
    knock: &mut Knock<'_>,
    mut doors: Vec<Door<'p>>,
    wait: Wait<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Vec<Door<'p>>, KnockError> {
    let Wait { start, timeout, mut rounds, known, wanted } = wait;
    let is_wanted = || wanted.is_none_or(|wanted| wanted.load(Ordering::Relaxed));
    let mut poll = Poll::new().map_err(KnockError::Wait)?;
    let mut events = Events::with_capacity(64);
    let mut next_token: usize = 0;
    let singly = rounds == 0;
    let mut not_sent = None;
    if known == Known::Shut && !singly {
        for line in doors.iter_mut().flat_map(|door| &mut door.lines) {
            line.next = line.next.saturating_add(FIRST_ATTEMPT);
        }
    }
    loop {
        let now = start.elapsed();
        if now >= timeout || !is_wanted() || doors.iter().all(|door| door.opened.is_some()) {
            break;
        }
        if rounds > 0 && now >= knock_at(rounds) {
            rounds = rounds.saturating_add(1);
            // A failure is not the end: the knock before may open, the network may come back.
            if let Ok(sent) = knock(None) {
                progress(Progress::KnockedAgain { sent: &sent });
            }
            for line in closed(&mut doors).filter(|line| line.has_begun()) {
                line.probe_soon(start.elapsed());
            }
        }
        for line in closed(&mut doors) {
            if now >= line.next {
                if singly && !line.has_begun() {
                    match knock(Some(line.to)) {
                        Ok(_) => rounds = rounds.max(1),
                        Err(error) => {
                            line.last = Failure::Other(error.to_string());
                            not_sent = Some(error);
                        }
                    }
                    line.probe_soon(start.elapsed());
                    continue;
                }
                line.attempt(now, Token(next_token), &poll, known);
                next_token = next_token.wrapping_add(1);
            }
        }
        for door in doors.iter_mut().filter(|door| door.opened.is_none()) {
            door.begin_after_failure(now);
        }
        if rounds == 0
            && closed(&mut doors).all(|line| line.has_begun())
            && let Some(error) = not_sent.take()
        {
            return Err(error);
        }
        let again = if rounds > 0 { knock_at(rounds) } else { timeout };
        let wake =
            closed(&mut doors).map(|line| line.next).chain([timeout, again]).min().unwrap_or(now);
        match poll.poll(&mut events, Some(wake.saturating_sub(start.elapsed()))) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                return Err(KnockError::Wait(error));
            }
            _ => {}
        }
        for event in &events {
            for door in doors.iter_mut().filter(|door| door.opened.is_none()) {
                if let Some((address, stream)) = door.answer(event.token()) {
                    let after = start.elapsed();
                    door.open(address, after, stream);
                    progress(Progress::Opened { probe: door.probe, address, after });
                }
            }
        }
    }
    Ok(doors)
}

/// A probe, and the way to it by each address.
pub(crate) struct Door<'a> {
    probe: &'a Probe,
    opened: Option<(IpAddr, Duration, TcpStream)>,
    lines: Vec<Line>,
}

impl<'a> Door<'a> {
    pub(crate) fn new(probe: &'a Probe, addresses: &[SocketAddr]) -> Self {
        let lines = in_turn(addresses.iter().copied()).into_iter().enumerate();
        let line = |(place, address)| Line::new(address, probe.port, address_at(place));
        Self { probe, opened: None, lines: lines.map(line).collect() }
    }

    /// The address at which the attempt `token` got through, and its connection.
    fn answer(&mut self, token: Token) -> Option<(IpAddr, TcpStream)> {
        self.lines.iter_mut().find_map(|line| Some((line.to.ip(), line.answer(token)?)))
    }

    fn open(&mut self, address: IpAddr, after: Duration, stream: TcpStream) {
        self.opened = Some((address, after, stream));
        self.lines.iter_mut().for_each(|line| line.pending.clear());
    }

    /// Whoever can't even send (no route, say) holds up nobody. A refusal is none of that: closed
    /// ports may look so until the knock has come.
    fn begin_after_failure(&mut self, now: Duration) {
        let goes_nowhere = |line: &Line| line.has_begun() && matches!(line.last, Failure::Other(_));
        let begun = self.lines.iter().take_while(|line| line.has_begun()).count();
        if self.lines.iter().take(begun).all(goes_nowhere)
            && let Some(next) = self.lines.get_mut(begun)
        {
            next.next = next.next.min(now);
        }
    }

    /// What came of it, and the connection.
    pub(crate) fn end(self) -> (Probed, Option<TcpStream>) {
        let probe = self.probe.clone();
        if let Some((address, after, stream)) = self.opened {
            return (Probed { probe, result: Ok((address, after)) }, Some(stream));
        }
        let failures = self.lines.into_iter().map(|line| (line.to.ip(), line.last));
        (Probed { probe, result: Err(failures.collect()) }, None)
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
    /// Not there before the first attempt.
    gaps: Option<ProbeGaps>,
    pending: VecDeque<(Token, TcpStream)>,
    last: Failure,
}

impl Line {
    fn new(mut to: SocketAddr, port: NonZeroU16, begins: Duration) -> Self {
        to.set_port(port.get());
        Self { to, next: begins, gaps: None, pending: VecDeque::new(), last: Failure::NoAnswer }
    }

    const fn has_begun(&self) -> bool {
        self.gaps.is_some()
    }

    /// After a knock.
    fn probe_soon(&mut self, now: Duration) {
        self.next = now.saturating_add(FIRST_ATTEMPT);
        self.gaps = Some(ProbeGaps::default());
    }

    fn attempt(&mut self, now: Duration, token: Token, poll: &Poll, known: Known) {
        let gaps = self.gaps.get_or_insert_with(|| match known {
            Known::Shut => ProbeGaps::default(),
            Known::Open => ProbeGaps::where_open(),
        });
        self.next = now.saturating_add(gaps.next_gap());
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

    /// The connection of the attempt `token`, if it is one of this line and got through.
    fn answer(&mut self, token: Token) -> Option<TcpStream> {
        let at = self.pending.iter().position(|(pending, _)| *pending == token)?;
        let (_, stream) = self.pending.get(at)?;
        let failure = match stream.take_error() {
            Ok(Some(error)) | Err(error) => error.into(),
            Ok(None) => match (stream.local_addr(), stream.peer_addr()) {
                // A port of this very machine, chosen for the attempt by chance: TCP's
                // simultaneous open with itself.
                (Ok(own), Ok(peer)) if own == peer => Failure::Refused,
                (_, Ok(_)) => return self.pending.remove(at).map(|(_, stream)| stream),
                (_, Err(error)) if error.kind() == io::ErrorKind::NotConnected => return None,
                (_, Err(error)) => error.into(),
            },
        };
        self.last = failure;
        self.pending.remove(at);
        None
    }
}
