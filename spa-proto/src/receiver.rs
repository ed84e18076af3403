//! The server's side: from a datagram to a verdict (§6).

use crate::announcement::{Announcement, AnnouncementKind};
use crate::client::ClientId;
use crate::drop_reason::DropReason;
use crate::item::PortRange;
use crate::keyring::{Found, Keyring, Roll, Sender, Sieve};
use crate::packet::{Nonce, PacketLength, Parts};
use crate::replay::{Accepted, Closed, ReplayWindow, WindowState};
use crate::request::{MessageType, Request};
use crate::secret::{MaskKey, PairSecret};
use crate::tag::{Epoch, TagTable};
use crate::time::{Freshness, UnixMicros};
use alloc::vec::Vec;
use core::net::IpAddr;
use core::time::Duration;
use hashbrown::HashMap;
use zeroize::Zeroize;

/// Knocks with the tag of an epoch that can't be fresh are looked at this often in one second,
/// over all clients: enough to tell an owner about a wrong clock, too little to be a load.
const SKEWED_PER_SECOND: u32 = 4;

/// What a deployment fixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How long every packet is.
    pub length: PacketLength,
    /// W.
    pub freshness: Freshness,
    /// The most knocks that one client's replay window holds.
    pub window_capacity: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            length: PacketLength::default(),
            freshness: Freshness::default(),
            window_capacity: 4096,
        }
    }
}

/// What came of a datagram.
#[must_use]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Authentic, fresh and not seen before. Nothing is remembered of it yet: it becomes an
    /// accepted knock by [`Receiver::commit`], after policy and limits have agreed.
    Authentic(Knock),
    /// The same of a new key that is announced. It becomes an accepted one by
    /// [`Receiver::commit_announced`], after its proof and all else.
    Announced(Announced),
    /// It opens nothing.
    Dropped(Dropped),
}

/// An authentic, fresh knock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Knock {
    /// Who sent it.
    pub client: ClientId,
    /// Its id.
    pub nonce: Nonce,
    /// The client's clock when it was sealed.
    pub stamp: UnixMicros,
    /// Where it came from, IPv4 never mapped into IPv6.
    pub source: IpAddr,
    /// What it asks for.
    pub request: Request,
    /// To which of the server's identities it was sealed.
    pub server_key: ServerKey,
}

/// An authentic, fresh announcement of a key. That the sender has the key's private half is not
/// shown yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    /// Who sent it: an invitation's holder an enrolment, a client a rotation.
    pub sender: Sender,
    /// Its id.
    pub nonce: Nonce,
    /// The client's clock when it was sealed.
    pub stamp: UnixMicros,
    /// Where it came from, IPv4 never mapped into IPv6.
    pub source: IpAddr,
    /// What it says.
    pub announcement: Announcement,
    /// To which of the server's identities it was sealed.
    pub server_key: ServerKey,
}

/// One of the identities of a server (§3.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServerKey {
    /// The one that it gives away.
    Present,
    /// The one that it had before, for as long as clients may use it.
    Previous,
}

/// A datagram that opens nothing, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dropped {
    /// The first check that failed.
    pub reason: DropReason,
    /// Who sent it; known only when the MAC held.
    pub client: Option<ClientId>,
    /// How far the client's clock is off; only for [`DropReason::TooOld`] and
    /// [`DropReason::TooNew`].
    pub skew: Option<Skew>,
}

/// How far a client's clock is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skew {
    /// The timestamp lies this far in the server's past.
    Behind(Duration),
    /// The timestamp lies this far in the server's future.
    Ahead(Duration),
}

impl From<DropReason> for Dropped {
    fn from(reason: DropReason) -> Self {
        Self { reason, client: None, skew: None }
    }
}

/// Tag tables that are to be computed: see [`Receiver::begin_roll`].
pub struct BegunRoll {
    generation: u64,
    present: Option<Roll>,
    previous: Option<Roll>,
}

