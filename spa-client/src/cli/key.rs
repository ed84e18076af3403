//! `spa-client key`: what key there is, its passphrase, another place for it.

use super::passphrase::{Prompt, new_passphrase, typed_twice};
use super::{CliError, print, print_json, say};
use crate::config::{Config, ConfigError};
use crate::key_source::{KeyError, KeySource, protected};
use clap::{Args, Subcommand};
use serde::Serialize;
use spa_keys::{
    Cost, EncryptedPreSharedKey, KeyFileError, Overwrite, PreSharedKey, PublicKey,
    StoredPreSharedKey,
};
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Show the public key that belongs to a key; needs no passphrase.
    Show(ShowArgs),
    /// Put a key under a passphrase, change the passphrase, or take it away.
    #[command(visible_alias = "passwd")]
    Passphrase(PassphraseArgs),
    /// Put a key into another place too: a file, the desktop's secret service.
    Copy(CopyArgs),
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// A server's name, a key file, or secret-service:NAME [default: the default server's key].
    #[arg(value_name = "SERVER|FILE")]
    which: Option<String>,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  spa-client key passphrase              the default server's key
  spa-client key passphrase ~/old.key
  spa-client key passphrase work --remove

The old passphrase is asked for at the terminal, or comes from the file named in
SPA_PASSPHRASE_FILE. The file is replaced in one step.")]
pub(super) struct PassphraseArgs {
    /// A server's name, a key file, or secret-service:NAME [default: the default server's key].
    #[arg(value_name = "SERVER|FILE")]
    which: Option<String>,
    /// Take the passphrase away.
    #[arg(long, conflicts_with = "new_passphrase_file")]
    remove: bool,
    /// Read the new passphrase from a file instead of the terminal.
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
    /// Write what was done to standard output as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  spa-client key copy work --to secret-service:work

Nothing is overwritten, and the old place keeps its key until you remove it.")]
pub(super) struct CopyArgs {
    /// A server's name, a key file, or secret-service:NAME [default: the default server's key].
    #[arg(value_name = "SERVER|FILE")]
    which: Option<String>,
    /// The new place: a file, or secret-service:NAME.
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// Write what was done to standard output as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(directory: &Path, command: KeyCommand) -> Result<(), CliError> {
    match command {
        KeyCommand::Show(args) => show(directory, &args),
        KeyCommand::Passphrase(args) => passphrase(directory, &args),
        KeyCommand::Copy(args) => copy(directory, &args),
    }
}

/// Where a path of the command line leads: to the secret service, or else to a file.
pub(super) fn place(path: &Path) -> Result<KeySource, CliError> {
    let absolute = |file: &Path| std::path::absolute(file).unwrap_or_else(|_| file.into());
    match path.to_str() {
        Some(text) => {
            KeySource::parse(text, absolute).map_err(|error| CliError::Usage(error.to_string()))
        }
        None => Ok(absolute(path).into()),
    }
}

/// A server's key, or one that is named itself.
fn source(directory: &Path, which: Option<&str>) -> Result<KeySource, CliError> {
    let config = match Config::load(directory) {
        Ok(config) => Some(config),
        Err(ConfigError::Missing { .. }) => None,
        // A key can be looked at whatever is wrong there.
        Err(_) if which.is_some_and(|path| Path::new(path).exists()) => None,
        Err(error) => return Err(error.into()),
    };
    match (which, config) {
        (None, Some(config)) => Ok(config.server(None)?.identity.clone()),
        (None, None) => Ok(Config::default_identity(directory).into()),
        (Some(which), config) => {
            let server = config.as_ref().and_then(|config| config.server(Some(which)).ok());
            server.map_or_else(|| place(Path::new(which)), |server| Ok(server.identity.clone()))
        }
    }
}

#[derive(Serialize)]
struct Shown {
    source: String,
    public_key: PublicKey,
    passphrase: bool,
    pre_shared_key: bool,
}

fn show(directory: &Path, args: &ShowArgs) -> Result<(), CliError> {
    let source = source(directory, args.which.as_deref())?;
    let stored = source.stored()?;
    if args.json {
        return print_json(&Shown {
            source: source.to_string(),
            public_key: stored.public(),
            passphrase: stored.is_encrypted(),
            pre_shared_key: stored.pre_shared.is_some(),
        });
    }
    print(&format!("{}\n", stored.public()))?;
    let under = if stored.is_encrypted() { "under a passphrase" } else { "without a passphrase" };
    let with = if stored.pre_shared.is_some() { ", with a pre-shared key" } else { "" };
    say(&format!("the private key is in {source}, {under}{with}"));
    Ok(())
}

#[derive(Serialize)]
struct Outcome {
    source: String,
    /// Whether it is under a passphrase now.
    passphrase: bool,
    changed: bool,
}

#[derive(Serialize)]
struct Copied {
    source: String,
    to: String,
    public_key: PublicKey,
}

fn passphrase(directory: &Path, args: &PassphraseArgs) -> Result<(), CliError> {
    let source = source(directory, args.which.as_deref())?;
    if let KeySource::Command(_) = source {
        return Err(KeyError::ReadOnly { place: source.to_string() }.into());
    }
    // Written only when everything is known, and read again before it is said to be done.
    match source.stored() {
        Ok(stored) => {
            if args.remove && !stored.is_encrypted() {
                if args.json {
                    let source = source.to_string();
                    return print_json(&Outcome { source, passphrase: false, changed: false });
                }
                say(&format!("the key in {source} has no passphrase; nothing was changed"));
                return Ok(());
            }
            let keys = source.keys(&mut Prompt::default())?;
            let new = new(&source, args)?;
            let stored = protected(keys, new.as_ref()).map_err(KeyError::from)?;
            source.store(&stored, Overwrite::Replace)?;
        }
        Err(KeyError::File(KeyFileError::NoKey { path, wanted })) => {
            // A file of a pre-shared key alone.
            let Ok(_) = spa_keys::read_stored_pre_shared_key(&path) else {
                return Err(KeyFileError::NoKey { path, wanted }.into());
            };
            let key = source.pre_shared_key(&mut Prompt::default())?;
            let new = new(&source, args)?;
            let stored = protected_pre_shared(key, new.as_ref())?;
            spa_keys::write_stored_pre_shared_key(&path, &stored, Overwrite::Replace)?;
        }
        Err(error) => return Err(error.into()),
    }
    if args.json {
        let source = source.to_string();
        return print_json(&Outcome { source, passphrase: !args.remove, changed: true });
    }
    let state =
        if args.remove { "without a passphrase now" } else { "under the new passphrase now" };
    say(&format!("the key in {source} is {state}"));
    Ok(())
}

fn new(
    source: &KeySource,
    args: &PassphraseArgs,
) -> Result<Option<spa_keys::Passphrase>, CliError> {
    match &args.new_passphrase_file {
        _ if args.remove => Ok(None),
        Some(path) => new_passphrase("the key", Some(path.clone())).map(Some),
        None => typed_twice(&source.to_string()).map(Some),
    }
}

fn protected_pre_shared(
    key: PreSharedKey,
    passphrase: Option<&spa_keys::Passphrase>,
) -> Result<StoredPreSharedKey, CliError> {
    let Some(passphrase) = passphrase else { return Ok(StoredPreSharedKey::Plain(key)) };
    let random = ring::rand::SystemRandom::new();
    let sealed = EncryptedPreSharedKey::encrypt(&key, passphrase, Cost::DEFAULT, &random);
    Ok(StoredPreSharedKey::Encrypted(sealed.map_err(KeyError::from)?))
}

fn copy(directory: &Path, args: &CopyArgs) -> Result<(), CliError> {
    let from = source(directory, args.which.as_deref())?;
    let to = place(&args.to)?;
    let stored = from.stored()?;
    to.store(&stored, Overwrite::Refuse)?;
    let read = to.stored()?;
    if read.public() != stored.public() {
        return Err(CliError::Failed(format!(
            "{to} gives another key than was put there; don't use it"
        )));
    }
    if args.json {
        let (source, to) = (from.to_string(), to.to_string());
        return print_json(&Copied { source, to, public_key: stored.public() });
    }
    say(&format!(
        "the key {} is in {to} now, and still in {from}\nto use it, in {}: identity = {:?}",
        stored.public(),
        Config::path(directory).display(),
        to.to_string()
    ));
    Ok(())
}
