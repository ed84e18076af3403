//! `spa-client open` and `spa-client close`: first everything that can fail before a packet
//! leaves, for all servers; then the knocks; then, where asked for, the wait.

use super::args::CommonArgs;
use super::passphrase::Prompt;
use super::report::{self, Report, ServerReport};
use super::{CliError, print_json, spinner};
use crate::asking::{Asking, First, Reuse, Visited};
use crate::at_once::at_once;
use crate::config::Config;
use crate::duration::Lifetime;
use crate::knock::{Asked, KnockError, Options, Route, Sent};
use crate::probe::{Door, Known, Probe, Probed, Progress, Wait, watch};
use crate::record::Moment;
use crate::server::{Connections, Server, ServerName};
use crate::target::by_server;
use core::time::Duration;
use spa_proto::{Item, MessageType};
use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

/// Whoever has less must not rely on a grant of before: the knock that is sent where it turns out
/// not to hold would come too late.
pub(super) const NO_TIME_FOR_OTHERS: Duration = Duration::from_secs(2);

/// What only `open` has.
#[derive(Default)]
pub(super) struct Settings {
    pub(super) lifetime: Option<Lifetime>,
    /// How long to wait, when at all.
    pub(super) wait: Option<Duration>,
    /// Whether the user has asked for it.
    pub(super) insists: bool,
    /// Knock in any case.
    pub(super) fresh: bool,
    /// More knocks follow, when nobody can be asked for a key any more.
    pub(super) keeps: bool,
}

/// A server that is asked, and what came of it.
struct Visit<'a> {
    asking: Asking<'a>,
    report: Option<ServerReport>,
}

pub(super) fn run(
    directory: &Path,
    message_type: MessageType,
    args: &CommonArgs,
    settings: &Settings,
) -> Result<(), CliError> {
    let config = Config::load(directory)?;
    visit_all(&config, message_type, args, settings, &mut Prompt::default()).map(|_| ())
}

/// Asks all the servers, and tells what came of it; gives back what goes on asking.
pub(super) fn visit_all<'a>(
    config: &'a Config,
    message_type: MessageType,
    args: &CommonArgs,
    settings: &Settings,
    prompt: &mut Prompt,
) -> Result<Vec<Asking<'a>>, CliError> {
    let began = Moment::now();
    let voice = Voice::of(args);
    let options =
        Options { lifetime: settings.lifetime, source: args.source, family: args.family() };
    let settings = &Settings { fresh: settings.fresh || args.source.is_some(), ..*settings };
    let relies = message_type == MessageType::Open && !settings.fresh && !settings.keeps;
    let mut visits = Vec::new();
    let default = args.server.as_ref().or(config.default_server().map(|server| &server.name));
    for (name, items) in by_server(&args.targets, default) {
        let server = config.server(name.map(ServerName::as_str))?;
        if settings.insists {
            refuse_to_probe(server, &items)?;
        }
        let asked = Asked::new(message_type, items)?;
        let asking = if relies {
            Asking::by_keys_at_hand(server, &asked, &options, began)?
        } else {
            Asking::new(server, &asked, &options, prompt, began)?
        };
        visits.push(Visit { asking, report: None });
    }

    let targets: Vec<String> = args.targets.iter().map(ToString::to_string).collect();
    let visit_each = |visits: Vec<&mut Visit<'a>>| {
        let _waiting = (settings.wait.is_some() && !args.quiet && !visits.is_empty())
            .then(|| spinner::start(&format!("waiting for {}", targets.join(" "))));
        at_once(visits, |it| {
            let start = Instant::now();
            let limit = settings.wait.unwrap_or_default();
            it.report = loop {
                match visit(&mut it.asking, settings, voice) {
                    Visited::Done(report) => break Some(report),
                    Visited::NotOpen if start.elapsed() < limit => {}
                    Visited::NotOpen | Visited::NoKey => break None,
                }
            };
        });
    };
    // Nobody types a passphrase for what is open already.
    visit_each(visits.iter_mut().filter(|it| it.asking.knocker().is_none()).collect());
    for Visit { asking, report } in &mut visits {
        if report.is_none() {
            asking.unlock(prompt)?;
        }
    }
    visit_each(visits.iter_mut().filter(|it| it.report.is_none()).collect());

    let (visits, reports): (Vec<_>, Vec<_>) =
        visits.into_iter().map(|it| (it.asking, it.report)).unzip();
    let report = Report::new(message_type, reports.into_iter().flatten().collect());
    if args.json {
        print_json(&report)?;
    }
    report.failure().map_or(Ok(visits), |text| Err(CliError::Failed(text)))
}

/// What lets one connection in can't be waited for: the probe that saw it open would be that one.
fn refuse_to_probe(server: &Server, items: &[Item]) -> Result<(), CliError> {
    let is_one = |item: &&Item| {
        server.service_of(item).is_some_and(|service| service.connections == Connections::One)
    };
    items.iter().find(is_one).map_or(Ok(()), |item| {
        Err(CliError::Usage(format!(
            "{item} on {} lets one connection in, and --wait would use it up by looking; leave --wait out and connect right away, or let `spa-client proxy` do both in one",
            server.name
        )))
    })
}

