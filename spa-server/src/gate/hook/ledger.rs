//! What the commands have opened, each in a file of its own below the state directory.
//!
//! No kernel closes it again, so it must be known whatever happens: a record is on the disk before
//! its port is opened, and goes when it is closed. After a crash, a kill or a power failure the
//! next start finds in here what it has to close. It knows no command and no clock.

use super::run::Running;
use crate::clock::BootMicros;
use crate::config::{Problem, judge_state_directory};
use crate::gate::types::Element;
use crate::service::Target;
use crate::users::give_to_owner_of;
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A longer file was not written by us.
const MAX_BYTES: u64 = 64 * 1024;
/// How long the directory may still be locked after its holder has gone: a child that was just being
/// started has everything of its parent's until it runs its program.
const FORKING: Duration = Duration::from_millis(300);
const UNFINISHED: &str = ".new";

/// How an element stands with the commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Phase {
    /// `open` may have run, and its end has not been seen.
    Opening,
    /// `open` has succeeded.
    Open,
    /// `close` has to succeed.
    Closing,
}

/// One element, as it is on the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Record {
    pub(super) element: Element,
    /// For the environment of `close`, whatever the configuration says by then.
    pub(super) target: Target,
    pub(super) phase: Phase,
    /// In which run of the machine `expires` counts.
    pub(super) boot_id: String,
    pub(super) expires: BootMicros,
    /// The command that was begun last, if its end has not been seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) running: Option<Running>,
    /// Why `close` has failed, the last time that it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) failure: Option<String>,
}

impl Record {
    /// All that is left of a record that can't be read.
    fn lost(element: Element) -> Self {
        Self {
            element,
            target: Target::Here,
            phase: Phase::Closing,
            boot_id: String::new(),
            expires: BootMicros(0),
            running: None,
            failure: None,
        }
    }

    /// Whether the element is open and has time left.
    pub(super) fn is_live(&self, boot_id: &str, now: BootMicros) -> bool {
        self.phase == Phase::Open && self.boot_id == boot_id && self.expires > now
    }
}

/// The directory of the records.
#[derive(Debug)]
pub(super) struct Ledger {
    directory: PathBuf,
}

/// The right to change records; one process has it.
#[derive(Debug)]
pub(super) struct Hold {
    /// A lock on the directory itself: nothing else lies in it.
    _directory: File,
}

/// Why the records can't be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// A file operation failed.
    #[error("cannot {doing} {}", .path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Another process looks after what is open.
    #[error(
        "the running daemon looks after what hook commands have opened ({} is locked); leave it to the daemon, or stop it first",
        .0.display()
    )]
    Held(PathBuf),
    /// Others can write there: what they write is run by root, and whom they name is killed.
    #[error("what hook commands have opened can't be trusted: {0}")]
    Untrusted(Problem),
    /// A record could not be put into words.
    #[error("cannot write a record as JSON")]
    Json(#[from] serde_json::Error),
}

impl Ledger {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Whether there is a directory of records.
    pub(super) fn exists(&self) -> bool {
        self.directory.is_dir()
    }

    /// Makes the directory if need be, and takes it for this process; says whether it was made.
    pub(super) fn hold(&self) -> Result<(Hold, bool), LedgerError> {
        let directory = &self.directory;
        let made = match make(directory) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(failed("make", directory)(error)),
        };
        judge_state_directory(directory).map_err(LedgerError::Untrusted)?;
        // Never through a link: what lies elsewhere is not ours to delete.
        let flags = (OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits();
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(directory);
        let opened = opened.map_err(failed("open", directory))?;
        let deadline = Instant::now().checked_add(FORKING);
        loop {
            match opened.try_lock() {
                Ok(()) => return Ok((Hold { _directory: opened }, made)),
                Err(TryLockError::WouldBlock) if deadline > Some(Instant::now()) => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(TryLockError::WouldBlock) => return Err(LedgerError::Held(directory.clone())),
                Err(TryLockError::Error(error)) => return Err(failed("lock", directory)(error)),
            }
        }
    }

