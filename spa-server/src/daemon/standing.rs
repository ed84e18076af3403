//! Whether there is a gate: put back when somebody has flushed it, taken away when an
//! administrator wants it.

use super::contest::Contest;
use super::cutter::Which;
use super::reload::Order;
use super::watch::{Alarm, Known};
use super::{Daemon, start};
use crate::audit::{self, By, Restoration, RestorationLine};
use crate::authorizer::Compared;
use crate::causes::with_causes;
use crate::clock::{BootMicros, Now};
use crate::config::Settings;
use crate::connections::ConnectionsError;
use crate::control::ControlResponse;
use crate::gate::{InstallReport, Mode, Plan};
use crate::grants::Differences;
use crate::trial::{NOT_CONFIRMED, Trial, plan_of, stands_anew, unconfirmable};
use spa_proto::UnixMicros;
use std::sync::Arc;
use std::time::Duration;

/// Whether there is to be a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// There is, and it is put back whenever it is gone.
    Guards,
    /// An administrator has taken it away.
    Removed,
    /// It was on trial, and nobody has confirmed it.
    Lapsed,
}

impl Standing {
    /// What there is to say of a gate that isn't there.
    pub(super) const fn absence(self) -> Option<&'static str> {
        match self {
            Self::Guards => None,
            Self::Removed => Some(
                "removed by an administrator: nothing is hidden and nothing opens; `spa-server gate install` puts it back",
            ),
            Self::Lapsed => Some(
                "gone, since its trial was not confirmed: nothing is hidden and nothing opens; `spa-server gate install --trial 60s` tries again, `spa-server gate install` puts it up for good",
            ),
        }
    }
}

/// What could not be taken away.
#[derive(Debug)]
pub(super) struct LeftBehind {
    why: String,
    /// When it is tried again.
    again: BootMicros,
    pause: Duration,
}

impl LeftBehind {
    /// At first after a second, later once a minute: each time takes several tools.
    const PAUSE: Duration = Duration::from_secs(1);
    const LONGEST_PAUSE: Duration = Duration::from_secs(60);

    pub(super) fn new(why: String) -> Self {
        Self::after(why, Self::PAUSE)
    }

    fn after(why: String, pause: Duration) -> Self {
        Self { why, again: BootMicros::now().saturating_add(pause), pause }
    }

    fn still(&self, why: String) -> Self {
        Self::after(why, self.pause.saturating_mul(2).min(Self::LONGEST_PAUSE))
    }
}

/// What there is to tell of restorations.
#[derive(Debug, Default)]
pub(super) struct Restorations {
    pub(super) count: u64,
    pub(super) last: Option<UnixMicros>,
    /// What was wrong the last time.
    what: String,
    /// When that was mended.
    mended: Option<BootMicros>,
    contest: Contest,
    lines: audit::Restorations,
}

impl Restorations {
    const BETWEEN_LINES: Duration = Duration::from_secs(1);
    const BETWEEN_LINES_IN_A_FIGHT: Duration = Duration::from_secs(60);

    /// What there is to say while another program undoes the gate again and again.
    pub(super) fn fight(&self) -> Option<String> {
        self.contest.is_on().then(|| {
            format!(
                "another program undoes it again and again: it was put back {} times within a minute, the last time for: {}. It is put back about once a second, and in between the ports may be open to everybody. Find that program and stop it, or have it leave what is named spa alone; `nft monitor` names each process that changes rules of nftables",
                self.contest.lately(),
                self.what
            )
        })
    }

    /// Whether what a look has found was mended after it had begun: it has been told of already.
    fn covers(&self, looked: BootMicros) -> bool {
        self.mended.is_some_and(|mended| looked <= mended)
    }

    fn due(&mut self, now: BootMicros) -> Option<RestorationLine> {
        let fights = self.contest.is_on();
        let every = if fights { Self::BETWEEN_LINES_IN_A_FIGHT } else { Self::BETWEEN_LINES };
        self.lines.due(now, every)
    }
}

