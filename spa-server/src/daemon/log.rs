//! Where the daemon's log goes.

use anyhow::Context as _;
use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// What is always logged.
const AUDIT: &str = "audit=info";

/// The log goes to standard error; under systemd to the journal, with priorities and the target
/// as fields (`journalctl TARGET=audit` is the audit trail).
/// `SPA_LOG` sets what is logged, as in `SPA_LOG=spa_server=debug`.
pub(super) fn start() -> anyhow::Result<()> {
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .with_env_var("SPA_LOG")
        .from_env()
        .context("SPA_LOG is not a log filter")?
        // Whatever else is asked for, the audit trail is kept.
        .add_directive(AUDIT.parse().context("the filter of the audit trail")?);
    // The journal itself knows priorities, which a line on standard error has not.
    let journal = stderr_is_the_journal().then(tracing_journald::layer).and_then(Result::ok);
    let stderr = journal.is_none().then(|| {
        let terminal = std::io::stderr().is_terminal();
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(terminal)
    });
    let started = tracing_subscriber::registry().with(filter).with(journal).with(stderr).try_init();
    started.map_err(|error| anyhow::anyhow!("cannot start the log: {error}"))
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
