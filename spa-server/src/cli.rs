//! The command line of `spa-server`.

use crate::commands::{self, CommandError};
use crate::config::{ClientName, ConfigError, DEFAULT_PATH};
use crate::daemon;
use clap::{ArgGroup, Args, Parser, Subcommand};
use spa_proto::Item;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Hides ports from everybody, and opens them for those who send one datagram that proves who they
/// are.
#[derive(Debug, Parser)]
#[command(
    name = "spa-server",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "\
Example, on a fresh server:
  spa-server init
  spa-server client add laptop --public-key spa-public-... --allow ssh
  spa-server check && systemctl enable --now spa-server

Exit status: 0 done, 1 failed, 2 wrong usage, 78 wrong configuration."
)]
struct Cli {
    /// The configuration; the clients are in clients.d beside it.
    #[arg(long, global = true, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon in the foreground, as the systemd unit does.
    Run,
    /// Look for whatever is wrong with this host's installation, and say how to mend it.
    Check(Output),
    /// Write a configuration and the server's key for this host.
    Init(InitArgs),
    /// Add, show and change clients.
    #[command(subcommand)]
    Client(ClientCommand),
    /// Show how the running daemon is.
    Status(Output),
    /// Show or revoke what is open.
    #[command(subcommand)]
    Grants(GrantsCommand),
    /// Have the running daemon read its configuration anew.
    Reload(Output),
    /// Install, show or remove the firewall rules without the daemon.
    #[command(subcommand)]
    Gate(GateCommand),
}

/// How to write data.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Output {
    /// Write JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  spa-server init

