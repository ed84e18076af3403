//! Keeps the kernel at what the table of grants says: after every change, after an error, and
//! after somebody else has flushed the gate.

use super::Authorizer;
use crate::audit::Event;
use crate::causes::with_causes;
use crate::clock::BootMicros;
use crate::gate::{Change, Gate, GateError, InstallReport, LiveElement, Plan};
use crate::grants::{Grant, GrantStore, GrantTable};
use crate::replay_store::ReplayStore;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How many elements the kernel has to hold at least: for whoever watches that it does.
#[derive(Debug, Clone, Default)]
pub struct Needed(Arc<AtomicU64>);

impl Needed {
    /// The number at this moment.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn at_most(&self, elements: u64) {
        self.0.fetch_min(elements, Ordering::Relaxed);
    }

    /// Only for what the kernel is known to hold.
    pub(crate) fn exactly(&self, elements: u64) {
        self.0.store(elements, Ordering::Relaxed);
    }
}

/// What a restoration did.
#[derive(Debug, Default)]
pub struct Restored {
    /// What the installation found and did.
    pub report: InstallReport,
    /// How many grants the kernel had lost.
    pub grants: u64,
}

impl Restored {
    /// Whether anything was missing.
    pub const fn mended(&self) -> bool {
        self.report.changed || self.grants > 0
    }
}

impl<G: Gate, R: ReplayStore, L: GrantStore> Authorizer<G, R, L> {
    /// How many elements the kernel has to hold.
    pub fn needed(&self) -> Needed {
        self.needed.clone()
    }

    /// Brings the gate to a new plan; grants stay. If there was no gate, those that still have
    /// time are put back.
    pub async fn install(&mut self, plan: &Plan) -> Result<InstallReport, GateError> {
        let report = self.gate.install(plan).await?;
        if !self.stands {
            self.stands = true;
            self.reconcile().await;
        }
        Ok(report)
    }

    /// Puts back what somebody else has taken from the gate, the live grants with what is left of
    /// their time included.
    ///
    /// # Errors
    ///
    /// The rules are not there again. Grants that could not be put back are no error: that is
    /// tried again at every tick.
    pub async fn restore(&mut self, plan: &Plan) -> Result<Restored, GateError> {
        let report = self.gate.install(plan).await?;
        self.expire(BootMicros::now()).await;
        let grants = self.reconcile().await;
        Ok(Restored { report, grants })
    }

    /// Whether so many elements in the kernel are too few for the live grants. Those for one
    /// connection that are used up by now are over.
    pub async fn misses(&mut self, elements: u64) -> bool {
        self.expire(BootMicros::now()).await;
        let is_short = |grants: &GrantTable| elements < count(grants.elements());
        if is_short(&self.grants) && self.grants.has_single() && self.stands {
            match self.gate.snapshot().await {
                Ok(live) => self.end_used(BootMicros::now(), &live),
                Err(error) => tracing::debug!("{}", with_causes(&error)),
            }
        }
        is_short(&self.grants)
    }

    /// Ends what was for one connection and is gone from the kernel, which admits this right now.
    pub(super) fn end_used(&mut self, now: BootMicros, live: &[LiveElement]) {
        let used = self.grants.take_used(now, live);
        if used.is_empty() {
            return;
        }
        self.needed.at_most(count(self.grants.elements()));
        for grant in &used {
            self.tell(grant, Event::Used(&grant.ports));
        }
        let (mut left, mut gone) = (Vec::new(), Vec::new());
        for Grant { key, .. } in &used {
            match self.grants.get(key) {
                Some(grant) => left.push(grant.clone()),
                None => gone.push(key.clone()),
            }
        }
        self.log_grants(&left, &gone);
        // Its connection lives on.
        self.former.remember(now, used);
    }

    /// Takes the gate away. The grants stay in the table, for when it comes back.
    ///
    /// # Errors
    ///
    /// Something of it is still there.
    pub async fn remove_gate(&mut self) -> Result<(), GateError> {
        // Also if it fails: what is left of it can't be relied on.
        self.stands = false;
        self.needed.exactly(0);
        self.gate.remove().await
    }

    /// Has the kernel make these changes, after which it holds what the table says.
    pub(super) async fn apply(&mut self, changes: &[Change]) -> Result<(), GateError> {
        if !self.stands {
            return Ok(());
        }
        let after = count(self.grants.elements());
        self.needed.at_most(after);
        self.gate.apply(changes).await?;
        self.needed.exactly(after);
        Ok(())
    }

    /// Makes the kernel admit what the table says; says how many live grants it had lost.
    pub(super) async fn reconcile(&mut self) -> u64 {
        let now = BootMicros::now();
        let changes = if self.stands {
            match self.gate.snapshot().await {
                Ok(live) => {
                    self.end_used(BootMicros::now(), &live);
                    self.grants.reconcile(now, &live)
                }
                Err(error) => {
                    self.unreconciled = true;
                    tracing::error!("the gate can't be read: {}", with_causes(&error));
                    return 0;
                }
            }
        } else {
            Vec::new()
        };
        let lost = count(self.grants.needing(&changes));
        match self.apply(&changes).await {
            Ok(()) => {
                self.unreconciled = false;
                for (grant, why) in std::mem::take(&mut self.half_revoked) {
                    self.tell_revoked(&[grant], why);
                }
                lost
            }
            Err(error) => {
                self.unreconciled = true;
                tracing::error!("the gate can't be mended: {}", with_causes(&error));
                0
            }
        }
    }
}

fn count(elements: usize) -> u64 {
    u64::try_from(elements).unwrap_or(u64::MAX)
}
