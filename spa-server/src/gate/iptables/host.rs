//! What is there before an installation: rules, sockets, and whatever of others is in the way.

use super::families;
use super::kernel::{Kernel, Variant};
use crate::causes::with_causes;
use crate::gate::GateError;
use crate::gate::foreign;
use crate::gate::saved::Saved;
use crate::gate::sockets;
use crate::gate::types::{Family, Guarded, InstallReport, Mode, Plan};
use crate::service::Target;
use spa_proto::Port;
use std::fs;

const TCP_TIMEOUT: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established";
/// An idle connection shows a sign of life every two hours, if it has TCP keep-alive at all; and
/// that may be lost a few times.
const IDLE_SECONDS: u32 = 7200 + 11 * 75;

/// The knock ports that are hidden, by family.
pub(super) type KnockPorts = Vec<(Family, Vec<u16>)>;

/// What is there before an installation.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) variant: Variant,
    pub(super) rules: Vec<(Family, Saved)>,
    /// Those on which nobody listens.
    pub(super) knock_ports: KnockPorts,
    pub(super) report: InstallReport,
}

impl Host {
    /// Looks at the host with this plan in mind. Nothing is changed.
    pub(super) async fn read(kernel: &Kernel, plan: &Plan) -> Result<Self, GateError> {
        let variant = kernel.variant().await?;
        let mut rules = Vec::new();
        for family in families() {
            rules.push((family, kernel.saved(family).await?));
        }
        let sockets = sockets::read()?;
        let mut report = InstallReport {
            busy_knock_ports: match plan.mode {
                Mode::Guard => sockets::busy_knock_ports(&sockets, &plan.knock_ports),
                Mode::Open => Vec::new(),
            },
            ..InstallReport::default()
        };
        if rules.len() < Family::ALL.len() {
            report.warnings.push("this kernel has no IPv6: only IPv4 is guarded".to_owned());
        }
        let knock_ports = families()
            .map(|family| {
                let is_busy = |port: &u16| {
                    report.busy_knock_ports.iter().any(|b| b.port == *port && b.family == family)
                };
                (family, plan.knock_ports.iter().copied().filter(|port| !is_busy(port)).collect())
            })
            .collect();
        let mut host = Self { variant, rules, knock_ports, report };
        host.judge_foreign(kernel, plan).await?;
        host.report.warnings.extend(forgetful_tracking(plan));
        host.report.warnings.extend(unforwarded(plan));
        host.report.warnings.extend(unguarded_targets(plan));
        Ok(host)
    }

    /// Where others drop what the gate accepts: an error in open mode, a warning else.
    async fn judge_foreign(&mut self, kernel: &Kernel, plan: &Plan) -> Result<(), GateError> {
        let variant = self.variant;
        let warnings = &mut self.report.warnings;
        let mut droppers = Vec::new();
        for found in [kernel.nft_droppers(variant).await, kernel.legacy_droppers(variant).await] {
            match (found, plan.mode) {
                (Ok(found), _) => droppers.extend(found),
                (Err(error), Mode::Open) => return Err(error),
                (Err(error), Mode::Guard) => warnings.push(format!(
                    "whether rules of others lose granted packets is unknown: {}",
                    with_causes(&error)
                )),
            }
        }
        if variant == Variant::Legacy {
            // Among our own variant's tables only filter INPUT holds our accept.
            for (family, saved) in &self.rules {
                let own_filter = format!("table filter ({family})");
                let found = foreign::in_saved(*family, variant.as_str(), saved);
                droppers.extend(found.into_iter().filter(|d| !d.chain.ends_with(&own_filter)));
            }
        }
        if plan.mode == Mode::Open {
            if !droppers.is_empty() {
                return Err(GateError::DroppedElsewhere {
                    chains: droppers.iter().map(ToString::to_string).collect(),
                    ours: variant.as_str().to_owned(),
                });
            }
            for (family, saved) in &self.rules {
                if foreign::drops(saved.table("filter"), "INPUT").is_none() {
                    warnings.push(format!(
                        "nothing drops {family} packets in chain filter INPUT of {}: in open mode the guarded ports are open to everybody unless a rule there refuses them",
                        variant.as_str()
                    ));
                }
            }
            return Ok(());
        }
        warnings.extend(foreign::warnings(&droppers, &plan.guarded));
        for (family, saved) in &self.rules {
            if foreign::untracks(saved) {
                warnings.push(format!(
                    "table raw takes some {family} packets out of connection tracking: a connection among them ends with its grant"
                ));
            }
        }
        Ok(())
    }
}

/// What tells that connection tracking forgets connections that still live.
fn forgetful_tracking(plan: &Plan) -> Option<String> {
    // The file is there once connections are tracked.
    let text = fs::read_to_string(TCP_TIMEOUT).ok()?;
    let seconds: u32 = text.trim().parse().ok()?;
    (plan.mode == Mode::Guard && seconds < IDLE_SECONDS).then(|| {
        format!(
            "connection tracking forgets an idle connection after {seconds} seconds, which then needs a new grant; raise net.netfilter.nf_conntrack_tcp_timeout_established to 432000"
        )
    })
}

/// Forwards that the kernel won't carry out.
fn unforwarded(plan: &Plan) -> Vec<String> {
    let forwards = |family: Family| {
        plan.guarded.iter().any(|guarded| match (guarded.target, family) {
            (Target::Forward(forward), Family::V4) => forward.v4.is_some(),
            (Target::Forward(forward), Family::V6) => forward.v6.is_some(),
            (Target::Here | Target::LocalPort(_), _) => false,
        })
    };
    [(Family::V4, "ipv4/ip_forward"), (Family::V6, "ipv6/conf/all/forwarding")]
        .into_iter()
        .filter(|(family, _)| forwards(*family))
        .filter(|(_, key)| {
            let value = fs::read_to_string(format!("/proc/sys/net/{key}"));
            value.is_ok_and(|value| value.trim() == "0")
        })
        .map(|(family, key)| {
            let key = key.replace('/', ".");
            format!("this host forwards no {family} packets, so no service behind it can be reached; set net.{key} to 1")
        })
        .collect()
}

/// Local ports that services are sent to, but that can be reached without them.
fn unguarded_targets(plan: &Plan) -> Vec<String> {
    let is_guarded = |port: Port| plan.guarded.iter().any(|guarded| guarded.ports.contains(port));
    let mut warnings = Vec::new();
    for Guarded { ports, target, .. } in &plan.guarded {
        if let Target::LocalPort(number) = *target {
            let port = Port { transport: ports.transport(), number };
            if plan.mode == Mode::Guard && !is_guarded(port) {
                warnings.push(format!(
                    "{ports} leads to {port} of this host, which is not guarded itself and stays as open as it is; make it a service, too, to hide it"
                ));
            }
        }
    }
    warnings.dedup();
    warnings
}
