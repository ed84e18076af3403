//! Which sets hold what is admitted: their names, kinds, and which element belongs where. Pure.
//!
//! Single ports of any number of services share the two sets of a family, one for addresses and
//! one for networks, which makes a packet's way the same with one service and with a thousand. A
//! range has a set of sources of its own: in `hash:ip,port` it would be as many elements as it has
//! ports. What lets one connection in is apart, for there the rules take the element out.

use super::types::{Element, Family, Plan};
use crate::netlink::ipset::{Entry, SetKind};
use crate::service::Connections;
use ipnet::IpNet;
use spa_proto::{PortRange, Transport};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// More ranges than this no plan may have: the kernel makes room for 256 sets at first, and a
/// packet to a guarded port passes a rule for each.
pub const MAX_RANGES: usize = 100;

/// A set of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetId {
    /// The family of the addresses in it.
    pub family: Family,
    /// What it holds.
    pub holds: Holds,
}

/// What a set holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Holds {
    /// Addresses that may come to a port.
    Hosts,
    /// Networks that may come to a port.
    Networks,
    /// Addresses of which one connection may come to a port.
    Once,
    /// Addresses and networks that may come to these ports.
    Range(PortRange),
    /// Addresses of which one connection may come to these ports.
    RangeOnce(PortRange),
    /// While it holds everybody, the gate refuses.
    Armed,
}

impl SetId {
    /// The kernel's kind of set.
    pub const fn kind(self) -> SetKind {
        match self.holds {
            Holds::Hosts | Holds::Once => SetKind::IpPort,
            Holds::Networks => SetKind::NetPort,
            Holds::Range(_) | Holds::Armed => SetKind::Net,
            Holds::RangeOnce(_) => SetKind::Ip,
        }
    }

    /// How many elements it may hold.
    pub const fn size(self, plan: &Plan) -> u32 {
        match self.holds {
            Holds::Armed => 16,
            _ => plan.max_elements,
        }
    }

    /// Whether it holds what is admitted.
    pub const fn admits(self) -> bool {
        !matches!(self.holds, Holds::Armed)
    }

    /// The name under which a set is built that is to replace this one.
    pub fn new_name(self) -> String {
        format!("{self}-new")
    }

    /// The element that an entry of this set is.
    pub fn element(self, entry: Entry) -> Option<Element> {
        let ports = match (self.holds, entry) {
            (Holds::Range(ports) | Holds::RangeOnce(ports), _) => ports,
            (_, Entry::AddressPort(_, port) | Entry::NetworkPort(_, port)) => port.into(),
            _ => return None,
        };
        let source = match entry {
            Entry::Address(address) | Entry::AddressPort(address, _) => address.into(),
            Entry::Network(network) | Entry::NetworkPort(network, _) => network.into(),
        };
        Some(Element { source, ports })
    }
}

/// `spa4`, `spa6-net`, `spa4-once`, `spa4-udp-10000-10100`, `spa6-once-tcp-80-90`, `spa4-armed`:
/// at most 25 bytes, 31 are possible.
impl fmt::Display for SetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.family {
            Family::V4 => "spa4",
            Family::V6 => "spa6",
        })?;
        let range =
            |ports: PortRange| format!("{}-{}-{}", ports.transport(), ports.first(), ports.last());
        match self.holds {
            Holds::Hosts => Ok(()),
            Holds::Networks => f.write_str("-net"),
            Holds::Once => f.write_str("-once"),
            Holds::Range(ports) => write!(f, "-{}", range(ports)),
            Holds::RangeOnce(ports) => write!(f, "-once-{}", range(ports)),
            Holds::Armed => f.write_str("-armed"),
        }
    }
}

/// Not the name of a set of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotOurs;

impl FromStr for SetId {
    type Err = NotOurs;

