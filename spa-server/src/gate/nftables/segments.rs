//! Guarded ports as pieces that don't overlap, as the kernel's sets of ranges want them. Pure.

use crate::gate::types::Guarded;
use spa_proto::{PortRange, Transport};
use std::collections::BTreeSet;
use std::num::NonZeroU16;

/// A piece of the guarded ports, and all that guards it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment<'a> {
    /// The ports.
    pub(super) ports: PortRange,
    /// What covers them, all of them; never empty. They agree in target and connections.
    pub(super) guarded: Vec<&'a Guarded>,
}

/// Cuts where one of the ranges begins or ends.
pub(super) fn segments(guarded: &[Guarded]) -> Vec<Segment<'_>> {
    let mut found = Vec::new();
    for transport in [Transport::Tcp, Transport::Udp] {
        let ranges = || guarded.iter().filter(|one| one.ports.transport() == transport);
        // The port behind the last one may be 65,536.
        let begins: BTreeSet<u32> = ranges()
            .flat_map(|one| [first(one.ports), last(one.ports).saturating_add(1)])
            .collect();
        for (begin, end) in begins.iter().zip(begins.iter().skip(1)) {
            let Some(ports) = range(transport, *begin, end.saturating_sub(1)) else { continue };
            let covering: Vec<_> = ranges().filter(|one| one.ports.covers(ports)).collect();
            if !covering.is_empty() {
                found.push(Segment { ports, guarded: covering });
            }
        }
    }
    found
}

fn first(ports: PortRange) -> u32 {
    ports.first().get().into()
}

fn last(ports: PortRange) -> u32 {
    ports.last().get().into()
}

fn range(transport: Transport, first: u32, last: u32) -> Option<PortRange> {
    let number = |number: u32| u16::try_from(number).ok().and_then(NonZeroU16::new);
    PortRange::new(transport, number(first)?, number(last)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(ports: &[&str]) -> Vec<String> {
        let guarded: Vec<_> = ports.iter().map(|p| Guarded::plain(p.parse().unwrap())).collect();
        segments(&guarded)
            .iter()
            .map(|segment| format!("{} in {}", segment.ports, segment.guarded.len()))
            .collect()
    }

    #[test]
    fn what_does_not_overlap_stays_whole() {
        assert_eq!(
            cut(&["tcp/22", "udp/22", "tcp/23"]),
            ["tcp/22 in 1", "tcp/23 in 1", "udp/22 in 1"]
        );
        assert_eq!(cut(&["udp/1-65535"]), ["udp/1-65535 in 1"]);
    }

    #[test]
    fn what_overlaps_is_cut() {
        assert_eq!(
            cut(&["tcp/10-20", "tcp/15-30", "tcp/17", "tcp/40"]),
            [
                "tcp/10-14 in 1",
                "tcp/15-16 in 2",
                "tcp/17 in 3",
                "tcp/18-20 in 2",
                "tcp/21-30 in 1",
                "tcp/40 in 1"
            ]
        );
        assert_eq!(cut(&["tcp/22", "tcp/22"]), ["tcp/22 in 2"]);
    }
}