impl Daemon {
    /// The watch has found something missing.
    pub(super) async fn alarmed(&mut self, alarm: Alarm) {
        self.end_trial().await;
        if self.standing != Standing::Guards {
            return;
        }
        if alarm.missing.is_empty() {
            match self.authorizer.compare_with(alarm.elements).await {
                Compared::Same => return alarm.was_false(),
                Compared::Fitting => return,
                Compared::Different => {}
            }
        }
        self.mend(alarm).await;
    }

    async fn mend(&mut self, alarm: Alarm) {
        let plan = self.plan(&self.settings);
        let was_unreconciled = self.authorizer.is_unreconciled();
        let restored = match self.authorizer.restore(&plan).await {
            Ok(restored) => restored,
            Err(error) => {
                let missing = alarm.missing();
                self.watch.tell(Some(format!(
                    "{missing}; it can't be put back, which is tried every second: {}",
                    with_causes(&error)
                )));
                self.unmended = Some(alarm.proved());
                return;
            }
        };
        self.watch.tell(None);
        self.watch.installed(&plan);
        tracing::debug!(?restored, ?alarm, "the gate was restored");
        let only_elements = alarm.missing.is_empty() && !restored.report.changed;
        if only_elements && was_unreconciled && self.authorizer.is_unreconciled() {
            // Elements can't be mended for some time: told once.
            return;
        }
        let by = if restored.mended() {
            self.restored.mended = Some(BootMicros::now());
            By::Us
        } else if !alarm.missing.is_empty()
            && !self.restored.covers(alarm.looked)
            && self.watch.ask().await.is_none()
        {
            // Whoever it was, or an installation of ours meanwhile: it has been away all the same.
            By::Others
        } else {
            return;
        };
        self.put_back();
        let cut = self.cut_strangers(&plan).await;
        let Differences { grants, surplus, retimed } = restored.differences;
        let missing = if alarm.missing.is_empty() && restored.report.changed {
            restored.report.differences.join("; ")
        } else if !alarm.missing.is_empty() || grants > 0 {
            alarm.missing()
        } else {
            Restoration::NOTHING.to_owned()
        };
        let grants = u64::try_from(grants).unwrap_or(u64::MAX);
        self.note(Restoration { missing, grants, surplus, retimed, cut, by });
    }

    /// Tells what was withdrawn while times were set anew, and cuts who came in by it.
    async fn tell_foreign(&mut self) {
        let surplus = self.authorizer.take_foreign();
        if surplus.is_empty() || self.standing != Standing::Guards {
            return;
        }
        self.put_back();
        let cut = self.cut_strangers(&self.plan(&self.settings)).await;
        self.note(Restoration { surplus, cut, ..Restoration::of_nothing() });
    }

    /// Before an installation, which would mend without a word, and cut nobody.
    async fn mend_first(&mut self) {
        if self.standing != Standing::Guards {
            return;
        }
        let alarm = match self.unmended.take() {
            Some(alarm) => Some(alarm),
            // The task may not have seen it yet.
            None => self.watch.look().await,
        };
        if let Some(alarm) = alarm {
            self.alarmed(alarm).await;
        }
    }

    fn note(&mut self, restoration: Restoration) {
        let Now { realtime, boottime } = Now::read();
        self.restored.count = self.restored.count.saturating_add(1);
        self.restored.last = Some(realtime);
        self.restored.what = restoration.what();
        self.restored.lines.note(restoration);
        self.tell_restorations();
        if self.restored.contest.note(boottime) {
            self.watch.fights(true);
            audit::write_contest(self.restored.contest.lately(), &self.restored.what);
            if let Some(fight) = self.restored.fight() {
                tracing::error!("the gate: {fight}");
            }
        }
    }

