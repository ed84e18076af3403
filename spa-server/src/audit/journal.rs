//! Where the journal has the audit trail, and how an entry of it is read.

use super::trail::Entry;
use serde::Deserialize;
use serde_json::Value;
use spa_proto::UnixMicros;
use std::process::{Command, Stdio};

/// What reads the journal.
pub(crate) const JOURNALCTL: &str = "/usr/bin/journalctl";
/// Anybody may write to the journal, but not as this unit; what the daemon starts may.
const TRAIL: [&str; 2] = ["TARGET=audit", "_SYSTEMD_UNIT=spa-server.service"];

/// Prints entries of the trail for [`Recorded`], one a line; which ones is for the caller to add.
pub(crate) fn journalctl() -> Command {
    let mut command = Command::new(JOURNALCTL);
    command.args(["--no-pager", "--output=json", "--all", "--output-fields=MESSAGE"]).args(TRAIL);
    command.env_clear().env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// What the journal has of an entry; there is more.
#[derive(Debug, Deserialize)]
pub(crate) struct Recorded {
    /// Where in the journal it is.
    #[serde(rename = "__CURSOR", default)]
    pub(crate) cursor: String,
    #[serde(rename = "MESSAGE")]
    message: Value,
    #[serde(rename = "__REALTIME_TIMESTAMP")]
    at: String,
}

impl Recorded {
    /// A line that the command has printed.
    pub(crate) fn parse(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }

    /// What it says: text, or its bytes where it is not printable.
    pub(crate) fn entry(&self) -> Option<Entry> {
        let text = match &self.message {
            Value::String(text) => text.clone(),
            Value::Array(bytes) => {
                let bytes: Option<Vec<u8>> =
                    bytes.iter().map(|byte| u8::try_from(byte.as_u64()?).ok()).collect();
                String::from_utf8_lossy(&bytes?).into_owned()
            }
            _ => return None,
        };
        Entry::parse(UnixMicros(self.at.parse().ok()?), &text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_has_text_or_bytes() {
        let of = |message: &str| {
            let line = format!(
                "{{\"MESSAGE\":{message},\"__REALTIME_TIMESTAMP\":\"5\",\"__CURSOR\":\"s=1\",\"A\":1}}"
            );
            let recorded = Recorded::parse(line.as_bytes()).unwrap();
            assert_eq!(recorded.cursor, "s=1");
            recorded.entry()
        };
        let entry = Entry::parse(UnixMicros(5), "event=closed client=a").unwrap();
        assert_eq!(of("\"event=closed client=a\""), Some(entry.clone()));
        let bytes: Vec<String> = b"event=closed client=a".iter().map(ToString::to_string).collect();
        assert_eq!(of(&format!("[{}]", bytes.join(","))), Some(entry));
        assert_eq!(of("null"), None);
    }
}
