//! How rules of ours are taken away.

use super::IptablesGate;
use super::kernel::{Kernel, Variant};
use crate::causes::with_causes;
use crate::gate::GateError;
use crate::gate::render::{self, OwnTable, TableName};
use crate::gate::saved::Saved;
use crate::gate::types::Family;

impl IptablesGate {
    /// Takes away the rules of a family, and its sets.
    pub(super) async fn remove_family(&self, family: Family) -> Result<(), GateError> {
        let named = match self.kernel.saved(family).await {
            Ok(saved) => remove_rules(&self.kernel, family, &saved).await,
            Err(error) => Err(error),
        };
        // What iptables stands for may have changed since the gate was installed.
        let mut removed = Ok(());
        let mut looked_at = Vec::new();
        for (variant, kernel) in self.kernel.variants(family) {
            let Ok(kernel) = kernel else { continue };
            match kernel.saved(family).await {
                Ok(saved) => removed = removed.and(remove_rules(&kernel, family, &saved).await),
                Err(error) if variant.may_hold_a_gate(family) => removed = removed.and(Err(error)),
                Err(error) => {
                    tracing::debug!("a variant can't be read: {}", with_causes(&error));
                }
            }
            looked_at.push(variant);
        }
        // There are no others: where all were looked at, the named tools aren't needed.
        let is_left =
            |variant: Variant| !looked_at.contains(&variant) && variant.may_hold_a_gate(family);
        if Variant::BOTH.into_iter().any(is_left) {
            removed = named.and(removed);
        }
        removed?;
        self.sets.tidy(&[family], None).map(drop)
    }
}

/// The batch that takes out what is ours; empty if nothing is.
pub(super) fn removal(saved: &Saved) -> String {
    let nothing = OwnTable::default();
    let of_table =
        |table: TableName| render::transition(table, saved.table(table.as_str()), &nothing);
    TableName::ALL.into_iter().filter_map(of_table).collect()
}

/// Takes out what is ours of rules that were read.
pub(super) async fn remove_rules(
    kernel: &Kernel,
    family: Family,
    saved: &Saved,
) -> Result<(), GateError> {
    let batch = removal(saved);
    if batch.is_empty() { Ok(()) } else { kernel.restore(family, &batch).await }
}
