//! One table: what was found, and the beginning of what is said of it.

use super::super::facts::SeenBy;
use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn way(to: &str, trials: Vec<Trial>) -> Way {
    let own = if to.contains(':') { "2001:db8::7" } else { "10.0.0.7" };
    Way { to: ip(to), route: Ok(ip(own)), before: Some(Answer::Silent), trials }
}

fn trial(knock_port: u16, answer: Answer) -> Trial {
    Trial { knock_port, bound: None, not_sent: None, rejected: None, answer }
}

fn bound(to: &str, answer: Answer) -> Trial {
    Trial { bound: Some(ip(to)), ..trial(62201, answer) }
}

fn rejected(rejection: Rejection, answer: Answer) -> Trial {
    Trial { rejected: Some(rejection), ..trial(62201, answer) }
}

const OPEN: Answer = Answer::Open { milliseconds: 3 };
const SILENT: Answer = Answer::Silent;
const REFUSED: Answer = Answer::Refused;

fn unreachable() -> Answer {
    Answer::Unreachable("no route to host".into())
}

fn facts(ways: Vec<Way>) -> Facts {
    Facts {
        server: "work".into(),
        host: "gw".into(),
        service: "ssh".into(),
        port: 22,
        key: "spa-public-x".into(),
        ways,
        ..Facts::default()
    }
}

/// By IPv4 alone, with the answer of each trial.
fn v4(trials: Vec<Trial>) -> Facts {
    facts(vec![way("192.0.2.1", trials)])
}

fn seen(udp: &str, tcp: &str) -> Vec<SeenBy> {
    vec![SeenBy { v4: true, udp: Ok(ip(udp)), tcp: Ok(ip(tcp)) }]
}

