//! A client and a receiver under one fake clock: skew, reordering, duplication, loss, clocks that
//! are set, restarts.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use core::net::IpAddr;
use core::time::Duration;
use spa_proto::{
    ClientId, DropReason, Freshness, Item, Items, Knock, MaskKey, MessageType, Nonce, PacketLength,
    PairSecret, PortRange, Receiver, Request, Settings, Skew, UnixMicros, Verdict, seal,
};

const START: UnixMicros = UnixMicros::from_secs(1_800_000_030);
const W: Duration = Duration::from_secs(60);

/// One server, some clients, one clock.
struct Pair {
    now: UnixMicros,
    receiver: Receiver,
    sealed: u64,
    /// What a durable store would hold.
    store: Vec<spa_proto::Accepted>,
}

fn secret(client: u8) -> PairSecret {
    PairSecret::new([client; 32], [client ^ 0x55; 32], [client ^ 0xaa; 32])
}

fn source() -> IpAddr {
    "192.0.2.7".parse().unwrap()
}

fn ssh() -> PortRange {
    "tcp/22".parse().unwrap()
}

impl Pair {
    fn new() -> Self {
        Self::with(Settings::default())
    }

    fn with(settings: Settings) -> Self {
        let mut receiver = Receiver::new(settings, MaskKey::new([9; 32]));
        receiver.set_clients((1..=3).map(|client| (ClientId([client; 32]), secret(client))));
        Self { now: START, receiver, sealed: 0, store: Vec::new() }
    }

    fn pass(&mut self, seconds: u64) {
        self.now = self.now.saturating_add(Duration::from_secs(seconds));
    }

    fn seal_at(&mut self, client: u8, stamp: UnixMicros, request: &Request) -> Vec<u8> {
        self.sealed += 1;
        let mut nonce = [client; 24];
        nonce[..8].copy_from_slice(&self.sealed.to_be_bytes());
        seal(
            &secret(client),
            &MaskKey::new([9; 32]),
            request,
            stamp,
            Nonce(nonce),
            PacketLength::default(),
        )
        .unwrap()
    }

    /// A knock of client 1, stamped by a right clock.
    fn knock(&mut self) -> Vec<u8> {
        self.seal_at(1, self.now, &open())
    }

    fn receive(&mut self, datagram: &[u8]) -> Result<Knock, DropReason> {
        match self.receiver.receive(self.now, source(), datagram) {
            Verdict::Authentic(knock) => Ok(knock),
            Verdict::Announced(announced) => panic!("{announced:?}"),
            Verdict::Dropped(dropped) => Err(dropped.reason),
        }
    }

    fn deliver(&mut self, datagram: &[u8]) -> Result<(), DropReason> {
        let knock = self.receive(datagram)?;
        let accepted = self.receiver.commit(&knock, &[ssh()])?;
        self.store.push(accepted);
        Ok(())
    }

    /// Ends the server and starts another one with what the store holds.
    fn restart(&mut self, barrier: Option<UnixMicros>) {
        let store = std::mem::take(&mut self.store);
        let now = self.now;
        *self = Self { now, sealed: self.sealed, ..Self::new() };
        for accepted in &store {
            self.receiver.restore(accepted);
        }
        if let Some(barrier) = barrier {
            self.receiver.set_barrier(barrier);
        }
        self.store = store;
    }
}

fn request(message_type: MessageType) -> Request {
    let items = Items::try_from("ssh".parse::<Item>().unwrap()).unwrap();
    Request { message_type, items, bound_source: None, lifetime: None }
}

fn open() -> Request {
    request(MessageType::Open)
}

#[test]
fn a_knock_is_accepted_once() {
    let mut pair = Pair::new();
    let knock = pair.knock();
    assert_eq!(pair.deliver(&knock), Ok(()));
    assert_eq!(pair.deliver(&knock), Err(DropReason::Replay));
    let next = pair.knock();
    assert_eq!(pair.deliver(&next), Ok(()));
}

