//! What key files need from a system that is not Unix: as much as `std` has.
//!
//! Owner and mode are not looked at; what guards the file is the user's own directory.

use super::{Audience, KeyFileError};
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::path::Path;

pub(super) fn open_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true);
    options
}

#[expect(clippy::unnecessary_wraps, reason = "Unix refuses files here")]
pub(super) fn check_owner_and_mode(
    _: &Path,
    _: &Metadata,
    _: Option<super::Daemon>,
) -> Result<(), KeyFileError> {
    Ok(())
}

pub(super) fn type_name(file: &Metadata) -> &'static str {
    if file.is_dir() { "a directory" } else { "something else" }
}

pub(super) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).open(path)
}

#[expect(clippy::unnecessary_wraps, reason = "Unix can fail here")]
pub(super) fn set_audience(_: &File, _: Audience) -> io::Result<()> {
    Ok(())
}

/// Directories can't be opened as files here.
#[expect(clippy::unnecessary_wraps, reason = "Unix can fail here")]
pub(super) fn sync_directory(_: &Path) -> io::Result<()> {
    Ok(())
}
