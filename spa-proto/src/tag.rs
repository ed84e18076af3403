//! The rotating tag at the front of a knock, its mask, and the server's table of tags (§4.2, §4.3).

use crate::packet::Nonce;
use crate::secret::{MaskKey, PairSecret};
use crate::time::UnixMicros;
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
        Self::all_of(pair, [epoch]).next().unwrap_or(Self([0; 16]))
    }

    /// The same for several epochs, in less time: half of an HMAC is about its key alone.
    fn all_of(
        pair: &PairSecret,
        epochs: impl IntoIterator<Item = Epoch>,
    ) -> impl Iterator<Item = Self> {
        let keyed = Hmac::<Sha256>::new_from_slice(&pair.tag).ok();
        epochs.into_iter().filter_map(move |epoch| {
            let mut mac = keyed.clone()?;
            mac.update(TAG_LABEL);
            mac.update(&epoch.0.to_be_bytes());
            mac.finalize().into_bytes().first_chunk().map(|tag| Self(*tag))
        })
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
/// (open addressing, linear probing). And made small: it holds the first 6 bytes of each tag. Of noise
/// that lets through one datagram in 300 million where there are 100,000 clients; whoever has found
/// somebody by it computes his tag, and compares all of it.
#[derive(Clone, Default)]
pub(crate) struct TagTable {
    /// The first 4 bytes of the tag in each slot; 0: the slot is free.
    heads: Vec<u32>,
    /// The 2 bytes behind them.
    tails: Vec<u16>,
    /// Whose tag it is: an index into the list of senders, above the last bits of the epoch.
    owners: Vec<u32>,
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

/// What the table holds of a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Print {
    head: u32,
    tail: u16,
}

impl Print {
    /// Its first part is never all 0, which one tag in 2^32 pays for by being like another.
    fn of(Tag(tag): Tag) -> Self {
        let [head @ .., _, _, _, _, _, _, _, _, _, _, _, _] = tag;
        let [_, _, _, _, tail @ .., _, _, _, _, _, _, _, _, _, _] = tag;
        Self { head: u32::from_le_bytes(head).max(1), tail: u16::from_le_bytes(tail) }
    }
}

/// Eight epochs in a row differ in so many bits.
const EPOCH_BITS: u32 = 3;
/// Slots of the smallest table.
const FEWEST_SLOTS: usize = 16;

impl TagTable {
    /// The most senders that there can be.
    pub(crate) const MOST: u32 = u32::MAX >> EPOCH_BITS;

    /// Whether it may be somebody's: of what is nobody's, hardly anything may.
    pub(crate) fn may_hold(&self, tag: Tag) -> bool {
        self.owners(tag).next().is_some()
    }

    /// Whose tag it is, if it is that of one of those who may have it: `tag_of` tells what tag
    /// somebody has.
    pub(crate) fn owner(&self, tag: Tag, tag_of: impl Fn(Owner) -> Option<Tag>) -> Option<Owner> {
        self.owners(tag).find(|owner| tag_of(*owner) == Some(tag))
    }

    /// Those whose tag looks like this one.
    fn owners(&self, tag: Tag) -> impl Iterator<Item = Owner> {
        let print = Print::of(tag);
        let mut next = self.home(print.head);
        core::iter::from_fn(move || {
            loop {
                let at = next;
                next = self.after(at);
                match *self.heads.get(at)? {
                    0 => return None,
                    held if held == print.head && self.tails.get(at) == Some(&print.tail) => {
                        return self.owner_of(*self.owners.get(at)?);
                    }
                    _ => {}
                }
            }
        })
    }

    /// Whether `now` has left the epoch around which the table lies, or lies right beside it.
    pub(crate) fn is_late(&self, now: UnixMicros) -> bool {
        let wanted = around(Epoch::of(now));
        self.epochs.as_ref().is_none_or(|held| held.start().abs_diff(*wanted.start()) > 1)
    }

    /// The instant from which on it is late: the end of the epoch beside the one around which it lies.
    pub(crate) fn late_from(&self) -> UnixMicros {
        let start = self.epochs.as_ref().map(|held| held.start().saturating_add(EPOCHS_BEHIND + 2));
        start.map_or_else(UnixMicros::default, |epoch| {
            UnixMicros::from_secs(epoch.saturating_mul(EPOCH_SECONDS))
        })
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
        for (print, owner) in self.entries() {
            if wanted.contains(&owner.epoch.0) {
                rolled.put(print, owner);
            }
        }
        for (client, pair) in (0..).zip(clients.clone()) {
            let epochs = || new.iter().copied().map(Epoch);
            let tags = pair.into_iter().flat_map(|pair| Tag::all_of(pair, epochs()));
            for (tag, epoch) in tags.zip(epochs()) {
                rolled.put(Print::of(tag), Owner { client, epoch });
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
            self.entries().for_each(|(print, owner)| wider.put(print, owner));
            *self = wider;
        }
        for epoch in epochs.map(Epoch) {
            self.put(Print::of(Tag::of(pair, epoch)), Owner { client, epoch });
        }
    }

    /// The table without the tags of one client.
    pub(crate) fn without(&self, client: u32) -> Self {
        let mut others = Self::for_tags(self.taken);
        others.epochs.clone_from(&self.epochs);
        for (print, owner) in self.entries().filter(|(.., owner)| owner.client != client) {
            others.put(print, owner);
        }
        others
    }

    /// The first four bytes of each tag.
    pub(crate) fn heads(&self) -> impl Iterator<Item = u32> {
        self.heads.iter().copied().filter(|head| *head != 0)
    }

    /// How many tags it holds.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.entries().count()
    }

    /// An empty table with room for so many: three of four slots are taken then.
    fn for_tags(tags: usize) -> Self {
        let slots = tags.saturating_add(tags / 3).max(FEWEST_SLOTS);
        let (heads, tails, owners) = (zeros(slots), zeros(slots), zeros(slots));
        Self { heads, tails, owners, taken: 0, epochs: None }
    }

    fn is_full_with(&self, more: usize) -> bool {
        self.taken.saturating_add(more) > self.heads.len().saturating_sub(self.heads.len() / 4)
    }

    /// There is room: nobody puts more in than the table was made for.
    fn put(&mut self, print: Print, owner: Owner) {
        let epoch = u32::try_from(owner.epoch.0 & ((1 << EPOCH_BITS) - 1)).unwrap_or_default();
        let mut at = self.home(print.head);
        while let Some(held) = self.heads.get_mut(at) {
            if *held == 0 {
                *held = print.head;
                if let (Some(tail), Some(whose)) = (self.tails.get_mut(at), self.owners.get_mut(at))
                {
                    *tail = print.tail;
                    *whose = owner.client << EPOCH_BITS | epoch;
                }
                self.taken = self.taken.saturating_add(1);
                return;
            }
            at = self.after(at);
        }
    }

    fn entries(&self) -> impl Iterator<Item = (Print, Owner)> {
        let slots = self.heads.iter().zip(&self.tails).zip(&self.owners);
        let taken = slots.filter(|((head, _), _)| **head != 0);
        taken.filter_map(|((&head, &tail), &whose)| {
            Some((Print { head, tail }, self.owner_of(whose)?))
        })
    }

    /// The epoch is the one of those that the table holds with these last bits.
    fn owner_of(&self, whose: u32) -> Option<Owner> {
        let first = *self.epochs.as_ref()?.start();
        let bits = u64::from(whose) & ((1 << EPOCH_BITS) - 1);
        let ahead = bits.wrapping_sub(first) & ((1 << EPOCH_BITS) - 1);
        let epoch = Epoch(first.saturating_add(ahead));
        Some(Owner { client: whose >> EPOCH_BITS, epoch })
    }

    /// Where the search for a head begins. The tag is the output of a pseudo-random function, so
    /// that its bytes are a good hash. Tags that an attacker chooses are only looked up, never put
    /// in: they can't make the table slow.
    fn home(&self, head: u32) -> usize {
        let scaled = u128::from(head).saturating_mul(self.heads.len() as u128) >> u32::BITS;
        usize::try_from(scaled).unwrap_or_default()
    }

    fn after(&self, at: usize) -> usize {
        let next = at.saturating_add(1);
        if next < self.heads.len() { next } else { 0 }
    }
}

/// So many zeros. A long list gets the room of a block that glibc's malloc always takes from the
/// kernel and gives back to it (mallopt(3), `M_MMAP_THRESHOLD`): each minute a table takes the place of
/// another, which would else be kept. Room that is not used takes no memory.
fn zeros<T: Clone + Default>(count: usize) -> Vec<T> {
    const LARGE: usize = 33 * 1024 * 1024;
    const LONG: usize = 128 * 1024;
    let size = size_of::<T>();
    let is_long = count.saturating_mul(size) >= LONG;
    let large = LARGE.checked_div(size).unwrap_or_default();
    let mut zeros = Vec::with_capacity(if is_long { count.max(large) } else { count });
    zeros.resize(count, T::default());
    zeros
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

    /// Whose tag it is, of these.
    fn owner<'a>(
        table: &TagTable,
        tag: Tag,
        pairs: impl IntoIterator<Item = &'a PairSecret>,
    ) -> Option<Owner> {
        let pairs: Vec<_> = pairs.into_iter().collect();
        let tag_of =
            |owner: Owner| pairs.get(owner.client as usize).map(|pair| Tag::of(pair, owner.epoch));
        let found = table.owner(tag, tag_of);
        assert!(table.may_hold(tag) || found.is_none());
        found
    }

    fn sorted(table: &TagTable) -> Vec<(Print, u32, u64)> {
        let entries = table.entries();
        let mut all: Vec<_> =
            entries.map(|(print, owner)| (print, owner.client, owner.epoch.0)).collect();
        all.sort_unstable();
        all
    }

    /// However full it is.
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
        // Nor is it much larger than it has to be.
        assert!(table.heads.len() <= table.taken * 3);
        table = table.without(17);
        for (client, pair) in (0..).zip(&pairs) {
            let known = client < 600 && client != 17;
            for epoch in (96..=103).map(Epoch) {
                let wanted = known.then_some(Owner { client, epoch });
                let tag = Tag::of(pair, epoch);
                assert_eq!(owner(&table, tag, &pairs), wanted);
                // 48 of 128 bits are in the table, and all of them count.
                for byte in 0..16 {
                    let mut other = tag;
                    other.0[byte] ^= 1;
                    assert_eq!(owner(&table, other, &pairs), None);
                    assert_eq!(table.may_hold(other), known && byte >= 6, "{byte}");
                }
            }
        }
        assert!(table.taken * 4 <= table.heads.len() * 3);
    }

    /// In a full table the search for what is not there would not end.
    #[test]
    fn a_table_that_grows_keeps_a_quarter_of_its_slots_free() {
        let pairs = pairs();
        let mut table = TagTable::default();
        roll(&mut table, at(100), &pairs.iter().map(Some));
        for client in 3..200 {
            let mut key = [7; 32];
            key[0] = u8::try_from(client).unwrap();
            table.add(client, &PairSecret::new(key, [0; 32], [0; 32]));
            assert!(table.taken * 4 <= table.heads.len() * 3);
            assert!(table.heads.len() <= table.taken * 3);
        }
        assert_eq!(table.len(), 200 * 8);
    }

    /// Also at the end, where the search goes on at the beginning.
    #[test]
    fn whoever_has_a_tag_is_found_among_those_whose_tags_look_like_it() {
        let mut table = TagTable::for_tags(3);
        table.epochs = Some(8..=15);
        let tag = |last| {
            let mut tag = [0xff; 16];
            tag[15] = last;
            Tag(tag)
        };
        for client in 0..3 {
            table.put(Print::of(tag(0)), Owner { client, epoch: Epoch(9) });
        }
        assert_eq!((table.heads[15], table.heads[0], table.heads[1]), (!0, !0, !0));
        for last in 0..4 {
            let found =
                table.owner(tag(last), |owner| Some(tag(u8::try_from(owner.client).unwrap())));
            let wanted = Owner { client: last.into(), epoch: Epoch(9) };
            assert_eq!(found, (last < 3).then_some(wanted));
            assert!(table.may_hold(tag(last)));
        }
        // An owner and an epoch share a number.
        assert_eq!(TagTable::MOST << EPOCH_BITS >> EPOCH_BITS, TagTable::MOST);
        // A head that would mean a free slot.
        assert_eq!(Print::of(Tag([0; 16])), Print { head: 1, tail: 0 });
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
                    let wanted = Owner { client, epoch: Epoch(epoch) };
                    assert_eq!(owner(&table, Tag::of(pair, Epoch(epoch)), &pairs), Some(wanted));
                }
                assert!(!table.may_hold(Tag::of(pair, Epoch(now - 5))));
                assert!(!table.may_hold(Tag::of(pair, Epoch(now + 4))));
            }
        }
        assert!(!table.is_late(at(90)) && !table.is_late(at(91)) && !table.is_late(at(89)));
        assert!(table.is_late(at(92)) && table.is_late(at(88)));
        let late_from = table.late_from();
        assert!(table.is_late(late_from));
        assert!(!table.is_late(UnixMicros(late_from.0 - 1)));
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
        assert!(!table.may_hold(Tag::of(&pairs[1], Epoch(100))));
        assert_eq!(table.len(), 16);
        // Nor does it come back with the next epoch.
        roll(&mut table, at(101), &[Some(&pairs[0]), None, Some(&pairs[2])].into_iter());
        assert!(!table.may_hold(Tag::of(&pairs[1], Epoch(104))));
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
