//! What is to be told, in its order: how often, how much of it together, and when it is tried again.
//! Pure: the time comes in.

use super::follow::Position;
use super::notice::Notice;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What waits by itself; what comes beyond is counted with the last one.
const MOST_WAITING: usize = 64;
const MINUTE: Duration = Duration::from_secs(60);
/// How long after each failure it is tried again, and after all further ones as after the last: a mail
/// server that starts anew is away for minutes.
const RESTS: [Duration; 5] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(120),
    Duration::from_secs(300),
];

/// How often a command may be run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) per_minute: usize,
    pub(super) tries: u32,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Outgoing {
    limits: Limits,
    /// When the command was run in the last minute.
    runs: VecDeque<Instant>,
    first: Option<Attempt>,
    waiting: VecDeque<Notice>,
    told: Option<Position>,
}

#[derive(Debug)]
struct Attempt {
    notice: Notice,
    failures: u32,
    /// Not before.
    again: Instant,
    is_running: bool,
}

/// What there is to do now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due<'a> {
    /// Run the command for this one, and say how it went.
    Run(&'a Notice),
    /// Ask again then.
    At(Instant),
    /// Nothing, or one is being run.
    Nothing,
}

/// What becomes of a notification that was not delivered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failed {
    /// It is tried again.
    Again { failures: u32, rest: Duration },
    /// That was the last time.
    GivenUp { failures: u32 },
}

impl Outgoing {
    pub(super) fn new(limits: Limits) -> Self {
        let (runs, waiting) = (VecDeque::new(), VecDeque::new());
        Self { limits, runs, first: None, waiting, told: None }
    }

    /// Takes an event to be told.
    pub(super) fn take(&mut self, notice: Notice) {
        let is_full = self.waiting.len() >= MOST_WAITING;
        match self.waiting.back_mut() {
            Some(last) if is_full => last.absorb(notice),
            _ => self.waiting.push_back(notice),
        }
    }

    /// The trail has come so far, with nothing to be told.
    pub(super) fn pass(&mut self, upto: Position) {
        let last = self.waiting.back_mut();
        let last = last.or(self.first.as_mut().map(|attempt| &mut attempt.notice));
        match last {
            Some(last) => last.upto = upto,
            None => self.told = Some(upto),
        }
    }

    /// How far the trail has been told, if that has changed.
    pub(super) fn told(&mut self) -> Option<Position> {
        self.told.take()
    }

    /// What is being told, in words.
    pub(super) fn first(&self) -> Option<String> {
        self.first.as_ref().map(|attempt| attempt.notice.text())
    }

