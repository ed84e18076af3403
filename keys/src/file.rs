//! Key files: one key as text, with comments (`#`) and blank lines around it. A client's may hold a
//! pre-shared key beside the private one ([`StoredKeys`]).
//!
//! A file is opened once, and judged by what was opened: a regular file, no symbolic link, at
//! most [`MAX_KEY_FILE_LENGTH`]; for secret keys also the owner and the mode. It is written under
//! another name in the same directory, synced, and then given its name in one step, so that
//! nobody ever sees half a key file. On systems other than Unix, owner and mode are not looked at.

use crate::{
    ClientKeys, InvitationSecret, KeyKind, KeyTextError, Passphrase, PreSharedKey, PrivateKey,
    PublicKey, StoredKeys, StoredKeysError, StoredPreSharedKey,
};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use zeroize::Zeroizing;

mod error;
#[cfg_attr(unix, path = "file/unix.rs")]
#[cfg_attr(not(unix), path = "file/portable.rs")]
mod system;

pub use error::KeyFileError;

/// The longest key file that is read, in bytes.
pub const MAX_KEY_FILE_LENGTH: usize = 4096;
/// Names tried for the temporary file before giving up.
const TEMPORARY_NAMES: u32 = 64;

/// What to do when there is a file of that name already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overwrite {
    /// Leave it untouched and fail with [`KeyFileError::Exists`].
    Refuse,
    /// Put the new file in its place.
    Replace,
}

/// Reads a private key from a file that nobody but its owner can read or write.
pub fn read_private_key(path: impl AsRef<Path>) -> Result<PrivateKey, KeyFileError> {
    KeyReader::default().private_key(path)
}

/// Reads a pre-shared key from a file that nobody but its owner can read or write.
pub fn read_pre_shared_key(path: impl AsRef<Path>) -> Result<PreSharedKey, KeyFileError> {
    KeyReader::default().pre_shared_key(path)
}

/// Reads the secret of an invitation from a file that nobody but its owner can read or write.
pub fn read_invitation_secret(path: impl AsRef<Path>) -> Result<InvitationSecret, KeyFileError> {
    KeyReader::default().invitation_secret(path)
}

/// Reads a public key from a file. Whose it is and who may read it is not looked at.
pub fn read_public_key(path: impl AsRef<Path>) -> Result<PublicKey, KeyFileError> {
    read(path.as_ref(), KeyKind::Public, KeyReader::default())
}

/// Reads secret keys of a daemon that is not root: the keys are its own, or root's who lets it read them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeyReader {
    daemon: Option<Daemon>,
}

/// The user of a daemon, and the group that is his own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Daemon {
    user: u32,
    group: u32,
}

impl KeyReader {
    /// Files may also belong to the user of this id; and root's may also be read by that group, and by
    /// root's own.
    pub const fn for_daemon(user: u32, group: u32) -> Self {
        Self { daemon: Some(Daemon { user, group }) }
    }

    /// Reads a private key.
    pub fn private_key(self, path: impl AsRef<Path>) -> Result<PrivateKey, KeyFileError> {
        read(path.as_ref(), KeyKind::Private, self)
    }

    /// Reads a pre-shared key.
    pub fn pre_shared_key(self, path: impl AsRef<Path>) -> Result<PreSharedKey, KeyFileError> {
        read(path.as_ref(), KeyKind::PreShared, self)
    }

    /// Reads the secret of an invitation.
    pub fn invitation_secret(
        self,
        path: impl AsRef<Path>,
    ) -> Result<InvitationSecret, KeyFileError> {
        read(path.as_ref(), KeyKind::Invitation, self)
    }
}

/// Reads a client's keys, plain or under a passphrase, from a file that nobody but its owner can
/// read or write. The public key needs no passphrase.
pub fn read_stored_keys(path: impl AsRef<Path>) -> Result<StoredKeys, KeyFileError> {
    let path = path.as_ref();
    let wanted = KeyKind::Private;
    let bytes = read_checked(path, Audience::Owner, MAX_KEY_FILE_LENGTH)?;
    text(&bytes, path, wanted)?.parse().map_err(|error| {
        let path = path.into();
        match error {
            StoredKeysError::NoKey => KeyFileError::NoKey { path, wanted },
            StoredKeysError::Key { line, error } => KeyFileError::Key { path, line, error },
            error @ StoredKeysError::Second { .. } => KeyFileError::Keys { path, error },
        }
    })
}

/// Reads a pre-shared key, plain or under a passphrase, from a file that nobody but its owner can
/// read or write.
pub fn read_stored_pre_shared_key(
    path: impl AsRef<Path>,
) -> Result<StoredPreSharedKey, KeyFileError> {
    read(path.as_ref(), KeyKind::PreShared, KeyReader::default())
}

