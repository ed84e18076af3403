//! `spa-server gate install --boot`: the gate before the network, and before there is a daemon. By
//! the configuration, or else as it last stood for good; and only where one stood for good, since
//! nobody has shown before that anything opens it.

use super::gate::{install_without_daemon, tell, wait_for};
use super::order::{self, Carrier};
use super::{CommandError, Done, trial};
use crate::causes::with_causes;
use crate::cli::Output;
use crate::clock::BootMicros;
use crate::config::Settings;
use crate::control::{CallError, ControlRequest};
use crate::last_gate::LastGateFile;
use crate::trial::{TrialState, plan_of};
use std::path::Path;

/// Whatever is wrong is told by the exit status also where a gate stands afterwards.
pub(crate) fn install(config: &Path, output: Output) -> Done {
    let directory = Settings::state_directory_of(config);
    let socket = Settings::control_socket_of(config);
    let _lock = match order::give(&socket, &directory, &ControlRequest::Status) {
        Ok(Carrier::Daemon(_)) => {
            eprintln!("the daemon runs, and sees to the gate itself");
            return Ok(());
        }
        Ok(Carrier::Command(lock)) => lock,
        // Who is not root can't ask. A gate that stands as it should is left as it is.
        Err(CommandError::Call(CallError::NotPermitted { .. })) => None,
        Err(error @ CommandError::Call(_)) => return Err(error),
        // Nothing is to be in the way of the gate.
        Err(error) => {
            eprintln!("{error}");
            None
        }
    };
    let loaded = Settings::load(config);
    let record = trial::record(&directory)?;
    let last = &record.last;
    let on_trial = match record.trial(BootMicros::now()) {
        TrialState::Lapsed => {
            trial::tell_lapsed();
            loaded?;
            return Ok(());
        }
        TrialState::Running(trial) => Some(trial),
        TrialState::None => None,
    };
    let why = match loaded {
        Ok(_) if on_trial.is_none() && !last.exists() => {
            eprintln!(
                "no gate stands for good yet, so it is left to the daemon, which puts it up once it can open it"
            );
            return Ok(());
        }
        Ok(settings) => match trial::put_up_recorded(
            &settings,
            &plan_of(&settings, on_trial, BootMicros::now()),
        ) {
            Ok(report) => return tell(&report, output),
            Err(error) => error,
        },
        Err(error) => error.into(),
    };
    // What stood for good before a trial is not what is tried.
    if on_trial.is_none() {
        put_up_the_last(last, output)?;
    } else {
        eprintln!("the gate is on trial, and is left as it is");
    }
    Err(why)
}

/// The configuration is of no use.
fn put_up_the_last(last: &LastGateFile, output: Output) -> Done {
    let gate = match last.read() {
        Ok(gate) => gate,
        Err(error) => {
            eprintln!("nothing is hidden: {}", with_causes(&error));
            return Ok(());
        }
    };
    match wait_for(install_without_daemon(&gate.settings(), gate.plan())).flatten() {
        Ok(report) => {
            tell(&report, output)?;
            eprintln!(
                "THIS IS THE GATE AS IT LAST STOOD FOR GOOD, since it can't be put up by the configuration: mend that (`spa-server check`), then: systemctl restart spa-server. `spa-server gate remove` takes the gate away"
            );
        }
        Err(error) => {
            eprintln!("the last gate that stood for good can't be put up either: {error}");
        }
    }
    Ok(())
}
