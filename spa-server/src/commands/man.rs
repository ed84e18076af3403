//! The hidden `spa-server man`: its manual pages.

use super::{CommandError, Done};
use crate::cli::ManArgs;
use clap::Command;
use spa_man::Section;

/// `spa-server man`; `program` is the whole command line.
pub(crate) fn run(program: Command, args: &ManArgs) -> Done {
    let path = &args.directory;
    spa_man::write(program, Section::SystemAdministration, path)
        .map_err(|source| CommandError::Write { path: path.clone(), source })
}
