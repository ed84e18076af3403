//! The keys behind the configuration: the server's own, and those that its clients have now.

use super::client::{ClientSettings, Introduced};
use super::error::{Fault, Problem, ValueError};
use super::settings::Settings;
use crate::enrolment::{ClientKey, Enrolments, Introduction};
use spa_keys::{
    InvitationSecret, KeyFileError, PreSharedKey, PrivateKey, PublicKey, mask_key,
    pair_secret_for_server,
};
use spa_proto::{MaskKey, PairSecret, ServerKey, UnixMicros};
use std::path::Path;
use std::sync::Arc;

/// The server's identities.
#[derive(Debug, Clone)]
pub struct ServerKeys {
    /// The one that it gives away.
    pub present: Arc<PrivateKey>,
    /// The one before, and until when it holds.
    pub previous: Option<(Arc<PrivateKey>, UnixMicros)>,
}

impl ServerKeys {
    /// The private key of one of the identities.
    pub fn private(&self, which: ServerKey) -> Option<&PrivateKey> {
        match which {
            ServerKey::Present => Some(&*self.present),
            ServerKey::Previous => self.previous.as_ref().map(|(key, _)| &**key),
        }
    }

    /// The identities there are, with what hides tags.
    pub fn masks(&self) -> impl Iterator<Item = (ServerKey, MaskKey)> {
        let both = [ServerKey::Present, ServerKey::Previous];
        both.into_iter().filter_map(|which| {
            self.private(which).map(|private| (which, mask_key(&private.public())))
        })
    }

    /// Whether this is one of the server's own keys.
    pub fn has(&self, key: &PublicKey) -> bool {
        let both = [ServerKey::Present, ServerKey::Previous];
        both.into_iter().filter_map(|which| self.private(which)).any(|own| own.public() == *key)
    }

    /// Whether clients can use this one of the server's keys at `now`.
    pub fn holds(&self, key: &PublicKey, now: UnixMicros) -> bool {
        let is_previous =
            |(own, until): &(Arc<PrivateKey>, UnixMicros)| own.public() == *key && now < *until;
        self.present.public() == *key || self.previous.as_ref().is_some_and(is_previous)
    }

    /// What a client's knocks are sealed with, to each of the identities.
    pub fn pair_secrets(
        &self,
        client: &PublicKey,
        pre_shared: Option<&PreSharedKey>,
    ) -> Result<PairSecrets, spa_keys::DeriveError> {
        self.each(|private| pair_secret_for_server(private, client, pre_shared))
    }

    /// The secrets that `derive` gives for the private key of each of the identities.
    pub(super) fn each<E>(
        &self,
        derive: impl Fn(&PrivateKey) -> Result<PairSecret, E>,
    ) -> Result<PairSecrets, E> {
        let present = derive(&self.present)?;
        let previous = self.previous.as_ref().map(|(private, _)| derive(private)).transpose()?;
        Ok(PairSecrets { present, previous })
    }
}

/// What the server's identities have in common with one key of a client.
#[derive(Debug)]
pub struct PairSecrets {
    pub(super) present: PairSecret,
    pub(super) previous: Option<PairSecret>,
}

impl PairSecrets {
    /// With one of the identities.
    pub fn get(&self, which: ServerKey) -> Option<&PairSecret> {
        match which {
            ServerKey::Present => Some(&self.present),
            ServerKey::Previous => self.previous.as_ref(),
        }
    }
}

impl ClientSettings {
    /// How the server came to know it; by an invitation, the secret as well.
    pub fn introduction(&self) -> Result<(Introduction, Option<InvitationSecret>), KeyFileError> {
        match &self.introduced {
            Introduced::ByKey { public_key, .. } => Ok((Introduction::Key(*public_key), None)),
            Introduced::ByInvitation { secret_file, .. } => {
                let secret = super::key_reader().invitation_secret(secret_file)?;
                Ok((Introduction::Invitation(secret.fingerprint()), Some(secret)))
            }
        }
    }

    /// The keys by which it is known now: the present one, and one that is pending.
    pub fn keys(
        &self,
        enrolments: &Enrolments,
    ) -> Result<(Option<PublicKey>, Option<PublicKey>), KeyFileError> {
        let announced = enrolments.of(&self.introduction()?.0).cloned().unwrap_or_default();
        let key = |key: ClientKey| key.key;
        let at_first = self.public_key().filter(|_| !announced.is_lost);
        Ok((announced.present.map(key).or(at_first), announced.pending.map(key)))
    }
}

/// Reads the server's private keys. A previous one that can't be read is a problem of its own: it
/// must not keep those out who use the present one.
pub(super) fn server_keys(path: &Path, settings: &Settings) -> (Option<ServerKeys>, Vec<Problem>) {
    let problem = |key: &str, error: ValueError| Problem {
        path: path.into(),
        fault: Fault::value(key, error),
    };
    let mut problems = Vec::new();
    let previous = settings.previous_key.as_ref().and_then(|previous| {
        match super::key_reader().private_key(&previous.private_key_file) {
            Ok(private) => Some((Arc::new(private), previous.until)),
            Err(error) => {
                problems.push(problem("previous-private-key-file", error.into()));
                None
            }
        }
    });
    match super::read_private_key(path, settings) {
        Ok(present) => (Some(ServerKeys { present: Arc::new(present), previous }), problems),
        Err(wrong) => {
            problems.push(wrong);
            (None, problems)
        }
    }
}
