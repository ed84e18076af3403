//! The keys of an announcement, by which a client's new key is told to the server (§9.2).

use crate::derive::{self, DeriveError};
use crate::{InvitationSecret, PreSharedKey, PrivateKey, PublicKey};
use core::fmt;
use spa_proto::{Announcement, AnnouncementKeys, AnnouncementKind, NewKey};
use std::net::IpAddr;
use zeroize::{ZeroizeOnDrop, Zeroizing};

/// `X`: what both sides have in common before the announcement, and what it is for.
pub struct AnnouncementSecret {
    kind: AnnouncementKind,
    secret: Zeroizing<[u8; 32]>,
}

impl AnnouncementSecret {
    /// For an enrolment: the secret of the invitation.
    pub fn of_invitation(invitation: &InvitationSecret) -> Self {
        Self { kind: AnnouncementKind::Enrolment, secret: Zeroizing::new(*invitation.as_bytes()) }
    }

    /// For a rotation, on the client's side: what its present key has in common with the server.
    pub fn of_client(
        me: &PrivateKey,
        server: &PublicKey,
        pre_shared: Option<&PreSharedKey>,
    ) -> Result<Self, DeriveError> {
        Self::of_pair(me, server, pre_shared, &me.public(), server)
    }

    /// For a rotation, on the server's side.
    pub fn of_server(
        me: &PrivateKey,
        client: &PublicKey,
        pre_shared: Option<&PreSharedKey>,
    ) -> Result<Self, DeriveError> {
        Self::of_pair(me, client, pre_shared, client, &me.public())
    }

    fn of_pair(
        me: &PrivateKey,
        other: &PublicKey,
        pre_shared: Option<&PreSharedKey>,
        client: &PublicKey,
        server: &PublicKey,
    ) -> Result<Self, DeriveError> {
        let info = [b"rotation".as_slice(), client.as_bytes(), server.as_bytes()];
        let secret = derive::from_pair(me, other, pre_shared, &info)?;
        Ok(Self { kind: AnnouncementKind::Rotation, secret })
    }
}

// `Zeroizing` wipes itself.
impl ZeroizeOnDrop for AnnouncementSecret {}

impl fmt::Debug for AnnouncementSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AnnouncementSecret({}, redacted)", self.kind.as_str())
    }
}

/// An announcement on the client's side: the same for all its packets.
#[derive(Debug)]
pub struct Announcing {
    kind: AnnouncementKind,
    ephemeral: PublicKey,
    key: PublicKey,
    keys: AnnouncementKeys,
    pre_shared: PreSharedKey,
}

impl Announcing {
    /// Derives what announces the key `new` to `server`. The ephemeral key follows from `new` and
    /// the secret: so an announcement that was interrupted can be repeated, and is the same one.
    pub fn new(
        secret: &AnnouncementSecret,
        new: &PrivateKey,
        server: &PublicKey,
    ) -> Result<Self, DeriveError> {
        let parts = Zeroizing::new([*new.as_bytes(), *secret.secret]);
        let info = [b"ephemeral".as_slice(), server.as_bytes()];
        let ephemeral = derive::hkdf_sha256::<32>(parts.as_flattened(), &info);
        Self::with_ephemeral(secret, new, server, &PrivateKey::from_bytes(ephemeral))
    }

    /// The same with a given ephemeral key, which is to be used for this announcement alone.
    pub fn with_ephemeral(
        secret: &AnnouncementSecret,
        new: &PrivateKey,
        server: &PublicKey,
        ephemeral: &PrivateKey,
    ) -> Result<Self, DeriveError> {
        let (e, n) = (ephemeral.public(), new.public());
        let es = derive::agreement(ephemeral, server)?;
        let ns = derive::agreement(new, server)?;
        let k_new = k_new(secret, &es, &e, server);
        let (k_proof, pre_shared) = k_proof(secret, &es, &ns, &e, &n, server);
        let keys = AnnouncementKeys::new(*k_new, *k_proof);
        Ok(Self { kind: secret.kind, ephemeral: e, key: n, keys, pre_shared })
    }

