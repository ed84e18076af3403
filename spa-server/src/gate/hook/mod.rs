//! The back-end for every other firewall: commands of the administrator's that open and close.
//!
//! It guards nothing by itself: what refuses those who have no grant is the firewall that the
//! commands speak to. Nobody but this process closes what they opened; so what is open is on the
//! disk before it is, and a process that dies leaves it to the next one.

mod command;
mod keeper;
mod ledger;
mod run;

pub use command::{Action, CommandLine, CommandLineError};
pub use ledger::LedgerError;

use super::bounds::{check_change, check_plan};
use super::types::{Backend, Change, Cut, Doubt, Element, InstallReport, LiveElement, Look, Plan};
use super::{Gate, GateError};
use crate::config::judge_program;
use crate::replay_store::BootId;
use crate::service::{Connections, Target};
use keeper::Keeper;
use ledger::Hold;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, Semaphore};
use tokio::task::{AbortHandle, JoinError, JoinSet};

/// Commands that knocks wait for, at a time.
const AT_ONCE: usize = 8;
/// How long an installation waits for what an earlier process has left to be closed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Which commands open and close, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookSettings {
    /// Lets a source in.
    pub open: CommandLine,
    /// Lets it in no longer; also run for what may not have been opened.
    pub close: CommandLine,
    /// Whether `open` is run again when an open element gets another time.
    pub refresh: bool,
    /// How long a command may take before it is killed.
    pub time_limit: Duration,
    /// Where is kept what is open.
    pub directory: PathBuf,
}

/// Commands of the administrator's.
#[derive(Debug)]
pub struct HookGate {
    settings: HookSettings,
    keeper: Arc<Keeper>,
    /// Held by who changes anything.
    state: Mutex<State>,
    /// Whether it is this process that looks after what is open.
    is_held: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    held: Option<Held>,
    plan: Option<Plan>,
}

#[derive(Debug)]
struct Held {
    hold: Hold,
    tending: AbortHandle,
    /// What of the files can't be judged.
    damaged: Vec<PathBuf>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.tending.abort();
    }
}

impl HookGate {
    /// A gate by these commands. Nothing is run yet.
    ///
    /// # Errors
    ///
    /// The kernel doesn't say which run of the machine this is.
    pub fn new(settings: HookSettings) -> Result<Self, GateError> {
        let boot_id = BootId::read()
            .map_err(|source| GateError::Read { path: BootId::SOURCE, source })?
            .to_string();
        let keeper = Arc::new(Keeper::new(settings.clone(), boot_id));
        Ok(Self { settings, keeper, state: Mutex::default(), is_held: AtomicBool::new(false) })
    }

    fn check(&self, plan: &Plan) -> Result<(), GateError> {
        check_plan(plan)?;
        if plan.guarded.iter().any(|guarded| guarded.connections == Connections::One) {
            return Err(GateError::Plan(
                "hook commands can't count connections; for connections = 1 take another backend",
            ));
        }
        for line in [&self.settings.open, &self.settings.close] {
            judge_program(line.program()).map_err(GateError::HookProgram)?;
        }
        Ok(())
    }

    /// Takes over what is open, if this process hasn't yet; says whether there was nothing at all.
    fn take_over(&self, state: &mut State) -> Result<bool, GateError> {
        if state.held.is_some() && self.keeper.ledger.exists() {
            return Ok(false);
        }
        let (hold, is_new) = self.keeper.ledger.hold()?;
        if let Some(held) = &mut state.held {
            // Somebody has deleted the directory; what was in it is known here.
            held.hold = hold;
            self.keeper.write_anew()?;
            return Ok(true);
        }
        let damaged = self.keeper.load()?;
        let tending = tokio::spawn(Arc::clone(&self.keeper).tend()).abort_handle();
        state.held = Some(Held { hold, tending, damaged });
        self.is_held.store(true, Ordering::Release);
        Ok(is_new)
    }

    fn report(&self, plan: &Plan, damaged: &[PathBuf]) -> Result<InstallReport, GateError> {
        let mut report = InstallReport::default();
        if !plan.always_admit.is_empty() {
            report.warnings.push(
                "always-admit says nothing to hook commands; let these networks in by the firewall that the commands change".to_owned(),
            );
        }
        if plan.trial_seconds.is_some() {
            report
                .warnings
                .push("hook commands refuse nothing that a trial could stop refusing".to_owned());
        }
        report.warnings.extend(damaged.iter().map(|path| {
            format!(
                "{} says nothing that can be understood; what it stands for may be open: close it by hand and delete the file",
                path.display()
            )
        }));
        if self.keeper.ledger.exists() {
            let is_held = self.is_held.load(Ordering::Acquire);
            report.warnings.extend(self.keeper.failures(is_held)?);
        }
        Ok(report)
    }
}

impl Gate for HookGate {
    fn backend(&self) -> Backend {
        Backend::Hook
    }

