//! The rotating tag at the front of a knock, its mask, and the server's table of tags (§4.2, §4.3).

use crate::packet::Nonce;
use crate::secret::{MaskKey, PairSecret};
use crate::time::UnixMicros;
use alloc::vec;
use alloc::vec::Vec;
use chacha20::ChaCha20;
use chacha20::cipher::{KeyIvInit, StreamCipher};
use core::fmt;
use core::ops::RangeInclusive;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// What HMAC-SHA256 sees before the epoch, so that `K_tag` computes nothing but tags.
const TAG_LABEL: &[u8] = b"spa v1 tag";
/// Seconds in an epoch.
const EPOCH_SECONDS: u64 = 60;
/// The table reaches from four epochs before the present one to three after it.
const EPOCHS_BEHIND: u64 = 4;
const EPOCHS_AHEAD: u64 = 3;

/// A minute of Unix time: floor(unix seconds / 60).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch that holds `instant`.
    pub const fn of(instant: UnixMicros) -> Self {
        Self(instant.as_secs() / EPOCH_SECONDS)
    }
}

/// The key hint of one client in one epoch; equally, the same bytes under the mask.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tag(pub [u8; 16]);

impl Tag {
    /// HMAC-SHA256(`K_tag`, label || epoch)[..16].
    pub fn of(pair: &PairSecret, epoch: Epoch) -> Self {
        let mut tag = [0; 16];
        if let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&pair.tag) {
            mac.update(TAG_LABEL);
            mac.update(&epoch.0.to_be_bytes());
            for (byte, of_mac) in tag.iter_mut().zip(mac.finalize().into_bytes()) {
                *byte = of_mac;
            }
        }
        Self(tag)
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tag(")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}

/// The tag under the mask; its own inverse (§4.3).
///
/// The mask is the first 16 bytes of the ChaCha20 (RFC 8439) key stream under `K_mask` with the
/// first 12 bytes of the packet's nonce and block counter 0. The counter is never taken from the
/// packet.
pub fn masked(mask: &MaskKey, nonce: &Nonce, tag: Tag) -> Tag {
    let mut iv = [0; 12];
    for (byte, of_nonce) in iv.iter_mut().zip(nonce.0) {
        *byte = of_nonce;
    }
    let mut bytes = tag.0;
    ChaCha20::new(&mask.0.into(), &iv.into()).apply_keystream(&mut bytes);
    Tag(bytes)
}

/// The tags of all clients in the eight epochs around the present.
///
/// Made for what is not in it: a look-up of noise touches one line of the processor's cache, or two
/// (open addressing, linear probing).
#[derive(Clone, Default)]
pub(crate) struct TagTable {
    /// The first 8 bytes of the tag in each slot; 0: the slot is free.
    heads: Vec<u64>,
    /// What belongs to them.
    owners: Vec<Slot>,
    taken: usize,
    epochs: Option<RangeInclusive<u64>>,
}

/// Whose tag it is, and of which epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    /// Index into the list of senders.
    pub(crate) client: u32,
    pub(crate) epoch: Epoch,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// The other 8 bytes of the tag; in halves, so that a slot is not longer than what is in it.
    tail: [u32; 2],
    /// Index into the list of senders, above the last bits of the epoch.
    whose: u32,
}

/// Eight epochs in a row differ in so many bits.
const EPOCH_BITS: u32 = 3;
/// Slots of the smallest table.
const FEWEST_SLOTS: usize = 16;

impl TagTable {
    /// The most senders that there can be.
    pub(crate) const MOST: u32 = u32::MAX >> EPOCH_BITS;

    pub(crate) fn owner(&self, tag: Tag) -> Option<Owner> {
        let (head, tail) = split(tag);
        let mut at = self.home(head);
        loop {
            match *self.heads.get(at)? {
                0 => return None,
                held if held == head => {
                    let slot = self.owners.get(at)?;
                    if slot.tail == tail {
                        return self.owner_of(*slot);
                    }
                }
                _ => {}
            }
            at = self.after(at);
        }
    }

