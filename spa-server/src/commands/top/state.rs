//! What is known of the daemon, and what follows from it: rates from counts, what is scrolled to.
//!
//! Pure: neither terminal nor socket. Whatever comes from outside becomes plain text here.

use crate::control::{GrantView, Status};
use crate::frame::FrameError;
use crate::plain::plain;
use spa_proto::DropReason;
use std::collections::VecDeque;
use std::time::Duration;

/// For the plot: so many seconds fit on a very wide terminal.
const REMEMBERED: usize = 512;
/// More grants are not asked for every second: the daemon has better to do.
pub(super) const MOST_LISTED: u64 = 10_000;

/// One answer of the daemon's.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    /// When it came, by whatever clock passes.
    pub(super) at: Duration,
    /// How it is.
    pub(super) status: Box<Status>,
    /// What is open; `None` if that is too much to list.
    pub(super) grants: Option<Vec<GrantView>>,
}

/// What there is to show.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) status: Option<Box<Status>>,
    /// What is open, as plain text; `None` if that is too much to list.
    pub(super) grants: Option<Vec<Row>>,
    pub(super) rates: Rates,
    /// Noise a second, the latest last.
    pub(super) noise: VecDeque<u64>,
    /// Why the daemon does not answer.
    pub(super) fault: Option<String>,
    pub(super) paused: bool,
    /// The first grant that is shown.
    pub(super) first: usize,
    /// How many were shown at last.
    pub(super) page: usize,
    last: Option<Duration>,
}

/// A grant, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) client: String,
    pub(super) source: String,
    pub(super) service: String,
    pub(super) ports: String,
    pub(super) seconds_left: u64,
    pub(super) request: String,
}

/// How much there was of each since the answer before, in a second.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) received: f64,
    pub(super) accepted: f64,
    pub(super) opened: f64,
    pub(super) closed: f64,
    pub(super) failed: f64,
    pub(super) lost: f64,
    pub(super) noise: f64,
    /// Each reason that was met since the daemon started: its rate, and its count. The most
    /// frequent first.
    pub(super) dropped: Vec<(String, f64, u64)>,
}

/// Where to scroll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scroll {
    Up,
    Down,
    PageUp,
    PageDown,
    First,
    Last,
}

impl State {
    /// The daemon has answered, or not.
    pub(super) fn heard(&mut self, answer: Result<Answer, String>) {
        if self.paused {
            // What comes next is compared with what is shown.
            return;
        }
        match answer {
            Ok(answer) => self.take(answer),
            Err(why) => self.fault = Some(plain(&why)),
        }
    }

    fn take(&mut self, Answer { at, status, grants }: Answer) {
        self.fault = None;
        let before = self.status.take().filter(|before| {
            // The counts of another process have begun anew.
            (before.pid, before.started) == (status.pid, status.started)
        });
        let passed = self.last.map(|last| at.saturating_sub(last)).filter(|it| !it.is_zero());
        if let Some((before, passed)) = before.zip(passed) {
            self.rates = Rates::between(&before, &status, passed);
            if self.noise.len() >= REMEMBERED {
                self.noise.pop_front();
            }
            self.noise.push_back(whole(self.rates.noise));
        } else {
            self.rates = Rates::between(&status, &status, Duration::from_secs(1));
            self.noise.clear();
        }
        self.last = Some(at);
        self.grants = grants.map(|grants| grants.iter().map(Row::from).collect());
        self.status = Some(status);
        self.first = self.first.min(self.furthest());
    }

    /// Shows others of the grants.
    pub(super) fn scroll(&mut self, scroll: Scroll) {
        let page = self.page.max(1);
        let to = match scroll {
            Scroll::Up => self.first.saturating_sub(1),
            Scroll::Down => self.first.saturating_add(1),
            Scroll::PageUp => self.first.saturating_sub(page),
            Scroll::PageDown => self.first.saturating_add(page),
            Scroll::First => 0,
            Scroll::Last => usize::MAX,
        };
        self.first = to.min(self.furthest());
    }

    /// So many are shown at a time from now on.
    pub(super) fn fits(&mut self, page: usize) {
        self.page = page;
        self.first = self.first.min(self.furthest());
    }

