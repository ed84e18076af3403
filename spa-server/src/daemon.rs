//! The running server: everything put together, and what happens to it from outside.

mod announce;
mod contest;
mod cutter;
mod log;
mod prefiltered;
mod refuse;
mod reload;
mod shortcut;
mod standing;
mod start;
mod status;
mod watch;

use crate::authorizer::{Authorizer, Selection};
use crate::capture::{Capture, InterfaceState, Pulse};
use crate::causes::with_causes;
use crate::clock::{BootMicros, Now};
use crate::config::{ClientCount, Config, Settings};
use crate::control::{ControlRequest, ControlResponse};
use crate::counters::Counters;
use crate::gate::Backend;
use crate::grants::FileGrantStore;
use crate::helper::{Gone, RemoteConnections, RemoteGate};
use crate::pipeline::{Candidate, SharedJudge, Shortcut};
use crate::policy::Policy;
use crate::privileges;
use crate::refused_sources::RefusedSourcesFile;
use crate::replay_store::FileStore;
use crate::source::Source;
use crate::state_lock::StateLock;
use crate::trial::{Trial, TrialFile};
use announce::Keys;
use anyhow::Context as _;
use cutter::{Cutter, Which};
pub(crate) use log::Log;
use prefiltered::Prefiltered;
use reload::{Order, Reading, Refused, Reload};
use sd_notify::NotifyState;
use shortcut::{Shared, Unfinished};
use spa_proto::{Announced, UnixMicros};
use standing::{LeftBehind, Restorations, Standing};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use watch::{Alarm, Known, Watch};

/// Authentic knocks that may wait for the authorizer; more are dropped as `overloaded`.
const QUEUE: usize = 4096;
/// Keys that are announced and wait; more are dropped as `overloaded`.
const ANNOUNCEMENTS: usize = 64;
/// Knocks that are made durable and opened together at the most.
const BATCH: usize = 256;
/// A capture thread that has not gone round its loop for so long hangs.
const HANGS_AFTER: Duration = Duration::from_secs(5);

/// How often the watchdog is told that a step goes on: `WatchdogSec` is several times this.
const FEED_EVERY: Duration = Duration::from_secs(5);
/// So often; a step that takes longer than the time limits of all its tools hangs.
const FEEDS: u32 = 60;

/// How the daemon and its helper both begin: with a log, and without a way for keys to a disk.
pub(crate) fn begin() -> anyhow::Result<Log> {
    let log = log::start()?;
    if let Err(error) = privileges::leave_no_dumps() {
        tracing::warn!("a crash may leave keys in a core dump: {error}");
    }
    Ok(log)
}

/// Runs the server that the configuration at `config_path` describes, until SIGTERM or SIGINT. Its gate
/// helper is met at the socket `helper`, or else started.
pub fn run(config_path: &Path, helper: Option<&Path>) -> anyhow::Result<()> {
    let log = begin()?;
    if let Err(error) = privileges::stay_in_memory() {
        tracing::warn!(
            "keys may be written to a swap, where there is one, since the daemon can't lock its memory: {error}; it may by LimitMEMLOCK=infinity in its unit, which a container has to permit, or after `ulimit -l unlimited`"
        );
    }
    let (config, left_out) = Config::load_sound_clients(config_path)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let (daemon, inbox) = Daemon::start(config, left_out, helper).await?;
        Box::pin(inbox.serve(daemon, &log)).await
    })
}

/// A request over the control socket, and where its answer goes.
type Command = (ControlRequest, oneshot::Sender<ControlResponse>);

