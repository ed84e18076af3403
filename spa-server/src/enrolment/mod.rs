//! Keys that clients have announced: who has enrolled by which invitation, and whose key is being
//! replaced (`docs/protocol.md`, section 9).
//!
//! What is remembered here are keys, never rights: those stand in the clients' files, which the
//! administrator owns. [`Enrolments`] is pure; [`EnrolmentStore`] keeps it in a file.

mod record;
mod roster;
mod store;

pub use record::Record;
pub use roster::{Invited, Member, Roster};
pub use store::{EnrolmentStore, EnrolmentStoreError, Found};

use serde::{Deserialize, Serialize};
use spa_keys::{AnnouncementError, PreSharedKey, PublicKey};
use spa_proto::UnixMicros;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// How the server came to know a client at first. Whatever keys it has had since, it is the same
/// client as long as this stays.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Introduction {
    /// By the public key in its file.
    Key(PublicKey),
    /// By an invitation, of this fingerprint.
    Invitation(String),
}

/// A key of a client, with the pre-shared key that belongs to it.
#[derive(Debug, Clone)]
pub struct ClientKey {
    /// Its public key.
    pub key: PublicKey,
    /// What was derived when it was announced.
    pub pre_shared: Arc<PreSharedKey>,
}

impl ClientKey {
    /// Whether it is this key with this pre-shared key. The same key by another ephemeral one has
    /// another, and its owner would be locked out if he took that for accepted.
    fn is(&self, key: &PublicKey, pre_shared: &PreSharedKey) -> bool {
        self.key == *key && self.pre_shared.is(pre_shared)
    }
}

/// The keys that one client has announced.
#[derive(Debug, Clone, Default)]
pub struct ClientKeys {
    /// The one that its invitation has brought, if there was one.
    pub enrolled: Option<ClientKey>,
    /// The one in force; `None`: what its file says, or nothing yet.
    pub present: Option<ClientKey>,
    /// The one that is to take its place, with the first knock under it.
    pub pending: Option<ClientKey>,
    /// Those that nothing is accepted under any more.
    pub former: Vec<PublicKey>,
    /// Its key was replaced by one that is not known: what was written of it is damaged.
    pub is_lost: bool,
}

/// All keys that were announced.
#[derive(Debug, Clone, Default)]
pub struct Enrolments {
    /// Since when all that happened is known: an older invitation may have been used, and nobody
    /// remembers.
    pub since: UnixMicros,
    /// How many records there are.
    pub records: usize,
    clients: BTreeMap<Introduction, ClientKeys>,
}

/// Why an authentic announcement has no effect (§9.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejection {
    /// The invitation has expired.
    InvitationExpired,
    /// The invitation is older than what is known of enrolments: it may have been used.
    InvitationVoid,
    /// The sender has not shown that he has the private half of the key.
    Proof(AnnouncementError),
    /// A rotation under the server's previous key, which may be changed since it was stolen.
    PreviousServerKey,
    /// The invitation has brought another key.
    InvitationUsed {
        /// The key that it has brought.
        by: PublicKey,
        /// The one that came now.
        offered: PublicKey,
    },
    /// Another key is pending.
    RotationPending {
        /// That key.
        pending: PublicKey,
        /// The one that came now.
        offered: PublicKey,
    },
    /// The key is one that the server knows already.
    KeyKnown {
        /// The key.
        offered: PublicKey,
    },
}

impl Rejection {
    /// The names of all rejections, as [`as_str`](Self::as_str) gives them.
    pub const ALL: &'static [&'static str] = &[
        "invitation-expired",
        "invitation-void",
        "proof",
        "previous-server-key",
        "invitation-used",
        "rotation-pending",
        "key-known",
    ];

    /// The name of the reason in the audit trail and in `status`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::InvitationExpired => "invitation-expired",
            Self::InvitationVoid => "invitation-void",
            Self::Proof(_) => "proof",
            Self::PreviousServerKey => "previous-server-key",
            Self::InvitationUsed { .. } => "invitation-used",
            Self::RotationPending { .. } => "rotation-pending",
            Self::KeyKnown { .. } => "key-known",
        }
    }
}

