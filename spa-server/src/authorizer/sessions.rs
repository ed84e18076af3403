//! Whose connections there are: told by the grants that are live, and by those that were.
//!
//! A connection belongs to whoever may come from its address: behind a shared one, clients can't be
//! told apart.

use super::{Authorizer, Selection};
use crate::clock::BootMicros;
use crate::connections::{Inventory, port_of};
use crate::gate::{Connection, Gate, Plan};
use crate::grants::{Cover, Grant, GrantStore};
use crate::replay_store::ReplayStore;
use crate::source::Source;
use spa_proto::Port;
use std::collections::HashMap;
use std::net::IpAddr;

/// Which connections to end when grants are revoked.
#[derive(Debug, Default)]
pub struct Sessions {
    theirs: Cover,
    of_others: Cover,
    peers: Option<Source>,
}

impl Sessions {
    /// All that come from there, whatever has let them in.
    pub fn from_source(source: Source) -> Self {
        Self { peers: Some(source), ..Self::default() }
    }

    /// Those that the grants let in, or may have, and that no other live grant covers.
    pub fn among(&self, found: &Inventory) -> Inventory {
        let is_theirs = |connection: &&Connection| {
            self.peers.is_some_and(|peers| peers.contains(connection.peer.ip()))
                || admits(&self.theirs, connection) && !admits(&self.of_others, connection)
        };
        found.iter().filter(is_theirs).copied().collect()
    }
}

impl<G: Gate, R: ReplayStore, L: GrantStore> Authorizer<G, R, L> {
    /// The connections of these grants, of those too that have ended by now.
    pub fn sessions(&self, selection: &Selection, now: BootMicros) -> Sessions {
        let live = self.live(now).filter(|grant| selection.matches(grant));
        let theirs = live.chain(self.former.iter().filter(|grant| selection.matches(grant)));
        Sessions {
            theirs: theirs.collect(),
            of_others: self.live(now).filter(|grant| !selection.matches(grant)).collect(),
            peers: None,
        }
    }

    /// The connections that came while nothing kept them out: those that were not there at
    /// `since`, and whose peer had no grant at any time from then on.
    pub fn strangers(
        &self,
        plan: &Plan,
        found: &Inventory,
        known: &Inventory,
        since: BootMicros,
    ) -> Inventory {
        let new: Vec<_> = found.difference(known).collect();
        if new.is_empty() {
            return Inventory::new();
        }
        let mut cover = self.former.since(since);
        cover.extend(self.grants.iter());
        let is_welcome = |connection: &Connection| {
            let peer = connection.peer.ip().to_canonical();
            plan.always_admit.iter().any(|net| net.contains(&peer)) || admits(&cover, connection)
        };
        new.into_iter().filter(|connection| !is_welcome(connection)).copied().collect()
    }

    /// Who has a live grant.
    pub fn granted(&self, now: BootMicros) -> Cover {
        self.live(now).collect()
    }

    /// Forgets grants that had ended by then, and of which no connection was left.
    pub fn forget_former(&mut self, since: BootMicros, known: &Inventory) {
        let mut ports: HashMap<IpAddr, Vec<Port>> = HashMap::new();
        for connection in known {
            let peer = connection.peer.ip().to_canonical();
            ports.entry(peer).or_default().extend(port_of(connection));
        }
        let lives = |grant: &Grant| {
            let has = |of: &Vec<Port>| {
                of.iter().any(|port| grant.ports.iter().any(|ports| ports.contains(*port)))
            };
            if grant.key.source.is_host() {
                ports.get(&grant.key.source.address()).is_some_and(has)
            } else {
                ports.iter().any(|(peer, of)| grant.key.source.contains(*peer) && has(of))
            }
        };
        self.former.forget(since, lives);
    }
}

/// Whether a connection is one that these grants let in, or could have.
pub fn admits(cover: &Cover, connection: &Connection) -> bool {
    port_of(connection).is_some_and(|port| cover.admits(connection.peer.ip(), port))
}
