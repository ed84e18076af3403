//! Where the daemon's log goes.

mod entry;
mod journal;
mod json;
mod sink;

use anyhow::Context as _;
use entry::{Entries, Entry};
use sink::{Journal, Sink, StandardError};
use std::io::{IsTerminal as _, Write};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::str::FromStr as _;
use std::sync::Arc;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// What is always logged, at this level: the audit trail.
const AUDIT: (&str, LevelFilter) = ("audit", LevelFilter::INFO);

/// The log. It waits for nobody who reads it.
pub(crate) struct Log(Arc<Sink>);

impl Log {
    /// Writes what could not be written before, if that is possible now; to be called every second.
    pub(crate) fn tend(&self) {
        self.0.tend();
    }
}

/// How a line on standard error is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Text,
    Json,
}

/// The log goes to standard error; under systemd to the journal, with priorities and the target
/// as fields (`journalctl TARGET=audit` is the audit trail).
/// `SPA_LOG` sets what is logged, as in `SPA_LOG=spa_server=debug`, and `SPA_LOG_FORMAT` how
/// standard error has it.
pub(super) fn start() -> anyhow::Result<Log> {
    let filter = filter(std::env::var("SPA_LOG").ok().as_deref())?;
    let format = format(std::env::var("SPA_LOG_FORMAT").ok().as_deref())?;
    // The journal itself knows priorities, which a line on standard error has not.
    let journal = stderr_is_the_journal().then(Journal::find).and_then(Result::ok);
    let is_journal = journal.is_some();
    let sink = journal.map_or_else(|| Sink::new(StandardError(format)), Sink::new);
    let sink = Arc::new(sink);
    let entries = |render: fn(&Entry<'_>) -> Vec<u8>| Entries { sink: Arc::clone(&sink), render };
    let journal = is_journal.then(|| entries(journal::entry));
    let json = (!is_journal && format == Format::Json).then(|| entries(json::line));
    let text = (!is_journal && format == Format::Text).then(|| {
        let terminal = std::io::stderr().is_terminal();
        let lines = Arc::clone(&sink);
        let writer = move || Line(Arc::clone(&lines));
        tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(terminal)
    });
    let layers = tracing_subscriber::registry().with(filter).with(journal).with(json).with(text);
    layers.try_init().map_err(|error| anyhow::anyhow!("cannot start the log: {error}"))?;
    if is_journal && format == Format::Json {
        tracing::warn!(
            "SPA_LOG_FORMAT is for standard error, and the log goes to the journal, which has the same in fields: journalctl --output=json"
        );
    }
    Ok(Log(sink))
}

/// How it was asked for.
fn format(asked: Option<&str>) -> anyhow::Result<Format> {
    match asked.map_or("", str::trim) {
        "" | "text" => Ok(Format::Text),
        "json" => Ok(Format::Json),
        other => anyhow::bail!("SPA_LOG_FORMAT is {other:?}; it is text or json"),
    }
}

/// What one line is written to, in one piece.
struct Line(Arc<Sink>);

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.line(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What is logged where this is asked for. Whatever it is, the audit trail is kept.
fn filter(asked: Option<&str>) -> anyhow::Result<Targets> {
    let filter = match asked.map(str::trim).filter(|asked| !asked.is_empty()) {
        Some(asked) => Targets::from_str(asked).with_context(|| {
            format!(
                "SPA_LOG is {asked:?}, which is no log filter; one is debug, or spa_server=debug"
            )
        })?,
        None => Targets::new().with_default(LevelFilter::INFO),
    };
    let (target, least) = AUDIT;
    let level = filter.iter().find(|(of, _)| *of == target).map_or(least, |(_, level)| level);
    Ok(filter.with_target(target, level.max(least)))
}

/// Whether standard error is the stream that systemd says it has connected to the journal; the
/// variable alone is inherited by whoever writes somewhere else.
fn stderr_is_the_journal() -> bool {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else { return false };
    let stderr = std::io::stderr().as_fd().try_clone_to_owned().map(std::fs::File::from);
    stderr.and_then(|stderr| stderr.metadata()).is_ok_and(|metadata| {
        stream.to_str() == Some(&format!("{}:{}", metadata.dev(), metadata.ino()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn text_is_usual_and_json_is_asked_for() {
        for text in [None, Some(""), Some(" text ")] {
            assert_eq!(format(text).unwrap(), Format::Text, "{text:?}");
        }
        assert_eq!(format(Some("json")).unwrap(), Format::Json);
        let error = format(Some("xml")).unwrap_err().to_string();
        assert!(error.contains("xml") && error.contains("SPA_LOG_FORMAT"), "{error}");
    }

    #[test]
    fn what_is_asked_for_is_logged_and_the_audit_trail_in_any_case() {
        let logs = |asked: Option<&str>, target: &str, level: Level| {
            filter(asked).unwrap().would_enable(target, &level)
        };
        for nothing in [None, Some(""), Some(" ")] {
            assert!(logs(nothing, "spa_server::daemon", Level::INFO));
            assert!(!logs(nothing, "spa_server::daemon", Level::DEBUG));
        }
        assert!(logs(Some("debug"), "spa_server::capture", Level::DEBUG));
        let some = Some("spa_server::capture=debug,warn");
        assert!(logs(some, "spa_server::capture::thread", Level::DEBUG));
        assert!(!logs(some, "spa_server::daemon", Level::INFO));
        for asked in ["off", "error", "audit=off", "spa_server=trace"] {
            assert!(logs(Some(asked), "audit", Level::INFO), "{asked}");
        }
        assert!(logs(Some("audit=debug"), "audit", Level::DEBUG));
        let error = format!("{:#}", filter(Some("spa_server=loud")).unwrap_err());
        assert!(error.contains("spa_server=loud") && error.contains("SPA_LOG"), "{error}");
    }
}
