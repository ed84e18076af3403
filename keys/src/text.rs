//! The text form of keys (§3.1): a prefix that says which kind it is, and base64url that holds the
//! key and a checksum.
//!
//! No error repeats any part of the text that was read: it may be a private key, or most of one.

use crate::Cost;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use core::fmt;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// What the checksum sees before the prefix and the key.
const CHECKSUM_LABEL: &[u8] = b"spa key v1";
const KEY_LENGTH: usize = 32;
const CHECKSUM_LENGTH: usize = 4;

/// The kinds of keys that have a text form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyKind {
    /// An X25519 private key.
    Private,
    /// An X25519 public key.
    Public,
    /// A pre-shared key.
    PreShared,
    /// The secret of an invitation.
    Invitation,
    /// A private key under a passphrase (§3.5).
    EncryptedPrivate,
    /// A pre-shared key under a passphrase (§3.5).
    EncryptedPreShared,
}

impl KeyKind {
    /// Every kind.
    pub const ALL: [Self; 6] = [
        Self::Private,
        Self::Public,
        Self::PreShared,
        Self::Invitation,
        Self::EncryptedPrivate,
        Self::EncryptedPreShared,
    ];

    /// What the text of such a key begins with.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Private => "spa-private-",
            Self::Public => "spa-public-",
            Self::PreShared => "spa-psk-",
            Self::Invitation => "spa-invitation-",
            Self::EncryptedPrivate => "spa-encrypted-private-",
            Self::EncryptedPreShared => "spa-encrypted-psk-",
        }
    }

    /// What such a key is called.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Private => "private key",
            Self::Public => "public key",
            Self::PreShared => "pre-shared key",
            Self::Invitation => "invitation secret",
            Self::EncryptedPrivate => "private key under a passphrase",
            Self::EncryptedPreShared => "pre-shared key under a passphrase",
        }
    }

    /// Whether others must not see such a key.
    pub const fn is_secret(self) -> bool {
        !matches!(self, Self::Public)
    }

    /// Bytes in the text, without the checksum.
    const fn length(self) -> usize {
        match self {
            Self::Private | Self::Public | Self::PreShared | Self::Invitation => KEY_LENGTH,
            Self::EncryptedPrivate => crate::encrypted::PRIVATE_LENGTH,
            Self::EncryptedPreShared => crate::encrypted::PRE_SHARED_LENGTH,
        }
    }

    /// Characters after the prefix: four for three bytes.
    const fn encoded_length(self) -> usize {
        self.length().saturating_add(CHECKSUM_LENGTH).saturating_mul(4).div_ceil(3)
    }

    /// The kind whose prefix the text begins with.
    pub(crate) fn of(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| text.starts_with(kind.prefix()))
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Writes a key as text. The buffers on the way are wiped, and the string is allocated once.
pub(crate) fn encode(kind: KeyKind, key: &[u8]) -> Zeroizing<String> {
    debug_assert_eq!(key.len(), kind.length());
    let mut binary = Zeroizing::new(Vec::with_capacity(key.len().saturating_add(CHECKSUM_LENGTH)));
    binary.extend_from_slice(key);
    binary.extend_from_slice(&checksum(kind, key));
    let mut encoded = Zeroizing::new(vec![0; kind.encoded_length()]);
    let written = URL_SAFE_NO_PAD.encode_slice(binary.as_slice(), encoded.as_mut_slice());
    debug_assert_eq!(written, Ok(kind.encoded_length()));

    let length = kind.prefix().len().saturating_add(kind.encoded_length());
    let mut text = Zeroizing::new(String::with_capacity(length));
    text.push_str(kind.prefix());
    text.extend(encoded.iter().copied().map(char::from));
    text
}

/// Reads the text of a key that is to be of the kind `wanted`, one of 32 bytes.
pub(crate) fn decode(
    wanted: KeyKind,
    text: &str,
) -> Result<Zeroizing<[u8; KEY_LENGTH]>, KeyTextError> {
    decode_long(wanted, text)
}