/// What happens is done by whoever has it for himself: one thing after another, each of them whole.
struct Daemon {
    settings: Settings,
    keys: Keys,
    config_path: PathBuf,
    clients: ClientCount,
    started: (UnixMicros, Instant),
    judge: SharedJudge,
    /// The policy of the last configuration that was put in force.
    configured: Arc<Policy>,
    counters: Arc<Counters>,
    authorizer: Authorizer<Arc<RemoteGate>, FileStore, FileGrantStore>,
    backend: Backend,
    prefilter: Prefiltered,
    lists: Arc<RemoteConnections>,
    watch: Watch<Arc<RemoteGate>>,
    cutter: Cutter,
    standing: Standing,
    /// What is left of a gate that was to be taken away, if anything.
    left_behind: Option<LeftBehind>,
    trial: Option<Trial>,
    /// The clock was set, and the kernel does not know the end of the trial by it yet.
    trial_stepped: bool,
    trial_file: TrialFile,
    refused_file: RefusedSourcesFile,
    restored: Restorations,
    /// What could not be put back yet.
    unmended: Option<Alarm>,
    /// Who was in before a time without a gate, where who came in then could not be told yet.
    uncut: Option<Known>,
    capture: Capture,
    queue: QueueDepth,
    control: JoinHandle<()>,
    reload: Option<Reload>,
    /// A reading that has begun, until the inbox waits for it.
    reading: Option<Reading>,
    left_out: Vec<String>,
    last_reload: Option<String>,
    /// Held for as long as the state directory is ours.
    _lock: StateLock,
}

/// The knocks that wait for the authorizer.
#[derive(Debug, Clone, Copy, Default)]
struct QueueDepth {
    /// At the last look.
    waiting: usize,
    /// The most at a time.
    deepest: usize,
}

/// Where everything comes in that the daemon is to do.
struct Inbox {
    knocks: mpsc::Receiver<Candidate>,
    announcements: mpsc::Receiver<Announced>,
    commands: mpsc::Receiver<Command>,
    alarms: mpsc::Receiver<Alarm>,
    reading: Option<Reading>,
    helper_gone: Gone,
    shortcut: Arc<Shortcut>,
}

/// What the server is to do next.
enum Next {
    Admit,
    Announced(Box<Announced>),
    Command(Command),
    Alarm(Alarm),
    Reloaded(Box<Result<Config, Refused>>),
    Tick,
    ReadAnew,
    Finish(Unfinished),
    HelperGone,
    Stop(&'static str),
}

impl Inbox {
    async fn serve(mut self, daemon: Daemon, log: &Log) -> anyhow::Result<()> {
        let mut stop = Signals::new()?;
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(BATCH);
        let pulse = daemon.capture.pulse();
        let mut daemon = Shared::new(daemon);
        daemon.open_shortcut(&self.shortcut);
        notify(&[NotifyState::Ready]);
        tracing::info!("ready");
        loop {
            let next = tokio::select! {
                // None come any more when all capture threads have died, which the tick finds out.
                received = self.knocks.recv_many(&mut batch, BATCH) => {
                    if received > 0 { Next::Admit } else { Next::Tick }
                }
                Some(announced) = self.announcements.recv() => {
                    Next::Announced(Box::new(announced))
                }
                Some(command) = self.commands.recv() => Next::Command(command),
                Some(alarm) = self.alarms.recv() => Next::Alarm(alarm),
                config = reload::reading(&mut self.reading) => Next::Reloaded(Box::new(config)),
                _ = tick.tick() => Next::Tick,
                unfinished = daemon.unfinished() => Next::Finish(unfinished),
                _ = &mut self.helper_gone => Next::HelperGone,
                next = stop.next() => next,
            };
            if let Next::Stop(signal) = next {
                tracing::info!("stopping on {signal}; the gate and what is open stay");
                break;
            }
            if let Next::Tick = next {
                log.tend();
            }
            let step = self.step(&mut daemon, next, &mut batch);
            if let Err(error) = telling(FEED_EVERY, FEEDS, || tell_watchdog(&pulse), step).await {
                // Before the daemon goes, which no capture thread is to be the last one to have.
                daemon.lock().await.capture.stop();
                return Err(error);
            }
        }
        daemon.lock().await.finish(&mut self.knocks, batch).await;
        log.tend();
        Ok(())
    }