    fn furthest(&self) -> usize {
        self.grants.as_ref().map_or(0, Vec::len).saturating_sub(self.page.max(1))
    }
}

impl Rates {
    fn between(before: &Status, after: &Status, passed: Duration) -> Self {
        let rate =
            |before: u64, after: u64| number(after.saturating_sub(before)) / passed.as_secs_f64();
        let of = |status: &Status, reason: &str| status.dropped.get(reason).copied().unwrap_or(0);
        let met = after.dropped.iter().filter(|(_, count)| **count > 0);
        let mut dropped: Vec<_> =
            met.map(|(reason, count)| (reason, rate(of(before, reason), *count), *count)).collect();
        dropped.sort_by(|a, b| b.1.total_cmp(&a.1).then(b.2.cmp(&a.2)).then(a.0.cmp(b.0)));
        let noise = |status: &Status| {
            noise_reasons().map(|reason| of(status, reason)).fold(0, u64::saturating_add)
        };
        Self {
            received: rate(before.received, after.received),
            accepted: rate(before.accepted, after.accepted),
            opened: rate(before.opened, after.opened),
            closed: rate(before.closed, after.closed),
            failed: rate(before.failed, after.failed),
            lost: rate(before.kernel_drops, after.kernel_drops),
            noise: rate(noise(before), noise(after)),
            dropped: dropped
                .into_iter()
                .map(|(name, rate, count)| (plain(name), rate, count))
                .collect(),
        }
    }
}

impl From<&GrantView> for Row {
    fn from(grant: &GrantView) -> Self {
        let ports: Vec<_> = grant.ports.iter().map(ToString::to_string).collect();
        Self {
            client: plain(&grant.client),
            source: plain(&grant.source.to_string()),
            service: plain(&grant.service.to_string()),
            ports: plain(&ports.join(",")),
            seconds_left: grant.seconds_left,
            request: plain(&grant.request_id),
        }
    }
}

/// For what anybody can send who has no key.
fn noise_reasons() -> impl Iterator<Item = &'static str> {
    let of_protocol =
        [DropReason::Length, DropReason::UnknownTag, DropReason::SkewUnexamined, DropReason::Mac];
    let frames = FrameError::ALL.iter().map(|error| error.as_str());
    frames.chain(of_protocol.map(DropReason::as_str))
}

