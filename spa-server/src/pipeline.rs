//! The capture side: judges each datagram, and hands on the few knocks that receiver and policy
//! agree to.
//!
//! It runs on the capture threads. Noise ends here: it takes no part in the async runtime, and
//! writes nothing.

mod judge;
mod shortcut;
mod twins;
mod waiting;

pub(crate) use judge::Judged;
pub use judge::{Judge, Locked, SharedJudge, Told};
pub use shortcut::{CarryOut, Shortcut};

use crate::capture::{Arrival, Sink};
use crate::clock::{Now, StepWatch};
use crate::counters::{Counters, Dropped, count};
use crate::frame::{Datagram, FrameError};
use crate::policy::Permit;
use spa_proto::{Announced, DropReason, Knock, PortRange, Sieve, UnixMicros};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::mpsc;

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
    /// So that the kernel, which knows what is noise by the time before, is told of a jump of the clock
    /// at once, whatever the daemon does meanwhile.
    steps: StepWatch,
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
            steps: StepWatch::new(Now::read()),
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
        if self.judge.generation() != self.generation {
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
                && !judge.comes(candidate.knock.client)
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
        self.shortcut.is_behind_one_more();
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
        if self.steps.observe(Now::read()).is_some() {
            self.judge.lock().watch_clock(Now::read());
        }
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

#[cfg(test)]
mod tests;