    /// Whether there is nothing left.
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none() && self.waiting.is_empty()
    }

    /// What is to be done now.
    pub(super) fn due(&mut self, now: Instant) -> Due<'_> {
        if self.first.as_ref().is_some_and(|first| first.is_running) || self.is_empty() {
            return Due::Nothing;
        }
        while self.runs.front().is_some_and(|run| now.duration_since(*run) >= MINUTE) {
            self.runs.pop_front();
        }
        let left = self.limits.per_minute.saturating_sub(self.runs.len());
        if left == 0 {
            return self.runs.front().map_or(Due::Nothing, |oldest| Due::At(*oldest + MINUTE));
        }
        if self.first.is_none()
            && let Some(mut notice) = self.waiting.pop_front()
        {
            if left == 1 {
                // Nothing else can be told for a while.
                self.waiting.drain(..).for_each(|later| notice.absorb(later));
            }
            self.first = Some(Attempt { notice, failures: 0, again: now, is_running: false });
        }
        let Some(first) = &mut self.first else { return Due::Nothing };
        if first.again > now {
            return Due::At(first.again);
        }
        first.is_running = true;
        self.runs.push_back(now);
        Due::Run(&first.notice)
    }

    /// The command has done it.
    pub(super) fn delivered(&mut self) {
        if let Some(attempt) = self.first.take() {
            self.told = Some(attempt.notice.upto);
        }
    }

    /// The command has failed.
    pub(super) fn failed(&mut self, now: Instant) -> Failed {
        let Some(first) = &mut self.first else { return Failed::GivenUp { failures: 0 } };
        first.failures = first.failures.saturating_add(1);
        first.is_running = false;
        let failures = first.failures;
        if failures >= self.limits.tries {
            self.delivered();
            return Failed::GivenUp { failures };
        }
        let nth = usize::try_from(failures).unwrap_or(usize::MAX).saturating_sub(1);
        let rest = RESTS.get(nth).or(RESTS.last()).copied().unwrap_or(MINUTE);
        first.again = now + rest;
        Failed::Again { failures, rest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::trail::Entry;
    use spa_proto::UnixMicros;

    fn notice(number: u64) -> Notice {
        let line = format!("event=opened id={number}");
        Notice::new(Entry::parse(UnixMicros(0), &line).unwrap(), Position::Since(number))
    }

    /// What is run now, as its number, and how many more it tells; it is delivered.
    fn run(outgoing: &mut Outgoing, now: Instant) -> Option<(String, String)> {
        let Due::Run(notice) = outgoing.due(now) else { return None };
        let environment = notice.environment();
        let of =
            |wanted: &str| environment.iter().find(|(name, _)| name == wanted).unwrap().1.clone();
        let told = (of("SPA_ID"), of("SPA_MORE"));
        outgoing.delivered();
        Some(told)
    }

    fn all(outgoing: &mut Outgoing, now: Instant) -> Vec<(String, String)> {
        std::iter::from_fn(|| run(outgoing, now)).collect()
    }

    fn told(pairs: &[(u64, u64)]) -> Vec<(String, String)> {
        pairs.iter().map(|(number, more)| (number.to_string(), more.to_string())).collect()
    }

    #[test]
    fn a_flood_is_told_so_often_a_minute_and_nothing_is_uncounted() {
        let start = Instant::now();
        let mut outgoing = Outgoing::new(Limits { per_minute: 3, tries: 1 });
        outgoing.take(notice(0));
        assert_eq!(all(&mut outgoing, start), told(&[(0, 0)]));
        (1..=10_000).for_each(|number| outgoing.take(notice(number)));
        assert!(outgoing.waiting.len() <= MOST_WAITING);
        // One by itself, and the last one of this minute with all the others.
        assert_eq!(all(&mut outgoing, start), told(&[(1, 0), (2, 9_998)]));
        assert_eq!(outgoing.told(), Some(Position::Since(10_000)));
        outgoing.take(notice(10_001));
        assert_eq!(outgoing.due(start), Due::At(start + MINUTE));
        assert_eq!(all(&mut outgoing, start + Duration::from_secs(59)), []);
        assert_eq!(all(&mut outgoing, start + MINUTE), told(&[(10_001, 0)]));
        assert!(outgoing.is_empty());
    }

    #[test]
    fn in_no_minute_there_are_more() {
        let start = Instant::now();
        let mut outgoing = Outgoing::new(Limits { per_minute: 4, tries: 1 });
        let (mut runs, mut counted) = (Vec::new(), 0);
        for second in 0..600_u64 {
            let now = start + Duration::from_secs(second);
            (0..second % 7).for_each(|_| outgoing.take(notice(second)));
            for (_, more) in all(&mut outgoing, now) {
                runs.push(now);
                counted += 1 + more.parse::<u64>().unwrap();
            }
        }
        for (at, run) in runs.iter().enumerate() {
            let within = runs[at..].iter().take_while(|later| **later - *run < MINUTE).count();
            assert!(within <= 4, "{within}");
        }
        let came: u64 = (0..600).map(|second| second % 7).sum();
        let waiting: u64 = outgoing.waiting.iter().map(|notice| 1 + notice.more()).sum();
        assert!(runs.len() > 30 && counted + waiting == came, "{counted} {waiting} {came}");
    }

    #[test]
    fn what_fails_is_tried_again_later_and_given_up_and_others_wait_for_it() {
        let mut now = Instant::now();
        let mut outgoing = Outgoing::new(Limits { per_minute: 100, tries: 3 });
        outgoing.take(notice(0));
        outgoing.take(notice(1));
        for (failures, seconds) in [(1, 1), (2, 5)] {
            assert!(matches!(outgoing.due(now), Due::Run(first) if *first == notice(0)));
            assert_eq!(outgoing.due(now), Due::Nothing, "it is being run");
            let rest = Duration::from_secs(seconds);
            assert_eq!(outgoing.failed(now), Failed::Again { failures, rest });
            assert_eq!(outgoing.due(now), Due::At(now + rest));
            assert_eq!(outgoing.told(), None);
            now += rest;
        }
        assert!(matches!(outgoing.due(now), Due::Run(first) if *first == notice(0)));
        assert_eq!(outgoing.failed(now), Failed::GivenUp { failures: 3 });
        assert_eq!(outgoing.told(), Some(Position::Since(0)));
        assert_eq!(all(&mut outgoing, now), told(&[(1, 0)]));
    }

    #[test]
    fn tries_count_as_runs() {
        let now = Instant::now();
        let mut outgoing = Outgoing::new(Limits { per_minute: 1, tries: 9 });
        outgoing.take(notice(0));
        assert!(matches!(outgoing.due(now), Due::Run(_)));
        outgoing.failed(now);
        assert_eq!(outgoing.due(now + Duration::from_secs(2)), Due::At(now + MINUTE));
    }

    #[test]
    fn what_is_not_wanted_is_passed_when_all_before_it_is_told() {
        let now = Instant::now();
        let mut outgoing = Outgoing::new(Limits { per_minute: 9, tries: 9 });
        outgoing.pass(Position::Since(7));
        assert_eq!(outgoing.told(), Some(Position::Since(7)));
        outgoing.take(notice(8));
        outgoing.take(notice(9));
        outgoing.pass(Position::Since(10));
        assert_eq!(outgoing.told(), None);
        assert!(run(&mut outgoing, now).is_some());
        assert_eq!(outgoing.told(), Some(Position::Since(8)));
        assert!(matches!(outgoing.due(now), Due::Run(_)));
        outgoing.pass(Position::Since(11));
        outgoing.delivered();
        assert_eq!(outgoing.told(), Some(Position::Since(11)));
    }
}