#[test]
fn copies_that_were_received_before_the_first_was_committed_are_refused_at_the_commit() {
    let mut pair = Pair::new();
    let datagram = pair.knock();
    let copies: Vec<Knock> = (0..200).map(|_| pair.receive(&datagram).unwrap()).collect();
    let accepted =
        copies.iter().filter(|copy| pair.receiver.commit(copy, &[ssh()]).is_ok()).count();
    assert_eq!(accepted, 1);
}

#[test]
fn reordered_and_lost_datagrams_do_no_harm() {
    let mut pair = Pair::new();
    let mut knocks = Vec::new();
    for _ in 0..20 {
        pair.pass(3);
        knocks.push(pair.knock());
    }
    let kept = knocks.iter().enumerate().filter(|(n, _)| n % 4 != 0).map(|(_, knock)| knock);
    for knock in kept.clone().rev() {
        assert_eq!(pair.deliver(knock), Ok(()));
    }
    for knock in kept {
        assert_eq!(pair.deliver(knock), Err(DropReason::Replay));
    }
}

#[test]
fn two_devices_of_one_client_may_be_a_window_ahead_and_a_window_behind() {
    let mut pair = Pair::new();
    let ahead = pair.seal_at(1, pair.now.saturating_add(W), &open());
    let behind = pair.seal_at(1, pair.now.saturating_sub(W), &open());
    // H is now + W, the floor under it H - 2W = now - W: the device that is behind stands on it.
    assert_eq!(pair.deliver(&behind), Ok(()));
    assert_eq!(pair.deliver(&ahead), Ok(()));
    let just_inside = pair.seal_at(1, UnixMicros(pair.now.saturating_sub(W).0 + 1), &open());
    assert_eq!(pair.deliver(&just_inside), Ok(()));
    assert_eq!(pair.deliver(&behind), Err(DropReason::Floor));
}

#[test]
fn the_freshness_window_includes_its_limits_and_nothing_beyond() {
    let mut pair = Pair::new();
    let now = pair.now;
    for (stamp, expected) in [
        (now.saturating_sub(W), Ok(())),
        (UnixMicros(now.saturating_sub(W).0 - 1), Err(DropReason::TooOld)),
        (now.saturating_add(W), Ok(())),
        (UnixMicros(now.saturating_add(W).0 + 1), Err(DropReason::TooNew)),
    ] {
        let knock = pair.seal_at(1, stamp, &open());
        assert_eq!(pair.receive(&knock).map(drop), expected, "{stamp:?}");
    }
}

#[test]
fn a_client_with_a_wrong_clock_is_named_and_told_how_wrong() {
    let mut pair = Pair::new();
    let late = pair.seal_at(2, pair.now.saturating_sub(Duration::from_secs(150)), &open());
    let Verdict::Dropped(dropped) = pair.receiver.receive(pair.now, source(), &late) else {
        panic!("an old knock was accepted");
    };
    assert_eq!(dropped.reason, DropReason::TooOld);
    assert_eq!(dropped.client, Some(ClientId([2; 32])));
    assert_eq!(dropped.skew, Some(Skew::Behind(Duration::from_secs(150))));
}

#[test]
fn knocks_that_can_not_be_fresh_are_looked_at_four_times_a_second() {
    let mut pair = Pair::new();
    let late = pair.seal_at(2, pair.now.saturating_sub(Duration::from_secs(150)), &open());
    let reasons: Vec<_> = (0..10).map(|_| pair.receive(&late).unwrap_err()).collect();
    assert_eq!(reasons[..4], [DropReason::TooOld; 4]);
    assert_eq!(reasons[4..], [DropReason::SkewUnexamined; 6]);
    // Others are not held up by it, and the next second has its own allowance.
    let knock = pair.knock();
    assert_eq!(pair.deliver(&knock), Ok(()));
    pair.pass(1);
    assert_eq!(pair.receive(&late).unwrap_err(), DropReason::TooOld);
}

