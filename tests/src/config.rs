//! The server's configuration, as files on disk. It is written from types of its own: a field
//! that the server renames has to show here.

use anyhow::Result;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// `server.toml`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the fields are those of the manual")]
pub struct Configuration {
    pub interfaces: Vec<String>,
    pub knock_ports: Vec<u16>,
    pub freshness: String,
    pub default_lifetime: String,
    /// The server's own choice, if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_grants: Option<u32>,
    pub prefilter: String,
    pub private_key_file: PathBuf,
    pub state_directory: PathBuf,
    pub control_socket: PathBuf,
    pub gate: Gate,
    pub services: BTreeMap<String, Service>,
    /// Go to files of their own.
    #[serde(skip)]
    pub clients: Vec<Client>,
}

/// `[gate]`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the fields are those of the manual")]
pub struct Gate {
    pub mode: String,
    pub refuse: String,
    pub always_admit: Vec<String>,
    /// The server's own choice, if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    pub tools: BTreeMap<String, PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hook: Option<Hook>,
}

/// `[gate.hook]`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the fields are those of the manual")]
pub struct Hook {
    pub open: Vec<String>,
    pub close: Vec<String>,
    pub time_limit: String,
}

/// `[services.NAME]`.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the fields are those of the manual")]
pub struct Service {
    pub ports: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forward: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<u32>,
}

/// `clients.d/NAME.toml`.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the fields are those of the manual")]
pub struct Client {
    /// The file's name.
    #[serde(skip)]
    pub name: String,
    pub public_key: String,
    pub allow: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_lifetime: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sources: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub require_bound_source: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pre_shared_key_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_sources: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_prefix: Option<SourcePrefix>,
}

/// `source-prefix = { … }` of a client.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the fields are those of the manual")]
pub struct SourcePrefix {
    pub ipv4: u8,
    pub ipv6: u8,
}

/// `rate = { … }` of a client.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the fields are those of the manual")]
pub struct Rate {
    pub per_minute: u32,
    pub burst: u32,
}

impl Configuration {
    /// A configuration under `directory` that guards `ssh` (tcp/22), `web` (tcp/8080) and `dns`
    /// (udp/8053) and knows no client. State and socket lie beside it.
    pub fn new(directory: &Path) -> Self {
        let service = |ports: &str| Service { ports: vec![ports.to_owned()], ..Service::default() };
        Self {
            interfaces: vec!["eth0".into()],
            knock_ports: vec![62201],
            freshness: "60s".into(),
            default_lifetime: "30s".into(),
            max_grants: None,
            prefilter: "auto".into(),
            private_key_file: directory.join("server.key"),
            state_directory: directory.join("state"),
            control_socket: directory.join("control.sock"),
            gate: Gate {
                mode: "guard".into(),
                refuse: "drop".into(),
                always_admit: Vec::new(),
                backend: Some("ipset".into()),
                tools: BTreeMap::default(),
                hook: None,
            },
            services: BTreeMap::from([
                ("ssh".into(), service("tcp/22")),
                ("web".into(), service("tcp/8080")),
                ("dns".into(), service("udp/8053")),
            ]),
            clients: Vec::new(),
        }
    }

    /// The client of this name, to change it.
    pub fn client_mut(&mut self, name: &str) -> Result<&mut Client> {
        let found = self.clients.iter_mut().find(|client| client.name == name);
        found.ok_or_else(|| anyhow::anyhow!("the configuration has no client {name:?}"))
    }

    /// Where the gate helper keeps what it knows.
    pub fn gate_directory(&self) -> PathBuf {
        self.state_directory.with_file_name("state-gate")
    }

    /// Writes `server.toml` and `clients.d/` below `directory`, in place of what is there.
    pub fn write(&self, directory: &Path) -> Result<()> {
        let private = |path: &Path| {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
            fs::set_permissions(path, Permissions::from_mode(0o700))
        };
        let clients = directory.join("clients.d");
        if clients.exists() {
            fs::remove_dir_all(&clients)?;
        }
        private(directory)?;
        private(&clients)?;
        private(&self.state_directory)?;
        write(&directory.join("server.toml"), &toml::to_string(self)?)?;
        for client in &self.clients {
            let path = clients.join(format!("{}.toml", client.name));
            write(&path, &toml::to_string(client)?)?;
        }
        Ok(())
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(())
}
