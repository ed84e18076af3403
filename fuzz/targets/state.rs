//! The files of the state directory: the first byte picks one. Those that came later have the highest
//! values, so that what was found before keeps its meaning.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ring::rand::SystemRandom;
use spa_keys::{KeepingKey, KeptSecrets, PrivateKey, pair_secret_for_server};
use spa_proto::{ClientId, Nonce, UnixMicros};
use spa_server::clock::BootMicros;
use spa_server::enrolment::EnrolmentStore;
use spa_server::grants::FileGrantStore;
use spa_server::last_gate::LastGateFile;
use spa_server::refused_sources::{MOST, RefusedSourcesFile};
use spa_server::replay_store::{BootId, Condition, Entry, FileStore, Mark, ReplayStore, Snapshot};
use spa_server::trial::TrialFile;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

const BOOT: BootId = BootId([1; 16]);

/// `fuzz/run` says where.
static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
    let there = std::env::var_os("SPA_FUZZ_STATE").map_or_else(std::env::temp_dir, PathBuf::from);
    let directory = there.join("spa-fuzz-state");
    fs::create_dir_all(&directory).unwrap();
    fs::set_permissions(&directory, Permissions::from_mode(0o700)).unwrap();
    directory
});

fuzz_target!(|input: &[u8]| {
    let Some((which, bytes)) = input.split_first() else { return };
    let write = |name: &str| {
        let path = DIRECTORY.join(name);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        path
    };
    match which {
        254 => {
            write("refused-sources");
            refused();
        }
        255 => damaged_secrets(bytes),
        _ => of_before(which % 5, bytes, write),
    }
});

fn of_before(which: u8, bytes: &[u8], write: impl Fn(&str) -> PathBuf) {
    match which {
        0 => damaged_replay(&DIRECTORY.join("replay.log"), bytes),
        1 => grants(&write("grants.log")),
        2 => {
            write("enrolments");
            let _ = EnrolmentStore::read(&DIRECTORY);
        }
        3 => {
            write("last-gate");
            let _ = LastGateFile::new(&DIRECTORY).read();
        }
        _ => {
            write("trial");
            let _ = TrialFile::new(&DIRECTORY, BOOT).read(BootMicros(1_000_000));
        }
    }
}

/// Who is refused is so after the next start as well, and no longer.
fn refused() {
    let (file, now) = (RefusedSourcesFile::new(&DIRECTORY, BOOT), BootMicros(1_000_000));
    let Ok(refused) = file.read(now) else { return };
    assert!(refused.iter(now).count() <= MOST);
    file.write(&refused).unwrap();
    assert_eq!(file.read(now).unwrap(), refused);
    for (source, until) in refused.iter(now) {
        let (_, last) = refused.refusing(source, now).unwrap();
        assert!(until > now && last >= until);
    }
}

/// Pair secrets that were kept, and then damaged: they are good for nothing.
fn damaged_secrets(changes: &[u8]) {
    static KEPT: LazyLock<(KeepingKey, Vec<u8>)> = LazyLock::new(|| {
        let server = PrivateKey::from_bytes([3; 32].into());
        let key = KeepingKey::of(&server);
        let clients = (1..=3).map(|seed| PrivateKey::from_bytes([seed * 16; 32].into()).public());
        let secrets: Vec<_> = clients
            .map(|client| {
                let secret = pair_secret_for_server(&server, &client, None).unwrap();
                (key.id(&server.public(), &client, None), secret)
            })
            .collect();
        let secrets = secrets.iter().map(|(id, secret)| (*id, secret));
        let file = KeptSecrets::of(secrets, Vec::new()).seal(&key, &SystemRandom::new()).unwrap();
        (key, file)
    });
    let (key, whole) = &*KEPT;
    let damaged = damaged(whole, changes);
    let is_whole = damaged == *whole;
    let opened = KeptSecrets::open(damaged, key);
    assert_eq!(opened.is_ok(), is_whole);
    assert!(opened.is_ok_and(|kept| kept.len() == 3) || !is_whole);
}

/// Three bytes each: where, and which bits are changed there; or, if none, that it ends there.
fn damaged(whole: &[u8], changes: &[u8]) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for change in changes.chunks_exact(3) {
        let at = usize::from(change[0]) << 8 | usize::from(change[1]);
        match bytes.len() {
            0 => {}
            length if change[2] == 0 => bytes.truncate(at % length),
            length => bytes[at % length] ^= change[2],
        }
    }
    bytes
}

/// A store that was written, and then damaged: what is read of it is the beginning of what was
/// written, and it is not called whole.
fn damaged_replay(path: &Path, input: &[u8]) {
    let (how_many, input) = input.split_first().unwrap_or((&0, &[]));
    let entries: Vec<Entry> = (0..how_many % 12)
        .map(|n| match n % 3 {
            0 => Entry::Floor { client: ClientId([n; 32]), floor: UnixMicros(n.into()) },
            _ => Entry::Remembered {
                client: ClientId([n % 2; 32]),
                nonce: Nonce([n; 24]),
                stamp: UnixMicros(900 + u64::from(n)),
            },
        })
        .collect();
    let state = Snapshot { entries, ..Snapshot::default() };
    // A leftover of the run before is in the way of nobody.
    let _ = fs::remove_file(path);
    let (mut store, _, _) = FileStore::load(path, BOOT);
    store.rewrite(&state, Mark::InUse).unwrap();
    let whole = fs::read(path).unwrap();
    let bytes = damaged(&whole, input);
    fs::write(path, &bytes).unwrap();
    let (_, read, condition) = FileStore::load(path, BOOT);
    assert!(state.entries.starts_with(&read.entries), "{:?} of {:?}", read.entries, state.entries);
    if bytes == whole {
        assert_eq!((read, condition), (state, Condition::Whole));
    } else {
        assert!(matches!(condition, Condition::Damaged(_)), "{condition:?}");
    }
}

/// A second start reads what the first one has made of it.
fn grants(path: &Path) {
    let directory = path.parent().unwrap();
    let (store, first) = FileGrantStore::open(directory, "boot").unwrap();
    drop(store);
    let (_, second) = FileGrantStore::open(directory, "boot").unwrap();
    assert_eq!(first.grants, second.grants);
}
