//! Judges what the worker asks of the helper: it may have been taken over.
//!
//! What is judged against is the configuration that the helper has read itself, and the last word of
//! root's. It touches no gate.

use super::ordered::{OrderFile, Ordered};
use super::permits::Permits;
use super::{HelperAnswer, HelperRequest};
use crate::causes::with_causes;
use crate::clock::{BootMicros, Now};
use crate::config::{Settings, client_rules};
use crate::gate::{Change, Connection, Cut, Element, GateAnswer, GateRequest, Guarded, Plan};
use crate::gate_record::GateRecord;
use crate::trial::TrialState;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How much later than the administrator the worker may think that a trial ends: it reads the
/// configuration in between.
const SLACK: Duration = Duration::from_secs(120);

/// How many connections are remembered that were found.
const MOST_FOUND: usize = 262_144;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Warden {
    config: PathBuf,
    /// By the configuration that this process began with: what of it holds until the next start.
    knock_ports: Vec<u16>,
    orders: OrderFile,
    record: Arc<GateRecord>,
    started: BootMicros,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What the gate is to guard; never on trial.
    plan: Plan,
    /// By a configuration that was read since, until it is installed.
    next: Option<Plan>,
    /// All that was ever to be guarded: connections to it are ours to end.
    guarded: HashSet<Guarded>,
    /// What clients may have by the configuration that the worker began with, or has told of last.
    in_force: Reading,
    /// By one that was read since.
    newer: Option<Permits>,
    /// Whether this process has put up a gate.
    has_installed: bool,
    /// When it last put up one that stands for good.
    for_good: Option<BootMicros>,
    /// Connections that it has found itself, of which the worker was told.
    found: HashSet<Cut>,
}

impl State {
    fn seconds(&mut self, element: Element, wanted: u32) -> Option<u32> {
        let newer = self.newer.as_ref().and_then(|newer| newer.seconds(element, wanted));
        newer.max(self.in_force.done().seconds(element, wanted))
    }

    fn expect(&mut self, plan: Plan) {
        self.guarded.extend(plan.guarded.iter().copied());
        self.next = (plan != self.plan).then_some(plan);
    }

    fn judge_guarded(&self, guarded: &[Guarded]) -> Result<(), Refusal> {
        match guarded.iter().find(|guarded| !self.guarded.contains(guarded)) {
            None => Ok(()),
            Some(stranger) => Err(format!("no service has the ports {}", stranger.ports)),
        }
    }

    /// Whether the trial that was ordered then has ended in a gate that stands for good.
    fn is_over(&self, ordered: BootMicros) -> bool {
        self.for_good.is_some_and(|since| since >= ordered)
    }

    fn judge_cuts(&self, cuts: &[Cut]) -> Result<(), Refusal> {
        // Where a connection is answered follows from nothing that a configuration says: a container's
        // port may be any.
        match cuts.iter().find(|cut| !self.found.contains(cut)) {
            None => Ok(()),
            Some(Cut { connection: Connection { peer, local, .. }, .. }) => {
                Err(format!("the gate helper has found no connection of {peer} to {local}"))
            }
        }
    }
}

/// A hundred thousand files take a while.
#[derive(Debug)]
enum Reading {
    On(JoinHandle<Permits>),
    Done(Permits),
}

/// Why something is not done.
type Refusal = String;

impl Warden {
    pub(super) fn new(
        config: &Path,
        settings: Settings,
        orders: OrderFile,
        record: Arc<GateRecord>,
    ) -> Self {
        let (plan, knock_ports) = (settings.gate_plan(), settings.knock_ports.clone());
        // Not behind all others: the first knock may wait for it.
        let reading = std::thread::Builder::new().name("permits".into());
        let permits = reading
            .spawn(move || permits(&settings).unwrap_or_default())
            .map_or_else(|_| Reading::Done(Permits::default()), Reading::On);
        let guarded = plan.guarded.iter().copied().collect();
        Self {
            config: config.into(),
            knock_ports,
            orders,
            record,
            started: BootMicros::now(),
            state: Mutex::new(State {
                plan,
                next: None,
                guarded,
                in_force: permits,
                newer: None,
                has_installed: false,
                for_good: None,
                found: HashSet::new(),
            }),
        }
    }

