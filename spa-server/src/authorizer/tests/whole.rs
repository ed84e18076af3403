//! All that a datagram goes through, from the frame to the kernel, beside a naive model: several
//! clients with different rules, clocks that are set, restarts, replays, and what comes harmed.

mod model;
mod steps;
mod wire;

use super::*;
use crate::capture::Arrival;
use crate::frame::{self, LinkType};
use crate::pipeline::Judged;
use crate::service::{Forward, ForwardTo, Target};
use model::{
    Granted, Letter, MAX_GRANTS, Model, Rule, Rules, SECOND, SERVICES, WIDEST_WINDOW, WINDOW,
    WINDOW_CAPACITY,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use spa_proto::{Items, PacketLength, PairSecret, seal};
use std::cell::RefCell;
use std::net::IpAddr;
use steps::{ADDRESSES, Bound, Knocking, START, Step, Way, Wound, rules, step};
use tokio::runtime::Runtime;
use wire::{framed, harm_of};

const CLIENTS: usize = 3;
const BOOTED: u64 = 1_000_000 * SECOND;

fn id(client: usize) -> ClientId {
    ClientId([u8::try_from(client).unwrap() + 1; 32])
}

fn pair(client: usize) -> PairSecret {
    let key = |role: usize| [u8::try_from(3 * client + role).unwrap(); 32];
    PairSecret::new(key(1), key(2), key(3))
}

fn client_rules(rule: &Rule) -> ClientRules {
    ClientRules {
        prefixes: Prefixes { v4: rule.prefixes.0, v6: rule.prefixes.1 },
        enabled: rule.enabled,
        allow: rule.allow.iter().map(|name| name.parse().unwrap()).collect(),
        max_lifetime: Duration::from_secs(rule.max_seconds),
        default_lifetime: Duration::from_secs(rule.default_seconds),
        sources: rule.sources.clone(),
        not_before: rule.not_before.map(UnixMicros),
        expires: rule.expires.map(UnixMicros),
        require_bound_source: rule.must_be_bound,
        rate: Rate {
            per_minute: rule.per_minute.try_into().unwrap(),
            burst: rule.burst.try_into().unwrap(),
        },
        max_sources: rule.max_sources.try_into().unwrap(),
    }
}

fn policy_of(rules: &Rules) -> Arc<Policy> {
    let services = SERVICES.map(|(name, ports, over_v6)| {
        let mut service = Service::plain(ports.iter().map(|ports| ports.parse().unwrap()));
        if !over_v6 {
            let v4 = Some(ForwardTo { address: "10.0.0.5".parse().unwrap(), port: None });
            service.target = Target::Forward(Forward { v4, v6: None, masquerade: false });
        }
        (name.parse().unwrap(), service)
    });
    let known = rules.iter().enumerate().filter_map(|(client, rule)| {
        rule.as_ref().map(|rule| (id(client), "somebody", client_rules(rule)))
    });
    Arc::new(Policy::new(services.into(), known))
}

fn process(rules: &Rules, snapshot: &Snapshot, kernel: Kernel, now: Now) -> Server {
    let settings = Settings { window_capacity: WINDOW_CAPACITY, ..Settings::default() };
    let mut receiver = Receiver::new(settings, MaskKey::new([9; 32]));
    receiver.set_clients((0..CLIENTS).map(|client| (id(client), pair(client))));
    snapshot.restore(&mut receiver);
    let judge = Judge::new(receiver, policy_of(rules), Freshness::default(), now);
    server_of(judge, kernel, MAX_GRANTS)
}

struct World<'a> {
    runtime: &'a Runtime,
    /// How often each verdict came.
    met: &'a RefCell<BTreeMap<&'static str, usize>>,
    now: Now,
    server: Server,
    model: Model,
    rules: [Rules; 2],
    /// With what it was sealed to.
    sent: Vec<(Letter, Vec<u8>, Option<Wound>)>,
    waiting: Vec<(Candidate, Letter)>,
    /// All that was ever accepted.
    accepted: BTreeSet<(usize, u8, u64)>,
}

