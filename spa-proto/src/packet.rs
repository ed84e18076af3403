//! The packet on the wire: masked tag, nonce, ciphertext, MAC (§4.1).

use crate::announcement::NewKey;
use crate::request::Request;
use crate::secret::{MaskKey, PairSecret};
use crate::tag::{Epoch, Tag, masked};
use crate::time::UnixMicros;
use alloc::vec::Vec;
use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305};
use core::fmt;
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// Bytes of the masked tag.
pub const TAG_LENGTH: usize = 16;
/// Bytes of a UDP header; a UDP length field says this much more than the packet length.
pub const UDP_HEADER_LENGTH: usize = 8;
const NONCE_LENGTH: usize = 24;
const AEAD_TAG_LENGTH: usize = 16;
const MAC_LENGTH: usize = 32;
const OVERHEAD: usize = TAG_LENGTH + NONCE_LENGTH + AEAD_TAG_LENGTH + MAC_LENGTH;

/// The nonce of a knock, 24 random bytes; it is also the id by which a replay is known.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nonce(pub [u8; NONCE_LENGTH]);

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nonce({self})")
    }
}

/// How long every packet of a deployment is.
///
/// It is chosen by the plaintext length P: 128 bytes by default, 320 at most, so that a frame
/// with VLAN tags, IPv4 options or IPv6 extension headers fits a capture of 512 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketLength {
    plaintext: u16,
}

impl PacketLength {
    /// The smallest and default plaintext length, in bytes.
    pub const MIN_PLAINTEXT: u16 = 128;
    /// The largest plaintext length, in bytes.
    pub const MAX_PLAINTEXT: u16 = 320;
    /// The longest packet, in bytes.
    pub const MAX: usize = Self::MAX_PLAINTEXT as usize + OVERHEAD;

    /// P, in bytes.
    pub const fn plaintext(self) -> usize {
        self.plaintext as usize
    }

    /// The length of the UDP payload, in bytes: P + 88.
    pub const fn packet(self) -> usize {
        self.plaintext().saturating_add(OVERHEAD)
    }
}

impl Default for PacketLength {
    fn default() -> Self {
        Self { plaintext: Self::MIN_PLAINTEXT }
    }
}

impl TryFrom<u16> for PacketLength {
    type Error = PacketLengthError;

    /// Takes P.
    fn try_from(plaintext: u16) -> Result<Self, PacketLengthError> {
        if (Self::MIN_PLAINTEXT..=Self::MAX_PLAINTEXT).contains(&plaintext) {
            Ok(Self { plaintext })
        } else {
            Err(PacketLengthError(plaintext))
        }
    }
}

/// A plaintext length outside its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a plaintext length of {0} bytes is out of bounds; it lies between {min} and {max}",
    min = PacketLength::MIN_PLAINTEXT,
    max = PacketLength::MAX_PLAINTEXT
)]
pub struct PacketLengthError(pub u16);

/// Why a request could not be sealed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The names of the items are too long together.
    #[error(
        "the names of the services take {needed} bytes together, this server's packets have room for {room}; ask for fewer at once"
    )]
    TooLong {
        /// Bytes of the encoded items.
        needed: usize,
        /// Bytes that there are.
        room: usize,
    },
    /// The cipher refused; it does not at these lengths.
    #[error("the packet could not be encrypted")]
    Cipher,
}

/// Builds the datagram that carries `request`: `length.packet()` bytes.
///
/// `stamp` is the client's clock; `nonce` has to be 24 fresh bytes from the system's random
/// number generator, for each packet anew, also when the same request goes to a second address.
///
/// ```
/// use spa_proto::{MaskKey, MessageType, Nonce, PacketLength, PairSecret, Request, UnixMicros};
///
/// let request = Request {
///     message_type: MessageType::Open,
///     items: "ssh".parse::<spa_proto::Item>()?.try_into()?,
///     bound_source: None,
///     lifetime: None,
/// };
/// let packet = spa_proto::seal(
///     &PairSecret::new([1; 32], [2; 32], [3; 32]),
///     &MaskKey::new([4; 32]),
///     &request,
///     UnixMicros::from_secs(1_800_000_000),
///     Nonce([5; 24]),
///     PacketLength::default(),
/// )?;
/// assert_eq!(packet.len(), 216);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn seal(
    pair: &PairSecret,
    mask: &MaskKey,
    request: &Request,
    stamp: UnixMicros,
    nonce: Nonce,
    length: PacketLength,
) -> Result<Vec<u8>, SealError> {
    let mut plaintext = alloc::vec![0; length.plaintext()];
    request.encode(stamp, &mut plaintext).map_err(|needed| {
        let room = Request::room(length.plaintext());
        SealError::TooLong {
            needed: room.saturating_add(needed).saturating_sub(length.plaintext()),
            room,
        }
    })?;
    seal_plaintext(pair, mask, plaintext, stamp, nonce, length)
}

/// Builds the datagram that announces a new key: `length.packet()` bytes (§9).
///
/// `pair` is the secret of the invitation, or of the client's present key; the rest is as for
/// [`seal`].
pub fn seal_announcement(
    pair: &PairSecret,
    mask: &MaskKey,
    new_key: &NewKey<'_>,
    stamp: UnixMicros,
    nonce: Nonce,
    length: PacketLength,
) -> Result<Vec<u8>, SealError> {
    let mut plaintext = alloc::vec![0; length.plaintext()];
    new_key.encode(stamp, &nonce, &mut plaintext).ok_or(SealError::Cipher)?;
    seal_plaintext(pair, mask, plaintext, stamp, nonce, length)
}

