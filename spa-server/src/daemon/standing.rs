//! Whether there is a gate: put back when somebody has flushed it, taken away when an
//! administrator wants it.

use super::watch::Alarm;
use super::{Daemon, start};
use crate::audit::{self, Restoration};
use crate::causes::with_causes;
use crate::clock::{BootMicros, Now};
use crate::config::Settings;
use crate::control::ControlResponse;
use crate::gate::InstallReport;
use spa_proto::UnixMicros;

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
                    let missing = alarm.missing();
                    self.restored.count = self.restored.count.saturating_add(1);
                    self.restored.last = Some(Now::read().realtime);
                    self.restored.lines.note(Restoration { missing, grants: restored.grants });
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

    /// What is due every second.
    pub(super) async fn tend_gate(&mut self) {
        if let Some(alarm) = self.unmended.take() {
            self.alarmed(alarm).await;
        }
        self.tell_restorations();
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
        Ok(report)
    }

    /// Takes the gate away, and leaves it away.
    pub(super) async fn remove_gate(&mut self) -> ControlResponse {
        self.stand(Standing::Removed);
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