    async fn step(
        &mut self,
        daemon: &mut Shared<Daemon>,
        next: Next,
        batch: &mut Vec<Candidate>,
    ) -> anyhow::Result<()> {
        if let Next::Finish(unfinished) = next {
            unfinished.await;
            return Ok(());
        }
        let mut daemon = daemon.lock().await;
        let waiting = self.knocks.len();
        let deepest = daemon.queue.deepest.max(waiting.saturating_add(batch.len()));
        daemon.queue = QueueDepth { waiting, deepest };
        let knocks = batch.len();
        daemon.step(next, batch).await?;
        self.shortcut.caught_up(knocks.saturating_sub(batch.len()));
        if let Some(reading) = daemon.reading.take() {
            self.reading = Some(reading);
        }
        Ok(())
    }
}

impl Daemon {
    async fn step(&mut self, next: Next, batch: &mut Vec<Candidate>) -> anyhow::Result<()> {
        match next {
            Next::Admit => self.admit(std::mem::take(batch)).await,
            Next::Announced(announced) => self.announced(&announced),
            Next::Command((request, answer)) => self.obey(request, answer).await,
            Next::Alarm(alarm) => self.alarmed(alarm).await,
            Next::Reloaded(config) => self.reloaded(*config).await,
            Next::Tick => self.tick().await?,
            Next::ReadAnew => self.read_anew(Order::Reload, None),
            Next::HelperGone => anyhow::bail!(
                "the gate helper has ended, or was given up, and without it nothing opens; the gate and what is open stay. Start the daemon again, as systemd does by itself; the log above may say why"
            ),
            Next::Finish(_) | Next::Stop(_) => {}
        }
        Ok(())
    }

    async fn admit(&mut self, batch: Vec<Candidate>) {
        let accepted = self.authorizer.accept(batch);
        let accepted = self.replace_keys(accepted).await;
        self.authorizer.open(accepted).await;
        self.release_granted();
    }

    async fn tick(&mut self) -> anyhow::Result<()> {
        self.end_previous_key(Now::read().realtime);
        let stepped = self.authorizer.tick().await;
        self.tend_gate(stepped).await;
        let health = self.capture.health();
        if let Some(dead) = health.iter().find(|one| one.state == InterfaceState::Stopped) {
            anyhow::bail!("the capture thread of {} has died", dead.name);
        }
        tell_watchdog(&self.capture.pulse());
        Ok(())
    }

    async fn obey(&mut self, request: ControlRequest, answer: oneshot::Sender<ControlResponse>) {
        let response = match request {
            ControlRequest::Status => return self.tell_status(answer),
            ControlRequest::GrantsList => {
                ControlResponse::Grants(self.authorizer.views(BootMicros::now()))
            }
            ControlRequest::GrantsRevoke { client, source, service, all, cut } => {
                if !all && client.is_none() && source.is_none() && service.is_none() {
                    ControlResponse::error(&"name what to revoke, or all")
                } else {
                    match self.client_ids(client.as_deref()) {
                        Ok(client) => {
                            let source = source.map(Source::host);
                            let selection = Selection { client, source, service };
                            return self.revoke(&selection, cut, answer).await;
                        }
                        Err(unknown) => ControlResponse::error(&unknown),
                    }
                }
            }
            ControlRequest::Refuse { source, seconds, cut } => {
                return self.refuse(source, Duration::from_secs(seconds), cut, answer).await;
            }
            ControlRequest::RefusedSources => self.refused_sources(),
            ControlRequest::LiftRefusal { source } => self.lift_refusal(source),
            ControlRequest::Reload => return self.read_anew(Order::Reload, Some(answer)),
            ControlRequest::GateInstall { trial } => {
                let order = Order::Install(trial.map(Duration::from_secs));
                return self.read_anew(order, Some(answer));
            }
            ControlRequest::GateConfirm { stands_since } => self.confirm(stands_since).await,
            ControlRequest::GateRemove => self.remove_gate().await,
            ControlRequest::WithdrawKey { client } => match self.withdraw_key(&client) {
                Ok(()) => ControlResponse::Done,
                Err(why) => ControlResponse::error(&why),
            },
            ControlRequest::ResetReplayWindow { client } => {
                match self.client_ids(client.as_deref()) {
                    Ok(clients) => {
                        let now = Now::read().realtime;
                        self.authorizer.reset_replay(clients.as_deref(), now);
                        ControlResponse::Done
                    }
                    Err(unknown) => ControlResponse::error(&unknown),
                }
            }
        };
        // Whoever asked may have gone.
        let _ = answer.send(response);
    }

    /// What is known, and a look at the gate, for which nothing else has to wait.
    fn tell_status(&self, answer: oneshot::Sender<ControlResponse>) {
        let mut status = self.status();
        let asked = self.watch.ask();
        let fight = self.restored.fight();
        tokio::spawn(async move {
            if let Some(wrong) = asked.await {
                status.gate =
                    [Some(wrong), fight].into_iter().flatten().collect::<Vec<_>>().join("; ");
            }
            // Whoever asked may have gone.
            let _ = answer.send(ControlResponse::Status(Box::new(status)));
        });
    }

