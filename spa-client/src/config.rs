//! The client's configuration: one directory with `config.toml` and the key files.
//!
//! What is read here is taken apart once and can't be wrong afterwards. Key files are only named
//! here; they are read when a knock needs them.

mod edit;
pub(crate) mod exported;

use crate::duration::Lifetime;
use crate::endpoint::Endpoint;
use crate::key_source::KeySource;
use crate::server::{Connections, DEFAULT_KNOCK_PORT, Server, ServerName, Service};
use crate::source::BindSource;
use core::fmt::Display;
use core::num::NonZeroU16;
use core::ops::Range;
use core::str::FromStr;
use etcetera::BaseStrategy as _;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use spa_proto::{PacketLength, PortRange, ServiceName};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use toml::Spanned;

/// The variable that names another directory.
const DIRECTORY_VARIABLE: &str = "SPA_CONFIG_DIR";
/// The key file when none is configured.
const DEFAULT_IDENTITY: &str = "identity.key";

/// The servers that the client knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    path: PathBuf,
    default: Option<ServerName>,
    ntp_server: Option<Endpoint>,
    servers: BTreeMap<ServerName, Server>,
}

impl Config {
    /// Where configuration and keys are: `$SPA_CONFIG_DIR`, else `spa` in the user's
    /// configuration directory (`$XDG_CONFIG_HOME`, else `~/.config`).
    pub fn directory() -> Result<PathBuf, ConfigError> {
        if let Some(directory) = std::env::var_os(DIRECTORY_VARIABLE).filter(|dir| !dir.is_empty())
        {
            // Made absolute, so that messages and the paths in them hold wherever they are read.
            return std::path::absolute(&directory)
                .map_err(|source| ConfigError::Read { path: directory.into(), source });
        }
        let base = etcetera::choose_base_strategy().map_err(|_| ConfigError::NoHome)?;
        Ok(base.config_dir().join("spa"))
    }

    /// The file in `directory` that [`load`](Self::load) reads.
    pub fn path(directory: &Path) -> PathBuf {
        directory.join("config.toml")
    }

    /// The key file that a server without an `identity` of its own uses.
    pub fn default_identity(directory: &Path) -> PathBuf {
        directory.join(DEFAULT_IDENTITY)
    }

    /// Reads `config.toml` in `directory`.
    pub fn load(directory: &Path) -> Result<Self, ConfigError> {
        let path = Self::path(directory);
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text, path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(ConfigError::Missing { path })
            }
            Err(source) => Err(ConfigError::Read { path, source }),
        }
    }

    /// Takes `text` for the content of the file `path`, which it names in errors and whose
    /// directory relative key files are in.
    pub fn parse(text: &str, path: PathBuf) -> Result<Self, ConfigError> {
        let at = |span: Option<Range<usize>>, message: String| ConfigError::Content {
            path: path.clone(),
            line: line_of(text, span),
            message,
        };
        // Only the message: the line itself might hold a key that was pasted into it by mistake.
        let raw: RawConfig =
            toml::from_str(text).map_err(|error| at(error.span(), error.message().into()))?;
        let directory = path.parent().unwrap_or(Path::new("")).to_path_buf();
        let endpoint = |text: Option<Spanned<String>>| {
            let endpoint = text.as_ref().map(value::<Endpoint>).transpose();
            endpoint.map_err(|Bad(span, what)| at(span, what))
        };
        let (stun_server, ntp_server) = (endpoint(raw.stun_server)?, endpoint(raw.ntp_server)?);
        let mut servers = BTreeMap::new();
        for (name, server) in raw.server {
            let name: ServerName = value(&name).map_err(|bad| at(bad.0, bad.1))?;
            let mut server =
                server.check(name.clone(), &directory).map_err(|Bad(span, what)| at(span, what))?;
            server.stun_server = server.stun_server.or_else(|| stun_server.clone());
            servers.insert(name, server);
        }
        let default = match raw.default {
            None => None,
            Some(name) => {
                let Some((default, _)) = servers.get_key_value(name.get_ref().as_str()) else {
                    let known = self::known(name.get_ref(), servers.keys());
                    let what =
                        format!("there is no server {:?} to be the default{known}", name.get_ref());
                    return Err(at(Some(name.span()), what));
                };
                Some(default.clone())
            }
        };
        Ok(Self { path, default, ntp_server, servers })
    }

    /// The server of this name; without a name the default one, or the only one.
    pub fn server(&self, name: Option<&str>) -> Result<&Server, ConfigError> {
        if let Some(name) = name {
            return self.servers.get(name).ok_or_else(|| ConfigError::UnknownServer {
                name: name.into(),
                path: self.path.clone(),
                known: known(name, self.servers.keys()),
            });
        }
        self.default_server().ok_or_else(|| {
            if self.servers.is_empty() {
                ConfigError::NoServer { path: self.path.clone() }
            } else {
                ConfigError::WhichServer {
                    path: self.path.clone(),
                    known: list(self.servers.keys()),
                }
            }
        })
    }

    /// All servers, by name.
    pub fn servers(&self) -> impl Iterator<Item = &Server> {
        self.servers.values()
    }

    /// The NTP server that the clock may be compared with, when the user has named one.
    pub const fn ntp_server(&self) -> Option<&Endpoint> {
        self.ntp_server.as_ref()
    }

    /// The server that is meant when none is named.
    pub fn default_server(&self) -> Option<&Server> {
        match (&self.default, self.servers.len()) {
            (Some(name), _) => self.servers.get(name),
            (None, 1) => self.servers.values().next(),
            (None, _) => None,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RawConfig {
    default: Option<Spanned<String>>,
    stun_server: Option<Spanned<String>>,
    ntp_server: Option<Spanned<String>>,
    #[serde(default)]
    server: BTreeMap<Spanned<String>, RawServer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RawServer {
    host: Spanned<String>,
    #[serde(default)]
    more_hosts: Vec<Spanned<String>>,
    public_key: Spanned<String>,
    knock_ports: Option<Spanned<Vec<u16>>>,
    identity: Option<Spanned<String>>,
    key_command: Option<Spanned<toml::Value>>,
    pre_shared_key_file: Option<PathBuf>,
    pre_shared_key_command: Option<Spanned<toml::Value>>,
    plaintext_length: Option<Spanned<u16>>,
    lifetime: Option<Spanned<String>>,
    bind_source: Option<Spanned<String>>,
    stun_server: Option<Spanned<String>>,
    #[serde(default)]
    services: BTreeMap<Spanned<String>, RawService>,
}

/// A list of ports, or a table when there is more to say.
struct RawService(RawServiceTable);

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RawServiceTable {
    ports: Vec<Spanned<String>>,
    connections: Option<Spanned<i64>>,
}

/// By hand: an untagged enum would forget where in the file it is.
impl<'de> Deserialize<'de> for RawService {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = RawService;

            fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str("a list of ports, as in [\"tcp/22\"], or a table with ports in it")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
                let ports = Vec::deserialize(SeqAccessDeserializer::new(list))?;
                Ok(RawService(RawServiceTable { ports, connections: None }))
            }

            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<Self::Value, A::Error> {
                RawServiceTable::deserialize(MapAccessDeserializer::new(table)).map(RawService)
            }
        }

        deserializer.deserialize_any(Either)
    }
}

