//! The trial of a gate, as the commands have it: begun and confirmed without the daemon, where none
//! runs.

use super::gate::{install_without_daemon, look, wait_for, warnings};
use super::order::{self, Carrier};
use super::{CommandError, Done, daemon};
use crate::causes::with_causes;
use crate::clock::BootMicros;
use crate::config::{Settings, format_duration};
use crate::control::{ControlRequest, ControlResponse};
use crate::gate::{InstallReport, Plan};
use crate::gate_record::{Announcement, GateRecord};
use crate::helper::OrderFile;
use crate::origin::Origin;
use crate::replay_store::BootId;
use crate::trial::{
    Announced, LONGEST, NOT_CONFIRMED, SHORTEST, Trial, TrialFile, TrialState, plan_of,
    stands_anew, unconfirmable,
};
use spa_proto::parse_duration;
use std::path::Path;
use std::time::Duration;

const LAPSED: &str = "a trial of the gate was not confirmed, so there is to be none: nothing is hidden. `spa-server gate install --trial 60s` tries again, `spa-server gate install` puts it up for good";

/// `spa-server gate confirm`.
pub(crate) fn confirm(config: &Path, from_console: bool) -> Done {
    let settings = Settings::load(config)?;
    let trial = running(&settings)?;
    let origin = Origin::of_this_process(&settings.gate_plan().guarded)
        .map_err(|error| CommandError::Failed(with_causes(&error)))?;
    judge(origin, trial, from_console)?;
    // What was judged is what is to be confirmed.
    let request = ControlRequest::GateConfirm { stands_since: trial.stands_since };
    match order::give(&settings.control_socket, &settings.state_directory, &request)? {
        Carrier::Daemon(ControlResponse::Done) => {}
        Carrier::Daemon(other) => return Err(daemon::unexpected(&other)),
        Carrier::Command(_lock) => {
            if running(&settings)? != trial {
                return Err(CommandError::Failed(stands_anew()));
            }
            ensure_stands(&settings)?;
            for warning in warnings(&put_up(&settings, None)?) {
                eprintln!("warning: {warning}");
            }
        }
    }
    OrderFile::of(&settings.state_directory).say(&settings.state_directory, None);
    eprintln!("the gate is confirmed, and stands for good");
    Ok(())
}

fn running(settings: &Settings) -> Result<Trial, CommandError> {
    match state(&settings.state_directory)? {
        TrialState::Running(trial) => Ok(trial),
        TrialState::None => Err(failed("the gate is not on trial")),
        TrialState::Lapsed => Err(failed(LAPSED)),
    }
}

/// Nobody has come in through a gate that is not there, or not all of it.
fn ensure_stands(settings: &Settings) -> Done {
    let shown = wait_for(look(settings))??;
    if shown.is_in_place() {
        return Ok(());
    }
    Err(CommandError::Failed(format!(
        "{NOT_CONFIRMED}, since it does not stand at this moment, or not as the configuration wants it, as `spa-server gate show` says: begin another trial"
    )))
}

/// Who is to confirm has to have come in since the gate on trial stands.
fn judge(origin: Origin, trial: Trial, from_console: bool) -> Done {
    let came_through = |since| trial.stands_since.is_some_and(|stands| since > stands);
    match (origin, from_console) {
        (Origin::Connection { since, .. }, false) if came_through(since) => Ok(()),
        (Origin::Console, true) => Ok(()),
        (Origin::Connection { peer, .. }, false) => Err(CommandError::Failed(format!(
            "this session, from {peer}, was there before the gate on trial stood as it does now: it does not show that a new connection gets in. Open a second one (knock, then ssh), and confirm there"
        ))),
        (Origin::Connection { peer, .. }, true) => Err(CommandError::Failed(format!(
            "this is not the console: the session comes from {peer}. Leave --from-console out, in a session that was opened after the trial began"
        ))),
        (Origin::ThisHost, _) => Err(failed(
            "this session comes from this machine itself, and loopback passes the gate: open one from elsewhere (knock, then ssh), and confirm there",
        )),
        (Origin::Console, false) => Err(failed(
            "no connection is found that this command was given over: open one from elsewhere (knock, then ssh), and confirm there, outside of tmux and screen; on the machine's console use --from-console",
        )),
    }
}

/// Puts the gate up, on trial or for good, and keeps in step what is remembered of it. The caller
/// holds the lock on the state directory.
pub(super) fn put_up(
    settings: &Settings,
    trial: Option<Trial>,
) -> Result<InstallReport, CommandError> {
    let directory = &settings.state_directory;
    let now = BootMicros::now();
    let announced = file(directory)?.announce(trial, now).map_err(|error| {
        let why = with_causes(&error);
        CommandError::Failed(format!(
            "the gate is as it was, since that could not be remembered: {why}"
        ))
    })?;
    let plan = plan_of(settings, announced.trial, now);
    match put_up_recorded(settings, &plan) {
        Ok(mut report) => {
            let recorded = announced.stands(BootMicros::now()).1;
            report.warnings.extend(recorded.err().map(|error| unconfirmable(&error)));
            report.warnings.extend(settings.abandoned_hook());
            Ok(report)
        }
        Err(error) => {
            if let Err(also) = announced.withdraw() {
                eprintln!("{}", with_causes(&also));
            }
            Err(error)
        }
    }
}

/// What the gate is to guard now, on trial or for good.
pub(super) fn plan(settings: &Settings) -> Plan {
    match state(&settings.state_directory) {
        Ok(TrialState::Running(trial)) => plan_of(settings, Some(trial), BootMicros::now()),
        _ => settings.gate_plan(),
    }
}

