//! Frames made by hand, well-formed and not, and put on the wire past the network stack.

use crate::lab::Host;
use anyhow::{Context, Result, bail};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// An Ethernet frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame(pub Vec<u8>);

impl Frame {
    /// A frame to `to` with the payload `payload`.
    pub fn new(to: &Host, ethertype: u16, payload: &[u8]) -> Self {
        // The sender's link address of a forged frame is nobody's.
        let mut bytes = Vec::from(to.mac());
        bytes.extend_from_slice(&[2, 0x5a, 0x5a, 0xff, 0xff, 0xfe]);
        bytes.extend_from_slice(&ethertype.to_be_bytes());
        bytes.extend_from_slice(payload);
        Self(bytes)
    }

    /// A UDP datagram from `source`, whoever that is, to `destination`, an address of `to`.
    pub fn udp(
        to: &Host,
        source: SocketAddr,
        destination: SocketAddr,
        payload: &[u8],
    ) -> Result<Self> {
        let datagram = udp(source, destination, payload)?;
        match (source.ip(), destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                Ok(Ipv4 { source, destination, ..Ipv4::default() }.around(to, &datagram))
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                Ok(Ipv6 { source, destination, ..Ipv6::default() }.around(to, &datagram))
            }
            _ => bail!("{source} and {destination} are of different families"),
        }
    }

    /// The first packet of a TCP connection from `source`, whoever that is, to `destination`, an
    /// address of `to`.
    pub fn syn(to: &Host, source: SocketAddr, destination: SocketAddr) -> Result<Self> {
        let mut segment = Vec::new();
        segment.extend_from_slice(&source.port().to_be_bytes());
        segment.extend_from_slice(&destination.port().to_be_bytes());
        // Any sequence number; nothing is acknowledged; five words, SYN; a window; no checksum
        // yet; nothing urgent.
        segment.extend_from_slice(&[0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0]);
        segment.extend_from_slice(&[0x50, 0x02, 0xfa, 0xf0, 0, 0, 0, 0]);
        let sum = transport_checksum(source, destination, TCP, &segment)?;
        segment.splice(16..18, sum.to_be_bytes());
        match (source.ip(), destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header = Ipv4 { source, destination, protocol: TCP, ..Ipv4::default() };
                Ok(header.around(to, &segment))
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                Ok(Ipv6 { source, destination, next: TCP, ..Ipv6::default() }.around(to, &segment))
            }
            _ => bail!("{source} and {destination} are of different families"),
        }
    }

    /// What an untagged IPv4 datagram without options carries.
    pub(crate) fn payload(&self) -> &[u8] {
        self.0.get(14 + 20 + 8..).unwrap_or_default()
    }

    /// The frame with an IEEE 802.1Q tag of VLAN `id` before what it carries.
    pub fn tagged(&self, id: u16) -> Self {
        let mut bytes = self.0.clone();
        let tag = [0x81, 0x00].into_iter().chain(id.to_be_bytes());
        bytes.splice(12..12, tag);
        Self(bytes)
    }
}

/// The header of an IPv4 packet; what a test does not care for is as usual.
#[derive(Debug, Clone)]
pub struct Ipv4 {
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// Flags and fragment offset, as they stand in the header.
    pub fragment: u16,
    /// Options, a multiple of four bytes, at most 40.
    pub options: Vec<u8>,
    /// What is inside.
    pub protocol: u8,
    /// The version and length byte, if it is to lie.
    pub first_byte: Option<u8>,
    /// The total length, if it is to lie.
    pub total_length: Option<u16>,
}

impl Default for Ipv4 {
    fn default() -> Self {
        Self {
            source: Ipv4Addr::UNSPECIFIED,
            destination: Ipv4Addr::UNSPECIFIED,
            fragment: 0x4000,
            options: Vec::new(),
            protocol: UDP,
            first_byte: None,
            total_length: None,
        }
    }
}

impl Ipv4 {
    /// The frame to `to` in which this header stands before `payload`.
    pub fn around(&self, to: &Host, payload: &[u8]) -> Frame {
        let header_length = 20 + self.options.len();
        let length = u16::try_from(header_length + payload.len()).unwrap_or(u16::MAX);
        let words = u8::try_from(header_length / 4).unwrap_or(15);
        let mut header = vec![self.first_byte.unwrap_or(0x40 | words), 0];
        header.extend_from_slice(&self.total_length.unwrap_or(length).to_be_bytes());
        header.extend_from_slice(&[0x12, 0x34]);
        header.extend_from_slice(&self.fragment.to_be_bytes());
        header.extend_from_slice(&[64, self.protocol, 0, 0]);
        header.extend_from_slice(&self.source.octets());
        header.extend_from_slice(&self.destination.octets());
        header.extend_from_slice(&self.options);
        let sum = checksum(&header);
        header.splice(10..12, sum.to_be_bytes());
        header.extend_from_slice(payload);
        Frame::new(to, IPV4, &header)
    }
}

