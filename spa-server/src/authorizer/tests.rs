//! An authorizer with a kernel and a store that fail on demand.

mod failing_kernel;
mod limits;
mod whole;

use super::*;
use crate::gate::{
    Backend, Change, Connection, Cut, Doubt, Guarded, InstallReport, LiveElement, Look, Mode, Plan,
};
use crate::grants::GrantStoreError;
use crate::pipeline::Judge;
use crate::policy::{ClientRules, Prefixes, Rate};
use crate::replay_store::{Mark, Snapshot, StoreError};
use crate::service::{Connections, Service};
use spa_proto::{Freshness, MaskKey, Nonce, PortRange, Receiver, Request, ServerKey, Settings};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

const CLIENT: ClientId = ClientId([1; 32]);

/// A kernel that counts what it is asked for.
#[derive(Default, Clone)]
struct Kernel(Arc<KernelState>);

#[derive(Default)]
struct KernelState {
    elements: Mutex<BTreeMap<Element, u32>>,
    fails: AtomicBool,
    flushed: AtomicBool,
    takes_no_changes: AtomicBool,
    calls: Mutex<usize>,
    /// Elements that are counted only.
    strays: Mutex<usize>,
}

impl Kernel {
    fn admits(&self) -> Vec<String> {
        self.0.elements.lock().unwrap().keys().map(ToString::to_string).collect()
    }

    fn fail(&self, fails: bool) {
        self.0.fails.store(fails, Ordering::Relaxed);
    }

    fn refuse_changes(&self, refuses: bool) {
        self.0.takes_no_changes.store(refuses, Ordering::Relaxed);
    }

    /// What somebody else does.
    fn flush(&self) {
        self.0.elements.lock().unwrap().clear();
        self.0.flushed.store(true, Ordering::Relaxed);
    }

    /// What somebody else does who has saved the sets before.
    fn put(&self, elements: &[(&str, &str, u32)]) {
        let mut held = self.0.elements.lock().unwrap();
        for (source, ports, seconds) in elements {
            let (source, ports) = (source.parse().unwrap(), ports.parse().unwrap());
            held.insert(Element { source, ports }, *seconds);
        }
    }

    /// What a connection does that is the only one, or somebody else.
    fn take(&self, element: &str) {
        let mut elements = self.0.elements.lock().unwrap();
        let before = elements.len();
        elements.retain(|held, _| held.to_string() != element);
        assert_eq!(elements.len() + 1, before, "{element}");
    }

    fn calls(&self) -> usize {
        *self.0.calls.lock().unwrap()
    }

    fn called(&self) -> Result<(), GateError> {
        *self.0.calls.lock().unwrap() += 1;
        if self.0.fails.load(Ordering::Relaxed) { Err(GateError::NotInstalled) } else { Ok(()) }
    }
}

impl Gate for Kernel {
    async fn install(&self, _: &Plan) -> Result<InstallReport, GateError> {
        self.called()?;
        let changed = self.0.flushed.swap(false, Ordering::Relaxed);
        Ok(InstallReport { changed, ..InstallReport::default() })
    }

    async fn apply(&self, changes: &[Change]) -> Result<(), GateError> {
        self.called()?;
        if self.0.takes_no_changes.load(Ordering::Relaxed) {
            return Err(GateError::NotInstalled);
        }
        let mut elements = self.0.elements.lock().unwrap();
        for change in changes {
            match *change {
                Change::Admit { element, seconds } => drop(elements.insert(element, seconds)),
                Change::Withdraw { element } => drop(elements.remove(&element)),
            }
        }
        Ok(())
    }

    async fn snapshot(&self) -> Result<Vec<LiveElement>, GateError> {
        self.called()?;
        let elements = self.0.elements.lock().unwrap();
        let live = |(element, seconds): (&Element, &u32)| LiveElement {
            element: *element,
            seconds_left: *seconds,
        };
        Ok(elements.iter().map(live).collect())
    }

    async fn remove(&self) -> Result<(), GateError> {
        self.called()?;
        self.0.elements.lock().unwrap().clear();
        Ok(())
    }

    fn backend(&self) -> Backend {
        Backend::DryRun
    }

    async fn examine(&self, _: &Plan) -> Result<InstallReport, GateError> {
        self.called().map(|()| InstallReport::default())
    }

    async fn disturbed(&self) -> Doubt {
        std::future::pending().await
    }

