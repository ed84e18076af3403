//! Commands that handle the gate, with the daemon or without.

use super::order::{self, Carrier};
use super::output::{print, print_json, table};
use super::trial;
use super::{CommandError, Done, daemon, hand_over, host};
use crate::causes::with_causes;
use crate::cli::{GateInstallArgs, Output};
use crate::clock::BootMicros;
use crate::config::{GateSettings, Settings, format_duration};
use crate::control::{CallError, ControlRequest, ControlResponse, call};
use crate::gate::{
    AnyGate, Backend, Choice, Gate as _, GateError, InstallReport, LiveElement, Plan,
};
use crate::helper::{OrderFile, Ordered};
use crate::trial::{Announced, Trial};
use serde::Serialize;
use std::path::Path;
use std::time::Duration;

/// What `gate show` shows.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Shown {
    /// What guards the ports.
    backend: Backend,
    /// Whether rules and sets are there.
    installed: bool,
    /// Whether they are as the configuration wants them.
    up_to_date: bool,
    /// In what they differ from that.
    differences: Vec<String>,
    /// What the kernel admits.
    admitted: Vec<LiveElement>,
    /// What the administrator should know.
    warnings: Vec<String>,
}

impl Shown {
    pub(super) const fn is_in_place(&self) -> bool {
        self.installed && self.up_to_date
    }
}

/// `spa-server gate install`: by the daemon, if it runs; it then watches over what it installed.
pub(crate) fn install(config: &Path, args: &GateInstallArgs) -> Done {
    let settings = Settings::load(config)?;
    if args.dry_run {
        return preview(&settings, args.output);
    }
    let length = args.trial.as_deref().map(trial::length).transpose()?;
    let request = ControlRequest::GateInstall { trial: length.map(|length| length.as_secs()) };
    let (state, orders) = (&settings.state_directory, OrderFile::of(&settings.state_directory));
    let at = BootMicros::now();
    let ordered = length.map(|length| Ordered::Trial { at, until: at.saturating_add(length) });
    // Before the daemon writes anything: if the power fails meanwhile, a boot is not to put up for good
    // what was to be tried.
    let begun = match length {
        Some(length) => {
            let trial_seconds = u32::try_from(length.as_secs()).ok();
            let plan = Plan { trial_seconds, ..settings.gate_plan() };
            trial::announced(&trial::record(state)?, &plan)?.ok()
        }
        None => None,
    };
    let before = orders.say(state, ordered);
    hand_over::before_it_reads(config);
    let given = order::give(&settings.control_socket, state, &request);
    // Whoever does not answer may still do it, and somebody else may have ordered something since.
    let is_refused = matches!(given, Err(CommandError::Call(CallError::Refused { .. })));
    if is_refused && orders.read() == ordered {
        orders.say(state, before);
    }
    // Nobody does it, or this one, who says so himself.
    let is_not_theirs = is_refused || matches!(given, Ok(Carrier::Command(_)));
    if is_not_theirs && let Some(Err(error)) = begun.map(Announced::withdraw) {
        eprintln!("{}", with_causes(&error));
    }
    let (report, runs) = match given? {
        Carrier::Daemon(ControlResponse::GateInstalled { report, reloaded }) => {
            eprint!("{}", daemon::render_reloaded(&reloaded));
            (report, true)
        }
        Carrier::Daemon(other) => return Err(daemon::unexpected(&other)),
        Carrier::Command(_lock) => {
            let trial = length.map(|length| Trial::of(length, BootMicros::now()));
            (trial::put_up(&settings, trial)?, false)
        }
    };
    tell(&report, args.output)?;
    if let Some(length) = length {
        eprintln!("{}", trial::what_to_do(length));
    }
    if !runs {
        eprintln!(
            "the daemon does not run: nothing opens the ports now. `spa-server gate remove` takes the gate away"
        );
    }
    Ok(())
}

/// Says what an installation found and did.
pub(super) fn tell(report: &InstallReport, output: Output) -> Done {
    if output.json { print_json(report) } else { print(&render_report(report)) }
}

