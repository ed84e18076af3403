//! Identities, pre-shared keys, their text form, key files, and the derivation of pair secrets.
//!
//! Section numbers in these pages ("§3.2") are sections of `docs/protocol.md`. This crate knows
//! nothing of packets, sockets, clocks or configuration. Random numbers come in as an argument.
//!
//! ```
//! use spa_keys::{PrivateKey, PublicKey, pair_secret_for_client, pair_secret_for_server};
//!
//! let random = ring::rand::SystemRandom::new();
//! let client = PrivateKey::generate(&random)?;
//! let server = PrivateKey::generate(&random)?;
//!
//! // Each tells the other its public key, as text.
//! let text = server.public().to_string();
//! assert!(text.starts_with("spa-public-"));
//! let known: PublicKey = text.parse()?;
//!
//! // Both derive the same secret.
//! let of_client = pair_secret_for_client(&client, &known, None)?;
//! let of_server = pair_secret_for_server(&server, &client.public(), None)?;
//! # let _ = (of_client, of_server);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

mod announcement;
mod derive;
mod encrypted;
mod file;
mod identity;
mod invitation;
mod kept;
mod passphrase;
mod pre_shared_key;
mod stored;
#[cfg(test)]
mod testing;
mod text;

pub use announcement::{
    Announced, AnnouncementError, AnnouncementSecret, Announcing, open_announcement,
};
pub use derive::{DeriveError, mask_key, pair_secret_for_client, pair_secret_for_server};
pub use encrypted::{EncryptError, EncryptedPreSharedKey, EncryptedPrivateKey};
pub use file::{
    KeyFileError, KeyReader, MAX_KEY_FILE_LENGTH, Overwrite, read_invitation_secret,
    read_passphrase, read_pre_shared_key, read_private_key, read_public_key, read_secret_text,
    read_stored_keys, read_stored_pre_shared_key, write_invitation_secret, write_pre_shared_key,
    write_private_key, write_public_key, write_secret_text, write_stored_keys,
    write_stored_pre_shared_key,
};
pub use identity::{PrivateKey, PublicKey};
pub use invitation::{
    Invitation, InvitationKeys, InvitationSecret, InvitationTextError, InvitedService,
};
pub use kept::{KeepingKey, KeptError, KeptId, KeptSecrets};
pub use passphrase::{Cost, DecryptError, Passphrase, PassphraseError};
pub use pre_shared_key::{AllZero, PreSharedKey};
pub use stored::{ClientKeys, StoredKeys, StoredKeysError, StoredPreSharedKey, StoredPrivateKey};
pub use text::{KeyKind, KeyTextError};

use ring::rand::SecureRandom;
use zeroize::Zeroizing;

/// The system gave no random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system's random number generator gave no bytes, so no key was made; try again")]
pub struct NoRandomness;

fn random_bytes(random: &dyn SecureRandom) -> Result<Zeroizing<[u8; 32]>, NoRandomness> {
    let mut bytes = Zeroizing::new([0; 32]);
    fill(random, bytes.as_mut_slice())?;
    Ok(bytes)
}

fn fill(random: &dyn SecureRandom, bytes: &mut [u8]) -> Result<(), NoRandomness> {
    random.fill(bytes).map_err(|_| NoRandomness)
}