    async fn look(&self, _: Doubt) -> Result<Look, GateError> {
        self.called()?;
        let held = self.0.elements.lock().unwrap().len() + *self.0.strays.lock().unwrap();
        Ok(Look { missing: Vec::new(), elements: u64::try_from(held).unwrap() })
    }

    async fn sever(&self, _: &[Cut]) -> Result<(), GateError> {
        self.called()
    }

    async fn lift(&self) -> Result<(), GateError> {
        self.called()
    }
}

/// A store that remembers what it was given last.
#[derive(Default, Clone)]
struct Store(Arc<StoreState>);

#[derive(Default)]
struct StoreState {
    rewritten: Mutex<Snapshot>,
    fails: AtomicBool,
}

impl Store {
    fn result(&self) -> Result<(), StoreError> {
        if self.0.fails.load(Ordering::Relaxed) {
            Err(StoreError::Broken { path: "replay.log".into() })
        } else {
            Ok(())
        }
    }
}

impl ReplayStore for Store {
    fn append(&mut self, _: &[Accepted]) -> Result<(), StoreError> {
        Ok(())
    }

    fn rewrite(&mut self, state: &Snapshot, _: Mark) -> Result<(), StoreError> {
        self.result()?;
        *self.0.rewritten.lock().unwrap() = state.clone();
        Ok(())
    }

    fn is_broken(&self) -> bool {
        false
    }

    fn is_bloated(&self) -> bool {
        false
    }
}

struct NoLog;

impl GrantStore for NoLog {
    fn record(&mut self, _: &[Grant], _: &[GrantKey]) -> Result<(), GrantStoreError> {
        Ok(())
    }

    fn compact(&mut self, _: &mut dyn Iterator<Item = &Grant>) -> Result<(), GrantStoreError> {
        Ok(())
    }
}

fn rules() -> ClientRules {
    ClientRules {
        prefixes: Prefixes::default(),
        enabled: true,
        allow: ["ssh", "web", "desk"].map(|name| name.parse().unwrap()).into(),
        max_lifetime: Duration::from_secs(600),
        default_lifetime: Duration::from_secs(60),
        sources: Vec::new(),
        not_before: None,
        expires: None,
        require_bound_source: false,
        rate: Rate::default(),
        max_sources: 16,
    }
}

fn policy(rules: ClientRules) -> Arc<Policy> {
    let service = |name: &str, port: &str| {
        (name.parse().unwrap(), Service::plain([port.parse::<PortRange>().unwrap()]))
    };
    let desk = Service {
        connections: Connections::One,
        ..Service::plain(["tcp/5900".parse::<PortRange>().unwrap()])
    };
    let desk = ("desk".parse().unwrap(), desk);
    let services = [service("ssh", "tcp/22"), service("web", "tcp/443"), desk].into();
    Arc::new(Policy::new(services, [(CLIENT, "laptop", rules)]))
}

struct Server {
    authorizer: Authorizer<Kernel, Store, NoLog>,
    judge: SharedJudge,
    kernel: Kernel,
    store: Store,
    counters: Arc<Counters>,
}

fn server() -> Server {
    let receiver = Receiver::new(Settings::default(), MaskKey::new([9; 32]));
    let judge = Judge::new(receiver, policy(rules()), Freshness::default(), Now::read());
    server_of(judge, Kernel::default(), 100)
}

fn server_of(judge: Judge, kernel: Kernel, max_grants: usize) -> Server {
    let (judge, store, counters) = (SharedJudge::new(judge), Store::default(), Arc::default());
    let authorizer = Authorizer::new(
        judge.clone(),
        Arc::clone(&counters),
        kernel.clone(),
        store.clone(),
        Some(NoLog),
        max_grants,
    );
    Server { authorizer, judge, kernel, store, counters }
}

impl Server {
    /// A knock that receiver and policy agree to, as the capture side hands it on.
    fn candidate(&self, nonce: u8, service: &str) -> Candidate {
        let now = Now::read().realtime;
        let knock = Knock {
            server_key: ServerKey::Present,
            client: CLIENT,
            nonce: Nonce([nonce; 24]),
            stamp: now,
            source: "192.0.2.7".parse().unwrap(),
            request: Request {
                message_type: MessageType::Open,
                items: service.parse::<Item>().unwrap().try_into().unwrap(),
                bound_source: None,
                lifetime: None,
            },
        };
        let permit = self.judge.lock().policy.judge(&knock, now).unwrap();
        Candidate { knock, permit, captured: Now::realtime() }
    }

