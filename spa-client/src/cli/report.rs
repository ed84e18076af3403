//! What `open` and `close` say, to people and as JSON. It turns results into text and knows no
//! socket.

use crate::asking::{Asking, Reused};
use crate::config::closest;
use crate::duration::{Lifetime, spoken};
use crate::knock::{KnockError, Knocker, Route, Sent, plain};
use crate::probe::{Failure, Probe, Probed};
use crate::server::{Connections, Server, ServerName};
use core::fmt::Write as _;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;
use serde::Serialize;
use spa_keys::PublicKey;
use spa_proto::{Item, MessageType, Port, Transport};
use std::collections::BTreeMap;

/// The outcome of the whole command.
#[derive(Serialize)]
pub(super) struct Report {
    action: &'static str,
    /// Nothing failed that was tried.
    ok: bool,
    servers: Vec<ServerReport>,
}

/// The outcome at one server.
#[derive(Serialize)]
pub(super) struct ServerReport {
    server: String,
    host: String,
    lifetime_seconds: Option<u32>,
    items: Vec<ItemReport>,
    knocks: Vec<Datagram>,
    /// The knock of before that was relied on.
    #[serde(skip_serializing_if = "Option::is_none")]
    reused: Option<ReusedReport>,
    error: Option<String>,
    #[serde(skip)]
    advice: Option<String>,
}

/// The outcome for one service or port.
#[derive(Serialize)]
struct ItemReport {
    item: Item,
    #[serde(flatten)]
    state: State,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
enum State {
    /// No knock left.
    NotAsked,
    /// It was asked for; nobody looked.
    Asked,
    /// All its ports accept connections.
    Open { address: IpAddr, milliseconds: u64 },
    /// One of its ports accepts none.
    Closed { port: Port, addresses: BTreeMap<IpAddr, String> },
}

#[derive(Serialize)]
struct Datagram {
    to: SocketAddr,
    bound_source: Option<IpAddr>,
    error: Option<String>,
}

#[derive(Serialize)]
struct ReusedReport {
    asked_seconds_ago: u64,
    seconds_left: u64,
}

impl Report {
    pub(super) fn new(message_type: MessageType, servers: Vec<ServerReport>) -> Self {
        let ok = servers.iter().all(|server| server.error.is_none());
        Self { action: message_type.as_str(), ok, servers }
    }

    /// What to end the program with, when something failed.
    pub(super) fn failure(&self) -> Option<String> {
        let texts: Vec<String> = self.servers.iter().filter_map(ServerReport::failure).collect();
        (!texts.is_empty()).then(|| texts.join("\nerror: "))
    }
}

impl ServerReport {
    /// A server that could not be knocked on or watched.
    pub(super) fn not_sent(asking: &Asking<'_>, error: &KnockError) -> Self {
        let mut report = Self::new(asking, Vec::new(), None);
        report.error = Some(error.to_string());
        for item in &mut report.items {
            item.state = State::NotAsked;
        }
        report
    }

    /// A server that was knocked on, and what the probes saw within the time, if there were any.
    pub(super) fn new(
        asking: &Asking<'_>,
        sent: Vec<Sent>,
        probed: Option<(Duration, Vec<Probed>)>,
    ) -> Self {
        let (timeout, probed) = probed.unwrap_or_default();
        let bound = sent.iter().find_map(|sent| sent.bound_source);
        let (server, request) = (asking.route().server(), asking.route().request());
        let items: Vec<ItemReport> = request
            .items
            .iter()
            .map(|item| ItemReport { item: item.clone(), state: State::of(item, &probed) })
            .collect();
        let mut report = Self {
            server: server.name.to_string(),
            host: server.host.to_string(),
            lifetime_seconds: request.lifetime.map(core::num::NonZeroU32::get),
            items,
            knocks: sent.into_iter().map(Datagram::of).collect(),
            reused: None,
            error: None,
            advice: None,
        };
        let closed: Vec<&Item> = report
            .items
            .iter()
            .filter(|item| matches!(item.state, State::Closed { .. }))
            .map(|item| &item.item)
            .collect();
        if !closed.is_empty() {
            let refused = probed.iter().any(|probed| {
                probed.result.as_ref().is_err_and(|failures| {
                    failures.iter().any(|(_, failure)| *failure == Failure::Refused)
                })
            });
            report.error = Some(format!(
                "{} on {} did not open within {}",
                and(&closed),
                report.server,
                spoken(timeout)
            ));
            let advice = |knocker| Advice { knocker, bound, refused, closed: &closed }.to_string();
            report.advice = asking.knocker().map(advice);
        }
        report
    }

