//! What only Unix has. Its portable stand-in is `portable.rs`; nothing else in this crate may know
//! which system it runs on.

use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, dup2_stdout};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// A clock that nobody sets, counted from the machine's start.
pub(crate) fn steady_clock() -> Option<Duration> {
    clock_gettime(ClockId::CLOCK_MONOTONIC).ok().map(Duration::from)
}

/// Whoever makes a file with these options makes it for its owner only.
pub(crate) fn for_owner_only(options: &mut OpenOptions) {
    options.mode(0o600);
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
