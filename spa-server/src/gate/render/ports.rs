//! Rules that choose packets by port.

use spa_proto::{PortRange, Transport};
use std::collections::BTreeSet;

/// How many ports one rule can name (xt_multiport.h); a range counts as two.
const PLACES: usize = 15;

/// `-p tcp -m tcp --dport 22`, `-p udp -m udp --dport 10000:10100`
pub(super) fn one(ports: PortRange) -> String {
    let transport = ports.transport();
    format!("-p {transport} -m {transport} --dport {}", numbers(ports))
}

/// `22`, `10000:10100`
pub(super) fn numbers(ports: PortRange) -> String {
    let (first, last) = (ports.first(), ports.last());
    if first == last { first.to_string() } else { format!("{first}:{last}") }
}

/// The number by which connection tracking is asked for a protocol.
pub(super) const fn protocol(transport: Transport) -> u8 {
    match transport {
        Transport::Tcp => 6,
        Transport::Udp => 17,
    }
}

/// As few rules as possible, each with this verdict, for packets to these ports.
pub(super) fn each(ports: impl IntoIterator<Item = PortRange>, verdict: &str) -> Vec<String> {
    let ports: BTreeSet<_> = ports.into_iter().collect();
    let mut rules = Vec::new();
    for transport in [Transport::Tcp, Transport::Udp] {
        let mut group = Vec::new();
        let mut free = PLACES;
        for range in ports.iter().copied().filter(|range| range.transport() == transport) {
            let needs = if range.single().is_some() { 1 } else { 2 };
            if free < needs {
                rules.push(several(transport, &std::mem::take(&mut group), verdict));
                free = PLACES;
            }
            free = free.saturating_sub(needs);
            group.push(range);
        }
        if !group.is_empty() {
            rules.push(several(transport, &group, verdict));
        }
    }
    rules
}

fn several(transport: Transport, ports: &[PortRange], verdict: &str) -> String {
    if let [ports] = ports {
        return format!("{} {verdict}", one(*ports));
    }
    let list: Vec<_> = ports.iter().copied().map(numbers).collect();
    format!("-p {transport} -m multiport --dports {} {verdict}", list.join(","))
}
