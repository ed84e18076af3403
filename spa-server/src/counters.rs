//! What happened, counted: cheap enough to be always on.

use crate::enrolment::Rejection;
use crate::frame::FrameError;
use crate::policy::Refusal;
use spa_proto::DropReason;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a datagram opened nothing: every way there is, over all stages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dropped {
    /// The frame holds no whole UDP datagram.
    Frame(FrameError),
    /// The receiver dropped it.
    Protocol(DropReason),
    /// Policy or limits refused it.
    Policy(Refusal),
    /// It announces a key that is not taken.
    Announcement(Rejection),
    /// The same packet was just seen on another interface: a bridge and its member, say.
    Duplicate,
    /// Too many authentic knocks wait already.
    Overloaded,
}

const DUPLICATE: &str = "duplicate";
const OVERLOADED: &str = "overloaded";

impl Dropped {
    /// The reason's name in `status` and the log.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Frame(error) => error.as_str(),
            Self::Protocol(reason) => reason.as_str(),
            Self::Policy(refusal) => refusal.as_str(),
            Self::Announcement(rejection) => rejection.as_str(),
            Self::Duplicate => DUPLICATE,
            Self::Overloaded => OVERLOADED,
        }
    }
}

/// All counters of a running server.
#[derive(Debug)]
pub struct Counters {
    /// Datagrams, and what is none, that the kernel's filter let through.
    pub received: AtomicU64,
    /// Knocks that passed every check and entered the replay window.
    pub accepted: AtomicU64,
    /// Grants that the kernel took, refreshed ones included.
    pub opened: AtomicU64,
    /// Grants closed before their time.
    pub closed: AtomicU64,
    /// Accepted knocks that the kernel or the store failed.
    pub failed: AtomicU64,
    /// Datagrams that the kernel dropped because the capture buffer was full.
    pub kernel_drops: AtomicU64,
    protocol: Vec<AtomicU64>,
    others: BTreeMap<&'static str, AtomicU64>,
}

impl Default for Counters {
    fn default() -> Self {
        let frame = FrameError::ALL.iter().map(|error| error.as_str());
        let policy = Refusal::ALL.iter().copied();
        let announcements = Rejection::ALL.iter().copied();
        let others = frame.chain(policy).chain(announcements).chain([DUPLICATE, OVERLOADED]);
        Self {
            received: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            kernel_drops: AtomicU64::new(0),
            protocol: DropReason::ALL.iter().map(|_| AtomicU64::new(0)).collect(),
            others: others.map(|name| (name, AtomicU64::new(0))).collect(),
        }
    }
}

impl Counters {
    /// Counts a drop.
    pub fn dropped_one(&self, dropped: &Dropped) {
        let counter = match dropped {
            Dropped::Protocol(reason) => self.protocol.get(reason.index()),
            other => self.others.get(other.as_str()),
        };
        if let Some(counter) = counter {
            count(counter);
        }
    }

    /// Every drop reason there is with its count, those never met too.
    pub fn dropped(&self) -> BTreeMap<String, u64> {
        let protocol =
            DropReason::ALL.iter().map(|reason| reason.as_str()).zip(self.protocol.iter());
        let others = self.others.iter().map(|(name, counter)| (*name, counter));
        protocol.chain(others).map(|(name, counter)| (name.into(), read(counter))).collect()
    }
}

/// Adds one.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The present value.
pub fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_drop_is_counted_under_its_own_name() {
        let counters = Counters::default();
        let names = counters.dropped().len();
        let drops = FrameError::ALL
            .iter()
            .map(|error| Dropped::Frame(*error))
            .chain(DropReason::ALL.iter().map(|reason| Dropped::Protocol(*reason)))
            .chain([Dropped::Policy(Refusal::Disabled), Dropped::Duplicate, Dropped::Overloaded]);
        for dropped in drops {
            counters.dropped_one(&dropped);
            assert_eq!(counters.dropped().get(dropped.as_str()), Some(&1), "{dropped:?}");
        }
        assert_eq!(
            names,
            FrameError::ALL.len()
                + DropReason::ALL.len()
                + Refusal::ALL.len()
                + Rejection::ALL.len()
                + 2,
            "two reasons share a name"
        );
    }
}