impl<'a> World<'a> {
    fn new(
        runtime: &'a Runtime,
        met: &'a RefCell<BTreeMap<&'static str, usize>>,
        rules: [Rules; 2],
    ) -> Self {
        let now = Now { realtime: UnixMicros(START), boottime: BootMicros(BOOTED) };
        Self {
            runtime,
            met,
            now,
            server: process(&rules[0], &Snapshot::default(), Kernel::default(), now),
            model: Model::new(START, BOOTED, rules[0].clone()),
            rules,
            sent: Vec::new(),
            waiting: Vec::new(),
            accepted: BTreeSet::new(),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Send { knock, harm, way } => {
                self.send(knock, harm, &way);
                self.deliver(self.sent.len() - 1, &way);
            }
            Step::Again { which, way } if !self.sent.is_empty() => {
                self.deliver(which.index(self.sent.len()), &way);
            }
            Step::Again { .. } => {}
            Step::Pass(seconds) => self.pass(seconds),
            Step::Set(by) => {
                self.now.realtime.0 = self.now.realtime.0.checked_add_signed(by).unwrap();
                self.model.now = self.now.realtime.0;
            }
            Step::Restart { other_rules, is_lost } => self.restart(other_rules, is_lost),
            Step::Refuse { around, prefix, seconds } => {
                let address: IpAddr = around.get(&ADDRESSES).parse().unwrap();
                let source = Source::around(address, prefix);
                let until = self.now.boottime.saturating_add(Duration::from_secs(seconds));
                let mut judge = self.server.judge.lock();
                let until = judge.refused.refuse(source, until, self.now.boottime).unwrap();
                self.model.refused.push((source.net(), until.0));
            }
        }
        self.compare();
    }

    fn send(&mut self, knock: Knocking, wound: Option<Wound>, way: &Way) {
        let earlier: Vec<u8> = self
            .sent
            .iter()
            .filter(|(letter, ..)| letter.client == knock.client)
            .map(|(letter, ..)| letter.nonce)
            .collect();
        let fresh = u8::try_from(self.sent.len()).unwrap();
        let old = knock.old_nonce.filter(|_| !earlier.is_empty());
        let bound = match knock.bound {
            Bound::Nowhere => None,
            Bound::Here => Some(way.from),
            Bound::To(address) => Some(address),
        };
        let letter = Letter {
            client: knock.client,
            nonce: old.map_or(fresh, |old| *old.get(&earlier)),
            stamp: self.now.realtime.0.checked_add_signed(knock.off).unwrap(),
            is_open: knock.is_open,
            items: knock.items,
            bound: bound.map(|address| address.parse().unwrap()),
            seconds: knock.seconds,
            harm: wound.map(harm_of),
        };
        let items: Vec<Item> = letter.items.iter().map(|item| item.parse().unwrap()).collect();
        let request = Request {
            message_type: if letter.is_open { MessageType::Open } else { MessageType::Close },
            items: Items::try_from(items).unwrap(),
            bound_source: letter.bound,
            lifetime: letter
                .seconds
                .map(|seconds| u32::try_from(seconds).unwrap().try_into().unwrap()),
        };
        let (mut pair, mut mask) = (pair(letter.client), MaskKey::new([9; 32]));
        match wound {
            Some(Wound::OfAStranger) => pair = self::pair(CLIENTS),
            Some(Wound::ForAnotherServer) => mask = MaskKey::new([8; 32]),
            _ => {}
        }
        let (stamp, nonce) = (UnixMicros(letter.stamp), Nonce([letter.nonce; 24]));
        let length = PacketLength::default();
        let mut packet = seal(&pair, &mask, &request, stamp, nonce, length).unwrap();
        match wound {
            Some(Wound::Bit(bit)) => {
                let bit = bit.index(packet.len() * 8);
                packet[bit / 8] ^= 1 << (bit % 8);
            }
            Some(Wound::Cut) => drop(packet.pop()),
            Some(Wound::Longer) => packet.push(0),
            _ => {}
        }
        self.sent.push((letter, packet, wound));
    }

