//! Identities: X25519 key pairs (§3.1). What is derived from them is the business of `derive`.

use crate::text::{self, KeyKind, KeyTextError};
use crate::{NoRandomness, random_bytes};
use core::fmt;
use core::str::FromStr;
use ring::rand::SecureRandom;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use spa_proto::ClientId;
use x25519_dalek::StaticSecret;
use zeroize::{ZeroizeOnDrop, Zeroizing};

/// An X25519 private key. Wiped from memory when dropped; it can't be copied or printed.
pub struct PrivateKey {
    secret: StaticSecret,
    public: PublicKey,
}

impl PrivateKey {
    /// Takes 32 bytes as they are; X25519 clamps them when it uses them (RFC 7748 section 5).
    #[expect(clippy::needless_pass_by_value, reason = "the caller's copy is to be wiped here")]
    pub fn from_bytes(bytes: Zeroizing<[u8; 32]>) -> Self {
        let secret = StaticSecret::from(*bytes);
        let public = PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes());
        Self { secret, public }
    }

    /// Makes a new key of 32 random bytes.
    pub fn generate(random: &dyn SecureRandom) -> Result<Self, NoRandomness> {
        random_bytes(random).map(Self::from_bytes)
    }

    /// The public key that belongs to this private key.
    pub const fn public(&self) -> PublicKey {
        self.public
    }

    /// `spa-private-…`, for a key file; wiped from memory when dropped.
    pub fn to_text(&self) -> Zeroizing<String> {
        text::encode(KeyKind::Private, self.secret.as_bytes())
    }

    /// The same key once more. It is no `Clone`: who wants two of them has to have a reason.
    #[must_use]
    pub fn again(&self) -> Self {
        Self::from_bytes(Zeroizing::new(*self.as_bytes()))
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        self.secret.as_bytes()
    }

    /// X25519 with the other side's public key; `None` when the result is all zero, which is to
    /// say that the public key is a point of low order (RFC 7748 section 6.1).
    pub(crate) fn agree(&self, other: &PublicKey) -> Option<x25519_dalek::SharedSecret> {
        let shared = self.secret.diffie_hellman(&x25519_dalek::PublicKey::from(other.0));
        shared.was_contributory().then_some(shared)
    }
}

// `StaticSecret` wipes itself; the public key is no secret.
impl ZeroizeOnDrop for PrivateKey {}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(redacted)")
    }
}

impl FromStr for PrivateKey {
    type Err = KeyTextError;

    fn from_str(text: &str) -> Result<Self, KeyTextError> {
        text::decode(KeyKind::Private, text).map(Self::from_bytes)
    }
}

/// An X25519 public key: the identity of its owner, client or server.
///
/// Its text form, `spa-public-…`, is what [`fmt::Display`] writes, what [`FromStr`] reads, and
/// what serde sees. Whether a key is fit for use shows when a pair secret is derived from it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Takes the u-coordinate as RFC 7748 section 5 encodes it.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The u-coordinate as RFC 7748 section 5 encodes it.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&text::encode(KeyKind::Public, &self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = KeyTextError;

    fn from_str(text: &str) -> Result<Self, KeyTextError> {
        text::decode(KeyKind::Public, text).map(|bytes| Self(*bytes))
    }
}

impl From<PublicKey> for ClientId {
    fn from(key: PublicKey) -> Self {
        Self(key.0)
    }
}

impl From<ClientId> for PublicKey {
    fn from(id: ClientId) -> Self {
        Self(id.0)
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor)
    }
}

/// Reads the text where it lies: it may turn out to be a private key, and is not to be copied.
struct TextVisitor;

impl serde::de::Visitor<'_> for TextVisitor {
    type Value = PublicKey;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a public key (spa-public-…)")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<PublicKey, E> {
        text.parse().map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_not_implemented;
    use ring::rand::SystemRandom;

    fn key() -> PrivateKey {
        PrivateKey::from_bytes(Zeroizing::new([1; 32]))
    }

    #[test]
    fn a_private_key_survives_its_text() {
        let key = PrivateKey::generate(&SystemRandom::new()).unwrap();
        let again: PrivateKey = key.to_text().parse().unwrap();
        assert_eq!(again.to_text(), key.to_text());
        assert_eq!(again.public(), key.public());
    }

    #[test]
    fn no_two_generated_keys_are_alike() {
        let random = SystemRandom::new();
        let [one, two] = [(); 2].map(|()| PrivateKey::generate(&random).unwrap());
        assert_ne!(one.public(), two.public());
    }

    #[test]
    fn a_private_key_does_not_show() {
        assert_not_implemented!(PrivateKey: Clone, fmt::Display, Serialize);
        let shown = format!("{:?} {:#?}", key(), Some(key()));
        assert!(shown.contains("PrivateKey(redacted)"), "{shown}");
        assert!(!shown.contains("AQEB") && !shown.contains("1, 1"), "{shown}");
    }

    #[test]
    fn a_private_key_is_wiped() {
        fn wiped<T: ZeroizeOnDrop>() {}
        wiped::<PrivateKey>();
        wiped::<StaticSecret>();
    }

    #[test]
    fn a_public_key_survives_text_serde_and_client_id() {
        let key = key().public();
        assert_eq!(key.to_string().parse(), Ok(key));
        let json = serde_json::to_string(&key).unwrap();
        assert_eq!(json, format!("\"{key}\""));
        assert_eq!(serde_json::from_str::<PublicKey>(&json).unwrap(), key);
        assert_eq!(PublicKey::from(ClientId::from(key)), key);
        assert_eq!(ClientId::from(key).0, *key.as_bytes());
        assert_eq!(format!("{key:?}"), format!("PublicKey({key})"));
    }

    #[test]
    fn serde_refuses_a_private_key_and_does_not_repeat_it() {
        let text = key().to_text();
        let json = serde_json::to_string(text.as_str()).unwrap();
        let message = serde_json::from_str::<PublicKey>(&json).unwrap_err().to_string();
        assert!(message.starts_with("this is a private key"), "{message}");
        assert!(!message.contains("AQEB"), "{message}");
        assert!(serde_json::from_str::<PublicKey>("7").is_err());
    }
}
