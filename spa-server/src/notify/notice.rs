//! One notification: an event, what else happened that is told with it, and how a command hears of
//! it. Pure.

use super::follow::Position;
use crate::audit::trail::Entry;
use crate::plain::plain;
use serde::Serialize;
use std::collections::BTreeMap;

/// Kinds of events that are counted apart; in a file there might be any number.
const MOST_KINDS: usize = 32;
const OTHER_KINDS: &str = "other";
/// Pairs of one event that a command is given; a line of ours has fewer.
const MOST_PAIRS: usize = 32;
const LONGEST_KEY: usize = 32;
/// Of a value in the environment, in characters: the kernel takes no more than 128 KiB of one.
const LONGEST_VALUE: usize = 4096;
/// What every notification has. No pair of an event takes the place of one.
const OURS: [&str; 4] = ["time", "text", "more", "more-events"];

/// See the module's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Notice {
    entry: Entry,
    /// What else happened, by kind, and how often.
    more: BTreeMap<String, u64>,
    /// How far the trail has been told when this one is told.
    pub(super) upto: Position,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Json<'a> {
    time: &'a str,
    text: &'a str,
    more: u64,
    more_events: &'a BTreeMap<String, u64>,
    #[serde(flatten)]
    pairs: BTreeMap<&'a str, &'a str>,
}

impl Notice {
    pub(super) fn new(entry: Entry, upto: Position) -> Self {
        Self { entry, more: BTreeMap::new(), upto }
    }

    /// Tells one that came later as well.
    pub(super) fn absorb(&mut self, later: Self) {
        let kind = later.entry.get("event").unwrap_or(OTHER_KINDS);
        self.count(kind, 1);
        for (kind, count) in &later.more {
            self.count(kind, *count);
        }
        self.upto = later.upto;
    }

    fn count(&mut self, kind: &str, count: u64) {
        let is_known = self.more.contains_key(kind) || self.more.len() < MOST_KINDS;
        let kind = if is_known { cut(kind, LONGEST_KEY) } else { OTHER_KINDS };
        let counted = self.more.entry(kind.to_owned()).or_default();
        *counted = counted.saturating_add(count);
    }

    pub(super) fn more(&self) -> u64 {
        self.more.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        let pairs = self.entry.fields.iter().take(MOST_PAIRS);
        pairs
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .filter(|(key, _)| key.len() <= LONGEST_KEY && !OURS.contains(key))
    }

    fn time(&self) -> String {
        let micros = i64::try_from(self.entry.at.0).unwrap_or(i64::MAX);
        let at = jiff::Timestamp::from_microsecond(micros).unwrap_or(jiff::Timestamp::MAX);
        format!("{at:.6}")
    }

    /// In one line, for people.
    pub(super) fn text(&self) -> String {
        let mut text = self.entry.to_string();
        let kinds: Vec<_> =
            self.more.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        if !kinds.is_empty() {
            text = format!(
                "{} (and {} more: {})",
                cut(&text, LONGEST_VALUE),
                self.more(),
                kinds.join(", ")
            );
        }
        plain(cut(&text, 2 * LONGEST_VALUE))
    }

    /// What the command reads: the event's own words.
    pub(super) fn json(&self) -> String {
        let json = Json {
            time: &self.time(),
            text: &self.text(),
            more: self.more(),
            more_events: &self.more,
            pairs: self.pairs().collect(),
        };
        // There are texts and numbers in it, which can be written.
        serde_json::to_string(&json).unwrap_or_default() + "\n"
    }

