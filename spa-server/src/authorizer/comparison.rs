//! Whether the kernel admits just what the live grants need, and nothing that somebody else has
//! put there: told by the number of elements all the time, and by each of them now and then.

use super::Authorizer;
use super::kernel::count;
use crate::causes::with_causes;
use crate::clock::BootMicros;
use crate::gate::{Doubt, Gate, GateError};
use crate::grants::GrantStore;
use crate::replay_store::ReplayStore;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// So often each element is compared,
const EVERY: Duration = Duration::from_secs(2);
/// and less often where reading them takes longer: that may take a hundredth of the time.
const OF_THE_TIME: u32 = 100;

/// How many elements the kernel has to hold: for whoever watches that it does.
#[derive(Debug, Clone, Default)]
pub struct Needed(Arc<Mutex<Bounds>>);

/// See [`Needed`], at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bounds {
    least: u64,
    most: u64,
    /// How many more are counted than can be told: they are under no port that is guarded.
    strays: u64,
    /// How often this was another one.
    changes: u64,
}

impl Bounds {
    /// Whether a number fits that was counted after this and before `later`.
    pub fn fit(self, later: Self, elements: u64) -> bool {
        let strays = self.strays.min(later.strays);
        let least = self.least.min(later.least).saturating_add(strays);
        // What was added and is gone again may have been counted.
        let too_many = self == later && self.are_exceeded_by(elements);
        elements >= least && !too_many
    }

    /// Whether so many are more than were needed at this moment.
    pub fn are_exceeded_by(self, elements: u64) -> bool {
        elements > self.most.saturating_add(self.strays)
    }
}

impl Needed {
    /// What holds at this moment.
    pub fn now(&self) -> Bounds {
        *self.bounds()
    }

    /// From now on the kernel may hold so many, or as many as before.
    pub(super) fn becomes(&self, elements: u64) {
        let mut bounds = self.bounds();
        bounds.least = bounds.least.min(elements);
        bounds.most = bounds.most.max(elements);
        bounds.changes = bounds.changes.wrapping_add(1);
    }

    /// Only for what the kernel is known to hold.
    pub(crate) fn is(&self, elements: u64) {
        let mut bounds = self.bounds();
        (bounds.least, bounds.most) = (elements, elements);
        bounds.changes = bounds.changes.wrapping_add(1);
    }

    fn has_strays(&self, strays: u64) {
        self.bounds().strays = strays;
    }

    fn bounds(&self) -> MutexGuard<'_, Bounds> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What came of a comparison of the kernel with the live grants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compared {
    /// Each element was compared: it holds just what it has to.
    Same,
    /// The number fits by now, and no element was looked at.
    Fitting,
    /// It has to be mended.
    Different,
}

/// When each element is compared next.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    due: BootMicros,
    /// Both clocks, when that was looked at last: only one of them goes on in suspend.
    seen: Option<(BootMicros, Instant)>,
}

impl Schedule {
    /// Whether the machine was suspended since the last time.
    fn has_slept(&mut self, now: BootMicros, awake: Instant) -> bool {
        let before = self.seen.replace((now, awake));
        before.is_some_and(|(boottime, instant)| {
            let passed = now.since(boottime);
            passed.saturating_sub(awake.saturating_duration_since(instant)) > Duration::from_secs(1)
        })
    }

    fn took(&mut self, began: BootMicros, ended: BootMicros) {
        let pause = ended.since(began).saturating_mul(OF_THE_TIME).max(EVERY);
        self.due = ended.saturating_add(pause);
    }
}

impl<G: Gate, R: ReplayStore, L: GrantStore> Authorizer<G, R, L> {
    /// How many elements the kernel has to hold.
    pub fn needed(&self) -> Needed {
        self.needed.clone()
    }