    /// The numbers of elements that are right.
    fn needed(&self) -> Vec<u64> {
        let bounds = self.authorizer.needed().now();
        (0..10).filter(|elements| bounds.fit(bounds, *elements)).collect()
    }

    fn dropped(&self, reason: &str) -> Option<u64> {
        self.counters.dropped().get(reason).copied()
    }
}

#[tokio::test]
async fn a_knock_opens_once_however_often_it_waits() {
    let mut server = server();
    let knock = server.candidate(1, "ssh");
    server.authorizer.admit(vec![knock.clone(), knock]).await;
    assert_eq!(server.kernel.admits(), ["tcp/22 from 192.0.2.7"]);
    assert_eq!(server.dropped(DropReason::Replay.as_str()), Some(1));
}

#[tokio::test]
async fn what_opens_something_is_measured_from_its_capture() {
    let mut server = server();
    let mut knocks = [(1, "ssh"), (2, "web"), (2, "web")].map(|(n, it)| server.candidate(n, it));
    knocks[1].captured = Now::realtime().saturating_sub(Duration::from_secs(2));
    // The clock was set back after it was captured.
    knocks[0].captured = Now::realtime().saturating_add(Duration::from_secs(9));
    server.authorizer.admit(knocks.to_vec()).await;
    let latency = server.authorizer.latencies.status().unwrap();
    assert_eq!(latency.knocks, 2, "a replay opens nothing");
    assert_eq!(latency.p50_micros, 0);
    assert!((2_000_000..20_000_000).contains(&latency.max_micros), "{latency:?}");
}

#[tokio::test]
async fn a_knock_that_waited_through_a_reload_is_judged_by_the_new_policy() {
    let mut server = server();
    let waiting = [server.candidate(1, "ssh"), server.candidate(2, "web")];
    let web_only = ClientRules { allow: ["web".parse().unwrap()].into(), ..rules() };
    server.judge.lock().policy = policy(web_only);
    server.authorizer.admit(waiting.to_vec()).await;
    assert_eq!(server.kernel.admits(), ["tcp/443 from 192.0.2.7"]);
    assert_eq!(server.dropped("service-not-allowed"), Some(1));

    let waiting = server.candidate(3, "web");
    server.judge.lock().policy = policy(ClientRules { enabled: false, ..rules() });
    server.authorizer.admit(vec![waiting]).await;
    assert_eq!(server.dropped("disabled"), Some(1));
    assert_eq!(server.authorizer.count(BootMicros::now()), 1);
}

#[tokio::test]
async fn a_knock_that_has_waited_too_long_is_too_old() {
    let mut server = server();
    let window = Freshness::default().get();
    let late = window + LONGEST_WAIT + Duration::from_secs(1);
    for (nonce, age, opened) in [(1, late, 0), (2, window, 1)] {
        let mut knock = server.candidate(nonce, "ssh");
        knock.knock.stamp = Now::read().realtime.saturating_sub(age);
        server.authorizer.admit(vec![knock]).await;
        assert_eq!(server.kernel.admits().len(), opened, "{age:?}");
        assert_eq!(server.dropped("too-old"), Some(1));
    }
}

#[tokio::test]
async fn a_reset_that_could_not_be_stored_is_stored_as_soon_as_that_works() {
    let mut server = server();
    let knock = server.candidate(1, "ssh");
    server.authorizer.admit(vec![knock]).await;
    server.store.0.fails.store(true, Ordering::Relaxed);
    server.authorizer.reset_replay(Some(&[CLIENT]), Now::read().realtime);
    server.authorizer.tick().await;
    assert_eq!(*server.store.0.rewritten.lock().unwrap(), Snapshot::default());
    server.store.0.fails.store(false, Ordering::Relaxed);
    server.authorizer.tick().await;
    let held = Snapshot::of(&server.judge.lock().receiver);
    assert_eq!(*server.store.0.rewritten.lock().unwrap(), held);
    assert!(!held.entries.is_empty());
}

#[tokio::test]
async fn the_tags_of_the_minute_are_computed_beside_all_else() {
    let mut server = server();
    let before = server.judge.lock().receiver.generation();
    server.authorizer.tick().await;
    server.authorizer.rolling.take().unwrap().join().unwrap();
    let judge = server.judge.lock();
    assert_ne!(judge.receiver.generation(), before);
    assert_eq!(
        judge.receiver.sieve().sift(Now::realtime(), &[0; 216]),
        Err(DropReason::UnknownTag)
    );
}

