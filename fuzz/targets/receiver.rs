//! A receiver with arbitrary datagrams, clocks, restarts and changes of its clients, beside a model
//! that never forgets anything.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use spa_proto::{
    Accepted, ClientId, DropReason, Item, MaskKey, MessageType, Nonce, PacketLength, PairSecret,
    PortRange, Receiver, Request, ServerKey, Settings, UnixMicros, Verdict, seal,
};
use spa_server::replay_store::Snapshot;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

const CAPACITY: usize = 24;
const CLIENTS: u8 = 4;
const SOURCE: &str = "192.0.2.1";
const ELSEWHERE: &str = "192.0.2.2";

#[derive(Debug, Arbitrary)]
enum Step {
    /// Bytes of anybody's.
    Noise(Vec<u8>),
    /// A knock by a clock that is off by so many milliseconds, of which one bit may be changed.
    Knock {
        client: u8,
        off: i32,
        nonce: u8,
        kind: Kind,
        ports: bool,
        changed: Option<u16>,
    },
    /// One that was sent before, once more; it is committed unless it is only looked at.
    Again {
        which: u8,
        only_look: bool,
    },
    /// So many milliseconds pass, or the clock is set by so many seconds.
    Pass(u16),
    Set(i16),
    /// A new process has what was written down: each knock, or what the windows held.
    Restart {
        compact: bool,
    },
    Barrier(i16),
    Roll,
    Remove(u8),
    Add(u8),
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Kind {
    Open,
    Close,
    /// An open that is bound to its source, or to another one.
    Bound {
        elsewhere: bool,
    },
}

struct Sent {
    datagram: Vec<u8>,
    client: ClientId,
    stamp: UnixMicros,
    kind: Kind,
    ports: PortRange,
    is_whole: bool,
}

struct World {
    receiver: Receiver,
    now: UnixMicros,
    sent: Vec<Sent>,
    known: BTreeSet<u8>,
    store: Vec<Accepted>,
    /// All that was ever accepted.
    accepted: BTreeSet<(ClientId, Nonce, UnixMicros)>,
    highest: BTreeMap<ClientId, UnixMicros>,
    /// The last close of each client's ports.
    closed: BTreeMap<(ClientId, PortRange), UnixMicros>,
}

fn id(client: u8) -> ClientId {
    ClientId([client + 1; 32])
}

fn pair(client: u8) -> PairSecret {
    let key = |role: u8| [client.wrapping_mul(3) + role; 32];
    PairSecret::new(key(1), key(2), key(3))
}

fn mask() -> MaskKey {
    MaskKey::new([0x5a; 32])
}

fn receiver() -> Receiver {
    Receiver::new(Settings { window_capacity: CAPACITY, ..Settings::default() }, mask())
}

fn moved(time: UnixMicros, by_millis: i64) -> UnixMicros {
    let by = Duration::from_millis(by_millis.unsigned_abs());
    if by_millis < 0 { time.saturating_sub(by) } else { time.saturating_add(by) }
}

impl World {
    fn new() -> Self {
        let mut receiver = receiver();
        receiver.set_clients((0..CLIENTS).map(|client| (id(client), pair(client))));
        Self {
            receiver,
            now: UnixMicros::from_secs(1_800_000_000),
            sent: Vec::new(),
            known: (0..CLIENTS).collect(),
            store: Vec::new(),
            accepted: BTreeSet::new(),
            highest: BTreeMap::new(),
            closed: BTreeMap::new(),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Noise(bytes) => {
                let verdict = self.receive(&bytes);
                assert!(matches!(verdict, Verdict::Dropped(_)), "noise opens: {verdict:?}");
            }
            Step::Knock { client, off, nonce, kind, ports, changed } => {
                self.send(client % CLIENTS, off, nonce, kind, ports, changed);
                self.deliver(self.sent.len() - 1, false);
            }
            Step::Again { which, only_look } if !self.sent.is_empty() => {
                self.deliver(usize::from(which) % self.sent.len(), only_look);
            }
            Step::Again { .. } => {}
            Step::Pass(millis) => self.now = moved(self.now, millis.into()),
            Step::Set(seconds) => self.now = moved(self.now, i64::from(seconds) * 1_000),
            Step::Restart { compact } => self.restart(compact),
            Step::Barrier(seconds) => {
                self.receiver.set_barrier(moved(self.now, i64::from(seconds) * 1_000));
            }
            Step::Roll => self.receiver.roll(self.now),
            Step::Remove(client) => {
                self.known.remove(&(client % CLIENTS));
                self.receiver.remove_client(id(client % CLIENTS));
            }
            Step::Add(client) => {
                let client = client % CLIENTS;
                self.known.insert(client);
                self.receiver.add_client(id(client), ServerKey::Present, pair(client));
            }
        }
    }