    fn from_str(name: &str) -> Result<Self, NotOurs> {
        let (family, rest) = match name.split_at_checked(4).ok_or(NotOurs)? {
            ("spa4", rest) => (Family::V4, rest),
            ("spa6", rest) => (Family::V6, rest),
            _ => return Err(NotOurs),
        };
        let holds = match rest {
            "" => Holds::Hosts,
            "-net" => Holds::Networks,
            "-once" => Holds::Once,
            "-armed" => Holds::Armed,
            _ => match rest.strip_prefix("-once-") {
                Some(ports) => Holds::RangeOnce(range(ports).ok_or(NotOurs)?),
                None => Holds::Range(rest.strip_prefix('-').and_then(range).ok_or(NotOurs)?),
            },
        };
        let set = Self { family, holds };
        // One spelling only: what is written otherwise was not made by this program.
        if set.to_string() == name { Ok(set) } else { Err(NotOurs) }
    }
}

/// `udp-10000-10100`
fn range(text: &str) -> Option<PortRange> {
    let (transport, ports) = text.split_once('-')?;
    let (first, last) = ports.split_once('-')?;
    let transport = match transport {
        "tcp" => Transport::Tcp,
        "udp" => Transport::Udp,
        _ => return None,
    };
    let range = PortRange::new(transport, first.parse().ok()?, last.parse().ok()?)?;
    range.single().is_none().then_some(range)
}

/// The sets of a family that the plan needs.
pub fn wanted(family: Family, plan: &Plan) -> BTreeSet<SetId> {
    let mut sets: BTreeSet<_> = [Holds::Hosts, Holds::Networks].into();
    for guarded in &plan.guarded {
        let limited = guarded.connections == Connections::One;
        if guarded.ports.single().is_none() {
            sets.insert(range_set(guarded.ports, guarded.connections));
        }
        // One port of a range can be granted alone.
        if limited {
            sets.insert(Holds::Once);
        }
    }
    if plan.trial_seconds.is_some() {
        sets.insert(Holds::Armed);
    }
    sets.into_iter().map(|holds| SetId { family, holds }).collect()
}

/// The set of the sources that may come to a range.
pub const fn range_set(ports: PortRange, connections: Connections) -> Holds {
    match connections {
        Connections::Any => Holds::Range(ports),
        Connections::One => Holds::RangeOnce(ports),
    }
}

/// Where the plan has an element, and as what; `None` if it has none such.
pub fn place(plan: &Plan, element: Element) -> Option<(SetId, Entry)> {
    let Element { source, ports } = element;
    let connections = plan.guarded_at(ports)?.connections;
    let (holds, entry) = match (ports.single(), connections, source.is_host()) {
        (Some(port), Connections::Any, true) => {
            (Holds::Hosts, Entry::AddressPort(source.address(), port))
        }
        (Some(port), Connections::Any, false) => {
            (Holds::Networks, Entry::NetworkPort(source.net(), port))
        }
        (Some(port), Connections::One, true) => {
            (Holds::Once, Entry::AddressPort(source.address(), port))
        }
        (None, Connections::Any, _) => (Holds::Range(ports), Entry::Network(source.net())),
        (None, Connections::One, true) => {
            (Holds::RangeOnce(ports), Entry::Address(source.address()))
        }
        // A rule can take the element of an address out, but not that of a network which the
        // packet's address lies in (ip_set_hash_net.c deletes by the longest prefix it has).
        (_, Connections::One, false) => return None,
    };
    Some((SetId { family: Family::of(source.address()), holds }, entry))
}

