//! Sets of the kernel's ipset: made, filled, looked at, taken away. What the messages look like is
//! in `message`; here is who is asked what.

mod message;

use self::message::{
    CREATE, DESTROY, FLUSH, LIST, PROTOCOL, RENAME, SWAP, TYPE, read_entries, read_info, read_name,
    read_revisions, write_change, write_create, write_list, write_list_names, write_names,
    write_type,
};
use super::error::{NetlinkError, Reason, Refusal};
use super::socket::{Channel, Doing, Head, Numbers, Subsystem};
use super::{Family, wire};
use ipnet::IpNet;
use spa_proto::Port;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;

/// How much is sent at once: less than the default size of a socket's send buffer.
const PARCEL_BYTES: usize = 64 << 10;

/// What elements a set has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetKind {
    /// `hash:ip`: [`Entry::Address`].
    Ip,
    /// `hash:ip,port`: [`Entry::AddressPort`].
    IpPort,
    /// `hash:net`: [`Entry::Network`] and [`Entry::Address`].
    Net,
    /// `hash:net,port`: [`Entry::NetworkPort`] and [`Entry::AddressPort`].
    NetPort,
}

impl SetKind {
    /// The kernel's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ip => "hash:ip",
            Self::IpPort => "hash:ip,port",
            Self::Net => "hash:net",
            Self::NetPort => "hash:net,port",
        }
    }

    /// The revision that was new in 2014 (`skbinfo`, Linux 3.18, ipset 6.22). It has all that is
    /// used here, and newer tools still know it.
    const fn known_revision(self) -> u8 {
        match self {
            Self::Ip => 4,
            Self::IpPort => 5,
            Self::Net => 6,
            Self::NetPort => 7,
        }
    }
}

/// How large a set is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetSize {
    /// How many elements it may hold.
    pub max_elements: u32,
    /// How many buckets it begins with; the kernel rounds up to a power of two, and makes more when
    /// one is full. It fills each with up to twelve elements, and each few of them are another line
    /// of the cache that a packet has to wait for.
    pub buckets: u32,
}

impl SetSize {
    /// That of a set which may never hold much: it grows when it does.
    pub const fn growing(max_elements: u32) -> Self {
        Self { max_elements, buckets: 1024 }
    }

    /// That of a set in which most buckets hold one element at the most, also when it is full.
    ///
    /// A bucket costs 8 bytes; there is a bound, since they are there from the beginning.
    pub fn roomy(max_elements: u32) -> Self {
        Self { max_elements, buckets: max_elements.clamp(1024, 1 << 17) }
    }
}

/// An element of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entry {
    /// An address.
    Address(IpAddr),
    /// An address and a port.
    AddressPort(IpAddr, Port),
    /// A prefix; the kernel takes none of length 0.
    Network(IpNet),
    /// A prefix and a port.
    NetworkPort(IpNet, Port),
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::AddressPort(address, port) => write!(f, "{address},{port}"),
            Self::Network(network) => write!(f, "{network}"),
            Self::NetworkPort(network, port) => write!(f, "{network},{port}"),
        }
    }
}

/// One change of the elements of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SetChange<'a> {
    /// Add the element, or give it this time anew, be it shorter or longer.
    Add {
        /// The name of the set.
        set: &'a str,
        /// The element.
        entry: Entry,
        /// For how many seconds from now, at most 2,147,483; none: for ever.
        seconds: Option<NonZeroU32>,
    },
    /// Delete the element. No harm if it isn't there.
    Delete {
        /// The name of the set.
        set: &'a str,
        /// The element.
        entry: Entry,
    },
}

impl fmt::Display for SetChange<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add { set, entry, .. } => write!(f, "add {entry} to set {set}"),
            Self::Delete { set, entry } => write!(f, "delete {entry} from set {set}"),
        }
    }
}

/// A change that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedChange {
    /// Which one of those that were asked for, from 0.
    pub index: usize,
    /// What it was.
    pub change: String,
    /// What the kernel said.
    pub refusal: Refusal,
}

