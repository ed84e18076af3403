//! Keeps grants over a restart of the daemon, in a file of JSON lines.
//!
//! The file only has to outlive the process, not the machine: after a reboot the kernel admits
//! nothing, and the times in the file mean nothing. So nothing is synced.

use super::record::{GrantRecord, Header, KeyRecord, Record, VERSION, line};
use super::{Grant, GrantKey};
use crate::users::give_to_owner_of;
use nix::fcntl::OFlag;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

const FILE: &str = "grants.log";
const NEW_FILE: &str = "grants.log.new";
/// A file larger than this was not written by us.
const MAX_BYTES: u64 = 512 * 1024 * 1024;
/// The file is written anew when it has this many lines more than twice the live grants.
const SLACK: usize = 4096;

/// Where grants are kept.
pub trait GrantStore: Send {
    /// Records that these grants are now as they stand here, and that those are no more.
    fn record(&mut self, opened: &[Grant], closed: &[GrantKey]) -> Result<(), GrantStoreError>;

    /// Forgets what is over, if enough has gathered; `live` are all grants there are.
    fn compact(&mut self, live: &mut dyn Iterator<Item = &Grant>) -> Result<(), GrantStoreError>;
}

/// What was found when a store was opened.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// The grants, those included whose time has ended meanwhile.
    pub grants: Vec<Grant>,
    /// Whether there was a file of another boot, or of another version, which was discarded.
    pub discarded: bool,
    /// How many lines were damaged, and skipped.
    pub damaged: usize,
}

/// Why a store could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum GrantStoreError {
    /// A file operation failed.
    #[error("cannot {doing} {}; is the disk full, or the state directory not ours?", .path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The file is no regular file, or far too large.
    #[error("{} is not a file that this program wrote ({what}); move it away", .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A grant could not be put into words.
    #[error("cannot write a grant as JSON")]
    Json(#[from] serde_json::Error),
}

/// A [`GrantStore`] in the file `grants.log` of the state directory.
#[derive(Debug)]
pub struct FileGrantStore {
    directory: PathBuf,
    boot_id: String,
    file: File,
    lines: usize,
    /// The last line may lack its end: a write failed half-way.
    torn: bool,
    /// Something could not be written since the file was written anew.
    lacking: bool,
}

impl FileGrantStore {
    /// Opens the store of this boot, reads what it holds, and writes it anew.
    ///
    /// # Errors
    ///
    /// The file can't be read or written. Damaged lines are no error; see [`Loaded`].
    pub fn open(directory: &Path, boot_id: &str) -> Result<(Self, Loaded), GrantStoreError> {
        let loaded = match read(&directory.join(FILE))? {
            Some(bytes) => load(&String::from_utf8_lossy(&bytes), boot_id),
            None => Loaded::default(),
        };
        let (file, lines) = write_anew(directory, boot_id, &mut loaded.grants.iter())?;
        let (directory, boot_id) = (directory.into(), boot_id.into());
        Ok((Self { directory, boot_id, file, lines, torn: false, lacking: false }, loaded))
    }
}

impl GrantStore for FileGrantStore {
    fn record(&mut self, opened: &[Grant], closed: &[GrantKey]) -> Result<(), GrantStoreError> {
        let mut text = String::new();
        if self.torn {
            text.push('\n');
        }
        for key in closed {
            text += &line(&Record::Closed(KeyRecord::from(key)))?;
        }
        for grant in opened {
            text += &line(&Record::Opened(GrantRecord::from(grant)))?;
        }
        // One write: what the kernel has taken outlives the process.
        let written = self.file.write_all(text.as_bytes());
        self.torn = written.is_err();
        self.lines = self.lines.saturating_add(opened.len()).saturating_add(closed.len());
        if written.is_err() {
            self.lacking = true;
            // What was not opened is closed by a restart; what was not closed must not come back.
            strike(&self.directory.join(FILE), closed)?;
        }
        written.map_err(at("append to", &self.directory.join(FILE)))
    }

