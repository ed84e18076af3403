//! Sending knocks: keys, addresses, one datagram for each address.
//!
//! Everything that can go wrong before a packet leaves goes wrong in [`Knocker::prepare`].

mod address;
mod error;

use crate::duration::Lifetime;
use crate::endpoint::Endpoint;
use crate::key_source::{NoPassphrase, Unlock};
use crate::schedule::rotated;
use crate::server::{DEFAULT_KNOCK_PORT, Server};
use crate::source::{BindSource, Binding, Seen};
use crate::stun;
use address::resolve;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use core::num::NonZeroU16;
use ring::rand::{SecureRandom as _, SystemRandom};
use spa_keys::{ClientKeys, PublicKey};
use spa_proto::{
    Item, ItemError, Items, MaskKey, MessageType, Nonce, PairSecret, Request, UnixMicros,
};
use std::io;
use std::net::UdpSocket;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

pub use address::Family;
pub use error::KnockError;

/// 2025-01-01T00:00:00Z. A clock before it was never set.
const CLOCK_WAS_SET: UnixMicros = UnixMicros::from_secs(1_735_689_600);

/// Sends one knock to each address of `server`, and waits for nothing: there is no answer.
///
/// # Errors
///
/// Whatever keeps the datagrams from leaving. When some left, the others are told by
/// [`Sent::outcome`].
pub fn knock(server: &Server, asked: &Asked, options: &Options) -> Result<Vec<Sent>, KnockError> {
    Knocker::prepare(server, asked, options)?.send()
}

/// What a server is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Open or close.
    pub message_type: MessageType,
    /// What.
    pub items: Items,
}

impl Asked {
    /// To open these services and ports: 1 to 8, none of them twice.
    pub fn open(items: impl IntoIterator<Item = Item>) -> Result<Self, ItemError> {
        Self::new(MessageType::Open, items)
    }

    /// To close what this client had opened.
    pub fn close(items: impl IntoIterator<Item = Item>) -> Result<Self, ItemError> {
        Self::new(MessageType::Close, items)
    }

    /// To do either.
    pub fn new(
        message_type: MessageType,
        items: impl IntoIterator<Item = Item>,
    ) -> Result<Self, ItemError> {
        let items = Items::try_from(items.into_iter().collect::<Vec<_>>())?;
        Ok(Self { message_type, items })
    }
}

/// What one knock has other than its server's configuration says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    /// The lifetime to ask for; `None`: what the configuration says.
    pub lifetime: Option<Lifetime>,
    /// The source to bind to; `None`: what the configuration says.
    pub source: Option<BindSource>,
    /// Which of the server's addresses to knock on.
    pub family: Family,
}

/// One datagram.
#[derive(Debug)]
pub struct Sent {
    /// Where it went: an address of the server, and the knock port.
    pub to: SocketAddr,
    /// The address that it is bound to; `None`: as observed.
    pub bound_source: Option<IpAddr>,
    /// How that came.
    pub binding: Binding,
    /// Bytes of the datagram, or why it did not leave.
    pub outcome: io::Result<usize>,
}

/// A request to one server with everything that sending it needs: keys read, secrets derived,
/// addresses resolved, request known to fit.
pub struct Knocker<'a> {
    server: &'a Server,
    request: Request,
    source: BindSource,
    /// What the STUN server said, for the family of the address beside it.
    seen: Vec<(IpAddr, Seen)>,
    addresses: Vec<SocketAddr>,
    identity: PublicKey,
    pair: PairSecret,
    mask: MaskKey,
    random: SystemRandom,
    round: u32,
    first_sent: Option<Instant>,
    wanted: Option<Arc<AtomicBool>>,
}

impl<'a> Knocker<'a> {
    /// Reads the keys, resolves the name and checks the rest. No packet leaves but those of the
    /// system's resolver, and the question to the STUN server where one is configured and needed.
    ///
    /// Nobody is asked for a passphrase: a key that is under one is an error. Where there is
    /// somebody to ask, that is [`prepare_with`](Self::prepare_with).
    pub fn prepare(
        server: &'a Server,
        asked: &Asked,
        options: &Options,
    ) -> Result<Self, KnockError> {
        Self::prepare_with(server, asked, options, &mut NoPassphrase)
    }

    /// As [`prepare`](Self::prepare); `unlock` is asked for the passphrase of a key that is under
    /// one.
    pub fn prepare_with(
        server: &'a Server,
        asked: &Asked,
        options: &Options,
        unlock: &mut dyn Unlock,
    ) -> Result<Self, KnockError> {
        let keys = server.keys(unlock)?;
        Self::prepare_with_keys(server, asked, options, &keys)
    }

