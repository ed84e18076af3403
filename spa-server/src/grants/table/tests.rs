//! What the table asks of the kernel, by examples and against a model.

use super::*;
use proptest::prelude::*;
use spa_proto::{Nonce, UnixMicros};

const SECOND: u64 = 1_000_000;

fn host(address: [u8; 4]) -> Source {
    Source::host(address.into())
}

fn grant(client: u8, source: u8, service: &str, ports: &[&str], expires: u64) -> Grant {
    Grant {
        key: GrantKey {
            client: ClientId([client; 32]),
            source: host([192, 0, 2, source]),
            service: service.parse().unwrap(),
        },
        ports: ports.iter().map(|port| port.parse().unwrap()).collect(),
        connections: Connections::Any,
        opened: UnixMicros(7),
        expires: BootMicros(expires),
        request: Nonce([client; 24]).into(),
    }
}

fn element(source: u8, port: &str) -> Element {
    Element { source: host([192, 0, 2, source]), ports: port.parse().unwrap() }
}

fn admit(source: u8, port: &str, seconds: u32) -> Change {
    Change::Admit { element: element(source, port), seconds }
}

fn withdraw(source: u8, port: &str) -> Change {
    Change::Withdraw { element: element(source, port) }
}

fn at(seconds: u64) -> BootMicros {
    BootMicros(seconds * SECOND)
}

#[test]
fn a_refresh_never_shortens_and_seconds_are_rounded_up() {
    let mut table = GrantTable::new();
    let ssh = |expires| grant(1, 1, "ssh", &["tcp/22"], expires);
    assert_eq!(table.open(at(0), ssh(30 * SECOND)), [admit(1, "tcp/22", 30)]);
    assert_eq!(table.open(at(0), ssh(10 * SECOND)), [admit(1, "tcp/22", 30)]);
    assert_eq!(table.open(BootMicros(1), ssh(40 * SECOND)), [admit(1, "tcp/22", 40)]);
    assert_eq!(table.open(BootMicros(1), ssh(40 * SECOND + 2)), [admit(1, "tcp/22", 41)]);
    assert_eq!(table.len(), 1);
    assert_eq!(table.next_expiry(), Some(BootMicros(40 * SECOND + 2)));
}

#[test]
fn a_refresh_keeps_the_time_of_opening_and_a_new_start_does_not() {
    let mut table = GrantTable::new();
    let mut again = grant(1, 1, "ssh", &["tcp/22"], 20 * SECOND);
    again.opened = UnixMicros(99);
    let _ = table.open(at(0), grant(1, 1, "ssh", &["tcp/22"], 10 * SECOND));
    let _ = table.open(at(5), again.clone());
    assert_eq!(table.get(&again.key).unwrap().opened, UnixMicros(7));
    again.expires = at(50);
    // In the moment in which it ends.
    let _ = table.open(at(20), again.clone());
    assert_eq!(table.get(&again.key).unwrap().opened, UnixMicros(99));
}

#[test]
fn a_neighbour_behind_the_same_address_keeps_the_port_with_its_own_time() {
    let mut table = GrantTable::new();
    let _ = table.open(at(0), grant(1, 1, "ssh", &["tcp/22"], 60 * SECOND));
    assert_eq!(
        table.open(at(0), grant(2, 1, "ssh", &["tcp/22"], 20 * SECOND)),
        [admit(1, "tcp/22", 60)]
    );
    let first = |g: &Grant| g.key.client == ClientId([1; 32]);
    let (closed, changes) = table.close(at(5), first);
    assert_eq!(closed.len(), 1);
    assert_eq!(changes, [admit(1, "tcp/22", 15)]);
    let (closed, changes) = table.close(at(5), |_| true);
    assert_eq!((closed.len(), changes), (1, vec![withdraw(1, "tcp/22")]));
    assert!(table.is_empty() && table.elements() == 0 && table.clients.is_empty());
}

#[test]
fn what_a_service_lost_is_withdrawn_when_its_grant_is_refreshed() {
    let mut table = GrantTable::new();
    let _ = table.open(at(0), grant(1, 1, "web", &["tcp/80", "tcp/443"], 60 * SECOND));
    assert_eq!(
        table.open(at(0), grant(1, 1, "web", &["tcp/443", "udp/443"], 30 * SECOND)),
        [withdraw(1, "tcp/80"), admit(1, "tcp/443", 60), admit(1, "udp/443", 60)]
    );
}

