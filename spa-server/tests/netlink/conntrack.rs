//! Connection tracking: entered here and looked at by `conntrack`, and the other way round.

use crate::place::Place;
use spa_proto::Transport;
use spa_server::netlink::conntrack::{Conntrack, Entered, Filter, TcpState, Tuple};
use spa_server::netlink::{Family, Reason};

const TCP: Filter<'_> = Filter { transport: Transport::Tcp, ports: None };
const UDP: Filter<'_> = Filter { transport: Transport::Udp, ports: None };

fn tuple(transport: Transport, source: &str, destination: &str) -> Tuple {
    Tuple { transport, source: source.parse().unwrap(), destination: destination.parse().unwrap() }
}

fn ssh4() -> Tuple {
    tuple(Transport::Tcp, "192.0.2.1:5000", "192.0.2.2:22")
}

/// The arguments by which the tool names a tuple.
fn words(tuple: &Tuple) -> String {
    format!(
        "-p {} -s {} -d {} --sport {} --dport {}",
        tuple.transport,
        tuple.source.ip(),
        tuple.destination.ip(),
        tuple.source.port(),
        tuple.destination.port()
    )
}

/// What the tool says of a flow, without the two numbers that differ each time: time and id.
fn listed(place: &Place, tuple: &Tuple) -> String {
    let family = if tuple.source.is_ipv4() { "ipv4" } else { "ipv6" };
    let out = place.on(&format!("conntrack -L -f {family} -o extended,id {}", words(tuple)));
    let line = out.lines().next().unwrap_or_default();
    line.split_whitespace()
        .enumerate()
        .filter(|(at, word)| *at != 4 && !word.starts_with("id="))
        .map(|(_, word)| word)
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn a_connection_is_entered_just_as_by_the_tool() {
    for tuple in [
        ssh4(),
        tuple(Transport::Tcp, "[2001:db8::1]:5000", "[2001:db8::2]:22"),
        tuple(Transport::Udp, "192.0.2.1:5000", "192.0.2.2:5001"),
        tuple(Transport::Udp, "[2001:db8::1]:5000", "[2001:db8::2]:5001"),
    ] {
        let (ours, theirs) = (Place::new(), Place::new());
        let whole = match tuple.transport {
            Transport::Tcp => "--state ESTABLISHED -t 432000",
            Transport::Udp => "-t 120",
        };
        theirs.on(&format!("conntrack -I {} {whole} -u SEEN_REPLY,ASSURED", words(&tuple)));
        let filter = Filter { transport: tuple.transport, ports: None };
        let made = ours.inside(|| {
            let mut conntrack = Conntrack::open().unwrap();
            assert_eq!(conntrack.find(&tuple).unwrap(), None);
            assert_eq!(conntrack.enter(&tuple).unwrap(), Entered::New);
            conntrack.dump(&[filter]).unwrap()
        });
        let tools = theirs.inside(|| Conntrack::open().unwrap().dump(&[filter]).unwrap());
        let ([made], [tools]) = (made.as_slice(), tools.as_slice()) else {
            panic!("{made:?} {tools:?}");
        };
        assert_eq!((made.original, made.reply), (tuple, tuple.reversed()));
        assert_eq!((made.original, made.reply), (tools.original, tools.reply));
        assert_eq!((made.status, made.tcp_state), (tools.status, tools.tcp_state));
        assert!(made.status.seen_reply() && made.status.assured());
        assert!(made.seconds_left.abs_diff(tools.seconds_left) < 30, "{made:?} {tools:?}");
        let seen = listed(&ours, &tuple);
        assert!(seen.contains("[ASSURED]") && !seen.contains("UNREPLIED"), "{seen}");
        assert_eq!(seen, listed(&theirs, &tuple));
    }
}

#[test]
fn an_entry_of_one_packet_becomes_that_of_a_connection() {
    let place = Place::new();
    let tuple = ssh4();
    place.on(&format!("conntrack -I {} --state SYN_SENT -t 77", words(&tuple)));
    assert!(listed(&place, &tuple).contains("[UNREPLIED]"));
    place.inside(|| {
        let mut conntrack = Conntrack::open().unwrap();
        assert_eq!(conntrack.create(&tuple).unwrap_err().reason(), Some(Reason::Exists));
        assert_eq!(conntrack.enter(&tuple).unwrap(), Entered::Confirmed);
        let flow = conntrack.find(&tuple).unwrap().unwrap();
        assert!(flow.status.seen_reply() && flow.status.assured());
        // Only the status changes, as with `conntrack -U … -u SEEN_REPLY,ASSURED`.
        assert_eq!(flow.tcp_state, Some(TcpState(1)));
        assert!((40..=77).contains(&flow.seconds_left), "{flow:?}");
        // Once more does no harm.
        assert_eq!(conntrack.enter(&tuple).unwrap(), Entered::Confirmed);
    });
    let seen = listed(&place, &tuple);
    assert!(seen.contains("[ASSURED]") && !seen.contains("UNREPLIED"), "{seen}");
}

#[test]
fn a_connection_that_this_host_began_is_left_as_it_is() {
    let place = Place::new();
    let tuple = ssh4();
    place.on(&format!("conntrack -I {} --state SYN_SENT -t 77", words(&tuple.reversed())));
    let before = listed(&place, &tuple.reversed());
    place.inside(|| {
        let mut conntrack = Conntrack::open().unwrap();
        assert_eq!(conntrack.enter(&tuple).unwrap(), Entered::OtherWay);
        assert!(!conntrack.confirm(&tuple).unwrap());
        let found = conntrack.find(&tuple).unwrap().unwrap();
        assert_eq!(found.original, tuple.reversed());
    });
    assert_eq!(listed(&place, &tuple.reversed()), before);
    assert!(before.contains("[UNREPLIED]"), "{before}");
}

#[test]
fn flows_are_picked_by_protocol_and_port() {
    let place = Place::new();
    place.inside(|| {
        let mut conntrack = Conntrack::open().unwrap();
        for port in [22, 80, 443, 8080] {
            for transport in [Transport::Tcp, Transport::Udp] {
                for (source, destination) in
                    [("192.0.2.1", "192.0.2.2"), ("[2001:db8::1]", "[2001:db8::2]")]
                {
                    let source = format!("{source}:5000");
                    let destination = format!("{destination}:{port}");
                    conntrack.create(&tuple(transport, &source, &destination)).unwrap();
                }
            }
        }
        let ensure_are = |conntrack: &mut Conntrack, filter: Filter<'_>, ports: &[u16]| {
            let flows = conntrack.dump(&[filter]).unwrap();
            assert!(flows.iter().all(|flow| flow.original.transport == filter.transport));
            for family in [Family::V4, Family::V6] {
                let of_it =
                    flows.iter().filter(|flow| Family::of(flow.original.source.ip()) == family);
                let mut found: Vec<_> =
                    of_it.map(|flow| flow.original.destination.port()).collect();
                found.sort_unstable();
                assert_eq!(found, ports, "{filter:?}, {family:?}");
            }
        };
        for all in [TCP, UDP] {
            ensure_are(&mut conntrack, all, &[22, 80, 443, 8080]);
        }
        // Few are asked for all at once, among many the kernel picks.
        for many in [false, true] {
            for port in (0..1100).filter(|_| many) {
                let source = format!("192.0.2.3:{}", 10_000 + port);
                let other = tuple(Transport::Tcp, &source, "192.0.2.2:9999");
                conntrack.create(&other).unwrap();
            }
            for all in [TCP, UDP] {
                let of = |ports| Filter { ports: Some(ports), ..all };
                ensure_are(&mut conntrack, of(&[443..=443]), &[443]);
                ensure_are(&mut conntrack, of(&[1..=22, 400..=9000]), &[22, 443, 8080]);
                ensure_are(&mut conntrack, of(&[]), &[]);
            }
            let both = [TCP, UDP].map(|all| Filter { ports: Some(&[22..=22]), ..all });
            assert_eq!(conntrack.dump(&both).unwrap().len(), 4, "{many}");
        }
    });
}

