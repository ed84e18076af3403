//! `server.toml`, judged.

use super::error::{ConfigError, Fault, Problem, ValueError};
use super::file;
use super::raw::{RawGate, RawHook, RawService, RawSettings};
use super::time::{TimestampError, parse_timestamp};
use crate::capture::Interfaces;
use crate::capture::filter::MAX_PORTS;
use crate::gate::{
    Backend, CommandLine, Guarded, HookSettings, Mode, Plan, Refusal, ToolOverrides,
};
use crate::policy::Services;
use crate::service::{Connections, Forward, ForwardTo, Service, Target};
use crate::source::Source;
use ipnet::IpNet;
use spa_proto::{
    Freshness, PacketLength, PortRange, ServiceName, Transport, UnixMicros, parse_duration,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The shortest lifetime of a grant.
pub(super) const MIN_LIFETIME: Duration = Duration::from_secs(1);
/// The longest lifetime of a grant: ipset has no longer timeout.
pub(super) const MAX_LIFETIME: Duration = Duration::from_secs(2_147_483);
const CONTROL_SOCKET: &str = "/run/spa/control.sock";
pub(crate) const STATE_DIRECTORY: &str = "/var/lib/spa";
const MAX_GRANTS: i64 = 1_048_576;
/// How long a hook command may take, at least and at most: knocks wait for it.
const HOOK_TIME_LIMITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
const HOOK_TIME_LIMIT: Duration = Duration::from_secs(10);
/// Where below the state directory is kept what hook commands have open.
const HOOK_DIRECTORY: &str = "hook";
/// The largest sets that the gate makes.
const MAX_ELEMENTS: u32 = 16 * 1024 * 1024;
/// The kernel counts elements that are over until it takes them out, nftables about a second later:
/// as many new ones may come meanwhile as have ended.
const ROOM: u32 = 2;
/// The longest interface name that Linux has.
const MAX_INTERFACE_NAME: usize = 15;

/// What `server.toml` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where knocks are looked for.
    pub interfaces: Interfaces,
    /// The UDP ports that knocks are sent to; at least one.
    pub knock_ports: Vec<u16>,
    /// How long every knock is.
    pub packet_length: PacketLength,
    /// How far the clock of a client may be off.
    pub freshness: Freshness,
    /// The file with the server's private key.
    pub private_key_file: PathBuf,
    /// The key that the server had before, for as long as clients may use it.
    pub previous_key: Option<PreviousKey>,
    /// Where the replay store and the grants are kept.
    pub state_directory: PathBuf,
    /// Where the commands reach the daemon.
    pub control_socket: PathBuf,
    /// Where the clients' files are.
    pub clients_directory: PathBuf,
    /// The lifetime of a request that names none.
    pub default_lifetime: Duration,
    /// The most live grants.
    pub max_grants: u32,
    /// Whether noise is to end in the kernel.
    pub prefilter: Prefiltering,
    /// How the ports are guarded.
    pub gate: GateSettings,
    /// What can be opened; at least one service, each with at least one port.
    pub services: Services,
}

/// Whether noise is to end in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Prefiltering {
    /// Where the kernel permits it.
    #[default]
    Auto,
    /// No: the capture filter is all that there is.
    Off,
}

/// The key that a server had before the one that it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreviousKey {
    /// The file with the private key.
    pub private_key_file: PathBuf,
    /// From when on nothing is accepted under it.
    pub until: UnixMicros,
}

/// How the ports are guarded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GateSettings {
    /// Whether the gate refuses what is not granted, or leaves that to another firewall.
    pub mode: Mode,
    /// What refused packets meet.
    pub refuse: Refusal,
    /// What guards them.
    pub backend: Backend,
    /// From where everything can be reached without a knock.
    pub always_admit: Vec<IpNet>,
    /// Where tools are that are not in the usual places; absolute paths.
    pub tools: ToolOverrides,
    /// Which commands guard them instead; always there for [`Backend::Hook`].
    pub hook: Option<HookSettings>,
}

