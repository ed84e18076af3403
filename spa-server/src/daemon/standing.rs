//! Whether there is a gate: put back when somebody has flushed it, taken away when an
//! administrator wants it.

use super::cutter::Which;
use super::watch::{Alarm, Known};
use super::{Daemon, start};
use crate::audit::{self, Restoration};
use crate::causes::with_causes;
use crate::clock::{BootMicros, Now};
use crate::config::Settings;
use crate::control::ControlResponse;
use crate::gate::{Guarded, InstallReport, Plan};
use spa_proto::UnixMicros;
use std::sync::Arc;

/// Whether there is to be a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// There is, and it is put back whenever it is gone.
    Guards,
    /// An administrator has taken it away.
    Removed,
}

impl Standing {
    /// What there is to say of a gate that isn't there.
    pub(super) const fn absence(self) -> Option<&'static str> {
        match self {
            Self::Guards => None,
            Self::Removed => Some(
                "removed by an administrator: nothing is hidden and nothing opens; `spa-server gate install` puts it back",
            ),
        }
    }
}

/// What there is to tell of restorations.
#[derive(Debug, Default)]
pub(super) struct Restorations {
    pub(super) count: u64,
    pub(super) last: Option<UnixMicros>,
    lines: audit::Restorations,
}

impl Daemon {
    /// The watch has found something missing.
    pub(super) async fn alarmed(&mut self, alarm: Alarm) {
        if self.standing != Standing::Guards {
            return;
        }
        if alarm.missing.is_empty() && !self.authorizer.misses(alarm.elements).await {
            return;
        }
        let plan = self.settings.gate_plan();
        match self.authorizer.restore(&plan).await {
            Ok(restored) => {
                self.watch.tell(None);
                tracing::debug!(?restored, ?alarm, "the gate was restored");
                if restored.mended() {
                    let (missing, cut) = (alarm.missing(), self.cut_strangers(&plan).await);
                    self.restored.count = self.restored.count.saturating_add(1);
                    self.restored.last = Some(Now::read().realtime);
                    let grants = restored.grants;
                    self.restored.lines.note(Restoration { missing, grants, cut });
                    self.tell_restorations();
                }
            }
            Err(error) => {
                let missing = alarm.missing();
                self.watch.tell(Some(format!(
                    "{missing}; it can't be put back, which is tried every second: {}",
                    with_causes(&error)
                )));
                self.unmended = Some(alarm);
            }
        }
    }

    /// Has the connections ended that came while the gate was away, as far as that can be told;
    /// says how many.
    async fn cut_strangers(&self, plan: &Plan) -> u64 {
        self.cutter.refuse_again();
        let Some(Known { since, connections: known }) = self.watch.known() else { return 0 };
        let guarded: Arc<[Guarded]> = plan.guarded.clone().into();
        let strangers = match self.watch.list(Arc::clone(&guarded)).await {
            Ok(found) => self.authorizer.strangers(plan, &found, &known, since),
            Err(error) => {
                let error = with_causes(&error);
                tracing::error!("who came in while the gate was away is not known: {error}");
                return 0;
            }
        };
        let count = u64::try_from(strangers.len()).unwrap_or(u64::MAX);
        if count > 0 {
            self.cutter.cut(Which::Those(strangers), guarded, None);
        }
        count
    }

    /// Those whose packets are refused, and who have a grant now, may come again.
    pub(super) fn release_granted(&self) {
        let refused = self.cutter.refused();
        if !refused.is_empty() {
            self.cutter.release(self.authorizer.granted(&refused, BootMicros::now()));
        }
    }

    /// What is due every second.
    pub(super) async fn tend_gate(&mut self) {
        if let Some(alarm) = self.unmended.take() {
            self.alarmed(alarm).await;
        }
        self.tell_restorations();
        if let Some(Known { since, connections }) = self.watch.known() {
            self.authorizer.forget_former(since, &connections);
        }
    }

    fn tell_restorations(&mut self) {
        if let Some(line) = self.restored.lines.due(BootMicros::now()) {
            audit::write_restoration(&line);
        }
    }

    /// Brings the gate to these settings, if there is one, or if there is to be one from now on.
    pub(super) async fn put_up(
        &mut self,
        settings: &Settings,
        installs: bool,
    ) -> Result<InstallReport, String> {
        if let (Some(absence), false) = (self.standing.absence(), installs) {
            let warnings = vec![format!("the gate is {absence}")];
            return Ok(InstallReport { warnings, ..InstallReport::default() });
        }
        let plan = settings.gate_plan();
        let installed = self.authorizer.install(&plan).await;
        let report = installed.map_err(|error| with_causes(&error))?;
        start::tell(&report);
        self.stand(Standing::Guards);
        self.watch.installed(&plan);
        self.cutter.refuse_again();
        Ok(report)
    }

    /// Takes the gate away, and leaves it away.
    pub(super) async fn remove_gate(&mut self) -> ControlResponse {
        self.stand(Standing::Removed);
        self.cutter.forget();
        match self.authorizer.remove_gate().await {
            Ok(()) => {
                tracing::warn!("the gate is {}", Standing::Removed.absence().unwrap_or_default());
                ControlResponse::Done
            }
            Err(error) => ControlResponse::error(&with_causes(&error)),
        }
    }

    /// From now on that is how it is to be.
    pub(super) fn stand(&mut self, standing: Standing) {
        self.standing = standing;
        // Whoever waits for it to be mended is answered by that.
        self.unmended = None;
        self.watch.rest(standing != Standing::Guards);
    }
}
