//! Who carries out an order about the gate: the daemon, or, where none runs, the command itself.

use super::CommandError;
use crate::causes::with_causes;
use crate::control::{CallError, ControlRequest, ControlResponse, call};
use crate::state_lock::{StateLock, StateLockError};
use nix::unistd::geteuid;
use std::io::ErrorKind;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// How long a command waits for a daemon that starts or stops, and for other commands.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);

/// See the module's text.
#[derive(Debug)]
pub(super) enum Carrier {
    /// The daemon has answered.
    Daemon(ControlResponse),
    /// None runs, and none begins to while this is held; nor does another command. Where it can't
    /// be taken since nothing can be written, no daemon can take it either.
    Command(Option<StateLock>),
}

/// Gives the order to the daemon, or takes the lock that the daemon would hold.
///
/// # Errors
///
/// The daemon refused or failed, or somebody holds the lock who doesn't listen.
pub(super) fn give(
    socket: &Path,
    state_directory: &Path,
    order: &ControlRequest,
) -> Result<Carrier, CommandError> {
    give_within(PATIENCE, socket, state_directory, order)
}

fn give_within(
    patience: Duration,
    socket: &Path,
    state_directory: &Path,
    order: &ControlRequest,
) -> Result<Carrier, CommandError> {
    let began = Instant::now();
    loop {
        match call(socket, order) {
            Ok(response) => return Ok(Carrier::Daemon(response)),
            Err(CallError::NotRunning { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        match StateLock::take(state_directory) {
            Ok(lock) => return Ok(Carrier::Command(Some(lock))),
            // It may be about to listen, or about to end.
            Err(StateLockError::Held(_)) if began.elapsed() < patience => thread::sleep(PAUSE),
            Err(error @ StateLockError::Held(_)) => {
                return Err(CommandError::Failed(with_causes(&error)));
            }
            // At boot the gate is put up by a user who has no business there, before any daemon.
            Err(StateLockError::File { source, .. })
                if source.kind() == ErrorKind::PermissionDenied && !geteuid().is_root() =>
            {
                return Ok(Carrier::Command(None));
            }
            Err(error) => {
                eprintln!("warning: {}", with_causes(&error));
                return Ok(Carrier::Command(None));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_command_alone_keeps_a_daemon_from_starting() {
        let directory = tempfile::tempdir().unwrap();
        let (state, socket) = (directory.path().join("state"), directory.path().join("socket"));
        let given = give(&socket, &state, &ControlRequest::GateRemove).unwrap();
        assert!(matches!(&given, Carrier::Command(Some(_))), "{given:?}");
        assert!(StateLock::take(&state).is_err());
        drop(given);
        StateLock::take(&state).unwrap();

        let no_directory = directory.path().join("state/lock/below");
        let given = give(&socket, &no_directory, &ControlRequest::GateRemove).unwrap();
        assert!(matches!(&given, Carrier::Command(None)), "{given:?}");
    }

    #[test]
    fn who_holds_the_lock_and_does_not_listen_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let _held = StateLock::take(directory.path()).unwrap();
        let socket = directory.path().join("socket");
        let refused =
            give_within(PAUSE, &socket, directory.path(), &ControlRequest::GateRemove).unwrap_err();
        assert!(refused.to_string().contains("works on the state directory"), "{refused}");
    }

    #[test]
    fn a_daemon_that_is_starting_gets_the_order() {
        let directory = tempfile::tempdir().unwrap();
        let (state, socket) = (directory.path().to_owned(), directory.path().join("socket"));
        let lock = StateLock::take(&state).unwrap();
        let daemon = thread::spawn({
            let socket = socket.clone();
            move || {
                // Not at once: first it is found not to listen.
                thread::sleep(PAUSE * 2);
                let (mut stream, _) = UnixListener::bind(&socket).unwrap().accept().unwrap();
                let mut order = String::new();
                BufReader::new(&stream).read_line(&mut order).unwrap();
                stream.write_all(b"\"done\"\n").unwrap();
                drop(lock);
                order
            }
        });
        let order = ControlRequest::GateRemove;
        let given = give_within(Duration::from_secs(60), &socket, &state, &order).unwrap();
        assert!(matches!(given, Carrier::Daemon(ControlResponse::Done)), "{given:?}");
        assert_eq!(daemon.join().unwrap(), "\"gate-remove\"\n");
    }
}
