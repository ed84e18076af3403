//! Watches whether the gate still stands in the kernel: any program may flush it at any time.
//!
//! A task of its own looks whenever the gate says that it may have been disturbed. It changes
//! nothing: what it finds missing it tells the main loop, which owns gate and grants, and it looks
//! again when that has mended it. While the gate is away on purpose it rests.

use crate::authorizer::Needed;
use crate::causes::with_causes;
use crate::clock::BootMicros;
use crate::connections::{Connections, ConnectionsError, Inventory};
use crate::gate::{Backend, Doubt, Gate, GateError, Guarded, Look, Mode, Plan};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// So often it looks at the number of elements at least, whatever the gate says;
const EVERY: Duration = Duration::from_secs(1);
/// less often where that takes more than a tenth of the time, down to this.
const SELDOM: Duration = Duration::from_secs(10);
const OF_THE_TIME: u32 = 10;
/// Between two looks at everything this time passes, or as long as the first one took, up to twice
/// this: somebody may change rules without end that don't concern the gate. All of it has to fit
/// into a second, with a restoration. A look at the elements alone holds up none at everything.
const BETWEEN_LOOKS: Duration = Duration::from_millis(250);
/// After a look that failed, or that found nothing after all, it looks no sooner than this;
const PAUSE: Duration = Duration::from_millis(300);
/// while somebody fights about the gate, than this: it is put back about once a second.
const PAUSE_IN_A_FIGHT: Duration = Duration::from_millis(700);

/// Connections are listed no more often than this, and for no more than this part of the time: while
/// the kernel lists, no knock opens on the same processor;
const BETWEEN_LISTS: Duration = Duration::from_millis(400);
const LISTS_OF_THE_TIME: u32 = 500;
/// but every so often all the same, as long as that is not more than a hundredth of the time.
const LISTS_SELDOM: Duration = Duration::from_secs(10);
const LISTS_AT_MOST: u32 = 100;

/// What is missing where there is nothing.
const ALL_OF_IT: &str = "all of it";

/// What the watch tells the main loop.
#[derive(Debug)]
pub(super) struct Alarm {
    /// What is missing, as an administrator would call it; nothing, if the elements are not those
    /// that are needed.
    pub(super) missing: Vec<String>,
    /// How many elements the kernel holds.
    pub(super) elements: u64,
    /// When the look began that has found this.
    pub(super) looked: BootMicros,
    /// Whatever is found later, this is no false alarm.
    is_true: bool,
    /// Goes with the alarm, by which the watch knows that it may look again.
    held: Option<oneshot::Sender<FalseAlarm>>,
}

/// All was as it had to be: elements had ended that were still counted as needed, say.
#[derive(Debug)]
struct FalseAlarm;

impl Alarm {
    /// One of the main loop's own: it has compared the elements.
    pub(super) fn of_elements() -> Self {
        Self::new(Vec::new(), 0, BootMicros::now(), None)
    }

    fn new(
        missing: Vec<String>,
        elements: u64,
        looked: BootMicros,
        held: Option<oneshot::Sender<FalseAlarm>>,
    ) -> Self {
        Self { missing, elements, looked, is_true: false, held }
    }

    /// Something was to be mended: it is no false alarm, whatever is found later.
    pub(super) fn proved(self) -> Self {
        Self { is_true: true, ..self }
    }

    /// The kernel holds just what it has to: for the watch, nothing was disturbed.
    pub(super) fn was_false(self) {
        if let Some(held) = self.held.filter(|_| !self.is_true) {
            // The watch may have ended.
            let _ = held.send(FalseAlarm);
        }
    }

    /// What is missing, in words.
    pub(super) fn missing(&self) -> String {
        if self.missing.is_empty() { "elements".to_owned() } else { self.missing.join("; ") }
    }
}

/// The connections that there were when the gate last was found whole.
#[derive(Debug, Clone)]
pub(super) struct Known {
    /// They were listed after this.
    pub(super) since: BootMicros,
    pub(super) connections: Arc<Inventory>,
    /// To what: of other ports nothing is known.
    pub(super) guarded: Arc<[Guarded]>,
}

