//! Grants that are rules: read, changed and cleaned up. What such a rule says, and how it is known,
//! is in [`crate::gate::render`].
//!
//! Their end is a time of the clock on the wall, which goes on in suspend and can be set: then the
//! grants have to be written anew.

use super::kernel::Kernel;
use crate::clock::Now;
use crate::gate::GateError;
use crate::gate::render::{self, Armed, Grants, HeldRule, Layout, TableName};
use crate::gate::saved::Saved;
use crate::gate::types::{Change, Element, Family, LiveElement, Plan};
use crate::service::Connections;
use spa_proto::UnixMicros;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// Where the kernel shows who has used a grant for one connection.
const LISTS: &str = "/proc/thread-self/net/xt_recent";

/// The rules of one family that are grants, as they are now.
#[derive(Debug)]
pub(super) struct Held {
    family: Family,
    saved: Saved,
    rules: Vec<HeldRule>,
    now: UnixMicros,
}

impl Held {
    /// Reads them.
    pub(super) async fn read(kernel: &Kernel, family: Family) -> Result<Self, GateError> {
        Ok(Self::in_saved(family, kernel.saved(family).await?))
    }

    pub(super) fn in_saved(family: Family, saved: Saved) -> Self {
        let rules = render::held(&saved);
        Self { family, saved, rules, now: Now::read().realtime }
    }

    /// Whether the gate is installed at all.
    pub(super) fn has_place(&self) -> bool {
        render::holds_grants(&self.saved)
    }

    /// What the kernel admits. With a plan: what stands in every table that has to know it.
    pub(super) fn live(&self, plan: Option<&Plan>) -> Vec<LiveElement> {
        let tables = TableName::ALL.map(|table| {
            let held: BTreeSet<_> = render::held_in(&self.saved, table).collect();
            (table, held)
        });
        let is_whole = |rule: &HeldRule, plan: &Plan| {
            let layout = self.layout(plan);
            let mut wanted = tables.iter().filter_map(|(table, held)| {
                render::rule_in(*table, &layout, rule).map(|_| held.contains(rule))
            });
            // At least one has to.
            wanted.next() == Some(true) && wanted.all(|is_there| is_there)
        };
        let mut live = BTreeMap::<Element, u32>::new();
        for rule in self.rules.iter().filter(|rule| !self.is_over(rule)) {
            if plan.is_none_or(|plan| is_whole(rule, plan)) {
                let left = u32::try_from(rule.until.saturating_sub(self.second()));
                let seconds = live.entry(rule.element).or_default();
                *seconds = left.unwrap_or(u32::MAX).max(*seconds);
            }
        }
        let of = |(element, seconds_left)| LiveElement { element, seconds_left };
        live.into_iter().map(of).collect()
    }

    /// The batch that takes out what is over; none if nothing is.
    pub(super) fn tidying(&self, plan: &Plan) -> Option<String> {
        render::exchange(&self.layout(plan), &self.saved, |rule| self.is_over(rule), &[])
    }

    /// The batch that makes those of the changes that are of this family, and takes out what is
    /// over; none if there is nothing to do.
    pub(super) fn changing(
        &self,
        plan: &Plan,
        changes: &[Change],
    ) -> Result<Option<String>, GateError> {
        // Of several changes of one element the last counts.
        let mut last = BTreeMap::new();
        for change in changes {
            let element = change.element();
            if self.is_of(element) {
                last.insert(element, change);
            }
        }
        let comes: Vec<_> = last.values().filter_map(|change| self.rule(plan, change)).collect();
        let staying = self.live(None);
        let staying = staying.iter().filter(|live| !last.contains_key(&live.element)).count();
        if staying.saturating_add(comes.len())
            > usize::try_from(plan.max_elements).unwrap_or(usize::MAX)
            && !comes.is_empty()
        {
            return Err(GateError::Full { name: format!("chain SPA-GRANTS ({})", self.family) });
        }
        let goes = |rule: &HeldRule| last.contains_key(&rule.element) || self.is_over(rule);
        Ok(render::exchange(&self.layout(plan), &self.saved, goes, &comes))
    }

    /// The grants as this plan wants them written, with those of a gate in the other variant. What
    /// sets admit counts only where no gate has held grants in rules yet: it has been taken over
    /// since, and the sets, which somebody's rule may hold, know nothing of what is used.
    pub(super) fn fitting(
        &self,
        plan: &Plan,
        other: Option<&Self>,
        in_sets: &[Change],
    ) -> Vec<HeldRule> {
        let mut fitting = self.rules.clone();
        let in_sets = in_sets.iter().filter_map(|change| self.rule(plan, change));
        let has_place = self.has_place() || other.is_some_and(Self::has_place);
        let in_sets = in_sets.filter(|rule| !has_place && self.is_of(rule.element));
        // Each with the list that it has: who has used it there has used it.
        let theirs = other.into_iter().flat_map(|other| other.rules.iter().cloned());
        let mut known: BTreeSet<_> = self.live(None).iter().map(|live| live.element).collect();
        let besides = theirs.filter(|rule| !self.is_over(rule)).chain(in_sets);
        fitting.extend(besides.filter(|rule| known.insert(rule.element)));
        for rule in &mut fitting {
            let guarded = plan.guarded_at(rule.element.ports);
            match guarded.map(|guarded| guarded.connections) {
                Some(Connections::One) if rule.list.is_none() => {
                    rule.list = Some(self.new_list(rule.element));
                }
                Some(Connections::Any) if !self.is_over(rule) => rule.list = None,
                _ => {}
            }
        }
        fitting
    }

