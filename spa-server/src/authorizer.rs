//! The far side of the channel: limits, replay window, durable store, grants, gate, audit.
//!
//! One task owns all of it and does one thing after another, so grants and gate need no lock.
//! Knocks that arrive together are made durable by one write and opened by one batch.

mod announced;
mod comparison;
mod kernel;
mod sessions;
mod upkeep;

pub use announced::NotAccepted;
pub use comparison::{Bounds, Compared, Needed};
pub use kernel::Restored;
pub use sessions::{Sessions, admits};

use crate::audit::{self, Event, Line};
use crate::causes::with_causes;
use crate::clock::{BootMicros, Now};
use crate::control::GrantView;
use crate::counters::{Counters, Dropped, count};
use crate::gate::{Element, Gate, GateError};
use crate::grants::{FormerGrants, Grant, GrantKey, GrantStore, GrantTable, RequestId};
use crate::latency::Latencies;
use crate::limits::Limits;
use crate::pipeline::{Candidate, SharedJudge};
use crate::policy::{Permitted, Policy, Refusal};
use crate::replay_store::ReplayStore;
use crate::source::Source;
use announced::Charged;
use comparison::Schedule;
use spa_proto::{Accepted, ClientId, DropReason, Item, Knock, MessageType, ServerKey, UnixMicros};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

/// A knock that was fresh when it was captured is so for as long again: what has waited longer did so
/// in a process that was frozen, or a machine that slept.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Owns everything that an accepted knock changes.
pub struct Authorizer<G, R, L> {
    judge: SharedJudge,
    counters: Arc<Counters>,
    gate: G,
    replay: R,
    grants: GrantTable,
    former: FormerGrants,
    /// `None`: it can't be written, and grants end with this process.
    grant_log: Option<L>,
    limits: Limits,
    announcements: Limits,
    charged: Charged,
    /// Of the knocks that opened something.
    pub latencies: Latencies,
    new_keys: Limits,
    max_grants: usize,
    /// The barrier that the store holds.
    stored_barrier: UnixMicros,
    /// A write of the store failed: what it holds is not all that it should, until a rewrite.
    store_failing: bool,
    /// Whether there is a gate; without one nothing can be opened, and nothing has to be closed.
    stands: bool,
    needed: Needed,
    schedule: Schedule,
    /// The kernel may differ from the table since an error: it is looked at again.
    unreconciled: bool,
    /// An installation may have changed the times of elements by a moment.
    rearranged: bool,
    /// Revoked, and why; but the kernel may still admit them.
    half_revoked: Vec<(Grant, &'static str)>,
    /// Withdrawn, and nobody has been told yet.
    foreign: Vec<Element>,
    /// The tags of the next minute are being computed.
    rolling: Option<JoinHandle<()>>,
}

const FORBIDDEN: &str = "the configuration forbids it";
/// Why grants of a source are revoked that is refused for a time.
pub const SOURCE_REFUSED: &str = "its source is refused";

/// The grants that knocks open, as they were before them.
type Before = Vec<(GrantKey, Option<Grant>)>;

/// Which grants to revoke: those that match all that is given.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// The client, by its keys.
    pub client: Option<Vec<ClientId>>,
    /// The address, or an address of the network, that is admitted.
    pub source: Option<Source>,
    /// What was asked for.
    pub service: Option<Item>,
}

/// What of a batch is agreed on, and what it will add to what is open.
#[derive(Default)]
struct Agreed {
    knocks: Vec<Candidate>,
    /// Grants that are not there yet.
    coming: usize,
    /// From where each client opens something.
    sources: HashMap<ClientId, BTreeSet<Source>>,
}

impl Agreed {
    fn push(&mut self, candidate: Candidate, new: usize) {
        self.coming = self.coming.saturating_add(new);
        if candidate.knock.request.message_type == MessageType::Open {
            let sources = self.sources.entry(candidate.knock.client).or_default();
            sources.insert(candidate.permit.source);
        }
        self.knocks.push(candidate);
    }
}

