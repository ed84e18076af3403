//! `spa-client keygen`.

use super::args::KeygenArgs;
use super::key::place;
use super::passphrase::new_passphrase;
use super::{CliError, print, print_json};
use crate::config::{Config, ConfigError, make_directory};
use crate::key_source::{KeyError, KeySource, protected};
use ring::rand::SystemRandom;
use serde::Serialize;
use spa_keys::{ClientKeys, KeyFileError, Overwrite, PrivateKey, PublicKey};
use std::io::{self, Write as _};
use std::path::Path;

#[derive(Serialize)]
struct Made<'a> {
    public_key: PublicKey,
    file: &'a Path,
}

pub(super) fn run(directory: &Path, args: KeygenArgs) -> Result<(), CliError> {
    let is_default = args.output.is_none();
    let path = args.output.unwrap_or_else(|| Config::default_identity(directory));
    if args.force {
        return Err(CliError::Usage(format!(
            "keygen replaces no key, since servers that know the old one would lock you out; if you no longer need {0}, move it away first: mv {0} {0}.old",
            path.display()
        )));
    }
    let shown = path.display();
    let to = match place(&path)? {
        // As it was written, which is how the messages name it.
        KeySource::File(_) => KeySource::File(path.clone()),
        other => other,
    };
    if is_default {
        make_directory(directory)
            .map_err(|source| ConfigError::Write { path: directory.into(), source })?;
    }
    // Before anybody types anything for nothing; what decides is the writing.
    if to.file().is_some_and(|file| file.symlink_metadata().is_ok()) {
        return Err(exists(&to));
    }
    let passphrase = args.encrypt.then(|| new_passphrase(&to.to_string(), None)).transpose()?;
    let private = PrivateKey::generate(&SystemRandom::new())?;
    let public = private.public();
    let keys = ClientKeys { private, pre_shared: None };
    let stored = protected(keys, passphrase.as_ref()).map_err(KeyError::from)?;
    match to.store(&stored, Overwrite::Refuse) {
        Ok(()) => {}
        Err(KeyError::File(KeyFileError::Exists { .. })) => return Err(exists(&to)),
        Err(error) => return Err(error.into()),
    }
    if args.json {
        return print_json(&Made { public_key: public, file: &path });
    }
    print(&format!("{public}\n"))?;
    let identity = if is_default { String::new() } else { format!(" --identity {shown}") };
    let under = if passphrase.is_some() { ", under its passphrase" } else { "" };
    let _ = write!(
        io::stderr(),
        "\
the private key is in {shown}{under}; it stays there, only the public key above is given away
next, on the server (as root):
  spa-server client add NAME --public-key {public} --allow ssh
then here, with the server's own public key:
  spa-client server add work --host HOST --public-key KEY{identity}
"
    );
    Ok(())
}

fn exists(at: &KeySource) -> CliError {
    let key = match at.stored() {
        Ok(key) => format!("its public key is {}", key.public()),
        Err(error) => format!("but it can't be used: {error}"),
    };
    CliError::Failed(format!("{at} exists already and is left as it is; {key}"))
}
