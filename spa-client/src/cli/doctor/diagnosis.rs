//! From what was found out to its most likely cause, in one sentence, and what to do now. Pure.
//!
//! A server never answers a knock, so that much looks alike from here: these cases share one
//! diagnosis, which says where they can be told apart.

use super::facts::{Answer, Early, Facts, Rejection, Trial, Way};
use core::fmt::Write as _;
use core::net::IpAddr;

/// What a server allows a clock to be off by, unless it is configured otherwise.
const FRESHNESS_WINDOW: f64 = 60.0;
/// Off by so much a clock soon will be too far off.
const NOTABLE: f64 = 20.0;

/// See the module's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Diagnosis {
    /// Whether one gets in.
    pub(super) opens: bool,
    /// The most likely cause; where nothing is wrong, that nothing is.
    pub(super) cause: String,
    /// What to do now, where there is something to do.
    pub(super) advice: Option<String>,
}

impl Diagnosis {
    pub(super) fn of(facts: &Facts) -> Self {
        let opens = facts.ways.iter().any(Way::is_open);
        let (cause, advice) = if opens { works(facts) } else { fails(facts) };
        Self { opens, cause, advice: (!advice.is_empty()).then_some(advice) }
    }
}

fn works(facts: &Facts) -> (String, String) {
    let Facts { service, server, .. } = facts;
    let opened = facts.ways.iter().find_map(Way::opened);
    let Some(trial) = opened else {
        return (
            format!(
                "{service} on {server} was open before the knock already, by an earlier one or because no gate hides it, so that a knock can't be judged now"
            ),
            format!(
                "wait until it is closed, or close it (spa-client close {service}@{server}), and run doctor again; a port that stays open for others too has no gate before it"
            ),
        );
    };
    if let Some(bound) = unbound_worked(facts) {
        return (
            format!(
                "a router on the way changes the address {bound} that knocks are bound to, since a knock that is bound to none opens"
            ),
            format!(
                "set bind-source = \"observed\" for {server} in the configuration, or --source observed"
            ),
        );
    }
    if let Some(lost) = lost_before(facts, trial) {
        return (
            format!(
                "knocks to udp/{lost} are dropped on the way from this network, those to udp/{} pass",
                trial.knock_port
            ),
            format!(
                "put {} first in the knock-ports of {server}, or leave it: a repeated knock tries the next port by itself",
                trial.knock_port
            ),
        );
    }
    if let Some(way) = facts.ways.iter().find(|way| !way.is_open()) {
        let (other, why) = (way.family(), reason(way));
        let works = facts.ways.iter().find(|way| way.is_open()).map_or("", |way| way.family());
        if other != works {
            let option = if works == "IPv4" { "-4" } else { "-6" };
            return (
                format!("{works} works and {other} does not: {why}"),
                format!(
                    "until {other} is mended: spa-client open {option} {service}@{server}, and the same option for the program after it"
                ),
            );
        }
        return (
            format!("{service} opens, but not at {}: {why}", way.to),
            format!("look at that machine, or take its address from the name {}", facts.host),
        );
    }
    match facts.ahead {
        Some(ahead) if ahead.abs() >= NOTABLE => (
            format!(
                "{service} on {server} opens, but this machine's clock is {}, and a server allows a minute by default",
                off(ahead)
            ),
            "let the system keep its clock by NTP (timedatectl set-ntp true)".into(),
        ),
        _ => (format!("nothing is wrong: {service} on {server} opens"), String::new()),
    }
}

