//! nftables sets: made by `nft`, filled here, looked at by `nft`.

use crate::place::{Place, processor_time};
use spa_proto::Transport;
use spa_server::netlink::nft::{Element, ElementChange, Nft, SetName, TableFamily};
use spa_server::netlink::{NetlinkError, Reason};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

/// Hash sets and interval sets of both families, as a gate has them.
const TABLE: &str = "table inet spa {
    set one4 { type ipv4_addr . inet_proto . inet_service; flags timeout; }
    set one6 { type ipv6_addr . inet_proto . inet_service; flags timeout; }
    set some4 { type ipv4_addr . inet_proto . inet_service; flags interval, timeout; }
    set some6 { type ipv6_addr . inet_proto . inet_service; flags interval, timeout; }
    set all4 { type ipv4_addr; flags timeout; }
    set plain6 { type ipv6_addr; }
    set trial { type inet_proto; flags timeout; }
    set tiny { type ipv4_addr; size 2; flags timeout; }
    chain judge { ip saddr . meta l4proto . th dport @one4 accept; }
}
";

const fn of(set: &str) -> SetName<'_> {
    SetName { family: TableFamily::INET, table: "spa", set }
}

fn ports(source: &str, first: u16, last: u16) -> Element {
    Element::Ports { source: source.parse().unwrap(), transport: Transport::Tcp, first, last }
}

fn address(text: &str) -> Element {
    Element::Address(text.parse().unwrap())
}

fn add<'a>(set: &'a str, element: &Element, seconds: u64) -> ElementChange<'a> {
    let timeout = (seconds > 0).then(|| Duration::from_secs(seconds));
    ElementChange::Add { set: of(set), element: element.clone(), timeout }
}

fn delete<'a>(set: &'a str, element: &Element) -> ElementChange<'a> {
    ElementChange::Delete { set: of(set), element: element.clone() }
}

