//! Ends connections: those that slipped in while the gate was away, and those of revoked grants.
//!
//! The gate refuses their packets first, in both directions; then connection tracking forgets
//! them and their sockets are taken from the programs of this host. They stay refused for a while,
//! so that an end which this host has no hold of, a container's or another host's, meets a reset
//! when it talks. That takes seconds to minutes, which is why a task of its own does it.

use super::watch::list;
use crate::authorizer::Sessions;
use crate::causes::with_causes;
use crate::connections::{Connections, Ended, Inventory};
use crate::control::CutView;
use crate::gate::{Connection, Gate, Guarded};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

/// How long a connection is refused whose socket on this host is gone: its peer may still talk.
const HOLD_DESTROYED: Duration = Duration::from_secs(5);
/// How long one is refused of which this host has no socket, or can't end it: longer than anybody
/// goes on talking to a peer that says nothing.
const HOLD_OTHERS: Duration = Duration::from_secs(180);
/// When they are refused no more, whoever still talks has done so by then.
const TALKS_WITHIN: Duration = Duration::from_secs(1);
/// A packet may be under way, and a socket be just made.
const TRIES: u32 = 15;
const BETWEEN_TRIES: Duration = Duration::from_millis(100);

enum Order {
    Cut { which: Which, guarded: Arc<[Guarded]>, done: Option<oneshot::Sender<CutView>> },
    Release(Inventory),
    RefuseAgain,
    Forget,
}

/// Which connections to cut.
#[derive(Debug)]
pub(super) enum Which {
    Those(Inventory),
    /// What there is of these by then.
    Of(Sessions),
}

/// Takes connections to cut, and cuts one lot after the other.
pub(super) struct Cutter<G> {
    gate: G,
    orders: mpsc::UnboundedSender<Order>,
    refused: Arc<Mutex<Inventory>>,
    task: JoinHandle<()>,
}

impl<G: Gate + Clone + 'static> Cutter<G> {
    pub(super) fn start(gate: G, connections: Arc<dyn Connections>) -> Self {
        let (orders, heard) = mpsc::unbounded_channel();
        let refused = Arc::default();
        let worker = Worker {
            gate: gate.clone(),
            connections,
            guarded: Arc::new([]),
            held: HashMap::new(),
            refused: Arc::clone(&refused),
        };
        let task = tokio::spawn(worker.run(heard));
        Self { gate, orders, refused, task }
    }

    /// Ends these connections; `done` is told what came of it.
    pub(super) fn cut(
        &self,
        which: Which,
        guarded: Arc<[Guarded]>,
        done: Option<oneshot::Sender<CutView>>,
    ) {
        self.order(Order::Cut { which, guarded, done });
    }

    /// The gate was put in place anew, and refuses none of them.
    pub(super) fn refuse_again(&self) {
        if !self.refused().is_empty() {
            self.order(Order::RefuseAgain);
        }
    }

    /// The gate is gone, and what it refused with it.
    pub(super) fn forget(&self) {
        self.order(Order::Forget);
    }

    /// Those whose packets are refused.
    pub(super) fn refused(&self) -> Inventory {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// These may come again: they have a grant.
    pub(super) fn release(&self, those: Inventory) {
        if !those.is_empty() {
            self.order(Order::Release(those));
        }
    }

    /// Refuses none of them any more, since nobody would lift it later.
    pub(super) async fn finish(self) {
        self.task.abort();
        if !self.refused().is_empty()
            && let Err(error) = self.gate.lift().await
        {
            tracing::warn!("connections that were cut stay refused: {}", with_causes(&error));
        }
    }

    fn order(&self, order: Order) {
        // The worker lives as long as this does.
        let _ = self.orders.send(order);
    }
}

struct Worker<G> {
    gate: G,
    connections: Arc<dyn Connections>,
    guarded: Arc<[Guarded]>,
    held: HashMap<Connection, Held>,
    refused: Arc<Mutex<Inventory>>,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    until: Instant,
    /// Nobody on this host is left who could talk.
    destroyed: bool,
}

