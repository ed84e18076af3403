//! Looks after each element: opens it, gives it more time, closes it when its time is over, and
//! again until that has worked.
//!
//! What happens to one element happens in turn: its commands never overlap. Different elements
//! wait for each other only when many are at it.

use super::HookSettings;
use super::command::{Action, Occasion};
use super::ledger::{Ledger, LedgerError, Phase, Record};
use super::run::run;
use crate::causes::with_causes;
use crate::clock::BootMicros;
use crate::config::judge_program;
use crate::gate::GateError;
use crate::gate::types::{Element, LiveElement};
use crate::process::ProcessError;
use crate::service::Target;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex as Lock, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{Mutex, Notify, OwnedMutexGuard, Semaphore};
use tokio::task::JoinSet;

/// Commands that close what is over, at a time. Those that knocks wait for have places of their
/// own: see `HookGate::apply`.
const CLOSING_AT_ONCE: usize = 8;
/// How long nobody looks at the clock at most: the runtime's timers stand still in suspend.
const GLANCE: Duration = Duration::from_secs(1);
/// The longest time between two attempts to close.
const LONGEST_REST: Duration = Duration::from_secs(60);

/// The elements that commands have opened, or may have.
#[derive(Debug)]
pub(super) struct Keeper {
    settings: HookSettings,
    boot_id: String,
    pub(super) ledger: Ledger,
    entries: Lock<BTreeMap<Element, Entry>>,
    turns: Lock<HashMap<Element, Weak<Mutex<()>>>>,
    /// Something may be due earlier than it was.
    wake: Notify,
    /// An attempt to close has ended.
    tried: Notify,
    closers: Arc<Semaphore>,
}

#[derive(Debug, Clone)]
struct Entry {
    record: Record,
    /// Somebody wants to know whether it is closed: see [`Keeper::withdraw`].
    withdrawn: bool,
    /// How often closing has failed.
    failures: u32,
    /// When it is tried again.
    again: BootMicros,
}

impl Entry {
    fn new(record: Record) -> Self {
        Self { record, withdrawn: false, failures: 0, again: BootMicros(0) }
    }

    /// When it has to be closed.
    fn due(&self) -> BootMicros {
        match self.record.phase {
            Phase::Open => self.record.expires,
            // Nobody waits for the end of an opening any more, if its turn is free.
            Phase::Opening | Phase::Closing => self.again,
        }
    }
}

impl Keeper {
    pub(super) fn new(settings: HookSettings, boot_id: String) -> Self {
        Self {
            ledger: Ledger::new(settings.directory.clone()),
            settings,
            boot_id,
            entries: Lock::default(),
            turns: Lock::default(),
            wake: Notify::new(),
            tried: Notify::new(),
            closers: Arc::new(Semaphore::new(CLOSING_AT_ONCE)),
        }
    }

    /// Takes over what an earlier process has left; names the files that can't be judged.
    pub(super) fn load(&self) -> Result<Vec<PathBuf>, LedgerError> {
        let (records, damaged) = self.ledger.read()?;
        let now = BootMicros::now();
        let entries = records.into_iter().map(|mut record| {
            if let Some(left) = record.running.take().filter(|_| record.boot_id == self.boot_id) {
                left.kill();
            }
            if !record.is_live(&self.boot_id, now) {
                record.phase = Phase::Closing;
            }
            (record.element, Entry::new(record))
        });
        *self.entries() = entries.collect();
        Ok(damaged)
    }

    /// Writes down everything that is known.
    pub(super) fn write_anew(&self) -> Result<(), LedgerError> {
        self.records().iter().try_for_each(|record| self.ledger.write(record))
    }

    /// What is open, in this process or in whichever looks after it.
    pub(super) fn live(&self, is_held: bool) -> Result<Vec<LiveElement>, LedgerError> {
        let now = BootMicros::now();
        let records = if is_held { self.records() } else { self.ledger.read()?.0 };
        let live = records.into_iter().filter(|record| record.phase != Phase::Opening);
        Ok(live
            .map(|record| {
                // It may be over, but not closed.
                let is_live = record.is_live(&self.boot_id, now);
                let left = if is_live { record.expires.since(now).as_secs() } else { 0 };
                let seconds_left = u32::try_from(left).unwrap_or(u32::MAX);
                LiveElement { element: record.element, seconds_left }
            })
            .collect())
    }

