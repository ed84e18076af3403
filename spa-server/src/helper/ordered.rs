//! The last word of an administrator's on the gate, where root alone can write it: that it is on trial,
//! or to be gone. Without it, no worker can have the helper take a gate away, or put up one that ends.

use crate::causes::with_causes;
use crate::clock::BootMicros;
use crate::config::{judge_directory, read_judged};
use crate::replay_store::BootId;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Gone after a boot, as the gate is.
const DIRECTORY: &str = "/run/spa-orders";

/// What was ordered; a gate that stands for good needs no word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) enum Ordered {
    /// It is to be gone.
    Removed {
        /// Since then.
        at: BootMicros,
    },
    /// It is on trial.
    Trial {
        /// Since then.
        at: BootMicros,
        /// Until then.
        until: BootMicros,
    },
}

/// The file for one state directory: there may be several servers on a host.
#[derive(Debug, Clone)]
pub(crate) struct OrderFile {
    directory: PathBuf,
    path: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Record {
    state_directory: PathBuf,
    boot_id: String,
    ordered: Ordered,
}

/// Why it can't be written.
#[derive(Debug, thiserror::Error)]
#[error("{} can't be written, so that a daemon that runs will refuse this", .path.display())]
pub(crate) struct OrderError {
    path: PathBuf,
    source: io::Error,
}

impl OrderFile {
    pub(crate) fn of(state_directory: &Path) -> Self {
        Self::within(Path::new(DIRECTORY), state_directory)
    }

    pub(super) fn within(directory: &Path, state_directory: &Path) -> Self {
        let digest = Sha256::digest(state_directory.as_os_str().as_encoded_bytes());
        let number = digest.first_chunk().map_or(0, |first| u64::from_be_bytes(*first));
        Self { directory: directory.into(), path: directory.join(format!("{number:016x}.json")) }
    }

    /// What it says; nothing that others than root could have written, and nothing of another boot.
    pub(crate) fn read(&self) -> Option<Ordered> {
        if !self.path.exists() {
            return None;
        }
        let judged = judge_directory(&self.directory).and_then(|()| read_judged(&self.path));
        match judged {
            Ok(text) => {
                let record: Record = serde_json::from_str(&text).ok()?;
                let boot = BootId::read().ok()?.to_string();
                (record.boot_id == boot).then_some(record.ordered)
            }
            Err(problem) => {
                tracing::error!("an order about the gate is not trusted: {problem}");
                None
            }
        }
    }

    /// Has it say this, or nothing.
    pub(crate) fn set(
        &self,
        state_directory: &Path,
        ordered: Option<Ordered>,
    ) -> Result<(), OrderError> {
        let set = || match ordered {
            Some(ordered) => {
                fs::DirBuilder::new().recursive(true).mode(0o755).create(&self.directory)?;
                fs::set_permissions(&self.directory, Permissions::from_mode(0o755))?;
                let boot_id = BootId::read()?.to_string();
                let record = Record { state_directory: state_directory.into(), boot_id, ordered };
                let new = self.path.with_extension("new");
                let text = serde_json::to_string(&record)? + "\n";
                match fs::remove_file(&new) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                // Whatever the umask says, the helper reads it, and nobody else writes it.
                let file = fs::OpenOptions::new().write(true).create_new(true).open(&new);
                file.and_then(|mut file| {
                    file.set_permissions(Permissions::from_mode(0o644))?;
                    file.write_all(text.as_bytes())
                })?;
                fs::rename(new, &self.path)
            }
            None => match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        };
        set().map_err(|source| OrderError { path: self.path.clone(), source })
    }

    /// The same for a command, which goes on all the same: where no daemon runs nobody needs it.
    /// Gives back what was said before.
    pub(crate) fn say(&self, state_directory: &Path, ordered: Option<Ordered>) -> Option<Ordered> {
        let before = self.read();
        if let Err(error) = self.set(state_directory, ordered) {
            eprintln!("warning: {}", with_causes(&error));
        }
        before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_holds_and_only_if_nobody_else_can_have_written_it() {
        let directory = tempfile::tempdir().unwrap();
        let orders = directory.path().join("orders");
        let state = Path::new("/var/lib/spa");
        let file = OrderFile::within(&orders, state);
        assert_eq!(file.read(), None);
        file.set(state, None).unwrap();
        let trial = Ordered::Trial { at: BootMicros(5), until: BootMicros(7) };
        for ordered in [trial, Ordered::Removed { at: BootMicros(9) }] {
            file.set(state, Some(ordered)).unwrap();
            assert_eq!(file.read(), Some(ordered));
            assert_eq!(OrderFile::within(&orders, Path::new("/srv/other")).read(), None);
        }
        for path in [&orders, &file.path] {
            let sound = fs::metadata(path).unwrap().permissions();
            fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
            assert_eq!(file.read(), None);
            fs::set_permissions(path, sound).unwrap();
            assert!(file.read().is_some());
        }
        std::os::unix::fs::chown(&file.path, Some(4711), None).unwrap();
        assert_eq!(file.read(), None);
        file.set(state, Some(trial)).unwrap();
        assert_eq!(file.read(), Some(trial));
        let text = fs::read_to_string(&file.path).unwrap();
        let boot = BootId::read().unwrap().to_string();
        fs::write(&file.path, text.replace(&boot, "00000000-0000-0000-0000-000000000000")).unwrap();
        assert_eq!(file.read(), None, "of another boot");
        file.set(state, None).unwrap();
        assert!(!file.path.exists());
    }
}
