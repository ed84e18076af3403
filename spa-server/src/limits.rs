//! How often an accepted knock may come.
//!
//! Pure: the time is passed in. Only knocks that passed every other check may reach a bucket
//! (a refused or replayed one must cost its owner nothing), so tokens are looked at and taken in
//! two steps.

use crate::policy::Rate;
use spa_proto::ClientId;
use std::collections::HashMap;
use std::time::Duration;

/// Units in a token: one microsecond at one token a minute gains one unit.
const TOKEN: u64 = 60_000_000;

/// A bucket that holds `burst` tokens and gains `per_minute` a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucket {
    rate: Rate,
    /// In units; a token is [`TOKEN`] of them.
    level: u64,
    /// When the level was computed, as a time since boot.
    at: Duration,
}

impl TokenBucket {
    /// A full bucket. `now` is a monotonic time, as CLOCK_BOOTTIME gives it.
    pub fn new(rate: Rate, now: Duration) -> Self {
        Self { rate, level: capacity(rate), at: now }
    }

    /// Whether there is a token.
    pub fn available(&self, now: Duration) -> bool {
        self.level_at(now) >= TOKEN
    }

    /// Takes a token, if there is one.
    #[must_use]
    pub fn take(&mut self, now: Duration) -> bool {
        let level = self.level_at(now);
        let left = level.checked_sub(TOKEN);
        self.level = left.unwrap_or(level);
        self.at = self.at.max(now);
        left.is_some()
    }

    /// How long until there is a token; zero when there is one, `None` when there never will be.
    pub fn wait(&self, now: Duration) -> Option<Duration> {
        let missing = TOKEN.saturating_sub(self.level_at(now));
        if missing == 0 {
            return Some(Duration::ZERO);
        }
        if self.rate.burst == 0 || self.rate.per_minute == 0 {
            return None;
        }
        Some(Duration::from_micros(missing.div_ceil(self.rate.per_minute.into())))
    }

    /// Goes on with another rate: what was spent stays spent.
    pub fn set_rate(&mut self, rate: Rate, now: Duration) {
        if rate != self.rate {
            let spent = capacity(self.rate).saturating_sub(self.level_at(now));
            self.level = capacity(rate).saturating_sub(spent);
            self.rate = rate;
            self.at = self.at.max(now);
        }
    }

    fn is_full(&self, now: Duration) -> bool {
        self.level_at(now) == capacity(self.rate)
    }

    /// A clock that steps back gives nothing and takes nothing.
    fn level_at(&self, now: Duration) -> u64 {
        let elapsed = now.saturating_sub(self.at).as_micros();
        let gained = u64::try_from(elapsed)
            .unwrap_or(u64::MAX)
            .saturating_mul(u64::from(self.rate.per_minute));
        self.level.saturating_add(gained).min(capacity(self.rate))
    }
}

fn capacity(rate: Rate) -> u64 {
    u64::from(rate.burst).saturating_mul(TOKEN)
}

/// The buckets of all clients; a client that has not knocked lately needs none.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    buckets: HashMap<ClientId, TokenBucket>,
}

impl Limits {
    /// Whether the client may knock now.
    pub fn available(&self, client: &ClientId, rate: Rate, now: Duration) -> bool {
        match self.buckets.get(client) {
            Some(bucket) => {
                let mut bucket = *bucket;
                bucket.set_rate(rate, now);
                bucket.available(now)
            }
            None => TokenBucket::new(rate, now).available(now),
        }
    }

    /// Takes a token of the client's, if it has one.
    #[must_use]
    pub fn take(&mut self, client: &ClientId, rate: Rate, now: Duration) -> bool {
        let bucket = self.buckets.entry(*client).or_insert_with(|| TokenBucket::new(rate, now));
        bucket.set_rate(rate, now);
        bucket.take(now)
    }

    /// Forgets the clients whose buckets are full again.
    pub fn prune(&mut self, now: Duration) {
        self.buckets.retain(|_, bucket| !bucket.is_full(now));
    }

    /// How many clients are remembered.
    pub fn len(&self) -> usize {
        self.buckets.len()
    }

    /// Whether no client is remembered.
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RATE: Rate = Rate { per_minute: 60, burst: 3 };

    fn at(millis: u64) -> Duration {
        Duration::from_millis(1_000_000 + millis)
    }

