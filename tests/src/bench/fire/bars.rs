//! What has to be reached under fire, and whether it was. Pure.

use super::results::{Crowd, Fire, Latency, Of, Rate, Role, UnderNoise};
use crate::bench::bars::{Verdict, short_count};
use crate::bench::contenders::Noise;
use crate::bench::elements::to_f64;
use crate::bench::figures::short;

/// By how often a knock of ours may take as long as one of the kernel alone, by medians.
const FLOOR: f64 = 2.0;
/// The slowest hundredth of ours by the median of the kernel alone.
const FLOOR_P99: f64 = 10.0;
/// By how often faster than the fastest of the others.
const FASTER: f64 = 8.0;
/// The slowest hundredth amid noise, in milliseconds.
const AMID_MS: f64 = 5.0;
/// What noise may add to the log: one line or two that say so, however much of it there is.
const LOG_BYTES: u64 = 1_024;
/// Knocks a second by those of the best of the others.
const RATE: f64 = 50.0;
/// Processor time a datagram by that of a program that only counts.
const COST: f64 = 2.0;
/// With very many clients by what it is with one: the latency, and what noise costs.
const CROWD_LATENCY: f64 = 1.2;
const CROWD_NOISE: f64 = 1.5;
const START_SECONDS: f64 = 3.0;
/// Resident bytes for a client.
const CLIENT_BYTES: f64 = 400.0;
/// Resident memory before any noise, KiB; and what may come to it by noise, which is what the
/// allocator keeps.
const RESIDENT: u64 = 12 * 1024;
const GROWTH: u64 = 512;

/// One thing that has to be reached.
#[derive(Debug, Clone, PartialEq)]
pub struct FireBar {
    /// What.
    pub what: String,
    /// Whether it is.
    pub verdict: Verdict,
    /// The figures that decided.
    pub found: String,
}

/// All bars, judged. Where several of our back-ends were measured, the worst decides.
pub fn fire_bars(fire: &Fire) -> Vec<FireBar> {
    let bars = [
        (
            "a knock opens in at most 2x the time of the kernel alone, by medians",
            floor(fire, |l| l.median_ms, FLOOR),
        ),
        (
            "its p99 is at most 10x the median of the kernel alone",
            floor(fire, |l| l.p99_ms, FLOOR_P99),
        ),
        ("it opens at least 8x as fast as the fastest of the others", faster(fire)),
        (
            "amid random noise at the sender's maximum all knocks open, p99 under 5 ms",
            amid(fire, |kind| kind == Noise::Random, true),
        ),
        (
            "amid broken MACs, replays and stale knocks all knocks open",
            amid(fire, |kind| kind != Noise::Random, false),
        ),
        ("noise of no kind makes the log or the state grow", growth(fire)),
        (
            "a fresh server has under 12 MiB resident, and noise adds 0.5 MiB at most",
            resident(fire),
        ),
        ("at least 50x the knocks a second of the best of the others, none lost", rates(fire)),
        ("noise costs at most 2x what only counting it costs", costs(fire)),
        (
            "with 100,000 clients a knock takes at most 1.2x as long as with one",
            crowd(fire, |few, many| {
                ratio(many.latency.median_ms, few.latency.median_ms, CROWD_LATENCY)
            }),
        ),
        (
            "and noise costs at most 1.5x",
            crowd(fire, |few, many| ratio(many.noise_ns, few.noise_ns, CROWD_NOISE)),
        ),
        (
            "and the server starts in under 3 s, if not for the first time",
            crowd(fire, |_, many| {
                let (first, again) = (many.start_seconds, many.start_again_seconds);
                let found = format!("{} s; {} s for the first time", short(again), short(first));
                (again < START_SECONDS, found)
            }),
        ),
        (
            "and a client takes under 400 bytes of memory",
            crowd(fire, |few, many| {
                let bytes = client_bytes(few, many);
                (bytes < CLIENT_BYTES, format!("{} bytes", short(bytes)))
            }),
        ),
    ];
    bars.into_iter()
        .map(|(what, judged)| {
            let (verdict, found) = match judged {
                Some((true, found)) => (Verdict::Met, found),
                Some((false, found)) => (Verdict::Missed, found),
                None => (Verdict::NotRun, String::new()),
            };
            FireBar { what: what.to_owned(), verdict, found }
        })
        .collect()
}

/// Whether it is reached, and what was found; nothing where it was not measured.
type Judged = Option<(bool, String)>;