    /// Whether `now` has left the epoch around which the table lies, or lies right beside it.
    pub(crate) fn is_late(&self, now: UnixMicros) -> bool {
        let wanted = around(Epoch::of(now));
        self.epochs.as_ref().is_none_or(|held| held.start().abs_diff(*wanted.start()) > 1)
    }

    /// Whether `now` lies in the epoch around which the table lies.
    pub(crate) fn is_around(&self, now: UnixMicros) -> bool {
        self.epochs.as_ref() == Some(&around(Epoch::of(now)))
    }

    /// The table for the epochs around `now`, which keeps what there is of it already. Costs one
    /// HMAC a client and new epoch.
    pub(crate) fn rolled<'a>(
        &self,
        now: UnixMicros,
        clients: &(impl Iterator<Item = Option<&'a PairSecret>> + Clone),
    ) -> Self {
        let wanted = around(Epoch::of(now));
        let kept = self.entries().filter(|(.., owner)| wanted.contains(&owner.epoch.0)).count();
        let is_new = |epoch: &u64| !self.epochs.as_ref().is_some_and(|held| held.contains(epoch));
        let new: Vec<u64> = wanted.clone().filter(is_new).collect();
        let each = clients.clone().flatten().count();
        let mut rolled = Self::for_tags(kept.saturating_add(each.saturating_mul(new.len())));
        rolled.epochs = Some(wanted.clone());
        for (head, tail, owner) in self.entries() {
            if wanted.contains(&owner.epoch.0) {
                rolled.put(head, tail, owner);
            }
        }
        for epoch in new.into_iter().map(Epoch) {
            for (client, pair) in (0..).zip(clients.clone()) {
                if let Some(pair) = pair {
                    let (head, tail) = split(Tag::of(pair, epoch));
                    rolled.put(head, tail, Owner { client, epoch });
                }
            }
        }
        rolled
    }

    /// Adds the tags of one client in the epochs that the table holds.
    pub(crate) fn add(&mut self, client: u32, pair: &PairSecret) {
        let epochs = self.epochs.clone().into_iter().flatten();
        if self.is_full_with(epochs.clone().count()) {
            let mut wider = Self::for_tags(self.taken.saturating_mul(2));
            wider.epochs.clone_from(&self.epochs);
            self.entries().for_each(|(head, tail, owner)| wider.put(head, tail, owner));
            *self = wider;
        }
        for epoch in epochs.map(Epoch) {
            let (head, tail) = split(Tag::of(pair, epoch));
            self.put(head, tail, Owner { client, epoch });
        }
    }

    /// The table without the tags of one client.
    pub(crate) fn without(&self, client: u32) -> Self {
        let mut others = Self::for_tags(self.taken);
        others.epochs.clone_from(&self.epochs);
        for (head, tail, owner) in self.entries().filter(|(.., owner)| owner.client != client) {
            others.put(head, tail, owner);
        }
        others
    }

    /// The first four bytes of each tag.
    #[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
    pub(crate) fn heads(&self) -> impl Iterator<Item = u32> {
        self.heads.iter().filter(|head| **head != 0).map(|head| *head as u32)
    }

    /// How many tags it holds.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.entries().count()
    }

    /// An empty table with room for so many: three of four slots are taken then.
    fn for_tags(tags: usize) -> Self {
        let slots = tags.saturating_add(tags / 3).max(FEWEST_SLOTS);
        let (heads, owners) = (vec![0; slots], vec![Slot::default(); slots]);
        Self { heads, owners, taken: 0, epochs: None }
    }

    fn is_full_with(&self, more: usize) -> bool {
        self.taken.saturating_add(more) > self.heads.len().saturating_sub(self.heads.len() / 4)
    }