    /// Closes, and ends what was let in, if that is wanted, for which nothing else has to wait.
    async fn revoke(
        &mut self,
        selection: &Selection,
        cut: bool,
        answer: oneshot::Sender<ControlResponse>,
    ) {
        let now = BootMicros::now();
        let sessions = cut.then(|| self.authorizer.sessions(selection, now));
        let grants: Vec<_> = match self.authorizer.revoke(selection, "by the administrator").await {
            Ok(gone) => gone.iter().map(|grant| self.authorizer.view(grant, now)).collect(),
            Err(error) => {
                let not_cut = if cut { "; nothing was cut: repeat it with --cut" } else { "" };
                let response = ControlResponse::error(&format!(
                    "the kernel did not take it, and it is tried again every second: {}{not_cut}",
                    with_causes(&error)
                ));
                // Whoever asked may have gone.
                let _ = answer.send(response);
                return;
            }
        };
        let left = self.leftover().map(|left| format!("the gate is gone, but {left}"));
        let Some(sessions) = sessions else {
            let revoked = ControlResponse::Revoked { grants, cut: None };
            let _ = answer.send(left.map_or(revoked, |left| ControlResponse::error(&left)));
            return;
        };
        let (done, when_done) = oneshot::channel();
        let guarded = self.settings.gate_plan().guarded.into();
        self.cutter.cut(Which::Of(sessions), guarded, self.authorizer.granted(now), Some(done));
        tokio::spawn(async move {
            let mut cut = when_done.await.ok();
            if let Some(cut) = &mut cut {
                cut.trouble = cut.trouble.take().or(left);
            }
            let _ = answer.send(ControlResponse::Revoked { grants, cut });
        });
    }

    /// What was captured before the stop is carried out; then the stores are marked clean.
    async fn finish(&mut self, knocks: &mut mpsc::Receiver<Candidate>, mut batch: Vec<Candidate>) {
        notify(&[NotifyState::Stopping]);
        self.control.abort();
        self.capture.stop();
        while let Ok(candidate) = knocks.try_recv() {
            batch.push(candidate);
        }
        if !batch.is_empty() {
            self.admit(batch).await;
        }
        self.authorizer.finish();
        self.cutter.finish().await;
        // It may be gone already.
        let _ = std::fs::remove_file(&self.settings.control_socket);
        tracing::info!("stopped");
    }
}

/// Carries out a step, and calls `tell` every now and then meanwhile, but not for ever: a step may
/// have to wait for tools of the system, each of which has a time limit.
async fn telling<T>(
    every: Duration,
    times: u32,
    mut tell: impl FnMut(),
    step: impl Future<Output = T>,
) -> T {
    let mut step = std::pin::pin!(step);
    for _ in 0..times {
        if let Ok(done) = tokio::time::timeout(every, step.as_mut()).await {
            return done;
        }
        tell();
    }
    step.await
}

/// A capture thread that hangs is for the watchdog.
fn tell_watchdog(pulse: &Pulse) {
    if pulse.is_younger_than(HANGS_AFTER) {
        notify(&[NotifyState::Watchdog]);
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen to signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Next {
        tokio::select! {
            _ = self.terminate.recv() => Next::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Next::Stop("SIGINT"),
            _ = self.hangup.recv() => Next::ReadAnew,
        }
    }
}

/// Tells systemd, where it listens.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!("systemd was not told: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_watchdog_hears_of_a_long_step_but_not_of_an_endless_one() {
        let every = Duration::from_millis(20);
        let mut told = 0;
        assert_eq!(telling(every, 9, || told += 1, async { 7 }).await, 7);
        assert_eq!(told, 0);
        telling(every, 9, || told += 1, tokio::time::sleep(every * 3)).await;
        assert!((1..=3).contains(&told), "{told}");
        told = 0;
        let endless = telling(every, 3, || told += 1, std::future::pending::<()>());
        assert!(tokio::time::timeout(every * 20, endless).await.is_err());
        assert_eq!(told, 3);
    }
}
