//! The audit trail read again. Pure.

use crate::config::{format_timestamp, parse_timestamp};
use crate::source::Source;
use serde::Deserialize;
use spa_proto::UnixMicros;
use std::fmt;
use std::net::IpAddr;

/// One line of the trail: `key=value` pairs, of which the first is the event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When it was written.
    pub at: UnixMicros,
    /// As they stand in the line.
    pub fields: Vec<(String, String)>,
}

impl Entry {
    /// A line of the trail that was written at that time; nothing, if it is none.
    pub fn parse(at: UnixMicros, line: &str) -> Option<Self> {
        let mut fields = Vec::new();
        let mut rest = line.trim_end();
        while !rest.is_empty() {
            let (key, behind) = rest.split_once('=')?;
            let is_name = |c: char| c.is_ascii_lowercase() || c == '-';
            if key.is_empty() || !key.chars().all(is_name) {
                return None;
            }
            let (value, behind) =
                if behind.starts_with('"') { unquoted(behind)? } else { plain(behind) };
            fields.push((key.to_owned(), value));
            rest = behind;
        }
        let entry = Self { at, fields };
        (entry.fields.first()?.0 == "event").then_some(entry)
    }

    /// A line of the log on standard error: time, level, `audit:` and the trail's line, or the same in
    /// JSON; nothing, if it is another one.
    pub fn parse_logged(line: &str) -> Option<Self> {
        if line.trim_start().starts_with('{') {
            let Logged { time, target, message } = serde_json::from_str(line).ok()?;
            let at = parse_timestamp(&time).ok()?;
            return (target == "audit").then(|| Self::parse(at, &message)).flatten();
        }
        let (at, rest) = line.trim_start().split_once(' ')?;
        let (_level, rest) = rest.trim_start().split_once(' ')?;
        Self::parse(parse_timestamp(at).ok()?, rest.strip_prefix("audit: ")?)
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.fields.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }
}

/// What counts of a line in JSON. Its fields say what the message says, in another order.
#[derive(Deserialize)]
struct Logged {
    time: String,
    target: String,
    message: String,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format_timestamp(self.at))?;
        for (key, value) in &self.fields {
            write!(f, " {key}={}", super::Value(value))?;
        }
        Ok(())
    }
}

/// All that can happen.
pub const EVENTS: [&str; 14] = [
    "opened",
    "closed",
    "revoked",
    "failed",
    "used",
    "gate-restored",
    "gate-contested",
    "enrolled",
    "rotation-announced",
    "rotated",
    "source-refused",
    "source-lifted",
    "key-withdrawn",
    "refused",
];

/// Which lines are wanted: those that have all of this.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// What happened, one of these; if there are none, anything.
    pub events: Vec<String>,
    /// The client's name.
    pub client: Option<String>,
    /// From where.
    pub source: Option<IpAddr>,
    /// One of what was asked for.
    pub service: Option<String>,
    /// Not before.
    pub since: Option<UnixMicros>,
    /// Before.
    pub until: Option<UnixMicros>,
}

impl Wanted {
    /// Whether this one is.
    pub fn is(&self, entry: &Entry) -> bool {
        let has = |key: &str, wanted: &Option<String>| {
            wanted.as_deref().is_none_or(|wanted| entry.get(key) == Some(wanted))
        };
        let comes_from = |address: IpAddr| {
            let admitted = entry.get("source").and_then(|text| text.parse::<Source>().ok());
            admitted.is_some_and(|source| source.contains(address))
        };
        let asks_for = |service: &String| {
            entry.get("services").is_some_and(|all| all.split(',').any(|one| one == service))
        };
        let is_one = |event: &String| entry.get("event") == Some(event);
        (self.events.is_empty() || self.events.iter().any(is_one))
            && has("client", &self.client)
            && self.source.is_none_or(comes_from)
            && self.service.as_ref().is_none_or(asks_for)
            && self.since.is_none_or(|since| entry.at >= since)
            && self.until.is_none_or(|until| entry.at < until)
    }
}

/// Up to the next space, and what is behind it.
fn plain(text: &str) -> (String, &str) {
    let (value, rest) = text.split_once(' ').unwrap_or((text, ""));
    (value.to_owned(), rest)
}

