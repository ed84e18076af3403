//! The announcement of a client's new key: enrolment and rotation (§9.3).
//!
//! The keys of an announcement come from key agreements (§9.2), which are the business of
//! `spa-keys`. Here is what is done with them: a public key is sealed, opened and proved.

use crate::packet::Nonce;
use crate::request::{Reader, address_bytes, bound_source};
use crate::time::UnixMicros;
use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305};
use core::fmt;
use core::net::IpAddr;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::{Zeroize, ZeroizeOnDrop};

const VERSION: u8 = 1;
const ENROLMENT: u8 = 3;
const ROTATION: u8 = 4;

/// Bytes in front of the sealed key: what its seal covers as well.
const HEAD_LENGTH: usize = 1 + 1 + 8 + 16 + 32;
const KEY_LENGTH: usize = 32;
const AEAD_TAG_LENGTH: usize = 16;
const SEALED_LENGTH: usize = KEY_LENGTH + AEAD_TAG_LENGTH;
/// Bytes that the proof covers.
const COVERED_LENGTH: usize = HEAD_LENGTH + SEALED_LENGTH;
const PROOF_LENGTH: usize = 16;
const LENGTH: usize = COVERED_LENGTH + PROOF_LENGTH;

/// What a key is announced for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AnnouncementKind {
    /// The first key of a client that was invited.
    Enrolment,
    /// A key to take the place of the one that seals the packet.
    Rotation,
}

impl AnnouncementKind {
    /// `"enrolment"` or `"rotation"`: the word in logs, and the label of the keys (§9.2).
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enrolment => "enrolment",
            Self::Rotation => "rotation",
        }
    }
}

/// The two secrets of an announcement (§9.2): `K_new`, `K_proof`. Wiped from memory when dropped.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct AnnouncementKeys {
    new: [u8; 32],
    proof: [u8; 32],
}

impl AnnouncementKeys {
    /// Takes `K_new`, which seals the new public key, and `K_proof`.
    pub const fn new(new: [u8; 32], proof: [u8; 32]) -> Self {
        Self { new, proof }
    }
}

impl fmt::Debug for AnnouncementKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnnouncementKeys(redacted)")
    }
}

/// What a client announces.
#[derive(Debug)]
pub struct NewKey<'a> {
    /// What for.
    pub kind: AnnouncementKind,
    /// `E`, the ephemeral public key; the same in all packets of one announcement.
    pub ephemeral: [u8; 32],
    /// `N`, the new public key.
    pub key: [u8; 32],
    /// What proves it.
    pub keys: &'a AnnouncementKeys,
    /// The only address that the packet may come from; `None`: the one it is observed from.
    pub bound_source: Option<IpAddr>,
}

impl NewKey<'_> {
    /// Writes the plaintext of §9.3 into `plaintext`, which is longer than it, and pads it.
    /// `None` when the cipher refuses; it does not at these lengths.
    pub(crate) fn encode(
        &self,
        stamp: UnixMicros,
        nonce: &Nonce,
        plaintext: &mut [u8],
    ) -> Option<()> {
        plaintext.fill(0);
        let message_type = match self.kind {
            AnnouncementKind::Enrolment => ENROLMENT,
            AnnouncementKind::Rotation => ROTATION,
        };
        let head = [VERSION, message_type]
            .into_iter()
            .chain(stamp.0.to_be_bytes())
            .chain(self.bound_source.map_or([0; 16], address_bytes))
            .chain(self.ephemeral)
            .chain(self.key);
        for (byte, value) in plaintext.iter_mut().zip(head) {
            *byte = value;
        }
        let (head, rest) = plaintext.split_first_chunk_mut::<HEAD_LENGTH>()?;
        let (key, rest) = rest.split_first_chunk_mut::<KEY_LENGTH>()?;
        let tag = XChaCha20Poly1305::new(&self.keys.new.into())
            .encrypt_inout_detached(&nonce.0.into(), head, key.as_mut_slice().into())
            .ok()?;
        rest.first_chunk_mut::<AEAD_TAG_LENGTH>()?.copy_from_slice(&tag);
        let (covered, rest) = plaintext.split_first_chunk_mut::<COVERED_LENGTH>()?;
        let proof = proof(&self.keys.proof, nonce, covered)?.finalize().into_bytes();
        rest.first_chunk_mut::<PROOF_LENGTH>()?
            .copy_from_slice(proof.first_chunk::<PROOF_LENGTH>()?);
        Some(())
    }
}

/// An announcement as it was received, its key not opened yet and nothing proved.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Announcement {
    kind: AnnouncementKind,
    bound_source: Option<IpAddr>,
    nonce: Nonce,
    covered: [u8; COVERED_LENGTH],
    proof: [u8; PROOF_LENGTH],
}

impl Announcement {
    /// Whether a plaintext is to be read as an announcement rather than a request.
    pub(crate) fn is_one(plaintext: &[u8]) -> bool {
        matches!(plaintext, [_, ENROLMENT | ROTATION, ..])
    }

