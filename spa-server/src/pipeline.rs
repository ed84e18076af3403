//! The capture side: judges each datagram, and hands on the few knocks that receiver and policy
//! agree to.
//!
//! It runs on the capture threads. Noise ends here: it takes no part in the async runtime, and
//! writes nothing.

mod waiting;

use crate::audit::Refusals;
use crate::capture::{Arrival, Sink};
use crate::clock::{BootMicros, Now, Step, StepWatch};
use crate::counters::{Counters, Dropped, count};
use crate::frame::{Datagram, FrameError};
use crate::policy::{Permit, Policy};
use spa_proto::{
    Announced, ClientId, DropReason, Freshness, Knock, Nonce, PortRange, Receiver, Sieve, Skew,
    UnixMicros, Verdict,
};
use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use waiting::Waiting;

/// A knock that receiver and policy agree to; limits and replay window have the last word.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The knock.
    pub knock: Knock,
    /// What it may have, by the policy that was in force when it was judged last.
    pub permit: Permit,
    /// When the kernel captured it.
    pub captured: UnixMicros,
}

impl Candidate {
    /// The ports that its items stand for, each once.
    pub fn ports(&self) -> Vec<PortRange> {
        let ports: BTreeSet<PortRange> = self
            .permit
            .grants
            .iter()
            .flat_map(|permitted| permitted.ports.iter().copied())
            .collect();
        ports.into_iter().collect()
    }
}

/// What a datagram came to that was not dropped.
#[derive(Debug)]
enum Judged {
    Knock(Candidate),
    Announced(Announced),
}

/// What the capture threads and the authorizer share.
pub struct Judge {
    /// Tag table and replay windows.
    pub receiver: Receiver,
    /// Who may open what.
    pub policy: Arc<Policy>,
    /// Authentic knocks that were refused, to be told in the audit trail.
    pub refusals: Refusals,
    twins: Twins,
    waiting: Waiting,
    steps: StepWatch,
    /// A jump of the clock that the log has not told yet.
    step: Option<Step>,
    /// One after which what is noise has not been told anew.
    is_told_late: bool,
    freshness: Freshness,
}

/// A [`Judge`] that several threads use.
#[derive(Clone)]
pub struct SharedJudge {
    judge: Arc<Mutex<Judge>>,
    /// The receiver's, for those who don't hold the lock.
    generation: Arc<AtomicU64>,
    told: Option<Told>,
}

/// Is told what is noise from now on, with the generation of the receiver; by several threads.
pub type Told = Arc<dyn Fn(&Sieve, u64) + Send + Sync>;

impl SharedJudge {
    /// Shares `judge`.
    pub fn new(judge: Judge) -> Self {
        let generation = Arc::new(AtomicU64::new(judge.receiver.generation()));
        Self { judge: Arc::new(Mutex::new(judge)), generation, told: None }
    }

    /// The same; `told` hears of noise what there is to know now, and whenever that changes, before
    /// whoever has changed it goes on.
    pub fn telling(judge: Judge, told: Told) -> Self {
        told(&judge.receiver.sieve(), judge.receiver.generation());
        Self { told: Some(told), ..Self::new(judge) }
    }

    /// Waits for the others. Everything behind the lock is whole between two statements, so a
    /// thread that panicked leaves nothing half done.
    pub fn lock(&self) -> Locked<'_> {
        let judge = self.judge.lock().unwrap_or_else(PoisonError::into_inner);
        Locked { judge, generation: &self.generation, news: News { told: &self.told, sieve: None } }
    }
}

/// A [`Judge`] that nobody else uses meanwhile. When it is given back, the capture threads learn
/// whether their sieves still hold.
pub struct Locked<'a> {
    // The lock is given back before the news is told: fields are dropped in this order.
    judge: MutexGuard<'a, Judge>,
    generation: &'a AtomicU64,
    news: News<'a>,
}

/// What is to be told when the lock is given back.
struct News<'a> {
    told: &'a Option<Told>,
    sieve: Option<(Sieve, u64)>,
}

impl Drop for News<'_> {
    fn drop(&mut self) {
        if let (Some(told), Some((sieve, generation))) = (self.told, &self.sieve) {
            told(sieve, *generation);
        }
    }
}

