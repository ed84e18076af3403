//! The command line `spa-client`.
//!
//! Data goes to standard output, messages to standard error. Exit status: 0 done, 1 failed,
//! 2 usage, 78 configuration.

mod announcing;
mod args;
mod completions;
mod doctor;
mod export;
mod join;
mod keep;
mod key;
mod keygen;
mod late;
mod man;
mod open;
mod passphrase;
mod proxy;
mod report;
mod rotate;
mod servers;
mod setup;
mod spinner;
mod ssh;
mod status;

use crate::config::{Config, ConfigError};
use crate::key_source::KeyError;
use crate::knock::KnockError;
use args::{Cli, Command, ServerCommand};
use clap::Parser as _;
use late::Late;
use spa_keys::{KeyFileError, KeyTextError, NoRandomness};
use spa_proto::{ItemError, MessageType};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

/// Runs the program: reads the command line, does what it says, tells what went wrong.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match run(cli.command) {
        Ok(code) => code,
        // Standard output has said it all.
        Err(CliError::Told) => ExitCode::FAILURE,
        Err(error) => {
            complain(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

fn complain(error: &CliError) {
    let _ = writeln!(io::stderr(), "error: {error}");
}

fn run(command: Command) -> Result<ExitCode, CliError> {
    let directory = match command {
        // These need no configuration, nor a home to have one in.
        Command::Completions(_) | Command::Complete(_) | Command::Man(_) => PathBuf::new(),
        _ => Config::directory()?,
    };
    let done = match command {
        Command::Ssh(Late(args)) => return ssh::run(&args),
        Command::Open(Late(args)) => {
            let settings = args.settings();
            if let Some(meanwhile) = args.meanwhile() {
                return keep::run(&directory, &args.common, &settings, &meanwhile);
            }
            open::run(&directory, MessageType::Open, &args.common, &settings)
        }
        Command::Close(Late(args)) => {
            open::run(&directory, MessageType::Close, &args.common, &open::Settings::default())
        }
        Command::Proxy(Late(args)) => proxy::run(&directory, &args),
        Command::Setup(Late(command)) => setup::run(&directory, command),
        Command::Status(Late(args)) => status::run(&args),
        Command::List(Late(args)) => servers::list(&directory, &args),
        Command::Server(Late(ServerCommand::Add(args))) => servers::add(&directory, args),
        Command::Server(Late(ServerCommand::SetKey(args))) => servers::set_key(&directory, &args),
        Command::Server(Late(ServerCommand::Remove(args))) => servers::remove(&directory, &args),
        Command::Keygen(Late(args)) => keygen::run(&directory, args),
        Command::Key(Late(command)) => key::run(&directory, command),
        Command::Export(Late(args)) => export::export(&directory, args),
        Command::Import(Late(args)) => export::import(&directory, args),
        Command::Join(Late(args)) => join::run(&directory, &args),
        Command::Rotate(Late(args)) => rotate::run(&directory, &args),
        Command::Doctor(Late(args)) => doctor::run(&directory, &args),
        Command::Completions(Late(args)) => completions::script(&args),
        Command::Complete(Late(args)) => completions::candidates(args),
        Command::Man(Late(args)) => man::run(&args),
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// Writes data to standard output. A reader that has seen enough (`| head`) is no failure.
fn print(data: &str) -> Result<(), CliError> {
    match io::stdout().lock().write_all(data.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(CliError::Output(error)),
        _ => Ok(()),
    }
}

/// Writes a message to standard error.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

fn print_json(value: &impl serde::Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string(value).map_err(io::Error::other).map_err(CliError::Output)?;
    print(&format!("{text}\n"))
}

/// Whatever ends the program early.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Knock(#[from] KnockError),
    #[error(transparent)]
    Items(#[from] ItemError),
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    #[error("the key after --public-key can't be used: {0}")]
    PublicKey(#[from] KeyTextError),
    #[error("{0}")]
    Usage(String),
    #[error("can't write to standard output: {0}")]
    Output(io::Error),
    /// What did not open, or could not be asked for; each on a line, then what to look at.
    #[error("{0}")]
    Failed(String),
    /// What the result itself says already.
    #[error("failed")]
    Told,
}

impl CliError {
    fn exit_code(&self) -> u8 {
        const FAILED: u8 = 1;
        const USAGE: u8 = 2;
        // EX_CONFIG of sysexits.h
        const CONFIGURATION: u8 = 78;
        match self {
            Self::Config(ConfigError::UnknownServer { .. } | ConfigError::WhichServer { .. })
            | Self::Items(_)
            | Self::PublicKey(_)
            | Self::Usage(_)
            | Self::Knock(KnockError::Seal(_) | KnockError::SourceFamily { .. }) => USAGE,
            Self::Config(ConfigError::Exists { .. } | ConfigError::Write { .. }) => FAILED,
            Self::Config(_) | Self::Knock(KnockError::Derive { .. }) => CONFIGURATION,
            Self::Knock(KnockError::Key(error)) => match error {
                // Not wrong, but not to be had just now.
                KeyError::Locked { .. } | KeyError::Command(_) | KeyError::SecretService(_) => {
                    FAILED
                }
                _ => CONFIGURATION,
            },
            Self::Knock(_)
            | Self::KeyFile(_)
            | Self::Key(_)
            | Self::NoRandomness(_)
            | Self::Output(_)
            | Self::Failed(_)
            | Self::Told => FAILED,
        }
    }
}
