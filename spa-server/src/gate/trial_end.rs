//! Until when a gate on trial has to refuse, by a clock that, as the kernel's timers, stands still
//! in suspend. It touches no gate.

use super::types::Plan;
use std::time::{Duration, Instant};

/// The end of a gate's trial; none for a gate that stands for good.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct TrialEnd(Option<Instant>);

impl TrialEnd {
    /// That of a plan which is installed from now on: the kernel's timer begins later, so it ends no
    /// earlier.
    pub(super) fn of(plan: &Plan, now: Instant) -> Self {
        let length = plan.trial_seconds.map(|seconds| Duration::from_secs(seconds.into()));
        Self(length.and_then(|length| now.checked_add(length)))
    }

    /// Whether what arms the gate still has to be there. The kernel's timer may be a moment ahead.
    pub(super) fn is_ahead(self, now: Instant) -> bool {
        self.0.is_some_and(|end| end.saturating_duration_since(now) > Duration::from_secs(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::types::{Mode, Refusal};

    #[test]
    fn what_arms_the_gate_is_missed_until_a_moment_before_the_end_and_not_later() {
        let plan = |trial_seconds| Plan {
            mode: Mode::Guard,
            refusal: Refusal::Drop,
            guarded: Vec::new(),
            knock_ports: Vec::new(),
            always_admit: Vec::new(),
            max_elements: 9,
            trial_seconds,
        };
        let begin = Instant::now();
        let end = TrialEnd::of(&plan(Some(60)), begin);
        let ahead = |millis| end.is_ahead(begin + Duration::from_millis(millis));
        assert!(ahead(0) && ahead(58_900));
        assert!(!ahead(59_100) && !ahead(60_000) && !ahead(99_000));
        assert!(!TrialEnd::of(&plan(None), begin).is_ahead(begin));
        assert!(!TrialEnd::default().is_ahead(begin));
    }
}
