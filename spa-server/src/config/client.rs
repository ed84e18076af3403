//! `clients.d/NAME.toml`, judged.

use super::error::{ConfigError, Fault, Problem, ValueError};
use super::file;
use super::raw::{RawClient, RawPrefixes, RawRate};
use super::settings::{Settings, lifetime, number};
use super::time::parse_timestamp;
use crate::policy::{ClientRules, Prefixes, Rate, Services};
use crate::service::Connections;
use ipnet::IpNet;
use spa_keys::{PrivateKey, PublicKey};
use spa_proto::{ClientId, ServiceName, UnixMicros};
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

const MAX_PER_MINUTE: i64 = 60_000;
const MAX_BURST: i64 = 10_000;
const MAX_SOURCES: i64 = 65_536;
/// Wider networks than these are other people's.
const WIDEST_PREFIXES: Prefixes = Prefixes { v4: 16, v6: 32 };

/// A client, and the secret that the server shares with it.
#[derive(Debug)]
pub struct Client {
    /// What its file says.
    pub settings: ClientSettings,
    /// What its knocks are sealed with.
    pub secret: spa_proto::PairSecret,
}

/// What a client's file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientSettings {
    /// The file.
    pub file: PathBuf,
    /// The client's identity.
    pub public_key: PublicKey,
    /// The file with the pre-shared key, if there is one.
    pub pre_shared_key_file: Option<PathBuf>,
    /// What it may do.
    pub rules: ClientRules,
}

/// What a client's file refers to. What is not known, since `server.toml` is wrong, is not held
/// against the client.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Surroundings<'a> {
    pub(super) services: Option<&'a Services>,
    pub(super) default_lifetime: Option<Duration>,
}

impl<'a> Surroundings<'a> {
    pub(super) fn of(settings: &'a Settings) -> Self {
        Self {
            services: Some(&settings.services),
            default_lifetime: Some(settings.default_lifetime),
        }
    }
}

impl Client {
    /// The client's identity, as the protocol has it.
    pub fn id(&self) -> ClientId {
        self.settings.public_key.into()
    }

    /// The client's name.
    pub fn name(&self) -> &str {
        &self.settings.rules.name
    }

    /// Derives the secret that the server with the key `server` shares with a client.
    pub(super) fn derive(settings: ClientSettings, server: &PrivateKey) -> Result<Self, Problem> {
        let problem = |fault| Problem { path: settings.file.clone(), fault };
        let pre_shared = settings
            .pre_shared_key_file
            .as_ref()
            .map(spa_keys::read_pre_shared_key)
            .transpose()
            .map_err(|error| problem(Fault::value("pre-shared-key-file", error)))?;
        let secret =
            spa_keys::pair_secret_for_server(server, &settings.public_key, pre_shared.as_ref())
                .map_err(|error| problem(Fault::value("public-key", error)))?;
        Ok(Self { settings, secret })
    }
}

impl ClientSettings {
    /// Reads and judges a client's file by itself: whether its services exist is not looked at.
    pub fn load(path: &Path) -> Result<Self, Vec<Problem>> {
        Self::load_within(path, &Surroundings::default())
    }

    /// Reads and judges a client's file on a server with these settings.
    pub fn load_for(path: &Path, settings: &Settings) -> Result<Self, ConfigError> {
        Self::load_within(path, &Surroundings::of(settings))
            .map_err(|problems| ConfigError { problems })
    }

    pub(super) fn load_within(
        path: &Path,
        surroundings: &Surroundings<'_>,
    ) -> Result<Self, Vec<Problem>> {
        let text = file::read(path).map_err(|problem| vec![problem])?;
        Self::parse_within(path, &text, surroundings)
    }

    /// Judges the text of a client's file that is, or will be, at `path`, on a server with these
    /// settings.
    pub fn parse(path: &Path, text: &str, settings: &Settings) -> Result<Self, ConfigError> {
        Self::parse_within(path, text, &Surroundings::of(settings))
            .map_err(|problems| ConfigError { problems })
    }

