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
pub use clients_d::{client_file, client_files, clients_directory, locked_out};
pub use error::{ConfigError, Fault, Problem, ValueError};
pub(crate) use file::{judge_directory, judge_program, read as read_judged};
pub use settings::{GateSettings, Settings};
pub use spa_proto::{DurationError, format_duration, parse_duration, parse_duration_or_seconds};
pub use time::{TimestampError, format_timestamp, parse_timestamp};

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
    ///
    /// # Errors
    ///
    /// Anything is wrong anywhere; all of it is told.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        match Self::read(path) {
            (Some(config), problems) if problems.is_empty() => Ok(config),
            (_, problems) => Err(ConfigError { problems }),
        }
    }

    /// Like [`load`](Self::load), but a client with which something is wrong is left out, and
    /// the problem handed over: one wrong file must not keep everybody out of a server that
    /// starts.
    pub fn load_sound_clients(path: &Path) -> Result<(Self, Vec<Problem>), ConfigError> {
        match Self::read(path) {
            (Some(config), problems) => Ok((config, problems)),
            (None, problems) => Err(ConfigError { problems }),
        }
    }

    /// No configuration when `server.toml`, the key, or the directory of clients is wrong.
    fn read(path: &Path) -> (Option<Self>, Vec<Problem>) {
        let mut problems = Vec::new();
        let settings = keep(Settings::load(path).map_err(|error| error.problems), &mut problems);
        let private_key = settings.as_ref().and_then(|settings| {
            keep(read_private_key(path, settings).map_err(|problem| vec![problem]), &mut problems)
        });
        let services = settings.as_ref().map(|settings| &settings.services);
        let default_lifetime = settings.as_ref().map(|settings| settings.default_lifetime);
        let surroundings = client::Surroundings { services, default_lifetime };
        let clients = clients_d::load(path, &surroundings, private_key.as_ref());
        let clients = keep(clients.map_err(|problem| vec![problem]), &mut problems);
        let clients = clients.map(|(clients, wrong)| {
            problems.extend(wrong);
            clients
        });
        let (Some(settings), Some(private_key), Some(clients)) = (settings, private_key, clients)
        else {
            return (None, problems);
        };
        let server_key = private_key.public();
        let mask = spa_keys::mask_key(&server_key);
        (Some(Self { path: path.into(), settings, server_key, mask, clients }), problems)
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
