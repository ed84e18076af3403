//! The server's side: from a datagram to a verdict (§6).

use crate::client::ClientId;
use crate::drop_reason::DropReason;
use crate::item::PortRange;
use crate::packet::{Nonce, PacketLength, Parts};
use crate::replay::{Accepted, Closed, ReplayWindow, WindowState};
use crate::request::{MessageType, Request};
use crate::secret::{MaskKey, PairSecret};
use crate::tag::{Epoch, Tag, TagTable, masked};
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
///     Verdict::Dropped(dropped) => assert_eq!(dropped.reason, DropReason::UnknownTag),
/// }
/// # Ok::<(), core::net::AddrParseError>(())
/// ```
pub struct Receiver {
    settings: Settings,
    mask: MaskKey,
    clients: Vec<(ClientId, PairSecret)>,
    tags: TagTable,
    /// Also of clients that were removed: one that comes back must not be open to old knocks.
    windows: HashMap<ClientId, ReplayWindow>,
    barrier: UnixMicros,
    skewed: Allowance,
}

impl Receiver {
    /// A receiver that knows no client yet.
    pub fn new(settings: Settings, mask: MaskKey) -> Self {
        Self {
            settings,
            mask,
            clients: Vec::new(),
            tags: TagTable::default(),
            windows: HashMap::new(),
            barrier: UnixMicros::default(),
            skewed: Allowance::default(),
        }
    }

    /// Replaces the list of clients. Replay windows stay, those of removed clients too. The tag
    /// table is computed by the next [`roll`](Self::roll) or [`receive`](Self::receive).
    pub fn set_clients(&mut self, clients: impl IntoIterator<Item = (ClientId, PairSecret)>) {
        self.clients = clients.into_iter().collect();
        self.tags = TagTable::default();
    }

    /// Moves the tag table to the epochs around `now`. Called about once a second it keeps the
    /// work off [`receive`](Self::receive), which does it only when the clock has jumped.
    pub fn roll(&mut self, now: UnixMicros) {
        self.tags.roll(now, &self.clients.iter().map(|(_, pair)| pair));
    }

    /// Judges one datagram, in the order of §6. Nothing is allocated before the MAC holds.
    ///
    /// `now` is the server's clock, `source` the address that the datagram came from.
    pub fn receive(&mut self, now: UnixMicros, source: IpAddr, datagram: &[u8]) -> Verdict {
        match self.judge(now, source.to_canonical(), datagram) {
            Ok(knock) => Verdict::Authentic(knock),
            Err(dropped) => Verdict::Dropped(dropped),
        }
    }

    fn judge(
        &mut self,
        now: UnixMicros,
        source: IpAddr,
        datagram: &[u8],
    ) -> Result<Knock, Dropped> {
        let parts = Parts::of(datagram, self.settings.length).ok_or(DropReason::Length)?;

        if self.tags.is_late(now) {
            self.roll(now);
        }
        let tag = masked(&self.mask, &parts.nonce, Tag(*parts.masked_tag));
        let owner = self.tags.owner(tag).ok_or(DropReason::UnknownTag)?;
        let window = self.settings.freshness.get();
        let fresh = Epoch::of(now.saturating_sub(window))..=Epoch::of(now.saturating_add(window));
        if !fresh.contains(&owner.epoch) && !self.skewed.take(now) {
            return Err(DropReason::SkewUnexamined.into());
        }
        let at = usize::try_from(owner.client).unwrap_or(usize::MAX);
        let (client, pair) = self.clients.get(at).ok_or(DropReason::UnknownTag)?;
        if !parts.mac_holds(pair) {
            return Err(DropReason::Mac.into());
        }

        let dropped = |reason| Dropped { reason, client: Some(*client), skew: None };
        let accepted = self.windows.get(client);
        if accepted.is_some_and(|accepted| accepted.holds(&parts.nonce)) {
            return Err(dropped(DropReason::Replay));
        }
        let mut buffer = [0; PacketLength::MAX_PLAINTEXT as usize];
        let plaintext = parts.decrypt(pair, &mut buffer).ok_or(dropped(DropReason::Decrypt))?;
        let decoded = Request::decode(plaintext);
        buffer.zeroize();
        let (request, stamp) = decoded.ok_or(dropped(DropReason::Layout))?;
        if Epoch::of(stamp) != owner.epoch {
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
        if request.bound_source.is_some_and(|bound| bound != source) {
            return Err(dropped(DropReason::BoundSource));
        }
        Ok(Knock { client: *client, nonce: parts.nonce, stamp, source, request })
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
        if knock.stamp <= self.barrier {
            return Err(DropReason::Barrier);
        }
        self.windows.entry(knock.client).or_default().enter(
            knock.nonce,
            knock.stamp,
            knock.request.message_type,
            ports,
            self.settings.freshness,
            self.settings.window_capacity,
        )?;
        let closed = match knock.request.message_type {
            MessageType::Open => Vec::new(),
            MessageType::Close => ports.to_vec(),
        };
        Ok(Accepted { client: knock.client, nonce: knock.nonce, stamp: knock.stamp, closed })
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