fn fails(facts: &Facts) -> (String, String) {
    let Facts { service, server, host, port, .. } = facts;
    if let Some(early) = &facts.early {
        return early_end(early);
    }
    let reached: Vec<&Way> = facts.ways.iter().filter(|way| way.route.is_ok()).collect();
    if reached.is_empty() {
        return (
            format!(
                "this machine has no way to {host}: {}",
                facts.ways.first().map(reason).unwrap_or_default()
            ),
            "is it online? look at its addresses and its default route (ip addr; ip route)".into(),
        );
    }
    let trials = || reached.iter().flat_map(|way| &way.trials);
    let not_sent = trials().find_map(|trial| trial.not_sent.as_ref());
    if let Some(why) = not_sent.filter(|_| trials().all(|trial| trial.not_sent.is_some())) {
        return (
            format!("no knock leaves this machine: {why}"),
            "does a firewall on this machine forbid it?".into(),
        );
    }
    if let Some(ahead) = facts.ahead.filter(|ahead| ahead.abs() > FRESHNESS_WINDOW) {
        return (
            format!(
                "this machine's clock is {}, so that the server takes no knock of it",
                off(ahead)
            ),
            "set the clock, and let the system keep it by NTP (timedatectl set-ntp true)".into(),
        );
    }
    let refused_before = reached.iter().any(|way| way.before == Some(Answer::Refused));
    if trials().any(|trial| trial.answer == Answer::Refused) {
        if !refused_before {
            return (
                format!("the knock opened tcp/{port}, but nothing listens there"),
                format!(
                    "on the server: does the service run, and on this port (ss -ltn)? Here, its ports are under [server.{server}.services]"
                ),
            );
        }
        if trials().any(|trial| trial.rejected == Some(Rejection::Port)) {
            return (
                format!(
                    "{host} refuses tcp/{port} and the knock port alike: either no gate hides them, or one that refuses what it hides took no knock"
                ),
                format!("is it the right machine? Then, {}", on_the_server(facts)),
            );
        }
        return (
            format!(
                "tcp/{port} is refused with a knock as without one: either nothing listens there, or the gate refuses hidden ports and took no knock"
            ),
            on_the_server(facts),
        );
    }
    if let Some(rejection) = trials().find_map(|trial| trial.rejected) {
        let ports = ports(&reached);
        return match rejection {
            Rejection::Forbidden => {
                (format!("a firewall on the way forbids knocks to {ports}"), another_port(facts))
            }
            Rejection::Port => (
                format!(
                    "a firewall on the way rejects knocks to {ports}, or no gate hides them at {host}"
                ),
                format!(
                    "on the server: spa-server status, spa-server gate show. When the gate is there: {}",
                    another_port(facts)
                ),
            ),
        };
    }
    if reached
        .iter()
        .all(|way| way.trials.iter().any(|it| matches!(it.answer, Answer::Unreachable(_))))
    {
        let why = reached.first().map(|way| reason(way)).unwrap_or_default();
        return (
            format!(
                "{host} can't be reached: {why}; the server is down, or its address is another one now"
            ),
            format!(
                "is the address right (host of {server} in the configuration), and does the machine run?"
            ),
        );
    }
    if let Some((udp, tcp)) = facts.seen.iter().find_map(|seen| {
        let (udp, tcp) = (seen.udp.as_ref().ok()?, seen.tcp.as_ref().ok()?);
        (udp != tcp).then_some((udp, tcp))
    }) {
        return (
            format!(
                "UDP leaves this network by the address {udp} and TCP by {tcp}, so that the knock opens for another address than the connection has"
            ),
            format!(
                "use IPv6 or another network; or, on the server, let a knock of this client open for the carrier's whole pool (source-prefix in its file in clients.d; here, no stun-server for {server})"
            ),
        );
    }
    if let Some((bound, leaves)) = rewritten(facts, &reached) {
        return (
            format!("knocks are bound to {bound}, but leave this network by {leaves}"),
            format!(
                "set bind-source = \"observed\" for {server} in the configuration, or --source observed"
            ),
        );
    }
    if facts.ahead.is_none() && facts.synchronised == Some(false) {
        return (
            "nothing comes back, and this system says that its clock is not synchronised, so that the server may take it for a replay".into(),
            format!("let the system keep its clock by NTP (timedatectl set-ntp true); then, {}", on_the_server(facts)),
        );
    }
    (
        format!(
            "the knocks leave and nothing comes back: the server takes no knock of this client for {service}, or a firewall in front of it drops {} or tcp/{port}, or it is down; only the server's log can tell which",
            ports(&reached)
        ),
        on_the_server(facts),
    )
}

