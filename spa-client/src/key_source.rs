//! Where a client's keys are kept, and the one way to get at them.
//!
//! A key file, the output of a command (a password manager's), the desktop's secret service.
//! What they hold is the text of [`StoredKeys`], plain or under a passphrase. Nobody is asked for a
//! passphrase but through [`Unlock`]: who hands in none is never kept waiting.

mod command;
mod secret_service;

use crate::config::Config;
use core::fmt;
use core::str::FromStr;
use ring::rand::SystemRandom;
use spa_keys::{
    ClientKeys, Cost, DecryptError, EncryptError, KeyFileError, Overwrite, Passphrase,
    PassphraseError, PreSharedKey, StoredKeys, StoredKeysError, StoredPreSharedKey,
};
use std::io;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

pub use command::CommandError;
pub use secret_service::SecretServiceError;

/// What an `identity` begins with that is no file.
const SECRET_SERVICE: &str = "secret-service:";

/// Where keys are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// A key file.
    File(PathBuf),
    /// A program and its arguments, which prints the text of a key file. No shell is involved.
    Command(Vec<String>),
    /// An item of the desktop's secret service: its name.
    SecretService(SecretName),
}

impl KeySource {
    /// The file, where it is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Command(_) | Self::SecretService(_) => None,
        }
    }

    /// Takes `text` for an item of the secret service, or else for a file, which `file` finds.
    pub(crate) fn parse(
        text: &str,
        file: impl FnOnce(&Path) -> PathBuf,
    ) -> Result<Self, SecretNameError> {
        match text.strip_prefix(SECRET_SERVICE) {
            Some(name) => name.parse().map(Self::SecretService),
            None => Ok(Self::File(file(Path::new(text)))),
        }
    }

    /// The keys as they are stored there. Runs the command, asks the secret service.
    pub fn stored(&self) -> Result<StoredKeys, KeyError> {
        match self {
            Self::File(path) => spa_keys::read_stored_keys(path).map_err(|error| match error {
                KeyFileError::NotFound { path } => {
                    let keygen = keygen(&path);
                    KeyError::Missing { path, keygen }
                }
                other => other.into(),
            }),
            _ => self.text(str::parse),
        }
    }

    /// The keys, ready for use; `unlock` is asked for the passphrase when there is one.
    pub fn keys(&self, unlock: &mut dyn Unlock) -> Result<ClientKeys, KeyError> {
        match self.stored()?.open() {
            Ok(keys) => Ok(keys),
            Err(stored) => self.unlocked(unlock, |passphrase| stored.decrypt(passphrase)),
        }
    }

    /// A pre-shared key that is kept apart from the private key.
    pub fn pre_shared_key(&self, unlock: &mut dyn Unlock) -> Result<PreSharedKey, KeyError> {
        let stored = match self {
            Self::File(path) => spa_keys::read_stored_pre_shared_key(path)?,
            _ => self.text(one_line)?,
        };
        match stored {
            StoredPreSharedKey::Plain(key) => Ok(key),
            StoredPreSharedKey::Encrypted(key) => {
                self.unlocked(unlock, |passphrase| key.decrypt(passphrase))
            }
        }
    }

    /// Puts keys there, in one step: what was there, or all of the new. A command can't be
    /// written to.
    pub fn store(&self, keys: &StoredKeys, overwrite: Overwrite) -> Result<(), KeyError> {
        match self {
            Self::File(path) => Ok(spa_keys::write_stored_keys(path, keys, overwrite)?),
            Self::Command(_) => Err(KeyError::ReadOnly { place: self.to_string() }),
            Self::SecretService(name) => {
                Ok(secret_service::store(name, &keys.to_text(), overwrite)?)
            }
        }
    }

    /// Destroys the keys there, if there are any.
    pub fn remove(&self) -> Result<(), KeyError> {
        match self {
            Self::File(path) => match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(KeyFileError::Io { action: "remove", path: path.clone(), error }.into())
                }
                _ => Ok(()),
            },
            Self::Command(_) => Err(KeyError::ReadOnly { place: self.to_string() }),
            Self::SecretService(name) => match secret_service::remove(name) {
                Err(SecretServiceError::NotFound { .. }) | Ok(()) => Ok(()),
                Err(error) => Err(error.into()),
            },
        }
    }

    fn text<T>(
        &self,
        parse: impl FnOnce(&str) -> Result<T, StoredKeysError>,
    ) -> Result<T, KeyError> {
        let bytes: Zeroizing<Vec<u8>> = match self {
            Self::File(path) => Zeroizing::new(
                spa_keys::read_secret_text(path, spa_keys::MAX_KEY_FILE_LENGTH)?.as_bytes().into(),
            ),
            Self::Command(words) => command::run(words, command::TIME_LIMIT)?,
            Self::SecretService(name) => secret_service::fetch(name)?,
        };
        let text = core::str::from_utf8(&bytes)
            .map_err(|_| KeyError::NotText { place: self.to_string() })?;
        parse(text).map_err(|error| KeyError::Content { place: self.to_string(), error })
    }

    /// Asks until a passphrase fits, or nobody has another.
    fn unlocked<T>(
        &self,
        unlock: &mut dyn Unlock,
        decrypt: impl Fn(&Passphrase) -> Result<T, DecryptError>,
    ) -> Result<T, KeyError> {
        let mut attempt = 1;
        loop {
            let locked = Locked { source: self, attempt };
            let passphrase = unlock
                .passphrase(&locked)
                .map_err(|error| KeyError::Locked { place: self.to_string(), error })?;
            match decrypt(passphrase) {
                Ok(keys) => return Ok(keys),
                Err(DecryptError::WrongPassphrase) => attempt = attempt.saturating_add(1),
                Err(error) => {
                    return Err(KeyError::Decrypt { place: self.to_string(), error });
                }
            }
        }
    }
}