impl Deref for Locked<'_> {
    type Target = Judge;

    fn deref(&self) -> &Judge {
        &self.judge
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Judge {
        &mut self.judge
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let present = self.judge.receiver.generation();
        let is_late = std::mem::take(&mut self.judge.is_told_late);
        let has_changed = self.generation.swap(present, Ordering::Release) != present;
        if (has_changed || is_late) && self.news.told.is_some() {
            self.news.sieve = Some((self.judge.receiver.sieve(), present));
        }
    }
}

impl Judge {
    /// Judges by `receiver` and `policy`, from `now` on.
    pub fn new(receiver: Receiver, policy: Arc<Policy>, freshness: Freshness, now: Now) -> Self {
        Self {
            receiver,
            policy,
            refusals: Refusals::default(),
            twins: Twins::default(),
            waiting: Waiting::default(),
            steps: StepWatch::new(now),
            step: None,
            is_told_late: false,
            freshness,
        }
    }

    /// Looks whether the realtime clock has jumped, and moves the barrier with it.
    ///
    /// Forward: in the time that was jumped over knocks may have been accepted by another copy of
    /// this machine, so the barrier is put up anew. Back: the barrier comes down with the clock,
    /// for a clock that was years ahead for a moment must not lock everybody out for years.
    pub fn watch_clock(&mut self, now: Now) {
        let step = self.steps.observe(now);
        let ahead = now.realtime.saturating_add(self.freshness.get());
        let barrier = self.receiver.barrier();
        match step {
            Some(Step::Forward(_)) => self.receiver.set_barrier(barrier.max(ahead)),
            // W may have been lowered since the barrier was put up.
            Some(Step::Back(_)) => {
                let furthest = now.realtime.saturating_add(Freshness::MAX);
                self.receiver.set_barrier(barrier.min(furthest));
            }
            None => {}
        }
        self.is_told_late |= step.is_some();
        self.step = step.or(self.step);
    }

    /// The last jump of the clock, if it was not asked for already.
    pub fn take_step(&mut self) -> Option<Step> {
        self.step.take()
    }

    /// A knock of this client is not in the queue any more.
    pub fn taken(&mut self, client: &ClientId) {
        self.waiting.went(client);
    }

    fn judge(
        &mut self,
        now: Now,
        source: IpAddr,
        Arrival { interface, at: captured }: Arrival,
        payload: &[u8],
    ) -> Result<Judged, Dropped> {
        let verdict = self.receiver.receive(now.realtime, source, payload);
        let (id, nonce, source) = match &verdict {
            Verdict::Authentic(knock) => (knock.client, knock.nonce, knock.source),
            Verdict::Announced(announced) => {
                (announced.sender.id(), announced.nonce, announced.source)
            }
            Verdict::Dropped(dropped) => {
                if dropped.reason == DropReason::Replay
                    && let Some(nonce) = nonce_of(payload)
                    && self.twins.is_twin(nonce, interface, now.boottime)
                {
                    return Err(Dropped::Duplicate);
                }
                if let Some(client) = dropped.client {
                    let reason = dropped.reason.as_str();
                    self.refusals.note(now.boottime, client, reason, source, || {
                        dropped.skew.map(describe).unwrap_or_default()
                    });
                }
                return Err(Dropped::Protocol(dropped.reason));
            }
        };
        if self.twins.is_twin(nonce, interface, now.boottime) {
            return Err(Dropped::Duplicate);
        }
        self.watch_clock(now);
        let judged = match verdict {
            Verdict::Authentic(knock) => {
                let permit = self.policy.judge(&knock, now.realtime);
                permit.map(|permit| Judged::Knock(Candidate { knock, permit, captured }))
            }
            Verdict::Announced(announced) => {
                let judged = self.policy.judge_announcement(&id, source, now.realtime);
                judged.map(|_| Judged::Announced(announced))
            }
            Verdict::Dropped(dropped) => return Err(Dropped::Protocol(dropped.reason)),
        };
        match judged {
            Ok(judged) => {
                self.twins.saw(nonce, interface, now.boottime);
                Ok(judged)
            }
            Err(refusal) => {
                let detail = || refusal.to_string();
                self.refusals.note(now.boottime, id, refusal.as_str(), source, detail);
                Err(Dropped::Policy(refusal))
            }
        }
    }
}

/// The short way past the queue, of all capture threads. It is closed until the daemon has started.
#[derive(Default)]
pub struct Shortcut {
    /// Knocks that are in the queue, or were taken from it and are not carried out yet.
    backlog: AtomicUsize,
    carry_out: OnceLock<Box<CarryOut>>,
}

