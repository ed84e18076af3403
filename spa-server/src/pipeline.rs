//! The capture side: judges each datagram, and hands on the few knocks that receiver and policy
//! agree to.
//!
//! It runs on the capture threads. Noise ends here: it takes no part in the async runtime, and
//! writes nothing.

use crate::audit::Refusals;
use crate::capture::Sink;
use crate::clock::{BootMicros, Now, Step, StepWatch};
use crate::counters::{Counters, Dropped};
use crate::frame::{Datagram, FrameError};
use crate::policy::{Permit, Policy};
use spa_proto::{Freshness, Knock, Nonce, Receiver, Skew, Verdict};
use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;

/// A knock that receiver and policy agree to; limits and replay window have the last word.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The knock.
    pub knock: Knock,
    /// What it may have.
    pub permit: Permit,
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
    steps: StepWatch,
    freshness: Freshness,
}

/// A [`Judge`] that several threads use.
#[derive(Clone)]
pub struct SharedJudge(Arc<Mutex<Judge>>);

impl SharedJudge {
    /// Shares `judge`.
    pub fn new(judge: Judge) -> Self {
        Self(Arc::new(Mutex::new(judge)))
    }

    /// Waits for the others. Everything behind the lock is whole between two statements, so a
    /// thread that panicked leaves nothing half done.
    pub fn lock(&self) -> MutexGuard<'_, Judge> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
            steps: StepWatch::new(now),
            freshness,
        }
    }

    /// Looks whether the realtime clock has jumped. Forward: knocks may have been accepted in
    /// the time that was jumped over, by a copy of this machine, so the barrier is put up anew.
    pub fn watch_clock(&mut self, now: Now) -> Option<Step> {
        let step = self.steps.observe(now)?;
        if let Step::Forward(_) = step {
            self.receiver.set_barrier(now.realtime.saturating_add(self.freshness.get()));
        }
        Some(step)
    }

    fn judge(
        &mut self,
        now: Now,
        source: IpAddr,
        interface: u32,
        payload: &[u8],
    ) -> Result<Candidate, Dropped> {
        let knock = match self.receiver.receive(now.realtime, source, payload) {
            Verdict::Authentic(knock) => knock,
            Verdict::Dropped(dropped) => {
                let nonce = nonce_of(payload);
                if nonce.is_some_and(|nonce| self.twins.is_twin(nonce, interface, now.boottime)) {
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
        if self.twins.is_twin(knock.nonce, interface, now.boottime) {
            return Err(Dropped::Duplicate);
        }
        self.watch_clock(now);
        match self.policy.judge(&knock, now.realtime) {
            Ok(permit) => {
                self.twins.saw(knock.nonce, interface, now.boottime);
                Ok(Candidate { knock, permit })
            }
            Err(refusal) => {
                let Knock { client, source, .. } = knock;
                self.refusals.note(now.boottime, client, refusal.as_str(), source, || {
                    refusal.to_string()
                });
                Err(Dropped::Policy(refusal))
            }
        }
    }
}

/// What one capture thread does with each frame.
pub struct Pipeline {
    judge: SharedJudge,
    counters: Arc<Counters>,
    queue: mpsc::Sender<Candidate>,
    /// The kernel's count of this handle at the last look.
    kernel_drops: u64,
}

impl Pipeline {
    /// Judges by `judge` and hands on through `queue`.
    pub fn new(judge: SharedJudge, counters: Arc<Counters>, queue: mpsc::Sender<Candidate>) -> Self {
        Self { judge, counters, queue, kernel_drops: 0 }
    }
}

impl Sink for Pipeline {
    fn datagram(&mut self, interface: u32, datagram: &Datagram<'_>) {
        let now = Now::read();
        let verdict = {
            let mut judge = self.judge.lock();
            judge.judge(now, datagram.source, interface, datagram.payload)
        };
        let dropped = match verdict {
            // A full queue: the client's next knock, a fresh one, will find room.
            Ok(candidate) => match self.queue.try_send(candidate) {
                Ok(()) => return,
                Err(_) => Dropped::Overloaded,
            },
            Err(dropped) => dropped,
        };
        self.counters.drop(&dropped);
        tracing::debug!(source = %datagram.source, interface, reason = dropped.as_str(), "dropped");
    }

    fn malformed(&mut self, error: FrameError) {
        self.counters.drop(&Dropped::Frame(error));
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