/// Puts the gate in place by this plan, instead of that of any other back-end.
pub(super) async fn install_without_daemon(
    settings: &GateSettings,
    plan: &Plan,
) -> Result<InstallReport, CommandError> {
    let Choice { gate, .. } = choose(settings, plan).await?;
    gate.install_in_place(settings, plan).await.map_err(|error| failed(&error))
}

/// What `gate install --dry-run` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Preview {
    backend: Backend,
    /// Whether anything would be made or mended.
    would_change: bool,
    /// What.
    differences: Vec<String>,
    /// What its tools would be given where there is nothing yet.
    script: Vec<String>,
    warnings: Vec<String>,
}

fn preview(settings: &Settings, output: Output) -> Done {
    let plan = settings.gate_plan();
    let preview = wait_for(async {
        let Choice { gate, .. } = choose(&settings.gate, &plan).await?;
        let stands = gate.snapshot().await.is_ok();
        let report = gate.examine(&plan).await.map_err(|error| failed(&error))?;
        Ok::<_, CommandError>(Preview {
            backend: gate.backend(),
            would_change: report.changed,
            script: if stands { Vec::new() } else { gate.script(&plan) },
            warnings: warnings(&report),
            differences: report.differences,
        })
    })??;
    if output.json { print_json(&preview) } else { print(&render_preview(&preview)) }
}

fn render_preview(preview: &Preview) -> String {
    let Preview { backend, would_change, differences, script, warnings } = preview;
    let mut lines = vec![if *would_change {
        format!("the back-end {backend} would install the gate; nothing is done")
    } else {
        format!("the gate of the back-end {backend} is in place; nothing would be done")
    }];
    if script.is_empty() {
        lines.extend(differences.iter().map(|difference| format!("to mend: {difference}")));
    }
    lines.extend(warnings.iter().map(|warning| format!("warning: {warning}")));
    lines.extend(script.iter().cloned());
    lines.push(String::new());
    lines.join("\n")
}

/// `spa-server gate show`.
pub(crate) fn show(config: &Path, output: Output) -> Done {
    let mut settings = Settings::load(config)?;
    // What `auto` would take now may be another one than the daemon took at its start.
    if let Ok(ControlResponse::Status(status)) =
        call(&settings.control_socket, &ControlRequest::Status)
        && status.backend != Backend::Auto
    {
        settings.gate.backend = status.backend;
    }
    let shown = wait_for(look(&settings))??;
    if output.json { print_json(&shown) } else { print(&render(&shown)) }
}

pub(super) async fn look(settings: &Settings) -> Result<Shown, CommandError> {
    let plan = trial::plan(settings);
    let Choice { gate, .. } = choose(&settings.gate, &plan).await?;
    let admitted = match gate.snapshot().await {
        Ok(admitted) => Some(admitted),
        Err(GateError::NotInstalled) => None,
        Err(error) => return Err(failed(&error)),
    };
    let mut examined = gate.examine(&plan).await.map_err(|error| failed(&error))?;
    examined.warnings.extend(trial::warning(settings).into_iter().chain(settings.abandoned_hook()));
    let is_there = admitted.is_some();
    Ok(Shown {
        backend: gate.backend(),
        installed: is_there,
        up_to_date: is_there && !examined.changed,
        admitted: admitted.unwrap_or_default(),
        warnings: warnings(&examined),
        // Where there is nothing, everything differs.
        differences: if is_there { examined.differences } else { Vec::new() },
    })
}

