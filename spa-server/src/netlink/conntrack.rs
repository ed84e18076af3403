//! Connection tracking: flows listed, entered, confirmed and deleted. What the messages look like
//! is in `message`.

mod message;

use self::message::{
    CONFIRMED, DELETE, GET, GET_STATS, NEW, read_entries, read_flow, write_filter, write_flow_id,
    write_new, write_status, write_tuple_only,
};
use super::error::{NetlinkError, Reason};
use super::socket::{Channel, Doing, Head, Subsystem};
use super::wire;
use super::{FAMILY_ANY, Family};
use spa_proto::Transport;
use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;

/// Where no more than these are tracked, all of them are asked for at once.
const FEW: u32 = 1024;
/// How often an entry is confirmed that changes meanwhile.
const ATTEMPTS: usize = 10;

/// One direction of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// TCP or UDP.
    pub transport: Transport,
    /// Where its packets come from.
    pub source: SocketAddr,
    /// Where they go.
    pub destination: SocketAddr,
}

impl Tuple {
    /// The other direction, if no address is translated.
    pub const fn reversed(self) -> Self {
        Self { transport: self.transport, source: self.destination, destination: self.source }
    }
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} -> {}", self.transport, self.source, self.destination)
    }
}

/// What connection tracking knows of a connection or an exchange of datagrams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// As the first packet had it, before any translation.
    pub original: Tuple,
    /// As answers have it when they come in.
    pub reply: Tuple,
    /// How far it is.
    pub status: Status,
    /// The state of a TCP connection.
    pub tcp_state: Option<TcpState>,
    /// It is a TCP connection of which the first packet was not seen: who began it is not known.
    pub begun_unseen: bool,
    /// The mark that rules gave it.
    pub mark: u32,
    /// How many seconds it is remembered without another packet.
    pub seconds_left: u32,
    /// What tells it from a later one between the same ends: made from its place in memory.
    pub id: u32,
    /// The zone, 0 if rules don't use any.
    pub zone: u16,
}

/// `IPS_*` (linux/include/uapi/linux/netfilter/nf_conntrack_common.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(pub u32);

impl Status {
    const SEEN_REPLY: u32 = 1 << 1;
    const ASSURED: u32 = 1 << 2;
    const DESTINATION_TRANSLATED: u32 = 1 << 5;
    /// What makes an entry that of an established connection.
    const ESTABLISHED: u32 = Self::SEEN_REPLY | Self::ASSURED;

    /// Whether packets of both directions were seen: later ones are `ESTABLISHED` to rules.
    pub const fn seen_reply(self) -> bool {
        self.0 & Self::SEEN_REPLY != 0
    }

    /// Whether it is kept when the table is full.
    pub const fn assured(self) -> bool {
        self.0 & Self::ASSURED != 0
    }

    /// Whether its destination is translated.
    pub const fn destination_translated(self) -> bool {
        self.0 & Self::DESTINATION_TRANSLATED != 0
    }
}

/// `enum tcp_conntrack` (linux/include/uapi/linux/netfilter/nf_conntrack_tcp.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TcpState(pub u8);

impl TcpState {
    /// Both ends have said hello, and none has said goodbye.
    pub const ESTABLISHED: Self = Self(3);
}

/// Which flows are wanted.
#[derive(Debug, Clone, Copy)]
pub struct Filter<'a> {
    /// Of this protocol.
    pub transport: Transport,
    /// To these ports, before any translation; none: to any.
    pub ports: Option<&'a [RangeInclusive<u16>]>,
}

impl Filter<'_> {
    fn wants(&self, flow: &Flow) -> bool {
        let Tuple { transport, destination, .. } = flow.original;
        let port = destination.port();
        transport == self.transport
            && self.ports.is_none_or(|ports| ports.iter().any(|range| range.contains(&port)))
    }
}

/// What came of entering a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Entered {
    /// It wasn't known, and now it is.
    New,
    /// It was known, and is now an established one.
    Confirmed,
    /// It was known the other way round, since this host began it, or by translated addresses:
    /// nothing was to be done.
    OtherWay,
}

/// The connection tracking of a network namespace.
#[derive(Debug)]
pub struct Conntrack {
    channel: Channel,
}