    /// All records, in no order, and the files that are none. A file that a power failure has
    /// emptied still says by its name what to close.
    pub(super) fn read(&self) -> Result<(Vec<Record>, Vec<PathBuf>), LedgerError> {
        let (mut records, mut damaged) = (Vec::new(), Vec::new());
        let listed = fs::read_dir(&self.directory).map_err(failed("list", &self.directory))?;
        for entry in listed {
            let path = entry.map_err(failed("list", &self.directory))?.path();
            if path.to_string_lossy().ends_with(UNFINISHED) {
                continue;
            }
            let Some(element) = self.element(&path) else {
                damaged.push(path);
                continue;
            };
            match read_bytes(&path) {
                Ok(bytes) => records.push(match serde_json::from_slice::<Record>(&bytes) {
                    Ok(record) if record.element == element => record,
                    _ => Record::lost(element),
                }),
                // Somebody who only looks may see one go.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed("read", &path)(error)),
            }
        }
        Ok((records, damaged))
    }

    /// Writes a record in the place of the former one of its element. What is to be opened is on the
    /// disk afterwards, whatever happens: a firewall that is somewhere else outlives a power failure
    /// of this machine.
    pub(super) fn write(&self, record: &Record) -> Result<(), LedgerError> {
        self.put(record, record.phase == Phase::Opening)
    }

    /// The same for what only has to outlive this process.
    pub(super) fn note(&self, record: &Record) -> Result<(), LedgerError> {
        self.put(record, false)
    }

    fn put(&self, record: &Record, syncs: bool) -> Result<(), LedgerError> {
        let path = self.path(record.element);
        let mut text = serde_json::to_string(record)?;
        text.push('\n');
        let beside = beside(&path);
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(OFlag::O_NOFOLLOW.bits())
            .open(&beside)
            .and_then(|mut file| {
                give_to_owner_of(&self.directory, &file)?;
                file.write_all(text.as_bytes())?;
                if syncs {
                    file.sync_all()?;
                }
                fs::rename(&beside, &path)?;
                if syncs { File::open(&self.directory)?.sync_all() } else { Ok(()) }
            });
        written.map_err(failed("write", &path))
    }

