//! The table of nftables against the real kernel: what is particular to it.

mod connections;
mod grants;
mod life;
mod others;

use crate::lab::{
    CLIENT, INNER, Lab, OPEN, REFUSED, SERVER, SILENT, STRANGER, Seen, Variant, admit,
    at_fresh_port, at_once, block_on, element, hears, plan as any_plan, uninterrupted, withdraw,
};
use spa_proto::Transport;
use spa_server::causes::with_causes;
use spa_server::gate::{
    Change, Connection, Cut, Doubt, Element, Family, Gate as _, GateError, Guarded, InstallReport,
    Mode, NftablesGate, Plan, Refusal, ToolOverrides,
};
use spa_server::service::{Connections, Forward, ForwardTo, Target};
use std::future::Future;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tokio::net::TcpSocket;

const NFT: &str = "/usr/sbin/nft";

/// The whole networks that the client and the stranger are in.
const NETWORKS: [&str; 2] = ["192.0.2.0/24", "2001:db8:1::/64"];

fn lab() -> Lab {
    Lab::new(Variant::Nft)
}

fn plan() -> Plan {
    any_plan(Mode::Guard, Refusal::Drop)
}

fn guarded(ports: &str) -> Guarded {
    Guarded::plain(ports.parse().unwrap())
}

fn forward(ports: &str, ends: [Option<&str>; 2], port: Option<u16>, masquerade: bool) -> Guarded {
    let [v4, v6] = ends.map(|end| {
        end.map(|end| ForwardTo {
            address: end.parse().unwrap(),
            port: port.and_then(NonZeroU16::new),
        })
    });
    Guarded { target: Target::Forward(Forward { v4, v6, masquerade }), ..guarded(ports) }
}

fn once(ports: &[&str]) -> Plan {
    let mut plan = plan();
    let one = |ports: &&str| Guarded { connections: Connections::One, ..guarded(ports) };
    plan.guarded.extend(ports.iter().map(one));
    plan.guarded.remove(0);
    plan
}

/// Runs async code on a thread in the server's namespace, with a gate that has just been made.
fn with_tool<T: Send, F: Future<Output = T>>(
    lab: &Lab,
    nft: Option<PathBuf>,
    code: impl FnOnce(NftablesGate) -> F + Send,
) -> T {
    let overrides = ToolOverrides { nft, ..ToolOverrides::default() };
    lab.inside("s", || block_on(code(NftablesGate::new(&overrides).unwrap())))
}

fn with_gate<T: Send, F: Future<Output = T>>(
    lab: &Lab,
    code: impl FnOnce(NftablesGate) -> F + Send,
) -> T {
    with_tool(lab, None, code)
}

fn install(lab: &Lab, plan: &Plan) -> InstallReport {
    with_gate(lab, |gate| async move { gate.install(plan).await.unwrap() })
}

fn apply(lab: &Lab, plan: &Plan, changes: &[Change]) {
    with_gate(lab, |gate| async move {
        gate.install(plan).await.unwrap();
        gate.apply(changes).await.unwrap();
    });
}

fn remove(lab: &Lab) {
    with_gate(lab, |gate| async move { gate.remove().await.unwrap() });
}

fn admitted(lab: &Lab, plan: &Plan) -> Vec<Element> {
    with_gate(lab, |gate| async move {
        gate.install(plan).await.unwrap();
        let mut found: Vec<_> =
            gate.snapshot().await.unwrap().into_iter().map(|live| live.element).collect();
        found.sort_unstable();
        found
    })
}

fn ruleset(lab: &Lab) -> String {
    lab.on("s", "nft -s list ruleset")
}
