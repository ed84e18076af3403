//! All that the client asks of Unix alone, in one place; what other systems have instead is in
//! `portable.rs`, under the same names.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;

/// Makes directories that only their owner can look into.
pub(crate) fn private_directory() -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.mode(0o700);
    builder
}
