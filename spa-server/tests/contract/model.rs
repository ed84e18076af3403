//! Any sequence of what clients, administrators, restarts and time do leaves just what the grants
//! need in the kernel.

use crate::gates::LiveGate;
use crate::lab::{Lab, plan, ports};
use crate::probe::until;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use spa_proto::{ClientId, Nonce, UnixMicros};
use spa_server::clock::BootMicros;
use spa_server::gate::{Backend, Change, Element, LiveElement, Plan};
use spa_server::grants::{Grant, GrantKey, GrantTable};
use spa_server::service::Connections;
use spa_server::source::Source;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

const SOURCES: [&str; 6] = [
    "192.0.2.1",
    "192.0.2.0/24",
    "203.0.113.3",
    "2001:db8:1::1",
    "2001:db8:1::/64",
    "2001:db8:3::3",
];
/// Services, each with its ports: they share some.
const SERVICES: [(&str, &[&str]); 4] = [
    ("ssh", &["tcp/22"]),
    ("media", &["udp/10000-10100", "tcp/22"]),
    ("one", &["udp/10050"]),
    ("all", &["tcp/22", "udp/5000", "tcp/7000-7002"]),
];

/// What happens.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// A client's knock is accepted.
    Open { client: u8, source: usize, service: usize, seconds: u32 },
    /// The grants of a client are revoked; of one source, or all.
    Revoke { client: u8, source: Option<usize> },
    /// The daemon is killed, and another one starts.
    Restart,
    /// The machine sleeps: the kernel's timers may stand still meanwhile.
    Suspend { seconds: u64 },
    /// Time passes.
    Wait,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let open = (1..4_u8, 0..SOURCES.len(), 0..SERVICES.len(), prop_oneof![1..3_u32, 50..3000_u32]);
    let open = open.prop_map(|(client, source, service, seconds)| Event::Open {
        client,
        source,
        service,
        seconds,
    });
    let revoke = (1..4_u8, proptest::option::of(0..SOURCES.len()));
    let revoke = revoke.prop_map(|(client, source)| Event::Revoke { client, source });
    let event = prop_oneof![
        12 => open,
        4 => revoke,
        2 => Just(Event::Restart),
        2 => (1..2000_u64).prop_map(|seconds| Event::Suspend { seconds }),
        1 => Just(Event::Wait),
    ];
    proptest::collection::vec(event, 1..24)
}

/// One grant, as simply as can be.
#[derive(Debug, Clone)]
struct Promise {
    client: u8,
    source: usize,
    service: usize,
    until: BootMicros,
}

/// The daemon: the table, its gate, and a clock that can be ahead of the kernel's timers.
struct Daemon<'a> {
    lab: &'a Lab,
    plan: Plan,
    /// `None` while there is no daemon.
    gate: Option<LiveGate>,
    table: GrantTable,
    slept: Duration,
    /// When it was last looked what is over.
    judged: BootMicros,
    model: Vec<Promise>,
}

