//! What is asked and answered over the control socket.

use crate::clock::BootMicros;
use crate::gate::{Backend, InstallReport};
use crate::source::Source;
use serde::{Deserialize, Serialize};
use spa_proto::{Item, PortRange, UnixMicros};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What an administrator asks of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum ControlRequest {
    /// How the daemon is: answered by [`ControlResponse::Status`].
    Status,
    /// What is open: answered by [`ControlResponse::Grants`].
    GrantsList,
    /// Close what is open, before its time: answered by [`ControlResponse::Revoked`].
    ///
    /// A grant is revoked when it matches all of the given criteria. Without any, `all` has to be
    /// set.
    #[serde(rename_all = "kebab-case")]
    GrantsRevoke {
        /// The client's name, or its key in hexadecimal digits.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        client: Option<String>,
        /// The address that the grant is for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<IpAddr>,
        /// The service, or the single port, as it was asked for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        service: Option<Item>,
        /// Every grant.
        #[serde(default)]
        all: bool,
        /// End the connections too that these grants let in, or grants like these that have
        /// ended by now.
        #[serde(default)]
        cut: bool,
    },
    /// Open nothing for an address or a network for a time, and revoke what is open for it: answered
    /// by [`ControlResponse::Refused`].
    #[serde(rename_all = "kebab-case")]
    Refuse {
        /// Whom to refuse.
        source: Source,
        /// For how many seconds.
        seconds: u64,
        /// End its connections too.
        cut: bool,
    },
    /// Who is refused: answered by [`ControlResponse::RefusedSources`].
    RefusedSources,
    /// Refuse just this address, or network, no more: answered by [`ControlResponse::Lifted`].
    #[serde(rename_all = "kebab-case")]
    LiftRefusal {
        /// As it was refused.
        source: Source,
    },
    /// Read the configuration anew: answered by [`ControlResponse::Reloaded`].
    Reload,
    /// Read the configuration anew, and put the gate in place, also if it was removed: answered by
    /// [`ControlResponse::GateInstalled`].
    #[serde(rename_all = "kebab-case")]
    GateInstall {
        /// For so many seconds at first, unless it is confirmed; none: for good.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        trial: Option<u64>,
    },
    /// The gate on trial stands for good: answered by [`ControlResponse::Done`].
    #[serde(rename_all = "kebab-case")]
    GateConfirm {
        /// Since when the gate stands that was found to let somebody in.
        stands_since: Option<BootMicros>,
    },
    /// Take the gate away, until it is installed again or the daemon restarts: answered by
    /// [`ControlResponse::Done`].
    GateRemove,
    /// Drop the key that a client has announced as its next one: answered by
    /// [`ControlResponse::Done`].
    #[serde(rename_all = "kebab-case")]
    WithdrawKey {
        /// The client's name.
        client: String,
    },
    /// Put a client's floor to now and a freshness window: answered by
    /// [`ControlResponse::Done`].
    #[serde(rename_all = "kebab-case")]
    ResetReplayWindow {
        /// The client's name; none: all clients.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        client: Option<String>,
    },
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ControlResponse {
    /// How the daemon is.
    Status(Box<Status>),
    /// What is open.
    Grants(Vec<GrantView>),
    /// What was closed.
    #[serde(rename_all = "kebab-case")]
    Revoked {
        /// The grants.
        grants: Vec<GrantView>,
        /// What came of their connections, if they were to be ended.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cut: Option<CutView>,
    },
    /// A source is refused.
    #[serde(rename_all = "kebab-case")]
    Refused {
        /// For so many seconds; more than were asked for, if it was refused for longer before.
        seconds: u64,
        /// The grants that were revoked.
        grants: Vec<GrantView>,
        /// What came of its connections, if they were to be ended.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cut: Option<CutView>,
        /// What went wrong.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        trouble: Option<String>,
    },
    /// Who is refused.
    RefusedSources(Vec<RefusedView>),
    /// A source is not refused by itself any more.
    #[serde(rename_all = "kebab-case")]
    Lifted {
        /// Whether it was.
        was_refused: bool,
        /// What it lies in that is refused still.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        still: Option<Source>,
        /// What went wrong.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        trouble: Option<String>,
    },
    /// The configuration was read and is in force.
    Reloaded(Reloaded),
    /// The configuration was read and is in force, and the gate is in place.
    #[serde(rename_all = "kebab-case")]
    GateInstalled {
        /// What the installation found and did.
        report: InstallReport,
        /// What came of the configuration.
        reloaded: Reloaded,
    },
    /// It was done.
    Done,
    /// It was not done.
    #[serde(rename_all = "kebab-case")]
    Error {
        /// Why not, and what to do about it.
        message: String,
    },
}

impl ControlResponse {
    /// An [`Error`](Self::Error) that says what `error` says.
    pub fn error(error: &dyn std::fmt::Display) -> Self {
        Self::Error { message: error.to_string() }
    }
}

/// How the daemon is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    /// The version of the program.
    pub version: String,
    /// The daemon's process id.
    pub pid: u32,
    /// When it started.
    pub started: UnixMicros,
    /// For how many seconds it has run.
    pub uptime: u64,
    /// What it captures on.
    pub interfaces: Vec<InterfaceStatus>,
    /// The UDP ports whose datagrams are looked at.
    pub knock_ports: Vec<u16>,
    /// What guards the ports; never [`Backend::Auto`], but for a daemon of an older version.
    #[serde(default)]
    pub backend: Backend,
    /// `guard` or `open`.
    pub mode: String,
    /// `drop` or `reject`.
    pub refuse: String,
    /// Whether there is to be a gate: not after an administrator has removed it, nor after a trial
    /// that nobody has confirmed.
    pub guards: bool,
    /// `installed`, or what is wrong with the rules and sets in the kernel.
    pub gate: String,
    /// For how many more seconds the gate is on trial; none if it is not.
    pub trial_seconds_left: Option<u64>,
    /// How often the gate was put back after somebody else had changed or flushed it.
    pub restored: u64,
    /// When that was last.
    pub last_restored: Option<UnixMicros>,
    /// `writable`, or what is wrong with the store of accepted knocks.
    pub replay_store: String,
    /// How many clients there are.
    pub clients: StatusClients,
    /// How many grants are live.
    pub grants: u64,
    /// For how many addresses and networks nothing is opened.
    #[serde(default)]
    pub refused: u64,
    /// Datagrams of the right ports and length, and, where there is a prefilter, those of another
    /// length.
    #[serde(default)]
    pub received: u64,
    /// `in the kernel`, or why noise does not end there.
    #[serde(default)]
    pub prefilter: String,
    /// Knocks that passed every check.
    pub accepted: u64,
    /// Grants that the kernel took, refreshed ones included.
    pub opened: u64,
    /// Grants closed before their time, by a knock or by an administrator.
    pub closed: u64,
    /// Accepted knocks that the kernel or the store failed.
    pub failed: u64,
    /// Datagrams that opened nothing, by reason; every reason there is, those never met too.
    pub dropped: BTreeMap<String, u64>,
    /// Datagrams that the kernel dropped before the daemon saw them.
    pub kernel_drops: u64,
    /// Authentic knocks between capture and gate.
    #[serde(default)]
    pub queue: QueueStatus,
    /// How long knocks took that opened something; none before the first one.
    #[serde(default)]
    pub latency: Option<LatencyStatus>,
    /// The instant up to which a barrier stands, after an unclean start or a step of the clock.
    pub barrier_until: Option<UnixMicros>,
    /// Clients that were left out at the start, and what is wrong with their files.
    pub left_out: Vec<String>,
    /// Why the last reload was refused; none when it was not.
    pub last_reload: Option<String>,
}

