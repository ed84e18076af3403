//! Commands that the running daemon answers.

use super::output::{print, print_json, table};
use super::{CommandError, Done, FAILED, hand_over};
use crate::cli::{Output, ResetArgs, RevokeArgs};
use crate::config::ClientName;
use crate::config::{Settings, format_duration, format_timestamp};
use crate::control::{
    CallError, ControlRequest, ControlResponse, CutView, GrantView, LatencyStatus, Reloaded,
    Status, call,
};
use crate::gate::Backend;
use serde::Serialize;
use spa_keys::PublicKey;
use spa_proto::ClientId;
use std::path::Path;
use std::time::Duration;

/// What `grants revoke --cut --json` prints.
#[derive(Serialize)]
struct RevokedAndCut<'a> {
    revoked: &'a [GrantView],
    cut: &'a CutView,
}

/// `spa-server status`.
pub(crate) fn status(config: &Path, output: Output) -> Done {
    match ask(config, &ControlRequest::Status)? {
        ControlResponse::Status(status) if output.json => print_json(&status),
        ControlResponse::Status(status) => print(&render_status(&status)),
        other => Err(unexpected(&other)),
    }
}

/// `spa-server grants list`.
pub(crate) fn grants_list(config: &Path, output: Output) -> Done {
    match ask(config, &ControlRequest::GrantsList)? {
        ControlResponse::Grants(grants) => print_grants(&grants, output, "nothing is open"),
        other => Err(unexpected(&other)),
    }
}

/// `spa-server grants revoke`.
pub(crate) fn grants_revoke(config: &Path, args: RevokeArgs) -> Done {
    let RevokeArgs { client, source, service, all, cut, output } = args;
    let request = ControlRequest::GrantsRevoke { client, source, service, all, cut };
    match ask(config, &request)? {
        ControlResponse::Revoked { grants, cut: None } => {
            print_grants(&grants, output, "no grant matches, so none was revoked")
        }
        ControlResponse::Revoked { grants, cut: Some(cut) } if output.json => {
            print_json(&RevokedAndCut { revoked: &grants, cut: &cut })?;
            judge_cut(&cut)
        }
        ControlResponse::Revoked { grants, cut: Some(cut) } => {
            print_grants(&grants, output, "no live grant matches, so none was revoked")?;
            eprintln!("{}", render_cut(&cut));
            judge_cut(&cut)
        }
        other => Err(unexpected(&other)),
    }
}

