//! The task that cuts, and what it holds.

use super::{Order, Shared, Which};
use crate::authorizer::Sessions;
use crate::causes::with_causes;
use crate::connections::{Connections, ConnectionsError, Ended, Inventory};
use crate::control::CutView;
use crate::daemon::watch::list;
use crate::gate::{Connection, Cut, Gate, Guarded};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

/// How long a connection is refused whose socket on this host is gone: its peer may still talk.
pub(super) const HOLD_DESTROYED: Duration = Duration::from_secs(5);
/// How long one is refused of which this host has no socket, or can't end it: longer than anybody
/// goes on talking to a peer that says nothing.
pub(super) const HOLD_OTHERS: Duration = Duration::from_secs(180);
/// When they are refused no more, whoever still talks has done so by then.
pub(super) const TALKS_WITHIN: Duration = Duration::from_secs(1);
/// So often in all a connection is refused whose end here never stops talking: for an hour.
pub(super) const TIMES: u32 = 20;
/// More are not refused at a time: where there are no sets, each packet is compared with all of
/// them.
pub(super) const AT_ONCE: usize = 1024;
/// A packet may be under way, and a socket be just made.
const TRIES: u32 = 15;
const BETWEEN_TRIES: Duration = Duration::from_millis(100);

pub(super) struct Worker<G> {
    gate: G,
    connections: Arc<dyn Connections>,
    shared: Arc<Shared>,
    guarded: Arc<[Guarded]>,
    /// Whether there is a gate. Where there is none, nothing is refused.
    stands: bool,
    /// Those whose packets are refused.
    held: HashMap<Connection, Held>,
    /// Those that were ended beyond [`AT_ONCE`]. Whoever talks of them is cut again when there is
    /// room.
    beyond: HashMap<Connection, Held>,
    /// Whether the gate may refuse any.
    refuses: bool,
    /// When to tell the gate again, after it has failed.
    again: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    cut: Cut,
    until: Instant,
    /// Nobody on this host is left who could talk.
    destroyed: bool,
    /// For the how many-th time.
    times: u32,
}

