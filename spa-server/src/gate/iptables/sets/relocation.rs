//! How elements get to where another plan looks for them.

use super::{Before, Made, Placed, Sets};
use crate::gate::GateError;
use crate::gate::sets::{self, SetId};
use crate::gate::types::{Family, Plan};
use crate::netlink::ipset::Entry;
use std::collections::{BTreeMap, HashSet};
use std::num::NonZeroU32;

impl Sets {
    /// Copies elements that another plan has put elsewhere to where this one looks for them. What
    /// that adds is told to `made` before: under the plan that has put them elsewhere nobody would
    /// look for the copies, and so nobody would withdraw them.
    ///
    /// Returns what is to be changed when the rules look there: they are in the old place, too;
    /// and what nobody guards any more would be admitted again by a later plan that does.
    pub(in crate::gate::iptables) fn relocate(
        &self,
        families: &[Family],
        plan: &Plan,
        made: &mut Vec<Made>,
    ) -> Result<Vec<Placed>, GateError> {
        let mut copies = Vec::new();
        let mut originals = Vec::new();
        let mut added: BTreeMap<SetId, Vec<Entry>> = BTreeMap::new();
        for set in self.own(families)?.into_iter().filter(|set| set.admits()) {
            for (entry, seconds) in self.entries(set)?.unwrap_or_default() {
                let Some(element) = set.element(entry) else { continue };
                let home = sets::place(plan, element);
                if home.is_some_and(|(home, _)| home == set) {
                    continue;
                }
                if let Some((home, copy)) = home {
                    let seconds = seconds.and_then(NonZeroU32::new);
                    copies.push(Placed { set: home.to_string(), entry: copy, seconds });
                    added.entry(home).or_default().push(copy);
                }
                originals.push(Placed { set: set.to_string(), entry, seconds: None });
            }
        }
        for (set, mut entries) in added {
            let there: HashSet<_> =
                self.entries(set)?.into_iter().flatten().map(|(entry, _)| entry).collect();
            entries.retain(|entry| !there.contains(entry));
            made.push(Made { set, before: Before::Without(entries) });
        }
        self.change(&copies)?;
        Ok(originals)
    }
}
