//! Table nat: granted packets on their way to another port of this host, or to another host.
//!
//! Only the first packet of a connection comes by. It has been judged, but may be here all the
//! same without a grant (where the gate no longer refuses, or rejects only later), so it is asked
//! for one again.

use super::granted::{self, Grants};
use super::{
    GRANTS, Layout, MASQUERADE, NAT, NOT_REFUSED, OwnTable, SENT_MARK, TARGET, TableName, held,
    ports,
};
use crate::gate::types::{Family, Refusal};
use crate::service::{ForwardTo, Target};
use std::collections::BTreeSet;
use std::net::SocketAddr;

pub(super) fn table(layout: &Layout<'_>) -> OwnTable {
    let mut own = OwnTable::default();
    let sent: BTreeSet<_> = layout
        .served()
        .filter_map(|guarded| Some((guarded.ports, to(layout, guarded.target)?)))
        .map(|(asked, to)| format!("{} -j {to}", ports::one(asked)))
        .collect();
    if sent.is_empty() {
        return own;
    }
    let verdict = format!("-j {TARGET}");
    let mut nat =
        vec!["-i lo -j RETURN".to_owned(), "-m addrtype ! --dst-type LOCAL -j RETURN".to_owned()];
    nat.extend(layout.always(&verdict));
    nat.extend(granted::first(TableName::Nat, layout, &verdict));
    nat.extend(granted::rules(TableName::Nat, layout, &verdict));
    own.add(NAT, nat);
    own.jump_from("PREROUTING", NAT);
    let mut target = vec![format!("-j CONNMARK --set-xmark {SENT_MARK}")];
    if layout.refusal() == Some(Refusal::Reject) {
        // What is sent is granted: somebody else has set that bit since it was judged.
        target.push(format!("-j CONNMARK --set-xmark {NOT_REFUSED}"));
    }
    target.extend(sent);
    own.add(TARGET, target);
    if let Grants::InRules(rules) = layout.grants {
        own.add(GRANTS, held::of_table(TableName::Nat, layout, rules));
    }
    let masquerade: Vec<_> = forwarded(layout)
        .into_iter()
        .filter(|(_, masquerade)| *masquerade)
        .map(|(to, _)| format!("{to} -j MASQUERADE"))
        .collect();
    if !masquerade.is_empty() {
        own.add(MASQUERADE, masquerade);
        own.jump_from("POSTROUTING", MASQUERADE);
    }
    own
}

/// The target of the rule that sends packets there; none if they stay.
fn to(layout: &Layout<'_>, target: Target) -> Option<String> {
    match target {
        Target::Here => None,
        Target::LocalPort(port) => Some(format!("REDIRECT --to-ports {port}")),
        Target::Forward(_) => {
            let ForwardTo { address, port } = forward_to(layout.family, target)?;
            Some(match port {
                Some(port) => {
                    format!("DNAT --to-destination {}", SocketAddr::new(address, port.get()))
                }
                None => format!("DNAT --to-destination {address}"),
            })
        }
    }
}

const fn forward_to(family: Family, target: Target) -> Option<ForwardTo> {
    match (target, family) {
        (Target::Forward(forward), Family::V4) => forward.v4,
        (Target::Forward(forward), Family::V6) => forward.v6,
        (Target::Here | Target::LocalPort(_), _) => None,
    }
}

/// What matches the packets of forwarded connections in both directions, the errors about them
/// too; and whether they are to be masqueraded.
///
/// Not a grant is asked for here, but what the connection was at first and where it goes now. A
/// rule of somebody else's that sends the same port to the same host is one with us, as far as this
/// tells: whether a connection may come about there is asked by its mark.
pub(super) fn forwarded(layout: &Layout<'_>) -> BTreeSet<(String, bool)> {
    layout
        .served()
        .filter_map(|guarded| {
            let to = forward_to(layout.family, guarded.target)?;
            let masquerade =
                matches!(guarded.target, Target::Forward(forward) if forward.masquerade);
            let protocol = ports::protocol(guarded.ports.transport());
            let matches = format!(
                "-m conntrack --ctstate DNAT --ctproto {protocol} --ctreplsrc {} --ctorigdstport {}",
                to.address,
                ports::numbers(guarded.ports)
            );
            Some((matches, masquerade))
        })
        .collect()
}
