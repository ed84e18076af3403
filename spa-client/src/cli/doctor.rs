//! `spa-client doctor`: looks at one thing after the other, tells each, and names the most likely
//! cause at the end. This file asks and shows; what follows from it is for `diagnosis`.

mod diagnosis;
mod facts;
mod trial;

use super::passphrase::Prompt;
use super::{CliError, print, print_json, spinner};
use crate::at_once::at_once;
use crate::clock::{self, Synchronised};
use crate::config::Config;
use crate::endpoint::Endpoint;
use crate::knock::{Asked, Family, KnockError, Knocker, Options, own_address, plain};
use crate::server::{Connections, DEFAULT_KNOCK_PORT, Server};
use crate::stun;
use crate::system::clock_state;
use clap::Args;
use core::net::{IpAddr, SocketAddr};
use core::num::NonZeroU16;
use diagnosis::Diagnosis;
use facts::{Early, Facts, Line, SeenBy, Way};
use serde::Serialize;
use spa_keys::PublicKey;
use spa_proto::Item;
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  spa-client doctor
  spa-client doctor work --ntp ntp.example.org

Looks at the configuration, the key, the name, the routes, the clock and the port, and knocks: once
at the preferred knock port, then, where that opened nothing, at the others, and unbound. Nobody is
asked for the time or for this machine's address but the servers that you name (--ntp; ntp-server
and stun-server in the configuration). Exit status: 0 it opens, 1 it does not.")]
pub(super) struct DoctorArgs {
    /// The server to look at [default: the default one].
    #[arg(value_name = "SERVER")]
    server: Option<String>,
    /// The service or port to open [default: ssh, or the first that is configured].
    #[arg(long, value_name = "SERVICE")]
    service: Option<Item>,
    /// Compare the clock with this NTP server.
    #[arg(long, value_name = "HOST[:PORT]")]
    ntp: Option<Endpoint>,
    /// Look at the server's IPv4 addresses only.
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    ipv4: bool,
    /// Look at the server's IPv6 addresses only.
    #[arg(short = '6', long)]
    ipv6: bool,
    /// Write the result to standard output as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(directory: &Path, args: &DoctorArgs) -> Result<(), CliError> {
    let mut report = Report { lines: Vec::new(), silent: args.json };
    let mut facts = Facts { server: args.server.clone().unwrap_or_default(), ..Facts::default() };
    if let Err(early) = examine(directory, args, &mut facts, &mut report)? {
        facts.early = Some(early);
    }
    let diagnosis = Diagnosis::of(&facts);
    if args.json {
        print_json(&Shown::of(&facts, &diagnosis, &report))?;
    } else {
        let word = if diagnosis.opens { "result" } else { "most likely" };
        print(&format!("\n{word}: {}\n", diagnosis.cause))?;
        if let Some(advice) = &diagnosis.advice {
            print(&format!("now: {advice}\n"))?;
        }
    }
    if diagnosis.opens { Ok(()) } else { Err(CliError::Told) }
}

/// The lines so far, written as they come: some take a while.
struct Report {
    lines: Vec<Line>,
    silent: bool,
}

impl Report {
    fn add(&mut self, line: Line) -> Result<(), CliError> {
        if !self.silent {
            let mut printed = Ok(());
            spinner::above(|_| {
                printed = print(&format!("{line}\n"));
                Ok(())
            });
            printed?;
        }
        self.lines.push(line);
        Ok(())
    }
}

#[derive(Serialize)]
struct Shown<'a> {
    server: &'a str,
    host: &'a str,
    service: &'a str,
    ok: bool,
    checks: &'a [Line],
    cause: &'a str,
    advice: Option<&'a str>,
}

impl<'a> Shown<'a> {
    fn of(facts: &'a Facts, diagnosis: &'a Diagnosis, report: &'a Report) -> Self {
        Self {
            server: &facts.server,
            host: &facts.host,
            service: &facts.service,
            ok: diagnosis.opens,
            checks: &report.lines,
            cause: &diagnosis.cause,
            advice: diagnosis.advice.as_deref(),
        }
    }
}

