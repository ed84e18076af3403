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

    /// Whether a further one of this client may wait; if so, it does from now on.
    pub(super) fn comes(&mut self, client: ClientId) -> bool {
        let count = self.0.entry(client).or_default();
        let may = *count < Self::SHARE;
        *count = count.saturating_add(may.into());
        may
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
        assert!((0..Waiting::SHARE).all(|_| waiting.comes(one)));
        assert!(!waiting.comes(one) && waiting.comes(other));
        waiting.went(&one);
        assert!(waiting.comes(one) && !waiting.comes(one));
        // Who waits no more is forgotten.
        waiting.went(&other);
        (0..Waiting::SHARE).for_each(|_| waiting.went(&one));
        assert!(waiting.0.is_empty());
    }
}
