//! Who a knock comes from.

use core::fmt;

/// A client's identity: its X25519 public key.
///
/// It is public, so it may be printed; [`fmt::Display`] writes it as 64 hexadecimal digits. The
/// text form that people exchange, with prefix and checksum, belongs to the `spa-keys` crate.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub [u8; 32]);

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientId({self})")
    }
}