impl fmt::Display for FailedChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.change, self.refusal)
    }
}

/// What a set is, and how full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetInfo {
    /// The kernel's name of its kind, such as `hash:ip,port`.
    pub kind: String,
    /// The family of its addresses; none for kinds that have none.
    pub family: Option<Family>,
    /// How many elements it may hold; none for kinds that have no such limit.
    pub max_elements: Option<u32>,
    /// Whether its elements may have a time limit.
    pub has_timeout: bool,
    /// How many seconds an element gets that comes without; 0: it stays.
    pub default_timeout: u32,
    /// How many elements it holds whose time isn't over.
    pub entries: u32,
    /// How many rules and sets use it. One that is used can't be destroyed.
    pub references: u32,
}

impl SetInfo {
    /// Whether it is a set of this kind and family whose elements have times of their own.
    pub fn is(&self, kind: SetKind, family: Family) -> bool {
        self.kind == kind.as_str()
            && self.family == Some(family)
            && self.has_timeout
            && self.default_timeout == 0
    }
}

/// The sets of a network namespace.
#[derive(Debug)]
pub struct Ipset {
    channel: Channel,
}

impl Ipset {
    /// Opens a socket, and makes sure that the kernel has sets at all: the error is
    /// [`Reason::Unsupported`] if not, [`Reason::NotPermitted`] without `CAP_NET_ADMIN`.
    pub fn open() -> Result<Self, NetlinkError> {
        let mut channel = Channel::open(Subsystem::Netfilter)?;
        let doing = Doing("ask the kernel for ipset", None);
        channel.tell(&doing, Head(PROTOCOL, 0), |writer| write_names(writer, &[])).map_err(
            |error| match error {
                // nfnetlink says so of a subsystem that it hasn't.
                NetlinkError::Refused { doing, refusal: Refusal { code: EINVAL, text } } => {
                    NetlinkError::Refused { doing, refusal: Refusal { code: EOPNOTSUPP, text } }
                }
                other => other,
            },
        )?;
        Ok(Self { channel })
    }

    /// Makes an empty set whose elements have times of their own. There must be none of that name:
    /// else [`Reason::Exists`]. A name has at most 31 bytes.
    ///
    /// It is of a revision that the kernel has and that `ipset` tools know, if there is such a
    /// one: they refuse to list *any* set if there is one that is too new, or too old, for them.
    pub fn create(
        &mut self,
        name: &str,
        kind: SetKind,
        family: Family,
        size: SetSize,
    ) -> Result<(), NetlinkError> {
        let doing = Doing("ask the kernel for sets of kind", Some(kind.as_str()));
        let mut revisions = None;
        self.channel.ask(
            &doing,
            Head(TYPE, 0),
            |writer| write_type(writer, kind, family),
            |message| revisions = read_revisions(&message),
        )?;
        let (oldest, newest) = revisions.ok_or_else(|| doing.unreadable("revision"))?;
        let revision = kind.known_revision().min(newest).max(oldest);
        self.channel.tell(
            &Doing("make set", Some(name)),
            Head(CREATE, wire::CREATE | wire::EXCLUSIVE),
            |writer| write_create(writer, name, kind, revision, family, size),
        )
    }

    /// The names of all sets, anybody's.
    pub fn names(&mut self) -> Result<Vec<String>, NetlinkError> {
        self.channel.dump(
            &Doing("list the names of the sets", None),
            Head(LIST, 0),
            write_list_names,
            |message, found| found.extend(read_name(&message)),
        )
    }

