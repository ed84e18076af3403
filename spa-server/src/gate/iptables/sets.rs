//! The sets in the kernel: made, filled, looked at, taken away. What they are for is said by
//! [`crate::gate::sets`].

mod arming;
mod relocation;

use self::arming::ArmedUntil;
use crate::gate::GateError;
use crate::gate::sets::{self, Holds, SetId};
use crate::gate::types::{Change, Family, LiveElement, MAX_ELEMENT_SECONDS, Plan};
use crate::netlink::ipset::{Entry, Ipset, SetChange, SetInfo, SetSize};
use crate::netlink::{self, NetlinkError, Reason};
use std::collections::HashSet;
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};

/// How many changes are made at a time: about a millisecond's worth.
const AT_A_TIME: usize = 1000;

/// The sets of the network namespace in which it is first used.
#[derive(Debug, Default)]
pub(super) struct Sets {
    ipset: Mutex<Option<Ipset>>,
}

/// What happened to a set, to be undone.
#[derive(Debug)]
pub(super) struct Made {
    set: SetId,
    before: Before,
}

/// What a set was.
#[derive(Debug)]
enum Before {
    Missing,
    OfSize(u32),
    /// It armed the gate until then.
    Armed(ArmedUntil),
    /// It was without these.
    Without(Vec<Entry>),
}

impl Made {
    pub(super) const fn family(&self) -> Family {
        self.set.family
    }

    /// Whether it is the time of a trial that was running.
    pub(super) const fn is_time_of_a_trial(&self) -> bool {
        matches!(&self.before, Before::Armed(before) if before.is_running())
    }
}

/// The entries of a set, each with the seconds that it has left.
type Entries = Vec<(Entry, Option<u32>)>;

/// A change of an element, and where.
#[derive(Debug)]
pub(super) struct Placed {
    set: String,
    entry: Entry,
    /// `None`: it is taken out.
    seconds: Option<NonZeroU32>,
}

impl Sets {
    /// Makes the set, or gives it the size wanted; elements live on. A set that holds more than
    /// that keeps its size: without it the gate could not be installed, and the ports would stay
    /// hidden with nobody to open them until enough elements are over.
    pub(super) fn make(&self, set: SetId, size: u32) -> Result<Option<Made>, GateError> {
        let before = self.info(set, &set.to_string())?;
        match before.map(|info| info.max_elements.unwrap_or(0)) {
            Some(before) if before == size => Ok(None),
            Some(before) => {
                let resized = self.resize(set, size)?;
                Ok(resized.then_some(Made { set, before: Before::OfSize(before) }))
            }
            None => {
                self.create(set, &set.to_string(), size)?;
                Ok(Some(Made { set, before: Before::Missing }))
            }
        }
    }

    fn create(&self, set: SetId, name: &str, size: u32) -> Result<(), GateError> {
        let size = match set.holds {
            // The one that nearly every packet to a guarded port is looked up in.
            Holds::Hosts => SetSize::roomy(size),
            _ => SetSize::growing(size),
        };
        self.with(|ipset| ipset.create(name, set.kind(), family(set.family), size))
    }

    /// Puts a set of another size, with the same elements, in the place of the one that is there;
    /// but not if they are too many.
    fn resize(&self, set: SetId, size: u32) -> Result<bool, GateError> {
        let name = set.to_string();
        let new = set.new_name();
        let entries = self.with(|ipset| ipset.entries(&name))?;
        if entries.len() > usize::try_from(size).unwrap_or(usize::MAX) {
            return Ok(false);
        }
        // What an earlier attempt has left.
        self.destroy_named(set, &new)?;
        self.create(set, &new, size)?;
        // A second is added to what is left of each time, which the kernel rounds down: a time may
        // grow by a moment, and never shrinks.
        let longer = |seconds: u32| seconds.saturating_add(1).min(MAX_ELEMENT_SECONDS);
        let changes: Vec<_> =
            entries.iter().map(|(entry, seconds)| add(&new, *entry, seconds.map(longer))).collect();
        let swapped = self.with(|ipset| {
            ipset.apply(&changes)?;
            ipset.swap(&new, &name)
        });
        let ended = swapped.and_then(|()| self.end_what_ended(set, &new, entries));
        let destroyed = self.destroy_named(set, &new);
        ended.and(destroyed).map(|()| true)
    }

    /// Takes out of a set that was swapped what has gone from the one before it since that had these
    /// entries: a connection that came meanwhile has used its grant up there.
    fn end_what_ended(&self, set: SetId, old: &str, entries: Entries) -> Result<(), GateError> {
        let left: HashSet<_> =
            self.with(|ipset| ipset.entries(old))?.into_iter().map(|(entry, _)| entry).collect();
        let mut ended: Vec<_> = entries.into_iter().map(|(entry, _)| entry).collect();
        ended.retain(|entry| !left.contains(entry));
        self.take_out(set, &ended)
    }

