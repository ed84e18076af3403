//! Which set of the table an element is in, and under which key. Pure.
//!
//! All sets are hashes, so that a packet and a grant cost the same however many there are: one
//! set for each length of prefix, in which a packet's masked source address is looked up, and one
//! for each guarded range of ports. (The kernel's interval sets could hold them all in one, but take
//! the longer for a change the more they hold, and no elements that overlap.)

use crate::gate::types::{Element, Family, Guarded, LiveElement, Plan};
use crate::service::Connections;
use crate::source::Source;
use ipnet::IpNet;
use spa_proto::{Port, PortRange};
use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What the elements of a set have in common.
///
/// It is written as the set's name: `spa4`, `spa6-64-once`, `spa4-udp-10000-10100`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Shape {
    /// Of which family the sources are.
    pub(super) family: Family,
    /// How many bits of a source address count.
    pub(super) prefix: u8,
    /// How many connections an element lets in.
    pub(super) connections: Connections,
    /// The guarded range that the elements are about; `None`: each is about one port, which is
    /// part of its key.
    pub(super) range: Option<PortRange>,
}

impl Shape {
    /// That of single addresses.
    pub(super) const fn of_hosts(
        family: Family,
        connections: Connections,
        range: Option<PortRange>,
    ) -> Self {
        let prefix = all_bits(family);
        Self { family, prefix, connections, range }
    }

    /// That of an element whose ports let in so many connections.
    pub(super) fn of(element: Element, connections: Connections) -> Self {
        let net = element.source.net();
        let range = element.ports.single().is_none().then_some(element.ports);
        Self { family: Family::of(net.addr()), prefix: net.prefix_len(), connections, range }
    }

    /// Whether it is that of single addresses.
    pub(super) const fn is_of_hosts(self) -> bool {
        self.prefix == all_bits(self.family)
    }

    /// The shape that a set of ours has; `None` for other names.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let mut words = name.split('-').peekable();
        let family = match words.next()? {
            "spa4" => Family::V4,
            "spa6" => Family::V6,
            _ => return None,
        };
        let prefix = match words.peek().and_then(|word| word.parse().ok()) {
            Some(prefix) => words.next().map(|_| prefix)?,
            None => all_bits(family),
        };
        let connections = match words.next_if_eq(&"once") {
            Some(_) => Connections::One,
            None => Connections::Any,
        };
        let range = match words.next() {
            None => None,
            Some(transport) => {
                let (first, last) = (words.next()?, words.next()?);
                Some(format!("{transport}/{first}-{last}").parse().ok()?)
            }
        };
        let shape = Self { family, prefix, connections, range };
        (shape.to_string() == name).then_some(shape)
    }

    /// The types of the key.
    pub(super) const fn key_type(self) -> &'static str {
        match (self.family, self.range.is_some()) {
            (Family::V4, false) => "ipv4_addr . inet_proto . inet_service",
            (Family::V6, false) => "ipv6_addr . inet_proto . inet_service",
            (Family::V4, true) => "ipv4_addr",
            (Family::V6, true) => "ipv6_addr",
        }
    }

    /// What of a packet is looked up.
    pub(super) fn packet_key(self) -> String {
        let mut key = match self.family {
            Family::V4 => "ip saddr".to_owned(),
            Family::V6 => "ip6 saddr".to_owned(),
        };
        if !self.is_of_hosts() {
            key.push_str(" & ");
            key.push_str(&self.mask().to_string());
        }
        if self.range.is_none() {
            key.push_str(" . meta l4proto . th dport");
        }
        key
    }

    fn mask(self) -> IpAddr {
        match self.family {
            Family::V4 => IpNet::new(Ipv4Addr::UNSPECIFIED.into(), self.prefix),
            Family::V6 => IpNet::new(Ipv6Addr::UNSPECIFIED.into(), self.prefix),
        }
        .map_or(Ipv6Addr::UNSPECIFIED.into(), |net| net.netmask())
    }

    /// The element of a key that the set holds.
    pub(super) fn element(self, address: IpAddr, port: Option<Port>) -> Option<Element> {
        let ports = self.range.or(port.map(PortRange::from))?;
        Some(Element { source: Source::around(address, self.prefix), ports })
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.family {
            Family::V4 => "spa4",
            Family::V6 => "spa6",
        })?;
        if !self.is_of_hosts() {
            write!(f, "-{}", self.prefix)?;
        }
        if self.connections == Connections::One {
            f.write_str("-once")?;
        }
        if let Some(range) = self.range {
            write!(f, "-{}-{}-{}", range.transport(), range.first(), range.last())?;
        }
        Ok(())
    }
}