    #[test]
    fn a_burst_is_spent_and_comes_back_at_the_rate() {
        let mut bucket = TokenBucket::new(RATE, at(0));
        for _ in 0..3 {
            assert!(bucket.available(at(0)) && bucket.take(at(0)));
        }
        assert_eq!(bucket.wait(at(400)), Some(Duration::from_millis(600)));
        assert!(!bucket.available(at(999)) && !bucket.take(at(999)));
        assert!(bucket.take(at(1000)));
        assert!(!bucket.take(at(1000)));
        assert_eq!(bucket.wait(at(2000)), Some(Duration::ZERO));
        assert!(bucket.is_full(at(60_000)));
    }

    #[test]
    fn a_bucket_that_gains_nothing_is_empty_for_good() {
        let mut bucket = TokenBucket::new(Rate { per_minute: 0, burst: 1 }, at(0));
        assert_eq!(bucket.wait(at(0)), Some(Duration::ZERO));
        assert!(bucket.take(at(0)));
        assert_eq!(bucket.wait(at(0)), None);
        assert!(!bucket.take(Duration::MAX));
        assert_eq!(TokenBucket::new(Rate { per_minute: 60, burst: 0 }, at(0)).wait(at(0)), None);
    }

    #[test]
    fn another_rate_does_not_give_back_what_was_spent() {
        let mut bucket = TokenBucket::new(RATE, at(0));
        assert!(bucket.take(at(0)) && bucket.take(at(0)));
        bucket.set_rate(Rate { per_minute: 60, burst: 2 }, at(0));
        assert!(!bucket.available(at(0)));
        bucket.set_rate(Rate { per_minute: 60, burst: 3 }, at(0));
        assert!(bucket.available(at(0)));
    }

    #[test]
    fn clients_have_buckets_of_their_own_which_go_when_full() {
        let (one, other) = (ClientId([1; 32]), ClientId([2; 32]));
        let mut limits = Limits::default();
        for _ in 0..3 {
            assert!(limits.take(&one, RATE, at(0)));
        }
        assert!(!limits.available(&one, RATE, at(0)) && !limits.take(&one, RATE, at(0)));
        assert!(limits.available(&other, RATE, at(0)));
        limits.prune(at(2999));
        assert_eq!((limits.len(), limits.is_empty()), (1, false));
        limits.prune(at(3000));
        assert_eq!((limits.len(), limits.is_empty()), (0, true));
    }

    proptest! {
        /// Over any stretch of time no more knocks pass than the burst and what the rate adds;
        /// and an honest pace always passes. Looking never changes what taking does.
        #[test]
        fn never_more_than_burst_and_rate(
            per_minute in 0u32..6000,
            burst in 0u32..50,
            steps in prop::collection::vec(0u64..5_000_000, 1..200),
        ) {
            let rate = Rate { per_minute, burst };
            let mut bucket = TokenBucket::new(rate, Duration::ZERO);
            let mut now = 0u64;
            let mut passed = 0u64;
            for step in steps {
                now += step;
                let time = Duration::from_micros(now);
                let could = bucket.available(time);
                let wait = bucket.wait(time);
                prop_assert_eq!(wait == Some(Duration::ZERO), could);
                if let Some(wait) = wait {
                    prop_assert!(bucket.available(time + wait));
                }
                let did = bucket.take(time);
                prop_assert_eq!(could, did);
                passed += u64::from(did);
                let most = u64::from(burst) + now * u64::from(per_minute) / 60_000_000;
                prop_assert!(passed <= most, "{} passed, {} may", passed, most);
            }
        }

        /// A clock that steps back and forth between the same instants gains nothing.
        #[test]
        fn a_clock_that_goes_back_gains_nothing(jumps in prop::collection::vec(0u64..1000, 1..100)) {
            let mut bucket = TokenBucket::new(RATE, at(1000));
            let passed = jumps.iter().filter(|jump| bucket.take(at(**jump))).count();
            prop_assert!(passed <= 3);
        }

        /// Extreme values neither panic nor overflow.
        #[test]
        fn extremes_hold(per_minute: u32, burst: u32, seconds: u64, again: u64) {
            let rate = Rate { per_minute, burst };
            let mut bucket = TokenBucket::new(rate, Duration::from_secs(seconds));
            let took = bucket.take(Duration::from_secs(again));
            prop_assert_eq!(took, burst > 0);
            let _ = bucket.wait(Duration::MAX);
        }
    }
}
