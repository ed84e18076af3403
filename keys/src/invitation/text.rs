//! The text of an invitation, `spa1:…` (§9.5).
//!
//! No error repeats any part of the text that was read: it is a secret, or most of one.

use super::{Invitation, InvitationSecret};
use crate::{PublicKey, derive};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use core::num::NonZeroU16;
use core::ops::RangeInclusive;
use core::str::FromStr;
use sha2::{Digest, Sha256};
use spa_proto::{PacketLength, PortRange, ServiceName, Transport, UnixMicros};
use zeroize::Zeroizing;

const PREFIX: &str = "spa1:";
const CHECKSUM_LABEL: &[u8] = b"spa invitation v1";
const CHECKSUM_LENGTH: usize = 4;
/// 9999-12-31T23:59:59Z: no calendar shows later times.
const MAX_EXPIRY: u64 = 253_402_300_799;
/// More than the fields can come to.
const MAX_TEXT_LENGTH: usize = 16 * 1024;

const NAME_LENGTH: RangeInclusive<usize> = 1..=64;
const HOST_LENGTH: RangeInclusive<usize> = 1..=253;
const KNOCK_PORTS: RangeInclusive<usize> = 1..=16;
const HOSTS: RangeInclusive<usize> = 1..=8;
const SERVICES: RangeInclusive<usize> = 0..=32;
const PORTS_OF_A_SERVICE: RangeInclusive<usize> = 1..=16;
const TCP: u8 = 0x40;
const UDP: u8 = 0x41;
const ONE_CONNECTION: u8 = 1;

/// A service that the client may open, and where it will connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvitedService {
    /// Its name.
    pub name: ServiceName,
    /// Its ports: 1 to 16 ranges.
    pub ports: Vec<PortRange>,
    /// Whether a knock opens it for one connection: then it must not be probed.
    pub once: bool,
}

impl Invitation {
    /// `spa1:…`, one line; wiped from memory when dropped.
    ///
    /// # Errors
    ///
    /// Something is out of the bounds of the text; the message says what.
    pub fn to_text(&self) -> Result<Zeroizing<String>, InvitationTextError> {
        use InvitationTextError::Field;
        let mut writer = Writer(Zeroizing::new(Vec::with_capacity(1024)));
        if !derive::is_usable(&self.server) {
            return Err(Field("the server's key"));
        }
        writer.bytes(self.server.as_bytes());
        writer.bytes(self.secret.as_bytes());
        let expiry = Some(self.expires.as_secs()).filter(|expiry| *expiry <= MAX_EXPIRY);
        writer.bytes(&expiry.ok_or(Field("its expiry"))?.to_be_bytes());
        let length = u16::try_from(self.length.plaintext()).unwrap_or(PacketLength::MAX_PLAINTEXT);
        writer.bytes(&length.to_be_bytes());
        if !is_name(&self.name) {
            return Err(Field("the server's name"));
        }
        writer.text(&self.name, NAME_LENGTH, "the server's name")?;
        writer.count(self.knock_ports.len(), KNOCK_PORTS, "the number of knock ports")?;
        for port in &self.knock_ports {
            writer.bytes(&port.get().to_be_bytes());
        }
        writer.count(self.hosts.len(), HOSTS, "the number of the server's addresses")?;
        for host in &self.hosts {
            if !is_host(host) {
                return Err(Field("an address of the server"));
            }
            writer.text(host, HOST_LENGTH, "an address of the server")?;
        }
        writer.count(self.services.len(), SERVICES, "the number of services")?;
        if has_twins(&self.services) {
            return Err(Field("the name of a service"));
        }
        for InvitedService { name, ports, once } in &self.services {
            writer.text(name.as_str(), 1..=ServiceName::MAX_LENGTH, "the name of a service")?;
            writer.bytes(&[if *once { ONE_CONNECTION } else { 0 }]);
            writer.count(ports.len(), PORTS_OF_A_SERVICE, "the number of a service's ports")?;
            for range in ports {
                writer.bytes(&[match range.transport() {
                    Transport::Tcp => TCP,
                    Transport::Udp => UDP,
                }]);
                writer.bytes(&range.first().get().to_be_bytes());
                writer.bytes(&range.last().get().to_be_bytes());
            }
        }
        let sum = checksum(&writer.0);
        writer.bytes(&sum);
        let mut text = Zeroizing::new(String::with_capacity(MAX_TEXT_LENGTH));
        text.push_str(PREFIX);
        URL_SAFE_NO_PAD.encode_string(writer.0.as_slice(), &mut text);
        Ok(text)
    }
}