impl<G: Gate, R: ReplayStore, L: GrantStore> Authorizer<G, R, L> {
    /// An authorizer without grants. `replay` has been rewritten, or failed to be.
    pub fn new(
        judge: SharedJudge,
        counters: Arc<Counters>,
        gate: G,
        replay: R,
        grant_log: Option<L>,
        max_grants: usize,
    ) -> Self {
        Self {
            judge,
            counters,
            gate,
            replay,
            grants: GrantTable::default(),
            former: FormerGrants::default(),
            grant_log,
            limits: Limits::default(),
            announcements: Limits::default(),
            charged: Charged::default(),
            latencies: Latencies::default(),
            new_keys: Limits::default(),
            max_grants,
            // Not known: the first tick finds out.
            stored_barrier: UnixMicros::default(),
            store_failing: false,
            stands: true,
            needed: Needed::default(),
            schedule: Schedule::default(),
            unreconciled: false,
            rearranged: false,
            half_revoked: Vec::new(),
            foreign: Vec::new(),
            rolling: None,
        }
    }

    /// Takes over the grants of an earlier daemon, but for those that the policy now forbids, and
    /// makes the kernel admit just these.
    pub async fn resume(&mut self, grants: Vec<Grant>, now: Now) -> Result<(), GateError> {
        let (policy, refused) = {
            let judge = self.judge.lock();
            (Arc::clone(&judge.policy), judge.refused.clone())
        };
        let (upheld, forbidden): (Vec<_>, Vec<_>) =
            grants.into_iter().partition(|grant| is_upheld(&policy, grant, now.realtime));
        // That they were revoked may not stand in the file.
        let (upheld, refused): (Vec<_>, Vec<_>) = upheld
            .into_iter()
            .partition(|grant| refused.refusing(grant.key.source, now.boottime).is_none());
        let upheld = upheld.into_iter().map(|grant| {
            let expires = grant.expires.min(latest_end(&policy, &grant, now.boottime));
            Grant { expires, ..grant }
        });
        let upheld: Vec<_> = upheld.collect();
        let live = if self.stands { self.gate.snapshot().await? } else { Vec::new() };
        let changes = self.grants.rebuild(now.boottime, upheld, &live);
        self.end_used(now.boottime, &live);
        self.apply(&changes).await?;
        for (gone, why) in [(forbidden, FORBIDDEN), (refused, SOURCE_REFUSED)] {
            let cut_short: Vec<_> =
                gone.into_iter().filter(|grant| grant.expires > now.boottime).collect();
            self.tell_revoked(&cut_short, why);
            self.log_grants(&[], &keys_of(&cut_short));
            self.former.remember(now.boottime, cut_short);
        }
        self.expire(now.boottime).await;
        Ok(())
    }

    /// Opens and closes what these knocks ask for.
    pub async fn admit(&mut self, batch: Vec<Candidate>) {
        let accepted = self.accept(batch);
        self.open(accepted).await;
    }

    /// The knocks of these that are accepted for good, which is written down.
    #[must_use]
    pub fn accept(&mut self, batch: Vec<Candidate>) -> Vec<Candidate> {
        let (agreed, accepted) = self.agree(batch, Now::read());
        if agreed.is_empty() {
            return agreed;
        }
        if let Err(error) = self.replay.append(&accepted) {
            let error = with_causes(&error);
            self.store_failing = true;
            tracing::error!("{error}");
            for knock in &agreed {
                self.failed(knock, &error);
            }
            return Vec::new();
        }
        agreed
    }

    /// Opens and closes what these accepted knocks ask for.
    pub async fn open(&mut self, agreed: Vec<Candidate>) {
        if agreed.is_empty() {
            return;
        }
        let now = Now::read();
        if let Err(error) = self.carry_out(&agreed, now).await {
            if let [knock] = agreed.as_slice() {
                self.failed(knock, &with_causes(&error));
                self.reconcile().await;
            } else {
                self.carry_out_singly(&agreed, error).await;
            }
        }
    }

