//! What is rendered, as text: every shape there is.

mod modes;
mod once;
mod rules;
mod targets;
mod trial;

use super::super::saved::Saved;
use super::super::types::Element;
use super::*;
use crate::service::{Connections, Forward, ForwardTo, Target};
use insta::assert_snapshot;

fn guarded(ports: &str) -> Guarded {
    Guarded::plain(ports.parse().unwrap())
}

fn forward(v4: Option<&str>, v6: Option<&str>, masquerade: bool) -> Target {
    let to = |text: &str| {
        let at = text.parse::<std::net::SocketAddr>().ok();
        ForwardTo {
            address: at.map_or_else(|| text.parse().unwrap(), |at| at.ip()),
            port: at.and_then(|at| at.port().try_into().ok()),
        }
    };
    Target::Forward(Forward { v4: v4.map(to), v6: v6.map(to), masquerade })
}

fn plan(mode: Mode, refusal: Refusal, guarded: &[Guarded]) -> Plan {
    Plan {
        mode,
        refusal,
        guarded: guarded.to_vec(),
        always_admit: Vec::new(),
        trial_seconds: None,
        knock_ports: vec![62201, 443, 53],
        max_elements: 65536,
    }
}

/// The services of most of these: 443 is a knock port, too.
fn plain() -> [Guarded; 4] {
    ["tcp/22", "udp/443", "tcp/443", "tcp/22"].map(guarded)
}

fn layout(family: Family, plan: &Plan) -> Layout<'_> {
    let armed = if plan.trial_seconds.is_some() { Armed::BySet } else { Armed::ForGood };
    // 53 is not among the knock ports: a real service listens there.
    let knock_ports = &[62201, 443];
    Layout { family, plan, knock_ports, grants: Grants::InSets, armed, cut: &[] }
}

/// The batches for a family where nothing is yet, table after table.
fn batches(layout: &Layout<'_>) -> String {
    let none = Saved::default();
    TableName::ALL
        .into_iter()
        .filter_map(|table| transition(table, none.table(table.as_str()), &wanted(table, layout)))
        .collect()
}
