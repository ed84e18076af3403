//! Events of the program as entries of the log, for those who have more than lines of text. Pure, but
//! for where they go.

use super::sink::Sink;
use crate::audit::trail;
use spa_proto::UnixMicros;
use std::fmt::{self, Write as _};
use std::sync::Arc;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// Hands each event on, as `render` has it.
pub(super) struct Entries {
    pub(super) sink: Arc<Sink>,
    pub(super) render: fn(&Entry<'_>) -> Vec<u8>,
}

/// What is told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'a> {
    pub(super) at: jiff::Timestamp,
    pub(super) level: Level,
    pub(super) target: &'a str,
    pub(super) message: &'a str,
}

impl Entry<'_> {
    /// The pairs of a line of the audit trail; of others there are none.
    pub(super) fn pairs(&self) -> Vec<(String, String)> {
        if self.target != "audit" {
            return Vec::new();
        }
        let entry = trail::Entry::parse(UnixMicros(0), self.message);
        entry.map(|entry| entry.fields).unwrap_or_default()
    }
}

impl<S: Subscriber> Layer<S> for Entries {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut said = Said::default();
        event.record(&mut said);
        let Said { mut message, fields } = said;
        message.push_str(&fields);
        let metadata = event.metadata();
        let (at, level, target) = (jiff::Timestamp::now(), *metadata.level(), metadata.target());
        self.sink.line((self.render)(&Entry { at, level, target, message: &message }));
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
