//! What was accepted, kept through restarts and crashes (design of the store: `docs/decisions.md`,
//! rules: `docs/protocol.md` §6.5 and §6.6).
//!
//! One machine keeps it in a file ([`FileStore`]); gateways that share clients will keep it in a
//! database behind the same trait.

mod file;
mod record;

pub use file::FileStore;
pub use record::{BootId, Entry};

use spa_proto::{Accepted, Receiver, UnixMicros};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The file of a server with this state directory.
pub fn path(state_directory: &Path) -> PathBuf {
    state_directory.join("replay.log")
}

/// A place that remembers accepted knocks.
pub trait ReplayStore: Send {
    /// Makes knocks survive a crash of this process. Nothing opens before this has returned.
    ///
    /// # Errors
    ///
    /// None of them is remembered; nothing may open. The store stays [broken](Self::is_broken)
    /// until a [`rewrite`](Self::rewrite) succeeds.
    fn append(&mut self, accepted: &[Accepted]) -> Result<(), StoreError>;

    /// Replaces all that the store holds by `state`, and makes that survive a power failure.
    fn rewrite(&mut self, state: &Snapshot, mark: Mark) -> Result<(), StoreError>;

    /// Whether it can't be relied on any more: an append failed, or the file was taken away or
    /// replaced.
    fn is_broken(&self) -> bool;

    /// Whether it has grown enough for a rewrite to be worth its price.
    fn is_bloated(&self) -> bool;
}

/// How the server leaves the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Knocks will be appended.
    InUse,
    /// The server stops; nothing follows.
    Clean,
}

/// All that the store has to hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// Replay windows, floors and closes.
    pub entries: Vec<Entry>,
    /// The barrier that stands.
    pub barrier: UnixMicros,
    /// The freshness window: knocks may have been accepted that were so far ahead.
    pub freshness: Duration,
}

impl Snapshot {
    /// What `receiver` holds at this moment.
    pub fn of(receiver: &Receiver) -> Self {
        let mut entries = Vec::new();
        for (client, window) in receiver.windows() {
            entries.push(Entry::Floor { client, floor: window.floor });
            entries.extend(window.accepted.into_iter().map(|(nonce, stamp)| Entry::Remembered {
                client,
                nonce,
                stamp,
            }));
            entries
                .extend(window.closed.into_iter().map(|closed| Entry::Closed { client, closed }));
        }
        let freshness = receiver.settings().freshness.get();
        Self { entries, barrier: receiver.barrier(), freshness }
    }

    /// Gives everything back to a receiver.
    pub fn restore(&self, receiver: &mut Receiver) {
        for entry in &self.entries {
            match *entry {
                Entry::Accepted { client, nonce, stamp } => {
                    receiver.restore(&Accepted { client, nonce, stamp, closed: Vec::new() });
                }
                Entry::Remembered { client, nonce, stamp } => {
                    receiver.restore_nonce(client, nonce, stamp);
                }
                Entry::Closed { client, closed } => receiver.restore_close(client, closed),
                Entry::Floor { client, floor } => receiver.restore_floor(client, floor),
            }
        }
        receiver.set_barrier(self.barrier);
    }
}

/// In what state the store was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// The last server stopped cleanly, or was killed and the machine has not restarted since:
    /// nothing is missing.
    Whole,
    /// There is none.
    Missing,
    /// The machine went down without a clean stop: the last writes may be lost.
    UncleanBoot,
    /// It can't be read, or not all of it; why.
    Damaged(String),
}

impl Condition {
    /// Whether knocks may be missing that had been accepted, so that a barrier is due.
    pub fn needs_barrier(&self) -> bool {
        *self != Self::Whole
    }
}

/// What went wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file can't be written.
    #[error("cannot write the replay store {path}: nothing opens until it can be written", path = .path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// An earlier write failed.
    #[error("the replay store {path} is broken since an earlier error: nothing opens until it can be written", path = .path.display())]
    Broken {
        /// Which file.
        path: PathBuf,
    },
}
