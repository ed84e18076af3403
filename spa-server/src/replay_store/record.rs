//! The bytes of the store's file: a header, then records of one size, chained by checksums.

use sha2::{Digest, Sha256};
use spa_proto::{Accepted, ClientId, Closed, Nonce, PortRange, Transport, UnixMicros};
use std::fmt;
use std::io;
use std::num::NonZeroU16;

const MAGIC: &[u8; 8] = b"SPAREPL1";
pub(super) const HEADER_LENGTH: usize = 64;
pub(super) const RECORD_LENGTH: usize = 80;
const CHECK_LENGTH: usize = 8;

/// The kernel's name for the time between two boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootId(pub [u8; 16]);

impl BootId {
    /// Where the kernel tells it.
    pub const SOURCE: &str = "/proc/sys/kernel/random/boot_id";

    /// The id of this boot.
    pub fn read() -> io::Result<Self> {
        let text = std::fs::read_to_string(Self::SOURCE)?;
        Self::from_text(&text).ok_or_else(|| io::Error::other(format!("{text:?} is no boot id")))
    }

    /// Reads the text form that the kernel gives, with or without dashes.
    pub fn from_text(text: &str) -> Option<Self> {
        let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
        u128::from_str_radix(&digits, 16)
            .ok()
            .filter(|_| digits.len() == 32)
            .map(|value| Self(value.to_be_bytes()))
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// One thing to remember.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entry {
    /// A knock that is accepted now: it raises the client's floor.
    Accepted {
        /// Whose.
        client: ClientId,
        /// Its id.
        nonce: Nonce,
        /// Its timestamp.
        stamp: UnixMicros,
    },
    /// An id of a window that is written as a whole, with its floor.
    Remembered {
        /// Whose.
        client: ClientId,
        /// The id.
        nonce: Nonce,
        /// Its timestamp.
        stamp: UnixMicros,
    },
    /// Ports that a client closed.
    Closed {
        /// Who.
        client: ClientId,
        /// What, and by a knock of which timestamp.
        closed: Closed,
    },
    /// A client's floor.
    Floor {
        /// Whose.
        client: ClientId,
        /// The floor.
        floor: UnixMicros,
    },
}

impl Entry {
    /// The entries that one accepted knock leaves.
    pub(super) fn of(accepted: &Accepted) -> impl Iterator<Item = Self> {
        let Accepted { client, nonce, stamp, .. } = *accepted;
        let closed = accepted
            .closed
            .iter()
            .map(move |ports| Self::Closed { client, closed: Closed { ports: *ports, stamp } });
        std::iter::once(Self::Accepted { client, nonce, stamp }).chain(closed)
    }

