//! What this user's clients have asked for, so that one knock serves many programs.
//!
//! A file in the state directory, which all processes of the user share. It holds what was asked,
//! never what was granted: a server does not answer. Whatever is wrong with it (no place for it, a
//! damaged file, a lock that somebody keeps), the client goes on as if it were empty, and knocks.

use crate::server::Server;
use crate::system;
use core::net::IpAddr;
use core::time::Duration;
use etcetera::BaseStrategy as _;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The variable that names another directory.
const DIRECTORY_VARIABLE: &str = "SPA_STATE_DIR";
/// A grant with less than this is as good as over: a program needs a moment to use it.
pub(crate) const MARGIN: Duration = Duration::from_secs(5);
/// The lifetime that a server gives when it is not told otherwise, by it or by the knock.
const SERVER_DEFAULT: Duration = Duration::from_secs(30);
/// Whoever holds the lock sends some datagrams and writes a small file. When he takes longer, he
/// was stopped, and nobody is to wait for him.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_GAP: Duration = Duration::from_millis(2);
/// More than any user has; a bound for what is read and written.
const MAX_ENTRIES: usize = 1000;
const MAX_FILE: u64 = 1 << 20;
/// How often the record is opened when it changes each time.
const MAX_LOOKS: u32 = 16;

/// One thing that was asked of one address of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Entry {
    /// What the user calls the server.
    pub(crate) server: String,
    /// Its key: a server that was set up anew knows nothing of what the old one had opened.
    pub(crate) key: String,
    /// The service or port.
    pub(crate) item: String,
    /// The address that was knocked at.
    pub(crate) to: IpAddr,
    /// This machine's address towards it; another network has another one.
    pub(crate) from: IpAddr,
    pub(crate) asked: Moment,
    /// Whether who asked looks whether it opens, and notes it.
    pub(crate) watched: bool,
    /// For how long, as far as the client knows.
    pub(crate) lifetime_seconds: u64,
    /// Whether that is what was asked for; else it is the default that servers have.
    pub(crate) lifetime_asked: bool,
    /// When a connection got through last.
    #[serde(default)]
    pub(crate) seen_open: Option<Moment>,
}

impl Entry {
    /// The lifetime that a knock asks for, and whether it asks for one at all.
    pub(crate) fn lifetime(asked: Option<u32>) -> (u64, bool) {
        asked.map_or((SERVER_DEFAULT.as_secs(), false), |seconds| (seconds.into(), true))
    }

    /// How much of it is left; `None` when it is over, or when nobody can tell.
    pub(crate) fn left(&self, now: Moment) -> Option<Duration> {
        let left = Duration::from_secs(self.lifetime_seconds).checked_sub(self.asked.age(now)?)?;
        (!left.is_zero()).then_some(left)
    }

    pub(crate) fn is_of(&self, server: &Server) -> bool {
        self.server == server.name.as_str() && self.key == server.public_key.to_string()
    }

    /// A refresh never shortens what was granted before, which was if it was seen open.
    fn outlive(&mut self, old: &Self) {
        let is_same = self.key == old.key && self.from == old.from;
        let left = old.left(self.asked).filter(|_| is_same && old.seen_open.is_some());
        if let Some(left) = left.filter(|left| left.as_secs() > self.lifetime_seconds) {
            self.lifetime_seconds = left.as_secs();
            self.lifetime_asked = old.lifetime_asked;
        }
    }

    /// Whether the other one is about the same, so that the later of them counts.
    fn is_like(&self, other: &Self) -> bool {
        (&self.server, &self.item, self.to) == (&other.server, &other.item, other.to)
    }
}

/// A point of time by two clocks. The one on the wall goes on in suspend, and is set now and then;
/// the steady one is not set, and may stand still in suspend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Moment {
    unix_milliseconds: u64,
    #[serde(default)]
    steady_milliseconds: Option<u64>,
}

impl Moment {
    pub(crate) fn now() -> Self {
        let milliseconds = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            unix_milliseconds: milliseconds(wall),
            steady_milliseconds: system::steady_clock().map(milliseconds),
        }
    }

    /// How long ago this was at least as much as any clock says; `None` when a clock has run
    /// backwards since (it was set, or the machine has started anew).
    pub(crate) fn age(self, now: Self) -> Option<Duration> {
        let wall = now.unix_milliseconds.checked_sub(self.unix_milliseconds)?;
        let steady = match (self.steady_milliseconds, now.steady_milliseconds) {
            (Some(then), Some(now)) => now.checked_sub(then)?,
            (None, None) => 0,
            _ => return None,
        };
        Some(Duration::from_millis(wall.max(steady)))
    }

    pub(crate) const fn unix_milliseconds(self) -> u64 {
        self.unix_milliseconds
    }
}

/// The place of the record.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    directory: PathBuf,
}

impl Record {
    /// In `$SPA_STATE_DIR`, else `spa` in the user's state directory; none without a home.
    pub(crate) fn of_user() -> Option<Self> {
        let named = std::env::var_os(DIRECTORY_VARIABLE).filter(|it: &OsString| !it.is_empty());
        let directory = named.map(PathBuf::from).or_else(|| {
            let base = etcetera::choose_base_strategy().ok()?;
            Some(base.state_dir().unwrap_or_else(|| base.cache_dir()).join("spa"))
        })?;
        Some(Self::new(directory))
    }