/// Whether the gate of this state directory is on trial.
pub(super) fn state(state_directory: &Path) -> Result<TrialState, CommandError> {
    Ok(file(state_directory)?.read(BootMicros::now()))
}

/// A trial has lapsed, maybe with the boot that it began in: that is written down, and told.
pub(super) fn tell_lapsed() {
    eprintln!("{LAPSED}");
}

/// What an administrator should know of a trial.
pub(super) fn warning(settings: &Settings) -> Option<String> {
    match state(&settings.state_directory).ok()? {
        TrialState::None => None,
        TrialState::Lapsed => Some(LAPSED.to_owned()),
        TrialState::Running(trial) => {
            let left = trial.seconds_left(BootMicros::now()).unwrap_or(0);
            Some(format!(
                "the gate is on trial for {} more; then it is undone, unless `spa-server gate confirm` is run from a new connection",
                format_duration(Duration::from_secs(left.into()))
            ))
        }
    }
}

/// The gate was taken away: if that was in its trial, nobody has confirmed it; and no boot is to
/// put up again what stood for good.
pub(super) fn removed(state_directory: &Path) -> Done {
    let mut forgotten = record(state_directory)?.removed();
    if let TrialState::Running(_) = state(state_directory)? {
        forgotten = forgotten.and(file(state_directory)?.lapse());
    }
    forgotten.map_err(|error| {
        let why = with_causes(&error);
        CommandError::Failed(format!("the gate is removed, but a boot may put it up again: {why}"))
    })
}

/// The length of a trial, as it is given on the command line.
pub(super) fn length(text: &str) -> Result<Duration, CommandError> {
    let plain = text.parse().ok().map(Duration::from_secs);
    let length = match plain {
        Some(seconds) => seconds,
        None => parse_duration(text)
            .map_err(|error| CommandError::Usage(format!("--trial {text}: {error}")))?,
    };
    if (SHORTEST..=LONGEST).contains(&length) {
        Ok(Duration::from_secs(length.as_secs()))
    } else {
        Err(CommandError::Usage(format!(
            "--trial {text}: a trial lasts {} to {}",
            format_duration(SHORTEST),
            format_duration(LONGEST)
        )))
    }
}

/// What to do after a trial has begun.
pub(super) fn what_to_do(length: Duration) -> String {
    format!(
        "the gate is on trial: it is undone in {}, unless it is confirmed. Leave this session open, open another one (knock, then ssh), and run there: spa-server gate confirm",
        format_duration(length)
    )
}

/// Puts the gate up, and has the next boot know of it.
pub(super) fn put_up_recorded(
    settings: &Settings,
    plan: &Plan,
) -> Result<InstallReport, CommandError> {
    let record = record(&settings.state_directory)?;
    let announced = announced(&record, plan)?;
    match wait_for(install_without_daemon(&settings.gate, plan)).flatten() {
        Ok(mut report) => {
            record.stands(announced, &settings.gate, plan, &mut report);
            Ok(report)
        }
        Err(error) => {
            if let Err(also) = announced.and_then(Announced::withdraw) {
                eprintln!("{}", with_causes(&also));
            }
            Err(error)
        }
    }
}

/// What is put up is written down for a boot first.
pub(super) fn announced(record: &GateRecord, plan: &Plan) -> Result<Announcement, CommandError> {
    record.announce(plan, BootMicros::now()).map_err(|error| {
        let why = with_causes(&error);
        CommandError::Failed(format!(
            "the gate is as it was, since a boot would take it for one that stands for good: {why}"
        ))
    })
}

/// What a boot goes by.
pub(super) fn record(state_directory: &Path) -> Result<GateRecord, CommandError> {
    Ok(GateRecord::of(state_directory, boot()?))
}

fn file(state_directory: &Path) -> Result<TrialFile, CommandError> {
    Ok(TrialFile::new(state_directory, boot()?))
}

fn boot() -> Result<BootId, CommandError> {
    BootId::read().map_err(|source| CommandError::Read { path: BootId::SOURCE.into(), source })
}

fn failed(why: &str) -> CommandError {
    CommandError::Failed(why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_came_in_since_confirms_and_the_console_only_where_it_is_one() {
        let stands_since = Some(BootMicros(100));
        let trial = Trial { stands_since, deadline: BootMicros(200) };
        let connection = |since| Origin::Connection {
            peer: "198.51.100.7:4000".parse().unwrap(),
            since: BootMicros(since),
        };
        for (origin, from_console, confirms) in [
            (connection(101), false, true),
            (connection(100), false, false),
            (connection(99), false, false),
            (connection(101), true, false),
            (Origin::ThisHost, false, false),
            (Origin::ThisHost, true, false),
            (Origin::Console, false, false),
            (Origin::Console, true, true),
        ] {
            let judged = judge(origin, trial, from_console);
            assert_eq!(judged.is_ok(), confirms, "{origin:?} {from_console}");
        }
        // While it is being put up nobody has come through it.
        let trial = Trial { stands_since: None, ..trial };
        assert!(judge(connection(101), trial, false).is_err());
        let refused = judge(connection(1), trial, false).unwrap_err().to_string();
        assert!(refused.contains("198.51.100.7") && refused.contains("second"), "{refused}");
    }

    #[test]
    fn a_trial_has_a_sensible_length() {
        assert_eq!(length("60").unwrap(), Duration::from_secs(60));
        assert_eq!(length("1m30s").unwrap(), Duration::from_secs(90));
        for text in ["", "4s", "2d", "soon", "-1"] {
            assert!(length(text).is_err(), "{text:?}");
        }
    }
}
