//! Past the queue, for a knock that comes alone.

use super::Candidate;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The short way past the queue, of all capture threads. It is closed until the daemon has started.
#[derive(Default)]
pub struct Shortcut {
    /// Knocks that are in the queue, or were taken from it and are not carried out yet.
    backlog: AtomicUsize,
    carry_out: OnceLock<Box<CarryOut>>,
}

/// Has a knock carried out on the thread that calls, at once; hands it back where somebody else is
/// at the authorizer.
pub type CarryOut = dyn Fn(Candidate) -> Option<Candidate> + Send + Sync;

impl Shortcut {
    /// From now on knocks take it, once and for all.
    pub fn open(&self, carry_out: Box<CarryOut>) {
        // Whoever comes second changes nothing.
        let _ = self.carry_out.set(carry_out);
    }

    /// Whether some came before, and are not carried out yet: nobody may overtake them. For who has
    /// the authorizer for himself.
    pub fn is_busy(&self) -> bool {
        self.backlog.load(Ordering::Acquire) > 0
    }

    /// One more is about to be in the queue.
    pub(super) fn is_behind_one_more(&self) {
        self.backlog.fetch_add(1, Ordering::AcqRel);
    }

    /// So many of the queue were carried out.
    pub fn caught_up(&self, knocks: usize) {
        self.backlog.fetch_sub(knocks, Ordering::AcqRel);
    }

    pub(super) fn take(&self, candidate: Candidate) -> Option<Candidate> {
        match self.carry_out.get().filter(|_| !self.is_busy()) {
            Some(carry_out) => carry_out(candidate),
            None => Some(candidate),
        }
    }
}
