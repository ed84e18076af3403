//! The pair secrets of the last run, which a start would else derive anew (`spa_keys::KeptSecrets`).
//!
//! Nothing depends on the file: what is not in it is derived. Only the daemon writes it.
//!
//! It holds what whoever has the server's key and the state directory could derive, and nothing else: nothing
//! under an identity of the server whose end has come or is near, and nothing that follows from a
//! pre-shared key that lies elsewhere. To destroy those keys so destroys what they have protected.

use super::keys::{PairSecrets, ServerKeys};
use crate::causes::with_causes;
use crate::large_list::with_room_for;
use crate::state_file::{StateFile, StateFileError};
use ring::rand::SystemRandom;
use spa_keys::{
    DeriveError, KeepingKey, KeptSecrets, NoRandomness, PreSharedKey, PublicKey,
    pair_secret_for_server,
};
use spa_proto::PairSecret;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The file in the state directory.
const FILE: &str = "pair-secrets";
/// With fewer clients a start waits for nothing that is worth a file of secrets.
const WORTH_KEEPING: usize = 1_000;

/// Where the secrets of clients come from: the file, or an agreement of keys.
pub(super) struct Source {
    /// `None`: it isn't worth it.
    key: Option<KeepingKey>,
    kept: Option<KeptSecrets>,
    unusable: Option<String>,
    found: AtomicUsize,
    derived: AtomicUsize,
}

/// What a configuration has found in the file.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    /// Why it was good for nothing, if it was there.
    pub unusable: Option<String>,
    /// How many agreements of keys had to be made of those that are kept.
    pub derived: usize,
    /// What is in it is just what would be written.
    is_current: bool,
    is_worth_it: bool,
}

/// Why secrets could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The file could not be written, or removed.
    #[error(transparent)]
    File(#[from] StateFileError),
    /// There were no random bytes for it.
    #[error("the system's random number generator gave no bytes")]
    NoRandomness(#[from] NoRandomness),
}

/// A client's key, what belongs to it, and what follows from them.
pub(super) type Secret<'a> = (PublicKey, Option<Arc<PreSharedKey>>, &'a PairSecret);

impl Source {
    /// The file in this directory, where there are so many clients.
    pub(super) fn of(state_directory: &Path, server: &ServerKeys, clients: usize) -> Self {
        let mut source = Self {
            key: None,
            kept: None,
            unusable: None,
            found: AtomicUsize::new(0),
            derived: AtomicUsize::new(0),
        };
        if clients < WORTH_KEEPING {
            return source;
        }
        let key = KeepingKey::of(&server.present);
        match StateFile::new(state_directory, FILE).read_bytes(KeptSecrets::MAX_LENGTH) {
            Ok(None) => {}
            Ok(Some(bytes)) => match KeptSecrets::open(bytes, &key) {
                Ok(kept) => source.kept = Some(kept),
                Err(error) => source.unusable = Some(error.to_string()),
            },
            Err(error) => source.unusable = Some(with_causes(&error)),
        }
        source.key = Some(key);
        source
    }

    /// What a client's knocks are sealed with, to each of the server's identities. `may_keep`: the
    /// pre-shared key, if there is one, lies in the state directory as well.
    pub(super) fn secrets(
        &self,
        server: &ServerKeys,
        client: &PublicKey,
        pre_shared: Option<&PreSharedKey>,
        may_keep: bool,
    ) -> Result<PairSecrets, DeriveError> {
        let present = server.present.public();
        server.each(|private| {
            let public = private.public();
            if may_keep && public == present {
                if let (Some(key), Some(kept)) = (&self.key, &self.kept)
                    && let Some(secret) = kept.get(&key.id(&public, client, pre_shared))
                {
                    self.found.fetch_add(1, Ordering::Relaxed);
                    return Ok(secret);
                }
                self.derived.fetch_add(1, Ordering::Relaxed);
            }
            pair_secret_for_server(private, client, pre_shared)
        })
    }

    /// What there is to say of it when all clients have their secrets.
    pub(super) fn done(self) -> Kept {
        let derived = self.derived.into_inner();
        let is_whole = self.kept.as_ref().is_some_and(|kept| kept.len() == self.found.into_inner());
        Kept {
            unusable: self.unusable,
            derived,
            is_current: is_whole && derived == 0,
            is_worth_it: self.key.is_some(),
        }
    }
}

impl Kept {
    /// Has the file hold these, and nothing else: who is no client any more is not in it. They are
    /// those with the server's present identity.
    pub(super) fn keep<'a>(
        &self,
        state_directory: &Path,
        server: &ServerKeys,
        secrets: impl Iterator<Item = Secret<'a>>,
        count: usize,
    ) -> Result<(), KeepError> {
        let file = StateFile::new(state_directory, FILE);
        if !self.is_worth_it {
            return Ok(file.remove()?);
        }
        if self.is_current {
            return Ok(());
        }
        let key = KeepingKey::of(&server.present);
        let present = server.present.public();
        let records = secrets.map(|(client, pre_shared, secret)| {
            (key.id(&present, &client, pre_shared.as_deref()), secret)
        });
        let room = with_room_for(KeptSecrets::length_of(count));
        let sealed = KeptSecrets::of(records, room).seal(&key, &SystemRandom::new())?;
        Ok(file.replace(&sealed)?)
    }
}
