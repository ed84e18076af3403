//! How rules of ours are taken away.

use super::IptablesGate;
use super::kernel::Kernel;
use crate::causes::with_causes;
use crate::gate::GateError;
use crate::gate::render::{self, OwnTable, TableName};
use crate::gate::saved::Saved;
use crate::gate::types::Family;

impl IptablesGate {
    /// Takes away the rules of a family, and its sets.
    pub(super) async fn remove_family(&self, family: Family) -> Result<(), GateError> {
        let mut named = Some(clear(&self.kernel, family).await);
        let named_variant = self.kernel.ask_variant_of(family).await.ok();
        // What iptables stands for may have changed since the gate was installed.
        let mut removed = Ok(());
        for (variant, kernel) in self.kernel.variants(family) {
            let done = match kernel {
                Ok(kernel) => clear(&kernel, family).await,
                // Only then the named tools have to have done it.
                Err(_) if named_variant == Some(variant) => named.take().unwrap_or(Ok(())),
                Err(source) => Err(GateError::Unseen { variant: variant.as_str(), family, source }),
            };
            match done {
                Err(error) if !variant.may_hold_a_gate(family) => {
                    tracing::debug!("a variant can't be cleared: {}", with_causes(&error));
                }
                done => removed = removed.and(done),
            }
        }
        // Sets that rules still ask for the kernel keeps.
        let tidied = self.sets.tidy(&[family], None).map(drop);
        removed.and(tidied)
    }
}

/// The batch that takes out what is ours; empty if nothing is.
pub(super) fn removal(saved: &Saved) -> String {
    let nothing = OwnTable::default();
    let of_table =
        |table: TableName| render::transition(table, saved.table(table.as_str()), &nothing);
    TableName::ALL.into_iter().filter_map(of_table).collect()
}

/// Takes out what is ours of the rules that are there.
pub(super) async fn clear(kernel: &Kernel, family: Family) -> Result<(), GateError> {
    remove_rules(kernel, family, &kernel.saved(family).await?).await
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