    /// Reads a plaintext; `None` when any byte is not as §9.3 has it, the padding included.
    pub(crate) fn decode(plaintext: &[u8], nonce: Nonce) -> Option<(Self, UnixMicros)> {
        let (announcement, padding) = plaintext.split_first_chunk::<LENGTH>()?;
        let (covered, proof) = announcement.split_first_chunk::<COVERED_LENGTH>()?;
        let mut reader = Reader(covered);
        if reader.byte()? != VERSION {
            return None;
        }
        let kind = match reader.byte()? {
            ENROLMENT => AnnouncementKind::Enrolment,
            ROTATION => AnnouncementKind::Rotation,
            _ => return None,
        };
        let stamp = UnixMicros(u64::from_be_bytes(*reader.array()?));
        let bound_source = bound_source(reader.array()?)?;
        let proof = *proof.first_chunk()?;
        let is_padded = padding.iter().all(|byte| *byte == 0);
        is_padded.then_some((Self { kind, bound_source, nonce, covered: *covered, proof }, stamp))
    }

    /// What for.
    pub const fn kind(&self) -> AnnouncementKind {
        self.kind
    }

    pub(crate) const fn bound_source(&self) -> Option<IpAddr> {
        self.bound_source
    }

    /// `E`, the ephemeral public key.
    pub fn ephemeral(&self) -> [u8; 32] {
        self.covered
            .first_chunk::<HEAD_LENGTH>()
            .and_then(|head| head.last_chunk())
            .copied()
            .unwrap_or_default()
    }

    /// `N`, opened by `K_new`; `None` when its seal does not hold. That its owner has sent this is
    /// not shown before [`proof_holds`](Self::proof_holds).
    pub fn open_key(&self, k_new: &[u8; 32]) -> Option<[u8; 32]> {
        let (head, sealed) = self.covered.split_first_chunk::<HEAD_LENGTH>()?;
        let (key, tag) = sealed.split_first_chunk::<KEY_LENGTH>()?;
        let mut key = *key;
        let tag: [u8; AEAD_TAG_LENGTH] = *tag.first_chunk()?;
        XChaCha20Poly1305::new(k_new.into())
            .decrypt_inout_detached(
                &self.nonce.0.into(),
                head,
                key.as_mut_slice().into(),
                &tag.into(),
            )
            .ok()?;
        Some(key)
    }

    /// Whether the proof holds under `K_proof`, in constant time.
    pub fn proof_holds(&self, k_proof: &[u8; 32]) -> bool {
        proof(k_proof, &self.nonce, &self.covered)
            .is_some_and(|mac| mac.verify_truncated_left(&self.proof).is_ok())
    }
}

impl fmt::Debug for Announcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Announcement({}, {})", self.kind.as_str(), self.nonce)
    }
}

fn proof(
    k_proof: &[u8; 32],
    nonce: &Nonce,
    covered: &[u8; COVERED_LENGTH],
) -> Option<Hmac<Sha256>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(k_proof).ok()?;
    mac.update(&nonce.0);
    mac.update(covered);
    Some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NONCE: Nonce = Nonce([7; 24]);
    const STAMP: UnixMicros = UnixMicros::from_secs(1_800_000_000);

    fn plaintext(kind: AnnouncementKind, bound_source: Option<IpAddr>) -> [u8; 128] {
        let keys = AnnouncementKeys::new([1; 32], [2; 32]);
        let new = NewKey { kind, ephemeral: [3; 32], key: [4; 32], keys: &keys, bound_source };
        let mut plaintext = [0xaa; 128];
        new.encode(STAMP, &NONCE, &mut plaintext).unwrap();
        plaintext
    }

    #[test]
    fn an_announcement_survives_the_wire() {
        for kind in [AnnouncementKind::Enrolment, AnnouncementKind::Rotation] {
            for source in
                [None, Some("192.0.2.1".parse().unwrap()), Some("2001:db8::1".parse().unwrap())]
            {
                let plaintext = plaintext(kind, source);
                assert!(Announcement::is_one(&plaintext));
                let (read, stamp) = Announcement::decode(&plaintext, NONCE).unwrap();
                assert_eq!((read.kind(), read.bound_source(), stamp), (kind, source, STAMP));
                assert_eq!(read.ephemeral(), [3; 32]);
                assert_eq!(read.open_key(&[1; 32]), Some([4; 32]));
                assert!(read.proof_holds(&[2; 32]));
                assert_eq!(read.open_key(&[2; 32]), None);
                assert!(!read.proof_holds(&[1; 32]));
            }
        }
    }

    #[test]
    fn whatever_is_changed_is_noticed() {
        let plaintext = plaintext(AnnouncementKind::Enrolment, None);
        for at in 0..plaintext.len() {
            let mut changed = plaintext;
            changed[at] ^= 1;
            let Some((read, _)) = Announcement::decode(&changed, NONCE) else { continue };
            assert!(!read.proof_holds(&[2; 32]), "byte {at}");
            let is_covered = at < HEAD_LENGTH + SEALED_LENGTH;
            assert_eq!(read.open_key(&[1; 32]).is_none(), is_covered, "byte {at}");
        }
        let (moved, _) = Announcement::decode(&plaintext, Nonce([8; 24])).unwrap();
        assert!(moved.open_key(&[1; 32]).is_none() && !moved.proof_holds(&[2; 32]));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(plaintext in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Announcement::decode(&plaintext, NONCE);
        }

        #[test]
        fn what_decodes_is_an_announcement(mut plaintext in any::<[u8; 128]>(), kind in 0u8..8) {
            plaintext[0] = VERSION;
            plaintext[1] = kind;
            plaintext[10..26].fill(0);
            plaintext[LENGTH..].fill(0);
            let is_one = (3..5).contains(&kind);
            prop_assert_eq!(Announcement::is_one(&plaintext), is_one);
            prop_assert_eq!(Announcement::decode(&plaintext, NONCE).is_some(), is_one);
        }
    }
}
