//! The running server: everything put together, and what happens to it from outside.

mod look;
mod start;
mod status;

use crate::authorizer::{Authorizer, Selection};
use crate::capture::{Capture, InterfaceState, Pulse};
use crate::causes::with_causes;
use crate::clock::{BootMicros, Now};
use crate::config::{Config, ConfigError, GateSettings, Settings};
use crate::control::{ControlRequest, ControlResponse, Reloaded};
use crate::counters::Counters;
use crate::gate::AnyGate;
use crate::grants::FileGrantStore;
use crate::pipeline::{Candidate, SharedJudge};
use crate::replay_store::FileStore;
use anyhow::Context as _;
use look::Look;
use sd_notify::NotifyState;
use spa_keys::PublicKey;
use spa_proto::UnixMicros;
use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Authentic knocks that may wait for the authorizer; more are dropped as `overloaded`.
const QUEUE: usize = 4096;
/// Knocks that are made durable and opened together at the most.
const BATCH: usize = 256;
/// What is always logged.
const AUDIT: &str = "audit=info";
/// A capture thread that has not gone round its loop for so long hangs.
const HANGS_AFTER: Duration = Duration::from_secs(5);

/// How often the watchdog is told that a step goes on: `WatchdogSec` is several times this.
const FEED_EVERY: Duration = Duration::from_secs(5);
/// So often; a step that takes longer than the time limits of all its tools hangs.
const FEEDS: u32 = 60;

/// Runs the server that the configuration at `config_path` describes, until SIGTERM or SIGINT.
pub fn run(config_path: &Path) -> anyhow::Result<()> {
    start_log()?;
    let (config, left_out) = Config::load_sound_clients(config_path)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let daemon = Daemon::start(config, &left_out).await?;
        daemon.serve().await
    })
}

/// A request over the control socket, and where its answer goes.
type Command = (ControlRequest, oneshot::Sender<ControlResponse>);

struct Daemon {
    settings: Settings,
    server_key: PublicKey,
    config_path: PathBuf,
    clients: status::ClientCount,
    started: (UnixMicros, Instant),
    judge: SharedJudge,
    counters: Arc<Counters>,
    authorizer: Authorizer<Arc<AnyGate>, FileStore, FileGrantStore>,
    look: Look,
    capture: Capture,
    knocks: mpsc::Receiver<Candidate>,
    commands: mpsc::Receiver<Command>,
    control: JoinHandle<()>,
    reload: Option<Reload>,
    left_out: Vec<String>,
    last_reload: Option<String>,
    /// Held for as long as the state directory is ours.
    _lock: std::fs::File,
}

/// A configuration that is being read, off the runtime's thread.
struct Reload {
    reading: JoinHandle<Result<Config, ConfigError>>,
    asked_by: Vec<oneshot::Sender<ControlResponse>>,
}

/// What the server is to do next.
enum Next {
    Admit,
    Command(Command),
    Reloaded(Box<Result<Config, String>>),
    Tick,
    ReadAnew,
    Stop(&'static str),
}

impl Daemon {
    async fn serve(mut self) -> anyhow::Result<()> {
        let mut stop = Signals::new()?;
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(BATCH);
        let pulse = self.capture.pulse();
        notify(&[NotifyState::Ready]);
        tracing::info!("ready");
        loop {
            let next = tokio::select! {
                // None come any more when all capture threads have died, which the tick finds out.
                received = self.knocks.recv_many(&mut batch, BATCH) => {
                    if received > 0 { Next::Admit } else { Next::Tick }
                }
                Some(command) = self.commands.recv() => Next::Command(command),
                config = reading(&mut self.reload) => Next::Reloaded(Box::new(config)),
                _ = tick.tick() => Next::Tick,
                next = stop.next() => next,
            };
            if let Next::Stop(signal) = next {
                tracing::info!("stopping on {signal}; the gate and what is open stay");
                break;
            }
            let step = self.step(next, &mut batch);
            telling(FEED_EVERY, FEEDS, || tell_watchdog(&pulse), step).await?;
        }
        self.finish(batch).await;
        Ok(())
    }

