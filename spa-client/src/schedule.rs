//! When to probe and when to knock again. Pure: it knows spans, no clock and no sockets.

use core::net::SocketAddr;
use core::time::Duration;

/// A server has a knock's port open after about this. A SYN that comes before is lost.
pub(crate) const FIRST_ATTEMPT: Duration = Duration::from_millis(1);
/// Between the first attempts at one address and at the next (RFC 8305, section 5).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);
const GAP_WHERE_OPEN: Duration = Duration::from_millis(100);
const LARGEST_GAP: Duration = Duration::from_millis(250);
const FIRST_KNOCK_AGAIN: Duration = Duration::from_secs(1);
const KNOCK_AGAIN: Duration = Duration::from_secs(2);

/// The gaps between the connection attempts at one address: 1 ms, then three times as long each
/// time, 250 ms at most.
///
/// A SYN that meets the port still closed is dropped, and the kernel sends it again only after a
/// second: so new attempts are made early, and the old ones left to ripen (on a path of 300 ms
/// each attempt needs 300 ms).
#[derive(Debug, Clone)]
pub(crate) struct ProbeGaps(Duration);

impl Default for ProbeGaps {
    fn default() -> Self {
        Self(FIRST_ATTEMPT)
    }
}

impl ProbeGaps {
    /// For a port that is open already, as far as is known: only a SYN that was lost needs another.
    pub(crate) const fn where_open() -> Self {
        Self(GAP_WHERE_OPEN)
    }

    /// How long to wait before the next attempt.
    pub(crate) fn next_gap(&mut self) -> Duration {
        let gap = self.0;
        self.0 = gap.saturating_mul(3).min(LARGEST_GAP);
        gap
    }
}

/// How long after the start the address with this place in the order is tried first: so that one
/// connection is made where the favourite address works, and little is lost where it does not.
pub(crate) fn address_at(place: usize) -> Duration {
    NEXT_ADDRESS.saturating_mul(u32::try_from(place).unwrap_or(u32::MAX))
}

/// The order in which addresses are tried: the system's, with the families in turn (RFC 8305,
/// section 4), so that a family that leads nowhere costs one step.
pub(crate) fn in_turn(addresses: impl IntoIterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let addresses: Vec<SocketAddr> = addresses.into_iter().collect();
    let Some(favourite) = addresses.first().map(SocketAddr::is_ipv6) else { return addresses };
    let (ours, others): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == favourite);
    let mut rest = others.into_iter();
    let mut ordered: Vec<SocketAddr> =
        ours.into_iter().flat_map(|address| [Some(address), rest.next()]).flatten().collect();
    ordered.extend(rest);
    ordered
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
        assert_eq!(seen, [1, 3, 9, 27, 81, 243, 250, 250, 250]);
        assert_eq!(ProbeGaps::where_open().next_gap().as_millis(), 100);
    }

    #[test]
    fn knocks_are_repeated_after_one_second_and_then_every_two() {
        let seen: Vec<u64> = (0..6).map(|round| knock_at(round).as_secs()).collect();
        assert_eq!(seen, [0, 1, 3, 5, 7, 9]);
        assert!(knock_at(u32::MAX) > knock_at(6));
    }

    #[test]
    fn addresses_are_tried_family_by_family_in_turn() {
        let order = |addresses: &[&str]| -> Vec<String> {
            let socket = |text: &&str| SocketAddr::new(text.parse().unwrap(), 0);
            let ordered = in_turn(addresses.iter().map(socket));
            ordered.iter().map(|address| address.ip().to_string()).collect()
        };
        assert_eq!(order(&["::1", "::2", "::3", "1.1.1.1"]), ["::1", "1.1.1.1", "::2", "::3"]);
        assert_eq!(order(&["1.1.1.1", "::1", "::2", "::3"]), ["1.1.1.1", "::1", "::2", "::3"]);
        assert_eq!(order(&["::1"]), ["::1"]);
        assert!(order(&[]).is_empty());
        let starts: Vec<u128> = (0..3).map(|place| address_at(place).as_millis()).collect();
        assert_eq!(starts, [0, 250, 500]);
    }

    #[test]
    fn every_knock_port_gets_its_turn() {
        let seen: Vec<_> = (0..5).map(|round| rotated(&[62201, 53, 443], round)).collect();
        assert_eq!(seen, [Some(62201), Some(53), Some(443), Some(62201), Some(53)]);
        assert_eq!(rotated(&[1], u32::MAX), Some(1));
        assert_eq!(rotated::<u16>(&[], 0), None);
    }
}