/// What stands in quotation marks, as `{:?}` of Rust writes it, and what is behind the space after it.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.strip_prefix('"')?.chars();
    loop {
        match chars.next()? {
            '"' => break,
            '\\' => value.push(match chars.next()? {
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                '0' => '\0',
                'u' => {
                    let (digits, behind) = chars.as_str().strip_prefix('{')?.split_once('}')?;
                    chars = behind.chars();
                    char::from_u32(u32::from_str_radix(digits, 16).ok()?)?
                }
                sign @ ('"' | '\'' | '\\') => sign,
                _ => return None,
            }),
            sign => value.push(sign),
        }
    }
    match chars.as_str() {
        "" => Some((value, "")),
        rest => Some((value, rest.strip_prefix(' ')?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const AT: UnixMicros = UnixMicros::from_secs(1_800_000_000);

    fn entry(line: &str) -> Entry {
        Entry::parse(AT, line).unwrap()
    }

    #[test]
    fn lines_are_picked_by_what_they_say() {
        let opened = entry(
            "event=opened client=laptop source=198.51.100.2 services=ssh,tcp/443 lifetime=30 id=72",
        );
        let failed =
            entry("event=failed client=\"a b\" source=2001:db8::/64 reason=\"no \\\"ipset\\\"\"");
        assert_eq!(failed.get("reason"), Some("no \"ipset\""));
        let picks = |wanted: Wanted| [wanted.is(&opened), wanted.is(&failed)];
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(picks(Wanted::default()), [true, true]);
        let events = |names: &[&str]| {
            let events = names.iter().map(ToString::to_string).collect();
            picks(Wanted { events, ..Wanted::default() })
        };
        assert_eq!(events(&["failed"]), [false, true]);
        assert_eq!(events(&["opened", "failed"]), [true, true]);
        assert_eq!(events(&["closed"]), [false, false]);
        assert_eq!(picks(Wanted { client: text("a b"), ..Wanted::default() }), [false, true]);
        assert_eq!(picks(Wanted { client: text("lap"), ..Wanted::default() }), [false, false]);
        assert_eq!(picks(Wanted { service: text("tcp/443"), ..Wanted::default() }), [true, false]);
        let source = Some("2001:db8::1".parse().unwrap());
        assert_eq!(picks(Wanted { source, ..Wanted::default() }), [false, true]);
        let later = Some(UnixMicros(AT.0 + 1));
        assert_eq!(picks(Wanted { since: later, ..Wanted::default() }), [false, false]);
        assert_eq!(picks(Wanted { until: Some(AT), ..Wanted::default() }), [false, false]);
        assert_eq!(
            picks(Wanted { since: Some(AT), until: later, ..Wanted::default() }),
            [true, true]
        );
    }

    #[test]
    fn all_that_is_written_is_in_the_list() {
        let sources = [include_str!("../audit.rs"), include_str!("../daemon/announce.rs")];
        let written = sources.map(|source| source.split("#[cfg(test)]").next().unwrap()).concat();
        // Either in the line itself, or in what an arm of `match` gives for it.
        let arms =
            written.lines().filter_map(|line| line.split_once("Event::")?.1.split_once("=> "));
        let arms = arms.filter_map(|(_, name)| name.trim_start_matches('(').strip_prefix('"'));
        let whole = written.match_indices("event=").map(|(at, word)| &written[at + word.len()..]);
        let is_of_name = |c: char| c.is_ascii_lowercase() || c == '-';
        let names = arms.chain(whole).filter_map(|rest| rest.split(|c| !is_of_name(c)).next());
        let names: BTreeSet<_> = names.filter(|name| !name.is_empty()).collect();
        assert_eq!(names, EVENTS.into());
    }

    #[test]
    fn what_is_no_line_of_the_trail_is_none() {
        for line in [
            "",
            "ready",
            "client=laptop event=opened",
            "event=opened client",
            "event=opened client=\"lap",
            "event=opened client=\"lap\"top",
            "event=opened client=\"\\x\"",
            "event=opened Client=laptop",
        ] {
            assert_eq!(Entry::parse(AT, line), None, "{line}");
        }
        let logged = "2027-01-15T08:00:00.000000Z  INFO audit: event=opened client=laptop id=1";
        assert_eq!(Entry::parse_logged(logged), Some(entry("event=opened client=laptop id=1")));
        let logged = r#"{"time":"2027-01-15T08:00:00.000000Z","level":"INFO","target":"audit","message":"event=opened client=laptop id=1","event":"refused"}"#;
        assert_eq!(Entry::parse_logged(logged), Some(entry("event=opened client=laptop id=1")));
        for line in [
            "2027-01-15T08:00:00.000000Z  INFO spa_server::daemon: ready",
            "2027-01-15T08:00:00.000000Z  WARN spa_server: it said: audit: event=opened client=laptop",
            "now  INFO audit: event=opened client=laptop",
            r#"{"time":"2027-01-15T08:00:00Z","target":"spa_server","message":"event=opened"}"#,
            r#"{"time":"now","target":"audit","message":"event=opened"}"#,
            r#"{"time":"2027-01-15T08:00:00Z","target":"audit","event":"opened"}"#,
            r#"{"time":"2027-01-15T08:00:00Z","target":"audit","message":"event=opened""#,
        ] {
            assert_eq!(Entry::parse_logged(line), None, "{line}");
        }
    }

    proptest! {
        /// Whatever a name or a reason is, it is read as it was.
        #[test]
        fn values_come_back(values in prop::collection::vec(any::<String>(), 0..4)) {
            let reasons = values.iter().map(|value| format!(" reason={}", super::super::Value(value)));
            let line = format!("event=failed{}", reasons.collect::<String>());
            let read = Entry::parse(AT, &line).unwrap();
            let found: Vec<_> = read.fields.iter().skip(1).map(|(_, value)| value).collect();
            prop_assert_eq!(found, values.iter().collect::<Vec<_>>());
        }
    }
}
