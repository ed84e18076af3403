//! The replay window against a naive model that never forgets anything.

#![expect(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;
use spa_proto::{
    Accepted, ClientId, DropReason, Item, Items, Knock, MaskKey, MessageType, Nonce, PortRange,
    Receiver, Request, ServerKey, Settings, UnixMicros,
};
use std::collections::BTreeMap;

const CAPACITY: usize = 80;
const TWO_W: u64 = 120_000_000;
const CLIENT: ClientId = ClientId([1; 32]);

/// Remembers every knock for ever and goes by the text of §6.5.
#[derive(Default)]
struct Model {
    accepted: BTreeMap<Nonce, u64>,
    closed: BTreeMap<PortRange, u64>,
    barrier: u64,
}

impl Model {
    fn floor(&self) -> u64 {
        self.accepted.values().max().map_or(0, |highest| highest.saturating_sub(TWO_W))
    }

    fn judge(&mut self, knock: &Knock, ports: &[PortRange]) -> Result<(), DropReason> {
        let stamp = knock.stamp.0;
        let open = knock.request.message_type == MessageType::Open;
        if stamp <= self.barrier {
            return Err(DropReason::Barrier);
        }
        let known = self.accepted.get(&knock.nonce);
        if known.is_some_and(|accepted| *accepted > self.floor()) {
            return Err(DropReason::Replay);
        }
        if stamp <= self.floor() {
            return Err(DropReason::Floor);
        }
        if open
            && ports.iter().any(|opened| {
                let overlaps = |(range, _): &(&PortRange, &u64)| range.overlaps(*opened);
                self.closed.iter().filter(overlaps).any(|(_, close)| stamp <= *close)
            })
        {
            return Err(DropReason::Superseded);
        }
        let floor = self.floor().max(stamp.saturating_sub(TWO_W));
        if self.accepted.values().filter(|accepted| **accepted > floor).count() >= CAPACITY {
            return Err(DropReason::WindowFull);
        }
        // A nonce that comes a second time with another timestamp is another knock.
        let highest = self.accepted.get(&knock.nonce).map_or(stamp, |earlier| stamp.max(*earlier));
        self.accepted.insert(knock.nonce, highest);
        if !open {
            for port in ports {
                let close = self.closed.entry(*port).or_insert(stamp);
                *close = stamp.max(*close);
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone)]
enum Event {
    /// A knock with one of few nonces, this far from the running clock.
    Knock { nonce: u16, offset: i64, open: bool, port: bool },
    /// Time passes, or the clock is set.
    Clock(i64),
    /// The server stops and starts again with what the store holds.
    Restart { compact: bool },
    /// A barrier this far from the running clock.
    Barrier(i64),
}

fn event() -> impl Strategy<Value = Event> {
    let second = 1_000_000_i64;
    prop_oneof![
        40 => (any::<u16>(), -60 * second..=60 * second, prop::bool::weighted(0.9), any::<bool>())
            .prop_map(|(nonce, offset, open, port)| Event::Knock { nonce: nonce % 600, offset, open, port }),
        4 => (0..90 * second).prop_map(Event::Clock),
        1 => (-1_000 * second..1_000 * second).prop_map(Event::Clock),
        1 => any::<bool>().prop_map(|compact| Event::Restart { compact }),
        1 => (-60 * second..60 * second).prop_map(Event::Barrier),
    ]
}

fn receiver() -> Receiver {
    let settings = Settings { window_capacity: CAPACITY, ..Settings::default() };
    Receiver::new(settings, MaskKey::new([0; 32]))
}

fn restarted(old: &Receiver, store: &[Accepted], compact: bool) -> Receiver {
    let mut new = receiver();
    if compact {
        for (client, window) in old.windows() {
            new.restore_floor(client, window.floor);
            for (nonce, stamp) in window.accepted {
                new.restore(&Accepted { client, nonce, stamp, closed: Vec::new() });
            }
            for closed in window.closed {
                new.restore_close(client, closed);
            }
        }
    } else {
        for accepted in store {
            new.restore(accepted);
        }
    }
    new.set_barrier(old.barrier());
    new
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_window_decides_as_the_model_does(events in proptest::collection::vec(event(), 1..400)) {
        let mut model = Model::default();
        let mut receiver = receiver();
        let mut store = Vec::new();
        let mut clock = 1_800_000_000_000_000_i64;
        for event in events {
            match event {
                Event::Clock(by) => clock += by,
                Event::Restart { compact } => receiver = restarted(&receiver, &store, compact),
                Event::Barrier(offset) => {
                    model.barrier = u64::try_from(clock + offset).unwrap();
                    receiver.set_barrier(UnixMicros(model.barrier));
                }
                Event::Knock { nonce, offset, open, port } => {
                    let knock = knock(nonce, u64::try_from(clock + offset).unwrap(), open);
                    let ports = [if port { "tcp/20-22" } else { "tcp/22" }.parse().unwrap()];
                    let expected = model.judge(&knock, &ports);
                    let got = receiver.commit(&knock, &ports);
                    store.extend(got.as_ref().ok().cloned());
                    prop_assert_eq!(got.map(drop), expected);
                }
            }
        }
    }
}

fn knock(nonce: u16, stamp: u64, open: bool) -> Knock {
    let mut id = [0; 24];
    id[..2].copy_from_slice(&nonce.to_be_bytes());
    Knock {
        client: CLIENT,
        nonce: Nonce(id),
        stamp: UnixMicros(stamp),
        source: "192.0.2.1".parse().unwrap(),
        request: Request {
            message_type: if open { MessageType::Open } else { MessageType::Close },
            items: Items::try_from("ssh".parse::<Item>().unwrap()).unwrap(),
            bound_source: None,
            lifetime: None,
        },
        server_key: ServerKey::Present,
    }
}
