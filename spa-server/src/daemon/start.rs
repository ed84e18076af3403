//! From a configuration to a server that captures.

use super::announce::{self, Keys};
use super::cutter::Cutter;
use super::prefiltered::Prefiltered;
use super::refuse;
use super::standing::{LeftBehind, Restorations, Standing};
use super::watch::Watch;
use super::{ANNOUNCEMENTS, Command, Daemon, Inbox, QUEUE, QueueDepth};
use crate::authorizer::Authorizer;
use crate::capture::{Capture, CaptureSettings};
use crate::causes::with_causes;
use crate::clock::{BootMicros, Now};
use crate::config::{Config, Problem, Settings, judge_state_directory};
use crate::connections::Connections;
use crate::control::{self, ControlResponse};
use crate::counters::Counters;
use crate::gate::{Gate as _, GateError, InstallReport};
use crate::grants::{FileGrantStore, Grant};
use crate::helper::{Helper, RemoteGate};
use crate::pipeline::{Judge, Pipeline, SharedJudge, Shortcut};
use crate::replay_store::{self, BootId, Condition, FileStore, Mark, ReplayStore as _, Snapshot};
use crate::state_lock::StateLock;
use crate::trial::{Trial, TrialFile, TrialState, plan_of, unconfirmable};
use anyhow::Context as _;
use spa_proto::{Freshness, Receiver, Settings as ReceiverSettings};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// How long a start waits for whoever works on the state directory.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