#[expect(clippy::cast_precision_loss, reason = "it is shown with three digits")]
const fn number(count: u64) -> f64 {
    count as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate is not negative, and a conversion stops at the largest number"
)]
fn whole(rate: f64) -> u64 {
    rate.round() as u64
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::control::{InterfaceStatus, LatencyStatus, QueueStatus, StatusClients};
    use crate::gate::Backend;
    use spa_proto::UnixMicros;

    pub(in super::super) fn status(second: u64) -> Status {
        let dropped =
            [("unknown-tag", 100 * second), ("replay", 7), ("fragment", second), ("rate", 0)];
        Status {
            version: "0.1.0".into(),
            pid: 123,
            started: UnixMicros::from_secs(1_798_758_000),
            uptime: 3723,
            interfaces: vec![InterfaceStatus { name: "any".into(), state: "running".into() }],
            knock_ports: vec![62_201],
            backend: Backend::Ipset,
            mode: "guard".into(),
            refuse: "drop".into(),
            guards: true,
            gate: "installed".into(),
            trial_seconds_left: None,
            restored: 0,
            last_restored: None,
            replay_store: "writable".into(),
            clients: StatusClients { total: 3, enabled: 2 },
            grants: 2,
            refused: 1,
            received: 101 * second + 7,
            prefilter: "in the kernel".into(),
            accepted: 10 + 2 * second,
            opened: 9 + 2 * second,
            closed: 2,
            failed: 0,
            dropped: dropped.map(|(reason, count)| (reason.into(), count)).into(),
            kernel_drops: 0,
            queue: QueueStatus { waiting: 0, deepest: 3, limit: 4096 },
            latency: Some(LatencyStatus {
                knocks: 9,
                p50_micros: 210,
                p90_micros: 340,
                p99_micros: 1200,
                max_micros: 15_000,
            }),
            barrier_until: None,
            left_out: Vec::new(),
            last_reload: None,
        }
    }

    pub(in super::super) fn grants(count: u8) -> Vec<GrantView> {
        let grant = |number: u8| GrantView {
            client: format!("laptop-{number:03}"),
            source: match number % 3 {
                0 => format!("2001:db8:5:77::{number:x}").parse().unwrap(),
                _ => format!("192.0.2.{number}").parse().unwrap(),
            },
            service: "ssh".parse().unwrap(),
            ports: vec!["tcp/22".parse().unwrap()],
            opened: UnixMicros(5),
            seconds_left: 30 + 61 * u64::from(number),
            request_id: format!("{number:02x}a1b2c3d4e5f607"),
        };
        (0..count).map(grant).collect()
    }

    pub(in super::super) fn answer(second: u64, count: u8) -> Answer {
        Answer {
            at: Duration::from_secs(100 + second),
            status: Box::new(status(second)),
            grants: Some(grants(count)),
        }
    }

    #[test]
    fn rates_are_those_since_the_answer_before() {
        let mut state = State::default();
        state.heard(Ok(answer(1, 2)));
        assert_eq!((state.rates.accepted, state.noise.len()), (0.0, 0));
        state.heard(Ok(answer(3, 2)));
        let dropped = [("unknown-tag", 100.0, 300), ("fragment", 1.0, 3), ("replay", 0.0, 7)];
        let rates = Rates {
            received: 101.0,
            accepted: 2.0,
            opened: 2.0,
            noise: 101.0,
            dropped: dropped.map(|(name, rate, count)| (name.to_owned(), rate, count)).to_vec(),
            ..Rates::default()
        };
        assert_eq!((&state.rates, &state.noise), (&rates, &[101].into()));
    }

    #[test]
    fn a_daemon_that_was_started_anew_makes_no_rates_of_another_one_s_counts() {
        let mut state = State::default();
        state.heard(Ok(answer(500, 2)));
        let mut answer = answer(501, 2);
        answer.status.pid = 124;
        answer.status.dropped.insert("unknown-tag".into(), u64::MAX);
        state.heard(Ok(answer));
        assert_eq!((state.rates.noise, state.noise.len()), (0.0, 0));
        // Counts that fall are none either.
        let mut fewer = self::answer(502, 2);
        fewer.status.pid = 124;
        state.heard(Ok(fewer));
        assert_eq!((state.rates.noise, state.noise.len()), (0.0, 1));
    }

    #[test]
    fn what_the_plot_remembers_is_bounded() {
        let mut state = State::default();
        for second in 1..2000 {
            state.heard(Ok(answer(second, 0)));
        }
        assert_eq!(state.noise.len(), REMEMBERED);
    }

    #[test]
    fn a_fault_leaves_what_was_known_and_ends_with_the_next_answer() {
        let mut state = State::default();
        state.heard(Ok(answer(1, 2)));
        state.heard(Err("the daemon\u{1b}[2J does not run".into()));
        assert_eq!(state.fault.as_deref(), Some("the daemon\u{fffd}[2J does not run"));
        assert_eq!(state.grants.as_ref().map(Vec::len), Some(2));
        state.heard(Ok(answer(2, 2)));
        assert_eq!(state.fault, None);
    }

    #[test]
    fn what_is_paused_stands_still() {
        let mut state = State { paused: true, ..State::default() };
        state.heard(Ok(answer(1, 2)));
        assert!(state.status.is_none());
        state.paused = false;
        state.heard(Ok(answer(1, 2)));
        assert!(state.status.is_some());
    }

    #[test]
    fn scrolling_ends_at_both_ends_and_follows_a_list_that_gets_shorter() {
        let mut state = State::default();
        state.fits(10);
        state.heard(Ok(answer(1, 25)));
        for (scroll, first) in [
            (Scroll::Up, 0),
            (Scroll::Down, 1),
            (Scroll::PageDown, 11),
            (Scroll::PageDown, 15),
            (Scroll::Down, 15),
            (Scroll::PageUp, 5),
            (Scroll::Last, 15),
        ] {
            state.scroll(scroll);
            assert_eq!(state.first, first, "{scroll:?}");
        }
        state.heard(Ok(answer(2, 12)));
        assert_eq!(state.first, 2);
        state.fits(30);
        assert_eq!(state.first, 0);
    }
}
