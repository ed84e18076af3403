//! `spa-client list`, `spa-client server add` and `server remove`.

use super::args::{AddArgs, ListArgs, NamedService, RemoveArgs, SetKeyArgs};
use super::key::place;
use super::{CliError, print, print_json, say};
use crate::config::Config;
use crate::key_source::{KeyError, KeySource, NoPassphrase};
use crate::knock::KnockError;
use crate::server::{Connections, Host, Server, Service};
use core::fmt::Write as _;
use ring::rand::SystemRandom;
use serde::Serialize;
use spa_keys::{DeriveError, PreSharedKey, PrivateKey, PublicKey, StoredKeys};
use spa_proto::ServiceName;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub(super) fn list(directory: &Path, args: &ListArgs) -> Result<(), CliError> {
    let config = Config::load(directory)?;
    let default = config.default_server().map(|server| server.name.as_str());
    let servers: Vec<Listed<'_>> = config.servers().map(Listed::of).collect();
    if args.json {
        return print_json(&List { default, servers });
    }
    let texts: Vec<String> =
        servers.iter().map(|server| server.text(default == Some(server.name))).collect();
    print(&texts.join("\n"))?;
    if texts.is_empty() {
        config.server(None)?;
    }
    Ok(())
}

#[derive(Serialize)]
struct List<'a> {
    default: Option<&'a str>,
    servers: Vec<Listed<'a>>,
}

#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    host: &'a str,
    more_hosts: Vec<&'a str>,
    knock_ports: Vec<u16>,
    public_key: PublicKey,
    identity: Identity<'a>,
    pre_shared_key_file: Option<&'a Path>,
    pre_shared_key_command: Option<&'a [String]>,
    plaintext_length: usize,
    lifetime_seconds: Option<u32>,
    bind_source: String,
    stun_server: Option<String>,
    services: BTreeMap<ServiceName, Service>,
}

#[derive(Serialize)]
struct Identity<'a> {
    file: Option<&'a Path>,
    command: Option<&'a [String]>,
    secret_service: Option<&'a str>,
    /// Not known of what is not looked at: no command is run, no keyring unlocked for a list.
    passphrase: Option<bool>,
    public_key: Option<PublicKey>,
    error: Option<String>,
}

impl<'a> Listed<'a> {
    fn of(server: &'a Server) -> Self {
        let identity = Identity::of(&server.identity);
        Self {
            name: server.name.as_str(),
            host: server.host.as_str(),
            more_hosts: server.more_hosts.iter().map(Host::as_str).collect(),
            knock_ports: server.knock_ports.iter().map(|port| port.get()).collect(),
            public_key: server.public_key,
            identity,
            pre_shared_key_file: server.pre_shared_key.as_ref().and_then(KeySource::file),
            pre_shared_key_command: server.pre_shared_key.as_ref().and_then(command),
            plaintext_length: server.length.plaintext(),
            lifetime_seconds: server.lifetime.map(|lifetime| lifetime.0.get()),
            bind_source: server.bind_source.to_string(),
            stun_server: server.stun_server.as_ref().map(ToString::to_string),
            services: server.known_services(),
        }
    }

    fn text(&self, is_default: bool) -> String {
        let joined = |parts: Vec<String>| parts.join(", ");
        let ports = joined(self.knock_ports.iter().map(ToString::to_string).collect());
        let services = self.services.iter().map(|(name, service)| {
            let mut parts: Vec<_> = service.ports.iter().map(ToString::to_string).collect();
            if service.connections == Connections::One {
                parts.push("one connection".into());
            }
            format!("{name} ({})", joined(parts))
        });
        let mut text = String::new();
        let mark = if is_default { " (default)" } else { "" };
        let _ = writeln!(text, "{}{mark}", self.name);
        let plural = if self.knock_ports.len() == 1 { "" } else { "s" };
        let _ = writeln!(text, "  host        {}, knock port{plural} {ports}", self.host);
        if !self.more_hosts.is_empty() {
            let _ = writeln!(text, "  more hosts  {}", self.more_hosts.join(", "));
        }
        if let Some(stun) = &self.stun_server {
            let _ = writeln!(text, "  STUN server {stun}");
        }
        let _ = writeln!(text, "  services    {}", joined(services.collect()));
        let _ = writeln!(text, "  server key  {}", self.public_key);
        let _ = writeln!(text, "  client key  {}", self.identity.text());
        text
    }
}

impl<'a> Identity<'a> {
    fn of(source: &'a KeySource) -> Self {
        let stored = source.file().map(|_| source.stored());
        let key = stored.as_ref().and_then(|stored| stored.as_ref().ok());
        Self {
            file: source.file(),
            command: command(source),
            secret_service: match source {
                KeySource::SecretService(name) => Some(name.as_str()),
                _ => None,
            },
            passphrase: key.map(StoredKeys::is_encrypted),
            public_key: key.map(StoredKeys::public),
            error: stored.and_then(Result::err).map(|error| error.to_string()),
        }
    }

