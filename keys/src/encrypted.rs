//! Keys under a passphrase (§3.5): a text form of their own, which shows the public key to who
//! has no passphrase, and the private or pre-shared key to nobody else.
//!
//! ```text
//! cost (8) || salt (16) || public key (32; not for a pre-shared key) || nonce (24)
//!     || ciphertext (32) || tag (16)
//! ```
//!
//! The passphrase gives the key by Argon2id; XChaCha20-Poly1305 encrypts, and authenticates the
//! prefix and all that stands before the ciphertext.

use crate::passphrase::{Recipe, SALT_LENGTH};
use crate::text::{self, KeyKind, KeyTextError};
use crate::{
    Cost, DecryptError, NoRandomness, Passphrase, PreSharedKey, PrivateKey, PublicKey, fill,
};
use chacha20poly1305::aead::AeadInOut as _;
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305};
use core::fmt;
use core::str::FromStr;
use ring::rand::SecureRandom;
use zeroize::Zeroizing;

const COST_LENGTH: usize = 8;
const KEY_LENGTH: usize = 32;
const NONCE_LENGTH: usize = 24;
const TAG_LENGTH: usize = 16;
/// Bytes of an encrypted pre-shared key, without the checksum.
pub(crate) const PRE_SHARED_LENGTH: usize =
    COST_LENGTH + SALT_LENGTH + NONCE_LENGTH + KEY_LENGTH + TAG_LENGTH;
/// Bytes of an encrypted private key, without the checksum.
pub(crate) const PRIVATE_LENGTH: usize = PRE_SHARED_LENGTH + KEY_LENGTH;

/// A private key under a passphrase. Its public key can be read without.
///
/// Its text form, `spa-encrypted-private-…`, is what [`fmt::Display`] writes and [`FromStr`]
/// reads. It is as good as the passphrase is: it belongs into a key file.
#[derive(Clone, PartialEq, Eq)]
pub struct EncryptedPrivateKey {
    public: PublicKey,
    sealed: Sealed,
}

impl EncryptedPrivateKey {
    /// Encrypts `key`, which takes as long as decrypting it will.
    pub fn encrypt(
        key: &PrivateKey,
        passphrase: &Passphrase,
        cost: Cost,
        random: &dyn SecureRandom,
    ) -> Result<Self, EncryptError> {
        let recipe = Recipe::new(cost, random)?;
        Self::seal(key, recipe, &*recipe.derive(passphrase)?, random)
    }

    pub(crate) fn seal(
        key: &PrivateKey,
        recipe: Recipe,
        encrypting: &[u8; 32],
        random: &dyn SecureRandom,
    ) -> Result<Self, EncryptError> {
        let public = key.public();
        let kind = KeyKind::EncryptedPrivate;
        let sealed =
            Sealed::new(kind, public.as_bytes(), key.as_bytes(), recipe, encrypting, random)?;
        Ok(Self { public, sealed })
    }

    /// The public key. It is authenticated when the key is decrypted, not before.
    pub const fn public(&self) -> PublicKey {
        self.public
    }

    /// What it takes to try a passphrase.
    pub const fn cost(&self) -> Cost {
        self.sealed.recipe.cost
    }

    /// The private key, if this is the passphrase.
    pub fn decrypt(&self, passphrase: &Passphrase) -> Result<PrivateKey, DecryptError> {
        self.open(&*self.sealed.recipe.derive(passphrase)?)
    }

    pub(crate) const fn recipe(&self) -> Recipe {
        self.sealed.recipe
    }

    pub(crate) fn open(&self, encrypting: &[u8; 32]) -> Result<PrivateKey, DecryptError> {
        let bytes =
            self.sealed.open(KeyKind::EncryptedPrivate, self.public.as_bytes(), encrypting)?;
        let key = PrivateKey::from_bytes(bytes);
        if key.public() == self.public { Ok(key) } else { Err(DecryptError::Content) }
    }
}

impl fmt::Display for EncryptedPrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.sealed.to_bytes(self.public.as_bytes());
        f.write_str(&text::encode(KeyKind::EncryptedPrivate, &bytes))
    }
}

impl fmt::Debug for EncryptedPrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EncryptedPrivateKey({})", self.public)
    }
}

impl FromStr for EncryptedPrivateKey {
    type Err = KeyTextError;

    fn from_str(text: &str) -> Result<Self, KeyTextError> {
        let kind = KeyKind::EncryptedPrivate;
        let bytes = text::decode_long::<PRIVATE_LENGTH>(kind, text)?;
        let (public, sealed) = Sealed::from_bytes(kind, bytes.as_slice())?;
        Ok(Self { public: PublicKey::from_bytes(public), sealed })
    }
}

/// A pre-shared key under a passphrase; its text form is `spa-encrypted-psk-…`.
#[derive(Clone, PartialEq, Eq)]
pub struct EncryptedPreSharedKey {
    sealed: Sealed,
}

impl EncryptedPreSharedKey {
    /// Encrypts `key`, which takes as long as decrypting it will.
    pub fn encrypt(
        key: &PreSharedKey,
        passphrase: &Passphrase,
        cost: Cost,
        random: &dyn SecureRandom,
    ) -> Result<Self, EncryptError> {
        let recipe = Recipe::new(cost, random)?;
        Self::seal(key, recipe, &*recipe.derive(passphrase)?, random)
    }

    pub(crate) fn seal(
        key: &PreSharedKey,
        recipe: Recipe,
        encrypting: &[u8; 32],
        random: &dyn SecureRandom,
    ) -> Result<Self, EncryptError> {
        let kind = KeyKind::EncryptedPreShared;
        let sealed = Sealed::new(kind, &[], key.as_bytes(), recipe, encrypting, random)?;
        Ok(Self { sealed })
    }