impl Settings {
    /// Reads and judges `server.toml` alone: neither keys nor clients.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        if let Some(directory) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            // Where there is no directory there is no file either, which the next line says.
            if directory.exists() {
                file::judge_directory(directory)?;
            }
        }
        let text = file::read(path)?;
        Self::parse(path, &text)
    }

    /// Where the daemon that runs by the file at `path` is reached, whatever else is wrong with
    /// that file now: it is then that its status is wanted, and that clients are to be disabled.
    pub fn control_socket_of(path: &Path) -> PathBuf {
        stated_path(path, "control-socket").unwrap_or_else(|| CONTROL_SOCKET.into())
    }

    /// Where the state is by the file at `path`, whatever else is wrong with that file.
    pub fn state_directory_of(path: &Path) -> PathBuf {
        let stated = match Self::load(path) {
            Ok(settings) => Some(settings.state_directory),
            Err(_) => stated_path(path, "state-directory"),
        };
        stated.unwrap_or_else(|| STATE_DIRECTORY.into())
    }

    /// Where the clients' files are by the file at `path`, whatever else is wrong with that file.
    pub fn clients_directory_of(path: &Path) -> PathBuf {
        let stated = match Self::load(path) {
            Ok(settings) => Some(settings.clients_directory),
            Err(_) => stated_path(path, "clients-directory"),
        };
        stated.unwrap_or_else(|| clients_beside(path))
    }

    /// Judges the text of a `server.toml` that is, or will be, at `path`.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let problem = |fault| Problem { path: path.into(), fault };
        let raw: RawSettings =
            toml::from_str(text).map_err(|error| problem(Fault::syntax(text, &error)))?;
        let mut judge = Judge { faults: Vec::new() };
        let settings = judge.settings(raw, path);
        if judge.faults.is_empty() {
            Ok(settings)
        } else {
            Err(ConfigError { problems: judge.faults.into_iter().map(problem).collect() })
        }
    }
}

/// Where the gate helper keeps what it knows, by where the daemon keeps its own: beside it, since
/// whoever owns that could put another directory in the place of one inside.
pub(crate) fn gate_directory_of(state_directory: &Path) -> PathBuf {
    // Without a slash at its end.
    let mut path = state_directory.components().collect::<PathBuf>().into_os_string();
    path.push("-gate");
    path.into()
}

impl Settings {
    /// Where the gate helper keeps what it knows, and nobody else writes.
    pub fn gate_directory(&self) -> PathBuf {
        gate_directory_of(&self.state_directory)
    }

    /// What is wrong when hook commands have been opening ports and are configured no more: nobody
    /// knows how to close what they opened.
    pub fn abandoned_hook(&self) -> Option<String> {
        let directory = self.gate_directory().join(HOOK_DIRECTORY);
        (self.gate.hook.is_none() && directory.exists()).then(|| {
            format!(
                "hook commands may have left ports open, which {} tells; put [gate.hook] back and run `spa-server gate remove`, or close them by hand and delete that directory",
                directory.display()
            )
        })
    }

    /// What the gate is to guard.
    pub fn gate_plan(&self) -> Plan {
        let mut guarded = BTreeMap::new();
        for Service { ports, target, connections } in self.services.values() {
            guarded.extend(ports.iter().map(|ports| {
                (*ports, Guarded { ports: *ports, target: *target, connections: *connections })
            }));
        }
        // A grant of a service takes one element for each of its ports.
        let largest = self.services.values().map(|service| service.ports.len()).max().unwrap_or(1);
        Plan {
            mode: self.gate.mode,
            refusal: self.gate.refuse,
            guarded: guarded.into_values().collect(),
            knock_ports: self.knock_ports.clone(),
            max_elements: u32::try_from(largest)
                .unwrap_or(u32::MAX)
                .saturating_mul(self.max_grants)
                .saturating_mul(ROOM)
                .min(MAX_ELEMENTS),
            always_admit: self.gate.always_admit.clone(),
            trial_seconds: None,
        }
    }
}

pub(super) fn clients_beside(server_toml: &Path) -> PathBuf {
    server_toml.with_file_name("clients.d")
}

/// The absolute path that a line of the file gives for `key`; the file need not make sense.
fn stated_path(path: &Path, key: &str) -> Option<PathBuf> {
    let text = file::read(path).unwrap_or_default();
    let stated = text.lines().find_map(|line| {
        let table = toml::from_str::<toml::Table>(line).ok()?;
        table.get(key)?.as_str().map(PathBuf::from)
    });
    stated.filter(|stated| stated.is_absolute())
}

/// Collects what is wrong, and goes on with a value that serves until the end of the judgement.
struct Judge {
    faults: Vec<Fault>,
}