    fn parse_within(
        path: &Path,
        text: &str,
        surroundings: &Surroundings<'_>,
    ) -> Result<Self, Vec<Problem>> {
        let problem = |fault| Problem { path: path.into(), fault };
        let name = ClientName::of_file(path).map_err(|error| vec![problem(Fault::Name(error))])?;
        let raw: RawClient =
            toml::from_str(text).map_err(|error| vec![problem(Fault::syntax(text, &error))])?;
        let mut judge = Judge { faults: Vec::new(), surroundings };
        match judge.client(path, &name, raw) {
            Some(client) if judge.faults.is_empty() => Ok(client),
            _ => Err(judge.faults.into_iter().map(problem).collect()),
        }
    }
}

struct Judge<'a> {
    faults: Vec<Fault>,
    surroundings: &'a Surroundings<'a>,
}

impl Judge<'_> {
    fn client(&mut self, path: &Path, name: &ClientName, raw: RawClient) -> Option<ClientSettings> {
        let public_key = raw.public_key.parse::<PublicKey>();
        let public_key = public_key.map_err(|error| self.fault("public-key", error)).ok();
        let max_lifetime = lifetime("max-lifetime", raw.max_lifetime, &mut self.faults)
            .unwrap_or(Duration::from_secs(3600));
        let default_lifetime = self.default_lifetime(raw.default_lifetime, max_lifetime);
        let not_before = self.timestamp("not-before", raw.not_before);
        let expires = self.timestamp("expires", raw.expires);
        if let (Some(not_before), Some(expires)) = (not_before, expires)
            && expires <= not_before
        {
            self.fault("expires", ValueError::ExpiresFirst);
        }
        if let Some(file) = &raw.pre_shared_key_file
            && !file.is_absolute()
        {
            self.fault("pre-shared-key-file", ValueError::RelativePath(file.clone()));
        }
        let rules = ClientRules {
            name: name.as_str().into(),
            enabled: raw.enabled.unwrap_or(true),
            allow: self.allow(&raw.allow),
            max_lifetime,
            default_lifetime,
            sources: self.sources(raw.sources),
            not_before,
            expires,
            require_bound_source: raw.require_bound_source.unwrap_or(false),
            prefixes: self.prefixes(raw.source_prefix.as_ref()),
            rate: self.rate(raw.rate),
            max_sources: number("max-sources", raw.max_sources, 1, MAX_SOURCES, &mut self.faults)
                .unwrap_or(16),
        };
        self.no_network_for_one_connection(&rules);
        let pre_shared_key_file = raw.pre_shared_key_file;
        Some(ClientSettings {
            file: path.into(),
            public_key: public_key?,
            pre_shared_key_file,
            rules,
        })
    }

    fn fault(&mut self, key: &str, error: impl Into<ValueError>) {
        self.faults.push(Fault::value(key, error));
    }

    fn prefixes(&mut self, raw: Option<&RawPrefixes>) -> Prefixes {
        let Some(raw) = raw else { return Prefixes::default() };
        let mut length = |key, value, widest: u8, all: u8| {
            number(key, value, widest.into(), all.into(), &mut self.faults)
                .and_then(|length| u8::try_from(length).ok())
                .unwrap_or(all)
        };
        Prefixes {
            v4: length("source-prefix.ipv4", raw.ipv4, WIDEST_PREFIXES.v4, 32),
            v6: length("source-prefix.ipv6", raw.ipv6, WIDEST_PREFIXES.v6, 128),
        }
    }

    /// The gate lets one connection in from an address only: such a knock would be accepted, and
    /// open nothing.
    fn no_network_for_one_connection(&mut self, rules: &ClientRules) {
        if rules.prefixes == Prefixes::default() {
            return;
        }
        let services = self.surroundings.services;
        let is_limited = |name: &&ServiceName| {
            let service = services.and_then(|services| services.get(*name));
            service.is_some_and(|service| service.connections == Connections::One)
        };
        for service in rules.allow.iter().filter(is_limited) {
            self.fault("source-prefix", ValueError::NetworkForOne { service: service.clone() });
        }
    }

    /// What the client's file says may not exceed the maximum; what the server's says is cut.
    fn default_lifetime(&mut self, raw: Option<String>, max: Duration) -> Duration {
        match lifetime("default-lifetime", raw, &mut self.faults) {
            Some(default) => {
                if default > max {
                    self.fault("default-lifetime", ValueError::DefaultOverMaximum { default, max });
                }
                default
            }
            None => self.surroundings.default_lifetime.unwrap_or(max).min(max),
        }
    }

    fn timestamp(&mut self, key: &str, raw: Option<toml::Value>) -> Option<UnixMicros> {
        let text = match raw? {
            toml::Value::String(text) => text,
            other => other.to_string(),
        };
        parse_timestamp(&text).map_err(|error| self.fault(key, error)).ok()
    }

    fn allow(&mut self, names: &[String]) -> BTreeSet<ServiceName> {
        let key = "allow";
        if names.is_empty() {
            let advice = "name a service, or write enabled = false to lock the client out";
            self.fault(key, ValueError::Empty { advice });
        }
        let mut allowed = BTreeSet::new();
        for name in names {
            let name = match name.parse::<ServiceName>() {
                Ok(name) => name,
                Err(error) => {
                    self.fault(key, error);
                    continue;
                }
            };
            if let Some(services) = self.surroundings.services
                && !services.contains_key(&name)
            {
                let known_services = services.keys().cloned().collect();
                self.fault(key, ValueError::UnknownService { name: name.clone(), known_services });
            }
            if !allowed.insert(name.clone()) {
                self.fault(key, ValueError::Twice(name.to_string()));
            }
        }
        allowed
    }

    fn sources(&mut self, raw: Option<Vec<String>>) -> Vec<IpNet> {
        let Some(texts) = raw else { return Vec::new() };
        if texts.is_empty() {
            let advice = "remove it to let the client knock from anywhere";
            self.fault("sources", ValueError::Empty { advice });
        }
        let mut networks = Vec::new();
        for text in texts {
            match parse_network(&text) {
                Ok(network) if networks.contains(&network) => {
                    self.fault("sources", ValueError::Twice(text));
                }
                Ok(network) => networks.push(network),
                Err(error) => self.fault("sources", error),
            }
        }
        networks
    }

    fn rate(&mut self, raw: Option<RawRate>) -> Rate {
        let Some(raw) = raw else { return Rate::default() };
        let default = Rate::default();
        let faults = &mut self.faults;
        Rate {
            per_minute: number("rate.per-minute", raw.per_minute, 1, MAX_PER_MINUTE, faults)
                .unwrap_or(default.per_minute),
            burst: number("rate.burst", raw.burst, 1, MAX_BURST, faults).unwrap_or(default.burst),
        }
    }
}