impl Known {
    /// What of it is still worth something where this is guarded.
    pub(super) fn among(self, guarded: &[Guarded]) -> Option<Self> {
        let both = self.guarded.iter().filter(|one| guarded.contains(one)).copied();
        let guarded: Arc<[_]> = both.collect();
        (!guarded.is_empty()).then_some(Self { guarded, ..self })
    }
}

/// The watch over one gate, as the main loop holds it.
pub(super) struct Watch<G> {
    gate: G,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    connections: Arc<dyn Connections>,
    visitors: Mutex<Visitors>,
    /// How many elements the kernel has to hold.
    needed: Needed,
    /// Whether there is nothing to watch.
    rests: watch::Sender<bool>,
    /// Whether somebody takes away again and again what is put back.
    in_a_fight: AtomicBool,
    /// What is wrong with the gate, if anything is.
    wrong: Mutex<Option<String>>,
}

/// Who is in.
#[derive(Default)]
struct Visitors {
    /// Whose connections are listed; nobody's, where the gate keeps nobody out.
    guarded: Arc<[Guarded]>,
    known: Option<Known>,
    /// Grows when a list from before is worth nothing any more, those included that are under way.
    epoch: u64,
}

impl Visitors {
    fn forget(&mut self) {
        self.known = None;
        self.epoch = self.epoch.wrapping_add(1);
    }

    fn become_guarded(&mut self, guarded: Arc<[Guarded]>) {
        self.known = self.known.take().and_then(|known| known.among(&guarded));
        self.epoch = self.epoch.wrapping_add(1);
        self.guarded = guarded;
    }
}

/// A list that no later look has confirmed.
struct Listed {
    known: Known,
    epoch: u64,
}

impl<G: Gate + Clone + 'static> Watch<G> {
    /// Begins to watch a gate that was just installed. `needed` is how many elements it has to
    /// hold.
    pub(super) fn start(
        gate: G,
        needed: Needed,
        connections: Arc<dyn Connections>,
        plan: &Plan,
    ) -> (Self, mpsc::Receiver<Alarm>) {
        let (alarms, heard) = mpsc::channel(1);
        let guarded = guarded_by(gate.backend(), plan);
        let (rests, _) = watch::channel(false);
        let shared = Arc::new(Shared {
            connections,
            visitors: Mutex::new(Visitors { guarded, ..Visitors::default() }),
            needed,
            rests,
            in_a_fight: AtomicBool::new(false),
            wrong: Mutex::default(),
        });
        let watcher = Watcher { gate: gate.clone(), shared: Arc::clone(&shared), alarms };
        let task = tokio::spawn(watcher.run());
        (Self { gate, shared, task }, heard)
    }

    /// The gate is now installed by this plan.
    pub(super) fn installed(&self, plan: &Plan) {
        let guarded = guarded_by(self.gate.backend(), plan);
        let mut visitors = lock(&self.shared.visitors);
        if visitors.guarded != guarded {
            visitors.become_guarded(guarded);
        }
    }

    /// The connections that there were when the gate last was found whole, if that is known.
    pub(super) fn known(&self) -> Option<Known> {
        lock(&self.shared.visitors).known.clone()
    }

    /// The connections that there are to these ports.
    pub(super) async fn list(
        &self,
        guarded: Arc<[Guarded]>,
    ) -> Result<Inventory, ConnectionsError> {
        list(&self.shared.connections, guarded).await
    }

    /// From now on there is nothing to watch, or there is again.
    pub(super) fn rest(&self, rests: bool) {
        if self.shared.rests.send_replace(rests) || rests {
            // Whoever comes while there is no gate comes in order.
            lock(&self.shared.visitors).forget();
        }
        self.shared.tell(None);
    }

    /// Whether somebody takes away again and again what is put back: then it is looked at less
    /// often.
    pub(super) fn fights(&self, fights: bool) {
        self.shared.in_a_fight.store(fights, Ordering::Relaxed);
    }

    /// Says what keeps the gate from standing; `None` if it stands. Each change is logged.
    pub(super) fn tell(&self, wrong: Option<String>) {
        self.shared.tell(wrong);
    }

    /// What is missing at this moment, if anything is: for the main loop, which then mends it.
    pub(super) async fn look(&self) -> Option<Alarm> {
        if *self.shared.rests.borrow() {
            return None;
        }
        let looked = BootMicros::now();
        let (missing, elements) = match self.gate.look(Doubt::Everything).await {
            Ok(Look { missing, elements, .. }) if !missing.is_empty() => (missing, elements),
            Err(GateError::NotInstalled) => (vec![ALL_OF_IT.to_owned()], 0),
            // What can't be looked at the task tells.
            Ok(_) | Err(_) => return None,
        };
        Some(Alarm::new(missing, elements, looked, None))
    }

    /// What is wrong with the gate at this moment, if anything is: for whoever asks.
    pub(super) fn ask(&self) -> impl Future<Output = Option<String>> + Send + use<G> {
        let (gate, shared) = (self.gate.clone(), Arc::clone(&self.shared));
        async move {
            if let Some(known) = shared.wrong() {
                return Some(known);
            }
            if *shared.rests.borrow() {
                return None;
            }
            match gate.look(Doubt::Everything).await {
                Ok(Look { missing, .. }) if missing.is_empty() => None,
                Ok(Look { missing, .. }) => {
                    Some(format!("{}; it is being put back", missing.join("; ")))
                }
                Err(error) => Some(cannot_look(&error)),
            }
        }
    }
}

