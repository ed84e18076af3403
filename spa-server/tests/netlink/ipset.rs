//! Sets: made and filled here, looked at by the `ipset` tool, and the other way round.

use crate::place::{Place, processor_time};
use spa_proto::Port;
use spa_server::netlink::Family;
use spa_server::netlink::ipset::{Entry, Ipset, SetChange, SetKind, SetSize};
use spa_server::netlink::{NetlinkError, Reason};
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

fn port(text: &str) -> Port {
    text.parse().unwrap()
}

fn at(address: &str, number: &str) -> Entry {
    Entry::AddressPort(address.parse().unwrap(), port(number))
}

fn add(set: &str, entry: Entry, seconds: u32) -> SetChange<'_> {
    SetChange::Add { set, entry, seconds: NonZeroU32::new(seconds) }
}

/// The members that `ipset list` prints, sorted, with the times left out.
fn members(place: &Place, set: &str) -> Vec<String> {
    let listed = place.on(&format!("ipset list {set}"));
    let mut members: Vec<_> = listed
        .lines()
        .skip_while(|line| *line != "Members:")
        .skip(1)
        .map(|line| line.split(" timeout ").next().unwrap().to_owned())
        .collect();
    members.sort_unstable();
    members
}

#[test]
fn every_kind_of_set_is_filled_and_the_tool_reads_it() {
    let place = Place::new();
    let port = port("tcp/22");
    let cases: [(SetKind, Family, Entry, &str); 8] = [
        (SetKind::Ip, Family::V4, Entry::Address("192.0.2.1".parse().unwrap()), "192.0.2.1"),
        (SetKind::Ip, Family::V6, Entry::Address("2001:db8::1".parse().unwrap()), "2001:db8::1"),
        (SetKind::IpPort, Family::V4, at("192.0.2.1", "udp/53"), "192.0.2.1,udp:53"),
        (SetKind::IpPort, Family::V6, at("2001:db8::1", "tcp/22"), "2001:db8::1,tcp:22"),
        (SetKind::Net, Family::V4, Entry::Network("192.0.2.0/24".parse().unwrap()), "192.0.2.0/24"),
        (
            SetKind::Net,
            Family::V6,
            Entry::Network("2001:db8::/32".parse().unwrap()),
            "2001:db8::/32",
        ),
        (
            SetKind::NetPort,
            Family::V4,
            Entry::NetworkPort("198.51.100.0/25".parse().unwrap(), port),
            "198.51.100.0/25,tcp:22",
        ),
        (
            SetKind::NetPort,
            Family::V6,
            Entry::NetworkPort("2001:db8:1::/48".parse().unwrap(), port),
            "2001:db8:1::/48,tcp:22",
        ),
    ];
    place.inside(|| {
        let mut ipset = Ipset::open().unwrap();
        for (kind, family, entry, printed) in cases {
            assert_eq!(ipset.info("one").unwrap(), None);
            ipset.create("one", kind, family, SetSize::growing(100)).unwrap();
            let info = ipset.info("one").unwrap().unwrap();
            assert!(info.is(kind, family), "{info:?}");
            assert_eq!((info.max_elements, info.entries, info.references), (Some(100), 0, 0));

            ipset.apply(&[add("one", entry, 600)]).unwrap();
            assert_eq!(members(&place, "one"), [printed]);
            assert_eq!(ipset.info("one").unwrap().unwrap().entries, 1);
            let entries = ipset.entries("one").unwrap();
            let [(found, Some(seconds))] = entries.as_slice() else { panic!("{entries:?}") };
            assert_eq!(*found, entry);
            assert!((570..=600).contains(seconds), "{seconds}");

            ipset.apply(&[SetChange::Delete { set: "one", entry }]).unwrap();
            assert_eq!(members(&place, "one"), [""; 0]);
            ipset.destroy("one").unwrap();
        }
        assert_eq!(place.on("ipset list -n"), "");
    });
}