impl BegunRoll {
    /// Does the work: an HMAC for each client and identity of the server, most minutes.
    pub fn compute(self) -> ComputedRoll {
        let table = |roll: Option<Roll>| roll.map(|roll| roll.table());
        ComputedRoll {
            generation: self.generation,
            present: table(self.present),
            previous: table(self.previous),
        }
    }
}

/// Tag tables for [`Receiver::end_roll`].
pub struct ComputedRoll {
    generation: u64,
    present: Option<TagTable>,
    previous: Option<TagTable>,
}

/// Judges datagrams, and remembers the knocks that were accepted.
///
/// ```
/// use spa_proto::{ClientId, DropReason, MaskKey, PairSecret, Receiver, Settings, UnixMicros, Verdict};
///
/// let mut receiver = Receiver::new(Settings::default(), MaskKey::new([4; 32]));
/// receiver.set_clients([(ClientId([7; 32]), PairSecret::new([1; 32], [2; 32], [3; 32]))]);
/// let now = UnixMicros::from_secs(1_800_000_000);
/// match receiver.receive(now, "192.0.2.1".parse()?, &[0; 216]) {
///     Verdict::Authentic(knock) => println!("{} asks for {:?}", knock.client, knock.request),
///     Verdict::Announced(announced) => println!("{:?} announces a key", announced.sender),
///     Verdict::Dropped(dropped) => assert_eq!(dropped.reason, DropReason::UnknownTag),
/// }
/// # Ok::<(), core::net::AddrParseError>(())
/// ```
pub struct Receiver {
    settings: Settings,
    present: Keyring,
    previous: Option<Keyring>,
    /// Also of clients that were removed: one that comes back must not be open to old knocks.
    windows: HashMap<ClientId, ReplayWindow>,
    /// The other keys, former ones too, that a client has had beside the one that it knocks with.
    kin: HashMap<ClientId, Vec<ClientId>>,
    barrier: UnixMicros,
    skewed: Allowance,
    generation: u64,
}

impl Receiver {
    /// A receiver that knows no client yet.
    pub fn new(settings: Settings, mask: MaskKey) -> Self {
        Self {
            settings,
            present: Keyring::new(mask, []),
            previous: None,
            windows: HashMap::new(),
            kin: HashMap::new(),
            barrier: UnixMicros::default(),
            skewed: Allowance::default(),
            generation: 0,
        }
    }

    /// Replaces the list of clients under the present identity; there are no invitations then.
    /// Replay windows stay, those of removed clients too. The tag table is computed by the next
    /// [`roll`](Self::roll) or [`receive`](Self::receive).
    pub fn set_clients(&mut self, clients: impl IntoIterator<Item = (ClientId, PairSecret)>) {
        let senders = clients.into_iter().map(|(id, pair)| (Sender::Client(id), pair));
        self.present.replace(senders);
        self.has_changed();
    }

    /// Replaces an identity of the server and all who seal packets to it, as
    /// [`set_clients`](Self::set_clients) does.
    pub fn set_senders(
        &mut self,
        server_key: ServerKey,
        mask: MaskKey,
        senders: impl IntoIterator<Item = (Sender, PairSecret)>,
    ) {
        let keyring = Keyring::new(mask, senders);
        match server_key {
            ServerKey::Present => self.present = keyring,
            ServerKey::Previous => self.previous = Some(keyring),
        }
        self.has_changed();
    }

    /// Nothing is accepted under the previous identity any more.
    pub fn forget_previous(&mut self) {
        self.previous = None;
        self.has_changed();
    }

    /// Adds a client, or gives one another pair secret, without a look at the others.
    pub fn add_client(&mut self, client: ClientId, server_key: ServerKey, pair: PairSecret) {
        let keyring = match server_key {
            ServerKey::Present => Some(&mut self.present),
            ServerKey::Previous => self.previous.as_mut(),
        };
        if let Some(keyring) = keyring {
            keyring.add(Sender::Client(client), pair);
        }
        self.has_changed();
    }