    /// Judges a request; what is too much of a time is cut, and what nobody may have taken out, which the
    /// other value tells.
    pub(super) fn judge(
        &self,
        request: HelperRequest,
    ) -> Result<(HelperRequest, Option<Refusal>), Refusal> {
        if let HelperRequest::Gate(GateRequest::Apply(mut changes)) = request {
            let refused = self.judge_changes(&mut changes);
            return Ok((HelperRequest::Gate(GateRequest::Apply(changes)), refused));
        }
        self.judge_whole(request).map(|request| (request, None))
    }

    fn judge_whole(&self, request: HelperRequest) -> Result<HelperRequest, Refusal> {
        match request {
            HelperRequest::Gate(request) => self.judge_gate(request).map(HelperRequest::Gate),
            HelperRequest::List { ref guarded, .. }
            | HelperRequest::Established { ref guarded, .. } => {
                self.state().judge_guarded(guarded).map(|()| request)
            }
            HelperRequest::End { ref guarded, ref established, .. } => {
                let state = self.state();
                state.judge_guarded(guarded)?;
                state.judge_cuts(established).map(|()| request)
            }
            HelperRequest::RemoveOthers if self.state().has_installed => Ok(request),
            HelperRequest::RemoveOthers => {
                Err("another gate is taken away only when this one stands".into())
            }
            HelperRequest::TalkedTo(_) | HelperRequest::Disturbed => Ok(request),
            HelperRequest::Reread => {
                self.reread();
                Ok(request)
            }
        }
    }

    /// Notes what came of what was asked.
    pub(super) fn note(&self, asked: &HelperRequest, answer: &HelperAnswer) {
        let mut state = self.state();
        match (asked, answer) {
            (
                HelperRequest::Gate(GateRequest::Install(plan)),
                HelperAnswer::Gate(GateAnswer::Installed(_)),
            ) => {
                state.has_installed = true;
                if plan.trial_seconds.is_none() {
                    state.for_good = Some(BootMicros::now());
                }
                let plan = for_good(plan);
                if state.next.as_ref() == Some(&plan) {
                    // Who goes back to the one before would guard less, perhaps.
                    state.plan = plan;
                    state.next = None;
                }
            }
            (HelperRequest::Established { .. }, HelperAnswer::Cuts(cuts)) => {
                if state.found.len() > MOST_FOUND {
                    // Whoever is still to be refused is found again.
                    state.found.clear();
                }
                state.found.extend(cuts);
            }
            _ => {}
        }
    }

    fn judge_gate(&self, request: GateRequest) -> Result<GateRequest, Refusal> {
        match request {
            GateRequest::Install(ref plan) | GateRequest::Examine(ref plan) => {
                self.judge_plan(plan)?;
                if let (GateRequest::Install(_), Some(seconds)) = (&request, plan.trial_seconds) {
                    self.judge_trial(seconds)?;
                }
                Ok(request)
            }
            GateRequest::Sever(ref cuts) => self.state().judge_cuts(cuts).map(|()| request),
            GateRequest::Remove => self.judge_removal().map(|()| request),
            // Changes are judged one by one.
            GateRequest::Apply(_)
            | GateRequest::Snapshot
            | GateRequest::Look(_)
            | GateRequest::Lift => Ok(request),
        }
    }

    fn judge_plan(&self, plan: &Plan) -> Result<(), Refusal> {
        let plan = for_good(plan);
        let is_known = || {
            let state = self.state();
            state.plan == plan || state.next.as_ref() == Some(&plan)
        };
        if is_known() {
            return Ok(());
        }
        self.read_clients();
        if is_known() {
            return Ok(());
        }
        Err(format!(
            "the gate helper reads another configuration in {} than the daemon did: has it changed meanwhile? Reload again",
            self.config.display()
        ))
    }