    /// One knock may have spoiled it for the others. But a kernel that can't even be mended takes
    /// none of them, and finding that out again could take a hung tool's time limit each.
    async fn carry_out_singly(&mut self, knocks: &[Candidate], mut error: GateError) {
        self.reconcile().await;
        for knock in knocks {
            let is_mended = !self.unreconciled;
            if is_mended {
                match self.carry_out(std::slice::from_ref(knock), Now::read()).await {
                    Ok(()) => continue,
                    Err(again) => error = again,
                }
            }
            self.failed(knock, &with_causes(&error));
            if is_mended {
                self.reconcile().await;
            }
        }
    }

    /// Policy, limits, then the replay window: the last checks, each knock wholly before the next.
    fn agree(&mut self, batch: Vec<Candidate>, now: Now) -> (Vec<Candidate>, Vec<Accepted>) {
        let shared = self.judge.clone();
        let mut judge = shared.lock();
        let policy = Arc::clone(&judge.policy);
        let mut agreed = Agreed::default();
        let mut accepted = Vec::with_capacity(batch.len());
        for Candidate { knock, captured, .. } in batch {
            judge.taken(&knock.client);
            // The policy may have changed since the knock was captured, and who is refused: it is
            // judged by what is in force now.
            let verdict = judge
                .permit(&knock, now)
                .map(|permit| Candidate { knock: knock.clone(), permit, captured })
                .map_err(Dropped::Policy)
                .and_then(|candidate| {
                    let oldest = judge.receiver.settings().freshness.get() + LONGEST_WAIT;
                    if knock.stamp < now.realtime.saturating_sub(oldest) {
                        return Err(Dropped::Protocol(DropReason::TooOld));
                    }
                    let new = self.within_limits(&policy, &candidate, &agreed, now)?;
                    let entry = judge
                        .receiver
                        .commit(&knock, &candidate.ports())
                        .map_err(Dropped::Protocol)?;
                    Ok((candidate, new, entry))
                });
            match verdict {
                Ok((candidate, new, entry)) => {
                    if let Some(rules) = policy.client(&knock.client) {
                        // It was there a moment ago; nobody else takes any.
                        let _ = self.limits.take(&knock.client, rules.rate, uptime(now));
                    }
                    count(&self.counters.accepted);
                    accepted.push(entry);
                    agreed.push(candidate, new);
                }
                Err(dropped) => {
                    self.counters.dropped_one(&dropped);
                    let Knock { client, source, .. } = knock;
                    let detail = || match &dropped {
                        Dropped::Policy(refusal) => refusal.to_string(),
                        _ => String::new(),
                    };
                    judge.refusals.note(now.boottime, client, dropped.as_str(), source, detail);
                }
            }
        }
        (agreed.knocks, accepted)
    }

    /// How many grants would be new.
    fn within_limits(
        &self,
        policy: &Policy,
        candidate: &Candidate,
        agreed: &Agreed,
        now: Now,
    ) -> Result<usize, Dropped> {
        let knock = &candidate.knock;
        let rules = policy.client(&knock.client).ok_or(Dropped::Policy(Refusal::UnknownClient))?;
        if !self.limits.available(&knock.client, rules.rate, uptime(now)) {
            return Err(Dropped::Policy(Refusal::Rate));
        }
        if knock.request.message_type == MessageType::Close {
            return Ok(0);
        }
        let most = usize::try_from(rules.max_sources).unwrap_or(usize::MAX);
        let coming = agreed.sources.get(&knock.client);
        // Most clients are far from it, and spare a walk over all that they have open.
        let few =
            self.grants.at_most_sources_of(&knock.client) + coming.map_or(0, BTreeSet::len) < most;
        if !few {
            let mut sources = self.grants.sources_of(knock.client, now.boottime);
            sources.extend(coming.into_iter().flatten());
            if !sources.contains(&candidate.permit.source) && sources.len() >= most {
                return Err(Dropped::Policy(Refusal::MaxSources));
            }
        }
        let is_new =
            |permitted: &&Permitted| self.grants.get(&key(candidate, &permitted.item)).is_none();
        let new = candidate.permit.grants.iter().filter(is_new).count();
        if self.grants.len() + agreed.coming + new > self.max_grants {
            return Err(Dropped::Policy(Refusal::MaxGrants));
        }
        Ok(new)
    }