impl RawService {
    fn check(self, name: &Spanned<String>) -> Result<(ServiceName, Service), Bad> {
        let Self(RawServiceTable { ports, connections }) = self;
        let service: ServiceName = value(name)?;
        let ports: Vec<PortRange> = ports.iter().map(value).collect::<Result<_, _>>()?;
        let connections = match connections {
            None => Connections::Any,
            Some(number) if *number.get_ref() == 1 => Connections::One,
            Some(number) => {
                return Err(Bad::at(&number, "connections is 1, or not there for as many as come"));
            }
        };
        Ok((service, Service { ports, connections }))
    }
}

impl RawServer {
    fn check(self, name: ServerName, directory: &Path) -> Result<Server, Bad> {
        let knock_ports = match self.knock_ports {
            None => vec![DEFAULT_KNOCK_PORT],
            Some(ports) => ports
                .get_ref()
                .iter()
                .map(|port| NonZeroU16::new(*port))
                .collect::<Option<Vec<_>>>()
                .filter(|ports| !ports.is_empty())
                .ok_or_else(|| {
                    Bad::at(&ports, "knock-ports names at least one port, from 1 to 65535")
                })?,
        };
        let length = self.plaintext_length.map_or(Ok(PacketLength::default()), |length| {
            PacketLength::try_from(*length.get_ref()).map_err(|error| Bad::at(&length, error))
        })?;
        let services = self
            .services
            .into_iter()
            .map(|(name, service)| service.check(&name))
            .collect::<Result<_, Bad>>()?;
        let identity = match (self.identity, self.key_command) {
            (Some(_), Some(command)) => {
                return Err(Bad::at(
                    &command,
                    "the key comes from identity or from key-command, not from both; remove one of them",
                ));
            }
            (None, Some(command)) => key_command("key-command", &command)?,
            (Some(text), None) => {
                KeySource::parse(text.get_ref(), |file| resolve(directory, file.into()))
                    .map_err(|error| Bad::at(&text, error))?
            }
            (None, None) => resolve(directory, DEFAULT_IDENTITY.into()).into(),
        };
        let pre_shared_key = match (self.pre_shared_key_file, self.pre_shared_key_command) {
            (Some(_), Some(command)) => {
                return Err(Bad::at(
                    &command,
                    "the pre-shared key comes from pre-shared-key-file or from pre-shared-key-command, not from both; remove one of them",
                ));
            }
            (None, Some(command)) => Some(key_command("pre-shared-key-command", &command)?),
            (Some(file), None) => Some(resolve(directory, file).into()),
            (None, None) => None,
        };
        Ok(Server {
            name,
            public_key: value(&self.public_key)?,
            host: value(&self.host)?,
            more_hosts: self.more_hosts.iter().map(value).collect::<Result<_, _>>()?,
            knock_ports,
            identity,
            pre_shared_key,
            length,
            lifetime: self.lifetime.as_ref().map(value::<Lifetime>).transpose()?,
            bind_source: self.bind_source.as_ref().map_or(Ok(BindSource::default()), value)?,
            stun_server: self.stun_server.as_ref().map(value::<Endpoint>).transpose()?,
            services,
        })
    }
}