    /// Has the connections ended that came while the gate was away, as far as that can be told;
    /// says how many.
    async fn cut_strangers(&mut self, plan: &Plan) -> u64 {
        self.cutter.gate_stands();
        if self.uncut.is_some() {
            // Who could not be told the last time is as much of a stranger now.
            return self.cut_late(plan).await;
        }
        let Some(known) = self.watch.known() else { return 0 };
        match self.cut_all_but(&known, plan).await {
            Ok(count) => count,
            Err(error) => {
                let error = with_causes(&error);
                tracing::error!(
                    "who came in while the gate was away is not known, which is tried every second: {error}"
                );
                self.uncut = Some(known);
                0
            }
        }
    }

    /// Tries again to cut those who could not be told from others.
    async fn cut_late(&mut self, plan: &Plan) -> u64 {
        let uncut = self.uncut.take().filter(|_| plan.mode == Mode::Guard);
        let Some(known) = uncut.and_then(|known| known.among(&plan.guarded)) else { return 0 };
        self.cut_all_but(&known, plan).await.unwrap_or_else(|error| {
            tracing::debug!("{}", with_causes(&error));
            self.uncut = Some(known);
            0
        })
    }

    /// Has all connections ended but those of before, and those with a grant; says how many.
    async fn cut_all_but(&self, known: &Known, plan: &Plan) -> Result<u64, ConnectionsError> {
        let Known { since, connections, guarded } = known;
        let found = self.watch.list(Arc::clone(guarded)).await?;
        let strangers = self.authorizer.strangers(plan, &found, connections, *since);
        let count = u64::try_from(strangers.len()).unwrap_or(u64::MAX);
        if count > 0 {
            let granted = self.authorizer.granted(BootMicros::now());
            self.cutter.cut(Which::Those(strangers), Arc::clone(guarded), granted, None);
        }
        Ok(count)
    }

    /// Those whose packets are refused, and who have a grant now, may come again.
    pub(super) fn release_granted(&self) {
        self.cutter.release(|| self.authorizer.granted(BootMicros::now()));
    }

    /// What is due every second; `stepped`: the clock on the wall was set.
    pub(super) async fn tend_gate(&mut self, stepped: bool) {
        self.end_trial().await;
        self.take_away_the_rest().await;
        self.trial_stepped = (self.trial_stepped || stepped) && self.trial.is_some();
        if self.trial_stepped {
            self.mend_first().await;
            self.set_trial_anew().await;
        }
        self.tell_foreign().await;
        if let Some(alarm) = self.unmended.take() {
            self.alarmed(alarm).await;
        }
        if self.standing == Standing::Guards
            && self.unmended.is_none()
            && self.authorizer.differs_on_schedule().await
        {
            self.mend(Alarm::of_elements()).await;
        }
        if self.uncut.is_some() {
            let cut = self.cut_late(&self.plan(&self.settings)).await;
            if cut > 0 {
                // Of a restoration that has been told of.
                self.restored.lines.note(Restoration { cut, ..Restoration::of_nothing() });
            }
        }
        if self.restored.contest.ends(BootMicros::now()) {
            self.watch.fights(false);
            tracing::info!("nobody has undone the gate for a minute");
        }
        self.tell_restorations();
        // Who had a grant then is no stranger.
        let known = self.uncut.clone().or_else(|| self.watch.known());
        if let Some(Known { since, connections, .. }) = known {
            self.authorizer.forget_former(since, &connections);
        }
    }

    /// Where the kernel ends the trial by the clock on the wall, it would end at another moment.
    async fn set_trial_anew(&mut self) {
        // It may just have ended: what is installed then would be for good.
        if self.trial.is_none() {
            return;
        }
        let plan = self.plan(&self.settings);
        match self.authorizer.install(&plan).await {
            Ok(_) => self.trial_stepped = false,
            Err(error) => tracing::error!(
                "the trial may end at a wrong moment, and is set anew every second: {}",
                with_causes(&error)
            ),
        }
    }

