//! The file that keeps what has happened to clients' keys, apart from the replay store: it is
//! written rarely, has to last, and must not be lost with a replay store that is started anew.
//!
//! A record counts when it is on the disk. Nothing is ever taken out but what is damaged: who has
//! enrolled once has used his invitation for ever, and what a later version of this program has
//! written that version is to find again.

use super::record::Line;
use super::{Enrolments, Record};
use crate::users::give_to_owner_of;
use nix::fcntl::OFlag;
use spa_proto::UnixMicros;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use zeroize::Zeroizing;

const FILE: &str = "enrolments";
/// Long before a file is too large to be read it takes nothing more: it would keep everybody out.
const MAX_BYTES_TO_APPEND: u64 = 64 * 1024 * 1024;
/// An invitation says the second after the one in which it was made; the next one is past that.
const WHOLE_SECONDS: Duration = Duration::from_secs(2);
/// A larger one was not written by us: it holds some 300 bytes a key.
const MAX_BYTES: u64 = 256 * 1024 * 1024;

/// See the module's text.
#[derive(Debug)]
pub struct EnrolmentStore {
    path: PathBuf,
    /// `None`: it can't be written.
    file: Option<File>,
    enrolments: Enrolments,
    /// How much of the file is whole; `None`: a write failed and could not be undone.
    length: Option<u64>,
}

/// Why the file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum EnrolmentStoreError {
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
    /// A record could not be put into words.
    #[error("cannot write a record as JSON")]
    Json(#[from] serde_json::Error),
    /// It could not be written when the server started.
    #[error("{} could not be written when the server started; mend that, and restart it", .0.display())]
    ReadOnly(PathBuf),
    /// It has all the records that it can.
    #[error("{} is full: some client has had far too many keys; look who, lock it out, and put the file away", .0.display())]
    Full(PathBuf),
    /// Another file is in its place, or none.
    #[error("{} was taken away or replaced while the server ran: a restart would not know of a new key; put it back and restart the server", .0.display())]
    Gone(PathBuf),
    /// It does not hold what was written.
    #[error("{} is not as this server has written it: {found} of its records are whole, not {expected}. This server still knows the others. Put back that file as it was a moment ago, or restart the server, which then does without what is lost, and says so", .path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// How many records make sense.
        found: usize,
        /// How many were written.
        expected: usize,
    },
    /// Half a record stands at the end of the file.
    #[error("{} ends with half a record since a write failed; restart the server", .0.display())]
    Torn(PathBuf),
}

/// What was found when a store was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// All of it.
    Whole,
    /// Nothing: it was made.
    Missing,
    /// So many lines that made no sense, and were left out.
    Damaged(usize),
    /// So many whole lines of kinds that this version does not know, which are kept.
    Unknown(usize),
}

impl EnrolmentStore {
    /// Opens the store in a state directory, or makes it. After damage, and where there was none,
    /// what happened before `now` counts as not known, and a moment longer: the times of
    /// invitations are whole seconds.
    pub fn open(directory: &Path, now: UnixMicros) -> Result<(Self, Found), EnrolmentStoreError> {
        let path = directory.join(FILE);
        let now = now.saturating_add(WHOLE_SECONDS);
        let since = Record::Since { instant: now };
        let (enrolments, found) = match read(&path)? {
            None => {
                make(directory, now)?;
                (load(since.line()?.as_bytes()).enrolments, Found::Missing)
            }
            Some(bytes) => {
                let Loaded { mut enrolments, damaged, unknown } = load(&bytes);
                let found = match (damaged, unknown) {
                    (0, 0) => Found::Whole,
                    (0, unknown) => Found::Unknown(unknown),
                    (damaged, _) => Found::Damaged(damaged),
                };
                if found != Found::Whole {
                    let mut whole = whole_lines(&bytes);
                    whole.extend_from_slice(since.line()?.as_bytes());
                    write_anew(directory, &whole, |new| fs::rename(new, &path))?;
                    enrolments.apply(&since);
                }
                (enrolments, found)
            }
        };
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let mut file = OpenOptions::new()
            .append(true)
            .custom_flags(flags.bits())
            .open(&path)
            .map_err(at("open", &path))?;
        let length = file.seek(SeekFrom::End(0)).map_err(at("look at", &path))?;
        Ok((Self { path, file: Some(file), enrolments, length: Some(length) }, found))
    }

    /// A store that can't be written, with what of it can be read: nobody is to be kept out who
    /// has a key already.
    pub fn read_only(directory: &Path) -> Self {
        let path = directory.join(FILE);
        let enrolments = match read(&path) {
            Ok(Some(bytes)) => load(&bytes).enrolments,
            // Whatever was used before is not known.
            _ => Enrolments { since: UnixMicros(u64::MAX), ..Enrolments::default() },
        };
        Self { path, file: None, enrolments, length: None }
    }

    /// Makes the store of a state directory where there is none: what happens from `now` on is
    /// known. Since when it is, comes back.
    pub fn ensure(directory: &Path, now: UnixMicros) -> Result<UnixMicros, EnrolmentStoreError> {
        if let Some(enrolments) = Self::read(directory)? {
            return Ok(enrolments.since);
        }
        make(directory, now)?;
        Ok(Self::read(directory)?.map_or(now, |enrolments| enrolments.since))
    }