    async fn install(&self, plan: &Plan) -> Result<InstallReport, GateError> {
        self.check(plan)?;
        let mut state = self.state.lock().await;
        let is_new = self.take_over(&mut state)?;
        // What takes longer is closed all the same, but nobody can knock meanwhile.
        let _ = tokio::time::timeout(PATIENCE, self.keeper.settle()).await;
        state.plan = Some(plan.clone());
        let damaged = state.held.as_ref().map_or(&[][..], |held| &held.damaged);
        let report = self.report(plan, damaged)?;
        Ok(InstallReport { changed: is_new, ..report })
    }

    /// Elements are changed side by side, but each in the order of its changes.
    async fn apply(&self, changes: &[Change]) -> Result<(), GateError> {
        let state = self.state.lock().await;
        let plan = state.plan.as_ref().ok_or(GateError::NotInstalled)?;
        changes.iter().try_for_each(|change| check_change(plan, change))?;
        let mut by_element: BTreeMap<Element, Vec<(Change, Target)>> = BTreeMap::new();
        for change in changes {
            let element = change.element();
            let target = plan.guarded_at(element.ports).map_or(Target::Here, |one| one.target);
            by_element.entry(element).or_default().push((*change, target));
        }
        let work = by_element.into_iter().map(|(element, changes)| {
            let keeper = Arc::clone(&self.keeper);
            (element, async move { carry_out(&keeper, changes).await })
        });
        side_by_side(work).await
    }

    async fn snapshot(&self) -> Result<Vec<LiveElement>, GateError> {
        if !self.keeper.ledger.exists() {
            return Err(GateError::NotInstalled);
        }
        Ok(self.keeper.live(self.is_held.load(Ordering::Acquire))?)
    }

    async fn examine(&self, plan: &Plan) -> Result<InstallReport, GateError> {
        self.check(plan)?;
        let is_there = self.keeper.ledger.exists();
        let damaged = if is_there { self.keeper.ledger.read()?.1 } else { Vec::new() };
        let report = self.report(plan, &damaged)?;
        Ok(InstallReport { changed: !is_there, ..report })
    }

    /// Nothing tells.
    async fn disturbed(&self) -> Doubt {
        std::future::pending().await
    }

    async fn look(&self, _doubt: Doubt) -> Result<Look, GateError> {
        if !self.is_held.load(Ordering::Acquire) {
            return Err(GateError::NotInstalled);
        }
        let is_there = self.keeper.ledger.exists();
        let missing =
            (!is_there).then(|| format!("the directory {}", self.settings.directory.display()));
        let elements = u64::try_from(self.keeper.elements().len()).unwrap_or(u64::MAX);
        Ok(Look { missing: missing.into_iter().collect(), elements })
    }

    async fn sever(&self, _cuts: &[Cut]) -> Result<(), GateError> {
        Err(GateError::Unable { backend: Backend::Hook, what: "end established connections" })
    }

    async fn lift(&self) -> Result<(), GateError> {
        Ok(())
    }

    /// Closes everything.
    async fn remove(&self) -> Result<(), GateError> {
        let mut state = self.state.lock().await;
        if state.held.is_none() && !self.keeper.ledger.exists() {
            return Ok(());
        }
        self.take_over(&mut state)?;
        let work = self.keeper.elements().into_iter().map(|element| {
            let keeper = Arc::clone(&self.keeper);
            (element, async move { keeper.shut(element).await })
        });
        side_by_side(work).await?;
        state.plan = None;
        if let Some(held) = state.held.take() {
            self.is_held.store(false, Ordering::Release);
            self.keeper.ledger.remove(&held.hold)?;
        }
        Ok(())
    }
}

/// Does what is to be done with each of these elements, some at a time. Once a command has hung,
/// those that have not begun are not begun: each could take its time limit, and others wait.
async fn side_by_side<W>(work: impl Iterator<Item = (Element, W)>) -> Result<(), GateError>
where
    W: Future<Output = Result<(), GateError>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let hung = Arc::new(AtomicBool::new(false));
    let mut running = JoinSet::new();
    for (element, work) in work {
        let (places, hung) = (Arc::clone(&places), Arc::clone(&hung));
        running.spawn(async move {
            let Ok(_place) = places.acquire().await else { return Ok(()) };
            if hung.load(Ordering::Acquire) {
                return Err(GateError::HookHung(element));
            }
            let done = work.await;
            if done.as_ref().is_err_and(keeper::hangs) {
                hung.store(true, Ordering::Release);
            }
            done
        });
    }
    let mut failures = Vec::new();
    while let Some(done) = running.join_next().await {
        failures.extend(outcome(done).err());
    }
    // What hung is why others were not begun.
    failures.sort_by_key(|error| matches!(error, GateError::HookHung(_)));
    failures.into_iter().next().map_or(Ok(()), Err)
}

/// What a task has come to.
fn outcome(joined: Result<Result<(), GateError>, JoinError>) -> Result<(), GateError> {
    joined.unwrap_or_else(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        // Nobody has cancelled it; if so, its element is left to be closed.
        Err(_) => Ok(()),
    })
}

async fn carry_out(keeper: &Keeper, changes: Vec<(Change, Target)>) -> Result<(), GateError> {
    for (change, target) in changes {
        match change {
            Change::Admit { element, seconds } => keeper.admit(element, target, seconds).await?,
            Change::Withdraw { element } => keeper.withdraw(element).await?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