/// Reads a network, or an address, which is a network of one.
fn parse_network(text: &str) -> Result<IpNet, ValueError> {
    let network = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text.parse::<IpNet>().map_err(|_| ValueError::Network(text.into()))?,
    };
    let mapped = match network.addr() {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => network.prefix_len() >= 96 && address.to_ipv4_mapped().is_some(),
    };
    if mapped {
        return Err(ValueError::MappedNetwork(text.into()));
    }
    if network.trunc() != network {
        let network = network.trunc().to_string();
        return Err(ValueError::HostBits { given: text.into(), network });
    }
    Ok(network)
}

/// The name of a client: 1 to 64 of letters, digits, `-`, `_` and `.`, the first a letter or a
/// digit. It is the name of a file, too.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientName(String);

impl ClientName {
    /// The longest name, in bytes.
    pub const MAX_LENGTH: usize = 64;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn of_file(path: &Path) -> Result<Self, ClientNameError> {
        let stem = path.file_stem().unwrap_or_default();
        stem.to_string_lossy().parse()
    }
}

impl FromStr for ClientName {
    type Err = ClientNameError;

    fn from_str(text: &str) -> Result<Self, ClientNameError> {
        let well_formed = text.len() <= Self::MAX_LENGTH
            && text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if well_formed { Ok(Self(text.into())) } else { Err(ClientNameError(text.into())) }
    }
}

impl fmt::Display for ClientName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Not a client's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no client name; a name is 1 to 64 of A-Z, a-z, 0-9, '-', '_', '.' and begins with a letter or a digit"
)]
pub struct ClientNameError(pub String);
