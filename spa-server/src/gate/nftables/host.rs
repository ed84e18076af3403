//! What of the host matters to an installation: sockets, the rules of others, kernel settings.

use super::cut;
use super::tool::Nft;
use crate::causes::with_causes;
use crate::gate::advice;
use crate::gate::foreign::{self, Dropper};
use crate::gate::saved::Saved;
use crate::gate::sockets;
use crate::gate::types::{Family, InstallReport, Plan};
use crate::gate::{GateError, Tools};
use crate::process::Run;
use crate::service::Target;
use std::fs;

const LEGACY: &str = "iptables-legacy";

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
        report.warnings.extend(foreign::untracking_in_nft(&ruleset, false).map_err(unreadable)?);
        for family in Family::ALL {
            match legacy_rules(family).await {
                Ok(Some(saved)) => {
                    droppers.extend(foreign::in_saved(family, LEGACY, &saved));
                    forwarding.extend(foreign::forwarding_in_saved(family, LEGACY, &saved));
                    if foreign::untracks(&saved) {
                        report.warnings.push(advice::untracked(family));
                    }
                }
                Ok(None) => {}
                Err(error) => report.warnings.push(format!(
                    "whether rules of others lose granted packets is unknown: {}",
                    with_causes(&error)
                )),
            }
        }
        report.warnings.extend(foreign::warnings(&droppers, &advice::arriving(&plan.guarded)));
        report.warnings.extend(advice::lost_forwards(plan, &forwarding));
        report.warnings.extend(advice::not_forwarding(plan));
        report.warnings.extend(advice::open_local_ports(plan));
        report.warnings.extend(advice::forgetful_tracking());
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