Writes server.toml, server.key and clients.d, and makes the directory for the state. It overwrites
nothing: an existing server.key is used, an existing server.toml ends it. Prints the server's
public key.")]
pub(crate) struct InitArgs {
    /// Put everything, state and control socket included, below this directory.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Subcommand)]
enum ClientCommand {
    /// Let a client in.
    Add(AddArgs),
    /// Show all clients.
    List(Output),
    /// Show one client.
    Show(ShowArgs),
    /// Remove a client and revoke what it has open.
    Remove(NameArgs),
    /// Lock a client out without removing it.
    Disable(NameArgs),
    /// Let a disabled client in again.
    Enable(NameArgs),
    /// Forget which knocks of a client were accepted, after its clock was far ahead.
    ResetReplay(ResetArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  spa-server client add laptop --public-key spa-public-... --allow ssh
  spa-server client add backup --allow ssh,db --source 192.0.2.0/24 --expires 90d

Without --public-key a key pair is made, and its private half written to ./NAME.key for the client.
Better: run `spa-client keygen` there, and add what it prints. Prints the command that the client's
user runs next.")]
pub(crate) struct AddArgs {
    /// What to call it.
    pub(crate) name: ClientName,
    /// Its public key, as `spa-client keygen` prints it.
    // A text: the parser would echo what it refuses, and that might be a private key.
    #[arg(long, value_name = "KEY")]
    pub(crate) public_key: Option<String>,
    /// The services that it may open.
    #[arg(long, required = true, value_delimiter = ',', value_name = "SERVICE[,SERVICE]")]
    pub(crate) allow: Vec<String>,
    /// The longest time that it may ask for, as in 5m [default: 1h].
    #[arg(long, value_name = "TIME")]
    pub(crate) max_lifetime: Option<String>,
    /// A network that it may knock from; may be repeated [default: anywhere].
    #[arg(long = "source", value_name = "NETWORK")]
    pub(crate) sources: Vec<String>,
    /// When it is locked out: a date, a time with offset, or a duration from now, as in 90d.
    #[arg(long, value_name = "WHEN")]
    pub(crate) expires: Option<String>,
    /// Make a pre-shared key too; the client's copy goes to ./NAME.psk.
    #[arg(long)]
    pub(crate) psk: bool,
    /// Take only knocks that name the address that they come from.
    #[arg(long)]
    pub(crate) require_bound_source: bool,
    /// Where to write the private key that is made.
    #[arg(long, value_name = "FILE", conflicts_with = "public_key")]
    pub(crate) private_key_out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
struct NameArgs {
    /// The client's name.
    name: ClientName,
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// The client's name.
    name: ClientName,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("which").required(true),
    after_help = "\
Example:
  spa-server client reset-replay laptop

A client whose clock was once years ahead is locked out until then, since only later knocks are
taken. After the reset, knocks of the last minute or so that somebody recorded could be sent again.
Make sure first that the client's clock is right."
)]
pub(crate) struct ResetArgs {
    /// The client's name.
    #[arg(group = "which")]
    pub(crate) name: Option<ClientName>,
    /// All clients, and the barrier that stands after an unclean start.
    #[arg(long, group = "which")]
    pub(crate) all: bool,
}

#[derive(Debug, Subcommand)]
enum GrantsCommand {
    /// Show what is open.
    List(Output),
    /// Close what is open, before its time. Connections that were made live on.
    Revoke(RevokeArgs),
}

#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("what").required(true).multiple(true),
    after_help = "\
Examples:
  spa-server grants revoke laptop
  spa-server grants revoke --source 192.0.2.7 --service ssh

A grant is revoked when it matches everything that is given. Revoking locks nobody out: see
`spa-server client disable`."
)]
pub(crate) struct RevokeArgs {
    /// Those of this client.
    #[arg(group = "what")]
    pub(crate) client: Option<String>,
    /// Those of this address.
    #[arg(long, group = "what", value_name = "ADDRESS")]
    pub(crate) source: Option<IpAddr>,
    /// Those of this service, or port as in tcp/22, as it was asked for.
    #[arg(long, group = "what")]
    pub(crate) service: Option<Item>,
    /// All.
    #[arg(long, group = "what", conflicts_with_all = ["client", "source", "service"])]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum GateCommand {
    /// Put the rules and sets in place, as the daemon does when it starts.
    Install(Output),
    /// Show whether the gate is in place, and what it admits.
    Show(Output),
    /// Take all rules and sets away; needs no configuration. Every port is as it was before.
    Remove,
}

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
        Command::Run => return run_daemon(&config),
        Command::Check(output) => commands::check::run(&config, output),
        Command::Init(args) => commands::init::run(&config, args),
        Command::Client(command) => match command {
            ClientCommand::Add(args) => commands::client_add::run(&config, &args),
            ClientCommand::List(output) => commands::client::list(&config, output),
            ClientCommand::Show(args) => commands::client::show(&config, &args.name, args.output),
            ClientCommand::Remove(args) => commands::client::remove(&config, &args.name),
            ClientCommand::Disable(args) => {
                commands::client::set_enabled(&config, &args.name, false)
            }
            ClientCommand::Enable(args) => commands::client::set_enabled(&config, &args.name, true),
            ClientCommand::ResetReplay(args) => commands::daemon::reset_replay(&config, args),
        },
        Command::Status(output) => commands::daemon::status(&config, output),
        Command::Grants(GrantsCommand::List(output)) => {
            commands::daemon::grants_list(&config, output)
        }
        Command::Grants(GrantsCommand::Revoke(args)) => {
            commands::daemon::grants_revoke(&config, args)
        }
        Command::Reload(output) => commands::daemon::reload(&config, output),
        Command::Gate(command) => match command {
            GateCommand::Install(output) => commands::gate::install(&config, output),
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

fn run_daemon(config: &Path) -> u8 {
    let Err(error) = daemon::run(config) else { return 0 };
    eprintln!("spa-server: {error:#}");
    let mut causes = error.chain();
    if causes.any(<dyn std::error::Error>::is::<ConfigError>) {
        commands::CONFIG
    } else {
        commands::FAILED
    }
}
