//! A gate of ours in the other variant of iptables, left there when what `iptables` stands for was
//! changed. A packet has to pass both, so only one may stand.

use super::families;
use super::kernel::{Kernel, Variant};
use super::removal::{removal, remove_rules};
use super::rules::Held;
use crate::causes::with_causes;
use crate::gate::GateError;
use crate::gate::saved::Saved;
use crate::gate::types::{Family, InstallReport};

/// What is ours in the other variant than the gate's.
#[derive(Debug, Default)]
pub(super) struct OtherVariant {
    found: Vec<Found>,
    /// Why not all of it is known.
    warnings: Vec<String>,
}

#[derive(Debug)]
struct Found {
    variant: Variant,
    kernel: Kernel,
    family: Family,
    saved: Saved,
}

impl OtherVariant {
    /// Looks for it, by the other variant's tools only where it may hold something.
    pub(super) async fn read(ours: &Kernel, own_variant: Variant) -> Self {
        let mut other = Self::default();
        for family in families() {
            for (variant, kernel) in ours.variants(family) {
                if variant == own_variant || !variant.may_hold_a_gate(family) {
                    continue;
                }
                let Ok(kernel) = kernel else { continue };
                match kernel.saved(family).await {
                    Ok(saved) if removal(&saved).is_empty() => {}
                    Ok(saved) => other.found.push(Found { variant, kernel, family, saved }),
                    Err(error) => other.warnings.push(second_gate(variant, family, &error)),
                }
            }
        }
        other
    }

    pub(super) fn differences(&self) -> impl Iterator<Item = String> {
        self.found.iter().map(|Found { variant, family, .. }| {
            format!("rules of this gate stand in {} ({family}), too", variant.as_str())
        })
    }

    pub(super) fn warnings(&self) -> impl Iterator<Item = String> {
        self.warnings.iter().cloned()
    }

    /// The rules of each family.
    pub(super) fn rules(&self) -> impl Iterator<Item = (Family, &Saved)> {
        self.found.iter().map(|found| (found.family, &found.saved))
    }

    /// The grants of a family that are rules there.
    pub(super) fn held(&self, family: Family) -> Option<Held> {
        let (_, saved) = self.rules().find(|(of, _)| *of == family)?;
        Some(Held::in_saved(family, saved.clone()))
    }

    /// Takes it away, once the gate stands that takes its place. Where that fails, what is new still
    /// stands, and is no worse than what was there.
    pub(super) async fn remove(&self, report: &mut InstallReport) {
        report.warnings.extend(self.warnings());
        for Found { variant, kernel, family, saved } in &self.found {
            match remove_rules(kernel, *family, saved).await {
                Ok(()) => report.changed = true,
                Err(error) => report.warnings.push(second_gate(*variant, *family, &error)),
            }
        }
    }
}

fn second_gate(variant: Variant, family: Family, error: &GateError) -> String {
    let variant = variant.as_str();
    format!(
        "a second gate may stand in {variant} ({family}), which refuses what this one lets in: {}; look for chains named SPA-* with '{variant}-save', and take both away by `spa-server gate remove` before it is installed again",
        with_causes(error)
    )
}