impl<G> Drop for Watch<G> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    /// The gate was found whole after this was listed.
    fn publish(&self, listed: Listed) {
        let mut visitors = lock(&self.visitors);
        if visitors.epoch == listed.epoch {
            visitors.known = Some(listed.known);
        }
    }

    fn wrong(&self) -> Option<String> {
        lock(&self.wrong).clone()
    }

    fn tell(&self, wrong: Option<String>) {
        let mut known = lock(&self.wrong);
        if *known == wrong {
            return;
        }
        if let Some(wrong) = &wrong {
            tracing::error!("the gate is not as it was installed: {wrong}");
        } else {
            tracing::info!("the gate is as it has to be");
        }
        *known = wrong;
    }
}

/// The task.
struct Watcher<G> {
    gate: G,
    shared: Arc<Shared>,
    alarms: mpsc::Sender<Alarm>,
}

impl<G: Gate> Watcher<G> {
    async fn run(self) {
        let mut rests = self.shared.rests.subscribe();
        let mut doubt = Doubt::Everything;
        // Its installation has just found it whole; the first look may take longer than it stands.
        if let Some((listed, _)) = self.list().await {
            self.shared.publish(listed);
        }
        let (mut listed, mut list_again, mut list_failed) = (None, Instant::now(), false);
        let mut looked_at_all = Instant::now();
        while rests.wait_for(|rests| !rests).await.is_ok() {
            let Some(took) = self.look(doubt).await else {
                listed = None;
                tokio::time::sleep(self.pause()).await;
                continue;
            };
            let looked = Instant::now();
            if doubt == Doubt::Everything {
                looked_at_all = looked;
            }
            // Only now: they were listed before this look, and since then nothing was disturbed.
            if let Some(listed) = listed.take() {
                self.shared.publish(listed);
            }
            let is_known = lock(&self.shared.visitors).known.is_some();
            if Instant::now() >= list_again || !is_known && !list_failed {
                let took;
                (listed, took) = self.list().await.unzip();
                list_failed = listed.is_none();
                // Where nothing is known, what was just listed is better than nothing.
                if let Some(listed) = listed.take_if(|_| !is_known) {
                    self.shared.publish(listed);
                }
                list_again = Instant::now() + until_next_list(took.unwrap_or_default());
            }
            doubt = tokio::select! {
                // After a time in which nothing ran both are due, and the first one sees more.
                biased;
                doubt = self.gate.disturbed() => doubt,
                () = tokio::time::sleep((took * OF_THE_TIME).clamp(EVERY, SELDOM)) => Doubt::Elements,
            };
            let pause = took.clamp(BETWEEN_LOOKS, BETWEEN_LOOKS * 2);
            let last = if doubt == Doubt::Everything { looked_at_all } else { looked };
            tokio::time::sleep_until(last + pause).await;
        }
    }