    /// There is room: nobody puts more in than the table was made for.
    fn put(&mut self, head: u64, tail: [u32; 2], owner: Owner) {
        let epoch = u32::try_from(owner.epoch.0 & ((1 << EPOCH_BITS) - 1)).unwrap_or_default();
        let slot = Slot { tail, whose: owner.client << EPOCH_BITS | epoch };
        let mut at = self.home(head);
        while let Some(held) = self.heads.get_mut(at) {
            if *held == 0 {
                *held = head;
                if let Some(free) = self.owners.get_mut(at) {
                    *free = slot;
                }
                self.taken = self.taken.saturating_add(1);
                return;
            }
            at = self.after(at);
        }
    }

    fn entries(&self) -> impl Iterator<Item = (u64, [u32; 2], Owner)> {
        let taken = self.heads.iter().zip(&self.owners).filter(|(head, _)| **head != 0);
        taken.filter_map(|(head, slot)| Some((*head, slot.tail, self.owner_of(*slot)?)))
    }

    /// The epoch is the one of those that the table holds with these last bits.
    fn owner_of(&self, slot: Slot) -> Option<Owner> {
        let first = *self.epochs.as_ref()?.start();
        let bits = u64::from(slot.whose) & ((1 << EPOCH_BITS) - 1);
        let ahead = bits.wrapping_sub(first) & ((1 << EPOCH_BITS) - 1);
        let epoch = Epoch(first.saturating_add(ahead));
        Some(Owner { client: slot.whose >> EPOCH_BITS, epoch })
    }

    /// Where the search for a head begins. The tag is the output of a pseudo-random function, so
    /// that its bytes are a good hash. Tags that an attacker chooses are only looked up, never put
    /// in: they can't make the table slow.
    fn home(&self, head: u64) -> usize {
        let scaled = u128::from(head).saturating_mul(self.heads.len() as u128) >> 64;
        usize::try_from(scaled).unwrap_or_default()
    }

    fn after(&self, at: usize) -> usize {
        let next = at.saturating_add(1);
        if next < self.heads.len() { next } else { 0 }
    }
}

/// The tag as the table keeps it. Its first half is never all 0, which one tag in 2^64 pays for by
/// sharing its place with another.
fn split(Tag(tag): Tag) -> (u64, [u32; 2]) {
    let [head @ .., _, _, _, _, _, _, _, _] = tag;
    let [_, _, _, _, _, _, _, _, third @ .., _, _, _, _] = tag;
    let [.., e, f, g, h] = tag;
    let tail = [u32::from_le_bytes(third), u32::from_le_bytes([e, f, g, h])];
    (u64::from_le_bytes(head).max(1), tail)
}