impl FromStr for Invitation {
    type Err = InvitationTextError;

    fn from_str(text: &str) -> Result<Self, InvitationTextError> {
        let text = text.trim();
        let encoded = text.strip_prefix(PREFIX).ok_or(InvitationTextError::Prefix)?;
        if encoded.len() > MAX_TEXT_LENGTH {
            return Err(InvitationTextError::Damaged);
        }
        let binary = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| InvitationTextError::Damaged)?;
        let binary = Zeroizing::new(binary);
        let (body, sum) =
            binary.split_last_chunk::<CHECKSUM_LENGTH>().ok_or(InvitationTextError::Damaged)?;
        if checksum(body) != *sum {
            return Err(InvitationTextError::Damaged);
        }
        Reader(body).invitation()
    }
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM_LENGTH] {
    let digest: [u8; 32] =
        Sha256::new_with_prefix(CHECKSUM_LABEL).chain_update(body).finalize().into();
    digest.first_chunk().copied().unwrap_or_default()
}

struct Writer(Zeroizing<Vec<u8>>);

impl Writer {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn count(
        &mut self,
        count: usize,
        bounds: RangeInclusive<usize>,
        what: &'static str,
    ) -> Result<(), InvitationTextError> {
        let byte = u8::try_from(count).ok().filter(|_| bounds.contains(&count));
        self.bytes(&[byte.ok_or(InvitationTextError::Field(what))?]);
        Ok(())
    }

    fn text(
        &mut self,
        text: &str,
        bounds: RangeInclusive<usize>,
        what: &'static str,
    ) -> Result<(), InvitationTextError> {
        self.count(text.len(), bounds, what)?;
        self.bytes(text.as_bytes());
        Ok(())
    }
}

/// A bounded reader over bytes that somebody has handed over.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn invitation(&mut self) -> Result<Invitation, InvitationTextError> {
        use InvitationTextError::Field;
        let server = PublicKey::from_bytes(*self.array()?);
        if !derive::is_usable(&server) {
            return Err(Field("the server's key"));
        }
        let secret = InvitationSecret::from_bytes(Zeroizing::new(*self.array()?))
            .map_err(|_| Field("its secret"))?;
        let expiry = u64::from_be_bytes(*self.array()?);
        if expiry > MAX_EXPIRY {
            return Err(Field("its expiry"));
        }
        let expires = UnixMicros::from_secs(expiry);
        let length = PacketLength::try_from(u16::from_be_bytes(*self.array()?))
            .map_err(|_| Field("the length of packets"))?;
        let name = self.text(NAME_LENGTH, "the server's name")?;
        if !is_name(&name) {
            return Err(Field("the server's name"));
        }
        let knock_ports = self
            .list(KNOCK_PORTS, "the number of knock ports", |reader| reader.port("a knock port"))?;
        let hosts = self.list(HOSTS, "the number of the server's addresses", |reader| {
            let host = reader.text(HOST_LENGTH, "an address of the server")?;
            if is_host(&host) { Ok(host) } else { Err(Field("an address of the server")) }
        })?;
        let services = self.list(SERVICES, "the number of services", Self::service)?;
        if has_twins(&services) {
            return Err(Field("the name of a service"));
        }
        if !self.0.is_empty() {
            return Err(Field("its end"));
        }
        Ok(Invitation { server, secret, expires, length, name, knock_ports, hosts, services })
    }

    fn service(&mut self) -> Result<InvitedService, InvitationTextError> {
        use InvitationTextError::Field;
        const NAME: &str = "the name of a service";
        let name = self.text(1..=ServiceName::MAX_LENGTH, NAME)?;
        let name = name.parse().map_err(|_| Field(NAME))?;
        let [flags] = *self.array()?;
        if flags & !ONE_CONNECTION != 0 {
            return Err(Field("the flags of a service"));
        }
        let ports = self.list(PORTS_OF_A_SERVICE, "the number of a service's ports", |reader| {
            let [transport] = *reader.array()?;
            let transport = match transport {
                TCP => Transport::Tcp,
                UDP => Transport::Udp,
                _ => return Err(Field("the ports of a service")),
            };
            let first = reader.port("the ports of a service")?;
            let last = reader.port("the ports of a service")?;
            PortRange::new(transport, first, last).ok_or(Field("the ports of a service"))
        })?;
        Ok(InvitedService { name, ports, once: flags & ONE_CONNECTION != 0 })
    }

    fn list<T>(
        &mut self,
        bounds: RangeInclusive<usize>,
        what: &'static str,
        read: impl Fn(&mut Self) -> Result<T, InvitationTextError>,
    ) -> Result<Vec<T>, InvitationTextError> {
        let count = self.count(bounds, what)?;
        (0..count).map(|_| read(self)).collect()
    }

    fn count(
        &mut self,
        bounds: RangeInclusive<usize>,
        what: &'static str,
    ) -> Result<usize, InvitationTextError> {
        let [count] = *self.array()?;
        let count = usize::from(count);
        if bounds.contains(&count) { Ok(count) } else { Err(InvitationTextError::Field(what)) }
    }

    fn text(
        &mut self,
        bounds: RangeInclusive<usize>,
        what: &'static str,
    ) -> Result<String, InvitationTextError> {
        let length = self.count(bounds, what)?;
        let (text, rest) =
            self.0.split_at_checked(length).ok_or(InvitationTextError::Field(what))?;
        self.0 = rest;
        let text = core::str::from_utf8(text).ok().map(String::from);
        text.ok_or(InvitationTextError::Field(what))
    }

    fn port(&mut self, what: &'static str) -> Result<NonZeroU16, InvitationTextError> {
        NonZeroU16::new(u16::from_be_bytes(*self.array()?)).ok_or(InvitationTextError::Field(what))
    }

    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], InvitationTextError> {
        let (head, rest) =
            self.0.split_first_chunk().ok_or(InvitationTextError::Field("its length"))?;
        self.0 = rest;
        Ok(head)
    }
}

