//! The hidden `spa-client man`: its manual pages.

use super::CliError;
use super::args::Cli;
use clap::{Args, CommandFactory as _};
use spa_man::Section;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// The directory to write the pages to.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

pub(super) fn run(args: &ManArgs) -> Result<(), CliError> {
    let directory = &args.directory;
    spa_man::write(Cli::command(), Section::UserCommands, directory).map_err(|error| {
        CliError::Failed(format!("can't write to {}: {error}", directory.display()))
    })
}