    /// What it takes to try a passphrase.
    pub const fn cost(&self) -> Cost {
        self.sealed.recipe.cost
    }

    /// The pre-shared key, if this is the passphrase.
    pub fn decrypt(&self, passphrase: &Passphrase) -> Result<PreSharedKey, DecryptError> {
        self.open(&*self.sealed.recipe.derive(passphrase)?)
    }

    pub(crate) const fn recipe(&self) -> Recipe {
        self.sealed.recipe
    }

    pub(crate) fn open(&self, encrypting: &[u8; 32]) -> Result<PreSharedKey, DecryptError> {
        let bytes = self.sealed.open(KeyKind::EncryptedPreShared, &[], encrypting)?;
        PreSharedKey::from_bytes(bytes).map_err(|_| DecryptError::Content)
    }
}

impl fmt::Display for EncryptedPreSharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text::encode(KeyKind::EncryptedPreShared, &self.sealed.to_bytes(&[])))
    }
}

impl fmt::Debug for EncryptedPreSharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EncryptedPreSharedKey(..)")
    }
}

impl FromStr for EncryptedPreSharedKey {
    type Err = KeyTextError;

    fn from_str(text: &str) -> Result<Self, KeyTextError> {
        let kind = KeyKind::EncryptedPreShared;
        let bytes = text::decode_long::<PRE_SHARED_LENGTH>(kind, text)?;
        let ([], sealed) = Sealed::from_bytes(kind, bytes.as_slice())?;
        Ok(Self { sealed })
    }
}

/// What both kinds have; `shown` is what stands between salt and nonce for everybody to read.
#[derive(Clone, PartialEq, Eq)]
struct Sealed {
    recipe: Recipe,
    nonce: [u8; NONCE_LENGTH],
    ciphertext: [u8; KEY_LENGTH],
    tag: [u8; TAG_LENGTH],
}

impl Sealed {
    fn new(
        kind: KeyKind,
        shown: &[u8],
        key: &[u8; KEY_LENGTH],
        recipe: Recipe,
        encrypting: &[u8; 32],
        random: &dyn SecureRandom,
    ) -> Result<Self, EncryptError> {
        let mut nonce = [0; NONCE_LENGTH];
        fill(random, &mut nonce)?;
        let authenticated = authenticated(kind, recipe, shown, &nonce);
        // Plaintext until the cipher has been over it, and only then copied.
        let mut buffer = Zeroizing::new(*key);
        let tag = XChaCha20Poly1305::new(&(*encrypting).into())
            .encrypt_inout_detached(&nonce.into(), &authenticated, buffer.as_mut_slice().into())
            .map_err(|_| EncryptError::Cipher)?;
        Ok(Self { recipe, nonce, ciphertext: *buffer, tag: tag.into() })
    }

    fn open(
        &self,
        kind: KeyKind,
        shown: &[u8],
        encrypting: &[u8; 32],
    ) -> Result<Zeroizing<[u8; KEY_LENGTH]>, DecryptError> {
        let authenticated = authenticated(kind, self.recipe, shown, &self.nonce);
        let mut key = Zeroizing::new(self.ciphertext);
        XChaCha20Poly1305::new(&(*encrypting).into())
            .decrypt_inout_detached(
                &self.nonce.into(),
                &authenticated,
                key.as_mut_slice().into(),
                &self.tag.into(),
            )
            .map_err(|_| DecryptError::WrongPassphrase)?;
        Ok(key)
    }

    fn to_bytes(&self, shown: &[u8]) -> Vec<u8> {
        let header = [&self.recipe.cost.to_bytes()[..], &self.recipe.salt, shown, &self.nonce];
        [header.concat().as_slice(), &self.ciphertext, &self.tag].concat()
    }

    fn from_bytes<const SHOWN: usize>(
        kind: KeyKind,
        bytes: &[u8],
    ) -> Result<([u8; SHOWN], Self), KeyTextError> {
        // The length is right: the decoder has seen to it.
        let parts = || {
            let (cost, rest) = bytes.split_first_chunk()?;
            let (salt, rest) = rest.split_first_chunk()?;
            let (shown, rest) = rest.split_first_chunk()?;
            let (nonce, rest) = rest.split_first_chunk()?;
            let (ciphertext, rest) = rest.split_first_chunk()?;
            let (tag, rest) = rest.split_first_chunk()?;
            rest.is_empty().then_some((*cost, *salt, *shown, *nonce, *ciphertext, *tag))
        };
        let length = KeyTextError::Length { wanted: kind, found: bytes.len() };
        let (cost, salt, shown, nonce, ciphertext, tag) = parts().ok_or(length)?;
        let cost =
            Cost::from_bytes(cost).map_err(|cost| KeyTextError::Cost { wanted: kind, cost })?;
        Ok((shown, Self { recipe: Recipe { cost, salt }, nonce, ciphertext, tag }))
    }
}

fn authenticated(
    kind: KeyKind,
    recipe: Recipe,
    shown: &[u8],
    nonce: &[u8; NONCE_LENGTH],
) -> Vec<u8> {
    let cost = recipe.cost.to_bytes();
    [kind.prefix().as_bytes(), &cost, &recipe.salt, shown, nonce].concat()
}

/// Why a key was not encrypted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncryptError {
    /// No salt, no nonce.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// No memory for Argon2id.
    #[error(transparent)]
    Derive(#[from] DecryptError),
    /// The cipher refused, which it has no reason to.
    #[error("the cipher failed")]
    Cipher,
}

#[cfg(test)]
mod tests;
