//! What the authorizer does without being asked: grants that are over, the clock, the stores.

use super::{Authorizer, keys_of, uptime};
use crate::audit;
use crate::causes::with_causes;
use crate::clock::{BootMicros, Now, Step};
use crate::config::format_timestamp;
use crate::gate::Gate;
use crate::grants::GrantStore;
use crate::priority::in_background;
use crate::replay_store::{Mark, ReplayStore, Snapshot};
use spa_proto::{ClientId, UnixMicros};

impl<G: Gate, R: ReplayStore, L: GrantStore> Authorizer<G, R, L> {
    /// What is due every second: grants whose time is over, the clock, the stores, the audit. Says
    /// whether the clock was set.
    pub async fn tick(&mut self) -> bool {
        let stepped = self.watch_clock();
        let now = Now::read();
        self.expire(now.boottime).await;
        // Where grants end by the clock on the wall, they end at another time now.
        if stepped || self.unreconciled || self.rearranged {
            self.renew().await;
        }
        self.tend_store();
        self.limits.prune(uptime(now));
        self.announcements.prune(uptime(now));
        self.charged.prune(self.oldest_announcement(now.realtime));
        self.new_keys.prune(uptime(now));
        let lines = {
            let mut judge = self.judge.lock();
            // Time has passed if tools had to be waited for.
            let now = Now::read();
            judge.refusals.due(now.boottime)
        };
        self.roll_tags(Now::realtime());
        for line in lines {
            audit::write_refusal(&self.client_name(&line.client), &line);
        }
        stepped
    }

    /// Has the tags of the next minute computed, where that is due: on a thread of its own. With
    /// many clients it takes long, and knocks are to be judged meanwhile.
    fn roll_tags(&mut self, now: UnixMicros) {
        if self.rolling.as_ref().is_some_and(|rolling| !rolling.is_finished()) {
            return;
        }
        let begun = self.judge.lock().receiver.begin_roll(now);
        let Some(begun) = begun else { return };
        let judge = self.judge.clone();
        let rolling = in_background("tags", move || {
            let computed = begun.compute();
            judge.lock().receiver.end_roll(computed);
        });
        match rolling {
            Ok(rolling) => self.rolling = Some(rolling),
            // The receiver computes what it needs when it needs it.
            Err(error) => tracing::warn!("no thread for the tags of the next minute: {error}"),
        }
    }

    /// The kernel closes by its own timer; this covers what that timer does not see: it stands
    /// still while the machine is suspended.
    pub(super) async fn expire(&mut self, now: BootMicros) {
        let (gone, changes) = self.grants.expire(now);
        if gone.is_empty() {
            return;
        }
        if let Err(error) = self.apply(&changes).await {
            tracing::error!(
                "grants that are over can't be withdrawn; the kernel closes them itself: {}",
                with_causes(&error)
            );
            self.unreconciled = true;
        }
        self.log_grants(&[], &keys_of(&gone));
        self.former.remember(now, gone);
    }

    /// Whether the clock was set.
    fn watch_clock(&mut self) -> bool {
        let (step, barrier) = {
            let mut judge = self.judge.lock();
            judge.watch_clock(Now::read());
            (judge.take_step(), judge.receiver.barrier())
        };
        match step {
            Some(Step::Forward(by)) => tracing::warn!(
                "the clock was set forward by {} s: knocks are refused until their timestamps are later than now and a freshness window",
                by.as_secs()
            ),
            Some(Step::Back(by)) => tracing::warn!("the clock was set back by {} s", by.as_secs()),
            None => {}
        }
        if barrier != self.stored_barrier {
            self.rewrite_store(Mark::InUse);
        }
        step.is_some()
    }

    fn tend_store(&mut self) {
        if self.store_failing || self.replay.is_broken() || self.replay.is_bloated() {
            self.rewrite_store(Mark::InUse);
        }
    }

    fn rewrite_store(&mut self, mark: Mark) {
        let snapshot = Snapshot::of(&self.judge.lock().receiver);
        match self.replay.rewrite(&snapshot, mark) {
            Ok(()) => {
                if self.store_failing {
                    tracing::info!("the replay store can be written again");
                }
                self.store_failing = false;
                self.stored_barrier = snapshot.barrier;
            }
            Err(error) if self.store_failing => tracing::debug!("{}", with_causes(&error)),
            Err(error) => {
                self.store_failing = true;
                tracing::error!("{}", with_causes(&error));
            }
        }
    }

    /// Marks the stores clean; nothing may follow. The gate and what is open stay.
    pub fn finish(&mut self) {
        self.rewrite_store(Mark::Clean);
    }

    /// Puts the floor of one client, or of all, to now and a freshness window.
    pub fn reset_replay(&mut self, clients: Option<&[ClientId]>, now: UnixMicros) {
        {
            let mut judge = self.judge.lock();
            let ahead = now.saturating_add(judge.receiver.settings().freshness.get());
            let barrier = judge.receiver.barrier();
            judge.receiver.set_barrier(barrier.min(ahead));
            let clients = match clients {
                Some(clients) => clients.to_vec(),
                None => judge.receiver.windows().map(|(client, _)| client).collect(),
            };
            for client in clients {
                let floor = judge.receiver.reset_window(client, now);
                tracing::warn!(
                    "the replay window of client {} is reset: only knocks stamped after {} are taken",
                    judge.policy.name(&client).unwrap_or(&client.to_string()),
                    format_timestamp(floor)
                );
            }
        }
        self.rewrite_store(Mark::InUse);
    }
}
