//! When to probe and when to knock again. Pure: it knows spans, no clock and no sockets.

use core::time::Duration;

const FIRST_GAP: Duration = Duration::from_millis(5);
const LARGEST_GAP: Duration = Duration::from_millis(250);
const FIRST_KNOCK_AGAIN: Duration = Duration::from_secs(1);
const KNOCK_AGAIN: Duration = Duration::from_secs(2);

/// The gaps between the connection attempts at one address: 5 ms, doubling, 250 ms at most.
///
/// A SYN that meets the port still closed is dropped, and the kernel sends it again only after a
/// second: so new attempts are made early, and the old ones left to ripen (on a path of 300 ms
/// each attempt needs 300 ms).
#[derive(Debug, Clone)]
pub(crate) struct ProbeGaps(Duration);

impl Default for ProbeGaps {
    fn default() -> Self {
        Self(FIRST_GAP)
    }
}

impl ProbeGaps {
    /// How long to wait before the next attempt.
    pub(crate) fn next_gap(&mut self) -> Duration {
        let gap = self.0;
        self.0 = gap.saturating_mul(2).min(LARGEST_GAP);
        gap
    }
}

/// How long after the start knock number `round` leaves: 0, 1, 3, 5, 7 ... seconds. A server
/// that has got none of them needs no more; one that has got one takes the next as a refresh.
pub(crate) fn knock_at(round: u32) -> Duration {
    match round.checked_sub(1) {
        None => Duration::ZERO,
        Some(again) => FIRST_KNOCK_AGAIN.saturating_add(KNOCK_AGAIN.saturating_mul(again)),
    }
}

/// The knock port of each round: all of them in turn, the preferred one first.
pub(crate) fn rotated<T: Copy>(ports: &[T], round: u32) -> Option<T> {
    let length = u32::try_from(ports.len()).ok()?;
    let at = round.checked_rem(length)?;
    ports.get(usize::try_from(at).ok()?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_begin_densely_and_thin_out() {
        let mut gaps = ProbeGaps::default();
        let seen: Vec<u128> = (0..9).map(|_| gaps.next_gap().as_millis()).collect();
        assert_eq!(seen, [5, 10, 20, 40, 80, 160, 250, 250, 250]);
    }

    #[test]
    fn knocks_are_repeated_after_one_second_and_then_every_two() {
        let seen: Vec<u64> = (0..6).map(|round| knock_at(round).as_secs()).collect();
        assert_eq!(seen, [0, 1, 3, 5, 7, 9]);
        assert!(knock_at(u32::MAX) > knock_at(6));
    }

    #[test]
    fn every_knock_port_gets_its_turn() {
        let seen: Vec<_> = (0..5).map(|round| rotated(&[62201, 53, 443], round)).collect();
        assert_eq!(seen, [Some(62201), Some(53), Some(443), Some(62201), Some(53)]);
        assert_eq!(rotated(&[1], u32::MAX), Some(1));
        assert_eq!(rotated::<u16>(&[], 0), None);
    }
}