#[test]
fn sources_are_those_of_live_grants() {
    let mut table = GrantTable::new();
    for (source, expires) in [(1, 10), (1, 20), (2, 10), (3, 30)] {
        let service = format!("s{expires}");
        let _ = table.open(at(0), grant(1, source, &service, &["tcp/22"], expires * SECOND));
    }
    let sources = |now| table.sources_of(ClientId([1; 32]), at(now)).len();
    assert_eq!([sources(0), sources(10), sources(20), sources(30)], [3, 2, 1, 0]);
    assert!(table.sources_of(ClientId([2; 32]), at(0)).is_empty());
    // What it costs nothing to ask counts those that are over, until they are taken out.
    assert_eq!(table.at_most_sources_of(&ClientId([1; 32])), 3);
    assert!(!table.is_empty() && table.iter().count() == 4);
    let _ = table.expire(at(10));
    assert_eq!(table.at_most_sources_of(&ClientId([1; 32])), 2);
    let _ = table.expire(at(30));
    assert_eq!(table.at_most_sources_of(&ClientId([1; 32])), 0);
    assert!(table.is_empty());
}

#[test]
fn a_restart_makes_the_kernel_equal_to_the_grants() {
    let mut table = GrantTable::new();
    let live =
        |source, port, seconds_left| LiveElement { element: element(source, port), seconds_left };
    let changes = table.rebuild(
        at(100),
        [
            grant(1, 1, "ssh", &["tcp/22"], 130 * SECOND),
            grant(1, 2, "ssh", &["tcp/22"], 130 * SECOND),
            grant(1, 3, "ssh", &["tcp/22"], 130 * SECOND),
            grant(1, 4, "ssh", &["tcp/22"], 90 * SECOND),
        ],
        &[live(1, "tcp/22", 29), live(2, "tcp/22", 12), live(4, "tcp/22", 3), live(9, "udp/9", 0)],
    );
    assert_eq!(
        changes,
        [
            withdraw(4, "tcp/22"),
            withdraw(9, "udp/9"),
            admit(2, "tcp/22", 30),
            admit(3, "tcp/22", 30)
        ]
    );
    let (expired, _) = table.expire(at(100));
    assert_eq!(expired.len(), 1, "a grant that ended meanwhile is reported");
}

fn one(client: u8, source: u8, service: &str, ports: &[&str], seconds: u64) -> Grant {
    let grant = grant(client, source, service, ports, seconds * SECOND);
    Grant { connections: Connections::One, ..grant }
}

#[test]
fn what_was_used_is_not_put_back_and_a_port_that_is_left_lives_on() {
    let mut table = GrantTable::new();
    let ports = ["tcp/5900", "tcp/5901"];
    let _ = table.open(at(0), one(1, 1, "desk", &ports, 60));
    let _ = table.open(at(0), grant(1, 1, "ssh", &["tcp/22"], 60 * SECOND));
    let live = |port| LiveElement { element: element(1, port), seconds_left: 59 };
    // The control: as long as all is there, nothing was used.
    let all = [live("tcp/5900"), live("tcp/5901"), live("tcp/22")];
    assert_eq!(table.take_used(at(1), &all), []);
    assert!(table.has_single());
    let used = table.take_used(at(1), &[live("tcp/5901"), live("tcp/22")]);
    assert_eq!(used, [one(1, 1, "desk", &["tcp/5900"], 60)]);
    assert_eq!(table.get(&used[0].key), Some(&one(1, 1, "desk", &["tcp/5901"], 60)));
    // A flush: what isn't for one connection is put back.
    assert_eq!(table.reconcile(at(1), &[]), [admit(1, "tcp/22", 59)]);
    assert_eq!(table.take_used(at(1), &[]).len(), 1);
    assert_eq!((table.len(), table.elements(), table.has_single()), (1, 1, false));
    // A new knock, a new connection, to each port.
    let again = table.open(at(2), one(1, 1, "desk", &ports, 62));
    assert_eq!(again, [admit(1, "tcp/5900", 60), admit(1, "tcp/5901", 60)]);
}

#[test]
fn what_ends_anyway_was_not_used() {
    let mut table = GrantTable::new();
    let _ = table.open(at(0), one(1, 1, "desk", &["tcp/5900"], 60));
    assert_eq!(table.take_used(at(59), &[]), []);
    assert_eq!(table.reconcile(at(59), &[]), []);
    assert_eq!(table.expire(at(60)).0.len(), 1);
}

#[test]
fn a_connection_uses_up_nothing_that_is_for_as_many_as_come() {
    let mut table = GrantTable::new();
    let of_one =
        Grant { connections: Connections::One, ..grant(1, 1, "desk", &["tcp/5900"], 60 * SECOND) };
    let of_many = grant(2, 1, "all", &["tcp/5900"], 60 * SECOND);
    for grant in [&of_one, &of_many] {
        let _ = table.open(at(0), grant.clone());
    }
    assert_eq!(table.take_used(at(1), &[]), [of_one]);
    assert_eq!(table.get(&of_many.key), Some(&of_many));
    assert!(!table.has_single());
}

