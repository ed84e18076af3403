//! Elements of nftables sets: changed in transactions, listed. Tables, chains, rules and the sets
//! themselves are made by `nft`. What the messages look like is in `message`.

pub(super) mod message;

use self::message::{
    Clearing, Fate, GET_CHAIN, GET_ELEMENTS, GET_GENERATION, PutTogether, read_elements,
    read_generation, write_any_family, write_chain, write_list, write_transaction,
};
use super::error::{EEXIST, ENOTEMPTY, NetlinkError, Reason};
use super::socket::{Channel, Doing, Head, Numbers, Subsystem};
use ipnet::IpNet;
use spa_proto::Transport;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

/// How often a set is read that is given more room meanwhile.
const ATTEMPTS: usize = 100;
/// How long until it is read again.
const PAUSE: Duration = Duration::from_millis(5);

/// The family of a table (`NFPROTO_*`, linux/include/uapi/linux/netfilter.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableFamily(pub u8);

impl TableFamily {
    /// `inet`: both IPv4 and IPv6.
    pub const INET: Self = Self(1);
    /// `ip`, the family of the tables that `iptables` makes.
    pub const IP: Self = Self(2);
    /// `ip6`
    pub const IP6: Self = Self(10);
}

impl fmt::Display for TableFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::INET => f.write_str("inet"),
            Self::IP => f.write_str("ip"),
            Self::IP6 => f.write_str("ip6"),
            Self(number) => write!(f, "family {number}"),
        }
    }
}

/// The full name of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetName<'a> {
    /// The family of its table.
    pub family: TableFamily,
    /// Its table.
    pub table: &'a str,
    /// Its name.
    pub set: &'a str,
}

impl fmt::Display for SetName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.family, self.table, self.set)
    }
}

/// An element of a set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Element {
    /// Of a set `type ipv4_addr` or `type ipv6_addr`. It is also what any other key of four or
    /// sixteen bytes is read as.
    Address(IpAddr),
    /// Of a set `type ipv4_addr . inet_proto . inet_service`, or with `ipv6_addr`. If it is more
    /// than one address or more than one port, the set has to have `flags interval`.
    Ports {
        /// From where.
        source: IpNet,
        /// TCP or UDP.
        transport: Transport,
        /// The first port.
        first: u16,
        /// The last port.
        last: u16,
    },
    /// Of any other set, as the kernel has it.
    Key(Vec<u8>),
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Ports { source, transport, first, last } if first == last => {
                write!(f, "{source} . {transport} . {first}")
            }
            Self::Ports { source, transport, first, last } => {
                write!(f, "{source} . {transport} . {first}-{last}")
            }
            Self::Key(key) => write!(f, "{key:02x?}"),
        }
    }
}

/// One change of the elements of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ElementChange<'a> {
    /// Add the element, or give it this time anew, be it shorter or longer.
    Add {
        /// The set.
        set: SetName<'a>,
        /// The element.
        element: Element,
        /// For how long from now, in steps of a millisecond; none: for ever, or as long as the
        /// set says. The set has to have `flags timeout` if there is one.
        timeout: Option<Duration>,
    },
    /// Delete the element. No harm if it isn't there.
    Delete {
        /// The set.
        set: SetName<'a>,
        /// The element.
        element: Element,
    },
}

/// An element with its times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveElement {
    /// The element.
    pub element: Element,
    /// How long it was to stay when it was added; none: for ever.
    pub timeout: Option<Duration>,
    /// How long it stays from now; none: for ever.
    pub expires_in: Option<Duration>,
}

/// The nftables sets of a network namespace.
#[derive(Debug)]
pub struct Nft {
    channel: Channel,
}

