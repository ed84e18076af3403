//! The link layer: which network protocol a frame carries, and where it begins.

use super::FrameError;
use super::reader::Reader;

/// VLAN tags that are followed: one of the provider's (802.1ad), one of the customer's (802.1Q).
const MAX_VLAN_TAGS: usize = 2;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// 802.1Q, 802.1ad, and what stood for 802.1ad before there was a standard.
const ETHERTYPE_VLAN: [u16; 3] = [0x8100, 0x88a8, 0x9100];
/// `sll_pkttype` of a packet that this host sends.
const PACKET_OUTGOING: u16 = 4;

/// The types of link layer header that are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinkType {
    /// Ethernet; the loopback interface of Linux as well.
    Ethernet,
    /// Linux "cooked" capture, version 1: the pseudo-device `any`, and PPP.
    LinuxSll,
    /// Linux "cooked" capture, version 2, which carries the index of the interface.
    LinuxSll2,
    /// No header at all: tunnels (tun, WireGuard).
    RawIp,
    /// BSD loopback: the address family in the byte order of the host.
    Null,
    /// OpenBSD loopback: the address family in network byte order.
    Loop,
}

impl LinkType {
    /// Every type.
    pub const ALL: &'static [Self] =
        &[Self::Ethernet, Self::LinuxSll, Self::LinuxSll2, Self::RawIp, Self::Null, Self::Loop];

    /// The number that libpcap has for the type (`DLT_…`), on Linux.
    pub const fn number(self) -> i32 {
        match self {
            Self::Ethernet => 1,
            Self::LinuxSll => 113,
            Self::LinuxSll2 => 276,
            Self::RawIp => 12,
            Self::Null => 0,
            Self::Loop => 108,
        }
    }
}

impl TryFrom<i32> for LinkType {
    type Error = UnsupportedLink;

    /// Takes libpcap's number. Raw IP has three: two of systems, one of files.
    fn try_from(number: i32) -> Result<Self, UnsupportedLink> {
        match number {
            1 => Ok(Self::Ethernet),
            113 => Ok(Self::LinuxSll),
            276 => Ok(Self::LinuxSll2),
            12 | 14 | 101 => Ok(Self::RawIp),
            0 => Ok(Self::Null),
            108 => Ok(Self::Loop),
            _ => Err(UnsupportedLink(number)),
        }
    }
}

/// A link layer type that can't be read, by libpcap's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("frames of link type {0} can't be read")]
pub struct UnsupportedLink(pub i32);

/// The two network protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Network {
    Ipv4,
    Ipv6,
}

/// A frame without its link layer header.
pub(super) struct Link<'a> {
    pub(super) network: Network,
    pub(super) interface_index: Option<u32>,
    pub(super) packet: &'a [u8],
}

pub(super) fn parse(link: LinkType, frame: &[u8]) -> Result<Link<'_>, FrameError> {
    let mut reader = Reader::new(frame);
    let mut interface_index = None;
    let network = match link {
        LinkType::Ethernet => {
            let _addresses: [u8; 12] = reader.array()?;
            let ethertype = reader.u16()?;
            behind_vlan_tags(ethertype, &mut reader)?
        }
        LinkType::LinuxSll => {
            let direction = reader.u16()?;
            let _hardware: [u8; 12] = reader.array()?;
            let protocol = reader.u16()?;
            refuse_outgoing(direction)?;
            behind_vlan_tags(protocol, &mut reader)?
        }
        LinkType::LinuxSll2 => {
            let protocol = reader.u16()?;
            let _reserved = reader.u16()?;
            interface_index = Some(u32::from_be_bytes(reader.array()?));
            let _hardware_type = reader.u16()?;
            let [direction, _address_length] = reader.array()?;
            let _address: [u8; 8] = reader.array()?;
            refuse_outgoing(direction.into())?;
            behind_vlan_tags(protocol, &mut reader)?
        }
        LinkType::RawIp => match reader.peek()? >> 4 {
            4 => Network::Ipv4,
            6 => Network::Ipv6,
            _ => return Err(FrameError::NotIp),
        },
        LinkType::Null => {
            // Whoever wrote the header may have had the other byte order; families are small.
            let family = reader.array()?;
            let (little, big) = (u32::from_le_bytes(family), u32::from_be_bytes(family));
            of_family(little.min(big))?
        }
        LinkType::Loop => of_family(u32::from_be_bytes(reader.array()?))?,
    };
    Ok(Link { network, interface_index, packet: reader.rest() })
}

fn behind_vlan_tags(mut ethertype: u16, reader: &mut Reader<'_>) -> Result<Network, FrameError> {
    for _ in 0..MAX_VLAN_TAGS {
        if !ETHERTYPE_VLAN.contains(&ethertype) {
            break;
        }
        let _tag_control = reader.u16()?;
        ethertype = reader.u16()?;
    }
    match ethertype {
        ETHERTYPE_IPV4 => Ok(Network::Ipv4),
        ETHERTYPE_IPV6 => Ok(Network::Ipv6),
        _ if ETHERTYPE_VLAN.contains(&ethertype) => Err(FrameError::TooManyHeaders),
        _ => Err(FrameError::NotIp),
    }
}

const fn refuse_outgoing(direction: u16) -> Result<(), FrameError> {
    if direction == PACKET_OUTGOING { Err(FrameError::Outgoing) } else { Ok(()) }
}

/// `AF_INET` is 2 everywhere; `AF_INET6` is 10 on Linux, 24, 28 or 30 on the BSDs and macOS.
const fn of_family(family: u32) -> Result<Network, FrameError> {
    match family {
        2 => Ok(Network::Ipv4),
        10 | 24 | 28 | 30 => Ok(Network::Ipv6),
        _ => Err(FrameError::NotIp),
    }
}
