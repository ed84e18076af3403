//! A gate that lives in a process of its own, as far as a test is concerned: its threads are on the
//! server, and it dies with the value.

use crate::space::Space;
use spa_server::config::GateSettings;
use spa_server::gate::{
    AnyGate, Change, Cut, Doubt, Gate as _, GateError, InstallReport, LiveElement, Look, Plan,
};
use std::sync::Arc;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

pub(crate) struct LiveGate {
    gate: Arc<AnyGate>,
    runtime: Runtime,
}

impl LiveGate {
    /// As [`AnyGate::of`], on this machine.
    pub(crate) fn new(space: &Space, settings: GateSettings) -> Result<Self, GateError> {
        let space = space.clone();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .on_thread_start(move || space.enter())
            .enable_all()
            .build()
            .unwrap();
        let choose = runtime.spawn(async move { AnyGate::of(settings.backend, &settings) });
        let gate = Arc::new(runtime.block_on(choose).unwrap()?);
        Ok(Self { gate, runtime })
    }

    /// Begins something with the gate, to be waited for or aborted.
    pub(crate) fn start<T, F>(&self, code: impl FnOnce(Arc<AnyGate>) -> F) -> JoinHandle<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        self.runtime.spawn(code(Arc::clone(&self.gate)))
    }

    /// Waits for the end of what was begun.
    pub(crate) fn wait<T>(&self, task: JoinHandle<T>) -> T {
        self.runtime.block_on(task).unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))
    }

    /// Does something with the gate.
    pub(crate) fn run<T, F>(&self, code: impl FnOnce(Arc<AnyGate>) -> F) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        self.wait(self.start(code))
    }

    pub(crate) fn install(&self, plan: &Plan) -> Result<InstallReport, GateError> {
        let plan = plan.clone();
        self.run(|gate| async move { gate.install(&plan).await })
    }

    pub(crate) fn examine(&self, plan: &Plan) -> Result<InstallReport, GateError> {
        let plan = plan.clone();
        self.run(|gate| async move { gate.examine(&plan).await })
    }

    pub(crate) fn try_to_apply(&self, changes: &[&[Change]]) -> Result<(), GateError> {
        let changes = changes.concat();
        self.run(|gate| async move { gate.apply(&changes).await })
    }

    #[track_caller]
    pub(crate) fn apply(&self, changes: &[&[Change]]) {
        self.try_to_apply(changes).unwrap();
    }

    pub(crate) fn try_to_snapshot(&self) -> Result<Vec<LiveElement>, GateError> {
        self.run(|gate| async move { gate.snapshot().await })
    }

    /// What is admitted, in order.
    #[track_caller]
    pub(crate) fn snapshot(&self) -> Vec<LiveElement> {
        let mut elements = self.try_to_snapshot().unwrap();
        elements.sort_unstable();
        elements
    }

    #[track_caller]
    pub(crate) fn look(&self, doubt: Doubt) -> Look {
        self.run(|gate| async move { gate.look(doubt).await }).unwrap()
    }

    #[track_caller]
    pub(crate) fn sever(&self, cuts: &[Cut]) {
        let cuts = cuts.to_vec();
        self.run(|gate| async move { gate.sever(&cuts).await }).unwrap();
    }

    #[track_caller]
    pub(crate) fn lift(&self) {
        self.run(|gate| async move { gate.lift().await }).unwrap();
    }

    #[track_caller]
    pub(crate) fn remove(&self) {
        self.run(|gate| async move { gate.remove().await }).unwrap();
    }
}
