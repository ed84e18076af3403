//! What is there before an installation: rules, sockets, and whatever of others is in the way.

use super::families;
use super::kernel::{Kernel, Variant};
use crate::causes::with_causes;
use crate::gate::GateError;
use crate::gate::advice;
use crate::gate::foreign::{self, Dropper};
use crate::gate::marks::Marks;
use crate::gate::saved::Saved;
use crate::gate::sockets;
use crate::gate::types::{Family, InstallReport, Mode, Plan};
use crate::service::Target;
use std::collections::BTreeSet;

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
    /// Looks at the host with this plan in mind, by tools of this variant. Nothing is changed.
    pub(super) async fn read(
        kernel: &Kernel,
        variant: Variant,
        plan: &Plan,
    ) -> Result<Self, GateError> {
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
        host.report.warnings.extend(advice::not_forwarding(plan));
        Ok(host)
    }

    /// Where others drop what the gate accepts: an error in open mode, a warning else.
    async fn judge_foreign(&mut self, kernel: &Kernel, plan: &Plan) -> Result<(), GateError> {
        let variant = self.variant.as_str();
        let (droppers, unknown) = self.droppers(kernel, plan).await;
        let warnings = &mut self.report.warnings;
        warnings.extend(droppers.marking);
        if plan.mode == Mode::Open {
            if let Some(error) = unknown.into_iter().next() {
                return Err(error);
            }
            let lost = droppers.forwarding.into_iter().filter(|one| !one.speaks_of_translated);
            let chains: Vec<_> = droppers.arriving.into_iter().chain(lost).collect();
            if !chains.is_empty() {
                return Err(GateError::DroppedElsewhere {
                    chains: chains.iter().map(ToString::to_string).collect(),
                    ours: variant.to_owned(),
                });
            }
            for (family, saved) in &self.rules {
                if foreign::drops(saved.table("filter"), "INPUT").is_none() {
                    warnings.push(format!(
                        "nothing drops {family} packets in chain filter INPUT of {variant}: in open mode the guarded ports are open to everybody unless a rule there refuses them"
                    ));
                }
            }
            return Ok(());
        }
        warnings.extend(unknown.iter().map(|error| {
            let why = with_causes(error);
            format!("whether rules of others lose granted packets is unknown: {why}")
        }));
        warnings.extend(foreign::warnings(&droppers.arriving, &advice::arriving(&plan.guarded)));
        warnings.extend(advice::lost_forwards(plan, &droppers.forwarding));
        warnings.extend(advice::forgetful_tracking());
        warnings.extend(advice::open_local_ports(plan));
        warnings.extend(droppers.untracking);
        Ok(())
    }

    /// The chains of others that drop, and why they can't all be known.
    async fn droppers(&self, kernel: &Kernel, plan: &Plan) -> (Droppers, Vec<GateError>) {
        let mut found = Droppers::default();
        let mut unknown = Vec::new();
        let marks = Marks::of(plan);
        for (family, saved) in &self.rules {
            found.marking.extend(marks.touched_in_saved(*family, saved, true));
            found.untracking.extend(untracked(*family, saved));
        }
        let in_nft = self.variant == Variant::Nft;
        let listed = kernel.nft_ruleset().await.and_then(|json| {
            let json = json.as_deref().unwrap_or(NO_RULES);
            let unreadable = |what| GateError::Unreadable { tool: "nft", what };
            found.arriving.extend(foreign::in_nft(json, in_nft).map_err(unreadable)?);
            found.forwarding.extend(foreign::forwarding_in_nft(json, in_nft).map_err(unreadable)?);
            found.marking.extend(marks.touched_in_nft(json).map_err(unreadable)?);
            let untracking = foreign::untracking_in_nft(json, in_nft).map_err(unreadable)?;
            found.untracking.extend(untracking);
            Ok(())
        });
        unknown.extend(listed.err());
        if in_nft {
            match kernel.legacy_rules().await {
                Ok(rules) => {
                    for (family, saved) in rules {
                        let variant = Variant::Legacy.as_str();
                        found.marking.extend(marks.touched_in_saved(family, &saved, false));
                        found.untracking.extend(untracked(family, &saved));
                        found.arriving.extend(foreign::in_saved(family, variant, &saved));
                        let forwarding = foreign::forwarding_in_saved(family, variant, &saved);
                        found.forwarding.extend(forwarding);
                    }
                }
                Err(error) => unknown.push(error),
            }
        } else {
            // Among our own variant's tables only filter holds our accepts.
            for (family, saved) in &self.rules {
                let variant = self.variant.as_str();
                let own = format!("table filter ({family})");
                let others = |one: &Dropper| !one.chain.ends_with(&own);
                let arriving = foreign::in_saved(*family, variant, saved);
                found.arriving.extend(arriving.into_iter().filter(others));
                let forwarding = foreign::forwarding_in_saved(*family, variant, saved);
                found.forwarding.extend(forwarding.into_iter().filter(others));
            }
        }
        if !plan.guarded.iter().any(|one| matches!(one.target, Target::Forward(_))) {
            found.forwarding.clear();
        }
        (found, unknown)
    }
}

fn untracked(family: Family, saved: &Saved) -> Option<String> {
    foreign::untracks(saved).then(|| advice::untracked(family))
}

/// What `nft` lists where there is nothing.
const NO_RULES: &str = "{\"nftables\": []}";

/// Chains of others that drop what nothing in them accepts, and rules that are in our way else.
#[derive(Debug, Default)]
struct Droppers {
    /// Of packets to this host.
    arriving: Vec<Dropper>,
    /// Of packets to others.
    forwarding: Vec<Dropper>,
    /// Rules that set or clear bits of marks which ours use, each as a warning.
    marking: Vec<String>,
    /// What takes packets out of connection tracking, each as a warning.
    untracking: BTreeSet<String>,
}
