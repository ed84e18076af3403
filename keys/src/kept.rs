//! Pair secrets that a server keeps over a restart, so that it need not derive them again: X25519 is
//! what a start with very many clients waits for.
//!
//! ```text
//! K_seal || K_id = HKDF-SHA256(salt, server's private key, "kept pair secrets", L = 64)
//! id             = HMAC-SHA256(K_id, S || C || u8(pre-shared key?) || (pre-shared key, or 32 zero bytes))
//! file           = magic and version (16) || nonce (24) || XChaCha20-Poly1305(K_seal, nonce, aad = magic, records)
//! record         = id (32) || K_tag || K_enc || K_mac
//! ```
//!
//! So a record is found by just what its secret was derived from: a secret can't be taken for that of
//! another key, or of the same one with another pre-shared key. And the file tells nothing to whoever
//! has not the server's private key; who has it could derive all that is in it, with the pre-shared keys.

use crate::derive::hkdf_sha256;
use crate::{NoRandomness, PreSharedKey, PrivateKey, PublicKey, fill};
use chacha20poly1305::aead::AeadInOut as _;
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305};
use ring::hmac;
use ring::rand::SecureRandom;
use spa_proto::PairSecret;
use zeroize::{Zeroize as _, Zeroizing};

/// The label in the info of HKDF.
const LABEL: &[u8] = b"kept pair secrets";
/// What such a file begins with; the last byte is the version.
const MAGIC: [u8; 16] = *b"spa kept pairs\0\x01";
const NONCE: usize = 24;
const TAG: usize = 16;
/// What stands before the records.
const FRONT: usize = 16 + NONCE;
const ID: usize = 32;
/// Bytes of a record.
const RECORD: usize = ID + 3 * 32;

/// What a server seals the secrets with that it keeps.
pub struct KeepingKey {
    seal: Zeroizing<[u8; 32]>,
    ids: hmac::Key,
}

/// What a pair secret was derived from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeptId([u8; ID]);

/// Pair secrets, by what they were derived from. Wiped from memory when dropped.
pub struct KeptSecrets {
    /// Magic, nonce, and records, in the order of their ids.
    bytes: Vec<u8>,
}

impl Drop for KeptSecrets {
    /// What is in the list: it may have very much room beside that, which nobody has ever touched.
    fn drop(&mut self) {
        self.bytes.as_mut_slice().zeroize();
    }
}

/// Why a file of kept secrets is good for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeptError {
    /// It does not begin as such a file does.
    #[error("it was not written by this version of the program")]
    Version,
    /// It was changed, or sealed by somebody else.
    #[error(
        "it was written under another private key of the server, as it is after a change of keys, or is damaged"
    )]
    Sealed,
}

impl KeepingKey {
    /// That of the server with this private key.
    pub fn of(server: &PrivateKey) -> Self {
        let both = hkdf_sha256::<64>(server.as_bytes(), &[LABEL]);
        let (seal, ids) = both.split_at(32);
        let mut key =
            Self { seal: Zeroizing::new([0; 32]), ids: hmac::Key::new(hmac::HMAC_SHA256, ids) };
        key.seal.copy_from_slice(seal);
        key
    }

    /// By what the secret is found that one of the server's identities shares with a client.
    pub fn id(
        &self,
        server: &PublicKey,
        client: &PublicKey,
        pre_shared: Option<&PreSharedKey>,
    ) -> KeptId {
        let mut context = hmac::Context::with_key(&self.ids);
        context.update(server.as_bytes());
        context.update(client.as_bytes());
        context.update(&[pre_shared.is_some().into()]);
        let (none, pre_shared) = ([0; 32], pre_shared.map(PreSharedKey::as_bytes));
        context.update(pre_shared.unwrap_or(&none));
        let mut id = [0; ID];
        id.iter_mut().zip(context.sign().as_ref()).for_each(|(byte, of_mac)| *byte = *of_mac);
        KeptId(id)
    }
}