#[test]
fn what_the_tool_made_is_read() {
    let place = Place::new();
    place.on("ipset create theirs hash:net,port family inet6 maxelem 50 timeout 77");
    place.on("ipset add theirs 2001:db8::/56,udp:5000 timeout 0");
    place.on("ipset add theirs 2001:db8:1::1,tcp:22");
    place.on("ipset add theirs 2001:db8:2::1,sctp:22");
    place.on("ipset create plain hash:ip");
    place.on("ip6tables -A INPUT -m set --match-set theirs src,dst -j ACCEPT");
    place.inside(|| {
        let mut ipset = Ipset::open().unwrap();
        let info = ipset.info("theirs").unwrap().unwrap();
        assert_eq!(info.kind, "hash:net,port");
        assert_eq!(info.family, Some(Family::V6));
        assert_eq!((info.max_elements, info.default_timeout), (Some(50), 77));
        assert_eq!((info.entries, info.references), (3, 1));
        assert!(!info.is(SetKind::NetPort, Family::V6));
        assert!(!ipset.info("plain").unwrap().unwrap().has_timeout);

        let mut entries = ipset.entries("theirs").unwrap();
        entries.sort_unstable_by_key(|(_, seconds)| seconds.is_none());
        let [(host, Some(75..=77)), (network, None)] = entries.as_slice() else {
            panic!("{entries:?}");
        };
        let expected = Entry::NetworkPort("2001:db8:1::1/128".parse().unwrap(), port("tcp/22"));
        assert_eq!(*host, expected);
        assert_eq!(host.to_string(), "2001:db8:1::1/128,tcp/22");
        let expected = Entry::NetworkPort("2001:db8::/56".parse().unwrap(), port("udp/5000"));
        assert_eq!(*network, expected);

        assert_eq!(ipset.destroy("theirs").unwrap_err().reason(), Some(Reason::InUse));
    });
}

