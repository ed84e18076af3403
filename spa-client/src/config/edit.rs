//! Changes to `config.toml` that leave everything else in it as the user wrote it.

use super::{Config, ConfigError};
use crate::key_source::KeySource;
use crate::server::{Connections, DEFAULT_KNOCK_PORT, Host, Server};
use crate::source::BindSource;
use spa_keys::PublicKey;
use spa_proto::PacketLength;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use toml_edit::{Array, DocumentMut, InlineTable, Item, Table, TableLike, value};

impl Config {
    /// Writes `server` into the configuration in `directory`, which is made when it is not
    /// there. The first server becomes the default one; a later one when `as_default` is set.
    pub fn add_server(
        directory: &Path,
        server: &Server,
        as_default: bool,
    ) -> Result<Self, ConfigError> {
        let path = Self::path(directory);
        let ((mut document, text), before) = match Self::load(directory) {
            Ok(before) => (document(&path)?, Some(before)),
            Err(ConfigError::Missing { .. }) => ((DocumentMut::new(), String::new()), None),
            Err(error) => return Err(error),
        };
        let present = before.as_ref().map(|config| &config.servers);
        if present.is_some_and(|present| present.contains_key(&server.name)) {
            return Err(ConfigError::Exists { name: server.name.clone(), path });
        }
        if as_default || present.is_none_or(BTreeMap::is_empty) {
            document.insert("default", value(server.name.as_str()));
        }
        let servers = document.entry("server").or_insert_with(|| {
            let mut table = Table::new();
            table.set_implicit(true);
            Item::Table(table)
        });
        if let Some(servers) = servers.as_table_like_mut() {
            servers.insert(server.name.as_str(), Item::Table(table(directory, server)));
        }
        store(directory, &text, &document)
    }

    /// Has a server's keys be in another place, all in one.
    pub fn set_keys(
        directory: &Path,
        server: &Server,
        keys: &KeySource,
    ) -> Result<Self, ConfigError> {
        change_entry(directory, server, |entry| {
            for key in ["key-command", "pre-shared-key-file", "pre-shared-key-command"] {
                entry.remove(key);
            }
            match place(directory, keys) {
                Some((key, place)) => drop(entry.insert(key, place)),
                None => drop(entry.remove("identity")),
            }
        })
    }

    /// Notes another public key of a server.
    pub fn set_public_key(
        directory: &Path,
        server: &Server,
        key: &PublicKey,
    ) -> Result<Self, ConfigError> {
        change_entry(directory, server, |entry| {
            entry.insert("public-key", value(key.to_string()));
        })
    }

    /// Takes the server `name` out of the configuration in `directory`. A default that named it
    /// goes with it.
    pub fn remove_server(directory: &Path, name: &str) -> Result<Self, ConfigError> {
        let path = Self::path(directory);
        let before = Self::load(directory)?;
        let (mut document, text) = document(&path)?;
        let servers = document.get_mut("server").and_then(Item::as_table_like_mut);
        if servers.and_then(|servers| servers.remove(name)).is_none() {
            let known = super::known(name, before.servers.keys());
            return Err(ConfigError::UnknownServer { name: name.into(), path, known });
        }
        if before.default.is_some_and(|default| default.as_str() == name) {
            document.remove("default");
        }
        store(directory, &text, &document)
    }
}

/// The file, and the text that it is.
/// Changes what stands of one server; what is not there stays away.
fn change_entry(
    directory: &Path,
    server: &Server,
    change: impl FnOnce(&mut dyn TableLike),
) -> Result<Config, ConfigError> {
    let (mut document, text) = document(&Config::path(directory))?;
    let entry = document
        .get_mut("server")
        .and_then(Item::as_table_like_mut)
        .and_then(|servers| servers.get_mut(server.name.as_str()))
        .and_then(Item::as_table_like_mut);
    entry.map(change);
    store(directory, &text, &document)
}

fn document(path: &Path) -> Result<(DocumentMut, String), ConfigError> {
    let text = fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.into(), source })?;
    let document = text.parse().map_err(|error: toml_edit::TomlError| ConfigError::Content {
        path: path.into(),
        line: super::line_of(&text, error.span()),
        message: error.message().into(),
    })?;
    Ok((document, text))
}

