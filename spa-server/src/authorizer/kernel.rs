//! Keeps the kernel at what the table of grants says: after every change, after an error, and
//! after somebody else has flushed the gate.

use super::Authorizer;
use crate::audit::Event;
use crate::causes::with_causes;
use crate::clock::BootMicros;
use crate::gate::{Change, Element, Gate, GateError, InstallReport, LiveElement, Plan};
use crate::grants::{Differences, Grant, GrantStore};
use crate::replay_store::ReplayStore;

/// What a restoration did.
#[derive(Debug, Default)]
pub struct Restored {
    /// What the installation found and did.
    pub report: InstallReport,
    /// In what the kernel differed from the live grants.
    pub differences: Differences,
}

impl Restored {
    /// Whether anything was not as it had to be.
    pub fn mended(&self) -> bool {
        self.report.changed || !self.differences.is_none()
    }
}

impl<G: Gate, R: ReplayStore, L: GrantStore> Authorizer<G, R, L> {
    /// Brings the gate to a new plan; grants stay. If there was no gate, those that still have
    /// time are put back.
    pub async fn install(&mut self, plan: &Plan) -> Result<InstallReport, GateError> {
        let report = self.gate.install(plan).await?;
        // It may have moved elements to where the new plan looks for them, which takes the second of
        // rounding anew.
        self.rearranged |= report.changed;
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
        let differences = self.reconcile().await;
        Ok(Restored { report, differences })
    }

    /// Ends what was for one connection and is gone from the kernel, which admits this right now.
    pub(super) fn end_used(&mut self, now: BootMicros, live: &[LiveElement]) {
        let used = self.grants.take_used(now, live);
        if used.is_empty() {
            return;
        }
        self.needed.becomes(count(self.grants.elements()));
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
        let removed = self.gate.remove().await;
        if !matches!(removed, Err(GateError::NotOrdered(_))) {
            // Also if it failed: what is left of it can't be relied on.
            self.stands = false;
            self.needed.is(0);
        }
        removed
    }

    /// Has the kernel make these changes, after which it holds what the table says.
    pub(super) async fn apply(&mut self, changes: &[Change]) -> Result<(), GateError> {
        if !self.stands {
            return Ok(());
        }
        let after = count(self.grants.elements());
        self.needed.becomes(after);
        self.gate.apply(changes).await?;
        self.needed.is(after);
        Ok(())
    }

    /// Makes the kernel admit what the table says for a reason of our own; what it admitted beyond
    /// that is then somebody else's.
    pub(super) async fn renew(&mut self) {
        let may_be_ours = self.unreconciled;
        let Differences { surplus, .. } = self.reconcile().await;
        if !may_be_ours {
            self.foreign.extend(surplus);
        }
    }

    /// What somebody else had put beside the live grants, and was withdrawn by the way.
    pub fn take_foreign(&mut self) -> Vec<Element> {
        std::mem::take(&mut self.foreign)
    }

    /// Makes the kernel admit what the table says; says in what it was found to differ, also where
    /// it could not be mended, which is logged and tried again every second.
    pub(super) async fn reconcile(&mut self) -> Differences {
        let (differences, mended) = self.try_to_reconcile().await;
        if let Err(error) = mended {
            tracing::error!("the gate can't be mended: {}", with_causes(&error));
        }
        differences
    }

    /// The same, for whoever tells of the error himself.
    pub(super) async fn try_to_reconcile(&mut self) -> (Differences, Result<(), GateError>) {
        let mut differences = Differences::default();
        let changes = if self.stands {
            let asked = BootMicros::now();
            let live = match self.gate.snapshot().await {
                Ok(live) => live,
                Err(error) => {
                    self.unreconciled = true;
                    return (differences, Err(error));
                }
            };
            let answered = BootMicros::now();
            self.end_used(answered, &live);
            differences = self.grants.differences(asked, answered, &live);
            self.grants.reconcile(answered, &live)
        } else {
            Vec::new()
        };
        let mended = self.apply(&changes).await;
        self.unreconciled = mended.is_err();
        if mended.is_ok() {
            self.rearranged = false;
            for (grant, why) in std::mem::take(&mut self.half_revoked) {
                self.tell_revoked(&[grant], why);
            }
        }
        (differences, mended)
    }
}

pub(super) fn count(elements: usize) -> u64 {
    u64::try_from(elements).unwrap_or(u64::MAX)
}