    /// What should be closed and isn't, each in a sentence.
    pub(super) fn failures(&self, is_held: bool) -> Result<Vec<String>, LedgerError> {
        let records = if is_held { self.records() } else { self.ledger.read()?.0 };
        let failed = records.into_iter().filter_map(|record| {
            let failure = record.failure?;
            Some(format!("{} is over, but may still be open: {failure}", record.element))
        });
        Ok(failed.collect())
    }

    fn records(&self) -> Vec<Record> {
        self.entries().values().map(|entry| entry.record.clone()).collect()
    }

    pub(super) fn elements(&self) -> Vec<Element> {
        self.entries().keys().copied().collect()
    }

    /// Opens an element, or gives it this time from now.
    pub(super) async fn admit(
        &self,
        element: Element,
        target: Target,
        seconds: u32,
    ) -> Result<(), GateError> {
        let until = BootMicros::now().saturating_add(Duration::from_secs(seconds.into()));
        let _turn = self.turn(element).await;
        if let Some(mut record) = self.entry(element).map(|entry| entry.record) {
            if record.target != target {
                // It leads to somewhere else now. What isn't closed there can't be forgotten here.
                self.close(Record { phase: Phase::Closing, ..record }).await?;
            } else if record.phase == Phase::Open {
                if self.settings.refresh {
                    let refreshed = self.run(Action::Refresh, &record, seconds_until(until)).await;
                    if refreshed.is_err() {
                        let _ = self.keep(&record);
                        return refreshed;
                    }
                }
                record.expires = until;
                self.keep(&record)?;
                self.wake.notify_one();
                return Ok(());
            }
        }
        let mut record = Record {
            element,
            target,
            phase: Phase::Opening,
            boot_id: self.boot_id.clone(),
            expires: until,
            running: None,
            failure: None,
        };
        self.keep(&record)?;
        let opened = self.run(Action::Open, &record, seconds_until(until)).await;
        record.phase = if opened.is_ok() { Phase::Open } else { Phase::Closing };
        let kept = self.keep(&record);
        if kept.is_err() {
            // Nobody would know that it is open.
            self.forget_nothing(Record { phase: Phase::Closing, ..record });
        }
        // A command that failed half-way is undone, which nobody waits for.
        self.wake.notify_one();
        opened.and(kept)
    }

    /// Closes an element. One whose time is over is being closed anyway, and not waited for.
    pub(super) async fn withdraw(&self, element: Element) -> Result<(), GateError> {
        if self.is_over(element) {
            return Ok(());
        }
        let _turn = self.turn(element).await;
        let Some(entry) = self.entry(element) else { return Ok(()) };
        if self.is_over(element) {
            return Ok(());
        }
        let record = Record { phase: Phase::Closing, ..entry.record };
        if let Some(failure) = record.failure.clone().filter(|_| entry.withdrawn) {
            return Err(GateError::HookCloses { element, failure });
        }
        if let Some(entry) = self.entries().get_mut(&element) {
            entry.withdrawn = true;
        }
        self.close(record).await
    }

    /// Closes an element, whatever becomes of its time.
    pub(super) async fn shut(&self, element: Element) -> Result<(), GateError> {
        let _turn = self.turn(element).await;
        let Some(entry) = self.entry(element) else { return Ok(()) };
        self.close(Record { phase: Phase::Closing, ..entry.record }).await
    }

    /// Whether an element is to be closed because its time is over, or because it never opened.
    pub(super) fn is_over(&self, element: Element) -> bool {
        let now = BootMicros::now();
        self.entry(element)
            .is_some_and(|entry| !entry.withdrawn && !entry.record.is_live(&self.boot_id, now))
    }

    /// Waits until everything that is over has been tried to close once.
    pub(super) async fn settle(&self) {
        loop {
            let tried = self.tried.notified();
            let untried = |entry: &Entry| entry.record.phase != Phase::Open && entry.failures == 0;
            if !self.entries().values().any(untried) {
                return;
            }
            tried.await;
        }
    }

    /// Closes what is over, for ever.
    pub(super) async fn tend(self: Arc<Self>) {
        let mut closing = JoinSet::new();
        loop {
            let now = BootMicros::now();
            let mut rest = GLANCE;
            let mut due: Vec<_> = Vec::new();
            for (element, entry) in self.entries().iter() {
                let at = entry.due();
                if at > now {
                    rest = rest.min(at.since(now));
                } else {
                    due.push((at, *element));
                }
            }
            // Whoever has waited longest comes first: those that hang must not keep others from
            // their turn for ever.
            due.sort_unstable();
            for (_, element) in due {
                // The place before the turn: a knock for what only waits for a place would have to
                // wait as well, and all other knocks with it.
                let Ok(place) = Arc::clone(&self.closers).try_acquire_owned() else { break };
                // Whoever has the turn wakes us when it is over.
                let Ok(turn) = self.turn_of(element).try_lock_owned() else { continue };
                let keeper = Arc::clone(&self);
                closing.spawn(async move {
                    let (_place, _turn) = (place, turn);
                    keeper.close_over(element).await;
                });
            }
            self.turns().retain(|_, turn| turn.strong_count() > 0);
            tokio::select! {
                () = self.wake.notified() => {}
                () = tokio::time::sleep(rest) => {}
                Some(_) = closing.join_next() => {}
            }
        }
    }

