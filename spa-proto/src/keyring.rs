//! What seals packets to one identity of the server: the mask key, the pair secrets, the tags
//! that follow from them (§3.4).

use crate::client::ClientId;
use crate::packet::Parts;
use crate::secret::{MaskKey, PairSecret};
use crate::tag::{Epoch, Tag, TagTable, masked};
use crate::time::UnixMicros;
use alloc::vec::Vec;

/// Who seals packets, and which ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sender {
    /// A client: requests, and rotations.
    Client(ClientId),
    /// Whoever holds an invitation (`I_id`, §9.1): enrolments.
    Invitation(ClientId),
}

impl Sender {
    /// What the replay window goes by.
    pub const fn id(self) -> ClientId {
        match self {
            Self::Client(id) | Self::Invitation(id) => id,
        }
    }
}

pub(crate) struct Keyring {
    mask: MaskKey,
    /// Tags refer to places in it, so that none is moved; `None`: removed.
    senders: Vec<Option<(Sender, PairSecret)>>,
    tags: TagTable,
}

/// Whose packet it seems to be.
pub(crate) struct Found<'a> {
    pub(crate) sender: Sender,
    pub(crate) pair: &'a PairSecret,
    pub(crate) epoch: Epoch,
}

impl Keyring {
    pub(crate) fn new(
        mask: MaskKey,
        senders: impl IntoIterator<Item = (Sender, PairSecret)>,
    ) -> Self {
        let senders = senders.into_iter().map(Some).collect();
        Self { mask, senders, tags: TagTable::default() }
    }

    /// The same identity of the server, with these senders and no others.
    pub(crate) fn replace(&mut self, senders: impl IntoIterator<Item = (Sender, PairSecret)>) {
        self.senders = senders.into_iter().map(Some).collect();
        self.tags = TagTable::default();
    }

    /// Adds one, which costs nothing but its own tags.
    pub(crate) fn add(&mut self, sender: Sender, pair: PairSecret) {
        self.remove(sender);
        let Ok(at) = u32::try_from(self.senders.len()) else { return };
        self.tags.add(at, &pair);
        self.senders.push(Some((sender, pair)));
    }

    pub(crate) fn remove(&mut self, sender: Sender) {
        for (at, known) in (0..).zip(&mut self.senders) {
            if known.as_ref().is_some_and(|(other, _)| *other == sender) {
                *known = None;
                self.tags.remove(at);
            }
        }
    }

    pub(crate) fn roll(&mut self, now: UnixMicros) {
        self.tags.roll(now, &self.senders.iter().map(|known| known.as_ref().map(|(_, pair)| pair)));
    }

    /// Looks up the tag of a packet: one ChaCha20 block and one look-up, whatever it is.
    pub(crate) fn find(&mut self, now: UnixMicros, parts: &Parts<'_>) -> Option<Found<'_>> {
        if self.tags.is_late(now) {
            self.roll(now);
        }
        let tag = masked(&self.mask, &parts.nonce, Tag(*parts.masked_tag));
        let owner = self.tags.owner(tag)?;
        let at = usize::try_from(owner.client).ok()?;
        let (sender, pair) = self.senders.get(at)?.as_ref()?;
        Some(Found { sender: *sender, pair, epoch: owner.epoch })
    }
}
