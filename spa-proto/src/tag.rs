//! The rotating tag at the front of a knock, its mask, and the server's table of tags (§4.2, §4.3).

use crate::packet::Nonce;
use crate::secret::{MaskKey, PairSecret};
use crate::time::UnixMicros;
use chacha20::ChaCha20;
use chacha20::cipher::{KeyIvInit, StreamCipher};
use core::fmt;
use core::hash::{BuildHasherDefault, Hash, Hasher};
use core::ops::RangeInclusive;
use hashbrown::HashMap;
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

/// The tag is the output of a pseudo-random function: its first bytes are a good hash. Tags that
/// an attacker chooses are only looked up, never inserted, so they can't make the table slow.
impl Hash for Tag {
    fn hash<H: Hasher>(&self, state: &mut H) {
        if let Some(first) = self.0.first_chunk() {
            state.write_u64(u64::from_ne_bytes(*first));
        }
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
#[derive(Default)]
pub(crate) struct TagTable {
    owners: HashMap<Tag, Owner, BuildHasherDefault<FirstBytes>>,
    epochs: Option<RangeInclusive<u64>>,
}

/// Whose tag it is, and of which epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    /// Index into the list of senders.
    pub(crate) client: u32,
    pub(crate) epoch: Epoch,
}

impl TagTable {
    pub(crate) fn owner(&self, tag: Tag) -> Option<Owner> {
        self.owners.get(&tag).copied()
    }

    /// Whether `now` has left the epoch around which the table lies, or lies right beside it.
    pub(crate) fn is_late(&self, now: UnixMicros) -> bool {
        let wanted = around(Epoch::of(now));
        self.epochs.as_ref().is_none_or(|held| held.start().abs_diff(*wanted.start()) > 1)
    }

    /// Moves the table to the epochs around `now`: forgets those that lie behind it, computes
    /// those that are new. Costs one HMAC a client and new epoch.
    pub(crate) fn roll<'a>(
        &mut self,
        now: UnixMicros,
        clients: &(impl Iterator<Item = Option<&'a PairSecret>> + Clone),
    ) {
        let wanted = around(Epoch::of(now));
        if self.epochs.as_ref() == Some(&wanted) {
            return;
        }
        self.owners.retain(|_, owner| wanted.contains(&owner.epoch.0));
        for epoch in wanted.clone() {
            if self.epochs.as_ref().is_some_and(|held| held.contains(&epoch)) {
                continue;
            }
            for (client, pair) in (0..).zip(clients.clone()) {
                let Some(pair) = pair else { continue };
                let epoch = Epoch(epoch);
                self.owners.insert(Tag::of(pair, epoch), Owner { client, epoch });
            }
        }
        self.epochs = Some(wanted);
    }

    /// Adds the tags of one client in the epochs that the table holds.
    pub(crate) fn add(&mut self, client: u32, pair: &PairSecret) {
        for epoch in self.epochs.clone().into_iter().flatten().map(Epoch) {
            self.owners.insert(Tag::of(pair, epoch), Owner { client, epoch });
        }
    }

    /// Takes the tags of one client out.
    pub(crate) fn remove(&mut self, client: u32) {
        self.owners.retain(|_, owner| owner.client != client);
    }
}

fn around(epoch: Epoch) -> RangeInclusive<u64> {
    epoch.0.saturating_sub(EPOCHS_BEHIND)..=epoch.0.saturating_add(EPOCHS_AHEAD)
}

/// Passes through the one `u64` that [`Tag`] hashes to.
#[derive(Default)]
struct FirstBytes(u64);

impl Hasher for FirstBytes {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }

    fn finish(&self) -> u64 {
        self.0
    }
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

    #[test]
    fn the_table_holds_eight_epochs_and_rolls_with_the_clock() {
        let pairs = pairs();
        let mut table = TagTable::default();
        assert!(table.is_late(at(100)));
        for now in [100, 101, 105, 300, 90] {
            table.roll(at(now), &pairs.iter().map(Some));
            assert_eq!(table.owners.len(), 8 * pairs.len());
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
        whole.roll(at(100), &pairs.iter().map(Some));
        let mut table = TagTable::default();
        table.roll(at(100), &pairs.iter().take(2).map(Some));
        table.add(2, &pairs[2]);
        assert_eq!(table.owners, whole.owners);
        table.remove(1);
        assert_eq!(table.owner(Tag::of(&pairs[1], Epoch(100))), None);
        assert_eq!(table.owners.len(), 16);
        // Nor does it come back with the next epoch.
        table.roll(at(101), &[Some(&pairs[0]), None, Some(&pairs[2])].into_iter());
        assert_eq!(table.owner(Tag::of(&pairs[1], Epoch(104))), None);
        assert_eq!(table.owners.len(), 16);
        // Before the first roll there is nothing to add to.
        let mut early = TagTable::default();
        early.add(0, &pairs[0]);
        assert!(early.owners.is_empty());
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