    /// Changes the table and the kernel; the table only if the kernel took it. If not, what it
    /// admits is unknown until [`reconcile`](Self::reconcile) has worked.
    async fn carry_out(&mut self, knocks: &[Candidate], now: Now) -> Result<(), GateError> {
        let opens = |knock: &Candidate| knock.knock.request.message_type == MessageType::Open;
        if !self.stands && knocks.iter().any(opens) {
            return Err(GateError::NotInstalled);
        }
        let mut changes = Vec::new();
        let mut before: Before = Vec::new();
        let (mut opened, mut closed, mut to_close) = (Vec::new(), Vec::new(), Vec::new());
        for candidate in knocks {
            for Permitted { item, ports, connections } in &candidate.permit.grants {
                let key = key(candidate, item);
                match candidate.knock.request.message_type {
                    MessageType::Open => {
                        before.push((key.clone(), self.grants.get(&key).cloned()));
                        let grant = Grant {
                            key: key.clone(),
                            ports: ports.clone(),
                            connections: *connections,
                            opened: now.realtime,
                            expires: now.boottime.saturating_add(candidate.permit.lifetime),
                            request: RequestId::from(candidate.knock.nonce),
                        };
                        changes.extend(self.grants.open(now.boottime, grant));
                        opened.push(key);
                    }
                    MessageType::Close => {
                        let keys = [key];
                        let (gone, withdrawn) = self.grants.close_keys(now.boottime, &keys);
                        changes.extend(withdrawn);
                        closed.extend(keys_of(&gone));
                        self.former.remember(now.boottime, gone);
                        to_close.extend(keys);
                    }
                }
            }
        }
        if let Err(error) = self.apply(&changes).await {
            self.undo(before);
            // What is to be closed stays out of the table, and the kernel is brought to it.
            let (gone, _) = self.grants.close_keys(now.boottime, &to_close);
            closed.extend(keys_of(&gone));
            self.former.remember(now.boottime, gone);
            self.log_grants(&[], &closed);
            self.unreconciled = true;
            return Err(error);
        }
        let done = Now::realtime();
        for knock in knocks {
            if opens(knock) {
                // Nothing where the clock was set back meanwhile.
                let took = knock.captured.min(done).distance(done);
                self.latencies.note(took);
            }
            self.succeeded(knock, now);
        }
        self.counters.closed.fetch_add(u64::try_from(closed.len()).unwrap_or(0), Ordering::Relaxed);
        let opened: Vec<Grant> =
            opened.iter().filter_map(|key| self.grants.get(key).cloned()).collect();
        self.log_grants(&opened, &closed);
        Ok(())
    }

    /// Brings the table back to what it was; what that means for the kernel is found out by
    /// [`reconcile`](Self::reconcile).
    fn undo(&mut self, before: Before) {
        let now = BootMicros::now();
        // Backwards: the first entry of a key is how it was before all of them.
        for (key, grant) in before.into_iter().rev() {
            let _ = self.grants.close_keys(now, &[key]);
            if let Some(grant) = grant {
                let _ = self.grants.open(now, grant);
            }
        }
    }

    fn succeeded(&self, knock: &Candidate, now: Now) {
        let event = match knock.knock.request.message_type {
            MessageType::Open => {
                let grants = u64::try_from(knock.permit.grants.len()).unwrap_or(u64::MAX);
                self.counters.opened.fetch_add(grants, Ordering::Relaxed);
                // A refresh never shortens: what was granted before may last longer.
                let ends = knock.permit.grants.iter().filter_map(|Permitted { item, .. }| {
                    self.grants.get(&key(knock, item)).map(|grant| grant.expires)
                });
                let left = ends.max().map_or(knock.permit.lifetime, |end| end.since(now.boottime));
                Event::Opened {
                    lifetime: knock.permit.lifetime,
                    until: now.realtime.saturating_add(left),
                }
            }
            MessageType::Close => Event::Closed,
        };
        write_audit(knock, event);
    }

