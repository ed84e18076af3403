//! Asking a server with regard to what was asked of it before, by whichever program of this user.
//!
//! Who wants to knock holds the record's lock for as long as that takes. The others wait for it,
//! and then see that it was done: any number of programs at the same moment send one knock.

use crate::key_source::Unlock;
use crate::knock::{Asked, KnockError, Knocker, Options, Route, Sent};
use crate::probe::{Known, Wait};
use crate::record::{Entry, MARGIN, Moment, Record};
use crate::schedule::knock_at;
use crate::server::{Connections, Server};
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;
use spa_proto::{Item, MessageType};
use std::thread;
use std::time::Instant;

/// For how long a port that was seen open is taken to be so still without another look.
const SEEN_FOR: Duration = Duration::from_secs(30);
/// The same where no lifetime was named: the server's own may be a short one.
const SEEN_FOR_UNNAMED: Duration = Duration::from_secs(3);
/// No server's lifetime is taken to be longer, where none was named and it has to be kept open.
const REFRESHED_UNNAMED: Duration = Duration::from_secs(10);
/// Another program that has knocked knows after that whether it helped, or knocks again.
const OTHERS_TIME: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(4);

/// Whoever has no key yet looks until there would be a second knock: a slow path gets its time
/// before somebody has to type.
const ROUNDS_WITHOUT_KEY: u32 = 2;

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
    /// Not yet: it takes a knock, and somebody has to be asked for the key first.
    NoKey,
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

/// What came of it where there may be no key yet.
pub(crate) enum Visited<T> {
    Done(T),
    /// What was asked for before is not open. Another program may have asked meanwhile.
    NotOpen,
    /// It takes the key.
    NoKey,
}

/// A [`Knocker`] that shares its knocks.
pub(crate) struct Asking<'a> {
    by: By<'a>,
    record: Option<Record>,
    began: Moment,
    /// When the last knock was sent that is known of.
    last: Option<Moment>,
    /// For how long it asked, as far as that can be relied on.
    lifetime: Duration,
    watched: bool,
}