/// All addresses of a family, as the sets take them: none takes a prefix of length 0.
pub fn everybody(family: Family) -> [Entry; 2] {
    let halves = match family {
        Family::V4 => [[0, 0, 0, 0], [128, 0, 0, 0]].map(std::net::IpAddr::from),
        Family::V6 => {
            let mut upper = [0; 16];
            upper[0] = 0x80;
            [[0; 16], upper].map(std::net::IpAddr::from)
        }
    };
    halves.map(|half| Entry::Network(IpNet::new_assert(half, 1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::types::{Guarded, Mode, Refusal};
    use crate::service::Target;

    fn plan(guarded: &[(&str, Connections)]) -> Plan {
        Plan {
            mode: Mode::Guard,
            refusal: Refusal::Drop,
            guarded: guarded
                .iter()
                .map(|(ports, connections)| Guarded {
                    ports: ports.parse().unwrap(),
                    target: Target::Here,
                    connections: *connections,
                })
                .collect(),
            knock_ports: Vec::new(),
            always_admit: Vec::new(),
            max_elements: 9,
            trial_seconds: None,
        }
    }

    fn names(sets: &BTreeSet<SetId>) -> Vec<String> {
        sets.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_plan_has_the_sets_that_it_needs() {
        let mut plan = plan(&[("tcp/22", Connections::Any), ("tcp/22-22", Connections::Any)]);
        assert_eq!(names(&wanted(Family::V4, &plan)), ["spa4", "spa4-net"]);
        plan.guarded.extend(
            self::plan(&[
                ("udp/10000-10100", Connections::Any),
                ("tcp/80-90", Connections::One),
                ("tcp/23", Connections::One),
            ])
            .guarded,
        );
        plan.trial_seconds = Some(60);
        assert_eq!(
            names(&wanted(Family::V6, &plan)),
            [
                "spa6",
                "spa6-net",
                "spa6-once",
                "spa6-udp-10000-10100",
                "spa6-once-tcp-80-90",
                "spa6-armed"
            ]
        );
    }

    #[test]
    fn names_are_read_as_they_are_written_and_no_others() {
        let longest = PortRange::new(
            Transport::Tcp,
            10_000.try_into().unwrap(),
            u16::MAX.try_into().unwrap(),
        )
        .unwrap();
        for holds in [
            Holds::Hosts,
            Holds::Networks,
            Holds::Once,
            Holds::Range(longest),
            Holds::RangeOnce(longest),
            Holds::Armed,
        ] {
            for family in Family::ALL {
                let set = SetId { family, holds };
                assert_eq!(set.to_string().parse(), Ok(set));
                assert!(set.new_name().len() <= 31, "{set}");
            }
        }
        for name in [
            "",
            "spa",
            "spa5",
            "spa4x",
            "spa4-new",
            "spa4-tcp-22-22",
            "spa4-tcp-22",
            "spa4-tcp-90-80",
            "spa4-tcp-080-90",
            "spa4-sctp-80-90",
            "spa4-once-",
            "späm",
        ] {
            assert_eq!(name.parse::<SetId>(), Err(NotOurs), "{name}");
        }
    }

    #[test]
    fn an_element_comes_back_from_where_it_was_put() {
        let plan = plan(&[
            ("tcp/22", Connections::Any),
            ("udp/10000-10100", Connections::Any),
            ("tcp/80-90", Connections::One),
        ]);
        for (source, ports, set) in [
            ("192.0.2.7", "tcp/22", "spa4"),
            ("192.0.2.0/24", "tcp/22", "spa4-net"),
            ("2001:db8::7", "udp/10000-10100", "spa6-udp-10000-10100"),
            ("2001:db8::/64", "udp/10000-10100", "spa6-udp-10000-10100"),
            ("2001:db8::/64", "udp/10050", "spa6-net"),
            ("192.0.2.7", "tcp/80-90", "spa4-once-tcp-80-90"),
            ("192.0.2.7", "tcp/85", "spa4-once"),
        ] {
            let element =
                Element { source: source.parse().unwrap(), ports: ports.parse().unwrap() };
            let (home, entry) = place(&plan, element).unwrap();
            assert_eq!(home.to_string(), set);
            assert_eq!(home.element(entry), Some(element));
        }
        for (source, ports) in
            [("192.0.2.7", "tcp/23"), ("192.0.2.7", "udp/10000-10050"), ("192.0.2.0/24", "tcp/85")]
        {
            let element =
                Element { source: source.parse().unwrap(), ports: ports.parse().unwrap() };
            assert_eq!(place(&plan, element), None);
        }
    }

    #[test]
    fn everybody_is_everybody() {
        let text = |family| everybody(family).map(|entry| entry.to_string());
        assert_eq!(text(Family::V4), ["0.0.0.0/1", "128.0.0.0/1"]);
        assert_eq!(text(Family::V6), ["::/1", "8000::/1"]);
    }
}
