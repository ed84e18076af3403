//! Asking a server with regard to what was asked of it before, by whichever program of this user.
//!
//! Who wants to knock holds the record's lock for as long as that takes. The others wait for it,
//! and then see that it was done: any number of programs at the same moment send one knock.

use crate::knock::{KnockError, Knocker, Sent};
use crate::record::{Entry, MARGIN, Moment, Record};
use crate::server::Connections;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;
use spa_proto::{Item, MessageType};
use std::thread;

/// For how long a port that was seen open is taken to be so still without another look.
const SEEN_FOR: Duration = Duration::from_secs(30);
/// The same where no lifetime was named: the server's own may be a short one.
const SEEN_FOR_UNNAMED: Duration = Duration::from_secs(3);
/// No server's lifetime is taken to be longer, where none was named and it has to be kept open.
const REFRESHED_UNNAMED: Duration = Duration::from_secs(10);
/// Another program that has knocked knows after that whether it helped, or knocks again.
const OTHERS_TIME: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(4);

/// What is enough to go without a knock of one's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reuse {
    /// Nothing.
    Never,
    /// That it was seen open lately, or that it is being asked for at this very moment.
    Seen,
    /// That it was asked for: whether it is open will turn out.
    Asked,
}

/// How a visit at a server began.
#[derive(Debug)]
pub(crate) enum First {
    /// By a knock.
    Knocked(Vec<Sent>),
    /// Without one.
    Reused(Reused),
}

/// A grant that this user has asked for before, as far as the client knows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reused {
    /// How long ago.
    pub(crate) asked: Duration,
    /// For how long it lasts at least, if the server has granted it.
    pub(crate) left: Duration,
    /// Where it was seen open, if all of it was, lately.
    pub(crate) seen: Option<IpAddr>,
}

/// A [`Knocker`] that shares its knocks.
pub(crate) struct Asking<'a> {
    knocker: Knocker<'a>,
    record: Option<Record>,
    began: Moment,
    /// When the last knock was sent that is known of.
    last: Option<Moment>,
    /// For how long it asked, as far as that can be relied on.
    lifetime: Duration,
    watched: bool,
}

impl<'a> Asking<'a> {
    pub(crate) fn new(knocker: Knocker<'a>, record: Option<Record>, began: Moment) -> Self {
        Self { knocker, record, began, last: None, lifetime: Duration::ZERO, watched: false }
    }