    fn tell_restorations(&mut self) {
        if let Some(line) = self.restored.due(BootMicros::now()) {
            audit::write_restoration(&line);
        }
    }

    /// What the gate is to guard by these settings, for as long as its trial goes on.
    pub(super) fn plan(&self, settings: &Settings) -> Plan {
        plan_of(settings, self.trial, BootMicros::now())
    }

    /// Brings the gate to these settings, if there is one, or if there is to be one from now on.
    pub(super) async fn put_up(
        &mut self,
        settings: &Settings,
        order: Order,
    ) -> Result<InstallReport, String> {
        self.end_trial().await;
        self.mend_first().await;
        let now = BootMicros::now();
        let trial = match (order, self.standing.absence()) {
            (Order::Install(length), _) => length.map(|length| Trial::of(length, now)),
            // By these settings nobody has come in yet.
            (Order::Reload, None) => self.trial,
            (Order::Reload, Some(absence)) => {
                let warnings = vec![format!("the gate is {absence}")];
                return Ok(InstallReport { warnings, ..InstallReport::default() });
            }
        };
        let announced = self.trial_file.announce(trial, now).map_err(|error| {
            let why = with_causes(&error);
            format!("the gate is as it was, since that could not be remembered: {why}")
        })?;
        let plan = plan_of(settings, announced.trial, now);
        match self.install(&plan).await {
            Ok(mut report) => {
                let (trial, recorded) = announced.stands(BootMicros::now());
                self.trial = trial;
                report.warnings.extend(recorded.err().map(|error| unconfirmable(&error)));
                start::tell(&report);
                Ok(report)
            }
            Err(why) => {
                if let Err(error) = announced.withdraw() {
                    tracing::error!("{}", with_causes(&error));
                }
                Err(why)
            }
        }
    }

    async fn install(&mut self, plan: &Plan) -> Result<InstallReport, String> {
        let installed = self.authorizer.install(plan).await;
        let report = installed.map_err(|error| with_causes(&error))?;
        self.stand(Standing::Guards);
        self.watch.installed(plan);
        self.cutter.gate_stands();
        Ok(report)
    }

    /// The gate on trial was away, and is back: who came in meanwhile has not come through it.
    fn put_back(&mut self) {
        let Some(trial) = self.trial else { return };
        match self.trial_file.stands(trial, BootMicros::now()) {
            Ok(trial) => self.trial = Some(trial),
            Err(error) => {
                self.trial = Some(Trial { stands_since: None, ..trial });
                tracing::error!("{}", unconfirmable(&error));
            }
        }
    }

    /// The gate on trial stands for good.
    pub(super) async fn confirm(&mut self, stands_since: Option<BootMicros>) -> ControlResponse {
        self.end_trial().await;
        let Some(trial) = self.trial else {
            return ControlResponse::error(&match self.standing {
                Standing::Lapsed => {
                    "the trial is over, and the gate is gone; try again with `spa-server gate install --trial 60s`"
                }
                _ => "the gate is not on trial",
            });
        };
        if let Some(why) = self.not_confirmable().await {
            return ControlResponse::error(&why);
        }
        if trial.stands_since != stands_since {
            return ControlResponse::error(&stands_anew());
        }
        let settings = self.settings.clone();
        match self.put_up(&settings, Order::Install(None)).await {
            Ok(_) => {
                tracing::info!("the gate is confirmed, and stands for good");
                ControlResponse::Done
            }
            Err(why) => ControlResponse::error(&why),
        }
    }

    /// Why nobody can have shown that he comes in through the gate on trial, if so.
    async fn not_confirmable(&self) -> Option<String> {
        let wrong = match &self.unmended {
            Some(alarm) => Some(alarm.missing()),
            None => self.watch.ask().await,
        };
        if let Some(wrong) = wrong {
            return Some(format!(
                "{NOT_CONFIRMED}, since it does not stand at this moment: {wrong}. Open a new connection when it is put back, and confirm there"
            ));
        }
        self.trial.is_some_and(|trial| trial.stands_since.is_none()).then(|| {
            format!(
                "{NOT_CONFIRMED}, since it could not be recorded since when it stands: begin another trial"
            )
        })
    }