    /// The command's environment. What stands in it is on one line, so that it can't add one to the
    /// head of a mail.
    pub(super) fn environment(&self) -> Vec<(String, String)> {
        let name = |key: &str| format!("SPA_{}", key.to_ascii_uppercase().replace('-', "_"));
        let kinds: Vec<_> =
            self.more.iter().map(|(kind, count)| format!("{kind}={count}")).collect();
        let ours = OURS.into_iter().zip([
            self.time(),
            self.text(),
            self.more().to_string(),
            plain(&kinds.join(" ")),
        ]);
        let pairs = self.pairs().map(|(key, value)| (key, plain(cut(value, LONGEST_VALUE))));
        ours.chain(pairs).map(|(key, value)| (name(key), value)).collect()
    }
}

/// Its first characters.
fn cut(text: &str, most: usize) -> &str {
    match text.char_indices().nth(most) {
        Some((end, _)) => text.get(..end).unwrap_or(text),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use spa_proto::UnixMicros;

    fn notice(line: &str, upto: u64) -> Notice {
        let entry = Entry::parse(UnixMicros(1_800_000_000_250_000), line).unwrap();
        Notice::new(entry, Position::Since(upto))
    }

    #[test]
    fn a_command_is_told_what_happened_and_what_else() {
        let mut notice = notice("event=failed client=laptop server-key=previous reason=\"a b\"", 1);
        for (line, upto) in [("event=opened client=a", 2), ("event=failed", 3), ("event=opened", 4)]
        {
            notice.absorb(super::tests::notice(line, upto));
        }
        assert_eq!(notice.upto, Position::Since(4));
        insta::assert_snapshot!(notice.json(), @r#"{"time":"2027-01-15T08:00:00.250000Z","text":"2027-01-15T08:00:00Z event=failed client=laptop server-key=previous reason=\"a b\" (and 3 more: 1 failed, 2 opened)","more":3,"more-events":{"failed":1,"opened":2},"client":"laptop","event":"failed","reason":"a b","server-key":"previous"}"#);
        let lines: Vec<_> =
            notice.environment().iter().map(|(name, value)| format!("{name}={value}")).collect();
        insta::assert_snapshot!(lines.join("\n"), @r#"
        SPA_TIME=2027-01-15T08:00:00.250000Z
        SPA_TEXT=2027-01-15T08:00:00Z event=failed client=laptop server-key=previous reason="a b" (and 3 more: 1 failed, 2 opened)
        SPA_MORE=3
        SPA_MORE_EVENTS=failed=1 opened=2
        SPA_EVENT=failed
        SPA_CLIENT=laptop
        SPA_SERVER_KEY=previous
        SPA_REASON=a b
        "#);
    }

    #[test]
    fn what_is_told_together_does_not_grow() {
        let mut notice = notice("event=opened", 0);
        for number in 0..10_000_u64 {
            let kind: String =
                number.to_string().chars().map(|c| char::from(c as u8 + 49)).collect();
            notice.absorb(super::tests::notice(&format!("event={kind}"), number));
        }
        assert_eq!((notice.more(), notice.upto.clone()), (10_000, Position::Since(9_999)));
        assert!(notice.more.len() <= MOST_KINDS + 1, "{}", notice.more.len());
        assert!(notice.json().len() < 4096, "{}", notice.json());
    }

    proptest! {
        /// Whatever stands in a line: the command can be run, and nothing in its environment has two lines.
        #[test]
        fn no_value_breaks_out(values in prop::collection::vec(any::<String>(), 0..50), kind in any::<String>()) {
            let fields = [("event".to_owned(), kind.clone())].into_iter();
            let fields = fields.chain(values.iter().map(|value| ("reason".to_owned(), value.clone())));
            let entry = Entry { at: UnixMicros(0), fields: fields.collect() };
            let mut notice = Notice::new(entry.clone(), Position::Since(0));
            notice.absorb(Notice::new(entry, Position::Since(1)));
            for (name, value) in notice.environment() {
                prop_assert!(!value.chars().any(char::is_control), "{name}={value:?}");
            }
            let json = notice.json();
            prop_assert_eq!(json.matches('\n').count(), 1);
            let read: serde_json::Value = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(read["event"].as_str(), Some(kind.as_str()));
        }
    }
}
