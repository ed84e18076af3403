//! The configuration: `server.toml`, and one file for each client in `clients.d` beside it.
//!
//! Files are read into raw structures and from there into types that can't be wrong; whatever is
//! wrong in any file is told in one report. It reads files and derives keys, and knows nothing of
//! the network, the firewall or the clock.

mod client;
mod clients_d;
mod error;
mod file;
mod keys;
mod raw;
mod settings;
mod time;

pub use client::{ClientName, ClientNameError, ClientSettings, Introduced};
pub use clients_d::{client_file, client_files, clients_directory, locked_out};
pub use error::{ConfigError, Fault, Problem, ValueError};
pub(crate) use file::{judge_directory, judge_program, read as read_judged};
pub use keys::{Client, KnownKey, PairSecrets, ServerKeys};
pub use settings::{GateSettings, Prefiltering, PreviousKey, Settings};
pub use spa_proto::{DurationError, format_duration, parse_duration, parse_duration_or_seconds};
pub use time::{TimestampError, format_timestamp, parse_timestamp};

use crate::causes::with_causes;
use crate::enrolment::{EnrolmentStore, Enrolments, Roster};
use crate::policy::{Clients, Policy};
use spa_keys::{PrivateKey, PublicKey};
use spa_proto::{MaskKey, PairSecret, Receiver, Sender, ServerKey};
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
    /// The server's identities.
    pub keys: ServerKeys,
    /// All clients, disabled ones too, by name.
    pub clients: Vec<Client>,
    /// How many records of announced keys were there: if there are more now, some client may have
    /// another key.
    pub enrolment_records: usize,
}

impl Config {
    /// Reads `server.toml` at `path`, the private key that it names, `clients.d` beside it, and
    /// the keys that clients have announced, and derives the pair secrets of all clients.
    ///
    /// # Errors
    ///
    /// Anything is wrong anywhere; all of it is told.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        match Self::read(path, None) {
            (Some(config), problems) if problems.is_empty() => Ok(config),
            (_, problems) => Err(ConfigError { problems }),
        }
    }

    /// The same for a daemon that keeps its state in this directory, whatever the configuration
    /// says of that now.
    pub fn load_beside(path: &Path, state_directory: &Path) -> Result<Self, ConfigError> {
        match Self::read(path, Some(state_directory)) {
            (Some(config), problems) if problems.is_empty() => Ok(config),
            (_, problems) => Err(ConfigError { problems }),
        }
    }

    /// Like [`load`](Self::load), but a client with which something is wrong is left out, and
    /// the problem handed over: one wrong file must not keep everybody out of a server that
    /// starts.
    pub fn load_sound_clients(path: &Path) -> Result<(Self, Vec<Problem>), ConfigError> {
        match Self::read(path, None) {
            (Some(config), problems) => Ok((config, problems)),
            (None, problems) => Err(ConfigError { problems }),
        }
    }

    /// No configuration when `server.toml`, the key, or the directory of clients is wrong.
    fn read(path: &Path, state_directory: Option<&Path>) -> (Option<Self>, Vec<Problem>) {
        let mut problems = Vec::new();
        let settings = keep(Settings::load(path).map_err(|error| error.problems), &mut problems);
        let keys = settings.as_ref().and_then(|settings| {
            let (keys, wrong) = keys::server_keys(path, settings);
            problems.extend(wrong);
            keys
        });
        let enrolments = settings.as_ref().map(|settings| {
            let directory = state_directory.unwrap_or(&settings.state_directory);
            let (enrolments, wrong) = enrolments(directory);
            problems.extend(wrong);
            enrolments
        });
        let services = settings.as_ref().map(|settings| &settings.services);
        let default_lifetime = settings.as_ref().map(|settings| settings.default_lifetime);
        let surroundings = client::Surroundings { services, default_lifetime };
        let known = keys.as_ref().zip(enrolments.as_ref());
        let clients = clients_d::load(path, &surroundings, known);
        let clients = keep(clients.map_err(|problem| vec![problem]), &mut problems);
        let clients = clients.map(|(clients, wrong)| {
            problems.extend(wrong);
            clients
        });
        let (Some(settings), Some(keys), Some(clients)) = (settings, keys, clients) else {
            return (None, problems);
        };
        let enrolment_records = enrolments.map_or(0, |enrolments| enrolments.records);
        (Some(Self { path: path.into(), settings, keys, clients, enrolment_records }), problems)
    }

    /// The policy that this configuration states.
    pub fn policy(&self) -> Policy {
        let mut clients = Clients::default();
        for client in &self.clients {
            let (name, rules) = (client.name(), &client.settings.rules);
            for known in &client.keys {
                clients.known(known.key.into(), client.introduction.clone(), name, rules);
            }
            for (id, _) in client.invitations() {
                clients.invited(id, client.introduction.clone(), name, rules);
            }
        }
        Policy::of_clients(self.settings.services.clone(), clients)
    }

    /// The server's present public key.
    pub fn server_key(&self) -> PublicKey {
        self.keys.present.public()
    }

    /// The key that masks the tags of all knocks to the server's present identity.
    pub fn mask(&self) -> MaskKey {
        spa_keys::mask_key(&self.server_key())
    }

    /// Has a receiver know these identities and clients, and no others. Disabled clients are among
    /// them, so that their knocks are told from noise.
    pub fn instruct(&self, receiver: &mut Receiver) {
        receiver.forget_previous();
        for (which, mask) in self.keys.masks() {
            receiver.set_senders(which, mask, self.senders(which));
        }
        receiver.set_kin(self.clients.iter().flat_map(Client::kin));
    }

    /// All who seal packets to one of the server's identities.
    pub fn senders(&self, which: ServerKey) -> impl Iterator<Item = (Sender, PairSecret)> + '_ {
        self.clients.iter().flat_map(move |client| client.senders(which))
    }

    /// All who can announce keys.
    pub fn roster(&self) -> Roster {
        Roster {
            members: self.clients.iter().flat_map(Client::members).collect(),
            invitations: self.clients.iter().flat_map(Client::invitations).collect(),
        }
    }

    /// The client of that name.
    pub fn client(&self, name: &str) -> Option<&Client> {
        self.clients.iter().find(|client| client.name() == name)
    }
}

/// Reads the server's private key.
pub fn read_private_key(path: &Path, settings: &Settings) -> Result<PrivateKey, Problem> {
    spa_keys::read_private_key(&settings.private_key_file).map_err(|error| Problem {
        path: path.into(),
        fault: Fault::value("private-key-file", ValueError::KeyFile(error)),
    })
}

/// The keys that clients have announced. Without them all others still come in.
fn enrolments(state_directory: &Path) -> (Enrolments, Option<Problem>) {
    match EnrolmentStore::read(state_directory) {
        // What was damaged is told, and set right, by whoever opens the store.
        Ok(found) => (found.map(|(enrolments, _)| enrolments).unwrap_or_default(), None),
        Err(error) => {
            let path = state_directory.into();
            (
                Enrolments::default(),
                Some(Problem { path, fault: Fault::State(with_causes(&error)) }),
            )
        }
    }
}

fn keep<T>(result: Result<T, Vec<Problem>>, problems: &mut Vec<Problem>) -> Option<T> {
    result.map_err(|found| problems.extend(found)).ok()
}

#[cfg(test)]
mod tests;
