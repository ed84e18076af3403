//! `spa-server check`: looks for whatever is wrong with an installation, and says how to mend it.

mod users;

use super::output::{print, print_json};
use super::{CONFIG, CommandError, Done, FAILED, client, gate as commands_gate, host, trial};
use crate::capture::{Capture, CaptureSettings, Interfaces};
use crate::causes::with_causes;
use crate::cli::Output;
use crate::config::{Config, ConfigError, Settings, format_timestamp};
use crate::control::{CallError, ControlRequest, ControlResponse, call};
use crate::gate::{AnyGate, Backend, Choice, Gate as _, GateError, Mode, ToolOverrides, Tools};
use crate::users::is_trusted_with_state;
use serde::Serialize;
use spa_proto::{Port, Transport};
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::num::NonZeroU16;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

/// A buffer to try a capture with: nothing is to be caught.
const TRIAL_BUFFER: u32 = 256 * 1024;

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Outcome {
    Ok,
    Warning,
    Error,
}

impl Outcome {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Finding {
    /// What was looked at.
    check: &'static str,
    outcome: Outcome,
    /// How it is, and what to do about it.
    message: String,
}

#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, check: &'static str, outcome: Outcome, message: impl Into<String>) {
        self.0.push(Finding { check, outcome, message: message.into() });
    }

    fn ok(&mut self, check: &'static str, message: impl Into<String>) {
        self.add(check, Outcome::Ok, message);
    }

    fn warning(&mut self, check: &'static str, message: impl Into<String>) {
        self.add(check, Outcome::Warning, message);
    }

    fn error(&mut self, check: &'static str, message: impl Into<String>) {
        self.add(check, Outcome::Error, message);
    }

    fn render(&self) -> String {
        let lines = self.0.iter().map(|finding| {
            let Finding { check, outcome, message } = finding;
            format!("{:7}  {check:13}  {message}\n", outcome.as_str())
        });
        lines.collect()
    }

    fn has(&self, outcome: Outcome) -> bool {
        self.0.iter().any(|finding| finding.outcome == outcome)
    }
}

/// `spa-server check`.
pub(crate) fn run(config: &Path, output: Output) -> Done {
    let mut findings = Findings::default();
    let loaded = Config::load(config);
    let wrong_config = loaded.is_err();
    let settings = match loaded {
        Ok(config) => {
            look_at_config(&config, &mut findings);
            Some(config.settings)
        }
        Err(ConfigError { problems }) => {
            for problem in problems {
                findings.error("configuration", problem.to_string());
            }
            // What it says of the host can be looked at though a client's file is wrong.
            Settings::load(config).ok()
        }
    };
    look_at_capabilities(&mut findings);
    let mut daemon = Daemon::Absent;
    if let Some(settings) = &settings {
        look_at_capture(settings, &mut findings);
        look_at_state(settings, &mut findings);
        users::look_at(config, settings, &mut findings);
        daemon = look_at_control(settings, &mut findings);
    }
    host::block_on(async {
        match &settings {
            Some(settings) => {
                look_at_gate(settings, daemon, &mut findings).await;
                look_at_sshd(settings, &mut findings).await;
            }
            None => find_tools(&mut findings),
        }
        look_at_clock(&mut findings).await;
    })
    .map_err(|source| {
        CommandError::Failed(format!("the runtime could not be started: {source}"))
    })?;

    if output.json {
        print_json(&findings.0)?;
    } else {
        print(&findings.render())?;
    }
    let exit_code = match (wrong_config, findings.has(Outcome::Error)) {
        (true, _) => CONFIG,
        (_, true) => FAILED,
        _ => return Ok(()),
    };
    Err(CommandError::Told { exit_code })
}

fn look_at_config(config: &Config, findings: &mut Findings) {
    let check = "configuration";
    let (services, clients) = (config.settings.services.len(), config.clients());
    findings.ok(
        check,
        format!("{}: services: {services}, clients: {}", config.path.display(), clients.len()),
    );
    findings.ok("keys", format!("the server's public key is {}", config.server_key()));
    if clients.is_empty() {
        findings.warning(
            check,
            "there are no clients, so nobody can open anything; invite one: spa-server invite NAME --allow ssh",
        );
    }
    let now = client::now();
    for (name, rules) in clients {
        if let Some(expires) = rules.expires.filter(|expires| rules.enabled && *expires <= now) {
            findings.warning(
                check,
                format!(
                    "client {name} expired at {}; remove it, or change its expires in clients.d/{name}.toml",
                    format_timestamp(expires)
                ),
            );
        }
    }
}

