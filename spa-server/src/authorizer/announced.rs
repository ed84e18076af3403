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
use spa_proto::{Announced, ClientId, DropReason, Nonce, UnixMicros};
use std::collections::HashMap;

/// How often one client, or one invitation, may announce something: a few packets to a few
/// addresses, each of which costs two key agreements. Apart from its knocks: a packet that is
/// refused can be sent again by whoever has seen it.
const ANNOUNCEMENTS: Rate = Rate { per_minute: 30, burst: 30 };
/// How often it may have a new key: each one is kept for ever.
const NEW_KEYS: Rate = Rate { per_minute: 1, burst: 3 };

/// The announcements that have cost something: each does so once. One that was refused is in no
/// replay window, and whoever has seen it could use up its owner's limit with it.
#[derive(Debug, Default)]
pub(super) struct Charged(HashMap<ClientId, Vec<(Nonce, UnixMicros)>>);

impl Charged {
    fn has(&self, sender: &ClientId, nonce: Nonce) -> bool {
        self.0.get(sender).is_some_and(|all| all.iter().any(|(one, _)| *one == nonce))
    }

    /// The limit itself bounds how many there are.
    fn note(&mut self, sender: ClientId, nonce: Nonce, stamp: UnixMicros) {
        self.0.entry(sender).or_default().push((nonce, stamp));
    }

    /// Forgets those that are too old to come again.
    pub(super) fn prune(&mut self, oldest: UnixMicros) {
        self.0.retain(|_, all| {
            all.retain(|(_, stamp)| *stamp >= oldest);
            !all.is_empty()
        });
    }
}

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
        if announced.stamp < self.oldest_announcement(now.realtime) {
            return Err(Dropped::Protocol(DropReason::TooOld));
        }
        let sender = bucket(introduction);
        if self.charged.has(&sender, announced.nonce) {
            return Err(Dropped::Protocol(DropReason::Replay));
        }
        if !self.announcements.take(&sender, ANNOUNCEMENTS, uptime(now)) {
            return Err(Dropped::Policy(Refusal::Rate));
        }
        self.charged.note(sender, announced.nonce, announced.stamp);
        Ok(())
    }

    /// The timestamp before which an announcement is too old, wherever it has waited.
    pub(super) fn oldest_announcement(&self, now: UnixMicros) -> UnixMicros {
        let longest = self.judge.lock().receiver.settings().freshness.get() + super::LONGEST_WAIT;
        now.saturating_sub(longest)
    }

    /// Whether the sender may have a new key now.
    pub fn may_have_new_key(&self, introduction: &Introduction, now: Now) -> Result<(), Dropped> {
        if self.new_keys.available(&bucket(introduction), NEW_KEYS, uptime(now)) {
            Ok(())
        } else {
            Err(Dropped::Policy(Refusal::Rate))
        }
    }

    /// Takes what a new key costs, once it is written down.
    pub fn take_new_key(&mut self, introduction: &Introduction, now: Now) {
        // It was there a moment ago; nobody else takes any.
        let _ = self.new_keys.take(&bucket(introduction), NEW_KEYS, uptime(now));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_cost_something_is_known_until_it_is_too_old_to_come_again() {
        let (sender, other) = (ClientId([1; 32]), ClientId([2; 32]));
        let mut charged = Charged::default();
        for second in 1..=3 {
            charged.note(sender, Nonce([second; 24]), UnixMicros::from_secs(second.into()));
        }
        assert!(charged.has(&sender, Nonce([1; 24])) && !charged.has(&other, Nonce([1; 24])));
        charged.prune(UnixMicros::from_secs(2));
        assert!(!charged.has(&sender, Nonce([1; 24])) && charged.has(&sender, Nonce([2; 24])));
        charged.prune(UnixMicros::from_secs(4));
        assert!(charged.0.is_empty());
    }
}
