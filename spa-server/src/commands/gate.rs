//! Commands that handle the gate, with the daemon or without.

use super::output::{print, print_json, table};
use super::trial::{self, Order};
use super::{CommandError, Done, daemon, host};
use crate::causes::with_causes;
use crate::cli::{InstallArgs, Output};
use crate::config::{Settings, format_duration};
use crate::control::{CallError, ControlRequest, ControlResponse, call};
use crate::gate::{
    AnyGate, Gate as _, GateError, InstallReport, IptablesGate, LiveElement, ToolOverrides, Tools,
};
use serde::Serialize;
use std::path::Path;
use std::time::Duration;

/// What `gate show` shows.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Shown {
    /// Whether rules and sets are there.
    installed: bool,
    /// Whether they are as the configuration wants them.
    up_to_date: bool,
    /// What the kernel admits.
    admitted: Vec<LiveElement>,
    /// What the administrator should know.
    warnings: Vec<String>,
}

/// `spa-server gate install`: by the daemon, if it runs; it then watches over what it installed.
pub(crate) fn install(config: &Path, args: &InstallArgs) -> Done {
    let settings = Settings::load(config)?;
    let length = args.trial.as_deref().map(trial::length).transpose()?;
    let request = if args.boot {
        ControlRequest::Status
    } else {
        ControlRequest::GateInstall { trial: length.map(|length| length.as_secs()) }
    };
    let (report, runs) = match call(&settings.control_socket, &request) {
        Ok(_) if args.boot => {
            eprintln!("the daemon runs, and sees to the gate itself");
            return Ok(());
        }
        Ok(ControlResponse::GateInstalled { report, reloaded }) => {
            eprint!("{}", daemon::render_reloaded(&reloaded));
            (report, true)
        }
        Ok(other) => return Err(daemon::unexpected(&other)),
        Err(CallError::NotRunning { .. }) => {
            let order = match length {
                _ if args.boot => Order::AsItWas,
                Some(length) => Order::OnTrial(length),
                None => Order::ForGood,
            };
            let gate = gate(&settings)?;
            let put_up = trial::put_up(&settings, order, |plan| wait(gate.install(&plan)))?;
            let Some(report) = put_up else { return Ok(()) };
            (report, false)
        }
        Err(error) => return Err(error.into()),
    };
    if args.output.json {
        print_json(&report)?;
    } else {
        print(&render_report(&report))?;
    }
    if let Some(length) = length {
        eprintln!("{}", trial::what_to_do(length));
    }
    if !runs && !args.boot {
        eprintln!(
            "the daemon does not run: nothing opens the ports now. `spa-server gate remove` takes the gate away"
        );
    }
    Ok(())
}

/// `spa-server gate show`.
pub(crate) fn show(config: &Path, output: Output) -> Done {
    let settings = Settings::load(config)?;
    let gate = gate(&settings)?;
    let admitted = match wait_for(gate.snapshot())? {
        Ok(admitted) => Some(admitted),
        Err(GateError::NotInstalled) => None,
        Err(error) => return Err(failed(&error)),
    };
    let examined = wait(gate.examine(&trial::plan(&settings)))?;
    let shown = Shown {
        installed: admitted.is_some(),
        up_to_date: admitted.is_some() && !examined.changed,
        admitted: admitted.unwrap_or_default(),
        warnings: trial::warning(&settings).into_iter().chain(warnings(&examined)).collect(),
    };
    if output.json { print_json(&shown) } else { print(&render(&shown)) }
}

/// `spa-server gate remove`: for the day when everything else is wrong. A daemon that runs is asked
/// to do it, since it would put back what goes without its knowledge.
pub(crate) fn remove(config: &Path) -> Done {
    match call(&Settings::control_socket_of(config), &ControlRequest::GateRemove) {
        Ok(ControlResponse::Done) => {
            eprintln!(
                "the gate is removed: all ports are as they were without it, until `spa-server gate install` or a restart of the daemon"
            );
            return Ok(());
        }
        Err(CallError::NotRunning { .. }) => {}
        // Whatever is wrong with the daemon, the gate has to go.
        answer => {
            let why = match answer {
                Ok(other) => daemon::unexpected(&other).to_string(),
                Err(error) => error.to_string(),
            };
            eprintln!(
                "{why}\nthe gate is removed without it; it may put it back, so stop it: systemctl stop spa-server"
            );
        }
    }
    let overrides = if let Ok(settings) = Settings::load(config) {
        settings.gate.tools
    } else {
        eprintln!(
            "no usable configuration at {}: the tools are looked for in the usual places",
            config.display()
        );
        ToolOverrides::default()
    };
    wait(IptablesGate::new(Tools::find_some(&overrides)).remove())?;
    if let Ok(settings) = Settings::load(config) {
        trial::removed(&settings);
    }
    eprintln!("the gate is removed: all ports are as they were without it");
    Ok(())
}