/// Reads a passphrase from a file that nobody but its owner can read or write: its only line.
pub fn read_passphrase(path: impl AsRef<Path>) -> Result<Passphrase, KeyFileError> {
    let path = path.as_ref();
    let mut bytes = read_checked(path, Audience::Owner, MAX_KEY_FILE_LENGTH)?;
    for end in [b'\n', b'\r'] {
        if bytes.last() == Some(&end) {
            bytes.pop();
        }
    }
    if bytes.contains(&b'\n') {
        return Err(KeyFileError::Lines { path: path.into() });
    }
    Passphrase::new(bytes).map_err(|error| KeyFileError::Passphrase { path: path.into(), error })
}

/// Reads a text that holds secrets, of at most `limit` bytes, from a file that nobody but its
/// owner can read or write.
pub fn read_secret_text(
    path: impl AsRef<Path>,
    limit: usize,
) -> Result<Zeroizing<String>, KeyFileError> {
    let path = path.as_ref();
    let bytes = read_checked(path, Audience::Owner, limit)?;
    Ok(Zeroizing::new(text(&bytes, path, KeyKind::Private)?.to_owned()))
}

/// Writes a private key, mode 0600, with its public key in a comment.
pub fn write_private_key(
    path: impl AsRef<Path>,
    key: &PrivateKey,
    overwrite: Overwrite,
) -> Result<(), KeyFileError> {
    let keys = ClientKeys { private: key.again(), pre_shared: None };
    write_stored_keys(path, &StoredKeys::plain(keys), overwrite)
}

/// Writes a client's keys, plain or encrypted as they are, mode 0600, in one step: after a crash
/// or on a full disk there is the old file or the new one.
pub fn write_stored_keys(
    path: impl AsRef<Path>,
    keys: &StoredKeys,
    overwrite: Overwrite,
) -> Result<(), KeyFileError> {
    write(path.as_ref(), &keys.to_text(), Audience::Owner, overwrite)
}

/// Writes a pre-shared key, plain or encrypted as it is, mode 0600, likewise.
pub fn write_stored_pre_shared_key(
    path: impl AsRef<Path>,
    key: &StoredPreSharedKey,
    overwrite: Overwrite,
) -> Result<(), KeyFileError> {
    let content = content(
        "# Pre-shared key for single-packet authorization, for one client and one server only.\n",
        &key.to_text(),
    );
    write(path.as_ref(), &content, Audience::Owner, overwrite)
}

/// Writes a text that holds secrets, mode 0600, likewise.
pub fn write_secret_text(
    path: impl AsRef<Path>,
    text: &str,
    overwrite: Overwrite,
) -> Result<(), KeyFileError> {
    write(path.as_ref(), text, Audience::Owner, overwrite)
}

/// Writes a pre-shared key, mode 0600.
pub fn write_pre_shared_key(
    path: impl AsRef<Path>,
    key: &PreSharedKey,
    overwrite: Overwrite,
) -> Result<(), KeyFileError> {
    write_stored_pre_shared_key(path, &StoredPreSharedKey::Plain(key.again()), overwrite)
}

/// Writes the secret of an invitation, mode 0600.
pub fn write_invitation_secret(
    path: impl AsRef<Path>,
    secret: &InvitationSecret,
    overwrite: Overwrite,
) -> Result<(), KeyFileError> {
    let content = content(
        "# Secret of an invitation for single-packet authorization, for one client.\n",
        &secret.to_text(),
    );
    write(path.as_ref(), &content, Audience::Owner, overwrite)
}

/// Writes a public key, mode 0644.
pub fn write_public_key(
    path: impl AsRef<Path>,
    key: &PublicKey,
    overwrite: Overwrite,
) -> Result<(), KeyFileError> {
    let content = content("# Public key for single-packet authorization.\n", &key.to_string());
    write(path.as_ref(), &content, Audience::Everybody, overwrite)
}

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Audience {
    Owner,
    Everybody,
}

impl Audience {
    const fn of(kind: KeyKind) -> Self {
        if kind.is_secret() { Self::Owner } else { Self::Everybody }
    }
}

fn read<K: FromStr<Err = KeyTextError>>(
    path: &Path,
    wanted: KeyKind,
    reader: KeyReader,
) -> Result<K, KeyFileError> {
    let bytes = read_for(reader, path, Audience::of(wanted), MAX_KEY_FILE_LENGTH)?;
    let (line, key) = key_line(text(&bytes, path, wanted)?, path, wanted)?;
    key.parse().map_err(|error| KeyFileError::Key { path: path.into(), line, error })
}

fn read_checked(
    path: &Path,
    audience: Audience,
    limit: usize,
) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    read_for(KeyReader::default(), path, audience, limit)
}

fn read_for(
    reader: KeyReader,
    path: &Path,
    audience: Audience,
    limit: usize,
) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    let file = open(path)?;
    let metadata = file.metadata().map_err(|error| io_error("examine", path, error))?;
    if !metadata.is_file() {
        let found = system::type_name(&metadata);
        return Err(KeyFileError::NotAFile { path: path.into(), found });
    }
    if audience == Audience::Owner {
        system::check_owner_and_mode(path, &metadata, reader.daemon)?;
    }
    read_bounded(file, path, limit)
}

