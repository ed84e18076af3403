//! What stands in for `unix.rs` where the system is no Unix.

#![expect(
    clippy::unnecessary_wraps,
    clippy::unused_self,
    reason = "the signatures are those of unix.rs, where these can fail and are used"
)]

use crate::clock::Synchronised;
use std::fs::{DirBuilder, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

/// None that two processes share.
pub(crate) const fn steady_clock() -> Option<Duration> {
    None
}

/// The user's own directories are that already.
pub(crate) const fn for_owner_only(_: &mut OpenOptions) {}

/// It lies in the user's own directory.
pub(crate) fn is_for_owner_only(file: &Metadata) -> bool {
    file.is_file()
}

/// Not in one step.
pub(crate) fn exchange(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Standard input and output; whoever writes flushes.
pub(crate) fn raw_streams() -> io::Result<(impl Read + Send, impl Write)> {
    Ok((io::stdin(), io::stdout()))
}

/// Not while the program goes on.
pub(crate) fn end_output() -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Whether ssh can be handed a connection.
pub(crate) const HANDS_OVER: bool = false;

/// Nobody takes it.
pub(crate) const fn hand_over(_: &TcpStream) -> io::Result<bool> {
    Ok(false)
}

/// Runs that program in place of this one.
pub(crate) fn become_program(command: &mut Command) -> io::Result<ExitStatus> {
    command.status()
}

/// The exit code of a program that ended like this.
pub(crate) fn exit_code(status: ExitStatus) -> u8 {
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// The console tells all its programs, and each does what it likes.
pub(crate) struct SignalsOfChild;

impl SignalsOfChild {
    pub(crate) const fn taken() -> io::Result<Self> {
        Ok(Self)
    }

    pub(crate) fn wait(&self, child: &mut Child) -> io::Result<ExitStatus> {
        child.wait()
    }
}

/// What guards the directory here is that it lies in the user's own.
pub(crate) fn private_directory() -> DirBuilder {
    DirBuilder::new()
}

/// Nobody is known here who could be asked.
pub(crate) const fn clock_state() -> Synchronised {
    Synchronised::NotKnown
}