impl<G: Gate> Worker<G> {
    async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        loop {
            let next = self.held.values().map(|held| held.until).min();
            let is_over = async {
                match next {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => self.obey(order).await,
                    None => return,
                },
                () = is_over => self.lift().await,
            }
        }
    }

    async fn obey(&mut self, order: Order) {
        match order {
            Order::Cut { which, guarded, done } => {
                self.guarded = guarded;
                let cut = match which {
                    Which::Those(those) => self.cut(those).await,
                    Which::Of(sessions) => self.cut_sessions(&sessions).await,
                };
                if let Some(done) = done {
                    // Whoever asked may have gone.
                    let _ = done.send(cut);
                }
            }
            Order::Release(those) => {
                self.held.retain(|connection, _| !those.contains(connection));
                // What fails is in the log.
                let _ = self.refuse_held().await;
            }
            Order::RefuseAgain => {
                let _ = self.refuse_held().await;
            }
            Order::Forget => {
                self.held.clear();
                self.publish();
            }
        }
    }

    async fn cut_sessions(&mut self, sessions: &Sessions) -> CutView {
        match list(&self.connections, Arc::clone(&self.guarded)).await {
            Ok(found) => self.cut(sessions.among(&found)).await,
            Err(error) => {
                let error = with_causes(&error);
                tracing::error!("connections that are to be ended can't be found: {error}");
                CutView { trouble: Some(error), ..CutView::default() }
            }
        }
    }

    async fn cut(&mut self, those: Inventory) -> CutView {
        if those.is_empty() {
            return CutView::default();
        }
        let until = Instant::now() + HOLD_OTHERS;
        self.held.extend(those.iter().map(|one| (*one, Held { until, destroyed: false })));
        let refused = self.refuse_held().await;
        let mut ended = Ended::default();
        for attempt in 0..TRIES {
            if attempt > 0 {
                sleep(BETWEEN_TRIES).await;
            }
            match self.end(&those).await {
                Ok(now) => {
                    ended.gone = now.gone;
                    ended.destroyed.extend(now.destroyed);
                    ended.trouble = now.trouble;
                }
                Err(error) => ended.trouble = Some(error),
            }
            if ended.gone.len() == those.len() {
                break;
            }
        }
        let until = Instant::now() + HOLD_DESTROYED;
        for connection in ended.destroyed.intersection(&ended.gone) {
            self.held.insert(*connection, Held { until, destroyed: true });
        }
        let count = |some: usize| u64::try_from(some).unwrap_or(u64::MAX);
        let cut = CutView {
            ended: count(ended.gone.len()),
            left: count(those.len().saturating_sub(ended.gone.len())),
            trouble: refused.err().or(ended.trouble),
        };
        match &cut {
            CutView { left: 0, trouble: None, .. } => {
                tracing::info!("connections that were ended: {}", cut.ended);
            }
            CutView { ended, left, trouble } => tracing::error!(
                "connections that were ended: {ended}; that could not be ended: {left}, their packets are refused for some minutes{}{}",
                if trouble.is_some() { ": " } else { "" },
                trouble.as_deref().unwrap_or_default()
            ),
        }
        cut
    }

    async fn end(&self, those: &Inventory) -> Result<Ended, String> {
        let (connections, guarded) = (Arc::clone(&self.connections), Arc::clone(&self.guarded));
        let those = those.clone();
        tokio::task::spawn_blocking(move || connections.end(&those, &guarded))
            .await
            .map_err(|died| died.to_string())?
            .map_err(|error| with_causes(&error))
    }

    /// Has the gate refuse just those that are held.
    async fn refuse_held(&mut self) -> Result<(), String> {
        self.publish();
        let held: Vec<_> = self.held.keys().copied().collect();
        let done =
            if held.is_empty() { self.gate.lift().await } else { self.gate.sever(&held).await };
        done.map_err(|error| {
            let error = with_causes(&error);
            tracing::error!("the packets of connections that end can't be refused: {error}");
            error
        })
    }

    fn publish(&self) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        *refused = self.held.keys().copied().collect();
    }

    /// Refuses those no more whose time is over; but those that somebody still talks to, which
    /// brings them back, are cut again.
    async fn lift(&mut self) {
        let now = Instant::now();
        let (over, held): (HashMap<_, _>, _) =
            self.held.drain().partition(|(_, held)| held.until <= now);
        self.held = held;
        if self.refuse_held().await.is_err() {
            // Tried again a little later.
            let until = now + HOLD_DESTROYED;
            self.held.extend(over.into_iter().map(|(one, held)| (one, Held { until, ..held })));
            return;
        }
        let others = over.into_iter().filter(|(_, held)| !held.destroyed);
        let others: Inventory = others.map(|(connection, _)| connection).collect();
        if others.is_empty() {
            return;
        }
        sleep(TALKS_WITHIN).await;
        let connections = Arc::clone(&self.connections);
        let talked_to = tokio::task::spawn_blocking(move || connections.talked_to(&others)).await;
        if let Ok(Ok(talked_to)) = talked_to
            && !talked_to.is_empty()
        {
            self.cut(talked_to).await;
        }
    }
}

#[cfg(test)]
mod tests;
