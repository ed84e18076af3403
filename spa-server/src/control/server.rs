//! The daemon's side of the control socket.

use super::{ControlRequest, ControlResponse, MAX_REQUEST};
use crate::users::observer;
use nix::fcntl::OFlag;
use nix::unistd::{Gid, chown, geteuid};
use std::fs::{OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{
    FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// The most connections at a time; one more is turned away.
const MAX_CONNECTIONS: usize = 16;
/// The most of who may only look; they take no place of the others.
const MAX_OBSERVERS: usize = 4;
/// How long a connection may stay silent, or leave an answer unread.
const IDLE: Duration = Duration::from_secs(30);
/// How long to try to tell a peer that there is no room. A fresh socket's buffer has room.
const TURN_AWAY: Duration = Duration::from_millis(100);
/// How long to wait after an accept that failed, most likely for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Creates the control socket, mode 0600, or 0660 for the group of who may look (see [`may_speak`]), if
/// this process may give it to that. Must be called inside a tokio runtime.
///
/// A socket that a dead daemon left behind is replaced; one that a living daemon answers on is
/// not. The directory is created (0755) when it is missing.
pub fn bind(path: &Path) -> Result<UnixListener, BindError> {
    let failed = |source| BindError::Failed { path: path.into(), source };
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(BindError::NotASocket { path: path.into() });
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            return Err(BindError::InUse { path: path.into() });
        }
        _ => {}
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(directory) = directory {
        std::fs::create_dir_all(directory).map_err(failed)?;
    }
    // The final name appears with the final mode, and over a stale socket in one step.
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(name);
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&temporary).map_err(failed)?;
    adjust(&temporary, observer().map(|observer| observer.group))
        .and_then(|()| std::fs::rename(&temporary, path))
        .map_err(|error| {
            // The first error is the one worth telling.
            drop(std::fs::remove_file(&temporary));
            failed(error)
        })?;
    Ok(listener)
}

/// Has the socket be for its owner, and for this group. It is taken hold of first: whoever can write its
/// directory could put a link in its place.
fn adjust(path: &Path, group: Option<Gid>) -> io::Result<()> {
    let flags = (OFlag::O_PATH | OFlag::O_NOFOLLOW).bits();
    let socket = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = socket.metadata()?;
    if !metadata.file_type().is_socket() || metadata.uid() != geteuid().as_raw() {
        return Err(io::Error::other("somebody has put something else in its place"));
    }
    let itself = PathBuf::from(format!("/proc/self/fd/{}", socket.as_raw_fd()));
    let shared = group.map(|group| chown(&itself, None, Some(group)));
    if let Some(Err(error)) = shared {
        tracing::warn!("metrics can't be told over the control socket: {error}");
    }
    let mode = if let Some(Ok(())) = shared { 0o660 } else { 0o600 };
    std::fs::set_permissions(&itself, Permissions::from_mode(mode))
}

/// Answers requests on `listener` with `handler`, for ever; drop the future to stop.
///
/// Requests of different connections are handled at the same time, those of one connection one
/// after the other. Whatever peers send, the memory that is held for them is bounded.
pub async fn serve<H, F>(listener: UnixListener, handler: H)
where
    H: Fn(ControlRequest) -> F + Send + Sync + 'static,
    F: Future<Output = ControlResponse> + Send + 'static,
{
    serve_within(listener, right_of, handler, IDLE).await;
}

async fn serve_within<R, H, F>(listener: UnixListener, right_of: R, handler: H, idle: Duration)
where
    R: Fn(&UnixStream) -> Result<Right, PeerRefused>,
    H: Fn(ControlRequest) -> F + Send + Sync + 'static,
    F: Future<Output = ControlResponse> + Send + 'static,
{
    let handler = Arc::new(handler);
    let places = |count| Arc::new(Semaphore::new(count));
    let (for_orders, for_observers) = (places(MAX_CONNECTIONS), places(MAX_OBSERVERS));
    // Connections end with this future: nobody is left to answer them.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let mut stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the control socket does not accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let right = match right_of(&stream) {
            Ok(right) => right,
            Err(refused) => {
                tracing::debug!(uid = refused.uid, "a user may not speak on the control socket");
                let refused = ControlResponse::error(&refused);
                drop(answer(&mut stream, &refused, TURN_AWAY).await);
                continue;
            }
        };
        let room = match right {
            Right::Everything => &for_orders,
            Right::Status => &for_observers,
        };
        let Ok(permit) = Arc::clone(room).try_acquire_owned() else {
            let busy = ControlResponse::error(
                &"too many connections to the control socket; try again in a moment",
            );
            drop(answer(&mut stream, &busy, TURN_AWAY).await);
            continue;
        };
        let handler = Arc::clone(&handler);
        connections.spawn(async move {
            if let Err(error) = converse(&mut stream, right, &*handler, idle).await {
                tracing::debug!(%error, "a connection to the control socket ended");
            }
            drop(permit);
        });
    }
}

