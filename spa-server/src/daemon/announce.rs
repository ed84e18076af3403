//! Keys that clients announce: an invited client's first one, and a client's next one
//! (`docs/protocol.md`, section 9).

use super::Daemon;
use crate::audit::{self, KeyEvent};
use crate::authorizer::{NotAccepted, Selection};
use crate::causes::with_causes;
use crate::clock::Now;
use crate::config::ServerKeys;
use crate::counters::Dropped;
use crate::enrolment::{
    Effect, EnrolmentStore, Found, Introduction, Member, Record, Rejection, Roster,
};
use crate::grants::RequestId;
use crate::pipeline::Candidate;
use crate::policy::Refusal;
use spa_keys::{AnnouncementSecret, PreSharedKey, PublicKey, open_announcement};
use spa_proto::{Announced, ClientId, Sender, ServerKey, UnixMicros};
use std::path::Path;
use std::sync::Arc;

const REPLACED: &str = "its key was replaced";

/// What the daemon knows of keys, beside what receiver and policy do.
pub(super) struct Keys {
    pub(super) server: ServerKeys,
    pub(super) roster: Roster,
    pub(super) store: EnrolmentStore,
}

/// An announcement that nothing speaks against.
struct Proved {
    introduction: Introduction,
    key: PublicKey,
    pre_shared: Arc<PreSharedKey>,
    effect: Effect,
}

impl Keys {
    /// Who the sender of an announcement is.
    fn introduction(&self, sender: &Sender) -> Option<Introduction> {
        match sender {
            Sender::Invitation(id) => Some(self.roster.invitations.get(id)?.introduction.clone()),
            Sender::Client(id) => Some(self.roster.member(id)?.introduction),
        }
    }

    /// Judges what a sender says of himself: the invitation, the proof, the key.
    fn judge(&self, announced: &Announced, now: UnixMicros) -> Result<Proved, Dropped> {
        let unknown = || Dropped::Policy(Refusal::UnknownClient);
        let private = self.server.private(announced.server_key).ok_or_else(unknown)?;
        let id = announced.sender.id();
        let (introduction, secret) = match announced.sender {
            Sender::Invitation(_) => {
                let invited = self.roster.invitations.get(&id).ok_or_else(unknown)?;
                let since = self.store.enrolments().since;
                if now >= invited.expires {
                    return Err(Dropped::Announcement(Rejection::InvitationExpired));
                }
                if invited.issued < since {
                    return Err(Dropped::Announcement(Rejection::InvitationVoid));
                }
                let secret = AnnouncementSecret::of_invitation(&invited.secret);
                (invited.introduction.clone(), secret)
            }
            Sender::Client(_) => {
                let member = self.roster.member(&id).ok_or_else(unknown)?;
                if announced.server_key == ServerKey::Previous {
                    // Whoever has stolen that could outlive its end by a key of his own.
                    return Err(Dropped::Announcement(Rejection::PreviousServerKey));
                }
                let key = PublicKey::from(id);
                let secret =
                    AnnouncementSecret::of_server(private, &key, member.pre_shared.as_deref());
                (member.introduction, secret.map_err(|_| unknown())?)
            }
        };
        let rejected = Dropped::Announcement;
        let opened = open_announcement(&secret, private, &announced.announcement)
            .map_err(|error| rejected(Rejection::Proof(error)))?;
        let enrolments = self.store.enrolments();
        let is_known = |key: &PublicKey| {
            self.server.has(key) || self.roster.member(&ClientId::from(*key)).is_some()
        };
        let effect = match announced.sender {
            Sender::Invitation(_) => {
                enrolments.judge_enrolment(&introduction, &opened.key, &opened.pre_shared, is_known)
            }
            Sender::Client(_) => {
                enrolments.judge_rotation(&introduction, &opened.key, &opened.pre_shared, is_known)
            }
        };
        Ok(Proved {
            introduction,
            key: opened.key,
            pre_shared: Arc::new(opened.pre_shared),
            effect: effect.map_err(rejected)?,
        })
    }
}

impl Daemon {
    /// Judges an announcement, and takes the key in if nothing speaks against it.
    pub(super) fn announced(&mut self, announced: &Announced) {
        let now = Now::read();
        if let Err(dropped) = self.take_in(announced, now) {
            self.counters.dropped_one(&dropped);
            let detail = || match &dropped {
                Dropped::Policy(refusal) => refusal.to_string(),
                Dropped::Announcement(rejection) => rejection.to_string(),
                _ => String::new(),
            };
            let (id, source) = (announced.sender.id(), announced.source);
            let refusals = &mut self.judge.lock().refusals;
            refusals.note(now.boottime, id, dropped.as_str(), source, detail);
        }
    }

