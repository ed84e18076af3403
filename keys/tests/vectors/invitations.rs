//! The texts of invitations.

use super::{array, hex, read, secret};
use serde::Deserialize;
use spa_keys::{Invitation, InvitedService, PublicKey};
use spa_proto::{PacketLength, PortRange, Transport, UnixMicros};
use std::num::NonZeroU16;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    valid: Vec<Valid>,
    spaced: Vec<Spaced>,
    invalid: Vec<Invalid>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Valid {
    id: String,
    text: String,
    server_public: String,
    secret: String,
    expiry_s: u64,
    plaintext_length: u16,
    name: String,
    knock_ports: Vec<NonZeroU16>,
    hosts: Vec<String>,
    services: Vec<Service>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Service {
    name: String,
    single_connection: bool,
    ports: Vec<Ports>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ports {
    transport: String,
    first: NonZeroU16,
    last: NonZeroU16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Spaced {
    id: String,
    text: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Invalid {
    why: String,
    text: String,
}

impl Service {
    fn invited(&self) -> InvitedService {
        let ports = self.ports.iter().map(|ports| {
            let transport = match ports.transport.as_str() {
                "tcp" => Transport::Tcp,
                "udp" => Transport::Udp,
                other => panic!("{other}"),
            };
            PortRange::new(transport, ports.first, ports.last).unwrap()
        });
        InvitedService {
            name: self.name.parse().unwrap(),
            ports: ports.collect(),
            once: self.single_connection,
        }
    }
}

fn file() -> File {
    let file: File = read("invitations.json");
    let counts = (file.valid.len(), file.spaced.len(), file.invalid.len());
    assert!(counts >= (24, 4, 365) && counts.2 >= 365, "{counts:?}");
    file
}

#[test]
fn an_invitation_is_read_and_written_as_by_the_second_implementation() {
    for v in file().valid {
        let id = &v.id;
        let read: Invitation = v.text.parse().unwrap();
        assert_eq!(hex(read.server.as_bytes()), v.server_public, "{id}");
        assert_eq!(read.secret.to_text(), secret(&v.secret).to_text(), "{id}");
        assert_eq!(read.expires, UnixMicros::from_secs(v.expiry_s), "{id}");
        assert_eq!(read.length, PacketLength::try_from(v.plaintext_length).unwrap(), "{id}");
        assert_eq!((&read.name, &read.hosts), (&v.name, &v.hosts), "{id}");
        assert_eq!(read.knock_ports, v.knock_ports, "{id}");
        let services: Vec<_> = v.services.iter().map(Service::invited).collect();
        assert_eq!(read.services, services, "{id}");

        let made = Invitation {
            server: PublicKey::from_bytes(array(&v.server_public)),
            secret: secret(&v.secret),
            expires: UnixMicros::from_secs(v.expiry_s),
            length: PacketLength::try_from(v.plaintext_length).unwrap(),
            name: v.name.clone(),
            knock_ports: v.knock_ports.clone(),
            hosts: v.hosts.clone(),
            services,
        };
        for invitation in [read, made] {
            assert_eq!(*invitation.to_text().unwrap(), v.text, "{id}");
        }
    }
}

#[test]
fn white_space_around_an_invitation_is_not_part_of_it() {
    let File { valid, spaced, .. } = file();
    for v in spaced {
        let plain = valid.iter().find(|valid| valid.id == v.id).unwrap();
        let read: Invitation = v.text.parse().unwrap();
        assert_ne!(v.text, plain.text);
        assert_eq!(*read.to_text().unwrap(), plain.text, "{:?}", v.text);
    }
}

#[test]
fn every_text_that_is_no_invitation_is_refused() {
    let read: Vec<_> = file()
        .invalid
        .into_iter()
        .filter(|v| v.text.parse::<Invitation>().is_ok())
        .map(|v| v.why)
        .collect();
    assert_eq!(read, Vec::<String>::new());
}
