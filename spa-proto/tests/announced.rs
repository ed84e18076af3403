//! Announcements of keys, and two identities of one server, before a receiver.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use core::net::IpAddr;
use core::time::Duration;
use spa_proto::{
    Announced, AnnouncementKeys, AnnouncementKind, ClientId, DropReason, Item, MaskKey,
    MessageType, NewKey, Nonce, PacketLength, PairSecret, Receiver, Request, Sender, ServerKey,
    Settings, UnixMicros, Verdict, seal, seal_announcement,
};

const NOW: UnixMicros = UnixMicros::from_secs(1_800_000_030);
const CLIENT: Sender = Sender::Client(ClientId([1; 32]));
const INVITATION: Sender = Sender::Invitation(ClientId([2; 32]));
const LENGTH: u16 = 128;

fn mask(server: u8) -> MaskKey {
    MaskKey::new([server; 32])
}

fn secret(of: u8) -> PairSecret {
    PairSecret::new([of; 32], [of ^ 0x55; 32], [of ^ 0xaa; 32])
}

fn receiver() -> Receiver {
    let mut receiver = Receiver::new(Settings::default(), mask(9));
    let senders = [(CLIENT, secret(1)), (INVITATION, secret(2))];
    receiver.set_senders(ServerKey::Present, mask(9), senders);
    receiver
}

fn source() -> IpAddr {
    "192.0.2.7".parse().unwrap()
}

fn announcement(of: u8, kind: AnnouncementKind, nonce: u8, bound: Option<IpAddr>) -> Vec<u8> {
    let keys = AnnouncementKeys::new([3; 32], [4; 32]);
    let new = NewKey { kind, ephemeral: [5; 32], key: [6; 32], keys: &keys, bound_source: bound };
    let length = PacketLength::try_from(LENGTH).unwrap();
    seal_announcement(&secret(of), &mask(9), &new, NOW, Nonce([nonce; 24]), length).unwrap()
}

fn open(of: u8, server: u8, nonce: u8) -> Vec<u8> {
    let request = Request {
        message_type: MessageType::Open,
        items: "ssh".parse::<Item>().unwrap().try_into().unwrap(),
        bound_source: None,
        lifetime: None,
    };
    let nonce = Nonce([nonce; 24]);
    seal(&secret(of), &mask(server), &request, NOW, nonce, PacketLength::default()).unwrap()
}

fn announced(verdict: Verdict) -> Announced {
    match verdict {
        Verdict::Announced(announced) => announced,
        other => panic!("{other:?}"),
    }
}

fn reason(verdict: Verdict) -> DropReason {
    match verdict {
        Verdict::Dropped(dropped) => dropped.reason,
        other => panic!("{other:?}"),
    }
}

fn server_key(verdict: &Verdict) -> Option<ServerKey> {
    match verdict {
        Verdict::Authentic(knock) => Some(knock.server_key),
        _ => None,
    }
}

#[test]
fn each_sender_may_send_what_is_its_own() {
    let mut receiver = receiver();
    for (of, kind, sender) in
        [(1, AnnouncementKind::Rotation, CLIENT), (2, AnnouncementKind::Enrolment, INVITATION)]
    {
        let packet = announcement(of, kind, of, None);
        assert_eq!(packet.len(), 216);
        let announced = announced(receiver.receive(NOW, source(), &packet));
        assert_eq!((announced.sender, announced.announcement.kind()), (sender, kind));
        assert_eq!(announced.announcement.ephemeral(), [5; 32]);
        assert_eq!(announced.announcement.open_key(&[3; 32]), Some([6; 32]));
        assert!(announced.announcement.proof_holds(&[4; 32]));
    }
    // A client can't enrol anybody, and an invitation neither rotates nor opens anything.
    for packet in [
        announcement(1, AnnouncementKind::Enrolment, 3, None),
        announcement(2, AnnouncementKind::Rotation, 4, None),
        open(2, 9, 5),
    ] {
        assert_eq!(reason(receiver.receive(NOW, source(), &packet)), DropReason::Layout);
    }
}

