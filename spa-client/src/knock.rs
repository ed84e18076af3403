//! Sending knocks: keys, addresses, one datagram for each address.
//!
//! Everything that can go wrong before a packet leaves goes wrong in [`Knocker::prepare`].

mod address;
mod error;

use crate::at_once::at_once;
use crate::duration::Lifetime;
use crate::endpoint::Endpoint;
use crate::key_source::{NoPassphrase, Unlock};
use crate::record::Moment;
use crate::schedule::rotated;
use crate::server::{DEFAULT_KNOCK_PORT, Server};
use crate::source::{BindSource, Binding, Seen};
use crate::stun;
use address::resolve;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use core::num::NonZeroU16;
use core::time::Duration;
use ring::rand::{SecureRandom as _, SystemRandom};
use spa_keys::{ClientKeys, PublicKey};
use spa_proto::{
    Item, ItemError, Items, MaskKey, MessageType, Nonce, PairSecret, Request, UnixMicros,
};
use std::io;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

pub use address::Family;
pub use error::KnockError;

/// 2025-01-01T00:00:00Z. A clock before it was never set.
const CLOCK_WAS_SET: UnixMicros = UnixMicros::from_secs(1_735_689_600);
/// For so long the STUN server's answer is taken to hold, where knocks go on for long.
const ANSWER_HOLDS: Duration = Duration::from_secs(30);
/// How long the resolver may take where a knock has to leave in time, by the addresses of before
/// if need be.
const RESOLVER_PATIENCE: Duration = Duration::from_secs(1);
/// The discard service (RFC 863).
const DISCARD: u16 = 9;

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

/// What a server is to be asked, and where it is: what is known without its keys.
#[derive(Clone)]
pub(crate) struct Route<'a> {
    server: &'a Server,
    request: Request,
    source: BindSource,
    family: Family,
    addresses: Vec<SocketAddr>,
    own: Vec<(IpAddr, Option<IpAddr>)>,
}

impl<'a> Route<'a> {
    /// Resolves the name. No packet leaves but those of the system's resolver.
    pub(crate) fn prepare(
        server: &'a Server,
        asked: &Asked,
        options: &Options,
    ) -> Result<Self, KnockError> {
        let mut route = Self::unresolved(server, asked, options);
        route.resolve()?;
        Ok(route)
    }

    fn unresolved(server: &'a Server, asked: &Asked, options: &Options) -> Self {
        let lifetime = match asked.message_type {
            MessageType::Open => options.lifetime.or(server.lifetime),
            MessageType::Close => None,
        };
        let request = Request {
            message_type: asked.message_type,
            items: asked.items.clone(),
            bound_source: None,
            lifetime: lifetime.map(|Lifetime(seconds)| seconds),
        };
        Self {
            server,
            request,
            source: options.source.unwrap_or(server.bind_source),
            family: options.family,
            addresses: Vec::new(),
            own: Vec::new(),
        }
    }

    pub(crate) fn resolve(&mut self) -> Result<(), KnockError> {
        self.addresses = resolve(self.server, self.family, self.source)?;
        self.own = own_addresses(&self.addresses);
        Ok(())
    }

    pub(crate) const fn server(&self) -> &'a Server {
        self.server
    }

    pub(crate) const fn request(&self) -> &Request {
        &self.request
    }

    /// The server's addresses, with what belongs to them beside the port (an IPv6 scope).
    pub(crate) fn sockets(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// This machine's address towards each of the server's.
    pub(crate) fn own(&self) -> &[(IpAddr, Option<IpAddr>)] {
        &self.own
    }
}

/// A request to one server with everything that sending it needs: keys read, secrets derived,
/// addresses resolved, request known to fit.
pub struct Knocker<'a> {
    route: Route<'a>,
    /// What the STUN server said, for the family of the address beside it.
    seen: Vec<(IpAddr, Seen)>,
    /// When it was asked.
    looked: Option<Moment>,
    secrets: Secrets,
    random: SystemRandom,
    round: u32,
    first_sent: Option<Instant>,
    wanted: Option<Arc<AtomicBool>>,
}