    fn deliver(&mut self, which: usize, way: &Way) {
        let (letter, packet, wound) = self.sent[which].clone();
        let source: IpAddr = way.from.parse().unwrap();
        let frame = framed(&packet, source, way.shape, wound);
        let sifted = self.model.sift(&letter);
        let expected = self.model.judge(&letter, source, way.interface);
        let judged = self.judge(&frame, way.interface, sifted);
        assert_eq!(judged.as_ref().err().map(Dropped::as_str), expected.err(), "{letter:?}");
        self.note(expected);
        if let Ok(candidate) = judged {
            assert_eq!(
                (candidate.knock.client, candidate.knock.source),
                (id(letter.client), source)
            );
            self.waiting.push((candidate, letter));
        }
        if !way.waits {
            self.settle();
        }
    }

    fn judge(
        &self,
        frame: &[u8],
        interface: u32,
        expected: Result<(), &'static str>,
    ) -> Result<Candidate, Dropped> {
        let datagram = frame::parse(LinkType::Ethernet, frame).map_err(Dropped::Frame)?;
        let mut judge = self.server.judge.lock();
        let sifted = judge.receiver.sieve().sift(self.now.realtime, datagram.payload);
        assert_eq!(sifted.map_err(DropReason::as_str), expected, "the sieve");
        sifted.map_err(Dropped::Protocol)?;
        let arrival = Arrival { interface, at: self.now.realtime };
        match judge.judge(self.now, datagram.source, arrival, datagram.payload)? {
            Judged::Knock(candidate) => Ok(candidate),
            Judged::Announced(announced) => panic!("nobody announces anything: {announced:?}"),
        }
    }

    /// What waits is carried out together.
    fn settle(&mut self) {
        let (candidates, letters): (Vec<_>, Vec<_>) = self.waiting.drain(..).unzip();
        let sources = candidates.iter().map(|candidate| candidate.knock.source);
        let letters: Vec<_> = letters.into_iter().zip(sources).collect();
        let expected = self.model.settle(&letters);
        let before = self.server.counters.dropped();
        let (agreed, accepted) = self.server.authorizer.agree(candidates, self.now);
        self.runtime.block_on(self.server.authorizer.carry_out(&agreed, self.now)).unwrap();

        let mut drops: BTreeMap<String, u64> = BTreeMap::new();
        let mut agreed = agreed.iter().map(|candidate| candidate.knock.nonce);
        for ((letter, _), verdict) in letters.iter().zip(expected) {
            self.note(verdict);
            match verdict {
                Ok(()) => {
                    assert_eq!(agreed.next(), Some(Nonce([letter.nonce; 24])), "{letter:?}");
                    let is_new = self.accepted.insert((letter.client, letter.nonce, letter.stamp));
                    assert!(is_new, "accepted twice: {letter:?}");
                    self.note(Err("agreed"));
                }
                Err(reason) => *drops.entry(reason.to_owned()).or_default() += 1,
            }
        }
        assert_eq!(agreed.next(), None);
        assert_eq!(
            accepted.len(),
            letters.len() - usize::try_from(drops.values().sum::<u64>()).unwrap()
        );
        let mut counted = self.server.counters.dropped();
        for (reason, count) in &mut counted {
            *count -= before[reason];
        }
        counted.retain(|_, count| *count > 0);
        assert_eq!(counted, drops);
    }

    fn note(&self, verdict: Result<(), &'static str>) {
        if let Err(reason) = verdict {
            *self.met.borrow_mut().entry(reason).or_default() += 1;
        }
    }

