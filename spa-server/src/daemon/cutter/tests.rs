//! A cutter with a gate and connections that tests make up.

use super::*;
use crate::connections::ConnectionsError;
use crate::gate::{Backend, Change, Doubt, GateError, InstallReport, LiveElement, Look, Plan};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Default, Clone)]
struct Model(Arc<State>);

#[derive(Default)]
struct State {
    /// What happened, in order.
    done: Mutex<Vec<String>>,
    /// Connections, and whether this host has their sockets.
    alive: Mutex<HashMap<Connection, bool>>,
    /// Sockets can't be destroyed.
    clings: AtomicBool,
    talks: AtomicBool,
}

impl Model {
    fn note(&self, what: impl Into<String>) {
        self.0.done.lock().unwrap().push(what.into());
    }

    fn done(&self) -> Vec<String> {
        std::mem::take(&mut self.0.done.lock().unwrap())
    }

    fn has(&self, peers: &[(&str, bool)]) -> Inventory {
        let alive = peers.iter().map(|(peer, local)| (connection(peer), *local));
        let mut all = self.0.alive.lock().unwrap();
        all.extend(alive);
        all.keys().copied().collect()
    }
}

fn connection(peer: &str) -> Connection {
    Connection {
        transport: spa_proto::Transport::Tcp,
        peer: peer.parse().unwrap(),
        local: "192.0.2.1:22".parse().unwrap(),
    }
}

impl Connections for Model {
    fn list(&self, _: &[Guarded]) -> Result<Inventory, ConnectionsError> {
        Ok(self.0.alive.lock().unwrap().keys().copied().collect())
    }

    fn end(&self, those: &Inventory, _: &[Guarded]) -> Result<Ended, ConnectionsError> {
        self.note("end");
        let clings = self.0.clings.load(Ordering::Relaxed);
        let mut alive = self.0.alive.lock().unwrap();
        let mut ended = Ended::default();
        for connection in those {
            match alive.get(connection) {
                Some(true) if clings => ended.trouble = Some("it clings".into()),
                Some(local) => {
                    if *local {
                        ended.destroyed.insert(*connection);
                    }
                    alive.remove(connection);
                    ended.gone.insert(*connection);
                }
                None => drop(ended.gone.insert(*connection)),
            }
        }
        Ok(ended)
    }

    fn talked_to(&self, those: &Inventory) -> Result<Inventory, ConnectionsError> {
        let talks = self.0.talks.load(Ordering::Relaxed);
        Ok(if talks { those.clone() } else { Inventory::new() })
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

    async fn sever(&self, connections: &[Connection]) -> Result<(), GateError> {
        let peers: BTreeSet<_> = connections.iter().map(|one| one.peer.to_string()).collect();
        self.note(format!("sever {}", peers.into_iter().collect::<Vec<_>>().join(" ")));
        Ok(())
    }

    async fn lift(&self) -> Result<(), GateError> {
        self.note("lift");
        Ok(())
    }

    async fn remove(&self) -> Result<(), GateError> {
        Ok(())
    }
}

fn cutter(model: &Model) -> Cutter<Model> {
    Cutter::start(model.clone(), Arc::new(model.clone()))
}

async fn cut(cutter: &Cutter<Model>, those: Inventory) -> CutView {
    let (done, when_done) = oneshot::channel();
    cutter.cut(Which::Those(those), Arc::new([]), Some(done));
    when_done.await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn packets_are_refused_before_anything_ends_and_until_a_talking_peer_was_answered() {
    let model = Model::default();
    let cutter = cutter(&model);
    let those = model.has(&[("192.0.2.7:1", true)]);
    let view = cut(&cutter, those.clone()).await;
    assert_eq!((view.ended, view.left, view.trouble), (1, 0, None));
    assert_eq!(model.done(), ["sever 192.0.2.7:1", "end"]);
    assert_eq!(cutter.refused(), those);
    sleep(HOLD_DESTROYED * 2).await;
    assert_eq!(model.done(), ["lift"]);
    assert!(cutter.refused().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_second_cut_does_not_let_the_first_ones_go() {
    let model = Model::default();
    let cutter = cutter(&model);
    // The one behind this host is held for longer.
    cut(&cutter, model.has(&[("192.0.2.7:1", true), ("192.0.2.7:2", false)])).await;
    cut(&cutter, model.has(&[("192.0.2.7:3", true)])).await;
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
    cutter.refuse_again();
    sleep(HOLD_OTHERS * 2).await;
    assert_eq!(model.done(), ["sever 192.0.2.7:2", "lift"]);
}

#[tokio::test(start_paused = true)]
async fn who_still_talks_when_refused_no_more_is_cut_again() {
    let model = Model::default();
    let cutter = cutter(&model);
    cut(&cutter, model.has(&[("192.0.2.7:2", false)])).await;
    model.0.talks.store(true, Ordering::Relaxed);
    model.done();
    sleep(HOLD_OTHERS + TALKS_WITHIN * 2).await;
    assert_eq!(model.done(), ["lift", "sever 192.0.2.7:2", "end"]);
    model.0.talks.store(false, Ordering::Relaxed);
    sleep(HOLD_OTHERS + TALKS_WITHIN * 2).await;
    assert_eq!(model.done(), ["lift"]);
    sleep(HOLD_OTHERS * 3).await;
    assert!(model.done().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_can_not_be_ended_is_told_and_stays_refused() {
    let model = Model::default();
    let cutter = cutter(&model);
    model.0.clings.store(true, Ordering::Relaxed);
    let view = cut(&cutter, model.has(&[("192.0.2.7:1", true), ("192.0.2.7:2", false)])).await;
    assert_eq!((view.ended, view.left), (1, 1));
    assert_eq!(view.trouble.as_deref(), Some("it clings"));
    sleep(HOLD_DESTROYED * 3).await;
    assert_eq!(cutter.refused().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn who_is_granted_again_may_come_again_and_a_stop_lets_all_go() {
    let model = Model::default();
    let cutter = cutter(&model);
    cut(&cutter, model.has(&[("192.0.2.7:1", true), ("192.0.2.8:2", true)])).await;
    model.done();
    cutter.release([connection("192.0.2.7:1")].into());
    sleep(Duration::from_millis(1)).await;
    assert_eq!(model.done(), ["sever 192.0.2.8:2"]);
    cutter.finish().await;
    assert_eq!(model.done(), ["lift"]);
}