#[tokio::test]
async fn grants_that_ended_meanwhile_or_are_forbidden_now_are_not_resumed() {
    let mut server = server();
    let now = Now::read();
    let left = |nonce: u8, service: &str, seconds| {
        let candidate = server.candidate(nonce, service);
        let Permitted { item, ports, connections } = candidate.permit.grants[0].clone();
        Grant {
            key: key(&candidate, &item),
            ports,
            connections,
            opened: now.realtime,
            expires: now.boottime.saturating_add(Duration::from_secs(seconds)),
            request: RequestId::from(candidate.knock.nonce),
        }
    };
    let mut grants = vec![left(1, "ssh", 60), left(2, "tcp/22", 0), left(3, "web", 60)];
    // Used while no daemon ran: the kernel does not hold it.
    grants.push(left(4, "desk", 60));
    let allow = ["ssh".parse().unwrap(), "desk".parse().unwrap()].into();
    let ssh_only = ClientRules { allow, ..rules() };
    server.judge.lock().policy = policy(ssh_only);
    server.authorizer.resume(grants, now).await.unwrap();
    assert_eq!(server.authorizer.count(BootMicros::now()), 1);
    assert_eq!(server.kernel.admits(), ["tcp/22 from 192.0.2.7"]);
}

fn plan() -> Plan {
    Plan {
        mode: Mode::Guard,
        refusal: crate::gate::Refusal::Drop,
        guarded: vec![Guarded::plain("tcp/22".parse().unwrap())],
        knock_ports: vec![62201],
        always_admit: Vec::new(),
        max_elements: 100,
        trial_seconds: None,
    }
}

#[tokio::test]
async fn what_somebody_flushed_is_put_back_with_the_live_grants() {
    let mut server = server();
    let knocks = vec![server.candidate(1, "ssh"), server.candidate(2, "web")];
    server.authorizer.admit(knocks).await;
    assert_eq!(server.needed(), [2]);
    // The control: where nothing is missing, nothing is mended.
    assert_eq!(server.authorizer.compare_with(2).await, Compared::Fitting);
    assert!(!server.authorizer.restore(&plan()).await.unwrap().mended());

    server.kernel.flush();
    assert_eq!(server.authorizer.compare_with(0).await, Compared::Different);
    let restored = server.authorizer.restore(&plan()).await.unwrap();
    assert!(restored.mended());
    assert_eq!(restored.differences.grants, 2);
    assert_eq!(server.kernel.admits(), ["tcp/22 from 192.0.2.7", "tcp/443 from 192.0.2.7"]);
    assert!(!server.authorizer.restore(&plan()).await.unwrap().mended());
}

#[tokio::test]
async fn what_somebody_brought_back_is_withdrawn_and_what_lives_keeps_its_time() {
    let mut server = server();
    let knocks = vec![server.candidate(1, "ssh"), server.candidate(2, "web")];
    server.authorizer.admit(knocks).await;
    let web = Selection { service: Some("web".parse().unwrap()), ..Selection::default() };
    server.authorizer.revoke(&web, "test").await.unwrap();
    assert_eq!((server.needed(), server.kernel.admits()), (vec![1], vec![SSH.to_owned()]));
    // The control.
    assert_eq!(server.authorizer.compare_with(1).await, Compared::Fitting);

    let saved = [("192.0.2.7", "tcp/443", 50), ("192.0.2.7", "tcp/22", 500)];
    server.kernel.put(&saved);
    assert_eq!(server.authorizer.compare_with(2).await, Compared::Different);
    let restored = server.authorizer.restore(&plan()).await.unwrap();
    assert!(restored.mended());
    let names = |elements: &[Element]| elements.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names(&restored.differences.surplus), ["tcp/443 from 192.0.2.7"]);
    assert_eq!(names(&restored.differences.retimed), [SSH]);
    assert_eq!(server.kernel.admits(), [SSH]);
    assert!(*server.kernel.0.elements.lock().unwrap().values().next().unwrap() <= 60);

    // As many as before, but another one: the number says nothing, a comparison does.
    server.kernel.take(SSH);
    server.kernel.put(&saved[..1]);
    assert_eq!(server.authorizer.compare_with(1).await, Compared::Fitting);
    assert!(server.authorizer.differs_on_schedule().await);
    assert!(server.authorizer.restore(&plan()).await.unwrap().mended());
    assert_eq!(server.kernel.admits(), [SSH]);
    assert!(!server.authorizer.differs_on_schedule().await);
}

