//! Receiver and policy, which the capture threads and the authorizer share.

use super::Candidate;
use super::twins::{Twins, nonce_of};
use super::waiting::Waiting;
use crate::audit::Refusals;
use crate::capture::Arrival;
use crate::clock::{Now, Step, StepWatch};
use crate::counters::Dropped;
use crate::policy::{Permit, Policy, Refusal};
use crate::refused_sources::RefusedSources;
use spa_proto::{
    Announced, ClientId, DropReason, Freshness, Knock, MessageType, Receiver, Sieve, Skew, Verdict,
};
use std::net::IpAddr;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a datagram came to that was not dropped.
#[derive(Debug)]
pub(crate) enum Judged {
    Knock(Candidate),
    Announced(Announced),
}

/// What the capture threads and the authorizer share.
pub struct Judge {
    /// Tag table and replay windows.
    pub receiver: Receiver,
    /// Who may open what.
    pub policy: Arc<Policy>,
    /// For whom nothing is opened, whatever the policy says.
    pub refused: RefusedSources,
    /// Authentic knocks that were refused, to be told in the audit trail.
    pub refusals: Refusals,
    twins: Twins,
    waiting: Waiting,
    pub(super) steps: StepWatch,
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

    /// That of the receiver.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
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
            refused: RefusedSources::default(),
            refusals: Refusals::default(),
            twins: Twins::default(),
            waiting: Waiting::default(),
            steps: StepWatch::new(now),
            step: None,
            is_told_late: false,
            freshness,
        }
    }

    /// What an authentic knock may have now. Who is refused for a time may close what he has.
    pub fn permit(&self, knock: &Knock, now: Now) -> Result<Permit, Refusal> {
        let permit = self.policy.judge(knock, now.realtime)?;
        if knock.request.message_type == MessageType::Open
            && let Some((by, _)) = self.refused.refusing(permit.source, now.boottime)
        {
            return Err(Refusal::SourceRefused(by));
        }
        Ok(permit)
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

    /// Whether a further knock of this client may wait in the queue; if so, it does from now on.
    pub(super) fn comes(&mut self, client: ClientId) -> bool {
        self.waiting.comes(client)
    }

    /// A knock of this client is not in the queue any more.
    pub fn taken(&mut self, client: &ClientId) {
        self.waiting.went(client);
    }

    pub(crate) fn judge(
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
                let permit = self.permit(&knock, now);
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

fn describe(skew: Skew) -> String {
    let (duration, where_to) = match skew {
        Skew::Behind(duration) => (duration, "behind"),
        Skew::Ahead(duration) => (duration, "ahead of"),
    };
    format!("the client's clock is {} s {where_to} the server's", duration.as_secs())
}