impl Judge {
    fn settings(&mut self, raw: RawSettings, path: &Path) -> Settings {
        let beside = path.parent().unwrap_or(Path::new("/"));
        let knock_ports = self.knock_ports(raw.knock_ports);
        let services = self.services(raw.services, &knock_ports);
        let state_directory = self
            .path("state-directory", raw.state_directory.unwrap_or_else(|| STATE_DIRECTORY.into()));
        Settings {
            interfaces: self.interfaces(raw.interfaces),
            knock_ports,
            packet_length: self.packet_length(raw.plaintext_length),
            freshness: self.freshness(raw.freshness),
            private_key_file: self.path(
                "private-key-file",
                raw.private_key_file.unwrap_or_else(|| beside.join("server.key")),
            ),
            previous_key: self.previous_key(raw.previous_private_key_file, raw.previous_key_until),
            control_socket: self.path(
                "control-socket",
                raw.control_socket.unwrap_or_else(|| CONTROL_SOCKET.into()),
            ),
            clients_directory: match raw.clients_directory {
                Some(stated) => self.path("clients-directory", stated),
                None => clients_beside(path),
            },
            default_lifetime: lifetime("default-lifetime", raw.default_lifetime, &mut self.faults)
                .unwrap_or(Duration::from_secs(30)),
            max_grants: number("max-grants", raw.max_grants, 1, MAX_GRANTS, &mut self.faults)
                .unwrap_or(65_536),
            prefilter: raw.prefilter,
            gate: self.gate(raw.gate, &state_directory),
            state_directory,
            services,
        }
    }

    fn fault(&mut self, key: impl Into<String>, error: impl Into<ValueError>) {
        self.faults.push(Fault::value(key, error));
    }

    fn previous_key(
        &mut self,
        file: Option<PathBuf>,
        until: Option<toml::Value>,
    ) -> Option<PreviousKey> {
        const FILE: &str = "previous-private-key-file";
        const UNTIL: &str = "previous-key-until";
        match (file, until) {
            (None, None) => None,
            (Some(_), None) => {
                self.fault(FILE, ValueError::Needs(UNTIL));
                None
            }
            (None, Some(_)) => {
                self.fault(UNTIL, ValueError::Needs(FILE));
                None
            }
            (Some(file), Some(until)) => {
                let private_key_file = self.path(FILE, file);
                let until = timestamp(until).map_err(|error| self.fault(UNTIL, error)).ok()?;
                Some(PreviousKey { private_key_file, until })
            }
        }
    }

    fn interfaces(&mut self, raw: Option<Vec<String>>) -> Interfaces {
        let key = "interfaces";
        let Some(names) = raw else { return Interfaces::All };
        if names.is_empty() {
            self.fault(key, ValueError::Empty { advice: "write [\"any\"] for all interfaces" });
        }
        let mut named = Vec::new();
        for name in &names {
            if name == "any" {
                if names.len() > 1 {
                    self.fault(key, ValueError::AnyAndOthers);
                }
                return Interfaces::All;
            }
            if !is_interface_name(name) {
                self.fault(key, ValueError::Interface(name.clone()));
            } else if named.contains(name) {
                self.fault(key, ValueError::Twice(name.clone()));
            } else {
                named.push(name.clone());
            }
        }
        Interfaces::Named(named)
    }

    fn knock_ports(&mut self, raw: Option<Vec<i64>>) -> Vec<u16> {
        let key = "knock-ports";
        let numbers = raw.unwrap_or_else(|| vec![62_201]);
        if numbers.is_empty() {
            self.fault(key, ValueError::Empty { advice: "write [62201] for the usual one" });
        }
        if numbers.len() > MAX_PORTS {
            self.fault(key, ValueError::TooMany { count: numbers.len(), most: MAX_PORTS });
        }
        let mut ports = Vec::new();
        for number in numbers {
            match u16::try_from(number) {
                Err(_) | Ok(0) => self.fault(key, ValueError::Port(number)),
                Ok(port) if ports.contains(&port) => {
                    self.fault(key, ValueError::Twice(port.to_string()));
                }
                Ok(port) => ports.push(port),
            }
        }
        ports
    }

    fn packet_length(&mut self, raw: Option<i64>) -> PacketLength {
        let (min, max) = (PacketLength::MIN_PLAINTEXT, PacketLength::MAX_PLAINTEXT);
        number("plaintext-length", raw, min.into(), max.into(), &mut self.faults)
            .and_then(|length| u16::try_from(length).ok())
            .and_then(|length| PacketLength::try_from(length).ok())
            .unwrap_or_default()
    }

    fn freshness(&mut self, raw: Option<String>) -> Freshness {
        let (min, max) = (Freshness::MIN, Freshness::MAX);
        duration("freshness", raw, min, max, &mut self.faults)
            .and_then(|window| Freshness::try_from(window).ok())
            .unwrap_or_default()
    }

    fn path(&mut self, key: &str, path: PathBuf) -> PathBuf {
        if !path.is_absolute() {
            self.fault(key, ValueError::RelativePath(path.clone()));
        }
        path
    }