#[test]
fn adding_again_gives_the_new_time_and_the_kernel_takes_it_out_in_the_end() {
    let place = Place::new();
    place.inside(|| {
        let mut ipset = Ipset::open().unwrap();
        ipset.create("spa4", SetKind::IpPort, Family::V4, SetSize::growing(10)).unwrap();
        let entry = at("192.0.2.1", "tcp/22");
        let seconds = |ipset: &mut Ipset| ipset.entries("spa4").unwrap()[0].1;
        ipset.apply(&[add("spa4", entry, 10)]).unwrap();
        assert!(seconds(&mut ipset).unwrap() <= 10);
        ipset.apply(&[add("spa4", entry, 1000)]).unwrap();
        assert!(seconds(&mut ipset).unwrap() > 900);
        ipset.apply(&[add("spa4", entry, 0)]).unwrap();
        assert_eq!(seconds(&mut ipset), None);
        ipset.apply(&[add("spa4", entry, 1)]).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while ipset.info("spa4").unwrap().unwrap().entries > 0 {
            assert!(Instant::now() < deadline, "{:?}", ipset.entries("spa4"));
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(ipset.entries("spa4").unwrap(), []);
    });
}

#[test]
fn a_refused_change_is_named_and_the_others_are_made() {
    let place = Place::new();
    place.inside(|| {
        let mut ipset = Ipset::open().unwrap();
        ipset.create("spa4", SetKind::IpPort, Family::V4, SetSize::growing(3)).unwrap();
        let entries = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"].map(|a| at(a, "tcp/22"));
        let [first, second, third, fourth] = entries;
        let error = ipset
            .apply(&[
                add("spa4", first, 60),
                add("none", first, 60),
                add("spa4", at("2001:db8::1", "tcp/22"), 60),
                add("spa4", Entry::Address("192.0.2.9".parse().unwrap()), 60),
                SetChange::Delete { set: "spa4", entry: fourth },
                add("spa4", second, 60),
                add("spa4", third, 60),
                add("spa4", fourth, 60),
            ])
            .unwrap_err();
        assert_eq!(error.reason(), Some(Reason::Missing));
        assert_eq!(
            error.to_string(),
            "cannot make 4 of 8 changes of sets; the first: add 192.0.2.1,tcp/22 to set none: \
             No such file or directory (os error 2)"
        );
        let NetlinkError::Changes { failed, .. } = error else { panic!("{error:?}") };
        let seen: Vec<_> = failed.iter().map(|one| (one.index, one.refusal.reason())).collect();
        assert_eq!(
            seen,
            [
                (1, Reason::Missing),
                (2, Reason::WrongKind),
                (3, Reason::WrongKind),
                (7, Reason::Full),
            ]
        );
        assert_eq!(
            members(&place, "spa4"),
            ["192.0.2.1,tcp:22", "192.0.2.2,tcp:22", "192.0.2.3,tcp:22"]
        );
        // A set that is full still takes a new time for what it has.
        ipset.apply(&[add("spa4", third, 90)]).unwrap();
    });
}

#[test]
fn sets_are_swapped_renamed_emptied_and_only_the_named_one() {
    let place = Place::new();
    place.inside(|| {
        let mut ipset = Ipset::open().unwrap();
        ipset.create("small", SetKind::Ip, Family::V4, SetSize::growing(2)).unwrap();
        ipset.create("large", SetKind::Ip, Family::V4, SetSize::growing(2000)).unwrap();
        let again =
            ipset.create("large", SetKind::Ip, Family::V4, SetSize::growing(2000)).unwrap_err();
        assert_eq!(again.reason(), Some(Reason::Exists), "{again}");
        ipset.create("other", SetKind::Ip, Family::V6, SetSize::growing(2)).unwrap();
        let one = Entry::Address("192.0.2.1".parse().unwrap());
        ipset.apply(&[add("small", one, 60)]).unwrap();

        ipset.swap("small", "large").unwrap();
        assert_eq!(ipset.info("small").unwrap().unwrap().max_elements, Some(2000));
        assert_eq!(members(&place, "large"), ["192.0.2.1"]);
        let unlike = ipset.swap("small", "other").unwrap_err();
        assert_eq!(unlike.reason(), Some(Reason::WrongKind), "{unlike}");

        ipset.apply(&[add("small", one, 60)]).unwrap();
        ipset.flush("large").unwrap();
        assert_eq!(ipset.info("large").unwrap().unwrap().entries, 0);
        assert_eq!(members(&place, "small"), ["192.0.2.1"]);

        ipset.rename("large", "larger").unwrap();
        ipset.destroy("larger").unwrap();
        assert_eq!(place.on("ipset list -n"), "small\nother\n");
        ipset.destroy("larger").unwrap();
        for error in [
            ipset.flush("larger").unwrap_err(),
            ipset.swap("larger", "small").unwrap_err(),
            ipset.entries("larger").unwrap_err(),
        ] {
            assert_eq!(error.reason(), Some(Reason::Missing), "{error}");
        }
        // A name that is too long is refused, not cut.
        let long = "a".repeat(32);
        assert!(ipset.create(&long, SetKind::Ip, Family::V4, SetSize::growing(2)).is_err());
        assert_eq!(place.on("ipset list -n"), "small\nother\n");
    });
}

#[test]
fn ten_thousand_changes_at_once_are_made_in_under_a_second() {
    let place = Place::new();
    place.inside(|| {
        let mut ipset = Ipset::open().unwrap();
        ipset.create("spa4", SetKind::IpPort, Family::V4, SetSize::growing(100_000)).unwrap();
        let entry = |n: u32| {
            let address = IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n));
            Entry::AddressPort(address, port("tcp/22"))
        };
        let changes: Vec<_> = (1..=10_000).map(|n| add("spa4", entry(n), 600)).collect();
        let begun = processor_time();
        ipset.apply(&changes).unwrap();
        let took = processor_time().checked_sub(begun).unwrap();
        assert!(took < Duration::from_secs(1), "{took:?}");
        assert_eq!(ipset.info("spa4").unwrap().unwrap().entries, 10_000);
        let mut entries: Vec<_> =
            ipset.entries("spa4").unwrap().into_iter().map(|(entry, _)| entry).collect();
        entries.sort_unstable();
        assert!(entries.into_iter().eq((1..=10_000).map(entry)));

        // Every one of them refused: no answer is lost.
        let changes: Vec<_> = (1..=10_000).map(|n| add("none", entry(n), 600)).collect();
        let NetlinkError::Changes { failed, all: 10_000 } = ipset.apply(&changes).unwrap_err()
        else {
            panic!("not refused");
        };
        assert!(failed.iter().map(|one| one.index).eq(0..10_000));
    });
}

#[test]
fn without_the_capability_it_is_said_that_it_is_not_permitted() {
    let place = Place::new();
    let uid = "65534";
    place.inside(|| assert!(Ipset::open().is_ok()));
    // The test itself, as nobody.
    let test = std::env::current_exe().unwrap();
    let name = "ipset::opening_as_whoever_this_is";
    let out = place.feed(
        &format!(
            "setpriv --reuid {uid} --clear-groups {} --exact {name} --nocapture",
            test.display()
        ),
        "",
    );
    assert!(out.contains("opened: Some(NotPermitted)"), "{out}");
}

/// For the test above, which runs it as another user; as root it has nothing to say.
#[test]
fn opening_as_whoever_this_is() {
    println!("opened: {:?}", Ipset::open().map_err(|error| error.reason()).err().flatten());
}
