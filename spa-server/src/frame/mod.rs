//! From the bytes of a captured frame to the UDP datagram in it: link layer, IPv4 or IPv6, UDP.
//!
//! Everything here is a pure function of bytes that anybody on the network may have written. It
//! must not know where the frame came from, what a knock looks like, or what time it is.
//!
//! What the host's own network stack would not deliver as one whole datagram is refused here too
//! (fragments above all: the kernel puts them together only after the capture has seen them). Two
//! things are *not* checked. The UDP checksum: network cards and virtual links fill it in or
//! verify it elsewhere, so that a capture sees good datagrams with a wrong one, and the MAC of a
//! knock is the stronger check. And the destination address: whether it is one of the host's own
//! is not written in the frame.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

mod ip;
mod link;
mod reader;
#[cfg(test)]
pub(crate) mod sample;
#[cfg(test)]
mod tests;

pub use link::{LinkType, UnsupportedLink};

use reader::Reader;
use std::fmt;
use std::net::IpAddr;

/// Bytes of a UDP header (RFC 768).
const UDP_HEADER: u16 = 8;

/// A UDP datagram found in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Who sent it, as the IP header says; never a multicast, unspecified or v4-mapped address.
    pub source: IpAddr,
    /// The UDP source port; 0 is allowed on the wire.
    pub source_port: u16,
    /// Where it was sent.
    pub destination: IpAddr,
    /// The UDP destination port.
    pub destination_port: u16,
    /// The index of the interface that received it, where the link header says so (SLL2).
    pub interface_index: Option<u32>,
    /// The bytes after the UDP header: as many as its length field says.
    pub payload: &'a [u8],
}

macro_rules! frame_errors {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// Why there is no datagram in a frame.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum FrameError {
            $($(#[$doc])* $variant,)*
        }

        impl FrameError {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The reason's name in `status` and in the log.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }
    };
}

frame_errors! {
    /// The frame ends before its headers, or before the lengths that they state.
    Truncated = "truncated",
    /// This host sent the frame itself.
    Outgoing = "outgoing",
    /// Neither IPv4 nor IPv6.
    NotIp = "not-ip",
    /// A header contradicts itself or its neighbours.
    BadHeader = "bad-header",
    /// A fragment of a packet, the first or a later one.
    Fragment = "fragment",
    /// IP, and not UDP.
    NotUdp = "not-udp",
    /// More VLAN tags or IPv6 extension headers than are followed.
    TooManyHeaders = "too-many-headers",
    /// A source address that no host may send from.
    BadSource = "bad-source",
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::error::Error for FrameError {}

/// Finds the UDP datagram in `frame`, which was captured on a link of the type `link`.
///
/// Bytes after the IP packet (the padding of short Ethernet frames) are ignored.
///
/// ```
/// use spa_server::frame::{self, FrameError, LinkType};
///
/// let raw_ip = [
///     0x45, 0, 0, 30, 0, 0, 0, 0, 64, 17, 0, 0, // IPv4, 30 bytes, UDP
///     192, 0, 2, 1, 192, 0, 2, 2, // from, to
///     0x30, 0x39, 0xf2, 0xf9, 0, 10, 0, 0, // UDP 12345 -> 62201, 10 bytes
///     b'h', b'i',
/// ];
/// let datagram = frame::parse(LinkType::RawIp, &raw_ip)?;
/// assert_eq!(datagram.source.to_string(), "192.0.2.1");
/// assert_eq!((datagram.destination_port, datagram.payload), (62201, b"hi".as_slice()));
/// assert_eq!(frame::parse(LinkType::RawIp, &raw_ip[..29]), Err(FrameError::Truncated));
/// # Ok::<(), FrameError>(())
/// ```
pub fn parse(link: LinkType, frame: &[u8]) -> Result<Datagram<'_>, FrameError> {
    let link = link::parse(link, frame)?;
    let ip = ip::parse(link.network, link.packet)?;

    // The IP packet is whole, so a UDP header or length that ends outside of it is a lie and no
    // truncation.
    let udp = udp(ip.payload).map_err(|_| FrameError::BadHeader)?;

    Ok(Datagram {
        source: ip.source,
        source_port: udp.source_port,
        destination: ip.destination,
        destination_port: udp.destination_port,
        interface_index: link.interface_index,
        payload: udp.payload,
    })
}

struct Udp<'a> {
    source_port: u16,
    destination_port: u16,
    payload: &'a [u8],
}

fn udp(bytes: &[u8]) -> Result<Udp<'_>, FrameError> {
    let mut reader = Reader::new(bytes);
    let source_port = reader.u16()?;
    let destination_port = reader.u16()?;
    let length = reader.u16()?;
    let _checksum = reader.u16()?;
    // RFC 768: the length counts the header. A zero (jumbograms, RFC 2675) fails here too. When
    // it is shorter than the packet, the host's own stack cuts the rest off as well.
    let payload_length = length.checked_sub(UDP_HEADER).ok_or(FrameError::BadHeader)?;
    let payload = reader.bytes(payload_length.into())?;
    Ok(Udp { source_port, destination_port, payload })
}