const fn all_bits(family: Family) -> u8 {
    match family {
        Family::V4 => 32,
        Family::V6 => 128,
    }
}

/// The shapes that elements of a plan may have, for single addresses.
pub(super) fn of_plan(plan: &Plan) -> BTreeSet<Shape> {
    let mut shapes = BTreeSet::new();
    for family in Family::ALL {
        shapes.insert(Shape::of_hosts(family, Connections::Any, None));
        for guarded in &plan.guarded {
            let Guarded { ports, connections, .. } = *guarded;
            shapes.insert(Shape::of_hosts(family, connections, None));
            if ports.single().is_none() {
                shapes.insert(Shape::of_hosts(family, connections, Some(ports)));
            }
        }
    }
    shapes
}

/// Whether elements of this shape are any of the plan's.
pub(super) fn fits(plan: &Plan, shape: Shape) -> bool {
    of_plan(plan).contains(&Shape { prefix: all_bits(shape.family), ..shape })
}

/// The shape that an element has under a plan; `None` if the plan doesn't guard its ports.
pub(super) fn under(plan: &Plan, element: Element) -> Option<Shape> {
    plan.guarded_at(element.ports).map(|guarded| Shape::of(element, guarded.connections))
}

/// The elements that are in the sets where they belong under a plan: what is left in another set
/// from an earlier plan admits nothing.
pub(super) fn in_force(plan: &Plan, found: Vec<(Shape, LiveElement)>) -> Vec<LiveElement> {
    let counts = |(shape, live): (Shape, LiveElement)| {
        (under(plan, live.element) == Some(shape)).then_some(live)
    };
    found.into_iter().filter_map(counts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(source: &str, ports: &str) -> Element {
        Element { source: source.parse().unwrap(), ports: ports.parse().unwrap() }
    }

    #[test]
    fn a_shape_is_read_off_its_name() {
        for (source, ports, connections, name) in [
            ("192.0.2.7", "tcp/22", Connections::Any, "spa4"),
            ("192.0.2.0/24", "tcp/22", Connections::Any, "spa4-24"),
            ("2001:db8::7", "tcp/22", Connections::One, "spa6-once"),
            ("2001:db8::/64", "udp/5-9", Connections::One, "spa6-64-once-udp-5-9"),
            ("192.0.2.7", "udp/10000-10100", Connections::Any, "spa4-udp-10000-10100"),
        ] {
            let shape = Shape::of(element(source, ports), connections);
            assert_eq!(shape.to_string(), name);
            assert_eq!(Shape::parse(name), Some(shape));
            let net: IpNet = shape_net(source);
            let port = ports.parse().ok();
            assert_eq!(shape.element(net.addr(), port), Some(element(source, ports)));
        }
        for name in ["armed", "spa4-32", "spa4-", "spa5", "spa4-24-tcp", "spa4-udp-9-5", "spa4-x"] {
            assert_eq!(Shape::parse(name), None, "{name}");
        }
    }

    fn shape_net(source: &str) -> IpNet {
        source.parse::<Source>().unwrap().net()
    }

    #[test]
    fn a_packet_is_looked_up_by_its_masked_address() {
        let key = |name| Shape::parse(name).unwrap().packet_key();
        assert_eq!(key("spa4"), "ip saddr . meta l4proto . th dport");
        assert_eq!(key("spa4-20"), "ip saddr & 255.255.240.0 . meta l4proto . th dport");
        assert_eq!(key("spa6-64-udp-5-9"), "ip6 saddr & ffff:ffff:ffff:ffff::");
    }

    #[test]
    fn what_an_earlier_plan_has_left_elsewhere_does_not_count() {
        let mut plan = crate::gate::nftables::samples::plan();
        let live = LiveElement { element: element("192.0.2.7", "tcp/22"), seconds_left: 9 };
        let any = Shape::parse("spa4").unwrap();
        assert_eq!(in_force(&plan, vec![(any, live)]), [live]);
        for guarded in &mut plan.guarded {
            guarded.connections = Connections::One;
        }
        assert_eq!(in_force(&plan, vec![(any, live)]), []);
        assert!(fits(&plan, Shape::parse("spa4-24-once").unwrap()));
        assert!(!fits(&plan, Shape::parse("spa4-udp-1-2").unwrap()));
    }
}