#[test]
fn a_clock_that_was_set_back_makes_no_old_knock_young() {
    let mut pair = Pair::new();
    let knock = pair.knock();
    assert_eq!(pair.deliver(&knock), Ok(()));
    // Time passes, knocks push the floor over the first one, and its nonce is forgotten.
    for _ in 0..200 {
        pair.pass(10);
        let next = pair.knock();
        assert_eq!(pair.deliver(&next), Ok(()));
    }
    pair.now = START;
    assert_eq!(pair.deliver(&knock), Err(DropReason::Floor));
    // Nor does a restart under the clock that was set back.
    pair.restart(None);
    assert_eq!(pair.deliver(&knock), Err(DropReason::Floor));
    // Another client's fresh knock is accepted all the same.
    let other = pair.seal_at(2, pair.now, &open());
    assert_eq!(pair.deliver(&other), Ok(()));
}

#[test]
fn a_restart_remembers() {
    let mut pair = Pair::new();
    let knock = pair.knock();
    assert_eq!(pair.deliver(&knock), Ok(()));
    pair.restart(None);
    assert_eq!(pair.deliver(&knock), Err(DropReason::Replay));
    let next = pair.knock();
    assert_eq!(pair.deliver(&next), Ok(()));
}

#[test]
fn a_restart_remembers_what_the_windows_held() {
    let mut pair = Pair::new();
    let before = pair.knock();
    pair.pass(5);
    let close = pair.seal_at(1, pair.now, &request(MessageType::Close));
    assert_eq!(pair.deliver(&close), Ok(()));
    let ahead = pair.seal_at(1, pair.now.saturating_add(W), &open());
    assert_eq!(pair.deliver(&ahead), Ok(()));
    let windows: Vec<_> = pair.receiver.windows().collect();
    pair.store.clear();
    pair.restart(None);
    let fresh = pair.receive(&close);
    assert!(fresh.is_ok(), "the control: nothing is known yet");
    for (client, window) in windows {
        pair.receiver.restore_floor(client, window.floor);
        for (nonce, stamp) in window.accepted {
            pair.receiver.restore_nonce(client, nonce, stamp);
        }
        for closed in window.closed {
            pair.receiver.restore_close(client, closed);
        }
    }
    for accepted in [&close, &ahead] {
        assert_eq!(pair.deliver(accepted), Err(DropReason::Replay));
    }
    assert_eq!(pair.deliver(&before), Err(DropReason::Superseded));
    // Fresh, and a window and one second older than what was accepted a window ahead.
    let under = pair.seal_at(1, pair.now.saturating_sub(W), &open());
    assert_eq!(pair.receive(&under), Err(DropReason::Floor));
}

#[test]
fn a_barrier_stands_for_one_window_and_covers_clients_that_run_ahead() {
    let mut pair = Pair::new();
    let lost = pair.seal_at(1, pair.now.saturating_add(W), &open());
    assert_eq!(pair.deliver(&lost), Ok(()));
    // The store is lost; start + W is the barrier.
    pair.store.clear();
    pair.restart(Some(pair.now.saturating_add(W)));
    assert_eq!(pair.deliver(&lost), Err(DropReason::Barrier));
    pair.pass(60);
    let at_the_barrier = pair.knock();
    assert_eq!(pair.deliver(&at_the_barrier), Err(DropReason::Barrier));
    pair.pass(1);
    let after = pair.knock();
    assert_eq!(pair.deliver(&after), Ok(()));
    assert_eq!(pair.deliver(&lost), Err(DropReason::Barrier));
}

#[test]
fn a_window_that_is_full_refuses_and_forgets_nothing() {
    let mut pair = Pair::with(Settings { window_capacity: 100, ..Settings::default() });
    let knocks: Vec<_> = (0..100).map(|_| pair.knock()).collect();
    for knock in &knocks {
        assert_eq!(pair.deliver(knock), Ok(()));
    }
    let one_more = pair.knock();
    assert_eq!(pair.deliver(&one_more), Err(DropReason::WindowFull));
    assert_eq!(pair.deliver(&knocks[0]), Err(DropReason::Replay));
    // Other clients have windows of their own.
    let other = pair.seal_at(2, pair.now, &open());
    assert_eq!(pair.deliver(&other), Ok(()));
    // Once the floor has risen to them there is room.
    pair.pass(120);
    let later = pair.knock();
    assert_eq!(pair.deliver(&later), Ok(()));
    assert_eq!(pair.deliver(&knocks[0]), Err(DropReason::TooOld));
}