fn ratio(over: f64, under: f64, limit: f64) -> (bool, String) {
    let ratio = over / under;
    (ratio <= limit, format!("{}x", short(ratio)))
}

/// The worst of these, as far as there are any.
fn worst(all: impl Iterator<Item = (f64, String)>) -> Option<(f64, String)> {
    all.max_by(|one, other| one.0.total_cmp(&other.0))
}

fn of_role<T>(all: &[Of<T>], role: Role) -> impl Iterator<Item = (&str, &T)> {
    let of_role = all.iter().filter(move |one| one.role == role);
    of_role.filter_map(|one| Some((one.name.as_str(), one.outcome.measured()?)))
}

/// Whether all of ours were measured.
fn ours<T>(all: &[Of<T>]) -> Option<Vec<(&str, &T)>> {
    let wanted = all.iter().filter(|one| one.role == Role::Ours).count();
    let found: Vec<_> = of_role(all, Role::Ours).collect();
    (wanted > 0 && found.len() == wanted).then_some(found)
}

fn lost(name: &str, latency: &Latency) -> Option<(bool, String)> {
    (latency.opened < latency.knocks)
        .then(|| (false, format!("{} of {} opened ({name})", latency.opened, latency.knocks)))
}

fn floor(fire: &Fire, figure: fn(&Latency) -> f64, limit: f64) -> Judged {
    let (_, floor) = of_role(&fire.singles, Role::Floor).next()?;
    let ours = ours(&fire.singles)?;
    if let Some(lost) = ours.iter().find_map(|(name, latency)| lost(name, latency)) {
        return Some(lost);
    }
    let (found, told) = worst(ours.into_iter().map(|(name, latency)| {
        let ratio = figure(latency) / floor.median_ms;
        let (ms, of) = (short(figure(latency)), short(floor.median_ms));
        (ratio, format!("{}x: {ms} ms by {of} ms ({name})", short(ratio)))
    }))?;
    Some((found <= limit, told))
}

fn faster(fire: &Fire) -> Judged {
    let peers = of_role(&fire.singles, Role::Peer).filter(|(_, latency)| latency.opened > 0);
    let (peer, best) = peers.min_by(|one, other| one.1.median_ms.total_cmp(&other.1.median_ms))?;
    let (slowest, name) = worst(
        ours(&fire.singles)?
            .into_iter()
            .map(|(name, latency)| (latency.median_ms, name.to_owned())),
    )?;
    let ratio = best.median_ms / slowest;
    Some((ratio >= FASTER, format!("{}x ({peer} by {name})", short(ratio))))
}

fn amid(fire: &Fire, is_asked: fn(Noise) -> bool, is_timed: bool) -> Judged {
    let mut told = None;
    let mut slowest = 0.0;
    for (name, kinds) in ours(&fire.noise)? {
        for one in kinds.iter().filter(|one| is_asked(one.kind)) {
            let latency = &one.latency;
            if let Some(lost) = lost(&format!("{name}, {}", one.kind.name()), latency) {
                return Some(lost);
            }
            if told.is_none() || latency.p99_ms > slowest {
                slowest = latency.p99_ms;
                told = Some(format!(
                    "all opened, p99 {} ms ({name}, {}, {} received a second)",
                    short(latency.p99_ms),
                    one.kind.name(),
                    short(one.received_pps)
                ));
            }
        }
    }
    Some((!is_timed || slowest < AMID_MS, told?))
}

fn all_noise(fire: &Fire) -> Option<Vec<(&str, &UnderNoise)>> {
    let ours = ours(&fire.noise)?.into_iter();
    Some(ours.flat_map(|(name, kinds)| kinds.iter().map(move |one| (name, one))).collect())
}

fn growth(fire: &Fire) -> Judged {
    let all = all_noise(fire)?;
    let is_well = all.iter().all(|(_, one)| one.state_bytes == 0 && one.log_bytes <= LOG_BYTES);
    let (name, most) = all.iter().max_by_key(|(_, one)| one.log_bytes + one.state_bytes)?;
    let (log, state) = (most.log_bytes, most.state_bytes);
    let told = format!(
        "at most {log} bytes of log and {state} of state, by {} datagrams ({name}, {})",
        short(super::wire::as_f64(most.alone)),
        most.kind.name()
    );
    Some((is_well, told))
}