impl Nft {
    /// Opens a socket.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { channel: Channel::open(Subsystem::Netfilter)? })
    }

    /// Makes all these changes in one transaction: all or, with an error, none. Where an element
    /// is changed more than once, the last change counts.
    ///
    /// Every element is added, deleted, and, if it is to stay, added again: so a missing one can
    /// be deleted, and the time of one that is there begins anew on kernels that otherwise leave
    /// it as it was. (To who listens to events, it looks just like that.) For that moment it counts against the `size` of the set, also if it was there
    /// already. In a set that is full so nothing could be changed ([`Reason::Full`]); Linux 6.3 and
    /// later have a way that needs no room, which is then taken.
    ///
    /// An interval set refuses what overlaps with another element ([`Reason::Overlaps`]).
    ///
    /// Says whether the ruleset has another [number](Self::generation) by it for sure: what destroys
    /// nothing but what is gone may leave the old one.
    ///
    /// [`Reason::Full`]: super::Reason::Full
    /// [`Reason::Overlaps`]: super::Reason::Overlaps
    pub fn apply(&mut self, changes: &[ElementChange<'_>]) -> Result<bool, NetlinkError> {
        let wanted = put_together(changes);
        if wanted.is_empty() {
            return Ok(false);
        }
        match self.transact(&wanted, Clearing::Added) {
            Err(full) if full.reason() == Some(Reason::Full) => {
                match self.transact(&wanted, Clearing::Destroyed) {
                    Ok(()) => Ok(false),
                    Err(_) => Err(full),
                }
            }
            other => other.map(|()| true),
        }
    }

    fn transact(
        &mut self,
        wanted: &[PutTogether<'_, '_>],
        clearing: Clearing,
    ) -> Result<(), NetlinkError> {
        let mut of_sets = Vec::new();
        let failed =
            self.channel.parcel(&Doing("change nftables sets", None), |writer, first| {
                let last = write_transaction(writer, first, wanted, clearing, &mut of_sets);
                // What concerns the whole transaction is said of the message that begins it.
                Numbers { last, whole: Some(first) }
            })?;
        let Some(first) = failed.into_iter().next() else { return Ok(()) };
        let set = of_sets.iter().find(|(sequence, _)| *sequence == first.sequence);
        let mut refusal = first.refusal;
        // Adding what is there is no error: only an overlap is said to be there already.
        if refusal.code == EEXIST {
            refusal.code = ENOTEMPTY;
        }
        Err(NetlinkError::Refused {
            doing: match set {
                Some((_, set)) => format!("change nftables set {set}").into(),
                None => "change nftables sets".into(),
            },
            refusal,
        })
    }

    /// The elements of a set, in no order.
    ///
    /// The kernel tells them in parts, each counted from the beginning, and gives a set that has
    /// grown more room a moment later, in another order: then some come twice, and as many not at
    /// all. What shows that is read again.
    pub fn elements(&mut self, set: SetName<'_>) -> Result<Vec<LiveElement>, NetlinkError> {
        let doing = Doing("list nftables set", Some(set.set));
        for _ in 0..ATTEMPTS {
            let found = self.channel.dump(
                &doing,
                Head(GET_ELEMENTS, 0),
                |writer| write_list(writer, set),
                |message, found| read_elements(&message, found),
            )?;
            if !has_twins(&found) {
                return Ok(found);
            }
            thread::sleep(PAUSE);
        }
        Err(doing.restless())
    }

    /// Whether there is a chain of this name.
    pub fn has_chain(
        &mut self,
        family: TableFamily,
        table: &str,
        chain: &str,
    ) -> Result<bool, NetlinkError> {
        let asked = self.channel.tell(
            &Doing("look for nftables chain", Some(chain)),
            Head(GET_CHAIN, 0),
            |writer| write_chain(writer, family, table, chain),
        );
        match asked {
            Ok(()) => Ok(true),
            Err(error) if error.reason() == Some(Reason::Missing) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// A number that grows with each transaction of anybody's that changed something.
    pub fn generation(&mut self) -> Result<u32, NetlinkError> {
        let doing = Doing("ask for the generation of the ruleset", None);
        let mut generation = None;
        self.channel.ask(&doing, Head(GET_GENERATION, 0), write_any_family, |message| {
            generation = read_generation(&message);
        })?;
        generation.ok_or_else(|| doing.unreadable("generation"))
    }
}

fn has_twins(found: &[LiveElement]) -> bool {
    let mut seen = HashSet::with_capacity(found.len());
    !found.iter().all(|live| seen.insert(&live.element))
}

/// For each set in the order of its first change: each element once, with what becomes of it.
fn put_together<'a, 'c>(changes: &'c [ElementChange<'a>]) -> Vec<PutTogether<'a, 'c>> {
    let mut sets: Vec<PutTogether<'a, 'c>> = Vec::new();
    let mut places: HashMap<SetName<'a>, (usize, HashMap<&'c Element, usize>)> = HashMap::new();
    for change in changes {
        let (set, element, fate) = match change {
            ElementChange::Add { set, element, timeout } => (*set, element, Fate::Stays(*timeout)),
            ElementChange::Delete { set, element } => (*set, element, Fate::Goes),
        };
        let (at, elements) = places.entry(set).or_insert_with(|| {
            sets.push(PutTogether { set, elements: Vec::new() });
            (sets.len().saturating_sub(1), HashMap::new())
        });
        let Some(together) = sets.get_mut(*at) else { continue };
        let place = *elements.entry(element).or_insert(together.elements.len());
        match together.elements.get_mut(place) {
            Some(earlier) => earlier.1 = fate,
            None => together.elements.push((element, fate)),
        }
    }
    sets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_that_comes_twice_is_noticed() {
        let live = |text: &str, seconds| LiveElement {
            element: Element::Address(text.parse().unwrap()),
            timeout: None,
            expires_in: Some(Duration::from_secs(seconds)),
        };
        assert!(!has_twins(&[]));
        assert!(!has_twins(&[live("192.0.2.1", 5), live("192.0.2.2", 5)]));
        assert!(has_twins(&[live("192.0.2.1", 5), live("192.0.2.2", 5), live("192.0.2.1", 4)]));
    }

    #[test]
    fn the_last_change_of_an_element_counts() {
        let set = SetName { family: TableFamily::INET, table: "spa", set: "grants4" };
        let other = SetName { set: "grants6", ..set };
        let element = |text: &str| Element::Address(text.parse().unwrap());
        let (one, two) = (element("192.0.2.1"), element("192.0.2.2"));
        let add = |set, element: &Element, seconds| ElementChange::Add {
            set,
            element: element.clone(),
            timeout: Some(Duration::from_secs(seconds)),
        };
        let changes = [
            add(set, &one, 1),
            add(other, &one, 2),
            add(set, &two, 3),
            ElementChange::Delete { set, element: one.clone() },
            add(set, &two, 4),
        ];
        let together = put_together(&changes);
        assert_eq!(together.len(), 2);
        assert_eq!(together[0].set, set);
        let stays = |seconds| Fate::Stays(Some(Duration::from_secs(seconds)));
        assert_eq!(together[0].elements, [(&one, Fate::Goes), (&two, stays(4))]);
        assert_eq!(together[1].elements, [(&one, stays(2))]);
    }
}
