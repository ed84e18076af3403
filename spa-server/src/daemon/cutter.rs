//! Ends connections: those that slipped in while the gate was away, and those of revoked grants.
//!
//! The gate refuses their packets first, in both directions; then connection tracking forgets
//! them and their sockets are taken from the programs of this host. They stay refused for a while,
//! so that an end which this host has no hold of, a container's or another host's, meets a reset
//! when it talks. That takes seconds to minutes, which is why a task of its own does it.
//!
//! What is half-open is only forgotten: its peer may be anybody, under an address that is not his.

mod worker;

use crate::authorizer::{Sessions, admits};
use crate::causes::with_causes;
use crate::connections::{Connections, Inventory};
use crate::control::CutView;
use crate::gate::{Connection, Gate, Guarded};
use crate::grants::Cover;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use worker::Worker;

/// How long a stop waits for what is under way: `TimeoutStopSec` is longer.
const PATIENCE: Duration = Duration::from_secs(12);

enum Order {
    Cut { which: Which, guarded: Arc<[Guarded]>, done: Option<oneshot::Sender<CutView>> },
    Release,
    GateStands,
    GateIsGone(oneshot::Sender<Result<(), String>>),
}

/// Which connections to cut.
#[derive(Debug)]
pub(super) enum Which {
    Those(Inventory),
    /// What there is of these by then.
    Of(Sessions),
}

/// Takes connections to cut, and cuts one lot after the other.
pub(super) struct Cutter {
    orders: mpsc::UnboundedSender<Order>,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

/// What the worker and those who give it orders know of each other.
#[derive(Default)]
struct Shared {
    /// How many orders are not carried out yet.
    orders: AtomicUsize,
    /// Whether the gate was taken away and the worker has not heard of it yet: cuts are not held up
    /// then by what does not end at once.
    gone: AtomicBool,
    /// Whether there are connections that the worker looks after.
    holds: AtomicBool,
    /// Who has a grant: nobody of these is refused. It is kept only while the worker is busy.
    granted: Mutex<Cover>,
}

impl Cutter {
    /// `stands`: whether there is a gate.
    pub(super) fn start<G: Gate + 'static>(
        gate: G,
        connections: Arc<dyn Connections>,
        stands: bool,
    ) -> Self {
        let (orders, heard) = mpsc::unbounded_channel();
        let shared = Arc::<Shared>::default();
        let worker = Worker::new(gate, connections, stands, Arc::clone(&shared));
        let task = tokio::spawn(worker.run(heard));
        Self { orders, shared, task }
    }

    /// Ends these connections, but for those that are covered by a grant; `done` is told what came
    /// of it.
    pub(super) fn cut(
        &self,
        which: Which,
        guarded: Arc<[Guarded]>,
        granted: Cover,
        done: Option<oneshot::Sender<CutView>>,
    ) {
        self.shared.set_granted(granted);
        self.order(Order::Cut { which, guarded, done });
    }

    /// There may be new grants: who has one may come again. Also for a cut that is still to come,
    /// since a connection may be of the new grant.
    pub(super) fn release(&self, granted: impl FnOnce() -> Cover) {
        if self.is_busy() {
            self.shared.set_granted(granted());
            self.order(Order::Release);
        }
    }

    /// There is a gate, perhaps anew, and then it refuses none of them.
    pub(super) fn gate_stands(&self) {
        self.order(Order::GateStands);
    }

    /// The gate was taken away: waits until no connection is refused either. What is cut from now
    /// on is ended and not refused.
    pub(super) async fn gate_is_gone(&self) -> Result<(), String> {
        self.shared.gone.store(true, Ordering::Release);
        self.lift_all().await
    }

    /// After all that was ordered before.
    async fn lift_all(&self) -> Result<(), String> {
        let (done, when_done) = oneshot::channel();
        self.order(Order::GateIsGone(done));
        // The worker lives as long as this does.
        when_done.await.unwrap_or(Ok(()))
    }

    /// Refuses none of them any more, since nobody would lift it later. What is under way is not
    /// broken off: a tool that is killed may have told the kernel already.
    pub(super) async fn finish(&self) {
        let lifted = timeout(PATIENCE, self.lift_all()).await;
        if let Some(why) = lifted.map_or_else(|late| Some(with_causes(&late)), Result::err) {
            tracing::warn!("connections that were cut may stay refused: {why}");
        }
        self.task.abort();
    }

    fn is_busy(&self) -> bool {
        // The worker holds something before an order is carried out.
        self.shared.orders.load(Ordering::Acquire) > 0 || self.shared.holds.load(Ordering::Acquire)
    }

    fn order(&self, order: Order) {
        self.shared.orders.fetch_add(1, Ordering::AcqRel);
        // The worker lives as long as this does.
        let _ = self.orders.send(order);
    }
}

impl Shared {
    fn set_granted(&self, granted: Cover) {
        *self.granted.lock().unwrap_or_else(PoisonError::into_inner) = granted;
    }

    fn is_granted(&self, connection: &Connection) -> bool {
        admits(&self.granted.lock().unwrap_or_else(PoisonError::into_inner), connection)
    }
}

#[cfg(test)]
mod tests;