impl Conntrack {
    /// Opens a socket.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { channel: Channel::open(Subsystem::Netfilter)? })
    }

    /// The flows that one of these filters wants.
    ///
    /// For each question the kernel walks through its whole table, that of all network namespaces, and
    /// does nothing else on that processor meanwhile: ten milliseconds where there is room for 262,144.
    /// So there is one question where few are tracked. Where there are many, copying them all would
    /// take longer: kernels since 5.8 compare the protocol, and the port if it is only one, for which
    /// each protocol and family is a question of its own. Ranges and older kernels' answers are compared
    /// here.
    pub fn dump(&mut self, filters: &[Filter<'_>]) -> Result<Vec<Flow>, NetlinkError> {
        let is_wanted = |flow: &Flow| filters.iter().any(|filter| filter.wants(flow));
        if self.entries().is_some_and(|entries| entries <= FEW) {
            return self.question(None, is_wanted);
        }
        let mut flows = Vec::new();
        for filter in filters {
            for family in [Family::V4, Family::V6] {
                match self.question(Some((family, *filter)), |flow| filter.wants(flow)) {
                    Ok(found) => flows.extend(found),
                    // What a kernel says that knows filters, but not this one.
                    Err(error) if error.reason() == Some(Reason::Unsupported) => {
                        return self.question(None, is_wanted);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(flows)
    }

    /// How many are tracked in this network namespace, if the kernel tells: without it there are more
    /// questions, and it is these that fail.
    fn entries(&mut self) -> Option<u32> {
        let mut entries = None;
        let asked = self.channel.ask(
            &Doing("count the tracked connections", None),
            Head(GET_STATS, 0),
            |writer| writer.netfilter_header(FAMILY_ANY, 0),
            |message| entries = read_entries(&message),
        );
        asked.ok().and(entries)
    }

    fn question(
        &mut self,
        filter: Option<(Family, Filter<'_>)>,
        is_wanted: impl Fn(&Flow) -> bool,
    ) -> Result<Vec<Flow>, NetlinkError> {
        self.channel.dump(
            &Doing("list the tracked connections", None),
            Head(GET, 0),
            |writer| write_filter(writer, filter),
            |message, found| found.extend(read_flow(&message).filter(&is_wanted)),
        )
    }

    /// The flow that a packet like this belongs to, in whichever direction.
    pub fn find(&mut self, tuple: &Tuple) -> Result<Option<Flow>, NetlinkError> {
        let mut found = None;
        let asked = self.channel.ask(
            &Doing("look for a tracked connection", None),
            Head(GET, 0),
            |writer| write_tuple_only(writer, tuple),
            |message| found = read_flow(&message),
        );
        match asked {
            Ok(()) => Ok(found),
            Err(error) if error.reason() == Some(Reason::Missing) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Enters an established connection as if its first packet had been like this. There must be
    /// none: else [`Reason::Exists`], also if it is known the other way round.
    ///
    /// It is remembered as long as the kernel itself would an idle one: TCP for five days, UDP for
    /// two minutes. The sequence numbers of TCP aren't known, and aren't compared.
    pub fn create(&mut self, tuple: &Tuple) -> Result<(), NetlinkError> {
        self.channel.tell(
            &Doing("tell connection tracking of an established connection", None),
            Head(NEW, wire::CREATE | wire::EXCLUSIVE),
            |writer| write_new(writer, tuple, CONFIRMED | Status::ESTABLISHED),
        )
    }

    /// Makes an entry that is there already, perhaps of one packet only, into that of an
    /// established connection. Whether there is one that began with a packet like this.
    pub fn confirm(&mut self, tuple: &Tuple) -> Result<bool, NetlinkError> {
        let mut attempts = 0;
        loop {
            let Some(flow) = self.find(tuple)?.filter(|flow| flow.original == *tuple) else {
                return Ok(false);
            };
            let wanted = flow.status.0 | Status::ESTABLISHED;
            if flow.status.0 == wanted {
                return Ok(true);
            }
            let told = self.channel.tell(
                &Doing("confirm a tracked connection", None),
                Head(NEW, 0),
                |writer| write_status(writer, &flow, wanted),
            );
            attempts += 1;
            match told {
                Ok(()) => return Ok(true),
                // It has another status by now, or is gone.
                Err(error)
                    if matches!(error.reason(), Some(Reason::InUse | Reason::Missing))
                        && attempts < ATTEMPTS => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Enters an established connection, or confirms the entry that is there.
    pub fn enter(&mut self, tuple: &Tuple) -> Result<Entered, NetlinkError> {
        match self.create(tuple) {
            Ok(()) => Ok(Entered::New),
            Err(error) if error.reason() == Some(Reason::Exists) => {
                let confirmed = self.confirm(tuple)?;
                Ok(if confirmed { Entered::Confirmed } else { Entered::OtherWay })
            }
            Err(error) => Err(error),
        }
    }

    /// Forgets a flow. Whether it was still there: a later one between the same ends has another
    /// id and is left alone, unless it happens to have the same place in the kernel's memory.
    /// The next packet begins a new one.
    pub fn delete(&mut self, flow: &Flow) -> Result<bool, NetlinkError> {
        let told = self.channel.tell(
            &Doing("forget a tracked connection", None),
            Head(DELETE, 0),
            |writer| write_flow_id(writer, flow),
        );
        match told {
            Ok(()) => Ok(true),
            Err(error) if error.reason() == Some(Reason::Missing) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it refused either, lists would look the same and take longer.
    #[test]
    fn this_kernel_takes_the_filters_and_tells_how_many_are_tracked() {
        let mut conntrack = Conntrack::open().unwrap();
        assert!(conntrack.entries().is_some());
        for transport in [Transport::Tcp, Transport::Udp] {
            for ports in [None, Some([22..=22].as_slice()), Some([22..=23].as_slice())] {
                for family in [Family::V4, Family::V6] {
                    let filter = Filter { transport, ports };
                    conntrack.question(Some((family, filter)), |_| true).unwrap();
                }
            }
        }
    }
}