    /// What there is of this name, if anything. It costs the kernel a walk through the set without
    /// copying anything: microseconds, and about a millisecond at 100,000 elements.
    pub fn info(&mut self, name: &str) -> Result<Option<SetInfo>, NetlinkError> {
        let doing = Doing("look at set", Some(name));
        let found = self.channel.dump(
            &doing,
            Head(LIST, 0),
            |writer| write_list(writer, name, true),
            |message, found| found.push(read_info(&message)),
        );
        match found {
            Ok(found) => match found.into_iter().next() {
                Some(info) => info.map(Some).ok_or_else(|| doing.unreadable("kind of set")),
                None => Ok(None),
            },
            Err(error) if error.reason() == Some(Reason::Missing) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The elements of a set, in no order, each with the seconds that it has left: rounded down,
    /// and at least 1; none: it stays for ever. Elements of protocols other than TCP and UDP are
    /// left out.
    ///
    /// It is no snapshot: an element that comes or goes meanwhile is in it or not.
    pub fn entries(&mut self, name: &str) -> Result<Vec<(Entry, Option<u32>)>, NetlinkError> {
        self.channel.dump(
            &Doing("list set", Some(name)),
            Head(LIST, 0),
            |writer| write_list(writer, name, false),
            |message, found| read_entries(&message, found),
        )
    }

    /// Makes changes, in order. Each is made or refused for itself: the error
    /// [`NetlinkError::Changes`] names those that were refused, and all others are made. After
    /// any other error an unknown number of them is made, and the elements have to be looked at.
    pub fn apply(&mut self, changes: &[SetChange<'_>]) -> Result<(), NetlinkError> {
        let mut failed = Vec::new();
        let mut done = 0;
        while let Some(rest) = changes.get(done..).filter(|rest| !rest.is_empty()) {
            let mut sent: usize = 0;
            let mut begin = 0;
            let refused = self.channel.parcel(&Doing("change sets", None), |writer, first| {
                begin = first;
                let mut sequence = first;
                for change in rest {
                    // The kernel answers to refusals always, and else only if asked.
                    let last = sent.saturating_add(1) == rest.len() || writer.len() >= PARCEL_BYTES;
                    sequence = first.wrapping_add(u32::try_from(sent).unwrap_or(u32::MAX));
                    write_change(writer, sequence, last, change);
                    sent = sent.saturating_add(1);
                    if last {
                        break;
                    }
                }
                Numbers { last: sequence, whole: None }
            })?;
            for one in refused {
                let at = usize::try_from(one.sequence.wrapping_sub(begin)).unwrap_or(usize::MAX);
                failed.push(FailedChange {
                    index: done.saturating_add(at),
                    change: rest.get(at).map(ToString::to_string).unwrap_or_default(),
                    refusal: one.refusal,
                });
            }
            done = done.saturating_add(sent);
        }
        if failed.is_empty() {
            return Ok(());
        }
        Err(NetlinkError::Changes { all: changes.len(), failed })
    }

    /// Takes all elements out of a set.
    pub fn flush(&mut self, name: &str) -> Result<(), NetlinkError> {
        self.on_names(FLUSH, "empty set", &[name])
    }

    /// Takes a set away that nothing uses: else [`Reason::InUse`]. No harm if there is none.
    pub fn destroy(&mut self, name: &str) -> Result<(), NetlinkError> {
        match self.on_names(DESTROY, "destroy set", &[name]) {
            // What older kernels say.
            Err(error) if error.reason() == Some(Reason::Missing) => Ok(()),
            other => other,
        }
    }

    /// Exchanges two sets of one kind and family: rules that use the one then use the other.
    pub fn swap(&mut self, one: &str, other: &str) -> Result<(), NetlinkError> {
        self.on_names(SWAP, "swap set", &[one, other])
    }

    /// Gives a set that nothing uses another name.
    pub fn rename(&mut self, from: &str, to: &str) -> Result<(), NetlinkError> {
        self.on_names(RENAME, "rename set", &[from, to])
    }

    // Without a name the kernel would empty or destroy all sets there are.
    fn on_names(&mut self, command: u16, doing: &str, names: &[&str]) -> Result<(), NetlinkError> {
        let doing = Doing(doing, names.first().copied());
        self.channel.tell(&doing, Head(command, 0), |writer| write_names(writer, names))
    }
}

const EINVAL: i32 = 22;
const EOPNOTSUPP: i32 = 95;