#[test]
fn deleting_spares_a_successor() {
    let place = Place::new();
    let tuple = ssh4();
    place.inside(|| {
        let mut conntrack = Conntrack::open().unwrap();
        conntrack.create(&tuple).unwrap();
        conntrack.create(&self::tuple(Transport::Tcp, "192.0.2.1:5001", "192.0.2.2:22")).unwrap();
        let first = conntrack.find(&tuple).unwrap().unwrap();
        assert!(conntrack.delete(&first).unwrap());
        assert!(!conntrack.delete(&first).unwrap());
        assert_eq!(conntrack.find(&tuple).unwrap(), None);
        assert_eq!(conntrack.dump(&[TCP]).unwrap().len(), 1);

        // The id comes from the entry's place in memory: others take the one that is free now.
        let second = (6000..6100)
            .find_map(|port| {
                let other = format!("192.0.2.1:{port}");
                let other = self::tuple(Transport::Tcp, &other, "192.0.2.2:22");
                conntrack.create(&other).unwrap();
                conntrack.create(&tuple).unwrap();
                let second = conntrack.find(&tuple).unwrap().unwrap();
                if second.id == first.id {
                    assert!(conntrack.delete(&second).unwrap());
                    return None;
                }
                Some(second)
            })
            .unwrap();
        assert!(!conntrack.delete(&first).unwrap());
        assert_eq!(conntrack.find(&tuple).unwrap().map(|found| found.id), Some(second.id));
    });
}
