//! Plaintexts of somebody who has a key, or an invitation, and another client than ours: whatever he
//! seals, what is read of it is sealed the same by ours, and an announcement holds as it was made only.
#![no_main]

use chacha20poly1305::aead::AeadInOut as _;
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305};
use hmac::{Hmac, Mac as _};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use sha2::Sha256;
use spa_keys::{
    AnnouncementSecret, Announcing, InvitationSecret, PrivateKey, PublicKey, mask_key,
    open_announcement, pair_secret_for_client,
};
use spa_proto::{
    AnnouncementKind, ClientId, Epoch, Item, Items, MaskKey, MessageType, Nonce, PacketLength,
    PairSecret, Receiver, Request, Sender, ServerKey, Settings, Tag, UnixMicros, Verdict, masked,
    seal, seal_announcement,
};
use std::num::NonZeroU32;
use std::sync::LazyLock;
use zeroize::Zeroizing;

const NOW: UnixMicros = UnixMicros(1_800_000_000_000_000);
const NONCE: Nonce = Nonce([7; 24]);
const SOURCE: &str = "192.0.2.1";
/// Where the clock stands in a plaintext.
const STAMP: std::ops::Range<usize> = 2..10;

#[derive(Debug, Arbitrary)]
struct Input {
    /// Who sends it.
    is_invited: bool,
    /// What it is made of,
    base: Base,
    /// with these bytes changed,
    changes: Vec<(u8, u8)>,
    /// and a clock that is right.
    in_time: bool,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Base {
    Bytes([u8; 128]),
    Request { closes: bool, lifetime: u32, items: [u8; 3], bound: bool },
    Enrolment,
    Rotation,
}

/// Everybody, and the keys between them.
struct World {
    server: PrivateKey,
    mask: MaskKey,
    /// Of the client, and of the invitation.
    pairs: [PairSecret; 2],
    senders: [Sender; 2],
    /// Of a rotation, and of an enrolment.
    secrets: [AnnouncementSecret; 2],
    announcing: [Announcing; 2],
    new: PublicKey,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let private = |seed: u8| PrivateKey::from_bytes(Zeroizing::new([seed; 32]));
    let (server, client, new) = (private(3), private(4), private(5));
    let (name, id) = (server.public(), client.public());
    let invitation = InvitationSecret::from_bytes(Zeroizing::new([6; 32])).unwrap();
    let invited = invitation.keys(&name);
    let of_client = AnnouncementSecret::of_client(&client, &name, None).unwrap();
    let of_invitation = AnnouncementSecret::of_invitation(&invitation);
    World {
        mask: mask_key(&name),
        senders: [Sender::Client(ClientId::from(id)), Sender::Invitation(invited.id)],
        announcing: [&of_client, &of_invitation]
            .map(|secret| Announcing::new(secret, &new, &name).unwrap()),
        secrets: [AnnouncementSecret::of_server(&server, &id, None).unwrap(), of_invitation],
        pairs: [pair_secret_for_client(&client, &name, None).unwrap(), invited.pair],
        new: new.public(),
        server,
    }
});

fn receiver(world: &World) -> Receiver {
    let mut receiver = Receiver::new(Settings::default(), world.mask.clone());
    receiver.set_senders(
        ServerKey::Present,
        world.mask.clone(),
        world.senders.into_iter().zip(world.pairs.clone()),
    );
    receiver
}

