//! What others change in nftables is noticed, and what they don't isn't.

use crate::place::Place;
use spa_server::netlink::events::{Event, Object, Subscription};
use spa_server::netlink::nft::{Element, ElementChange, Nft, SetName, TableFamily};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

const TABLE: &str = "table inet spa {
    set four { type ipv4_addr; flags timeout; }
}
";

/// All that is there to be read. The kernel has queued the events of a change before it answers
/// to who made the change.
fn drain(subscription: &mut Subscription) -> Vec<Event> {
    let mut events = Vec::new();
    loop {
        match subscription.read() {
            Ok(some) => events.extend(some),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return events,
            Err(error) => panic!("{error}"),
        }
    }
}

fn ruleset(object: Object, deleted: bool, family: TableFamily, table: &str) -> Event {
    Event::Ruleset { object, deleted, family, table: table.to_owned() }
}

#[test]
fn a_flush_of_iptables_and_of_everything_is_seen() {
    let (place, elsewhere) = (Place::new(), Place::new());
    let mut subscription = place.inside(|| Subscription::open().unwrap());
    let command = "iptables-nft -t mangle";
    place.on(&format!("{command} -N SPA-GUARD"));
    place.on(&format!("{command} -A SPA-GUARD -j RETURN"));
    let made = drain(&mut subscription);
    let in_mangle = |object, deleted| ruleset(object, deleted, TableFamily::IP, "mangle");
    assert!(made.contains(&in_mangle(Object::Chain, false)), "{made:?}");
    assert!(made.contains(&in_mangle(Object::Rule, false)), "{made:?}");
    assert!(!made.contains(&in_mangle(Object::Rule, true)), "{made:?}");
    assert!(matches!(made.last(), Some(Event::Committed { .. })), "{made:?}");

    place.on(&format!("{command} -F"));
    let flushed = drain(&mut subscription);
    assert!(flushed.contains(&in_mangle(Object::Rule, true)), "{flushed:?}");

    place.on("nft flush ruleset");
    let gone = drain(&mut subscription);
    assert!(gone.contains(&in_mangle(Object::Table, true)), "{gone:?}");

    // What happens elsewhere, and what only looks.
    elsewhere.on(&format!("{command} -N SPA-GUARD"));
    place.on("nft list ruleset");
    assert_eq!(drain(&mut subscription), []);
}

#[test]
fn elements_are_told_apart_from_rules() {
    let place = Place::new();
    place.feed("nft -f -", TABLE);
    let mut subscription = place.inside(|| Subscription::open().unwrap());
    assert_eq!(drain(&mut subscription), []);
    let elements = |deleted| Event::Elements {
        deleted,
        family: TableFamily::INET,
        table: "spa".to_owned(),
        set: "four".to_owned(),
    };
    place.on("nft add element inet spa four { 192.0.2.1 timeout 60s }");
    let events = drain(&mut subscription);
    let [first, Event::Committed { .. }] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(*first, elements(false));
    place.on("nft delete element inet spa four { 192.0.2.1 }");
    assert_eq!(drain(&mut subscription).first(), Some(&elements(true)));
    place.on("nft delete set inet spa four");
    let events = drain(&mut subscription);
    assert!(events.contains(&ruleset(Object::Set, true, TableFamily::INET, "spa")), "{events:?}");

    // Of many at once none is lost, and the number is that of the ruleset since then.
    place.feed("nft -f -", TABLE);
    drain(&mut subscription);
    place.inside(|| {
        let mut nft = Nft::open().unwrap();
        let set = SetName { family: TableFamily::INET, table: "spa", set: "four" };
        let changes: Vec<_> = (1..=10_000)
            .map(|n| ElementChange::Add {
                set,
                element: Element::Address(IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n))),
                timeout: Some(Duration::from_mins(1)),
            })
            .collect();
        nft.apply(&changes).unwrap();
        let generation = nft.generation().unwrap();
        let events = drain(&mut subscription);
        let Some((Event::Committed { generation: said, .. }, changed)) = events.split_last() else {
            panic!("{:?}", events.last());
        };
        assert_eq!(*said, generation);
        // To add is to add, delete and add again.
        let expected = [elements(false), elements(true)];
        let other = changed.iter().find(|event| !expected.contains(event));
        assert!(changed.contains(&expected[0]) && other.is_none(), "{other:?}");
    });
}

#[test]
fn a_reader_that_is_late_is_told_to_look_at_everything() {
    let place = Place::new();
    place.feed("nft -f -", TABLE);
    let mut subscription = place.inside(|| Subscription::open().unwrap());
    socket2::SockRef::from(&subscription).set_recv_buffer_size(4096).unwrap();
    for n in 1..=100 {
        place.on(&format!("nft add element inet spa four {{ 192.0.2.{n} }}"));
    }
    assert!(drain(&mut subscription).contains(&Event::Overflowed));
    // And it goes on.
    place.on("nft delete table inet spa");
    let events = drain(&mut subscription);
    assert!(events.contains(&ruleset(Object::Table, true, TableFamily::INET, "spa")), "{events:?}");
}

#[test]
fn a_thread_can_wait_for_events() {
    let place = Place::new();
    let mut subscription = place.inside(|| Subscription::open().unwrap());
    assert!(!subscription.wait(Duration::from_millis(50)).unwrap());
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let deadline = Instant::now() + Duration::from_secs(20);
            while !subscription.wait(Duration::from_secs(1)).unwrap() {
                assert!(Instant::now() < deadline, "nothing came");
            }
            subscription.read().unwrap()
        });
        place.on("nft add table inet spa");
        let events = waiting.join().unwrap();
        assert_eq!(events[0], ruleset(Object::Table, false, TableFamily::INET, "spa"));
    });
}
