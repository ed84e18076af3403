//! The replay window of one client (§6.5).
//!
//! The rules, which hold together through restarts and clocks that jump:
//!
//! - The *floor* is H - 2W, where H is the highest timestamp accepted from the client and W the
//!   freshness window. It never falls.
//! - A knock whose timestamp is not above the floor is refused; a knock above it is refused when
//!   its nonce is in the window.
//! - A nonce leaves the window only when its timestamp is not above the floor, never by age.
//! - A window that is full refuses; it never evicts.

use crate::client::ClientId;
use crate::drop_reason::DropReason;
use crate::item::PortRange;
use crate::packet::Nonce;
use crate::request::MessageType;
use crate::time::{Freshness, UnixMicros};
use alloc::vec::Vec;
use hashbrown::HashMap;

/// What an accepted knock leaves behind; made durable before a port opens, and given back to
/// [`Receiver::restore`](crate::Receiver::restore) after a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Whose knock it was.
    pub client: ClientId,
    /// Its id.
    pub nonce: Nonce,
    /// Its timestamp.
    pub stamp: UnixMicros,
    /// The ports that it closed; empty for an open.
    pub closed: Vec<PortRange>,
}

/// Ports that a client closed, and the timestamp of the knock that did it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Closed {
    /// The ports.
    pub ports: PortRange,
    /// The timestamp; opens that are not later are refused.
    pub stamp: UnixMicros,
}

/// All that a client's replay window holds, for a store that writes itself anew.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WindowState {
    /// No knock with a timestamp up to and including this one is accepted any more.
    pub floor: UnixMicros,
    /// The accepted knocks above the floor.
    pub accepted: Vec<(Nonce, UnixMicros)>,
    /// The closes above the floor.
    pub closed: Vec<Closed>,
}

#[derive(Debug, Default)]
pub(crate) struct ReplayWindow {
    floor: UnixMicros,
    accepted: HashMap<Nonce, UnixMicros>,
    closed: HashMap<PortRange, UnixMicros>,
    /// What lies at or under the floor counts as forgotten at once; taking it out walks the whole
    /// window, so that waits until the window has grown to this.
    prune_at: usize,
}

/// A window that holds fewer is not worth a walk.
const PRUNE_AT_LEAST: usize = 64;

impl ReplayWindow {
    /// Whether a knock of this nonce was accepted and is not forgotten.
    pub(crate) fn holds(&self, nonce: &Nonce) -> bool {
        self.accepted.get(nonce).is_some_and(|stamp| *stamp > self.floor)
    }

    pub(crate) fn floor(&self) -> UnixMicros {
        self.floor
    }

    /// Whether one of these ports was closed by a knock that is not earlier than this.
    pub(crate) fn supersedes(&self, stamp: UnixMicros, ports: &[PortRange]) -> bool {
        // What was closed and what is opened may be a range and a port of it, either way round.
        let superseded = |opened: &PortRange| {
            self.closed.iter().any(|(closed, close)| {
                stamp <= *close && *close > self.floor && closed.overlaps(*opened)
            })
        };
        ports.iter().any(superseded)
    }

    /// Judges a knock and, if nothing speaks against it, enters it: the one atomic step.
    /// `superseded`: it is an open, and the client has changed its mind since.
    #[expect(clippy::too_many_arguments, reason = "each is a fact of its own")]
    pub(crate) fn enter(
        &mut self,
        nonce: Nonce,
        stamp: UnixMicros,
        message_type: MessageType,
        ports: &[PortRange],
        superseded: bool,
        freshness: Freshness,
        capacity: usize,
    ) -> Result<(), DropReason> {
        if self.holds(&nonce) {
            return Err(DropReason::Replay);
        }
        if stamp <= self.floor {
            return Err(DropReason::Floor);
        }
        if superseded {
            return Err(DropReason::Superseded);
        }
        let floor = self.floor.max(floor_under(stamp, freshness));
        if self.accepted.len() >= capacity.min(self.prune_at.max(PRUNE_AT_LEAST)) {
            let stays = self.accepted.values().filter(|accepted| **accepted > floor).count();
            if stays >= capacity {
                return Err(DropReason::WindowFull);
            }
            self.prune(floor);
        }
        self.insert(nonce, stamp, floor);
        if message_type == MessageType::Close {
            for range in ports {
                self.close(*range, stamp);
            }
        }
        Ok(())
    }

