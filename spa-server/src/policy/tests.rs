//! What is allowed and what is refused.

use super::*;
use crate::service::{Forward, ForwardTo, Target};
use spa_proto::{Items, Nonce, Request, ServerKey};
use std::num::NonZeroU32;

const CLIENT: ClientId = ClientId([1; 32]);
const NOW: UnixMicros = UnixMicros::from_secs(1_800_000_000);

fn services() -> Services {
    let ports = |texts: &[&str]| {
        Service::plain(texts.iter().map(|text| text.parse::<PortRange>().unwrap()))
    };
    [
        ("ssh".parse().unwrap(), ports(&["tcp/22"])),
        ("web".parse().unwrap(), ports(&["tcp/80", "tcp/443", "udp/443"])),
        ("db".parse().unwrap(), ports(&["tcp/5432"])),
    ]
    .into()
}

fn rules() -> ClientRules {
    ClientRules {
        enabled: true,
        allow: ["ssh", "web"].into_iter().map(|name| name.parse().unwrap()).collect(),
        max_lifetime: Duration::from_secs(3600),
        default_lifetime: Duration::from_secs(30),
        sources: Vec::new(),
        not_before: None,
        expires: None,
        require_bound_source: false,
        prefixes: Prefixes::default(),
        rate: Rate::default(),
        max_sources: 16,
    }
}

fn knock(items: &[&str]) -> Knock {
    let items: Vec<Item> = items.iter().map(|item| item.parse().unwrap()).collect();
    Knock {
        server_key: ServerKey::Present,
        client: CLIENT,
        nonce: Nonce([9; 24]),
        stamp: NOW,
        source: "192.0.2.7".parse().unwrap(),
        request: Request {
            message_type: MessageType::Open,
            items: Items::try_from(items).unwrap(),
            bound_source: None,
            lifetime: None,
        },
    }
}

fn judge(rules: ClientRules, knock: &Knock) -> Result<Permit, Refusal> {
    Policy::new(services(), [(CLIENT, "laptop", rules)]).judge(knock, NOW)
}

fn asking(knock: Knock, seconds: u32) -> Knock {
    let lifetime = NonZeroU32::new(seconds);
    Knock { request: Request { lifetime, ..knock.request }, ..knock }
}

fn closing(knock: Knock) -> Knock {
    let message_type = MessageType::Close;
    Knock { request: Request { message_type, ..knock.request }, ..knock }
}

#[test]
fn a_service_stands_for_all_its_ports_and_a_port_for_itself() {
    let permit = judge(rules(), &knock(&["web", "udp/443", "ssh"])).unwrap();
    let seen: Vec<_> = permit
        .grants
        .iter()
        .map(|Permitted { item, ports, .. }| {
            let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
            format!("{item}: {}", ports.join(" "))
        })
        .collect();
    assert_eq!(seen, ["web: tcp/80 tcp/443 udp/443", "udp/443: udp/443", "ssh: tcp/22"]);
    assert_eq!((&*permit.client, permit.lifetime.as_secs()), ("laptop", 30));
}

#[test]
fn what_a_client_is_not_allowed_is_refused_by_name() {
    for item in ["db", "tcp/5432", "nowhere", "udp/22", "tcp/23"] {
        let refused = judge(rules(), &knock(&["ssh", item])).unwrap_err();
        assert_eq!(refused, Refusal::ServiceNotAllowed(item.parse().unwrap()));
    }
    assert!(judge(rules(), &knock(&["ssh"])).is_ok());
}

#[test]
fn a_service_that_is_allowed_but_not_there_is_refused() {
    let rules = ClientRules { allow: ["gone".parse().unwrap()].into(), ..rules() };
    let refused = judge(rules, &knock(&["gone"])).unwrap_err();
    assert_eq!(refused.to_string(), "service-not-allowed (gone)");
}

#[test]
fn a_disabled_client_and_an_unknown_one_are_refused() {
    let disabled = ClientRules { enabled: false, ..rules() };
    assert_eq!(judge(disabled, &knock(&["ssh"])), Err(Refusal::Disabled));
    let stranger = Knock { client: ClientId([2; 32]), ..knock(&["ssh"]) };
    assert_eq!(judge(rules(), &stranger), Err(Refusal::UnknownClient));
}