fn resident(fire: &Fire) -> Judged {
    let all = all_noise(fire)?;
    let first = all.iter().filter(|(_, one)| one.kind == Noise::Random);
    let before = first.map(|(_, one)| one.resident_before).max()?;
    let grown = all.iter().map(|(_, one)| one.resident_after.saturating_sub(one.resident_before));
    let grown = grown.max()?;
    let mib = |kib: u64| short(super::wire::as_f64(kib) / 1024.0);
    let told = format!("{} MiB, grown by {} MiB", mib(before), mib(grown));
    Some((before < RESIDENT && grown <= GROWTH, told))
}

/// The highest rate that it kept up with.
pub(super) fn kept_up(rates: &[Rate]) -> Option<&Rate> {
    rates.iter().filter(|rate| rate.keeps_up()).max_by_key(|rate| rate.wanted)
}

fn rates(fire: &Fire) -> Judged {
    let highest = |rates: &Vec<Rate>| kept_up(rates).map_or(0, |rate| rate.wanted);
    // One that did not even keep up with the first rate is judged as if it had.
    let at_least = |rates: &Vec<Rate>| rates.first().map_or(0, |first| first.wanted);
    let peers = of_role(&fire.rates, Role::Peer)
        .map(|(name, rates)| (highest(rates).max(at_least(rates)), name));
    let (best, peer) = peers.max_by_key(|(rate, _)| *rate)?;
    let ours = ours(&fire.rates)?.into_iter().map(|(name, rates)| (highest(rates), name));
    let (least, name) = ours.min_by_key(|(rate, _)| *rate)?;
    let (least, best) = (super::wire::as_f64(least), super::wire::as_f64(best));
    let told = format!(
        "{}x: {} a second by {} ({name} by {peer})",
        short(least / best.max(1.0)),
        short(least),
        short(best)
    );
    Some((least >= RATE * best && least > 0.0, told))
}

fn costs(fire: &Fire) -> Judged {
    let ours = fire.costs.iter().filter(|cost| cost.ours);
    let (found, told) = worst(ours.map(|cost| {
        let pps = short(cost.received_pps);
        (cost.ratio, format!("{}x ({}, at {pps} a second)", short(cost.ratio), cost.name))
    }))?;
    Some((found <= COST, told))
}

/// Resident bytes that a further client takes.
pub(super) fn client_bytes(few: &Crowd, many: &Crowd) -> f64 {
    let more = super::wire::as_f64(many.resident.saturating_sub(few.resident)) * 1024.0;
    more / to_f64(many.clients.saturating_sub(few.clients).max(1))
}

fn crowd(fire: &Fire, judge: impl Fn(&Crowd, &Crowd) -> (bool, String)) -> Judged {
    let crowds = fire.crowds.measured()?;
    let (few, many) = (crowds.first()?, crowds.last()?);
    if let Some(lost) = lost(&format!("{} clients", short_count(many.clients)), &many.latency) {
        return Some(lost);
    }
    Some(judge(few, many))
}

#[cfg(test)]
mod tests {
    use super::super::results::NoiseCost;
    use super::*;
    use crate::bench::results::{Machine, Outcome};

    fn latency(median_ms: f64) -> Latency {
        Latency { knocks: 200, opened: 200, median_ms, p99_ms: median_ms * 2.0, slowest_ms: 9.0 }
    }

    fn of<T>(role: Role, found: T) -> Of<T> {
        Of { name: format!("{role:?}"), role, outcome: Outcome::Measured(found) }
    }

    fn under(kind: Noise) -> UnderNoise {
        UnderNoise {
            kind,
            sent_pps: 1e6,
            received_pps: 1e6,
            seconds: 1.0,
            latency: latency(1.0),
            alone: 1_000_000,
            log_bytes: 100,
            state_bytes: 0,
            resident_before: 10_000,
            resident_after: 10_100,
        }
    }

    fn rate(wanted: u64, opened: usize) -> Rate {
        Rate {
            wanted,
            sent: 1.0,
            knocks: 100,
            opened,
            behind_ms: Some(10.0),
            losses: String::new(),
        }
    }

    fn good() -> Fire {
        let kinds = [Noise::Random, Noise::BrokenMac, Noise::Replays, Noise::Stale];
        let one = |clients, resident, median| Crowd {
            clients,
            start_seconds: 4.0,
            start_again_seconds: 1.0,
            resident,
            latency: latency(median),
            noise_ns: median,
        };
        Fire {
            machine: Machine::default(),
            quick: false,
            seconds: 0.0,
            singles: vec![
                of(Role::Floor, latency(0.1)),
                of(Role::Peer, latency(2.0)),
                of(Role::Ours, latency(0.19)),
            ],
            noise: vec![of(Role::Ours, kinds.map(under).to_vec())],
            costs: vec![NoiseCost {
                name: String::new(),
                ours: true,
                rate: None,
                received_pps: 1e6,
                seen: 1.0,
                ns: 1.0,
                ratio: 1.9,
                own_ns: 1.0,
                ratio_to_gathered: 20.0,
                sender_ns: 1.0,
            }],
            rates: vec![
                of(Role::Peer, vec![rate(600, 100), rate(1_000, 99)]),
                of(Role::Ours, vec![rate(30_000, 100)]),
            ],
            crowds: Outcome::Measured(vec![one(1, 1_000, 1.0), one(1_025, 1_399, 1.1)]),
        }
    }

