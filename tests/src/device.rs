//! Knocks of every kind: right ones, and those that no honest client sends.

use anyhow::{Context, Result};
use ring::rand::{SecureRandom, SystemRandom};
use spa_keys::{
    AnnouncementSecret, Announcing, PreSharedKey, PrivateKey, PublicKey, mask_key,
    pair_secret_for_client,
};
use spa_proto::{
    Item, Items, MaskKey, MessageType, Nonce, PacketLength, PairSecret, Request, UnixMicros, seal,
    seal_announcement,
};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The real time.
pub fn now() -> UnixMicros {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMicros(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// A key pair of a client or of a server, with the pre-shared key if there is one.
pub struct Identity {
    private: PrivateKey,
    pre_shared: Option<PreSharedKey>,
}

impl Identity {
    /// A new one.
    pub fn generate() -> Result<Self> {
        let private = PrivateKey::generate(&SystemRandom::new())?;
        Ok(Self { private, pre_shared: None })
    }

    /// The same with a pre-shared key.
    pub fn with_pre_shared(self, key: PreSharedKey) -> Self {
        Self { pre_shared: Some(key), ..self }
    }

    /// The private key.
    pub fn private(&self) -> &PrivateKey {
        &self.private
    }

    /// The public key.
    pub fn public(&self) -> PublicKey {
        self.private.public()
    }

    /// A device with this key that knocks at the server of that key.
    pub fn device(&self, server: PublicKey) -> Result<Device> {
        Ok(Device {
            pair: pair_secret_for_client(&self.private, &server, self.pre_shared.as_ref())?,
            mask: mask_key(&server),
            length: PacketLength::default(),
            ahead: 0,
        })
    }
}

impl Identity {
    /// A new key that is to take the place of this one at the server of that key.
    pub fn rotation(&self, server: PublicKey) -> Result<Rotation> {
        let secret =
            AnnouncementSecret::of_client(&self.private, &server, self.pre_shared.as_ref())?;
        let private = PrivateKey::generate(&SystemRandom::new())?;
        let announcing = Announcing::new(&secret, &private, &server)?;
        let pre_shared = Some(announcing.pre_shared_key().again());
        let next = Self { private, pre_shared };
        Ok(Rotation { device: self.device(server)?, announcing, next })
    }
}

/// A new key of a client, which its present one announces.
pub struct Rotation {
    device: Device,
    announcing: Announcing,
    /// The new key.
    pub next: Identity,
}

impl Rotation {
    /// One more datagram that announces it.
    pub fn seal(&self) -> Result<Vec<u8>> {
        let Device { pair, mask, length, .. } = &self.device;
        let message = self.announcing.message(None);
        Ok(seal_announcement(pair, mask, &message, self.device.now(), Nonce(random()?), *length)?)
    }
}

impl From<PrivateKey> for Identity {
    fn from(private: PrivateKey) -> Self {
        Self { private, pre_shared: None }
    }
}

/// What a client device knows of one server.
#[derive(Clone)]
pub struct Device {
    pair: PairSecret,
    mask: MaskKey,
    length: PacketLength,
    ahead: i64,
}

impl Device {
    /// The same device with its clock ahead by so many seconds (behind, if negative).
    pub fn with_clock_ahead(&self, seconds: i64) -> Self {
        Self { ahead: seconds, ..self.clone() }
    }

    /// The same device with another plaintext length.
    pub fn with_length(&self, length: PacketLength) -> Self {
        Self { length, ..self.clone() }
    }

    /// The time on this device.
    pub fn now(&self) -> UnixMicros {
        let distance = Duration::from_secs(self.ahead.unsigned_abs());
        if self.ahead < 0 { now().saturating_sub(distance) } else { now().saturating_add(distance) }
    }

    /// A knock that opens; `items` are separated by white space, as in `"ssh tcp/8080"`.
    pub fn open(&self, items: &str) -> Ask<'_> {
        self.ask(MessageType::Open, items)
    }

    /// A knock that closes.
    pub fn close(&self, items: &str) -> Ask<'_> {
        self.ask(MessageType::Close, items)
    }

    fn ask(&self, message_type: MessageType, items: &str) -> Ask<'_> {
        Ask {
            device: self,
            message_type,
            items: items.to_owned(),
            lifetime: None,
            bound_source: None,
            stamp: None,
            nonce: None,
        }
    }
}

/// A knock that is not sealed yet. What is not said is as an honest client has it.
#[derive(Clone)]
pub struct Ask<'a> {
    device: &'a Device,
    message_type: MessageType,
    items: String,
    lifetime: Option<NonZeroU32>,
    bound_source: Option<IpAddr>,
    stamp: Option<UnixMicros>,
    nonce: Option<Nonce>,
}

impl Ask<'_> {
    /// Asks for this lifetime, in seconds; 0 is the server's default.
    pub fn lifetime(self, seconds: u32) -> Self {
        Self { lifetime: NonZeroU32::new(seconds), ..self }
    }

    /// May only come from this address.
    pub fn bound_to(self, source: IpAddr) -> Self {
        Self { bound_source: Some(source), ..self }
    }

    /// Carries this timestamp.
    pub fn at(self, stamp: UnixMicros) -> Self {
        Self { stamp: Some(stamp), ..self }
    }

    /// Has this nonce.
    pub fn nonce(self, nonce: [u8; 24]) -> Self {
        Self { nonce: Some(Nonce(nonce)), ..self }
    }

    /// The datagram.
    pub fn seal(&self) -> Result<Vec<u8>> {
        let items = self
            .items
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<Vec<Item>, _>>()
            .with_context(|| format!("{:?} are no items", self.items))?;
        let request = Request {
            message_type: self.message_type,
            items: Items::try_from(items)?,
            bound_source: self.bound_source,
            lifetime: self.lifetime,
        };
        let nonce = match self.nonce {
            Some(nonce) => nonce,
            None => Nonce(random()?),
        };
        let device = self.device;
        let stamp = self.stamp.unwrap_or_else(|| device.now());
        Ok(seal(&device.pair, &device.mask, &request, stamp, nonce, device.length)?)
    }
}

/// Bytes from the system's random number generator.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| anyhow::anyhow!("the system has no random numbers"))?;
    Ok(bytes)
}
