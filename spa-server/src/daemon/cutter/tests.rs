//! A cutter with a gate and connections that tests make up.

use super::worker::{AT_ONCE, HOLD_DESTROYED, HOLD_OTHERS, TALKS_WITHIN, TIMES};
use super::*;
use crate::clock::BootMicros;
use crate::connections::{ConnectionsError, Ended};
use crate::gate::{Backend, Change, Cut, Doubt, GateError, InstallReport, LiveElement, Look, Plan};
use crate::grants::{Grant, GrantKey};
use crate::service::Connections as Limit;
use spa_proto::{ClientId, Nonce, UnixMicros};
use std::collections::{BTreeSet, HashMap};
use tokio::time::sleep;

#[derive(Default, Clone)]
struct Model(Arc<State>);

#[derive(Default)]
struct State {
    /// What happened, in order.
    done: Mutex<Vec<String>>,
    /// Connections, and what they are like.
    alive: Mutex<HashMap<Connection, Kind>>,
    /// Sockets can't be destroyed.
    clings: AtomicBool,
    talks: AtomicBool,
    /// The gate takes nothing.
    fails: AtomicBool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// This host has its socket.
    Here,
    Behind,
    HalfOpen,
}

use Kind::{Behind, HalfOpen, Here};

impl Model {
    fn note(&self, what: impl Into<String>) {
        self.0.done.lock().unwrap().push(what.into());
    }

    fn done(&self) -> Vec<String> {
        std::mem::take(&mut self.0.done.lock().unwrap())
    }

    fn has(&self, peers: &[(&str, Kind)]) -> Inventory {
        let new: HashMap<_, _> =
            peers.iter().map(|(peer, kind)| (connection(peer), *kind)).collect();
        self.0.alive.lock().unwrap().extend(new.clone());
        new.into_keys().collect()
    }

    fn set(&self, what: fn(&State) -> &AtomicBool, is: bool) {
        what(&self.0).store(is, Ordering::Relaxed);
    }

    fn is(&self, what: fn(&State) -> &AtomicBool) -> bool {
        what(&self.0).load(Ordering::Relaxed)
    }

    /// To the gate: `Err` if it is to fail.
    fn ask_gate(&self, what: String) -> Result<(), GateError> {
        self.note(what);
        if self.is(|state| &state.fails) { Err(GateError::NotInstalled) } else { Ok(()) }
    }
}

fn connection(peer: &str) -> Connection {
    Connection {
        transport: spa_proto::Transport::Tcp,
        peer: peer.parse().unwrap(),
        local: "192.0.2.1:22".parse().unwrap(),
    }
}

fn granted(source: &str) -> Cover {
    let grant = Grant {
        key: GrantKey {
            client: ClientId([1; 32]),
            source: source.parse().unwrap(),
            service: "ssh".parse().unwrap(),
        },
        ports: vec!["tcp/22".parse().unwrap()],
        connections: Limit::Any,
        opened: UnixMicros(0),
        expires: BootMicros(0),
        request: Nonce([0; 24]).into(),
    };
    [&grant].into_iter().collect()
}

impl Connections for Model {
    fn list(&self, _: &[Guarded]) -> Result<Inventory, ConnectionsError> {
        Ok(self.0.alive.lock().unwrap().keys().copied().collect())
    }

    fn established(&self, those: &Inventory, _: &[Guarded]) -> Result<Vec<Cut>, ConnectionsError> {
        let alive = self.0.alive.lock().unwrap();
        let is = |connection: &Connection, wanted| alive.get(connection) == Some(&wanted);
        let mut found = Vec::new();
        for kind in [Behind, Here] {
            let of_it = those.iter().filter(|connection| is(connection, kind));
            found.extend(of_it.map(|one| Cut { connection: *one, answered_from: one.local }));
        }
        Ok(found)
    }

    fn end(&self, those: &Inventory, _: &[Cut], _: &[Guarded]) -> Result<Ended, ConnectionsError> {
        self.note("end");
        let clings = self.is(|state| &state.clings);
        let mut alive = self.0.alive.lock().unwrap();
        let mut ended = Ended::default();
        for connection in those {
            match alive.get(connection) {
                Some(Here) if clings => ended.trouble = Some("it clings".into()),
                kind => {
                    if kind == Some(&Here) {
                        ended.destroyed.insert(*connection);
                    }
                    alive.remove(connection);
                    ended.gone.insert(*connection);
                }
            }
        }
        Ok(ended)
    }

