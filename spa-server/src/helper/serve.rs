//! The helper's process.

use super::line::{LINES, Line, await_end, take_over};
use super::ordered::OrderFile;
use super::warden::Warden;
use super::{HelperAnswer, HelperRequest};
use crate::causes::with_causes;
use crate::clock::BootMicros;
use crate::config::Settings;
use crate::connections::{Connections as _, KernelConnections};
use crate::daemon::{self, Log};
use crate::gate::{
    AnyGate, Backend, Choice, Gate as _, GateAnswer, GateError, GateRequest, Plan, answer,
};
use crate::gate_record::GateRecord;
use crate::priority::{hurry, in_background};
use crate::privileges;
use crate::replay_store::BootId;
use crate::trial::Announced;
use anyhow::Context as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Runs the helper at the other end of standard input, until that or a line is closed.
pub(crate) fn run(config: &Path) -> anyhow::Result<()> {
    let log = daemon::begin()?;
    let link = std::io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from)?;
    let lines = take_over(&link).context(
        "the gate helper is started by `spa-server run`, which it serves, and has no use without",
    )?;
    let settings = Settings::load(config).inspect_err(|error| {
        let [orders, ..] = &lines;
        // It tells it as well, if it is still there.
        let _ = orders.send(&HelperAnswer::Failed(with_causes(error)));
    })?;
    // Commands of the administrator's may need more than the gate.
    if settings.gate.backend != Backend::Hook {
        privileges::keep_to_the_gate().context("cannot give up what the gate does not need")?;
        privileges::confine_the_helper();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(config, settings, link, lines, log))
}

async fn serve(
    config: &Path,
    settings: Settings,
    link: UnixStream,
    lines: [Line; LINES],
    log: Log,
) -> anyhow::Result<()> {
    let [orders, looks, doubts, lists, behind] = lines;
    let gate = match AnyGate::choose(&settings.gate, &settings.gate_plan()).await {
        Ok(Choice { gate, passed_over }) => {
            let passed_over = passed_over.iter().map(ToString::to_string).collect();
            orders.send(&HelperAnswer::Chosen { backend: gate.backend(), passed_over })?;
            Arc::new(gate)
        }
        Err(error) => {
            // The daemon tells it.
            orders.send(&HelperAnswer::Failed(with_causes(&error)))?;
            return Ok(());
        }
    };
    let orders_file = OrderFile::of(&settings.state_directory);
    let boot = BootId::read().with_context(|| format!("cannot read {}", BootId::SOURCE))?;
    let record = Arc::new(GateRecord::of(&settings.state_directory, boot));
    let whole_settings = Arc::new(settings.clone());
    let warden = Arc::new(Warden::new(config, settings, orders_file, Arc::clone(&record)));
    let (end, mut ended) = mpsc::channel(1);
    for (name, line) in [
        ("orders", orders),
        ("looks", looks),
        ("doubts", doubts),
        ("lists", lists),
        ("behind", behind),
    ] {
        let server = Server {
            gate: Arc::clone(&gate),
            settings: Arc::clone(&whole_settings),
            record: Arc::clone(&record),
            warden: Arc::clone(&warden),
            runtime: Handle::current(),
        };
        let end = Ends(end.clone());
        std::thread::Builder::new().name(name.into()).spawn(move || {
            let _end = end;
            if name == "orders" {
                // Somebody waits for his port to open.
                hurry();
            }
            server.serve(&line);
        })?;
    }
    let end = Ends(end);
    std::thread::Builder::new().name("link".into()).spawn(move || {
        let _end = end;
        await_end(&link);
    })?;
    // Whoever signals all of that name means the worker, at whose end this one ends.
    let _not_for_it = [
        SignalKind::hangup(),
        SignalKind::interrupt(),
        SignalKind::quit(),
        SignalKind::terminate(),
        SignalKind::user_defined1(),
        SignalKind::user_defined2(),
    ]
    .map(signal);
    // The worker is gone, or a thread has died: then it goes as well. Nothing is lost by that, and a
    // command that still runs goes on to its end.
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            _ = ended.recv() => break,
            _ = tick.tick() => log.tend(),
        }
    }
    log.tend();
    std::process::exit(0)
}

/// Says that its thread has ended, however it did.
struct Ends(mpsc::Sender<()>);

impl Drop for Ends {
    fn drop(&mut self) {
        // The first one suffices.
        let _ = self.0.try_send(());
    }
}

/// What serves one line.
struct Server {
    gate: Arc<AnyGate>,
    settings: Arc<Settings>,
    record: Arc<GateRecord>,
    warden: Arc<Warden>,
    runtime: Handle,
}