/// Has a knock carried out on the thread that calls, at once; hands it back where somebody else is
/// at the authorizer.
pub type CarryOut = dyn Fn(Candidate) -> Option<Candidate> + Send + Sync;

impl Shortcut {
    /// From now on knocks take it, once and for all.
    pub fn open(&self, carry_out: Box<CarryOut>) {
        // Whoever comes second changes nothing.
        let _ = self.carry_out.set(carry_out);
    }

    /// Whether some came before, and are not carried out yet: nobody may overtake them. For who has
    /// the authorizer for himself.
    pub fn is_busy(&self) -> bool {
        self.backlog.load(Ordering::Acquire) > 0
    }

    /// So many of the queue were carried out.
    pub fn caught_up(&self, knocks: usize) {
        self.backlog.fetch_sub(knocks, Ordering::AcqRel);
    }

    fn take(&self, candidate: Candidate) -> Option<Candidate> {
        match self.carry_out.get().filter(|_| !self.is_busy()) {
            Some(carry_out) => carry_out(candidate),
            None => Some(candidate),
        }
    }
}

/// The knocks among what is read together.
#[derive(Debug, Default)]
struct Together {
    /// The first, for as long as it is the only one.
    lone: Option<Candidate>,
    any: bool,
}

/// What one capture thread does with each frame.
///
/// A knock that comes alone is carried out on that thread if nobody else is at it, for it is spared
/// the time that it takes another one to wake up. Those that come together wait for
/// each other in a queue, which makes of them one write and one batch.
///
///
/// Noise costs it no lock, no system call and no allocation: it does not get through the sieve.
pub struct Pipeline {
    judge: SharedJudge,
    sieve: Sieve,
    /// Of which generation it is.
    generation: u64,
    counters: Arc<Counters>,
    queue: mpsc::Sender<Candidate>,
    announcements: mpsc::Sender<Announced>,
    shortcut: Arc<Shortcut>,
    together: Together,
    /// The kernel's count of this handle at the last look.
    kernel_drops: u64,
}

impl Pipeline {
    /// Judges by `judge` and hands knocks on through `queue`, keys that are announced through a
    /// queue of their own: these cost more, and must keep no knock waiting.
    pub fn new(
        judge: SharedJudge,
        counters: Arc<Counters>,
        queue: mpsc::Sender<Candidate>,
        announcements: mpsc::Sender<Announced>,
        shortcut: Arc<Shortcut>,
    ) -> Self {
        let (sieve, generation) = {
            let judge = judge.lock();
            (judge.receiver.sieve(), judge.receiver.generation())
        };
        Self {
            judge,
            sieve,
            generation,
            counters,
            queue,
            announcements,
            shortcut,
            together: Together::default(),
            kernel_drops: 0,
        }
    }

    /// Whether it is noise, without a question to the judge. Somebody whose key was added a moment
    /// ago is none.
    fn sift(&mut self, payload: &[u8]) -> Result<(), DropReason> {
        self.renew_sieve();
        self.sieve.sift(Now::realtime(), payload)
    }

    /// So that it is the present one, and a former one's table takes no memory.
    fn renew_sieve(&mut self) {
        if self.judge.generation.load(Ordering::Acquire) != self.generation {
            let judge = self.judge.lock();
            (self.sieve, self.generation) = (judge.receiver.sieve(), judge.receiver.generation());
        }
    }

    fn hand_on(&mut self, arrival: Arrival, datagram: &Datagram<'_>) -> Result<(), Dropped> {
        self.sift(datagram.payload).map_err(Dropped::Protocol)?;
        let judged = {
            let mut judge = self.judge.lock();
            // Not before the lock is ours: who waited for it would see the clock go back.
            let now = Now::read();
            let judged = judge.judge(now, datagram.source, arrival, datagram.payload)?;
            if let Judged::Knock(candidate) = &judged
                && !judge.waiting.comes(candidate.knock.client)
            {
                return Err(Dropped::Overloaded);
            }
            judged
        };
        // Whoever takes it needs the lock at once.
        match judged {
            Judged::Knock(candidate) => {
                if std::mem::replace(&mut self.together.any, true) {
                    let lone = self.together.lone.take();
                    lone.into_iter().chain([candidate]).for_each(|it| self.queue_up(it));
                } else {
                    self.together.lone = Some(candidate);
                }
                Ok(())
            }
            Judged::Announced(announced) => {
                self.announcements.try_send(announced).map_err(|_| Dropped::Overloaded)
            }
        }
    }

