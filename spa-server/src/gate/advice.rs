//! What an administrator should know of a host on which a plan is to be installed: the same for
//! every back-end that guards by connection tracking.

use super::foreign::Dropper;
use super::types::{Family, Guarded, Plan};
use crate::service::Target;
use spa_proto::PortRange;
use std::fs;

const TCP_TIMEOUT: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established";
/// An idle connection shows a sign of life every two hours, if it has TCP keep-alive at all; and
/// that may be lost a few times.
const IDLE_SECONDS: u32 = 7200 + 11 * 75;
const FORWARDING: [(Family, &str, &str); 2] = [
    (Family::V4, "/proc/sys/net/ipv4/ip_forward", "net.ipv4.ip_forward"),
    (Family::V6, "/proc/sys/net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding"),
];

/// The ports by which granted packets come to this host's own programs.
pub(super) fn arriving(guarded: &[Guarded]) -> Vec<Guarded> {
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

/// The forwarded services whose packets these chains drop.
pub(super) fn lost_forwards(plan: &Plan, droppers: &[Dropper]) -> Vec<String> {
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

/// The forwarded services whose packets the kernel doesn't forward.
pub(super) fn not_forwarding(plan: &Plan) -> impl Iterator<Item = String> {
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

/// Local ports that services lead to, but that can be reached without them.
pub(super) fn open_local_ports(plan: &Plan) -> impl Iterator<Item = String> {
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

/// What tells that connections aren't tracked.
pub(super) fn untracked(family: Family) -> String {
    format!(
        "table raw takes some {family} packets out of connection tracking: a connection among them ends with its grant"
    )
}

/// What tells that connection tracking forgets connections that still live.
pub(super) fn forgetful_tracking() -> Option<String> {
    // The file is there once connections are tracked.
    let seconds: u32 = fs::read_to_string(TCP_TIMEOUT).ok()?.trim().parse().ok()?;
    (seconds < IDLE_SECONDS).then(|| {
        format!(
            "connection tracking forgets an idle connection after {seconds} seconds, which then needs a new grant; raise net.netfilter.nf_conntrack_tcp_timeout_established to 432000"
        )
    })
}