/// Reads the text of a key that is to be of the kind `wanted`, which has `N` bytes.
pub(crate) fn decode_long<const N: usize>(
    wanted: KeyKind,
    text: &str,
) -> Result<Zeroizing<[u8; N]>, KeyTextError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(KeyTextError::Empty { wanted });
    }
    let Some(encoded) = text.strip_prefix(wanted.prefix()) else {
        return Err(match KeyKind::of(text) {
            Some(found) => KeyTextError::Kind { wanted, found },
            None => KeyTextError::Prefix { wanted },
        });
    };
    let is_alphabet = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if let Some(before) = encoded.chars().position(|c| !is_alphabet(c)) {
        let position = before.saturating_add(wanted.prefix().len()).saturating_add(1);
        return Err(KeyTextError::Character { wanted, position });
    }
    if encoded.len() != wanted.encoded_length() {
        return Err(KeyTextError::Length { wanted, found: encoded.len() });
    }
    // With room for what the decoder may want before it knows how much there is.
    let mut binary = Zeroizing::new(vec![0; encoded.len()]);
    let Ok(length) = URL_SAFE_NO_PAD.decode_slice(encoded, binary.as_mut_slice()) else {
        // Bits set after the last byte: a typing error in the last character.
        return Err(KeyTextError::Checksum { wanted });
    };
    let binary = binary.get(..length).unwrap_or_default();
    match binary.split_first_chunk() {
        Some((key, sum)) if *sum == checksum(wanted, key) => Ok(Zeroizing::new(*key)),
        _ => Err(KeyTextError::Checksum { wanted }),
    }
}

fn checksum(kind: KeyKind, key: &[u8]) -> [u8; CHECKSUM_LENGTH] {
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
        "this {wanted} has {found} characters after {prefix}, but {needed} are needed; copy the whole key",
        prefix = wanted.prefix(), needed = wanted.encoded_length()
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
    /// What it would take to try a passphrase is out of bounds.
    #[error(
        "this {wanted} asks for more than this program spends on a passphrase ({cost}; at most {max} KiB, and memory times passes at most {work}); nothing of ours makes such keys, so get it again from where it came",
        max = Cost::MAX_MEMORY_KIB, work = Cost::MAX_WORK_KIB
    )]
    Cost {
        /// The kind that belongs here.
        wanted: KeyKind,
        /// What it asks for.
        cost: Cost,
    },
    /// A secret of nothing but zero bytes.
    #[error("32 zero bytes are no secret; make a new one")]
    AllZero,
}

