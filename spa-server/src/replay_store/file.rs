//! The store of one machine: an append-only file that is written anew now and then.

use super::record::{Chain, HEADER_LENGTH, Header, RECORD_LENGTH};
use super::{BootId, Condition, Entry, Mark, ReplayStore, Snapshot, StoreError};
use crate::users::give_to_owner_of;
use spa_proto::Accepted;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Below this many records a rewrite is not worth it.
const BLOAT_AT_LEAST: u64 = 16 * 1024;
/// A store of more than this is not ours.
const MAX_BYTES: u64 = 1 << 30;

/// See the module's text.
pub struct FileStore {
    path: PathBuf,
    boot: BootId,
    /// `None`: broken; only a rewrite mends it.
    open: Option<Open>,
}

/// What tells a file from every other one, for as long as it is open: device and inode.
type FileId = (u64, u64);

/// A file that is as its header says.
struct Open {
    file: File,
    id: FileId,
    header: Header,
    chain: Chain,
    /// Records at the last rewrite.
    compact: u64,
}

impl FileStore {
    /// Reads what an earlier server left. The store can be appended to after the first
    /// [`rewrite`](ReplayStore::rewrite).
    pub fn load(path: &Path, boot: BootId) -> (Self, Snapshot, Condition) {
        let (snapshot, condition) = match read(path) {
            Ok(None) => (Snapshot::default(), Condition::Missing),
            Ok(Some(bytes)) => parse(&bytes, boot),
            Err(error) => (Snapshot::default(), Condition::Damaged(error.to_string())),
        };
        (Self { path: path.into(), boot, open: None }, snapshot, condition)
    }

    fn write_error(&self, source: io::Error) -> StoreError {
        StoreError::Write { path: self.path.clone(), source }
    }

    fn write_anew(&self, state: &Snapshot, mark: Mark) -> io::Result<Open> {
        let count = u64::try_from(state.entries.len()).unwrap_or(u64::MAX);
        let clean = mark == Mark::Clean;
        let freshness = state.freshness.as_secs();
        let header = Header { boot: self.boot, clean, count, barrier: state.barrier, freshness };
        let mut chain = Chain::default();
        let mut bytes = header.encode().to_vec();
        bytes.reserve(state.entries.len().saturating_mul(RECORD_LENGTH));
        for entry in &state.entries {
            chain.push(entry, &mut bytes);
        }

        let temporary = self.path.with_extension("new");
        let written = (|| {
            // A leftover of a crash; `create_new` then refuses whatever else may be there.
            match std::fs::remove_file(&temporary) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&temporary)?;
            if let Some(directory) = self.path.parent() {
                give_to_owner_of(directory, &file)?;
            }
            file.write_all(&bytes)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &self.path)?;
            if let Some(directory) = self.path.parent() {
                File::open(directory)?.sync_all()?;
            }
            Ok(file)
        })();
        if written.is_err() {
            // The error that matters is the first one.
            let _ = std::fs::remove_file(&temporary);
        }
        let file = written?;
        let id = id_of(&file.metadata()?);
        Ok(Open { file, id, header, chain, compact: count })
    }
}

impl ReplayStore for FileStore {
    fn append(&mut self, accepted: &[Accepted]) -> Result<(), StoreError> {
        // What is written to a file that is not the one of that name is gone after a restart.
        let Some(mut open) = self.open.take().filter(|open| open.has_a_name(&self.path)) else {
            return Err(StoreError::Broken { path: self.path.clone() });
        };
        // Put back only when all went well: a store whose write failed half way stays broken.
        open.append(accepted).map_err(|error| self.write_error(error))?;
        self.open = Some(open);
        Ok(())
    }

    fn rewrite(&mut self, state: &Snapshot, mark: Mark) -> Result<(), StoreError> {
        match self.write_anew(state, mark) {
            Ok(open) => {
                self.open = Some(open);
                Ok(())
            }
            // The old file still is as its header says, and goes on if it was whole and has its
            // name still.
            Err(error) => Err(self.write_error(error)),
        }
    }

    fn is_broken(&self) -> bool {
        self.open.as_ref().is_none_or(|open| !open.is_at(&self.path))
    }

    fn is_bloated(&self) -> bool {
        self.open.as_ref().is_some_and(|open| {
            open.header.count > BLOAT_AT_LEAST.max(open.compact.saturating_mul(4))
        })
    }
}

impl Open {
    /// Whether this is the file that a restart would find at `path`: it may have been deleted or
    /// replaced, or a rewrite failed after it had taken the name away.
    fn is_at(&self, path: &Path) -> bool {
        std::fs::symlink_metadata(path).is_ok_and(|there| id_of(&there) == self.id)
    }