/// Only what differs from the defaults.
pub(super) fn table(directory: &Path, server: &Server) -> Table {
    let mut table = Table::new();
    table.insert("host", value(server.host.as_str()));
    if !server.more_hosts.is_empty() {
        let hosts: Array = server.more_hosts.iter().map(Host::as_str).collect();
        table.insert("more-hosts", value(hosts));
    }
    table.insert("public-key", value(server.public_key.to_string()));
    if server.knock_ports != [DEFAULT_KNOCK_PORT] {
        let ports: Array = server.knock_ports.iter().map(|port| i64::from(port.get())).collect();
        table.insert("knock-ports", value(ports));
    }
    if let Some((key, place)) = place(directory, &server.identity) {
        table.insert(key, place);
    }
    match &server.pre_shared_key {
        Some(KeySource::File(file)) => {
            table.insert("pre-shared-key-file", value(shown(directory, file)));
        }
        Some(KeySource::Command(words)) => {
            table.insert("pre-shared-key-command", value(words.iter().collect::<Array>()));
        }
        // With the private key, in the one item.
        Some(KeySource::SecretService(_)) | None => {}
    }
    if server.length != PacketLength::default() {
        let length = i64::try_from(server.length.plaintext()).unwrap_or(i64::MAX);
        table.insert("plaintext-length", value(length));
    }
    if let Some(lifetime) = server.lifetime {
        table.insert("lifetime", value(lifetime.to_string()));
    }
    if server.bind_source != BindSource::default() {
        table.insert("bind-source", value(server.bind_source.to_string()));
    }
    if let Some(stun) = &server.stun_server {
        table.insert("stun-server", value(stun.to_string()));
    }
    if !server.services.is_empty() {
        let mut services = Table::new();
        for (name, service) in &server.services {
            let ports: Array = service.ports.iter().map(ToString::to_string).collect();
            let entry = match service.connections {
                Connections::Any => value(ports),
                Connections::One => {
                    let mut table = InlineTable::new();
                    table.insert("ports", ports.into());
                    table.insert("connections", 1.into());
                    value(table)
                }
            };
            services.insert(name.as_str(), entry);
        }
        table.insert("services", Item::Table(services));
    }
    table
}

/// What says where the keys are; nothing, where they usually are.
fn place(directory: &Path, keys: &KeySource) -> Option<(&'static str, Item)> {
    match keys {
        KeySource::File(file) if *file == Config::default_identity(directory) => None,
        KeySource::File(file) => Some(("identity", value(shown(directory, file)))),
        KeySource::Command(words) => Some(("key-command", value(words.iter().collect::<Array>()))),
        KeySource::SecretService(_) => Some(("identity", value(keys.to_string()))),
    }
}

fn shown(directory: &Path, file: &Path) -> String {
    file.strip_prefix(directory).unwrap_or(file).to_string_lossy().into_owned()
}

/// Writes the file beside the old one and puts it in its place. What could not be read again is
/// not written, and nothing over what somebody has written since `before` was read (nothing, of a
/// file that was not there).
fn store(directory: &Path, before: &str, document: &DocumentMut) -> Result<Config, ConfigError> {
    let path = Config::path(directory);
    let text = document.to_string();
    let config = Config::parse(&text, path.clone())?;
    let failed = |source: io::Error| ConfigError::Write { path: path.clone(), source };
    crate::config::make_directory(directory)
        .map_err(|source| ConfigError::Write { path: directory.into(), source })?;
    // A symbolic link (into a repository of dotfiles, say) stays one: its target is replaced.
    let place = fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
    let beside = place.with_extension(format!("toml.{}.new", std::process::id()));
    let written = fs::File::create_new(&beside).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        if let Ok(metadata) = fs::metadata(&place) {
            file.set_permissions(metadata.permissions())?;
        }
        let now = match fs::read_to_string(&place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            read => read?,
        };
        if now != before {
            return Err(io::Error::other("it has changed since it was read; run this again"));
        }
        fs::rename(&beside, &place)
    });
    written.map_err(|error| {
        let _ = fs::remove_file(&beside);
        failed(error)
    })?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_has_written_meanwhile_is_not_lost() {
        let directory = tempfile::tempdir().unwrap();
        let path = Config::path(directory.path());
        let document: DocumentMut = "# ours\n".parse().unwrap();
        store(directory.path(), "", &document).unwrap();
        for before in ["", "# theirs\n"] {
            let refused = store(directory.path(), before, &DocumentMut::new()).unwrap_err();
            assert!(matches!(refused, ConfigError::Write { .. }), "{refused}");
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "# ours\n");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        store(directory.path(), "# ours\n", &DocumentMut::new()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
    }
}