fn early_end(early: &Early) -> (String, String) {
    // The messages say themselves what to do, after the first semicolon.
    let (what, text) = match early {
        Early::Configuration(text) => ("the configuration", text),
        Early::Key(text) => ("this client's key", text),
        Early::Clock(text) => ("this machine's clock", text),
        Early::Name(text) => ("the name of the server", text),
    };
    let (why, now) = text.split_once("; ").unwrap_or((text, ""));
    (format!("{what} can't be used: {why}"), now.into())
}

/// What to look for where the knocks arrive, or don't.
fn on_the_server(facts: &Facts) -> String {
    let Facts { server, service, port, key, .. } = facts;
    let mut text = String::from(
        "on the server, right after a knock: spa-server status, journalctl -u spa-server",
    );
    for line in [
        "it shows no datagram more: a firewall drops the knock, or it is sent to another machine".into(),
        format!("it counts an unknown tag: spa-server client add NAME --public-key {key} --allow {service}"),
        "it names this client and a reason: that is the cause (the clock, a service not allowed, ...)".into(),
        format!("it has opened {service}: a firewall in front of {server} (the provider's, say) drops tcp/{port}, or UDP and TCP leave this network by different addresses"),
        "it does not run, or the machine is down".into(),
    ] {
        let _ = write!(text, "\n  - {line}");
    }
    text
}

fn another_port(facts: &Facts) -> String {
    format!(
        "use another network, or let the server take another knock port (53, 443 and 123 mostly get out) and name it here, in knock-ports of {}",
        facts.server
    )
}

fn ports(ways: &[&Way]) -> String {
    let mut ports: Vec<u16> =
        ways.iter().flat_map(|way| &way.trials).map(|trial| trial.knock_port).collect();
    ports.sort_unstable();
    ports.dedup();
    ports.iter().map(|port| format!("udp/{port}")).collect::<Vec<_>>().join(", ")
}

fn off(ahead: f64) -> String {
    let word = if ahead > 0.0 { "ahead" } else { "behind" };
    format!("{:.0} s {word}", ahead.abs())
}

/// Why one does not get in by this address.
fn reason(way: &Way) -> String {
    match (&way.route, way.trials.last()) {
        (Err(why), _) => why.clone(),
        (_, Some(Trial { not_sent: Some(why), .. })) => format!("the knock can't be sent ({why})"),
        (_, Some(Trial { answer, .. })) => answer.to_string(),
        (_, None) => "not tried".into(),
    }
}

/// The address to which the knocks were bound that opened nothing, where one without did.
fn unbound_worked(facts: &Facts) -> Option<IpAddr> {
    facts.ways.iter().find_map(|way| {
        let opened = way.opened().filter(|trial| trial.bound.is_none())?;
        let before = way.trials.iter().take_while(|trial| !core::ptr::eq(*trial, opened));
        before.filter_map(|trial| trial.bound).last()
    })
}

/// The knock port that was tried before, at the same address, and opened nothing.
fn lost_before(facts: &Facts, opened: &Trial) -> Option<u16> {
    let way =
        facts.ways.iter().find(|way| way.trials.iter().any(|it| core::ptr::eq(it, opened)))?;
    let first = way.trials.first()?;
    (first.knock_port != opened.knock_port).then_some(first.knock_port)
}

/// The bound source, and the address that the knock leaves by, where they are known to differ.
fn rewritten(facts: &Facts, ways: &[&Way]) -> Option<(IpAddr, IpAddr)> {
    ways.iter().find_map(|way| {
        let bound = way.trials.iter().find_map(|trial| trial.bound)?;
        let seen = facts.seen.iter().find(|seen| seen.v4 == bound.is_ipv4());
        let leaves = match seen.map(|seen| &seen.udp) {
            Some(Ok(seen)) => *seen,
            _ => *way.route.as_ref().ok()?,
        };
        (bound != leaves).then_some((bound, leaves))
    })
}

#[cfg(test)]
mod tests;
