//! What the rules of both families are to be, for one plan. Pure.

use super::host::KnockPorts;
use crate::gate::render::{self, Armed, CutRule, Grants, HeldRule, Layout, OwnTable, TableName};
use crate::gate::saved::Saved;
use crate::gate::types::{Family, Plan};

/// Everything that the rules are made from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blueprint<'a> {
    pub(super) plan: &'a Plan,
    pub(super) knock_ports: &'a KnockPorts,
    /// The grants that are rules, if grants are.
    pub(super) held: Option<&'a [(Family, Vec<HeldRule>)]>,
    pub(super) armed: Armed,
    pub(super) cut: &'a [CutRule],
}

impl<'a> Blueprint<'a> {
    pub(super) fn layout(&self, family: Family) -> Layout<'a> {
        let knock_ports = self.knock_ports.iter().find(|(of, _)| *of == family);
        let held = self.held.map(|held| {
            let held = held.iter().find(|(of, _)| *of == family);
            Grants::InRules(held.map_or(&[], |(_, rules)| rules))
        });
        Layout {
            family,
            plan: self.plan,
            knock_ports: knock_ports.map_or(&[], |(_, ports)| ports),
            grants: held.unwrap_or(Grants::InSets),
            armed: self.armed,
            cut: self.cut,
        }
    }

    fn wanted(&self, family: Family, table: TableName) -> OwnTable {
        render::wanted(table, &self.layout(family))
    }

    /// The batches that turn what is there into this; none for a family where it is this already.
    pub(super) fn batches(&self, rules: &[(Family, Saved)]) -> Vec<(Family, String)> {
        let order = render::order(self.plan.refusal);
        let batch = |(family, saved): &(Family, Saved)| {
            let tables = order.into_iter().filter_map(|table| {
                let wanted = self.wanted(*family, table);
                render::transition(table, saved.table(table.as_str()), &wanted)
            });
            (*family, tables.collect::<String>())
        };
        rules.iter().map(batch).filter(|(_, batch)| !batch.is_empty()).collect()
    }

    /// In what that which is there differs from this.
    pub(super) fn differences(&self, rules: &[(Family, Saved)]) -> Vec<String> {
        let mut differences = Vec::new();
        for (family, saved) in rules {
            for table in TableName::ALL {
                let saved = saved.table(table.as_str());
                let wanted = self.wanted(*family, table);
                differences.extend(wanted.differences(*family, table, saved));
            }
        }
        differences
    }

    /// What is not there after it was written.
    pub(super) fn missing(&self, family: Family, saved: &Saved) -> Option<String> {
        TableName::ALL
            .into_iter()
            .find_map(|table| self.wanted(family, table).missing_in(saved.table(table.as_str())))
    }
}