#[test]
fn nothing_but_a_knock_admits_what_is_for_one_connection() {
    let mut table = GrantTable::new();
    let _ = table.open(at(0), one(1, 1, "desk", &["tcp/5900"], 60));
    let _ = table.open(at(0), one(2, 1, "desk", &["tcp/5900"], 20));
    // The connection has come, but nobody has looked yet.
    let first = |g: &Grant| g.key.client == ClientId([1; 32]);
    assert_eq!(table.close(at(5), first).1, []);
    assert_eq!(table.expire(at(20)).1, [withdraw(1, "tcp/5900")]);
}

#[derive(Debug, Clone)]
enum Step {
    Open { client: u8, source: u8, service: usize, seconds: u64 },
    Close { client: Option<u8>, source: Option<u8> },
    Sleep(u64),
    Expire,
    Connect { source: u8, port: usize },
    Look,
    Reconcile,
}

const SERVICES: [(&str, &[&str]); 6] = [
    ("ssh", &["tcp/22"]),
    ("web", &["tcp/80", "tcp/443"]),
    ("tcp/443", &["tcp/443"]),
    ("all", &["tcp/22", "tcp/80", "udp/53"]),
    ("desk", &SINGLE),
    ("tcp/5900", &["tcp/5900"]),
];
/// These are for one connection.
const SINGLE: [&str; 2] = ["tcp/5900", "tcp/5901"];

fn is_single(ports: PortRange) -> bool {
    SINGLE.iter().any(|single| single.parse() == Ok(ports))
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..4u8, 1..3u8, 0..SERVICES.len(), 1..100_000_000u64).prop_map(
            |(client, source, service, seconds)| Step::Open { client, source, service, seconds }
        ),
        1 => (proptest::option::of(1..4u8), proptest::option::of(1..3u8))
            .prop_map(|(client, source)| Step::Close { client, source }),
        2 => (1..30_000_000u64).prop_map(Step::Sleep),
        2 => Just(Step::Expire),
        2 => (1..3u8, 0..SINGLE.len())
            .prop_map(|(source, port)| Step::Connect { source, port }),
        1 => Just(Step::Look),
        1 => Just(Step::Reconcile),
    ]
}

/// A list of grants, searched from end to end, and a kernel that knows when elements end.
#[derive(Default)]
struct Naive {
    grants: Vec<Grant>,
    kernel: BTreeMap<Element, u64>,
    /// How many knocks asked for what is for one connection, less those that came.
    owed: BTreeMap<Element, i32>,
    /// What a connection has used since it was admitted last.
    used: BTreeSet<Element>,
}

impl Naive {
    fn apply(&mut self, now: u64, changes: &[Change]) {
        for change in changes {
            match *change {
                Change::Admit { element, seconds } => {
                    self.kernel.insert(element, now + u64::from(seconds) * SECOND);
                    self.used.remove(&element);
                }
                Change::Withdraw { element } => {
                    self.kernel.remove(&element);
                }
            }
        }
    }

    fn live(&self, now: u64) -> Vec<LiveElement> {
        let live = self.kernel.iter().map(|(element, until)| LiveElement {
            element: *element,
            seconds_left: u32::try_from((until - now) / SECOND).unwrap(),
        });
        live.collect()
    }

    fn take_used(&mut self, now: u64) -> usize {
        let mut taken = 0;
        for grant in self.grants.iter_mut().filter(|g| g.expires.0 > now + SECOND) {
            let source = grant.key.source;
            let before = grant.ports.len();
            grant.ports.retain(|ports| {
                let element = Element { source, ports: *ports };
                !is_single(*ports) || self.kernel.contains_key(&element)
            });
            taken += usize::from(grant.ports.len() < before);
        }
        self.grants.retain(|grant| !grant.ports.is_empty());
        taken
    }

    fn needed_until(&self, now: u64, element: Element) -> Option<u64> {
        self.grants
            .iter()
            .filter(|g| g.key.source == element.source && g.ports.contains(&element.ports))
            .map(|g| g.expires.0)
            .filter(|expires| *expires > now)
            .max()
    }
}

