//! A watch over a gate that tests take apart.

use super::*;
use crate::connections::{Ended, spent_by_this_thread};
use crate::gate::{Change, Connection, Cut, InstallReport, LiveElement, Plan, Refusal};
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Notify;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(20);

#[derive(Default, Clone)]
struct Model(Arc<State>);

impl Model {
    fn of(backend: Backend) -> Self {
        Self(Arc::new(State { backend: Some(backend), ..State::default() }))
    }
}

#[derive(Default)]
struct State {
    backend: Option<Backend>,
    look: Mutex<Look>,
    fails: Mutex<bool>,
    /// How long a look takes.
    takes: Mutex<Duration>,
    looks: AtomicU64,
    disturbed: Notify,
}

impl Model {
    fn becomes(&self, missing: &[&str], elements: u64) {
        let missing = missing.iter().map(ToString::to_string).collect();
        *self.0.look.lock().unwrap() = Look { missing, elements };
    }

    fn disturb(&self) {
        self.0.disturbed.notify_one();
    }

    fn looks(&self) -> u64 {
        self.0.looks.load(Ordering::Relaxed)
    }

    async fn await_looks(&self, more: u64) {
        let goal = self.looks() + more;
        timeout(SOON, async {
            while self.looks() < goal {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .unwrap();
    }
}

impl Gate for Model {
    fn backend(&self) -> Backend {
        self.0.backend.unwrap_or(Backend::Ipset)
    }

    async fn install(&self, _: &Plan) -> Result<InstallReport, GateError> {
        Ok(InstallReport::default())
    }

    async fn apply(&self, _: &[Change]) -> Result<(), GateError> {
        Ok(())
    }

    async fn snapshot(&self) -> Result<Vec<LiveElement>, GateError> {
        Ok(Vec::new())
    }

    async fn examine(&self, _: &Plan) -> Result<InstallReport, GateError> {
        Ok(InstallReport::default())
    }

    async fn disturbed(&self) -> Doubt {
        self.0.disturbed.notified().await;
        Doubt::Everything
    }

    async fn look(&self, _: Doubt) -> Result<Look, GateError> {
        self.0.looks.fetch_add(1, Ordering::Relaxed);
        let takes = *self.0.takes.lock().unwrap();
        if !takes.is_zero() {
            tokio::time::sleep(takes).await;
        }
        if *self.0.fails.lock().unwrap() {
            return Err(GateError::Plan("a bug"));
        }
        Ok(self.0.look.lock().unwrap().clone())
    }

    async fn sever(&self, _: &[Cut]) -> Result<(), GateError> {
        Ok(())
    }

    async fn lift(&self) -> Result<(), GateError> {
        Ok(())
    }

    async fn remove(&self) -> Result<(), GateError> {
        Ok(())
    }
}

/// Connections that come and go as the test says.
#[derive(Default)]
struct Others {
    connections: Mutex<Inventory>,
    /// How much processor time a list takes.
    takes: Mutex<Duration>,
    /// Whether a list that has begun does not end yet.
    held: AtomicBool,
    begun: AtomicU64,
}

impl Others {
    fn come(&self, peer: &str) {
        self.connections.lock().unwrap().insert(connection(peer));
    }
}

impl Connections for Others {
    fn list(&self, guarded: &[Guarded]) -> Result<Inventory, ConnectionsError> {
        assert!(!guarded.is_empty());
        let listed = self.connections.lock().unwrap().clone();
        self.begun.fetch_add(1, Ordering::Relaxed);
        let (takes, before) = (*self.takes.lock().unwrap(), spent_by_this_thread());
        while spent_by_this_thread() < before + takes {
            std::hint::spin_loop();
        }
        while self.held.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(listed)
    }

    fn established(&self, _: &Inventory, _: &[Guarded]) -> Result<Vec<Cut>, ConnectionsError> {
        Ok(Vec::new())
    }

    fn end(&self, _: &Inventory, _: &[Cut], _: &[Guarded]) -> Result<Ended, ConnectionsError> {
        Ok(Ended::default())
    }

    fn talked_to(&self, _: &[Cut]) -> Result<Vec<Cut>, ConnectionsError> {
        Ok(Vec::new())
    }
}

fn connection(peer: &str) -> Connection {
    Connection {
        transport: spa_proto::Transport::Tcp,
        peer: peer.parse().unwrap(),
        local: "192.0.2.1:22".parse().unwrap(),
    }
}

fn plan(mode: Mode) -> Plan {
    Plan {
        mode,
        refusal: Refusal::Drop,
        guarded: vec![Guarded::plain("tcp/22".parse().unwrap())],
        knock_ports: vec![62201],
        always_admit: Vec::new(),
        max_elements: 10,
        trial_seconds: None,
    }
}

fn start(gate: &Model, needed: Needed) -> (Watch<Model>, mpsc::Receiver<Alarm>) {
    Watch::start(gate.clone(), needed, Arc::new(Others::default()), &plan(Mode::Guard))
}

async fn next(alarms: &mut mpsc::Receiver<Alarm>) -> Alarm {
    timeout(SOON, alarms.recv()).await.unwrap().unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_is_missing_is_told_once_until_it_is_mended() {
    let gate = Model::default();
    let (_watch, mut alarms) = start(&gate, Needed::default());
    gate.await_looks(2).await;
    assert!(alarms.try_recv().is_err(), "nothing is missing");

    gate.becomes(&["chain SPA-GUARD"], 0);
    gate.disturb();
    let alarm = next(&mut alarms).await;
    assert_eq!(alarm.missing(), "chain SPA-GUARD");
    let looks = gate.looks();
    tokio::time::sleep(EVERY * 5).await;
    assert!(alarms.try_recv().is_err() && gate.looks() == looks, "it waits for the main loop");

    // Not mended after all: it is told again.
    drop(alarm);
    drop(next(&mut alarms).await);
    gate.becomes(&[], 0);
    gate.await_looks(3).await;
    assert!(alarms.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn too_few_elements_are_an_alarm_and_so_are_too_many() {
    let gate = Model::default();
    let needed = Needed::default();
    needed.is(5);
    gate.becomes(&[], 5);
    let (_watch, mut alarms) = start(&gate, needed.clone());
    gate.await_looks(3).await;
    assert!(alarms.try_recv().is_err());
    for wrong in [4, 6] {
        gate.becomes(&[], wrong);
        // Nobody says that anything was disturbed.
        let alarm = next(&mut alarms).await;
        assert_eq!((alarm.missing(), alarm.elements), ("elements".to_owned(), wrong));
        gate.becomes(&[], 5);
        drop(alarm);
        gate.await_looks(3).await;
        assert!(alarms.try_recv().is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn changes_without_end_are_not_looked_at_without_end() {
    let gate = Model::default();
    let (_watch, _alarms) = start(&gate, Needed::default());
    let disturber = gate.clone();
    tokio::spawn(async move {
        loop {
            disturber.disturb();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let looks_in = async |time| {
        let before = gate.looks();
        tokio::time::sleep(time).await;
        gate.looks() - before
    };
    let looks = looks_in(Duration::from_secs(10)).await;
    // The control: each one is seen soon.
    assert!((20..=41).contains(&looks), "{looks}");
    *gate.0.takes.lock().unwrap() = Duration::from_secs(1);
    let looks = looks_in(Duration::from_secs(20)).await;
    assert!((12..=14).contains(&looks), "{looks}");
}

#[tokio::test(start_paused = true)]
async fn a_flush_just_after_a_look_at_the_elements_is_looked_at_at_once() {
    let gate = Model::default();
    let (_watch, _alarms) = start(&gate, Needed::default());
    tokio::time::sleep(EVERY).await;
    for _ in 0..5 {
        gate.await_looks(1).await;
        gate.disturb();
        let disturbed = Instant::now();
        gate.await_looks(1).await;
        assert!(disturbed.elapsed() < BETWEEN_LOOKS / 5, "{:?}", disturbed.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_look_that_takes_long_is_seldom_made_for_nothing() {
    let gate = Model::default();
    let (_watch, _alarms) = start(&gate, Needed::default());
    *gate.0.takes.lock().unwrap() = Duration::from_secs(1);
    gate.await_looks(1).await;
    let before = gate.looks();
    tokio::time::sleep(Duration::from_secs(110)).await;
    let looks = gate.looks() - before;
    assert!((9..=11).contains(&looks), "{looks}");
    // The control: it looks when there is something.
    gate.disturb();
    timeout(Duration::from_secs(3), gate.await_looks(1)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn in_a_fight_it_is_put_back_about_once_a_second() {
    let gate = Model::default();
    let (watch, mut alarms) = start(&gate, Needed::default());
    gate.becomes(&["chain SPA-GUARD"], 0);
    for (fights, expected) in [(false, 30..=34), (true, 13..=15)] {
        watch.fights(fights);
        drop(next(&mut alarms).await);
        let (mut told, end) = (0, Instant::now() + Duration::from_secs(10));
        while let Ok(Some(alarm)) = tokio::time::timeout_at(end, alarms.recv()).await {
            told += 1;
            drop(alarm);
        }
        assert!(expected.contains(&told), "{told} in 10 s");
    }
}

#[tokio::test(start_paused = true)]
async fn a_gate_that_is_away_on_purpose_is_not_looked_at() {
    let gate = Model::default();
    let (watch, mut alarms) = start(&gate, Needed::default());
    gate.await_looks(1).await;
    watch.rest(true);
    gate.becomes(&["all of it"], 0);
    gate.disturb();
    tokio::time::sleep(EVERY * 5).await;
    assert!(alarms.try_recv().is_err());
    let looks = gate.looks();
    tokio::time::sleep(EVERY * 5).await;
    assert_eq!(gate.looks(), looks);
    assert_eq!(watch.ask().await, None);
    watch.rest(false);
    assert_eq!(next(&mut alarms).await.missing(), "all of it");
}

#[tokio::test(start_paused = true)]
async fn a_gate_that_can_not_be_looked_at_is_told_to_who_asks_and_is_no_alarm() {
    let gate = Model::default();
    let (watch, mut alarms) = start(&gate, Needed::default());
    gate.await_looks(1).await;
    assert_eq!(watch.ask().await, None);
    *gate.0.fails.lock().unwrap() = true;
    let wrong = watch.ask().await.unwrap();
    assert!(wrong.contains("can't be looked at") && wrong.contains("a bug"), "{wrong}");
    gate.await_looks(3).await;
    assert!(watch.shared.wrong().is_some());
    *gate.0.fails.lock().unwrap() = false;
    gate.await_looks(2).await;
    assert_eq!(watch.ask().await, None);
    assert!(alarms.try_recv().is_err());
}

#[tokio::test]
async fn connections_are_known_once_a_later_look_has_found_the_gate_whole() {
    let (gate, others) = (Model::default(), Arc::new(Others::default()));
    others.come("192.0.2.7:1");
    let connections: Arc<dyn Connections> = others.clone();
    let (watch, mut alarms) =
        Watch::start(gate.clone(), Needed::default(), connections, &plan(Mode::Guard));
    let peers = |watch: &Watch<Model>| watch.known().map(|known| known.connections.len());
    let await_known = async |wanted: usize| {
        timeout(SOON, async {
            while peers(&watch) != Some(wanted) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .unwrap();
    };
    await_known(1).await;
    others.come("192.0.2.7:2");
    await_known(2).await;
    let since = watch.known().unwrap().since;

    // From here on anybody may come in: they don't become known.
    gate.becomes(&["chain SPA-GUARD"], 0);
    others.come("198.51.100.9:3");
    gate.disturb();
    let alarm = next(&mut alarms).await;
    assert_eq!(peers(&watch), Some(2));
    gate.becomes(&[], 0);
    drop(alarm);
    await_known(3).await;
    assert!(watch.known().unwrap().since > since);

    // With other ports, and after a time without a gate, nothing is known.
    watch.rest(true);
    watch.rest(false);
    assert_eq!(peers(&watch), None);
}

/// A list is under way when this happens: it is never known, but a later one is.
async fn forgets_what_is_under_way(at_start: bool, happens: impl Fn(&Watch<Model>)) {
    let (gate, others) = (Model::default(), Arc::new(Others::default()));
    let soon = async |what: &dyn Fn() -> bool| {
        timeout(SOON, async {
            while !what() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await
        .unwrap();
    };
    others.held.store(at_start, Ordering::Relaxed);
    let (watch, _alarms) =
        Watch::start(gate.clone(), Needed::default(), others.clone(), &plan(Mode::Guard));
    let begun = || others.begun.load(Ordering::Relaxed);
    if !at_start {
        soon(&|| watch.known().is_some()).await;
        others.held.store(true, Ordering::Relaxed);
    }
    let before = begun();
    soon(&|| begun() > before).await;
    let since = BootMicros::now();
    happens(&watch);
    assert!(watch.known().is_none());
    others.held.store(false, Ordering::Relaxed);
    soon(&|| watch.known().is_some()).await;
    assert!(watch.known().unwrap().since >= since, "from before");
}

#[tokio::test]
async fn what_was_listed_for_other_ports_is_never_known() {
    for at_start in [true, false] {
        forgets_what_is_under_way(at_start, |watch| {
            let web = Guarded::plain("tcp/443".parse().unwrap());
            watch.installed(&Plan { guarded: vec![web], ..plan(Mode::Guard) });
        })
        .await;
    }
}

#[tokio::test]
async fn what_was_listed_before_a_time_without_a_gate_is_never_known() {
    for at_start in [true, false] {
        forgets_what_is_under_way(at_start, |watch| {
            watch.rest(true);
            watch.rest(false);
        })
        .await;
    }
}

#[tokio::test]
async fn who_is_known_at_ports_that_stay_guarded_stays_known() {
    let (gate, others) = (Model::default(), Arc::new(Others::default()));
    others.come("192.0.2.7:1");
    let ssh = plan(Mode::Guard);
    let web = Guarded::plain("tcp/443".parse().unwrap());
    let both = Plan { guarded: vec![web, ssh.guarded[0]], ..ssh.clone() };
    let (watch, _alarms) = Watch::start(gate.clone(), Needed::default(), others.clone(), &ssh);
    gate.await_looks(1).await;
    // From here on no list ends.
    others.held.store(true, Ordering::Relaxed);
    watch.installed(&both);
    let known = watch.known().unwrap();
    assert_eq!((&*known.guarded, known.connections.len()), (&ssh.guarded[..], 1));
    watch.installed(&Plan { guarded: vec![web], ..ssh });
    assert!(watch.known().is_none());
    others.held.store(false, Ordering::Relaxed);
}

#[tokio::test]
async fn where_nothing_is_known_it_is_listed_however_long_that_takes() {
    let (gate, others) = (Model::default(), Arc::new(Others::default()));
    // After each list there is none for 25 s.
    *others.takes.lock().unwrap() = Duration::from_millis(250);
    let (watch, _alarms) =
        Watch::start(gate.clone(), Needed::default(), others.clone(), &plan(Mode::Guard));
    let begun = || others.begun.load(Ordering::Relaxed);
    timeout(SOON, async {
        while begun() < 2 {
            gate.await_looks(1).await;
        }
    })
    .await
    .unwrap();
    // The control.
    gate.await_looks(2).await;
    assert_eq!(begun(), 2);
    let web = Guarded::plain("tcp/443".parse().unwrap());
    watch.installed(&Plan { guarded: vec![web], ..plan(Mode::Guard) });
    assert!(watch.known().is_none());
    gate.disturb();
    timeout(SOON, async {
        while watch.known().is_none() {
            gate.await_looks(1).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn connections_are_known_before_the_first_look() {
    let (gate, others) = (Model::default(), Arc::new(Others::default()));
    others.come("192.0.2.7:1");
    gate.becomes(&["chain SPA-GUARD"], 0);
    let (watch, mut alarms) =
        Watch::start(gate.clone(), Needed::default(), others, &plan(Mode::Guard));
    drop(next(&mut alarms).await);
    assert_eq!(watch.known().map(|known| known.connections.len()), Some(1));
}

#[tokio::test]
async fn in_open_mode_nobody_comes_in_because_the_gate_is_away() {
    let gate = Model::default();
    let (watch, _alarms) = Watch::start(
        gate.clone(),
        Needed::default(),
        Arc::new(Others::default()),
        &plan(Mode::Open),
    );
    gate.await_looks(3).await;
    assert!(watch.known().is_none());
}

#[tokio::test(start_paused = true)]
async fn where_commands_open_nobody_comes_in_because_the_gate_is_away() {
    for backend in [Backend::Hook, Backend::DryRun, Backend::Nftables] {
        let gate = Model::of(backend);
        let (watch, _alarms) = start(&gate, Needed::default());
        gate.await_looks(3).await;
        watch.installed(&plan(Mode::Guard));
        // The last one is the control.
        assert_eq!(watch.known().is_some(), backend == Backend::Nftables, "{backend}");
    }
}

#[test]
fn lists_take_little_of_the_time_and_come_all_the_same() {
    let pause = |millis| until_next_list(Duration::from_millis(millis));
    assert_eq!(pause(0), BETWEEN_LISTS);
    assert_eq!(pause(2), Duration::from_secs(1));
    // Of tables so large that a list takes long: at the price of a hundredth of the time at most.
    assert_eq!(pause(100), Duration::from_secs(10));
    assert_eq!(pause(500), Duration::from_secs(50));
}

/// On a busy server grants end at every moment, and the kernel forgets them before the table does.
#[tokio::test]
async fn connections_become_known_where_every_look_is_a_false_alarm() {
    let (gate, others) = (Model::default(), Arc::new(Others::default()));
    let needed = Needed::default();
    needed.is(9);
    gate.becomes(&[], 5);
    let (watch, mut alarms) =
        Watch::start(gate.clone(), needed, others.clone(), &plan(Mode::Guard));
    let mut await_known = async |wanted: usize| {
        timeout(SOON, async {
            while watch.known().map(|known| known.connections.len()) != Some(wanted) {
                next(&mut alarms).await.was_false();
            }
        })
        .await
        .unwrap();
    };
    await_known(0).await;
    others.come("192.0.2.7:1");
    await_known(1).await;

    // Not where nobody has compared, where something was to be mended, nor where there are more than
    // are needed: somebody may have come in by those.
    others.come("198.51.100.9:2");
    let end: [(u64, fn(Alarm)); 3] =
        [(5, drop), (5, |alarm| alarm.proved().was_false()), (10, Alarm::was_false)];
    for (elements, end) in end {
        gate.becomes(&[], elements);
        let looks = gate.looks();
        while gate.looks() < looks + 3 {
            end(next(&mut alarms).await);
        }
        assert_eq!(watch.known().map(|known| known.connections.len()), Some(1));
    }
}