    /// Replaces what is known of clients that have had several keys (§9): for a key, the other
    /// ones of the same client. What one of them has closed, all of them have (§6.7).
    pub fn set_kin(&mut self, kin: impl IntoIterator<Item = (ClientId, Vec<ClientId>)>) {
        self.kin = kin.into_iter().filter(|(_, others)| !others.is_empty()).collect();
    }

    /// Adds a key of a client that is known by another one.
    pub fn add_kin(&mut self, key: ClientId, of: ClientId) {
        let others = self.kin.entry(of).or_default();
        let mut kin = others.clone();
        others.push(key);
        kin.push(of);
        self.kin.insert(key, kin);
    }

    /// Removes a client; its replay window stays.
    pub fn remove_client(&mut self, client: ClientId) {
        for keyring in [Some(&mut self.present), self.previous.as_mut()].into_iter().flatten() {
            keyring.remove(Sender::Client(client));
        }
        self.has_changed();
    }

    /// Moves the tag table to the epochs around `now`. [`receive`](Self::receive) does it only when
    /// the clock has jumped: whoever has many clients keeps the work off it by
    /// [`begin_roll`](Self::begin_roll), about once a second.
    pub fn roll(&mut self, now: UnixMicros) {
        if let Some(begun) = self.begin_roll(now) {
            self.end_roll(begun.compute());
        }
    }

    /// What [`roll`](Self::roll) would have to compute, if anything: so that it can be computed
    /// while this receiver is in use.
    pub fn begin_roll(&self, now: UnixMicros) -> Option<BegunRoll> {
        let present = self.present.roll(now);
        let previous = self.previous.as_ref().and_then(|previous| previous.roll(now));
        let generation = self.generation;
        let is_due = present.is_some() || previous.is_some();
        is_due.then_some(BegunRoll { generation, present, previous })
    }

    /// Takes what was computed. It is worth nothing any more if the clients have changed since:
    /// then it is dropped, and has to be begun anew.
    pub fn end_roll(&mut self, computed: ComputedRoll) {
        if computed.generation != self.generation {
            return;
        }
        if let Some(tags) = computed.present {
            self.present.take(tags);
        }
        if let (Some(previous), Some(tags)) = (&mut self.previous, computed.previous) {
            previous.take(tags);
        }
        self.has_changed();
    }

    /// What finds most noise without this receiver, until [`generation`](Self::generation) says
    /// something else.
    pub fn sieve(&self) -> Sieve {
        Sieve::of(
            self.settings.length,
            [Some(&self.present), self.previous.as_ref()].into_iter().flatten(),
        )
    }

