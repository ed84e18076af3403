//! The trial of a gate, as the commands have it: begun and confirmed without the daemon, where none
//! runs.

use super::gate::{install_without_daemon, wait_for};
use super::{CommandError, Done, daemon};
use crate::causes::with_causes;
use crate::clock::BootMicros;
use crate::config::{Settings, format_duration};
use crate::control::{CallError, ControlRequest, ControlResponse, call};
use crate::gate::Plan;
use crate::origin::Origin;
use crate::replay_store::BootId;
use crate::trial::{LONGEST, SHORTEST, Trial, TrialFile, TrialState};
use spa_proto::parse_duration;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::time::Duration;

const LAPSED: &str = "a trial of the gate was not confirmed, so there is to be none: nothing is hidden. `spa-server gate install --trial 60s` tries again, `spa-server gate install` puts it up for good";

/// How the gate is to be put up.
#[derive(Debug, Clone, Copy)]
pub(super) enum Order {
    /// It stands until it is removed.
    ForGood,
    /// It is undone after this time.
    OnTrial(Duration),
    /// On trial if it was, and not at all if a trial has lapsed.
    AsItWas,
}

/// `spa-server gate confirm`.
pub(crate) fn confirm(config: &Path, from_console: bool) -> Done {
    let settings = Settings::load(config)?;
    let file = file(&settings)?;
    let trial = match file.read(BootMicros::now()) {
        TrialState::Running(trial) => trial,
        TrialState::None => return Err(failed("the gate is not on trial")),
        TrialState::Lapsed => return Err(failed(LAPSED)),
    };
    let origin = Origin::of_this_process(&settings.gate_plan().guarded)
        .map_err(|error| CommandError::Failed(with_causes(&error)))?;
    judge(origin, trial, from_console)?;
    match call(&settings.control_socket, &ControlRequest::GateConfirm) {
        Ok(ControlResponse::Done) => {}
        Ok(other) => return Err(daemon::unexpected(&other)),
        Err(CallError::NotRunning { .. }) => {
            wait_for(install_without_daemon(&settings, &settings.gate_plan()))??;
            file.clear().map_err(|error| CommandError::Failed(with_causes(&error)))?;
        }
        Err(error) => return Err(error.into()),
    }
    eprintln!("the gate is confirmed, and stands for good");
    Ok(())
}

/// Who is to confirm has to have come in since the trial began.
fn judge(origin: Origin, trial: Trial, from_console: bool) -> Done {
    match (origin, from_console) {
        (Origin::Connection { since, .. }, false) if since > trial.started => Ok(()),
        (Origin::Console, true) => Ok(()),
        (Origin::Connection { peer, .. }, false) => Err(CommandError::Failed(format!(
            "this session, from {peer}, was there before the trial began: it does not show that a new connection gets in. Open a second one (knock, then ssh), and confirm there"
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

/// Puts the gate up by `install`, and keeps the record of trials in step; `None` if there is to be
/// no gate.
pub(super) fn put_up<T>(
    settings: &Settings,
    order: Order,
    install: impl FnOnce(Plan) -> Result<T, CommandError>,
) -> Result<Option<T>, CommandError> {
    let file = file(settings)?;
    let now = BootMicros::now();
    let before = file.read(now);
    let told = |error| CommandError::Failed(with_causes(&error));
    let trial = match (order, before) {
        (Order::AsItWas, TrialState::Lapsed) => {
            eprintln!("{LAPSED}");
            file.lapse().map_err(told)?;
            return Ok(None);
        }
        (Order::AsItWas, TrialState::Running(trial)) => Some(trial),
        (Order::AsItWas | Order::ForGood, _) => None,
        (Order::OnTrial(length), _) => {
            let directory = &settings.state_directory;
            let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
            made.map_err(|source| CommandError::Write { path: directory.clone(), source })?;
            Some(file.begin(now, length).map_err(told)?)
        }
    };
    match install(plan_of(settings, trial, now)) {
        Ok(done) => {
            if matches!(order, Order::ForGood) {
                file.clear().map_err(told)?;
            }
            Ok(Some(done))
        }
        Err(error) => {
            if let Err(also) = file.put_back(before) {
                eprintln!("{}", with_causes(&also));
            }
            Err(error)
        }
    }
}

/// What the gate is to guard now, on trial or for good.
pub(super) fn plan(settings: &Settings) -> Plan {
    let now = BootMicros::now();
    match file(settings).map(|file| file.read(now)) {
        Ok(TrialState::Running(trial)) => plan_of(settings, Some(trial), now),
        _ => settings.gate_plan(),
    }
}

fn plan_of(settings: &Settings, trial: Option<Trial>, now: BootMicros) -> Plan {
    let trial_seconds = trial.and_then(|trial| trial.seconds_left(now));
    Plan { trial_seconds, ..settings.gate_plan() }
}

/// What an administrator should know of a trial.
pub(super) fn warning(settings: &Settings) -> Option<String> {
    let now = BootMicros::now();
    match file(settings).ok()?.read(now) {
        TrialState::None => None,
        TrialState::Lapsed => Some(LAPSED.to_owned()),
        TrialState::Running(trial) => {
            let left = Duration::from_secs(trial.seconds_left(now).unwrap_or(0).into());
            Some(format!(
                "the gate is on trial for {} more; then it is undone, unless `spa-server gate confirm` is run from a new connection",
                format_duration(left)
            ))
        }
    }
}

/// The gate was taken away: if that was in its trial, nobody has confirmed it.
pub(super) fn removed(settings: &Settings) {
    let Ok(file) = file(settings) else { return };
    if let TrialState::Running(_) = file.read(BootMicros::now())
        && let Err(error) = file.lapse()
    {
        eprintln!("{}", with_causes(&error));
    }
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

fn file(settings: &Settings) -> Result<TrialFile, CommandError> {
    let boot = BootId::read()
        .map_err(|source| CommandError::Read { path: BootId::SOURCE.into(), source })?;
    Ok(TrialFile::new(&settings.state_directory, boot))
}

fn failed(why: &str) -> CommandError {
    CommandError::Failed(why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_came_in_since_confirms_and_the_console_only_where_it_is_one() {
        let trial = Trial { started: BootMicros(100), deadline: BootMicros(200) };
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
