//! What only Unix has. Its portable stand-in is `portable.rs`; nothing else in this crate may know
//! which system it runs on.

use crate::clock::Synchronised;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, recv, sendmsg};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, dup2_stdout};
#[cfg(target_os = "linux")]
use rustix::fs::{CWD, RenameFlags, renameat_with};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};
use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, IoSlice, Read as _};
use std::net::TcpStream;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A clock that nobody sets, counted from the machine's start.
pub(crate) fn steady_clock() -> Option<Duration> {
    clock_gettime(ClockId::CLOCK_MONOTONIC).ok().map(Duration::from)
}

/// Whoever makes a file with these options makes it for its owner only.
pub(crate) fn for_owner_only(options: &mut OpenOptions) {
    options.mode(0o600);
}

/// Whether it is a file that only its owner can read, and has no other name.
pub(crate) fn is_for_owner_only(file: &Metadata) -> bool {
    let others_may = file.mode() & 0o077;
    file.is_file() && others_may == 0 && file.nlink() == 1
}

/// Has two files change places, in one step.
#[cfg(target_os = "linux")]
pub(crate) fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    Ok(renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
}

/// Others don't have it, or not alike.
#[cfg(not(target_os = "linux"))]
pub(crate) fn exchange(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Standard input and output without a buffer of the library before them.
pub(crate) fn raw_streams() -> io::Result<(File, File)> {
    let input = io::stdin().as_fd().try_clone_to_owned()?;
    let output = io::stdout().as_fd().try_clone_to_owned()?;
    Ok((input.into(), output.into()))
}

/// Lets whoever reads standard output see its end, while the program goes on.
pub(crate) fn end_output() -> io::Result<()> {
    let nowhere = OpenOptions::new().write(true).open("/dev/null")?;
    Ok(dup2_stdout(nowhere)?)
}

/// Whether ssh can be handed a connection.
pub(crate) const HANDS_OVER: bool = true;

/// Hands the connection to whoever has the other end of the standard streams, and says whether it
/// was taken. ssh with `ProxyUseFdpass` has made both of them one Unix-domain socket, and waits in
/// silence. Pipes take no connection, and who talks already wants the bytes carried.
pub(crate) fn hand_over(stream: &TcpStream) -> io::Result<bool> {
    let (input, output) = raw_streams()?;
    let (read, written) = (input.metadata()?, output.metadata()?);
    let is_one = (read.dev(), read.ino()) == (written.dev(), written.ino());
    let socket = UnixStream::from(OwnedFd::from(output));
    // What is no socket, or one of another kind, has no such address.
    if !is_one || socket.local_addr().is_err() {
        return Ok(false);
    }
    let look = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    if recv(socket.as_raw_fd(), &mut [0], look) != Err(Errno::EAGAIN) {
        return Ok(false);
    }
    let (bytes, streams) = ([IoSlice::new(&[0])], [stream.as_raw_fd()]);
    let rights = [ControlMessage::ScmRights(&streams)];
    sendmsg::<()>(socket.as_raw_fd(), &bytes, &rights, MsgFlags::empty(), None)?;
    Ok(true)
}

/// Becomes that program. Comes back only when it can't.
pub(crate) fn become_program(command: &mut Command) -> io::Result<ExitStatus> {
    Err(command.exec())
}

/// What a shell says of a program that ended like this: its exit code, or 128 and the signal.
pub(crate) fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| Some(status.signal()?.saturating_add(128)));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// While it lives, signals that mean a child don't end this program. Those of the terminal reach
/// the child by themselves, since it is in the same process group; the others are handed on.
pub(crate) struct SignalsOfChild {
    handle: Handle,
    child: Arc<Mutex<Option<Pid>>>,
}

impl SignalsOfChild {
    /// To be made before the child is started: none is lost in between.
    pub(crate) fn taken() -> io::Result<Self> {
        let mut signals = Signals::new([SIGINT, SIGQUIT, SIGTERM, SIGHUP])?;
        let handle = signals.handle();
        let child = Arc::new(Mutex::new(None));
        let to = Arc::clone(&child);
        thread::spawn(move || {
            for signal in signals.forever().filter(|signal| [SIGTERM, SIGHUP].contains(signal)) {
                let child = to.lock().unwrap_or_else(PoisonError::into_inner);
                if let (Some(child), Ok(signal)) = (*child, Signal::try_from(signal)) {
                    let _ = kill(child, signal);
                }
            }
        });
        Ok(Self { handle, child })
    }

