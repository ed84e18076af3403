//! The trial of a gate, as a file in the state directory remembers it: over a restart of the daemon,
//! between daemon and commands, and, once it has lapsed, over a reboot.
//!
//! It knows no gate and no clock. That a gate on trial refuses nothing any more when its time is
//! over is the kernel's doing; the file is what keeps everybody from putting it back.

use crate::clock::BootMicros;
use crate::replay_store::BootId;
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

const FILE: &str = "trial";
const NEW_FILE: &str = "trial.new";
/// A longer one is not ours.
const MAX_BYTES: u64 = 4096;

/// The shortest trial: time to open a connection, and to confirm.
pub const SHORTEST: Duration = Duration::from_secs(5);
/// The longest trial.
pub const LONGEST: Duration = Duration::from_secs(86_400);

/// Whether the gate is on trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrialState {
    /// It is not: it stands for good, if it stands.
    None,
    /// It is.
    Running(Trial),
    /// It was, and nobody has confirmed it: there is to be no gate until somebody installs it.
    Lapsed,
}

/// A trial that goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trial {
    /// When it began; who comes in later has come in through the gate.
    pub started: BootMicros,
    /// When it ends.
    pub deadline: BootMicros,
}

impl Trial {
    /// How many seconds are left, rounded up; `None` if it is over.
    pub fn seconds_left(&self, now: BootMicros) -> Option<u32> {
        let left = self.deadline.since(now);
        let whole = left.as_secs().saturating_add(u64::from(left.subsec_nanos() > 0));
        u32::try_from(whole).ok().filter(|seconds| *seconds > 0)
    }
}

/// The file of one server.
#[derive(Debug, Clone)]
pub struct TrialFile {
    directory: PathBuf,
    boot: BootId,
}

/// What the file holds.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
enum Record {
    #[serde(rename_all = "kebab-case")]
    Running {
        boot_id: String,
        started: BootMicros,
        deadline: BootMicros,
    },
    Lapsed,
}

/// Why a trial could not be remembered.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}; is the disk full?", .path.display())]
pub struct TrialError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl TrialFile {
    /// The file in this state directory, as seen in this boot.
    pub fn new(state_directory: &Path, boot: BootId) -> Self {
        Self { directory: state_directory.into(), boot }
    }

    /// What it says. A file that makes no sense says that a trial has lapsed: it is there because
    /// there was one, and nobody is to be locked out by what can't be read.
    pub fn read(&self, now: BootMicros) -> TrialState {
        match self.record() {
            Ok(None) => TrialState::None,
            Ok(Some(text)) => judge(&text, &self.boot.to_string(), now),
            Err(error) => {
                tracing::error!("{} can't be read: {error}", self.path().display());
                TrialState::Lapsed
            }
        }
    }

    /// A trial begins.
    pub fn begin(&self, now: BootMicros, length: Duration) -> Result<Trial, TrialError> {
        let trial = Trial { started: now, deadline: now.saturating_add(length) };
        self.put_back(TrialState::Running(trial)).map(|()| trial)
    }

    /// It is over, and was not confirmed.
    pub fn lapse(&self) -> Result<(), TrialError> {
        self.put_back(TrialState::Lapsed)
    }

    /// There is no trial: the gate was confirmed, or installed for good.
    pub fn clear(&self) -> Result<(), TrialError> {
        self.put_back(TrialState::None)
    }