    /// What a packet says.
    pub fn message(&self, bound_source: Option<IpAddr>) -> NewKey<'_> {
        NewKey {
            kind: self.kind,
            ephemeral: *self.ephemeral.as_bytes(),
            key: *self.key.as_bytes(),
            keys: &self.keys,
            bound_source,
        }
    }

    /// The pre-shared key of the new key and the server, from then on.
    pub const fn pre_shared_key(&self) -> &PreSharedKey {
        &self.pre_shared
    }
}

/// What was announced and proved.
#[derive(Debug)]
pub struct Announced {
    /// The new public key.
    pub key: PublicKey,
    /// The pre-shared key that belongs to it.
    pub pre_shared: PreSharedKey,
}

/// Opens an announcement on the server's side, and checks that its sender has the private half of
/// the key.
pub fn open_announcement(
    secret: &AnnouncementSecret,
    me: &PrivateKey,
    announcement: &Announcement,
) -> Result<Announced, AnnouncementError> {
    if announcement.kind() != secret.kind {
        return Err(AnnouncementError::Kind);
    }
    let server = me.public();
    let ephemeral = PublicKey::from_bytes(announcement.ephemeral());
    let es = derive::agreement(me, &ephemeral).map_err(AnnouncementError::Ephemeral)?;
    let k_new = k_new(secret, &es, &ephemeral, &server);
    let key = announcement.open_key(&k_new).ok_or(AnnouncementError::Sealed)?;
    let key = PublicKey::from_bytes(key);
    let ns = derive::agreement(me, &key).map_err(AnnouncementError::Key)?;
    let (k_proof, pre_shared) = k_proof(secret, &es, &ns, &ephemeral, &key, &server);
    if announcement.proof_holds(&k_proof) {
        Ok(Announced { key, pre_shared })
    } else {
        Err(AnnouncementError::Proof)
    }
}

/// Why an announcement is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AnnouncementError {
    /// An enrolment where a rotation belongs, or the other way round.
    #[error("it is of the other kind")]
    Kind,
    /// The ephemeral key can't be used.
    #[error("its ephemeral key can't be used: {0}")]
    Ephemeral(DeriveError),
    /// The seal around the new key does not hold.
    #[error("the seal around the new key does not hold")]
    Sealed,
    /// The new key can't be used.
    #[error("the new key can't be used: {0}")]
    Key(DeriveError),
    /// The sender has not shown that he has the private half.
    #[error("it does not prove that its sender has the private half of the key")]
    Proof,
}

fn k_new(
    secret: &AnnouncementSecret,
    es: &Zeroizing<[u8; 32]>,
    ephemeral: &PublicKey,
    server: &PublicKey,
) -> Zeroizing<[u8; 32]> {
    let ikm = Zeroizing::new([*secret.secret, **es]);
    let label = secret.kind.as_str().as_bytes();
    let info = [label, b" key".as_slice(), ephemeral.as_bytes(), server.as_bytes()];
    derive::hkdf_sha256(ikm.as_flattened(), &info)
}

fn k_proof(
    secret: &AnnouncementSecret,
    es: &Zeroizing<[u8; 32]>,
    ns: &Zeroizing<[u8; 32]>,
    ephemeral: &PublicKey,
    key: &PublicKey,
    server: &PublicKey,
) -> (Zeroizing<[u8; 32]>, PreSharedKey) {
    let ikm = Zeroizing::new([*secret.secret, **es, **ns]);
    let label = secret.kind.as_str().as_bytes();
    let parts = [ephemeral.as_bytes(), key.as_bytes(), server.as_bytes()].map(<[u8; 32]>::as_slice);
    let info = [label, b" proof".as_slice(), parts[0], parts[1], parts[2]];
    let output = derive::hkdf_sha256::<64>(ikm.as_flattened(), &info);
    let (k_proof, pre_shared) = halves(&output);
    (k_proof, PreSharedKey::derived(pre_shared))
}