    fn is_of(&self, element: Element) -> bool {
        Family::of(element.source.address()) == self.family
    }

    fn rule(&self, plan: &Plan, change: &Change) -> Option<HeldRule> {
        let Change::Admit { element, seconds } = *change else { return None };
        let limited = plan.guarded_at(element.ports)?.connections == Connections::One;
        Some(HeldRule {
            element,
            until: self.in_seconds(seconds),
            list: limited.then(|| self.new_list(element)),
        })
    }

    /// The last second of a time that begins now: up to one more than asked for.
    fn in_seconds(&self, seconds: u32) -> u64 {
        self.second().saturating_add(seconds.into())
    }

    /// A name that no list has had: what is in a list counts for the grant that it was made for
    /// only.
    fn new_list(&self, element: Element) -> String {
        let ports = element.ports.to_string().replace('/', "-");
        format!("spa-{}-{ports}-{}", element.source.address(), self.now.0)
    }

    const fn second(&self) -> u64 {
        self.now.as_secs()
    }

    fn is_over(&self, rule: &HeldRule) -> bool {
        self.second() > rule.until || rule.list.as_deref().is_some_and(is_used)
    }

    fn layout<'a>(&self, plan: &'a Plan) -> Layout<'a> {
        Layout {
            family: self.family,
            plan,
            knock_ports: &[],
            grants: Grants::InRules(&[]),
            armed: Armed::ForGood,
            cut: &[],
        }
    }
}

/// Until when a gate refuses that is armed now.
pub(super) fn armed(plan: &Plan) -> Armed {
    let second = Now::read().realtime.as_secs();
    plan.trial_seconds
        .map_or(Armed::ForGood, |seconds| Armed::Until(second.saturating_add(seconds.into())))
}

/// Whether somebody is on a list. One that can't be read has nobody on it.
fn is_used(list: &str) -> bool {
    fs::read_to_string(format!("{LISTS}/{list}")).is_ok_and(|text| !text.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::types::{Guarded, Mode, Refusal};

    fn plan() -> Plan {
        let guarded =
            Guarded { connections: Connections::One, ..Guarded::plain("tcp/22".parse().unwrap()) };
        Plan {
            mode: Mode::Guard,
            refusal: Refusal::Drop,
            guarded: vec![guarded],
            knock_ports: vec![62201],
            always_admit: Vec::new(),
            max_elements: 100,
            trial_seconds: None,
        }
    }

    fn element(source: &str) -> Element {
        Element { source: source.parse().unwrap(), ports: "tcp/22".parse().unwrap() }
    }

    /// A family whose gate holds these grants in rules.
    fn with_rules(held: &[HeldRule]) -> Held {
        let plan = plan();
        let layout = Layout {
            family: Family::V4,
            plan: &plan,
            knock_ports: &[],
            grants: Grants::InRules(held),
            armed: Armed::ForGood,
            cut: &[],
        };
        let nothing = Saved::parse("").unwrap();
        let batches = TableName::ALL.into_iter().filter_map(|table| {
            let wanted = render::wanted(table, &layout);
            render::transition(table, nothing.table(table.as_str()), &wanted)
        });
        let batches: Vec<_> = batches.collect();
        // What jumps to ours is nothing to this.
        let is_ours = |line: &&str| !line.starts_with("-I");
        let text: Vec<_> = batches.iter().flat_map(|batch| batch.lines().filter(is_ours)).collect();
        Held::in_saved(Family::V4, Saved::parse(&(text.join("\n") + "\n")).unwrap())
    }

    fn held(source: &str, list: &str) -> HeldRule {
        let until = Now::read().realtime.as_secs().saturating_add(600);
        HeldRule { element: element(source), until, list: Some(list.to_owned()) }
    }

    #[test]
    fn what_sets_admit_is_taken_over_once() {
        let in_sets = [Change::Admit { element: element("192.0.2.7"), seconds: 600 }];
        let none = Held::in_saved(Family::V4, Saved::parse("").unwrap());
        let first = none.fitting(&plan(), None, &in_sets);
        assert_eq!(first.len(), 1);
        // The set is still there: with the grant, and when it was used or withdrawn.
        for standing in [first.as_slice(), &[]] {
            let gate = with_rules(standing);
            assert!(gate.has_place());
            assert_eq!(gate.fitting(&plan(), None, &in_sets), standing);
            assert_eq!(none.fitting(&plan(), Some(&gate), &in_sets), standing);
        }
    }

    #[test]
    fn what_the_other_variant_admits_is_taken_over_with_its_list() {
        let (ours, theirs) = (held("192.0.2.7", "spa-a"), held("192.0.2.7", "spa-b"));
        let (more, over) =
            (held("192.0.2.8", "spa-c"), HeldRule { until: 1, ..held("192.0.2.9", "spa-d") });
        let gate = with_rules(std::slice::from_ref(&ours));
        let other = with_rules(&[theirs, more.clone(), over]);
        assert_eq!(gate.fitting(&plan(), Some(&other), &[]), [ours, more]);
    }
}
