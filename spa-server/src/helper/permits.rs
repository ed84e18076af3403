//! What some client may have open: what the helper admits, whoever asks. Pure.

use crate::gate::Element;
use crate::policy::{ClientRules, Prefixes, Services, may_have};
use crate::service::Service;
use ipnet::IpNet;
use spa_proto::{PortRange, UnixMicros};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// All that the clients of a configuration may have open.
///
/// Who has expired when they are made has nothing. Of the others' rules it leaves out what the clock may
/// change (`not-before`, `expires`), and what is for the worker alone to tell: whose knock it was.
#[derive(Debug, Default)]
pub(super) struct Permits(HashMap<PortRange, Vec<Permit>>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Permit {
    rules: Arc<ClientRules>,
    seconds: u32,
    v4: bool,
    v6: bool,
}

impl Permits {
    pub(super) fn new(
        services: &Services,
        rules: impl IntoIterator<Item = Arc<ClientRules>>,
        now: UnixMicros,
    ) -> Self {
        let mut permits: HashMap<PortRange, Vec<Permit>> = HashMap::new();
        let mut known = HashSet::new();
        let is_there = |rules: &Arc<ClientRules>| {
            rules.enabled && rules.expires.is_none_or(|expires| now < expires)
        };
        for rules in rules.into_iter().filter(is_there) {
            let seconds = u32::try_from(rules.max_lifetime.as_secs()).unwrap_or(u32::MAX);
            for (name, service) in rules.allow.iter().filter_map(|it| services.get_key_value(it)) {
                let (v4, v6) = families(service);
                // Most clients differ in nothing that counts here.
                let shape = (name.clone(), seconds, shape(&rules));
                if !known.insert(shape) {
                    continue;
                }
                let permit = Permit { rules: Arc::clone(&rules), seconds, v4, v6 };
                for ports in &service.ports {
                    permits.entry(*ports).or_default().push(permit.clone());
                }
            }
        }
        // Those that suffice for most are found first.
        for permits in permits.values_mut() {
            permits.sort_by_key(|permit| {
                (!permit.rules.sources.is_empty(), u32::MAX - permit.seconds)
            });
        }
        Self(permits)
    }

    /// For how many of these seconds some client may have this; `None`: none may.
    ///
    /// A grant that was opened under longer ones lasts on, so what is too long is cut.
    pub(super) fn seconds(&self, element: Element, wanted: u32) -> Option<u32> {
        let Element { source, ports } = element;
        let is_single = ports.single().is_some();
        let of_ports = self
            .0
            .iter()
            .filter(|(permitted, _)| **permitted == ports || is_single && permitted.covers(ports));
        let mut most = None;
        for permit in of_ports.flat_map(|(_, permits)| permits) {
            let serves = if source.address().is_ipv4() { permit.v4 } else { permit.v6 };
            if !serves || !may_have(&permit.rules, source) {
                continue;
            }
            // Up to a second of rounding, twice.
            most = most.max(Some(wanted.min(permit.seconds.saturating_add(2))));
            if most == Some(wanted) {
                break;
            }
        }
        most
    }
}

fn shape(rules: &ClientRules) -> (Vec<IpNet>, Prefixes) {
    (rules.sources.clone(), rules.prefixes)
}

fn families(service: &Service) -> (bool, bool) {
    let serves = |address: std::net::IpAddr| service.target.serves(address);
    (serves(std::net::Ipv4Addr::UNSPECIFIED.into()), serves(std::net::Ipv6Addr::UNSPECIFIED.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Rate;
    use crate::service::{Connections, Forward, ForwardTo, Target};
    use std::time::Duration;

    fn rules(allow: &[&str], hours: u64, sources: &[&str]) -> ClientRules {
        ClientRules {
            enabled: true,
            allow: allow.iter().map(|name| name.parse().unwrap()).collect(),
            max_lifetime: Duration::from_secs(hours * 3600),
            default_lifetime: Duration::from_secs(30),
            sources: sources.iter().map(|net| net.parse().unwrap()).collect(),
            not_before: None,
            expires: None,
            require_bound_source: false,
            prefixes: Prefixes::default(),
            rate: Rate::default(),
            max_sources: 16,
        }
    }

    fn services() -> Services {
        let plain = |ports: &str| Service::plain(ports.split(' ').map(|one| one.parse().unwrap()));
        let to = ForwardTo { address: "10.0.0.5".parse().unwrap(), port: None };
        let forward = Forward { v4: Some(to), v6: None, masquerade: false };
        let inner = Service {
            ports: ["tcp/443".parse().unwrap()].into(),
            target: Target::Forward(forward),
            connections: Connections::Any,
        };
        [("ssh", plain("tcp/22")), ("games", plain("udp/5000-5010 tcp/5000")), ("inner", inner)]
            .map(|(name, service)| (name.parse().unwrap(), service))
            .into()
    }

    const NOW: UnixMicros = UnixMicros(1_700_000_000_000_000);

    fn permits(rules: impl IntoIterator<Item = ClientRules>) -> Permits {
        Permits::new(&services(), rules.into_iter().map(Arc::new), NOW)
    }

    fn seconds(permits: &Permits, ports: &str, source: &str, wanted: u32) -> Option<u32> {
        let element = Element { source: source.parse().unwrap(), ports: ports.parse().unwrap() };
        permits.seconds(element, wanted)
    }

    #[test]
    fn what_no_client_may_open_is_admitted_to_nobody() {
        let of_ssh = permits([rules(&["ssh"], 1, &[])]);
        assert_eq!(seconds(&of_ssh, "tcp/22", "192.0.2.7", 30), Some(30));
        assert_eq!(seconds(&of_ssh, "tcp/22", "2001:db8::7", 30), Some(30));
        for ports in ["tcp/5000", "udp/22", "tcp/23", "tcp/443", "tcp/1-65535", "tcp/22-23"] {
            assert_eq!(seconds(&of_ssh, ports, "192.0.2.7", 30), None, "{ports}");
        }
        let disabled = ClientRules { enabled: false, ..rules(&["ssh"], 1, &[]) };
        assert_eq!(seconds(&permits([disabled]), "tcp/22", "192.0.2.7", 30), None);
        assert_eq!(seconds(&permits([]), "tcp/22", "192.0.2.7", 30), None);
    }

    #[test]
    fn who_has_expired_has_nothing_and_who_is_yet_to_come_has() {
        let of = |expires: u64, not_before: u64| {
            let [expires, not_before] = [expires, not_before].map(|it| Some(UnixMicros(it)));
            let one = permits([ClientRules { not_before, expires, ..rules(&["ssh"], 1, &[]) }]);
            seconds(&one, "tcp/22", "192.0.2.7", 30)
        };
        assert_eq!(of(NOW.0 - 1, 0), None);
        assert_eq!(of(NOW.0, 0), None);
        assert_eq!(of(NOW.0 + 1, 0), Some(30));
        // The worker asks for him when it is time.
        assert_eq!(of(NOW.0 + 2, NOW.0 + 1), Some(30));
    }

    #[test]
    fn a_range_is_had_as_a_whole_or_port_by_port() {
        let games = permits([rules(&["games"], 1, &[])]);
        for ports in ["udp/5000-5010", "udp/5007", "tcp/5000"] {
            assert_eq!(seconds(&games, ports, "192.0.2.7", 30), Some(30), "{ports}");
        }
        for ports in ["udp/5000-5009", "udp/5000-5011", "udp/5011", "tcp/5007"] {
            assert_eq!(seconds(&games, ports, "192.0.2.7", 30), None, "{ports}");
        }
    }

    #[test]
    fn nobody_is_admitted_from_where_no_client_may_come_or_from_a_larger_network() {
        let inside = permits([rules(&["ssh"], 1, &["10.0.0.0/28"])]);
        assert_eq!(seconds(&inside, "tcp/22", "10.0.0.3", 30), Some(30));
        for source in ["10.0.0.16", "10.0.0.0/28", "192.0.2.7", "2001:db8::7"] {
            assert_eq!(seconds(&inside, "tcp/22", source, 30), None, "{source}");
        }
        let shared =
            ClientRules { prefixes: Prefixes { v4: 24, v6: 56 }, ..rules(&["ssh"], 1, &[]) };
        let shared = permits([shared]);
        for source in ["10.0.0.0/24", "10.0.0.7", "2001:db8::/56", "2001:db8::/64"] {
            assert_eq!(seconds(&shared, "tcp/22", source, 30), Some(30), "{source}");
        }
        for source in ["10.0.0.0/23", "2001:db8::/48", "0.0.0.0/0", "::/0"] {
            assert_eq!(seconds(&shared, "tcp/22", source, 30), None, "{source}");
        }
    }

    #[test]
    fn the_longest_time_counts_that_somebody_may_have_there() {
        let both = permits([rules(&["ssh"], 1, &[]), rules(&["ssh"], 8, &["10.0.0.0/8"])]);
        assert_eq!(seconds(&both, "tcp/22", "10.0.0.7", 20_000), Some(20_000));
        assert_eq!(seconds(&both, "tcp/22", "10.0.0.7", 40_000), Some(8 * 3600 + 2));
        assert_eq!(seconds(&both, "tcp/22", "192.0.2.7", 20_000), Some(3602));
        assert_eq!(seconds(&both, "tcp/22", "192.0.2.7", 3601), Some(3601));
    }

    #[test]
    fn clients_who_differ_in_where_they_come_from_alone_have_each_what_is_theirs() {
        let shared =
            ClientRules { prefixes: Prefixes { v4: 24, v6: 64 }, ..rules(&["ssh"], 1, &[]) };
        for one_by_one in [
            [rules(&["ssh"], 1, &["10.0.0.0/8"]), rules(&["ssh"], 1, &["192.0.2.0/24"])],
            [rules(&["ssh"], 1, &[]), shared],
        ] {
            let all = permits(one_by_one.clone());
            for source in ["10.0.0.7", "192.0.2.7", "10.0.0.0/24", "192.0.2.0/24", "0.0.0.0/0"] {
                let each =
                    one_by_one.clone().map(|it| seconds(&permits([it]), "tcp/22", source, 30));
                assert_eq!(seconds(&all, "tcp/22", source, 30), each[0].max(each[1]), "{source}");
            }
        }
    }

    #[test]
    fn where_nobody_answers_nobody_is_admitted() {
        let inner = permits([rules(&["inner"], 1, &[])]);
        assert_eq!(seconds(&inner, "tcp/443", "192.0.2.7", 30), Some(30));
        assert_eq!(seconds(&inner, "tcp/443", "2001:db8::7", 30), None);
    }
}