    /// The same, where another knock was relied on.
    pub(super) fn reusing(mut self, reused: Option<&Reused>) -> Self {
        self.reused = reused.map(|reused| ReusedReport {
            asked_seconds_ago: reused.asked.as_secs(),
            seconds_left: reused.left.as_secs(),
        });
        self
    }

    fn failure(&self) -> Option<String> {
        let mut text = self.error.clone()?;
        let mut seen = BTreeMap::new();
        for item in &self.items {
            if let State::Closed { addresses, .. } = &item.state {
                seen.extend(addresses);
            }
        }
        if !seen.is_empty() {
            let seen: Vec<String> =
                seen.iter().map(|(address, failure)| format!("{address}: {failure}")).collect();
            let _ = write!(text, " ({})", seen.join("; "));
        }
        if let Some(advice) = &self.advice {
            let _ = write!(text, "\n{advice}");
        }
        Some(text)
    }
}

impl State {
    fn of(item: &Item, probed: &[Probed]) -> Self {
        let mut last = None;
        for probed in probed.iter().filter(|probed| probed.probe.item == *item) {
            match &probed.result {
                Ok((address, after)) => {
                    last = last.max(Some((*after, *address)));
                }
                Err(failures) => {
                    let port = Port { transport: Transport::Tcp, number: probed.probe.port };
                    let text =
                        |(address, failure): &(IpAddr, Failure)| (*address, failure.to_string());
                    return Self::Closed { port, addresses: failures.iter().map(text).collect() };
                }
            }
        }
        match last {
            Some((after, address)) => Self::Open { address, milliseconds: milliseconds(after) },
            None => Self::Asked,
        }
    }
}

impl Datagram {
    fn of(sent: Sent) -> Self {
        let error = sent.outcome.err().map(|error| plain(&error));
        Self { to: sent.to, bound_source: sent.bound_source, error }
    }
}

/// Why a port may not have opened. The server can't say; its log can.
struct Advice<'a> {
    knocker: &'a Knocker<'a>,
    bound: Option<IpAddr>,
    refused: bool,
    closed: &'a [&'a Item],
}

impl core::fmt::Display for Advice<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let server = self.knocker.server();
        let identity: PublicKey = self.knocker.identity();
        let items = and(self.closed);
        let service = self
            .closed
            .iter()
            .find(|item| matches!(item, Item::Service(_)))
            .map_or_else(|| "SERVICE".into(), ToString::to_string);
        let sent = match self.knocker.rounds() {
            0 | 1 => "one knock was sent".into(),
            rounds => format!("knocks were sent {rounds} times"),
        };
        writeln!(
            f,
            "{sent}; a server never answers one, but its log tells what became of it; likely reasons:"
        )?;
        if self.refused {
            writeln!(f, "  - nothing listens there: does the service run, and on this port?")?;
        }
        writeln!(
            f,
            "  - the clocks differ by more than the server allows, a minute by default; this one says {:.0}",
            jiff::Timestamp::now()
        )?;
        writeln!(
            f,
            "  - the server doesn't know this client; there: spa-server client add NAME --public-key {identity} --allow {service}"
        )?;
        let lifetime = self
            .knocker
            .request()
            .lifetime
            .map(|seconds| format!(" for {}", Lifetime(seconds)))
            .unwrap_or_default();
        writeln!(
            f,
            "  - the server doesn't allow this client {items}{lifetime}, or not from this address"
        )?;
        if let Some(bound) = self.bound {
            writeln!(
                f,
                "  - a router changes the address {bound} that the knock is bound to; try --source observed"
            )?;
        }
        write!(f, "  - a firewall on the way drops {}; try another network", knock_ports(server))
    }
}

