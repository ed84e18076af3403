//! What anybody changes in nftables, as it happens; iptables-nft is nftables, too. (The old
//! iptables and ipset tell nobody.)
//!
//! It says where to look, not what to see there: who must know how things stand, looks.

use super::NETFILTER_HEADER;
use super::error::NetlinkError;
use super::nft::TableFamily;
use super::nft::message::{SET, SUBSYSTEM, TABLE, read_generation, read_generation_thread};
use super::socket::{Subsystem, enlarge_buffers, read_once};
use super::wire::Message;
use netlink_sys::{Socket, SocketAddr, protocols};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

/// `NFNLGRP_NFTABLES`
const GROUP: u32 = 7;
const READ_BYTES: usize = 64 << 10;

/// Something that was changed, or was said about a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A table, a chain, a rule, a set or another object was made, changed or deleted.
    Ruleset {
        /// What.
        object: Object,
        /// Whether it is gone.
        deleted: bool,
        /// The family of its table.
        family: TableFamily,
        /// Its table.
        table: String,
    },
    /// Elements were added to a set or deleted from it: by transactions and by rules; not those
    /// whose time was over.
    Elements {
        /// Whether they are gone.
        deleted: bool,
        /// The family of its table.
        family: TableFamily,
        /// Its table.
        table: String,
        /// The set.
        set: String,
    },
    /// The events before were one transaction.
    Committed {
        /// The number of the ruleset since then.
        generation: u32,
        /// The thread that did it, by its number in the machine's first namespace of processes; 0
        /// if it is not known.
        thread: u32,
    },
    /// There were too many events at once, and some are lost: anything may have changed.
    Overflowed,
}

/// What a [`Event::Ruleset`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Object {
    /// A table.
    Table,
    /// A chain.
    Chain,
    /// A rule.
    Rule,
    /// A set or map.
    Set,
    /// Something else: a named counter, a flow table.
    Other,
}

/// A subscription to the events of a network namespace. It is non-blocking: a thread of its own
/// [waits](Self::wait) for events, or a reactor that is given the descriptor.
#[derive(Debug)]
pub struct Subscription {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Subscription {
    /// Subscribes, with `CAP_NET_ADMIN`, to what happens from now on in the network namespace of
    /// this thread. The capability isn't needed any more afterwards.
    pub fn open() -> Result<Self, NetlinkError> {
        let open = || {
            let mut socket = Socket::new(protocols::NETLINK_NETFILTER)?;
            socket.bind(&SocketAddr::new(0, 0))?;
            enlarge_buffers(&socket);
            socket.add_membership(GROUP)?;
            socket.set_non_blocking(true)?;
            Ok(socket)
        };
        let subsystem = Subsystem::Netfilter.name();
        Ok(Self {
            socket: open().map_err(|source| NetlinkError::Open { subsystem, source })?,
            buffer: Vec::with_capacity(READ_BYTES),
        })
    }

    /// Waits until there is something to read, at most this long. Whether there is.
    pub fn wait(&self, limit: Duration) -> io::Result<bool> {
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let mut sockets = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut sockets, limit) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The next events, some at a time: perhaps none. If there is nothing to read, the error's
    /// kind is [`io::ErrorKind::WouldBlock`].
    pub fn read(&mut self) -> io::Result<Vec<Event>> {
        match read_once(&self.socket, &mut self.buffer) {
            Ok(()) => Ok(read_events(&self.buffer)),
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => {
                Ok(vec![Event::Overflowed])
            }
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Subscription {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Subscription {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn read_events(bytes: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    let mut rest = bytes;
    while let Some((message, next)) = Message::split_from(rest) {
        rest = next;
        let event = read_event(&message);
        // A long list of elements comes as many messages, and a long chain as well.
        if let Some(event) = event
            && events.last() != Some(&event)
        {
            events.push(event);
        }
    }
    events
}

fn read_event(message: &Message<'_>) -> Option<Event> {
    let number = message.kind.checked_sub(SUBSYSTEM).filter(|number| *number <= 0xff)?;
    let family = TableFamily(*message.payload.first()?);
    let attributes = message.attributes(NETFILTER_HEADER);
    let table = || attributes.text(TABLE).unwrap_or_default();
    let ruleset =
        |object, deleted| Some(Event::Ruleset { object, deleted, family, table: table() });
    let elements = |deleted| {
        let set = attributes.text(SET).unwrap_or_default();
        Some(Event::Elements { deleted, family, table: table(), set })
    };
    // `enum nf_tables_msg_types`
    match number {
        0 => ruleset(Object::Table, false),
        2 => ruleset(Object::Table, true),
        3 => ruleset(Object::Chain, false),
        5 => ruleset(Object::Chain, true),
        6 => ruleset(Object::Rule, false),
        8 => ruleset(Object::Rule, true),
        9 => ruleset(Object::Set, false),
        11 => ruleset(Object::Set, true),
        12 => elements(false),
        14 => elements(true),
        15 => Some(Event::Committed {
            generation: read_generation(message)?,
            thread: read_generation_thread(message).unwrap_or(0),
        }),
        // Traces of packets.
        17 => None,
        _ => ruleset(Object::Other, matches!(number, 20 | 24)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::wire::Writer;
    use proptest::prelude::*;

    #[test]
    fn events_are_told_apart() {
        let mut writer = Writer::default();
        let mut say = |number: u16, set: Option<&str>| {
            writer.message(SUBSYSTEM | number, 0, 0, |writer| {
                writer.netfilter_header(2, 0);
                writer.text(TABLE, "mangle");
                if let Some(set) = set {
                    writer.text(SET, set);
                }
            });
        };
        say(8, None);
        say(8, None);
        say(5, None);
        say(12, Some("spa4"));
        writer.message(SUBSYSTEM | 0x0f, 0, 0, |writer| {
            writer.netfilter_header(0, 0);
            writer.attribute(1, &7u32.to_be_bytes());
            writer.attribute(2, &1234u32.to_be_bytes());
        });
        let (family, table) = (TableFamily::IP, "mangle".to_owned());
        let gone = |object| Event::Ruleset { object, deleted: true, family, table: table.clone() };
        assert_eq!(
            read_events(writer.bytes()),
            [
                gone(Object::Rule),
                gone(Object::Chain),
                Event::Elements {
                    deleted: false,
                    family,
                    table: table.clone(),
                    set: "spa4".into()
                },
                Event::Committed { generation: 7, thread: 1234 },
            ]
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_events(&bytes);
        }

        #[test]
        fn any_message_is_read_without_panic(
            number in 0u16..=255,
            payload in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let kind = SUBSYSTEM | number;
            let _ = read_event(&Message { kind, flags: 0, sequence: 0, payload: &payload });
        }
    }
}