fn is_name(text: &str) -> bool {
    text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// Hosts end up in files, in messages, and in the arguments of other programs.
fn is_host(text: &str) -> bool {
    !text.starts_with('-')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
}

/// Whether two services have the same name.
fn has_twins(services: &[InvitedService]) -> bool {
    let mut rest = services.iter();
    while let Some(InvitedService { name, .. }) = rest.next() {
        if rest.clone().any(|other| other.name == *name) {
            return true;
        }
    }
    false
}

/// Why a text is no invitation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvitationTextError {
    /// Something else.
    #[error(
        "this is no invitation; it has to begin with {PREFIX} and is printed by: spa-server invite"
    )]
    Prefix,
    /// A typing error, or half of it.
    #[error("this invitation is damaged (its checksum does not match); copy the whole line again")]
    Damaged,
    /// A field that can't be.
    #[error(
        "this invitation can't be used, {0} is not as it has to be; ask for another one, or for a newer client"
    )]
    Field(&'static str),
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn invitation() -> Invitation {
        Invitation {
            server: PublicKey::from_bytes([2; 32]),
            secret: InvitationSecret::from_bytes(Zeroizing::new([3; 32])).unwrap(),
            expires: UnixMicros::from_secs(1_800_000_000),
            length: PacketLength::default(),
            name: "gw".into(),
            knock_ports: vec![NonZeroU16::new(62201).unwrap(), NonZeroU16::new(53).unwrap()],
            hosts: vec!["gw.example.org".into(), "2001:db8::1".into()],
            services: vec![
                InvitedService {
                    name: "ssh".parse().unwrap(),
                    ports: vec!["tcp/22".parse().unwrap()],
                    once: false,
                },
                InvitedService {
                    name: "media".parse().unwrap(),
                    ports: vec!["udp/10000-10100".parse().unwrap(), "tcp/443".parse().unwrap()],
                    once: true,
                },
            ],
        }
    }

    fn reread(text: &str) -> Result<String, InvitationTextError> {
        text.parse::<Invitation>().map(|read| read.to_text().unwrap().to_string())
    }

    /// The text of a body, with the checksum that it should have.
    fn text_of(body: &[u8]) -> String {
        let binary = [body, &checksum(body)].concat();
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(binary))
    }

    fn body() -> Vec<u8> {
        let text = invitation().to_text().unwrap();
        let binary = URL_SAFE_NO_PAD.decode(text.strip_prefix(PREFIX).unwrap()).unwrap();
        binary[..binary.len() - CHECKSUM_LENGTH].to_vec()
    }

    #[test]
    fn an_invitation_survives_its_text() {
        let text = invitation().to_text().unwrap();
        let read: Invitation = format!(" {}\n", *text).parse().unwrap();
        assert_eq!(read.to_text().unwrap(), text);
        let Invitation { server, expires, length, name, knock_ports, hosts, services, .. } = read;
        let sent = invitation();
        assert_eq!((server, expires, length), (sent.server, sent.expires, sent.length));
        assert_eq!((name, knock_ports), (sent.name, sent.knock_ports));
        assert_eq!((hosts, services), (sent.hosts, sent.services));
        // Short enough for a line of a chat, and for a QR code.
        assert!(text.len() < 250, "{}", text.len());
    }

    #[test]
    fn what_an_invitation_can_not_say_is_not_written() {
        let port = NonZeroU16::MIN;
        let service = |name: &str| InvitedService {
            name: name.parse().unwrap(),
            ports: vec!["tcp/1".parse().unwrap()],
            once: false,
        };
        let many = (0..33).map(|n| service(&format!("s{n}"))).collect();
        for (bad, what) in [
            (
                Invitation { server: PublicKey::from_bytes([0; 32]), ..invitation() },
                "the server's key",
            ),
            (Invitation { name: String::new(), ..invitation() }, "the server's name"),
            (Invitation { name: "a b".into(), ..invitation() }, "the server's name"),
            (Invitation { name: "x".repeat(65), ..invitation() }, "the server's name"),
            (Invitation { knock_ports: vec![], ..invitation() }, "the number of knock ports"),
            (
                Invitation { knock_ports: vec![port; 17], ..invitation() },
                "the number of knock ports",
            ),
            (Invitation { hosts: vec![], ..invitation() }, "the number of the server's addresses"),
            (
                Invitation { hosts: vec!["x".repeat(254)], ..invitation() },
                "an address of the server",
            ),
            (Invitation { hosts: vec!["a b".into()], ..invitation() }, "an address of the server"),
            (Invitation { hosts: vec!["-oX".into()], ..invitation() }, "an address of the server"),
            (
                Invitation { hosts: vec!["h\u{e9}".into()], ..invitation() },
                "an address of the server",
            ),
            (Invitation { services: many, ..invitation() }, "the number of services"),
            (
                Invitation { services: vec![service("a"), service("a")], ..invitation() },
                "the name of a service",
            ),
            (Invitation { expires: UnixMicros(u64::MAX), ..invitation() }, "its expiry"),
        ] {
            assert_eq!(bad.to_text().unwrap_err(), InvitationTextError::Field(what));
        }
    }

    #[test]
    fn a_body_that_ends_early_or_late_is_refused() {
        let body = body();
        assert!(reread(&text_of(&body)).is_ok());
        for length in 0..body.len() {
            assert!(reread(&text_of(&body[..length])).is_err(), "{length}");
        }
        let longer = [&body[..], &[0]].concat();
        assert_eq!(reread(&text_of(&longer)), Err(InvitationTextError::Field("its end")));
    }

    #[test]
    fn what_is_no_invitation_is_told_without_repeating_it() {
        let text = invitation().to_text().unwrap();
        for (bad, error) in [
            ("", InvitationTextError::Prefix),
            ("spa2:AAAA", InvitationTextError::Prefix),
            ("spa1:", InvitationTextError::Damaged),
            ("spa1:AAAA", InvitationTextError::Damaged),
            (&text[..text.len() - 1], InvitationTextError::Damaged),
            (&format!("{}=", *text), InvitationTextError::Damaged),
            (&text.to_uppercase(), InvitationTextError::Prefix),
        ] {
            assert_eq!(reread(bad), Err(error), "{bad}");
        }
        let mut zero = body();
        zero[32..64].fill(0);
        assert_eq!(reread(&text_of(&zero)), Err(InvitationTextError::Field("its secret")));
    }

    proptest! {
        #[test]
        fn no_body_panics_and_what_is_read_is_written_alike(
            mut body in proptest::collection::vec(any::<u8>(), 0..300),
            steer in any::<bool>(),
        ) {
            if steer {
                // Past the first fields, which chance would never get right.
                let good = self::body();
                for (byte, value) in body.iter_mut().zip(&good[..90]) {
                    *byte = *value;
                }
            }
            let text = text_of(&body);
            if let Ok(again) = reread(&text) {
                prop_assert_eq!(again, text);
            }
        }

        #[test]
        fn a_changed_character_is_detected(at: prop::sample::Index, typed in "[A-Za-z0-9_-]") {
            let text = invitation().to_text().unwrap();
            let at = PREFIX.len() + at.index(text.len() - PREFIX.len());
            let mut typo = text.to_string();
            typo.replace_range(at..=at, &typed);
            prop_assume!(typo != *text);
            prop_assert_eq!(reread(&typo), Err(InvitationTextError::Damaged));
        }
    }
}