    /// Has the file say this; a power failure changes nothing of it.
    pub fn put_back(&self, state: TrialState) -> Result<(), TrialError> {
        let record = match state {
            TrialState::None => return self.remove(),
            TrialState::Lapsed => Record::Lapsed,
            TrialState::Running(Trial { started, deadline }) => {
                Record::Running { boot_id: self.boot.to_string(), started, deadline }
            }
        };
        let (path, new) = (self.path(), self.directory.join(NEW_FILE));
        let mut text =
            serde_json::to_string(&record).map_err(|error| at("write", &new)(error.into()))?;
        text.push('\n');
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(at("remove", &new)(error));
            }
            _ => {}
        }
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(OFlag::O_NOFOLLOW.bits())
            .open(&new)
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
        written.map_err(at("write", &new))?;
        fs::rename(&new, &path).map_err(at("replace", &path))?;
        self.sync()
    }

    fn remove(&self) -> Result<(), TrialError> {
        let path = self.path();
        match fs::remove_file(&path) {
            Ok(()) => self.sync(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(at("remove", &path)(error)),
        }
    }

    fn sync(&self) -> Result<(), TrialError> {
        let synced = File::open(&self.directory).and_then(|directory| directory.sync_all());
        synced.map_err(at("sync", &self.directory))
    }

    fn record(&self) -> io::Result<Option<String>> {
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let opened = OpenOptions::new().read(true).custom_flags(flags.bits()).open(self.path());
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut bytes)?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn path(&self) -> PathBuf {
        self.directory.join(FILE)
    }
}

fn judge(text: &str, boot: &str, now: BootMicros) -> TrialState {
    match serde_json::from_str(text.trim_end()) {
        // Of an earlier boot: the kernel of that one has forgotten the gate, unconfirmed.
        Ok(Record::Running { boot_id, started, deadline }) if boot_id == boot && deadline > now => {
            TrialState::Running(Trial { started, deadline })
        }
        _ => TrialState::Lapsed,
    }
}

fn at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TrialError {
    let path = path.to_path_buf();
    move |source| TrialError { doing, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    const BOOT: BootId = BootId([7; 16]);

    fn at(second: u64) -> BootMicros {
        BootMicros(second * 1_000_000)
    }

    fn file() -> (tempfile::TempDir, TrialFile) {
        let directory = tempfile::tempdir().unwrap();
        let file = TrialFile::new(directory.path(), BOOT);
        (directory, file)
    }

    #[test]
    fn a_trial_runs_until_its_deadline_and_then_has_lapsed() {
        let (_directory, file) = file();
        assert_eq!(file.read(at(100)), TrialState::None);
        let trial = file.begin(at(100), Duration::from_secs(60)).unwrap();
        assert_eq!(file.read(at(159)), TrialState::Running(trial));
        assert_eq!(trial.seconds_left(at(100)), Some(60));
        assert_eq!(trial.seconds_left(BootMicros(159_999_999)), Some(1));
        assert_eq!(trial.seconds_left(at(160)), None);
        assert_eq!(file.read(at(160)), TrialState::Lapsed);
        assert_eq!(file.read(at(159)), TrialState::Running(trial), "nobody has written that yet");
        file.lapse().unwrap();
        assert_eq!(file.read(at(101)), TrialState::Lapsed);
        file.clear().unwrap();
        file.clear().unwrap();
        assert_eq!(file.read(at(101)), TrialState::None);
    }

    #[test]
    fn a_reboot_ends_a_trial_unconfirmed_and_keeps_a_lapsed_one_lapsed() {
        let (directory, file) = file();
        let later = TrialFile::new(directory.path(), BootId([8; 16]));
        file.begin(at(100), Duration::from_secs(60)).unwrap();
        assert_eq!(later.read(at(1)), TrialState::Lapsed);
        file.lapse().unwrap();
        assert_eq!(later.read(at(1)), TrialState::Lapsed);
    }

    #[test]
    fn what_makes_no_sense_has_lapsed() {
        let (directory, file) = file();
        let path = directory.path().join(FILE);
        for text in ["", "{", "\"running\"", "\u{0}", "{\"running\":{}}"] {
            fs::write(&path, text).unwrap();
            assert_eq!(file.read(at(1)), TrialState::Lapsed, "{text:?}");
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(file.read(at(1)), TrialState::Lapsed);
    }

    #[test]
    fn the_file_is_for_nobody_else() {
        let (directory, file) = file();
        file.begin(at(1), SHORTEST).unwrap();
        let mode = fs::metadata(directory.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let missing = TrialFile::new(&directory.path().join("gone"), BOOT);
        let error = missing.begin(at(1), SHORTEST).unwrap_err().to_string();
        assert!(error.starts_with("cannot write"), "{error}");
    }
}
