//! What of the host matters to an installation: sockets, the rules of others, kernel settings.

use super::cut;
use super::tool::Nft;
use crate::causes::with_causes;
use crate::gate::foreign::{self, Dropper};
use crate::gate::saved::Saved;
use crate::gate::sockets;
use crate::gate::types::{Family, Guarded, InstallReport, Plan};
use crate::gate::{GateError, Tools};
use crate::process::Run;
use crate::service::Target;
use spa_proto::PortRange;
use std::fs;

const LEGACY: &str = "iptables-legacy";
const TCP_TIMEOUT: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established";
/// An idle connection shows a sign of life every two hours, if it has TCP keep-alive at all; and
/// that may be lost a few times.
const IDLE_SECONDS: u32 = 7200 + 11 * 75;
const FORWARDING: [(Family, &str, &str); 2] = [
    (Family::V4, "/proc/sys/net/ipv4/ip_forward", "net.ipv4.ip_forward"),
    (Family::V6, "/proc/sys/net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding"),
];

/// The knock ports to hide, each family's.
pub(super) type Hidden = Vec<(Family, Vec<u16>)>;

/// What was found.
pub(super) struct Host {
    pub(super) hidden: Hidden,
    /// Whether single connections are refused, by this program or one before it.
    pub(super) cuts: bool,
    pub(super) report: InstallReport,
}

impl Host {
    pub(super) async fn survey(nft: &Nft, plan: &Plan) -> Result<Self, GateError> {
        nft.check_version().await?;
        let busy = sockets::busy_knock_ports(&sockets::read()?, &plan.knock_ports);
        let hidden = Family::ALL
            .map(|family| {
                let is_busy =
                    |port: &u16| busy.iter().any(|one| one.port == *port && one.family == family);
                (family, plan.knock_ports.iter().copied().filter(|port| !is_busy(port)).collect())
            })
            .to_vec();
        let mut report = InstallReport { busy_knock_ports: busy, ..InstallReport::default() };
        let ruleset = nft.ruleset().await?;
        let unreadable = |what| GateError::Unreadable { tool: "nft", what };
        let cuts = cut::is_in(&ruleset).map_err(unreadable)?;
        let mut droppers = foreign::in_nft(&ruleset, false).map_err(unreadable)?;
        let by_iptables = iptables_chains(&ruleset, plan).await;
        let mut forwarding =
            foreign::forwarding_in_nft(&ruleset, by_iptables.is_some()).map_err(unreadable)?;
        forwarding.extend(by_iptables.unwrap_or_default());
        for family in Family::ALL {
            match legacy_rules(family).await {
                Ok(Some(saved)) => {
                    droppers.extend(foreign::in_saved(family, LEGACY, &saved));
                    forwarding.extend(foreign::forwarding_in_saved(family, LEGACY, &saved));
                    if foreign::untracks(&saved) {
                        report.warnings.push(untracked(family));
                    }
                }
                Ok(None) => {}
                Err(error) => report.warnings.push(format!(
                    "whether rules of others lose granted packets is unknown: {}",
                    with_causes(&error)
                )),
            }
        }
        report.warnings.extend(foreign::warnings(&droppers, &arriving(&plan.guarded)));
        report.warnings.extend(lost_forwards(plan, &forwarding));
        report.warnings.extend(not_forwarding(plan));
        report.warnings.extend(open_local_ports(plan));
        report.warnings.extend(forgetful_tracking());
        Ok(Self { hidden, cuts, report })
    }
}

/// The rules of iptables-legacy. The kernel is asked whether there are any: the tool would load
/// modules.
async fn legacy_rules(family: Family) -> Result<Option<Saved>, GateError> {
    let (tables, tool) = match family {
        Family::V4 => ("/proc/thread-self/net/ip_tables_names", "iptables-legacy-save"),
        Family::V6 => ("/proc/thread-self/net/ip6_tables_names", "ip6tables-legacy-save"),
    };
    if !fs::read_to_string(tables).is_ok_and(|names| !names.trim().is_empty()) {
        return Ok(None);
    }
    saved(tool).await.map(Some)
}