/// A value that is wrong, and where it stands.
struct Bad(Option<Range<usize>>, String);

impl Bad {
    fn at<T>(place: &Spanned<T>, what: impl Display) -> Self {
        Self(Some(place.span()), what.to_string())
    }
}

fn value<T: FromStr<Err: Display>>(text: &Spanned<String>) -> Result<T, Bad> {
    text.get_ref().parse().map_err(|error| Bad::at(text, error))
}

/// A program and its arguments. A string would need a shell, or rules of its own for quoting.
fn key_command(key: &str, command: &Spanned<toml::Value>) -> Result<KeySource, Bad> {
    let words = command.get_ref().as_array().and_then(|words| {
        words.iter().map(|word| word.as_str().map(String::from)).collect::<Option<Vec<_>>>()
    });
    match words {
        Some(words) if words.first().is_some_and(|program| !program.is_empty()) => {
            Ok(KeySource::Command(words))
        }
        _ => Err(Bad::at(
            command,
            format_args!(
                "{key} is a program and its arguments, each a string of its own, as in [\"pass\", \"show\", \"spa/work\"]; no shell reads it"
            ),
        )),
    }
}

fn line_of(text: &str, span: Option<Range<usize>>) -> usize {
    let before = span.and_then(|span| text.get(..span.start)).unwrap_or_default();
    before.matches('\n').count().saturating_add(1)
}

/// Relative to the configuration directory; `~/` is the user's home, as people expect of a path.
fn resolve(directory: &Path, file: PathBuf) -> PathBuf {
    match (file.strip_prefix("~"), etcetera::home_dir()) {
        (Ok(rest), Ok(home)) => home.join(rest),
        _ => directory.join(file),
    }
}

/// Makes the configuration directory, readable for its owner only: private keys lie in it.
pub(crate) fn make_directory(directory: &Path) -> io::Result<()> {
    crate::system::private_directory().recursive(true).create(directory)
}

fn list<'a>(names: impl Iterator<Item = &'a ServerName>) -> String {
    names.map(ServerName::as_str).collect::<Vec<_>>().join(", ")
}

/// The end of a message about a server that is not there: what may have been meant.
fn known<'a>(wanted: &str, names: impl Iterator<Item = &'a ServerName> + Clone) -> String {
    match (closest(wanted, names.clone().map(ServerName::as_str)), list(names)) {
        (Some(meant), _) => format!("; did you mean {meant}?"),
        (None, none) if none.is_empty() => {
            "; there is none yet, add yours with: spa-client server add".into()
        }
        (None, known) => format!("; known are: {known}"),
    }
}

/// The name that `wanted` is a typing error of.
pub(crate) fn closest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names
        .map(|name| {
            (strsim::damerau_levenshtein(&wanted.to_lowercase(), &name.to_lowercase()), name)
        })
        .filter(|(distance, name)| *distance <= 2 && *distance < name.len().min(wanted.len()))
        .min()
        .map(|(_, name)| name)
}

/// What is wrong with the configuration, where, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Neither the variable nor a home directory.
    #[error(
        "no home directory is known; set HOME, or {DIRECTORY_VARIABLE} to the directory of the configuration"
    )]
    NoHome,
    /// No file.
    #[error(
        "there is no configuration {} yet; add your server with: spa-client server add NAME --host HOST --public-key KEY",
        path.display()
    )]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A file that can't be read.
    #[error("can't read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file that can't be written.
    #[error("can't write {}: {source}; nothing was changed", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file that is not as it has to be.
    #[error("{}, line {line}: {message}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong there.
        message: String,
    },
    /// Nobody to knock on.
    #[error(
        "no server is configured in {}; add yours with: spa-client server add NAME --host HOST --public-key KEY",
        path.display()
    )]
    NoServer {
        /// The file.
        path: PathBuf,
    },
    /// Several servers, and none named.
    #[error(
        "which server is meant? {} has {known} and no default; name one, as in ssh@NAME, or set default = \"NAME\" there",
        path.display()
    )]
    WhichServer {
        /// The file.
        path: PathBuf,
        /// The names there are.
        known: String,
    },
    /// A server that is not configured.
    #[error("no server is called {name:?} in {}{known}", path.display())]
    UnknownServer {
        /// The name asked for.
        name: String,
        /// The file.
        path: PathBuf,
        /// What may have been meant.
        known: String,
    },
    /// A server that is configured already.
    #[error(
        "a server called {name} stands in {} already; choose another name, or first: spa-client server remove {name}",
        path.display()
    )]
    Exists {
        /// The name asked for.
        name: ServerName,
        /// The file.
        path: PathBuf,
    },
}

#[cfg(test)]
mod tests;