    fn compact(&mut self, live: &mut dyn Iterator<Item = &Grant>) -> Result<(), GrantStoreError> {
        if self.lines < SLACK && !self.lacking {
            return Ok(());
        }
        let live: Vec<_> = live.collect();
        if !self.lacking && self.lines < live.len().saturating_mul(2).saturating_add(SLACK) {
            return Ok(());
        }
        let (file, lines) = write_anew(&self.directory, &self.boot_id, &mut live.into_iter())?;
        (self.file, self.lines) = (file, lines);
        (self.torn, self.lacking) = (false, false);
        Ok(())
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, GrantStoreError> {
    // Never through a link, and never waiting for a writer of a pipe.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let opened = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at("open", path)(error)),
    };
    let foreign = |what| GrantStoreError::Foreign { path: path.into(), what };
    let metadata = file.metadata().map_err(at("look at", path))?;
    if !metadata.is_file() {
        return Err(foreign("it is not a regular file"));
    }
    if metadata.len() > MAX_BYTES {
        return Err(foreign("it is far too large"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(at("read", path))?;
    Ok(Some(bytes))
}

/// Takes grants out of the file where they stand, by empty lines in their place: that takes no room
/// on a disk that has none.
fn strike(path: &Path, closed: &[GrantKey]) -> Result<(), GrantStoreError> {
    if closed.is_empty() {
        return Ok(());
    }
    let Some(bytes) = read(path)? else { return Ok(()) };
    let closed: BTreeSet<_> = closed.iter().collect();
    let is_closed = |line: &[u8]| match serde_json::from_slice(line) {
        Ok(Record::Opened(record)) => closed.contains(&Grant::from(record).key),
        _ => false,
    };
    let doing = "take out what is closed of";
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let opened = OpenOptions::new().write(true).custom_flags(flags.bits()).open(path);
    let file = opened.map_err(at(doing, path))?;
    let mut offset: u64 = 0;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        if is_closed(line) {
            file.write_all_at(&vec![b'\n'; line.len()], offset).map_err(at(doing, path))?;
        }
        offset = offset.saturating_add(u64::try_from(line.len()).unwrap_or(u64::MAX));
    }
    Ok(())
}

fn load(text: &str, boot_id: &str) -> Loaded {
    let mut lines = text.lines();
    let header = lines.next().and_then(|line| serde_json::from_str::<Header>(line).ok());
    if header.is_none_or(|header| header.version != VERSION || header.boot_id != boot_id) {
        return Loaded { discarded: true, ..Loaded::default() };
    }
    let mut grants = BTreeMap::new();
    let mut damaged = 0;
    for line in lines.filter(|line| !line.is_empty()) {
        match serde_json::from_str(line) {
            Ok(Record::Opened(record)) => {
                let grant = Grant::from(record);
                grants.insert(grant.key.clone(), grant);
            }
            Ok(Record::Closed(record)) => {
                grants.remove(&GrantKey::from(record));
            }
            Err(_) => damaged += 1,
        }
    }
    Loaded { grants: grants.into_values().collect(), discarded: false, damaged }
}

/// Writes a file beside the old one and puts it in its place; returns it, and its lines.
fn write_anew(
    directory: &Path,
    boot_id: &str,
    live: &mut dyn Iterator<Item = &Grant>,
) -> Result<(File, usize), GrantStoreError> {
    let (path, new) = (directory.join(FILE), directory.join(NEW_FILE));
    let mut text = line(&Header { version: VERSION, boot_id: boot_id.to_owned() })?;
    let mut lines = 1;
    for grant in live {
        text += &line(&Record::Opened(GrantRecord::from(grant)))?;
        lines += 1;
    }
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(at("remove", &new)(error));
        }
        _ => {}
    }
    let mut file = OpenOptions::new()
        .append(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(&new)
        .map_err(at("create", &new))?;
    give_to_owner_of(directory, &file).map_err(at("create", &new))?;
    file.write_all(text.as_bytes()).map_err(at("write", &new))?;
    fs::rename(&new, &path).map_err(at("replace", &path))?;
    Ok((file, lines))
}

fn at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> GrantStoreError {
    let path = path.to_path_buf();
    move |source| GrantStoreError::File { doing, path, source }
}

#[cfg(test)]
mod tests {
    use super::super::RequestId;
    use super::*;
    use crate::clock::BootMicros;
    use crate::service::Connections;
    use spa_proto::{ClientId, Nonce, UnixMicros};
    use std::net::IpAddr;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    const BOOT: &str = "5f3c9a36-0000-4000-8000-000000000001";

    fn grant(source: u8, expires: u64) -> Grant {
        Grant {
            key: GrantKey {
                client: ClientId([0xab; 32]),
                source: IpAddr::from([192, 0, 2, source]).into(),
                service: "ssh".parse().unwrap(),
            },
            ports: vec!["tcp/22".parse().unwrap(), "udp/60001".parse().unwrap()],
            connections: Connections::Any,
            opened: UnixMicros(1_800_000_000_000_000),
            expires: BootMicros(expires),
            request: RequestId::from(Nonce([source; 24])),
        }
    }

    fn open(directory: &tempfile::TempDir) -> (FileGrantStore, Loaded) {
        FileGrantStore::open(directory.path(), BOOT).unwrap()
    }

    fn path(directory: &tempfile::TempDir) -> PathBuf {
        directory.path().join(FILE)
    }

    #[test]
    fn grants_outlive_the_process_and_closed_ones_do_not() {
        let directory = tempfile::tempdir().unwrap();
        let (mut store, loaded) = open(&directory);
        assert_eq!(loaded, Loaded::default());
        store.record(&[grant(1, 10), grant(2, 10), grant(3, 10)], &[]).unwrap();
        store.record(&[grant(1, 20)], &[grant(2, 10).key]).unwrap();
        drop(store);
        let (mut store, loaded) = open(&directory);
        assert_eq!(loaded.grants, [grant(1, 20), grant(3, 10)]);
        assert_eq!((loaded.discarded, loaded.damaged), (false, 0));
        // A knock right after a close, in one record: the grant is there.
        store.record(&[grant(1, 30)], &[grant(1, 20).key]).unwrap();
        assert_eq!(open(&directory).1.grants[0], grant(1, 30));
    }

    #[test]
    fn that_a_grant_is_for_one_connection_is_kept_and_older_files_stay_readable() {
        let directory = tempfile::tempdir().unwrap();
        let one = Grant { connections: Connections::One, ..grant(1, 10) };
        open(&directory).0.record(&[one.clone(), grant(2, 10)], &[]).unwrap();
        let text = fs::read_to_string(path(&directory)).unwrap();
        // A line as it was always written says nothing of connections.
        assert_eq!(text.matches(r#""connections":"one""#).count(), 1, "{text}");
        assert_eq!(text.matches("connections").count(), 1, "{text}");
        let (_, loaded) = open(&directory);
        assert_eq!((loaded.grants, loaded.damaged), (vec![one, grant(2, 10)], 0));
    }

    #[test]
    fn the_file_is_ours_alone() {
        let directory = tempfile::tempdir().unwrap();
        let _ = open(&directory);
        let mode = fs::metadata(path(&directory)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert!(!directory.path().join(NEW_FILE).exists());
    }

    #[test]
    fn the_grants_of_another_boot_are_discarded() {
        let directory = tempfile::tempdir().unwrap();
        open(&directory).0.record(&[grant(1, 10)], &[]).unwrap();
        assert_eq!(open(&directory).1.grants.len(), 1);
        let (_, loaded) = FileGrantStore::open(directory.path(), "another boot").unwrap();
        assert_eq!(loaded, Loaded { discarded: true, ..Loaded::default() });
        assert_eq!(open(&directory).1, Loaded { discarded: true, ..Loaded::default() });
    }

    #[test]
    fn damaged_lines_are_skipped_and_counted() {
        let directory = tempfile::tempdir().unwrap();
        open(&directory).0.record(&[grant(1, 10), grant(2, 10), grant(3, 10)], &[]).unwrap();
        let text = fs::read_to_string(path(&directory)).unwrap();
        let mut lines: Vec<_> = text.lines().collect();
        let torn = &lines[2][..40];
        lines[2] = torn;
        lines.push("\u{1}noise");
        fs::write(path(&directory), lines.join("\n")).unwrap();
        let (mut store, loaded) = open(&directory);
        assert_eq!((loaded.grants, loaded.damaged), (vec![grant(1, 10), grant(3, 10)], 2));
        // What was damaged is gone from the file, and the next line stands by itself.
        store.record(&[grant(4, 10)], &[]).unwrap();
        let (_, loaded) = open(&directory);
        assert_eq!((loaded.grants.len(), loaded.damaged), (3, 0));
        for bytes in [&b"\xff\xfe noise"[..], b"", b"{}\n"] {
            fs::write(path(&directory), bytes).unwrap();
            assert!(open(&directory).1.discarded, "{bytes:?}");
        }
    }

    #[test]
    fn a_line_after_a_torn_one_is_not_lost() {
        let directory = tempfile::tempdir().unwrap();
        let (mut store, _) = open(&directory);
        store.file.write_all(b"{\"opened\":{\"cli").unwrap();
        store.torn = true;
        store.record(&[grant(1, 10)], &[]).unwrap();
        let (_, loaded) = open(&directory);
        assert_eq!((loaded.grants.len(), loaded.damaged), (1, 1));
    }

    #[test]
    fn a_full_disk_is_told_with_the_path() {
        let directory = tempfile::tempdir().unwrap();
        let (mut store, _) = open(&directory);
        store.file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let error = store.record(&[grant(1, 10)], &[]).unwrap_err();
        assert!(error.to_string().contains("grants.log"), "{error}");
        assert!(store.torn);
    }

    #[test]
    fn what_is_closed_while_the_disk_is_full_does_not_come_back() {
        let directory = tempfile::tempdir().unwrap();
        let (mut store, _) = open(&directory);
        store.record(&[grant(1, 10), grant(2, 10), grant(1, 20), grant(3, 10)], &[]).unwrap();
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let file = std::mem::replace(&mut store.file, full);
        store.record(&[grant(4, 10)], &[grant(1, 20).key]).unwrap_err();
        let kept = |directory| open(directory).1.grants;
        assert_eq!(kept(&directory), [grant(2, 10), grant(3, 10)]);
        // With room again, what was not written follows.
        store.file = file;
        let live = [grant(2, 10), grant(3, 10), grant(4, 10), grant(5, 10)];
        store.record(&[grant(5, 10)], &[]).unwrap();
        store.compact(&mut live.iter()).unwrap();
        assert_eq!(kept(&directory), live);
    }

    #[test]
    fn the_file_does_not_grow_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let (mut store, _) = open(&directory);
        let live = [grant(1, 10)];
        for _ in 0..3 * SLACK {
            store.record(&live, &[]).unwrap();
            store.compact(&mut live.iter()).unwrap();
        }
        let lines = fs::read_to_string(path(&directory)).unwrap().lines().count();
        assert!(lines <= SLACK + 2, "{lines}");
        assert_eq!(open(&directory).1.grants, live);
    }

    #[test]
    fn a_link_or_a_pipe_in_the_place_of_the_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        fs::write(&target, "precious").unwrap();
        symlink(&target, path(&directory)).unwrap();
        assert!(FileGrantStore::open(directory.path(), BOOT).is_err());
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
        fs::remove_file(path(&directory)).unwrap();
        fs::create_dir(path(&directory)).unwrap();
        assert!(FileGrantStore::open(directory.path(), BOOT).is_err());
        fs::remove_dir(path(&directory)).unwrap();
        assert!(FileGrantStore::open(directory.path(), BOOT).is_ok());
    }
}