#[test]
fn an_open_that_is_older_than_the_last_close_is_refused() {
    let mut pair = Pair::new();
    let held_back = pair.knock();
    pair.pass(5);
    let close = pair.seal_at(1, pair.now, &request(MessageType::Close));
    assert_eq!(pair.deliver(&close), Ok(()));
    assert_eq!(pair.deliver(&held_back), Err(DropReason::Superseded));
    pair.restart(None);
    assert_eq!(pair.deliver(&held_back), Err(DropReason::Superseded));
    // It concerns that client, and that port, only.
    let other = pair.seal_at(2, START, &open());
    assert_eq!(pair.deliver(&other), Ok(()));
    let knock = pair.receive(&held_back).unwrap();
    assert!(pair.receiver.commit(&knock, &["tcp/80".parse().unwrap()]).is_ok());
    pair.pass(1);
    let later = pair.knock();
    assert_eq!(pair.deliver(&later), Ok(()));
}

#[test]
fn what_one_key_of_a_client_has_closed_all_its_keys_have() {
    for is_added in [false, true] {
        let mut pair = Pair::new();
        let keys = [1, 2, 3].map(|key| ClientId([key; 32]));
        if is_added {
            pair.receiver.add_kin(keys[1], keys[0]);
        } else {
            pair.receiver.set_kin([(keys[0], vec![keys[1]]), (keys[1], vec![keys[0]])]);
        }
        let [of_other_key, of_other_client] = [2, 3].map(|key| pair.seal_at(key, START, &open()));
        pair.pass(5);
        let close = pair.seal_at(1, pair.now, &request(MessageType::Close));
        assert_eq!(pair.deliver(&close), Ok(()));
        assert_eq!(pair.deliver(&of_other_key), Err(DropReason::Superseded));
        assert_eq!(pair.deliver(&of_other_client), Ok(()));
        // And the other way round.
        let held_back = pair.seal_at(1, pair.now.saturating_add(W), &open());
        let close = pair.seal_at(2, pair.now.saturating_add(W), &request(MessageType::Close));
        assert_eq!(pair.deliver(&close), Ok(()));
        assert_eq!(pair.deliver(&held_back), Err(DropReason::Superseded));
    }
}

#[test]
fn a_knock_that_policy_refused_is_not_burnt() {
    let mut pair = Pair::new();
    let bound = Request { bound_source: Some(source()), ..open() };
    let knock = pair.seal_at(1, pair.now, &bound);
    let elsewhere = "198.51.100.9".parse().unwrap();
    let verdict = pair.receiver.receive(pair.now, elsewhere, &knock);
    assert!(matches!(verdict, Verdict::Dropped(d) if d.reason == DropReason::BoundSource));
    assert!(pair.receive(&knock).is_ok(), "received, and not committed: policy said no");
    assert_eq!(pair.deliver(&knock), Ok(()));
}

#[test]
fn an_ipv4_address_is_the_same_address_when_it_comes_mapped_into_ipv6() {
    let mut pair = Pair::new();
    let bound = Request { bound_source: Some(source()), ..open() };
    let knock = pair.seal_at(1, pair.now, &bound);
    let mapped = "::ffff:192.0.2.7".parse().unwrap();
    let Verdict::Authentic(knock) = pair.receiver.receive(pair.now, mapped, &knock) else {
        panic!("refused");
    };
    assert_eq!(knock.source, source());
}

