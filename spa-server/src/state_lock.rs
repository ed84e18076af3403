//! The lock on a state directory: the daemon holds it for as long as it runs, a command without a
//! daemon for as long as it handles the gate. Two at once would forget each other's knocks, or undo
//! each other's gate.

use crate::users::give_to_owner_of;
use nix::fcntl::OFlag;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

const FILE: &str = "lock";
const PAUSE: Duration = Duration::from_millis(50);

/// Held until it is dropped.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

/// Why the lock could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum StateLockError {
    /// There is no such directory, and it can't be made.
    #[error("cannot make the state directory {}", .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file can't be opened or locked.
    #[error("cannot lock {}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Somebody else holds it.
    #[error(
        "another spa-server, or one of its commands, works on the state directory {}", .0.display()
    )]
    Held(PathBuf),
}

impl StateLock {
    /// Takes the lock on this state directory, which is made if it isn't there.
    ///
    /// # Errors
    ///
    /// The directory or the file can't be made, or somebody else holds the lock.
    pub fn take(directory: &Path) -> Result<Self, StateLockError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(|source| StateLockError::Directory { path: directory.into(), source })?;
        let path = directory.join(FILE);
        // Never through a link, and never waiting for a reader of a pipe.
        let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
        // On a file system that can't be written the lock of an earlier start still serves.
        let opened = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(flags)
            .open(&path)
            .or_else(|error| {
                let opened = OpenOptions::new().read(true).custom_flags(flags).open(&path);
                opened.map_err(|_| error)
            });
        let failed = |source| StateLockError::File { path: path.clone(), source };
        let file = opened.map_err(&failed)?;
        give_to_owner_of(directory, &file).map_err(&failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(StateLockError::Held(directory.into())),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// The same, but waits for whoever holds it, so long. Blocks.
    pub fn await_free(directory: &Path, patience: Duration) -> Result<Self, StateLockError> {
        let began = Instant::now();
        loop {
            match Self::take(directory) {
                Err(StateLockError::Held(_)) if began.elapsed() < patience => thread::sleep(PAUSE),
                outcome => return outcome,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_has_it() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("state");
        let held = StateLock::take(&directory).unwrap();
        let refused = StateLock::await_free(&directory, PAUSE * 2).unwrap_err();
        assert!(matches!(&refused, StateLockError::Held(path) if *path == directory), "{refused}");
        let waits = thread::spawn({
            let directory = directory.clone();
            move || StateLock::await_free(&directory, Duration::from_secs(60))
        });
        drop(held);
        let taken = waits.join().unwrap().unwrap();
        assert!(StateLock::take(&directory).is_err());
        drop(taken);
        StateLock::take(&directory).unwrap();
    }
}