impl Daemon {
    /// The gate comes last. A server that can't capture, or can't be talked to, must not hide
    /// what nobody could open; what is captured meanwhile waits in the queue.
    pub(super) async fn start(
        config: Config,
        left_out: Vec<Problem>,
        helper: Option<&Path>,
    ) -> anyhow::Result<(Self, Inbox)> {
        for problem in &left_out {
            tracing::error!("this client is left out until it is mended: {problem}");
        }
        let now = Now::read();
        let settings = config.settings.clone();
        let lock = lock_state(&settings.state_directory)?;
        let store = announce::open_store(&settings.state_directory, now.realtime);
        // Another daemon may have taken keys in before it gave the lock away.
        let (mut config, left_out) = if store.enrolments().records == config.enrolment_records {
            (config, left_out)
        } else {
            Config::load_sound_clients(&config.path)?
        };
        let settings =
            Settings { state_directory: settings.state_directory, ..config.settings.clone() };
        let boot = BootId::read().with_context(|| format!("cannot read {}", BootId::SOURCE))?;
        // First of all that has threads, which must not keep what it takes.
        let snap_length = CaptureSettings::snap_length(settings.packet_length.packet());
        let prefilter = Prefiltered::load(&settings, snap_length, config.count.total);
        // Before this process confines itself, which leaves it its state alone to write.
        let listener = control::bind(&settings.control_socket)?;
        let Helper { gate, connections, passed_over, gone } =
            Helper::start(&config.path, &settings.state_directory, helper)?;
        let backend = gate.backend();
        for one in passed_over {
            tracing::info!("this back-end of the gate is passed over: {one}");
        }
        tracing::info!("the back-end of the gate is {backend}: {}", backend.closing());
        let gate = Arc::new(gate);

        let mut receiver = Receiver::new(
            ReceiverSettings {
                length: settings.packet_length,
                freshness: settings.freshness,
                ..ReceiverSettings::default()
            },
            config.mask(),
        );
        keep_secrets(&config, &settings.state_directory);
        config.instruct(&mut receiver);
        let roster = config.roster().clone();
        let replay = load_replay_store(&settings, boot, &mut receiver, now);
        receiver.roll(now.realtime);

        let counters = Arc::new(Counters::default());
        let policy = config.policy();
        let configured = Arc::clone(&policy);
        let mut judge = Judge::new(receiver, policy, settings.freshness, now);
        let (refused_file, refused) = refuse::load(&settings, boot, now.boottime);
        judge.refused = refused;
        let judge = match prefilter.told() {
            Some(told) => SharedJudge::telling(judge, told),
            None => SharedJudge::new(judge),
        };

        let (queue, knocks) = mpsc::channel(QUEUE);
        let (announced, announcements) = mpsc::channel(ANNOUNCEMENTS);
        let capture_settings = CaptureSettings {
            interfaces: settings.interfaces.clone(),
            ports: settings.knock_ports.clone(),
            packet_length: settings.packet_length.packet(),
            buffer_bytes: CaptureSettings::BUFFER_BYTES,
            kernel_filter: prefilter.filter(),
        };
        let shortcut = Arc::<Shortcut>::default();
        let capture = Capture::start(&capture_settings, |_| {
            let (judge, counters) = (judge.clone(), Arc::clone(&counters));
            Pipeline::new(judge, counters, queue.clone(), announced.clone(), Arc::clone(&shortcut))
        })?;

        let trial_file = TrialFile::new(&settings.state_directory, boot);
        let (standing, mut trial) = match trial_file.read(BootMicros::now()) {
            TrialState::None => (Standing::Guards, None),
            TrialState::Running(trial) => (Standing::Guards, Some(trial)),
            TrialState::Lapsed => (after_a_trial(&gate, &trial_file).await, None),
        };
        let plan = plan_of(&settings, trial, BootMicros::now());
        match standing.absence() {
            None => {
                // The configuration may be another one than it was put on trial with: by this one
                // nobody has come in yet.
                trial = trial.map(|running| Trial { stands_since: None, ..running });
                let announced =
                    trial.map(|trial| trial_file.announce(Some(trial), BootMicros::now()));
                let installed = gate.install(&plan).await;
                let mut report = installed.context("the gate can't be installed")?;
                match announced {
                    None => {}
                    Some(Ok(announced)) => {
                        let (stands, recorded) = announced.stands(BootMicros::now());
                        trial = stands;
                        report.warnings.extend(recorded.err().map(|error| unconfirmable(&error)));
                    }
                    Some(Err(error)) => report.warnings.push(unconfirmable(&error)),
                }
                tell(&report);
            }
            Some(absence) => {
                tracing::error!("the gate is {absence}");
                if let Err(error) = trial_file.lapse() {
                    tracing::error!("{}", with_causes(&error));
                }
            }
        }

        let (grant_log, grants) = load_grants(&settings.state_directory, &boot.to_string());
        let max_grants = usize::try_from(settings.max_grants).unwrap_or(usize::MAX);
        let mut authorizer = Authorizer::new(
            judge.clone(),
            Arc::clone(&counters),
            Arc::clone(&gate),
            replay,
            grant_log,
            max_grants,
        );
        let mut left_behind = None;
        if standing.absence().is_some()
            && let Err(error) = authorizer.remove_gate().await
        {
            let error = with_causes(&error);
            tracing::error!("what is left of the gate can't be removed: {error}");
            left_behind = Some(LeftBehind::new(error));
        }
        authorizer.resume(grants, Now::read()).await.context("what is open can't be taken over")?;

        // Only now: what is admitted by the new gate too is admitted without a gap.
        let left = gate.remove_others().await;
        for complaint in left {
            tracing::warn!("{complaint}");
        }

        let lists = Arc::new(connections);
        let connections: Arc<dyn Connections> = Arc::clone(&lists) as _;
        let (watch, alarms) =
            Watch::start(Arc::clone(&gate), authorizer.needed(), Arc::clone(&connections), &plan);
        watch.rest(standing.absence().is_some());
        let cutter = Cutter::start(gate, connections, standing.absence().is_none());

        let (commands_in, commands) = mpsc::channel::<Command>(16);
        let control = tokio::spawn(control::serve(listener, move |request| {
            let commands = commands_in.clone();
            async move {
                let (answer, answered) = oneshot::channel();
                let stopping = || ControlResponse::error(&"the daemon is stopping");
                if commands.send((request, answer)).await.is_err() {
                    return stopping();
                }
                answered.await.unwrap_or_else(|_| stopping())
            }
        }));

        let inbox = Inbox {
            knocks,
            announcements,
            commands,
            alarms,
            reading: None,
            helper_gone: gone,
            shortcut,
        };
        let daemon = Self {
            clients: config.count,
            config_path: config.path,
            settings,
            keys: Keys { server: config.keys.clone(), roster, store },
            started: (now.realtime, Instant::now()),
            judge,
            configured,
            counters,
            authorizer,
            backend,
            prefilter,
            capture,
            queue: QueueDepth::default(),
            control,
            reload: None,
            reading: None,
            lists,
            watch,
            cutter,
            standing,
            left_behind,
            trial,
            trial_stepped: false,
            trial_file,
            refused_file,
            restored: Restorations::default(),
            unmended: None,
            uncut: None,
            left_out: left_out.iter().map(ToString::to_string).collect(),
            last_reload: None,
            _lock: lock,
        };
        Ok((daemon, inbox))
    }
}

