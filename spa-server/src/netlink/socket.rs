//! A netlink socket that is asked and answers: sequence numbers, acknowledgements, dumps.
//!
//! The calls block until the kernel has answered, which takes microseconds, or [`PATIENCE`] has
//! passed. The socket belongs to the network namespace of the thread that opened it. It must not
//! know what the messages mean.

use super::error::{NetlinkError, Refusal};
use super::wire::{ACK, DONE, DUMP, DUMP_INTERRUPTED, ERROR, Message, REQUEST, Writer};
use netlink_sys::{Socket, SocketAddr, protocols};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::SockRef;
use std::borrow::Cow;
use std::io;
use std::time::Duration;

/// How long the kernel may take for an answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Room for answers that are not yet read.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;
/// Room for one transaction of nftables, which the kernel takes whole or not at all.
const SEND_BUFFER_BYTES: usize = 32 << 20;
/// The kernel fills at most half of it at a time (af_netlink.c, `netlink_dump`).
const READ_BYTES: usize = 64 << 10;
/// How often a dump is begun that was interrupted by a change.
const DUMP_ATTEMPTS: usize = 20;

/// Which part of the kernel a socket speaks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subsystem {
    /// ipset, conntrack, nftables.
    Netfilter,
    /// The tables of sockets.
    SockDiag,
}

impl Subsystem {
    const fn protocol(self) -> isize {
        match self {
            Self::Netfilter => protocols::NETLINK_NETFILTER,
            Self::SockDiag => protocols::NETLINK_SOCK_DIAG,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Netfilter => "netfilter",
            Self::SockDiag => "the socket tables",
        }
    }
}

/// An open socket, bound, connected to the kernel and to nobody else.
#[derive(Debug)]
pub(super) struct Channel {
    socket: Socket,
    sequence: u32,
    writer: Writer,
    buffer: Vec<u8>,
}

/// Which message a request is: its kind, and its flags beside `REQUEST` and `ACK`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head(pub(super) u16, pub(super) u16);

/// The sequence numbers of a parcel.
pub(super) struct Numbers {
    /// Of the message that is answered last, and asks for an acknowledgement.
    pub(super) last: u32,
    /// Of the one whose refusal is that of all, after which no other answer may come.
    pub(super) whole: Option<u32>,
}

/// What came of one message of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failed {
    /// Its sequence number.
    pub(super) sequence: u32,
    /// Why.
    pub(super) refusal: Refusal,
}

impl Channel {
    pub(super) fn open(subsystem: Subsystem) -> Result<Self, NetlinkError> {
        let open = || {
            let mut socket = Socket::new(subsystem.protocol())?;
            socket.bind_auto()?;
            // Nobody but the kernel can then send to it.
            socket.connect(&SocketAddr::new(0, 0))?;
            SockRef::from(&socket).set_read_timeout(Some(PATIENCE))?;
            enlarge_buffers(&socket);
            // Old kernels lack these; errors are then told with less, or with more, words.
            let _ = socket.set_ext_ack(true);
            let _ = socket.set_cap_ack(true);
            Ok(socket)
        };
        Ok(Self {
            socket: open()
                .map_err(|source| NetlinkError::Open { subsystem: subsystem.name(), source })?,
            sequence: 0,
            writer: Writer::default(),
            buffer: Vec::with_capacity(READ_BYTES),
        })
    }

    /// Asks for one thing to be done.
    pub(super) fn tell(
        &mut self,
        doing: &Doing<'_>,
        head: Head,
        body: impl FnOnce(&mut Writer),
    ) -> Result<(), NetlinkError> {
        self.ask(doing, head, body, |_| ())
    }