    fn gate(&mut self, raw: RawGate, state_directory: &Path) -> GateSettings {
        let RawGate { mode, refuse, backend, always_admit, tools, hook } = raw;
        let hook = match hook {
            None if backend != Backend::Hook => None,
            hook => self.hook(
                hook.unwrap_or_default(),
                gate_directory_of(state_directory).join(HOOK_DIRECTORY),
            ),
        };
        let always_admit = self.always_admit(&always_admit);
        for (tool, path) in [
            ("iptables-restore", &tools.iptables_restore),
            ("ip6tables-restore", &tools.ip6tables_restore),
            ("iptables-save", &tools.iptables_save),
            ("ip6tables-save", &tools.ip6tables_save),
            ("nft", &tools.nft),
        ] {
            if let Some(path) = path {
                self.path(&format!("gate.tools.{tool}"), path.clone());
            }
        }
        GateSettings { mode, refuse, backend, always_admit, tools, hook }
    }

    fn hook(&mut self, raw: RawHook, directory: PathBuf) -> Option<HookSettings> {
        let RawHook { open, close, refresh, time_limit } = raw;
        let (min, max) = HOOK_TIME_LIMITS;
        let time_limit = duration("gate.hook.time-limit", time_limit, min, max, &mut self.faults);
        let open = self.command("gate.hook.open", open, "[\"/usr/local/sbin/open-port\"]");
        let close = self.command("gate.hook.close", close, "[\"/usr/local/sbin/close-port\"]");
        Some(HookSettings {
            open: open?,
            close: close?,
            refresh,
            time_limit: time_limit.unwrap_or(HOOK_TIME_LIMIT),
            directory,
        })
    }

    fn command(
        &mut self,
        key: &str,
        words: Option<Vec<String>>,
        example: &'static str,
    ) -> Option<CommandLine> {
        let parsed = match words {
            None => Err(ValueError::NoCommand(example)),
            Some(words) => CommandLine::parse(&words).map_err(ValueError::from),
        };
        parsed.map_err(|error| self.fault(key, error)).ok()
    }

    fn always_admit(&mut self, texts: &[String]) -> Vec<IpNet> {
        let mut nets = Vec::new();
        for text in texts {
            match text.parse::<Source>() {
                Ok(source) if nets.contains(&source.net()) => {
                    self.fault("gate.always-admit", ValueError::Twice(source.to_string()));
                }
                Ok(source) => nets.push(source.net()),
                Err(error) => self.fault("gate.always-admit", error),
            }
        }
        nets
    }

    fn services(&mut self, raw: BTreeMap<String, RawService>, knock_ports: &[u16]) -> Services {
        if raw.is_empty() {
            self.faults.push(Fault::NoService);
        }
        let mut services = Services::new();
        for (name, raw) in raw {
            let key = format!("services.{name}");
            let service = self.service(&key, raw, knock_ports);
            for (other, earlier) in &services {
                self.compare(&key, &service, other, earlier);
            }
            match name.parse::<ServiceName>() {
                Ok(name) => drop(services.insert(name, service)),
                Err(error) => self.fault(key, error),
            }
        }
        services
    }

    fn service(&mut self, key: &str, raw: RawService, knock_ports: &[u16]) -> Service {
        let RawService { ports, local_port, forward, masquerade, connections } = raw;
        let ports = self.service_ports(&format!("{key}.ports"), &ports, knock_ports);
        let connections = match connections {
            None => Connections::Any,
            Some(1) => Connections::One,
            Some(other) => {
                self.fault(format!("{key}.connections"), ValueError::Connections(other));
                Connections::Any
            }
        };
        let target = match (local_port, forward) {
            (Some(_), Some(_)) => {
                self.fault(format!("{key}.forward"), ValueError::TwoTargets);
                Target::Here
            }
            (Some(port), None) => {
                if let Some(port) = u16::try_from(port).ok().and_then(NonZeroU16::new) {
                    Target::LocalPort(port)
                } else {
                    self.fault(format!("{key}.local-port"), ValueError::Port(port));
                    Target::Here
                }
            }
            (None, Some(texts)) => {
                let masquerade = masquerade.unwrap_or(false);
                Target::Forward(self.forward(&format!("{key}.forward"), &texts, masquerade))
            }
            (None, None) => Target::Here,
        };
        if masquerade.is_some() && !matches!(target, Target::Forward(_)) {
            self.fault(format!("{key}.masquerade"), ValueError::NothingToMasquerade);
        }
        Service { ports, target, connections }
    }

