//! `spa-server client add`.

use super::daemon::take_up;
use super::output::{print, print_json};
use super::{CommandError, Done, client, host, write};
use crate::cli::{AddArgs, RuleArgs};
use crate::config::{
    self, ClientSettings, ConfigError, Settings, client_file, client_files, format_duration,
    format_timestamp, parse_duration, parse_duration_or_seconds,
};
use crate::enrolment::Enrolments;
use crate::service::Connections;
use ring::rand::SystemRandom;
use serde::Serialize;
use spa_keys::{Overwrite, PreSharedKey, PrivateKey, PublicKey};
use spa_proto::PacketLength;
use std::fs;
use std::path::{Path, PathBuf};
use toml_edit::Value;

/// The knock port that clients use when they are told none.
const USUAL_KNOCK_PORT: u16 = 62_201;

/// Where clients look for services when they are told nothing.
const USUAL_SERVICES: [(&str, &str); 3] =
    [("http", "tcp/80"), ("https", "tcp/443"), ("ssh", "tcp/22")];

/// What was added.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Added {
    name: String,
    public_key: PublicKey,
    file: PathBuf,
    /// For the client; only when the key was made here.
    #[serde(skip_serializing_if = "Option::is_none")]
    private_key_file: Option<PathBuf>,
    /// The client's copy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pre_shared_key_file: Option<PathBuf>,
    server_public_key: PublicKey,
    /// What the client's user runs.
    client_command: String,
}

/// `spa-server client add`.
pub(crate) fn run(config: &Path, args: &AddArgs) -> Done {
    let settings = Settings::load(config)?;
    let server = config::read_private_key(config, &settings).map_err(ConfigError::from)?;
    let file = client_file(config, &args.name);
    if fs::symlink_metadata(&file).is_ok() {
        return Err(CommandError::Failed(format!(
            "there is a client {name} already ({}); take another name, or remove it first: spa-server client remove {name}",
            file.display(),
            name = args.name
        )));
    }
    let random = SystemRandom::new();
    let private = match args.public_key {
        Some(_) => None,
        None => Some(PrivateKey::generate(&random)?),
    };
    let public_key = match (&args.public_key, &private) {
        (_, Some(private)) => private.public(),
        (text, None) => {
            let text = text.as_deref().unwrap_or_default();
            text.parse().map_err(|error| CommandError::Usage(format!("--public-key: {error}")))?
        }
    };
    let pre_shared = if args.psk { Some(PreSharedKey::generate(&random)?) } else { None };
    let server_pre_shared_file = pre_shared.as_ref().map(|_| file.with_extension("psk"));
    let text = text(args, &public_key, server_pre_shared_file.as_deref());
    let client = ClientSettings::parse(&file, &text, &settings).map_err(|error| usage(&error))?;
    // Refuses low-order keys, and the server's own.
    spa_keys::pair_secret_for_server(&server, &public_key, pre_shared.as_ref())
        .map_err(|error| CommandError::Usage(format!("--public-key: {error}")))?;
    refuse_same_key(config, &super::client::enrolments(&settings)?, &public_key)?;

    write::directory(&Settings::clients_directory_of(config))?;
    let private_key_file = private.as_ref().map(|_| {
        args.private_key_out.clone().unwrap_or_else(|| format!("{}.key", args.name).into())
    });
    let client_pre_shared_file =
        pre_shared.as_ref().map(|_| PathBuf::from(format!("{}.psk", args.name)));
    let mut written = Written(Vec::new());
    if let (Some(path), Some(private)) = (&private_key_file, &private) {
        spa_keys::write_private_key(path, private, Overwrite::Refuse)?;
        written.0.push(path);
    }
    for path in [&client_pre_shared_file, &server_pre_shared_file].into_iter().flatten() {
        if let Some(pre_shared) = &pre_shared {
            spa_keys::write_pre_shared_key(path, pre_shared, Overwrite::Refuse)?;
            written.0.push(path);
        }
    }
    write::create(&file, &text)?;
    written.0.clear();

    let server_public_key = server.public();
    let client_command =
        client_command(&client, &settings, &server_public_key, client_pre_shared_file.is_some());
    let added = Added {
        name: args.name.to_string(),
        public_key,
        file: file.clone(),
        private_key_file: private_key_file.clone(),
        pre_shared_key_file: client_pre_shared_file.clone(),
        server_public_key,
        client_command,
    };
    tell(&added, args.output.json)?;
    take_up(config)
}

/// Removes what was written when the rest could not be.
pub(super) struct Written<'a>(pub(super) Vec<&'a PathBuf>);

impl Drop for Written<'_> {
    fn drop(&mut self) {
        for path in &self.0 {
            // The error that led here is the one to tell.
            drop(fs::remove_file(path));
        }
    }
}

/// The client's file.
fn text(args: &AddArgs, public_key: &PublicKey, pre_shared_file: Option<&Path>) -> String {
    let mut lines = vec![
        format!("# Added by `spa-server client add` on {}.", format_timestamp(client::now())),
        format!("public-key = \"{public_key}\""),
    ];
    lines.extend(rule_lines(&args.rules));
    if let Some(when) = &args.expires {
        // No plain number of seconds here: a year, or days, may be meant.
        let expires = match parse_duration(when) {
            Ok(duration) => format_timestamp(client::now().saturating_add(duration)),
            Err(_) => when.clone(),
        };
        lines.push(format!("expires = {}", Value::from(expires)));
    }
    if let Some(path) = pre_shared_file {
        let path = path.to_string_lossy();
        lines.push(format!("pre-shared-key-file = {}", Value::from(path.as_ref())));
    }
    lines.push(String::new());
    lines.join("\n")
}