/// Whether a gate is to stand whose trial has lapsed by the file: not if somebody had ordered a trial, or
/// nothing stands anyway. Whoever has damaged the file is not to lock anybody out behind a gate that
/// nobody serves.
async fn after_a_trial(gate: &RemoteGate, file: &TrialFile) -> Standing {
    let Err(GateError::NotOrdered(why)) = gate.remove().await else { return Standing::Lapsed };
    tracing::error!(
        "the state directory says that a trial of the gate has lapsed; it stands: {why}"
    );
    let now = BootMicros::now();
    if let Err(error) = file.announce(None, now).map(|announced| announced.stands(now)) {
        tracing::error!("{}", with_causes(&error));
    }
    Standing::Guards
}

/// Says in the log what an installation of the gate found.
pub(super) fn tell(report: &InstallReport) {
    for warning in warnings(report) {
        tracing::warn!("{warning}");
    }
    if report.connections_kept > 0 {
        tracing::info!("{} established connections were kept", report.connections_kept);
    }
}

/// What an administrator should know of an installation.
pub(super) fn warnings(report: &InstallReport) -> Vec<String> {
    let busy = report.busy_knock_ports.iter().map(ToString::to_string);
    busy.chain(report.warnings.iter().cloned()).collect()
}

/// The next start is quicker by it, and nothing depends on it.
pub(super) fn keep_secrets(config: &Config, state_directory: &Path) {
    if let Some(why) = &config.kept.unusable {
        tracing::warn!(
            "the pair secrets of the last run can't be used, and were derived anew: {why}"
        );
    }
    if let Err(error) = config.keep_secrets(state_directory) {
        let error = with_causes(&error);
        tracing::warn!("pair secrets can't be kept, so that the next start takes longer: {error}");
    }
}

/// Two servers on one state directory would forget each other's knocks.
fn lock_state(directory: &Path) -> anyhow::Result<StateLock> {
    // A command that works on the gate takes some seconds at the most.
    let lock = StateLock::await_free(directory, LOCK_PATIENCE)?;
    // Whoever can write there lets himself in, by a list of grants or an old replay store.
    judge_state_directory(directory).context("the state directory can't be trusted")?;
    Ok(lock)
}

/// Gives the receiver what was accepted before, and a barrier when some of that may be lost.
fn load_replay_store(
    settings: &Settings,
    boot: BootId,
    receiver: &mut Receiver,
    now: Now,
) -> FileStore {
    let path = replay_store::path(&settings.state_directory);
    let (mut store, snapshot, condition) = FileStore::load(&path, boot);
    snapshot.restore(receiver);
    // What is lost may have been accepted under another freshness window.
    let window = settings.freshness.get().max(snapshot.freshness.min(Freshness::MAX));
    let ahead = now.realtime.saturating_add(window);
    let furthest = now.realtime.saturating_add(Freshness::MAX);
    if snapshot.barrier > furthest {
        // The clock was set back: see `Judge::watch_clock`.
        receiver.set_barrier(furthest);
    }
    if condition.needs_barrier() {
        receiver.set_barrier(ahead);
        let why = match condition {
            Condition::Missing => "there is no replay store".to_owned(),
            Condition::UncleanBoot => "the machine went down without a clean stop".to_owned(),
            Condition::Damaged(what) => format!("the replay store is damaged ({what})"),
            Condition::Whole => String::new(),
        };
        tracing::warn!(
            "{why}: for {} s no knock is accepted, since some may have been accepted before",
            window.as_secs()
        );
    }
    if let Err(error) = store.rewrite(&Snapshot::of(receiver), Mark::InUse) {
        // The gate stands all the same, and the store is tried again every second.
        tracing::error!("{}", with_causes(&error));
    }
    store
}

/// Grants are a convenience after a restart; without them what is open is closed.
fn load_grants(directory: &Path, boot: &str) -> (Option<FileGrantStore>, Vec<Grant>) {
    match FileGrantStore::open(directory, boot) {
        Ok((store, loaded)) => {
            if loaded.damaged > 0 {
                tracing::warn!("{} lines of the list of grants were damaged", loaded.damaged);
            }
            (Some(store), loaded.grants)
        }
        Err(error) => {
            tracing::error!("a restart will close all grants: {}", with_causes(&error));
            (None, Vec::new())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_state_directory_that_others_can_write_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("state");
        drop(lock_state(&directory).unwrap());
        for mode in [0o770, 0o702, 0o1777] {
            set_permissions(&directory, Permissions::from_mode(mode)).unwrap();
            let error = format!("{:#}", lock_state(&directory).unwrap_err());
            assert!(error.contains("chmod go-w"), "{error}");
        }
        set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();
        lock_state(&directory).unwrap();
    }
}
