//! The secrets that seal and open knocks. How they are derived is the business of `spa-keys`.

use core::fmt;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// The pair secret: what a client and a server derive from their identities and the optional
/// pre-shared key (§3.2). Wiped from memory when dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PairSecret {
    pub(crate) tag: [u8; 32],
    pub(crate) enc: [u8; 32],
    pub(crate) mac: [u8; 32],
}

impl PairSecret {
    /// Takes the three keys in the order in which HKDF puts them out: `K_tag`, `K_enc`, `K_mac`.
    pub const fn new(tag: [u8; 32], enc: [u8; 32], mac: [u8; 32]) -> Self {
        Self { tag, enc, mac }
    }

    /// The three keys, in this order: for whoever keeps them.
    pub const fn keys(&self) -> [&[u8; 32]; 3] {
        [&self.tag, &self.enc, &self.mac]
    }
}

impl fmt::Debug for PairSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PairSecret(redacted)")
    }
}

/// `K_mask`, which hides the tags of all knocks to one server (§3.3). It follows from the
/// server's public key: it keeps tags from those who don't know the server, no more.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct MaskKey(pub(crate) [u8; 32]);

impl MaskKey {
    /// Takes the 32 bytes that HKDF puts out.
    pub const fn new(key: [u8; 32]) -> Self {
        Self(key)
    }
}

impl fmt::Debug for MaskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MaskKey(redacted)")
    }
}
