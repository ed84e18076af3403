//! Grants: who may come in where, and until when.
//!
//! [`GrantTable`] is pure: it takes the time and returns what the kernel must change.
//! [`GrantStore`] keeps grants over a restart of the daemon. Neither knows policy or knocks.

mod cover;
mod former;
mod record;
mod store;
mod table;

pub use cover::Cover;
pub use former::FormerGrants;
pub use record::client_of_digits;
pub use store::{FileGrantStore, GrantStore, GrantStoreError, Loaded};
pub use table::{Differences, GrantTable, MAX_LIFETIME};

use crate::clock::BootMicros;
use crate::service::Connections;
use crate::source::Source;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use spa_proto::{ClientId, Item, Nonce, PortRange, UnixMicros};
use std::fmt;
use std::str::FromStr;

/// What makes two grants one: a knock for the same refreshes it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GrantKey {
    /// To whom it is granted.
    pub client: ClientId,
    /// From where.
    pub source: Source,
    /// What was asked for: a service, or one port.
    pub service: Item,
}

/// One grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Whose, from where, for what.
    pub key: GrantKey,
    /// The ports that this opens; those of a grant for one connection that are not used up yet.
    pub ports: Vec<PortRange>,
    /// How many connections it lets in, to each of its ports.
    pub connections: Connections,
    /// When it was granted first.
    pub opened: UnixMicros,
    /// When it ends.
    pub expires: BootMicros,
    /// The request that granted it, or last refreshed it.
    pub request: RequestId,
}

/// Which request it was, in the audit log: the first bytes of its nonce, as 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId([u8; 8]);

impl From<Nonce> for RequestId {
    fn from(nonce: Nonce) -> Self {
        let mut id = [0; 8];
        for (byte, of_nonce) in id.iter_mut().zip(nonce.0) {
            *byte = of_nonce;
        }
        Self(id)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestId({self})")
    }
}

impl FromStr for RequestId {
    type Err = RequestIdError;

    fn from_str(text: &str) -> Result<Self, RequestIdError> {
        record::from_hex(text).map(Self).ok_or(RequestIdError)
    }
}

impl Serialize for RequestId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RequestId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Not a request id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a request id is 16 hexadecimal digits")]
pub struct RequestIdError;
