//! What seals packets to one identity of the server: the mask key, the pair secrets, the tags
//! that follow from them (§3.4).

use crate::client::ClientId;
use crate::drop_reason::DropReason;
use crate::packet::{PacketLength, Parts};
use crate::secret::{MaskKey, PairSecret};
use crate::tag::{Epoch, Owner, Tag, TagTable, masked};
use crate::time::UnixMicros;
use alloc::sync::Arc;
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

/// What can be said of a datagram without any secret: it is noise, unless it has the tag of somebody
/// who is known. Whoever has one needs no [`Receiver`](crate::Receiver) for that, and so no lock.
#[derive(Clone)]
pub struct Sieve {
    length: PacketLength,
    /// Of each identity of the server.
    tags: Vec<(MaskKey, Arc<TagTable>)>,
}

impl Sieve {
    pub(crate) fn of<'a>(
        length: PacketLength,
        keyrings: impl Iterator<Item = &'a Keyring>,
    ) -> Self {
        let tags = keyrings.map(|keyring| (keyring.mask.clone(), Arc::clone(&keyring.tags)));
        Self { length, tags: tags.collect() }
    }

    /// Whether its tags are not those of the epochs around `now`, so that it lets everything through.
    pub fn is_late(&self, now: UnixMicros) -> bool {
        self.tags.iter().any(|(_, tags)| tags.is_late(now))
    }

    /// The instant from which on it is late.
    pub fn late_from(&self) -> UnixMicros {
        let all = self.tags.iter().map(|(_, tags)| tags.late_from());
        all.min().unwrap_or_default()
    }

    /// The mask key of each identity of the server.
    pub fn masks(&self) -> impl Iterator<Item = &[u8; 32]> {
        self.tags.iter().map(|(MaskKey(key), _)| key)
    }

    /// The first four bytes of each tag that is known, as a little-endian number.
    pub fn tag_heads(&self) -> impl Iterator<Item = u32> {
        self.tags.iter().flat_map(|(_, tags)| tags.heads())
    }

    /// What [`Receiver::receive`](crate::Receiver::receive) says of noise, in less time. It
    /// allocates nothing, and lets through what it can't judge: everything, when `now` is far from
    /// when it was made, and very seldom what looks like a tag in its first bytes.
    ///
    /// # Errors
    ///
    /// Why it is noise: [`DropReason::Length`] or [`DropReason::UnknownTag`].
    pub fn sift(&self, now: UnixMicros, datagram: &[u8]) -> Result<(), DropReason> {
        let parts = Parts::of(datagram, self.length).ok_or(DropReason::Length)?;
        let may_be = |(mask, tags): &(MaskKey, Arc<TagTable>)| {
            tags.is_late(now) || tags.may_hold(tag_of(mask, &parts))
        };
        if self.tags.iter().any(may_be) { Ok(()) } else { Err(DropReason::UnknownTag) }
    }
}

fn tag_of(mask: &MaskKey, parts: &Parts<'_>) -> Tag {
    masked(mask, &parts.nonce, Tag(*parts.masked_tag))
}

pub(crate) struct Keyring {
    mask: MaskKey,
    /// Tags refer to places in it, so that none is moved; `None`: removed.
    senders: Arc<Senders>,
    tags: Arc<TagTable>,
}

type Senders = Vec<Option<(Sender, PairSecret)>>;

/// A table of tags to be computed: one HMAC for each sender, most minutes.
pub(crate) struct Roll {
    now: UnixMicros,
    senders: Arc<Senders>,
    tags: Arc<TagTable>,
}

impl Roll {
    pub(crate) fn table(&self) -> TagTable {
        let pairs = self.senders.iter().map(|known| known.as_ref().map(|(_, pair)| pair));
        self.tags.rolled(self.now, &pairs)
    }
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
        let senders = Arc::new(senders.into_iter().map(Some).collect());
        Self { mask, senders, tags: Arc::default() }
    }

    /// The same identity of the server, with these senders and no others.
    pub(crate) fn replace(&mut self, senders: impl IntoIterator<Item = (Sender, PairSecret)>) {
        self.senders = Arc::new(senders.into_iter().map(Some).collect());
        self.tags = Arc::default();
    }

    /// Adds one, which costs nothing but its own tags.
    pub(crate) fn add(&mut self, sender: Sender, pair: PairSecret) {
        self.remove(sender);
        let at = u32::try_from(self.senders.len()).ok().filter(|at| *at < TagTable::MOST);
        let Some(at) = at else { return };
        Arc::make_mut(&mut self.tags).add(at, &pair);
        Arc::make_mut(&mut self.senders).push(Some((sender, pair)));
    }

    pub(crate) fn remove(&mut self, sender: Sender) {
        let is_it = |known: &Option<(Sender, PairSecret)>| {
            known.as_ref().is_some_and(|(other, _)| *other == sender)
        };
        // Others may be using the list at this moment: it is copied only if there is a need.
        if !self.senders.iter().any(is_it) {
            return;
        }
        for (at, known) in (0..).zip(Arc::make_mut(&mut self.senders)) {
            if is_it(known) {
                *known = None;
                self.tags = Arc::new(self.tags.without(at));
            }
        }
    }

    /// What there is to do to move the table to the epochs around `now`, for whoever has the time.
    pub(crate) fn roll(&self, now: UnixMicros) -> Option<Roll> {
        let is_due = !self.tags.is_around(now);
        let (senders, tags) = (Arc::clone(&self.senders), Arc::clone(&self.tags));
        is_due.then_some(Roll { now, senders, tags })
    }

    /// The result of a [`Roll`] of this very keyring.
    pub(crate) fn take(&mut self, tags: TagTable) {
        self.tags = Arc::new(tags);
    }

    pub(crate) fn is_late(&self, now: UnixMicros) -> bool {
        self.tags.is_late(now)
    }

    /// Looks up the tag of a packet: one ChaCha20 block and one look-up for noise, and one HMAC
    /// more for whatever has a tag.
    pub(crate) fn find(&self, parts: &Parts<'_>) -> Option<Found<'_>> {
        let owner = self.tags.owner(tag_of(&self.mask, parts), |owner| {
            self.sender(owner).map(|(_, pair)| Tag::of(pair, owner.epoch))
        })?;
        let (sender, pair) = self.sender(owner)?;
        Some(Found { sender: *sender, pair, epoch: owner.epoch })
    }

    fn sender(&self, owner: Owner) -> Option<&(Sender, PairSecret)> {
        self.senders.get(usize::try_from(owner.client).ok()?)?.as_ref()
    }
}
