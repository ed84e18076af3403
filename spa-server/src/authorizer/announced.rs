//! Keys that are announced: they enter the replay window as knocks do, and cost a token of a limit.

use super::{Authorizer, uptime};
use crate::causes::with_causes;
use crate::clock::Now;
use crate::counters::{Dropped, count};
use crate::gate::Gate;
use crate::grants::GrantStore;
use crate::policy::{Rate, Refusal};
use crate::replay_store::ReplayStore;
use spa_proto::{Announced, DropReason};

/// Why an announcement is not accepted, though nothing speaks against what it says.
#[derive(Debug)]
pub enum NotAccepted {
    /// The replay window has the last word.
    Dropped(Dropped),
    /// That it was accepted can't be written down.
    Failed(String),
}

impl<G: Gate, R: ReplayStore, L: GrantStore> Authorizer<G, R, L> {
    /// Takes what an announcement costs of its sender's limit, whatever becomes of it: what comes
    /// next costs two key agreements.
    pub fn take_announcement(
        &mut self,
        announced: &Announced,
        rate: Rate,
        now: Now,
    ) -> Result<(), Dropped> {
        let oldest = self.judge.lock().receiver.settings().freshness.get() + super::LONGEST_WAIT;
        if announced.stamp < now.realtime.saturating_sub(oldest) {
            return Err(Dropped::Protocol(DropReason::TooOld));
        }
        if self.limits.take(&announced.sender.id(), rate, uptime(now)) {
            Ok(())
        } else {
            Err(Dropped::Policy(Refusal::Rate))
        }
    }

    /// Enters it into the replay window, durably: the last check.
    pub fn accept_announced(&mut self, announced: &Announced) -> Result<(), NotAccepted> {
        let committed = self.judge.lock().receiver.commit_announced(announced);
        let accepted =
            committed.map_err(|reason| NotAccepted::Dropped(Dropped::Protocol(reason)))?;
        count(&self.counters.accepted);
        self.replay.append(&[accepted]).map_err(|error| {
            let error = with_causes(&error);
            self.store_failing = true;
            tracing::error!("{error}");
            NotAccepted::Failed(error)
        })
    }
}
