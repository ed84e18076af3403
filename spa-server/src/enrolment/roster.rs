//! Who can announce a key: what the daemon has to know of each sender to judge it.

use super::Introduction;
use spa_keys::{InvitationSecret, PreSharedKey};
use spa_proto::{ClientId, UnixMicros};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// See the module's text.
#[derive(Debug, Clone, Default)]
pub struct Roster {
    /// The keys that clients knock with by the configuration, in their order.
    keys: Arc<Vec<ClientId>>,
    /// Of these and of keys that have come since, those that are not [plain](Member::plain); `None`:
    /// that are gone.
    others: BTreeMap<ClientId, Option<Member>>,
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

impl Member {
    /// A client that is known by this very key, with nothing beside it: as nearly all are.
    fn plain(id: ClientId) -> Self {
        let introduction = Introduction::Key(id.into());
        Self { introduction, pre_shared: None, is_pending: false }
    }
}

impl Roster {
    /// Clients with these keys, of which `others` are not plain, and with these invitations.
    pub fn new(
        keys: Arc<Vec<ClientId>>,
        others: impl IntoIterator<Item = (ClientId, Member)>,
        invitations: HashMap<ClientId, Invited>,
    ) -> Self {
        let others = others.into_iter().map(|(id, member)| (id, Some(member))).collect();
        Self { keys, others, invitations }
    }

    /// What is known of a key that a client knocks with.
    pub fn member(&self, id: &ClientId) -> Option<Member> {
        match self.others.get(id) {
            Some(other) => other.clone(),
            None => self.keys.binary_search(id).is_ok().then(|| Member::plain(*id)),
        }
    }

    /// Whose this key is, if the first knock with it makes it the client's key. Asked for each knock.
    pub fn pending(&self, id: &ClientId) -> Option<&Introduction> {
        let other = self.others.get(id)?.as_ref()?;
        other.is_pending.then_some(&other.introduction)
    }

    /// Adds a key, or changes what is known of one.
    pub fn insert(&mut self, id: ClientId, member: Member) {
        self.others.insert(id, Some(member));
    }

    /// Takes a key out.
    pub fn remove(&mut self, id: &ClientId) {
        self.others.insert(*id, None);
    }

    /// The keys of one client.
    pub fn keys_of(&self, introduction: &Introduction) -> Vec<ClientId> {
        let is_its = |(id, other): (&ClientId, &Option<Member>)| {
            other.as_ref().is_some_and(|it| it.introduction == *introduction).then_some(*id)
        };
        let mut keys: Vec<_> = self.others.iter().filter_map(is_its).collect();
        if let Introduction::Key(key) = introduction {
            let id = ClientId::from(*key);
            if !self.others.contains_key(&id) && self.keys.binary_search(&id).is_ok() {
                keys.push(id);
            }
        }
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> ClientId {
        ClientId([n; 32])
    }

    fn introduction(n: u8) -> Introduction {
        Introduction::Key(id(n).into())
    }

    #[test]
    fn a_plain_key_and_others_are_found_until_they_are_taken_out() {
        let pending = Member { introduction: introduction(1), pre_shared: None, is_pending: true };
        let mut roster =
            Roster::new(Arc::new(vec![id(1), id(2), id(3)]), [(id(3), pending)], HashMap::new());
        let known = |roster: &Roster, n| {
            roster.member(&id(n)).map(|member| (member.introduction, member.is_pending))
        };
        assert_eq!(known(&roster, 1), Some((introduction(1), false)));
        assert_eq!(known(&roster, 3), Some((introduction(1), true)));
        assert_eq!(known(&roster, 4), None);
        let pending = [1, 3, 4].map(|n| roster.pending(&id(n)).cloned());
        assert_eq!(pending, [None, Some(introduction(1)), None]);
        assert_eq!(roster.keys_of(&introduction(1)), [id(3), id(1)]);
        assert_eq!(roster.keys_of(&introduction(3)), []);
        roster.insert(id(4), Member { is_pending: false, ..roster.member(&id(3)).unwrap() });
        for gone in [1, 3] {
            roster.remove(&id(gone));
            assert_eq!(known(&roster, gone), None);
        }
        assert_eq!(roster.keys_of(&introduction(1)), [id(4)]);
        assert_eq!(known(&roster, 2), Some((introduction(2), false)));
    }
}