/// As messages name it.
impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Command(words) => write!(f, "key-command {words:?}"),
            Self::SecretService(name) => write!(f, "{SECRET_SERVICE}{name}"),
        }
    }
}

impl From<PathBuf> for KeySource {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

impl From<&Path> for KeySource {
    fn from(path: &Path) -> Self {
        Self::File(path.into())
    }
}

impl From<&str> for KeySource {
    fn from(path: &str) -> Self {
        Self::File(path.into())
    }
}

/// The only line that is neither blank nor a comment.
fn one_line(text: &str) -> Result<StoredPreSharedKey, StoredKeysError> {
    let mut lines = (1..)
        .zip(text.lines().map(str::trim))
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let (line, key) = lines.next().unwrap_or((1, ""));
    if let Some((line, _)) = lines.next() {
        return Err(StoredKeysError::Second { line, kind: spa_keys::KeyKind::PreShared });
    }
    key.parse().map_err(|error| StoredKeysError::Key { line, error })
}

/// What to type to get the missing key.
fn keygen(file: &Path) -> String {
    match Config::directory() {
        Ok(directory) if Config::default_identity(&directory) == file => "spa-client keygen".into(),
        _ => format!("spa-client keygen --output {}", file.display()),
    }
}

/// The keys as they are to be stored: as they are, or under a passphrase.
///
/// Deriving the key from a passphrase takes a fraction of a second, on purpose.
pub fn protected(
    keys: ClientKeys,
    passphrase: Option<&Passphrase>,
) -> Result<StoredKeys, EncryptError> {
    match passphrase {
        None => Ok(StoredKeys::plain(keys)),
        Some(passphrase) => {
            StoredKeys::encrypted(&keys, passphrase, Cost::DEFAULT, &SystemRandom::new())
        }
    }
}

/// Somebody who may know a passphrase: the user at a terminal, a file.
pub trait Unlock {
    /// The passphrase to try for this key. Asked again, with a higher `attempt`, when it does not
    /// fit; an error ends that.
    fn passphrase(&mut self, locked: &Locked<'_>) -> Result<&Passphrase, UnlockError>;
}

/// A key that needs a passphrase.
#[derive(Debug)]
pub struct Locked<'a> {
    /// Where it is kept.
    pub source: &'a KeySource,
    /// How often it is asked for, counted from 1. The ones before did not fit.
    pub attempt: u32,
}

/// Knows no passphrase and asks nobody: what a program uses that must not wait for a human.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoPassphrase;

impl Unlock for NoPassphrase {
    fn passphrase(&mut self, _: &Locked<'_>) -> Result<&Passphrase, UnlockError> {
        Err(UnlockError::NobodyToAsk)
    }
}

/// Why there is no passphrase, or no other one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnlockError {
    /// There is neither a terminal nor a file.
    #[error(
        "there is no terminal to ask for it at; put it into a file that only you can read and name that in SPA_PASSPHRASE_FILE"
    )]
    NobodyToAsk,
    /// The terminal failed, or the user left.
    #[error("none was typed ({0}); try again")]
    NotTyped(io::Error),
    /// Three times another one.
    #[error("what was typed is not it, {0} times; try again when you know it")]
    WrongTyped(u32),
    /// The file holds another one.
    #[error("what is in {} is not it; correct SPA_PASSPHRASE_FILE, or unset it to be asked", .0.display())]
    WrongInFile(PathBuf),
    /// The file can't be used.
    #[error("SPA_PASSPHRASE_FILE: {0}")]
    File(#[from] KeyFileError),
    /// `-`.
    #[error(
        "SPA_PASSPHRASE_FILE is \"-\", but standard input is not read for it: it may be somebody's connection; name a file"
    )]
    StandardInput,
    /// What was typed can't be one.
    #[error(transparent)]
    Passphrase(#[from] PassphraseError),
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The client has no key yet.
    #[error("there is no identity key {} yet; make one with: {keygen}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The command that makes it.
        keygen: String,
    },
    /// A key file that can't be used.
    #[error(transparent)]
    File(#[from] KeyFileError),
    /// A command that gave nothing.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The secret service gave nothing.
    #[error(transparent)]
    SecretService(#[from] SecretServiceError),
    /// Not UTF-8.
    #[error("what comes from {place} is no text, so it is no key; correct the source")]
    NotText {
        /// Where it came from.
        place: String,
    },
    /// Text, but no keys.
    #[error("what comes from {place} can't be used: {error}")]
    Content {
        /// Where it came from.
        place: String,
        /// What is wrong.
        error: StoredKeysError,
    },
    /// No passphrase, or a wrong one.
    #[error("the key in {place} is under a passphrase: {error}")]
    Locked {
        /// Where it is kept.
        place: String,
        /// Why it stays closed.
        error: UnlockError,
    },
    /// Something else than a wrong passphrase.
    #[error("the key in {place} can't be decrypted: {error}")]
    Decrypt {
        /// Where it is kept.
        place: String,
        /// Why.
        error: DecryptError,
    },
    /// Encrypting failed.
    #[error("the key can't be put under a passphrase: {0}")]
    Encrypt(#[from] EncryptError),
    /// A pre-shared key in both places.
    #[error(
        "{identity} holds a pre-shared key, and {other} another; which one does the server have? remove the other"
    )]
    TwoPreSharedKeys {
        /// With the private key.
        identity: String,
        /// On its own.
        other: String,
    },
    /// A command is only read.
    #[error("{place} is only read; put the key there by the means of the program behind it")]
    ReadOnly {
        /// The command.
        place: String,
    },
}

impl KeyError {
    /// Whether there is no key yet, rather than one that can't be used.
    pub fn is_absent(&self) -> bool {
        matches!(
            self,
            Self::Missing { .. } | Self::SecretService(SecretServiceError::NotFound { .. })
        )
    }
}

/// The name of an item of the secret service: 1 to 64 of `A-Z`, `a-z`, `0-9`, `-`, `_`, `.`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretName(String);

impl SecretName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for SecretName {
    type Err = SecretNameError;

    fn from_str(text: &str) -> Result<Self, SecretNameError> {
        let is_right = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if (1..=64).contains(&text.len()) && text.bytes().all(is_right) {
            Ok(Self(text.into()))
        } else {
            Err(SecretNameError(text.into()))
        }
    }
}

/// Not the name of an item.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not the name of a key in the secret service; a name is 1 to 64 of A-Z, a-z, 0-9, '-', '_', '.', as in {SECRET_SERVICE}work"
)]
pub struct SecretNameError(String);

#[cfg(test)]
mod tests;