    /// Forgets an element.
    pub(super) fn forget(&self, element: Element) -> Result<(), LedgerError> {
        let path = self.path(element);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Removes the directory, in which there are no records any more.
    pub(super) fn remove(&self, _hold: &Hold) -> Result<(), LedgerError> {
        let listed = fs::read_dir(&self.directory).map_err(failed("list", &self.directory))?;
        for path in listed.filter_map(|entry| Some(entry.ok()?.path())) {
            if path.to_string_lossy().ends_with(UNFINISHED) {
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        fs::remove_dir(&self.directory).map_err(failed("remove", &self.directory))
    }

    /// `tcp-22-22-192.0.2.0_24`
    fn path(&self, element: Element) -> PathBuf {
        let Element { source, ports } = element;
        let source = source.to_string().replace('/', "_");
        let (transport, first, last) = (ports.transport(), ports.first(), ports.last());
        self.directory.join(format!("{transport}-{first}-{last}-{source}"))
    }

    /// What a file of this name is about.
    fn element(&self, path: &Path) -> Option<Element> {
        let name = path.file_name()?.to_str()?;
        let mut parts = name.splitn(4, '-');
        let (transport, first, last) = (parts.next()?, parts.next()?, parts.next()?);
        let source = parts.next()?.replace('_', "/").parse().ok()?;
        let ports = format!("{transport}/{first}-{last}").parse().ok()?;
        let element = Element { source, ports };
        (self.path(element) == path).then_some(element)
    }
}

/// Makes the directory, which is its owner's in whose it is.
fn make(directory: &Path) -> io::Result<()> {
    let above = directory.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o700).create(above)?;
    DirBuilder::new().mode(0o700).create(directory)?;
    // Its owner may have put something else there meanwhile.
    let flags = (OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits();
    let made = OpenOptions::new().read(true).custom_flags(flags).open(directory)?;
    give_to_owner_of(above, &made)
}

fn failed(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> LedgerError {
    move |source| LedgerError::File { doing, path: path.into(), source }
}

/// Of a link, a pipe or a device: nothing.
fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if fs::symlink_metadata(path)?.is_file() {
        let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(UNFINISHED);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn record(source: &str, ports: &str) -> Record {
        Record {
            element: Element { source: source.parse().unwrap(), ports: ports.parse().unwrap() },
            target: Target::Here,
            phase: Phase::Opening,
            boot_id: "a".into(),
            expires: BootMicros(7),
            running: None,
            failure: None,
        }
    }

    fn ledger() -> (tempfile::TempDir, Ledger) {
        let state = tempfile::tempdir().unwrap();
        let ledger = Ledger::new(state.path().join("hook"));
        (state, ledger)
    }

    #[test]
    fn what_is_written_is_read_and_forgotten() {
        let (_state, ledger) = ledger();
        assert!(!ledger.exists());
        let (hold, made) = ledger.hold().unwrap();
        assert!(made && ledger.exists());
        let mut records = [
            record("192.0.2.7", "tcp/22"),
            record("192.0.2.0/24", "tcp/22"),
            record("2001:db8::7", "udp/10000-10100"),
            record("2001:db8::/64", "udp/10000"),
        ];
        for record in &records {
            ledger.write(record).unwrap();
        }
        records[1].phase = Phase::Open;
        records[1].expires = BootMicros(9);
        ledger.write(&records[1]).unwrap();
        let (mut read, damaged) = ledger.read().unwrap();
        read.sort_by_key(|record| record.element);
        records.sort_by_key(|record| record.element);
        assert_eq!((read, damaged), (records.to_vec(), Vec::new()));
        for record in &records {
            ledger.forget(record.element).unwrap();
        }
        ledger.forget(records[0].element).unwrap();
        assert!(ledger.read().unwrap().0.is_empty());
        ledger.remove(&hold).unwrap();
        assert!(!ledger.exists());
    }

    #[test]
    fn one_process_holds_it() {
        let (_state, ledger) = ledger();
        let (hold, _) = ledger.hold().unwrap();
        assert!(matches!(ledger.hold(), Err(LedgerError::Held(_))));
        drop(hold);
        let (_, made) = ledger.hold().unwrap();
        assert!(!made);
    }

    #[test]
    fn a_directory_that_others_can_write_is_not_taken_over() {
        let (state, ledger) = ledger();
        let path = state.path().join("hook");
        drop(ledger.hold().unwrap());
        for mode in [0o770, 0o702, 0o1777] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = ledger.hold().unwrap_err().to_string();
            assert!(error.contains("chmod go-w"), "{error}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        ledger.hold().unwrap();
    }

    #[test]
    fn a_record_that_is_lost_is_one_to_close_and_what_is_none_is_named() {
        let (state, ledger) = ledger();
        let (hold, _) = ledger.hold().unwrap();
        let good = record("192.0.2.7", "tcp/22");
        ledger.write(&good).unwrap();
        let path = |name: &str| state.path().join("hook").join(name);
        fs::write(path("tcp-22-22-192.0.2.8.new"), "{").unwrap();
        fs::write(path("tcp-22-22-192.0.2.9"), "").unwrap();
        // A right record in the wrong place.
        fs::copy(path("tcp-22-22-192.0.2.7"), path("udp-1-2-2001:db8::_64")).unwrap();
        std::os::unix::fs::symlink("tcp-22-22-192.0.2.7", path("tcp-22-22-::1")).unwrap();
        fs::write(path("notes"), "").unwrap();
        fs::write(path("tcp-22-22-192.0.2.7_24"), "").unwrap();
        let (mut read, mut damaged) = ledger.read().unwrap();
        let lost = ["192.0.2.9 tcp/22", "2001:db8::/64 udp/1-2", "::1 tcp/22"].map(|text| {
            let (source, ports) = text.split_once(' ').unwrap();
            Record::lost(record(source, ports).element)
        });
        let mut all = [vec![good], lost.to_vec()].concat();
        read.sort_by_key(|record| record.element);
        all.sort_by_key(|record| record.element);
        assert_eq!(read, all);
        damaged.sort();
        assert_eq!(damaged, [path("notes"), path("tcp-22-22-192.0.2.7_24")]);
        // What can't be judged is not deleted.
        assert!(ledger.remove(&hold).is_err());
        assert_eq!(ledger.read().unwrap().0.len(), 4);
    }

    #[test]
    fn only_the_times_of_this_boot_count() {
        let mut record = record("192.0.2.7", "tcp/22");
        assert!(!record.is_live("a", BootMicros(0)), "its opening has not been seen");
        record.phase = Phase::Open;
        assert!(record.is_live("a", BootMicros(6)));
        assert!(!record.is_live("a", BootMicros(7)) && !record.is_live("b", BootMicros(6)));
    }
}
