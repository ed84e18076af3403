//! Passphrases, and what it costs to try one (§3.5): Argon2id, RFC 9106. What lies under a
//! passphrase is the business of `encrypted`.

use crate::{NoRandomness, fill};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use core::fmt;
use ring::rand::SecureRandom;
use zeroize::{Zeroize as _, ZeroizeOnDrop, Zeroizing};

/// The longest passphrase, in bytes.
const MAX_LENGTH: usize = 1024;
pub(crate) const SALT_LENGTH: usize = 16;

/// What somebody types to get at a key: 1 to 1024 bytes, taken as they are. Wiped from memory
/// when dropped; it can't be copied or printed.
pub struct Passphrase(Zeroizing<Vec<u8>>);

impl Passphrase {
    /// Takes these bytes.
    pub fn new(bytes: Zeroizing<Vec<u8>>) -> Result<Self, PassphraseError> {
        match bytes.len() {
            0 => Err(PassphraseError::Empty),
            1..=MAX_LENGTH => Ok(Self(bytes)),
            _ => Err(PassphraseError::TooLong),
        }
    }

    /// Whether the user has typed the same twice.
    pub fn is(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

// `Zeroizing` wipes itself.
impl ZeroizeOnDrop for Passphrase {}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(redacted)")
    }
}

/// Not a passphrase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PassphraseError {
    /// Nothing.
    #[error("an empty passphrase protects nothing; type one")]
    Empty,
    /// More than is looked at.
    #[error("a passphrase has at most {MAX_LENGTH} bytes; take a shorter one")]
    TooLong,
}

/// What it takes to try one passphrase: the parameters of Argon2id.
///
/// They come with the encrypted key, and a file may be hostile: what is beyond the bounds is
/// refused before anything is spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    memory_kib: u32,
    passes: u16,
    lanes: u16,
}

impl Cost {
    /// The most memory, in KiB: 1 GiB.
    pub const MAX_MEMORY_KIB: u32 = 1 << 20;
    /// The most memory times passes, in KiB: 4 GiB, a few seconds.
    pub const MAX_WORK_KIB: u64 = 4 << 20;
    /// The most lanes.
    pub const MAX_LANES: u16 = 16;
    /// What new keys are encrypted with: 64 MiB in three passes, the memory and passes of RFC
    /// 9106's second choice, and more than three times what OWASP asks for. One lane: the work is
    /// done by one thread.
    pub const DEFAULT: Self = Self { memory_kib: 64 << 10, passes: 3, lanes: 1 };

    /// Memory in KiB, at least 8 for each lane; passes over it; lanes. `None` out of the bounds.
    pub fn new(memory_kib: u32, passes: u16, lanes: u16) -> Option<Self> {
        let cost = Self { memory_kib, passes, lanes };
        let work = u64::from(memory_kib).saturating_mul(passes.into());
        let enough = memory_kib >= u32::from(lanes).saturating_mul(8);
        let within = (1..=Self::MAX_LANES).contains(&lanes)
            && passes > 0
            && memory_kib <= Self::MAX_MEMORY_KIB
            && work <= Self::MAX_WORK_KIB;
        (enough && within).then_some(cost)
    }

    /// `memory (u32) || passes (u16) || lanes (u16)`.
    pub(crate) fn to_bytes(self) -> [u8; 8] {
        let words =
            u64::from(self.memory_kib) << 32 | u64::from(self.passes) << 16 | u64::from(self.lanes);
        words.to_be_bytes()
    }

    /// What the bytes say, or `Err` with it when it is out of the bounds.
    pub(crate) fn from_bytes([m0, m1, m2, m3, p0, p1, l0, l1]: [u8; 8]) -> Result<Self, Self> {
        let memory_kib = u32::from_be_bytes([m0, m1, m2, m3]);
        let (passes, lanes) = (u16::from_be_bytes([p0, p1]), u16::from_be_bytes([l0, l1]));
        Self::new(memory_kib, passes, lanes).ok_or(Self { memory_kib, passes, lanes })
    }
}

impl Default for Cost {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { memory_kib, passes, lanes } = self;
        write!(f, "{memory_kib} KiB, passes: {passes}, lanes: {lanes}")
    }
}

/// How the key that encrypts follows from a passphrase. Keys with the same recipe under the same
/// passphrase are decrypted for the price of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Recipe {
    pub(crate) cost: Cost,
    pub(crate) salt: [u8; SALT_LENGTH],
}

impl Recipe {
    pub(crate) fn new(cost: Cost, random: &dyn SecureRandom) -> Result<Self, NoRandomness> {
        let mut salt = [0; SALT_LENGTH];
        fill(random, &mut salt)?;
        Ok(Self { cost, salt })
    }

