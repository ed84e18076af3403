//! Who can announce a key: what the daemon has to know of each sender to judge it.

use super::Introduction;
use spa_keys::{InvitationSecret, PreSharedKey};
use spa_proto::{ClientId, UnixMicros};
use std::collections::HashMap;
use std::sync::Arc;

/// See the module's text.
#[derive(Debug, Clone, Default)]
pub struct Roster {
    /// By the keys that they knock with.
    pub members: HashMap<ClientId, Member>,
    /// By `I_id` (§9.1).
    pub invitations: HashMap<ClientId, Invited>,
}

/// A key that a client knocks with.
#[derive(Debug, Clone)]
pub struct Member {
    /// Whose it is.
    pub introduction: Introduction,
    /// What belongs to it.
    pub pre_shared: Option<Arc<PreSharedKey>>,
    /// Whether the first knock with it makes it the client's key.
    pub is_pending: bool,
}

/// A client that was invited, whether it has come already or not.
#[derive(Debug, Clone)]
pub struct Invited {
    /// Which invitation it is.
    pub introduction: Introduction,
    /// The name that the client has.
    pub name: Arc<str>,
    /// What it enrols by.
    pub secret: Arc<InvitationSecret>,
    /// When it was invited.
    pub issued: UnixMicros,
    /// From when on it is too late.
    pub expires: UnixMicros,
}