#[test]
fn dates_hold_to_the_microsecond() {
    let second = Duration::from_secs(1);
    let later = NOW.saturating_add(second);
    let with = |not_before, expires| {
        judge(ClientRules { not_before, expires, ..rules() }, &knock(&["ssh"])).err()
    };
    assert_eq!(with(Some(NOW), Some(later)), None);
    assert_eq!(with(Some(UnixMicros(NOW.0 + 1)), None), Some(Refusal::NotYetValid));
    assert_eq!(with(None, Some(NOW)), Some(Refusal::Expired));
    assert_eq!(with(None, Some(UnixMicros(NOW.0 + 1))), None);
}

#[test]
fn nothing_is_open_for_longer_than_the_client_is_valid() {
    let in_seconds = |seconds| Some(NOW.saturating_add(Duration::from_secs(seconds)));
    let lifetime = |expires, asked| {
        let permit = judge(ClientRules { expires, ..rules() }, &asking(knock(&["ssh"]), asked));
        permit.unwrap().lifetime.as_secs()
    };
    assert_eq!(lifetime(in_seconds(10), 600), 10);
    assert_eq!(lifetime(in_seconds(600), 600), 600);
    assert_eq!(lifetime(None, 600), 600);
    // Asking for more than the maximum is refused all the same.
    let expires = ClientRules { expires: in_seconds(10), ..rules() };
    assert!(judge(expires, &asking(knock(&["ssh"]), 3601)).is_err());
}

#[test]
fn sources_hold_for_both_families() {
    let rules = ClientRules {
        sources: vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
        ..rules()
    };
    for (source, allowed) in [
        ("192.0.2.255", true),
        ("192.0.3.0", false),
        ("::ffff:192.0.2.7", true),
        ("2001:db8:ffff::1", true),
        ("2001:db9::1", false),
    ] {
        let knock = Knock { source: source.parse().unwrap(), ..knock(&["ssh"]) };
        let refused = judge(rules.clone(), &knock).err();
        assert_eq!(refused, (!allowed).then_some(Refusal::SourceNotAllowed), "{source}");
    }
}

#[test]
fn a_bound_source_may_be_required() {
    let rules = ClientRules { require_bound_source: true, ..rules() };
    let unbound = knock(&["ssh"]);
    assert_eq!(judge(rules.clone(), &unbound), Err(Refusal::BoundSourceRequired));
    let bound_source = Some(unbound.source);
    let bound = Knock { request: Request { bound_source, ..unbound.request }, ..unbound };
    assert!(judge(rules, &bound).is_ok());
}

#[test]
fn a_lifetime_over_the_maximum_is_refused_and_not_clipped() {
    let permit = judge(rules(), &asking(knock(&["ssh"]), 3600)).unwrap();
    assert_eq!(permit.lifetime.as_secs(), 3600);
    let refused = judge(rules(), &asking(knock(&["ssh"]), 3601)).unwrap_err();
    assert_eq!(refused.to_string(), "lifetime (asked 3601 s, maximum 3600 s)");
}

#[test]
fn a_close_needs_the_services_and_no_lifetime() {
    let close = closing(asking(knock(&["ssh"]), 1_000_000));
    assert!(judge(rules(), &close).is_ok());
    assert_eq!(
        judge(rules(), &closing(knock(&["db"]))),
        Err(Refusal::ServiceNotAllowed("db".parse().unwrap()))
    );
}