impl<'a> Knocker<'a> {
    /// Reads the keys, resolves the name and checks the rest. No packet leaves but those of the
    /// system's resolver.
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
        let mut knocker = Self::on(Route::unresolved(server, asked, options), keys)?;
        knocker.route.resolve()?;
        Ok(knocker)
    }

    /// By that route, with these keys.
    pub(crate) fn on(route: Route<'a>, keys: &ClientKeys) -> Result<Self, KnockError> {
        let knocker = Self {
            secrets: Secrets::of(route.server, keys)?,
            route,
            seen: Vec::new(),
            looked: None,
            random: SystemRandom::new(),
            round: 0,
            first_sent: None,
            wanted: None,
        };
        knocker.seal(None)?;
        Ok(knocker)
    }

    /// Asks the STUN server by which address it sees this machine, where one is configured and
    /// needed, and was not asked yet. [`send`](Self::send) does it by itself; whoever must not
    /// wait then does it before.
    pub fn look(&mut self) {
        if self.is_to_look() {
            self.look_again();
        }
    }

    /// Whether [`look`](Self::look) has anything to do. A close needs no answer: it opens nothing
    /// for anybody.
    pub(crate) fn is_to_look(&self) -> bool {
        self.looked.is_none()
            && self.route.server.stun_server.is_some()
            && self.route.source == BindSource::Auto
            && self.route.request.message_type == MessageType::Open
    }

    fn look_again(&mut self) {
        self.looked = Some(Moment::now());
        if let Some(stun) = &self.route.server.stun_server {
            self.seen = seen(stun, self.route.source, &self.route.addresses);
        }
    }

    /// Before a knock long after the others: resolves the name again, and has the STUN server
    /// asked again if this machine has other addresses now, or if its answer is an old one. Where
    /// the resolver fails, the addresses stay; where the STUN server fails, knocks are bound to
    /// none.
    pub(crate) fn renew(&mut self) {
        let Route { server, family, source, .. } = self.route;
        let server = server.clone();
        let resolved = within(RESOLVER_PATIENCE, move || resolve(&server, family, source));
        if let Some(Ok(addresses)) = resolved {
            self.route.addresses = addresses;
        }
        let own = own_addresses(&self.route.addresses);
        let age = self.looked.and_then(|looked| looked.age(Moment::now()));
        if own != self.route.own || age.is_none_or(|age| age > ANSWER_HOLDS) {
            self.looked = None;
            self.seen.clear();
        }
        self.route.own = own;
        self.look();
    }

    pub(crate) const fn route(&self) -> &Route<'a> {
        &self.route
    }

    /// The server's addresses, the system's favourite first; the port is none of them yet.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.route.addresses.iter().map(SocketAddr::ip)
    }

    /// The addresses with what belongs to them beside the port (an IPv6 scope).
    pub(crate) fn sockets(&self) -> &[SocketAddr] {
        self.route.sockets()
    }

    /// The server that is knocked on.
    pub const fn server(&self) -> &'a Server {
        self.route.server
    }

    /// The client's identity, as the server has to know it.
    pub const fn identity(&self) -> PublicKey {
        self.secrets.identity
    }

    /// What is asked for.
    pub const fn request(&self) -> &Request {
        &self.route.request
    }

    /// From now on, knocks are bound to none.
    pub(crate) const fn unbind(&mut self) {
        self.route.source = BindSource::Observed;
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
        self.look();
        self.send_to(|_| true)
    }

    /// The same for some of the addresses, without a question to the STUN server.
    pub(crate) fn send_to(
        &mut self,
        is_meant: impl Fn(&SocketAddr) -> bool,
    ) -> Result<Vec<Sent>, KnockError> {
        let port =
            rotated(&self.route.server.knock_ports, self.round).unwrap_or(DEFAULT_KNOCK_PORT);
        self.round = self.round.saturating_add(1);
        self.first_sent.get_or_insert_with(Instant::now);
        let addresses = self.route.addresses.iter().copied().filter(is_meant);
        deliver(self.route.server.host.as_str(), addresses, port, |to, own| self.seal_for(to, own))
    }

    /// A fresh datagram for that address, which is the caller's to send from its `own` one.
    pub(crate) fn seal_for(
        &self,
        to: SocketAddr,
        own: Option<IpAddr>,
    ) -> Result<(Binding, Vec<u8>), KnockError> {
        let seen = self.seen.iter().find(|(like, _)| like.is_ipv4() == to.is_ipv4());
        let seen = seen.map(|(_, seen)| seen.towards(to.ip()));
        let binding = self.route.source.binding(own, seen.as_ref());
        let packet = self.seal(binding.address())?;
        Ok((binding, packet))
    }

    fn seal(&self, bound_source: Option<IpAddr>) -> Result<Vec<u8>, KnockError> {
        let nonce = nonce(&self.random)?;
        let request = Request { bound_source, ..self.route.request.clone() };
        let stamp = stamp_now()?;
        Ok(spa_proto::seal(
            &self.secrets.pair,
            &self.secrets.mask,
            &request,
            stamp,
            nonce,
            self.route.server.length,
        )?)
    }
}

