//! Scripts for `nft` that turn one state of the table into another, each in one transaction. Pure.

use super::listing::{Listing, Mark};
use super::render::{ARMED, MARK, Ruleset, TABLE};
use super::shape::Shape;
use crate::gate::types::{Element, LiveElement, MAX_ELEMENT_SECONDS};
use spa_proto::Port;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Turns on connection tracking, which is on as long as a rule asks for it, and changes nothing
/// else.
pub(super) fn track() -> String {
    let mark = mark(&Mark::unfinished());
    format!("table {TABLE} {{\n\tchain track {{\n\t\tct state established accept\n\t}}\n}}\n{mark}")
}

/// Gives a table that is there, if any, other rules, and sets that it doesn't have yet. Elements live
/// on.
pub(super) fn change(before: Option<&Listing>, wanted: &Ruleset) -> String {
    let mut text = String::new();
    if let Some(before) = before {
        let _ = writeln!(text, "flush table {TABLE}");
        let is_wanted = |name: &str| wanted.chains.iter().any(|chain| chain.name == name);
        for chain in before.chains().filter(|name| !is_wanted(name)) {
            let _ = writeln!(text, "delete chain {TABLE} {chain}");
        }
        let is_wanted = |name: &str| wanted.sets.iter().any(|set| set.name == name);
        for set in before.sets().filter(|name| !is_wanted(name)) {
            let _ = writeln!(text, "delete set {TABLE} {set}");
        }
    }
    let _ = write!(text, "{wanted}");
    text + &mark(&Mark::unfinished())
}

/// Makes the table anew in the place of whatever is there, with these elements.
///
/// A second is added to what is left of each time, which was rounded down: a time may grow by a
/// moment, and never shrinks.
pub(super) fn replace(wanted: &Ruleset, elements: &[(Shape, LiveElement)]) -> String {
    let mut text = remove();
    let _ = write!(text, "{wanted}");
    let mut keys: BTreeMap<Shape, Vec<String>> = BTreeMap::new();
    for (shape, live) in elements {
        let seconds = live.seconds_left.saturating_add(1).min(MAX_ELEMENT_SECONDS);
        let key = format!("{} timeout {seconds}s", key(live.element));
        keys.entry(*shape).or_default().push(key);
    }
    for (shape, keys) in keys.iter().filter(|(shape, _)| {
        let name = shape.to_string();
        wanted.sets.iter().any(|set| set.name == name)
    }) {
        let _ = writeln!(text, "add element {TABLE} {shape} {{ {} }}", keys.join(", "));
    }
    text + &mark(&Mark::unfinished())
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