/// What there is to say beside the name.
impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvitationExpired => f.write_str("make a new invitation"),
            Self::InvitationVoid => f.write_str(
                "it is older than the records of the state directory, and may have been used; make a new one",
            ),
            Self::Proof(error) => error.fmt(f),
            Self::PreviousServerKey => {
                f.write_str("a key is replaced under the server's present key only")
            }
            Self::InvitationUsed { by, offered } if by == offered => {
                write!(f, "it has brought {by} by another announcement")
            }
            Self::InvitationUsed { by, offered } => {
                write!(f, "it has brought {by}, {offered} comes too late")
            }
            Self::RotationPending { pending, offered } => {
                write!(f, "{pending} is pending, {offered} was offered")
            }
            Self::KeyKnown { offered } => write!(f, "this server knows {offered} already"),
        }
    }
}

/// What an announcement comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It is new.
    New,
    /// It was accepted before: nothing changes.
    Known,
}

impl Enrolments {
    /// The keys that a client has announced.
    pub fn of(&self, introduction: &Introduction) -> Option<&ClientKeys> {
        self.clients.get(introduction)
    }

    /// Judges the enrolment of `key` by the invitation `introduction`; `is_known` tells whether a key is
    /// one of the server's or of a client by its file.
    pub fn judge_enrolment(
        &self,
        introduction: &Introduction,
        key: &PublicKey,
        pre_shared: &PreSharedKey,
        is_known: impl FnOnce(&PublicKey) -> bool,
    ) -> Result<Effect, Rejection> {
        let enrolled = self.of(introduction).and_then(|keys| keys.enrolled.as_ref());
        match enrolled.map(|first| (first.key, first.is(key, pre_shared))) {
            // Also after it was replaced: the datagram was a late one.
            Some((_, true)) => Ok(Effect::Known),
            Some((by, false)) => Err(Rejection::InvitationUsed { by, offered: *key }),
            None if self.has(key) || is_known(key) => Err(Rejection::KeyKnown { offered: *key }),
            None => Ok(Effect::New),
        }
    }

    /// Judges the announcement of `key` as the next one of the client `introduction`.
    pub fn judge_rotation(
        &self,
        introduction: &Introduction,
        key: &PublicKey,
        pre_shared: &PreSharedKey,
        is_known: impl FnOnce(&PublicKey) -> bool,
    ) -> Result<Effect, Rejection> {
        match self.of(introduction).and_then(|keys| keys.pending.as_ref()) {
            Some(pending) if pending.is(key, pre_shared) => Ok(Effect::Known),
            Some(pending) => {
                Err(Rejection::RotationPending { pending: pending.key, offered: *key })
            }
            None if self.has(key) || is_known(key) => Err(Rejection::KeyKnown { offered: *key }),
            None => Ok(Effect::New),
        }
    }

    /// Whether any client has, had or is to have this key.
    pub fn has(&self, key: &PublicKey) -> bool {
        self.clients.iter().any(|(introduction, keys)| {
            *introduction == Introduction::Key(*key)
                || keys.former.contains(key)
                || [&keys.present, &keys.pending].into_iter().flatten().any(|one| one.key == *key)
        })
    }

    /// Takes in what has happened.
    pub fn apply(&mut self, record: &Record) {
        self.records = self.records.saturating_add(1);
        match record {
            Record::Since { instant } => self.since = *instant,
            Record::Enrolled { introduction, key, pre_shared, .. } => {
                let keys = self.clients.entry(introduction.clone()).or_default();
                let first = ClientKey { key: *key, pre_shared: Arc::clone(pre_shared) };
                keys.enrolled = Some(first.clone());
                keys.present = Some(first);
            }
            Record::Announced { introduction, key, pre_shared, .. } => {
                let keys = self.clients.entry(introduction.clone()).or_default();
                keys.pending = Some(ClientKey { key: *key, pre_shared: Arc::clone(pre_shared) });
            }
            Record::Replaced { introduction, key, .. } => {
                let keys = self.clients.entry(introduction.clone()).or_default();
                let pending = keys.pending.take_if(|pending| pending.key == *key);
                let first = match introduction {
                    Introduction::Key(key) => Some(*key),
                    Introduction::Invitation(_) => None,
                };
                let before = keys.present.take().map(|before| before.key).or(first);
                keys.former.extend(before.filter(|_| !keys.is_lost));
                // Without the line that announced it, it is not known; the one before is dead.
                keys.is_lost = pending.is_none();
                keys.present = pending;
            }
            Record::Withdrawn { introduction, key, .. } => {
                let keys = self.clients.entry(introduction.clone()).or_default();
                keys.former
                    .extend(keys.pending.take_if(|pending| pending.key == *key).map(|it| it.key));
            }
        }
    }
}

#[cfg(test)]
mod tests;