fn halves(output: &[u8; 64]) -> (Zeroizing<[u8; 32]>, Zeroizing<[u8; 32]>) {
    let mut halves = [Zeroizing::new([0; 32]), Zeroizing::new([0; 32])];
    for (half, bytes) in halves.iter_mut().zip(output.as_chunks::<32>().0) {
        half.copy_from_slice(bytes);
    }
    let [first, second] = halves;
    (first, second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use spa_proto::{
        MaskKey, Nonce, PacketLength, PairSecret, Receiver, Sender, ServerKey, Settings,
        UnixMicros, Verdict, seal_announcement,
    };

    const NOW: UnixMicros = UnixMicros::from_secs(1_800_000_000);

    fn private(byte: u8) -> PrivateKey {
        PrivateKey::from_bytes(Zeroizing::new([byte; 32]))
    }

    fn invitation(byte: u8) -> AnnouncementSecret {
        let secret = InvitationSecret::from_bytes(Zeroizing::new([byte; 32])).unwrap();
        AnnouncementSecret::of_invitation(&secret)
    }

    /// Over the wire and back.
    fn received(message: &NewKey<'_>) -> Announcement {
        let pair = || PairSecret::new([1; 32], [2; 32], [3; 32]);
        let mask = || MaskKey::new([4; 32]);
        let length = PacketLength::default();
        let packet =
            seal_announcement(&pair(), &mask(), message, NOW, Nonce([5; 24]), length).unwrap();
        let mut receiver = Receiver::new(Settings::default(), mask());
        let id = spa_proto::ClientId([6; 32]);
        let sender = match message.kind {
            AnnouncementKind::Enrolment => Sender::Invitation(id),
            AnnouncementKind::Rotation => Sender::Client(id),
        };
        receiver.set_senders(ServerKey::Present, mask(), [(sender, pair())]);
        match receiver.receive(NOW, "192.0.2.1".parse().unwrap(), &packet) {
            Verdict::Announced(announced) => announced.announcement,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn both_sides_agree_on_key_and_pre_shared_key() {
        let (server, new, old) = (private(1), private(2), private(3));
        let pre_shared = PreSharedKey::from_bytes(Zeroizing::new([4; 32])).unwrap();
        let psk = Some(&pre_shared);
        for (of_client, of_server) in [
            (invitation(7), invitation(7)),
            (
                AnnouncementSecret::of_client(&old, &server.public(), psk).unwrap(),
                AnnouncementSecret::of_server(&server, &old.public(), psk).unwrap(),
            ),
        ] {
            let announcing = Announcing::new(&of_client, &new, &server.public()).unwrap();
            let read = received(&announcing.message(None));
            let announced = open_announcement(&of_server, &server, &read).unwrap();
            assert_eq!(announced.key, new.public());
            assert_eq!(announced.pre_shared.to_text(), announcing.pre_shared_key().to_text());
            // Repeated, it is the same announcement; of another key, or to another server, not.
            let again = Announcing::new(&of_client, &new, &server.public()).unwrap();
            assert_eq!(again.ephemeral, announcing.ephemeral);
            let other = Announcing::new(&of_client, &private(9), &server.public()).unwrap();
            assert_ne!(other.ephemeral, announcing.ephemeral);
            let elsewhere = Announcing::new(&of_client, &new, &private(9).public()).unwrap();
            assert_ne!(elsewhere.ephemeral, announcing.ephemeral);
        }
    }

    #[test]
    fn the_pre_shared_key_is_bound_to_all_that_it_comes_from() {
        let of = |secret: &AnnouncementSecret, new: u8, server: u8, ephemeral: u8| {
            let server = private(server).public();
            let ephemeral = private(ephemeral);
            let announcing =
                Announcing::with_ephemeral(secret, &private(new), &server, &ephemeral).unwrap();
            announcing.pre_shared.to_text().to_string()
        };
        let rotation = AnnouncementSecret {
            kind: AnnouncementKind::Rotation,
            secret: Zeroizing::new([7; 32]),
        };
        let all = [
            of(&invitation(7), 2, 1, 5),
            of(&invitation(8), 2, 1, 5),
            of(&invitation(7), 3, 1, 5),
            of(&invitation(7), 2, 4, 5),
            of(&invitation(7), 2, 1, 6),
            of(&rotation, 2, 1, 5),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(all[..at].iter().all(|other| other != one), "{at}");
            assert_ne!(
                **one,
                *InvitationSecret::from_bytes(Zeroizing::new([7; 32])).unwrap().to_text()
            );
        }
    }

    #[test]
    fn whoever_has_not_the_private_half_is_not_believed() {
        let server = private(1);
        let secret = invitation(7);
        let theirs = Announcing::new(&secret, &private(2), &server.public()).unwrap();
        let mine = Announcing::new(&secret, &private(3), &server.public()).unwrap();
        // Another one's key under one's own proof: the seal is that of one's own ephemeral key.
        let keys = derive_for_stolen(&secret, &server.public(), &private(5), &private(3));
        let stolen = NewKey {
            kind: AnnouncementKind::Enrolment,
            ephemeral: *private(5).public().as_bytes(),
            key: *private(2).public().as_bytes(),
            keys: &keys,
            bound_source: None,
        };
        let opened = open_announcement(&secret, &server, &received(&stolen));
        assert_eq!(opened.unwrap_err(), AnnouncementError::Proof);
        // The positive control: with the key that the proof is for.
        let own = NewKey { key: *private(3).public().as_bytes(), ..stolen };
        assert!(open_announcement(&secret, &server, &received(&own)).is_ok());

        let mixed = NewKey { ephemeral: *theirs.ephemeral.as_bytes(), ..mine.message(None) };
        let opened = open_announcement(&secret, &server, &received(&mixed));
        assert_eq!(opened.unwrap_err(), AnnouncementError::Sealed);
        let of_other_invitation =
            open_announcement(&invitation(8), &server, &received(&mine.message(None)));
        assert_eq!(of_other_invitation.unwrap_err(), AnnouncementError::Sealed);
        let to_other_server =
            open_announcement(&secret, &private(9), &received(&mine.message(None)));
        assert_eq!(to_other_server.unwrap_err(), AnnouncementError::Sealed);
    }

    fn derive_for_stolen(
        secret: &AnnouncementSecret,
        server: &PublicKey,
        ephemeral: &PrivateKey,
        own: &PrivateKey,
    ) -> AnnouncementKeys {
        Announcing::with_ephemeral(secret, own, server, ephemeral).unwrap().keys
    }

    #[test]
    fn keys_that_give_no_secret_are_refused() {
        let server = private(1);
        let secret = invitation(7);
        let good = Announcing::new(&secret, &private(2), &server.public()).unwrap();
        let low = NewKey { ephemeral: [0; 32], ..good.message(None) };
        assert_eq!(
            open_announcement(&secret, &server, &received(&low)).unwrap_err(),
            AnnouncementError::Ephemeral(DeriveError::LowOrder)
        );
        for (key, error) in [
            ([0; 32], DeriveError::LowOrder),
            (*server.public().as_bytes(), DeriveError::SameKey),
            (
                {
                    let mut bytes = *private(2).public().as_bytes();
                    bytes[31] |= 0x80;
                    bytes
                },
                DeriveError::NotCanonical,
            ),
        ] {
            let bad = NewKey { key, ..good.message(None) };
            assert_eq!(
                open_announcement(&secret, &server, &received(&bad)).unwrap_err(),
                AnnouncementError::Key(error)
            );
        }
        // The client's side: a server without a secret to share.
        let zero = PublicKey::from_bytes([0; 32]);
        let refused = Announcing::new(&secret, &private(2), &zero).unwrap_err();
        assert_eq!(refused, DeriveError::LowOrder);
    }

    #[test]
    fn an_enrolment_is_no_rotation() {
        let server = private(1);
        let secret = invitation(7);
        let announcing = Announcing::new(&secret, &private(2), &server.public()).unwrap();
        let rotation =
            AnnouncementSecret { kind: AnnouncementKind::Rotation, secret: secret.secret.clone() };
        let read = received(&announcing.message(None));
        let opened = open_announcement(&rotation, &server, &read);
        assert_eq!(opened.unwrap_err(), AnnouncementError::Kind);
        let message = NewKey { kind: AnnouncementKind::Rotation, ..announcing.message(None) };
        let opened = open_announcement(&rotation, &server, &received(&message));
        assert_eq!(opened.unwrap_err(), AnnouncementError::Sealed);
    }
}
