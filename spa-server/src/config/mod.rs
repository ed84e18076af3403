//! The configuration: `server.toml`, and one file for each client, in `clients.d` beside it mostly.
//!
//! Files are read into raw structures and from there into types that can't be wrong; whatever is
//! wrong in any file is told in one report. It reads files and derives keys, and knows nothing of
//! the network, the firewall or the clock.

mod client;
mod clients;
mod clients_d;
mod error;
mod file;
mod kept;
mod keys;
mod raw;
mod settings;
mod time;

pub use client::{ClientName, ClientNameError, ClientSettings, Introduced};
pub use clients::ClientCount;
pub(crate) use clients_d::secret_files;
pub use clients_d::{client_file, client_files, locked_out};
pub use error::{ConfigError, Fault, Problem, ValueError};
pub(crate) use file::{
    judge_directory, judge_program, judge_state_directory, read as read_judged, read_state,
};
pub use kept::{KeepError, Kept};
pub use keys::{PairSecrets, ServerKeys};
pub use settings::{GateSettings, Prefiltering, PreviousKey, Settings};
pub(crate) use settings::{STATE_DIRECTORY, gate_directory_of};
pub use spa_proto::{DurationError, format_duration, parse_duration, parse_duration_or_seconds};
pub use time::{TimestampError, format_timestamp, parse_timestamp};

use crate::causes::with_causes;
use crate::enrolment::{EnrolmentStore, Enrolments, Introduction, Roster};
use crate::policy::{ClientRules, Policy};
use crate::users::Users;
use clients::{Everybody, Known, Senders};
use spa_keys::{KeyReader, PrivateKey, PublicKey};
use spa_proto::{ClientId, MaskKey, Receiver, Sender};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    /// How many clients there are.
    pub count: ClientCount,
    /// What the file of kept pair secrets was good for.
    pub kept: Kept,
    policy: Arc<Policy>,
    senders: Senders,
    roster: Roster,
    kin: Vec<(ClientId, Vec<ClientId>)>,
    keyless: Vec<(Box<str>, Arc<ClientRules>)>,
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
        let state_directory = state_directory.or(settings.as_ref().map(|it| &*it.state_directory));
        let known = match (&keys, &enrolments, state_directory) {
            (Some(server), Some(enrolments), Some(state_directory)) => {
                Some(Known { server, enrolments, state_directory })
            }
            _ => None,
        };
        let clients_directory = match &settings {
            Some(settings) => settings.clients_directory.clone(),
            None => Settings::clients_directory_of(path),
        };
        let everybody = clients_d::is_there(path, &clients_directory)
            .and_then(|()| clients::load(&clients_directory, &surroundings, known));
        let everybody = keep(everybody.map_err(|problem| vec![problem]), &mut problems);
        let everybody = everybody.map(|(everybody, wrong)| {
            problems.extend(wrong);
            everybody
        });
        let (Some(settings), Some(keys), Some(everybody)) = (settings, keys, everybody) else {
            return (None, problems);
        };
        let enrolment_records = enrolments.map_or(0, |enrolments| enrolments.records);
        let Everybody { kept, count, clients, senders, roster, kin, keyless } = everybody;
        let policy = Arc::new(Policy::of_clients(settings.services.clone(), clients));
        let path = path.into();
        (
            Some(Self {
                path,
                settings,
                keys,
                count,
                kept,
                policy,
                senders,
                roster,
                kin,
                keyless,
                enrolment_records,
            }),
            problems,
        )
    }

    /// The names and rules of all clients, disabled ones too, by name.
    pub fn clients(&self) -> BTreeMap<&str, &ClientRules> {
        let keyless = self.keyless.iter().map(|(name, rules)| (&**name, &**rules));
        self.policy.all().chain(keyless).collect()
    }

    /// The policy that this configuration states.
    pub fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy)
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
    /// them, so that their knocks are told from noise. Nobody else can have their secrets then: they
    /// are handed over.
    pub fn instruct(&mut self, receiver: &mut Receiver) {
        receiver.forget_previous();
        for (which, mask) in self.keys.masks() {
            receiver.set_senders(which, mask, std::mem::take(self.senders.to(which)));
        }
        receiver.set_kin(std::mem::take(&mut self.kin));
    }

    /// Keeps the pair secrets for the next start, where there are many. To be called by the daemon
    /// alone, and before [`instruct`](Self::instruct).
    pub fn keep_secrets(&self, state_directory: &Path) -> Result<(), KeepError> {
        let senders = &self.senders.present;
        let of_clients = senders.iter().filter_map(|(sender, secret)| match sender {
            Sender::Client(id) => {
                let member = self.roster.member(id);
                let may_keep = member.as_ref().is_none_or(|member| {
                    member.pre_shared.is_none() || lies_in_the_state(&member.introduction)
                });
                let pre_shared = member.and_then(|member| member.pre_shared);
                may_keep.then(|| ((*id).into(), pre_shared, secret))
            }
            Sender::Invitation(_) => None,
        });
        self.kept.keep(state_directory, &self.keys, of_clients, senders.len())
    }

    /// All who can announce keys.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }
}

/// Whether the pre-shared keys of a client that was introduced like this are all among the records of
/// keys that clients have brought. One in a file is wherever its administrator wants it.
const fn lies_in_the_state(introduction: &Introduction) -> bool {
    matches!(introduction, Introduction::Invitation(_))
}

/// What the clients may do whose files are sound, without a secret being read: of those who may do the
/// same, once.
pub(crate) fn client_rules(settings: &Settings) -> Result<Vec<Arc<ClientRules>>, Problem> {
    clients::rules(&settings.clients_directory, &client::Surroundings::of(settings))
}

/// What reads secret keys: root's, which the worker's group may read where the worker is not root.
pub(crate) fn key_reader() -> KeyReader {
    let users = Users::of_this_host();
    users.map_or_else(KeyReader::default, |Users { worker, .. }| {
        KeyReader::for_daemon(worker.user.as_raw(), worker.group.as_raw())
    })
}

/// Reads the server's private key.
pub fn read_private_key(path: &Path, settings: &Settings) -> Result<PrivateKey, Problem> {
    key_reader().private_key(&settings.private_key_file).map_err(|error| Problem {
        path: path.into(),
        fault: Fault::value("private-key-file", ValueError::KeyFile(error)),
    })
}

/// The keys that clients have announced. Without them all others still come in.
fn enrolments(state_directory: &Path) -> (Enrolments, Option<Problem>) {
    match EnrolmentStore::read(state_directory) {
        // What was damaged is told, and set right, by whoever opens the store.
        Ok(found) => (found.unwrap_or_default(), None),
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
