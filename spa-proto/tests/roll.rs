//! Tag tables that are computed while the receiver is in use, and the sieve that goes by them.

use spa_proto::{
    ClientId, DropReason, MaskKey, MessageType, Nonce, PacketLength, PairSecret, Receiver, Request,
    ServerKey, Settings, UnixMicros, Verdict, seal,
};
use std::error::Error;

const MASK: [u8; 32] = [9; 32];
const LATER: UnixMicros = UnixMicros::from_secs(1_800_000_600);
const NOW: UnixMicros = UnixMicros::from_secs(1_800_000_000);

fn secret(number: u8) -> PairSecret {
    PairSecret::new([number; 32], [2; 32], [3; 32])
}

fn knock(number: u8, stamp: UnixMicros) -> Result<Vec<u8>, Box<dyn Error>> {
    let request = Request {
        message_type: MessageType::Open,
        items: "ssh".parse::<spa_proto::Item>()?.try_into()?,
        bound_source: None,
        lifetime: None,
    };
    let mask = MaskKey::new(MASK);
    let length = PacketLength::default();
    Ok(seal(&secret(number), &mask, &request, stamp, Nonce([number; 24]), length)?)
}

fn receiver() -> Receiver {
    let mut receiver = Receiver::new(Settings::default(), MaskKey::new(MASK));
    receiver.set_clients([(ClientId([1; 32]), secret(1))]);
    receiver.roll(NOW);
    receiver
}

#[test]
fn the_sieve_says_of_noise_what_the_receiver_says() {
    let mut receiver = receiver();
    let sieve = receiver.sieve();
    let heads: Vec<u32> = sieve.tag_heads().collect();
    assert!(heads.len() == 8 && !heads.contains(&0), "{heads:?}");
    let source = "192.0.2.1".parse().unwrap();
    let mut broken = knock(1, NOW).unwrap();
    *broken.last_mut().unwrap() ^= 1;
    for (datagram, noise) in [
        (knock(1, NOW).unwrap(), None),
        (broken, None),
        (knock(2, NOW).unwrap(), Some(DropReason::UnknownTag)),
        (vec![0x5a; 216], Some(DropReason::UnknownTag)),
        (vec![0x5a; 215], Some(DropReason::Length)),
        (Vec::new(), Some(DropReason::Length)),
    ] {
        let sifted = sieve.sift(NOW, &datagram).err();
        assert_eq!(sifted, noise);
        if let Some(reason) = noise {
            let verdict = receiver.receive(NOW, source, &datagram);
            assert_eq!(verdict, Verdict::Dropped(reason.into()));
        }
    }
    // Where the clock has jumped it can't know: the receiver is asked.
    assert!(!sieve.is_late(NOW) && sieve.is_late(LATER));
    let late_from = sieve.late_from();
    assert!(sieve.is_late(late_from) && !sieve.is_late(UnixMicros(late_from.0 - 1)));
    assert_eq!(sieve.sift(LATER, &[0x5a; 216]), Ok(()));
}

#[test]
fn what_is_computed_meanwhile_is_what_rolling_gives() {
    let mut receiver = receiver();
    assert!(receiver.begin_roll(NOW).is_none(), "nothing to do");
    let begun = receiver.begin_roll(LATER).unwrap();
    // It is in use: knocks are judged by the old table.
    let verdict = receiver.receive(NOW, "192.0.2.1".parse().unwrap(), &knock(1, NOW).unwrap());
    assert!(matches!(verdict, Verdict::Authentic(_)), "{verdict:?}");
    let before = receiver.generation();
    receiver.end_roll(begun.compute());
    assert_ne!(receiver.generation(), before);
    let sieve = receiver.sieve();
    assert_eq!(sieve.sift(LATER, &knock(1, LATER).unwrap()), Ok(()));
    assert_eq!(sieve.sift(LATER, &[0x5a; 216]), Err(DropReason::UnknownTag));
}

/// With many clients that takes long, and is done while the next minute has not begun.
#[test]
fn a_minute_later_no_datagram_has_to_wait_for_new_tags() {
    let mut receiver = receiver();
    let source = "192.0.2.1".parse().unwrap();
    let before = receiver.generation();
    let next = UnixMicros(NOW.0 + 60_000_000);
    let verdict = receiver.receive(next, source, &knock(1, next).unwrap());
    assert!(matches!(verdict, Verdict::Authentic(_)), "{verdict:?}");
    assert_eq!(receiver.generation(), before);
    // The control: after a jump it has to.
    let _ = receiver.receive(LATER, source, &knock(1, LATER).unwrap());
    assert_ne!(receiver.generation(), before);
}

#[test]
fn what_was_computed_for_other_clients_is_not_taken() {
    let mut receiver = receiver();
    let begun = receiver.begin_roll(LATER).unwrap();
    receiver.add_client(ClientId([2; 32]), ServerKey::Present, secret(2));
    let before = receiver.generation();
    receiver.end_roll(begun.compute());
    assert_eq!(receiver.generation(), before);
    // The one that came meanwhile is there, in the old table and in the next.
    assert_eq!(receiver.sieve().sift(NOW, &knock(2, NOW).unwrap()), Ok(()));
    receiver.roll(LATER);
    for number in [1, 2] {
        assert_eq!(receiver.sieve().sift(LATER, &knock(number, LATER).unwrap()), Ok(()));
    }
    assert_eq!(receiver.sieve().sift(LATER, &[0x5a; 216]), Err(DropReason::UnknownTag));
}