/// The lines of a client's file that say what it may do.
pub(super) fn rule_lines(args: &RuleArgs) -> Vec<String> {
    let list = |items: &[String]| items.iter().map(String::as_str).collect::<Value>().to_string();
    let mut lines = vec![format!("allow = {}", list(&args.allow))];
    if let Some(lifetime) = &args.max_lifetime {
        let lifetime =
            parse_duration_or_seconds(lifetime).map_or_else(|_| lifetime.clone(), format_duration);
        lines.push(format!("max-lifetime = {}", Value::from(lifetime)));
    }
    if !args.sources.is_empty() {
        lines.push(format!("sources = {}", list(&args.sources)));
    }
    if args.require_bound_source {
        lines.push("require-bound-source = true".into());
    }
    lines
}

/// What is wrong with the file that would have been written is wrong with the command line.
pub(super) fn usage(error: &ConfigError) -> CommandError {
    let faults: Vec<_> = error.problems.iter().map(|problem| problem.fault.to_string()).collect();
    CommandError::Usage(faults.join("\n"))
}

fn refuse_same_key(config: &Path, enrolments: &Enrolments, public_key: &PublicKey) -> Done {
    if enrolments.has(public_key) {
        return Err(CommandError::Failed(format!(
            "the key {public_key} was announced to this server before, or has been replaced by another one; a key that was replaced may be in wrong hands, so make a new one: spa-client keygen"
        )));
    }
    let has_key = |other: &ClientSettings| {
        let known = other.keys(enrolments).map_or([None; 2], |(present, next)| [present, next]);
        known.contains(&Some(*public_key)) || other.public_key() == Some(*public_key)
    };
    for file in client_files(config).map_err(ConfigError::from)? {
        match ClientSettings::load(&file) {
            Ok(other) if has_key(&other) => {
                return Err(CommandError::Failed(format!(
                    "client {other} has this public key already; a key identifies one client, so make each its own (see `spa-server client show {other}`)",
                    other = other.name
                )));
            }
            Ok(_) => {}
            Err(_) => eprintln!(
                "warning: {} is wrong, so its key was not compared; see `spa-server check`",
                file.display()
            ),
        }
    }
    Ok(())
}

/// What the client's user runs, with everything that the client does not know by itself.
fn client_command(
    client: &ClientSettings,
    settings: &Settings,
    server: &PublicKey,
    has_pre_shared: bool,
) -> String {
    let host = host::name();
    let label = host.as_deref().and_then(|name| name.split('.').next());
    let nickname = label.filter(|label| !label.is_empty()).unwrap_or("server");
    // A bare label rarely means anything to the client's resolver.
    let host = host.as_deref().filter(|name| name.contains('.')).unwrap_or("HOST");
    let mut words =
        vec![format!("spa-client server add {nickname} --host {host} --public-key {server}")];
    if settings.knock_ports != [USUAL_KNOCK_PORT] {
        words.extend(settings.knock_ports.iter().map(|port| format!("--knock-port {port}")));
    }
    if settings.packet_length != PacketLength::default() {
        words.push(format!("--plaintext-length {}", settings.packet_length.plaintext()));
    }
    for name in &client.rules.allow {
        let Some(service) = settings.services.get(name) else { continue };
        let mut parts: Vec<_> = service.ports.iter().map(ToString::to_string).collect();
        if service.connections == Connections::One {
            // A client that looked whether it is open would use it up.
            parts.push("once".into());
        }
        let parts = parts.join(",");
        if !USUAL_SERVICES.contains(&(name.as_str(), parts.as_str())) {
            words.push(format!("--service {name}={parts}"));
        }
    }
    if has_pre_shared {
        words.push(format!("--pre-shared-key-file ~/.config/spa/{}.psk", client.name));
    }
    words.join(" ")
}

/// The command that brings a secret to the client and destroys the copy here. It does nothing
/// where such a file is there already: a key that is overwritten is a lock-out from other servers.
fn bring(from: &Path, name: &str) -> String {
    let (from, to) = (from.display(), format!(".config/spa/{name}"));
    format!(
        "  ssh CLIENT 'mkdir -p -m 700 .config/spa && test ! -e {to}' &&\n    scp -p {from} CLIENT:{to} && shred -u {from}"
    )
}

fn tell(added: &Added, json: bool) -> Done {
    eprintln!("client {} is added: {}", added.name, added.file.display());
    if let Some(path) = &added.private_key_file {
        eprintln!(
            "its private key is in {}; bring it to the client as ~/.config/spa/identity.key, and keep no copy; this replaces no key that is there:\n{}",
            path.display(),
            bring(path, "identity.key")
        );
    }
    if let Some(path) = &added.pre_shared_key_file {
        eprintln!(
            "the client's copy of the pre-shared key is in {}; bring it there, too:\n{}",
            path.display(),
            bring(path, &format!("{}.psk", added.name))
        );
    }
    if json {
        return print_json(added);
    }
    eprintln!("on the client, with this server's name or address after --host:");
    print(&format!("{}\n", added.client_command))
}
