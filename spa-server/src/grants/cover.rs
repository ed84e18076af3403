//! Whether grants cover a connection, asked for many connections at once. Pure.

use super::Grant;
use crate::source::Source;
use ipnet::IpNet;
use spa_proto::{Port, PortRange};
use std::collections::HashMap;
use std::net::IpAddr;

/// What some grants admit, found by the address.
#[derive(Debug, Default)]
pub struct Cover {
    hosts: HashMap<IpAddr, Vec<PortRange>>,
    nets: Vec<(IpNet, Vec<PortRange>)>,
}

impl Cover {
    /// Whether a packet from there to this port is admitted.
    pub fn admits(&self, address: IpAddr, port: Port) -> bool {
        let address = address.to_canonical();
        let has = |ports: &[PortRange]| ports.iter().any(|ports| ports.contains(port));
        self.hosts.get(&address).is_some_and(|ports| has(ports))
            || self.nets.iter().any(|(net, ports)| net.contains(&address) && has(ports))
    }

    fn add(&mut self, source: Source, ports: &[PortRange]) {
        if source.is_host() {
            self.hosts.entry(source.address()).or_default().extend(ports);
        } else {
            self.nets.push((source.net(), ports.to_vec()));
        }
    }
}

impl<'a> FromIterator<&'a Grant> for Cover {
    fn from_iter<T: IntoIterator<Item = &'a Grant>>(grants: T) -> Self {
        let mut cover = Self::default();
        cover.extend(grants);
        cover
    }
}

impl<'a> Extend<&'a Grant> for Cover {
    fn extend<T: IntoIterator<Item = &'a Grant>>(&mut self, grants: T) {
        for grant in grants {
            self.add(grant.key.source, &grant.ports);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::BootMicros;
    use crate::grants::GrantKey;
    use crate::service::Connections;
    use spa_proto::{ClientId, Nonce, UnixMicros};

    #[test]
    fn hosts_networks_and_ranges_are_covered() {
        let grant = |source: &str, ports: &[&str]| Grant {
            key: GrantKey {
                client: ClientId([1; 32]),
                source: source.parse().unwrap(),
                service: "ssh".parse().unwrap(),
            },
            ports: ports.iter().map(|ports| ports.parse().unwrap()).collect(),
            connections: Connections::Any,
            opened: UnixMicros(0),
            expires: BootMicros(0),
            request: Nonce([0; 24]).into(),
        };
        let grants = [
            grant("192.0.2.7", &["tcp/22", "udp/10000-10100"]),
            grant("2001:db8::/64", &["tcp/22"]),
        ];
        let cover: Cover = grants.iter().collect();
        for (address, port, admitted) in [
            ("192.0.2.7", "tcp/22", true),
            ("::ffff:192.0.2.7", "tcp/22", true),
            ("192.0.2.7", "udp/10050", true),
            ("192.0.2.7", "tcp/10050", false),
            ("192.0.2.8", "tcp/22", false),
            ("2001:db8::1", "tcp/22", true),
            ("2001:db8:1::1", "tcp/22", false),
        ] {
            let seen = cover.admits(address.parse().unwrap(), port.parse().unwrap());
            assert_eq!(seen, admitted, "{address} {port}");
        }
    }
}