#[test]
fn each_trouble_has_its_sentence_and_something_to_do() {
    let before = |answer: Answer, trials: Vec<Trial>| {
        let mut way = way("192.0.2.1", trials);
        way.before = Some(answer);
        facts(vec![way])
    };
    let no_route = || Way {
        route: Err("network is unreachable".into()),
        before: None,
        ..way("2001:db8::1", Vec::new())
    };
    let early = |early| Facts { early: Some(early), ..facts(Vec::new()) };
    let silent = || v4(vec![trial(62201, SILENT)]);
    let not_sent =
        Trial { not_sent: Some("operation not permitted".into()), ..trial(62201, SILENT) };
    let table: Vec<(Facts, bool, &str, &str)> = vec![
        (v4(vec![trial(62201, OPEN)]), true, "nothing is wrong: ssh on work opens", ""),
        (before(OPEN, Vec::new()), true, "ssh on work was open before the knock already", "wait"),
        (
            v4(vec![trial(62201, SILENT), trial(53, OPEN)]),
            true,
            "knocks to udp/62201 are dropped on the way from this network, those to udp/53 pass",
            "put 53 first in the knock-ports of work",
        ),
        (
            v4(vec![bound("192.0.2.7", SILENT), trial(62201, OPEN)]),
            true,
            "a router on the way changes the address 192.0.2.7 that knocks are bound to",
            "set bind-source = \"observed\"",
        ),
        (
            facts(vec![no_route(), way("192.0.2.1", vec![trial(62201, OPEN)])]),
            true,
            "IPv4 works and IPv6 does not: network is unreachable",
            "until IPv6 is mended: spa-client open -4 ssh@work",
        ),
        (
            facts(vec![
                way("192.0.2.1", vec![trial(62201, SILENT)]),
                way("2001:db8::1", vec![trial(62201, OPEN)]),
            ]),
            true,
            "IPv6 works and IPv4 does not: no answer",
            "until IPv4 is mended: spa-client open -6 ssh@work",
        ),
        (
            facts(vec![
                way("192.0.2.1", vec![trial(62201, OPEN)]),
                way("192.0.2.2", vec![trial(62201, unreachable())]),
            ]),
            true,
            "ssh opens, but not at 192.0.2.2: no route to host",
            "look at that machine",
        ),
        (
            Facts { ahead: Some(-31.0), ..v4(vec![trial(62201, OPEN)]) },
            true,
            "ssh on work opens, but this machine's clock is 31 s behind",
            "let the system keep its clock",
        ),
        (
            early(Early::Key(
                "there is no identity key a yet; make one with: spa-client keygen".into(),
            )),
            false,
            "this client's key can't be used: there is no identity key a yet",
            "make one with: spa-client keygen",
        ),
        (
            early(Early::Name("\"gw\" does not resolve; check it".into())),
            false,
            "the name of the server can't be used: \"gw\" does not resolve",
            "check it",
        ),
        (
            early(Early::Clock("it says a day before 2025; set the clock".into())),
            false,
            "this machine's clock can't be used",
            "set the clock",
        ),
        (
            facts(vec![no_route()]),
            false,
            "this machine has no way to gw: network is unreachable",
            "is it online?",
        ),
        (
            v4(vec![not_sent]),
            false,
            "no knock leaves this machine: operation not permitted",
            "does a firewall on this machine",
        ),
        (
            Facts { ahead: Some(3600.4), ..silent() },
            false,
            "this machine's clock is 3600 s ahead, so that the server takes no knock of it",
            "set the clock",
        ),
        (
            v4(vec![trial(62201, REFUSED)]),
            false,
            "the knock opened tcp/22, but nothing listens there",
            "on the server: does the service run",
        ),
        (
            before(REFUSED, vec![rejected(Rejection::Port, REFUSED)]),
            false,
            "gw refuses tcp/22 and the knock port alike: either no gate hides them, or one that refuses",
            "is it the right machine?",
        ),
        (
            before(REFUSED, vec![trial(62201, REFUSED)]),
            false,
            "tcp/22 is refused with a knock as without one",
            "on the server, right after a knock: ",
        ),
        (
            v4(vec![rejected(Rejection::Forbidden, SILENT)]),
            false,
            "a firewall on the way forbids knocks to udp/62201",
            "use another network, or let the server take another knock port",
        ),
        (
            v4(vec![rejected(Rejection::Port, SILENT)]),
            false,
            "a firewall on the way rejects knocks to udp/62201, or no gate hides them at gw",
            "on the server: spa-server status",
        ),
        (
            v4(vec![trial(62201, unreachable())]),
            false,
            "gw can't be reached: no route to host; the server is down",
            "is the address right",
        ),
        (
            Facts { seen: seen("192.0.2.8", "192.0.2.9"), ..silent() },
            false,
            "UDP leaves this network by the address 192.0.2.8 and TCP by 192.0.2.9",
            "use IPv6 or another network",
        ),
        (
            Facts {
                seen: seen("192.0.2.8", "192.0.2.8"),
                ..v4(vec![bound("198.51.100.7", SILENT), trial(62201, SILENT)])
            },
            false,
            "knocks are bound to 198.51.100.7, but leave this network by 192.0.2.8",
            "set bind-source = \"observed\"",
        ),
        (
            v4(vec![bound("198.51.100.7", SILENT)]),
            false,
            "knocks are bound to 198.51.100.7, but leave this network by 10.0.0.7",
            "set bind-source = \"observed\"",
        ),
        (
            Facts { synchronised: Some(false), ..silent() },
            false,
            "nothing comes back, and this system says that its clock is not synchronised",
            "let the system keep its clock",
        ),
        (
            silent(),
            false,
            "the knocks leave and nothing comes back: the server takes no knock of this client for ssh",
            "on the server, right after a knock: ",
        ),
        // A clock that is known to be right is no cause, whatever the system says of itself.
        (
            Facts { ahead: Some(0.1), synchronised: Some(false), ..silent() },
            false,
            "the knocks leave and nothing comes back",
            "on the server, right after a knock: ",
        ),
    ];
    for (facts, opens, cause, advice) in table {
        let Diagnosis { opens: told, cause: why, advice: now } = Diagnosis::of(&facts);
        assert_eq!(told, opens, "{why}");
        assert!(why.starts_with(cause), "{why:?} is not {cause:?}");
        assert!(!why.ends_with('.') && !why.contains('\n'), "one sentence: {why:?}");
        match now {
            Some(now) => assert!(now.starts_with(advice) && !advice.is_empty(), "{now:?}"),
            None => assert_eq!(advice, ""),
        }
    }
}

#[test]
fn where_the_log_alone_can_tell_it_is_said_what_to_look_for() {
    let now = Diagnosis::of(&v4(vec![trial(62201, SILENT)])).advice.unwrap();
    assert!(
        now.contains("spa-server client add NAME --public-key spa-public-x --allow ssh"),
        "{now}"
    );
    assert!(now.contains("(the provider's, say) drops tcp/22"), "{now}");
    assert!(now.contains("UDP and TCP leave this network by different addresses"), "{now}");
}
