//! Pre-shared keys: the optional second secret of a client and a server (§3.1).

use crate::text::{self, KeyKind, KeyTextError};
use crate::{NoRandomness, random_bytes};
use core::fmt;
use core::str::FromStr;
use ring::rand::SecureRandom;
use zeroize::{ZeroizeOnDrop, Zeroizing};

/// 32 secret bytes, not all of them zero, that a client and a server share beside their
/// identities. Wiped from memory when dropped; it can't be copied or printed.
pub struct PreSharedKey(Zeroizing<[u8; 32]>);

impl PreSharedKey {
    /// Takes 32 bytes, not all of them zero.
    pub fn from_bytes(bytes: Zeroizing<[u8; 32]>) -> Result<Self, AllZero> {
        // All bytes are looked at, whatever they are.
        if bytes.iter().fold(0, |all, byte| all | byte) == 0 {
            return Err(AllZero);
        }
        Ok(Self(bytes))
    }

    /// Makes a new key of 32 random bytes.
    pub fn generate(random: &dyn SecureRandom) -> Result<Self, NoRandomness> {
        Self::from_bytes(random_bytes(random)?).map_err(|AllZero| NoRandomness)
    }

    /// `spa-psk-…`, for a key file; wiped from memory when dropped.
    pub fn to_text(&self) -> Zeroizing<String> {
        text::encode(KeyKind::PreShared, &self.0)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

// `Zeroizing` wipes itself.
impl ZeroizeOnDrop for PreSharedKey {}

impl fmt::Debug for PreSharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PreSharedKey(redacted)")
    }
}

impl FromStr for PreSharedKey {
    type Err = KeyTextError;

    fn from_str(text: &str) -> Result<Self, KeyTextError> {
        let bytes = text::decode(KeyKind::PreShared, text)?;
        Self::from_bytes(bytes).map_err(|AllZero| KeyTextError::AllZero)
    }
}

/// A pre-shared key of nothing but zero bytes, which would be no secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a pre-shared key of 32 zero bytes is no secret; make a new one")]
pub struct AllZero;
