//! `clients.d/NAME.toml`, judged.

use super::error::{ConfigError, Fault, Problem, ValueError};
use super::file;
use super::raw::{RawClient, RawInvitation, RawPrefixes, RawRate};
use super::settings::{Settings, lifetime, number, timestamp};
use crate::policy::{ClientRules, Prefixes, Rate, Services};
use crate::service::Connections;
use ipnet::IpNet;
use spa_keys::PublicKey;
use spa_proto::{ServiceName, UnixMicros};
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

/// What a client's file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientSettings {
    /// The file.
    pub file: PathBuf,
    /// The name that the administrator gave it, which is that of the file.
    pub name: ClientName,
    /// How the server comes to know it.
    pub introduced: Introduced,
    /// What it may do.
    pub rules: ClientRules,
}

/// How the server comes to know a client at first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Introduced {
    /// By its public key.
    ByKey {
        /// The client's identity.
        public_key: PublicKey,
        /// The file with the pre-shared key, if there is one.
        pre_shared_key_file: Option<PathBuf>,
    },
    /// By an invitation: the client brings its key.
    ByInvitation {
        /// The file with the secret.
        secret_file: PathBuf,
        /// When it was made.
        issued: UnixMicros,
        /// From when on it can't be used.
        expires: UnixMicros,
    },
}

impl ClientSettings {
    /// The public key in the file, if there is one.
    pub const fn public_key(&self) -> Option<PublicKey> {
        match self.introduced {
            Introduced::ByKey { public_key, .. } => Some(public_key),
            Introduced::ByInvitation { .. } => None,
        }
    }
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
        let introduced = self.introduced(raw.public_key, raw.invitation, raw.pre_shared_key_file);
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
        let rules = ClientRules {
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
        let name = name.clone();
        Some(ClientSettings { file: path.into(), name, introduced: introduced?, rules })
    }

    fn introduced(
        &mut self,
        public_key: Option<String>,
        invitation: Option<RawInvitation>,
        pre_shared_key_file: Option<PathBuf>,
    ) -> Option<Introduced> {
        if let Some(file) = &pre_shared_key_file {
            self.absolute("pre-shared-key-file", file);
        }
        match (public_key, invitation) {
            (None, None) => {
                self.fault("public-key", ValueError::NoKey);
                None
            }
            (Some(_), Some(_)) => {
                self.fault("invitation", ValueError::KeyAndInvitation);
                None
            }
            (Some(text), None) => {
                let parsed = text.parse::<PublicKey>();
                let public_key = parsed.map_err(|error| self.fault("public-key", error)).ok()?;
                Some(Introduced::ByKey { public_key, pre_shared_key_file })
            }
            (None, Some(RawInvitation { secret_file, issued, expires })) => {
                if pre_shared_key_file.is_some() {
                    // It makes one of its own.
                    self.fault("pre-shared-key-file", ValueError::Needs("a public-key"));
                }
                self.absolute("invitation.secret-file", &secret_file);
                let issued = self.timestamp("invitation.issued", Some(issued));
                let expires = self.timestamp("invitation.expires", Some(expires));
                Some(Introduced::ByInvitation { secret_file, issued: issued?, expires: expires? })
            }
        }
    }

    fn absolute(&mut self, key: &str, file: &Path) {
        if !file.is_absolute() {
            self.fault(key, ValueError::RelativePath(file.into()));
        }
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
        timestamp(raw?).map_err(|error| self.fault(key, error)).ok()
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
