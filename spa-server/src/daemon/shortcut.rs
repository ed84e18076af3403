//! The short way of a lone knock: the capture thread that has read it carries it out itself, where
//! nobody else is at it. It is spared the time that another thread takes to wake up, a fifth of what a
//! knock needs.
//!
//! A capture thread waits for nothing but the write of the store and the kernel's answer. Where a step
//! can't go on (it needs a tool of the system, say), what is left of it goes to the runtime.

use super::Daemon;
use crate::pipeline::{Candidate, Shortcut};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc};

/// What is left of a step, and has the daemon until it is done.
pub(super) type Unfinished = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What several threads do their steps with, one after another.
pub(super) struct Shared<T> {
    owner: Arc<Mutex<T>>,
    leave: mpsc::Sender<Unfinished>,
    left: mpsc::Receiver<Unfinished>,
}

impl<T: Send + 'static> Shared<T> {
    pub(super) fn new(shared: T) -> Self {
        // Only whoever has it can leave something of a step, so there is one at the most.
        let (leave, left) = mpsc::channel(1);
        Self { owner: Arc::new(Mutex::new(shared)), leave, left }
    }

    /// Has it for itself: what was left of a step is done first.
    pub(super) async fn lock(&mut self) -> OwnedMutexGuard<T> {
        loop {
            let owner = Arc::clone(&self.owner);
            tokio::select! {
                biased;
                unfinished = self.unfinished() => unfinished.await,
                guard = owner.lock_owned() => return guard,
            }
        }
    }

    /// Waits for what somebody leaves of a step.
    pub(super) async fn unfinished(&mut self) -> Unfinished {
        match self.left.recv().await {
            Some(unfinished) => unfinished,
            // It can't be: the other end is here as well.
            None => std::future::pending().await,
        }
    }
}

impl Shared<Daemon> {
    /// From now on capture threads may carry out what they read.
    pub(super) fn open_shortcut(&self, shortcut: &Arc<Shortcut>) {
        let (daemon, leave) = (Arc::downgrade(&self.owner), self.leave.clone());
        let queue = Arc::downgrade(shortcut);
        let runtime = Handle::current();
        let carry_out = move |candidate: Candidate| {
            let Some(daemon) = daemon.upgrade() else { return Some(candidate) };
            let Ok(mut daemon) = daemon.try_lock_owned() else { return Some(candidate) };
            // Who has been taken from the queue meanwhile goes first. And a first knock under a new
            // key waits for the disk.
            let is_overtaking = queue.upgrade().is_none_or(|queue| queue.is_busy());
            if is_overtaking || daemon.keys.roster.pending(&candidate.knock.client).is_some() {
                return Some(candidate);
            }
            let step = async move { daemon.admit(vec![candidate]).await };
            begin(Box::pin(step), &runtime, &leave);
            None
        };
        shortcut.open(Box::new(carry_out));
    }
}

/// Does of a step what needs no waiting, and leaves the rest.
fn begin(mut step: Unfinished, runtime: &Handle, leave: &mpsc::Sender<Unfinished>) {
    let _whole_or_not_at_all = EndsWithAPanic;
    // For what it has to wait for.
    let _entered = runtime.enter();
    if step.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
        // There is room, and whoever takes it has the other end for as long as the daemon lives.
        let _ = leave.try_send(step);
    }
}

/// A panic in the middle of a step ends the process, as one in the runtime's thread does: nobody goes
/// on with what it has left.
struct EndsWithAPanic;

impl Drop for EndsWithAPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc as threads;
    use std::time::Duration;

    /// Begins, on a thread of its own, a step that adds one before and after it has waited.
    fn begin_elsewhere(shared: &Shared<u32>, wait: Option<Duration>) {
        let (daemon, leave) = (Arc::clone(&shared.owner), shared.leave.clone());
        let runtime = Handle::current();
        let (done, is_done) = threads::channel();
        std::thread::spawn(move || {
            let mut daemon = daemon.try_lock_owned().unwrap();
            let step = async move {
                *daemon += 1;
                if let Some(wait) = wait {
                    tokio::time::sleep(wait).await;
                    *daemon += 1;
                }
            };
            begin(Box::pin(step), &runtime, &leave);
            done.send(()).unwrap();
        });
        is_done.recv_timeout(Duration::from_secs(20)).unwrap();
    }

    #[tokio::test]
    async fn a_step_that_need_not_wait_is_done_where_it_began() {
        let mut shared = Shared::new(0);
        begin_elsewhere(&shared, None);
        assert!(shared.left.try_recv().is_err());
        assert_eq!(*shared.lock().await, 1);
    }

    #[tokio::test]
    async fn what_is_left_of_a_step_is_done_before_the_next_one() {
        let mut shared = Shared::new(0);
        begin_elsewhere(&shared, Some(Duration::from_millis(20)));
        assert!(shared.owner.try_lock().is_err());
        assert_eq!(*shared.lock().await, 2);
    }

    #[tokio::test]
    async fn what_is_left_of_a_step_needs_no_next_one() {
        let mut shared = Shared::new(0);
        begin_elsewhere(&shared, Some(Duration::from_millis(20)));
        shared.unfinished().await.await;
        assert_eq!(*shared.owner.try_lock().unwrap(), 2);
    }
}