    /// No room: the client's next knock, a fresh one, will find some.
    fn queue_up(&self, candidate: Candidate) {
        self.shortcut.backlog.fetch_add(1, Ordering::AcqRel);
        if let Err(unsent) = self.queue.try_send(candidate) {
            self.shortcut.caught_up(1);
            let Candidate { knock, .. } = unsent.into_inner();
            self.judge.lock().taken(&knock.client);
            self.dropped(&Dropped::Overloaded, knock.source, None);
        }
    }

    fn dropped(&self, dropped: &Dropped, source: IpAddr, interface: Option<u32>) {
        self.counters.dropped_one(dropped);
        tracing::debug!(%source, interface, reason = dropped.as_str(), "dropped");
    }
}

impl Sink for Pipeline {
    fn datagram(&mut self, arrival: Arrival, datagram: &Datagram<'_>) {
        count(&self.counters.received);
        if let Err(dropped) = self.hand_on(arrival, datagram) {
            self.dropped(&dropped, datagram.source, Some(arrival.interface));
        }
    }

    fn malformed(&mut self, error: FrameError) {
        count(&self.counters.received);
        self.counters.dropped_one(&Dropped::Frame(error));
    }

    fn settle(&mut self) {
        // Where nothing comes, this is called all the same, twice a second.
        self.renew_sieve();
        let Some(candidate) = std::mem::take(&mut self.together).lone else { return };
        if let Some(candidate) = self.shortcut.take(candidate) {
            self.queue_up(candidate);
        }
    }

    fn kernel_drops(&mut self, total: u64) {
        // A handle that was opened anew counts from zero again.
        let new = total.checked_sub(self.kernel_drops).unwrap_or(total);
        self.kernel_drops = total;
        self.counters.kernel_drops.fetch_add(new, Ordering::Relaxed);
    }
}

/// The knocks of the last moment, and where they came in: one packet that a bridge and its
/// member both show is no replay.
#[derive(Debug, Default)]
struct Twins(VecDeque<(Nonce, u32, BootMicros)>);

impl Twins {
    const REMEMBERED: usize = 64;
    const TOGETHER: Duration = Duration::from_millis(100);

    fn saw(&mut self, nonce: Nonce, interface: u32, now: BootMicros) {
        if self.0.len() >= Self::REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back((nonce, interface, now));
    }

    fn is_twin(&self, nonce: Nonce, interface: u32, now: BootMicros) -> bool {
        self.0.iter().any(|(seen, on, at)| {
            *seen == nonce && *on != interface && now.since(*at) <= Self::TOGETHER
        })
    }
}

/// The nonce stands behind the masked tag.
fn nonce_of(payload: &[u8]) -> Option<Nonce> {
    let (_tag, rest) = payload.split_at_checked(spa_proto::TAG_LENGTH)?;
    rest.first_chunk().map(|nonce| Nonce(*nonce))
}