    /// Whether it was not deleted or replaced, which takes less time than [`Self::is_at`], if the file
    /// system counts names. That it was moved is found out by [`ReplayStore::is_broken`], within a
    /// second; a restart before that finds no file and puts up a barrier, unless root has put an older
    /// one in its place, too.
    fn has_a_name(&self, path: &Path) -> bool {
        self.file.metadata().is_ok_and(|metadata| metadata.nlink() > 0) || self.is_at(path)
    }

    /// The count goes first, so that a crash between the two writes makes a file that looks cut,
    /// never one that looks whole and is not.
    fn append(&mut self, accepted: &[Accepted]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(accepted.len().saturating_mul(RECORD_LENGTH));
        for entry in accepted.iter().flat_map(Entry::of) {
            self.chain.push(&entry, &mut bytes);
        }
        let record = RECORD_LENGTH as u64;
        let end = HEADER_LENGTH as u64 + self.header.count * record;
        self.header.count += bytes.len() as u64 / record;
        self.file.write_all_at(&self.header.encode(), 0)?;
        self.file.write_all_at(&bytes, end)
    }
}

fn id_of(metadata: &Metadata) -> FileId {
    (metadata.dev(), metadata.ino())
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

fn parse(bytes: &[u8], boot: BootId) -> (Snapshot, Condition) {
    let damaged = |what: &str| Condition::Damaged(what.into());
    let Some((header, body)) = bytes
        .split_at_checked(HEADER_LENGTH)
        .and_then(|(head, body)| Some((Header::decode(head)?, body)))
    else {
        return (Snapshot::default(), damaged("its header is not one of ours, or was changed"));
    };
    let mut chain = Chain::default();
    let entries: Vec<Entry> =
        body.chunks(RECORD_LENGTH).map_while(|record| chain.next(record)).collect();
    let expected = usize::try_from(header.count).ok().and_then(|n| n.checked_mul(RECORD_LENGTH));
    let whole = expected == Some(body.len()) && entries.len() * RECORD_LENGTH == body.len();
    let condition = if !whole {
        damaged(&format!("{} of {} records are whole", entries.len(), header.count))
    } else if header.clean || header.boot == boot {
        Condition::Whole
    } else {
        Condition::UncleanBoot
    };
    let freshness = Duration::from_secs(header.freshness);
    (Snapshot { entries, barrier: header.barrier, freshness }, condition)
}

#[cfg(test)]
mod tests {
    use super::*;
    use spa_proto::{ClientId, Closed, Nonce, UnixMicros};

    const BOOT: BootId = BootId([1; 16]);
    const NEXT_BOOT: BootId = BootId([2; 16]);

    fn knock(n: u8) -> Accepted {
        let closed = if n.is_multiple_of(3) { vec!["tcp/22".parse().unwrap()] } else { Vec::new() };
        Accepted {
            client: ClientId([n % 2; 32]),
            nonce: Nonce([n; 24]),
            stamp: UnixMicros(1_000 + u64::from(n)),
            closed,
        }
    }

    fn entries(knocks: std::ops::Range<u8>) -> Vec<Entry> {
        knocks.flat_map(|n| Entry::of(&knock(n)).collect::<Vec<_>>()).collect()
    }

    /// A store with the knocks 0 to 4 appended after a rewrite that held `first`.
    fn filled(path: &Path, first: &Snapshot) -> FileStore {
        let (mut store, _, _) = FileStore::load(path, BOOT);
        store.rewrite(first, Mark::InUse).unwrap();
        store.append(&[knock(0), knock(1)]).unwrap();
        store.append(&[knock(2), knock(3)]).unwrap();
        store
    }

    #[test]
    fn what_was_appended_is_read_back_after_a_crash_in_the_same_boot() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("replay.log");
        let first = Snapshot {
            entries: vec![Entry::Floor { client: ClientId([7; 32]), floor: UnixMicros(5) }],
            barrier: UnixMicros(9),
            freshness: Duration::from_secs(60),
        };
        drop(filled(&path, &first));
        let (_, snapshot, condition) = FileStore::load(&path, BOOT);
        assert_eq!(condition, Condition::Whole);
        assert_eq!(snapshot.barrier, UnixMicros(9));
        assert_eq!(snapshot.entries, [first.entries, entries(0..4)].concat());
    }

    #[test]
    fn after_a_power_failure_a_barrier_is_due_and_after_a_clean_stop_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("replay.log");
        assert_eq!(FileStore::load(&path, BOOT).2, Condition::Missing);
        let mut store = filled(&path, &Snapshot::default());
        assert_eq!(FileStore::load(&path, NEXT_BOOT).2, Condition::UncleanBoot);
        let state =
            Snapshot { entries: entries(0..4), barrier: UnixMicros(1), ..Snapshot::default() };
        store.rewrite(&state, Mark::Clean).unwrap();
        let (_, snapshot, condition) = FileStore::load(&path, NEXT_BOOT);
        assert_eq!((snapshot, condition), (state, Condition::Whole));
    }

    #[test]
    fn a_file_cut_anywhere_is_damaged() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("replay.log");
        drop(filled(&path, &Snapshot::default()));
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            let (_, condition) = parse(&whole[..length], BOOT);
            assert!(matches!(condition, Condition::Damaged(_)), "cut to {length}: {condition:?}");
        }
        assert_eq!(parse(&whole, BOOT).1, Condition::Whole);
    }

    #[test]
    fn a_flipped_bit_anywhere_is_damage_or_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("replay.log");
        drop(filled(&path, &Snapshot::default()));
        let whole = std::fs::read(&path).unwrap();
        let sound = parse(&whole, BOOT);
        for at in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[at / 8] ^= 1 << (at % 8);
            let (_, condition) = parse(&flipped, BOOT);
            assert!(matches!(condition, Condition::Damaged(_)), "bit {at}: {condition:?}");
        }
        assert_eq!(sound.1, Condition::Whole);
    }

    #[test]
    fn a_store_that_can_not_be_written_stays_broken_until_it_is_rewritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("replay.log");
        let mut store = filled(&path, &Snapshot::default());
        assert!(!store.is_broken());
        // The kernel refuses writes to a descriptor that was opened for reading.
        store.open.as_mut().unwrap().file = File::open(&path).unwrap();
        assert!(store.append(&[knock(5)]).is_err());
        assert!(store.is_broken());
        assert!(matches!(store.append(&[knock(6)]), Err(StoreError::Broken { .. })));
        store
            .rewrite(&Snapshot { entries: entries(0..4), ..Snapshot::default() }, Mark::InUse)
            .unwrap();
        store.append(&[knock(7)]).unwrap();
        assert!(!store.is_broken());
        assert_eq!(FileStore::load(&path, BOOT).2, Condition::Whole);
    }

    #[test]
    fn nothing_is_appended_to_a_file_that_was_deleted_or_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("replay.log");
        let aside = directory.path().join("aside");
        let delete: &dyn Fn() = &|| std::fs::remove_file(&path).unwrap();
        let replace: &dyn Fn() = &|| {
            // As a rewrite that fails between the new name and the sync of the directory.
            std::fs::copy(&path, &aside).unwrap();
            std::fs::rename(&aside, &path).unwrap();
        };
        for take_away in [delete, replace] {
            let mut store = filled(&path, &Snapshot::default());
            take_away();
            assert!(store.is_broken());
            assert!(matches!(store.append(&[knock(5)]), Err(StoreError::Broken { .. })));
            store.rewrite(&Snapshot::default(), Mark::InUse).unwrap();
            store.append(&[knock(5)]).unwrap();
            assert_eq!(FileStore::load(&path, BOOT).1.entries, entries(5..6));
        }
    }

    #[test]
    fn a_file_that_was_moved_is_broken_and_a_restart_does_without() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("replay.log");
        let mut store = filled(&path, &Snapshot::default());
        std::fs::rename(&path, directory.path().join("aside")).unwrap();
        assert!(store.is_broken());
        // It goes there until somebody asks, and a restart finds nothing that looks whole.
        store.append(&[knock(5)]).unwrap();
        assert_eq!(FileStore::load(&path, BOOT).2, Condition::Missing);
        store.rewrite(&Snapshot::default(), Mark::InUse).unwrap();
        assert!(!store.is_broken());
    }

    #[test]
    fn noise_in_place_of_the_file_is_damage() {
        let noise: Vec<u8> =
            (0..4096u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
        assert!(matches!(parse(&noise, BOOT).1, Condition::Damaged(_)));
    }

    #[test]
    fn a_receiver_gets_back_what_it_had() {
        use spa_proto::{MaskKey, Receiver, Settings};
        let receiver = || Receiver::new(Settings::default(), MaskKey::new([0; 32]));
        let mut before = receiver();
        for n in 0..9 {
            before.restore(&knock(n));
        }
        before.restore_close(
            ClientId([1; 32]),
            Closed { ports: "udp/53-60".parse().unwrap(), stamp: UnixMicros(1_001) },
        );
        // A reset floor, with an id high above it.
        let future = Accepted { stamp: UnixMicros::from_secs(2_000_000_000), ..knock(10) };
        before.restore(&future);
        let floor = before.reset_window(future.client, UnixMicros::from_secs(1_000_000_000));
        assert!(before.windows().any(|(_, window)| {
            window.floor == floor && window.accepted == [(future.nonce, future.stamp)]
        }));
        before.set_barrier(UnixMicros(77));
        let mut after = receiver();
        Snapshot::of(&before).restore(&mut after);
        let sorted = |receiver: &Receiver| {
            let mut snapshot = Snapshot::of(receiver);
            snapshot.entries.sort();
            snapshot
        };
        assert_eq!(sorted(&before), sorted(&after));
    }
}