/// What a peer may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// All there is.
    Everything,
    /// How the daemon is.
    Status,
}

/// What a peer with the user id `uid` may ask of a daemon that runs as `euid`: root everything, and
/// the daemon's own user; `observer` its status.
pub const fn may_speak(uid: u32, euid: u32, observer: Option<u32>) -> Result<Right, PeerRefused> {
    match observer {
        _ if uid == 0 || uid == euid => Ok(Right::Everything),
        Some(observer) if uid == observer => Ok(Right::Status),
        _ => Err(PeerRefused { uid }),
    }
}

fn right_of(stream: &UnixStream) -> Result<Right, PeerRefused> {
    // Who can't be asked for is nobody.
    let uid = stream.peer_cred().map_or(u32::MAX, |peer| peer.uid());
    let observer = observer().map(|observer| observer.user.as_raw());
    may_speak(uid, geteuid().as_raw(), observer)
}

async fn converse<H, F>(
    stream: &mut UnixStream,
    right: Right,
    handler: &H,
    idle: Duration,
) -> io::Result<()>
where
    H: Fn(ControlRequest) -> F,
    F: Future<Output = ControlResponse>,
{
    let mut buffer = Vec::new();
    loop {
        let request = match read_line(stream, &mut buffer, idle).await? {
            Line::Request(request) => request,
            Line::TooLong => {
                let error = format!("a request has at most {MAX_REQUEST} bytes");
                return answer(stream, &ControlResponse::error(&error), idle).await;
            }
            Line::End => return Ok(()),
        };
        let response = match serde_json::from_slice(&request) {
            Ok(request) if right == Right::Everything || request == ControlRequest::Status => {
                handler(request).await
            }
            Ok(_) => ControlResponse::error(&"this user may ask for the status only"),
            Err(error) => ControlResponse::Error {
                message: format!(
                    "the daemon does not understand the request ({error}); are both of the same version? restart the daemon after an update"
                ),
            },
        };
        answer(stream, &response, idle).await?;
    }
}

enum Line {
    Request(Vec<u8>),
    TooLong,
    End,
}

/// The next line, without its end. `buffer` keeps what came after it.
async fn read_line(
    stream: &mut UnixStream,
    buffer: &mut Vec<u8>,
    idle: Duration,
) -> io::Result<Line> {
    timeout(idle, async {
        loop {
            if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let rest = buffer.split_off(end.saturating_add(1));
                buffer.truncate(end);
                return Ok(Line::Request(std::mem::replace(buffer, rest)));
            }
            if buffer.len() >= MAX_REQUEST {
                return Ok(Line::TooLong);
            }
            let room = MAX_REQUEST.saturating_sub(buffer.len());
            let mut limited = (&mut *stream).take(u64::try_from(room).unwrap_or(u64::MAX));
            if limited.read_buf(buffer).await? == 0 {
                return Ok(Line::End);
            }
        }
    })
    .await
    .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

async fn answer(
    stream: &mut UnixStream,
    response: &ControlResponse,
    idle: Duration,
) -> io::Result<()> {
    timeout(idle, stream.write_all(&line(response)))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

fn line(response: &ControlResponse) -> Vec<u8> {
    let mut line = serde_json::to_vec(response).unwrap_or_else(|error| {
        // Maps with text keys and no floats: it can't fail, but the peer must not hang if it does.
        tracing::error!(%error, "a response could not be written as JSON");
        br#"{"error":{"message":"the answer could not be written as JSON"}}"#.to_vec()
    });
    line.push(b'\n');
    line
}

/// A user that may not speak on the control socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("user id {uid} may not speak to the daemon; run the command as root")]
pub struct PeerRefused {
    /// The user.
    pub uid: u32,
}

/// Why the control socket could not be created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Another daemon answers on it.
    #[error(
        "another daemon already answers at {}; stop it first, or set another control-socket",
        path.display()
    )]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else is there.
    #[error("{} is there and is no socket; move it away, or set another control-socket", path.display())]
    NotASocket {
        /// Where the socket should be.
        path: PathBuf,
    },
    /// The system refused.
    #[error("the control socket {} can't be created: {source}", path.display())]
    Failed {
        /// Where the socket should be.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests;
