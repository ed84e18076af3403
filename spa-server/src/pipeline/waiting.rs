//! Whose knocks wait for the authorizer: nobody may take all the room. Pure.

use spa_proto::ClientId;
use std::collections::HashMap;

/// How many knocks of each client wait. It holds no more clients than there are knocks that wait.
#[derive(Debug, Default)]
pub(super) struct Waiting(HashMap<ClientId, usize>);

impl Waiting {
    /// Knocks of one client that may wait: a quarter of all that may. What comes beyond that while
    /// the authorizer has to wait for something is a flood, by whoever has the client's key; or the
    /// same knock again and again, by whoever has seen it.
    pub(super) const SHARE: usize = 1024;

    /// Whether a further one of this client may wait.
    pub(super) fn has_room(&self, client: &ClientId) -> bool {
        self.0.get(client).is_none_or(|count| *count < Self::SHARE)
    }

    /// One of this client waits from now on.
    pub(super) fn came(&mut self, client: ClientId) {
        let count = self.0.entry(client).or_default();
        *count = count.saturating_add(1);
    }

    /// One of this client waits no more.
    pub(super) fn went(&mut self, client: &ClientId) {
        if let Some(count) = self.0.get_mut(client) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.0.remove(client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_no_room_left_takes_none_of_others() {
        let (one, other) = (ClientId([1; 32]), ClientId([2; 32]));
        let mut waiting = Waiting::default();
        for _ in 0..Waiting::SHARE {
            assert!(waiting.has_room(&one));
            waiting.came(one);
        }
        assert!(!waiting.has_room(&one) && waiting.has_room(&other));
        waiting.went(&one);
        assert!(waiting.has_room(&one));
        // Who waits no more is forgotten.
        (0..Waiting::SHARE).for_each(|_| waiting.went(&one));
        assert!(waiting.0.is_empty());
    }
}
