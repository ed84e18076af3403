//! The words of the command line.

use super::completions::{CompleteArgs, CompletionsArgs};
use super::doctor::DoctorArgs;
use super::export::{ExportArgs, ImportArgs};
use super::join::JoinArgs;
use super::keep::Meanwhile;
use super::key::KeyCommand;
use super::late::Late;
use super::man::ManArgs;
use super::open::Settings;
use super::proxy::ProxyArgs;
use super::rotate::RotateArgs;
use super::setup::SetupCommand;
use super::ssh::SshArgs;
use super::status::StatusArgs;
use crate::duration::{Lifetime, LifetimeError};
use crate::knock::Family;
use crate::server::{Connections, Host, ServerName, Service};
use crate::source::BindSource;
use crate::target::Target;
use clap::{Args, Parser, Subcommand};
use core::num::NonZeroU16;
use core::time::Duration;
use spa_proto::{DurationError, ItemError, PacketLength, ServiceName, parse_duration_or_seconds};
use std::ffi::OsString;
use std::io::{self, IsTerminal as _};
use std::path::PathBuf;

/// Opens a server's ports for this machine, and for nobody else, with one encrypted datagram.
#[derive(Debug, Parser)]
#[command(
    name = "spa-client",
    version,
    arg_required_else_help = true,
    after_help = "\
Examples:
  spa-client keygen
  spa-client server add work --host gw.example.org --public-key spa-public-...
  spa-client open ssh && ssh gw.example.org

Configuration: ~/.config/spa/config.toml, or config.toml in $SPA_CONFIG_DIR.
Exit status: 0 done, 1 failed, 2 wrong usage, 78 wrong configuration."
)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Get to know a server by its invitation: makes the key, and tries it.
    Join(Late<JoinArgs>),
    /// Open services or ports for this machine.
    Open(Late<OpenArgs>),
    /// Close what this machine had opened, before its time is over.
    Close(Late<CloseArgs>),
    /// Connect to a server's port, for ssh's ProxyCommand.
    Proxy(Late<ProxyArgs>),
    /// Run ssh to a server, knocking first.
    Ssh(Late<SshArgs>),
    /// Have other programs knock by themselves.
    #[command(subcommand)]
    Setup(Late<SetupCommand>),
    /// Show what this client has asked for, and until when.
    Status(Late<StatusArgs>),
    /// Show the servers and services known here.
    List(Late<ListArgs>),
    /// Add or remove a server.
    #[command(subcommand)]
    Server(Late<ServerCommand>),
    /// Make this client's key; prints the public half.
    Keygen(Late<KeygenArgs>),
    /// Give a server a new key of this client in the place of the old one.
    Rotate(Late<RotateArgs>),
    /// Show a key's public half, change its passphrase, copy it.
    #[command(subcommand)]
    Key(Late<KeyCommand>),
    /// Write a server with its key for a second device; an own key for that is better.
    Export(Late<ExportArgs>),
    /// Read what `export` has written on another device.
    Import(Late<ImportArgs>),
    /// Find out why a port does not open, and say what to do about it.
    Doctor(Late<DoctorArgs>),
    /// Print a script for the shell's completions: bash, zsh or fish.
    Completions(Late<CompletionsArgs>),
    /// What the scripts ask.
    #[command(hide = true)]
    Complete(Late<CompleteArgs>),
    /// Write the manual pages.
    #[command(hide = true)]
    Man(Late<ManArgs>),
}

#[derive(Debug, Args)]
pub(super) struct CommonArgs {
    /// What is meant: a service (ssh) or a port (tcp/8022), at a server (ssh@work) or the default
    /// one.
    #[arg(required = true, value_name = "SERVICE[@SERVER]")]
    pub(super) targets: Vec<Target>,
    /// The server of all that names none.
    #[arg(long, value_name = "NAME")]
    pub(super) server: Option<ServerName>,
    /// Knock on the server's IPv4 addresses only.
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    ipv4: bool,
    /// Knock on the server's IPv6 addresses only.
    #[arg(short = '6', long)]
    ipv6: bool,
    /// The only address that the knock holds for: observed (none), auto (this machine's own if it
    /// is a global one), or an address.
    #[arg(long, value_name = "SOURCE")]
    pub(super) source: Option<BindSource>,
    /// Say what is sent where.
    #[arg(short, long, conflicts_with = "quiet")]
    pub(super) verbose: bool,
    /// Say nothing but errors.
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Write the result to standard output as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

impl CommonArgs {
    pub(super) const fn family(&self) -> Family {
        Family::of_flags(self.ipv4, self.ipv6)
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  spa-client open ssh                        at the default server
  spa-client open ssh@work tcp/8443@home     at two servers at once
  spa-client open web --while -- curl -fO http://gw.example.org/file

A server never answers a knock. --wait probes the services' TCP ports (those in the
configuration; ssh, http and https are known) until they are open, and knocks again
after 1, 3, 5 ... seconds. Not probed: UDP, ranges, what lets one connection in.")]
pub(super) struct OpenArgs {
    #[command(flatten)]
    pub(super) common: CommonArgs,
    /// How long new connections are let in, as in 30s, 5m, 1h30m [default: the server's].
    #[arg(long, value_name = "TIME", value_parser = lifetime)]
    lifetime: Option<Lifetime>,
    /// Wait until it is open [default where standard output or error is a terminal].
    #[arg(long, overrides_with = "no_wait")]
    wait: bool,
    /// Send the knock and leave.
    #[arg(long, overrides_with = "wait")]
    no_wait: bool,
    /// How long to wait.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = timeout)]
    timeout: Duration,
    /// Knock also where a knock of before still holds.
    #[arg(long)]
    fresh: bool,
    /// Run COMMAND, keep it open meanwhile, and end as COMMAND does.
    #[arg(long = "while", requires = "command", conflicts_with = "json")]
    is_while: bool,
    /// Close when COMMAND has ended.
    #[arg(long, requires = "is_while")]
    close_after: bool,
    /// What --while runs.
    #[arg(last = true, requires = "is_while", value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl OpenArgs {
    /// What is to run once it is open.
    pub(super) fn meanwhile(&self) -> Option<Meanwhile> {
        let Self { command, close_after, .. } = self;
        self.is_while.then(|| Meanwhile { command: command.clone(), close_after: *close_after })
    }

