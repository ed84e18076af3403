//! Grants as rules, for hosts without sets: each says itself whom it admits to what, and until
//! when the kernel heeds it; and is known again by its comment.

use super::{FIRST, GRANTS, Layout, TARGET, TableName, from, ports};
use crate::gate::saved::Saved;
use crate::gate::types::{Element, Family, Mode};
use crate::service::Connections;
use jiff::Timestamp;
use std::collections::BTreeSet;

const COMMENT: &str = "-m comment --comment \"spa:";

/// One grant. It counts until the end of a second: the rule knows no parts of one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HeldRule {
    /// What is admitted.
    pub element: Element,
    /// The last second in which it is, in Unix time.
    pub until: u64,
    /// For a grant that lets in one connection: the list of the kernel's in which the rule enters
    /// who has used it. No two grants have the same.
    pub list: Option<String>,
}

impl HeldRule {
    /// As it stands in a table, without `-A CHAIN`.
    fn render(&self, verdict: &str) -> String {
        let Element { source, ports } = self.element;
        let list = self.list.as_ref().map(|list| {
            let mask = source.net().netmask();
            format!(
                "-m recent ! --rcheck --name {list} --mask {mask} --rsource -m recent --set --name {list} --mask {mask} --rsource "
            )
        });
        format!(
            "{}{} {} {}{COMMENT}{}:{}\" {verdict}",
            from(source.net()),
            ports::one(ports),
            datestop(self.until),
            list.unwrap_or_default(),
            self.element,
            self.until
        )
    }
}

/// The rules of these grants that a table has, in the order given.
pub(super) fn of_table(table: TableName, layout: &Layout<'_>, held: &[HeldRule]) -> Vec<String> {
    held.iter().filter_map(|rule| rule_in(table, layout, rule)).collect()
}

/// The rule of a grant in a table, if it has one there: the plan may have changed since.
pub fn rule_in(table: TableName, layout: &Layout<'_>, held: &HeldRule) -> Option<String> {
    let guarded = layout.plan.guarded_at(held.element.ports)?;
    let limited = guarded.connections == Connections::One;
    // A gate that only accepts judges nothing, but for what uses a grant up.
    let judges = layout.plan.mode == Mode::Guard || table != TableName::Mangle || limited;
    if Family::of(held.element.source.address()) != layout.family
        || !judges
        || !table.concerns(guarded)
        || limited != held.list.is_some()
        || !layout.serves(guarded)
    {
        return None;
    }
    Some(held.render(&match (table, limited) {
        // The one connection is known by its mark from there on.
        (TableName::Mangle, true) => format!("-g {FIRST}"),
        (TableName::Mangle, false) => "-j RETURN".to_owned(),
        (TableName::Filter | TableName::Nat, true) => return None,
        (TableName::Filter, false) => "-j ACCEPT".to_owned(),
        (TableName::Nat, false) => format!("-j {TARGET}"),
    }))
}

/// All grants that the tables hold, each once: not every table has every one.
pub fn held(saved: &Saved) -> Vec<HeldRule> {
    let mut seen = BTreeSet::new();
    // The first has them all, unless the gate is one that only accepts; so the order is its own.
    [TableName::Mangle, TableName::Filter, TableName::Nat]
        .into_iter()
        .flat_map(|table| held_in(saved, table))
        .filter(|rule| seen.insert(rule.clone()))
        .collect()
}

/// The grants that a table holds.
pub fn held_in(saved: &Saved, table: TableName) -> impl Iterator<Item = HeldRule> {
    saved.table(table.as_str()).rules(GRANTS).iter().filter_map(|rule| read_held(rule))
}

/// Whether there is a place for grants.
pub fn holds_grants(saved: &Saved) -> bool {
    saved.table(TableName::Filter.as_str()).has_chain(GRANTS)
}

/// The batch that takes these grants away and adds those; none if there is nothing to do.
///
/// A grant is known by its comment and deleted by all that it says, never by its place, which
/// others may have moved. New ones come first: the last rule of a chain may be the refusal.
pub fn exchange(
    layout: &Layout<'_>,
    saved: &Saved,
    goes: impl Fn(&HeldRule) -> bool,
    comes: &[HeldRule],
) -> Option<String> {
    let mut batch = String::new();
    // What is let in on the way has to be accepted at its end.
    for table in [TableName::Nat, TableName::Filter, TableName::Mangle] {
        let old = saved.table(table.as_str()).rules(GRANTS);
        let mut lines: Vec<_> = old
            .iter()
            .filter(|rule| read_held(rule).is_some_and(|held| goes(&held)))
            .map(|rule| format!("-D {GRANTS} {rule}\n"))
            .collect();
        let new = comes.iter().filter_map(|held| rule_in(table, layout, held));
        lines.extend(new.map(|rule| format!("-I {GRANTS} 1 {rule}\n")));
        if !lines.is_empty() {
            batch += &["*", table.as_str(), "\n", &lines.concat(), "COMMIT\n"].concat();
        }
    }
    (!batch.is_empty()).then_some(batch)
}

/// Whether a rule is a grant.
pub fn is_held(rule: &str) -> bool {
    rule.contains(COMMENT)
}

/// Reads a grant from a rule, as `iptables-save` prints it.
pub fn read_held(rule: &str) -> Option<HeldRule> {
    let (_, comment) = rule.split_once(COMMENT)?;
    let (text, _) = comment.split_once('"')?;
    let (element, until) = text.rsplit_once(':')?;
    let (ports, source) = element.split_once(" from ")?;
    let mut words = rule.split(' ').skip_while(|word| *word != "recent");
    let list = words.find(|word| *word == "--name").and_then(|_| words.next());
    Some(HeldRule {
        element: Element { source: source.parse().ok()?, ports: ports.parse().ok()? },
        until: until.parse().ok()?,
        list: list.map(str::to_owned),
    })
}

/// `-m time --datestop 2026-11-21T10:00:00`: UTC, and the second named still counts (xt_time.c).
pub(super) fn datestop(second: u64) -> String {
    // What the tool can say ends in 2038.
    let second = i64::try_from(second).unwrap_or(i64::MAX).min(i64::from(i32::MAX));
    let time = Timestamp::from_second(second).unwrap_or(Timestamp::MAX).to_string();
    format!("-m time --datestop {}", time.trim_end_matches('Z'))
}

/// The second of [`datestop`].
pub(super) fn read_datestop(rule: &str) -> Option<u64> {
    let (_, rest) = rule.split_once("--datestop ")?;
    let time: Timestamp = format!("{}Z", rest.split(' ').next()?).parse().ok()?;
    time.as_second().try_into().ok()
}