    fn pass(&mut self, seconds: u64) {
        let passed = Duration::from_secs(seconds);
        self.now.realtime = self.now.realtime.saturating_add(passed);
        self.now.boottime = self.now.boottime.saturating_add(passed);
        (self.model.now, self.model.boot) = (self.now.realtime.0, self.now.boottime.0);
        self.model.tick();
        // The kernel closes by itself, and the daemon does what it does every second.
        let passed = u32::try_from(seconds).unwrap();
        self.server.kernel.0.elements.lock().unwrap().retain(|_, left| {
            *left = left.saturating_sub(passed);
            *left > 0
        });
        let authorizer = &mut self.server.authorizer;
        {
            let mut judge = self.server.judge.lock();
            judge.watch_clock(self.now);
            judge.receiver.roll(self.now.realtime);
        }
        self.runtime.block_on(authorizer.expire(self.now.boottime));
        authorizer.limits.prune(uptime(self.now));
    }

    /// What waits is lost, and sometimes what was written.
    fn restart(&mut self, other_rules: bool, is_lost: bool) {
        self.waiting.clear();
        if other_rules {
            self.rules.reverse();
        }
        let (mut snapshot, refused) = {
            let judge = self.server.judge.lock();
            (Snapshot::of(&judge.receiver), judge.refused.clone())
        };
        // As the daemon does when it starts.
        snapshot.barrier = snapshot.barrier.min(UnixMicros(self.now.realtime.0 + WIDEST_WINDOW));
        if is_lost {
            let latest = self.now.realtime.0 + WINDOW;
            snapshot = Snapshot { barrier: UnixMicros(latest), ..Snapshot::default() };
            // What a clock had stamped that was ahead has its price: it is remembered by nobody.
            self.accepted.retain(|(.., stamp)| *stamp <= latest);
        }
        let grants = self.server.authorizer.grants.iter().cloned().collect();
        let kernel = self.server.kernel.clone();
        self.server = process(&self.rules[0], &snapshot, kernel, self.now);
        self.server.judge.lock().refused = refused;
        self.runtime.block_on(self.server.authorizer.resume(grants, self.now)).unwrap();
        self.model.restart(self.rules[0].clone(), is_lost);
    }

    fn compare(&self) {
        let client = |key: &GrantKey| (0..CLIENTS).find(|client| id(*client) == key.client);
        let granted = |grant: &Grant| Granted {
            client: client(&grant.key).unwrap(),
            source: grant.key.source.net(),
            item: grant.key.service.to_string(),
            ports: grant.ports.iter().map(ToString::to_string).collect(),
            end: grant.expires.0,
        };
        let open: BTreeSet<_> = self.server.authorizer.grants.iter().map(granted).collect();
        assert_eq!(open, self.model.grants.iter().cloned().collect());
        let kernel = self.server.kernel.0.elements.lock().unwrap();
        let admits =
            |(element, seconds): (&Element, &u32)| (element.to_string(), (*seconds).into());
        assert_eq!(kernel.iter().map(admits).collect::<BTreeMap<_, _>>(), self.model.kernel());
        assert_eq!(self.server.judge.lock().receiver.barrier().0, self.model.barrier);
    }
}

/// What has to come about, besides each refusal, so that nobody can say that the property was not tried.
const VERDICTS: [&str; 19] = [
    "agreed",
    "truncated",
    "not-ip",
    "fragment",
    "not-udp",
    "bad-source",
    "length",
    "unknown-tag",
    "skew-unexamined",
    "mac",
    "replay",
    "too-old",
    "too-new",
    "barrier",
    "floor",
    "bound-source",
    "superseded",
    "window-full",
    "duplicate",
];

#[test]
fn whatever_comes_the_whole_way_decides_as_the_model_does() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let met = RefCell::default();
    let config = ProptestConfig { source_file: Some(file!()), ..ProptestConfig::with_cases(300) };
    let worlds = ([rules(), rules()], vec(step(), 1..120));
    let outcome = TestRunner::new(config).run(&worlds, |(rules, steps)| {
        let mut world = World::new(&runtime, &met, rules);
        for step in steps {
            world.step(step);
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    let met = met.into_inner();
    let missing =
        VERDICTS.iter().chain(Refusal::ALL).copied().filter(|verdict| !met.contains_key(verdict));
    assert_eq!(missing.collect::<Vec<_>>(), [""; 0], "{met:?}");
}
