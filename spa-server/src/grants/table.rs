//! The table of grants, and what the kernel must admit because of them. Pure: no clock, no kernel.
//!
//! A kernel element (source, port) may be needed by several grants: of several clients behind one
//! address, of a service and of a port of it. It carries the latest expiry of all that need it.
//!
//! What is for one connection is admitted by a knock and by nothing else: whatever has become of it
//! in the kernel, putting it back could let a second connection in. If it is gone, it was used.

mod differences;

pub use differences::Differences;

use super::{Grant, GrantKey};
use crate::clock::BootMicros;
use crate::gate::{Change, Element, LiveElement, MAX_ELEMENT_SECONDS};
use crate::service::Connections;
use crate::source::Source;
use spa_proto::{ClientId, PortRange};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// The grants of this server.
///
/// What knocks and time do costs the logarithm of the number of grants, however many others there
/// are. [`Self::close`] looks at all of them.
#[derive(Debug, Default)]
pub struct GrantTable {
    grants: HashMap<Arc<GrantKey>, Grant>,
    expiries: BTreeSet<(BootMicros, Arc<GrantKey>)>,
    needs: HashMap<Element, BTreeSet<(BootMicros, Arc<GrantKey>)>>,
    /// Those of the elements that are for one connection.
    single: BTreeSet<Element>,
    clients: HashMap<ClientId, BTreeMap<Source, HashSet<Arc<GrantKey>>>>,
}

impl GrantTable {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Enters a grant, or refreshes the one with its key; says what the kernel must admit.
    ///
    /// A refresh never shortens, and keeps the time of the first opening. If the service has
    /// other ports than before, those that it lost are withdrawn. One for one connection lets one
    /// more in, if the last one was used.
    #[must_use = "the kernel admits nothing until these changes are applied"]
    pub fn open(&mut self, now: BootMicros, mut grant: Grant) -> Vec<Change> {
        let asked: BTreeSet<Element> = elements(&grant).collect();
        let mut lost = BTreeSet::new();
        if let Some(old) = self.remove(&grant.key) {
            if old.expires > now {
                grant.expires = grant.expires.max(old.expires);
                grant.opened = old.opened;
            }
            lost.extend(elements(&old).filter(|element| !asked.contains(element)));
        }
        self.insert(grant);
        let withdrawn = lost.into_iter().filter_map(|element| self.left(now, element));
        withdrawn.chain(asked.iter().map(|element| self.due(now, *element))).collect()
    }

    /// Ends the grants that the predicate picks; says which, and what the kernel must change.
    ///
    /// What other live grants need is admitted for *their* remaining time; but what is for one
    /// connection is left as it is, until [`Self::expire`] withdraws it.
    #[must_use = "the kernel goes on admitting until these changes are applied"]
    pub fn close(
        &mut self,
        now: BootMicros,
        mut picked: impl FnMut(&Grant) -> bool,
    ) -> (Vec<Grant>, Vec<Change>) {
        let mut keys: Vec<_> =
            self.grants.values().filter(|grant| picked(grant)).map(|g| g.key.clone()).collect();
        keys.sort();
        self.close_keys(now, &keys)
    }

    /// Ends the grants of these keys, as far as there are any; as [`Self::close`].
    #[must_use = "the kernel goes on admitting until these changes are applied"]
    pub fn close_keys(&mut self, now: BootMicros, keys: &[GrantKey]) -> (Vec<Grant>, Vec<Change>) {
        let closed: Vec<_> = keys.iter().filter_map(|key| self.remove(key)).collect();
        let touched: BTreeSet<_> = closed.iter().flat_map(elements).collect();
        let changes = touched.into_iter().filter_map(|element| self.left(now, element)).collect();
        (closed, changes)
    }

    /// Ends the grants whose time is over; says which, and what the kernel must withdraw.
    ///
    /// The kernel has done that by itself, at most a second later; unless the machine was
    /// suspended, for which its own timers stand still.
    #[must_use = "the kernel may go on admitting until these changes are applied"]
    pub fn expire(&mut self, now: BootMicros) -> (Vec<Grant>, Vec<Change>) {
        let mut expired = Vec::new();
        while let Some((expires, key)) = self.expiries.first()
            && *expires <= now
        {
            let key = Arc::clone(key);
            expired.extend(self.remove(&key));
        }
        let touched: BTreeSet<_> = expired.iter().flat_map(elements).collect();
        // An element that another grant still needs has that grant's time already.
        let changes = touched
            .into_iter()
            .filter(|element| self.until(now, *element).is_none())
            .map(|element| Change::Withdraw { element })
            .collect();
        (expired, changes)
    }