    /// Enters what was accepted in an earlier life, unjudged.
    pub(crate) fn restore(&mut self, accepted: &Accepted, freshness: Freshness) {
        let floor = self.floor.max(floor_under(accepted.stamp, freshness));
        if self.accepted.len() >= self.prune_at.max(PRUNE_AT_LEAST) {
            self.prune(floor);
        }
        self.insert(accepted.nonce, accepted.stamp, floor);
        for range in &accepted.closed {
            self.close(*range, accepted.stamp);
        }
    }

    pub(crate) fn restore_close(&mut self, closed: Closed) {
        self.close(closed.ports, closed.stamp);
    }

    /// Enters an id that a window held, whose floor is given back by itself.
    pub(crate) fn restore_nonce(&mut self, nonce: Nonce, stamp: UnixMicros) {
        self.insert(nonce, stamp, self.floor);
    }

    /// Puts the floor where it is told, be it lower than before. Ids above it stay: their time
    /// comes, and whoever recorded those knocks may send them again then.
    pub(crate) fn reset(&mut self, floor: UnixMicros) {
        self.floor = floor;
        self.prune(floor);
        self.forget_closes();
    }

    /// Of closes from a time that was wrong: they would refuse the client until that time.
    pub(crate) fn forget_closes(&mut self) {
        self.closed.clear();
    }

    pub(crate) fn raise_floor(&mut self, floor: UnixMicros) {
        self.floor = self.floor.max(floor);
    }

    pub(crate) fn state(&self) -> WindowState {
        let above = |stamp: &UnixMicros| *stamp > self.floor;
        WindowState {
            floor: self.floor,
            accepted: self
                .accepted
                .iter()
                .map(|(n, s)| (*n, *s))
                .filter(|(_, s)| above(s))
                .collect(),
            closed: self
                .closed
                .iter()
                .map(|(ports, stamp)| Closed { ports: *ports, stamp: *stamp })
                .filter(|closed| above(&closed.stamp))
                .collect(),
        }
    }

    fn prune(&mut self, floor: UnixMicros) {
        self.accepted.retain(|_, accepted| *accepted > floor);
        self.closed.retain(|_, close| *close > floor);
        self.prune_at = self.accepted.len().saturating_mul(2);
    }

    fn insert(&mut self, nonce: Nonce, stamp: UnixMicros, floor: UnixMicros) {
        self.floor = floor;
        if stamp > floor {
            self.accepted.insert(nonce, stamp);
        }
    }

    fn close(&mut self, ports: PortRange, stamp: UnixMicros) {
        let latest = self.closed.entry(ports).or_insert(stamp);
        *latest = stamp.max(*latest);
    }
}

/// The floor that a knock of this timestamp gives.
fn floor_under(stamp: UnixMicros, freshness: Freshness) -> UnixMicros {
    stamp.saturating_sub(freshness.get()).saturating_sub(freshness.get())
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;

    /// What it holds, and not only what it says: nobody may fill the memory of a server that runs for
    /// years, or that reads the list of a long time.
    #[test]
    fn what_lies_under_the_floor_takes_no_memory() {
        let (mut entered, mut restored) = (ReplayWindow::default(), ReplayWindow::default());
        let (freshness, client) = (Freshness::default(), ClientId([1; 32]));
        for second in 1..2_000_u64 {
            let mut nonce = [0; 24];
            nonce[..8].copy_from_slice(&second.to_be_bytes());
            let (nonce, stamp) = (Nonce(nonce), UnixMicros::from_secs(second));
            let port = u16::try_from(second).unwrap();
            let closed = alloc::vec![alloc::format!("tcp/{port}").parse().unwrap()];
            let close = MessageType::Close;
            let result = entered.enter(nonce, stamp, close, &closed, false, freshness, 1_000);
            assert_eq!(result, Ok(()));
            restored.restore(&Accepted { client, nonce, stamp, closed }, freshness);
        }
        for window in [entered, restored] {
            let held = window.state().accepted.len();
            assert_eq!((held, window.state().closed.len()), (120, 120));
            assert_eq!(
                window.floor.distance(UnixMicros::from_secs(1_999)),
                Duration::from_secs(120)
            );
            assert!(window.accepted.len() <= 2 * held, "{}", window.accepted.len());
            assert!(window.closed.len() <= 2 * held, "{}", window.closed.len());
        }
    }
}