/// `spa-server gate remove`: for the day when everything else is wrong. A daemon that runs is asked
/// to do it, since it would put back what goes without its knowledge.
pub(crate) fn remove(config: &Path) -> Done {
    let (socket, state) =
        (Settings::control_socket_of(config), Settings::state_directory_of(config));
    OrderFile::of(&state).say(&state, Some(Ordered::Removed { at: BootMicros::now() }));
    let given = order::give(&socket, &state, &ControlRequest::GateRemove);
    let by_daemon = matches!(given, Ok(Carrier::Daemon(ControlResponse::Done)));
    // Whatever is wrong with the daemon, the gate has to go.
    let wrong = match &given {
        Ok(Carrier::Daemon(ControlResponse::Done) | Carrier::Command(_)) => None,
        Ok(Carrier::Daemon(other)) => Some(daemon::unexpected(other).to_string()),
        Err(error) => Some(error.to_string()),
    };
    if let Some(wrong) = wrong {
        eprintln!(
            "{wrong}\nthe gate is removed all the same; a daemon may put it back, so stop it: systemctl stop spa-server"
        );
    }
    // The daemon knows only its own back-end: that of another one may stand, too.
    let settings = if let Ok(settings) = Settings::load(config) {
        if let Some(warning) = settings.abandoned_hook() {
            eprintln!("warning: {warning}");
        }
        settings.gate
    } else {
        eprintln!(
            "no usable configuration at {}: the tools are looked for in the usual places, and what hook commands have opened stays open",
            config.display()
        );
        GateSettings::default()
    };
    let removed = wait_for(AnyGate::remove_all(&settings))?.map_err(|error| failed(&error));
    // Also where something is left: no boot is to put up what was to go.
    let forgotten = trial::removed(&state);
    removed?;
    forgotten?;
    let until =
        if by_daemon { ", until `spa-server gate install` or a restart of the daemon" } else { "" };
    eprintln!("the gate is removed: all ports are as they were without it{until}");
    // Until now no daemon could start.
    drop(given);
    Ok(())
}

async fn choose(settings: &GateSettings, plan: &Plan) -> Result<Choice, CommandError> {
    AnyGate::choose(settings, plan).await.map_err(|error| failed(&error))
}

pub(super) fn wait_for<F: Future>(future: F) -> Result<F::Output, CommandError> {
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
    let backend = shown.backend;
    let state = match (shown.installed, shown.up_to_date) {
        (false, _) => format!("the gate is not installed (back-end {backend})"),
        (true, false) => format!(
            "the gate is installed (back-end {backend}), but not as the configuration wants it; `spa-server gate install` or a restart of the daemon mends it"
        ),
        (true, true) => format!("the gate is installed (back-end {backend})"),
    };
    let mut lines = vec![state];
    lines.extend(shown.differences.iter().map(|difference| format!("differs: {difference}")));
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
            backend: Backend::Ipset,
            differences: Vec::new(),
            installed: false,
            up_to_date: false,
            admitted: Vec::new(),
            warnings: Vec::new(),
        };
        assert_eq!(render(&shown), "the gate is not installed (back-end ipset)\n");
        (shown.installed, shown.up_to_date) = (true, true);
        assert_eq!(render(&shown), "the gate is installed (back-end ipset)\nnothing is admitted\n");
        shown.up_to_date = false;
        shown.differences = vec!["set spa6 is missing".into()];
        shown.warnings.push(busy().to_string());
        for (source, ports) in [("192.0.2.7", "tcp/22"), ("2001:db8::/64", "udp/10000-10100")] {
            let element =
                Element { source: source.parse().unwrap(), ports: ports.parse().unwrap() };
            shown.admitted.push(LiveElement { element, seconds_left: 29 });
        }
        insta::assert_snapshot!(render(&shown), @"
        the gate is installed (back-end ipset), but not as the configuration wants it; `spa-server gate install` or a restart of the daemon mends it
        differs: set spa6 is missing
        warning: knock port udp/53 is left alone over IPv4: a service listens on 0.0.0.0:53
        SOURCE         PORT             LEFT
        192.0.2.7      tcp/22           29s
        2001:db8::/64  udp/10000-10100  29s
        ");
    }

    #[test]
    fn what_would_be_done_is_told() {
        let mut preview = Preview {
            backend: Backend::Nftables,
            would_change: true,
            differences: vec!["table inet spa is missing".into()],
            script: vec!["nft: add table inet spa".into()],
            warnings: vec!["this kernel has no IPv6".into()],
        };
        insta::assert_snapshot!(render_preview(&preview), @"
        the back-end nftables would install the gate; nothing is done
        warning: this kernel has no IPv6
        nft: add table inet spa
        ");
        preview.script.clear();
        preview.warnings.clear();
        insta::assert_snapshot!(render_preview(&preview), @"
        the back-end nftables would install the gate; nothing is done
        to mend: table inet spa is missing
        ");
        (preview.would_change, preview.differences) = (false, Vec::new());
        insta::assert_snapshot!(render_preview(&preview), @"the gate of the back-end nftables is in place; nothing would be done");
    }
}
