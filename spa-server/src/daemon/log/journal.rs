//! Lines of the log as entries of the journal. Pure, but for where they go.

use super::sink::Sink;
use std::fmt::{self, Write as _};
use std::sync::Arc;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// A message is cut beyond this: an entry has to fit into a datagram.
const LONGEST: usize = 32 * 1024;

/// Hands each event to the journal, with its priority, and its target as a field.
pub(super) struct JournalLayer(pub(super) Arc<Sink>);

impl<S: Subscriber> Layer<S> for JournalLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut said = Said::default();
        event.record(&mut said);
        let Said { mut message, fields } = said;
        message.push_str(&fields);
        let metadata = event.metadata();
        self.0.line(entry(*metadata.level(), metadata.target(), &message));
    }
}

/// What an event says: its message, and behind it its fields, as on standard error.
#[derive(Default)]
struct Said {
    message: String,
    fields: String,
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string can't fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

/// An entry in the native protocol of the journal (systemd.io, "Native Journal Protocol").
pub(super) fn entry(level: Level, target: &str, message: &str) -> Vec<u8> {
    // As syslog(3) has them; what is usual is a notice.
    let priority = match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 5,
        Level::DEBUG => 6,
        Level::TRACE => 7,
    };
    let message = message.get(..message.floor_char_boundary(LONGEST)).unwrap_or(message);
    let mut entry =
        format!("PRIORITY={priority}\nSYSLOG_IDENTIFIER=spa-server\nTARGET={target}\nMESSAGE\n")
            .into_bytes();
    // With its length, so that no line break in it begins another field.
    entry.extend_from_slice(&u64::try_from(message.len()).unwrap_or(u64::MAX).to_le_bytes());
    entry.extend_from_slice(message.as_bytes());
    entry.push(b'\n');
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_message_begins_a_field_of_its_own() {
        let entry = entry(Level::WARN, "audit", "two\nTARGET=lines");
        let (fields, message) = entry.split_at(entry.len() - 25);
        assert_eq!(
            String::from_utf8_lossy(fields),
            "PRIORITY=4\nSYSLOG_IDENTIFIER=spa-server\nTARGET=audit\nMESSAGE\n"
        );
        assert_eq!(message, b"\x10\0\0\0\0\0\0\0two\nTARGET=lines\n");
    }

    #[test]
    fn a_message_that_is_too_long_is_cut_between_two_characters() {
        let long = format!("a{}", "\u{20ac}".repeat(LONGEST));
        let entry = entry(Level::INFO, "audit", &long);
        let text = String::from_utf8_lossy(&entry);
        assert!(entry.len() < LONGEST + 100 && text.ends_with("\u{20ac}\n"), "{}", entry.len());
    }
}