    /// Takes the gate away when its trial is over; the kernel has stopped refusing by then.
    async fn end_trial(&mut self) {
        if self.trial.is_none_or(|trial| trial.seconds_left(BootMicros::now()).is_some()) {
            return;
        }
        self.trial = None;
        if let Err(error) = self.trial_file.lapse() {
            // Its time is over all the same: whoever reads it sees that.
            tracing::error!("{}", with_causes(&error));
        }
        self.stand(Standing::Lapsed);
        tracing::error!("the gate is {}", Standing::Lapsed.absence().unwrap_or_default());
        if let Err(error) = self.take_away().await {
            tracing::error!("what is left of the gate can't be removed: {error}");
        }
    }

    /// Takes the gate away, and leaves it away.
    pub(super) async fn remove_gate(&mut self) -> ControlResponse {
        if let Some(reload) = &mut self.reload {
            reload.drop_installs();
        }
        let lapsed = match self.trial.take() {
            // Whoever takes it away in its trial has not confirmed it.
            Some(_) => self.trial_file.lapse(),
            None => Ok(()),
        };
        self.stand(Standing::Removed);
        if let Err(error) = self.take_away().await {
            return ControlResponse::error(&error);
        }
        tracing::warn!("the gate is {}", Standing::Removed.absence().unwrap_or_default());
        if let Err(error) = lapsed {
            // Whoever gave the order tries it, too, and is told.
            tracing::error!("a boot may put it up again: {}", with_causes(&error));
        }
        ControlResponse::Done
    }

    /// Takes the gate away, then what the cutter may have put there before it heard of that, or
    /// meanwhile.
    ///
    /// What is left of it if that fails may go on admitting and refusing: it is tried again.
    async fn take_away(&mut self) -> Result<(), String> {
        let removed = self.authorizer.remove_gate().await.map_err(|error| with_causes(&error));
        let removed = removed.and(self.cutter.gate_is_gone().await);
        let before = self.left_behind.take();
        self.left_behind = removed.clone().err().map(|why| match before {
            None => LeftBehind::new(why),
            Some(before) => before.still(why),
        });
        removed
    }

    /// Tries again to take away what was left behind.
    async fn take_away_the_rest(&mut self) {
        if self.left_behind.as_ref().is_none_or(|left| left.again > BootMicros::now()) {
            return;
        }
        match self.take_away().await {
            Ok(()) => tracing::info!("what was left of the gate is removed"),
            Err(error) => tracing::debug!("{error}"),
        }
    }

    /// What there is to say while something of a gate is left that is to be gone.
    pub(super) fn leftover(&self) -> Option<String> {
        self.left_behind.as_ref().map(|LeftBehind { why, .. }| {
            format!(
                "something of it is left in the kernel, and may go on admitting and refusing; removing it is tried again and again: {why}"
            )
        })
    }

    /// From now on that is how it is to be.
    pub(super) fn stand(&mut self, standing: Standing) {
        self.standing = standing;
        self.left_behind = None;
        if standing != Standing::Guards {
            // Nothing is to be mended any more. Where there is to be a gate, who came in while it
            // was away is to be told and cut, whoever has put it back.
            self.unmended = None;
            self.uncut = None;
        }
        self.watch.rest(standing != Standing::Guards);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_looked_at_before_it_was_mended_is_not_told_again() {
        let mut restored = Restorations::default();
        assert!(!restored.covers(BootMicros(0)));
        restored.mended = Some(BootMicros(7));
        assert!(restored.covers(BootMicros(6)) && restored.covers(BootMicros(7)));
        assert!(!restored.covers(BootMicros(8)));
    }
}
