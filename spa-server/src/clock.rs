//! The server's two clocks: realtime for what clients stamp, boot time for what the server promises.

use nix::time::{ClockId, clock_gettime};
use spa_proto::UnixMicros;
use std::time::Duration;

/// Microseconds of `CLOCK_BOOTTIME`: since the machine started, suspend included. Nobody sets it.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct BootMicros(pub u64);

impl BootMicros {
    /// `self + duration`, at most the end of time.
    pub fn saturating_add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
    }

    /// The time since the machine started.
    pub const fn since_boot(self) -> Duration {
        Duration::from_micros(self.0)
    }

    /// The time from `earlier` to `self`; zero when `earlier` is the later one.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

/// Both clocks, read at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// What the clock on the wall says; it may jump.
    pub realtime: UnixMicros,
    /// What passes.
    pub boottime: BootMicros,
}

impl Now {
    /// Reads the kernel's clocks.
    pub fn read() -> Self {
        Self::read_by(BootMicros::now, Self::realtime)
    }

    /// The realtime clock alone, which takes less time.
    pub fn realtime() -> UnixMicros {
        UnixMicros(micros(ClockId::CLOCK_REALTIME))
    }

    /// A process that was held up between its two readings would see a jump where there is none.
    fn read_by(boottime: impl Fn() -> BootMicros, realtime: impl Fn() -> UnixMicros) -> Self {
        const AT_ONCE: Duration = Duration::from_millis(100);
        loop {
            let now = Self { boottime: boottime(), realtime: realtime() };
            if boottime().since(now.boottime) < AT_ONCE {
                return now;
            }
        }
    }
}

impl BootMicros {
    /// Reads the kernel's clock.
    pub fn now() -> Self {
        Self(micros(ClockId::CLOCK_BOOTTIME))
    }
}

/// Notices when the realtime clock jumps: when realtime less boot time changes.
///
/// Slewing (`adjtime`, at most 500 parts in a million) is no jump as long as
/// [`observe`](Self::observe) is called every few minutes.
#[derive(Debug)]
pub struct StepWatch {
    last: Now,
}

/// A jump of the realtime clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It was set forward.
    Forward(Duration),
    /// It was set back.
    Back(Duration),
}

impl StepWatch {
    /// Smaller differences are slewing, or the time between the reading of the two clocks.
    const SMALLEST: Duration = Duration::from_secs(1);

    /// Begins to watch.
    pub const fn new(now: Now) -> Self {
        Self { last: now }
    }

    /// Compares with the last observation.
    pub fn observe(&mut self, now: Now) -> Option<Step> {
        let expected = self.last.realtime.saturating_add(now.boottime.since(self.last.boottime));
        self.last = now;
        let difference = now.realtime.distance(expected);
        if difference < Self::SMALLEST {
            None
        } else if now.realtime > expected {
            Some(Step::Forward(difference))
        } else {
            Some(Step::Back(difference))
        }
    }
}

/// Zero for a clock that the kernel doesn't have or that stands before its origin.
fn micros(clock: ClockId) -> u64 {
    clock_gettime(clock).map_or(0, |time| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        let nanos = u64::try_from(time.tv_nsec()).unwrap_or(0);
        seconds.saturating_mul(1_000_000).saturating_add(nanos / 1_000)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(realtime: u64, boottime: u64) -> Now {
        Now {
            realtime: UnixMicros::from_secs(realtime),
            boottime: BootMicros(boottime * 1_000_000),
        }
    }

    #[test]
    fn a_jump_is_seen_once_and_passing_time_is_none() {
        let mut watch = StepWatch::new(at(1_000, 10));
        assert_eq!(watch.observe(at(1_060, 70)), None);
        assert_eq!(watch.observe(at(4_661, 71)), Some(Step::Forward(Duration::from_secs(3_600))));
        assert_eq!(watch.observe(at(4_662, 72)), None);
        assert_eq!(watch.observe(at(1_063, 73)), Some(Step::Back(Duration::from_secs(3_600))));
    }

    #[test]
    fn suspend_is_no_jump_because_boot_time_goes_on() {
        let mut watch = StepWatch::new(at(1_000, 10));
        assert_eq!(watch.observe(at(1_000 + 86_400, 10 + 86_400)), None);
    }

    #[test]
    fn a_process_that_is_held_up_between_the_readings_sees_no_jump() {
        use std::cell::Cell;
        let (passed, held_up) = (Cell::new(0), Cell::new(false));
        let boottime = || BootMicros(10_000_000 + passed.get());
        let realtime = || {
            if !held_up.replace(true) {
                passed.set(5_000_000);
            }
            UnixMicros(1_000_000_000 + passed.get())
        };
        let mut watch = StepWatch::new(at(1_000, 10));
        assert_eq!(watch.observe(Now::read_by(boottime, realtime)), None);
    }

    #[test]
    fn the_kernel_has_both_clocks() {
        let now = Now::read();
        assert!(now.realtime > UnixMicros::from_secs(1_600_000_000));
        assert!(now.boottime > BootMicros(0));
    }
}
