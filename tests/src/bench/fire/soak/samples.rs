//! What a running server uses: read from the outside, so that reading costs it nothing.

use crate::bench::bars::short_count;
use crate::bench::fire::usage::bytes;
use crate::server::{REPLAY_STORE, Server};
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The list of grants in the state directory.
const GRANT_LIST: &str = "grants.log";

/// What its two processes used at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sample {
    /// Since the start of the load.
    pub at: Duration,
    /// Resident memory, KiB.
    pub resident: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
    /// Bytes of the file of accepted knocks.
    pub replay: u64,
    /// Bytes of the file of grants.
    pub grants: u64,
    /// Bytes of all files of the state directory.
    pub state: u64,
    /// Bytes of the log.
    pub log: u64,
}

impl Sample {
    /// What the cells of [`row`](Self::row) are.
    pub(super) const HEADS: [&str; 8] = [
        "seconds",
        "resident KiB",
        "descriptors",
        "threads",
        "replay.log B",
        "grants.log B",
        "state B",
        "log B",
    ];

    /// As a line of a table.
    pub(super) fn row(&self) -> Vec<String> {
        let numbers = [
            self.resident,
            self.descriptors,
            self.threads,
            self.replay,
            self.grants,
            self.state,
            self.log,
        ];
        let cells =
            numbers.into_iter().map(|n| short_count(usize::try_from(n).unwrap_or_default()));
        std::iter::once(self.at.as_secs().to_string()).chain(cells).collect()
    }
}

/// A server, and where its files are.
pub(super) struct Watched {
    processes: [PathBuf; 2],
    state: PathBuf,
    log: PathBuf,
}

impl Watched {
    pub(super) fn of(server: &Server) -> Result<Self> {
        Ok(Self {
            processes: [server.pid()?, server.helper_pid()?]
                .map(|pid| format!("/proc/{pid}").into()),
            state: server.configuration().state_directory.clone(),
            log: server.directory().join("server.log"),
        })
    }

    pub(super) fn sample(&self, start: Instant) -> Result<Sample> {
        let (mut resident, mut descriptors, mut threads) = (0, 0, 0);
        for process in &self.processes {
            let status = fs::read_to_string(process.join("status"))
                .context("a process of the server's is gone")?;
            let field = |name: &str| -> Result<u64> {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
                number.with_context(|| format!("/proc tells no {name}"))
            };
            resident += field("VmRSS:")?;
            descriptors += u64::try_from(fs::read_dir(process.join("fd"))?.count())?;
            threads += field("Threads:")?;
        }
        let size = |path: PathBuf| bytes(&[path]);
        Ok(Sample {
            at: start.elapsed(),
            resident,
            descriptors,
            threads,
            replay: size(self.state.join(REPLAY_STORE)),
            grants: size(self.state.join(GRANT_LIST)),
            state: size(self.state.clone()),
            log: size(self.log.clone()),
        })
    }
}