    fn forward(&mut self, key: &str, texts: &[String], masquerade: bool) -> Forward {
        if texts.is_empty() {
            self.fault(key, ValueError::Empty { advice: "write [\"10.0.0.5:443\"], for instance" });
        }
        let mut forward = Forward { v4: None, v6: None, masquerade };
        for text in texts {
            let Some(to) = forward_to(text) else {
                self.fault(key, ValueError::ForwardTo(text.clone()));
                continue;
            };
            let place = match to.address {
                IpAddr::V4(_) => &mut forward.v4,
                IpAddr::V6(_) => &mut forward.v6,
            };
            if place.replace(to).is_some() {
                self.fault(key, ValueError::SecondForward(text.clone()));
            }
        }
        forward
    }

    fn compare(&mut self, key: &str, service: &Service, other: &ServiceName, earlier: &Service) {
        if service.target == earlier.target && service.connections == earlier.connections {
            return;
        }
        let shared = service
            .ports
            .iter()
            .find(|ports| earlier.ports.iter().any(|others| ports.overlaps(*others)));
        if let Some(ports) = shared {
            let other = other.to_string();
            self.fault(format!("{key}.ports"), ValueError::Conflict { ports: *ports, other });
        }
    }

    fn service_ports(
        &mut self,
        key: &str,
        texts: &[String],
        knock_ports: &[u16],
    ) -> BTreeSet<PortRange> {
        if texts.is_empty() {
            self.fault(key, ValueError::Empty { advice: "write [\"tcp/22\"], for instance" });
        }
        let mut all = BTreeSet::new();
        for text in texts {
            let ports = match text.parse::<PortRange>() {
                Ok(ports) => ports,
                Err(error) => {
                    self.fault(key, error);
                    continue;
                }
            };
            let is_among = |knock: &u16| {
                ports.transport() == Transport::Udp
                    && (ports.first().get()..=ports.last().get()).contains(knock)
            };
            if knock_ports.iter().any(is_among) {
                self.fault(key, ValueError::IsKnockPort { ports });
            } else if all.contains(&ports) {
                self.fault(key, ValueError::Twice(text.clone()));
            } else if let Some(other) = all.iter().find(|other| ports.overlaps(**other)) {
                let other = *other;
                self.fault(key, ValueError::Overlap { ports, other });
            } else {
                all.insert(ports);
            }
        }
        all
    }
}

/// `10.0.0.5`, `10.0.0.5:443`, `fd00::5`, `[fd00::5]:443`
fn forward_to(text: &str) -> Option<ForwardTo> {
    let (address, port) = match text.parse::<SocketAddr>() {
        Ok(both) => (both.ip(), Some(NonZeroU16::new(both.port())?)),
        Err(_) => (text.parse::<IpAddr>().ok()?, None),
    };
    let is_host = !address.is_unspecified()
        && !address.is_multicast()
        && !address.is_loopback()
        && address.to_canonical() == address;
    is_host.then_some(ForwardTo { address, port })
}

/// As the kernel has it: 1 to 15 bytes, no `/`, no `:`, no white space.
fn is_interface_name(name: &str) -> bool {
    (1..=MAX_INTERFACE_NAME).contains(&name.len())
        && !matches!(name, "." | "..")
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !b"/:".contains(&byte))
}

pub(super) fn lifetime(
    key: &str,
    raw: Option<String>,
    faults: &mut Vec<Fault>,
) -> Option<Duration> {
    duration(key, raw, MIN_LIFETIME, MAX_LIFETIME, faults)
}

fn duration(
    key: &str,
    raw: Option<String>,
    min: Duration,
    max: Duration,
    faults: &mut Vec<Fault>,
) -> Option<Duration> {
    let error = match parse_duration(&raw?) {
        Ok(value) if (min..=max).contains(&value) => return Some(value),
        Ok(value) => ValueError::DurationRange { value, min, max },
        Err(error) => error.into(),
    };
    faults.push(Fault::value(key, error));
    None
}
/// Reads a point in time, as TOML writes it or as a text.
pub(super) fn timestamp(raw: toml::Value) -> Result<UnixMicros, TimestampError> {
    match raw {
        toml::Value::String(text) => parse_timestamp(&text),
        other => parse_timestamp(&other.to_string()),
    }
}

pub(super) fn number(
    key: &str,
    raw: Option<i64>,
    min: i64,
    max: i64,
    faults: &mut Vec<Fault>,
) -> Option<u32> {
    let value = raw?;
    match u32::try_from(value) {
        Ok(number) if (min..=max).contains(&value) => Some(number),
        _ => {
            faults.push(Fault::value(key, ValueError::Range { value, min, max }));
            None
        }
    }
}