    fn missed(spoil: impl FnOnce(&mut Fire)) -> Vec<usize> {
        let mut fire = good();
        spoil(&mut fire);
        let bars = fire_bars(&fire).into_iter().enumerate();
        bars.filter(|(_, bar)| bar.verdict != Verdict::Met).map(|(at, _)| at).collect()
    }

    fn found<T>(of: &mut Of<T>) -> &mut T {
        match &mut of.outcome {
            Outcome::Measured(found) => found,
            Outcome::NotRun(why) => panic!("{why}"),
        }
    }

    fn crowd(fire: &mut Fire) -> &mut Crowd {
        match &mut fire.crowds {
            Outcome::Measured(all) => &mut all[1],
            Outcome::NotRun(why) => panic!("{why}"),
        }
    }

    #[test]
    fn every_bar_is_missed_for_its_own_reason() {
        assert_eq!(missed(|_| ()), [0_usize; 0]);
        assert_eq!(missed(|fire| found(&mut fire.singles[2]).median_ms = 0.21), [0]);
        assert_eq!(missed(|fire| found(&mut fire.singles[2]).p99_ms = 1.1), [1]);
        assert_eq!(missed(|fire| found(&mut fire.singles[1]).median_ms = 1.0), [2]);
        assert_eq!(missed(|fire| found(&mut fire.singles[2]).opened = 199), [0, 1]);
        assert_eq!(missed(|fire| found(&mut fire.noise[0])[0].latency.p99_ms = 5.1), [3]);
        assert_eq!(missed(|fire| found(&mut fire.noise[0])[0].latency.opened = 199), [3]);
        assert_eq!(missed(|fire| found(&mut fire.noise[0])[2].latency.opened = 199), [4]);
        assert_eq!(missed(|fire| found(&mut fire.noise[0])[2].log_bytes = 5_000), [5]);
        assert_eq!(missed(|fire| found(&mut fire.noise[0])[2].state_bytes = 1), [5]);
        assert_eq!(missed(|fire| found(&mut fire.noise[0])[0].resident_before = 12_300), [6]);
        assert_eq!(missed(|fire| found(&mut fire.noise[0])[3].resident_after = 10_600), [6]);
        assert_eq!(missed(|fire| found(&mut fire.rates[1])[0].opened = 99), [7]);
        assert_eq!(missed(|fire| found(&mut fire.rates[0])[1].opened = 100), [7]);
        assert_eq!(missed(|fire| found(&mut fire.rates[1])[0].behind_ms = Some(400.0)), [7]);
        // Nobody's failure is a merit of ours.
        assert_eq!(missed(|fire| found(&mut fire.rates[0])[0].opened = 0), [0_usize; 0]);
        assert_eq!(
            missed(|fire| {
                found(&mut fire.rates[0])[0].opened = 0;
                found(&mut fire.rates[1])[0].wanted = 29_999;
            }),
            [7]
        );
        assert_eq!(missed(|fire| fire.costs[0].ratio = 2.1), [8]);
        assert_eq!(missed(|fire| crowd(fire).latency.median_ms = 1.3), [9]);
        assert_eq!(missed(|fire| crowd(fire).noise_ns = 1.6), [10]);
        assert_eq!(missed(|fire| crowd(fire).start_again_seconds = 3.1), [11]);
        assert_eq!(missed(|fire| crowd(fire).resident = 1_400), [12]);
    }

    #[test]
    fn what_was_not_measured_is_neither_met_nor_missed() {
        let mut fire = good();
        fire.singles[2].outcome = Outcome::NotRun("it is not there".into());
        let verdicts: Vec<_> = fire_bars(&fire).into_iter().map(|bar| bar.verdict).collect();
        assert_eq!(
            verdicts[..4],
            [Verdict::NotRun, Verdict::NotRun, Verdict::NotRun, Verdict::Met]
        );
    }
}
