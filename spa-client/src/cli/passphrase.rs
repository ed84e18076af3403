//! Asking the user for passphrases: at the terminal, without echo, or by a file.
//!
//! The terminal is `/dev/tty` and not standard input, which may be somebody's connection.

use super::CliError;
use crate::key_source::{Locked, Unlock, UnlockError};
use spa_keys::Passphrase;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::PathBuf;
use zeroize::Zeroizing;

/// The variable that names a file with the passphrase.
pub(super) const FILE_VARIABLE: &str = "SPA_PASSPHRASE_FILE";
/// How often a passphrase may be typed.
const TRIES: u32 = 3;

/// Asks when a key needs it, and remembers the answers for the next keys of this command.
#[derive(Default)]
pub(super) struct Prompt {
    /// The one that was given last stands last.
    known: Vec<Passphrase>,
    /// How many of them the present key may have.
    untried: usize,
    /// How often the present key was asked for at the terminal.
    typed: u32,
}

impl Unlock for Prompt {
    fn passphrase(&mut self, locked: &Locked<'_>) -> Result<&Passphrase, UnlockError> {
        if locked.attempt == 1 {
            (self.untried, self.typed) = (self.known.len(), 0);
        }
        let passphrase = match self.untried.checked_sub(1) {
            Some(last) => {
                self.untried = last;
                self.known.remove(last)
            }
            None if self.typed > 0 => {
                // What was typed last fits nothing.
                self.known.pop();
                self.ask(locked)?
            }
            None => match file()? {
                Some(path) if locked.attempt == 1 => spa_keys::read_passphrase(path)?,
                Some(path) => return Err(UnlockError::WrongInFile(path)),
                None => self.ask(locked)?,
            },
        };
        Ok(self.known.push_mut(passphrase))
    }
}

impl Prompt {
    /// What was given last.
    pub(super) fn take(&mut self) -> Option<Passphrase> {
        self.known.pop()
    }

    fn ask(&mut self, locked: &Locked<'_>) -> Result<Passphrase, UnlockError> {
        loop {
            if self.typed == TRIES {
                return Err(UnlockError::WrongTyped(TRIES));
            }
            if self.typed > 0 {
                let _ = writeln!(io::stderr(), "that is not the passphrase of this key; try again");
            }
            self.typed = self.typed.saturating_add(1);
            // Nothing was typed: one try of three, as for any other wrong one.
            if let Ok(passphrase) = typed(&format!("passphrase of {}: ", locked.source))? {
                return Ok(passphrase);
            }
        }
    }
}

/// A passphrase for a key that is to be written: from `file`, else from the file in the
/// environment, else typed twice.
pub(super) fn new_passphrase(what: &str, path: Option<PathBuf>) -> Result<Passphrase, CliError> {
    let failed =
        |error: UnlockError| CliError::Failed(format!("no passphrase for {what}: {error}"));
    if let Some(path) = path {
        return Ok(spa_keys::read_passphrase(path)?);
    }
    if let Some(path) = file().map_err(failed)? {
        return spa_keys::read_passphrase(path).map_err(|error| failed(error.into()));
    }
    typed_twice(what)
}

/// A passphrase that is typed twice at the terminal, and the same both times.
pub(super) fn typed_twice(what: &str) -> Result<Passphrase, CliError> {
    let failed =
        |error: UnlockError| CliError::Failed(format!("no passphrase for {what}: {error}"));
    let ask = |prompt: String| typed(&prompt).and_then(|typed| Ok(typed?)).map_err(failed);
    let first = ask(format!("new passphrase for {what}: "))?;
    let second = ask("the same again: ".into())?;
    if first.is(&second) {
        Ok(first)
    } else {
        Err(CliError::Failed("the two passphrases differ; nothing was written, try again".into()))
    }
}

/// What is typed at the terminal; an inner error is one of what was typed.
fn typed(prompt: &str) -> Result<Result<Passphrase, spa_keys::PassphraseError>, UnlockError> {
    match rpassword::prompt_password(prompt) {
        Ok(text) => Ok(Passphrase::new(Zeroizing::new(text.into_bytes()))),
        // The user has left: Ctrl-D, Ctrl-C, the terminal hung up.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::Interrupted
            ) =>
        {
            let _ = writeln!(io::stderr());
            Err(UnlockError::NotTyped(error))
        }
        Err(_) => Err(UnlockError::NobodyToAsk),
    }
}

fn file() -> Result<Option<PathBuf>, UnlockError> {
    match std::env::var_os(FILE_VARIABLE).filter(|path: &OsString| !path.is_empty()) {
        Some(path) if path == "-" => Err(UnlockError::StandardInput),
        other => Ok(other.map(PathBuf::from)),
    }
}