    fn take_in(&mut self, announced: &Announced, now: Now) -> Result<(), Dropped> {
        let id = announced.sender.id();
        let name = {
            let judge = self.judge.lock();
            let judged = judge.policy.judge_announcement(&id, announced.source, now.realtime);
            judged.map_err(Dropped::Policy)?.to_owned()
        };
        let introduction = self.keys.introduction(&announced.sender);
        let introduction = introduction.ok_or(Dropped::Policy(Refusal::UnknownClient))?;
        self.authorizer.take_announcement(announced, &introduction, now)?;
        let proved = self.keys.judge(announced, now.realtime)?;
        if proved.effect == Effect::New {
            self.authorizer.may_have_new_key(&introduction, now)?;
        }
        let request = RequestId::from(announced.nonce);
        let failed = |why: &str| {
            audit::write_key_failed(&name, announced.source, &proved.key, why, request);
        };
        match self.authorizer.accept_announced(announced) {
            Ok(()) => {}
            Err(NotAccepted::Dropped(dropped)) => return Err(dropped),
            Err(NotAccepted::Failed(why)) => {
                failed(&why);
                return Ok(());
            }
        }
        if proved.effect == Effect::Known {
            tracing::debug!(client = &*name, "this key was announced before");
            return Ok(());
        }
        let (introduction, key) = (proved.introduction.clone(), proved.key);
        let (pre_shared, at) = (Arc::clone(&proved.pre_shared), now.realtime);
        let record = match announced.sender {
            Sender::Invitation(_) => Record::Enrolled { introduction, key, pre_shared, at },
            Sender::Client(_) => Record::Announced { introduction, key, pre_shared, at },
        };
        let secrets = match self.keys.server.pair_secrets(&key, Some(&proved.pre_shared)) {
            Ok(secrets) => secrets,
            Err(error) => {
                failed(&error.to_string());
                return Ok(());
            }
        };
        if let Err(error) = self.keys.store.append(&record) {
            failed(&with_causes(&error));
            return Ok(());
        }
        self.authorizer.take_new_key(&proved.introduction, now);
        {
            let mut judge = self.judge.lock();
            for which in [ServerKey::Present, ServerKey::Previous] {
                if let Some(secret) = secrets.get(which) {
                    judge.receiver.add_client(key.into(), which, secret.clone());
                }
            }
            if let Sender::Client(of) = announced.sender {
                judge.receiver.add_kin(key.into(), of);
            }
            judge.policy = Arc::new(judge.policy.with_key(key.into(), &id));
        }
        self.configured = Arc::new(self.configured.with_key(key.into(), &id));
        let is_pending = matches!(announced.sender, Sender::Client(_));
        let pre_shared = Some(proved.pre_shared);
        let member = Member { introduction: proved.introduction, pre_shared, is_pending };
        self.keys.roster.insert(key.into(), member);
        let event = match announced.sender {
            Sender::Invitation(_) => KeyEvent::Enrolled,
            Sender::Client(id) => KeyEvent::RotationAnnounced { old: id.into() },
        };
        audit::write_key(event, &name, announced.source, &key, request);
        Ok(())
    }

    /// Of these accepted knocks, takes those under a key that is pending: the first one makes it
    /// the client's key, before anything opens. Hands back those that may open something.
    pub(super) async fn replace_keys(&mut self, accepted: Vec<Candidate>) -> Vec<Candidate> {
        let mut kept = Vec::with_capacity(accepted.len());
        let mut dead = Vec::new();
        for candidate in accepted {
            let id = candidate.knock.client;
            let pending = self.keys.roster.pending(&id).cloned();
            let Some(introduction) = pending else {
                kept.push(candidate);
                continue;
            };
            let (key, at) = (PublicKey::from(id), Now::read().realtime);
            let record = Record::Replaced { introduction: introduction.clone(), key, at };
            if let Err(error) = self.keys.store.append(&record) {
                self.authorizer.failed(&candidate, &with_causes(&error));
                continue;
            }
            dead.extend(self.replaced(&introduction, &candidate).await);
            kept.push(candidate);
        }
        // Of the same moment, under a key that is none any more.
        let (dropped, kept): (Vec<Candidate>, _) =
            kept.into_iter().partition(|candidate| dead.contains(&candidate.knock.client));
        for candidate in &dropped {
            self.authorizer.failed(candidate, REPLACED);
        }
        kept
    }