    /// Argon2id. What it leaves in its memory would give the key away, and is wiped.
    pub(crate) fn derive(
        &self,
        passphrase: &Passphrase,
    ) -> Result<Zeroizing<[u8; 32]>, DecryptError> {
        let Cost { memory_kib, passes, lanes } = self.cost;
        let no_memory = DecryptError::NoMemory { kib: memory_kib };
        let params = Params::new(memory_kib, passes.into(), lanes.into(), Some(32))
            .map_err(|_| no_memory.clone())?;
        let blocks = params.block_count();
        let mut memory = Vec::new();
        memory.try_reserve_exact(blocks).map_err(|_| no_memory.clone())?;
        memory.resize(blocks, Block::new());
        let mut key = Zeroizing::new([0; 32]);
        let derived = Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into_with_memory(
                &passphrase.0,
                &self.salt,
                key.as_mut_slice(),
                memory.as_mut_slice(),
            );
        memory.zeroize();
        derived.map_err(|_| no_memory)?;
        Ok(key)
    }
}

/// Why an encrypted key stays closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecryptError {
    /// Another passphrase. (The text of the key is whole: its checksum holds.)
    #[error("that is not the passphrase of this key")]
    WrongPassphrase,
    /// The memory for Argon2id is not to be had.
    #[error("there is no memory for trying a passphrase: {kib} KiB are needed; end other programs")]
    NoMemory {
        /// How much is needed.
        kib: u32,
    },
    /// Encrypted by a program that did it wrong.
    #[error(
        "the passphrase is right, but what it protects is no key, or another than the text says; make a new key"
    )]
    Content,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_not_implemented, hex};
    use proptest::prelude::*;

    pub(crate) fn passphrase(text: &str) -> Passphrase {
        Passphrase::new(Zeroizing::new(text.into())).unwrap()
    }

    #[test]
    fn nothing_is_no_passphrase() {
        let new = |length| Passphrase::new(Zeroizing::new(vec![b'x'; length])).map(drop);
        assert_eq!(new(0), Err(PassphraseError::Empty));
        assert_eq!([new(1), new(1024)], [Ok(()), Ok(())]);
        assert_eq!(new(1025), Err(PassphraseError::TooLong));
    }

    #[test]
    fn a_passphrase_does_not_show() {
        assert_not_implemented!(Passphrase: Clone, fmt::Display);
        assert_eq!(format!("{:?}", passphrase("correct horse")), "Passphrase(redacted)");
        assert!(passphrase("a").is(&passphrase("a")) && !passphrase("a").is(&passphrase("b")));
    }

    /// The result was computed with another implementation (the one of Python's `cryptography`).
    #[test]
    fn the_derivation_is_argon2id_of_rfc_9106() {
        let cost = Cost::new(64, 2, 2).unwrap();
        let recipe = Recipe { cost, salt: *b"0123456789abcdef" };
        let expected: [u8; 32] =
            hex("7a1a864655e1358f74bb5997a24b9a1a9a2bf4e686e1649955be2309f7afe32b");
        assert_eq!(*recipe.derive(&passphrase("correct horse")).unwrap(), expected);
    }

    #[test]
    fn what_a_hostile_file_may_ask_for_is_bounded() {
        for (memory, passes, lanes) in
            [(8, 1, 1), (128, 1, 16), (1 << 20, 4, 1), (64, u16::MAX, 1), (65_536, 3, 4)]
        {
            assert!(Cost::new(memory, passes, lanes).is_some(), "{memory} {passes} {lanes}");
        }
        for (memory, passes, lanes) in [
            (0, 1, 1),
            (7, 1, 1),
            (127, 1, 16),
            (8, 0, 1),
            (8, 1, 0),
            (1024, 1, 17),
            ((1 << 20) + 1, 1, 1),
            (1 << 20, 5, 1),
            (65, u16::MAX, 1),
            (u32::MAX, u16::MAX, u16::MAX),
        ] {
            assert!(Cost::new(memory, passes, lanes).is_none(), "{memory} {passes} {lanes}");
        }
        let Cost { memory_kib, passes, lanes } = Cost::DEFAULT;
        assert!(Cost::new(memory_kib, passes, lanes).is_some());
    }

    proptest! {
        #[test]
        fn a_cost_survives_its_bytes(memory: u32, passes: u16, lanes in 0..20_u16) {
            let read = Cost::from_bytes(Cost { memory_kib: memory, passes, lanes }.to_bytes());
            prop_assert_eq!(read.ok(), Cost::new(memory, passes, lanes));
        }
    }
}
