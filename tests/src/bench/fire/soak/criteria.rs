//! What a server under load is judged by. Pure.

use super::load::Tally;
use super::samples::Sample;
use crate::bench::bars::short_count;
use std::time::Duration;

/// Memory may grow by so much from the second fifth of the time to the last: what an allocator keeps
/// differs by so much from moment to moment.
const MEMORY_KIB: u64 = 2_048;
/// What the state directory may hold. By the load's knocks, the file of those accepted has at most
/// four times the 11,000 records of three minutes, of 80 bytes; that of grants 4,096 lines and
/// twice the live ones, of 300. While one is written anew it is there twice.
const STATE_BYTES: u64 = 8 << 20;
/// What an accepted knock may write to the log, and all else in a minute.
const LINE_BYTES: u64 = 200;
const MINUTE_BYTES: u64 = 16 << 10;
/// After so many accepted knocks each of the two files was written anew at least once.
const REPLAY_KNOCKS: u64 = 20_000;
const GRANT_KNOCKS: u64 = 5_000;
/// Reasons that a server gives when a valid knock met a limit.
const LIMITS: [&str; 5] = ["rate", "max-sources", "max-grants", "window-full", "overloaded"];
/// For each kind of noise, what it may be dropped as.
const KINDS: [&[&str]; 4] =
    [&["unknown-tag"], &["mac"], &["replay"], &["skew-unexamined", "too-old"]];

/// One thing that has to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Criterion {
    /// What.
    pub name: &'static str,
    /// What was found.
    pub found: String,
    /// Whether it holds.
    pub is_met: bool,
}

/// Judges what was found.
pub(super) fn judge(samples: &[Sample], tally: &Tally) -> Vec<Criterion> {
    let accepted = tally.accepted;
    vec![
        missed(tally),
        only_valid_ones(tally),
        noise(tally),
        all_done(tally),
        memory(samples),
        steady("no more descriptors", samples, |sample| sample.descriptors),
        steady("no more threads", samples, |sample| sample.threads),
        state(samples),
        written_anew("replay.log", samples, accepted >= REPLAY_KNOCKS, |one| one.replay),
        written_anew("grants.log", samples, accepted >= GRANT_KNOCKS, |one| one.grants),
        log(samples, accepted),
    ]
}

fn missed(tally: &Tally) -> Criterion {
    let Tally { knocks, missed, slowest, .. } = tally;
    let more = missed.first().map_or_else(
        || format!("the slowest took {} ms", slowest.as_millis()),
        |first| format!("the first: {first}"),
    );
    Criterion {
        name: "each knock opens",
        found: format!("{} of {} did not; {more}", missed.len(), short_count(*knocks)),
        is_met: missed.is_empty() && *knocks > 0,
    }
}

fn only_valid_ones(tally: &Tally) -> Criterion {
    let Tally { valid, accepted, failed, .. } = tally;
    let limited = dropped(tally, &LIMITS);
    Criterion {
        name: "valid knocks are accepted, and nothing else",
        found: format!(
            "{accepted} of {valid} accepted, {limited} met a limit, {failed} failed or lost"
        ),
        is_met: accepted == valid && limited == 0 && *failed == 0,
    }
}

/// A server that saw no noise would have stood it well.
fn noise(tally: &Tally) -> Criterion {
    let counts = KINDS.map(|reasons| dropped(tally, reasons));
    let told: Vec<_> = KINDS
        .iter()
        .zip(counts)
        .map(|(reasons, count)| format!("{} {count}", reasons.join(" or ")))
        .collect();
    Criterion {
        name: "noise of each kind came",
        found: format!("{} sent; dropped as {}", tally.noise, told.join(", ")),
        is_met: counts.iter().all(|count| *count > 0),
    }
}

fn all_done(tally: &Tally) -> Criterion {
    let Tally { closes, questions, reloads, outages, .. } = tally;
    Criterion {
        name: "it was closed, asked, reloaded, cut off",
        found: format!("{closes} closes, {questions} status, {reloads} reloads, {outages} outages"),
        is_met: [closes, questions, reloads, outages].iter().all(|count| **count > 0),
    }
}

fn memory(samples: &[Sample]) -> Criterion {
    let [early, late] = fifths(samples, |sample| sample.resident).map(|fifth| middle(&fifth));
    Criterion {
        name: "memory grows by 2,048 KiB at most",
        found: format!("median {early} KiB in the second fifth of the time, {late} in the last"),
        is_met: early > 0 && late <= early + MEMORY_KIB,
    }
}

/// Some come and go: a question over the control socket, a thread that computes tags.
fn steady(name: &'static str, samples: &[Sample], of: fn(&Sample) -> u64) -> Criterion {
    let [early, late] = fifths(samples, of);
    let (most, late) = (early.iter().max().copied().unwrap_or(0), middle(&late));
    Criterion {
        name,
        found: format!("at most {most} in the second fifth of the time, median {late} in the last"),
        is_met: most > 0 && late <= most,
    }
}

fn state(samples: &[Sample]) -> Criterion {
    let most = samples.iter().map(|sample| sample.state).max().unwrap_or(0);
    Criterion {
        name: "the state directory stays below 8 MiB",
        found: format!("at most {most} B"),
        is_met: (1..=STATE_BYTES).contains(&most),
    }
}