    /// Waits for the child.
    pub(crate) fn wait(&self, child: &mut Child) -> io::Result<ExitStatus> {
        let pid = i32::try_from(child.id()).ok().map(Pid::from_raw);
        let set = |pid| *self.child.lock().unwrap_or_else(PoisonError::into_inner) = pid;
        set(pid);
        let status = child.wait();
        set(None);
        status
    }
}

impl Drop for SignalsOfChild {
    fn drop(&mut self) {
        self.handle.close();
    }
}

/// Makes directories that only their owner can look into.
pub(crate) fn private_directory() -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.mode(0o700);
    builder
}

/// Whether the system keeps its clock by others, as far as anybody may ask.
///
/// systemd-timesyncd leaves a file in `/run` as soon as it has set the clock; chronyd tells
/// everybody on this machine who asks by `chronyc`. Both are Linux in practice; elsewhere neither is
/// there.
pub(crate) fn clock_state() -> Synchronised {
    if let Some(state) = timesyncd(Path::new("/run/systemd/timesync")) {
        return state;
    }
    CHRONYC.iter().find_map(|path| chronyd(Path::new(path))).unwrap_or(Synchronised::NotKnown)
}

fn timesyncd(directory: &Path) -> Option<Synchronised> {
    if directory.join("synchronized").exists() {
        Some(Synchronised::Yes("systemd-timesyncd"))
    } else {
        directory.exists().then_some(Synchronised::No("systemd-timesyncd"))
    }
}

const CHRONYC: [&str; 2] = ["/usr/bin/chronyc", "/usr/sbin/chronyc"];
const CHRONYC_TIME_LIMIT: Duration = Duration::from_secs(1);

/// Asks by `program`; `None`: it is not there, or nobody answers it.
fn chronyd(program: &Path) -> Option<Synchronised> {
    let mut child = Command::new(program)
        .args(["-n", "-c", "tracking"])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let start = Instant::now();
    let succeeded = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status.success(),
            Ok(None) if start.elapsed() < CHRONYC_TIME_LIMIT => {
                std::thread::sleep(Duration::from_millis(5));
            }
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                break false;
            }
        }
    };
    let mut answer = String::new();
    child.stdout.take()?.take(4096).read_to_string(&mut answer).ok()?;
    // The last of the fields is the leap status.
    match answer.trim_end().rsplit(',').next() {
        _ if !succeeded => None,
        Some("Not synchronised" | "") | None => Some(Synchronised::No("chronyd")),
        Some(_) => Some(Synchronised::Yes("chronyd")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_state_that_timesyncd_leaves_is_read() {
        let run = tempfile::tempdir().unwrap();
        let directory = run.path().join("timesync");
        assert_eq!(timesyncd(&directory), None);
        fs::create_dir(&directory).unwrap();
        assert_eq!(timesyncd(&directory), Some(Synchronised::No("systemd-timesyncd")));
        fs::write(directory.join("synchronized"), "").unwrap();
        assert_eq!(timesyncd(&directory), Some(Synchronised::Yes("systemd-timesyncd")));
    }

    #[test]
    fn what_chronyc_says_is_read_and_a_silent_one_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let said = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            chronyd(&path)
        };
        let tracking = "echo 7F7F0101,,10,1764374400.1,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,";
        let yes = Some(Synchronised::Yes("chronyd"));
        assert_eq!(said("a", &format!("{tracking}Normal")), yes);
        let not = format!("{tracking}'Not synchronised'");
        assert_eq!(said("b", &not), Some(Synchronised::No("chronyd")));
        assert_eq!(said("c", "echo '506 Cannot talk to daemon'; exit 1"), None);
        let start = Instant::now();
        assert_eq!(said("d", "exec /bin/sleep 20"), None);
        assert!(start.elapsed() < Duration::from_secs(15));
        assert_eq!(chronyd(&directory.path().join("none")), None);
    }
}
