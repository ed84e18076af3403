//! Invitations (§9.1, §9.5): the secret, what follows from it, and the text that is handed over.

mod text;

pub use text::{InvitationTextError, InvitedService};

use crate::text::{KeyKind, KeyTextError, decode, encode};
use crate::{AllZero, NoRandomness, PublicKey, derive, random_bytes};
use core::fmt::{self, Write as _};
use core::num::NonZeroU16;
use core::str::FromStr;
use ring::rand::SecureRandom;
use spa_proto::{ClientId, PacketLength, PairSecret, UnixMicros};
use zeroize::{ZeroizeOnDrop, Zeroizing};

/// 32 secret bytes, not all of them zero, by which one client can enrol once. Wiped from memory
/// when dropped; it can't be copied or printed.
pub struct InvitationSecret(Zeroizing<[u8; 32]>);

/// What follows from an invitation's secret and the server's key.
#[derive(Debug)]
pub struct InvitationKeys {
    /// `I_id`: what the invitation goes by on the server.
    pub id: ClientId,
    /// What the packet of an enrolment is sealed with.
    pub pair: PairSecret,
}

impl InvitationSecret {
    /// Takes 32 bytes, not all of them zero.
    pub fn from_bytes(bytes: Zeroizing<[u8; 32]>) -> Result<Self, AllZero> {
        // All bytes are looked at, whatever they are.
        if bytes.iter().fold(0, |all, byte| all | byte) == 0 {
            return Err(AllZero);
        }
        Ok(Self(bytes))
    }

    /// Makes a new one of 32 random bytes.
    pub fn generate(random: &dyn SecureRandom) -> Result<Self, NoRandomness> {
        Self::from_bytes(random_bytes(random)?).map_err(|AllZero| NoRandomness)
    }

    /// `spa-invitation-…`, for a key file; wiped from memory when dropped.
    pub fn to_text(&self) -> Zeroizing<String> {
        encode(KeyKind::Invitation, self.as_bytes())
    }

    /// What both sides derive for the enrolment's packet.
    pub fn keys(&self, server: &PublicKey) -> InvitationKeys {
        let info = [b"invitation".as_slice(), server.as_bytes()];
        let output = derive::hkdf_sha256::<128>(self.0.as_slice(), &info);
        let mut keys = Zeroizing::new([[0; 32]; 4]);
        keys.as_flattened_mut().copy_from_slice(output.as_slice());
        let [tag, enc, mac, id] = *keys;
        InvitationKeys { id: ClientId(id), pair: PairSecret::new(tag, enc, mac) }
    }

    /// What it goes by in records, whatever key the server has: 32 hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        let output = derive::hkdf_sha256::<16>(self.0.as_slice(), &[b"invitation fingerprint"]);
        let mut text = String::with_capacity(32);
        for byte in output.iter() {
            // Writing to a text in memory does not fail.
            let _ = write!(text, "{byte:02x}");
        }
        text
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

// `Zeroizing` wipes itself.
impl ZeroizeOnDrop for InvitationSecret {}

impl fmt::Debug for InvitationSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InvitationSecret(redacted)")
    }
}

impl FromStr for InvitationSecret {
    type Err = KeyTextError;

    fn from_str(text: &str) -> Result<Self, KeyTextError> {
        let bytes = decode(KeyKind::Invitation, text)?;
        Self::from_bytes(bytes).map_err(|AllZero| KeyTextError::AllZero)
    }
}

/// All that a client has to know to enrol: what the text `spa1:…` says.
///
/// [`FromStr`] reads it and [`to_text`](Self::to_text) writes it. It can't be printed by mistake:
/// the text is a secret for as long as the invitation holds.
#[derive(Debug)]
pub struct Invitation {
    /// The server's identity.
    pub server: PublicKey,
    /// By what the client enrols.
    pub secret: InvitationSecret,
    /// From when on the server refuses it.
    pub expires: UnixMicros,
    /// How long the server's packets are.
    pub length: PacketLength,
    /// What the server is called, for the user: 1 to 64 of `A`-`Z`, `a`-`z`, `0`-`9`, `-`, `_`,
    /// `.`, the first one a letter or digit.
    pub name: String,
    /// Where knocks go, the preferred port first: 1 to 16.
    pub knock_ports: Vec<NonZeroU16>,
    /// The server's names or addresses: 1 to 8.
    pub hosts: Vec<String>,
    /// What the client may open: up to 32.
    pub services: Vec<InvitedService>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_not_implemented, hex};

    fn secret() -> InvitationSecret {
        InvitationSecret::from_bytes(Zeroizing::new([3; 32])).unwrap()
    }

    #[test]
    fn an_invitation_s_secret_survives_its_text_and_does_not_show() {
        let again: InvitationSecret = secret().to_text().parse().unwrap();
        assert_eq!(again.as_bytes(), secret().as_bytes());
        assert!(again.to_text().starts_with("spa-invitation-"));
        assert_not_implemented!(InvitationSecret: Clone, fmt::Display);
        assert_eq!(format!("{again:?}"), "InvitationSecret(redacted)");
        let zero = encode(KeyKind::Invitation, &[0; 32]);
        assert_eq!(zero.parse::<InvitationSecret>().unwrap_err(), KeyTextError::AllZero);
    }

    #[test]
    fn what_follows_from_it_is_bound_to_the_server() {
        let server = PublicKey::from_bytes(hex(
            "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
        ));
        let keys = secret().keys(&server);
        assert_eq!(keys.id, secret().keys(&server).id);
        assert_ne!(keys.id, secret().keys(&PublicKey::from_bytes([1; 32])).id);
        assert_ne!(keys.id.0, *secret().as_bytes());
    }
}