    pub(crate) fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// Waits for its turn, for a moment. `None`: go on without the record.
    pub(crate) fn lock(&self) -> Option<Held<'_>> {
        crate::config::make_directory(&self.directory).ok()?;
        let lock = private(&self.directory.join("asked.lock")).ok()?;
        let began = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) => {
                    let entries = File::open(self.file()).ok().and_then(read).unwrap_or_default();
                    return Some(Held { record: self, entries, _lock: lock });
                }
                Err(TryLockError::WouldBlock) if began.elapsed() < LOCK_PATIENCE => {
                    thread::sleep(LOCK_GAP);
                }
                Err(_) => return None,
            }
        }
    }

    /// What is there and not over, by the order in which it was asked.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        still_open(read_unlocked(&self.file()).unwrap_or_default())
    }

    fn file(&self) -> PathBuf {
        self.directory.join("asked.json")
    }

    /// What was the record before, and is written over to be the next one.
    fn spare(&self) -> PathBuf {
        self.directory.join("asked.json.new")
    }

    /// Puts this in the place of the record, in one step, for who has the lock.
    ///
    /// The two files change places. Where a new one takes the place of an old one, or an old one is
    /// cut to nothing and filled again, ext4 and others write it to the disk there and then, so that
    /// a crash leaves one of the two: that takes as long as half a knock. The record needs none of
    /// it: after a crash it may be damaged, or none.
    fn write(&self, text: &[u8]) -> io::Result<()> {
        let (file, spare) = (self.file(), self.spare());
        let mut new = spare_file(&spare)?;
        new.write_all(text)?;
        new.set_len(text.len().try_into().unwrap_or(u64::MAX))?;
        // Nobody has to wait for the record itself.
        new.unlock()?;
        system::exchange(&spare, &file).or_else(|_| fs::rename(&spare, &file))
    }
}

/// The record, and nobody else changes it.
pub(crate) struct Held<'a> {
    record: &'a Record,
    entries: Vec<Entry>,
    _lock: File,
}

impl Held<'_> {
    pub(crate) fn entries(&self) -> Vec<Entry> {
        still_open(self.entries.clone())
    }

    /// Adds entries, each in the place of an older one about the same, whose time goes on if it is
    /// the longer one.
    pub(crate) fn add(self, mut new: Vec<Entry>) {
        self.change(|entries| {
            for new in &mut new {
                if let Some(old) = entries.iter().find(|old| old.is_like(new)) {
                    new.outlive(old);
                }
            }
            replace(entries, new);
        });
    }

    /// The same where the older ones turned out not to hold.
    pub(crate) fn add_anew(self, new: Vec<Entry>) {
        self.change(|entries| replace(entries, new));
    }

    /// Changes what is there. What can't be written is left out: then everybody knocks.
    pub(crate) fn change(self, change: impl FnOnce(&mut Vec<Entry>)) {
        let Self { record, entries, _lock } = self;
        let mut entries = still_open(entries);
        change(&mut entries);
        let excess = entries.len().saturating_sub(MAX_ENTRIES);
        entries.drain(..excess);
        let written = serde_json::to_vec(&entries).map_err(Into::into);
        if written.and_then(|text| record.write(&text)).is_err() {
            // An old record must not stand for what it doesn't know: a close, say.
            let _ = fs::remove_file(record.file());
        }
    }
}

/// What is not over.
fn still_open(mut entries: Vec<Entry>) -> Vec<Entry> {
    let now = Moment::now();
    entries.retain(|entry| entry.left(now).is_some());
    entries
}

fn replace(entries: &mut Vec<Entry>, new: Vec<Entry>) {
    entries.retain(|old| !new.iter().any(|new| new.is_like(old)));
    entries.extend(new);
}

/// Reads the record while others may change it.
fn read_unlocked(path: &Path) -> Option<Vec<Entry>> {
    for _ in 0..MAX_LOOKS {
        let file = File::open(path).ok()?;
        // Else it is written over already: another one is the record by now.
        if !matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)) {
            return read(file);
        }
    }
    None
}

fn read(file: File) -> Option<Vec<Entry>> {
    let length = file.metadata().ok()?.len();
    if length > MAX_FILE {
        return None;
    }
    let mut text = Vec::with_capacity(usize::try_from(length).ok()?.saturating_add(1));
    file.take(MAX_FILE).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Opens the spare file to be written, and keeps away whoever still reads it as the record of
/// before. Where that can't be, or where it is none of ours, another one takes its place.
fn spare_file(path: &Path) -> io::Result<File> {
    if fs::symlink_metadata(path).is_ok_and(|found| system::is_for_owner_only(&found))
        && let Ok(file) = private(path)
        && file.try_lock().is_ok()
    {
        return Ok(file);
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => private(path),
    }
}

/// Opens a file for writing that only its owner can read.
fn private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true);
    system::for_owner_only(&mut options);
    options.open(path)
}

#[cfg(test)]
mod tests;