/// The chains of iptables-nft that drop what is forwarded, by its own tool, since `nft` doesn't show what
/// some of its rules match; `None` if that is not to be had.
async fn iptables_chains(ruleset: &str, plan: &Plan) -> Option<Vec<Dropper>> {
    let matters = plan.guarded.iter().any(|one| matches!(one.target, Target::Forward(_)));
    if !matters || foreign::forwarding_in_nft(ruleset, false).is_ok_and(|found| found.is_empty()) {
        return None;
    }
    let mut found = Vec::new();
    for (family, tool) in [(Family::V4, "iptables-nft-save"), (Family::V6, "ip6tables-nft-save")] {
        let saved = saved(tool).await.ok()?;
        found.extend(foreign::forwarding_in_saved(family, "iptables-nft", &saved));
    }
    Some(found)
}

async fn saved(tool: &'static str) -> Result<Saved, GateError> {
    let text = Run::new(&Tools::find_legacy(tool)?, &[])
        .output()
        .await
        .map_err(|source| GateError::Tool { doing: "read the rules", source })?;
    Saved::parse(&text).map_err(|what| GateError::Unreadable { tool: "iptables-save", what })
}

/// The ports by which granted packets come to this host's own programs.
fn arriving(guarded: &[Guarded]) -> Vec<Guarded> {
    guarded
        .iter()
        .filter_map(|one| match one.target {
            Target::Here => Some(*one),
            Target::LocalPort(port) => {
                PortRange::new(one.ports.transport(), port, port).map(Guarded::plain)
            }
            Target::Forward(_) => None,
        })
        .collect()
}

fn forwards(plan: &Plan, family: Family) -> Vec<String> {
    let ports = plan.guarded.iter().filter_map(|one| match (one.target, family) {
        (Target::Forward(forward), Family::V4) => forward.v4.map(|to| (one.ports, to)),
        (Target::Forward(forward), Family::V6) => forward.v6.map(|to| (one.ports, to)),
        _ => None,
    });
    ports.map(|(ports, to)| format!("{ports} to {to}")).collect()
}

fn lost_forwards(plan: &Plan, droppers: &[Dropper]) -> Vec<String> {
    let mut warnings = Vec::new();
    for dropper in droppers.iter().filter(|one| !one.speaks_of_translated) {
        let lost: Vec<_> =
            dropper.families.iter().flat_map(|family| forwards(plan, *family)).collect();
        if !lost.is_empty() {
            warnings.push(format!(
                "{dropper} and doesn't speak of translated connections: what is granted and forwarded ({}) is lost there; accept in it what is established, and new connections whose destination was translated ('ct status dnat accept', or '-m conntrack --ctstate DNAT -j ACCEPT')",
                lost.join(", ")
            ));
        }
    }
    warnings
}

fn not_forwarding(plan: &Plan) -> impl Iterator<Item = String> {
    FORWARDING.into_iter().filter_map(|(family, path, name)| {
        let off = fs::read_to_string(path).is_ok_and(|value| value.trim() == "0");
        let lost = forwards(plan, family);
        (off && !lost.is_empty()).then(|| {
            format!(
                "this host forwards no {family} packets, so these services aren't reached: {}; set {name} = 1",
                lost.join(", ")
            )
        })
    })
}

fn open_local_ports(plan: &Plan) -> impl Iterator<Item = String> {
    plan.guarded.iter().filter_map(|one| {
        let Target::LocalPort(port) = one.target else { return None };
        let own = PortRange::new(one.ports.transport(), port, port)?;
        plan.guarded_at(own).is_none().then(|| {
            format!(
                "{} leads to {own} of this host, which no service guards: it can be reached directly, too",
                one.ports
            )
        })
    })
}

fn untracked(family: Family) -> String {
    format!(
        "table raw takes some {family} packets out of connection tracking: a connection among them ends with its grant"
    )
}

/// What tells that connection tracking forgets connections that still live.
fn forgetful_tracking() -> Option<String> {
    // The file is there once connections are tracked.
    let seconds: u32 = fs::read_to_string(TCP_TIMEOUT).ok()?.trim().parse().ok()?;
    (seconds < IDLE_SECONDS).then(|| {
        format!(
            "connection tracking forgets an idle connection after {seconds} seconds, which then needs a new grant; raise net.netfilter.nf_conntrack_tcp_timeout_established to 432000"
        )
    })
}
