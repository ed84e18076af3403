//! The configuration: `server.toml`, and one file for each client in `clients.d` beside it.
//!
//! Files are read into raw structures and from there into types that can't be wrong; whatever is
//! wrong in any file is told in one report. It reads files and derives keys, and knows nothing of
//! the network, the firewall or the clock.

mod client;
mod clients_d;
mod error;
mod file;
mod raw;
mod settings;
mod time;

pub use client::{Client, ClientName, ClientNameError, ClientSettings};
pub use clients_d::{client_file, client_files, clients_directory};
pub use error::{ConfigError, Fault, Problem, ValueError};
pub(crate) use file::judge_directory;
pub use settings::{GateSettings, Settings};
pub use time::{
    DurationError, TimestampError, format_duration, format_timestamp, parse_duration,
    parse_timestamp,
};

use crate::policy::Policy;
use spa_keys::{PrivateKey, PublicKey};
use spa_proto::{ClientId, MaskKey, PairSecret};
use std::path::{Path, PathBuf};

/// Where the configuration is when the command line names no other place.
pub const DEFAULT_PATH: &str = "/etc/spa/server.toml";

/// A configuration that holds together: what the daemon runs by.
#[derive(Debug)]
pub struct Config {
    /// The `server.toml` that it was read from.
    pub path: PathBuf,
    /// What `server.toml` says.
    pub settings: Settings,
    /// The server's public key.
    pub server_key: PublicKey,
    /// The key that masks the tags of all knocks to this server.
    pub mask: MaskKey,
    /// All clients, disabled ones too, by name.
    pub clients: Vec<Client>,
}

impl Config {
    /// Reads `server.toml` at `path`, the private key that it names, and `clients.d` beside it,
    /// and derives the pair secrets of all clients.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        let settings = keep(Settings::load(path).map_err(|error| error.problems), &mut problems);
        let private_key = settings.as_ref().and_then(|settings| {
            keep(read_private_key(path, settings).map_err(|problem| vec![problem]), &mut problems)
        });
        let surroundings = settings.as_ref().map(client::Surroundings::of).unwrap_or_default();
        let clients = clients_d::load(path, &surroundings, private_key.as_ref());
        let clients = keep(clients, &mut problems);
        match (settings, private_key, clients) {
            (Some(settings), Some(private_key), Some(clients)) if problems.is_empty() => {
                let server_key = private_key.public();
                let mask = spa_keys::mask_key(&server_key);
                Ok(Self { path: path.into(), settings, server_key, mask, clients })
            }
            _ => Err(ConfigError { problems }),
        }
    }

    /// The policy that this configuration states.
    pub fn policy(&self) -> Policy {
        let clients =
            self.clients.iter().map(|client| (client.id(), client.settings.rules.clone()));
        Policy::new(self.settings.services.clone(), clients)
    }

    /// The clients as the receiver wants them. Disabled clients are among them, so that their
    /// knocks are told from noise.
    pub fn pair_secrets(&self) -> impl Iterator<Item = (ClientId, PairSecret)> + '_ {
        self.clients.iter().map(|client| (client.id(), client.secret.clone()))
    }

    /// The client of that name.
    pub fn client(&self, name: &str) -> Option<&Client> {
        self.clients.iter().find(|client| &*client.settings.rules.name == name)
    }
}

/// Reads the server's private key.
pub fn read_private_key(path: &Path, settings: &Settings) -> Result<PrivateKey, Problem> {
    spa_keys::read_private_key(&settings.private_key_file).map_err(|error| Problem {
        path: path.into(),
        fault: Fault::value("private-key-file", ValueError::KeyFile(error)),
    })
}

fn keep<T>(result: Result<T, Vec<Problem>>, problems: &mut Vec<Problem>) -> Option<T> {
    result.map_err(|found| problems.extend(found)).ok()
}

#[cfg(test)]
mod tests;
