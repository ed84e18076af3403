//! A gate of ours in the other variant of iptables, left there when what `iptables` stands for was
//! changed. A packet has to pass both, so only one may stand.

use super::families;
use super::kernel::{Kernel, Variant};
use super::removal::{clear, removal, remove_rules};
use super::rules::Held;
use crate::causes::with_causes;
use crate::gate::GateError;
use crate::gate::saved::Saved;
use crate::gate::types::{Family, InstallReport};
use std::time::Duration;
use tokio::task::JoinSet;

/// How long until it is tried again to take it away.
const AGAIN: Duration = Duration::from_secs(5);

/// What is ours in the other variant than the gate's.
#[derive(Debug, Default)]
pub(super) struct OtherVariant {
    found: Vec<(Place, Saved)>,
    /// What may hold something and can't be read, and why.
    unread: Vec<(Place, GateError)>,
    /// Of what may hold something and has no tools.
    warnings: Vec<String>,
    /// What it admits has been taken over before, and may have been withdrawn since.
    is_outdated: bool,
}

/// The rules of a family in a variant.
#[derive(Debug)]
struct Place {
    variant: Variant,
    kernel: Kernel,
    family: Family,
}

impl OtherVariant {
    /// Looks for it, by the other variant's tools only where it may hold something: with these tools
    /// of ours, which are this variant's, and with the gate put in that one before.
    pub(super) async fn read(ours: &Kernel, own: Variant, before: Option<Variant>) -> Self {
        let mut other = Self { is_outdated: before == Some(own), ..Self::default() };
        for family in families() {
            for (variant, kernel) in ours.variants(family) {
                if variant == own || !variant.may_hold_a_gate(family) {
                    continue;
                }
                let kernel = match kernel {
                    Ok(kernel) => kernel,
                    Err(missing) => {
                        other.warnings.push(second_gate(variant, family, &missing.into()));
                        continue;
                    }
                };
                let place = Place { variant, kernel, family };
                match place.kernel.saved(family).await {
                    Ok(saved) if removal(&saved).is_empty() => {}
                    Ok(saved) => other.found.push((place, saved)),
                    Err(error) => other.unread.push((place, error)),
                }
            }
        }
        other
    }

    pub(super) fn differences(&self) -> impl Iterator<Item = String> {
        self.found.iter().map(|(Place { variant, family, .. }, _)| {
            format!("rules of this gate stand in {} ({family}), too", variant.as_str())
        })
    }

    pub(super) fn warnings(&self) -> impl Iterator<Item = String> {
        let unread = self.unread.iter().map(|(place, error)| place.complaint(error));
        self.warnings.iter().cloned().chain(unread)
    }

    /// The rules of each family, as far as they say what is admitted.
    pub(super) fn rules(&self) -> impl Iterator<Item = (Family, &Saved)> {
        let found = self.found.iter().filter(|_| !self.is_outdated);
        found.map(|(place, saved)| (place.family, saved))
    }

    /// The grants of a family that are rules there.
    pub(super) fn held(&self, family: Family) -> Option<Held> {
        let (_, saved) = self.rules().find(|(of, _)| *of == family)?;
        Some(Held::in_saved(family, saved.clone()))
    }

    /// Takes it away, once the gate stands that takes its place. Where that fails, what is new still
    /// stands; but nobody may be let in, so it is tried again by these tasks.
    pub(super) async fn remove(self, report: &mut InstallReport, again: &mut JoinSet<()>) {
        report.warnings.extend(self.warnings());
        again.shutdown().await;
        for (place, saved) in self.found {
            match remove_rules(&place.kernel, place.family, &saved).await {
                Ok(()) => report.changed = true,
                Err(error) => {
                    report.warnings.push(place.complaint(&error));
                    again.spawn(place.clear_later());
                }
            }
        }
        for (place, _) in self.unread {
            again.spawn(place.clear_later());
        }
    }
}

impl Place {
    fn complaint(&self, error: &GateError) -> String {
        second_gate(self.variant, self.family, error)
    }

    async fn clear_later(self) {
        let place = format!("{} ({})", self.variant.as_str(), self.family);
        let mut is_told = false;
        loop {
            tokio::time::sleep(AGAIN).await;
            let Err(error) = clear(&self.kernel, self.family).await else { break };
            if !is_told {
                tracing::error!(
                    "a second gate in {place} still can't be taken away, and nobody may be let in until it is; it is tried every {} seconds: {}",
                    AGAIN.as_secs(),
                    with_causes(&error)
                );
                is_told = true;
            }
        }
        tracing::warn!("no second gate is in {place} any more");
    }
}

fn second_gate(variant: Variant, family: Family, error: &GateError) -> String {
    let variant = variant.as_str();
    format!(
        "a second gate may stand in {variant} ({family}), which refuses what this one lets in: {}; look for chains named SPA-* with '{variant}-save', and take both away by `spa-server gate remove` before it is installed again",
        with_causes(error)
    )
}