#[test]
fn a_new_policy_upholds_or_forbids_what_is_open() {
    let source = "192.0.2.7".parse().unwrap();
    let upholds = |rules: ClientRules, item: &str, ports: &[&str]| {
        let ports: Vec<PortRange> = ports.iter().map(|port| port.parse().unwrap()).collect();
        let policy = Policy::new(services(), [(CLIENT, "laptop", rules)]);
        let had = Permitted { item: item.parse().unwrap(), ports, connections: Connections::Any };
        policy.upholds(&CLIENT, source, &had, NOW).err()
    };
    assert_eq!(upholds(rules(), "ssh", &["tcp/22"]), None);
    assert_eq!(upholds(rules(), "tcp/443", &["tcp/443"]), None);
    let not_allowed = |item: &str| Some(Refusal::ServiceNotAllowed(item.parse().unwrap()));
    assert_eq!(upholds(rules(), "ssh", &["tcp/2222"]), not_allowed("ssh"));
    assert_eq!(upholds(rules(), "db", &["tcp/5432"]), not_allowed("db"));
    let disabled = ClientRules { enabled: false, ..rules() };
    assert_eq!(upholds(disabled, "ssh", &["tcp/22"]), Some(Refusal::Disabled));
    let elsewhere = ClientRules { sources: vec!["10.0.0.0/8".parse().unwrap()], ..rules() };
    assert_eq!(upholds(elsewhere, "ssh", &["tcp/22"]), Some(Refusal::SourceNotAllowed));
}

#[test]
fn a_network_around_the_knock_is_admitted_but_no_more_than_may_knock() {
    let prefixes = Prefixes { v4: 24, v6: 64 };
    let source = |rules: ClientRules, from: &str| {
        let knock = Knock { source: from.parse().unwrap(), ..knock(&["ssh"]) };
        judge(rules, &knock).unwrap().source.to_string()
    };
    let rules = || ClientRules { prefixes, ..rules() };
    assert_eq!(source(rules(), "192.0.2.7"), "192.0.2.0/24");
    assert_eq!(source(rules(), "::ffff:192.0.2.7"), "192.0.2.0/24");
    assert_eq!(source(rules(), "2001:db8::1:2"), "2001:db8::/64");
    let only = |nets: &[&str]| ClientRules {
        sources: nets.iter().map(|net| net.parse().unwrap()).collect(),
        ..rules()
    };
    assert_eq!(source(only(&["192.0.2.0/28"]), "192.0.2.7"), "192.0.2.0/28");
    assert_eq!(source(only(&["192.0.0.0/16", "192.0.2.7/32"]), "192.0.2.7"), "192.0.2.0/24");

    let policy = |rules| Policy::new(services(), [(CLIENT, "laptop", rules)]);
    let upholds = |rules, source: &str| {
        let had = Permitted {
            item: "ssh".parse().unwrap(),
            ports: vec!["tcp/22".parse().unwrap()],
            connections: Connections::Any,
        };
        policy(rules).upholds(&CLIENT, source.parse().unwrap(), &had, NOW)
    };
    assert_eq!(upholds(rules(), "192.0.2.0/24"), Ok(()));
    assert_eq!(upholds(rules(), "192.0.2.7"), Ok(()));
    let narrower = ClientRules { prefixes: Prefixes { v4: 25, v6: 64 }, ..rules() };
    assert_eq!(upholds(narrower, "192.0.2.0/24"), Err(Refusal::SourceNotAllowed));
}

