//! Scripts for `nft` that turn one state of the table into another, each in one transaction. Pure.

use super::listing::{Listing, Mark};
use super::render::{ARMED, MARK, Ruleset, TABLE};
use super::shape::Shape;
use crate::gate::types::{Element, LiveElement, MAX_ELEMENT_SECONDS};
use spa_proto::Port;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Turns on connection tracking, which is on as long as a rule asks for it, and changes nothing
/// else.
pub(super) fn track() -> String {
    let mark = mark(&Mark::unfinished());
    format!("table {TABLE} {{\n\tchain track {{\n\t\tct state established accept\n\t}}\n}}\n{mark}")
}

/// Gives a table that is there, if any, other rules. Sets that it doesn't have yet are made, and
/// those that aren't as they should be are made anew, with these elements; in all others, elements
/// live on.
///
/// Base chains stay: while one takes the place of another, a packet could get by both. Each sees
/// the rules of its time only, and it passes the new one before the kernel changes over, and
/// the old one after.
pub(super) fn change(
    before: Option<&Listing>,
    wanted: &Ruleset,
    elements: &[(Shape, LiveElement)],
) -> String {
    let mut text = String::new();
    let mut outdated = Vec::new();
    if let Some(before) = before {
        let _ = writeln!(text, "flush table {TABLE}");
        let is_wanted = |name: &str| wanted.chains.iter().any(|chain| chain.name == name);
        for chain in before.chains().filter(|name| !is_wanted(name)) {
            let _ = writeln!(text, "delete chain {TABLE} {chain}");
        }
        outdated = before.outdated_sets(wanted);
        for set in &outdated {
            let _ = writeln!(text, "delete set {TABLE} {set}");
        }
    }
    let _ = write!(text, "{wanted}");
    add(&mut text, names(wanted).filter(|name| outdated.contains(name)), elements);
    text + &mark(&Mark::unfinished())
}

/// Makes the table anew in the place of whatever is there, with these elements.
pub(super) fn replace(wanted: &Ruleset, elements: &[(Shape, LiveElement)]) -> String {
    let mut text = remove();
    let _ = write!(text, "{wanted}");
    add(&mut text, names(wanted), elements);
    text + &mark(&Mark::unfinished())
}

/// Makes a table as this script has it in the place of whatever is there; but the sets of these
/// shapes hold these elements.
pub(super) fn bring_back(
    table: &str,
    shapes: &BTreeSet<Shape>,
    elements: &[(Shape, LiveElement)],
) -> String {
    let mut text = remove() + table;
    for shape in shapes {
        let _ = writeln!(text, "flush set {TABLE} {shape}");
    }
    add(&mut text, shapes.iter().map(ToString::to_string), elements);
    text
}

fn names(wanted: &Ruleset) -> impl Iterator<Item = &str> {
    wanted.sets.iter().map(|set| &*set.name)
}

/// Adds these elements to those of their sets that are named.
///
/// A second is added to what is left of each time, which was rounded down: a time may grow by a
/// moment, and never shrinks.
fn add(
    text: &mut String,
    sets: impl Iterator<Item: AsRef<str>>,
    elements: &[(Shape, LiveElement)],
) {
    let mut keys: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (shape, live) in elements {
        let seconds = live.seconds_left.saturating_add(1).min(MAX_ELEMENT_SECONDS);
        let key = format!("{} timeout {seconds}s", key(live.element));
        keys.entry(shape.to_string()).or_default().push(key);
    }
    for set in sets {
        let set = set.as_ref();
        if let Some(keys) = keys.get(set) {
            let _ = writeln!(text, "add element {TABLE} {set} {{ {} }}", keys.join(", "));
        }
    }
}

/// Takes the table away, if it is there.
pub(super) fn remove() -> String {
    // Made if it isn't there, so that deleting it can't fail.
    format!("add table {TABLE}\ndelete table {TABLE}\n")
}

/// Refuses for so many seconds from now, for a gate on trial.
pub(super) fn arm(seconds: u32) -> String {
    let elements = format!("{{ tcp timeout {seconds}s, udp timeout {seconds}s }}");
    format!("flush set {TABLE} {ARMED}\nadd element {TABLE} {ARMED} {elements}\n")
}

/// Writes the mark.
pub(super) fn mark(mark: &Mark) -> String {
    format!(
        "add chain {TABLE} {MARK}\nflush chain {TABLE} {MARK}\n\
         add rule {TABLE} {MARK} return comment \"{mark}\"\n"
    )
}

fn key(element: Element) -> String {
    let source = element.source.address();
    match element.ports.single() {
        Some(Port { transport, number }) => format!("{source} . {transport} . {number}"),
        None => source.to_string(),
    }
}
