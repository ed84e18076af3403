use super::super::fire::{NoiseCost, Rate};
use super::super::results::Outcome;
use super::*;

/// A run with figures for every plot, and a program that was not run.
pub(crate) fn example() -> Fire {
    fn of<T>(name: &str, role: Role, found: T) -> Of<T> {
        Of { name: name.into(), role, outcome: Outcome::Measured(found) }
    }
    fn absent<T>() -> Of<T> {
        let outcome = Outcome::NotRun("it is not installed".into());
        Of { name: "absentee".into(), role: Role::Peer, outcome }
    }
    let latency = |opened, median_ms| Latency {
        knocks: 200,
        opened,
        median_ms,
        p99_ms: median_ms * 3.0,
        slowest_ms: median_ms * 9.0,
    };
    let under = |kind, latency, resident_before| UnderNoise {
        kind,
        sent_pps: 1e5,
        received_pps: 1e5,
        seconds: 1.0,
        latency,
        alone: 100_000,
        log_bytes: 0,
        state_bytes: 0,
        resident_before,
        resident_after: resident_before + 512,
    };
    let rate = |wanted, opened| Rate {
        wanted,
        sent: 100.0,
        knocks: 100,
        opened,
        behind_ms: None,
        losses: String::new(),
    };
    let cost = |name: &str, ours, rate, ns| NoiseCost {
        name: name.into(),
        ours,
        rate,
        received_pps: 1e5,
        seen: 1.0,
        ns,
        ratio: 1.0,
        own_ns: ns,
        ratio_to_gathered: 20.0,
        sender_ns: 3_000.0,
    };
    Fire {
        singles: vec![
            of("kernel alone", Role::Floor, latency(200, 0.1)),
            of("peer <1> & co", Role::Peer, latency(200, 12.5)),
            of("nobody's door", Role::Peer, latency(0, 0.0)),
            absent(),
            of("ours, sets", Role::Ours, latency(200, 0.4)),
        ],
        noise: vec![
            of("kernel alone", Role::Floor, vec![under(Noise::Random, latency(200, 0.2), 0)]),
            of("peer <1> & co", Role::Peer, vec![under(Noise::Random, latency(9, 0.0), 5_000)]),
            absent(),
            of(
                "ours, sets",
                Role::Ours,
                vec![
                    under(Noise::Random, latency(200, 0.4), 9_000),
                    under(Noise::Stale, latency(199, 0.5), 9_000),
                ],
            ),
        ],
        costs: vec![
            cost("a counter", false, Some(100_000), 2_000.0),
            cost("ours, sets", true, Some(100_000), 3_000.0),
            cost("a counter", false, None, 1_000.0),
            cost("ours, sets", true, None, 1_500.0),
        ],
        rates: vec![
            of("peer <1> & co", Role::Peer, vec![rate(100, 100), rate(300, 75)]),
            of("nobody's door", Role::Peer, Vec::new()),
            absent(),
            of("ours, sets", Role::Ours, vec![rate(100, 100), rate(30_000, 100)]),
        ],
        ..Fire::default()
    }
}

/// As SVG writes it.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&apos;")
}

/// Every tag is closed, in order, and nothing stands between tags that begins another.
fn ensure_well_formed(svg: &str) {
    let mut open = Vec::new();
    for piece in svg.split('<').skip(1) {
        let (tag, text) = piece.split_once('>').unwrap();
        assert!(!text.contains('>'), "{piece}");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "{svg}");
        } else if !tag.ends_with('/') {
            open.push(tag.split_whitespace().next().unwrap());
        }
        assert!(tag.matches('"').count().is_multiple_of(2), "{tag}");
    }
    assert!(open.is_empty() && svg.starts_with("<svg "), "{svg}");
}

#[test]
fn every_plot_has_all_programs_that_were_run_and_no_other() {
    let mut fire = example();
    fire.costs[3].ns = f64::NAN;
    let plots = plots(&fire).unwrap();
    let told: Vec<_> = plots.iter().map(|plot| plot.name).collect();
    assert_eq!(told, ["one-knock", "amid-noise", "memory", "noise-cost", "knocks-a-second"]);
    for (plot, names) in plots.iter().zip([
        ["kernel alone", "peer <1> & co", "nobody's door", "ours, sets"].as_slice(),
        &["kernel alone: random", "peer <1> & co: random", "ours, sets: random", "sets: stale"],
        &["peer <1> & co", "ours, sets"],
        &["a counter", "ours, sets"],
        &["peer <1> & co", "ours, sets"],
    ]) {
        ensure_well_formed(&plot.svg);
        assert!(plot.svg.contains(&escaped(plot.caption)), "{}", plot.svg);
        for name in names {
            assert!(plot.svg.contains(&escaped(name)), "{name}: {}", plot.svg);
        }
        for absent in ["absentee", "NaN", "inf"] {
            assert!(!plot.svg.contains(absent), "{absent}: {}", plot.svg);
        }
    }
    let amid = &plots[1].svg;
    assert!(amid.contains("199 of 200 opened") && amid.contains("9 of 200 opened"), "{amid}");
    assert!(plots[0].svg.contains("0 of 200 opened"), "{}", plots[0].svg);
    // The kernel's memory is not nothing, but unknown; a rate that nobody was asked for is no line.
    assert!(!plots[2].svg.contains("kernel alone"), "{}", plots[2].svg);
    assert!(!plots[4].svg.contains("nobody"), "{}", plots[4].svg);
}

#[test]
fn a_rate_that_was_not_kept_up_with_is_a_ring() {
    let rings = |fire: &Fire| {
        let svg = knocks_a_second(fire).unwrap().unwrap();
        svg.lines().filter(|line| line.starts_with("<circle") && line.contains("#FFFFFF")).count()
    };
    let mut fire = example();
    // Nobody has told when the last knock was open.
    assert_eq!(rings(&fire), 4);
    if let Outcome::Measured(rates) = &mut fire.rates[3].outcome {
        rates[0].behind_ms = Some(10.0);
        rates[1].behind_ms = Some(10_000.0);
    }
    assert_eq!(rings(&fire), 3);
}

#[test]
fn the_same_results_make_the_same_bytes() {
    assert_eq!(plots(&example()).unwrap(), plots(&example()).unwrap());
    let mut other = example();
    if let Outcome::Measured(latency) = &mut other.singles[1].outcome {
        latency.median_ms *= 2.0;
    }
    assert_ne!(one_knock(&other).unwrap(), one_knock(&example()).unwrap());
}

#[test]
fn of_nothing_nothing_is_drawn() {
    assert_eq!(plots(&Fire::default()).unwrap(), []);
}

#[test]
fn a_program_has_its_colour_in_every_plot() {
    let mut fire = example();
    let palette = Palette::of(&fire);
    assert_eq!(palette.colour("ours, sets"), OURS[0]);
    assert_eq!(palette.colour("peer <1> & co"), PEERS[0]);
    assert_eq!(palette.colour("a counter"), NEUTRAL);
    let of_all = [palette.colour("nobody's door"), palette.colour("absentee")];
    assert_eq!(of_all, [PEERS[1], PEERS[2]]);
    // Also when it is in only one of them.
    fire.singles.clear();
    fire.noise.clear();
    assert_eq!(Palette::of(&fire).colour("ours, sets"), OURS[0]);
}