pub(super) fn gate(settings: &Settings) -> Result<AnyGate, CommandError> {
    AnyGate::choose(&settings.gate).map_err(|error| failed(&error))
}

pub(super) fn wait<T>(
    future: impl Future<Output = Result<T, GateError>>,
) -> Result<T, CommandError> {
    wait_for(future)?.map_err(|error| failed(&error))
}

fn wait_for<F: Future>(future: F) -> Result<F::Output, CommandError> {
    host::block_on(future).map_err(|source| {
        CommandError::Failed(format!("the runtime could not be started: {source}"))
    })
}

fn failed(error: &GateError) -> CommandError {
    CommandError::Failed(with_causes(error))
}

/// All that an examination or installation found, as sentences.
pub(super) fn warnings(report: &InstallReport) -> Vec<String> {
    let busy = report.busy_knock_ports.iter().map(ToString::to_string);
    busy.chain(report.warnings.iter().cloned()).collect()
}

fn render_report(report: &InstallReport) -> String {
    let done =
        if report.changed { "the gate is installed" } else { "the gate was in place already" };
    let mut lines = vec![done.to_owned()];
    if report.connections_kept > 0 {
        lines.push(format!("established connections that live on: {}", report.connections_kept));
    }
    lines.extend(warnings(report).into_iter().map(|warning| format!("warning: {warning}")));
    lines.push(String::new());
    lines.join("\n")
}

fn render(shown: &Shown) -> String {
    let state = match (shown.installed, shown.up_to_date) {
        (false, _) => "the gate is not installed",
        (true, false) => {
            "the gate is installed, but not as the configuration wants it; `spa-server gate install` or a restart of the daemon mends it"
        }
        (true, true) => "the gate is installed",
    };
    let mut lines = vec![state.to_owned()];
    lines.extend(shown.warnings.iter().map(|warning| format!("warning: {warning}")));
    if shown.installed && shown.admitted.is_empty() {
        lines.push("nothing is admitted".to_owned());
    }
    lines.push(String::new());
    let mut rows = vec![["SOURCE", "PORT", "LEFT"].map(String::from).to_vec()];
    rows.extend(shown.admitted.iter().map(|live| {
        let left = format_duration(Duration::from_secs(live.seconds_left.into()));
        vec![live.element.source.to_string(), live.element.ports.to_string(), left]
    }));
    let admitted = if shown.admitted.is_empty() { String::new() } else { table(&rows) };
    lines.join("\n") + &admitted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::{BusyKnockPort, Element, Family};

    fn busy() -> BusyKnockPort {
        let listener = "0.0.0.0:53".parse().unwrap();
        BusyKnockPort { port: 53, family: Family::V4, listener }
    }

    #[test]
    fn an_installation_is_told() {
        let report = InstallReport::default();
        assert_eq!(render_report(&report), "the gate was in place already\n");
        let report = InstallReport {
            changed: true,
            busy_knock_ports: vec![busy()],
            connections_kept: 2,
            warnings: vec!["nothing drops".into()],
            differences: Vec::new(),
        };
        insta::assert_snapshot!(render_report(&report), @"
        the gate is installed
        established connections that live on: 2
        warning: knock port udp/53 is left alone over IPv4: a service listens on 0.0.0.0:53
        warning: nothing drops
        ");
    }

    #[test]
    fn a_gate_is_shown() {
        let mut shown = Shown {
            installed: false,
            up_to_date: false,
            admitted: Vec::new(),
            warnings: Vec::new(),
        };
        assert_eq!(render(&shown), "the gate is not installed\n");
        (shown.installed, shown.up_to_date) = (true, true);
        assert_eq!(render(&shown), "the gate is installed\nnothing is admitted\n");
        shown.up_to_date = false;
        shown.warnings.push(busy().to_string());
        let element =
            Element { source: "192.0.2.7".parse().unwrap(), ports: "tcp/22".parse().unwrap() };
        shown.admitted.push(LiveElement { element, seconds_left: 29 });
        insta::assert_snapshot!(render(&shown), @"
        the gate is installed, but not as the configuration wants it; `spa-server gate install` or a restart of the daemon mends it
        warning: knock port udp/53 is left alone over IPv4: a service listens on 0.0.0.0:53
        SOURCE     PORT    LEFT
        192.0.2.7  tcp/22  29s
        ");
    }
}
