//! Commands whose words are defined when they are the ones that were given.
//!
//! To define the words of all of them takes a fair part of the time of a knock.

use clap::{ArgMatches, Args, Command, Error, FromArgMatches, Subcommand};

/// The words of one command. Whoever looks at all commands [builds](Command::build) them first.
#[derive(Debug)]
pub(super) struct Late<T>(pub(super) T);

impl<T: FromArgMatches> FromArgMatches for Late<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        T::from_arg_matches(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        self.0.update_from_arg_matches(matches)
    }
}

impl<T: Args> Args for Late<T> {
    fn augment_args(command: Command) -> Command {
        command.defer(T::augment_args)
    }

    fn augment_args_for_update(command: Command) -> Command {
        command.defer(T::augment_args_for_update)
    }
}

/// What has commands below it.
impl<T: Subcommand> Subcommand for Late<T> {
    fn augment_subcommands(command: Command) -> Command {
        command.defer(T::augment_subcommands)
    }

    fn augment_subcommands_for_update(command: Command) -> Command {
        command.defer(T::augment_subcommands_for_update)
    }

    fn has_subcommand(name: &str) -> bool {
        T::has_subcommand(name)
    }
}

impl<T: Subcommand> Late<T> {
    /// Defines the commands below `command` at once.
    pub(super) fn now(command: Command) -> Command {
        T::augment_subcommands(command).defer(core::convert::identity)
    }
}