fn around(epoch: Epoch) -> RangeInclusive<u64> {
    epoch.0.saturating_sub(EPOCHS_BEHIND)..=epoch.0.saturating_add(EPOCHS_AHEAD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn pairs() -> Vec<PairSecret> {
        (0..3).map(|n| PairSecret::new([n; 32], [n; 32], [n; 32])).collect()
    }

    fn at(epoch: u64) -> UnixMicros {
        UnixMicros::from_secs(epoch * 60 + 7)
    }

    fn roll<'a>(
        table: &mut TagTable,
        now: UnixMicros,
        clients: &(impl Iterator<Item = Option<&'a PairSecret>> + Clone),
    ) {
        *table = table.rolled(now, clients);
    }

    fn sorted(table: &TagTable) -> Vec<(u64, [u32; 2], u32, u64)> {
        let entries = table.entries();
        let mut all: Vec<_> =
            entries.map(|(head, tail, owner)| (head, tail, owner.client, owner.epoch.0)).collect();
        all.sort_unstable();
        all
    }

    /// However full it is, and also at the end, where the search goes on at the beginning.
    #[test]
    fn what_was_put_in_is_found_and_nothing_else() {
        let secret = |n: u32| {
            let mut key = [7; 32];
            key[..4].copy_from_slice(&n.to_be_bytes());
            PairSecret::new(key, [0; 32], [0; 32])
        };
        let pairs: Vec<PairSecret> = (0..700).map(secret).collect();
        let mut table = TagTable::default();
        roll(&mut table, at(100), &pairs[..500].iter().map(Some));
        for (client, pair) in (500..).zip(&pairs[500..600]) {
            table.add(client, pair);
        }
        table = table.without(17);
        for (client, pair) in (0..).zip(&pairs) {
            let known = client < 600 && client != 17;
            for epoch in (96..=103).map(Epoch) {
                let owner = known.then_some(Owner { client, epoch });
                assert_eq!(table.owner(Tag::of(pair, epoch)), owner);
            }
        }
        assert!(table.taken * 4 <= table.heads.len() * 3);
        // The last slot, and a head that would mean a free one.
        let mut table = TagTable::for_tags(3);
        table.epochs = Some(8..=15);
        for client in 0..3 {
            table.put(u64::MAX - u64::from(client), [5, 6], Owner { client, epoch: Epoch(9) });
        }
        assert_eq!(table.heads[0], u64::MAX - 1);
        let mut tag = [0xff; 16];
        tag[0] = 0xfd;
        tag[8..].copy_from_slice(&[5, 0, 0, 0, 6, 0, 0, 0]);
        assert_eq!(table.owner(Tag(tag)), Some(Owner { client: 2, epoch: Epoch(9) }));
        for at in [0, 8, 15] {
            let mut other = tag;
            other[at] ^= 1;
            assert_eq!(table.owner(Tag(other)), None);
        }
        assert_eq!(split(Tag([0; 16])), (1, [0, 0]));
    }

    #[test]
    fn the_table_holds_eight_epochs_and_rolls_with_the_clock() {
        let pairs = pairs();
        let mut table = TagTable::default();
        assert!(table.is_late(at(100)));
        for now in [100, 101, 105, 300, 90] {
            roll(&mut table, at(now), &pairs.iter().map(Some));
            assert_eq!(table.len(), 8 * pairs.len());
            for (client, pair) in (0..).zip(&pairs) {
                for epoch in now - 4..=now + 3 {
                    let owner = Owner { client, epoch: Epoch(epoch) };
                    assert_eq!(table.owner(Tag::of(pair, Epoch(epoch))), Some(owner));
                }
                assert_eq!(table.owner(Tag::of(pair, Epoch(now - 5))), None);
                assert_eq!(table.owner(Tag::of(pair, Epoch(now + 4))), None);
            }
        }
        assert!(!table.is_late(at(90)) && !table.is_late(at(91)) && !table.is_late(at(89)));
        assert!(table.is_late(at(92)) && table.is_late(at(88)));
    }

    #[test]
    fn a_client_comes_and_goes_without_the_others() {
        let pairs = pairs();
        let mut whole = TagTable::default();
        roll(&mut whole, at(100), &pairs.iter().map(Some));
        let mut table = TagTable::default();
        roll(&mut table, at(100), &pairs.iter().take(2).map(Some));
        table.add(2, &pairs[2]);
        assert_eq!(sorted(&table), sorted(&whole));
        table = table.without(1);
        assert_eq!(table.owner(Tag::of(&pairs[1], Epoch(100))), None);
        assert_eq!(table.len(), 16);
        // Nor does it come back with the next epoch.
        roll(&mut table, at(101), &[Some(&pairs[0]), None, Some(&pairs[2])].into_iter());
        assert_eq!(table.owner(Tag::of(&pairs[1], Epoch(104))), None);
        assert_eq!(table.len(), 16);
        // Before the first roll there is nothing to add to.
        let mut early = TagTable::default();
        early.add(0, &pairs[0]);
        assert!(early.len() == 0);
    }

    #[test]
    fn a_mask_undoes_itself_for_extreme_nonces_too() {
        let key = MaskKey::new([9; 32]);
        for nonce in [Nonce([0; 24]), Nonce([0xff; 24])] {
            let tag = Tag([0x5a; 16]);
            let hidden = masked(&key, &nonce, tag);
            assert_ne!(hidden, tag);
            assert_eq!(masked(&key, &nonce, hidden), tag);
        }
    }
}