/// What the STUN server sees this machine by, in each family in which it has to be asked; both at
/// once.
fn seen(server: &Endpoint, source: BindSource, addresses: &[SocketAddr]) -> Vec<(IpAddr, Seen)> {
    let first_of = |v4: bool| addresses.iter().find(|to| to.is_ipv4() == v4);
    let asked = [first_of(true), first_of(false)].into_iter().flatten();
    let asked = asked.filter(|to| own_address(**to).is_ok_and(|own| source.asks(Some(own))));
    at_once(asked, |to| {
        let address = stun::lookup(server, to.ip(), stun::By::Udp);
        let address = address.map_err(|error| error.to_string());
        (to.ip(), Seen { by: server.clone(), address })
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
    mut seal_for: impl FnMut(SocketAddr, Option<IpAddr>) -> Result<(Binding, Vec<u8>), KnockError>,
) -> Result<Vec<Sent>, KnockError> {
    let mut sent = Vec::new();
    for mut to in addresses {
        to.set_port(port.get());
        // A socket of its own, so that every knock has another random source port. Connected, so
        // that its IPv4 identification (RFC 6864) is random too: Linux counts that of sockets that
        // are not, for all that goes to one address.
        let socket = connected(to);
        let own = socket.as_ref().ok().and_then(|socket| address_of(socket).ok());
        let (binding, packet) = seal_for(to, own)?;
        let outcome = socket.and_then(|socket| socket.send(&packet));
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
    address_of(&connected(to)?)
}

fn connected(to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(any(to))?;
    socket.connect(to)?;
    Ok(socket)
}

fn address_of(socket: &UdpSocket) -> io::Result<IpAddr> {
    Ok(socket.local_addr()?.ip().to_canonical())
}

fn own_addresses(addresses: &[SocketAddr]) -> Vec<(IpAddr, Option<IpAddr>)> {
    let own = |socket: &SocketAddr| {
        let mut to = *socket;
        // Any will do, but none: not every system connects to that.
        to.set_port(DISCARD);
        (to.ip(), own_address(to).ok())
    };
    addresses.iter().map(own).collect()
}

/// What `work` gives, if it does so in that time: the system's resolver knows no limit of its own.
pub(crate) fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (done, result) = channel();
    let work = move || {
        // Nobody may be waiting any more.
        let _ = done.send(work());
    };
    thread::Builder::new().spawn(work).ok()?;
    result.recv_timeout(limit).ok()
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
    use spa_keys::PrivateKey;

    /// A question to the STUN server takes time, and tells it who is there.
    #[test]
    fn the_stun_server_is_asked_once_and_only_for_what_opens() {
        let stun = UdpSocket::bind("127.0.0.1:0").unwrap();
        stun.set_nonblocking(true).unwrap();
        let asked = || {
            let mut questions = std::collections::BTreeSet::new();
            let mut buffer = [0; 64];
            while let Ok(length) = stun.recv(&mut buffer) {
                questions.insert(buffer[..length].to_vec());
            }
            questions.len()
        };
        let key = || PrivateKey::generate(&SystemRandom::new()).unwrap();
        let host = "127.0.0.1".parse().unwrap();
        let mut server = Server::new("x".parse().unwrap(), host, key().public(), "identity.key");
        server.stun_server = Some(stun.local_addr().unwrap().to_string().parse().unwrap());
        let keys = ClientKeys { private: key(), pre_shared: None };
        let item = || ["udp/53".parse().unwrap()];
        let prepare = |asked: &Asked| {
            Knocker::prepare_with_keys(&server, asked, &Options::default(), &keys).unwrap()
        };
        let mut close = prepare(&Asked::close(item()).unwrap());
        close.send().unwrap();
        let mut open = prepare(&Asked::open(item()).unwrap());
        assert_eq!(asked(), 0, "to prepare, and to close");
        open.send().unwrap();
        open.send().unwrap();
        open.renew();
        assert_eq!(asked(), 1, "all that is known holds");
        // As if it had come from another network.
        open.route.own.clear();
        open.renew();
        assert_eq!(asked(), 1);
        assert_eq!(
            open.route.own,
            [(IpAddr::from([127, 0, 0, 1]), Some(IpAddr::from([127, 0, 0, 1])))]
        );
    }

    #[test]
    fn nobody_waits_longer_than_he_wants() {
        let long = Duration::from_secs(600);
        assert_eq!(within(Duration::from_millis(1), move || thread::sleep(long)), None);
        assert_eq!(within(long, || 7), Some(7));
    }

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