impl Server {
    fn serve(&self, line: &Line) {
        loop {
            let request = match line.receive() {
                Ok(Some(request)) => request,
                Ok(None) => return,
                Err(error) => {
                    return tracing::error!(
                        "the gate helper can't read what the daemon asks: {error}"
                    );
                }
            };
            // Who has given this process up has told the knock as failed: it is not to open hours later.
            if line.is_hung_up() {
                return tracing::debug!("nobody waits for what was asked last");
            }
            if let Err(error) = line.send(&self.answer(request)) {
                return tracing::debug!("the daemon is gone: {error}");
            }
        }
    }

    fn answer(&self, request: HelperRequest) -> HelperAnswer {
        let is_removal = matches!(request, HelperRequest::Gate(GateRequest::Remove));
        match self.warden.judge(request) {
            Ok((request, refused)) => {
                let answer = self.carry_out(&request);
                self.warden.note(&request, &answer);
                if answer == HelperAnswer::Gate(GateAnswer::Removed)
                    && let Err(error) = self.record.removed()
                {
                    tracing::error!("a boot may put it up again: {}", with_causes(&error));
                }
                refused.map_or(answer, |why| {
                    tracing::error!("{why}");
                    HelperAnswer::Failed(why)
                })
            }
            // There is nothing to take away, which is what was wanted.
            Err(_) if is_removal && self.is_gone() => HelperAnswer::Gate(GateAnswer::Removed),
            Err(why) if is_removal => HelperAnswer::Gate(GateAnswer::NotOrdered(why)),
            Err(why) => {
                tracing::error!("the gate helper refuses what the daemon asks: {why}");
                HelperAnswer::Failed(why)
            }
        }
    }

    fn install(&self, plan: &Plan) -> GateAnswer {
        let announced = match self.record.announce(plan, BootMicros::now()) {
            Ok(announced) => announced,
            Err(error) => {
                let why = with_causes(&error);
                return GateAnswer::Failed(format!(
                    "a boot would take this gate on trial for one that stands for good: {why}"
                ));
            }
        };
        let request = GateRequest::Install(plan.clone());
        let mut answer = self.runtime.block_on(answer(&*self.gate, request));
        match &mut answer {
            GateAnswer::Installed(report) => {
                self.record.stands(announced, &self.settings.gate, plan, report);
            }
            _ => {
                if let Err(error) = announced.and_then(Announced::withdraw) {
                    tracing::error!("{}", with_causes(&error));
                }
            }
        }
        answer
    }

    fn is_gone(&self) -> bool {
        matches!(self.runtime.block_on(self.gate.snapshot()), Err(GateError::NotInstalled))
    }

    fn carry_out(&self, request: &HelperRequest) -> HelperAnswer {
        let connections = KernelConnections;
        let failed = |error: &dyn std::error::Error| HelperAnswer::Failed(with_causes(error));
        match request {
            HelperRequest::Gate(GateRequest::Install(plan)) => {
                HelperAnswer::Gate(self.install(plan))
            }
            HelperRequest::Gate(request) => {
                HelperAnswer::Gate(self.runtime.block_on(answer(&*self.gate, request.clone())))
            }
            HelperRequest::RemoveOthers => {
                let left = self.runtime.block_on(self.gate.remove_others(&self.settings.gate));
                let left = left.into_iter().chain(self.settings.abandoned_hook());
                HelperAnswer::Removed(left.collect())
            }
            HelperRequest::Reread => HelperAnswer::Reread,
            HelperRequest::Disturbed => {
                HelperAnswer::Disturbed(self.runtime.block_on(self.gate.disturbed()))
            }
            HelperRequest::List { guarded, in_background: false } => {
                connections.list_behind(guarded).map_or_else(
                    |error| failed(&error),
                    |(connections, took)| HelperAnswer::Listed { connections, took },
                )
            }
            HelperRequest::List { guarded, in_background: true } => {
                let guarded = guarded.clone();
                // A priority can't be raised again: this thread has others who wait for it.
                let listed =
                    in_background("connections", move || connections.list_behind(&guarded));
                match listed.map(std::thread::JoinHandle::join) {
                    Ok(Ok(Ok((connections, took)))) => HelperAnswer::Listed { connections, took },
                    Ok(Ok(Err(error))) => failed(&error),
                    Ok(Err(_)) => HelperAnswer::Failed("the list has died".into()),
                    Err(error) => failed(&error),
                }
            }
            HelperRequest::Established { those, guarded } => connections
                .established(those, guarded)
                .map_or_else(|error| failed(&error), HelperAnswer::Cuts),
            HelperRequest::End { those, established, guarded } => connections
                .end(those, established, guarded)
                .map_or_else(|error| failed(&error), HelperAnswer::Ended),
            HelperRequest::TalkedTo(those) => {
                connections.talked_to(those).map_or_else(|error| failed(&error), HelperAnswer::Cuts)
            }
        }
    }
}