    /// Whether a kernel in which so many elements were counted a moment ago admits something else
    /// than the live grants need. Those for one connection that are used up by now are over.
    pub async fn compare_with(&mut self, elements: u64) -> Compared {
        self.expire(BootMicros::now()).await;
        let bounds = self.needed.now();
        if bounds.fit(bounds, elements) {
            return Compared::Fitting;
        }
        let found = match self.compare().await {
            Ok(None) => return Compared::Different,
            Ok(Some(found)) => found,
            Err(error) => {
                tracing::debug!("{}", with_causes(&error));
                return Compared::Different;
            }
        };
        self.needed.is(count(self.grants.elements()));
        if let Ok(look) = self.gate.look(Doubt::Elements).await {
            self.needed.has_strays(look.elements.saturating_sub(found));
        }
        Compared::Same
    }

    /// Compares each element, if it is time to; says whether the kernel admits something else than
    /// the live grants need.
    pub async fn differs_on_schedule(&mut self) -> bool {
        let began = BootMicros::now();
        if self.schedule.has_slept(began, Instant::now()) && !self.grants.is_empty() {
            tracing::info!("the machine was suspended: the kernel's timers are set anew");
            self.renew().await;
        }
        // What is not reconciled is told and mended elsewhere. Where nothing is needed, the number
        // of elements says it all.
        let has_nothing_to_compare = !self.stands || self.unreconciled || self.grants.is_empty();
        if has_nothing_to_compare || began < self.schedule.due {
            return false;
        }
        self.expire(began).await;
        let compared = self.compare().await;
        self.schedule.took(began, BootMicros::now());
        match compared {
            Ok(same) => same.is_none(),
            Err(error) => {
                tracing::debug!("{}", with_causes(&error));
                false
            }
        }
    }

    /// How many elements the kernel holds, if they are those that the live grants need.
    async fn compare(&mut self) -> Result<Option<u64>, GateError> {
        let asked = BootMicros::now();
        let live = self.gate.snapshot().await?;
        let answered = BootMicros::now();
        self.end_used(answered, &live);
        let differences = self.grants.differences(asked, answered, &live);
        if !differences.is_none() {
            tracing::debug!(?differences, "the kernel differs from the live grants");
        }
        Ok(differences.is_none().then(|| count(live.len())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_and_fewer_than_needed_do_not_fit_but_what_is_changing_does() {
        let needed = Needed::default();
        needed.is(5);
        let now = || needed.now();
        let fits = |elements| now().fit(now(), elements);
        assert_eq!([4, 5, 6].map(fits), [false, true, false]);
        // While the kernel changes it both numbers are right, and all between them.
        needed.becomes(7);
        assert_eq!([4, 5, 6, 7, 8].map(fits), [false, true, true, true, false]);
        let before = now();
        needed.is(7);
        assert_eq!([5, 7].map(fits), [false, true]);
        // A count that was begun before the change is no count of too many.
        assert_eq!([4, 5, 99].map(|elements| before.fit(now(), elements)), [false, true, true]);
        needed.has_strays(2);
        assert_eq!([8, 9, 10].map(fits), [false, true, false]);
    }

    #[test]
    fn elements_are_compared_for_a_hundredth_of_the_time() {
        let mut schedule = Schedule::default();
        schedule.took(BootMicros(0), BootMicros(5_000));
        assert_eq!(schedule.due, BootMicros(5_000).saturating_add(EVERY));
        schedule.took(BootMicros(0), BootMicros(400_000));
        assert_eq!(schedule.due, BootMicros(40_400_000));
    }

    #[test]
    fn a_suspend_is_seen_once_and_passing_time_is_none() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        let after = |awake| start.checked_add(Duration::from_secs(awake)).unwrap();
        let mut slept = |boottime: u64, awake| {
            schedule.has_slept(BootMicros(boottime * 1_000_000), after(awake))
        };
        assert!(!slept(1_000, 0));
        assert!(!slept(1_060, 60));
        assert!(slept(4_660, 60));
        assert!(!slept(4_661, 61));
    }
}