    /// As [`prepare`](Self::prepare), with these keys.
    pub(crate) fn prepare_with_keys(
        server: &'a Server,
        asked: &Asked,
        options: &Options,
        keys: &ClientKeys,
    ) -> Result<Self, KnockError> {
        let Secrets { identity, pair, mask } = Secrets::of(server, keys)?;
        let lifetime = match asked.message_type {
            MessageType::Open => options.lifetime.or(server.lifetime),
            MessageType::Close => None,
        };
        let source = options.source.unwrap_or(server.bind_source);
        let request = Request {
            message_type: asked.message_type,
            items: asked.items.clone(),
            bound_source: None,
            lifetime: lifetime.map(|Lifetime(seconds)| seconds),
        };
        let random = SystemRandom::new();
        let mut knocker = Self {
            server,
            request,
            source,
            seen: Vec::new(),
            addresses: Vec::new(),
            identity,
            pair,
            mask,
            random,
            round: 0,
            first_sent: None,
            wanted: None,
        };
        knocker.seal(None)?;
        knocker.addresses = resolve(server, options.family, source)?;
        if let Some(stun) = &server.stun_server {
            knocker.seen = seen(stun, source, &knocker.addresses);
        }
        Ok(knocker)
    }

    /// The server's addresses, the system's favourite first; the port is none of them yet.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().map(SocketAddr::ip)
    }

    /// The addresses with what belongs to them beside the port (an IPv6 scope).
    pub(crate) fn sockets(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The server that is knocked on.
    pub const fn server(&self) -> &'a Server {
        self.server
    }

    /// The client's identity, as the server has to know it.
    pub const fn identity(&self) -> PublicKey {
        self.identity
    }

    /// What is asked for.
    pub const fn request(&self) -> &Request {
        &self.request
    }

    /// From now on, knocks are bound to none.
    pub(crate) const fn unbind(&mut self) {
        self.source = BindSource::Observed;
    }

    /// How often [`send`](Self::send) was called.
    pub const fn rounds(&self) -> u32 {
        self.round
    }

    /// Lets a wait for it end as soon as this is false.
    #[cfg(feature = "tokio")]
    pub(crate) fn while_wanted(&mut self, wanted: Arc<AtomicBool>) {
        self.wanted = Some(wanted);
    }

    pub(crate) fn wanted(&self) -> Option<Arc<AtomicBool>> {
        self.wanted.clone()
    }

    pub(crate) const fn first_sent(&self) -> Option<Instant> {
        self.first_sent
    }

    /// Sends one knock to each address, each sealed on its own. The next call sends fresh ones,
    /// to the next knock port.
    ///
    /// # Errors
    ///
    /// When none left this machine.
    pub fn send(&mut self) -> Result<Vec<Sent>, KnockError> {
        self.send_to(|_| true)
    }

    /// The same for some of the addresses.
    pub(crate) fn send_to(
        &mut self,
        is_meant: impl Fn(&SocketAddr) -> bool,
    ) -> Result<Vec<Sent>, KnockError> {
        let port = rotated(&self.server.knock_ports, self.round).unwrap_or(DEFAULT_KNOCK_PORT);
        self.round = self.round.saturating_add(1);
        self.first_sent.get_or_insert_with(Instant::now);
        let addresses = self.addresses.iter().copied().filter(is_meant);
        deliver(self.server.host.as_str(), addresses, port, |to| self.seal_for(to))
    }

    /// A fresh datagram for that address, which is the caller's to send.
    pub(crate) fn seal_for(&self, to: SocketAddr) -> Result<(Binding, Vec<u8>), KnockError> {
        let own = own_address(to).ok();
        let seen = self.seen.iter().find(|(like, _)| like.is_ipv4() == to.is_ipv4());
        let binding = self.source.binding(own, seen.map(|(_, seen)| seen));
        let packet = self.seal(binding.address())?;
        Ok((binding, packet))
    }

    fn seal(&self, bound_source: Option<IpAddr>) -> Result<Vec<u8>, KnockError> {
        let nonce = nonce(&self.random)?;
        let request = Request { bound_source, ..self.request.clone() };
        let stamp = stamp_now()?;
        Ok(spa_proto::seal(&self.pair, &self.mask, &request, stamp, nonce, self.server.length)?)
    }
}