    fn send(
        &mut self,
        client: u8,
        off: i32,
        nonce: u8,
        kind: Kind,
        ports: bool,
        changed: Option<u16>,
    ) {
        // Most clocks are right, give or take a few minutes.
        let stamp = moved(self.now, i64::from(off) % 200_000);
        let bound = |elsewhere: bool| if elsewhere { ELSEWHERE } else { SOURCE };
        let request = Request {
            message_type: match kind {
                Kind::Close => MessageType::Close,
                Kind::Open | Kind::Bound { .. } => MessageType::Open,
            },
            items: "ssh".parse::<Item>().unwrap().try_into().unwrap(),
            bound_source: match kind {
                Kind::Bound { elsewhere } => Some(bound(elsewhere).parse::<IpAddr>().unwrap()),
                Kind::Open | Kind::Close => None,
            },
            lifetime: None,
        };
        let nonce = Nonce([nonce; 24]);
        let length = PacketLength::default();
        let mut datagram = seal(&pair(client), &mask(), &request, stamp, nonce, length).unwrap();
        if let Some(bit) = changed {
            let at = usize::from(bit) % (datagram.len() * 8);
            datagram[at / 8] ^= 1 << (at % 8);
        }
        let ports = if ports { "tcp/20-22" } else { "tcp/22" }.parse().unwrap();
        let (client, is_whole) = (id(client), changed.is_none());
        self.sent.push(Sent { datagram, client, stamp, kind, ports, is_whole });
    }

    fn receive(&mut self, datagram: &[u8]) -> Verdict {
        let sifted = self.receiver.sieve().sift(self.now, datagram);
        let verdict = self.receiver.receive(self.now, SOURCE.parse().unwrap(), datagram);
        if let Err(reason) = sifted {
            let is_noise = matches!(&verdict, Verdict::Dropped(dropped)
                if matches!(dropped.reason, DropReason::Length | DropReason::UnknownTag));
            assert!(is_noise, "{reason:?} for the sieve, {verdict:?}");
        }
        verdict
    }

    fn deliver(&mut self, which: usize, only_look: bool) {
        let datagram = self.sent[which].datagram.clone();
        let verdict = self.receive(&datagram);
        let Sent { client, stamp, kind, ports, is_whole, .. } = self.sent[which];
        let window = self.receiver.settings().freshness.get();
        let floor = self
            .highest
            .get(&client)
            .map_or(UnixMicros(0), |highest| highest.saturating_sub(window).saturating_sub(window));
        let is_fresh =
            stamp.distance(self.now) <= window && stamp > self.receiver.barrier() && stamp > floor;
        let is_ours = is_whole && self.known.iter().any(|known| id(*known) == client);
        let is_here = !matches!(kind, Kind::Bound { elsewhere: true });
        match verdict {
            Verdict::Authentic(knock) => {
                assert!(is_whole, "a changed knock is authentic");
                assert!(is_ours && is_fresh && is_here, "{knock:?} at {:?}", self.now);
                assert_eq!((knock.client, knock.stamp), (client, stamp));
                if only_look {
                    return;
                }
                let is_superseded = self.closed.iter().any(|((whose, closed), close)| {
                    *whose == client && closed.overlaps(ports) && stamp <= *close
                });
                let is_superseded = is_superseded && !matches!(kind, Kind::Close);
                match self.receiver.commit(&knock, &[ports]) {
                    Ok(entry) => {
                        assert!(!is_superseded, "an open from before a close: {knock:?}");
                        let is_first = self.accepted.insert((client, knock.nonce, stamp));
                        assert!(is_first, "accepted twice: {knock:?}");
                        let highest = self.highest.entry(client).or_default();
                        *highest = stamp.max(*highest);
                        if matches!(kind, Kind::Close) {
                            let close = self.closed.entry((client, ports)).or_insert(stamp);
                            *close = stamp.max(*close);
                        }
                        self.store.push(entry);
                    }
                    Err(DropReason::Superseded) => assert!(is_superseded, "{knock:?}"),
                    Err(DropReason::WindowFull) => {
                        let of_client =
                            |(whose, _, _): &&(ClientId, Nonce, UnixMicros)| *whose == client;
                        assert!(self.accepted.iter().filter(of_client).count() >= CAPACITY);
                    }
                    Err(reason) => panic!("{reason:?} for what was authentic: {knock:?}"),
                }
            }
            Verdict::Announced(announced) => panic!("nobody announced anything: {announced:?}"),
            Verdict::Dropped(dropped) => {
                let is_known = dropped.reason == DropReason::Replay;
                assert!(
                    is_known || !(is_ours && is_fresh && is_here),
                    "a good knock was dropped: {dropped:?}"
                );
            }
        }
    }

    fn restart(&mut self, compact: bool) {
        let mut new = receiver();
        new.set_clients(self.known.iter().map(|client| (id(*client), pair(*client))));
        if compact {
            Snapshot::of(&self.receiver).restore(&mut new);
        } else {
            for entry in &self.store {
                new.restore(entry);
            }
        }
        new.set_barrier(self.receiver.barrier());
        self.receiver = new;
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let mut world = World::new();
    for step in steps {
        world.step(step);
    }
});