/// Knocks on one server, where that is needed, and waits for what was asked of it.
fn visit(asking: &mut Asking<'_>, settings: &Settings, voice: Voice) -> Visited<ServerReport> {
    let has_key = asking.knocker().is_some();
    let name = &asking.route().server().name;
    let probes = probes(asking.route());
    let not_probed = match settings.wait {
        Some(_) => report::not_probed(asking.route()),
        None => Vec::new(),
    };
    let wait = settings.wait.filter(|_| !probes.is_empty());
    let start = Instant::now();
    let reuse = if settings.fresh || wait.is_some_and(|wait| wait < NO_TIME_FOR_OTHERS) {
        Reuse::Never
    } else if wait.is_some() && not_probed.is_empty() {
        Reuse::Asked
    } else {
        Reuse::Seen
    };
    // Whoever names a lifetime is not content with the last seconds of one.
    let wanted = settings.lifetime.map_or(Duration::ZERO, |lifetime| lifetime.get() / 2);
    let (sent, mut reused) = match asking.first(reuse, wanted, wait.is_some()) {
        Ok(First::Knocked(sent)) => (sent, None),
        Ok(First::Reused(reused)) => (Vec::new(), Some(reused)),
        Ok(First::NoKey) => return Visited::NoKey,
        Err(error) => return Visited::Done(ServerReport::not_sent(asking, &error)),
    };
    for datagram in &sent {
        voice.detail(&format!("{name}: {}", report::datagram(datagram)));
    }
    // Without a key nothing is told before it is sure: else it may be told twice.
    let soon = Voice { quiet: voice.quiet || !has_key, ..voice };
    for text in &not_probed {
        soon.say(text);
    }
    if settings.wait.is_none() {
        voice.say(&match &reused {
            None => report::asked(asking.route(), &sent),
            Some(reused) => report::still(asking.route(), reused),
        });
    }
    let Some(timeout) = wait else {
        if !has_key {
            tell_opened(name, &not_probed, &[], voice);
        }
        let probed = settings.wait.map(|timeout| (timeout, Vec::new()));
        let report = ServerReport::new(asking, sent, probed);
        return Visited::Done(report.reusing(reused.as_ref()));
    };
    if let Some(seen) = reused.and_then(|_| asking.await_other()) {
        reused = Some(seen);
    }
    let seen = reused.and_then(|reused| Some((reused, reused.seen?)));
    let probed = if let Some((reused, address)) = seen {
        voice.say(&report::still(asking.route(), &reused));
        let seen = |probe: Probe| Probed { probe, result: Ok((address, Duration::ZERO)) };
        Ok(probes.into_iter().map(seen).collect())
    } else {
        let known = if reused.is_some() { Known::Open } else { Known::Shut };
        let wait = asking.wait(start, timeout, known);
        await_open(asking, &probes, wait, soon)
    };
    let report = match probed {
        Ok(probed) if !has_key && probed.iter().any(|it| it.result.is_err()) => {
            return Visited::NotOpen;
        }
        Ok(probed) => {
            if !has_key && seen.is_none() {
                tell_opened(name, &not_probed, &probed, voice);
            }
            ServerReport::new(asking, sent, Some((timeout, probed)))
        }
        Err(error) => ServerReport::not_sent(asking, &error),
    };
    Visited::Done(report.reusing(reused.as_ref()))
}

/// Tells afterwards what [`await_open`] tells meanwhile.
fn tell_opened(name: &ServerName, not_probed: &[String], probed: &[Probed], voice: Voice) {
    for text in not_probed {
        voice.say(text);
    }
    for (at, Probed { probe, result }) in (1..).zip(probed) {
        let is_last = probed.iter().skip(at).all(|other| other.probe.item != probe.item);
        if let (true, Ok((address, after))) = (is_last, result) {
            voice.say(&report::opened(name, &probe.item, *address, *after));
        }
    }
}

fn await_open(
    asking: &mut Asking<'_>,
    probes: &[Probe],
    wait: Wait<'_>,
    voice: Voice,
) -> Result<Vec<Probed>, KnockError> {
    let name = &asking.route().server().name;
    let mut closed = probes.to_vec();
    let mut told = false;
    let mut progress = |event: Progress<'_>| match event {
        Progress::Opened { probe, address, after } => {
            closed.retain(|other| other != probe);
            if !closed.iter().any(|other| other.item == probe.item) {
                voice.say(&report::opened(name, &probe.item, address, after));
            }
        }
        Progress::KnockedAgain { sent } => {
            if !told {
                told = true;
                voice.say(&report::not_yet(name, &closed, wait.timeout));
            }
            tell_again(name, sent, voice);
        }
    };
    let doors = probes.iter().map(|probe| Door::new(probe, asking.route().sockets())).collect();
    let ended = watch(&mut |only| asking.again(only), doors, wait, &mut progress)?;
    let probed: Vec<Probed> = ended.into_iter().map(|door| door.end().0).collect();
    for Probed { probe, result } in &probed {
        match result {
            Ok((address, _)) => asking.seen_open(&probe.item, *address),
            Err(_) => asking.not_open(&probe.item),
        }
    }
    Ok(probed)
}

fn tell_again(name: &ServerName, sent: &[Sent], voice: Voice) {
    for datagram in sent {
        voice.detail(&format!("{name}: again, {}", report::datagram(datagram)));
    }
}

/// The ports behind what was asked for that can be probed.
pub(super) fn probes(route: &Route<'_>) -> Vec<Probe> {
    let mut probes = Vec::new();
    for item in &route.request().items {
        let Some(service) = route.server().service_of(item) else { continue };
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
pub(super) struct Voice {
    pub(super) quiet: bool,
    pub(super) verbose: bool,
}

impl Voice {
    pub(super) const fn of(args: &CommonArgs) -> Self {
        Self { quiet: args.quiet, verbose: args.verbose }
    }

    pub(super) fn say(self, text: &str) {
        if !self.quiet {
            spinner::above(|stderr| writeln!(stderr, "{text}"));
        }
    }

    pub(super) fn detail(self, text: &str) {
        if self.verbose {
            self.say(text);
        }
    }
}