fn look_at_capabilities(findings: &mut Findings) {
    let check = "capabilities";
    match host::missing_capabilities() {
        Ok(missing) if missing.is_empty() => {
            let names: Vec<_> = host::CAPABILITIES.iter().map(|c| c.name).collect();
            findings.ok(check, names.join(", "));
        }
        Ok(missing) => {
            for capability in missing {
                findings.error(
                    check,
                    format!(
                        "{} is missing, which is needed {}; run this as root (in a container, grant it)",
                        capability.name, capability.what_for
                    ),
                );
            }
        }
        Err(error) => findings.warning(check, format!("/proc/self/status can't be read: {error}")),
    }
}

/// Opens the capture as the daemon does, and closes it again.
fn look_at_capture(settings: &Settings, findings: &mut Findings) {
    let check = "capture";
    let capture = CaptureSettings {
        kernel_filter: None,
        interfaces: settings.interfaces.clone(),
        ports: settings.knock_ports.clone(),
        packet_length: settings.packet_length.packet(),
        buffer_bytes: TRIAL_BUFFER,
    };
    match Capture::try_out(&capture) {
        Ok(()) => {
            let interfaces = match &settings.interfaces {
                Interfaces::All => "all interfaces".to_owned(),
                Interfaces::Named(names) => names.join(", "),
            };
            findings.ok(check, format!("knocks can be seen on {interfaces}"));
        }
        Err(error) => findings.error(check, with_causes(&error)),
    }
}

fn look_at_state(settings: &Settings, findings: &mut Findings) {
    let check = "state";
    let directory = &settings.state_directory;
    let shown = directory.display();
    let metadata = match fs::metadata(directory) {
        Ok(metadata) if metadata.is_dir() => metadata,
        Ok(_) => return findings.error(check, format!("{shown} is no directory; move it away")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mend = format!("make it: install -d -m 700 {shown}");
            return findings.error(check, format!("there is no directory {shown}; {mend}"));
        }
        Err(error) => return findings.error(check, format!("{shown} can't be used: {error}")),
    };
    if let Err(error) = try_writing(directory) {
        let advice =
            "nothing opens when the daemon can't write there; free space or mend its permissions";
        return findings.error(check, format!("{shown} can't be written: {error}; {advice}"));
    }
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if !is_trusted_with_state(owner) {
        findings.error(
            check,
            format!("{shown} belongs to user id {owner}, who could have old knocks accepted again; chown root {shown}"),
        );
    } else if mode & 0o022 != 0 {
        findings.error(
            check,
            format!("others can write {shown} (mode {mode:04o}), and have old knocks accepted again; chmod 700 {shown}"),
        );
    } else if mode & 0o055 != 0 {
        findings.warning(
            check,
            format!("others can read in {shown} (mode {mode:04o}) who came in from where; chmod 700 {shown}"),
        );
    } else {
        findings.ok(check, format!("{shown} can be written"));
    }
}

fn try_writing(directory: &Path) -> io::Result<()> {
    let path = directory.join(format!(".check.{}", std::process::id()));
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    let written = file.and_then(|mut file| {
        file.write_all(&[0; 4096])?;
        file.sync_all()
    });
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => written.and(Err(error)),
        _ => written,
    }
}

/// Whether there is one that answers.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Daemon {
    Runs,
    /// But there is to be no gate; why.
    RunsWithoutGate(String),
    Absent,
}

