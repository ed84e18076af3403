//! What has happened to clients' keys, and how it is written down: one line each, with a checksum,
//! since a line that was damaged must not become another key.

use super::Introduction;
use ring::digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use spa_keys::{PreSharedKey, PublicKey};
use spa_proto::UnixMicros;
use std::fmt::Write as _;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Hexadecimal digits of the checksum in front of a line.
const SUM_DIGITS: usize = 16;

/// One thing that has happened.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum Record {
    /// What happened before is not known.
    Since {
        /// Before this.
        instant: UnixMicros,
    },
    /// An invitation was used.
    Enrolled {
        /// Which one.
        introduction: Introduction,
        /// The key that it has brought.
        key: PublicKey,
        /// What belongs to the key.
        #[serde(with = "pre_shared_text")]
        pre_shared: Arc<PreSharedKey>,
        /// When.
        at: UnixMicros,
    },
    /// A client has announced its next key.
    Announced {
        /// Which client.
        introduction: Introduction,
        /// The key.
        key: PublicKey,
        /// What belongs to the key.
        #[serde(with = "pre_shared_text")]
        pre_shared: Arc<PreSharedKey>,
        /// When.
        at: UnixMicros,
    },
    /// A client has knocked with its next key, which is its key from then on.
    Replaced {
        /// Which client.
        introduction: Introduction,
        /// The key.
        key: PublicKey,
        /// When.
        at: UnixMicros,
    },
    /// An administrator has dropped the next key of a client.
    Withdrawn {
        /// Which client.
        introduction: Introduction,
        /// The key.
        key: PublicKey,
        /// When.
        at: UnixMicros,
    },
}

impl Record {
    /// The line that stands for it, with its end; it may hold a secret.
    pub(super) fn line(&self) -> Result<Zeroizing<String>, serde_json::Error> {
        Ok(whole_line(&Zeroizing::new(serde_json::to_string(self)?)))
    }
}

/// What a line of the file is.
#[derive(Debug)]
pub(super) enum Line {
    Record(Record),
    /// It is as it was written, and of no kind that is known here.
    Unknown,
    Damaged,
}

impl Line {
    /// Reads a line with its end.
    pub(super) fn of(line: &[u8]) -> Self {
        let json = str::from_utf8(line).ok().and_then(|line| whole(line.strip_suffix('\n')?));
        match json.map(serde_json::from_str) {
            Some(Ok(record)) => Self::Record(record),
            Some(Err(_)) => Self::Unknown,
            None => Self::Damaged,
        }
    }
}

/// The line that holds this, with its end.
pub(super) fn whole_line(json: &str) -> Zeroizing<String> {
    let mut line = Zeroizing::new(String::with_capacity(json.len().saturating_add(64)));
    line.push_str(&sum(json));
    line.push(' ');
    line.push_str(json);
    line.push('\n');
    line
}

/// What stands behind a checksum that fits.
fn whole(line: &str) -> Option<&str> {
    let (found, json) = line.split_at_checked(SUM_DIGITS)?;
    let json = json.strip_prefix(' ')?;
    (found == sum(json)).then_some(json)
}

fn sum(json: &str) -> String {
    let digest = digest::digest(&digest::SHA256, json.as_bytes());
    let mut text = String::with_capacity(SUM_DIGITS);
    for byte in digest.as_ref().iter().take(SUM_DIGITS / 2) {
        // Writing to a text in memory does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The text form of keys, which files have everywhere.
mod pre_shared_text {
    use super::{Arc, Deserialize, Deserializer, PreSharedKey, Serializer, Zeroizing};

    pub(super) fn serialize<S: Serializer>(
        key: &Arc<PreSharedKey>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&key.to_text())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<PreSharedKey>, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        text.parse().map(Arc::new).map_err(serde::de::Error::custom)
    }
}