/// Ends the connections of a client that is locked out by now; `key` is its key.
pub(super) fn cut_off(config: &Path, key: &PublicKey) -> Done {
    let client = ClientId(*key.as_bytes()).to_string();
    let request = ControlRequest::GrantsRevoke {
        client: Some(client),
        source: None,
        service: None,
        all: false,
        cut: true,
    };
    match call(&Settings::control_socket_of(config), &request) {
        Ok(ControlResponse::Revoked { cut: Some(cut), .. }) => {
            eprintln!("{}", render_cut(&cut));
            judge_cut(&cut)
        }
        Ok(other) => Err(unexpected(&other)),
        Err(CallError::NotRunning { .. }) => Err(CommandError::Failed(
            "the daemon does not run, and nobody else knows which connections are this client's; `ss -tn` shows all, `ss -K` ends them".to_owned(),
        )),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn render_cut(cut: &CutView) -> String {
    let ended = format!("{} ended", count(cut.ended, "connection"));
    let left = match cut.left {
        0 => String::new(),
        left => format!(
            "; {} can't be ended, whose packets are refused for some minutes",
            count(left, "connection")
        ),
    };
    let trouble = cut.trouble.as_ref().map_or_else(String::new, |trouble| format!(": {trouble}"));
    ended + &left + &trouble
}

pub(super) fn judge_cut(cut: &CutView) -> Done {
    if cut.left == 0 && cut.trouble.is_none() {
        Ok(())
    } else {
        Err(CommandError::Told { exit_code: FAILED })
    }
}

/// `spa-server reload`.
pub(crate) fn reload(config: &Path, output: Output) -> Done {
    hand_over::before_it_reads(config);
    match ask(config, &ControlRequest::Reload)? {
        ControlResponse::Reloaded(reloaded) if output.json => print_json(&reloaded),
        ControlResponse::Reloaded(reloaded) => print(&render_reloaded(&reloaded)),
        other => Err(unexpected(&other)),
    }
}

/// `spa-server client reset-replay`.
pub(crate) fn reset_replay(config: &Path, args: ResetArgs) -> Done {
    let settings = Settings::load(config)?;
    let whose = match &args.name {
        Some(name) => format!("client {name}"),
        None => "every client".to_owned(),
    };
    let client = args.name.map(|name| name.to_string());
    match call(&settings.control_socket, &ControlRequest::ResetReplayWindow { client })? {
        ControlResponse::Done => {
            eprintln!(
                "{whose} is heard again in {}\n\
                warning: knocks that were sent while a clock was ahead and never arrived are fresh when that time comes, and whoever kept them back can send them then; a new key for the client rules that out",
                format_duration(settings.freshness.get())
            );
            Ok(())
        }
        other => Err(unexpected(&other)),
    }
}

/// `spa-server client withdraw-key`.
pub(crate) fn withdraw_key(config: &Path, name: &ClientName) -> Done {
    let settings = Settings::load(config)?;
    let request = ControlRequest::WithdrawKey { client: name.to_string() };
    match call(&settings.control_socket, &request)? {
        ControlResponse::Done => {
            eprintln!("the next key of client {name} is dropped");
            Ok(())
        }
        other => Err(unexpected(&other)),
    }
}

/// Has the daemon take up files that were just written, if it runs, and says on standard error
/// what came of it.
pub(super) fn take_up(config: &Path) -> Done {
    hand_over::before_it_reads(config);
    match call(&Settings::control_socket_of(config), &ControlRequest::Reload) {
        Ok(ControlResponse::Reloaded(reloaded)) => {
            eprint!("{}", render_reloaded(&reloaded));
            Ok(())
        }
        Ok(other) => Err(unexpected(&other)),
        Err(CallError::NotRunning { .. }) => {
            eprintln!("the daemon does not run; this takes effect when it starts");
            Ok(())
        }
        Err(error) => Err(CommandError::Failed(format!(
            "the change is written, but the running daemon has not taken it up: {error}"
        ))),
    }
}

pub(super) fn ask(
    config: &Path,
    request: &ControlRequest,
) -> Result<ControlResponse, CommandError> {
    if !config.exists() {
        // Which says that there is none.
        Settings::load(config)?;
    }
    Ok(call(&Settings::control_socket_of(config), request)?)
}

pub(super) fn unexpected(response: &ControlResponse) -> CommandError {
    let text = serde_json::to_string(response).unwrap_or_default();
    let begin: String = text.chars().take(60).collect();
    CommandError::Failed(format!(
        "the daemon answered something else than was asked ({begin}); restart it after an update"
    ))
}

fn print_grants(grants: &[GrantView], output: Output, nothing: &str) -> Done {
    if output.json {
        print_json(&grants)
    } else if grants.is_empty() {
        eprintln!("{nothing}");
        Ok(())
    } else {
        print(&render_grants(grants))
    }
}

pub(super) fn render_grants(grants: &[GrantView]) -> String {
    let heading = ["CLIENT", "SOURCE", "SERVICE", "PORTS", "LEFT", "OPENED", "REQUEST"];
    let mut rows = vec![heading.map(String::from).to_vec()];
    rows.extend(grants.iter().map(|grant| {
        let ports: Vec<_> = grant.ports.iter().map(ToString::to_string).collect();
        vec![
            grant.client.clone(),
            grant.source.to_string(),
            grant.service.to_string(),
            ports.join(","),
            seconds(grant.seconds_left),
            format_timestamp(grant.opened),
            grant.request_id.clone(),
        ]
    }));
    table(&rows)
}

pub(super) fn render_reloaded(reloaded: &Reloaded) -> String {
    let mut text = format!(
        "the daemon has reloaded: {}, {}\n",
        count(reloaded.clients, "client"),
        count(reloaded.services, "service")
    );
    if !reloaded.revoked.is_empty() {
        text.push_str("revoked, since the new policy forbids it:\n");
        text.push_str(&render_grants(&reloaded.revoked));
    }
    for warning in &reloaded.warnings {
        text.push_str("warning: ");
        text.push_str(warning);
        text.push('\n');
    }
    if !reloaded.restart_needed.is_empty() {
        text.push_str("these take effect after `systemctl restart spa-server` only: ");
        text.push_str(&reloaded.restart_needed.join(", "));
        text.push('\n');
    }
    text
}

/// How the ports are guarded; hook commands and a dry run refuse nothing themselves.
pub(super) fn guarding(status: &Status) -> String {
    match status.backend {
        Backend::Hook | Backend::DryRun => status.backend.to_string(),
        backend => format!("{backend}, {}, {}", status.mode, status.refuse),
    }
}

fn speed(latency: &LatencyStatus) -> String {
    let at = micros_in_words;
    format!(
        "50% within {}, 90% {}, 99% {}, the slowest {} (from capture to open, {})",
        at(latency.p50_micros),
        at(latency.p90_micros),
        at(latency.p99_micros),
        at(latency.max_micros),
        count(latency.knocks, "knock")
    )
}

/// Of the unit that leaves two digits or three.
pub(super) fn micros_in_words(micros: u64) -> String {
    let tenths = |unit: u64, name: &str| {
        let (whole, tenth) = (micros / unit, micros % unit / (unit / 10));
        if whole < 10 { format!("{whole}.{tenth} {name}") } else { format!("{whole} {name}") }
    };
    match micros {
        0..1000 => format!("{micros} us"),
        1000..1_000_000 => tenths(1000, "ms"),
        _ => tenths(1_000_000, "s"),
    }
}

fn render_status(status: &Status) -> String {
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let interfaces: Vec<_> = status
        .interfaces
        .iter()
        .map(|interface| format!("{}: {}", interface.name, interface.state))
        .collect();
    let ports: Vec<_> = status.knock_ports.iter().map(|port| format!("udp/{port}")).collect();
    let dropped: Vec<_> = status
        .dropped
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    let dropped = if dropped.is_empty() { "none".to_owned() } else { dropped.join(", ") };
    let disabled = status.clients.total.saturating_sub(status.clients.enabled);
    let mut rows = vec![
        row(
            "daemon",
            format!(
                "spa-server {}, pid {}, for {} (since {})",
                status.version,
                status.pid,
                seconds(status.uptime),
                format_timestamp(status.started)
            ),
        ),
        row("capture", interfaces.join(", ")),
        row("knock ports", ports.join(", ")),
        row("gate", format!("{} ({})", status.gate, guarding(status))),
        row("replay store", status.replay_store.clone()),
        row("clients", format!("{}, {disabled} disabled", status.clients.total)),
        row("grants", format!("{} open", status.grants)),
        row(
            "knocks",
            format!(
                "{} accepted; grants: {} opened, {} closed early, {} failed",
                status.accepted, status.opened, status.closed, status.failed
            ),
        ),
        row("received", format!("{} to knock ports", count(status.received, "datagram"))),
        row("prefilter", status.prefilter.clone()),
        row("dropped", dropped),
        row("lost", format!("{} before the daemon saw them", status.kernel_drops)),
        row(
            "queue",
            format!(
                "{} of {} waiting, {} at most",
                status.queue.waiting, status.queue.limit, status.queue.deepest
            ),
        ),
    ];
    if let Some(latency) = &status.latency {
        rows.push(row("latency", speed(latency)));
    }
    if status.refused > 0 {
        let refused = format!(
            "{}, for which nothing is opened; `spa-server refuse --list` shows them",
            count(status.refused, "source")
        );
        rows.push(row("refused", refused));
    }
    if let Some(left) = status.trial_seconds_left {
        let left = seconds(left);
        let value = format!(
            "for {left} more; then the gate is undone, unless `spa-server gate confirm` is run from a new connection"
        );
        rows.push(row("on trial", value));
    }
    if let Some(last) = status.last_restored {
        let times = count(status.restored, "time");
        let last = format_timestamp(last);
        let value =
            format!("the gate, {times}, after others had changed or flushed it; last at {last}");
        rows.push(row("restored", value));
    }
    if let Some(until) = status.barrier_until {
        let why = "after an unclean start or a step of the clock";
        let until = format_timestamp(until);
        rows.push(row("barrier", format!("{why}, only knocks stamped after {until} are taken")));
    }
    for problem in &status.left_out {
        rows.push(row("left out", problem.clone()));
    }
    if let Some(error) = &status.last_reload {
        rows.push(row("reload", format!("refused, the former configuration is in force: {error}")));
    }
    table(&rows)
}

pub(super) fn seconds(seconds: u64) -> String {
    format_duration(Duration::from_secs(seconds))
}

pub(super) fn count(number: u64, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{InterfaceStatus, QueueStatus, StatusClients};
    use spa_proto::UnixMicros;

    fn grant() -> GrantView {
        GrantView {
            client: "laptop".into(),
            source: "2001:db8::7".parse().unwrap(),
            service: "web".parse().unwrap(),
            ports: vec!["tcp/80".parse().unwrap(), "tcp/443".parse().unwrap()],
            opened: UnixMicros::from_secs(1_798_758_000),
            seconds_left: 90,
            request_id: "0a1b2c3d".into(),
        }
    }

    #[test]
    fn a_latency_has_a_unit_that_fits() {
        for (micros, text) in [(0, "0 us"), (999, "999 us"), (1500, "1.5 ms"), (60_000_000, "60 s")]
        {
            assert_eq!(micros_in_words(micros), text);
        }
    }

    #[test]
    fn status_is_readable() {
        let mut status = Status {
            version: "0.1.0".into(),
            pid: 123,
            started: UnixMicros::from_secs(1_798_758_000),
            uptime: 3723,
            interfaces: vec![InterfaceStatus { name: "any".into(), state: "running".into() }],
            knock_ports: vec![53, 62_201],
            backend: Backend::Ipset,
            mode: "guard".into(),
            refuse: "drop".into(),
            guards: true,
            gate: "installed".into(),
            trial_seconds_left: None,
            restored: 0,
            last_restored: None,
            replay_store: "writable".into(),
            clients: StatusClients { total: 3, enabled: 2 },
            grants: 1,
            refused: 0,
            received: 2016,
            prefilter: "in the kernel".into(),
            accepted: 10,
            opened: 9,
            closed: 2,
            failed: 1,
            dropped: [("length".into(), 0), ("replay".into(), 4), ("mac".into(), 2)].into(),
            kernel_drops: 0,
            queue: QueueStatus { waiting: 0, deepest: 3, limit: 4096 },
            latency: Some(LatencyStatus {
                knocks: 9,
                p50_micros: 210,
                p90_micros: 340,
                p99_micros: 1200,
                max_micros: 1_200_000,
            }),
            barrier_until: None,
            left_out: Vec::new(),
            last_reload: None,
        };
        insta::assert_snapshot!(render_status(&status), @"
        daemon        spa-server 0.1.0, pid 123, for 1h2m3s (since 2026-12-31T23:00:00Z)
        capture       any: running
        knock ports   udp/53, udp/62201
        gate          installed (ipset, guard, drop)
        replay store  writable
        clients       3, 1 disabled
        grants        1 open
        knocks        10 accepted; grants: 9 opened, 2 closed early, 1 failed
        received      2016 datagrams to knock ports
        prefilter     in the kernel
        dropped       2 mac, 4 replay
        lost          0 before the daemon saw them
        queue         0 of 4096 waiting, 3 at most
        latency       50% within 210 us, 90% 340 us, 99% 1.2 ms, the slowest 1.2 s (from capture to open, 9 knocks)
        ");
        status.backend = Backend::Hook;
        assert!(render_status(&status).contains("gate          installed (hook)\n"));
        status.dropped.clear();
        status.latency = None;
        status.refused = 2;
        status.barrier_until = Some(UnixMicros::from_secs(1_798_758_060));
        (status.restored, status.last_restored) = (2, Some(UnixMicros::from_secs(1_798_758_030)));
        status.trial_seconds_left = Some(43);
        status.left_out = vec!["/etc/spa/clients.d/x.toml: line 1: no".into()];
        status.last_reload = Some("/etc/spa/server.toml: line 3: no".into());
        let text = render_status(&status);
        let (_, end) = text.split_once("in the kernel\n").unwrap();
        insta::assert_snapshot!(end, @"
        dropped       none
        lost          0 before the daemon saw them
        queue         0 of 4096 waiting, 3 at most
        refused       2 sources, for which nothing is opened; `spa-server refuse --list` shows them
        on trial      for 43s more; then the gate is undone, unless `spa-server gate confirm` is run from a new connection
        restored      the gate, 2 times, after others had changed or flushed it; last at 2026-12-31T23:00:30Z
        barrier       after an unclean start or a step of the clock, only knocks stamped after 2026-12-31T23:01:00Z are taken
        left out      /etc/spa/clients.d/x.toml: line 1: no
        reload        refused, the former configuration is in force: /etc/spa/server.toml: line 3: no
        ");
    }

    #[test]
    fn a_cut_says_what_came_of_it() {
        let mut cut = CutView { ended: 2, left: 0, trouble: None };
        assert_eq!(render_cut(&cut), "2 connections ended");
        assert!(judge_cut(&cut).is_ok());
        (cut.left, cut.trouble) = (1, Some("cannot end a connection: not supported".into()));
        assert_eq!(
            render_cut(&cut),
            "2 connections ended; 1 connection can't be ended, whose packets are refused for some minutes: cannot end a connection: not supported"
        );
        assert!(judge_cut(&cut).is_err());
    }

    #[test]
    fn grants_are_a_table() {
        insta::assert_snapshot!(render_grants(&[grant()]), @"
        CLIENT  SOURCE       SERVICE  PORTS           LEFT   OPENED                REQUEST
        laptop  2001:db8::7  web      tcp/80,tcp/443  1m30s  2026-12-31T23:00:00Z  0a1b2c3d
        ");
    }

    #[test]
    fn a_reload_says_what_it_did() {
        let mut reloaded = Reloaded { clients: 1, services: 2, ..Reloaded::default() };
        assert_eq!(render_reloaded(&reloaded), "the daemon has reloaded: 1 client, 2 services\n");
        reloaded.revoked.push(grant());
        reloaded.warnings = vec!["nothing drops tcp/22".into()];
        reloaded.restart_needed = vec!["interfaces".into(), "knock-ports".into()];
        insta::assert_snapshot!(render_reloaded(&reloaded), @"
        the daemon has reloaded: 1 client, 2 services
        revoked, since the new policy forbids it:
        CLIENT  SOURCE       SERVICE  PORTS           LEFT   OPENED                REQUEST
        laptop  2001:db8::7  web      tcp/80,tcp/443  1m30s  2026-12-31T23:00:00Z  0a1b2c3d
        warning: nothing drops tcp/22
        these take effect after `systemctl restart spa-server` only: interfaces, knock-ports
        ");
    }
}