    /// Tells that nothing comes of an accepted knock, and why.
    pub fn failed(&self, knock: &Candidate, why: &str) {
        count(&self.counters.failed);
        write_audit(knock, Event::Failed(why));
    }

    /// Closes grants before their time, and says so in the audit trail.
    ///
    /// # Errors
    ///
    /// The kernel did not take it: it is tried again every second, and the audit trail told then.
    pub async fn revoke(
        &mut self,
        selection: &Selection,
        why: &'static str,
    ) -> Result<Vec<Grant>, GateError> {
        self.revoke_if(why, |grant| selection.matches(grant)).await
    }

    async fn revoke_if(
        &mut self,
        why: &'static str,
        condition: impl Fn(&Grant) -> bool,
    ) -> Result<Vec<Grant>, GateError> {
        let now = BootMicros::now();
        let (mut gone, changes) = self.grants.close(now, &condition);
        // What was to be revoked before, and the kernel did not take: whoever asks again is not
        // told that it is done before it is.
        let late = self.half_revoked.iter().map(|(grant, _)| grant);
        let mut late: Vec<_> = late.filter(|grant| condition(grant)).cloned().collect();
        if !gone.is_empty() {
            let applied = self.apply(&changes).await;
            self.log_grants(&[], &keys_of(&gone));
            self.former.remember(now, gone.iter().cloned());
            if let Err(error) = applied {
                // What is to be closed stays out of the table: the kernel is brought to it.
                self.unreconciled = true;
                self.half_revoked.extend(gone.into_iter().map(|grant| (grant, why)));
                return Err(error);
            }
            self.tell_revoked(&gone, why);
        }
        if !late.is_empty() {
            self.try_to_reconcile().await.1?;
            // Whoever has knocked again meanwhile is told of once.
            late.retain(|late| gone.iter().all(|grant| grant.key != late.key));
            gone.extend(late);
        }
        Ok(gone)
    }

    fn tell_revoked(&self, gone: &[Grant], why: &str) {
        for grant in gone {
            count(&self.counters.closed);
            self.tell(grant, Event::Revoked(why));
        }
    }

    fn tell(&self, grant: &Grant, event: Event<'_>) {
        audit::write(&Line {
            event,
            client: &self.client_name(&grant.key.client),
            source: grant.key.source,
            items: std::slice::from_ref(&grant.key.service),
            id: grant.request,
            server_key: ServerKey::Present,
        });
    }

    /// Revokes what the policy forbids, after it has changed.
    pub async fn enforce_policy(&mut self, now: UnixMicros) -> Result<Vec<Grant>, GateError> {
        let policy = Arc::clone(&self.judge.lock().policy);
        let gone = self.revoke_if(FORBIDDEN, |grant| !is_upheld(&policy, grant, now)).await;
        self.shorten(&policy).await;
        gone
    }

    /// What was opened for longer than the policy permits now ends when it would if it were opened now.
    async fn shorten(&mut self, policy: &Policy) {
        let now = BootMicros::now();
        let shortened: Vec<_> = self
            .grants
            .iter()
            .filter_map(|grant| {
                let expires = latest_end(policy, grant, now);
                (expires < grant.expires).then(|| Grant { expires, ..grant.clone() })
            })
            .collect();
        if shortened.is_empty() {
            return;
        }
        let _ = self.grants.close_keys(now, &keys_of(&shortened));
        for grant in &shortened {
            let _ = self.grants.open(now, grant.clone());
        }
        self.log_grants(&shortened, &[]);
        tracing::info!("{} grants end earlier, by the new max-lifetime", shortened.len());
        // The kernel has them for longer.
        self.renew().await;
    }

    /// Another limit of all grants together.
    pub fn set_max_grants(&mut self, max_grants: usize) {
        self.max_grants = max_grants;
    }

    /// What is open now.
    pub fn views(&self, now: BootMicros) -> Vec<GrantView> {
        self.live(now).map(|grant| self.view(grant, now)).collect()
    }

