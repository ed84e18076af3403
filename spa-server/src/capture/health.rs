//! What a capture thread tells the rest of the daemon about itself.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How one interface fares.
#[derive(Debug, Clone)]
pub struct InterfaceHealth {
    /// Its name, or `any`.
    pub name: String,
    /// Whether datagrams come in.
    pub state: InterfaceState,
    /// When the thread last went round its loop: less than two seconds ago, unless its
    /// [`Sink`](super::Sink) blocks.
    pub heartbeat: Instant,
}

/// Whether datagrams come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InterfaceState {
    /// They do.
    Running,
    /// They don't; the interface is opened again and again until it works.
    Retrying {
        /// What went wrong last.
        error: String,
    },
    /// The thread has ended: it was told to, or its sink panicked.
    Stopped,
}

/// Tells whether the threads of a [`Capture`](super::Capture) go round their loops.
#[derive(Debug, Clone)]
pub struct Pulse(pub(super) Vec<Arc<Shared>>);

impl Pulse {
    /// Whether each of them did so in the last `time`.
    pub fn is_younger_than(&self, time: Duration) -> bool {
        self.0.iter().all(|shared| shared.health().heartbeat.elapsed() < time)
    }
}

/// What a thread and its [`Capture`](super::Capture) share.
#[derive(Debug)]
pub(super) struct Shared {
    name: String,
    stop: AtomicBool,
    state: Mutex<InterfaceState>,
    started: Instant,
    /// Milliseconds after `started`.
    heartbeat: AtomicU64,
}

impl Shared {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            stop: AtomicBool::new(false),
            state: Mutex::new(InterfaceState::Running),
            started: Instant::now(),
            heartbeat: AtomicU64::new(0),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    pub(super) fn beat(&self) {
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heartbeat.store(millis, Ordering::Relaxed);
    }

    /// Sets the state and returns the one before.
    pub(super) fn enter(&self, state: InterfaceState) -> InterfaceState {
        std::mem::replace(&mut *self.state(), state)
    }

    pub(super) fn health(&self) -> InterfaceHealth {
        let millis = self.heartbeat.load(Ordering::Relaxed);
        InterfaceHealth {
            name: self.name.clone(),
            state: self.state().clone(),
            heartbeat: self.started + Duration::from_millis(millis),
        }
    }

    /// A thread that panicked while it held the lock left a whole value behind.
    fn state(&self) -> MutexGuard<'_, InterfaceState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
