//! The keys behind the configuration: the server's own, and those that its clients have now.

use super::client::{ClientSettings, Introduced};
use super::error::{Fault, Problem, ValueError};
use super::settings::Settings;
use crate::enrolment::{ClientKey, Enrolments, Introduction, Invited, Member};
use spa_keys::{
    InvitationKeys, InvitationSecret, KeyFileError, PreSharedKey, PrivateKey, PublicKey, mask_key,
    pair_secret_for_server, read_invitation_secret, read_pre_shared_key,
};
use spa_proto::{ClientId, MaskKey, PairSecret, Sender, ServerKey, UnixMicros};
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
        let present = pair_secret_for_server(&self.present, client, pre_shared)?;
        let previous = self
            .previous
            .as_ref()
            .map(|(private, _)| pair_secret_for_server(private, client, pre_shared))
            .transpose()?;
        Ok(PairSecrets { present, previous })
    }
}

/// What the server's identities have in common with one key of a client.
#[derive(Debug)]
pub struct PairSecrets {
    present: PairSecret,
    previous: Option<PairSecret>,
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

/// A client, and the keys by which it is known now.
#[derive(Debug)]
pub struct Client {
    /// What its file says.
    pub settings: ClientSettings,
    /// How the server came to know it at first.
    pub introduction: Introduction,
    /// None before it has come; the one that it has; and one that is to take its place.
    pub keys: Vec<KnownKey>,
    /// Those that it has had before, or was to have.
    former: Vec<PublicKey>,
    /// What it enrols by, or has enrolled by.
    pub(super) invitation: Option<Arc<InvitationSecret>>,
    invitation_keys: Vec<(ServerKey, InvitationKeys)>,
}

/// A key that a client knocks with.
#[derive(Debug)]
pub struct KnownKey {
    /// The key.
    pub key: PublicKey,
    /// What its knocks are sealed with.
    pub secrets: PairSecrets,
    /// What belongs to it.
    pub pre_shared: Option<Arc<PreSharedKey>>,
    /// Whether it is only to be the client's key.
    pub is_pending: bool,
}

impl ClientSettings {
    /// How the server came to know it; by an invitation, the secret as well.
    pub fn introduction(&self) -> Result<(Introduction, Option<InvitationSecret>), KeyFileError> {
        match &self.introduced {
            Introduced::ByKey { public_key, .. } => Ok((Introduction::Key(*public_key), None)),
            Introduced::ByInvitation { secret_file, .. } => {
                let secret = read_invitation_secret(secret_file)?;
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

impl Client {
    /// The client's name.
    pub fn name(&self) -> &str {
        self.settings.name.as_str()
    }

    /// Finds out by which keys a client is known, and derives what they share with the server's.
    pub(super) fn derive(
        settings: ClientSettings,
        server: &ServerKeys,
        enrolments: &Enrolments,
    ) -> Result<Self, Problem> {
        let file = settings.file.clone();
        let problem = |key: &str, error: ValueError| Problem {
            path: file.clone(),
            fault: Fault::value(key, error),
        };
        let (introduction, invitation) = settings
            .introduction()
            .map_err(|error| problem("invitation.secret-file", error.into()))?;
        let at_first = match &settings.introduced {
            Introduced::ByKey { public_key, pre_shared_key_file } => {
                let pre_shared = pre_shared_key_file.as_ref().map(read_pre_shared_key).transpose();
                let pre_shared =
                    pre_shared.map_err(|error| problem("pre-shared-key-file", error.into()))?;
                Some((*public_key, pre_shared.map(Arc::new)))
            }
            Introduced::ByInvitation { .. } => None,
        };
        let invitation = invitation.map(Arc::new);
        let announced = enrolments.of(&introduction).cloned().unwrap_or_default();
        let parts = |key: ClientKey| (key.key, Some(key.pre_shared));
        let at_first = at_first.filter(|_| !announced.is_lost);
        let present = announced.present.map(parts).or(at_first);
        let keys = [(present, false), (announced.pending.map(parts), true)]
            .into_iter()
            .filter_map(|(key, is_pending)| key.map(|(key, psk)| (key, psk, is_pending)))
            .map(|(key, pre_shared, is_pending)| {
                let secrets = server
                    .pair_secrets(&key, pre_shared.as_deref())
                    .map_err(|error| problem("public-key", error.into()))?;
                Ok(KnownKey { key, secrets, pre_shared, is_pending })
            })
            .collect::<Result<_, Problem>>()?;
        let invitation_keys = invitation.iter().flat_map(|secret| {
            let both = [ServerKey::Present, ServerKey::Previous];
            both.into_iter().filter_map(|which| {
                server.private(which).map(|own| (which, secret.keys(&own.public())))
            })
        });
        let invitation_keys = invitation_keys.collect();
        let former = announced.former;
        Ok(Self { settings, introduction, keys, former, invitation, invitation_keys })
    }

    /// Who seals packets to one of the server's identities for this client, and with what.
    pub(super) fn senders(&self, which: ServerKey) -> Vec<(Sender, PairSecret)> {
        let keys = self.keys.iter().filter_map(|known| {
            let secret = known.secrets.get(which)?;
            Some((Sender::Client(known.key.into()), secret.clone()))
        });
        let invitation = self.invitation_keys.iter().filter(|(of, _)| *of == which);
        keys.chain(invitation.map(|(_, keys)| (Sender::Invitation(keys.id), keys.pair.clone())))
            .collect()
    }

    /// The keys by which it knocks, and what is known of each.
    pub fn members(&self) -> impl Iterator<Item = (ClientId, Member)> {
        self.keys.iter().map(|known| {
            let member = Member {
                introduction: self.introduction.clone(),
                pre_shared: known.pre_shared.clone(),
                is_pending: known.is_pending,
            };
            (known.key.into(), member)
        })
    }

    /// The keys by which it knocks, each with all others that it has or had.
    pub(super) fn kin(&self) -> impl Iterator<Item = (ClientId, Vec<ClientId>)> {
        let all = || self.keys.iter().map(|known| known.key).chain(self.former.iter().copied());
        self.keys.iter().map(move |known| {
            let others = all().filter(|key| *key != known.key);
            (known.key.into(), others.map(ClientId::from).collect())
        })
    }

    /// Its invitation, by each of its ids.
    pub fn invitations(&self) -> impl Iterator<Item = (ClientId, Invited)> {
        let invited = match (&self.invitation, &self.settings.introduced) {
            (Some(secret), Introduced::ByInvitation { issued, expires, .. }) => Some(Invited {
                introduction: self.introduction.clone(),
                name: self.name().into(),
                secret: Arc::clone(secret),
                issued: *issued,
                expires: *expires,
            }),
            _ => None,
        };
        self.invitation_keys
            .iter()
            .filter_map(move |(_, keys)| invited.clone().map(|invited| (keys.id, invited)))
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
        match spa_keys::read_private_key(&previous.private_key_file) {
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
