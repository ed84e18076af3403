//! What asks in a rule whether a packet is granted, and whether the gate still refuses.

use super::held::{HeldRule, datestop};
use super::{FIRST_MARK, GRANTS, Layout, TableName, ports};
use crate::gate::sets::{Holds, SetId, range_set};
use crate::gate::types::Guarded;
use crate::service::{Connections, Target};
use spa_proto::PortRange;
use std::collections::BTreeSet;

/// Where grants are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grants<'a> {
    /// In sets, as [`crate::gate::sets`] has them.
    InSets,
    /// Each in a rule of its own, which says until when it counts.
    InRules(&'a [HeldRule]),
}

/// How long the gate refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Armed {
    /// Until it is removed.
    ForGood,
    /// While a set holds everybody, whose elements the kernel takes out when their time is over.
    BySet,
    /// Until the end of this second, in Unix time.
    Until(u64),
}

impl Armed {
    /// What a rule that refuses has to match besides.
    pub(super) fn condition(self, layout: &Layout<'_>) -> String {
        match self {
            Self::ForGood => String::new(),
            Self::BySet => {
                let set = SetId { family: layout.family, holds: Holds::Armed };
                format!("-m set --match-set {set} src ")
            }
            Self::Until(second) => format!("{} ", datestop(second)),
        }
    }
}

impl TableName {
    /// Whether rules in this table have to know the grants of these ports: the first judges all,
    /// then each packet is let in at this host or sent elsewhere.
    pub(super) fn concerns(self, guarded: &Guarded) -> bool {
        match self {
            Self::Mangle => true,
            Self::Filter => guarded.target == Target::Here,
            Self::Nat => guarded.target != Target::Here,
        }
    }
}

/// Rules that give what is granted this verdict, and leave the rest alone.
///
/// Where grants are rules themselves, they have verdicts of their own, and what isn't granted
/// comes back.
pub(super) fn rules(table: TableName, layout: &Layout<'_>, verdict: &str) -> Vec<String> {
    if let Grants::InRules(_) = layout.grants {
        return vec![format!("-j {GRANTS}")];
    }
    let shared = [Holds::Hosts, Holds::Networks].map(|holds| Lookup { ports: None, holds });
    let ranges = ranges(table, layout, Connections::Any);
    shared
        .into_iter()
        .chain(ranges)
        .map(|lookup| format!("{} {verdict}", lookup.matches(layout)))
        .collect()
}

/// Rules for table mangle that mark the connection which a grant lets in, and take the grant away.
pub(super) fn consume(layout: &Layout<'_>) -> Vec<String> {
    let single = Lookup { ports: None, holds: Holds::Once };
    let ranges = ranges(TableName::Mangle, layout, Connections::One);
    let mark = |lookup: Lookup| {
        [
            format!("{} -j CONNMARK --set-xmark {FIRST_MARK}", lookup.matches(layout)),
            format!(
                "{}-m connmark --mark {FIRST_MARK} -j SET --del-set {}",
                lookup.port(),
                lookup.key(layout)
            ),
        ]
    };
    [single].into_iter().chain(ranges).flat_map(mark).collect()
}

/// Rules that give this verdict to the one connection that a grant has let in.
pub(super) fn first(table: TableName, layout: &Layout<'_>, verdict: &str) -> Vec<String> {
    let limited = layout
        .served()
        .filter(|guarded| guarded.connections == Connections::One && table.concerns(guarded))
        .map(|guarded| guarded.ports);
    ports::each(limited, &format!("-m connmark --mark {FIRST_MARK} {verdict}"))
}

/// A set, and what is looked up in it.
#[derive(Debug, Clone, Copy)]
struct Lookup {
    /// For the set of a range: only for packets to these ports. In the others the port is part of
    /// the element.
    ports: Option<PortRange>,
    holds: Holds,
}

impl Lookup {
    fn port(&self) -> String {
        self.ports.map_or_else(String::new, |ports| ports::one(ports) + " ")
    }

    /// The set, and which parts of a packet make the element.
    fn key(&self, layout: &Layout<'_>) -> String {
        let set = SetId { family: layout.family, holds: self.holds };
        format!("{set} {}", if self.ports.is_some() { "src" } else { "src,dst" })
    }

    fn matches(&self, layout: &Layout<'_>) -> String {
        format!("{}-m set --match-set {}", self.port(), self.key(layout))
    }
}

/// The sets of the guarded ranges, each once.
fn ranges(
    table: TableName,
    layout: &Layout<'_>,
    connections: Connections,
) -> impl Iterator<Item = Lookup> {
    let mut seen = BTreeSet::new();
    layout
        .served()
        .filter(move |guarded| guarded.ports.single().is_none() && table.concerns(guarded))
        .filter(move |guarded| guarded.connections == connections && seen.insert(guarded.ports))
        .map(move |guarded| Lookup {
            ports: Some(guarded.ports),
            holds: range_set(guarded.ports, connections),
        })
}
