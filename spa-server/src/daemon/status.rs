//! What the server tells about itself.

use super::{Daemon, QUEUE};
use crate::capture::InterfaceState;
use crate::clock::Now;
use crate::config::Settings;
use crate::control::{InterfaceStatus, QueueStatus, Status, StatusClients};
use crate::counters::read;
use crate::gate::{Mode, Refusal};
use crate::grants::client_of_digits;
use spa_proto::{ClientId, DropReason};
use std::collections::BTreeSet;
use std::sync::Arc;

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

impl Daemon {
    pub(super) fn status(&self) -> Status {
        let Now { realtime: now, boottime } = Now::read();
        let barrier = self.judge.lock().receiver.barrier();
        let interfaces = self.capture.health().into_iter().map(|one| InterfaceStatus {
            name: one.name,
            state: match one.state {
                InterfaceState::Running => "running".into(),
                InterfaceState::Retrying { error } => error,
                InterfaceState::Stopped => "stopped".into(),
            },
        });
        let gate = if let Some(absence) = self.standing.absence() {
            match self.leftover() {
                Some(left) => format!("{absence}; but {left}"),
                None => absence.to_owned(),
            }
        } else if self.authorizer.is_unreconciled() {
            "the kernel may admit something else than is listed; mending is tried every second"
                .to_owned()
        } else if let Some(fight) = self.restored.fight() {
            format!("installed, but {fight}")
        } else {
            "installed".to_owned()
        };
        let store = if self.authorizer.is_store_broken() {
            "can't be written: nothing opens; it is tried again every second"
        } else {
            "writable"
        };
        let in_kernel = self.prefilter.dropped();
        let mut dropped = self.counters.dropped();
        for (reason, more) in [
            (DropReason::UnknownTag, in_kernel.unknown_tag),
            (DropReason::Length, in_kernel.length),
        ] {
            let count = dropped.entry(reason.as_str().to_owned()).or_default();
            *count = count.saturating_add(more);
        }
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            started: self.started.0,
            uptime: self.started.1.elapsed().as_secs(),
            interfaces: interfaces.collect(),
            knock_ports: self.settings.knock_ports.clone(),
            backend: self.backend,
            mode: match self.settings.gate.mode {
                Mode::Guard => "guard".into(),
                Mode::Open => "open".into(),
            },
            refuse: match self.settings.gate.refuse {
                Refusal::Drop => "drop".into(),
                Refusal::Reject => "reject".into(),
            },
            guards: self.standing.absence().is_none(),
            gate,
            trial_seconds_left: self
                .trial
                .map(|trial| u64::from(trial.seconds_left(boottime).unwrap_or(0))),
            restored: self.restored.count,
            last_restored: self.restored.last,
            replay_store: store.into(),
            clients: StatusClients {
                total: count(self.clients.total),
                enabled: count(self.clients.enabled),
            },
            grants: count(self.authorizer.count(boottime)),
            refused: count(self.judge.lock().refused.iter(boottime).count()),
            received: read(&self.counters.received)
                .saturating_add(in_kernel.unknown_tag)
                .saturating_add(in_kernel.length),
            prefilter: self.prefilter.status(),
            accepted: read(&self.counters.accepted),
            opened: read(&self.counters.opened),
            closed: read(&self.counters.closed),
            failed: read(&self.counters.failed),
            dropped,
            kernel_drops: read(&self.counters.kernel_drops),
            queue: QueueStatus {
                waiting: count(self.queue.waiting),
                deepest: count(self.queue.deepest),
                limit: count(QUEUE),
            },
            latency: self.authorizer.latencies.status(),
            barrier_until: (barrier >= now).then_some(barrier),
            left_out: self.left_out.clone(),
            last_reload: self.last_reload.clone(),
        }
    }

    /// The keys of the client of that name, or with those digits; `None` for none.
    pub(super) fn client_ids(&self, name: Option<&str>) -> Result<Option<Vec<ClientId>>, String> {
        let Some(name) = name else { return Ok(None) };
        if let Some(client) = client_of_digits(name) {
            return Ok(Some(vec![client]));
        }
        let policy = Arc::clone(&self.judge.lock().policy);
        let mut ids = policy.clients_named(name).ok_or_else(|| {
            format!("there is no client {name:?}; `spa-server client list` shows all")
        })?;
        // What came in under a key before is the same client's.
        let roster = &self.keys.roster;
        let introductions: BTreeSet<_> =
            ids.iter().filter_map(|id| Some(roster.member(id)?.introduction)).collect();
        let enrolments = self.keys.store.enrolments();
        let former = introductions.iter().filter_map(|it| enrolments.of(it));
        let former: Vec<ClientId> =
            former.flat_map(|keys| keys.former.iter().map(|key| (*key).into())).collect();
        ids.extend(former);
        Ok(Some(ids))
    }
}

/// The settings that differ and that a running server can't change.
pub(super) fn fixed_settings_that_differ(old: &Settings, new: &Settings) -> Vec<String> {
    [
        ("interfaces", old.interfaces != new.interfaces),
        ("knock-ports", old.knock_ports != new.knock_ports),
        ("plaintext-length", old.packet_length != new.packet_length),
        ("freshness", old.freshness != new.freshness),
        ("state-directory", old.state_directory != new.state_directory),
        ("control-socket", old.control_socket != new.control_socket),
        ("prefilter", old.prefilter != new.prefilter),
        ("gate.backend", old.gate.backend != new.gate.backend),
        ("gate.tools", old.gate.tools != new.gate.tools),
        ("gate.hook", old.gate.hook != new.gate.hook),
    ]
    .into_iter()
    .filter(|(_, differs)| *differs)
    .map(|(name, _)| name.to_owned())
    .collect()
}
