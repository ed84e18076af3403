//! Sources for which nothing is opened for a time: put in force, ended, kept over a restart.

use super::Daemon;
use super::cutter::Which;
use crate::audit;
use crate::authorizer::{SOURCE_REFUSED, Selection, Sessions};
use crate::causes::with_causes;
use crate::clock::{BootMicros, Now};
use crate::config::{Settings, format_duration};
use crate::control::{ControlResponse, RefusedView};
use crate::refused_sources::{LONGEST, RefusedSources, RefusedSourcesFile, SHORTEST, judge};
use crate::replay_store::BootId;
use crate::source::Source;
use ipnet::IpNet;
use std::time::Duration;
use tokio::sync::oneshot;

impl Daemon {
    /// Opens nothing for this source from now on, closes what it has, and ends its connections if
    /// that is wanted, for which nothing else has to wait.
    pub(super) async fn refuse(
        &mut self,
        source: Source,
        length: Duration,
        cut: bool,
        answer: oneshot::Sender<ControlResponse>,
    ) {
        let refused = self.refuse_from_now_on(source, length).await;
        let response = match refused {
            Ok(response) => response,
            Err(why) => ControlResponse::Error { message: why },
        };
        let ControlResponse::Refused { seconds, grants, cut: None, trouble } = response else {
            // Whoever asked may have gone.
            let _ = answer.send(response);
            return;
        };
        if !cut {
            let _ = answer.send(ControlResponse::Refused { seconds, grants, cut: None, trouble });
            return;
        }
        let (done, when_done) = oneshot::channel();
        let which = Which::Of(Sessions::from_source(source));
        let guarded = self.settings.gate_plan().guarded.into();
        let granted = self.authorizer.granted(BootMicros::now());
        self.cutter.cut(which, guarded, granted, Some(done));
        tokio::spawn(async move {
            let cut = when_done.await.ok();
            let _ = answer.send(ControlResponse::Refused { seconds, grants, cut, trouble });
        });
    }

    /// The list first: what is revoked is not opened again in between.
    async fn refuse_from_now_on(
        &mut self,
        source: Source,
        length: Duration,
    ) -> Result<ControlResponse, String> {
        if !(SHORTEST..=LONGEST).contains(&length) {
            return Err(format!(
                "an address is refused for {} to {}",
                format_duration(SHORTEST),
                format_duration(LONGEST)
            ));
        }
        judge(source, &self.settings.gate.always_admit).map_err(|error| error.to_string())?;
        let Now { realtime, boottime } = Now::read();
        let until = boottime.saturating_add(length);
        let refused = self.judge.lock().refused.refuse(source, until, boottime);
        let left = refused.map_err(|error| error.to_string())?.since(boottime);
        let trouble = self.keep_refused();
        let selection = Selection { source: Some(source), ..Selection::default() };
        let revoked = self.authorizer.revoke(&selection, SOURCE_REFUSED).await;
        let grants = revoked.as_ref().map_or(0, Vec::len);
        audit::write_source_refused(source, left, realtime.saturating_add(left), grants);
        let gone = revoked.map_err(|error| {
            format!(
                "knocks from {source} are refused, but the kernel did not take that what is open is closed, which is tried every second; nothing was cut: repeat it: {}",
                with_causes(&error)
            )
        })?;
        let left_behind = self.leftover().map(|left| format!("the gate is gone, but {left}"));
        Ok(ControlResponse::Refused {
            seconds: whole_seconds(left),
            grants: gone.iter().map(|grant| self.authorizer.view(grant, boottime)).collect(),
            cut: None,
            trouble: trouble.or(left_behind),
        })
    }

    pub(super) fn refused_sources(&self) -> ControlResponse {
        let now = BootMicros::now();
        let judge = self.judge.lock();
        let view = |(source, until): (Source, BootMicros)| RefusedView {
            source,
            seconds_left: whole_seconds(until.since(now)),
        };
        ControlResponse::RefusedSources(judge.refused.iter(now).map(view).collect())
    }

    pub(super) fn lift_refusal(&mut self, source: Source) -> ControlResponse {
        let now = BootMicros::now();
        let (was_refused, still) = {
            let mut judge = self.judge.lock();
            let was_refused = judge.refused.lift(source, now);
            let mut still = judge.refused.iter(now).map(|(by, _)| by);
            (was_refused, still.find(|by| by.covers(source)))
        };
        let mut trouble = None;
        if was_refused {
            trouble = self.keep_refused();
            audit::write_source_lifted(source, "by the administrator");
        }
        ControlResponse::Lifted { was_refused, still, trouble }
    }

    /// By a new configuration these are admitted without a knock.
    pub(super) fn lift_who_needs_no_knock(&mut self, always_admit: &[IpNet]) {
        let lifted = self.judge.lock().refused.lift_all_of(always_admit);
        if lifted.is_empty() {
            return;
        }
        // It is in the log if that fails, and the next start lifts them again.
        let _ = self.keep_refused();
        tell_lifted(&lifted);
    }

    /// Has a restart know who is refused; says what is wrong if it will not.
    fn keep_refused(&self) -> Option<String> {
        let refused = self.judge.lock().refused.clone();
        self.refused_file.write(&refused).err().map(|error| {
            let trouble = format!(
                "a restart of the daemon will not know who is refused now: {}",
                with_causes(&error)
            );
            tracing::error!("{trouble}");
            trouble
        })
    }
}

/// Who was refused by the daemon before this one, and is still. Who gets in has to be mended by
/// hand, who stays out for want of a file does not: the daemon starts in any case.
pub(super) fn load(
    settings: &Settings,
    boot: BootId,
    now: BootMicros,
) -> (RefusedSourcesFile, RefusedSources) {
    let file = RefusedSourcesFile::new(&settings.state_directory, boot);
    let mut refused = file.read(now).unwrap_or_else(|error| {
        tracing::error!(
            "it is not known who was refused, so nobody is; refuse them again, as fail2ban does when it is restarted: {}",
            with_causes(&error)
        );
        RefusedSources::default()
    });
    tell_lifted(&refused.lift_all_of(&settings.gate.always_admit));
    (file, refused)
}

fn tell_lifted(lifted: &[Source]) {
    for source in lifted {
        audit::write_source_lifted(*source, "gate.always-admit has it");
    }
}

/// Rounded up.
fn whole_seconds(time: Duration) -> u64 {
    time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0))
}