/// What an honest client would seal, in the clear.
fn plaintext(world: &World, base: Base, pair: &PairSecret) -> Vec<u8> {
    let length = PacketLength::default();
    let announced = |which: usize| {
        let message = world.announcing[which].message(None);
        seal_announcement(pair, &world.mask, &message, NOW, NONCE, length).unwrap()
    };
    let datagram = match base {
        Base::Bytes(bytes) => return bytes.into(),
        Base::Rotation => announced(0),
        Base::Enrolment => announced(1),
        Base::Request { closes, lifetime, items, bound } => {
            let item = |byte: u8| -> Item {
                let name = ["ssh", "web", "vpn-1"][usize::from(byte) % 3];
                let port = [
                    format!("tcp/{}", u16::from(byte) + 1),
                    format!("udp/{}", u16::from(byte) + 1),
                ];
                [name, &port[0], &port[1]][usize::from(byte) / 86 % 3].parse().unwrap()
            };
            let mut items: Vec<Item> = items.into_iter().map(item).collect();
            items.sort();
            items.dedup();
            let request = Request {
                message_type: if closes { MessageType::Close } else { MessageType::Open },
                items: Items::try_from(items).unwrap(),
                bound_source: bound.then(|| SOURCE.parse().unwrap()),
                lifetime: NonZeroU32::new(lifetime),
            };
            seal(pair, &world.mask, &request, NOW, NONCE, length).unwrap()
        }
    };
    let (tag, rest) = datagram.split_first_chunk::<16>().unwrap();
    let (_, rest) = rest.split_first_chunk::<24>().unwrap();
    let (rest, _) = rest.split_last_chunk::<32>().unwrap();
    let (text, aead_tag) = rest.split_last_chunk::<16>().unwrap();
    let mut text = text.to_vec();
    XChaCha20Poly1305::new(pair.keys()[1].into())
        .decrypt_inout_detached(
            &NONCE.0.into(),
            tag,
            text.as_mut_slice().into(),
            &(*aead_tag).into(),
        )
        .unwrap();
    text
}

/// Seals it by what docs/protocol.md says, and by nothing of ours but the tag.
fn seal_plaintext(world: &World, pair: &PairSecret, text: &[u8]) -> Vec<u8> {
    let stamp = UnixMicros(u64::from_be_bytes(text[STAMP].try_into().unwrap()));
    let is_near = stamp.distance(NOW).as_secs() <= 60;
    let epoch = Epoch::of(if is_near { stamp } else { NOW });
    let tag = masked(&world.mask, &NONCE, Tag::of(pair, epoch));
    let [_, enc, mac] = pair.keys();
    let mut sealed = text.to_vec();
    let aead_tag = XChaCha20Poly1305::new(enc.into())
        .encrypt_inout_detached(&NONCE.0.into(), &tag.0, sealed.as_mut_slice().into())
        .unwrap();
    let mut datagram = [&tag.0[..], &NONCE.0, &sealed, &aead_tag].concat();
    let mut hmac = Hmac::<Sha256>::new_from_slice(mac).unwrap();
    hmac.update(&datagram);
    datagram.extend_from_slice(&hmac.finalize().into_bytes());
    datagram
}

fuzz_target!(|input: Input| {
    let world = &*WORLD;
    let sender = usize::from(input.is_invited);
    let pair = &world.pairs[sender];
    let base = plaintext(world, input.base, pair);
    let mut text = base.clone();
    for (at, change) in input.changes {
        text[usize::from(at) % base.len()] ^= change;
    }
    if input.in_time {
        text[STAMP].copy_from_slice(&NOW.0.to_be_bytes());
    }
    let datagram = seal_plaintext(world, pair, &text);
    let is_ours = text == base
        && match input.base {
            Base::Bytes(_) => false,
            Base::Request { .. } | Base::Rotation => !input.is_invited,
            Base::Enrolment => input.is_invited,
        };
    match receiver(world).receive(NOW, SOURCE.parse().unwrap(), &datagram) {
        Verdict::Authentic(knock) => {
            assert!(!input.is_invited, "an invitation opens: {knock:?}");
            let length = PacketLength::default();
            let again = seal(pair, &world.mask, &knock.request, knock.stamp, NONCE, length);
            assert_eq!(again.unwrap(), datagram, "another plaintext says the same: {knock:?}");
        }
        Verdict::Announced(announced) => {
            assert_eq!(announced.sender, world.senders[sender]);
            let kind = announced.announcement.kind();
            assert_eq!(kind == AnnouncementKind::Enrolment, input.is_invited);
            let opened =
                open_announcement(&world.secrets[sender], &world.server, &announced.announcement);
            match opened {
                Ok(opened) => {
                    assert!(is_ours, "a changed announcement holds");
                    assert_eq!(opened.key, world.new);
                }
                Err(error) => assert!(!is_ours, "{error}"),
            }
        }
        Verdict::Dropped(dropped) => assert!(!is_ours, "{dropped:?}"),
    }
});