fn advice(wanted: KeyKind, found: KeyKind) -> &'static str {
    match (wanted, found) {
        (KeyKind::Public, KeyKind::Private) => {
            "a private key never leaves its machine: give the public key that belongs to it, and if others may have seen the private key, make a new one"
        }
        (KeyKind::Public, KeyKind::PreShared | KeyKind::Invitation) => {
            "that is a secret: if others may have seen it, make a new one"
        }
        (KeyKind::Private, KeyKind::EncryptedPrivate)
        | (KeyKind::PreShared, KeyKind::EncryptedPreShared) => {
            "there is no way to give the passphrase here; take it off with: spa-client key passphrase --remove"
        }
        (KeyKind::Public, KeyKind::EncryptedPrivate) => {
            "a private key never leaves its machine: give the public key that belongs to it"
        }
        (_, KeyKind::Public) => "a public key is no secret and can't take the place of one",
        _ => "check which of the two files or texts was meant",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PreSharedKey, PrivateKey, PublicKey};
    use proptest::prelude::*;

    // Computed by another implementation from the specification, as those in `derive`.
    const KNOWN: [(KeyKind, [u8; 32], &str); 3] = [
        (KeyKind::Private, [1; 32], "spa-private-AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQFfCMN6"),
        (
            KeyKind::Public,
            [
                0xa4, 0xe0, 0x92, 0x92, 0xb6, 0x51, 0xc2, 0x78, 0xb9, 0x77, 0x2c, 0x56, 0x9f, 0x5f,
                0xa9, 0xbb, 0x13, 0xd9, 0x06, 0xb4, 0x6a, 0xb6, 0x8c, 0x9d, 0xf9, 0xdc, 0x2b, 0x44,
                0x09, 0xf8, 0xa2, 0x09,
            ],
            "spa-public-pOCSkrZRwni5dyxWn1-puxPZBrRqtoyd-dwrRAn4ogmeA6-7",
        ),
        (KeyKind::PreShared, [3; 32], "spa-psk-AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwPCNkHX"),
    ];

    #[test]
    fn keys_are_written_as_the_specification_says() {
        for (kind, key, text) in KNOWN {
            assert_eq!(*encode(kind, &key), text);
            assert_eq!(*decode(kind, text).unwrap(), key);
        }
    }

    #[test]
    fn whitespace_around_a_key_does_no_harm() {
        for (kind, key, text) in KNOWN {
            assert_eq!(*decode(kind, &format!(" \t{text}\r\n")).unwrap(), key);
        }
    }

    #[test]
    fn a_mix_up_of_two_kinds_is_told() {
        for (found, _, text) in KNOWN {
            for wanted in KeyKind::ALL.into_iter().filter(|wanted| *wanted != found) {
                let error = decode(wanted, text).unwrap_err();
                assert_eq!(error, KeyTextError::Kind { wanted, found });
                let message = error.to_string();
                for part in [found.as_str(), found.prefix(), wanted.as_str(), wanted.prefix()] {
                    assert!(message.contains(part), "{message}");
                }
            }
        }
    }

    #[test]
    fn a_mix_up_is_told_for_a_damaged_key_too() {
        let error = decode(KeyKind::Public, "spa-private-AQEB…").unwrap_err();
        let found = KeyKind::Private;
        assert_eq!(error, KeyTextError::Kind { wanted: KeyKind::Public, found });
    }

    #[test]
    fn each_way_to_be_wrong_has_its_message() {
        let good = KNOWN[1].2;
        let of = |text: &str| decode(KeyKind::Public, text).unwrap_err().to_string();
        assert_eq!(of(" \n"), "there is no key here; a public key is expected (spa-public-…)");
        assert_eq!(
            of("ssh-ed25519 AAAAC3"),
            "this is no public key; it has to begin with spa-public-"
        );
        assert_eq!(of(&good[11..]), "this is no public key; it has to begin with spa-public-");
        assert_eq!(
            of(&good.replace("pOCS", "pO S")),
            "character 14 of this public key is none that a key can have (A-Z, a-z, 0-9, '-', '_'); copy the key again"
        );
        assert_eq!(
            of(&good[..good.len() - 1]),
            "this public key has 47 characters after spa-public-, but 48 are needed; copy the whole key"
        );
        assert_eq!(
            of(&good.replace("pOCS", "p0CS")),
            "there is a typing error in this public key (its checksum does not match); copy it again"
        );
        assert_eq!(
            of(KNOWN[0].2),
            "this is a private key (spa-private-…), but a public key (spa-public-…) belongs here; \
             a private key never leaves its machine: give the public key that belongs to it, and \
             if others may have seen the private key, make a new one"
        );
        // The positive control: the text itself is good.
        assert!(decode(KeyKind::Public, good).is_ok());
    }

    #[test]
    fn the_position_counts_characters_not_bytes() {
        let error = decode(KeyKind::PreShared, "  spa-psk-Awé").unwrap_err();
        assert_eq!(error, KeyTextError::Character { wanted: KeyKind::PreShared, position: 11 });
    }

    #[test]
    fn a_checksum_of_another_kind_does_not_hold() {
        // The body of a private key under the prefix of a pre-shared key.
        let body = KNOWN[0].2.strip_prefix("spa-private-").unwrap();
        let error = decode(KeyKind::PreShared, &format!("spa-psk-{body}")).unwrap_err();
        assert_eq!(error, KeyTextError::Checksum { wanted: KeyKind::PreShared });
    }

    #[test]
    fn every_character_replaced_is_detected() {
        for (kind, _, text) in KNOWN {
            for at in 0..text.len() {
                for other in (0x20..0x7f).map(char::from).chain(['\0', '\n', 'é', '‐']) {
                    let mut typo = text.to_owned();
                    typo.replace_range(at..=at, &other.to_string());
                    let is_right = decode(kind, &typo).is_ok();
                    assert_eq!(is_right, typo == text, "{at} {other:?}");
                }
            }
        }
    }

    #[test]
    fn every_character_missing_doubled_or_swapped_is_detected() {
        for (kind, _, text) in KNOWN {
            for at in 0..text.len() {
                let mut missing = text.to_owned();
                let removed = missing.remove(at);
                assert!(decode(kind, &missing).is_err(), "{at}");
                let mut doubled = text.to_owned();
                doubled.insert(at, removed);
                assert!(decode(kind, &doubled).is_err(), "{at}");
                let mut swapped = missing;
                if at + 1 < text.len() {
                    swapped.insert(at + 1, removed);
                    assert_eq!(decode(kind, &swapped).is_ok(), swapped == text, "{at}");
                }
            }
        }
    }

    fn any_kind() -> impl Strategy<Value = KeyKind> {
        prop::sample::select(KNOWN.map(|(kind, ..)| kind).to_vec())
    }

    /// Texts that come near to being a key.
    fn any_text() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<String>(),
            "[ \t]{0,2}spa-(private|public|psk|invitation)-[A-Za-z0-9_-]{0,60}[ \n]{0,2}",
            "spa-(private|public|psk)-[A-Za-z0-9_-]{48}",
            "spa-(private|public|psk)-\\PC{0,60}",
        ]
    }

    proptest! {
        #[test]
        fn no_text_panics(text in any_text()) {
            let _ = text.parse::<PrivateKey>().map_err(|error| error.to_string());
            let _ = text.parse::<PublicKey>().map_err(|error| error.to_string());
            let _ = text.parse::<PreSharedKey>().map_err(|error| error.to_string());
        }

        #[test]
        fn what_is_read_is_written_alike(kind in any_kind(), text in any_text()) {
            if let Ok(key) = decode(kind, &text) {
                let again = encode(kind, key.as_slice());
                prop_assert_eq!(again.as_str(), text.trim());
            }
        }

        #[test]
        fn every_key_is_read_as_it_was_written(kind in any_kind(), key: [u8; 32]) {
            let text = encode(kind, &key);
            prop_assert_eq!(text.len(), kind.prefix().len() + 48);
            prop_assert!(text.capacity() <= 64, "allocated once");
            prop_assert_eq!(decode(kind, &text).map(|read| *read), Ok(key));
        }

        #[test]
        fn a_typing_error_is_detected(
            kind in any_kind(),
            key: [u8; 32],
            at: prop::sample::Index,
            typed in "[A-Za-z0-9_-]",
        ) {
            let text = encode(kind, &key);
            let at = kind.prefix().len() + at.index(48);
            let mut typo = text.to_string();
            typo.replace_range(at..=at, &typed);
            prop_assume!(typo != *text);
            prop_assert_eq!(decode(kind, &typo), Err(KeyTextError::Checksum { wanted: kind }));
        }

        #[test]
        fn no_error_repeats_what_was_read(
            wanted in any_kind(),
            found in any_kind(),
            key: [u8; 32],
            at: prop::sample::Index,
            typed in any::<char>(),
        ) {
            let mut text = encode(found, &key).to_string();
            let at = at.index(text.len());
            text.replace_range(at..=at, &typed.to_string());
            if let Err(error) = decode(wanted, &text) {
                let told = format!("{error} {error:?}");
                let body = encode(found, &key)[found.prefix().len()..].to_owned();
                for piece in body.as_bytes().windows(8) {
                    let piece = core::str::from_utf8(piece).unwrap();
                    prop_assert!(!told.contains(piece), "{}", told);
                }
            }
        }
    }
}