    /// One grant as an administrator sees it.
    pub fn view(&self, grant: &Grant, now: BootMicros) -> GrantView {
        let left = grant.expires.since(now);
        GrantView {
            client: self.client_name(&grant.key.client),
            source: grant.key.source,
            service: grant.key.service.clone(),
            ports: grant.ports.clone(),
            opened: grant.opened,
            seconds_left: left.as_secs() + u64::from(left.subsec_nanos() > 0),
            request_id: grant.request.to_string(),
        }
    }

    /// The number of live grants.
    pub fn count(&self, now: BootMicros) -> usize {
        self.live(now).count()
    }

    /// Those whose time is over stay in the table until the next tick.
    fn live(&self, now: BootMicros) -> impl Iterator<Item = &Grant> {
        self.grants.iter().filter(move |grant| grant.expires > now)
    }

    /// Whether nothing opens, since accepted knocks can't be made durable.
    pub fn is_store_broken(&self) -> bool {
        self.replay.is_broken()
    }

    /// Whether the kernel may admit something else than the table says.
    pub fn is_unreconciled(&self) -> bool {
        self.unreconciled
    }

    fn client_name(&self, client: &ClientId) -> String {
        let judge = self.judge.lock();
        judge.policy.name(client).map_or_else(|| client.to_string(), ToString::to_string)
    }

    fn log_grants(&mut self, opened: &[Grant], closed: &[GrantKey]) {
        let Some(log) = &mut self.grant_log else { return };
        let recorded = log.record(opened, closed);
        // What could not be added may still be written anew, with all the rest.
        let compacted = log.compact(&mut self.grants.iter());
        match (recorded, compacted) {
            (_, Ok(())) => {}
            (Ok(()), Err(error)) => {
                tracing::warn!("the list of grants can't be made shorter: {}", with_causes(&error));
            }
            (Err(error), Err(_)) => {
                let harm = if closed.is_empty() {
                    "a restart will close these grants"
                } else {
                    "a restart may open again what was closed; free space, or mend the state directory"
                };
                tracing::error!("{harm}: {}", with_causes(&error));
            }
        }
    }
}

impl Selection {
    fn matches(&self, grant: &Grant) -> bool {
        self.client.as_ref().is_none_or(|keys| keys.contains(&grant.key.client))
            && self.source.is_none_or(|source| grant.key.source.overlaps(source))
            && self.service.as_ref().is_none_or(|service| *service == grant.key.service)
    }
}

fn key(candidate: &Candidate, item: &Item) -> GrantKey {
    let knock = &candidate.knock;
    GrantKey { client: knock.client, source: candidate.permit.source, service: item.clone() }
}

fn write_audit(candidate: &Candidate, event: Event<'_>) {
    let Candidate { knock, permit, .. } = candidate;
    let items: Vec<Item> = permit.grants.iter().map(|permitted| permitted.item.clone()).collect();
    audit::write(&Line {
        event,
        client: &permit.client,
        source: permit.source,
        items: &items,
        id: RequestId::from(knock.nonce),
        server_key: knock.server_key,
    });
}

/// When a grant ends that is opened now for as long as its client may have it.
fn latest_end(policy: &Policy, grant: &Grant, now: BootMicros) -> BootMicros {
    let most = policy.client(&grant.key.client).map_or(Duration::ZERO, |it| it.max_lifetime);
    now.saturating_add(most)
}

fn is_upheld(policy: &Policy, grant: &Grant, now: UnixMicros) -> bool {
    let GrantKey { client, source, service } = &grant.key;
    let Grant { ports, connections, .. } = grant;
    let had = Permitted { item: service.clone(), ports: ports.clone(), connections: *connections };
    policy.upholds(client, *source, &had, now).is_ok()
}

fn keys_of(grants: &[Grant]) -> Vec<GrantKey> {
    grants.iter().map(|grant| grant.key.clone()).collect()
}

fn uptime(now: Now) -> Duration {
    Duration::from_micros(now.boottime.0)
}

#[cfg(test)]
mod tests;
