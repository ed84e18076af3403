//! `spa-client completions`, which prints a shell's script, and the hidden `spa-client complete`,
//! which the scripts ask: only this program knows the services and servers of the configuration.

use super::args::{Cli, ServerCommand};
use super::key::KeyCommand;
use super::late::Late;
use super::setup::SetupCommand;
use super::{CliError, print};
use crate::config::Config;
use crate::server::Server;
use clap::{Args, CommandFactory as _, ValueEnum};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate, complete};
use core::fmt::Write as _;
use std::ffi::{OsStr, OsString};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  source <(spa-client completions bash)          in ~/.bashrc
  source <(spa-client completions zsh)           in ~/.zshrc, after compinit
  spa-client completions fish | source           in ~/.config/fish/config.fish

`make install` puts the scripts where the shells look for them by themselves.")]
pub(super) struct CompletionsArgs {
    /// Which one.
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

#[derive(Debug, Args)]
pub(super) struct CompleteArgs {
    /// The command line so far, the program included; the last word is the one to complete.
    #[arg(allow_hyphen_values = true, trailing_var_arg = true)]
    words: Vec<OsString>,
}

pub(super) fn script(args: &CompletionsArgs) -> Result<(), CliError> {
    print(match args.shell {
        Shell::Bash => include_str!("completions/spa-client.bash"),
        Shell::Zsh => include_str!("completions/_spa-client"),
        Shell::Fish => include_str!("completions/spa-client.fish"),
    })
}

/// Prints a candidate a line, with a tab and what it is behind it.
pub(super) fn candidates(args: CompleteArgs) -> Result<(), CliError> {
    let Some(last) = args.words.len().checked_sub(1) else { return Ok(()) };
    let wants_option = args.words.last().is_some_and(|it| it.to_string_lossy().starts_with('-'));
    let here = std::env::current_dir().ok();
    // `help` copies the names of commands before those that are late are there.
    let mut command = Cli::command()
        .mut_subcommand("setup", Late::<SetupCommand>::now)
        .mut_subcommand("server", Late::<ServerCommand>::now)
        .mut_subcommand("key", Late::<KeyCommand>::now);
    // Before that, the words of the commands are not there.
    command.build();
    let mut command = with_names(command);
    let found = complete(&mut command, args.words, last, here.as_deref());
    let found = found.map_err(CliError::Output)?;
    let is_option = |it: &CompletionCandidate| it.get_value().to_string_lossy().starts_with('-');
    // Options only for who begins one, unless nothing else can follow.
    let options = wants_option || found.iter().all(is_option);
    let mut text = String::new();
    for candidate in found.iter().filter(|it| options || !is_option(it)) {
        if candidate.is_hide_set() {
            continue;
        }
        let help = candidate.get_help().map(ToString::to_string).unwrap_or_default();
        let value = candidate.get_value().to_string_lossy();
        let _ = match help.lines().next() {
            Some(help) => writeln!(text, "{value}\t{help}"),
            None => writeln!(text, "{value}"),
        };
    }
    print(&text)
}

/// Tells the parser where names are wanted, wherever an argument is called as those here are.
fn with_names(command: clap::Command) -> clap::Command {
    let is_add = command.get_name() == "add";
    command
        .mut_args(|arg| match arg.get_id().as_str() {
            "targets" => arg.add(ArgValueCompleter::new(targets)),
            "service" if !is_add => arg.add(ArgValueCompleter::new(services)),
            "server" => arg.add(ArgValueCompleter::new(servers)),
            "name" if !is_add => arg.add(ArgValueCompleter::new(servers)),
            _ => arg,
        })
        .mut_subcommands(with_names)
}

fn config() -> Option<Config> {
    Config::load(&Config::directory().ok()?).ok()
}

fn servers(word: &OsStr) -> Vec<CompletionCandidate> {
    let names = |config: Config| -> Vec<_> {
        let describe = |server: &Server| {
            CompletionCandidate::new(server.name.as_str())
                .help(Some(server.host.to_string().into()))
        };
        config.servers().map(describe).collect()
    };
    beginning_with(word, config().map(names).unwrap_or_default())
}

fn services(word: &OsStr) -> Vec<CompletionCandidate> {
    let names = |config: Config| -> Vec<_> {
        let services = config.servers().flat_map(|server| server.known_services().into_keys());
        let mut names: Vec<String> = services.map(|name| name.to_string()).collect();
        names.sort();
        names.dedup();
        names.into_iter().map(CompletionCandidate::new).collect()
    };
    beginning_with(word, config().map(names).unwrap_or_default())
}

/// `ssh` at the default server, `ssh@work` where there are several.
fn targets(word: &OsStr) -> Vec<CompletionCandidate> {
    let Some(config) = config() else { return Vec::new() };
    let several = config.servers().count() > 1;
    let is_at = word.to_string_lossy().contains('@');
    let mut found = Vec::new();
    if let Some(server) = config.default_server().filter(|_| !is_at) {
        for (name, service) in server.known_services() {
            let ports: Vec<String> = service.ports.iter().map(ToString::to_string).collect();
            let help = format!("{} at {}", ports.join(", "), server.name);
            found.push(CompletionCandidate::new(name.as_str()).help(Some(help.into())));
        }
    }
    if several || is_at || found.is_empty() {
        for server in config.servers() {
            for (name, service) in server.known_services() {
                let ports: Vec<String> = service.ports.iter().map(ToString::to_string).collect();
                let target = format!("{name}@{}", server.name);
                let help = format!("{} at {}", ports.join(", "), server.host);
                found.push(CompletionCandidate::new(target).help(Some(help.into())));
            }
        }
    }
    beginning_with(word, found)
}

fn beginning_with(word: &OsStr, mut found: Vec<CompletionCandidate>) -> Vec<CompletionCandidate> {
    let word = word.to_string_lossy();
    found.retain(|candidate| candidate.get_value().to_string_lossy().starts_with(&*word));
    found
}