    /// Brings a set back to what it was.
    pub(super) fn unmake(&self, made: &Made) -> Result<(), GateError> {
        match &made.before {
            Before::Missing => self.destroy_named(made.set, &made.set.to_string()),
            Before::OfSize(size) => self.make(made.set, *size).map(drop),
            Before::Armed(before) => self.rearm(made.set.family, before),
            Before::Without(entries) => self.take_out(made.set, entries),
        }
    }

    /// Makes these changes in order, each where the plan has the element.
    pub(super) async fn apply(&self, plan: &Plan, changes: &[Change]) -> Result<(), GateError> {
        for some in changes.chunks(AT_A_TIME) {
            let placed: Vec<_> = some.iter().filter_map(|change| placed(plan, change)).collect();
            let changed = self.change(&placed);
            if let Err(GateError::Full { .. }) = &changed
                && self.make_room(plan)?
                && placed.len() == 1
            {
                self.change(&placed)?;
            } else {
                // Of several some are made, and may have been used up since: whoever has asked for them
                // compares before he asks again.
                changed?;
            }
            if changes.len() > AT_A_TIME {
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    /// Takes out what the plan has in no set, or in another one: somebody else has put it there, it
    /// admits nobody, and there may be no room for what would. Whether there was any.
    fn make_room(&self, plan: &Plan) -> Result<bool, GateError> {
        let mut any = false;
        for set in self.own(&Family::ALL)?.into_iter().filter(|set| set.admits()) {
            let mut idle = self.entries(set)?.unwrap_or_default();
            idle.retain(|(entry, _)| {
                let place = set.element(*entry).and_then(|element| sets::place(plan, element));
                place.is_none_or(|(at, _)| at != set)
            });
            any |= !idle.is_empty();
            let idle: Vec<_> = idle.into_iter().map(|(entry, _)| entry).collect();
            for some in idle.chunks(AT_A_TIME) {
                self.take_out(set, some)?;
            }
        }
        Ok(any)
    }

    pub(super) fn change(&self, placed: &[Placed]) -> Result<(), GateError> {
        if placed.is_empty() {
            return Ok(());
        }
        let changes: Vec<_> = placed.iter().map(Placed::as_change).collect();
        let made = self.with(|ipset| ipset.apply(&changes));
        if let Err(GateError::Netlink(NetlinkError::Changes { failed, .. })) = &made
            && let Some(first) = failed.first()
            && first.refusal.reason() == Reason::Full
            && let Some(full) = placed.get(first.index)
        {
            return Err(GateError::Full { name: format!("set {}", full.set) });
        }
        made
    }

    /// Takes these entries out of a set.
    fn take_out(&self, set: SetId, entries: &[Entry]) -> Result<(), GateError> {
        let set = set.to_string();
        let placed = |entry: &Entry| Placed { set: set.clone(), entry: *entry, seconds: None };
        self.change(&entries.iter().map(placed).collect::<Vec<_>>())
    }

    /// What is admitted: where the plan looks for it, or, without a plan, in any set of ours.
    pub(super) fn elements(
        &self,
        families: &[Family],
        plan: Option<&Plan>,
    ) -> Result<Vec<LiveElement>, GateError> {
        let own = self.own(families)?;
        let mut found = Vec::new();
        for family in families.iter().copied() {
            if !own.contains(&SetId { family, holds: Holds::Hosts }) {
                return Err(GateError::NotInstalled);
            }
        }
        for set in own.into_iter().filter(|set| set.admits()) {
            for (entry, seconds) in self.entries(set)?.unwrap_or_default() {
                let Some(element) = set.element(entry) else { continue };
                let counts = plan
                    .is_none_or(|plan| sets::place(plan, element).is_some_and(|(at, _)| at == set));
                if counts {
                    found.push(LiveElement { element, seconds_left: seconds.unwrap_or(0) });
                }
            }
        }
        Ok(found)
    }

    /// How many elements the sets of a plan hold, and what of the sets isn't there.
    pub(super) fn look(
        &self,
        families: &[Family],
        plan: &Plan,
    ) -> Result<(u64, Vec<String>), GateError> {
        let mut elements = 0;
        let mut missing = Vec::new();
        for set in families.iter().flat_map(|family| sets::wanted(*family, plan)) {
            match self.info(set, &set.to_string()) {
                Ok(Some(info)) if set.admits() => elements += u64::from(info.entries),
                Ok(Some(_)) => {}
                Ok(None) => missing.push(format!("set {set} is missing")),
                Err(GateError::ForeignSet { name, what }) => {
                    missing.push(format!("set {name} is another one: {what}"));
                }
                Err(error) => return Err(error),
            }
        }
        Ok((elements, missing))
    }

    /// In what the sets differ from those that the plan wants.
    pub(super) fn differences(
        &self,
        families: &[Family],
        plan: &Plan,
    ) -> Result<Vec<String>, GateError> {
        let mut differences = Vec::new();
        let mut wanted = Vec::new();
        for set in families.iter().flat_map(|family| sets::wanted(*family, plan)) {
            wanted.push(set);
            let Some(info) = self.info(set, &set.to_string())? else {
                differences.push(format!("set {set} is missing"));
                continue;
            };
            let (has, wants) = (info.max_elements.unwrap_or(0), set.size(plan));
            // One that is too full to be made smaller stays as it is.
            if has != wants && info.entries <= wants {
                differences.push(format!("set {set} has room for {has} elements, not {wants}"));
            }
        }
        let stale = self.own(families)?.into_iter().filter(|set| !wanted.contains(set));
        differences.extend(stale.map(|set| format!("set {set} is one too many")));
        Ok(differences)
    }

    /// Takes away the sets of ours that the plan doesn't want; all of them, without a plan. One of
    /// somebody else's that has a name of ours stays. Whether there was any. One that can't be taken
    /// away keeps no other.
    pub(super) fn tidy(&self, families: &[Family], plan: Option<&Plan>) -> Result<bool, GateError> {
        let names = match self.with(Ipset::names) {
            Ok(names) => names,
            // Then there are none.
            Err(GateError::Netlink(error)) if error.reason() == Some(Reason::Unsupported) => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let mut any = false;
        let mut failure = None;
        for name in names {
            let base = name.strip_suffix("-new").unwrap_or(&name);
            let Ok(set) = base.parse::<SetId>() else { continue };
            let is_wanted = base == name
                && plan.is_some_and(|plan| sets::wanted(set.family, plan).contains(&set));
            if is_wanted || !families.contains(&set.family) {
                continue;
            }
            match self.destroy_named(set, &name) {
                Ok(()) => any = true,
                Err(GateError::ForeignSet { .. }) => {}
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(any), Err)
    }

    /// The sets that are ours.
    fn own(&self, families: &[Family]) -> Result<Vec<SetId>, GateError> {
        let names = self.with(Ipset::names)?;
        let ids = names.iter().filter_map(|name| name.parse::<SetId>().ok());
        let mut own = Vec::new();
        for set in ids.filter(|set| families.contains(&set.family)) {
            match self.info(set, &set.to_string()) {
                Ok(Some(_)) => own.push(set),
                Ok(None) | Err(GateError::ForeignSet { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(own)
    }

    /// What there is of a set of this name, if it is ours.
    fn info(&self, set: SetId, name: &str) -> Result<Option<SetInfo>, GateError> {
        match self.with(|ipset| ipset.info(name))? {
            Some(info) if !info.is(set.kind(), family(set.family)) => Err(GateError::ForeignSet {
                name: name.to_owned(),
                what: what_is_foreign(set, &info),
            }),
            info => Ok(info),
        }
    }

    /// What is in a set, if it is there.
    fn entries(&self, set: SetId) -> Result<Option<Entries>, GateError> {
        match self.with(|ipset| ipset.entries(&set.to_string())) {
            Err(GateError::Netlink(error)) if error.reason() == Some(Reason::Missing) => Ok(None),
            entries => entries.map(Some),
        }
    }

    fn destroy_named(&self, set: SetId, name: &str) -> Result<(), GateError> {
        match self.info(set, name)? {
            Some(_) => self.with(|ipset| ipset.destroy(name)),
            None => Ok(()),
        }
    }

    fn with<T>(
        &self,
        call: impl FnOnce(&mut Ipset) -> Result<T, NetlinkError>,
    ) -> Result<T, GateError> {
        let mut open = self.ipset.lock().unwrap_or_else(PoisonError::into_inner);
        let ipset = match open.take() {
            Some(ipset) => open.insert(ipset),
            None => open.insert(Ipset::open()?),
        };
        let result = call(ipset);
        // A socket that failed isn't used again.
        if result.as_ref().is_err_and(|error| error.refusal().is_none()) {
            *open = None;
        }
        Ok(result?)
    }
}

impl Placed {
    fn as_change(&self) -> SetChange<'_> {
        let Self { set, entry, seconds } = self;
        match seconds {
            Some(_) => SetChange::Add { set, entry: *entry, seconds: *seconds },
            None => SetChange::Delete { set, entry: *entry },
        }
    }
}

/// What a change is to the sets of a plan. To withdraw what has no place there is nothing to do.
fn placed(plan: &Plan, change: &Change) -> Option<Placed> {
    let (set, entry) = sets::place(plan, change.element())?;
    let seconds = match *change {
        Change::Admit { seconds, .. } => NonZeroU32::new(seconds),
        Change::Withdraw { .. } => None,
    };
    Some(Placed { set: set.to_string(), entry, seconds })
}

fn add(set: &str, entry: Entry, seconds: Option<u32>) -> SetChange<'_> {
    SetChange::Add { set, entry, seconds: seconds.and_then(NonZeroU32::new) }
}

fn what_is_foreign(set: SetId, info: &SetInfo) -> String {
    if info.kind != set.kind().as_str() {
        format!("its type is {}", info.kind)
    } else if info.family != Some(family(set.family)) {
        format!("it is not for {} addresses", set.family)
    } else {
        "its elements have no time limit of their own".to_owned()
    }
}

const fn family(family: Family) -> netlink::Family {
    match family {
        Family::V4 => netlink::Family::V4,
        Family::V6 => netlink::Family::V6,
    }
}