/// The outer error is one of this program's own output; the inner one ends the examination.
fn examine(
    directory: &Path,
    args: &DoctorArgs,
    facts: &mut Facts,
    report: &mut Report,
) -> Result<Result<(), Early>, CliError> {
    let config = Config::load(directory);
    let found = config.as_ref().map_err(ToString::to_string).and_then(|config| {
        let server = config.server(args.server.as_deref()).map_err(|error| error.to_string())?;
        let (item, port) = looked_at(server, args.service.as_ref())?;
        Ok((config, server, item, port))
    });
    let (config, server, item, port) = match found {
        Ok(found) => found,
        Err(why) => {
            report.add(Line::trouble("configuration", &why))?;
            return Ok(Err(Early::Configuration(why)));
        }
    };
    facts.server = server.name.to_string();
    facts.host = server.host.to_string();
    facts.service = item.to_string();
    facts.port = port.get();
    let path = Config::path(directory);
    report.add(Line::ok("configuration", format!("{}, server {}", path.display(), server.name)))?;

    let family = Family::of_flags(args.ipv4, args.ipv6);
    let asked = Asked::open([item])?;
    let options = Options { family, ..Options::default() };
    let prepared = Knocker::prepare_with(server, &asked, &options, &mut Prompt::default());
    let mut knocker = match prepared {
        Ok(knocker) => knocker,
        Err(error) => {
            let text = error.to_string();
            let is_name = matches!(
                error,
                KnockError::Resolve { .. }
                    | KnockError::NoAddress { .. }
                    | KnockError::SourceFamily { .. }
            );
            if is_name {
                if let Ok(stored) = server.identity.stored() {
                    key(server, stored.public(), facts, report)?;
                }
                report.add(Line::trouble("name", &text))?;
                return Ok(Err(Early::Name(text)));
            }
            if matches!(error, KnockError::Clock) {
                report.add(Line::trouble("clock", &text))?;
                return Ok(Err(Early::Clock(text)));
            }
            report.add(Line::trouble("key", &text))?;
            return Ok(Err(Early::Key(text)));
        }
    };
    // Not before: a passphrase may have been asked for.
    let _waiting = (!args.json).then(|| spinner::start("looking"));
    knocker.look();
    key(server, knocker.identity(), facts, report)?;
    let addresses: Vec<String> = knocker.addresses().map(|it| it.to_string()).collect();
    report.add(Line::ok("name", format!("{}: {}", server.host, addresses.join(", "))))?;
    for to in knocker.sockets() {
        let mut at_port = *to;
        at_port.set_port(port.get());
        let route = own_address(at_port).map_err(|error| plain(&error));
        let way = Way { to: to.ip(), route, before: None, trials: Vec::new() };
        report.add(facts::route(&way))?;
        facts.ways.push(way);
    }
    clock(args.ntp.as_ref().or(config.ntp_server()), facts, report)?;
    seen(server.stun_server.as_ref(), facts, report)?;
    knocks(&knocker, port, facts, report)?;
    // A knock that is bound to none, only where it would tell something.
    let bound = |way: &Way| way.trials.iter().any(|trial| trial.bound.is_some());
    knocker.unbind();
    let first = server.knock_ports.first().copied().unwrap_or(DEFAULT_KNOCK_PORT);
    round(&knocker, first, port, facts, report, |way| !way.is_open() && bound(way))?;
    Ok(Ok(()))
}

/// What is opened and probed: the service that was named, else ssh, unless the configuration
/// knows other ones only.
fn looked_at(server: &Server, named: Option<&Item>) -> Result<(Item, NonZeroU16), String> {
    let probed = |item: &Item| {
        let service = server.service_of(item)?;
        let port = service.probed().next()?.number;
        Some((item.clone(), port))
    };
    if let Some(item) = named {
        return probed(item).ok_or_else(|| match server.service_of(item) {
            Some(service) if service.connections == Connections::One => format!(
                "{item} lets one connection in, which a probe would use up; name another one with --service"
            ),
            _ => format!("{item} has no TCP port that can be probed; name one that has with --service"),
        });
    }
    let ssh = "ssh".parse().ok();
    let configured = server.services.keys().cloned().map(Item::Service);
    let is_configured =
        |item: &Item| matches!(item, Item::Service(it) if server.services.contains_key(it));
    let first = ssh.iter().find(|ssh| is_configured(ssh) || server.services.is_empty()).cloned();
    first.into_iter().chain(configured).chain(ssh).find_map(|item| probed(&item)).ok_or_else(|| {
        "no service with a TCP port is known here; name a port, as in --service tcp/22".into()
    })
}

fn key(
    server: &Server,
    identity: PublicKey,
    facts: &mut Facts,
    report: &mut Report,
) -> Result<(), CliError> {
    facts.key = identity.to_string();
    report.add(Line::ok("key", format!("{}, {identity}", server.identity)))
}

fn clock(ntp: Option<&Endpoint>, facts: &mut Facts, report: &mut Report) -> Result<(), CliError> {
    let (system, synchronised) = match clock_state() {
        Synchronised::Yes(by) => (format!("{by} says it is synchronised"), Some(true)),
        Synchronised::No(by) => (format!("{by} says it is not synchronised"), Some(false)),
        Synchronised::NotKnown => {
            ("whether the system keeps it by others is not known".into(), None)
        }
    };
    facts.synchronised = synchronised;
    let line = match ntp.map(|ntp| (ntp, clock::ahead(ntp))) {
        Some((ntp, Ok(ahead))) => {
            facts.ahead = Some(ahead);
            let text = format!("{ahead:+.3} s against {ntp}; {system}");
            if ahead.abs() < 60.0 { Line::ok("clock", text) } else { Line::trouble("clock", text) }
        }
        Some((ntp, Err(why))) => Line::not_checked("clock", format!("{ntp} {why}; {system}")),
        None if synchronised == Some(false) => Line::trouble("clock", system),
        None => Line::not_checked(
            "clock",
            format!(
                "no NTP server is named (--ntp HOST, or ntp-server in the configuration); {system}"
            ),
        ),
    };
    report.add(line)
}

