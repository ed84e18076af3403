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

    /// Takes the output of a key derivation.
    pub(crate) const fn derived(bytes: Zeroizing<[u8; 32]>) -> Self {
        Self(bytes)
    }

    /// `spa-psk-…`, for a key file; wiped from memory when dropped.
    pub fn to_text(&self) -> Zeroizing<String> {
        text::encode(KeyKind::PreShared, self.as_bytes())
    }

    /// The same key once more. It is no `Clone`: who wants two of them has to have a reason.
    #[must_use]
    pub fn again(&self) -> Self {
        Self(self.0.clone())
    }

    /// Whether it is the same key; all bytes are looked at, whatever they are.
    pub fn is(&self, other: &Self) -> bool {
        self.0.iter().zip(other.0.iter()).fold(0, |differs, (one, two)| differs | (one ^ two)) == 0
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_not_implemented;
    use ring::rand::SystemRandom;

    #[test]
    fn a_pre_shared_key_survives_its_text() {
        let key = PreSharedKey::generate(&SystemRandom::new()).unwrap();
        let again: PreSharedKey = key.to_text().parse().unwrap();
        assert_eq!(again.as_bytes(), key.as_bytes());
    }

    #[test]
    fn all_zero_is_no_pre_shared_key() {
        let zero = Zeroizing::new([0; 32]);
        let text = text::encode(KeyKind::PreShared, zero.as_slice());
        assert_eq!(text.parse::<PreSharedKey>().unwrap_err(), KeyTextError::AllZero);
        assert_eq!(PreSharedKey::from_bytes(zero).unwrap_err(), AllZero);
        for at in 0..32 {
            let mut bytes = Zeroizing::new([0; 32]);
            bytes[at] = 1;
            assert!(PreSharedKey::from_bytes(bytes).is_ok(), "{at}");
        }
    }

    #[test]
    fn a_pre_shared_key_does_not_show_and_is_wiped() {
        fn wiped<T: ZeroizeOnDrop>() {}
        wiped::<PreSharedKey>();
        wiped::<Zeroizing<[u8; 32]>>();
        assert_not_implemented!(PreSharedKey: Clone, fmt::Display);
        let key = PreSharedKey::from_bytes(Zeroizing::new([3; 32])).unwrap();
        assert_eq!(format!("{key:?}"), "PreSharedKey(redacted)");
    }
}