/// What there is to knock by.
enum By<'a> {
    Key(Box<Knocker<'a>>),
    /// No key yet.
    Route(Route<'a>),
}

impl<'a> Asking<'a> {
    pub(crate) fn new(
        server: &'a Server,
        asked: &Asked,
        options: &Options,
        unlock: &mut dyn Unlock,
        began: Moment,
    ) -> Result<Self, KnockError> {
        let knocker = Knocker::prepare_with(server, asked, options, unlock)?;
        Ok(Self::by(By::Key(knocker.into()), began))
    }

    /// The same, but nobody is asked for a key: where that would be needed it waits until
    /// [`unlock`](Self::unlock). Until then what was asked for before can be relied on.
    pub(crate) fn by_keys_at_hand(
        server: &'a Server,
        asked: &Asked,
        options: &Options,
        began: Moment,
    ) -> Result<Self, KnockError> {
        let by = match server.keys_at_hand()? {
            Some(keys) => {
                By::Key(Knocker::prepare_with_keys(server, asked, options, &keys)?.into())
            }
            None => By::Route(Route::prepare(server, asked, options)?),
        };
        Ok(Self::by(by, began))
    }

    fn by(by: By<'a>, began: Moment) -> Self {
        let record = Record::of_user();
        Self { by, record, began, last: None, lifetime: Duration::ZERO, watched: false }
    }

    /// Gets the key, if it is not there yet. Whoever typed may have come into another network
    /// meanwhile.
    pub(crate) fn unlock(&mut self, unlock: &mut dyn Unlock) -> Result<(), KnockError> {
        if let By::Route(route) = &mut self.by {
            let keys = route.server().keys(unlock)?;
            // Where that fails, it stays as it was.
            let _ = route.resolve();
            self.by = By::Key(Knocker::on(route.clone(), &keys)?.into());
        }
        Ok(())
    }

    pub(crate) const fn route(&self) -> &Route<'a> {
        match &self.by {
            By::Key(knocker) => knocker.route(),
            By::Route(route) => route,
        }
    }

    /// None without a key.
    pub(crate) const fn knocker(&self) -> Option<&Knocker<'a>> {
        match &self.by {
            By::Key(knocker) => Some(knocker),
            By::Route(_) => None,
        }
    }

    /// How to wait, for so long in all.
    pub(crate) fn wait(&self, start: Instant, timeout: Duration, known: Known) -> Wait<'static> {
        let (timeout, rounds) = match &self.by {
            By::Key(_) => (timeout, 1),
            // No round is due before the end.
            By::Route(_) => (timeout.min(knock_at(ROUNDS_WITHOUT_KEY)), ROUNDS_WITHOUT_KEY),
        };
        Wait { start, timeout, rounds, known, wanted: None }
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
        let is_close = self.route().request().message_type == MessageType::Close;
        let sent = loop {
            if reuse != Reuse::Never
                && !is_close
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
            let By::Key(knocker) = &mut self.by else { return Ok(First::NoKey) };
            if !knocker.is_to_look() {
                break knocker.send_to(|_| true)?;
            }
            // Others don't wait for a STUN server that this one waits for.
            drop(held);
            knocker.look();
            held = record.as_ref().and_then(Record::lock);
        };
        if is_close {
            if let Some(held) = held {
                held.change(|entries| entries.retain(|entry| !self.is_mine(entry)));
            }
            return Ok(First::Knocked(sent));
        }
        let new = self.noted(&sent);
        if let Some(held) = held {
            held.add(new);
        }
        Ok(First::Knocked(sent))
    }

    /// Knocks again, unless another program has done so since the last time. `only`: one of the
    /// addresses, for the first time. Without a key nothing is sent.
    pub(crate) fn again(&mut self, only: Option<SocketAddr>) -> Result<Vec<Sent>, KnockError> {
        let By::Key(knocker) = &mut self.by else { return Ok(Vec::new()) };
        knocker.look();
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
        let By::Key(knocker) = &mut self.by else { return Ok(Vec::new()) };
        let sent = knocker.send_to(is_meant)?;
        let new = self.noted(&sent);
        if let Some(held) = held {
            held.add_anew(new);
        }
        Ok(sent)
    }

    /// Before a knock by which a grant is to go on, perhaps from another network than the last.
    pub(crate) fn renew(&mut self) {
        if let By::Key(knocker) = &mut self.by {
            knocker.renew();
        }
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

    /// Forgets what did not open: nobody is to rely on it. What another program has asked for since
    /// then may open yet.
    pub(crate) fn not_open(&self, item: &Item) {
        self.change(|entries| {
            // Not before: whoever had the lock may have written what is newer than that.
            let now = Moment::now();
            let last = self.last.and_then(|last| last.age(now));
            let is_newer = |entry: &Entry| {
                matches!((entry.asked.age(now), last), (Some(age), Some(last)) if age < last)
            };
            let item = item.to_string();
            entries.retain(|entry| {
                !(self.is_mine(entry) && entry.item == item) || is_newer(entry)
            });
        });
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Entry>)) {
        if let Some(held) = self.record.as_ref().and_then(Record::lock) {
            held.change(change);
        }
    }

    /// Whether a connection would use up what another program counts on.
    fn lets_one_in(&self) -> bool {
        self.route().request().items.iter().any(|item| {
            let service = self.route().server().service_of(item);
            service.is_some_and(|service| service.connections == Connections::One)
        })
    }

    /// Whether an entry is about one of the items at this server.
    fn is_mine(&self, entry: &Entry) -> bool {
        entry.is_of(self.route().server())
            && self.route().request().items.iter().any(|item| item.to_string() == entry.item)
    }

    /// One entry for each item and address, when they are all there, from where we are now.
    fn matching<'e>(&self, entries: &'e [Entry]) -> Option<Vec<&'e Entry>> {
        let server = self.route().server();
        let ours: Vec<&Entry> = entries.iter().filter(|entry| entry.is_of(server)).collect();
        let mut found = Vec::new();
        for item in &self.route().request().items {
            let item = item.to_string();
            // What this machine has no way to needs no grant.
            for (to, from) in
                self.route().own().iter().filter_map(|(to, from)| Some((*to, (*from)?)))
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
        let items = &self.route().request().items;
        let seen = items.iter().map(was_seen).collect::<Option<Vec<_>>>();
        let seen = seen.and_then(|seen| Some(seen.first()?.to));
        let meanwhile = self.began.age(now).is_some_and(|age| asked_ago <= age);
        let is_enough = reuse == Reuse::Asked || seen.is_some() || meanwhile;
        is_enough.then_some((Reused { asked: asked_ago, left, seen }, asked))
    }

    /// The entries for knocks that were sent now.
    fn noted(&mut self, sent: &[Sent]) -> Vec<Entry> {
        let asked = Moment::now();
        let request = self.route().request();
        let (lifetime_seconds, lifetime_asked) =
            Entry::lifetime(request.lifetime.map(core::num::NonZeroU32::get));
        self.relies_on(asked, Duration::from_secs(lifetime_seconds), lifetime_asked);
        let request = self.route().request();
        let server = self.route().server();
        let left = sent.iter().filter(|sent| sent.outcome.is_ok()).filter_map(|sent| {
            let to = sent.to.ip();
            let from = self.route().own().iter().find(|(known, _)| *known == to)?.1?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key_source::NoPassphrase;
    use spa_keys::{Overwrite, PrivateKey};
    use std::net::UdpSocket;

    #[test]
    fn what_did_not_open_is_forgotten_and_what_was_asked_for_since_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let key = directory.path().join("identity.key");
        let private = PrivateKey::from_bytes([7; 32].into());
        spa_keys::write_private_key(&key, &private, Overwrite::Refuse).unwrap();
        // Whoever hears the knocks; nobody else is to.
        let ear = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = ear.local_addr().unwrap().port().try_into().unwrap();
        let public = PrivateKey::from_bytes([9; 32].into()).public();
        let host = "127.0.0.1".parse().unwrap();
        let mut server = Server::new("work".parse().unwrap(), host, public, key);
        server.knock_ports = vec![port];
        let item: Item = "ssh".parse().unwrap();
        let asked = Asked::open([item.clone()]).unwrap();
        let options = Options::default();
        let record = Some(Record::new(directory.path().join("state")));
        let by = |by| Asking { record: record.clone(), ..Asking::by(by, Moment::now()) };
        let mut other = {
            let keys = server.keys(&mut NoPassphrase).unwrap();
            let knocker = Knocker::prepare_with_keys(&server, &asked, &options, &keys).unwrap();
            by(By::Key(knocker.into()))
        };
        let mut asking = by(By::Route(Route::prepare(&server, &asked, &options).unwrap()));
        let mut first = || asking.first(Reuse::Asked, Duration::ZERO, true).unwrap();

        assert!(matches!(first(), First::NoKey));
        other.first(Reuse::Never, Duration::ZERO, true).unwrap();
        assert!(matches!(first(), First::Reused(_)));
        thread::sleep(Duration::from_millis(20));
        other.again(None).unwrap();
        asking.not_open(&item);
        let entries = || record.as_ref().unwrap().entries().len();
        assert_eq!(entries(), 1, "somebody has asked for it again");
        let mut first = || asking.first(Reuse::Asked, Duration::ZERO, true).unwrap();
        assert!(matches!(first(), First::Reused(_)));
        asking.not_open(&item);
        assert_eq!(entries(), 0);

        // The other one has the lock when this one wants it, and asks meanwhile.
        other.first(Reuse::Never, Duration::ZERO, true).unwrap();
        let mut first = || asking.first(Reuse::Asked, Duration::ZERO, true).unwrap();
        assert!(matches!(first(), First::Reused(_)));
        let lock = record.as_ref().unwrap().lock().unwrap();
        thread::scope(|scope| {
            let forgetting = scope.spawn(|| asking.not_open(&item));
            thread::sleep(Duration::from_millis(100));
            let By::Key(knocker) = &mut other.by else { unreachable!() };
            let sent = knocker.send().unwrap();
            lock.add_anew(other.noted(&sent));
            forgetting.join().unwrap();
        });
        assert_eq!(entries(), 1, "somebody has asked for it meanwhile");
    }
}
