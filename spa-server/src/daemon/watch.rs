//! Watches whether the gate still stands in the kernel: any program may flush it at any time.
//!
//! A task of its own looks whenever the gate says that it may have been disturbed. It changes
//! nothing: what it finds missing it tells the main loop, which owns gate and grants, and it looks
//! again when that has mended it. While the gate is away on purpose it rests.

use crate::authorizer::Needed;
use crate::causes::with_causes;
use crate::gate::{Doubt, Gate, GateError, Look};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

/// So often it looks at the number of elements at least, whatever the gate says.
const EVERY: Duration = Duration::from_secs(1);
/// After a look that failed, or that found nothing after all, it looks no sooner than this.
const PAUSE: Duration = Duration::from_millis(300);

/// What the watch tells the main loop.
#[derive(Debug)]
pub(super) struct Alarm {
    /// What is missing, as an administrator would call it; nothing, if only elements are.
    pub(super) missing: Vec<String>,
    /// How many elements the kernel holds.
    pub(super) elements: u64,
    /// Goes with the alarm, by which the watch knows that it may look again.
    _held: oneshot::Sender<()>,
}

impl Alarm {
    /// What is missing, in words.
    pub(super) fn missing(&self) -> String {
        if self.missing.is_empty() { "elements".to_owned() } else { self.missing.join("; ") }
    }
}

/// The watch over one gate, as the main loop holds it.
pub(super) struct Watch<G> {
    gate: G,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    /// How many elements the kernel has to hold at least.
    needed: Needed,
    /// Whether there is nothing to watch.
    rests: watch::Sender<bool>,
    /// What is wrong with the gate, if anything is.
    wrong: Mutex<Option<String>>,
}

impl<G: Gate + Clone + 'static> Watch<G> {
    /// Begins to watch a gate that was just installed. `needed` is how many elements it has to
    /// hold at least.
    pub(super) fn start(gate: G, needed: Needed) -> (Self, mpsc::Receiver<Alarm>) {
        let (alarms, heard) = mpsc::channel(1);
        let (rests, _) = watch::channel(false);
        let shared = Arc::new(Shared { needed, rests, wrong: Mutex::default() });
        let watcher = Watcher { gate: gate.clone(), shared: Arc::clone(&shared), alarms };
        let task = tokio::spawn(watcher.run());
        (Self { gate, shared, task }, heard)
    }

    /// From now on there is nothing to watch, or there is again.
    pub(super) fn rest(&self, rests: bool) {
        self.shared.rests.send_replace(rests);
        self.shared.tell(None);
    }

    /// Says what keeps the gate from standing; `None` if it stands. Each change is logged.
    pub(super) fn tell(&self, wrong: Option<String>) {
        self.shared.tell(wrong);
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
    fn wrong(&self) -> Option<String> {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn tell(&self, wrong: Option<String>) {
        let mut known = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
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
        while rests.wait_for(|rests| !rests).await.is_ok() {
            if !self.look(doubt).await {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            doubt = tokio::select! {
                doubt = self.gate.disturbed() => doubt,
                () = tokio::time::sleep(EVERY) => Doubt::Elements,
            };
        }
    }

    /// Looks, and has the main loop mend what is missing. Whether all was there.
    async fn look(&self, doubt: Doubt) -> bool {
        // Elements may be added and taken away while the kernel counts them.
        let needed = self.shared.needed.get();
        let look = self.gate.look(doubt).await;
        let needed = needed.min(self.shared.needed.get());
        if *self.shared.rests.borrow() {
            return true;
        }
        let (missing, elements) = match look {
            Ok(look) if look.missing.is_empty() && look.elements >= needed => {
                self.shared.tell(None);
                return true;
            }
            Ok(look) => (look.missing, look.elements),
            Err(GateError::NotInstalled) => (vec!["all of it".to_owned()], 0),
            Err(error) => {
                self.shared.tell(Some(cannot_look(&error)));
                return false;
            }
        };
        let (held, dropped) = oneshot::channel();
        if self.alarms.send(Alarm { missing, elements, _held: held }).await.is_ok() {
            // Nothing is ever sent: the alarm is over when the main loop drops it.
            let _ = dropped.await;
        }
        false
    }
}

fn cannot_look(error: &GateError) -> String {
    format!("it can't be looked at: {}", with_causes(error))
}

#[cfg(test)]
mod tests;