impl Daemon<'_> {
    fn now(&self) -> BootMicros {
        BootMicros::now().saturating_add(self.slept)
    }

    fn gate(&self) -> &LiveGate {
        self.gate.as_ref().unwrap()
    }

    fn apply(&self, changes: &[Change]) {
        self.gate().apply(&[changes]);
    }

    fn happens(&mut self, event: Event) {
        let now = self.now();
        match event {
            Event::Open { client, source, service, seconds } => {
                let until = now.saturating_add(Duration::from_secs(seconds.into()));
                let (name, opens) = SERVICES[service];
                let changes = self.table.open(
                    now,
                    Grant {
                        key: GrantKey {
                            client: ClientId([client; 32]),
                            source: source_of(source),
                            service: name.parse().unwrap(),
                        },
                        ports: opens.iter().map(|text| ports(text)).collect(),
                        connections: Connections::Any,
                        opened: UnixMicros(0),
                        expires: until,
                        request: Nonce([client; 24]).into(),
                    },
                );
                self.apply(&changes);
                let same = |p: &&mut Promise| {
                    (p.client, p.source, p.service) == (client, source, service) && p.until > now
                };
                match self.model.iter_mut().find(same) {
                    Some(promise) => promise.until = promise.until.max(until),
                    None => self.model.push(Promise { client, source, service, until }),
                }
            }
            Event::Revoke { client, source } => {
                let picks = |grant: &Grant| {
                    grant.key.client == ClientId([client; 32])
                        && source.is_none_or(|source| grant.key.source == source_of(source))
                };
                let (_, changes) = self.table.close(now, picks);
                self.apply(&changes);
                self.model.retain(|promise| {
                    promise.client != client || source.is_some_and(|s| s != promise.source)
                });
            }
            Event::Restart => {
                self.gate = None;
                self.gate = Some(self.lab.installed(&self.plan));
                let grants: Vec<_> = self.table.iter().cloned().collect();
                let found = self.gate().snapshot();
                let changes = self.table.rebuild(now, grants, &found);
                self.apply(&changes);
            }
            Event::Suspend { seconds } => self.slept += Duration::from_secs(seconds),
            Event::Wait => thread::sleep(Duration::from_millis(1100)),
        }
        self.judged = self.now();
        let (_, changes) = self.table.expire(self.judged);
        self.apply(&changes);
    }

    /// The kernel admits what the model says, and for as long; but for what ends while this looks.
    fn check(&self, times: bool) {
        let before = self.wanted(self.judged);
        if self.lab.subject.backend == Backend::Hook {
            // A command takes its time to close what is over, which is told of until then.
            let is_over =
                |live: &LiveElement| live.seconds_left == 0 && !before.contains_key(&live.element);
            until("closed", || !self.gate().snapshot().iter().any(is_over));
        }
        let live = self.gate().snapshot();
        let after = self.wanted(self.now());
        for element in after.keys().filter(|element| before.contains_key(element)) {
            assert!(live.iter().any(|live| live.element == *element), "{element} is missing");
        }
        for live in live {
            let left = before.get(&live.element);
            let left = left.unwrap_or_else(|| panic!("{} is admitted to nobody", live.element));
            // Rounded up by the daemon, down by the kernel, whose timers may be a moment late.
            if times {
                let difference = u64::from(live.seconds_left).abs_diff(left.as_secs());
                assert!(difference <= 3, "{}: {left:?} and {live:?}", live.element);
            }
        }
    }

    fn wanted(&self, now: BootMicros) -> BTreeMap<Element, Duration> {
        let mut wanted = BTreeMap::new();
        for promise in self.model.iter().filter(|promise| promise.until > now) {
            for text in SERVICES[promise.service].1 {
                let element = Element { source: source_of(promise.source), ports: ports(text) };
                let left = wanted.entry(element).or_insert(Duration::ZERO);
                *left = promise.until.since(now).max(*left);
            }
        }
        wanted
    }
}

fn source_of(at: usize) -> Source {
    SOURCES[at].parse().unwrap()
}

pub(crate) fn any_sequence_leaves_what_the_grants_need(lab: &Lab) {
    let seed = std::env::var("SPA_SEED").map_or(20_260_101, |text| text.parse().unwrap());
    println!("SPA_SEED={seed} repeats this");
    let config = Config {
        cases: 12,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(seed),
        max_shrink_iters: 40,
        ..Config::default()
    };
    let plan = plan(&["tcp/22", "udp/5000", "udp/10000-10100", "tcp/7000-7002"]);
    let reached = RefCell::new(0);
    TestRunner::new(config)
        .run(&events(), |events| {
            lab.gate().remove();
            let mut daemon = Daemon {
                lab,
                plan: plan.clone(),
                gate: Some(lab.installed(&plan)),
                table: GrantTable::new(),
                slept: Duration::ZERO,
                judged: BootMicros::now(),
                model: Vec::new(),
            };
            let mut exact = true;
            for event in events {
                daemon.happens(event);
                // Whoever has slept finds times that are too long, until they are set right.
                exact &= !matches!(event, Event::Suspend { .. });
                exact |= matches!(event, Event::Restart);
                daemon.check(exact);
                *reached.borrow_mut() += daemon.wanted(daemon.judged).len();
            }
            let changes = daemon.table.reconcile(daemon.now(), &daemon.gate().snapshot());
            daemon.apply(&changes);
            daemon.check(true);
            Ok(())
        })
        .unwrap();
    assert!(*reached.borrow() > 100, "hardly anything was ever admitted");
}
