//! The command line of `spa-server`: which command does what it says.

mod grammar;

pub(crate) use grammar::{
    AddArgs, GateInstallArgs, InitArgs, InviteArgs, LogArgs, ManArgs, NotifyArgs, Output,
    RefuseArgs, ResetArgs, RevokeArgs, RotateKeyArgs, RuleArgs,
};

use crate::commands::{self, CommandError};
use crate::config::ConfigError;
use crate::daemon;
use crate::helper;
use clap::{CommandFactory as _, Parser as _};
use grammar::{Cli, ClientCommand, Command, GateCommand, GrantsCommand};
use std::process::ExitCode;

/// Runs the program with the arguments of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = u8::try_from(error.exit_code()).unwrap_or(commands::USAGE);
            // Nobody is left to tell that the help could not be written.
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    ExitCode::from(run(cli))
}

fn run(cli: Cli) -> u8 {
    // Paths that follow from this one have to hold wherever they are used.
    let config = std::path::absolute(&cli.config).unwrap_or(cli.config);
    let done = match cli.command {
        Command::Run(args) => return run_daemon(daemon::run(&config, args.helper.as_deref())),
        Command::GateHelper => return run_daemon(helper::run(&config)),
        Command::Check(output) => commands::check::run(&config, output),
        Command::Init(args) => commands::init::run(&config, args),
        Command::Invite(args) => commands::invite::run(&config, &args),
        Command::RotateKey(args) => commands::rotate_key::run(&config, &args),
        Command::Client(command) => match command {
            ClientCommand::Add(args) => commands::client_add::run(&config, &args),
            ClientCommand::List(output) => commands::client::list(&config, output),
            ClientCommand::Show(args) => commands::client::show(&config, &args.name, args.output),
            ClientCommand::Remove(args) => commands::client::remove(&config, &args.name, args.cut),
            ClientCommand::Disable(args) => {
                commands::client::disable(&config, &args.name, args.cut)
            }
            ClientCommand::Enable(args) => commands::client::enable(&config, &args.name),
            ClientCommand::WithdrawKey(args) => commands::daemon::withdraw_key(&config, &args.name),
            ClientCommand::ResetReplay(args) => commands::daemon::reset_replay(&config, args),
        },
        Command::Status(output) => commands::daemon::status(&config, output),
        Command::Top => commands::top::run(&config),
        Command::Log(args) => commands::log::run(&args),
        Command::Notify(args) => commands::notify::run(&args),
        Command::Metrics(args) => commands::metrics::run(&config, args.http),
        Command::Grants(GrantsCommand::List(output)) => {
            commands::daemon::grants_list(&config, output)
        }
        Command::Grants(GrantsCommand::Revoke(args)) => {
            commands::daemon::grants_revoke(&config, args)
        }
        Command::Refuse(args) => commands::refuse::run(&config, &args),
        Command::HandOver => commands::hand_over::run(&config),
        Command::Reload(output) => commands::daemon::reload(&config, output),
        Command::Man(args) => commands::man::run(Cli::command(), &args),
        Command::Gate(command) => match command {
            GateCommand::Install(args) if args.boot => {
                commands::boot::install(&config, args.output)
            }
            GateCommand::Install(args) => commands::gate::install(&config, &args),
            GateCommand::Confirm(args) => commands::trial::confirm(&config, args.from_console),
            GateCommand::Show(output) => commands::gate::show(&config, output),
            GateCommand::Remove => commands::gate::remove(&config),
        },
    };
    match done {
        Ok(()) => 0,
        Err(error) => {
            if !matches!(error, CommandError::Told { .. }) {
                eprintln!("spa-server: {error}");
            }
            error.exit_code()
        }
    }
}

fn run_daemon(ended: anyhow::Result<()>) -> u8 {
    let Err(error) = ended else { return 0 };
    eprintln!("spa-server: {error:#}");
    let mut causes = error.chain();
    if causes.any(<dyn std::error::Error>::is::<ConfigError>) {
        commands::CONFIG
    } else {
        commands::FAILED
    }
}

#[cfg(test)]
mod tests;