    fn judge_trial(&self, seconds: u32) -> Result<(), Refusal> {
        let ends = BootMicros::now().saturating_add(Duration::from_secs(seconds.into()));
        match self.orders.read() {
            Some(Ordered::Trial { at, until })
                if ends <= until.saturating_add(SLACK) && self.is_on_trial_since(at) =>
            {
                Ok(())
            }
            _ => Err("no administrator has ordered a trial of the gate, or not for so long; `spa-server gate install --trial` does".into()),
        }
    }

    /// Whether what was ordered then holds: no gate stands for good since, by this process or one before.
    fn is_on_trial_since(&self, ordered: BootMicros) -> bool {
        !self.state().is_over(ordered) && self.record.trial(BootMicros::now()) != TrialState::None
    }

    fn judge_removal(&self) -> Result<(), Refusal> {
        match self.orders.read() {
            // One that was given to the daemon before this one was for that one: it is up again.
            Some(Ordered::Removed { at }) if at >= self.started => Ok(()),
            Some(Ordered::Trial { at, until })
                if until <= BootMicros::now() && self.is_on_trial_since(at) =>
            {
                Ok(())
            }
            _ => Err("no administrator has ordered the gate to be removed; `spa-server gate remove` does, also without the daemon".into()),
        }
    }

    /// Takes out what nobody may have, and says so: the others are not to wait for it.
    fn judge_changes(&self, changes: &mut Vec<Change>) -> Option<Refusal> {
        let mut has_reread = false;
        let mut refused = None;
        changes.retain_mut(|change| {
            let Change::Admit { element, seconds } = change else { return true };
            let mut permitted = self.state().seconds(*element, *seconds);
            if permitted.is_none() && !std::mem::replace(&mut has_reread, true) {
                // The worker may know of a client that has come since.
                self.read_clients();
                permitted = self.state().seconds(*element, *seconds);
            }
            let Some(permitted) = permitted else {
                refused = Some(format!(
                    "the gate helper admits no {element}: no client of {} may have it",
                    self.config.display()
                ));
                return false;
            };
            *seconds = permitted;
            true
        });
        refused
    }

    /// The worker has another configuration in force.
    fn reread(&self) {
        let Some((permits, plan)) = self.read() else { return };
        let mut state = self.state();
        state.in_force = Reading::Done(permits);
        state.newer = None;
        state.expect(plan);
    }

    /// Looks who there is by now, and what is to be guarded. Those of the configuration that is in force
    /// stay: the worker may not have read this one, or have refused it.
    fn read_clients(&self) {
        let Some((permits, plan)) = self.read() else { return };
        let mut state = self.state();
        state.newer = Some(permits);
        state.expect(plan);
    }

    /// A configuration that can't be read changes nothing.
    fn read(&self) -> Option<(Permits, Plan)> {
        match Settings::load(&self.config) {
            Ok(settings) => {
                let settings = Settings { knock_ports: self.knock_ports.clone(), ..settings };
                Some((permits(&settings)?, settings.gate_plan()))
            }
            Err(error) => {
                tracing::debug!("the gate helper keeps to what it knows: {}", with_causes(&error));
                None
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing is ever half done behind it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reading {
    fn done(&mut self) -> &Permits {
        if let Self::On(_) = self {
            let reading = std::mem::replace(self, Self::Done(Permits::default()));
            if let Self::On(reading) = reading {
                // Who can read nothing admits nobody, and reads again.
                *self = Self::Done(reading.join().unwrap_or_default());
            }
        }
        match self {
            Self::Done(permits) => permits,
            Self::On(_) => unreachable!("it was waited for"),
        }
    }
}

fn permits(settings: &Settings) -> Option<Permits> {
    match client_rules(settings) {
        Ok(rules) => Some(Permits::new(&settings.services, rules, Now::realtime())),
        Err(problem) => {
            tracing::error!("the gate helper can't read who may open what: {problem}");
            None
        }
    }
}

fn for_good(plan: &Plan) -> Plan {
    Plan { trial_seconds: None, ..plan.clone() }
}

#[cfg(test)]
mod tests;
