//! Tells a fight about the gate, in which another program takes away again and again what is put
//! back, from a flush now and then. Pure.

use crate::clock::BootMicros;
use std::collections::VecDeque;
use std::time::Duration;

/// More restorations than this,
const MANY: usize = 12;
/// in this time are a fight; it is over when there was none for as long.
const WINDOW: Duration = Duration::from_secs(60);

/// The restorations of late.
#[derive(Debug, Default)]
pub(super) struct Contest {
    lately: VecDeque<BootMicros>,
    is_on: bool,
}

impl Contest {
    /// The gate was put back. Whether that makes it a fight.
    pub(super) fn note(&mut self, now: BootMicros) -> bool {
        self.forget(now);
        self.lately.push_back(now);
        let begins = !self.is_on && self.lately.len() > MANY;
        self.is_on |= begins;
        begins
    }

    /// Whether a fight has ended.
    pub(super) fn ends(&mut self, now: BootMicros) -> bool {
        self.forget(now);
        let ends = self.is_on && self.lately.is_empty();
        self.is_on &= !ends;
        ends
    }

    /// Whether there is a fight.
    pub(super) const fn is_on(&self) -> bool {
        self.is_on
    }

    /// How often the gate was put back within the last minute.
    pub(super) fn lately(&self) -> usize {
        self.lately.len()
    }

    fn forget(&mut self, now: BootMicros) {
        while self.lately.front().is_some_and(|then| now.since(*then) >= WINDOW) {
            self.lately.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> BootMicros {
        BootMicros((1_000 + second) * 1_000_000)
    }

    #[test]
    fn a_fight_begins_once_and_ends_after_a_quiet_minute() {
        let mut contest = Contest::default();
        let begun: Vec<_> = (0..100).filter(|second| contest.note(at(*second))).collect();
        assert_eq!(begun, [12]);
        assert_eq!(contest.lately(), 60);
        assert!(!contest.ends(at(158)) && contest.is_on());
        assert!(contest.ends(at(159)) && !contest.is_on());
        assert!(!contest.ends(at(160)));
        // And may begin again.
        assert_eq!((200..220).filter(|second| contest.note(at(*second))).count(), 1);
    }

    #[test]
    fn flushes_now_and_then_are_no_fight() {
        let mut contest = Contest::default();
        for minute in 0..60 {
            for second in 0..10 {
                assert!(!contest.note(at(minute * 60 + second)));
            }
        }
        assert!(!contest.is_on());
    }
}