/// What `nft` prints between the braces of a set's elements, in one line.
fn printed(place: &Place, set: &str) -> String {
    let out = place.on(&format!("nft list set inet spa {set}"));
    let elements = out.split_once("elements = {").map_or("", |(_, rest)| rest);
    let elements = elements.split('}').next().unwrap_or_default();
    elements.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn with_table() -> Place {
    let place = Place::new();
    place.feed("nft -f -", TABLE);
    place
}

#[test]
fn every_kind_of_set_is_filled_and_the_tool_reads_it() {
    let place = with_table();
    let cases = [
        ("one4", ports("192.0.2.1/32", 22, 22), "192.0.2.1 . tcp . 22 "),
        ("one6", ports("2001:db8::1/128", 22, 22), "2001:db8::1 . tcp . 22 "),
        ("some4", ports("192.0.2.0/24", 8000, 8010), "192.0.2.0/24 . tcp . 8000-8010 "),
        ("some4", ports("192.0.2.1/32", 22, 22), "192.0.2.1 . tcp . 22 "),
        ("some6", ports("2001:db8::/56", 22, 23), "2001:db8::/56 . tcp . 22-23 "),
        ("all4", address("192.0.2.1"), "192.0.2.1 "),
        ("trial", Element::Key(vec![6]), "tcp "),
    ];
    place.inside(|| {
        let mut nft = Nft::open().unwrap();
        for (set, element, text) in cases {
            assert_eq!(nft.elements(of(set)).unwrap(), []);
            nft.apply(&[add(set, &element, 600)]).unwrap();
            let seen = printed(&place, set);
            assert!(seen.starts_with(&format!("{text}timeout 10m expires ")), "{seen}");
            let live = nft.elements(of(set)).unwrap();
            let [live] = live.as_slice() else { panic!("{live:?}") };
            assert_eq!(live.element, element);
            assert_eq!(live.timeout, Some(Duration::from_mins(10)));
            let left = live.expires_in.unwrap();
            assert!((570..=600).contains(&left.as_secs()), "{left:?}");
            nft.apply(&[delete(set, &element)]).unwrap();
            assert_eq!(printed(&place, set), "");
        }
        let one = address("2001:db8::1");
        nft.apply(&[add("plain6", &one, 0)]).unwrap();
        assert_eq!(printed(&place, "plain6"), "2001:db8::1");
        let live = nft.elements(of("plain6")).unwrap();
        assert_eq!((&live[0].element, live[0].timeout, live[0].expires_in), (&one, None, None));
    });
}

#[test]
fn adding_again_gives_the_new_time_and_the_kernel_takes_it_out_in_the_end() {
    let place = with_table();
    place.inside(|| {
        let mut nft = Nft::open().unwrap();
        for (set, element) in [
            ("one4", ports("192.0.2.1/32", 22, 22)),
            ("some4", ports("192.0.2.0/28", 22, 29)),
            ("some6", ports("2001:db8::/64", 22, 22)),
        ] {
            let left = |nft: &mut Nft| {
                let live = nft.elements(of(set)).unwrap();
                assert_eq!(live.len(), 1, "{live:?}");
                live[0].expires_in.unwrap().as_secs()
            };
            nft.apply(&[add(set, &element, 10)]).unwrap();
            assert!(left(&mut nft) <= 10);
            nft.apply(&[add(set, &element, 1000)]).unwrap();
            assert!(left(&mut nft) > 900);
            nft.apply(&[add(set, &element, 1)]).unwrap();
            assert!(left(&mut nft) <= 1);
            let deadline = Instant::now() + Duration::from_secs(10);
            while !nft.elements(of(set)).unwrap().is_empty() {
                assert!(Instant::now() < deadline, "{:?}", nft.elements(of(set)));
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    });
}

#[test]
fn a_transaction_is_made_whole_or_not_at_all() {
    let place = with_table();
    place.inside(|| {
        let mut nft = Nft::open().unwrap();
        let (one, two) = (ports("192.0.2.1/32", 22, 22), ports("192.0.2.2/32", 22, 22));
        nft.apply(&[add("one4", &one, 600)]).unwrap();

        let before = nft.generation().unwrap();
        let error = nft
            .apply(&[add("one4", &two, 60), add("none", &two, 60), delete("one4", &one)])
            .unwrap_err();
        assert_eq!(error.reason(), Some(Reason::Missing), "{error}");
        assert!(error.to_string().starts_with("cannot change nftables set inet spa none: "));
        assert_eq!(nft.generation().unwrap(), before);
        assert!(printed(&place, "one4").starts_with("192.0.2.1 . tcp . 22 timeout 10m "));

        // A key of another length, and a time where the set has none.
        let six = ports("2001:db8::1/128", 22, 22);
        assert!(matches!(nft.apply(&[add("one4", &six, 60)]), Err(NetlinkError::Refused { .. })));
        assert!(nft.apply(&[add("plain6", &address("2001:db8::1"), 60)]).is_err());
        // The positive control, and what was deleted that was not there.
        nft.apply(&[add("one4", &two, 60), delete("one4", &one), delete("one6", &six)]).unwrap();
        assert!(printed(&place, "one4").starts_with("192.0.2.2 . tcp . 22 timeout 1m "));
        assert_eq!(printed(&place, "one6"), "");
        assert!(nft.generation().unwrap() > before);
        nft.apply(&[]).unwrap();
    });
}

#[test]
fn what_overlaps_and_what_is_too_much_is_said() {
    let place = with_table();
    place.inside(|| {
        let mut nft = Nft::open().unwrap();
        nft.apply(&[add("some4", &ports("192.0.2.0/24", 22, 22), 600)]).unwrap();
        for within in ["192.0.2.7/32", "192.0.2.64/26"] {
            let error = nft.apply(&[add("some4", &ports(within, 22, 22), 60)]).unwrap_err();
            assert_eq!(error.reason(), Some(Reason::Overlaps), "{error}");
        }
        nft.apply(&[add("some4", &ports("192.0.2.7/32", 23, 23), 60)]).unwrap();

        let [one, two, three] = ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(address);
        nft.apply(&[add("tiny", &one, 60), add("tiny", &two, 60)]).unwrap();
        let error = nft.apply(&[add("tiny", &three, 60)]).unwrap_err();
        assert_eq!(error.reason(), Some(Reason::Full), "{error}");
        assert_eq!(nft.elements(of("tiny")).unwrap().len(), 2);
        // What is in it can still be changed.
        nft.apply(&[add("tiny", &one, 600), delete("tiny", &three)]).unwrap();
        assert!(printed(&place, "tiny").contains("192.0.2.1 timeout 10m "));
        nft.apply(&[add("tiny", &three, 60), delete("tiny", &two)]).unwrap();
        assert_eq!(nft.elements(of("tiny")).unwrap().len(), 2);
    });
}

#[test]
fn ten_thousand_changes_are_one_transaction_of_under_a_second() {
    let place = with_table();
    place.inside(|| {
        let mut nft = Nft::open().unwrap();
        let element = |n: u32| {
            let address = IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n));
            let source = ipnet::IpNet::from(address);
            Element::Ports { source, transport: Transport::Udp, first: 5000, last: 5000 }
        };
        let changes: Vec<_> = (1..=10_000).map(|n| add("one4", &element(n), 600)).collect();
        let before = nft.generation().unwrap();
        let begun = processor_time();
        nft.apply(&changes).unwrap();
        let took = processor_time().checked_sub(begun).unwrap();
        assert!(took < Duration::from_secs(1), "{took:?}");
        assert_eq!(nft.generation().unwrap(), before + 1);
        let mut found: Vec<_> =
            nft.elements(of("one4")).unwrap().into_iter().map(|live| live.element).collect();
        found.sort_unstable();
        assert!(found.into_iter().eq((1..=10_000).map(element)));

        // The same again, half of it going; one that fails at the very end changes nothing.
        let mut changes: Vec<_> = (1..=10_000)
            .map(|n| {
                if n % 2 == 0 { add("one4", &element(n), 60) } else { delete("one4", &element(n)) }
            })
            .collect();
        changes.push(add("none", &element(1), 60));
        assert_eq!(nft.apply(&changes).unwrap_err().reason(), Some(Reason::Missing));
        assert_eq!(nft.elements(of("one4")).unwrap().len(), 10_000);
        changes.pop();
        nft.apply(&changes).unwrap();
        let live = nft.elements(of("one4")).unwrap();
        assert_eq!(live.len(), 5000);
        assert!(live.iter().all(|live| live.expires_in.unwrap() <= Duration::from_mins(1)));
    });
}