#[test]
fn ports_of_a_range_can_be_asked_for_and_forwards_need_an_address_of_the_family() {
    let to = ForwardTo { address: "10.0.0.5".parse().unwrap(), port: None };
    let forward = Forward { v4: Some(to), v6: None, masquerade: false };
    let nas = Service {
        target: Target::Forward(forward),
        ..Service::plain(["tcp/8000-8100".parse::<PortRange>().unwrap()])
    };
    let services: Services = [("nas".parse().unwrap(), nas)].into();
    let rules = ClientRules { allow: ["nas".parse().unwrap()].into(), ..rules() };
    let policy = Policy::new(services, [(CLIENT, "laptop", rules)]);
    let ports = |item: &str, from: &str| {
        let knock = Knock { source: from.parse().unwrap(), ..knock(&[item]) };
        let permit = policy.judge(&knock, NOW)?;
        Ok(permit.grants[0].ports.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert_eq!(ports("nas", "192.0.2.7"), Ok(vec!["tcp/8000-8100".into()]));
    assert_eq!(ports("tcp/8050", "192.0.2.7"), Ok(vec!["tcp/8050".into()]));
    let refused: Refusal = ports("tcp/8101", "192.0.2.7").unwrap_err();
    assert_eq!(refused.to_string(), "service-not-allowed (tcp/8101)");
    for item in ["nas", "tcp/8050"] {
        let refused: Refusal = ports(item, "2001:db8::1").unwrap_err();
        assert_eq!(refused, Refusal::FamilyNotServed(item.parse().unwrap()));
    }
}

#[test]
fn a_service_for_one_connection_is_so_by_each_port_and_what_was_for_more_is_not_upheld() {
    let desk = Service {
        connections: Connections::One,
        ..Service::plain(["tcp/5900-5903".parse::<PortRange>().unwrap()])
    };
    let services: Services = [("desk".parse().unwrap(), desk)].into();
    let rules = ClientRules { allow: ["desk".parse().unwrap()].into(), ..rules() };
    let policy = Policy::new(services, [(CLIENT, "laptop", rules)]);
    for item in ["desk", "tcp/5901"] {
        let permit = policy.judge(&knock(&[item]), NOW).unwrap();
        let had = permit.grants[0].clone();
        assert_eq!(had.connections, Connections::One, "{item}");
        let upheld = |had: &Permitted| policy.upholds(&CLIENT, permit.source, had, NOW);
        assert_eq!(upheld(&had), Ok(()));
        let unlimited = Permitted { connections: Connections::Any, ..had.clone() };
        assert_eq!(upheld(&unlimited), Err(Refusal::ServiceNotAllowed(had.item)));
    }
}

const fn id(number: u8) -> ClientId {
    ClientId([number; 32])
}

/// Two clients who are known, one who is invited.
fn three() -> Policy {
    let entry =
        |name: &str| Entry { introduction: None, name: name.into(), rules: Arc::new(rules()) };
    let known = vec![(id(2), entry("phone")), (id(1), entry("laptop"))];
    Policy::of_clients(services(), Clients::new(known, [(id(9), entry("guest"))]))
}

fn enabled(policy: &Policy) -> Vec<(ClientId, Introduction, &str)> {
    let mut enabled: Vec<_> = policy.enabled().collect();
    enabled.sort_unstable_by_key(|(id, ..)| *id);
    enabled
}

#[test]
fn who_is_invited_is_listed_and_may_announce_but_does_not_knock() {
    let policy = three();
    assert_eq!(**policy.clients.keys(), [id(1), id(2)]);
    assert!(policy.client(&id(1)).is_some() && policy.client(&id(9)).is_none());
    assert_eq!([1, 9, 7].map(|it| policy.name(&id(it))), [Some("laptop"), Some("guest"), None]);
    assert_eq!([1, 9, 7].map(|it| policy.is_enabled(&id(it))), [true, true, false]);
    assert_eq!(policy.clients_named("phone"), Some(vec![id(2)]));
    assert_eq!(policy.clients_named("guest"), Some(vec![]));
    assert_eq!(policy.clients_named("nobody"), None);
    let source = "192.0.2.7".parse().unwrap();
    assert_eq!(policy.judge_announcement(&id(9), source, NOW), Ok("guest"));
    assert_eq!(policy.judge_announcement(&id(7), source, NOW), Err(Refusal::UnknownClient));
    let invited = Knock { client: id(9), ..knock(&["ssh"]) };
    assert_eq!(policy.judge(&invited, NOW), Err(Refusal::UnknownClient));
}

#[test]
fn a_key_that_came_later_has_the_rules_and_the_beginning_of_the_one_it_came_from() {
    let policy = three().with_key(id(3), &id(1)).with_key(id(4), &id(9)).with_key(id(5), &id(7));
    assert!(policy.judge(&Knock { client: id(3), ..knock(&["ssh"]) }, NOW).is_ok());
    assert_eq!([3, 4, 5].map(|it| policy.name(&id(it))), [Some("laptop"), Some("guest"), None]);
    assert_eq!(policy.clients_named("laptop"), Some(vec![id(1), id(3)]));
    assert_eq!(policy.clients_named("guest"), Some(vec![id(4)]));
    let key = |number| Introduction::Key(id(number).into());
    let all = [
        (id(1), key(1), "laptop"),
        (id(2), key(2), "phone"),
        (id(3), key(1), "laptop"),
        (id(4), key(9), "guest"),
        (id(9), key(9), "guest"),
    ];
    assert_eq!(enabled(&policy), all);
    // The former key goes, and the one that came from it stays.
    let policy = policy.without_key(&id(1));
    assert_eq!(policy.judge(&knock(&["ssh"]), NOW), Err(Refusal::UnknownClient));
    assert_eq!(policy.clients_named("laptop"), Some(vec![id(3)]));
    assert_eq!(enabled(&policy), all[1..]);
    assert_eq!(policy.all().count(), 4);
}

#[test]
fn who_is_locked_out_is_known_and_disabled_whether_by_key_or_by_invitation() {
    let policy = three().without(&[id(1), id(9), id(7)]);
    assert_eq!(policy.judge(&knock(&["ssh"]), NOW), Err(Refusal::Disabled));
    assert_eq!([1, 2, 9].map(|it| policy.is_enabled(&id(it))), [false, true, false]);
    assert_eq!(policy.clients_named("laptop"), Some(vec![id(1)]));
    assert_eq!(policy.clients_named("guest"), Some(vec![]));
    let source = "192.0.2.7".parse().unwrap();
    assert_eq!(policy.judge_announcement(&id(9), source, NOW), Err(Refusal::Disabled));
    assert_eq!(enabled(&policy).iter().map(|(id, ..)| *id).collect::<Vec<_>>(), [id(2)]);
    let mut all: Vec<_> = policy.all().map(|(name, rules)| (name, rules.enabled)).collect();
    all.sort_unstable();
    assert_eq!(all, [("guest", false), ("laptop", false), ("phone", true)]);
}

#[test]
fn a_refusal_says_what_there_is_to_say_of_it() {
    let item = || "db".parse().unwrap();
    let (asked, max) = (Duration::from_secs(7200), Duration::from_secs(3600));
    for (refusal, text) in [
        (Refusal::Rate, "rate"),
        (Refusal::ServiceNotAllowed(item()), "service-not-allowed (db)"),
        (Refusal::FamilyNotServed(item()), "family-not-served (db)"),
        (Refusal::SourceRefused("192.0.2.0/24".parse().unwrap()), "source-refused (192.0.2.0/24)"),
        (Refusal::Lifetime { asked, max }, "lifetime (asked 7200 s, maximum 3600 s)"),
    ] {
        assert_eq!(refusal.to_string(), text);
    }
}

#[test]
fn whoever_may_have_something_may_knock_from_there() {
    let mut rules = rules();
    let may = |rules: &ClientRules, source: &str| may_have(rules, source.parse().unwrap());
    assert!(may(&rules, "198.51.100.5") && !may(&rules, "198.51.100.0/24"));
    rules.sources = vec!["192.0.2.0/24".parse().unwrap()];
    assert!(may(&rules, "192.0.2.7") && !may(&rules, "198.51.100.5"));
    rules.prefixes.v4 = 16;
    assert!(may(&rules, "192.0.2.0/24") && !may(&rules, "192.0.0.0/16"));
}

#[test]
fn every_refusal_is_named_once() {
    let duration = Duration::ZERO;
    let all = [
        Refusal::UnknownClient,
        Refusal::Disabled,
        Refusal::NotYetValid,
        Refusal::Expired,
        Refusal::SourceNotAllowed,
        Refusal::BoundSourceRequired,
        Refusal::ServiceNotAllowed("ssh".parse().unwrap()),
        Refusal::FamilyNotServed("nas".parse().unwrap()),
        Refusal::SourceRefused("192.0.2.7".parse().unwrap()),
        Refusal::Lifetime { asked: duration, max: duration },
        Refusal::Rate,
        Refusal::MaxSources,
        Refusal::MaxGrants,
    ];
    let names: Vec<_> = all.iter().map(Refusal::as_str).collect();
    assert_eq!(names, Refusal::ALL);
}