    fn text(&self) -> String {
        match (self, self.public_key) {
            (Self { passphrase: Some(true), .. }, Some(key)) => {
                format!("{key} (under a passphrase)")
            }
            (_, Some(key)) => key.to_string(),
            (Self { command: Some(words), .. }, _) => format!("by command: {}", words.join(" ")),
            (Self { secret_service: Some(name), .. }, _) => {
                format!("in the secret service, as {name}")
            }
            (Self { error, .. }, _) => error.clone().unwrap_or_default(),
        }
    }
}

fn command(source: &KeySource) -> Option<&[String]> {
    match source {
        KeySource::Command(words) => Some(words),
        _ => None,
    }
}

/// A server that was added or removed.
#[derive(Serialize)]
struct Changed<'a> {
    server: &'a str,
    file: &'a Path,
    /// Whether it is the default server now.
    default: bool,
}

pub(super) fn add(directory: &Path, args: AddArgs) -> Result<(), CliError> {
    let here = |file: PathBuf| std::path::absolute(&file).unwrap_or(file);
    let identity = match &args.identity {
        None => Config::default_identity(directory).into(),
        Some(path) => place(path)?,
    };
    let mut server = Server::new(args.name, args.host, args.public_key.parse()?, identity);
    if !args.knock_ports.is_empty() {
        server.knock_ports = args.knock_ports;
    }
    server.pre_shared_key = args.pre_shared_key_file.map(|file| here(file).into());
    server.length = args.plaintext_length.unwrap_or_default();
    for NamedService { name, service } in args.services {
        if server.services.insert(name.clone(), service).is_some() {
            return Err(CliError::Usage(format!(
                "--service names {name} twice; name all its ports at once, with commas between"
            )));
        }
    }
    // Keys that don't go together are told now, not at the first knock.
    let no_key = match check(&server) {
        Ok(()) => None,
        Err(KnockError::Key(error @ (KeyError::Missing { .. } | KeyError::SecretService(_)))) => {
            Some(error.to_string())
        }
        Err(error) => return Err(error.into()),
    };
    let config = Config::add_server(directory, &server, args.default)?;
    let is_default = config.default_server().is_some_and(|default| default.name == server.name);
    let (mark, at) = if is_default {
        (", the default server,", String::new())
    } else {
        ("", format!("@{}", server.name))
    };
    let path = Config::path(directory);
    if args.json {
        let changed = Changed { server: server.name.as_str(), file: &path, default: is_default };
        return print_json(&changed);
    }
    say(&format!("added {}{mark} to {}", server.name, path.display()));
    say(&no_key.unwrap_or_else(|| format!("next: spa-client open ssh{at}")));
    Ok(())
}

/// Whether the keys go together, as far as that can be told without a passphrase.
fn check(server: &Server) -> Result<(), KnockError> {
    let derive = |private: &PrivateKey, pre_shared: Option<&PreSharedKey>| {
        spa_keys::pair_secret_for_client(private, &server.public_key, pre_shared)
            .map(drop)
            .map_err(|source| KnockError::Derive { server: server.name.to_string(), source })
    };
    let stored = server.identity.stored()?;
    if stored.public() == server.public_key {
        let source = DeriveError::SameKey;
        return Err(KnockError::Derive { server: server.name.to_string(), source });
    }
    match (stored.open(), &server.pre_shared_key) {
        (Ok(keys), None) => derive(&keys.private, keys.pre_shared.as_ref()),
        (Ok(keys), Some(other)) => match other.pre_shared_key(&mut NoPassphrase) {
            Err(KeyError::Locked { .. }) => derive(&keys.private, None),
            key => derive(&keys.private, Some(&key?)),
        },
        // Any private key shows whether the server's public key is one.
        (Err(_), _) => {
            let any = PrivateKey::generate(&SystemRandom::new());
            derive(&any.map_err(|_| KnockError::NoRandomness)?, None)
        }
    }
}

pub(super) fn set_key(directory: &Path, args: &SetKeyArgs) -> Result<(), CliError> {
    let key: PublicKey = args.public_key.parse()?;
    let config = Config::load(directory)?;
    let mut server = config.server(Some(args.name.as_str()))?.clone();
    let before = std::mem::replace(&mut server.public_key, key);
    // A key that can't be used is told now, not at the first knock.
    check(&server)?;
    Config::set_public_key(directory, &server, &key)?;
    let path = Config::path(directory);
    say(&format!(
        "{} has the key {key} now in {}; before it was {before}",
        args.name,
        path.display()
    ));
    if args.json {
        let is_default = config.default_server().is_some_and(|it| it.name == server.name);
        print_json(&Changed { server: args.name.as_str(), file: &path, default: is_default })?;
    }
    Ok(())
}

pub(super) fn remove(directory: &Path, args: &RemoveArgs) -> Result<(), CliError> {
    let config = Config::remove_server(directory, args.name.as_str())?;
    let path = Config::path(directory);
    if args.json {
        let default = false;
        return print_json(&Changed { server: args.name.as_str(), file: &path, default });
    }
    say(&format!("removed {} from {}", args.name, path.display()));
    if config.servers().next().is_some() && config.default_server().is_none() {
        say("there is no default server now; choose one with default = \"NAME\" in that file");
    }
    Ok(())
}
