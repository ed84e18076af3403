//! The command's side of the control socket. Blocking: a command does one thing and ends.

use super::{ControlRequest, ControlResponse, MAX_RESPONSE};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a command waits for each piece of the answer. A reload of many clients takes a while.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends one request to the daemon and waits for its answer.
///
/// An answer of [`ControlResponse::Error`] comes back as [`CallError::Refused`].
pub fn call(socket: &Path, request: &ControlRequest) -> Result<ControlResponse, CallError> {
    let broken = |source| CallError::Broken { socket: socket.into(), source };
    let stream =
        UnixStream::connect(socket).map_err(|source| CallError::connect(socket, source))?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(broken)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(broken)?;
    let mut line = serde_json::to_vec(request).map_err(|source| broken(source.into()))?;
    line.push(b'\n');
    // A server that refuses the peer answers and hangs up before it has read anything: its
    // answer says more than the broken pipe does.
    let sent = (&stream).write_all(&line);
    let mut answer = String::new();
    let read = BufReader::new((&stream).take(MAX_RESPONSE)).read_line(&mut answer);
    if !answer.ends_with('\n') {
        sent.and(read).map_err(broken)?;
        return Err(broken(io::ErrorKind::UnexpectedEof.into()));
    }
    match serde_json::from_str(&answer) {
        Ok(ControlResponse::Error { message }) => Err(CallError::Refused { message }),
        Ok(response) => Ok(response),
        Err(source) => Err(CallError::NotUnderstood { socket: socket.into(), source }),
    }
}

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// Nobody listens.
    #[error(
        "the daemon does not run: nobody listens at {}; start it with `systemctl start spa-server`",
        socket.display()
    )]
    NotRunning {
        /// Where it was looked for.
        socket: PathBuf,
    },
    /// The socket is not for this user.
    #[error("{} is not for this user; run the command as root", socket.display())]
    NotPermitted {
        /// The socket.
        socket: PathBuf,
    },
    /// The connection could not be made, broke, or took too long.
    #[error("the daemon did not answer at {}: {source}; its log says more", socket.display())]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// An answer of another version.
    #[error(
        "the daemon at {} answered what this command does not understand ({source}); are both of the same version? restart the daemon after an update",
        socket.display()
    )]
    NotUnderstood {
        /// The socket.
        socket: PathBuf,
        /// What is wrong with the answer.
        source: serde_json::Error,
    },
    /// The daemon refused, or failed.
    #[error("{message}")]
    Refused {
        /// What it said.
        message: String,
    },
}

impl CallError {
    fn connect(socket: &Path, source: io::Error) -> Self {
        let socket = socket.into();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                Self::NotRunning { socket }
            }
            io::ErrorKind::PermissionDenied => Self::NotPermitted { socket },
            _ => Self::Broken { socket, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn error(socket: &Path) -> String {
        let error = call(socket, &ControlRequest::Status).unwrap_err();
        error.to_string().replace(&*socket.to_string_lossy(), "SOCKET")
    }

    /// A daemon that answers the first connection with `bytes`.
    fn answering(bytes: &'static [u8]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("control.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let daemon = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = String::new();
            BufReader::new(&stream).read_line(&mut request).unwrap();
            stream.write_all(bytes).unwrap();
            request
        });
        let error = error(&socket);
        assert_eq!(daemon.join().unwrap(), "\"status\"\n");
        error
    }

    #[test]
    fn a_daemon_that_does_not_run_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let expected = "the daemon does not run: nobody listens at SOCKET; \
            start it with `systemctl start spa-server`";
        assert_eq!(error(&dir.path().join("control.sock")), expected);
        let stale = dir.path().join("stale.sock");
        drop(UnixListener::bind(&stale).unwrap());
        assert_eq!(error(&stale), expected);
    }

    #[test]
    fn an_answer_that_is_none_is_told() {
        assert_eq!(
            answering(b""),
            "the daemon did not answer at SOCKET: unexpected end of file; its log says more"
        );
        assert_eq!(
            answering(b"\"don"),
            "the daemon did not answer at SOCKET: unexpected end of file; its log says more"
        );
        assert_eq!(
            answering(b"\"applause\"\n").split(" (").next().unwrap(),
            "the daemon at SOCKET answered what this command does not understand"
        );
        assert!(answering(b"\xff\xfe\n").starts_with("the daemon did not answer at SOCKET"));
        assert_eq!(answering(b"{\"error\":{\"message\":\"no such client\"}}\n"), "no such client");
    }
}
