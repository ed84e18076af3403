//! For how long the sets let a gate on trial refuse.

use super::{Before, Entries, Made, Sets, add};
use crate::gate::GateError;
use crate::gate::sets::{self, Holds, SetId};
use crate::gate::types::Family;
use crate::netlink::ipset::SetChange;
use std::time::{Duration, Instant};

/// Until when a gate was armed.
#[derive(Debug)]
pub(super) struct ArmedUntil {
    /// What the set held when it was read.
    entries: Entries,
    read: Instant,
}

impl ArmedUntil {
    /// Whether that was a trial which was not over.
    pub(super) const fn is_running(&self) -> bool {
        !self.entries.is_empty()
    }
}

impl Sets {
    /// For how long the gate refuses now, to be written back by [`Self::unmake`].
    pub(in crate::gate::iptables) fn armed(&self, of: Family) -> Result<Made, GateError> {
        let set = armed_set(of);
        let read = Instant::now();
        let entries = self.with(|ipset| ipset.entries(&set.to_string()))?;
        Ok(Made { set, before: Before::Armed(ArmedUntil { entries, read }) })
    }

    /// Lets the gate refuse for this long from now.
    pub(in crate::gate::iptables) fn arm(&self, of: Family, seconds: u32) -> Result<(), GateError> {
        let name = armed_set(of).to_string();
        let changes = sets::everybody(of).map(|entry| add(&name, entry, Some(seconds)));
        self.with(|ipset| ipset.apply(&changes))
    }

    /// What is missing of that which lets a gate on trial refuse, but for sets that aren't there.
    pub(in crate::gate::iptables) fn disarmed(
        &self,
        families: &[Family],
    ) -> Result<Vec<String>, GateError> {
        let mut missing = Vec::new();
        for set in families.iter().copied().map(armed_set) {
            match self.info(set, &set.to_string()) {
                Ok(Some(info)) if info.entries < 2 => {
                    missing.push(format!("set {set} has {} elements of 2", info.entries));
                }
                Ok(_) | Err(GateError::ForeignSet { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(missing)
    }

    /// Lets it refuse for what is left by now of the time that it had.
    pub(super) fn rearm(&self, of: Family, before: &ArmedUntil) -> Result<(), GateError> {
        let name = armed_set(of).to_string();
        let changes = rearming(&name, of, &before.entries, before.read.elapsed());
        self.with(|ipset| ipset.apply(&changes))
    }
}

const fn armed_set(family: Family) -> SetId {
    SetId { family, holds: Holds::Armed }
}

/// What lets a gate refuse for as long as it would have, if it held these entries so long ago.
fn rearming<'a>(set: &'a str, of: Family, entries: &Entries, ago: Duration) -> [SetChange<'a>; 2] {
    // What was read was rounded down, so this is rounded up: it ends less than a second off.
    let left = |seconds: u32| Duration::from_secs(seconds.into()).saturating_sub(ago);
    let whole = |left: Duration| left.as_secs().saturating_add(u64::from(left.subsec_nanos() > 0));
    sets::everybody(of).map(|entry| {
        let delete = SetChange::Delete { set, entry };
        match entries.iter().find(|(found, _)| *found == entry) {
            None => delete,
            Some((_, None)) => add(set, entry, None),
            Some((_, Some(seconds))) => match u32::try_from(whole(left(*seconds))) {
                Ok(left @ 1..) => add(set, entry, Some(left)),
                _ => delete,
            },
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    #[test]
    fn a_time_that_is_written_back_ends_when_it_would_have() {
        for family in Family::ALL {
            let [lower, upper] = sets::everybody(family);
            let after = |entries: &Entries, millis| {
                let changes = rearming("spa", family, entries, Duration::from_millis(millis));
                changes.map(|change| match change {
                    SetChange::Add { seconds, .. } => seconds.map_or(u32::MAX, NonZeroU32::get),
                    SetChange::Delete { .. } => 0,
                })
            };
            let both = vec![(upper, Some(59)), (lower, Some(60))];
            assert_eq!(after(&both, 0), [60, 59]);
            assert_eq!(after(&both, 1), [60, 59]);
            assert_eq!(after(&both, 10_001), [50, 49]);
            assert_eq!(after(&both, 59_000), [1, 0]);
            assert_eq!(after(&both, 99_000), [0, 0]);
            // What was over, or for ever, is so again.
            assert_eq!(after(&Vec::new(), 0), [0, 0]);
            assert_eq!(after(&vec![(upper, None)], 9000), [0, u32::MAX]);
        }
    }
}