fn describe(skew: Skew) -> String {
    let (duration, where_to) = match skew {
        Skew::Behind(duration) => (duration, "behind"),
        Skew::Ahead(duration) => (duration, "ahead of"),
    };
    format!("the client's clock is {} s {where_to} the server's", duration.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{ClientRules, Prefixes, Rate};
    use crate::service::Service;
    use spa_proto::{
        Item, MaskKey, MessageType, PacketLength, PairSecret, Request, ServerKey, Settings,
        UnixMicros, seal,
    };
    use std::sync::atomic::AtomicBool;

    const NOW: Now =
        Now { realtime: UnixMicros::from_secs(1_800_000_000), boottime: BootMicros(5_000_000) };
    const CLIENT: ClientId = ClientId([1; 32]);

    fn secret() -> PairSecret {
        PairSecret::new([1; 32], [2; 32], [3; 32])
    }

    fn judge() -> Judge {
        let mut receiver = Receiver::new(Settings::default(), MaskKey::new([9; 32]));
        receiver.set_clients([(CLIENT, secret())]);
        let rules = ClientRules {
            prefixes: Prefixes::default(),
            enabled: true,
            allow: ["ssh".parse().unwrap()].into(),
            max_lifetime: Duration::from_secs(60),
            default_lifetime: Duration::from_secs(30),
            sources: Vec::new(),
            not_before: None,
            expires: None,
            require_bound_source: false,
            rate: Rate::default(),
            max_sources: 16,
        };
        let ssh = ("ssh".parse().unwrap(), Service::plain(["tcp/22".parse().unwrap()]));
        let policy = Policy::new([ssh].into(), [(CLIENT, "laptop", rules)]);
        Judge::new(receiver, Arc::new(policy), Freshness::default(), NOW)
    }

    fn knock(nonce: u8, item: &str) -> Vec<u8> {
        knock_at(NOW.realtime, nonce, item)
    }

    fn knock_now(nonce: u8) -> Vec<u8> {
        knock_at(Now::realtime(), nonce, "ssh")
    }

    fn knock_at(stamp: UnixMicros, nonce: u8, item: &str) -> Vec<u8> {
        let request = Request {
            message_type: MessageType::Open,
            items: item.parse::<Item>().unwrap().try_into().unwrap(),
            bound_source: None,
            lifetime: None,
        };
        let mask = MaskKey::new([9; 32]);
        let length = PacketLength::default();
        seal(&secret(), &mask, &request, stamp, Nonce([nonce; 24]), length).unwrap()
    }

    /// Captured there at [`NOW`].
    fn on(interface: u32) -> Arrival {
        Arrival { interface, at: NOW.realtime }
    }

    fn candidate(judged: Result<Judged, Dropped>) -> Candidate {
        match judged {
            Ok(Judged::Knock(candidate)) => candidate,
            other => panic!("{other:?}"),
        }
    }

    fn source() -> IpAddr {
        "192.0.2.7".parse().unwrap()
    }

    fn later(millis: u64) -> Now {
        let passed = Duration::from_millis(millis);
        Now {
            realtime: NOW.realtime.saturating_add(passed),
            boottime: NOW.boottime.saturating_add(passed),
        }
    }

    #[test]
    fn a_twin_on_another_interface_is_a_duplicate_and_a_replay_is_a_replay() {
        let mut judge = judge();
        let packet = knock(1, "ssh");
        let candidate = candidate(judge.judge(NOW, source(), on(2), &packet));
        // Before the first one is committed, and after.
        assert_eq!(
            judge.judge(later(1), source(), on(3), &packet).unwrap_err(),
            Dropped::Duplicate
        );
        judge.receiver.commit(&candidate.knock, &["tcp/22".parse().unwrap()]).unwrap();
        assert_eq!(
            judge.judge(later(2), source(), on(3), &packet).unwrap_err(),
            Dropped::Duplicate
        );
        let replay = Dropped::Protocol(DropReason::Replay);
        assert_eq!(judge.judge(later(3), source(), on(2), &packet).unwrap_err(), replay);
        assert_eq!(judge.judge(later(500), source(), on(3), &packet).unwrap_err(), replay);
    }

    #[test]
    fn a_refused_knock_is_noted_with_its_reason_and_noise_is_not() {
        let mut judge = judge();
        let refused = judge.judge(NOW, source(), on(2), &knock(1, "db")).unwrap_err();
        assert_eq!(refused.as_str(), "service-not-allowed");
        let noise = judge.judge(NOW, source(), on(2), &[0x5a; 216]).unwrap_err();
        assert_eq!(noise, Dropped::Protocol(DropReason::UnknownTag));
        let lines = judge.refusals.due(NOW.boottime);
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0].detail, "service-not-allowed (db)");
    }

    #[test]
    fn a_clock_that_jumps_forward_puts_up_the_barrier_before_anything_opens() {
        let mut judge = judge();
        let before = candidate(judge.judge(NOW, source(), on(2), &knock(1, "ssh")));
        let port = ["tcp/22".parse().unwrap()];
        judge.receiver.commit(&before.knock, &port).unwrap();
        let jumped = Now { realtime: NOW.realtime.saturating_add(Duration::from_secs(30)), ..NOW };
        let candidate = candidate(judge.judge(jumped, source(), on(2), &knock(2, "ssh")));
        assert_eq!(judge.receiver.commit(&candidate.knock, &port), Err(DropReason::Barrier));
    }

    #[test]
    fn a_clock_that_was_years_ahead_for_a_moment_locks_nobody_out() {
        let mut judge = judge();
        let years = Duration::from_secs(5 * 365 * 86_400);
        judge.watch_clock(Now { realtime: NOW.realtime.saturating_add(years), ..NOW });
        assert_eq!(judge.take_step(), Some(Step::Forward(years)));
        judge.watch_clock(NOW);
        assert_eq!(judge.take_step(), Some(Step::Back(years)));
        assert_eq!(judge.take_step(), None);
        assert_eq!(judge.receiver.barrier(), NOW.realtime.saturating_add(Freshness::MAX));
    }

    fn datagram(payload: &[u8]) -> Datagram<'_> {
        Datagram {
            source: source(),
            source_port: 4000,
            destination: source(),
            destination_port: 62201,
            interface_index: None,
            payload,
        }
    }

    fn pipeline(
        judge: SharedJudge,
        counters: &Arc<Counters>,
        queue: mpsc::Sender<Candidate>,
    ) -> Pipeline {
        let (announcements, _) = mpsc::channel(1);
        Pipeline::new(judge, Arc::clone(counters), queue, announcements, Arc::default())
    }

    impl Pipeline {
        /// As a capture thread hands over what it has read together.
        fn read(&mut self, together: impl IntoIterator<Item = impl AsRef<[u8]>>) {
            for payload in together {
                self.datagram(on(2), &datagram(payload.as_ref()));
            }
            self.settle();
        }
    }

    #[test]
    fn a_knock_takes_the_short_way_if_nobody_is_before_it() {
        let (queue, mut waiting) = mpsc::channel(8);
        let mut judge = judge();
        judge.steps = StepWatch::new(Now::read());
        let mut pipeline = pipeline(SharedJudge::new(judge), &Arc::default(), queue);
        let (is_free, carried_out) = (Arc::new(AtomicBool::new(true)), Arc::new(Mutex::default()));
        let carry_out = {
            let (is_free, carried_out) = (Arc::clone(&is_free), Arc::clone(&carried_out));
            move |candidate: Candidate| {
                if !is_free.load(Ordering::Relaxed) {
                    return Some(candidate);
                }
                let nonces: &Mutex<Vec<u8>> = &carried_out;
                nonces.lock().unwrap().push(candidate.knock.nonce.0[0]);
                None
            }
        };
        let mut queued = || -> Vec<u8> {
            std::iter::from_fn(|| waiting.try_recv().ok())
                .map(|candidate| candidate.knock.nonce.0[0])
                .collect()
        };
        // Before the daemon has started.
        pipeline.read([knock_now(1)]);
        assert_eq!(queued(), [1]);
        pipeline.shortcut.caught_up(1);
        pipeline.shortcut.open(Box::new(carry_out));
        pipeline.read([vec![0x5a; 216], knock_now(2), vec![0x5a; 216]]);
        assert_eq!(
            (queued(), std::mem::take(&mut *carried_out.lock().unwrap())),
            (vec![], vec![2])
        );
        pipeline.read([3, 4, 5].map(knock_now));
        assert_eq!(queued(), [3, 4, 5]);
        // They were taken from the queue, and not carried out yet.
        pipeline.shortcut.caught_up(2);
        pipeline.read([knock_now(9)]);
        assert_eq!(queued(), [9]);
        pipeline.shortcut.caught_up(2);
        is_free.store(false, Ordering::Relaxed);
        pipeline.read([knock_now(6)]);
        is_free.store(true, Ordering::Relaxed);
        pipeline.read([knock_now(7)]);
        assert_eq!(queued(), [6, 7]);
        pipeline.shortcut.caught_up(2);
        pipeline.read([knock_now(8)]);
        assert_eq!(
            (queued(), std::mem::take(&mut *carried_out.lock().unwrap())),
            (vec![], vec![8])
        );
    }

    #[test]
    fn whoever_changes_who_is_known_tells_it_when_nobody_is_kept_waiting() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let slot: Arc<OnceLock<SharedJudge>> = Arc::default();
        let tell: Told = {
            let (told, slot) = (Arc::clone(&told), Arc::clone(&slot));
            Arc::new(move |sieve, generation| {
                // The lock is free: this would wait for ever.
                drop(slot.get().map(SharedJudge::lock));
                told.lock().unwrap().push((generation, sieve.tag_heads().count()));
            })
        };
        let mut judge = judge();
        judge.receiver.roll(NOW.realtime);
        let first = judge.receiver.generation();
        let shared = SharedJudge::telling(judge, tell);
        assert!(slot.set(shared.clone()).is_ok());
        assert_eq!(std::mem::take(&mut *told.lock().unwrap()), [(first, 8)]);
        // Who only looks has nothing to tell.
        assert_eq!(shared.lock().receiver.generation(), first);
        shared.lock().receiver.add_client(ClientId([2; 32]), ServerKey::Present, secret());
        assert_eq!(std::mem::take(&mut *told.lock().unwrap()), [(first + 1, 16)]);
        {
            let mut judge = shared.lock();
            judge.receiver.remove_client(CLIENT);
            judge.receiver.remove_client(ClientId([2; 32]));
            assert!(told.lock().unwrap().is_empty());
        }
        assert_eq!(std::mem::take(&mut *told.lock().unwrap()), [(first + 3, 0)]);
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let (queue, mut waiting) = mpsc::channel(1);
        let counters = Arc::new(Counters::default());
        let mut judge = judge();
        // The sink reads the real clock.
        judge.steps = StepWatch::new(Now::read());
        let shared = SharedJudge::new(judge);
        let mut pipeline = pipeline(shared, &counters, queue);
        pipeline.read((0..3).map(knock_now));
        assert!(waiting.try_recv().is_ok());
        assert_eq!(counters.dropped().get("overloaded"), Some(&2));
    }

    /// The authorizer has to wait for a tool of the system, say.
    #[test]
    fn whoever_floods_meanwhile_leaves_room_for_others() {
        let (queue, mut knocks) = mpsc::channel(2 * Waiting::SHARE);
        let mut judge = judge();
        judge.steps = StepWatch::new(Now::read());
        let shared = SharedJudge::new(judge);
        let counters = Arc::new(Counters::default());
        let mut pipeline = pipeline(shared.clone(), &counters, queue.clone());
        // What has not been accepted yet is no replay.
        let knock = knock_now(1);
        let mut flood = |count| (0..count).for_each(|_| pipeline.read([&knock]));
        flood(2 * Waiting::SHARE);
        assert_eq!(queue.capacity(), Waiting::SHARE);
        let overloaded = || counters.dropped()["overloaded"];
        assert_eq!(overloaded(), u64::try_from(Waiting::SHARE).unwrap());
        // As the authorizer does; then there is room for one more.
        let taken = knocks.try_recv().unwrap();
        shared.lock().taken(&taken.knock.client);
        flood(2);
        assert_eq!(overloaded(), u64::try_from(Waiting::SHARE).unwrap() + 1);
    }

    /// Somebody else has the judge for as long as this takes.
    #[test]
    fn noise_waits_for_nobody() {
        let (queue, _knocks) = mpsc::channel(1);
        let counters = Arc::new(Counters::default());
        let shared = SharedJudge::new(judge());
        // As it is once the daemon has started.
        shared.lock().receiver.roll(Now::realtime());
        let mut pipeline = pipeline(shared.clone(), &counters, queue);
        let held = shared.lock();
        let (done, is_done) = std::sync::mpsc::channel();
        let sifting = std::thread::spawn(move || {
            pipeline.read([[0x5a; 216].as_slice(), &[0x5a; 20]]);
            done.send(()).unwrap();
        });
        assert_eq!(is_done.recv_timeout(Duration::from_secs(20)), Ok(()));
        drop(held);
        sifting.join().unwrap();
        let dropped = counters.dropped();
        assert_eq!((dropped["unknown-tag"], dropped["length"]), (1, 1));
    }

    #[test]
    fn whoever_becomes_known_gets_through_with_the_next_datagram() {
        let (queue, mut waiting) = mpsc::channel(8);
        let mut judge = judge();
        judge.steps = StepWatch::new(Now::read());
        judge.receiver.set_clients([]);
        judge.receiver.roll(Now::realtime());
        let shared = SharedJudge::new(judge);
        let counters = Arc::new(Counters::default());
        let mut pipeline = pipeline(shared.clone(), &counters, queue);
        let mut knocks = |nonce: u8| {
            pipeline.read([knock_now(nonce)]);
            waiting.try_recv().is_ok()
        };
        assert!(!knocks(1));
        shared.lock().receiver.add_client(CLIENT, ServerKey::Present, secret());
        assert!(knocks(2));
        shared.lock().receiver.remove_client(CLIENT);
        assert!(!knocks(3));
        assert_eq!(counters.dropped()["unknown-tag"], 2);
        // It holds on to no former table, also when nothing comes.
        shared.lock().receiver.add_client(CLIENT, ServerKey::Present, secret());
        pipeline.settle();
        assert_eq!(pipeline.generation, shared.lock().receiver.generation());
    }
}