#[tokio::test]
async fn what_is_counted_but_admits_nobody_is_looked_at_once() {
    let mut server = server();
    let knock = server.candidate(1, "ssh");
    server.authorizer.admit(vec![knock]).await;
    *server.kernel.0.strays.lock().unwrap() = 2;
    assert_eq!(server.needed(), [1]);
    assert_eq!(server.authorizer.compare_with(3).await, Compared::Same);
    assert_eq!(server.needed(), [3]);
    let calls = server.kernel.calls();
    assert_eq!(server.authorizer.compare_with(3).await, Compared::Fitting);
    assert_eq!(server.kernel.calls(), calls);
    // Neither hides that something is lost or comes back.
    server.kernel.take(SSH);
    assert_eq!(server.authorizer.compare_with(2).await, Compared::Different);
    server.authorizer.restore(&plan()).await.unwrap();
    server.kernel.put(&[("192.0.2.8", "tcp/22", 50)]);
    assert_eq!(server.authorizer.compare_with(4).await, Compared::Different);
}

const DESK: &str = "tcp/5900 from 192.0.2.7";
const SSH: &str = "tcp/22 from 192.0.2.7";

#[tokio::test]
async fn a_grant_for_one_connection_ends_with_it_and_a_new_knock_gives_a_new_one() {
    let mut server = server();
    let knocks = vec![server.candidate(1, "ssh"), server.candidate(2, "desk")];
    server.authorizer.admit(knocks).await;
    let refresh = server.candidate(3, "desk");
    server.authorizer.admit(vec![refresh]).await;
    assert_eq!(server.kernel.admits(), [SSH, DESK]);
    server.kernel.take(DESK);
    // No alarm: nothing has to be put back.
    assert_eq!(server.authorizer.compare_with(1).await, Compared::Same);
    assert_eq!(server.authorizer.count(BootMicros::now()), 1);
    assert_eq!(server.needed(), [1]);
    assert!(!server.authorizer.restore(&plan()).await.unwrap().mended());
    assert_eq!(server.kernel.admits(), [SSH]);
    // The control: what is not for one connection is missed, and put back.
    server.kernel.take(SSH);
    assert_eq!(server.authorizer.compare_with(0).await, Compared::Different);
    assert!(server.authorizer.restore(&plan()).await.unwrap().mended());
    assert_eq!(server.kernel.admits(), [SSH]);
    let knock = server.candidate(4, "tcp/5900");
    server.authorizer.admit(vec![knock]).await;
    assert_eq!(server.kernel.admits(), [SSH, DESK]);
}

#[tokio::test]
async fn a_flush_gives_back_nothing_that_is_for_one_connection() {
    let mut server = server();
    let knocks = vec![server.candidate(1, "ssh"), server.candidate(2, "desk")];
    server.authorizer.admit(knocks).await;
    server.kernel.flush();
    assert_eq!(server.authorizer.restore(&plan()).await.unwrap().differences.grants, 1);
    assert_eq!(server.kernel.admits(), [SSH]);
    assert_eq!(server.authorizer.count(BootMicros::now()), 1);
}

#[tokio::test]
async fn a_clock_that_was_set_has_the_kernel_looked_at_at_once() {
    let mut server = server();
    let knock = server.candidate(1, "ssh");
    server.authorizer.admit(vec![knock]).await;
    let seconds =
        |server: &Server| *server.kernel.0.elements.lock().unwrap().values().next().unwrap();
    // What is left by the clock on the wall, after it was set.
    server.kernel.0.elements.lock().unwrap().values_mut().for_each(|seconds| *seconds = 7);
    server.authorizer.tick().await;
    // The control: without a step nobody looks.
    assert_eq!(seconds(&server), 7);
    let ahead = Duration::from_secs(53);
    let now = Now::read();
    let now = Now { realtime: now.realtime.saturating_add(ahead), ..now };
    server.judge.lock().watch_clock(now);
    server.authorizer.tick().await;
    assert_eq!(seconds(&server), 60);
}

#[tokio::test]
async fn a_gate_that_can_not_be_put_back_is_an_error_and_loses_no_grant() {
    let mut server = server();
    let knock = server.candidate(1, "ssh");
    server.authorizer.admit(vec![knock]).await;
    server.kernel.flush();
    server.kernel.fail(true);
    assert!(server.authorizer.restore(&plan()).await.is_err());
    server.kernel.fail(false);
    assert_eq!(server.authorizer.restore(&plan()).await.unwrap().differences.grants, 1);
    assert_eq!(server.kernel.admits(), ["tcp/22 from 192.0.2.7"]);
}