    /// Replaces all grants by these, after a restart; says what makes the kernel admit just what
    /// they need.
    ///
    /// Grants whose time is over stay until [`Self::expire`] reports them.
    #[must_use = "the kernel is not as the table has it until these changes are applied"]
    pub fn rebuild(
        &mut self,
        now: BootMicros,
        grants: impl IntoIterator<Item = Grant>,
        kernel: &[LiveElement],
    ) -> Vec<Change> {
        *self = Self::default();
        for grant in grants {
            // What each of them changes is part of what the kernel differs in.
            let _ = self.open(now, grant);
        }
        self.reconcile(now, kernel)
    }

    /// Says what makes the kernel, which admits this right now, admit just what the live grants
    /// need. An element whose time is right, within the second of rounding, is left alone; so is
    /// what is for one connection, whether it is there or not: see [`Self::take_used`].
    #[must_use = "the kernel is not as the table has it until these changes are applied"]
    pub fn reconcile(&self, now: BootMicros, kernel: &[LiveElement]) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut right = HashSet::new();
        for live in kernel {
            match self.until(now, live.element) {
                None => changes.push(Change::Withdraw { element: live.element }),
                Some(_) if self.single.contains(&live.element) => {}
                Some(until) => {
                    // The kernel rounds down: what it calls n seconds may be almost n + 1.
                    let wanted = seconds_until(now, until);
                    if wanted == live.seconds_left || wanted == live.seconds_left.saturating_add(1)
                    {
                        right.insert(live.element);
                    }
                }
            }
        }
        let is_missing =
            |element: &&Element| !right.contains(*element) && !self.single.contains(*element);
        let missing: BTreeSet<_> = self.needs.keys().filter(is_missing).collect();
        changes.extend(missing.into_iter().filter_map(|element| {
            let until = self.until(now, *element)?;
            Some(Change::Admit { element: *element, seconds: seconds_until(now, until) })
        }));
        changes
    }

    /// Takes out what is for one connection and gone from the kernel, which admits this right now;
    /// says of which grants, with the ports that were used. A grant of which ports are left lives on
    /// with these. Behind one address the connection can't be told whose it is: it uses up what all
    /// have for that port.
    ///
    /// What ends within a second anyway may be gone for that reason, and is left to
    /// [`Self::expire`].
    pub fn take_used(&mut self, now: BootMicros, kernel: &[LiveElement]) -> Vec<Grant> {
        if self.single.is_empty() {
            return Vec::new();
        }
        let held: HashSet<_> = kernel.iter().map(|live| live.element).collect();
        let soon = now.saturating_add(Duration::from_secs(1));
        let used: BTreeSet<_> =
            self.single.iter().filter(|element| !held.contains(element)).copied().collect();
        let needing = used.iter().filter_map(|element| self.needs.get(element)).flatten();
        let keys: BTreeSet<_> = needing
            .filter(|(expires, key)| *expires > soon && self.is_single(key))
            .map(|(_, key)| Arc::clone(key))
            .collect();
        let grants: Vec<_> = keys.iter().filter_map(|key| self.remove(key)).collect();
        let take = |mut grant: Grant| {
            let source = grant.key.source;
            let is_used = |ports: &PortRange| used.contains(&Element { source, ports: *ports });
            let (gone, left) = grant.ports.iter().partition(|ports| is_used(ports));
            grant.ports = left;
            if !grant.ports.is_empty() {
                self.insert(grant.clone());
            }
            Grant { ports: gone, ..grant }
        };
        grants.into_iter().map(take).collect()
    }

    /// Whether any grant is for one connection.
    pub fn has_single(&self) -> bool {
        !self.single.is_empty()
    }

    /// From how many sources a client may have live grants at the most; costs nothing.
    pub fn at_most_sources_of(&self, client: &ClientId) -> usize {
        self.clients.get(client).map_or(0, BTreeMap::len)
    }

    /// The sources from which a client has live grants.
    pub fn sources_of(&self, client: ClientId, now: BootMicros) -> BTreeSet<Source> {
        let Some(sources) = self.clients.get(&client) else { return BTreeSet::new() };
        let is_live =
            |key: &Arc<GrantKey>| self.grants.get(key).is_some_and(|grant| grant.expires > now);
        sources
            .iter()
            .filter(|(_, keys)| keys.iter().any(is_live))
            .map(|(source, _)| *source)
            .collect()
    }

    /// The grant with this key.
    pub fn get(&self, key: &GrantKey) -> Option<&Grant> {
        self.grants.get(key)
    }

    /// How many grants there are, those included whose time is over and that [`Self::expire`]
    /// has not seen yet.
    pub fn len(&self) -> usize {
        self.grants.len()
    }

    /// Whether there is no grant.
    pub fn is_empty(&self) -> bool {
        self.grants.is_empty()
    }

    /// How many elements the kernel needs for all grants.
    pub fn elements(&self) -> usize {
        self.needs.len()
    }

    /// All grants, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Grant> {
        self.grants.values()
    }

    /// When [`Self::expire`] next has something to do.
    pub fn next_expiry(&self) -> Option<BootMicros> {
        self.expiries.first().map(|(expires, _)| *expires)
    }

    fn insert(&mut self, grant: Grant) {
        let key = Arc::new(grant.key.clone());
        let at = (grant.expires, key);
        for element in elements(&grant) {
            self.needs.entry(element).or_default().insert(at.clone());
            if grant.connections == Connections::One {
                self.single.insert(element);
            }
        }
        let sources = self.clients.entry(grant.key.client).or_default();
        sources.entry(grant.key.source).or_default().insert(Arc::clone(&at.1));
        self.expiries.insert(at.clone());
        self.grants.insert(at.1, grant);
    }

    fn remove(&mut self, key: &GrantKey) -> Option<Grant> {
        let (key, grant) = self.grants.remove_entry(key)?;
        let at = (grant.expires, key);
        self.expiries.remove(&at);
        for element in elements(&grant) {
            if let Some(needs) = self.needs.get_mut(&element) {
                needs.remove(&at);
                if needs.is_empty() {
                    self.needs.remove(&element);
                }
            }
            if grant.connections == Connections::One && !self.is_needed_by_single(element) {
                self.single.remove(&element);
            }
        }
        if let Some(sources) = self.clients.get_mut(&grant.key.client) {
            if let Some(keys) = sources.get_mut(&grant.key.source) {
                keys.remove(&at.1);
                if keys.is_empty() {
                    sources.remove(&grant.key.source);
                }
            }
            if sources.is_empty() {
                self.clients.remove(&grant.key.client);
            }
        }
        Some(grant)
    }

    fn is_single(&self, key: &GrantKey) -> bool {
        self.grants.get(key).is_some_and(|grant| grant.connections == Connections::One)
    }

    fn is_needed_by_single(&self, element: Element) -> bool {
        self.needs
            .get(&element)
            .is_some_and(|needs| needs.iter().any(|(_, key)| self.is_single(key)))
    }

    /// Until when the live grants need an element, if any does.
    fn until(&self, now: BootMicros, element: Element) -> Option<BootMicros> {
        let (until, _) = self.needs.get(&element)?.last()?;
        (*until > now).then_some(*until)
    }

    fn due(&self, now: BootMicros, element: Element) -> Change {
        match self.until(now, element) {
            Some(until) => Change::Admit { element, seconds: seconds_until(now, until) },
            None => Change::Withdraw { element },
        }
    }

    /// What is due when one of the grants that need an element has ended.
    fn left(&self, now: BootMicros, element: Element) -> Option<Change> {
        let stays = self.single.contains(&element) && self.until(now, element).is_some();
        (!stays).then(|| self.due(now, element))
    }
}

fn elements(grant: &Grant) -> impl Iterator<Item = Element> {
    let source = grant.key.source;
    grant.ports.iter().map(move |ports| Element { source, ports: *ports })
}

/// Whole seconds, rounded up: the kernel must not close before the grant ends.
fn seconds_until(now: BootMicros, until: BootMicros) -> u32 {
    let left = until.since(now);
    let whole = left.as_secs().saturating_add(u64::from(left.subsec_nanos() > 0));
    u32::try_from(whole).unwrap_or(u32::MAX).clamp(1, MAX_ELEMENT_SECONDS)
}

/// The longest time that the kernel can hold a grant for.
pub const MAX_LIFETIME: Duration = Duration::from_secs(MAX_ELEMENT_SECONDS as u64);

#[cfg(test)]
mod tests;
