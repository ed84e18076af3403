//! How grants are written: one JSON object a line. Pure.

use super::{Grant, GrantKey, RequestId};
use crate::clock::BootMicros;
use crate::service::Connections;
use crate::source::Source;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use spa_proto::{ClientId, Item, PortRange, UnixMicros};

/// The format of the file; another is not read.
pub(super) const VERSION: u32 = 1;

/// The first line: times of another boot mean nothing in this one.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) boot_id: String,
}

/// Each other line.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) enum Record {
    /// The grant is now this.
    Opened(GrantRecord),
    /// There is no such grant any more.
    Closed(KeyRecord),
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct KeyRecord {
    client: HexClient,
    source: Source,
    service: Item,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct GrantRecord {
    client: HexClient,
    source: Source,
    service: Item,
    ports: Vec<PortRange>,
    /// Not there: as many as come, as in files of earlier versions.
    #[serde(default, skip_serializing_if = "is_any")]
    connections: Connections,
    opened: UnixMicros,
    expires: BootMicros,
    request: RequestId,
}

impl From<&GrantKey> for KeyRecord {
    fn from(key: &GrantKey) -> Self {
        let GrantKey { client, source, service } = key.clone();
        Self { client: HexClient(client), source, service }
    }
}

impl From<KeyRecord> for GrantKey {
    fn from(record: KeyRecord) -> Self {
        let KeyRecord { client, source, service } = record;
        Self { client: client.0, source, service }
    }
}

impl From<&Grant> for GrantRecord {
    fn from(grant: &Grant) -> Self {
        let Grant { key, ports, connections, opened, expires, request } = grant.clone();
        let GrantKey { client, source, service } = key;
        let client = HexClient(client);
        Self { client, source, service, ports, connections, opened, expires, request }
    }
}

impl From<GrantRecord> for Grant {
    fn from(record: GrantRecord) -> Self {
        let GrantRecord { client, source, service, ports, connections, opened, expires, request } =
            record;
        let key = GrantKey { client: client.0, source, service };
        Self { key, ports, connections, opened, expires, request }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_any(connections: &Connections) -> bool {
    *connections == Connections::Any
}

#[derive(Debug, PartialEq, Eq)]
struct HexClient(ClientId);

impl Serialize for HexClient {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for HexClient {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        client_of_digits(&text)
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom("a client is 64 hexadecimal digits"))
    }
}

/// A client by its key, as 64 hexadecimal digits.
pub fn client_of_digits(text: &str) -> Option<ClientId> {
    from_hex(text).map(ClientId)
}

pub(super) fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.as_bytes();
    if text.len() != N.checked_mul(2)? || !text.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, digits) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// A value as one line.
pub(super) fn line(value: &impl Serialize) -> serde_json::Result<String> {
    serde_json::to_string(value).map(|json| json + "\n")
}