fn text<'a>(bytes: &'a [u8], path: &Path, wanted: KeyKind) -> Result<&'a str, KeyFileError> {
    core::str::from_utf8(bytes).map_err(|_| KeyFileError::NotText { path: path.into(), wanted })
}

fn open(path: &Path) -> Result<File, KeyFileError> {
    system::open_options().open(path).map_err(|error| {
        // The file is not opened: what it is now only serves the message.
        match fs::symlink_metadata(path) {
            Ok(found) if found.is_symlink() => KeyFileError::SymbolicLink { path: path.into() },
            Ok(found) if !found.is_file() && !found.is_dir() => {
                KeyFileError::NotAFile { path: path.into(), found: system::type_name(&found) }
            }
            _ if error.kind() == io::ErrorKind::NotFound => {
                KeyFileError::NotFound { path: path.into() }
            }
            _ => io_error("open", path, error),
        }
    })
}

/// Reads the whole file. The buffer is allocated once, so that no piece of a key stays behind.
fn read_bounded(file: File, path: &Path, limit: usize) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    let room = limit.saturating_add(1);
    let mut file = file.take(u64::try_from(room).unwrap_or(u64::MAX));
    let mut buffer = Zeroizing::new(vec![0; room]);
    let mut length: usize = 0;
    loop {
        let space = buffer.get_mut(length..).unwrap_or_default();
        match file.read(space) {
            Ok(0) => break,
            Ok(count) => length = length.saturating_add(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(io_error("read", path, error)),
        }
    }
    if length > limit {
        return Err(KeyFileError::TooLong { path: path.into(), limit });
    }
    buffer.truncate(length);
    Ok(buffer)
}

/// The one line that is neither blank nor a comment, and its number.
fn key_line<'a>(
    text: &'a str,
    path: &Path,
    wanted: KeyKind,
) -> Result<(usize, &'a str), KeyFileError> {
    let mut lines = (1..)
        .zip(text.lines().map(str::trim))
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let Some(first) = lines.next() else {
        return Err(KeyFileError::NoKey { path: path.into(), wanted });
    };
    match lines.next() {
        Some((line, _)) => Err(KeyFileError::SecondKey { path: path.into(), line }),
        None => Ok(first),
    }
}

fn content(comment: &str, key: &str) -> Zeroizing<String> {
    let length = comment.len().saturating_add(key.len()).saturating_add(1);
    let mut content = Zeroizing::new(String::with_capacity(length));
    content.push_str(comment);
    content.push_str(key);
    content.push('\n');
    content
}

fn write(
    path: &Path,
    content: &str,
    audience: Audience,
    overwrite: Overwrite,
) -> Result<(), KeyFileError> {
    let Some((directory, name)) = directory_and_name(path) else {
        return Err(KeyFileError::NotAFile { path: path.into(), found: "a directory" });
    };
    let (mut file, temporary) = Temporary::create(directory, name, audience)?;
    file.write_all(content.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(|error| io_error("write", &temporary.0, error))?;
    drop(file);
    match overwrite {
        Overwrite::Replace => fs::rename(&temporary.0, path),
        // A second name for the same file: fails when there is a file of that name, whatever it is.
        Overwrite::Refuse => fs::hard_link(&temporary.0, path),
    }
    .map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists if overwrite == Overwrite::Refuse => {
            KeyFileError::Exists { path: path.into() }
        }
        _ => io_error("create", path, error),
    })?;
    drop(temporary);
    system::sync_directory(directory).map_err(|error| io_error("sync", directory, error))
}

fn directory_and_name(path: &Path) -> Option<(&Path, &OsStr)> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    Some((directory.unwrap_or(Path::new(".")), path.file_name()?))
}

/// The path of a temporary file, which is removed in the end unless it was renamed.
struct Temporary(PathBuf);

impl Temporary {
    fn create(
        directory: &Path,
        name: &OsStr,
        audience: Audience,
    ) -> Result<(File, Self), KeyFileError> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let failed = |error| io_error("create a file in", directory, error);
        for _ in 0..TEMPORARY_NAMES {
            let mut temporary = OsString::from(".");
            temporary.push(name);
            let count = COUNTER.fetch_add(1, Ordering::Relaxed);
            temporary.push(format!(".{}-{count}.tmp", std::process::id()));
            let path = directory.join(temporary);
            match system::create(&path) {
                Ok(file) => {
                    let temporary = Self(path);
                    system::set_audience(&file, audience).map_err(failed)?;
                    return Ok((file, temporary));
                }
                // Left over from a crash, or somebody else's: neither touched nor followed.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Err(failed(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "too many temporary files lie there already",
        )))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Gone already after a rename.
        let _ = fs::remove_file(&self.0);
    }
}

fn io_error(action: &'static str, path: &Path, error: io::Error) -> KeyFileError {
    KeyFileError::Io { action, path: path.into(), error }
}

#[cfg(test)]
#[cfg(unix)]
mod tests;