proptest! {
    #[test]
    fn the_kernel_admits_just_what_a_naive_model_says(
        steps in proptest::collection::vec(any_step(), 1..80)
    ) {
        let mut table = GrantTable::new();
        let mut naive = Naive::default();
        let mut now = 0;
        for step in steps {
            match step {
                Step::Open { client, source, service, seconds } => {
                    let (name, ports) = SERVICES[service];
                    let mut grant = grant(client, source, name, ports, now + seconds);
                    let single = |element: &Element| is_single(element.ports);
                    let singles: Vec<_> = elements(&grant).filter(single).collect();
                    for element in singles {
                        grant.connections = Connections::One;
                        *naive.owed.entry(element).or_default() += 1;
                    }
                    let changes = table.open(BootMicros(now), grant.clone());
                    if let Some(at) = naive.grants.iter().position(|g| g.key == grant.key) {
                        let old = naive.grants.remove(at);
                        grant.expires = grant.expires.max(old.expires);
                    }
                    naive.grants.push(grant);
                    naive.apply(now, &changes);
                }
                Step::Close { client, source } => {
                    let picked = |g: &Grant| {
                        client.is_none_or(|c| g.key.client == ClientId([c; 32]))
                            && source.is_none_or(|s| g.key.source == host([192, 0, 2, s]))
                    };
                    let (closed, changes) = table.close(BootMicros(now), picked);
                    let before = naive.grants.len();
                    naive.grants.retain(|g| !picked(g));
                    prop_assert_eq!(closed.len(), before - naive.grants.len());
                    naive.apply(now, &changes);
                }
                Step::Sleep(micros) => now += micros,
                Step::Connect { source, port } => {
                    let element = element(source, SINGLE[port]);
                    if naive.kernel.remove(&element).is_some() {
                        naive.used.insert(element);
                        let owed = naive.owed.entry(element).or_default();
                        *owed -= 1;
                        prop_assert!(*owed >= 0, "{} let in one too many", element);
                    }
                }
                Step::Look => {
                    let used = table.take_used(BootMicros(now), &naive.live(now));
                    prop_assert_eq!(used.len(), naive.take_used(now));
                }
                Step::Reconcile => {
                    let changes = table.reconcile(BootMicros(now), &naive.live(now));
                    naive.apply(now, &changes);
                }
                Step::Expire => {
                    let (expired, changes) = table.expire(BootMicros(now));
                    let before = naive.grants.len();
                    naive.grants.retain(|g| g.expires.0 > now);
                    prop_assert_eq!(expired.len(), before - naive.grants.len());
                    let withdraws = |c: &Change| matches!(c, Change::Withdraw { .. });
                    prop_assert!(changes.iter().all(withdraws));
                    naive.apply(now, &changes);
                }
            }
            naive.kernel.retain(|_, until| *until > now);

            prop_assert_eq!(table.len(), naive.grants.len());
            for grant in &naive.grants {
                prop_assert_eq!(table.get(&grant.key).map(|g| g.expires), Some(grant.expires));
            }
            let next = naive.grants.iter().map(|g| g.expires).min();
            prop_assert_eq!(table.next_expiry(), next);
            for source in 1..3 {
                for port in SINGLE {
                    let element = element(source, port);
                    let (held, needed) =
                        (naive.kernel.get(&element), naive.needed_until(now, element));
                    match (held, needed) {
                        (Some(until), Some(needed)) => prop_assert!(*until >= needed),
                        (None, Some(_)) => prop_assert!(naive.used.contains(&element)),
                        (_, None) => {}
                    }
                }
                for port in ["tcp/22", "tcp/80", "tcp/443", "udp/53"] {
                    let element = element(source, port);
                    match (naive.kernel.get(&element), naive.needed_until(now, element)) {
                        (None, None) => {}
                        (Some(until), Some(needed)) => {
                            prop_assert!((needed..needed + SECOND).contains(until));
                        }
                        // At most the second of rounding is admitted that nobody needs.
                        (Some(until), None) => prop_assert!(*until < now + SECOND),
                        (None, Some(_)) => prop_assert!(false, "{} was lost", element),
                    }
                }
            }
            // However the kernel was brought here, nothing is left to mend, but for what ends
            // within this second.
            for change in table.reconcile(BootMicros(now), &naive.live(now)) {
                let withdraws = matches!(change, Change::Withdraw { .. });
                prop_assert!(withdraws, "{:?}", change);
            }
        }
        let (_, changes) = table.close(BootMicros(now), |_| true);
        naive.apply(now, &changes);
        let (_, changes) = table.expire(BootMicros(now));
        naive.apply(now, &changes);
        naive.kernel.retain(|_, until| *until >= now + SECOND);
        prop_assert!(naive.kernel.is_empty());
        prop_assert!(table.single.is_empty());
        prop_assert!(table.needs.is_empty() && table.expiries.is_empty() && table.clients.is_empty());
    }
}

#[test]
fn a_hundred_thousand_grants_cost_no_more_each_than_a_hundred() {
    // Not a matter of time but of work: the table looks at no other grants than those named.
    let mut table = GrantTable::new();
    for n in 0..100_000u32 {
        let mut one = grant(1, 1, "ssh", &["tcp/22"], u64::from(n) + SECOND);
        one.key.source = host(n.to_be_bytes());
        assert_eq!(table.open(at(0), one).len(), 1);
    }
    let (expired, changes) = table.expire(BootMicros(SECOND + 9));
    assert_eq!((expired.len(), changes.len()), (10, 10));
}