    /// 72 bytes: kind, transport, first port, last port (zero where it is the first), 2 zero bytes,
    /// client, timestamp, nonce.
    fn encode(&self) -> [u8; RECORD_LENGTH - CHECK_LENGTH] {
        let (kind, ports, client, stamp, nonce) = match self {
            Self::Accepted { client, nonce, stamp } => (1, None, client, stamp, nonce.0),
            Self::Closed { client, closed } => {
                (2, Some(closed.ports), client, &closed.stamp, [0; 24])
            }
            Self::Floor { client, floor } => (3, None, client, floor, [0; 24]),
            Self::Remembered { client, nonce, stamp } => (4, None, client, stamp, nonce.0),
        };
        let transport = match ports.map(PortRange::transport) {
            None => 0,
            Some(Transport::Tcp) => 6,
            Some(Transport::Udp) => 17,
        };
        let first = ports.map_or(0, |ports| ports.first().get());
        let last = ports.filter(|ports| ports.single().is_none());
        let last = last.map_or(0, |ports| ports.last().get());
        let mut bytes = Vec::with_capacity(RECORD_LENGTH);
        bytes.extend_from_slice(&[kind, transport]);
        bytes.extend_from_slice(&first.to_be_bytes());
        bytes.extend_from_slice(&last.to_be_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&client.0);
        bytes.extend_from_slice(&stamp.0.to_be_bytes());
        bytes.extend_from_slice(&nonce);
        let mut fixed = [0; RECORD_LENGTH - CHECK_LENGTH];
        fixed.copy_from_slice(&bytes);
        fixed
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let ([kind, transport], rest) = bytes.split_first_chunk()?;
        let (first, rest) = rest.split_first_chunk()?;
        let (last, rest) = rest.split_first_chunk()?;
        let (_reserved, rest) = rest.split_first_chunk::<2>()?;
        let (client, rest) = rest.split_first_chunk()?;
        let (stamp, rest) = rest.split_first_chunk()?;
        let (nonce, _) = rest.split_first_chunk()?;
        let client = ClientId(*client);
        let stamp = UnixMicros(u64::from_be_bytes(*stamp));
        match kind {
            1 => Some(Self::Accepted { client, nonce: Nonce(*nonce), stamp }),
            2 => {
                let transport = match transport {
                    6 => Transport::Tcp,
                    17 => Transport::Udp,
                    _ => return None,
                };
                let first = NonZeroU16::new(u16::from_be_bytes(*first))?;
                let last = NonZeroU16::new(u16::from_be_bytes(*last)).unwrap_or(first);
                let closed = Closed { ports: PortRange::new(transport, first, last)?, stamp };
                Some(Self::Closed { client, closed })
            }
            3 => Some(Self::Floor { client, floor: stamp }),
            4 => Some(Self::Remembered { client, nonce: Nonce(*nonce), stamp }),
            _ => None,
        }
    }
}

/// The first 64 bytes of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) boot: BootId,
    pub(super) clean: bool,
    /// How many records follow. It is raised before they are written: a file that lost its tail
    /// is so known, wherever it was cut.
    pub(super) count: u64,
    pub(super) barrier: UnixMicros,
    /// The freshness window under which the records were accepted, in seconds.
    pub(super) freshness: u64,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_LENGTH] {
        let mut bytes = Vec::with_capacity(HEADER_LENGTH);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.boot.0);
        bytes.extend_from_slice(&[u8::from(self.clean), 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend_from_slice(&self.count.to_be_bytes());
        bytes.extend_from_slice(&self.barrier.0.to_be_bytes());
        bytes.extend_from_slice(&self.freshness.to_be_bytes());
        bytes.extend_from_slice(&check(&[], &bytes));
        let mut fixed = [0; HEADER_LENGTH];
        fixed.copy_from_slice(&bytes);
        fixed
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (covered, checksum) = bytes.split_last_chunk::<CHECK_LENGTH>()?;
        let (magic, rest) = covered.split_first_chunk::<8>()?;
        let (boot, rest) = rest.split_first_chunk()?;
        let ([clean, ..], rest) = rest.split_first_chunk::<8>()?;
        let (count, rest) = rest.split_first_chunk()?;
        let (barrier, rest) = rest.split_first_chunk()?;
        let (freshness, _) = rest.split_first_chunk()?;
        (magic == MAGIC && *checksum == check(&[], covered)).then(|| Self {
            boot: BootId(*boot),
            clean: *clean == 1,
            count: u64::from_be_bytes(*count),
            barrier: UnixMicros(u64::from_be_bytes(*barrier)),
            freshness: u64::from_be_bytes(*freshness),
        })
    }
}

/// The checksum of the record before, which each record's own covers too: records that were
/// lost, swapped or repeated in the middle break the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Chain([u8; CHECK_LENGTH]);

impl Chain {
    /// Appends a record to `bytes`.
    pub(super) fn push(&mut self, entry: &Entry, bytes: &mut Vec<u8>) {
        let encoded = entry.encode();
        self.0 = check(&self.0, &encoded);
        bytes.extend_from_slice(&encoded);
        bytes.extend_from_slice(&self.0);
    }

    /// Takes a record apart; `None` when it is not the one that belongs here.
    pub(super) fn next(&mut self, record: &[u8]) -> Option<Entry> {
        let (encoded, checksum) = record.split_last_chunk()?;
        let expected = check(&self.0, encoded);
        if *checksum != expected {
            return None;
        }
        self.0 = expected;
        Entry::decode(encoded)
    }
}

/// The first 8 bytes of SHA-256: against accidents. Whoever can write the file is root.
fn check(before: &[u8], bytes: &[u8]) -> [u8; CHECK_LENGTH] {
    let digest = Sha256::new().chain_update(before).chain_update(bytes).finalize();
    let mut first = [0; CHECK_LENGTH];
    first.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
    first
}
