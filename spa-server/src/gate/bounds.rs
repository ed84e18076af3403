//! What no gate would do, whatever it is asked. Pure, and the same for every back-end.

use super::GateError;
use super::types::{Change, Element, MAX_ELEMENT_SECONDS, Plan};
use crate::service::Connections;

/// More elements than this the kernel would take, but nobody has.
const MAX_ELEMENTS: u32 = 16 * 1024 * 1024;

/// Whether a plan can be installed at all.
pub(super) fn check_plan(plan: &Plan) -> Result<(), GateError> {
    if plan.guarded.is_empty() {
        return Err(GateError::Plan("it guards no port"));
    }
    if plan.max_elements == 0 || plan.max_elements > MAX_ELEMENTS {
        return Err(GateError::Plan("the size of the sets is out of bounds"));
    }
    for (at, one) in plan.guarded.iter().enumerate() {
        let differs = |other: &&super::Guarded| {
            one.ports.overlaps(other.ports)
                && (one.target, one.connections) != (other.target, other.connections)
        };
        if plan.guarded.iter().skip(at).any(|other| differs(&other)) {
            return Err(GateError::Plan("it wants two things of one port"));
        }
    }
    Ok(())
}

/// Whether a change is one that the installed plan allows.
pub(super) fn check_change(plan: &Plan, change: &Change) -> Result<(), GateError> {
    let Change::Admit { element, seconds } = *change else { return Ok(()) };
    let guarded = plan.guarded_at(element.ports).ok_or(GateError::NotGuarded(element))?;
    if !is_possible_source(element) {
        return Err(GateError::BadSource(element));
    }
    if guarded.connections == Connections::One && !element.source.is_host() {
        return Err(GateError::OneOfMany(element));
    }
    if !(1..=MAX_ELEMENT_SECONDS).contains(&seconds) {
        return Err(GateError::BadTime { element, seconds });
    }
    Ok(())
}

/// Nobody may be admitted by all addresses there are.
fn is_possible_source(element: Element) -> bool {
    let source = element.source;
    let address = source.address();
    !address.is_unspecified() && !address.is_multicast() && source.net().prefix_len() > 0
}