#[tokio::test]
async fn without_a_gate_nothing_opens_and_what_was_open_comes_back_with_it() {
    let mut server = server();
    let knocks = vec![server.candidate(1, "ssh"), server.candidate(2, "web")];
    server.authorizer.admit(knocks).await;
    server.authorizer.remove_gate().await.unwrap();
    assert!(server.kernel.admits().is_empty());
    assert_eq!(server.needed(), [0]);

    let calls = server.kernel.calls();
    let knock = server.candidate(3, "ssh");
    server.authorizer.admit(vec![knock]).await;
    assert_eq!(crate::counters::read(&server.counters.failed), 1);
    let mut close = server.candidate(4, "web");
    close.knock.request.message_type = MessageType::Close;
    server.authorizer.admit(vec![close]).await;
    server.authorizer.tick().await;
    assert_eq!(server.kernel.calls(), calls, "there is no gate to talk to");
    assert!(!server.authorizer.is_unreconciled());

    server.authorizer.install(&plan()).await.unwrap();
    assert_eq!(server.kernel.admits(), ["tcp/22 from 192.0.2.7"]);
}

fn connection(peer: &str, port: u16) -> Connection {
    Connection {
        transport: spa_proto::Transport::Tcp,
        peer: format!("{peer}:50000").parse().unwrap(),
        local: format!("192.0.2.1:{port}").parse().unwrap(),
    }
}

#[tokio::test]
async fn who_came_while_the_gate_was_away_is_a_stranger_without_a_grant_only() {
    let mut server = server();
    let since = BootMicros::now();
    let knocks = vec![server.candidate(1, "ssh"), server.candidate(2, "web")];
    server.authorizer.admit(knocks).await;
    // One of them ends meanwhile.
    let web = Selection { service: Some("web".parse().unwrap()), ..Selection::default() };
    server.authorizer.revoke(&web, "test").await.unwrap();
    let known = [connection("198.51.100.9", 22)].into();
    let found = [
        connection("198.51.100.9", 22),
        connection("192.0.2.7", 22),
        connection("192.0.2.7", 443),
        connection("203.0.113.5", 22),
        connection("198.51.100.10", 22),
    ]
    .into();
    let plan = Plan { always_admit: vec!["203.0.113.0/24".parse().unwrap()], ..plan() };
    let strangers = |since| server.authorizer.strangers(&plan, &found, &known, since);
    assert_eq!(strangers(since), [connection("198.51.100.10", 22)].into());
    // The control: a grant that had ended before gave nobody a right to come.
    let later = BootMicros::now().saturating_add(Duration::from_secs(1));
    let both = [connection("198.51.100.10", 22), connection("192.0.2.7", 443)].into();
    assert_eq!(strangers(later), both);
}

#[tokio::test]
async fn the_sessions_of_a_grant_outlive_it_and_others_grants_protect_theirs() {
    let mut server = server();
    let knocks = vec![server.candidate(1, "ssh"), server.candidate(2, "web")];
    server.authorizer.admit(knocks).await;
    let found: crate::connections::Inventory =
        [connection("192.0.2.7", 22), connection("192.0.2.7", 443), connection("198.51.100.9", 22)]
            .into();
    let ssh = Selection { service: Some("ssh".parse().unwrap()), ..Selection::default() };
    let sessions = |server: &Server, selection: &Selection| {
        server.authorizer.sessions(selection, BootMicros::now()).among(&found)
    };
    let theirs = [connection("192.0.2.7", 22)].into();
    assert_eq!(sessions(&server, &ssh), theirs);
    server.authorizer.revoke(&ssh, "test").await.unwrap();
    assert_eq!(sessions(&server, &ssh), theirs);

    // Someone else's live grant for the same port, from the same address.
    let knock = server.candidate(3, "tcp/22");
    server.authorizer.admit(vec![knock]).await;
    assert!(sessions(&server, &ssh).is_empty());
    let all = Selection::default();
    assert_eq!(sessions(&server, &all).len(), 2);
    server.authorizer.revoke(&all, "test").await.unwrap();

    // It is remembered for as long as such a connection lives.
    let later = BootMicros::now().saturating_add(Duration::from_secs(1));
    server.authorizer.forget_former(later, &found);
    assert_eq!(sessions(&server, &all).len(), 2);
    let web = [connection("192.0.2.7", 443)].into();
    server.authorizer.forget_former(later, &web);
    assert_eq!(sessions(&server, &all), web);
}