    /// What the store of a state directory holds; `None` if there is none.
    pub fn read(directory: &Path) -> Result<Option<Enrolments>, EnrolmentStoreError> {
        Ok(read(&directory.join(FILE))?.map(|bytes| load(&bytes).enrolments))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it holds.
    pub const fn enrolments(&self) -> &Enrolments {
        &self.enrolments
    }

    /// How many records whoever reads the file has to find; `None` where it can't be written, and
    /// has to be mended meanwhile.
    pub fn expected_records(&self) -> Option<usize> {
        self.file.as_ref().map(|_| self.enrolments.records)
    }

    /// Writes down what has happened. It is on the disk when this returns, or has not happened.
    pub fn append(&mut self, record: &Record) -> Result<(), EnrolmentStoreError> {
        let Some(file) = &mut self.file else {
            return Err(EnrolmentStoreError::ReadOnly(self.path.clone()));
        };
        let length = self.length.ok_or_else(|| EnrolmentStoreError::Torn(self.path.clone()))?;
        if !is_at(file, &self.path) {
            return Err(EnrolmentStoreError::Gone(self.path.clone()));
        }
        let line = record.line()?;
        if length > MAX_BYTES_TO_APPEND {
            return Err(EnrolmentStoreError::Full(self.path.clone()));
        }
        let written = file.write_all(line.as_bytes()).and_then(|()| file.sync_data());
        if let Err(error) = written {
            // Half a line would spoil the next one; a whole one that is not on the disk would
            // come back.
            self.length = file.set_len(length).ok().map(|()| length);
            return Err(at("append to", &self.path)(error));
        }
        let added = u64::try_from(line.len()).unwrap_or(u64::MAX);
        self.length = Some(length.saturating_add(added));
        self.enrolments.apply(record);
        Ok(())
    }
}

/// Whether this is the file that a restart would find.
fn is_at(file: &File, path: &Path) -> bool {
    let id = |metadata: Metadata| (metadata.dev(), metadata.ino());
    let here = file.metadata().map(id).ok();
    here.is_some() && here == fs::symlink_metadata(path).map(id).ok()
}

fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, EnrolmentStoreError> {
    // Never through a link, and never waiting for a writer of a pipe.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let opened = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at("open", path)(error)),
    };
    let foreign = |what| EnrolmentStoreError::Foreign { path: path.into(), what };
    let metadata = file.metadata().map_err(at("look at", path))?;
    if !metadata.is_file() {
        return Err(foreign("it is not a regular file"));
    }
    if metadata.len() > MAX_BYTES {
        return Err(foreign("it is far too large"));
    }
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(at("read", path))?;
    Ok(Some(bytes))
}

struct Loaded {
    enrolments: Enrolments,
    /// Lines that make no sense: each may have been the use of an invitation. So may one that is not
    /// whole, as long as nobody has seen it fail.
    damaged: usize,
    /// Whole lines that this version does not know, and that came after all that is not known.
    unknown: usize,
}

fn load(bytes: &[u8]) -> Loaded {
    let mut loaded = Loaded { enrolments: Enrolments::default(), damaged: 0, unknown: 0 };
    for line in lines(bytes) {
        match Line::of(line) {
            Line::Record(record) => {
                if matches!(record, Record::Since { .. }) {
                    loaded.unknown = 0;
                }
                loaded.enrolments.apply(&record);
            }
            Line::Unknown => loaded.unknown += 1,
            Line::Damaged => loaded.damaged += 1,
        }
    }
    loaded
}

fn whole_lines(bytes: &[u8]) -> Zeroizing<Vec<u8>> {
    let whole = lines(bytes).filter(|line| !matches!(Line::of(line), Line::Damaged));
    Zeroizing::new(whole.flatten().copied().collect())
}

fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    // One without an end was never written to its end, so it has not happened.
    bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| *line != b"\n")
}

/// Makes the file with its first line in one step; leaves one that is there alone.
fn make(directory: &Path, now: UnixMicros) -> Result<(), EnrolmentStoreError> {
    let line = Record::Since { instant: now }.line()?;
    let path = directory.join(FILE);
    write_anew(directory, line.as_bytes(), |new| match fs::hard_link(new, &path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked,
    })
}

/// Writes a file beside the one there is, and publishes it.
fn write_anew(
    directory: &Path,
    content: &[u8],
    publish: impl FnOnce(&Path) -> io::Result<()>,
) -> Result<(), EnrolmentStoreError> {
    let new = directory.join(format!("{FILE}.new.{}", std::process::id()));
    // A leftover of another process of this number.
    drop(fs::remove_file(&new));
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(&new)
        .and_then(|mut file| {
            give_to_owner_of(directory, &file)?;
            file.write_all(content).and_then(|()| file.sync_all())
        })
        .and_then(|()| publish(&new))
        .and_then(|()| File::open(directory)?.sync_all())
        .map_err(at("make", &directory.join(FILE)));
    // Gone already after a rename.
    drop(fs::remove_file(&new));
    made
}

fn at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EnrolmentStoreError {
    let path = path.to_path_buf();
    move |source| EnrolmentStoreError::File { doing, path, source }
}