    async fn step(&mut self, next: Next, batch: &mut Vec<Candidate>) -> anyhow::Result<()> {
        match next {
            Next::Admit => self.authorizer.admit(std::mem::take(batch)).await,
            Next::Command((request, answer)) => self.obey(request, answer).await,
            Next::Reloaded(config) => self.reloaded(*config).await,
            Next::Tick => self.tick().await?,
            Next::ReadAnew => self.read_anew(None),
            Next::Stop(_) => {}
        }
        Ok(())
    }

    async fn tick(&mut self) -> anyhow::Result<()> {
        self.authorizer.tick().await;
        self.look.look_again(self.settings.gate_plan());
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
            ControlRequest::GrantsRevoke { client, source, service, all } => {
                if !all && client.is_none() && source.is_none() && service.is_none() {
                    ControlResponse::error(&"name what to revoke, or all")
                } else {
                    match self.client_id(client.as_deref()) {
                        Ok(client) => self.revoke(&Selection { client, source, service }).await,
                        Err(unknown) => ControlResponse::error(&unknown),
                    }
                }
            }
            ControlRequest::Reload => return self.read_anew(Some(answer)),
            ControlRequest::ResetReplayWindow { client } => {
                match self.client_id(client.as_deref()) {
                    Ok(client) => {
                        self.authorizer.reset_replay(client, Now::read().realtime);
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
        let (look, plan) = (self.look.clone(), self.settings.gate_plan());
        tokio::spawn(async move {
            if let Some(wrong) = look.look(&plan).await {
                status.gate = wrong;
            }
            // Whoever asked may have gone.
            let _ = answer.send(ControlResponse::Status(Box::new(status)));
        });
    }

    async fn revoke(&mut self, selection: &Selection) -> ControlResponse {
        let now = BootMicros::now();
        match self.authorizer.revoke(selection, "by the administrator").await {
            Ok(gone) => ControlResponse::Revoked(
                gone.iter().map(|grant| self.authorizer.view(grant, now)).collect(),
            ),
            Err(error) => ControlResponse::error(&format!(
                "the kernel did not take it, and it is tried again every second: {}",
                with_causes(&error)
            )),
        }
    }

    fn read_anew(&mut self, asked_by: Option<oneshot::Sender<ControlResponse>>) {
        if let Some(reload) = &mut self.reload {
            // What is being read may be older than the change that this is about.
            reload.reading.abort();
        }
        let path = self.config_path.clone();
        let reading = tokio::task::spawn_blocking(move || Config::load(&path));
        let mut waiting = self.reload.take().map(|reload| reload.asked_by).unwrap_or_default();
        waiting.extend(asked_by);
        self.reload = Some(Reload { reading, asked_by: waiting });
    }

    async fn reloaded(&mut self, config: Result<Config, String>) {
        let asked_by = self.reload.take().map(|reload| reload.asked_by).unwrap_or_default();
        let outcome = match config {
            Ok(config) => self.put_in_force(config).await,
            Err(why) => Err(why),
        };
        let response = match outcome {
            Ok(reloaded) => {
                tracing::info!(
                    clients = reloaded.clients,
                    services = reloaded.services,
                    revoked = reloaded.revoked.len(),
                    "configuration reloaded"
                );
                for setting in &reloaded.restart_needed {
                    tracing::warn!("the new {setting} takes effect at the next start");
                }
                self.last_reload = None;
                self.left_out.clear();
                ControlResponse::Reloaded(reloaded)
            }
            Err(why) => {
                tracing::error!(
                    "the new configuration is refused, the old one stays in force: {why}"
                );
                self.last_reload = Some(why.clone());
                ControlResponse::Error { message: why }
            }
        };
        for answer in asked_by {
            let _ = answer.send(response.clone());
        }
    }

    /// First the gate, which can fail; then the policy, which can't.
    async fn put_in_force(&mut self, config: Config) -> Result<Reloaded, String> {
        if config.server_key != self.server_key {
            return Err("the server's private key has changed; restart the server to use it".into());
        }
        let restart_needed = status::fixed_settings_that_differ(&self.settings, &config.settings);
        // Those keep their old values until then.
        let settings = Settings {
            interfaces: self.settings.interfaces.clone(),
            knock_ports: self.settings.knock_ports.clone(),
            packet_length: self.settings.packet_length,
            freshness: self.settings.freshness,
            private_key_file: self.settings.private_key_file.clone(),
            state_directory: self.settings.state_directory.clone(),
            control_socket: self.settings.control_socket.clone(),
            gate: GateSettings {
                backend: self.settings.gate.backend,
                tools: self.settings.gate.tools.clone(),
                hook: self.settings.gate.hook.clone(),
                ..config.settings.gate.clone()
            },
            ..config.settings.clone()
        };
        let report = self
            .authorizer
            .install(&settings.gate_plan())
            .await
            .map_err(|error| with_causes(&error))?;
        start::tell(&report);
        self.look.installed().await;
        let now = Now::read();
        {
            let mut judge = self.judge.lock();
            judge.policy = Arc::new(config.policy());
            judge.receiver.set_clients(config.pair_secrets());
            judge.receiver.roll(now.realtime);
        }
        self.authorizer.set_max_grants(usize::try_from(settings.max_grants).unwrap_or(usize::MAX));
        let boottime = now.boottime;
        let revoked = match self.authorizer.enforce_policy(now.realtime).await {
            Ok(gone) => gone.iter().map(|grant| self.authorizer.view(grant, boottime)).collect(),
            Err(error) => {
                tracing::error!(
                    "grants that the new configuration forbids can't be withdrawn yet: {}",
                    with_causes(&error)
                );
                Vec::new()
            }
        };
        self.clients = status::ClientCount::of(&config);
        let services = u64::try_from(settings.services.len()).unwrap_or(u64::MAX);
        self.settings = settings;
        Ok(Reloaded {
            clients: self.clients.total,
            services,
            revoked,
            warnings: start::warnings(&report),
            restart_needed,
        })
    }

    /// What was captured before the stop is carried out; then the stores are marked clean.
    async fn finish(mut self, mut batch: Vec<Candidate>) {
        notify(&[NotifyState::Stopping]);
        self.control.abort();
        self.capture.stop();
        while let Ok(candidate) = self.knocks.try_recv() {
            batch.push(candidate);
        }
        if !batch.is_empty() {
            self.authorizer.admit(batch).await;
        }
        self.authorizer.finish();
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

/// Waits for the configuration that is being read; for ever, when none is.
async fn reading(reload: &mut Option<Reload>) -> Result<Config, String> {
    let Some(reload) = reload else { return std::future::pending().await };
    match (&mut reload.reading).await {
        Ok(Ok(config)) => Ok(config),
        Ok(Err(error)) => Err(with_causes(&error)),
        Err(panicked) => Err(format!("reading it failed: {panicked}")),
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

/// The log goes to standard error; under systemd to the journal, with priorities and the target
/// as fields (`journalctl TARGET=audit` is the audit trail).
/// `SPA_LOG` sets what is logged, as in `SPA_LOG=spa_server=debug`.
fn start_log() -> anyhow::Result<()> {
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .with_env_var("SPA_LOG")
        .from_env()
        .context("SPA_LOG is not a log filter")?
        // Whatever else is asked for, the audit trail is kept.
        .add_directive(AUDIT.parse().context("the filter of the audit trail")?);
    // The journal itself knows priorities, which a line on standard error has not.
    let journal = stderr_is_the_journal().then(tracing_journald::layer).and_then(Result::ok);
    let stderr = journal.is_none().then(|| {
        let terminal = std::io::stderr().is_terminal();
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(terminal)
    });
    let started = tracing_subscriber::registry().with(filter).with(journal).with(stderr).try_init();
    started.map_err(|error| anyhow::anyhow!("cannot start the log: {error}"))
}

/// Whether standard error is the stream that systemd says it has connected to the journal; the
/// variable alone is inherited by whoever writes somewhere else.
fn stderr_is_the_journal() -> bool {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else { return false };
    let stderr = std::io::stderr().as_fd().try_clone_to_owned().map(std::fs::File::from);
    stderr.and_then(|stderr| stderr.metadata()).is_ok_and(|metadata| {
        stream.to_str() == Some(&format!("{}:{}", metadata.dev(), metadata.ino()))
    })
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

    #[tokio::test]
    async fn a_reading_that_panicked_is_a_reload_that_is_refused() {
        let reading = tokio::task::spawn_blocking(|| panic!("a bug"));
        let mut reload = Some(Reload { reading, asked_by: Vec::new() });
        let why = super::reading(&mut reload).await.unwrap_err();
        assert!(why.contains("panicked"), "{why}");
    }
}