    fn pause(&self) -> Duration {
        if self.shared.in_a_fight.load(Ordering::Relaxed) { PAUSE_IN_A_FIGHT } else { PAUSE }
    }

    /// The connections at this moment, and how much processor time the list took.
    async fn list(&self) -> Option<(Listed, Duration)> {
        let since = BootMicros::now();
        let (guarded, epoch) = {
            let visitors = lock(&self.shared.visitors);
            (Arc::clone(&visitors.guarded), visitors.epoch)
        };
        if guarded.is_empty() {
            return None;
        }
        match list_behind(&self.shared.connections, Arc::clone(&guarded)).await {
            Ok((connections, took)) => {
                let known = Known { since, connections: Arc::new(connections), guarded };
                Some((Listed { known, epoch }, took))
            }
            Err(error) => {
                tracing::debug!("{}", with_causes(&error));
                None
            }
        }
    }

    /// Looks, and has the main loop mend what is missing. How long the look took, if all was there.
    async fn look(&self, doubt: Doubt) -> Option<Duration> {
        // Elements may be added and taken away while the kernel counts them.
        let needed = self.shared.needed.now();
        let (looked, began) = (BootMicros::now(), Instant::now());
        let look = self.gate.look(doubt).await;
        let took = began.elapsed();
        let fits = |look: &Look| needed.fit(self.shared.needed.now(), look.elements);
        if *self.shared.rests.borrow() {
            return Some(took);
        }
        let (missing, elements) = match look {
            Ok(look) if look.missing.is_empty() && fits(&look) => {
                self.shared.tell(None);
                return Some(took);
            }
            Ok(look) => (look.missing, look.elements),
            Err(GateError::NotInstalled) => (vec![ALL_OF_IT.to_owned()], 0),
            Err(error) => {
                self.shared.tell(Some(cannot_look(&error)));
                return None;
            }
        };
        let (held, over) = oneshot::channel();
        let mut alarm = Alarm::new(missing, elements, looked, Some(held));
        // Fewer may be those that have ended. Who came in by one too many is not to become known
        // since that one ends as well.
        alarm.is_true = needed.are_exceeded_by(elements);
        // The alarm is over when the main loop says that it was false, or drops it.
        let is_false = self.alarms.send(alarm).await.is_ok() && over.await.is_ok();
        if is_false {
            self.shared.tell(None);
        }
        is_false.then_some(took)
    }
}

/// How long after a list that took so long the next one comes.
fn until_next_list(took: Duration) -> Duration {
    let seldom = LISTS_SELDOM.max(took * LISTS_AT_MOST);
    (took * LISTS_OF_THE_TIME).clamp(BETWEEN_LISTS, seldom)
}

/// The connections to these ports.
pub(super) async fn list(
    connections: &Arc<dyn Connections>,
    guarded: Arc<[Guarded]>,
) -> Result<Inventory, ConnectionsError> {
    let connections = Arc::clone(connections);
    let listed = tokio::task::spawn_blocking(move || connections.list(&guarded)).await;
    listed.map_err(|_| ConnectionsError::Died)?
}

/// The same for whoever can wait, and the processor time that it took.
async fn list_behind(
    connections: &Arc<dyn Connections>,
    guarded: Arc<[Guarded]>,
) -> Result<(Inventory, Duration), ConnectionsError> {
    let connections = Arc::clone(connections);
    let listed = tokio::task::spawn_blocking(move || connections.list_behind(&guarded));
    listed.await.map_err(|_| ConnectionsError::Died)?
}

/// What a gate keeps closed itself: in open mode, and where commands open, others do.
fn guarded_by(backend: Backend, plan: &Plan) -> Arc<[Guarded]> {
    if plan.mode == Mode::Guard && backend.hides() {
        plan.guarded.clone().into()
    } else {
        Arc::new([])
    }
}

/// Nothing behind these locks is ever half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn cannot_look(error: &GateError) -> String {
    format!("it can't be looked at: {}", with_causes(error))
}

#[cfg(test)]
mod tests;