    pub(crate) const fn knocker(&self) -> &Knocker<'a> {
        &self.knocker
    }

    /// Knocks, unless what is there is enough. A `close` always knocks, and is noted.
    /// `watched`: whether the caller finds out by itself whether it opens.
    pub(crate) fn first(
        &mut self,
        reuse: Reuse,
        wanted: Duration,
        watched: bool,
    ) -> Result<First, KnockError> {
        self.watched = watched;
        let record = self.record.clone();
        let mut held = record.as_ref().and_then(Record::lock);
        if self.knocker.request().message_type == MessageType::Close {
            let sent = self.knocker.send_to(|_| true)?;
            if let Some(held) = held {
                held.change(|entries| entries.retain(|entry| !self.is_mine(entry)));
            }
            return Ok(First::Knocked(sent));
        }
        loop {
            if reuse != Reuse::Never
                && !self.lets_one_in()
                && let Some(held) = &held
                && let entries = held.entries()
                && let Some((reused, asked)) = self.reusable(&entries, reuse, wanted)
            {
                let lifetime = reused.asked.saturating_add(reused.left);
                let is_named = self.is_named(&entries);
                self.relies_on(asked, lifetime, is_named);
                return Ok(First::Reused(reused));
            }
            if !self.knocker.is_to_look() {
                break;
            }
            // Others don't wait for a STUN server that this one waits for.
            drop(held);
            self.knocker.look();
            held = record.as_ref().and_then(Record::lock);
        }
        let sent = self.knocker.send_to(|_| true)?;
        let new = self.noted(&sent);
        if let Some(held) = held {
            held.add(new);
        }
        Ok(First::Knocked(sent))
    }

    /// Knocks again, unless another program has done so since the last time. `only`: one of the
    /// addresses, for the first time.
    pub(crate) fn again(&mut self, only: Option<SocketAddr>) -> Result<Vec<Sent>, KnockError> {
        self.knocker.look();
        let record = self.record.clone();
        let held = record.as_ref().and_then(Record::lock);
        if let Some(held) = held.as_ref().filter(|_| only.is_none() && !self.lets_one_in()) {
            let now = Moment::now();
            let entries = held.entries();
            let found = self.matching(&entries);
            let latest = found.as_deref().map(|found| oldest(found, now));
            let is_newer = |asked: Moment| {
                let is_younger = |last: Moment| asked.age(now) < last.age(now);
                asked.age(now).is_some() && self.last.is_some_and(is_younger)
            };
            if let Some(asked) = latest.flatten().filter(|asked| is_newer(*asked)) {
                let lifetimes = found.iter().flatten().map(|entry| entry.lifetime_seconds);
                let lifetime = Duration::from_secs(lifetimes.min().unwrap_or_default());
                let is_named = self.is_named(&entries);
                self.relies_on(asked, lifetime, is_named);
                return Ok(Vec::new());
            }
        }
        let is_meant = |to: &SocketAddr| only.is_none_or(|only| only.ip() == to.ip());
        let sent = self.knocker.send_to(is_meant)?;
        let new = self.noted(&sent);
        if let Some(held) = held {
            held.add_anew(new);
        }
        Ok(sent)
    }

    /// Before a knock by which a grant is to go on, perhaps from another network than the last.
    pub(crate) fn renew(&mut self) {
        self.knocker.renew();
    }

    fn relies_on(&mut self, asked: Moment, lifetime: Duration, is_named: bool) {
        self.last = Some(asked);
        self.lifetime = if is_named { lifetime } else { lifetime.min(REFRESHED_UNNAMED) };
    }

    /// Whether whoever asked has said for how long.
    fn is_named(&self, entries: &[Entry]) -> bool {
        self.matching(entries).is_some_and(|found| found.iter().all(|entry| entry.lifetime_asked))
    }

    /// Waits for what another program finds out that has just knocked: so that ten of them probe
    /// once. Gives back what it saw open.
    pub(crate) fn await_other(&self) -> Option<Reused> {
        let record = self.record.as_ref()?;
        loop {
            let entries = record.entries();
            let (reused, asked) = self.reusable(&entries, Reuse::Asked, Duration::ZERO)?;
            let is_watched = self.matching(&entries)?.iter().all(|entry| entry.watched);
            if reused.seen.is_some() {
                return Some(reused);
            }
            if !is_watched || asked.age(Moment::now())? >= OTHERS_TIME {
                return None;
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// How long until this share of the lifetime is over.
    pub(crate) fn until_due(&self, share: f64) -> Duration {
        let due = self.lifetime.mul_f64(share);
        let age = self.last.and_then(|last| last.age(Moment::now()));
        age.map_or(Duration::ZERO, |age| due.saturating_sub(age))
    }

    /// Notes that a connection got through.
    pub(crate) fn seen_open(&self, item: &Item, address: IpAddr) {
        let now = Moment::now();
        self.change(|entries| {
            let item = item.to_string();
            for entry in entries.iter_mut().filter(|entry| self.is_mine(entry)) {
                if entry.item == item && entry.to == address {
                    entry.seen_open = Some(now);
                }
            }
        });
    }

    /// Forgets what did not open: nobody is to rely on it.
    pub(crate) fn not_open(&self, item: &Item) {
        self.change(|entries| {
            let item = item.to_string();
            entries.retain(|entry| !(self.is_mine(entry) && entry.item == item));
        });
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Entry>)) {
        if let Some(held) = self.record.as_ref().and_then(Record::lock) {
            held.change(change);
        }
    }

    /// Whether a connection would use up what another program counts on.
    fn lets_one_in(&self) -> bool {
        self.knocker.request().items.iter().any(|item| {
            let service = self.knocker.server().service_of(item);
            service.is_some_and(|service| service.connections == Connections::One)
        })
    }

    /// Whether an entry is about one of the items at this server.
    fn is_mine(&self, entry: &Entry) -> bool {
        entry.is_of(self.knocker.server())
            && self.knocker.request().items.iter().any(|item| item.to_string() == entry.item)
    }

    /// One entry for each item and address, when they are all there, from where we are now.
    fn matching<'e>(&self, entries: &'e [Entry]) -> Option<Vec<&'e Entry>> {
        let server = self.knocker.server();
        let ours: Vec<&Entry> = entries.iter().filter(|entry| entry.is_of(server)).collect();
        let mut found = Vec::new();
        for item in &self.knocker.request().items {
            let item = item.to_string();
            // What this machine has no way to needs no grant.
            for (to, from) in
                self.knocker.own().iter().filter_map(|(to, from)| Some((*to, (*from)?)))
            {
                found.push(
                    *ours
                        .iter()
                        .find(|entry| entry.item == item && entry.to == to && entry.from == from)?,
                );
            }
        }
        (!found.is_empty()).then_some(found)
    }

    fn reusable(
        &self,
        entries: &[Entry],
        reuse: Reuse,
        wanted: Duration,
    ) -> Option<(Reused, Moment)> {
        let now = Moment::now();
        let found = self.matching(entries)?;
        let left = found.iter().map(|entry| entry.left(now)).min()??;
        let asked = oldest(&found, now)?;
        let asked_ago = asked.age(now)?;
        if left <= MARGIN || left < wanted {
            return None;
        }
        let lately = |entry: &&Entry| {
            let holds = if entry.lifetime_asked { SEEN_FOR } else { SEEN_FOR_UNNAMED };
            entry.seen_open.and_then(|seen| seen.age(now)).is_some_and(|age| age <= holds)
        };
        let was_seen = |item: &Item| {
            let item = item.to_string();
            found.iter().copied().filter(|entry| entry.item == item).find(lately)
        };
        let items = &self.knocker.request().items;
        let seen = items.iter().map(was_seen).collect::<Option<Vec<_>>>();
        let seen = seen.and_then(|seen| Some(seen.first()?.to));
        let meanwhile = self.began.age(now).is_some_and(|age| asked_ago <= age);
        let is_enough = reuse == Reuse::Asked || seen.is_some() || meanwhile;
        is_enough.then_some((Reused { asked: asked_ago, left, seen }, asked))
    }

    /// The entries for knocks that were sent now.
    fn noted(&mut self, sent: &[Sent]) -> Vec<Entry> {
        let asked = Moment::now();
        let request = self.knocker.request();
        let (lifetime_seconds, lifetime_asked) =
            Entry::lifetime(request.lifetime.map(core::num::NonZeroU32::get));
        self.relies_on(asked, Duration::from_secs(lifetime_seconds), lifetime_asked);
        let request = self.knocker.request();
        let server = self.knocker.server();
        let left = sent.iter().filter(|sent| sent.outcome.is_ok()).filter_map(|sent| {
            let to = sent.to.ip();
            let from = self.knocker.own().iter().find(|(known, _)| *known == to)?.1?;
            Some((to, from))
        });
        let left: Vec<(IpAddr, IpAddr)> = left.collect();
        let entry = |item: &Item, (to, from): &(IpAddr, IpAddr)| Entry {
            server: server.name.to_string(),
            key: server.public_key.to_string(),
            item: item.to_string(),
            to: *to,
            from: *from,
            asked,
            watched: self.watched,
            lifetime_seconds,
            lifetime_asked,
            seen_open: None,
        };
        request.items.iter().flat_map(|item| left.iter().map(move |way| entry(item, way))).collect()
    }
}

/// When the one was asked for that was asked for first.
fn oldest(entries: &[&Entry], now: Moment) -> Option<Moment> {
    entries.iter().map(|entry| entry.asked).max_by_key(|asked| asked.age(now))
}
