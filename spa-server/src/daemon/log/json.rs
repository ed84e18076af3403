//! Entries of the log as JSON, one object a line. Pure.

use super::entry::Entry;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What every line has. No pair of the audit trail takes the place of one.
const OURS: [&str; 4] = ["time", "level", "target", "message"];

#[derive(Serialize)]
struct Line<'a> {
    time: &'a str,
    level: &'a str,
    target: &'a str,
    message: &'a str,
    #[serde(flatten)]
    pairs: BTreeMap<String, String>,
}

/// A line, with its end.
pub(super) fn line(entry: &Entry<'_>) -> Vec<u8> {
    let pairs = entry.pairs().into_iter().filter(|(key, _)| !OURS.contains(&key.as_str()));
    let line = Line {
        time: &format!("{:.6}", entry.at),
        level: entry.level.as_str(),
        target: entry.target,
        message: entry.message,
        pairs: pairs.collect(),
    };
    // There is nothing but texts in it, which can be written.
    let mut line = on_one_line(&serde_json::to_string(&line).unwrap_or_default());
    line.push('\n');
    line.into_bytes()
}

/// JSON may hold, as it is, what some take for the end of a line, and terminals for an order; it stands
/// in strings only.
fn on_one_line(json: &str) -> String {
    let mut line = String::with_capacity(json.len().saturating_add(1));
    for c in json.chars() {
        if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') {
            // Writing to a string can't fail.
            let _ = write!(line, "\\u{:04x}", u32::from(c));
        } else {
            line.push(c);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::trail;
    use proptest::prelude::*;
    use tracing::Level;

    fn entry<'a>(target: &'a str, message: &'a str) -> Entry<'a> {
        let at = "2027-01-15T08:00:00.25Z".parse().unwrap();
        Entry { at, level: Level::INFO, target, message }
    }

    fn text(entry: &Entry<'_>) -> String {
        String::from_utf8(line(entry)).unwrap()
    }

    #[test]
    fn the_audit_trail_has_its_pairs_as_fields() {
        let message = "event=failed client=laptop reason=\"no \\\"set\\\"\"";
        assert_eq!(
            text(&entry("audit", message)),
            concat!(
                r#"{"time":"2027-01-15T08:00:00.250000Z","level":"INFO","target":"audit","#,
                r#""message":"event=failed client=laptop reason=\"no \\\"set\\\"\"","#,
                r#""client":"laptop","event":"failed","reason":"no \"set\""}"#,
                "\n"
            )
        );
        let other = text(&entry("spa_server::daemon", "event=opened client=mallory"));
        assert!(!other.contains("\"client\""), "{other}");
        let pushy = text(&entry("audit", "event=opened target=x time=y level=z message=w id=1"));
        let whole: serde_json::Value = serde_json::from_str(&pushy).unwrap();
        assert_eq!((&whole["target"], &whole["id"]), (&"audit".into(), &"1".into()));
        assert_eq!(pushy.matches("\"time\":").count(), 1, "{pushy}");
    }

    proptest! {
        /// Whatever is said stands on one line, and is read again as it was.
        #[test]
        fn nothing_breaks_a_line(message in any::<String>(), value in any::<String>()) {
            let audit = format!("event=failed reason={value:?} detail=x");
            for (target, message) in [("audit", &audit), ("audit", &message), ("other", &message)] {
                let text = text(&entry(target, message));
                let body = text.strip_suffix('\n').unwrap();
                let breaks = body.chars().any(|c| c.is_control() || c == '\u{2028}');
                prop_assert!(!breaks);
                let whole: serde_json::Value = serde_json::from_str(body).unwrap();
                prop_assert_eq!(whole["message"].as_str().unwrap(), message);
                let read = trail::Entry::parse_logged(body);
                let is_of_the_trail = !entry(target, message).pairs().is_empty();
                prop_assert_eq!(read.is_some(), is_of_the_trail);
            }
            let read = trail::Entry::parse_logged(text(&entry("audit", &audit)).trim_end()).unwrap();
            prop_assert_eq!(read.at.0, 1_800_000_000_250_000);
            prop_assert_eq!(read.get("reason"), Some(value.as_str()));
        }
    }
}
