//! The text form of keys (§3.1): a prefix that says which kind it is, and 48 characters of
//! base64url that hold the key and a checksum.
//!
//! No error repeats any part of the text that was read: it may be a private key, or most of one.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use core::fmt;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// What the checksum sees before the prefix and the key.
const CHECKSUM_LABEL: &[u8] = b"spa key v1";
const KEY_LENGTH: usize = 32;
const CHECKSUM_LENGTH: usize = 4;
const BINARY_LENGTH: usize = KEY_LENGTH + CHECKSUM_LENGTH;
/// Characters after the prefix: four for every three bytes, which come out even.
const ENCODED_LENGTH: usize = BINARY_LENGTH / 3 * 4;

/// The three kinds of keys that have a text form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyKind {
    /// An X25519 private key.
    Private,
    /// An X25519 public key.
    Public,
    /// A pre-shared key.
    PreShared,
}

impl KeyKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Private, Self::Public, Self::PreShared];

    /// What the text of such a key begins with.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Private => "spa-private-",
            Self::Public => "spa-public-",
            Self::PreShared => "spa-psk-",
        }
    }

    /// What such a key is called.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Private => "private key",
            Self::Public => "public key",
            Self::PreShared => "pre-shared key",
        }
    }

    /// Whether others must not see such a key.
    pub const fn is_secret(self) -> bool {
        !matches!(self, Self::Public)
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Writes a key as text. The buffers on the way are wiped, and the string is allocated once.
pub(crate) fn encode(kind: KeyKind, key: &[u8; KEY_LENGTH]) -> Zeroizing<String> {
    let mut binary = Zeroizing::new([0; BINARY_LENGTH]);
    for (byte, value) in binary.iter_mut().zip(key.iter().copied().chain(checksum(kind, key))) {
        *byte = value;
    }
    let mut encoded = Zeroizing::new([0; ENCODED_LENGTH]);
    let written = URL_SAFE_NO_PAD.encode_slice(*binary, encoded.as_mut_slice());
    debug_assert_eq!(written, Ok(ENCODED_LENGTH));

    let mut text = Zeroizing::new(String::with_capacity(64));
    text.push_str(kind.prefix());
    text.extend(encoded.iter().copied().map(char::from));
    text
}

/// Reads the text of a key that is to be of the kind `wanted`.
pub(crate) fn decode(
    wanted: KeyKind,
    text: &str,
) -> Result<Zeroizing<[u8; KEY_LENGTH]>, KeyTextError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(KeyTextError::Empty { wanted });
    }
    let Some(encoded) = text.strip_prefix(wanted.prefix()) else {
        let found = KeyKind::ALL.into_iter().find(|kind| text.starts_with(kind.prefix()));
        return Err(match found {
            Some(found) => KeyTextError::Kind { wanted, found },
            None => KeyTextError::Prefix { wanted },
        });
    };
    let is_alphabet = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if let Some(before) = encoded.chars().position(|c| !is_alphabet(c)) {
        let position = before.saturating_add(wanted.prefix().len()).saturating_add(1);
        return Err(KeyTextError::Character { wanted, position });
    }
    let wrong_length = KeyTextError::Length { wanted, found: encoded.len() };
    if encoded.len() != ENCODED_LENGTH {
        return Err(wrong_length);
    }
    let mut binary = Zeroizing::new([0; BINARY_LENGTH]);
    if URL_SAFE_NO_PAD.decode_slice(encoded, binary.as_mut_slice()) != Ok(BINARY_LENGTH) {
        return Err(wrong_length);
    }
    let Some((key, sum)) = binary.split_first_chunk() else {
        return Err(wrong_length);
    };
    if *sum != checksum(wanted, key) {
        return Err(KeyTextError::Checksum { wanted });
    }
    Ok(Zeroizing::new(*key))
}

fn checksum(kind: KeyKind, key: &[u8; KEY_LENGTH]) -> [u8; CHECKSUM_LENGTH] {
    let digest: [u8; 32] = Sha256::new_with_prefix(CHECKSUM_LABEL)
        .chain_update(kind.prefix())
        .chain_update(key)
        .finalize()
        .into();
    let mut sum = [0; CHECKSUM_LENGTH];
    for (byte, of_digest) in sum.iter_mut().zip(digest) {
        *byte = of_digest;
    }
    sum
}

/// Why a text is not the key that is wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyTextError {
    /// Nothing, or nothing but whitespace.
    #[error("there is no key here; a {wanted} is expected ({prefix}…)", prefix = wanted.prefix())]
    Empty {
        /// The kind that belongs here.
        wanted: KeyKind,
    },
    /// A key of another kind.
    #[error(
        "this is a {found} ({found_prefix}…), but a {wanted} ({prefix}…) belongs here; {advice}",
        found_prefix = found.prefix(), prefix = wanted.prefix(), advice = advice(*wanted, *found)
    )]
    Kind {
        /// The kind that belongs here.
        wanted: KeyKind,
        /// The kind that was found.
        found: KeyKind,
    },
    /// The text of no kind of key.
    #[error("this is no {wanted}; it has to begin with {prefix}", prefix = wanted.prefix())]
    Prefix {
        /// The kind that belongs here.
        wanted: KeyKind,
    },
    /// A character that no key has.
    #[error(
        "character {position} of this {wanted} is none that a key can have (A-Z, a-z, 0-9, '-', '_'); copy the key again"
    )]
    Character {
        /// The kind that belongs here.
        wanted: KeyKind,
        /// Which character of the trimmed text, counted from 1.
        position: usize,
    },
    /// Characters are missing, or there are too many.
    #[error(
        "this {wanted} has {found} characters after {prefix}, but {ENCODED_LENGTH} are needed; copy the whole key",
        prefix = wanted.prefix()
    )]
    Length {
        /// The kind that belongs here.
        wanted: KeyKind,
        /// How many characters follow the prefix.
        found: usize,
    },
    /// The checksum does not hold.
    #[error(
        "there is a typing error in this {wanted} (its checksum does not match); copy it again"
    )]
    Checksum {
        /// The kind that belongs here.
        wanted: KeyKind,
    },
    /// A pre-shared key of nothing but zero bytes.
    #[error("a pre-shared key of 32 zero bytes is no secret; make a new one")]
    AllZero,
}

fn advice(wanted: KeyKind, found: KeyKind) -> &'static str {
    match (wanted, found) {
        (KeyKind::Public, KeyKind::Private) => {
            "a private key never leaves its machine: give the public key that belongs to it, and if others may have seen the private key, make a new one"
        }
        (KeyKind::Public, KeyKind::PreShared) => {
            "a pre-shared key is a secret: if others may have seen it, make a new one"
        }
        (_, KeyKind::Public) => "a public key is no secret and can't take the place of one",
        _ => "check which of the two files or texts was meant",
    }
}
