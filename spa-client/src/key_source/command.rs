//! `key-command`: a program that prints keys, as password managers do.
//!
//! It gets the user's environment and terminal, since it may have to ask its own questions; it
//! does not get standard input, which may be somebody's connection (`spa-client proxy`).

use core::time::Duration;
use spa_keys::MAX_KEY_FILE_LENGTH;
use std::io::{self, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;
use zeroize::Zeroizing;

/// Time for a human to unlock a password manager.
pub(super) const TIME_LIMIT: Duration = Duration::from_secs(60);
/// Between two looks at whether a program that has closed its output has ended.
const LOOK: Duration = Duration::from_millis(2);

/// Runs the program, and gives what it printed.
pub(super) fn run(words: &[String], limit: Duration) -> Result<Zeroizing<Vec<u8>>, CommandError> {
    let shown = || words.join(" ");
    let Some((program, arguments)) = words.split_first() else {
        return Err(CommandError::Empty);
    };
    let begun = Instant::now();
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| CommandError::NotStarted { command: shown(), error })?;
    let outcome = output(&mut child, begun, limit);
    if outcome.is_err() {
        // What it was asked for is of no use any more. Who has started programs of his own ends
        // them himself.
        let _ = child.kill();
        let _ = child.wait();
    }
    let (bytes, status) = outcome.map_err(|failure| match failure {
        Failure::TooLong => CommandError::TooLong { command: shown() },
        Failure::TooSlow => CommandError::TooSlow { command: shown(), seconds: limit.as_secs() },
        Failure::Io(error) => CommandError::Io { command: shown(), error },
    })?;
    if !status.success() {
        return Err(CommandError::Failed { command: shown(), status });
    }
    Ok(bytes)
}

enum Failure {
    TooLong,
    TooSlow,
    Io(io::Error),
}

fn output(
    child: &mut Child,
    begun: Instant,
    limit: Duration,
) -> Result<(Zeroizing<Vec<u8>>, ExitStatus), Failure> {
    let (sender, receiver) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        // A read can't be given a time limit everywhere; a thread can be left behind.
        thread::spawn(move || sender.send(read_bounded(stdout)));
    }
    let read = receiver.recv_timeout(limit).map_err(|_| Failure::TooSlow)?;
    let bytes = read.map_err(Failure::Io)?;
    if bytes.len() > MAX_KEY_FILE_LENGTH {
        return Err(Failure::TooLong);
    }
    loop {
        match child.try_wait().map_err(Failure::Io)? {
            Some(status) => return Ok((bytes, status)),
            None if begun.elapsed() >= limit => return Err(Failure::TooSlow),
            None => thread::sleep(LOOK),
        }
    }
}

/// At most one byte more than there may be. Allocated once, so that no piece stays behind.
fn read_bounded(output: impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    const LIMIT: usize = MAX_KEY_FILE_LENGTH + 1;
    let mut output = output.take(LIMIT as u64);
    let mut buffer = Zeroizing::new(vec![0; LIMIT]);
    let mut length = 0;
    while let Some(space) = buffer.get_mut(length..).filter(|space| !space.is_empty()) {
        match output.read(space) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer.truncate(length);
    Ok(buffer)
}

/// Why a command gave no key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// No words.
    #[error(
        "key-command names no program; write it as in key-command = [\"pass\", \"show\", \"spa/work\"]"
    )]
    Empty,
    /// No such program.
    #[error("key-command {command:?} can't be started: {error}; is it installed, and in PATH?")]
    NotStarted {
        /// The command.
        command: String,
        /// What the system says.
        error: io::Error,
    },
    /// It ended with a failure; it has said why.
    #[error("key-command {command:?} failed ({status}); what it said stands above; try it by hand")]
    Failed {
        /// The command.
        command: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// It ran for too long.
    #[error("key-command {command:?} gave no key for {seconds} s and was ended; try it by hand")]
    TooSlow {
        /// The command.
        command: String,
        /// The limit.
        seconds: u64,
    },
    /// It printed too much.
    #[error(
        "key-command {command:?} printed more than {MAX_KEY_FILE_LENGTH} bytes, which is no key; have it print the key alone"
    )]
    TooLong {
        /// The command.
        command: String,
    },
    /// The system failed.
    #[error("the output of key-command {command:?} can't be read: {error}")]
    Io {
        /// The command.
        command: String,
        /// What the system says.
        error: io::Error,
    },
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    fn shell(script: &str, limit: Duration) -> Result<Zeroizing<Vec<u8>>, CommandError> {
        run(&["sh", "-c", script].map(String::from), limit)
    }

    #[test]
    fn what_a_command_prints_is_what_comes() {
        assert_eq!(shell("printf 'a\\nb'", LONG).unwrap().as_slice(), b"a\nb");
        assert_eq!(shell("head -c 4096 /dev/zero", LONG).unwrap().len(), 4096);
    }

    #[test]
    fn standard_input_is_not_the_command_s() {
        assert_eq!(shell("cat; echo end", LONG).unwrap().as_slice(), b"end\n");
    }

    #[test]
    fn a_command_that_fails_gives_no_key() {
        let error = shell("echo spa-private-x; exit 3", LONG).unwrap_err();
        assert!(matches!(error, CommandError::Failed { .. }), "{error}");
        assert!(error.to_string().contains("exit status: 3"), "{error}");
        let error = run(&["/does/not/exist".into()], LONG).unwrap_err();
        assert!(matches!(error, CommandError::NotStarted { .. }), "{error}");
        assert!(matches!(run(&[], LONG), Err(CommandError::Empty)));
    }

    #[test]
    fn a_command_may_neither_print_nor_run_without_end() {
        let begun = Instant::now();
        let error = shell("exec cat /dev/zero", LONG).unwrap_err();
        assert!(matches!(error, CommandError::TooLong { .. }), "{error}");
        let short = Duration::from_millis(200);
        for script in ["exec sleep 60", "exec >&-; exec sleep 60", "echo a; exec sleep 60"] {
            let error = shell(script, short).unwrap_err();
            assert!(matches!(error, CommandError::TooSlow { .. }), "{script}: {error}");
        }
        assert!(begun.elapsed() < LONG);
    }
}