/// The knock ports, as a firewall knows them.
pub(super) fn knock_ports(server: &Server) -> String {
    let ports: Vec<String> = server.knock_ports.iter().map(|port| format!("udp/{port}")).collect();
    ports.join(", ")
}

/// `192.0.2.1 port 62201`, and what is notable about it.
pub(super) fn datagram(sent: &Sent) -> String {
    let bound = &sent.binding;
    match &sent.outcome {
        Ok(bytes) => {
            format!(
                "knock of {bytes} bytes sent to {} port {}, {bound}",
                sent.to.ip(),
                sent.to.port()
            )
        }
        Err(error) => format!("no knock could be sent to {}: {}", sent.to.ip(), plain(error)),
    }
}

pub(super) fn asked(route: &Route<'_>, sent: &[Sent]) -> String {
    let request = route.request();
    let reached: Vec<String> = sent
        .iter()
        .filter(|sent| sent.outcome.is_ok())
        .map(|sent| sent.to.ip().to_string())
        .collect();
    format!(
        "asked {} to {} {} ({})",
        route.server().name,
        request.message_type.as_str(),
        and(&request.items.iter().collect::<Vec<_>>()),
        reached.join(", ")
    )
}

/// What is relied on instead of a knock.
pub(super) fn still(route: &Route<'_>, reused: &Reused) -> String {
    let items = and(&route.request().items.iter().collect::<Vec<_>>());
    format!(
        "{items} on {}: {}; --fresh knocks nevertheless",
        route.server().name,
        self::reused(reused)
    )
}

pub(super) fn reused(reused: &Reused) -> String {
    let seen = reused.seen.map_or(String::new(), |at| format!(" and was seen open at {at}"));
    let seconds = |span: Duration| span.as_secs();
    format!(
        "asked for {} s ago{seen}, which holds for {} s more",
        seconds(reused.asked),
        seconds(reused.left)
    )
}

pub(super) fn opened(server: &ServerName, item: &Item, address: IpAddr, after: Duration) -> String {
    format!("{item} on {server} is open ({address} after {} ms)", milliseconds(after))
}

pub(super) fn not_yet(server: &ServerName, closed: &[Probe], timeout: Duration) -> String {
    let mut items: Vec<&Item> = closed.iter().map(|probe| &probe.item).collect();
    items.dedup();
    let (is, timeout) = (if items.len() == 1 { "is" } else { "are" }, spoken(timeout));
    format!("{} on {server} {is} not open yet; knocking again, for {timeout} in all", and(&items))
}

/// A line for each item that was asked for and can't be watched.
pub(super) fn not_probed(route: &Route<'_>) -> Vec<String> {
    let server = route.server();
    let text = |item: &Item| match server.service_of(item) {
        Some(service) if service.probed().next().is_some() => None,
        Some(service) => {
            let why = if service.connections == Connections::One {
                "it lets one connection in, so it is not probed"
            } else if service.ports.iter().any(|ports| ports.transport() == Transport::Tcp) {
                "ranges of ports are not probed"
            } else {
                "UDP ports can't be probed"
            };
            Some(format!("asked {} to open {item}; {why}", server.name))
        }
        None => {
            let known = server.known_services();
            let names = known.keys().map(spa_proto::ServiceName::as_str);
            let hint = match closest(&item.to_string(), names) {
                Some(meant) => format!("did you mean {meant}?"),
                None => format!(
                    "to have it probed, name its ports under [server.{}.services], as in {item} = [\"tcp/8080\"]",
                    server.name
                ),
            };
            Some(format!(
                "asked {} to open {item}, whose ports are not known here; {hint}",
                server.name
            ))
        }
    };
    route.request().items.iter().filter_map(text).collect()
}

fn and(items: &[&Item]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}

fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