    /// From now on the client has this key alone.
    /// Hands back the keys that it had.
    async fn replaced(
        &mut self,
        introduction: &Introduction,
        candidate: &Candidate,
    ) -> Vec<ClientId> {
        let key = candidate.knock.client;
        let roster = &mut self.keys.roster;
        let mut old = roster.keys_of(introduction);
        old.retain(|id| *id != key);
        if let Some(member) = roster.member(&key) {
            roster.insert(key, Member { is_pending: false, ..member });
        }
        for id in &old {
            self.forget_key(*id);
            let event = KeyEvent::Rotated { old: (*id).into() };
            let request = RequestId::from(candidate.knock.nonce);
            let name = &candidate.permit.client;
            audit::write_key(event, name, candidate.knock.source, &key.into(), request);
        }
        // Whoever has stolen the old key has nothing of it any more.
        let grants = Selection { client: Some(old.clone()), ..Selection::default() };
        if let Err(error) = self.authorizer.revoke(&grants, REPLACED).await {
            tracing::error!(
                "grants of a key that was replaced can't be withdrawn yet, which is tried every second: {}",
                with_causes(&error)
            );
        }
        old
    }

    /// Drops the key that the client of this name has announced as its next one.
    pub(super) fn withdraw_key(&mut self, name: &str) -> Result<(), String> {
        let ids = self.client_ids(Some(name))?.unwrap_or_default();
        let members = ids.iter().filter_map(|id| Some((*id, self.keys.roster.member(id)?)));
        let Some((id, member)) = members.into_iter().find(|(_, member)| member.is_pending) else {
            return Err(format!("client {name} has announced no key"));
        };
        let introduction = member.introduction;
        let (key, at) = (PublicKey::from(id), Now::read().realtime);
        let record = Record::Withdrawn { introduction, key, at };
        self.keys.store.append(&record).map_err(|error| with_causes(&error))?;
        tracing::info!(target: "audit", "event=key-withdrawn client={name} key={key}");
        self.forget_key(id);
        Ok(())
    }

    /// Nothing is accepted under this key any more.
    fn forget_key(&mut self, id: ClientId) {
        self.keys.roster.remove(&id);
        let mut judge = self.judge.lock();
        judge.receiver.remove_client(id);
        judge.policy = Arc::new(judge.policy.without_key(&id));
        self.configured = Arc::new(self.configured.without_key(&id));
    }

    /// The previous identity of the server ends with its time.
    pub(super) fn end_previous_key(&mut self, now: UnixMicros) {
        let until = self.keys.server.previous.as_ref().map(|(_, until)| *until);
        if until.is_some_and(|until| now >= until) {
            self.keys.server.previous = None;
            self.judge.lock().receiver.forget_previous();
            tracing::info!(
                "the time of the server's previous key is over: nothing is accepted under it any more; its file can be destroyed, and its settings removed"
            );
        }
    }
}

/// Opens what is known of keys, or begins it.
pub(super) fn open_store(directory: &Path, now: UnixMicros) -> EnrolmentStore {
    let (store, found) = match EnrolmentStore::open(directory, now) {
        Ok(opened) => opened,
        // Who has a key gets in all the same.
        Err(error) => {
            tracing::error!("until a restart no client can bring a key: {}", with_causes(&error));
            return EnrolmentStore::read_only(directory);
        }
    };
    match found {
        Found::Whole => {}
        Found::Missing => tracing::warn!(
            "{} is new, if this server was there before: whoever was invited has to be invited again, and a key in clients.d that had been replaced holds again",
            store.path().display()
        ),
        Found::Damaged(lines) => tracing::error!(
            "{} was damaged, {lines} of its lines are lost: clients whose keys stood there are not known any more, keys in clients.d that were replaced may hold again, and invitations that were not used until now can't be used any more; invite those clients again",
            store.path().display()
        ),
        Found::Unknown(lines) => tracing::error!(
            "{} has {lines} lines of a later version of this program: what they say does not hold here (a key that was replaced may), but they stay for that version; invitations that were not used until now can't be used any more",
            store.path().display()
        ),
    }
    store
}

#[cfg(test)]
mod tests;