/// One interface that the daemon captures on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// `running`, or what is wrong.
    pub state: String,
}

/// How many clients there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct StatusClients {
    /// All in the configuration.
    pub total: u64,
    /// Those that are not disabled.
    pub enabled: u64,
}

/// The queue behind authentication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct QueueStatus {
    /// How many wait at this moment.
    pub waiting: u64,
    /// The most that were waiting at a time, since the start.
    pub deepest: u64,
    /// How many may; what comes beyond that is dropped as `overloaded`.
    pub limit: u64,
}

/// From the capture of a knock to its opening, since the start: in microseconds, to two digits.
/// What took longer than a minute counts as a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LatencyStatus {
    /// Of so many knocks.
    pub knocks: u64,
    /// The median.
    pub p50_micros: u64,
    /// Nine of ten took no longer.
    pub p90_micros: u64,
    /// 99 of 100 took no longer.
    pub p99_micros: u64,
    /// The slowest.
    pub max_micros: u64,
}

/// One grant, as an administrator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct GrantView {
    /// The client's name; its key in hexadecimal digits when it is configured no more.
    pub client: String,
    /// The address that is admitted.
    pub source: Source,
    /// What was asked for.
    pub service: Item,
    /// What is open.
    pub ports: Vec<PortRange>,
    /// When it was opened, or refreshed last.
    pub opened: UnixMicros,
    /// For how many seconds new connections are still admitted.
    pub seconds_left: u64,
    /// The id of the knock, as the audit log has it.
    pub request_id: String,
}

/// An address or a network for which nothing is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RefusedView {
    /// Which.
    pub source: Source,
    /// For so many more seconds.
    pub seconds_left: u64,
}

