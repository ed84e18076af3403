//! `spa-client open` and `spa-client close`: first everything that can fail before a packet
//! leaves, for all servers; then the knocks; then, where asked for, the wait.

use super::args::CommonArgs;
use super::report::{self, Report, ServerReport};
use super::{CliError, print_json, spinner};
use crate::config::Config;
use crate::duration::Lifetime;
use crate::knock::{Asked, KnockError, Knocker, Options};
use crate::probe::{Probe, Probed, Progress, until_open};
use crate::server::{Connections, Server, ServerName};
use crate::target::by_server;
use core::time::Duration;
use spa_proto::{Item, MessageType};
use std::io::Write as _;
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;

/// What only `open` has.
#[derive(Default)]
pub(super) struct Settings {
    pub(super) lifetime: Option<Lifetime>,
    /// How long to wait, when at all.
    pub(super) wait: Option<Duration>,
    /// Whether the user has asked for it.
    pub(super) insists: bool,
}

pub(super) fn run(
    directory: &Path,
    message_type: MessageType,
    args: &CommonArgs,
    settings: &Settings,
) -> Result<(), CliError> {
    let voice = Voice { quiet: args.quiet, verbose: args.verbose };
    let config = Config::load(directory)?;
    let options =
        Options { lifetime: settings.lifetime, source: args.source, family: args.family() };
    let mut visits = Vec::new();
    let default = args.server.as_ref().or(config.default_server().map(|server| &server.name));
    for (name, items) in by_server(&args.targets, default) {
        let server = config.server(name.map(ServerName::as_str))?;
        if settings.insists {
            refuse_to_probe(server, &items)?;
        }
        let asked = Asked::new(message_type, items)?;
        visits.push(Knocker::prepare(server, &asked, &options)?);
    }

    let targets: Vec<String> = args.targets.iter().map(ToString::to_string).collect();
    let waiting = (settings.wait.is_some() && !args.quiet)
        .then(|| spinner::start(&format!("waiting for {}", targets.join(" "))));
    // One thread for each server: a slow one keeps nobody waiting.
    let reports: Vec<ServerReport> = thread::scope(|scope| {
        let threads: Vec<_> = visits
            .into_iter()
            .map(|knocker| scope.spawn(move || visit(knocker, settings, voice)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    });

    drop(waiting);
    let report = Report::new(message_type, reports);
    if args.json {
        print_json(&report)?;
    }
    report.failure().map_or(Ok(()), |text| Err(CliError::Failed(text)))
}

/// What lets one connection in can't be waited for: the probe that saw it open would be that one.
fn refuse_to_probe(server: &Server, items: &[Item]) -> Result<(), CliError> {
    let is_one = |item: &&Item| {
        server.service_of(item).is_some_and(|service| service.connections == Connections::One)
    };
    items.iter().find(is_one).map_or(Ok(()), |item| {
        Err(CliError::Usage(format!(
            "{item} on {} lets one connection in, and --wait would use it up by looking; leave --wait out and connect right away (`spa-client proxy`, which is to come, will do both in one)",
            server.name
        )))
    })
}

/// Knocks on one server and waits for what was asked of it.
fn visit(mut knocker: Knocker<'_>, settings: &Settings, voice: Voice) -> ServerReport {
    let name = knocker.server().name.clone();
    let sent = match knocker.send() {
        Ok(sent) => sent,
        Err(error) => return ServerReport::not_sent(&knocker, &error),
    };
    for datagram in &sent {
        voice.detail(&format!("{name}: {}", report::datagram(datagram)));
    }
    let Some(timeout) = settings.wait else {
        voice.say(&report::asked(&knocker, &sent));
        return ServerReport::new(&knocker, sent, None);
    };
    let probes = probes(&knocker);
    for text in report::not_probed(&knocker) {
        voice.say(&text);
    }
    let probed = if probes.is_empty() {
        Ok(Vec::new())
    } else {
        wait(&mut knocker, &probes, timeout, voice)
    };
    match probed {
        Ok(probed) => ServerReport::new(&knocker, sent, Some((timeout, probed))),
        Err(error) => ServerReport::not_sent(&knocker, &error),
    }
}

fn wait(
    knocker: &mut Knocker<'_>,
    probes: &[Probe],
    timeout: Duration,
    voice: Voice,
) -> Result<Vec<Probed>, KnockError> {
    let name = &knocker.server().name;
    let mut closed = probes.to_vec();
    let mut told = false;
    until_open(knocker, probes, timeout, |progress| match progress {
        Progress::Opened { probe, address, after } => {
            closed.retain(|other| other != probe);
            if !closed.iter().any(|other| other.item == probe.item) {
                voice.say(&report::opened(name, &probe.item, address, after));
            }
        }
        Progress::KnockedAgain { sent } => {
            if !told {
                told = true;
                voice.say(&report::not_yet(name, &closed, timeout));
            }
            for datagram in sent {
                voice.detail(&format!("{name}: again, {}", report::datagram(datagram)));
            }
        }
    })
}

/// The ports behind what was asked for that can be probed.
fn probes(knocker: &Knocker<'_>) -> Vec<Probe> {
    let mut probes = Vec::new();
    for item in &knocker.request().items {
        let Some(service) = knocker.server().service_of(item) else { continue };
        for port in service.probed() {
            let probe = Probe { item: item.clone(), port: port.number };
            if !probes.contains(&probe) {
                probes.push(probe);
            }
        }
    }
    probes
}

/// How much is said on standard error.
#[derive(Clone, Copy)]
struct Voice {
    quiet: bool,
    verbose: bool,
}

impl Voice {
    fn say(self, text: &str) {
        if !self.quiet {
            spinner::above(|stderr| writeln!(stderr, "{text}"));
        }
    }

    fn detail(self, text: &str) {
        if self.verbose {
            self.say(text);
        }
    }
}
