//! `spa-client setup ssh`: has plain ssh, and all that stands on it, knock by itself.

mod block;

use super::ssh::own_program;
use super::{CliError, print, print_json, say};
use crate::config::Config;
use crate::knock::plain;
use crate::server::{Connections, Server, ServerName};
use crate::system;
use block::{Way, changed, difference};
use clap::{Args, Subcommand};
use serde::Serialize;
use spa_proto::Item;
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub(super) enum SetupCommand {
    /// Have ssh, scp, sftp, rsync and git knock by themselves.
    Ssh(SetupSshArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  spa-client setup ssh                  for all servers, after a look at the difference
  spa-client setup ssh work --print
  spa-client setup ssh --remove --yes

Writes a block at the top of ~/.ssh/config, where the first value of an option counts. Nothing else
in that file is touched, and a second run changes nothing.")]
pub(super) struct SetupSshArgs {
    /// The servers that are meant [default: all].
    #[arg(value_name = "SERVER")]
    servers: Vec<ServerName>,
    /// Have ssh run `spa-client open` and connect by itself, instead of connecting by `spa-client
    /// proxy`.
    #[arg(long)]
    match_exec: bool,
    /// Take the block out again.
    #[arg(long, conflicts_with_all = ["servers", "match_exec", "print"])]
    remove: bool,
    /// Show the block, and change nothing.
    #[arg(long, conflicts_with = "yes")]
    print: bool,
    /// Don't ask.
    #[arg(short, long)]
    yes: bool,
    /// The file to change [default: ~/.ssh/config].
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Write what was done to standard output as JSON.
    #[arg(long, conflicts_with = "print")]
    json: bool,
}

#[derive(Serialize)]
struct Done<'a> {
    file: &'a Path,
    changed: bool,
    difference: String,
}

pub(super) fn run(directory: &Path, command: SetupCommand) -> Result<(), CliError> {
    let SetupCommand::Ssh(args) = command;
    let block = if args.remove { None } else { Some(block(directory, &args)?) };
    if let (true, Some(block)) = (args.print, &block) {
        return print(block);
    }
    let path = match &args.file {
        Some(file) => std::path::absolute(file).unwrap_or_else(|_| file.clone()),
        None => default_file()?,
    };
    let before = read(&path).map_err(|error| failed("read", &path, &error))?;
    let after = changed(&before, block.as_deref())
        .map_err(|what| CliError::Failed(format!("{}: {what}", path.display())))?;
    let difference = difference(&path.display().to_string(), &before, &after);
    let is_changed = after != before;
    if !is_changed {
        say(&format!("{} is as it should be", path.display()));
    } else if !args.json || !args.yes {
        say(difference.trim_end());
    }
    if is_changed {
        if !args.yes {
            agree(&path)?;
        }
        write(&path, &before, &after).map_err(|error| failed("write", &path, &error))?;
        say(&format!("changed {}", path.display()));
    }
    if args.json {
        print_json(&Done { file: &path, changed: is_changed, difference })?;
    }
    Ok(())
}

fn block(directory: &Path, args: &SetupSshArgs) -> Result<String, CliError> {
    let config = Config::load(directory)?;
    let servers: Vec<&Server> = if args.servers.is_empty() {
        config.servers().collect()
    } else {
        let named = args.servers.iter().map(|name| config.server(Some(name.as_str())));
        named.collect::<Result<_, _>>()?
    };
    if servers.is_empty() {
        config.server(None)?;
    }
    let way = if args.match_exec {
        Way::MatchExec
    } else if system::HANDS_OVER {
        Way::HandedOver
    } else {
        Way::Carried
    };
    if way == Way::MatchExec {
        servers.iter().try_for_each(|server| refuse_one_connection(server))?;
    }
    Ok(block::text(&servers, &own_program()?, way))
}

/// What waits for it to be open would be the one connection that is let in.
fn refuse_one_connection(server: &Server) -> Result<(), CliError> {
    let service = "ssh".parse().ok().and_then(|ssh| server.service_of(&Item::Service(ssh)));
    if service.is_some_and(|service| service.connections == Connections::One) {
        return Err(CliError::Usage(format!(
            "ssh on {} lets one connection in, which a look whether it is open would use up; leave --match-exec out: then `spa-client proxy` connects, and looks by that",
            server.name
        )));
    }
    Ok(())
}

fn read(path: &Path) -> io::Result<String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read,
    }
}

/// ssh looks there, whatever `HOME` says; that they differ is rare enough.
fn default_file() -> Result<PathBuf, CliError> {
    let home = etcetera::home_dir().map_err(|_| crate::config::ConfigError::NoHome)?;
    Ok(home.join(".ssh").join("config"))
}

fn agree(path: &Path) -> Result<(), CliError> {
    let nothing =
        |why: &str| CliError::Failed(format!("{why}, so {} stays as it is", path.display()));
    if !io::stdin().is_terminal() {
        return Err(nothing("there is no terminal to ask on, and no --yes"));
    }
    let _ = write!(io::stderr(), "write this to {}? [y/N] ", path.display());
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" if read.is_ok() => Ok(()),
        _ => Err(nothing("the answer was not yes")),
    }
}

/// Writes the file beside the old one, with its mode, and puts it in its place. A symbolic link
/// (into a repository of dotfiles, say) stays one: its target is replaced. What somebody has
/// written since it was read, and shown, is not lost.
fn write(path: &Path, before: &str, text: &str) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        crate::config::make_directory(directory)?;
    }
    let place = match fs::canonicalize(path) {
        Ok(place) => place,
        // A link that leads nowhere is followed by no write, and replaced by none.
        Err(_) if fs::symlink_metadata(path).is_ok() => return Err(io::ErrorKind::NotFound.into()),
        Err(_) => path.to_path_buf(),
    };
    let mut name = place.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.new", std::process::id()));
    let beside = place.with_file_name(name);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    system::for_owner_only(&mut options);
    let written = options.open(&beside).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        if let Ok(metadata) = fs::metadata(&place) {
            file.set_permissions(metadata.permissions())?;
        }
        file.sync_all()?;
        if read(&place)? != before {
            return Err(io::Error::other("it has changed since it was read; run this again"));
        }
        fs::rename(&beside, &place)
    });
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

fn failed(what: &str, path: &Path, error: &io::Error) -> CliError {
    CliError::Failed(format!(
        "can't {what} {}: {}; nothing was changed",
        path.display(),
        plain(error)
    ))
}