impl<G: Gate> Worker<G> {
    pub(super) fn new(
        gate: G,
        connections: Arc<dyn Connections>,
        stands: bool,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            gate,
            connections,
            shared,
            guarded: Arc::new([]),
            stands,
            held: HashMap::new(),
            beyond: HashMap::new(),
            refuses: false,
            again: None,
        }
    }

    pub(super) async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        loop {
            let due = self.due();
            let is_due = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => {
                        self.obey(order).await;
                        self.tell_busy();
                        self.shared.orders.fetch_sub(1, Ordering::AcqRel);
                    }
                    None => return,
                },
                () = is_due => {
                    self.lift().await;
                    self.tell_busy();
                }
            }
        }
    }

    fn due(&self) -> Option<Instant> {
        // What the gate has just refused to take it is not told again at once.
        let room = self.again.is_none() && self.held.len() < AT_ONCE && !self.beyond.is_empty();
        let ends = self.held.values().map(|held| held.until).min();
        [ends, self.again, room.then(Instant::now)].into_iter().flatten().min()
    }

    fn tell_busy(&self) {
        let holds = !self.held.is_empty() || !self.beyond.is_empty();
        self.shared.holds.store(holds, Ordering::Release);
    }

    async fn obey(&mut self, order: Order) {
        match order {
            Order::Cut { which, guarded, done } => {
                self.guarded = guarded;
                let cut = match which {
                    Which::Those(those) => self.cut(those, Vec::new()).await,
                    Which::Of(sessions) => self.cut_sessions(&sessions).await,
                };
                if let Some(done) = done {
                    // Whoever asked may have gone.
                    let _ = done.send(cut);
                }
            }
            Order::Release => {
                let shared = Arc::clone(&self.shared);
                let before = self.held.len();
                self.held.retain(|connection, _| !shared.is_granted(connection));
                self.beyond.retain(|connection, _| !shared.is_granted(connection));
                if self.held.len() < before {
                    // What fails is in the log, and tried again.
                    let _ = self.refuse_held().await;
                }
            }
            Order::GateStands => {
                self.stands = true;
                let _ = self.refuse_held().await;
            }
            Order::GateIsGone(done) => {
                self.shared.gone.store(false, Ordering::Release);
                self.stands = false;
                self.held.clear();
                self.beyond.clear();
                // Whoever asked may have gone.
                let _ = done.send(self.refuse_held().await);
            }
        }
    }

    async fn cut_sessions(&mut self, sessions: &Sessions) -> CutView {
        match list(&self.connections, Arc::clone(&self.guarded)).await {
            Ok(found) => self.cut(sessions.among(&found), Vec::new()).await,
            Err(error) => {
                let error = with_causes(&error);
                tracing::error!("connections that are to be ended can't be found: {error}");
                CutView { trouble: Some(error), ..CutView::default() }
            }
        }
    }

    /// Ends these connections. Of `known`, which are some of them, it is known that they are
    /// established.
    async fn cut(&mut self, mut those: Inventory, known: Vec<Held>) -> CutView {
        those.retain(|connection| !self.shared.is_granted(connection));
        if those.is_empty() {
            return CutView::default();
        }
        let mut refused = Ok(());
        let mut ended = Ended::default();
        let mut established: HashMap<Connection, Cut> = HashMap::new();
        let mut new: Vec<_> =
            known.into_iter().filter(|held| those.contains(&held.cut.connection)).collect();
        for attempt in 0..TRIES {
            if attempt > 0 {
                if self.is_gone() {
                    break;
                }
                sleep(BETWEEN_TRIES).await;
            }
            let found = match self.established(&those).await {
                Ok(found) => found,
                Err(error) => {
                    ended.trouble = Some(error);
                    Vec::new()
                }
            };
            let until = Instant::now() + HOLD_OTHERS;
            let first = |cut| Held { cut, until, destroyed: false, times: 0 };
            new.extend(found.into_iter().map(first));
            new.retain(|held| established.insert(held.cut.connection, held.cut).is_none());
            if !new.is_empty() && self.stands && !self.is_gone() {
                self.hold(new.drain(..).map(|held| Held { times: held.times + 1, until, ..held }));
                refused = self.refuse_held().await;
            }
            new.clear();
            match self.end(&those, established.values().copied().collect()).await {
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
            self.beyond.remove(connection);
            if let Some(held) = self.held.get_mut(connection) {
                (held.until, held.destroyed) = (until, true);
            }
        }
        view(&those, ended, refused.err())
    }

    /// Whether somebody waits for nothing to be refused any more.
    fn is_gone(&self) -> bool {
        self.shared.gone.load(Ordering::Acquire)
    }

    /// As many as there is room for; the others are `beyond`.
    fn hold(&mut self, those: impl IntoIterator<Item = Held>) {
        let mut too_many = self.beyond.is_empty();
        for held in those {
            let connection = held.cut.connection;
            if self.held.len() < AT_ONCE || self.held.contains_key(&connection) {
                self.held.insert(connection, held);
                continue;
            }
            self.beyond.insert(connection, held);
            if std::mem::take(&mut too_many) {
                tracing::error!(
                    "more than {AT_ONCE} connections are to be refused at a time: the others are ended without, and those that still talk are ended again when there is room"
                );
            }
        }
    }

    async fn established(&self, those: &Inventory) -> Result<Vec<Cut>, String> {
        let (those, guarded) = (those.clone(), Arc::clone(&self.guarded));
        self.ask(move |connections| connections.established(&those, &guarded)).await
    }

    async fn end(&self, those: &Inventory, established: Vec<Cut>) -> Result<Ended, String> {
        let (those, guarded) = (those.clone(), Arc::clone(&self.guarded));
        self.ask(move |connections| connections.end(&those, &established, &guarded)).await
    }

    async fn ask<T: Send + 'static>(
        &self,
        what: impl FnOnce(&dyn Connections) -> Result<T, ConnectionsError> + Send + 'static,
    ) -> Result<T, String> {
        let connections = Arc::clone(&self.connections);
        tokio::task::spawn_blocking(move || what(&*connections))
            .await
            .map_err(|died| died.to_string())?
            .map_err(|error| with_causes(&error))
    }

    /// Has the gate refuse just those that are held. If it fails, that is tried again.
    async fn refuse_held(&mut self) -> Result<(), String> {
        if self.held.is_empty() && !self.refuses {
            return Ok(());
        }
        self.refuses = true;
        let mut cuts: Vec<_> = self.held.values().map(|held| held.cut).collect();
        cuts.sort_unstable();
        let done =
            if cuts.is_empty() { self.gate.lift().await } else { self.gate.sever(&cuts).await };
        match done {
            Ok(()) => {
                self.refuses = !cuts.is_empty();
                self.again = None;
                Ok(())
            }
            Err(error) => {
                let error = with_causes(&error);
                // Once, however often it is tried.
                if self.again.is_none() {
                    let how = if cuts.is_empty() { "are still" } else { "can't be" };
                    tracing::error!("the packets of connections that end {how} refused: {error}");
                }
                self.again = Some(Instant::now() + HOLD_DESTROYED);
                Err(error)
            }
        }
    }

    /// Refuses those no more whose time is over; but those that somebody still talks to, which
    /// brings them back, are cut again.
    async fn lift(&mut self) {
        let now = Instant::now();
        let mut over: HashMap<_, _> = self.held.extract_if(|_, held| held.until <= now).collect();
        if self.refuse_held().await.is_err() {
            // They are still refused.
            let until = now + HOLD_DESTROYED;
            self.held.extend(over.into_iter().map(|(one, held)| (one, Held { until, ..held })));
            return;
        }
        over.retain(|_, held| !held.destroyed);
        over.extend(self.beyond.drain());
        if over.is_empty() {
            return;
        }
        sleep(TALKS_WITHIN).await;
        let cuts: Vec<_> = over.values().map(|held| held.cut).collect();
        let talked_to = match self.ask(move |connections| connections.talked_to(&cuts)).await {
            Ok(talked_to) => talked_to,
            Err(error) => {
                tracing::error!("whether connections go on that were ended is not known: {error}");
                return;
            }
        };
        let talking = talked_to.iter().filter_map(|cut| over.remove(&cut.connection));
        let (again, endless): (Vec<_>, Vec<_>) = talking.partition(|held| held.times < TIMES);
        if let Some(Held { cut: Cut { connection, answered_from }, .. }) = endless.first() {
            tracing::error!(
                "{answered_from} doesn't stop talking to {}, whose connection was cut, nor do {} others to theirs: they are refused no more",
                connection.peer,
                endless.len().saturating_sub(1)
            );
        }
        if !again.is_empty() {
            self.cut(again.iter().map(|held| held.cut.connection).collect(), again).await;
        }
    }
}

/// What came of it, and says so in the log.
fn view(those: &Inventory, ended: Ended, not_refused: Option<String>) -> CutView {
    let count = |some: usize| u64::try_from(some).unwrap_or(u64::MAX);
    let cut = CutView {
        ended: count(ended.gone.len()),
        left: count(those.len().saturating_sub(ended.gone.len())),
        trouble: not_refused.or(ended.trouble),
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