fn look_at_control(settings: &Settings, findings: &mut Findings) -> Daemon {
    let check = "control";
    let socket = &settings.control_socket;
    match call(socket, &ControlRequest::Status) {
        Ok(ControlResponse::Status(status)) => {
            findings.ok(check, format!("the daemon runs (pid {})", status.pid));
            if let Some(error) = status.last_reload {
                findings.error(
                    check,
                    format!("the daemon refused the last reload and runs by the former configuration: {error}"),
                );
            }
            return if status.guards { Daemon::Runs } else { Daemon::RunsWithoutGate(status.gate) };
        }
        Ok(_) => findings.error(check, "the daemon answers as another version does; restart it"),
        Err(CallError::NotRunning { .. }) => {
            let directory = socket.parent().unwrap_or(Path::new("/"));
            match fs::metadata(directory) {
                Ok(metadata) if !metadata.is_dir() => findings
                    .error(check, format!("{} is no directory; move it away", directory.display())),
                Ok(metadata) if metadata.mode() & 0o022 != 0 && metadata.mode() & 0o1000 == 0 => {
                    let shown = directory.display();
                    findings.error(
                        check,
                        format!("others can write {shown} and put a socket of theirs there; chmod go-w {shown}"),
                    );
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => findings.error(
                    check,
                    format!("the control socket {} can't be made: {error}", socket.display()),
                ),
                _ => findings.ok(
                    check,
                    format!("the daemon does not run; its socket is to be {}", socket.display()),
                ),
            }
        }
        Err(error) => findings.error(check, error.to_string()),
    }
    Daemon::Absent
}

/// Which back-end it is and why, and who closes when the daemon is dead.
async fn look_at_backend(settings: &Settings, findings: &mut Findings) -> Option<AnyGate> {
    let check = "backend";
    let Choice { gate, passed_over } =
        match AnyGate::choose(&settings.gate, &settings.gate_plan()).await {
            Ok(choice) => choice,
            Err(error) => {
                findings.error(check, with_causes(&error));
                return None;
            }
        };
    let backend = gate.backend();
    let why = if settings.gate.backend != Backend::Auto {
        "as configured".to_owned()
    } else if passed_over.is_empty() {
        "the first choice, and it works here".to_owned()
    } else {
        let reasons: Vec<_> = passed_over.iter().map(|one| format!("not {one}")).collect();
        format!("the first that works here; {}", reasons.join("; "))
    };
    findings.ok(check, format!("{backend} ({why}): {}", backend.closing()));
    match backend {
        Backend::Hook => findings.warning(
            check,
            "hook commands hide and refuse nothing: the firewall that they change has to, and the knock ports answer like any closed port unless it drops them",
        ),
        Backend::DryRun => {
            findings.warning(check, "a dry run guards nothing: the ports are as open as they are");
        }
        _ => {}
    }
    if let Some(warning) = settings.abandoned_hook() {
        findings.warning(check, warning);
    }
    Some(gate)
}

async fn look_at_gate(settings: &Settings, daemon: Daemon, findings: &mut Findings) {
    let check = "gate";
    let Some(gate) = look_at_backend(settings, findings).await else { return };
    let report = match gate.examine(&trial::plan(settings)).await {
        Ok(report) => report,
        Err(error) => return findings.error(check, with_causes(&error as &GateError)),
    };
    let warnings = commands_gate::warnings(&report);
    if let Some(warning) = trial::warning(settings) {
        findings.warning(check, warning);
    }
    match (report.changed, daemon) {
        // There is nothing that could be looked at.
        _ if gate.backend() == Backend::DryRun => {}
        (false, _) => findings.ok(check, "the gate is installed"),
        (true, Daemon::Absent) => findings.ok(check, "the gate can be installed"),
        (true, Daemon::RunsWithoutGate(why)) => findings.warning(check, format!("the gate is {why}")),
        (true, Daemon::Runs) => findings.error(
            check,
            format!(
                "the daemon runs, but its rules are not as the configuration wants them ({}): another program has changed or flushed them, which the daemon mends (`spa-server status` says what keeps it from that), or the configuration is newer, which `spa-server reload` mends",
                report.differences.join("; ")
            ),
        ),
    }
    for warning in warnings {
        findings.warning(check, warning);
    }
}

/// Without a configuration it can't be said which are needed.
fn find_tools(findings: &mut Findings) {
    match Tools::find(&ToolOverrides::default()) {
        Ok(_) => findings.ok("tools", "iptables and ip6tables are there"),
        Err(missing) => findings.warning("tools", missing.to_string()),
    }
}

/// The port that everybody thinks of first is easily forgotten.
async fn look_at_sshd(settings: &Settings, findings: &mut Findings) {
    let ports = host::sshd_ports().await;
    let guarded = settings.gate_plan().guarded;
    let open: Vec<_> = ports
        .iter()
        .filter_map(|port| NonZeroU16::new(*port))
        .map(|number| Port { transport: Transport::Tcp, number })
        .filter(|port| !guarded.iter().any(|guarded| guarded.ports.contains(*port)))
        .map(|port| port.to_string())
        .collect();
    if !open.is_empty() && settings.gate.mode == Mode::Guard {
        let message = format!(
            "sshd listens on {}, which is in no service and stays as open as it is; add it to services.ssh if it is to be hidden",
            open.join(", ")
        );
        findings.warning("services", message);
    }
}

async fn look_at_clock(findings: &mut Findings) {
    let check = "clock";
    let advice = "knocks are refused when the clocks of client and server differ by more than freshness; install a time service: apt install systemd-timesyncd";
    match host::clock_is_synchronised().await {
        Some(true) => findings.ok(check, "follows a time server"),
        Some(false) => findings.warning(check, format!("follows no time server; {advice}")),
        None => findings
            .warning(check, format!("it can't be told whether it follows a time server; {advice}")),
    }
}