#[test]
fn a_removed_client_is_unknown_and_comes_back_with_its_window() {
    let mut pair = Pair::new();
    let knock = pair.knock();
    assert_eq!(pair.deliver(&knock), Ok(()));
    let next = pair.knock();
    pair.receiver.set_clients([(ClientId([2; 32]), secret(2))]);
    assert_eq!(pair.deliver(&next), Err(DropReason::UnknownTag));
    pair.receiver.set_clients((1..=3).map(|client| (ClientId([client; 32]), secret(client))));
    assert_eq!(pair.deliver(&knock), Err(DropReason::Replay));
    assert_eq!(pair.deliver(&next), Ok(()));
}

#[test]
fn a_window_reset_after_a_clock_that_was_years_ahead_lets_the_client_in_again_and_nothing_old() {
    let mut pair = Pair::new();
    let right_clock = pair.now;
    let before = pair.knock();
    assert_eq!(pair.deliver(&before), Ok(()));
    pair.now = right_clock.saturating_add(Duration::from_secs(3 * 365 * 86_400));
    let from_the_future = pair.knock();
    assert_eq!(pair.deliver(&from_the_future), Ok(()));
    let close = pair.seal_at(1, pair.now, &request(MessageType::Close));
    assert_eq!(pair.deliver(&close), Ok(()));
    pair.now = right_clock;
    let knock = pair.knock();
    assert_eq!(pair.deliver(&knock), Err(DropReason::Floor));
    pair.receiver.reset_window(ClientId([1; 32]), pair.now);
    assert_eq!(pair.deliver(&before), Err(DropReason::Floor));
    pair.pass(61);
    let later = pair.knock();
    assert_eq!(pair.deliver(&later), Ok(()));
    // The years have passed.
    pair.now = right_clock.saturating_add(Duration::from_secs(3 * 365 * 86_400));
    assert_eq!(pair.deliver(&from_the_future), Err(DropReason::Replay));
    let knock = pair.knock();
    assert_eq!(pair.deliver(&knock), Ok(()));
}

#[test]
fn every_bit_counts() {
    let mut pair = Pair::new();
    let knock = pair.knock();
    for bit in 0..knock.len() * 8 {
        let mut flipped = knock.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        // Masked tag and nonce decide which client it is; all the rest is under the MAC.
        let expected = if bit < 28 * 8 { DropReason::UnknownTag } else { DropReason::Mac };
        assert_eq!(pair.deliver(&flipped), Err(expected), "bit {bit}");
    }
    for length in (0..knock.len()).chain([knock.len() + 1, 1_500]) {
        let mut other = knock.clone();
        other.resize(length, 0);
        assert_eq!(pair.deliver(&other), Err(DropReason::Length));
    }
    let other = pair.knock();
    for cut in 1..knock.len() {
        let spliced = [&knock[..cut], &other[cut..]].concat();
        assert!(pair.deliver(&spliced).is_err(), "spliced at {cut}");
    }
    assert_eq!(pair.deliver(&knock), Ok(()));
    assert_eq!(pair.deliver(&other), Ok(()));
}

#[test]
fn a_narrow_window_and_a_wide_one_are_kept() {
    for seconds in [10, 120] {
        let w = Duration::from_secs(seconds);
        let freshness = Freshness::try_from(w).unwrap();
        let mut pair = Pair::with(Settings { freshness, ..Settings::default() });
        for epoch_offset in [0, 29, 30, 59] {
            pair.now = UnixMicros::from_secs(1_800_000_000 + epoch_offset);
            let old = pair.seal_at(3, pair.now.saturating_sub(w), &open());
            assert!(pair.receive(&old).is_ok(), "{seconds} {epoch_offset}");
            let new = pair.seal_at(3, pair.now.saturating_add(w), &open());
            assert!(pair.receive(&new).is_ok(), "{seconds} {epoch_offset}");
            let older = pair.seal_at(3, UnixMicros(pair.now.saturating_sub(w).0 - 1), &open());
            assert_eq!(pair.receive(&older).unwrap_err(), DropReason::TooOld);
        }
    }
    assert!(Freshness::try_from(Duration::from_secs(9)).is_err());
    assert!(Freshness::try_from(Duration::from_secs(121)).is_err());
}