    fn talked_to(&self, those: &[Cut]) -> Result<Vec<Cut>, ConnectionsError> {
        Ok(if self.is(|state| &state.talks) { those.to_vec() } else { Vec::new() })
    }
}

impl Gate for Model {
    fn backend(&self) -> Backend {
        Backend::DryRun
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
        std::future::pending().await
    }

    async fn look(&self, _: Doubt) -> Result<Look, GateError> {
        Ok(Look::default())
    }

    async fn sever(&self, cuts: &[Cut]) -> Result<(), GateError> {
        let peers: BTreeSet<_> = cuts.iter().map(|cut| cut.connection.peer.to_string()).collect();
        let what = match peers.len() {
            some @ 10.. => format!("sever {some}"),
            _ => format!("sever {}", peers.into_iter().collect::<Vec<_>>().join(" ")),
        };
        // A tool takes its time.
        sleep(Duration::from_millis(10)).await;
        self.ask_gate(what)
    }

    async fn lift(&self) -> Result<(), GateError> {
        self.ask_gate("lift".into())
    }

    async fn remove(&self) -> Result<(), GateError> {
        self.note("remove");
        Ok(())
    }
}

fn cutter(model: &Model) -> Cutter {
    Cutter::start(model.clone(), Arc::new(model.clone()), true)
}

fn order(cutter: &Cutter, those: Inventory) -> oneshot::Receiver<CutView> {
    let (done, when_done) = oneshot::channel();
    cutter.cut(Which::Those(those), Arc::new([]), Cover::default(), Some(done));
    when_done
}