/// What the STUN server sees this machine by, in each family in which it has to be asked; both at
/// once.
fn seen(server: &Endpoint, source: BindSource, addresses: &[SocketAddr]) -> Vec<(IpAddr, Seen)> {
    let first_of = |v4: bool| addresses.iter().find(|to| to.is_ipv4() == v4);
    let asked = [first_of(true), first_of(false)].into_iter().flatten();
    let asked = asked.filter(|to| own_address(**to).is_ok_and(|own| source.asks(Some(own))));
    thread::scope(|scope| {
        let threads: Vec<_> = asked
            .map(|to| {
                scope.spawn(|| {
                    let address = stun::lookup(server, to.ip(), stun::By::Udp);
                    let address = address.map_err(|error| error.to_string());
                    (to.ip(), Seen { by: server.clone(), address })
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    })
}

/// What the keys of a server's client and server give.
pub(crate) struct Secrets {
    identity: PublicKey,
    pair: PairSecret,
    mask: MaskKey,
}

impl Secrets {
    fn of(server: &Server, keys: &ClientKeys) -> Result<Self, KnockError> {
        let ClientKeys { private, pre_shared } = keys;
        let pair =
            spa_keys::pair_secret_for_client(private, &server.public_key, pre_shared.as_ref())
                .map_err(|source| KnockError::Derive { server: server.name.to_string(), source })?;
        let (identity, mask) = (private.public(), spa_keys::mask_key(&server.public_key));
        Ok(Self { identity, pair, mask })
    }
}

/// Sends a datagram of its own to each of these addresses, at this port.
///
/// # Errors
///
/// When none left this machine.
pub(crate) fn deliver(
    host: &str,
    addresses: impl Iterator<Item = SocketAddr>,
    port: NonZeroU16,
    mut seal_for: impl FnMut(SocketAddr) -> Result<(Binding, Vec<u8>), KnockError>,
) -> Result<Vec<Sent>, KnockError> {
    let mut sent = Vec::new();
    for mut to in addresses {
        to.set_port(port.get());
        let (binding, packet) = seal_for(to)?;
        // A socket of its own, so that every knock has another random source port. Not
        // connected: an ICMP message must not make the next call fail.
        let outcome = UdpSocket::bind(any(to)).and_then(|socket| socket.send_to(&packet, to));
        sent.push(Sent { to, bound_source: binding.address(), binding, outcome });
    }
    if sent.iter().any(|sent| sent.outcome.is_ok()) {
        Ok(sent)
    } else {
        Err(not_sent(host.into(), sent))
    }
}

pub(crate) fn nonce(random: &SystemRandom) -> Result<Nonce, KnockError> {
    let mut nonce = Nonce([0; 24]);
    random.fill(&mut nonce.0).map_err(|_| KnockError::NoRandomness)?;
    Ok(nonce)
}

pub(crate) fn stamp_now() -> Result<UnixMicros, KnockError> {
    stamp(SystemTime::now())
}

fn stamp(clock: SystemTime) -> Result<UnixMicros, KnockError> {
    let since = clock.duration_since(UNIX_EPOCH).unwrap_or_default();
    let stamp = UnixMicros::default().saturating_add(since);
    if stamp < CLOCK_WAS_SET { Err(KnockError::Clock) } else { Ok(stamp) }
}

/// The address that this machine would send from. Connecting a UDP socket sends nothing.
pub(crate) fn own_address(to: SocketAddr) -> io::Result<IpAddr> {
    let socket = UdpSocket::bind(any(to))?;
    socket.connect(to)?;
    Ok(socket.local_addr()?.ip().to_canonical())
}

pub(crate) fn any(to: SocketAddr) -> SocketAddr {
    let address: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(address, 0)
}

/// What the system says, without its number for it.
pub(crate) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split_once(" (os error").map_or(text.clone(), |(words, _)| words.to_lowercase())
}

fn not_sent(host: String, sent: Vec<Sent>) -> KnockError {
    let mut advice = None;
    let mut reasons = Vec::new();
    for Sent { to, outcome, .. } in sent {
        let Err(error) = outcome else { continue };
        advice = advice.or(match error.kind() {
            io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::AddrNotAvailable => Some("is this machine online?"),
            io::ErrorKind::PermissionDenied => Some("does a firewall on this machine forbid it?"),
            _ => None,
        });
        reasons.push(format!("{}: {}", to.ip(), plain(&error)));
    }
    let advice = advice.unwrap_or("try again when that is mended");
    KnockError::NotSent { host, reasons: reasons.join("; "), advice }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Unbound;

    #[test]
    fn a_clock_that_was_never_set_is_told() {
        let at = |seconds| stamp(UNIX_EPOCH + core::time::Duration::from_secs(seconds));
        assert!(matches!(at(0), Err(KnockError::Clock)));
        assert!(matches!(at(1_735_689_599), Err(KnockError::Clock)));
        assert_eq!(at(1_735_689_600).unwrap(), CLOCK_WAS_SET);
        let before = UNIX_EPOCH - core::time::Duration::from_secs(1);
        assert!(matches!(stamp(before), Err(KnockError::Clock)));
    }

    #[test]
    fn a_datagram_that_could_not_leave_is_told_with_its_reason() {
        let failed = |to: &str, kind: io::ErrorKind| Sent {
            to: SocketAddr::new(to.parse().unwrap(), 62201),
            bound_source: None,
            binding: Binding::Observed(Unbound::Wanted),
            outcome: Err(kind.into()),
        };
        let told = |sent| not_sent("gw".into(), sent).to_string();
        assert_eq!(
            told(vec![
                failed("192.0.2.1", io::ErrorKind::NetworkUnreachable),
                failed("2001:db8::1", io::ErrorKind::AddrNotAvailable),
            ]),
            "no knock could be sent to gw (192.0.2.1: network unreachable; \
             2001:db8::1: address not available); is this machine online?"
        );
        assert_eq!(
            told(vec![failed("192.0.2.1", io::ErrorKind::PermissionDenied)]),
            "no knock could be sent to gw (192.0.2.1: permission denied); \
             does a firewall on this machine forbid it?"
        );
    }
}