/// What all packets have in common, whatever they say.
fn seal_plaintext(
    pair: &PairSecret,
    mask: &MaskKey,
    plaintext: Vec<u8>,
    stamp: UnixMicros,
    nonce: Nonce,
    length: PacketLength,
) -> Result<Vec<u8>, SealError> {
    let mut ciphertext = plaintext;
    let tag = masked(mask, &nonce, Tag::of(pair, Epoch::of(stamp)));
    let aead_tag = XChaCha20Poly1305::new(&pair.enc.into())
        .encrypt_inout_detached(&nonce.0.into(), &tag.0, ciphertext.as_mut_slice().into())
        .map_err(|_| SealError::Cipher)?;

    let mut packet = Vec::with_capacity(length.packet());
    packet.extend_from_slice(&tag.0);
    packet.extend_from_slice(&nonce.0);
    packet.extend_from_slice(&ciphertext);
    packet.extend_from_slice(&aead_tag);
    let mut mac = Hmac::<Sha256>::new_from_slice(&pair.mac).map_err(|_| SealError::Cipher)?;
    mac.update(&packet);
    packet.extend_from_slice(&mac.finalize().into_bytes());
    Ok(packet)
}

/// A datagram of the right length, taken apart but not yet believed.
pub(crate) struct Parts<'a> {
    pub(crate) masked_tag: &'a [u8; TAG_LENGTH],
    pub(crate) nonce: Nonce,
    ciphertext: &'a [u8],
    aead_tag: &'a [u8; AEAD_TAG_LENGTH],
    authenticated: &'a [u8],
    mac: &'a [u8; MAC_LENGTH],
}

impl<'a> Parts<'a> {
    /// `None` when the datagram has any other length.
    pub(crate) fn of(datagram: &'a [u8], length: PacketLength) -> Option<Self> {
        if datagram.len() != length.packet() {
            return None;
        }
        let (authenticated, mac) = datagram.split_last_chunk()?;
        let (masked_tag, rest) = authenticated.split_first_chunk()?;
        let (nonce, rest) = rest.split_first_chunk()?;
        let (ciphertext, aead_tag) = rest.split_last_chunk()?;
        Some(Self { masked_tag, nonce: Nonce(*nonce), ciphertext, aead_tag, authenticated, mac })
    }

    /// Whether the MAC holds under `pair`, in constant time.
    pub(crate) fn mac_holds(&self, pair: &PairSecret) -> bool {
        Hmac::<Sha256>::new_from_slice(&pair.mac).is_ok_and(|mut mac| {
            mac.update(self.authenticated);
            mac.verify_slice(self.mac).is_ok()
        })
    }

    /// Decrypts into `buffer` and hands out the part of it that holds the plaintext; `None` when
    /// the AEAD tag does not hold.
    pub(crate) fn decrypt<'b>(
        &self,
        pair: &PairSecret,
        buffer: &'b mut [u8; PacketLength::MAX_PLAINTEXT as usize],
    ) -> Option<&'b [u8]> {
        let plaintext = buffer.get_mut(..self.ciphertext.len())?;
        plaintext.copy_from_slice(self.ciphertext);
        XChaCha20Poly1305::new(&pair.enc.into())
            .decrypt_inout_detached(
                &self.nonce.0.into(),
                self.masked_tag,
                (&mut *plaintext).into(),
                &(*self.aead_tag).into(),
            )
            .ok()?;
        Some(plaintext)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::item::{Item, Items};
    use crate::request::MessageType;

    #[test]
    fn a_packet_is_88_bytes_longer_than_the_plaintext_which_has_its_bounds() {
        for (plaintext, packet) in [(128, 216), (129, 217), (320, 408)] {
            let length = PacketLength::try_from(plaintext).unwrap();
            assert_eq!((length.plaintext(), length.packet()), (plaintext.into(), packet));
            assert!(packet <= PacketLength::MAX);
        }
        assert_eq!(PacketLength::MAX, 408);
        for plaintext in [0, 127, 321, u16::MAX] {
            assert_eq!(PacketLength::try_from(plaintext), Err(PacketLengthError(plaintext)));
        }
    }

    #[test]
    fn items_that_find_no_room_are_told_with_the_room_that_there_is() {
        let names = (0..8).map(|n| alloc::format!("administration-{n}").parse().unwrap());
        let request = Request {
            message_type: MessageType::Open,
            items: Items::try_from(names.collect::<Vec<Item>>()).unwrap(),
            bound_source: None,
            lifetime: None,
        };
        let pair = PairSecret::new([1; 32], [2; 32], [3; 32]);
        let mask = MaskKey::new([9; 32]);
        let sealed = |length| seal(&pair, &mask, &request, UnixMicros(0), Nonce([5; 24]), length);
        let too_long = SealError::TooLong { needed: 8 * 17, room: 97 };
        assert_eq!(sealed(PacketLength::default()), Err(too_long));
        assert_eq!(sealed(PacketLength::try_from(31 + 8 * 17).unwrap()).unwrap().len(), 255);
    }
}
