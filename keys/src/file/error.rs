//! What can be wrong with a key file, and what to do about it.

use crate::{KeyKind, KeyTextError, PassphraseError, StoredKeysError};
use std::io;
use std::path::PathBuf;

/// Why a key file was not read or written.
///
/// What [`Display`](core::fmt::Display) writes is complete: the underlying error is part of it,
/// and not its [`source`](core::error::Error::source) as well.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// There is no such file.
    #[error("there is no key file {}; create the key first, or correct the path", path.display())]
    NotFound {
        /// The key file.
        path: PathBuf,
    },
    /// The path's last component is a symbolic link.
    #[error(
        "the key file {} is a symbolic link, which is not followed; name the file itself",
        path.display()
    )]
    SymbolicLink {
        /// The key file.
        path: PathBuf,
    },
    /// A directory, a named pipe, a device.
    #[error("{} is {found}, not a key file; name a regular file", path.display())]
    NotAFile {
        /// The path that was given.
        path: PathBuf,
        /// What it is, with its article.
        found: &'static str,
    },
    /// The file belongs to another user, who could read and change it.
    #[error(
        "the key file {path} belongs to user id {owner}, not to user id {user}, which this program runs as, nor to root; if nobody else can have read it: chown {user} {path}, else make a new key",
        path = path.display()
    )]
    Owner {
        /// The key file.
        path: PathBuf,
        /// The user id that owns the file.
        owner: u32,
        /// The effective user id of this process.
        user: u32,
    },
    /// Others than the owner can read or write the file.
    #[error(
        "the key file {path} is open to other users (mode {mode:04o}); if none of them can have read it: chmod 600 {path}, else make a new key",
        path = path.display()
    )]
    Mode {
        /// The key file.
        path: PathBuf,
        /// The permission bits.
        mode: u32,
    },
    /// Longer than such a file is.
    #[error(
        "{} is longer than {limit} bytes, so it is no key file; correct the path",
        path.display()
    )]
    TooLong {
        /// The key file.
        path: PathBuf,
        /// The longest file that is read, in bytes.
        limit: usize,
    },
    /// Not UTF-8.
    #[error("{} is no text file; a {wanted} file holds one line {}…", path.display(), wanted.prefix())]
    NotText {
        /// The key file.
        path: PathBuf,
        /// The kind of key that was expected.
        wanted: KeyKind,
    },
    /// Only comments and blank lines.
    #[error("there is no key in {}; a {wanted} file holds one line {}…", path.display(), wanted.prefix())]
    NoKey {
        /// The key file.
        path: PathBuf,
        /// The kind of key that was expected.
        wanted: KeyKind,
    },
    /// More than one line that is neither blank nor a comment.
    #[error(
        "{}, line {line}: a key file holds one key; remove the line or put # in front of it",
        path.display()
    )]
    SecondKey {
        /// The key file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
    },
    /// The line is not the text of the key that is wanted.
    #[error("{}, line {line}: {error}", path.display())]
    Key {
        /// The key file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        error: KeyTextError,
    },
    /// Two keys of a kind in a client's file.
    #[error("{}, {error}", path.display())]
    Keys {
        /// The key file.
        path: PathBuf,
        /// What is wrong with it.
        error: StoredKeysError,
    },
    /// A file of a passphrase that can't be one.
    #[error("the passphrase in {} can't be used: {error}", path.display())]
    Passphrase {
        /// The file.
        path: PathBuf,
        /// Why.
        error: PassphraseError,
    },
    /// A file of a passphrase with more than one line.
    #[error("{} has several lines; a passphrase is the only line of its file", path.display())]
    Lines {
        /// The file.
        path: PathBuf,
    },
    /// There is a file of that name already, and it was not to be replaced.
    #[error("{} exists already and is left as it is; remove it or choose another name", path.display())]
    Exists {
        /// The key file.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("can't {action} {}: {error}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or the directory.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
}