impl KeptSecrets {
    /// The longest file that is read: that of four million secrets.
    pub const MAX_LENGTH: usize = 512 * 1024 * 1024;

    /// How long the file is that keeps so many.
    pub const fn length_of(count: usize) -> usize {
        count.saturating_mul(RECORD).saturating_add(FRONT + TAG)
    }

    /// To keep these. `room` is the list in which they are to be, which should have room for all.
    pub fn of<'a>(
        secrets: impl IntoIterator<Item = (KeptId, &'a PairSecret)>,
        room: Vec<u8>,
    ) -> Self {
        let mut kept = Self { bytes: room };
        let bytes = &mut kept.bytes;
        bytes.clear();
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&[0; NONCE]);
        for (KeptId(id), secret) in secrets {
            bytes.extend_from_slice(&id);
            secret.keys().into_iter().for_each(|key| bytes.extend_from_slice(key));
        }
        if let Some((_, records)) = bytes.split_at_mut_checked(FRONT) {
            records.as_chunks_mut::<RECORD>().0.sort_unstable();
        }
        kept
    }

    /// Reads a file that [`seal`](Self::seal) has made.
    pub fn open(file: Vec<u8>, key: &KeepingKey) -> Result<Self, KeptError> {
        let mut kept = Self { bytes: file };
        let bytes = &mut kept.bytes;
        let (magic, rest) = bytes.split_first_chunk_mut::<16>().ok_or(KeptError::Version)?;
        if *magic != MAGIC {
            return Err(KeptError::Version);
        }
        let (nonce, rest) = rest.split_first_chunk_mut::<NONCE>().ok_or(KeptError::Sealed)?;
        let (records, tag) = rest.split_last_chunk_mut::<TAG>().ok_or(KeptError::Sealed)?;
        XChaCha20Poly1305::new(&(*key.seal).into())
            .decrypt_inout_detached(&(*nonce).into(), &MAGIC, records.into(), &(*tag).into())
            .map_err(|_| KeptError::Sealed)?;
        let length = bytes.len().saturating_sub(TAG);
        bytes.truncate(length);
        Ok(kept)
    }

    /// The file that keeps them.
    pub fn seal(
        mut self,
        key: &KeepingKey,
        random: &dyn SecureRandom,
    ) -> Result<Vec<u8>, NoRandomness> {
        let mut tag = [0; TAG];
        if let Some((_, rest)) = self.bytes.split_first_chunk_mut::<16>()
            && let Some((nonce, records)) = rest.split_first_chunk_mut::<NONCE>()
        {
            fill(random, nonce)?;
            let sealed = XChaCha20Poly1305::new(&(*key.seal).into()).encrypt_inout_detached(
                &(*nonce).into(),
                &MAGIC,
                records.into(),
            );
            // Only of more than 256 GiB.
            tag = sealed.map_err(|_| NoRandomness)?.into();
        }
        self.bytes.extend_from_slice(&tag);
        Ok(std::mem::take(&mut self.bytes))
    }

    /// The secret that was derived from this.
    pub fn get(&self, KeptId(id): &KeptId) -> Option<PairSecret> {
        let records = self.records();
        let at = records.binary_search_by(|record| record.get(..ID).cmp(&Some(id))).ok()?;
        let [_, tag, enc, mac] = *records.get(at)?.as_chunks::<32>().0 else { return None };
        Some(PairSecret::new(tag, enc, mac))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.records().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn records(&self) -> &[[u8; RECORD]] {
        self.bytes.get(FRONT..).unwrap_or_default().as_chunks().0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pair_secret_for_server;
    use ring::rand::SystemRandom;

    fn private(n: u8) -> PrivateKey {
        PrivateKey::from_bytes(Zeroizing::new([n; 32]))
    }

    fn psk(n: u8) -> PreSharedKey {
        PreSharedKey::from_bytes(Zeroizing::new([n; 32])).unwrap()
    }

    /// The file of a server with clients 1 to `count`.
    fn file(server: &PrivateKey, count: u8) -> Vec<u8> {
        let key = KeepingKey::of(server);
        let derived: Vec<_> = (1..=count)
            .map(|n| {
                let client = private(n).public();
                let secret = pair_secret_for_server(server, &client, None).unwrap();
                (key.id(&server.public(), &client, None), secret)
            })
            .collect();
        let derived = derived.iter().map(|(id, secret)| (*id, secret));
        KeptSecrets::of(derived, Vec::new()).seal(&key, &SystemRandom::new()).unwrap()
    }

    fn keys(secret: &PairSecret) -> Vec<u8> {
        secret.keys().into_iter().flatten().copied().collect()
    }

    #[test]
    fn what_was_kept_is_what_would_be_derived() {
        let server = private(100);
        let key = KeepingKey::of(&server);
        for count in [0, 1, 20] {
            let kept = KeptSecrets::open(file(&server, count), &key).unwrap();
            assert_eq!((kept.len(), kept.is_empty()), (usize::from(count), count == 0));
            for n in 1..=25 {
                let client = private(n).public();
                let found = kept.get(&key.id(&server.public(), &client, None));
                let derived = pair_secret_for_server(&server, &client, None).unwrap();
                let wanted = (n <= count).then(|| keys(&derived));
                assert_eq!(found.as_ref().map(keys), wanted);
            }
        }
    }

    #[test]
    fn a_secret_is_found_by_all_that_it_was_derived_from() {
        let (server, other) = (private(100), private(101));
        let (one, two) = (private(1).public(), private(2).public());
        let key = KeepingKey::of(&server);
        let ids = [
            key.id(&server.public(), &one, None),
            key.id(&other.public(), &one, None),
            key.id(&server.public(), &two, None),
            key.id(&one, &server.public(), None),
            key.id(&server.public(), &one, Some(&psk(1))),
            key.id(&server.public(), &one, Some(&psk(2))),
            KeepingKey::of(&other).id(&server.public(), &one, None),
        ];
        for (at, id) in ids.iter().enumerate() {
            assert!(!ids.iter().skip(at + 1).any(|other| other == id), "{at}");
        }
        let kept = KeptSecrets::open(file(&server, 1), &key).unwrap();
        let found: Vec<_> = ids.iter().map(|id| kept.get(id).is_some()).collect();
        assert_eq!(found, [true, false, false, false, false, false, false]);
    }

    #[test]
    fn a_file_of_another_key_or_damaged_anywhere_is_good_for_nothing() {
        let server = private(100);
        let (whole, key) = (file(&server, 3), KeepingKey::of(&server));
        assert!(KeptSecrets::open(whole.clone(), &key).is_ok());
        let error = |file: Vec<u8>| KeptSecrets::open(file, &key).err();
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            let wanted = if at < MAGIC.len() { KeptError::Version } else { KeptError::Sealed };
            assert_eq!(error(changed), Some(wanted), "{at}");
            assert!(error(whole[..at].to_vec()).is_some(), "{at}");
        }
        let mut longer = whole.clone();
        longer.push(0);
        assert_eq!(error(longer), Some(KeptError::Sealed));
        let others = KeepingKey::of(&private(101));
        assert_eq!(KeptSecrets::open(whole, &others).err(), Some(KeptError::Sealed));
    }

    #[test]
    fn no_secret_and_no_key_stands_readable_in_the_file() {
        let server = private(100);
        let (one, two) = (file(&server, 1), file(&server, 1));
        let client = private(1).public();
        let secret = pair_secret_for_server(&server, &client, None).unwrap();
        let telling = secret.keys().into_iter().chain([client.as_bytes(), server.as_bytes()]);
        for bytes in telling {
            assert!(!one.windows(8).any(|window| bytes.starts_with(window)));
        }
        // Nor whether it is the same as before.
        assert_eq!(one.len(), two.len());
        assert_ne!(one[FRONT..], two[FRONT..]);
    }
}