/// The header of an IPv6 packet; what a test does not care for is as usual.
#[derive(Debug, Clone)]
pub struct Ipv6 {
    /// Source address.
    pub source: Ipv6Addr,
    /// Destination address.
    pub destination: Ipv6Addr,
    /// What comes next.
    pub next: u8,
    /// Extension headers, as bytes; `next` names the first, and each the one after it.
    pub extensions: Vec<u8>,
}

impl Default for Ipv6 {
    fn default() -> Self {
        Self {
            source: Ipv6Addr::UNSPECIFIED,
            destination: Ipv6Addr::UNSPECIFIED,
            next: UDP,
            extensions: Vec::new(),
        }
    }
}

impl Ipv6 {
    /// The frame to `to` in which this header stands before `payload`.
    pub fn around(&self, to: &Host, payload: &[u8]) -> Frame {
        let length = u16::try_from(self.extensions.len() + payload.len()).unwrap_or(u16::MAX);
        let mut header = vec![0x60, 0, 0, 0];
        header.extend_from_slice(&length.to_be_bytes());
        header.extend_from_slice(&[self.next, 64]);
        header.extend_from_slice(&self.source.octets());
        header.extend_from_slice(&self.destination.octets());
        header.extend_from_slice(&self.extensions);
        header.extend_from_slice(payload);
        Frame::new(to, IPV6, &header)
    }
}

/// A UDP header with its checksum, and the payload after it.
pub(crate) fn udp(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Result<Vec<u8>> {
    let length = u16::try_from(8 + payload.len()).context("too long for UDP")?;
    let mut datagram = Vec::new();
    datagram.extend_from_slice(&source.port().to_be_bytes());
    datagram.extend_from_slice(&destination.port().to_be_bytes());
    datagram.extend_from_slice(&length.to_be_bytes());
    datagram.extend_from_slice(&[0, 0]);
    datagram.extend_from_slice(payload);

    let sum = transport_checksum(source, destination, UDP, &datagram)?;
    datagram.splice(6..8, sum.to_be_bytes());
    Ok(datagram)
}

/// The checksum of a UDP datagram or a TCP segment, over the pseudo header too.
fn transport_checksum(
    source: SocketAddr,
    destination: SocketAddr,
    protocol: u8,
    bytes: &[u8],
) -> Result<u16> {
    let mut pseudo = Vec::new();
    for address in [source.ip(), destination.ip()] {
        match address {
            IpAddr::V4(v4) => pseudo.extend_from_slice(&v4.octets()),
            IpAddr::V6(v6) => pseudo.extend_from_slice(&v6.octets()),
        }
    }
    pseudo.extend_from_slice(&[0, protocol]);
    pseudo.extend_from_slice(&u16::try_from(bytes.len()).context("too long")?.to_be_bytes());
    pseudo.extend_from_slice(bytes);
    Ok(match checksum(&pseudo) {
        // Nought says that there is none.
        0 if protocol == UDP => 0xffff,
        sum => sum,
    })
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes
        .chunks(2)
        .map(|pair| match *pair {
            [high, low] => u32::from(u16::from_be_bytes([high, low])),
            [high] => u32::from(u16::from_be_bytes([high, 0])),
            _ => 0,
        })
        .sum();
    let mut sum = u64::from(sum);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

impl Host {
    /// Puts frames on the wire from this host's `eth0`, whatever they say about their sender.
    pub fn inject<'a>(&self, frames: impl IntoIterator<Item = &'a Frame> + Send) -> Result<()> {
        self.inject_on("eth0", frames)
    }

    /// The same from another interface.
    pub fn inject_on<'a>(
        &self,
        interface: &str,
        frames: impl IntoIterator<Item = &'a Frame> + Send,
    ) -> Result<()> {
        self.inside(|| {
            let mut handle = pcap::Capture::from_device(interface)?.open()?;
            // It is opened for sending only.
            handle.filter("less 1", true)?;
            for frame in frames {
                handle.sendpacket(&*frame.0)?;
            }
            Ok(())
        })
    }

    /// Sends one datagram with a forged source address.
    pub fn send_udp_as(
        &self,
        source: SocketAddr,
        to: &Host,
        destination: SocketAddr,
        payload: &[u8],
    ) -> Result<()> {
        self.inject([&Frame::udp(to, source, destination, payload)?])
    }
}

#[cfg(test)]
mod tests {
    use crate::lab::{Family, Lab};
    use std::net::UdpSocket;
    use std::time::Duration;

    #[test]
    fn the_kernel_takes_a_forged_datagram_for_real() {
        let lab = Lab::new().unwrap();
        for (family, stranger) in [(Family::V4, "10.66.0.99:1234"), (Family::V6, "[fd66::99]:1234")]
        {
            let to = lab.server().at(family, 5000);
            let socket = lab.server().inside(|| Ok(UdpSocket::bind(to)?)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let stranger = stranger.parse().unwrap();
            // An odd length, so that the last byte of the checksum counts.
            lab.other().send_udp_as(stranger, lab.server(), to, b"forge").unwrap();
            let mut buffer = [0; 16];
            let (length, from) =
                crate::wait::uninterrupted(|| socket.recv_from(&mut buffer)).unwrap();
            assert_eq!((&buffer[..length], from), (&b"forge"[..], stranger));
        }
    }
}
