//! Keys that are announced: they enter the replay window as knocks do, and cost a token of a limit.

use super::{Authorizer, uptime};
use crate::causes::with_causes;
use crate::clock::Now;
use crate::counters::{Dropped, count};
use crate::enrolment::Introduction;
use crate::gate::Gate;
use crate::grants::GrantStore;
use crate::policy::{Rate, Refusal};
use crate::replay_store::ReplayStore;
use spa_proto::{Announced, ClientId, DropReason};

/// How often one client, or one invitation, may announce something: a few packets to a few
/// addresses, each of which costs two key agreements. Apart from its knocks: a packet that is
/// refused can be sent again by whoever has seen it.
const ANNOUNCEMENTS: Rate = Rate { per_minute: 30, burst: 30 };
/// How often it may have a new key: each one is kept for ever.
const NEW_KEYS: Rate = Rate { per_minute: 1, burst: 3 };

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
        introduction: &Introduction,
        now: Now,
    ) -> Result<(), Dropped> {
        let oldest = self.judge.lock().receiver.settings().freshness.get() + super::LONGEST_WAIT;
        if announced.stamp < now.realtime.saturating_sub(oldest) {
            return Err(Dropped::Protocol(DropReason::TooOld));
        }
        if self.announcements.take(&bucket(introduction), ANNOUNCEMENTS, uptime(now)) {
            Ok(())
        } else {
            Err(Dropped::Policy(Refusal::Rate))
        }
    }

    /// Takes what a new key costs.
    pub fn take_new_key(&mut self, introduction: &Introduction, now: Now) -> Result<(), Dropped> {
        if self.new_keys.take(&bucket(introduction), NEW_KEYS, uptime(now)) {
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

/// Whatever keys a client has had, it is one client.
fn bucket(introduction: &Introduction) -> ClientId {
    match introduction {
        Introduction::Key(key) => (*key).into(),
        Introduction::Invitation(fingerprint) => {
            let mut id = [0; 32];
            for (byte, digit) in id.iter_mut().zip(fingerprint.bytes()) {
                *byte = digit;
            }
            ClientId(id)
        }
    }
}