/// What came of connections that were to be ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CutView {
    /// How many have ended.
    pub ended: u64,
    /// How many have not; their packets are refused for some minutes.
    pub left: u64,
    /// What went wrong.
    pub trouble: Option<String>,
}

/// What a reload did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Reloaded {
    /// How many clients there are now.
    pub clients: u64,
    /// How many services there are now.
    pub services: u64,
    /// The grants that the new policy forbids, and that were closed.
    pub revoked: Vec<GrantView>,
    /// What the gate warns of.
    pub warnings: Vec<String>,
    /// Settings that differ and take effect only at the next start.
    pub restart_needed: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_one_short_line_each() {
        let revoke = |client: Option<&str>, source: Option<&str>, service: Option<&str>, all| {
            ControlRequest::GrantsRevoke {
                client: client.map(Into::into),
                source: source.map(|source| source.parse().unwrap()),
                service: service.map(|service| service.parse().unwrap()),
                all,
                cut: all,
            }
        };
        for (request, text) in [
            (ControlRequest::Status, r#""status""#),
            (ControlRequest::GrantsList, r#""grants-list""#),
            (revoke(None, None, None, true), r#"{"grants-revoke":{"all":true,"cut":true}}"#),
            (
                revoke(Some("laptop"), Some("192.0.2.7"), Some("ssh"), false),
                r#"{"grants-revoke":{"client":"laptop","source":"192.0.2.7","service":"ssh","all":false,"cut":false}}"#,
            ),
            (
                ControlRequest::Refuse {
                    source: "192.0.2.0/24".parse().unwrap(),
                    seconds: 600,
                    cut: true,
                },
                r#"{"refuse":{"source":"192.0.2.0/24","seconds":600,"cut":true}}"#,
            ),
            (ControlRequest::RefusedSources, r#""refused-sources""#),
            (
                ControlRequest::LiftRefusal { source: "2001:db8::7".parse().unwrap() },
                r#"{"lift-refusal":{"source":"2001:db8::7"}}"#,
            ),
            (ControlRequest::Reload, r#""reload""#),
            (ControlRequest::GateInstall { trial: None }, r#"{"gate-install":{}}"#),
            (ControlRequest::GateInstall { trial: Some(60) }, r#"{"gate-install":{"trial":60}}"#),
            (
                ControlRequest::GateConfirm { stands_since: Some(BootMicros(7)) },
                r#"{"gate-confirm":{"stands-since":7}}"#,
            ),
            (ControlRequest::GateRemove, r#""gate-remove""#),
            (ControlRequest::ResetReplayWindow { client: None }, r#"{"reset-replay-window":{}}"#),
        ] {
            assert_eq!(serde_json::to_string(&request).unwrap(), text);
            assert_eq!(serde_json::from_str::<ControlRequest>(text).unwrap(), request);
        }
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for text in [
            "",
            "{}",
            r#""reboot""#,
            r#"{"grants-revoke":{"everything":true}}"#,
            r#"{"grants-revoke":{"source":"example.org"}}"#,
            r#"{"status":{},"reload":{}}"#,
        ] {
            assert!(serde_json::from_str::<ControlRequest>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn responses_come_back_as_they_were() {
        let grant = GrantView {
            client: "laptop".into(),
            source: "2001:db8::7".parse().unwrap(),
            service: "ssh".parse().unwrap(),
            ports: vec!["tcp/22".parse().unwrap()],
            opened: UnixMicros(5),
            seconds_left: 29,
            request_id: "0a1b".into(),
        };
        for response in [
            ControlResponse::Grants(vec![grant.clone()]),
            ControlResponse::Revoked { grants: Vec::new(), cut: None },
            ControlResponse::Revoked { grants: Vec::new(), cut: Some(CutView::default()) },
            ControlResponse::Refused {
                seconds: 600,
                grants: vec![grant.clone()],
                cut: Some(CutView::default()),
                trouble: None,
            },
            ControlResponse::RefusedSources(vec![RefusedView {
                source: "192.0.2.0/24".parse().unwrap(),
                seconds_left: 5,
            }]),
            ControlResponse::Lifted { was_refused: true, still: None, trouble: None },
            ControlResponse::Reloaded(Reloaded { revoked: vec![grant], ..Reloaded::default() }),
            ControlResponse::GateInstalled {
                report: InstallReport { changed: true, ..InstallReport::default() },
                reloaded: Reloaded::default(),
            },
            ControlResponse::Done,
            ControlResponse::error(&"no such client"),
        ] {
            let text = serde_json::to_string(&response).unwrap();
            assert!(!text.contains('\n'));
            assert_eq!(serde_json::from_str::<ControlResponse>(&text).unwrap(), response);
        }
    }
}
