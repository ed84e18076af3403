//! Announcing this client's new key to a server (`docs/protocol.md`, section 9): the first one,
//! by an invitation, or the next one, under the present one.

use crate::knock::{KnockError, Sent, deliver, nonce, stamp_now};
use crate::schedule::rotated;
use crate::server::{DEFAULT_KNOCK_PORT, Server};
use crate::source::BindSource;
use core::net::SocketAddr;
use ring::rand::SystemRandom;
use spa_keys::{
    AnnouncementSecret, Announcing, ClientKeys, DeriveError, Invitation, PrivateKey, PublicKey,
};
use spa_proto::{MaskKey, PairSecret};

/// What is announced, and the secret that seals it.
pub(crate) struct Announcement {
    announcing: Announcing,
    pair: PairSecret,
}

impl Announcement {
    /// The first key of this client, by an invitation.
    pub(crate) fn enrolment(
        invitation: &Invitation,
        new: &PrivateKey,
    ) -> Result<Self, DeriveError> {
        let secret = AnnouncementSecret::of_invitation(&invitation.secret);
        let announcing = Announcing::new(&secret, new, &invitation.server)?;
        Ok(Self { announcing, pair: invitation.secret.keys(&invitation.server).pair })
    }

    /// The next key of this client, under the present one.
    pub(crate) fn rotation(
        present: &ClientKeys,
        new: &PrivateKey,
        server: &PublicKey,
    ) -> Result<Self, DeriveError> {
        let pre_shared = present.pre_shared.as_ref();
        let secret = AnnouncementSecret::of_client(&present.private, server, pre_shared)?;
        let announcing = Announcing::new(&secret, new, server)?;
        let pair = spa_keys::pair_secret_for_client(&present.private, server, pre_shared)?;
        Ok(Self { announcing, pair })
    }

    /// The new key with the pre-shared key that goes with it from now on.
    pub(crate) fn keys(&self, new: PrivateKey) -> ClientKeys {
        ClientKeys { private: new, pre_shared: Some(self.announcing.pre_shared_key().again()) }
    }
}

/// Sends an announcement, as often as it takes.
pub(crate) struct Announcer<'a> {
    server: &'a Server,
    announcement: &'a Announcement,
    addresses: Vec<SocketAddr>,
    mask: MaskKey,
    random: SystemRandom,
    round: u32,
}

impl<'a> Announcer<'a> {
    /// To these addresses of the server.
    pub(crate) fn new(
        server: &'a Server,
        announcement: &'a Announcement,
        addresses: &[SocketAddr],
    ) -> Self {
        Self {
            server,
            announcement,
            addresses: addresses.to_vec(),
            mask: spa_keys::mask_key(&server.public_key),
            random: SystemRandom::new(),
            round: 0,
        }
    }

    /// Sends it to each address, each packet sealed on its own; the next call to the next knock
    /// port.
    ///
    /// # Errors
    ///
    /// When none left this machine.
    pub(crate) fn send(&mut self) -> Result<Vec<Sent>, KnockError> {
        let port = rotated(&self.server.knock_ports, self.round).unwrap_or(DEFAULT_KNOCK_PORT);
        self.round = self.round.saturating_add(1);
        deliver(self.server.host.as_str(), self.addresses.iter().copied(), port, |_, own| {
            // Where a STUN server would have to be asked, as observed will do: it opens nothing.
            let binding = BindSource::Auto.binding(own, None);
            let message = self.announcement.announcing.message(binding.address());
            let (stamp, nonce) = (stamp_now()?, nonce(&self.random)?);
            let length = self.server.length;
            let pair = &self.announcement.pair;
            let packet =
                spa_proto::seal_announcement(pair, &self.mask, &message, stamp, nonce, length)?;
            Ok((binding, packet))
        })
    }
}
