//! What may happen, and how often.

use super::CLIENTS;
use super::model::{Rule, Rules, SECOND, SERVICES};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select, subsequence};

/// Neither at the beginning of an epoch nor of a second.
pub(super) const START: u64 = 1_800_000_030 * SECOND + 250_000;
pub(super) const ADDRESSES: [&str; 6] =
    ["192.0.2.7", "192.0.2.9", "192.0.2.77", "198.51.100.5", "2001:db8::7", "2001:db8:1::5"];
pub(super) const ITEMS: [&str; 10] = [
    "ssh",
    "web",
    "media",
    "db",
    "tcp/22",
    "tcp/443",
    "udp/10050",
    "tcp/5432",
    "tcp/9999",
    "nosuch",
];

#[derive(Debug, Clone)]
pub(super) enum Step {
    /// A knock is sent, and delivered at once.
    Send {
        knock: Knocking,
        harm: Option<Wound>,
        way: Way,
    },
    /// One that was sent before comes once more.
    Again {
        which: Index,
        way: Way,
    },
    /// Seconds pass, or the clock on the wall is set by microseconds.
    Pass(u64),
    Set(i64),
    /// The next process goes by the other rules, or the same.
    Restart {
        other_rules: bool,
        is_lost: bool,
    },
    /// Nothing is opened for a network, for so many seconds.
    Refuse {
        around: Index,
        prefix: u8,
        seconds: u64,
    },
}

#[derive(Debug, Clone)]
pub(super) struct Knocking {
    pub(super) client: usize,
    /// That of an earlier one of the same client.
    pub(super) old_nonce: Option<Index>,
    pub(super) off: i64,
    pub(super) is_open: bool,
    pub(super) items: Vec<&'static str>,
    pub(super) bound: Bound,
    pub(super) seconds: Option<u64>,
}

/// To which address.
#[derive(Debug, Clone, Copy)]
pub(super) enum Bound {
    Nowhere,
    /// To the one that it comes from.
    Here,
    To(&'static str),
}

/// How a datagram comes in.
#[derive(Debug, Clone)]
pub(super) struct Way {
    pub(super) from: &'static str,
    pub(super) interface: u32,
    pub(super) shape: Shape,
    /// It is carried out together with what comes next.
    pub(super) waits: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    Plain,
    Tagged,
    Padded,
    /// With IPv4 options, or IPv6 extension headers.
    Longer,
}

/// What happens to it on the way, or was wrong from the beginning.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wound {
    Bit(Index),
    Cut,
    Longer,
    ForAnotherServer,
    OfAStranger,
    Fragment,
    FromEverybody,
    CutFrame,
    NotUdp,
    NotIp,
}

pub(super) fn rule() -> impl Strategy<Value = Rule> {
    let names = SERVICES.map(|(name, ..)| name).to_vec();
    let sources = ["192.0.2.0/24", "192.0.2.0/29", "2001:db8::/32", "::/0", "0.0.0.0/0"];
    let within = |seconds: u64| {
        option::weighted(0.1, (0..seconds).prop_map(|after| START + after * SECOND + 1))
    };
    (
        prop::bool::weighted(0.95),
        subsequence(names, 2..=4),
        (60_u64..600, 1_u64..60),
        option::weighted(0.3, subsequence(sources.to_vec(), 1..3)),
        (within(100), within(600)),
        prop::bool::weighted(0.15),
        (select(vec![32, 32, 28, 24]), select(vec![128, 64])),
        (1_u64..120, 1_u64..8),
        1_usize..4,
    )
        .prop_map(
            |(
                enabled,
                allow,
                lifetimes,
                sources,
                times,
                must_be_bound,
                prefixes,
                rate,
                max_sources,
            )| Rule {
                enabled,
                allow,
                max_seconds: lifetimes.0,
                default_seconds: lifetimes.1,
                sources: sources.into_iter().flatten().map(|net| net.parse().unwrap()).collect(),
                not_before: times.0,
                expires: times.1,
                must_be_bound,
                prefixes,
                per_minute: rate.0,
                burst: rate.1,
                max_sources,
            },
        )
}

pub(super) fn rules() -> impl Strategy<Value = Rules> {
    vec(option::weighted(0.97, rule()), CLIENTS)
}

pub(super) fn knocking() -> impl Strategy<Value = Knocking> {
    let second = i64::try_from(SECOND).unwrap();
    let off = prop_oneof![
        6 => -2 * second..2 * second,
        3 => -70 * second..70 * second,
        3 => -400 * second..400 * second,
        // Right at the borders.
        1 => select(vec![-60 * second - 1, -60 * second, 60 * second, 60 * second + 1]),
    ];
    let items = prop_oneof![
        8 => select(&ITEMS[..2]).prop_map(|item| vec![item]),
        8 => subsequence(ITEMS.to_vec(), 1..3),
    ];
    let bound = prop_oneof![
        6 => Just(Bound::Nowhere),
        3 => Just(Bound::Here),
        1 => select(&ADDRESSES[..]).prop_map(Bound::To),
    ];
    let seconds = option::weighted(0.4, prop_oneof![9 => 1_u64..120, 1 => 1_u64..900]);
    (
        0..CLIENTS,
        option::weighted(0.05, any::<Index>()),
        off,
        prop::bool::weighted(0.8),
        items,
        bound,
        seconds,
    )
        .prop_map(|(client, old_nonce, off, is_open, items, bound, seconds)| Knocking {
            client,
            old_nonce,
            off,
            is_open,
            items,
            bound,
            seconds,
        })
}

pub(super) fn way() -> impl Strategy<Value = Way> {
    let shape = select(vec![Shape::Plain, Shape::Tagged, Shape::Padded, Shape::Longer]);
    (select(&ADDRESSES[..]), 1_u32..3, shape, prop::bool::weighted(0.2))
        .prop_map(|(from, interface, shape, waits)| Way { from, interface, shape, waits })
}

pub(super) fn wound() -> impl Strategy<Value = Wound> {
    prop_oneof![
        4 => any::<Index>().prop_map(Wound::Bit),
        1 => select(vec![Wound::Cut, Wound::Longer, Wound::ForAnotherServer, Wound::OfAStranger]),
        1 => select(vec![Wound::Fragment, Wound::FromEverybody, Wound::CutFrame, Wound::NotUdp, Wound::NotIp]),
    ]
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let second = i64::try_from(SECOND).unwrap();
    let set = prop_oneof![
        2 => -200 * second..200 * second,
        1 => -2 * second..2 * second,
        1 => -100_000 * second..100_000 * second,
    ];
    prop_oneof![
        40 => (knocking(), option::weighted(0.15, wound()), way())
            .prop_map(|(knock, harm, way)| Step::Send { knock, harm, way }),
        16 => (any::<Index>(), way()).prop_map(|(which, way)| Step::Again { which, way }),
        12 => prop_oneof![3 => 1_u64..10, 1 => 1_u64..130].prop_map(Step::Pass),
        1 => set.prop_map(Step::Set),
        2 => (any::<bool>(), prop::bool::weighted(0.1))
            .prop_map(|(other_rules, is_lost)| Step::Restart { other_rules, is_lost }),
        1 => (any::<Index>(), select(vec![24, 28, 32]), 1_u64..60)
            .prop_map(|(around, prefix, seconds)| Step::Refuse { around, prefix, seconds }),
    ]
}