async fn cut(cutter: &Cutter, those: Inventory) -> CutView {
    order(cutter, those).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn packets_are_refused_before_anything_ends_and_until_a_talking_peer_was_answered() {
    let model = Model::default();
    let cutter = cutter(&model);
    let view = cut(&cutter, model.has(&[("192.0.2.7:1", Here)])).await;
    assert_eq!((view.ended, view.left, view.trouble), (1, 0, None));
    assert_eq!(model.done(), ["sever 192.0.2.7:1", "end"]);
    assert!(cutter.is_busy());
    sleep(HOLD_DESTROYED * 2).await;
    assert_eq!(model.done(), ["lift"]);
    assert!(!cutter.is_busy());
}

#[tokio::test(start_paused = true)]
async fn what_is_half_open_is_ended_and_never_refused() {
    let model = Model::default();
    let cutter = cutter(&model);
    let those = model.has(&[("192.0.2.7:1", HalfOpen), ("192.0.2.7:2", HalfOpen)]);
    let view = cut(&cutter, those).await;
    assert_eq!((view.ended, view.left, view.trouble), (2, 0, None));
    sleep(HOLD_OTHERS * 2).await;
    assert_eq!(model.done(), ["end"]);
}

#[tokio::test(start_paused = true)]
async fn a_second_cut_does_not_let_the_first_ones_go() {
    let model = Model::default();
    let cutter = cutter(&model);
    // The one behind this host is held for longer.
    cut(&cutter, model.has(&[("192.0.2.7:1", Here), ("192.0.2.7:2", Behind)])).await;
    cut(&cutter, model.has(&[("192.0.2.7:3", Here)])).await;
    assert_eq!(
        model.done(),
        [
            "sever 192.0.2.7:1 192.0.2.7:2",
            "end",
            "sever 192.0.2.7:1 192.0.2.7:2 192.0.2.7:3",
            "end"
        ]
    );
    sleep(HOLD_DESTROYED * 2).await;
    assert_eq!(model.done().last().unwrap(), "sever 192.0.2.7:2");
    // The gate was installed anew meanwhile.
    cutter.gate_stands();
    sleep(HOLD_OTHERS * 2).await;
    assert_eq!(model.done(), ["sever 192.0.2.7:2", "lift"]);
}

#[tokio::test(start_paused = true)]
async fn who_still_talks_when_refused_no_more_is_cut_again() {
    let model = Model::default();
    let cutter = cutter(&model);
    cut(&cutter, model.has(&[("192.0.2.7:2", Behind)])).await;
    model.set(|state| &state.talks, true);
    model.done();
    sleep(HOLD_OTHERS + TALKS_WITHIN * 2).await;
    assert_eq!(model.done(), ["lift", "sever 192.0.2.7:2", "end"]);
    model.set(|state| &state.talks, false);
    sleep(HOLD_OTHERS + TALKS_WITHIN * 2).await;
    assert_eq!(model.done(), ["lift"]);
    sleep(HOLD_OTHERS * 3).await;
    assert!(model.done().is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_never_stops_talking_is_refused_so_many_times_and_then_no_more() {
    let model = Model::default();
    let cutter = cutter(&model);
    cut(&cutter, model.has(&[("192.0.2.7:2", Behind)])).await;
    model.set(|state| &state.talks, true);
    sleep((HOLD_OTHERS + TALKS_WITHIN) * (TIMES + 5)).await;
    let done = model.done();
    let refused = done.iter().filter(|what| what.starts_with("sever")).count();
    assert_eq!(refused, usize::try_from(TIMES).unwrap());
    assert_eq!(done.last().unwrap(), "lift");
    assert!(!cutter.is_busy());
}

#[tokio::test(start_paused = true)]
async fn what_can_not_be_ended_is_told_and_stays_refused() {
    let model = Model::default();
    let cutter = cutter(&model);
    model.set(|state| &state.clings, true);
    let view = cut(&cutter, model.has(&[("192.0.2.7:1", Here), ("192.0.2.7:2", Behind)])).await;
    assert_eq!((view.ended, view.left), (1, 1));
    assert_eq!(view.trouble.as_deref(), Some("it clings"));
    model.done();
    sleep(HOLD_DESTROYED * 3).await;
    assert!(model.done().is_empty());
    assert!(cutter.is_busy());
}

#[tokio::test(start_paused = true)]
async fn more_than_may_be_refused_at_once_are_ended_and_who_talks_is_refused_when_there_is_room() {
    let model = Model::default();
    let cutter = cutter(&model);
    let peers: Vec<_> = (1..=AT_ONCE + 2).map(|port| format!("192.0.2.7:{port}")).collect();
    let all: Vec<_> = peers.iter().map(|peer| (peer.as_str(), Behind)).collect();
    let view = cut(&cutter, model.has(&all)).await;
    assert_eq!(view.ended, u64::try_from(AT_ONCE + 2).unwrap());
    assert_eq!(model.done(), [format!("sever {AT_ONCE}").as_str(), "end"]);
    model.set(|state| &state.talks, true);
    sleep(HOLD_OTHERS / 2).await;
    assert!(model.done().is_empty());
    sleep(HOLD_OTHERS / 2 + TALKS_WITHIN * 2).await;
    // All of them talk: as many as before are refused again, in their place.
    assert_eq!(model.done(), ["lift".to_owned(), format!("sever {AT_ONCE}"), "end".to_owned()]);
    model.set(|state| &state.talks, false);
    sleep((HOLD_OTHERS + TALKS_WITHIN) * 2).await;
    assert_eq!(model.done().last().unwrap(), "lift");
    assert!(!cutter.is_busy());
}

#[tokio::test(start_paused = true)]
async fn who_is_granted_again_may_come_again_and_a_stop_lets_all_go() {
    let model = Model::default();
    let cutter = cutter(&model);
    cut(&cutter, model.has(&[("192.0.2.7:1", Here), ("192.0.2.8:2", Here)])).await;
    model.done();
    cutter.release(|| granted("192.0.2.7"));
    sleep(Duration::from_millis(20)).await;
    assert_eq!(model.done(), ["sever 192.0.2.8:2"]);
    cutter.finish().await;
    assert_eq!(model.done(), ["lift"]);
}

#[tokio::test(start_paused = true)]
async fn who_is_granted_while_his_cut_waits_is_spared() {
    let model = Model::default();
    let cutter = cutter(&model);
    let first = order(&cutter, model.has(&[("192.0.2.8:1", Behind)]));
    let second = order(&cutter, model.has(&[("192.0.2.7:2", Behind), ("192.0.2.8:2", Behind)]));
    cutter.release(|| granted("192.0.2.7"));
    first.await.unwrap();
    assert_eq!(second.await.unwrap().ended, 1);
    assert!(model.done().iter().all(|what| !what.contains("192.0.2.7")));
}

#[tokio::test(start_paused = true)]
async fn who_is_granted_while_it_is_asked_whether_he_is_talked_to_is_not_cut_again() {
    let model = Model::default();
    let cutter = cutter(&model);
    model.set(|state| &state.talks, true);
    for (round, spared) in [(1, false), (2, true)] {
        cut(&cutter, model.has(&[(&format!("192.0.2.7:{round}"), Behind)])).await;
        model.done();
        sleep(HOLD_OTHERS + TALKS_WITHIN / 2).await;
        assert_eq!(model.done(), ["lift"]);
        let source = if spared { "192.0.2.7" } else { "192.0.2.8" };
        cutter.release(|| granted(source));
        sleep(TALKS_WITHIN).await;
        // The first one is cut again, and then let go.
        assert_eq!(model.done().is_empty(), spared);
        cutter.release(|| granted("192.0.2.7"));
        sleep(TALKS_WITHIN).await;
        model.done();
        assert!(!cutter.is_busy());
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_gate_did_not_lift_is_lifted_later() {
    let model = Model::default();
    let cutter = cutter(&model);
    cut(&cutter, model.has(&[("192.0.2.7:1", Behind)])).await;
    model.done();
    model.set(|state| &state.fails, true);
    cutter.release(|| granted("192.0.2.7"));
    sleep(Duration::from_millis(20)).await;
    assert_eq!(model.done(), ["lift"]);
    model.set(|state| &state.fails, false);
    sleep(HOLD_DESTROYED * 2).await;
    assert_eq!(model.done(), ["lift"]);
    sleep(HOLD_OTHERS * 2).await;
    assert!(model.done().is_empty());
}

#[tokio::test(start_paused = true)]
async fn nothing_stays_refused_when_the_gate_is_gone_nor_is_refused_from_then_on() {
    let model = Model::default();
    let cutter = cutter(&model);
    // The gate is removed just when the cutter has it refuse something.
    let cut_off = order(&cutter, model.has(&[("192.0.2.7:1", Behind)]));
    sleep(Duration::from_millis(1)).await;
    model.remove().await.unwrap();
    cutter.gate_is_gone().await.unwrap();
    assert_eq!(cut_off.await.unwrap().ended, 1);
    assert_eq!(model.done(), ["remove", "sever 192.0.2.7:1", "end", "lift"]);
    assert!(!cutter.is_busy());

    let view = cut(&cutter, model.has(&[("192.0.2.7:2", Behind)])).await;
    assert_eq!((view.ended, model.done()), (1, vec!["end".to_owned()]));
    // The control.
    cutter.gate_stands();
    cut(&cutter, model.has(&[("192.0.2.7:3", Behind)])).await;
    assert_eq!(model.done(), ["sever 192.0.2.7:3", "end"]);
    model.set(|state| &state.fails, true);
    cutter.gate_is_gone().await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn a_removal_of_the_gate_does_not_wait_for_what_does_not_end() {
    let model = Model::default();
    let cutter = cutter(&model);
    model.set(|state| &state.clings, true);
    let began = tokio::time::Instant::now();
    let cuts: Vec<_> = (1..=3)
        .map(|port| order(&cutter, model.has(&[(&format!("192.0.2.7:{port}"), Here)])))
        .collect();
    sleep(Duration::from_millis(1)).await;
    cutter.gate_is_gone().await.unwrap();
    let took = began.elapsed();
    assert!(took < Duration::from_millis(500), "{took:?}");
    for cut in cuts {
        let view = cut.await.unwrap();
        assert_eq!((view.left, view.trouble.as_deref()), (1, Some("it clings")));
    }
    // The control: nobody waits any more, and it is tried for as long as ever.
    let began = tokio::time::Instant::now();
    cut(&cutter, model.has(&[("192.0.2.7:4", Here)])).await;
    assert!(began.elapsed() > Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_gate_that_takes_nothing_is_not_told_again_at_once_when_there_is_room() {
    let model = Model::default();
    let cutter = cutter(&model);
    let peer = |port| format!("192.0.2.{}:{port}", if port <= 100 { 8 } else { 7 });
    let peers: Vec<_> = (1..=AT_ONCE + 20).map(peer).collect();
    let all: Vec<_> = peers.iter().map(|peer| (peer.as_str(), Behind)).collect();
    cut(&cutter, model.has(&all)).await;
    model.done();
    model.set(|state| &state.fails, true);
    // Makes room for those beyond.
    cutter.release(|| granted("192.0.2.8"));
    sleep(HOLD_DESTROYED * 4).await;
    let told = model.done().len();
    assert!((2..=6).contains(&told), "{told}");
}