fn written_anew(file: &str, samples: &[Sample], is_due: bool, of: fn(&Sample) -> u64) -> Criterion {
    let sizes = samples.iter().map(of);
    let count = sizes.clone().zip(sizes.skip(1)).filter(|(before, after)| after < before).count();
    Criterion {
        name: "its files are written anew in time",
        found: format!("{file}: {count} times{}", if is_due { "" } else { ", not due yet" }),
        is_met: !is_due || count > 0,
    }
}

fn log(samples: &[Sample], accepted: u64) -> Criterion {
    let (bytes, at) = samples.last().map(|last| (last.log, last.at)).unwrap_or_default();
    let minutes = at.as_secs() / 60 + 1;
    Criterion {
        name: "the log has 200 B a knock, 16 KiB a minute",
        found: format!("{bytes} B for {accepted} knocks in {} s", at.as_secs()),
        is_met: (1..=accepted * LINE_BYTES + minutes * MINUTE_BYTES).contains(&bytes),
    }
}

fn dropped(tally: &Tally, reasons: &[&str]) -> u64 {
    reasons.iter().filter_map(|reason| tally.dropped.get(*reason)).sum()
}

/// What was found in the second fifth of the time, when all that has to fill has filled, and in the
/// last.
fn fifths(samples: &[Sample], of: fn(&Sample) -> u64) -> [Vec<u64>; 2] {
    let end = samples.last().map(|last| last.at).unwrap_or_default();
    let within = |from: u32, to: u32| {
        let range = end * from / 5..=end * to / 5;
        let is_in = |at: Duration| range.contains(&at);
        samples.iter().filter(|one| is_in(one.at)).map(of).collect()
    };
    [within(1, 2), within(4, 5)]
}

fn middle(values: &[u64]) -> u64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> (Vec<Sample>, Tally) {
        let sample = |n: u64| Sample {
            at: Duration::from_secs(10 * n),
            // It comes and goes a little, and both files are written anew now and then.
            resident: 9_000 + 300 * (n % 3),
            descriptors: 20 + n % 2,
            threads: 4 + n % 2,
            replay: 80 * (n % 30),
            grants: 300 * (n % 10),
            state: 1_000_000,
            log: 1_000 * n,
        };
        let dropped = ["unknown-tag", "mac", "replay", "too-old"].map(|why| (why.to_owned(), 9));
        let tally = Tally {
            knocks: 25_000,
            valid: 30_000,
            accepted: 30_000,
            noise: 36,
            closes: 1,
            questions: 1,
            reloads: 1,
            outages: 1,
            dropped: dropped.into(),
            ..Tally::default()
        };
        ((1..=60).map(sample).collect(), tally)
    }

    /// What is missed after this change.
    fn missed_after(change: impl FnOnce(&mut Vec<Sample>, &mut Tally)) -> Vec<&'static str> {
        let (mut samples, mut tally) = good();
        change(&mut samples, &mut tally);
        let missed = judge(&samples, &tally).into_iter().filter(|one| !one.is_met);
        missed.map(|one| one.name).collect()
    }

    #[test]
    fn a_server_that_stays_as_it_is_misses_nothing() {
        assert_eq!(missed_after(|_, _| {}), [""; 0]);
    }

    #[test]
    fn what_creeps_is_found_and_what_comes_and_goes_is_not() {
        type Creep = fn(&mut Sample, u64);
        let creeps: [(Creep, &str); 3] = [
            (|sample, n| sample.resident += 80 * n, "memory grows by 2,048 KiB at most"),
            (|sample, n| sample.descriptors += n / 10, "no more descriptors"),
            (|sample, n| sample.threads += n / 10, "no more threads"),
        ];
        for (creep, name) in creeps {
            let found = missed_after(|samples, _| {
                samples.iter_mut().zip(0..).for_each(|(sample, n)| creep(sample, n));
            });
            assert_eq!(found, [name]);
        }
        let spike = missed_after(|samples, _| samples[55].resident *= 2);
        assert_eq!(spike, [""; 0]);
    }

    #[test]
    fn a_file_that_only_grows_is_found() {
        let grows = missed_after(|samples, _| {
            samples.iter_mut().zip(0..).for_each(|(sample, n)| sample.replay = 80 * n);
        });
        assert_eq!(grows, ["its files are written anew in time"]);
        let full = missed_after(|samples, _| samples[7].state = STATE_BYTES + 1);
        assert_eq!(full, ["the state directory stays below 8 MiB"]);
        let chatter = missed_after(|samples, _| samples[59].log = 7_000_000);
        assert_eq!(chatter, ["the log has 200 B a knock, 16 KiB a minute"]);
    }

    #[test]
    fn a_knock_that_is_missed_or_refused_is_found_and_so_is_a_load_that_was_none() {
        let missed = missed_after(|_, tally| tally.missed.push("192.0.2.1 in round 7".into()));
        assert_eq!(missed, ["each knock opens"]);
        for change in [
            (|tally| tally.accepted += 1) as fn(&mut Tally),
            |tally| tally.failed = 1,
            |tally| tally.dropped.extend([("overloaded".to_owned(), 1)]),
        ] {
            let found = missed_after(|_, tally| change(tally));
            assert_eq!(found, ["valid knocks are accepted, and nothing else"]);
        }
        let silent = missed_after(|_, tally| tally.dropped.retain(|why, _| why != "mac"));
        assert_eq!(silent, ["noise of each kind came"]);
        let idle = missed_after(|_, tally| tally.outages = 0);
        assert_eq!(idle, ["it was closed, asked, reloaded, cut off"]);
        assert!(judge(&[], &Tally::default()).iter().filter(|one| !one.is_met).count() >= 8);
    }
}