    /// Grows by each change of what [`sieve`](Self::sieve) gives.
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    const fn has_changed(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// Judges one datagram, in the order of §6. Nothing is allocated before the MAC holds.
    ///
    /// `now` is the server's clock, `source` the address that the datagram came from.
    pub fn receive(&mut self, now: UnixMicros, source: IpAddr, datagram: &[u8]) -> Verdict {
        self.judge(now, source.to_canonical(), datagram).unwrap_or_else(Verdict::Dropped)
    }

    fn judge(
        &mut self,
        now: UnixMicros,
        source: IpAddr,
        datagram: &[u8],
    ) -> Result<Verdict, Dropped> {
        let parts = Parts::of(datagram, self.settings.length).ok_or(DropReason::Length)?;

        let is_late = |keyring: &Keyring| keyring.is_late(now);
        if is_late(&self.present) || self.previous.as_ref().is_some_and(is_late) {
            self.roll(now);
        }
        let present = || self.present.find(&parts).map(|found| (found, ServerKey::Present));
        let previous = || Some((self.previous.as_ref()?.find(&parts)?, ServerKey::Previous));
        let (found, server_key) = present().or_else(previous).ok_or(DropReason::UnknownTag)?;
        let Found { sender, pair, epoch } = found;
        let window = self.settings.freshness.get();
        let fresh = Epoch::of(now.saturating_sub(window))..=Epoch::of(now.saturating_add(window));
        if !fresh.contains(&epoch) && !self.skewed.take(now) {
            return Err(DropReason::SkewUnexamined.into());
        }
        if !parts.mac_holds(pair) {
            return Err(DropReason::Mac.into());
        }

        let client = sender.id();
        let dropped = |reason| Dropped { reason, client: Some(client), skew: None };
        let accepted = self.windows.get(&client);
        if accepted.is_some_and(|accepted| accepted.holds(&parts.nonce)) {
            return Err(dropped(DropReason::Replay));
        }
        let mut buffer = [0; PacketLength::MAX_PLAINTEXT as usize];
        let plaintext = parts.decrypt(pair, &mut buffer).ok_or(dropped(DropReason::Decrypt))?;
        let decoded = Message::decode(plaintext, parts.nonce, sender);
        buffer.zeroize();
        let (message, stamp) = decoded.ok_or(dropped(DropReason::Layout))?;
        if Epoch::of(stamp) != epoch {
            return Err(dropped(DropReason::Epoch));
        }
        if let Some((reason, skew)) = skew(stamp, now, self.settings.freshness) {
            return Err(Dropped { skew: Some(skew), ..dropped(reason) });
        }
        if stamp <= self.barrier {
            return Err(dropped(DropReason::Barrier));
        }
        if accepted.is_some_and(|accepted| stamp <= accepted.floor()) {
            return Err(dropped(DropReason::Floor));
        }
        if message.bound_source().is_some_and(|bound| bound != source) {
            return Err(dropped(DropReason::BoundSource));
        }
        let nonce = parts.nonce;
        Ok(match message {
            Message::Request(request) => {
                Verdict::Authentic(Knock { client, nonce, stamp, source, request, server_key })
            }
            Message::Announcement(announcement) => Verdict::Announced(Announced {
                sender,
                nonce,
                stamp,
                source,
                announcement,
                server_key,
            }),
        })
    }

    /// Enters a knock into its client's replay window: the last step, after policy and limits.
    ///
    /// `ports` are those that the request's items mean. Between [`receive`](Self::receive) and
    /// here another copy may have been accepted, or the floor may have risen, so those are
    /// judged again.
    ///
    /// # Errors
    ///
    /// The reason to drop it; nothing was entered.
    pub fn commit(&mut self, knock: &Knock, ports: &[PortRange]) -> Result<Accepted, DropReason> {
        let message_type = knock.request.message_type;
        self.enter(knock.client, knock.nonce, knock.stamp, message_type, ports)?;
        let closed = match message_type {
            MessageType::Open => Vec::new(),
            MessageType::Close => ports.to_vec(),
        };
        Ok(Accepted { client: knock.client, nonce: knock.nonce, stamp: knock.stamp, closed })
    }

    /// Enters an announcement into its sender's replay window, as [`commit`](Self::commit) does
    /// a knock.
    pub fn commit_announced(&mut self, announced: &Announced) -> Result<Accepted, DropReason> {
        let Announced { sender, nonce, stamp, .. } = *announced;
        self.enter(sender.id(), nonce, stamp, MessageType::Open, &[])?;
        Ok(Accepted { client: sender.id(), nonce, stamp, closed: Vec::new() })
    }

    fn enter(
        &mut self,
        client: ClientId,
        nonce: Nonce,
        stamp: UnixMicros,
        message_type: MessageType,
        ports: &[PortRange],
    ) -> Result<(), DropReason> {
        if stamp <= self.barrier {
            return Err(DropReason::Barrier);
        }
        let kin = self.kin.get(&client).into_iter().flatten();
        let mut windows = kin.chain([&client]).filter_map(|key| self.windows.get(key));
        let superseded = message_type == MessageType::Open
            && windows.any(|window| window.supersedes(stamp, ports));
        self.windows.entry(client).or_default().enter(
            nonce,
            stamp,
            message_type,
            ports,
            superseded,
            self.settings.freshness,
            self.settings.window_capacity,
        )
    }

    /// Gives back what was accepted before a restart.
    pub fn restore(&mut self, accepted: &Accepted) {
        self.windows.entry(accepted.client).or_default().restore(accepted, self.settings.freshness);
    }

    /// Gives back one id of a replay window that was written as a whole: as
    /// [`restore`](Self::restore), but the window's floor is given back by itself.
    pub fn restore_nonce(&mut self, client: ClientId, nonce: Nonce, stamp: UnixMicros) {
        self.windows.entry(client).or_default().restore_nonce(nonce, stamp);
    }

    /// Gives back a floor from before a restart.
    pub fn restore_floor(&mut self, client: ClientId, floor: UnixMicros) {
        self.windows.entry(client).or_default().raise_floor(floor);
    }

    /// Gives back a close from before a restart, whose knock need not be in the window any more.
    pub fn restore_close(&mut self, client: ClientId, closed: Closed) {
        self.windows.entry(client).or_default().restore_close(closed);
    }

    /// Puts a client's floor to `now` + W, for the day after its clock was years ahead, and
    /// returns it. Whatever was accepted stays refused: what lies below by the floor, what lies
    /// above by its id. The client's own knocks are accepted again after W.
    pub fn reset_window(&mut self, client: ClientId, now: UnixMicros) -> UnixMicros {
        let floor = now.saturating_add(self.settings.freshness.get());
        self.windows.entry(client).or_default().reset(floor);
        for key in self.kin.get(&client).into_iter().flatten() {
            if let Some(window) = self.windows.get_mut(key) {
                window.forget_closes();
            }
        }
        floor
    }

    /// Puts up a barrier: knocks with timestamps up to and including it are refused.
    pub fn set_barrier(&mut self, barrier: UnixMicros) {
        self.barrier = barrier;
    }

    /// The barrier; zero when none was ever put up.
    pub fn barrier(&self) -> UnixMicros {
        self.barrier
    }

    /// What this deployment fixes.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// All replay windows, for a store that writes itself anew.
    pub fn windows(&self) -> impl Iterator<Item = (ClientId, WindowState)> {
        self.windows.iter().map(|(client, window)| (*client, window.state()))
    }
}

/// What a plaintext says.
enum Message {
    Request(Request),
    Announcement(Announcement),
}

impl Message {
    /// `None` when it is not as it has to be, or not for this sender to say (§9.3).
    fn decode(plaintext: &[u8], nonce: Nonce, sender: Sender) -> Option<(Self, UnixMicros)> {
        if !Announcement::is_one(plaintext) {
            let (request, stamp) = Request::decode(plaintext)?;
            let may = matches!(sender, Sender::Client(_));
            return may.then_some((Self::Request(request), stamp));
        }
        let (announcement, stamp) = Announcement::decode(plaintext, nonce)?;
        let may = match announcement.kind() {
            AnnouncementKind::Enrolment => matches!(sender, Sender::Invitation(_)),
            AnnouncementKind::Rotation => matches!(sender, Sender::Client(_)),
        };
        may.then_some((Self::Announcement(announcement), stamp))
    }

    const fn bound_source(&self) -> Option<IpAddr> {
        match self {
            Self::Request(request) => request.bound_source,
            Self::Announcement(announcement) => announcement.bound_source(),
        }
    }
}

fn skew(stamp: UnixMicros, now: UnixMicros, freshness: Freshness) -> Option<(DropReason, Skew)> {
    let distance = stamp.distance(now);
    if distance <= freshness.get() {
        None
    } else if stamp < now {
        Some((DropReason::TooOld, Skew::Behind(distance)))
    } else {
        Some((DropReason::TooNew, Skew::Ahead(distance)))
    }
}

/// So many in each second of the clock.
#[derive(Default)]
struct Allowance {
    second: u64,
    taken: u32,
}

impl Allowance {
    fn take(&mut self, now: UnixMicros) -> bool {
        if self.second != now.as_secs() {
            *self = Self { second: now.as_secs(), taken: 0 };
        }
        let granted = self.taken < SKEWED_PER_SECOND;
        self.taken = self.taken.saturating_add(u32::from(granted));
        granted
    }
}