    pub(super) fn settings(&self) -> Settings {
        // Either one: somebody is there who waits anyway, in `open ssh | ...`, in `open ssh 2>log`
        // and below `ssh`, which hands its terminal on.
        let on_terminal = || io::stdout().is_terminal() || io::stderr().is_terminal();
        let wait = self.wait || (!self.no_wait && (self.is_while || on_terminal()));
        Settings {
            lifetime: self.lifetime,
            wait: wait.then_some(self.timeout),
            insists: self.wait,
            fresh: self.fresh,
            keeps: self.is_while,
        }
    }
}

fn lifetime(text: &str) -> Result<Lifetime, LifetimeError> {
    parse_duration_or_seconds(text)?.try_into()
}

/// A timeout may also be less than a second, as in `500ms`.
pub(super) fn timeout(text: &str) -> Result<Duration, DurationError> {
    let is_number = |text: &&str| text.bytes().all(|byte| byte.is_ascii_digit());
    match text.strip_suffix("ms").filter(is_number).and_then(|number| number.parse().ok()) {
        Some(milliseconds) => Ok(Duration::from_millis(milliseconds)),
        None => parse_duration_or_seconds(text),
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  spa-client close ssh@work

Nothing is probed afterwards: a grant ends by itself too. What others behind the same
address have opened stays open.")]
pub(super) struct CloseArgs {
    #[command(flatten)]
    pub(super) common: CommonArgs,
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Write JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum ServerCommand {
    /// Add a server to the configuration; the first one becomes the default.
    Add(AddArgs),
    /// Note a server's new key: what `spa-server rotate-key` prints.
    SetKey(SetKeyArgs),
    /// Remove a server from the configuration. Key files stay.
    Remove(RemoveArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  spa-client server add work --host gw.example.org --public-key spa-public-...
  spa-client server add home --host 192.0.2.7 --public-key spa-public-... \\
      --service ssh=tcp/2222 --service media=tcp/443,udp/10000-10100 \\
      --service desk=tcp/5900,once

`spa-server client add` prints the line to run.")]
pub(super) struct AddArgs {
    /// What to call it here.
    #[arg(value_name = "NAME")]
    pub(super) name: ServerName,
    /// Its name or address.
    #[arg(long)]
    pub(super) host: Host,
    /// Its public key, as `spa-server init` shows it.
    // A text: the parser would echo what it refuses, and that might be a private key.
    #[arg(long, value_name = "KEY")]
    pub(super) public_key: String,
    /// A UDP port to knock at, the preferred one first [default: 62201].
    #[arg(long = "knock-port", value_name = "PORT")]
    pub(super) knock_ports: Vec<NonZeroU16>,
    /// Where a service listens, which --wait probes, with commas between; ssh (tcp/22), http and
    /// https are known. `once`: it lets one connection in.
    #[arg(long = "service", value_name = "NAME=PORTS[,once]", value_parser = service)]
    pub(super) services: Vec<NamedService>,
    /// The file of this client's private key, or secret-service:NAME [default: identity.key].
    #[arg(long, value_name = "FILE")]
    pub(super) identity: Option<PathBuf>,
    /// The file of a pre-shared key.
    #[arg(long, value_name = "FILE")]
    pub(super) pre_shared_key_file: Option<PathBuf>,
    /// The server's plaintext-length, where it has another than 128.
    #[arg(long, value_name = "BYTES", value_parser = length)]
    pub(super) plaintext_length: Option<PacketLength>,
    /// Make it the default server.
    #[arg(long)]
    pub(super) default: bool,
    /// Write what was added as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  spa-client server set-key work spa-public-...

The key comes from the server's administrator, on a way that you trust. This client's own key
stays.")]
pub(super) struct SetKeyArgs {
    /// The server.
    #[arg(value_name = "NAME")]
    pub(super) name: ServerName,
    /// Its new public key.
    // A text: the parser would echo what it refuses, and that might be a private key.
    #[arg(value_name = "KEY")]
    pub(super) public_key: String,
    /// Write the result to standard output as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

fn length(text: &str) -> Result<PacketLength, String> {
    let bytes: u16 = text.parse().map_err(|error: core::num::ParseIntError| error.to_string())?;
    PacketLength::try_from(bytes).map_err(|error| error.to_string())
}

/// A service, and what it is called.
#[derive(Debug, Clone)]
pub(super) struct NamedService {
    pub(super) name: ServiceName,
    pub(super) service: Service,
}

fn service(text: &str) -> Result<NamedService, String> {
    let (name, ports) = text
        .split_once('=')
        .ok_or("write a name and ports, as in ssh=tcp/2222 or mail=tcp/465,tcp/993")?;
    let name = name.parse().map_err(|error: ItemError| error.to_string())?;
    let (ports, connections) = match ports.strip_suffix(",once") {
        Some(ports) => (ports, Connections::One),
        None => (ports, Connections::Any),
    };
    let ports = ports.split(',').map(str::parse).collect::<Result<_, ItemError>>();
    let ports = ports.map_err(|error| error.to_string())?;
    Ok(NamedService { name, service: Service { ports, connections } })
}

#[derive(Debug, Args)]
pub(super) struct RemoveArgs {
    /// The server's name.
    #[arg(value_name = "NAME")]
    pub(super) name: ServerName,
    /// Write what was removed as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  spa-client keygen --encrypt")]
pub(super) struct KeygenArgs {
    /// The file to write, or secret-service:NAME for the desktop's keyring [default: identity.key in
    /// the configuration directory].
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    /// Put the key under a passphrase, which is asked for.
    #[arg(long)]
    pub(super) encrypt: bool,
    /// Known only to be refused: a key that was replaced is a lock-out.
    #[arg(long, hide = true)]
    pub(super) force: bool,
    /// Write the public key and the file as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_that_has_a_result_writes_it_as_json() {
        fn without(command: &clap::Command, path: &str) -> Vec<String> {
            if command.has_subcommands() {
                let below = command.get_subcommands();
                return below
                    .flat_map(|it| without(it, &format!("{path} {}", it.get_name())))
                    .collect();
            }
            let has = command.get_arguments().any(|it| it.get_long() == Some("json"));
            if has { Vec::new() } else { vec![path.trim_start().into()] }
        }
        // Their standard output is a connection, another program's, or a file for another one.
        let mut command = Cli::command().disable_help_subcommand(true);
        command.build();
        assert_eq!(without(&command, ""), ["proxy", "ssh", "completions", "complete", "man"]);
    }

    #[test]
    fn the_last_of_wait_and_no_wait_counts() {
        let wait = |words: &[&str]| {
            let words = ["spa-client", "open", "ssh"].iter().chain(words);
            match Cli::try_parse_from(words).unwrap().command {
                Command::Open(Late(args)) => args.settings().wait.is_some(),
                other => panic!("{other:?}"),
            }
        };
        assert!(wait(&["--wait"]));
        assert!(!wait(&["--no-wait"]));
        assert!(!wait(&["--wait", "--no-wait"]));
        assert!(wait(&["--no-wait", "--wait"]));
    }

    #[test]
    fn times_are_read_as_the_server_reads_them_and_plain_numbers_are_seconds() {
        let given = |words: &[&str]| {
            let words = ["spa-client", "open", "ssh", "--wait"].iter().chain(words);
            match Cli::try_parse_from(words)?.command {
                Command::Open(Late(args)) => {
                    let settings = args.settings();
                    Ok((settings.lifetime.map(|it| it.0.get()), settings.wait))
                }
                other => panic!("{other:?}"),
            }
        };
        for (text, seconds) in [("3", 3), ("90s", 90), ("1h30m", 5400), ("2d", 172_800)] {
            let both: Result<_, clap::Error> = given(&["--lifetime", text, "--timeout", text]);
            assert_eq!(both.unwrap(), (Some(seconds), Some(Duration::from_secs(seconds.into()))));
        }
        assert_eq!(given(&["--timeout", "250ms"]).unwrap().1, Some(Duration::from_millis(250)));
        for (option, text) in [
            ("--lifetime", "0"),
            ("--lifetime", "250ms"),
            ("--lifetime", "30m1h"),
            ("--timeout", "+3ms"),
            ("--timeout", "ms"),
            ("--timeout", "1.5"),
        ] {
            assert!(given(&[option, text]).is_err(), "{option} {text}");
        }
    }
}