/// The addresses by which UDP and TCP leave, as a STUN server sees them.
fn seen(server: Option<&Endpoint>, facts: &mut Facts, report: &mut Report) -> Result<(), CliError> {
    let Some(server) = server else {
        return report.add(Line::not_checked(
            "own addresses",
            "no stun-server is configured, so that it can't be told whether UDP and TCP leave by the same one",
        ));
    };
    for v4 in [true, false] {
        let of_family = |way: &&Way| way.to.is_ipv4() == v4 && way.route.is_ok();
        let Some(like) = facts.ways.iter().find(of_family).map(|way| way.to) else { continue };
        let ask = |by| stun::lookup(server, like, by).map_err(|error| format!("{server} {error}"));
        let (udp, tcp) = thread::scope(|scope| {
            let tcp = scope.spawn(|| ask(stun::By::Tcp));
            (ask(stun::By::Udp), tcp.join().unwrap_or_else(|panic| resume_unwind(panic)))
        });
        report.add(match (&udp, &tcp) {
            (Ok(udp), Ok(tcp)) if udp == tcp => Line::ok("own addresses", format!("seen as {udp}")),
            (Ok(udp), Ok(tcp)) => {
                Line::trouble("own addresses", format!("UDP leaves by {udp}, TCP by {tcp}"))
            }
            (Ok(udp), Err(why)) => {
                Line::not_checked("own addresses", format!("UDP leaves by {udp}; by TCP, {why}"))
            }
            (Err(why), _) => Line::not_checked("own addresses", why),
        })?;
        facts.seen.push(SeenBy { v4, udp, tcp });
    }
    Ok(())
}

/// The port before a knock; then knocks, at each port in turn until it is open.
fn knocks(
    knocker: &Knocker<'_>,
    port: NonZeroU16,
    facts: &mut Facts,
    report: &mut Report,
) -> Result<(), CliError> {
    let targets: Vec<SocketAddr> = knocker.sockets().to_vec();
    let before = at_once(targets.iter().copied(), |to| {
        let has_route = facts.ways.iter().any(|way| way.to == to.ip() && way.route.is_ok());
        has_route.then(|| trial::before(at(to, port)))
    });
    for (index, answer) in before.into_iter().enumerate() {
        let Some(answer) = answer else { continue };
        if let Some(way) = facts.ways.get(index) {
            report.add(facts::before(facts, way, &answer))?;
        }
        if let Some(way) = facts.ways.get_mut(index) {
            way.before = Some(answer);
        }
    }
    let mut ports = knocker.server().knock_ports.clone();
    if let [only] = ports[..] {
        // Once more: a single datagram may be lost without a cause.
        ports.push(only);
    }
    for knock_port in ports {
        // What is refused or unreachable now is not for want of another knock port.
        let is_settled = |way: &Way| {
            way.is_open()
                || way.trials.iter().any(|trial| {
                    matches!(trial.answer, facts::Answer::Unreachable(_))
                        || (trial.answer == facts::Answer::Refused
                            && way.before != Some(facts::Answer::Refused))
                })
        };
        round(knocker, knock_port, port, facts, report, |way| !is_settled(way))?;
    }
    Ok(())
}

/// One knock at each address that is `wanted`, all at once.
fn round(
    knocker: &Knocker<'_>,
    knock_port: NonZeroU16,
    port: NonZeroU16,
    facts: &mut Facts,
    report: &mut Report,
    wanted: impl Fn(&Way) -> bool,
) -> Result<(), CliError> {
    let is_wanted =
        |to: IpAddr| facts.ways.iter().any(|way| way.to == to && way.route.is_ok() && wanted(way));
    let targets: Vec<SocketAddr> =
        knocker.sockets().iter().copied().filter(|to| is_wanted(to.ip())).collect();
    let trials = at_once(targets.iter().copied(), |to| {
        trial::attempt(knocker, at(to, knock_port), at(to, port))
    });
    for (to, trial) in targets.into_iter().zip(trials) {
        report.add(facts::trial(facts, to.ip(), &trial))?;
        if let Some(way) = facts.ways.iter_mut().find(|way| way.to == to.ip()) {
            way.trials.push(trial);
        }
    }
    Ok(())
}

fn at(mut to: SocketAddr, port: NonZeroU16) -> SocketAddr {
    to.set_port(port.get());
    to
}
