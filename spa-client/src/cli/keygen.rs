//! `spa-client keygen`.

use super::args::KeygenArgs;
use super::{CliError, print, print_json};
use crate::config::{Config, ConfigError, make_directory};
use ring::rand::SystemRandom;
use serde::Serialize;
use spa_keys::{KeyFileError, Overwrite, PrivateKey, PublicKey};
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
    if is_default {
        make_directory(directory)
            .map_err(|source| ConfigError::Write { path: directory.into(), source })?;
    }
    let key = PrivateKey::generate(&SystemRandom::new())?;
    match spa_keys::write_private_key(&path, &key, Overwrite::Refuse) {
        Ok(()) => {}
        Err(KeyFileError::Exists { path }) => return Err(exists(&path)),
        Err(error) => return Err(error.into()),
    }
    let public = key.public();
    if args.json {
        return print_json(&Made { public_key: public, file: &path });
    }
    print(&format!("{public}\n"))?;
    let identity =
        if is_default { String::new() } else { format!(" --identity {}", path.display()) };
    let _ = write!(
        io::stderr(),
        "\
the private key is in {}; it stays there, only the public key above is given away
next, on the server (as root):
  spa-server client add NAME --public-key {public} --allow ssh
then here, with the server's own public key:
  spa-client server add work --host HOST --public-key KEY{identity}
",
        path.display()
    );
    Ok(())
}

fn exists(path: &Path) -> CliError {
    let key = match spa_keys::read_private_key(path) {
        Ok(key) => format!("its public key is {}", key.public()),
        Err(error) => format!("but it can't be used: {error}"),
    };
    CliError::Failed(format!("{} exists already and is left as it is; {key}", path.display()))
}
