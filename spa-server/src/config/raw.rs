//! The files as TOML has them, before anything is judged.

use super::settings::Prefiltering;
use crate::gate::{Backend, Mode, Refusal, ToolOverrides};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// `server.toml`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct RawSettings {
    pub(super) interfaces: Option<Vec<String>>,
    pub(super) knock_ports: Option<Vec<i64>>,
    pub(super) plaintext_length: Option<i64>,
    pub(super) freshness: Option<String>,
    pub(super) private_key_file: Option<PathBuf>,
    pub(super) previous_private_key_file: Option<PathBuf>,
    pub(super) previous_key_until: Option<toml::Value>,
    pub(super) state_directory: Option<PathBuf>,
    pub(super) control_socket: Option<PathBuf>,
    pub(super) clients_directory: Option<PathBuf>,
    pub(super) default_lifetime: Option<String>,
    pub(super) max_grants: Option<i64>,
    #[serde(default)]
    pub(super) prefilter: Prefiltering,
    #[serde(default)]
    pub(super) gate: RawGate,
    #[serde(default)]
    pub(super) services: BTreeMap<String, RawService>,
}

/// `[gate]`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct RawGate {
    #[serde(default)]
    pub(super) mode: Mode,
    #[serde(default)]
    pub(super) refuse: Refusal,
    #[serde(default)]
    pub(super) backend: Backend,
    #[serde(default)]
    pub(super) always_admit: Vec<String>,
    #[serde(default)]
    pub(super) tools: ToolOverrides,
    pub(super) hook: Option<RawHook>,
}

/// `[gate.hook]`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct RawHook {
    pub(super) open: Option<Vec<String>>,
    pub(super) close: Option<Vec<String>>,
    #[serde(default)]
    pub(super) refresh: bool,
    pub(super) time_limit: Option<String>,
}

/// `[services.NAME]`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct RawService {
    pub(super) ports: Vec<String>,
    pub(super) local_port: Option<i64>,
    pub(super) forward: Option<Vec<String>>,
    pub(super) masquerade: Option<bool>,
    pub(super) connections: Option<i64>,
}

/// `clients.d/NAME.toml`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct RawClient {
    pub(super) public_key: Option<String>,
    pub(super) invitation: Option<RawInvitation>,
    pub(super) allow: Vec<String>,
    pub(super) max_lifetime: Option<String>,
    pub(super) default_lifetime: Option<String>,
    pub(super) sources: Option<Vec<String>>,
    pub(super) not_before: Option<toml::Value>,
    pub(super) expires: Option<toml::Value>,
    pub(super) enabled: Option<bool>,
    pub(super) require_bound_source: Option<bool>,
    pub(super) pre_shared_key_file: Option<PathBuf>,
    pub(super) rate: Option<RawRate>,
    pub(super) max_sources: Option<i64>,
    pub(super) source_prefix: Option<RawPrefixes>,
}

/// `[invitation]`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct RawInvitation {
    pub(super) secret_file: PathBuf,
    pub(super) issued: toml::Value,
    pub(super) expires: toml::Value,
}

/// `source-prefix = { … }`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct RawPrefixes {
    pub(super) ipv4: Option<i64>,
    pub(super) ipv6: Option<i64>,
}

/// `rate = { … }`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct RawRate {
    pub(super) per_minute: Option<i64>,
    pub(super) burst: Option<i64>,
}