    async fn close_over(&self, element: Element) {
        let Some(entry) = self.entry(element) else { return };
        if entry.due() > BootMicros::now() {
            return;
        }
        let record = Record { phase: Phase::Closing, ..entry.record };
        if let Err(error) = self.close(record).await {
            let text = with_causes(&error);
            if entry.failures == 0 {
                tracing::error!("{text}; it may still be open, and closing it is tried again");
            } else {
                tracing::debug!("{text}");
            }
        } else if entry.failures > 0 {
            tracing::info!("{element} is closed at last");
        }
    }

    /// Runs `close`; what has no record is not open. The caller has the turn.
    async fn close(&self, mut record: Record) -> Result<(), GateError> {
        // If it can't be written now, its old record says the same in time.
        self.keep(&record).unwrap_or_else(|_| self.forget_nothing(record.clone()));
        let closed = self.run(Action::Close, &record, 0).await;
        let closed = closed.and_then(|()| Ok(self.ledger.forget(record.element)?));
        match &closed {
            Ok(()) => drop(self.entries().remove(&record.element)),
            Err(error) => {
                record.failure = Some(with_causes(error));
                let _ = self.keep(&record);
                if let Some(entry) = self.entries().get_mut(&record.element) {
                    let rest = Duration::from_secs(1 << entry.failures.min(6)).min(LONGEST_REST);
                    entry.failures = entry.failures.saturating_add(1);
                    entry.again = BootMicros::now().saturating_add(rest);
                }
            }
        }
        self.tried.notify_waiters();
        closed
    }

    async fn run(&self, action: Action, record: &Record, seconds: u32) -> Result<(), GateError> {
        let Record { element, target, .. } = *record;
        let line = match action {
            Action::Open | Action::Refresh => &self.settings.open,
            Action::Close => &self.settings.close,
        };
        judge_program(line.program()).map_err(GateError::HookProgram)?;
        let occasion = Occasion { action, element, target, seconds };
        let ran = run(line, &occasion, self.settings.time_limit, |running| {
            // If it can't be written, the process that comes after this one can't know of it.
            let _ = self.ledger.note(&Record { running: Some(running), ..record.clone() });
        })
        .await;
        ran.map_err(|source| GateError::Hook { action: action.as_str(), element, source })
    }

    /// Writes a record and remembers it.
    fn keep(&self, record: &Record) -> Result<(), GateError> {
        self.ledger.write(record)?;
        self.forget_nothing(record.clone());
        Ok(())
    }

    fn forget_nothing(&self, record: Record) {
        let mut entries = self.entries();
        match entries.get_mut(&record.element) {
            Some(entry) if record.phase == Phase::Closing => entry.record = record,
            _ => drop(entries.insert(record.element, Entry::new(record))),
        }
    }

    fn entry(&self, element: Element) -> Option<Entry> {
        self.entries().get(&element).cloned()
    }

    async fn turn(&self, element: Element) -> OwnedMutexGuard<()> {
        self.turn_of(element).lock_owned().await
    }

    fn turn_of(&self, element: Element) -> Arc<Mutex<()>> {
        let mut turns = self.turns();
        if let Some(turn) = turns.get(&element).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        turns.insert(element, Arc::downgrade(&turn));
        turn
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<Element, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turns(&self) -> MutexGuard<'_, HashMap<Element, Weak<Mutex<()>>>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a command took longer than it may.
pub(super) const fn hangs(error: &GateError) -> bool {
    matches!(error, GateError::Hook { source: ProcessError::TimeLimit { .. }, .. })
}

/// Whole seconds, rounded up.
fn seconds_until(until: BootMicros) -> u32 {
    let left = until.since(BootMicros::now());
    let whole = left.as_secs().saturating_add(u64::from(left.subsec_nanos() > 0));
    u32::try_from(whole).unwrap_or(u32::MAX).max(1)
}