#[test]
fn an_announcement_is_as_fresh_and_as_single_as_a_knock() {
    let mut receiver = receiver();
    let packet = announcement(2, AnnouncementKind::Enrolment, 1, None);
    let first = announced(receiver.receive(NOW, source(), &packet));
    let accepted = receiver.commit_announced(&first).unwrap();
    assert_eq!(reason(receiver.receive(NOW, source(), &packet)), DropReason::Replay);
    assert_eq!(receiver.commit_announced(&first), Err(DropReason::Replay));
    // After a restart as well.
    let mut again = self::receiver();
    again.restore(&accepted);
    assert_eq!(reason(again.receive(NOW, source(), &packet)), DropReason::Replay);

    let late = NOW.saturating_add(Duration::from_secs(61));
    assert_eq!(reason(self::receiver().receive(late, source(), &packet)), DropReason::TooOld);
    let mut barred = self::receiver();
    barred.set_barrier(NOW);
    assert_eq!(reason(barred.receive(NOW, source(), &packet)), DropReason::Barrier);
    let elsewhere = "192.0.2.8".parse().unwrap();
    let bound = announcement(2, AnnouncementKind::Enrolment, 2, Some(elsewhere));
    assert_eq!(reason(receiver.receive(NOW, source(), &bound)), DropReason::BoundSource);
    announced(receiver.receive(NOW, elsewhere, &bound));
    let mut damaged = packet;
    damaged[60] ^= 1;
    assert_eq!(reason(receiver.receive(NOW, source(), &damaged)), DropReason::Mac);
}

#[test]
fn a_client_is_added_and_removed_beside_the_others() {
    let mut receiver = receiver();
    let unknown = reason(receiver.receive(NOW, source(), &open(7, 9, 1)));
    assert_eq!(unknown, DropReason::UnknownTag);
    receiver.add_client(ClientId([7; 32]), ServerKey::Present, secret(7));
    assert!(server_key(&receiver.receive(NOW, source(), &open(7, 9, 1))).is_some());
    // Another secret for the same client takes the place of the first.
    receiver.add_client(ClientId([7; 32]), ServerKey::Present, secret(8));
    assert_eq!(reason(receiver.receive(NOW, source(), &open(7, 9, 2))), DropReason::UnknownTag);
    assert!(server_key(&receiver.receive(NOW, source(), &open(8, 9, 2))).is_some());
    receiver.remove_client(ClientId([7; 32]));
    assert_eq!(reason(receiver.receive(NOW, source(), &open(8, 9, 3))), DropReason::UnknownTag);
    assert!(server_key(&receiver.receive(NOW, source(), &open(1, 9, 4))).is_some());
    // Nor does it come back in a later minute.
    let later = NOW.saturating_add(Duration::from_secs(30));
    assert_eq!(reason(receiver.receive(later, source(), &open(8, 9, 3))), DropReason::UnknownTag);
}

#[test]
fn two_identities_are_valid_side_by_side_and_share_the_replay_window() {
    let mut receiver = receiver();
    receiver.set_senders(ServerKey::Previous, mask(10), [(CLIENT, secret(11))]);
    let present = receiver.receive(NOW, source(), &open(1, 9, 1));
    assert_eq!(server_key(&present), Some(ServerKey::Present));
    let packet = open(11, 10, 2);
    let Verdict::Authentic(knock) = receiver.receive(NOW, source(), &packet) else {
        panic!("the previous identity is dead")
    };
    assert_eq!(knock.server_key, ServerKey::Previous);
    receiver.commit(&knock, &[]).unwrap();
    assert_eq!(reason(receiver.receive(NOW, source(), &packet)), DropReason::Replay);
    // The same nonce under the other identity is the same knock.
    assert_eq!(reason(receiver.receive(NOW, source(), &open(1, 9, 2))), DropReason::Replay);
    // Neither mask goes with the other's secrets.
    for packet in [open(1, 10, 3), open(11, 9, 3)] {
        assert_eq!(reason(receiver.receive(NOW, source(), &packet)), DropReason::UnknownTag);
    }
    receiver.add_client(ClientId([7; 32]), ServerKey::Previous, secret(7));
    assert!(server_key(&receiver.receive(NOW, source(), &open(7, 10, 4))).is_some());
    receiver.forget_previous();
    assert_eq!(reason(receiver.receive(NOW, source(), &open(11, 10, 5))), DropReason::UnknownTag);
    receiver.add_client(ClientId([7; 32]), ServerKey::Previous, secret(7));
    assert_eq!(reason(receiver.receive(NOW, source(), &open(7, 10, 6))), DropReason::UnknownTag);
}
