//! `spa-client open` and `spa-client close`: first everything that can fail before a packet
//! leaves, for all servers; then the knocks; then, where asked for, the wait.

use super::args::CommonArgs;
use super::report::{self, Report, ServerReport};
use super::{CliError, print_json};
use crate::config::Config;
use crate::duration::Lifetime;
use crate::knock::{Asked, KnockError, Knocker, Options};
use crate::probe::{Probe, Probed, Progress, until_open};
use crate::server::ServerName;
use crate::target::by_server;
use core::time::Duration;
use spa_proto::{MessageType, Transport};
use std::io::{self, Write as _};
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;

/// What only `open` has.
#[derive(Default)]
pub(super) struct Settings {
    pub(super) lifetime: Option<Lifetime>,
    /// How long to wait, when at all.
    pub(super) wait: Option<Duration>,
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
        let asked = Asked::new(message_type, items)?;
        visits.push(Knocker::prepare(server, &asked, &options)?);
    }

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

    let report = Report::new(message_type, reports);
    if args.json {
        print_json(&report)?;
    }
    report.failure().map_or(Ok(()), |text| Err(CliError::Failed(text)))
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

/// The TCP ports behind what was asked for.
fn probes(knocker: &Knocker<'_>) -> Vec<Probe> {
    let mut probes = Vec::new();
    for item in &knocker.request().items {
        for port in knocker.server().ports_of(item).unwrap_or_default() {
            let probe = Probe { item: item.clone(), port: port.number };
            if port.transport == Transport::Tcp && !probes.contains(&probe) {
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
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    fn detail(self, text: &str) {
        if self.verbose {
            self.say(text);
        }
    }
}