    /// Asks for one thing, and hands all answers to `read`.
    pub(super) fn ask(
        &mut self,
        doing: &Doing<'_>,
        Head(kind, flags): Head,
        body: impl FnOnce(&mut Writer),
        mut read: impl FnMut(Message<'_>),
    ) -> Result<(), NetlinkError> {
        let sequence = self.next_sequence();
        self.writer.clear();
        self.writer.message(kind, flags | REQUEST | ACK, sequence, body);
        self.send(doing)?;
        let mut refused = None;
        self.receive(doing, |message| {
            if message.sequence != sequence {
                return Progress::More;
            }
            match message.kind {
                ERROR | DONE => {
                    refused = refusal(&message);
                    Progress::Finished
                }
                _ => {
                    read(message);
                    Progress::More
                }
            }
        })?;
        refused.map_or(Ok(()), |refusal| Err(doing.refused(refusal)))
    }

    /// Lists things: `read` makes of each message any number of them. A list that changed while
    /// it was read is read again.
    pub(super) fn dump<T>(
        &mut self,
        doing: &Doing<'_>,
        Head(kind, flags): Head,
        body: impl Fn(&mut Writer),
        mut read: impl FnMut(Message<'_>, &mut Vec<T>),
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut found = Vec::new();
            let mut interrupted = false;
            let sequence = self.next_sequence();
            self.writer.clear();
            self.writer.message(kind, flags | DUMP | REQUEST | ACK, sequence, &body);
            self.send(doing)?;
            let mut refused = None;
            self.receive(doing, |message| {
                if message.sequence != sequence {
                    return Progress::More;
                }
                interrupted |= message.flags & DUMP_INTERRUPTED != 0;
                match message.kind {
                    ERROR | DONE => {
                        refused = refusal(&message);
                        Progress::Finished
                    }
                    _ => {
                        read(message, &mut found);
                        Progress::More
                    }
                }
            })?;
            match refused {
                Some(refusal) if refusal.code == nix::errno::Errno::EINTR as i32 => {}
                Some(refusal) => return Err(doing.refused(refusal)),
                None if interrupted => {}
                None => return Ok(found),
            }
        }
        Err(doing.restless())
    }

    /// Sends what `write` writes, as one parcel, and reads until its last message is answered.
    /// Says which messages were refused, in order.
    ///
    /// `write` gets the first sequence number, and must number its messages upwards from it.
    pub(super) fn parcel(
        &mut self,
        doing: &Doing<'_>,
        write: impl FnOnce(&mut Writer, u32) -> Numbers,
    ) -> Result<Vec<Failed>, NetlinkError> {
        let first = self.next_sequence();
        self.writer.clear();
        let Numbers { last, whole } = write(&mut self.writer, first);
        self.sequence = last;
        self.send(doing)?;
        let mut failed = Vec::new();
        self.receive(doing, |message| {
            // Old answers, to a request that was given up, come before.
            let ours = message.sequence.wrapping_sub(first) <= last.wrapping_sub(first);
            if ours && message.kind == ERROR {
                let sequence = message.sequence;
                let refusal = refusal(&message);
                let ended = sequence == last || (whole == Some(sequence) && refusal.is_some());
                failed.extend(refusal.map(|refusal| Failed { sequence, refusal }));
                if ended {
                    return Progress::Finished;
                }
            }
            Progress::More
        })?;
        failed.sort_unstable_by_key(|failed| failed.sequence.wrapping_sub(first));
        Ok(failed)
    }

    fn next_sequence(&mut self) -> u32 {
        // 0 is what the kernel uses for what nobody asked for.
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.sequence
    }

    fn send(&self, doing: &Doing<'_>) -> Result<(), NetlinkError> {
        loop {
            match self.socket.send(self.writer.bytes(), 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(NetlinkError::Io { doing: doing.text(), source }),
            }
        }
    }

    fn receive(
        &mut self,
        doing: &Doing<'_>,
        mut read: impl FnMut(Message<'_>) -> Progress,
    ) -> Result<(), NetlinkError> {
        loop {
            read_once(&self.socket, &mut self.buffer).map_err(|error| doing.failed(error))?;
            let mut rest = self.buffer.as_slice();
            while let Some((message, next)) = Message::split_from(rest) {
                rest = next;
                if read(message) == Progress::Finished {
                    return Ok(());
                }
            }
        }
    }
}

/// Whether an answer was the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    More,
    Finished,
}

/// What is being done, for messages of errors: made only when there is one.
pub(super) struct Doing<'a>(pub(super) &'a str, pub(super) Option<&'a str>);

impl Doing<'_> {
    fn text(&self) -> Cow<'static, str> {
        match self.1 {
            Some(what) => format!("{} {what}", self.0).into(),
            None => self.0.to_owned().into(),
        }
    }

    fn refused(&self, refusal: Refusal) -> NetlinkError {
        NetlinkError::Refused { doing: self.text(), refusal }
    }

    pub(super) fn restless(&self) -> NetlinkError {
        NetlinkError::Restless { doing: self.text() }
    }

    pub(super) fn unreadable(&self, missing: &'static str) -> NetlinkError {
        NetlinkError::Unreadable { doing: self.text(), missing }
    }

    fn failed(&self, source: io::Error) -> NetlinkError {
        let doing = self.text();
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                NetlinkError::Silent { doing, limit: PATIENCE }
            }
            _ if source.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32) => {
                NetlinkError::Overflowed { doing }
            }
            _ => NetlinkError::Io { doing, source },
        }
    }
}

/// Reads what the kernel has put together, into the spare room of the buffer.
pub(super) fn read_once(socket: &Socket, buffer: &mut Vec<u8>) -> io::Result<()> {
    loop {
        buffer.clear();
        match socket.recv(buffer, nix::libc::MSG_TRUNC) {
            Ok(length) if length > buffer.len() => {
                return Err(io::Error::other("a message of the kernel's is too long to be read"));
            }
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// As root beyond what others may; what can't be had shows when it is missing.
pub(super) fn enlarge_buffers(socket: &Socket) {
    let forced = setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES);
    if forced.is_err() {
        let _ = setsockopt(socket, sockopt::RcvBuf, &RECEIVE_BUFFER_BYTES);
    }
    let forced = setsockopt(socket, sockopt::SndBufForce, &SEND_BUFFER_BYTES);
    if forced.is_err() {
        let _ = setsockopt(socket, sockopt::SndBuf, &SEND_BUFFER_BYTES);
    }
}

fn refusal(message: &Message<'_>) -> Option<Refusal> {
    match message.outcome() {
        Some((0, _)) => None,
        Some((code, text)) => Some(Refusal { code, text }),
        None => Some(Refusal { code: nix::errno::Errno::EBADMSG as i32, text: None }),
    }
}
