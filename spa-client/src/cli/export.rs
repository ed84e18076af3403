//! `spa-client export` and `import`: one key on two devices, for who wants it in spite of all.

use super::passphrase::{Prompt, new_passphrase};
use super::{CliError, print, print_json, say};
use crate::config::{Config, ConfigError, exported, make_directory};
use crate::key_source::{KeyError, KeySource, protected};
use crate::server::ServerName;
use clap::Args;
use serde::Serialize;
use spa_keys::Overwrite;
use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// The longest export that is read, in bytes.
const MAX_LENGTH: usize = 64 << 10;

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("to").required(true)), after_help = "\
Example:
  spa-client export work --output work.export
  spa-client import work.export               on the other device

The file holds the server's entry, the private key and the pre-shared key, under a
passphrase that is asked for. It is of mode 0600; delete it when it was imported.")]
pub(super) struct ExportArgs {
    /// Which server [default: the default server].
    #[arg(value_name = "SERVER")]
    server: Option<ServerName>,
    /// The file to write; none is overwritten.
    #[arg(short, long, value_name = "FILE", group = "to")]
    output: Option<PathBuf>,
    /// Write to standard output.
    #[arg(long, group = "to")]
    stdout: bool,
    /// Without a passphrase: who reads it is this client.
    #[arg(long)]
    plain: bool,
    /// Don't ask whether that is really wanted.
    #[arg(long)]
    yes: bool,
    /// Write what was done to standard output as JSON.
    #[arg(long, conflicts_with = "stdout")]
    json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  spa-client import work.export

The key stays under the passphrase that it was exported with; `spa-client key passphrase`
changes it. Neither a server nor a key that is here is overwritten.")]
pub(super) struct ImportArgs {
    /// What `export` wrote; - is standard input.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// What to call the server here [default: as there].
    #[arg(long, value_name = "NAME")]
    name: Option<ServerName>,
    /// Make it the default server.
    #[arg(long)]
    default: bool,
    /// Write what was done to standard output as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Exported<'a> {
    server: &'a str,
    file: &'a Path,
    passphrase: bool,
}

#[derive(Serialize)]
struct Imported<'a> {
    server: &'a str,
    file: &'a Path,
    key: &'a Path,
    passphrase: bool,
    /// Whether it is the default server now.
    default: bool,
}

pub(super) fn export(directory: &Path, args: ExportArgs) -> Result<(), CliError> {
    let config = Config::load(directory)?;
    let server = config.server(args.server.as_ref().map(ServerName::as_str))?;
    if let Some(file) = args.output.as_ref().filter(|file| file.symlink_metadata().is_ok()) {
        return Err(spa_keys::KeyFileError::Exists { path: file.clone() }.into());
    }
    say(&format!(
        "\
warning: a second device with this key is the same client to {}
  - its audit trail does not tell which of the two has knocked
  - neither can be locked out alone: when one is lost, both need a new key
  - both count against the same limits
better: a key of its own for each device, by an invitation: spa-server invite NAME",
        server.name
    ));
    if args.plain {
        say(
            "warning: --plain writes the private key as it is: whoever reads it, now or in a backup, is this client",
        );
    }
    confirm(args.yes)?;
    let keys = server.keys(&mut Prompt::default())?;
    let passphrase =
        if args.plain { None } else { Some(new_passphrase("the exported key", None)?) };
    let stored = protected(keys, passphrase.as_ref()).map_err(KeyError::from)?;
    let text = exported::write(server, &stored);
    match args.output {
        Some(file) => {
            spa_keys::write_secret_text(&file, &text, Overwrite::Refuse)?;
            if args.json {
                return print_json(&Exported {
                    server: server.name.as_str(),
                    file: &file,
                    passphrase: !args.plain,
                });
            }
            say(&format!(
                "{} and its key are in {1}; on the other device: spa-client import {1}; then delete it on both",
                server.name,
                file.display()
            ));
        }
        None => print(&text)?,
    }
    Ok(())
}

/// A typed yes; a terminal is needed for it.
fn confirm(yes: bool) -> Result<(), CliError> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(CliError::Usage(
            "nothing was exported: there is no terminal to ask at whether that is really wanted; if it is, say --yes".into(),
        ));
    }
    let _ = write!(io::stderr(), "type yes to export it all the same: ");
    let _ = io::stderr().flush();
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    if read.is_ok() && answer.trim() == "yes" {
        Ok(())
    } else {
        Err(CliError::Failed("nothing was exported".into()))
    }
}

pub(super) fn import(directory: &Path, args: ImportArgs) -> Result<(), CliError> {
    let text = if args.file == Path::new("-") {
        standard_input()?
    } else {
        spa_keys::read_secret_text(&args.file, MAX_LENGTH)?
    };
    let (mut server, keys) = exported::read(&text, &args.file)?;
    if let Some(name) = args.name {
        server.name = name;
    }
    let path = Config::path(directory);
    match Config::load(directory) {
        Ok(config) if config.server(Some(server.name.as_str())).is_ok() => {
            return Err(ConfigError::Exists { name: server.name, path }.into());
        }
        Ok(_) | Err(ConfigError::Missing { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    make_directory(directory)
        .map_err(|source| ConfigError::Write { path: directory.into(), source })?;
    let key = directory.join(format!("{}.key", server.name));
    server.identity = KeySource::File(key.clone());
    server.identity.store(&keys, Overwrite::Refuse)?;
    let config = Config::add_server(directory, &server, args.default).inspect_err(|_| {
        // Just written by this process, which has refused to replace any other.
        let _ = std::fs::remove_file(&key);
    })?;
    if args.json {
        return print_json(&Imported {
            server: server.name.as_str(),
            file: &path,
            key: &key,
            passphrase: keys.is_encrypted(),
            default: config.default_server().is_some_and(|it| it.name == server.name),
        });
    }
    let under = if keys.is_encrypted() {
        ", under the passphrase that it was exported with"
    } else {
        ", without a passphrase"
    };
    say(&format!(
        "added {0} to {1}; its key is in {2}{under}\nnext: spa-client open ssh@{0}, and delete the export on both devices",
        server.name,
        path.display(),
        key.display()
    ));
    Ok(())
}

fn standard_input() -> Result<Zeroizing<String>, CliError> {
    let failed = |what: String| {
        CliError::Failed(format!("can't read the export from standard input: {what}"))
    };
    let mut text = Zeroizing::new(String::with_capacity(MAX_LENGTH + 1));
    let limit = u64::try_from(MAX_LENGTH).unwrap_or(u64::MAX).saturating_add(1);
    io::stdin().lock().take(limit).read_to_string(&mut text).map_err(|e| failed(e.to_string()))?;
    if text.len() > MAX_LENGTH {
        return Err(failed(format!("it is longer than {MAX_LENGTH} bytes")));
    }
    Ok(text)
}
