//! What `unix.rs` has, for systems that are not Unix: as much of it as `std` can do everywhere.

use crate::clock::Synchronised;
use std::fs::DirBuilder;

/// What guards the directory here is that it lies in the user's own.
pub(crate) fn private_directory() -> DirBuilder {
    DirBuilder::new()
}

/// Nobody is known here who could be asked.
pub(crate) const fn clock_state() -> Synchronised {
    Synchronised::NotKnown
}
