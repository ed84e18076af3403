//! What is really on the wire.

use crate::lab::Host;
use crate::wait::eventually;
use anyhow::{Context, Result, ensure};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// "Local experimental" (IEEE 802): marks the end of a capture.
const MARKER: u16 = 0x88b5;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// A capture on the `eth0` of a host, in both directions.
pub struct Capture {
    host: Host,
    packets: Arc<Mutex<Vec<Packet>>>,
    markers: Arc<Mutex<Vec<u64>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Captures what `filter` (in libpcap's language) lets through, from now on.
    pub fn on(host: &Host, filter: &str) -> Result<Self> {
        let mut handle = host.inside(|| {
            let mut handle = pcap::Capture::from_device("eth0")?
                .immediate_mode(true)
                // Immediate mode reserves as much for each packet: of whole frames there would be 256.
                .snaplen(4096)
                .buffer_size(16 << 20)
                .open()
                .context("cannot capture")?;
            handle
                .filter(&format!("({filter}) or ether proto {MARKER}"), true)
                .with_context(|| format!("libpcap does not take the filter {filter:?}"))?;
            Ok(handle.setnonblock()?)
        })?;
        let packets = Arc::new(Mutex::new(Vec::new()));
        let markers = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (packets, markers, stop) = (packets.clone(), markers.clone(), stop.clone());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let Ok(packet) = handle.next_packet() else {
                        thread::sleep(Duration::from_millis(1));
                        continue;
                    };
                    let packet = Packet(packet.data.to_vec());
                    match packet.marker() {
                        Some(marker) => lock(&markers).push(marker),
                        None => lock(&packets).push(packet),
                    }
                }
            }
        });
        Ok(Self { host: host.clone(), packets, markers, stop, thread: Some(thread) })
    }

    /// Captures whatever a host can answer with: ICMP, UDP, and TCP with SYN or RST.
    pub fn of_answers(host: &Host) -> Result<Self> {
        // The flags of TCP over IPv6 have no name in the filter language.
        Self::on(
            host,
            "icmp or icmp6 or udp or tcp[13] & 6 != 0 or (ip6 proto 6 and ip6[53] & 6 != 0)",
        )
    }

    /// All packets that were on the wire before this call.
    pub fn packets(&self) -> Result<Vec<Packet>> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let marker = NEXT.fetch_add(1, Ordering::Relaxed);
        let frame = crate::Frame::new(&self.host, MARKER, &marker.to_be_bytes());
        self.host.inject([&frame])?;
        eventually("the capture is to reach its own marker", || {
            Ok(lock(&self.markers).contains(&marker).then_some(()))
        })?;
        Ok(lock(&self.packets).clone())
    }

    /// Waits until that many packets were on the wire since the beginning.
    pub fn await_count(&self, count: usize) -> Result<()> {
        eventually("packets are to be on the wire", || {
            Ok((lock(&self.packets).len() >= count).then_some(()))
        })
    }

    /// Waits for the first packet that `wanted` accepts.
    pub fn await_packet(&self, wanted: impl Fn(&Packet) -> bool) -> Result<Packet> {
        eventually("a packet is to be on the wire", || {
            Ok(lock(&self.packets).iter().find(|packet| wanted(packet)).cloned())
        })
    }

    /// The payload of the first datagram to this UDP port: how a test gets hold of a knock.
    pub fn await_datagram(&self, port: u16) -> Result<Vec<u8>> {
        let packet = self.await_packet(|packet| packet.datagram_to(port).is_some())?;
        packet.datagram_to(port).map(<[u8]>::to_vec).context("the packet has lost its payload")
    }

    /// That the host has sent nothing but what keeps a link alive (neighbour discovery, group
    /// membership), since the capture began.
    pub fn ensure_silence_of(&self, host: &Host) -> Result<()> {
        let said: Vec<_> = self
            .packets()?
            .into_iter()
            .filter(|packet| packet.is_from(host) && !packet.is_of_the_link())
            .map(|packet| packet.to_string())
            .collect();
        ensure!(said.is_empty(), "the host was not silent, it sent:\n{}", said.join("\n"));
        Ok(())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One captured Ethernet frame.
#[derive(Clone, PartialEq, Eq)]
pub struct Packet(pub Vec<u8>);

impl Packet {
    /// Whether this host put it on the wire.
    pub fn is_from(&self, host: &Host) -> bool {
        self.0.get(6..12) == Some(&host.mac())
    }

    /// Where it comes from, if it is an IP packet.
    pub fn source(&self) -> Option<IpAddr> {
        match self.ip()? {
            Ip::V4(packet) => Some(Ipv4Addr::from(*packet.get(12..)?.first_chunk::<4>()?).into()),
            Ip::V6(packet) => Some(Ipv6Addr::from(*packet.get(8..)?.first_chunk::<16>()?).into()),
        }
    }

    /// Where it goes, if it is an IP packet.
    pub fn destination(&self) -> Option<IpAddr> {
        match self.ip()? {
            Ip::V4(packet) => Some(Ipv4Addr::from(*packet.get(16..)?.first_chunk::<4>()?).into()),
            Ip::V6(packet) => Some(Ipv6Addr::from(*packet.get(24..)?.first_chunk::<16>()?).into()),
        }
    }

    /// The payload of a datagram to this UDP port.
    pub fn datagram_to(&self, port: u16) -> Option<&[u8]> {
        let (protocol, datagram) = self.transport()?;
        let to = u16::from_be_bytes(*datagram.get(2..)?.first_chunk()?);
        let length = u16::from_be_bytes(*datagram.get(4..)?.first_chunk()?);
        (protocol == UDP && to == port).then(|| datagram.get(8..usize::from(length)))?
    }

    /// The header of the network layer, whose addresses are left out, and the UDP source port.
    pub fn header(&self) -> Option<(Vec<u8>, u16)> {
        let (header, length) = match self.ip()? {
            Ip::V4(packet) => (packet.get(..12)?, usize::from(packet.first()? & 0xf) * 4),
            Ip::V6(packet) => (packet.get(..8)?, 40),
        };
        let port = self.0.get(14..)?.get(length..)?.first_chunk()?;
        Some((header.to_vec(), u16::from_be_bytes(*port)))
    }

    /// Whether any host on a link sends such packets: ARP, IGMP, and ICMPv6 of neighbour
    /// discovery (RFC 4861) and of multicast listeners (RFC 2710, RFC 3810).
    fn is_of_the_link(&self) -> bool {
        match (self.ip(), self.transport()) {
            (None, _) | (_, Some((2, _))) => true,
            (_, Some((ICMPV6, message))) => {
                matches!(message.first(), Some(130..=137 | 143))
            }
            _ => false,
        }
    }

    fn marker(&self) -> Option<u64> {
        (self.ethertype()? == MARKER)
            .then(|| self.0.get(14..)?.first_chunk().map(|id| u64::from_be_bytes(*id)))?
    }

    fn ethertype(&self) -> Option<u16> {
        self.0.get(12..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
    }

    fn ip(&self) -> Option<Ip<'_>> {
        let packet = self.0.get(14..)?;
        match self.ethertype()? {
            0x0800 => Some(Ip::V4(packet)),
            0x86dd => Some(Ip::V6(packet)),
            _ => None,
        }
    }

    /// Protocol and payload; hop-by-hop options (of multicast listener reports) are skipped.
    fn transport(&self) -> Option<(u8, &[u8])> {
        match self.ip()? {
            Ip::V4(packet) => {
                let header = usize::from(packet.first()? & 0xf) * 4;
                Some((*packet.get(9)?, packet.get(header..)?))
            }
            Ip::V6(packet) => {
                let payload = packet.get(40..)?;
                match *packet.get(6)? {
                    0 => {
                        let length = 8 + usize::from(*payload.get(1)?) * 8;
                        Some((*payload.first()?, payload.get(length..)?))
                    }
                    protocol => Some((protocol, payload)),
                }
            }
        }
    }
}

enum Ip<'a> {
    V4(&'a [u8]),
    V6(&'a [u8]),
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(source), Some(destination)) = (self.source(), self.destination()) {
            let protocol = self.transport().map_or(255, |(protocol, _)| protocol);
            write!(f, "{source} > {destination} protocol {protocol}: ")?;
        }
        self.0.iter().skip(14).take(64).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Packet({self})")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::{Family, Lab};

    #[test]
    fn an_answer_of_the_host_is_seen_and_silence_is_told_from_it() {
        let lab = Lab::new().unwrap();
        for family in Family::BOTH {
            let capture = Capture::on(lab.server(), "ip or ip6").unwrap();
            let to = lab.server().at(family, 9999);
            let tables = if family == Family::V4 { "iptables" } else { "ip6tables" };

            lab.server().sh(&format!("{tables} -I INPUT -p udp -j DROP")).unwrap();
            lab.owner().send_udp(to, b"into the dark").unwrap();
            assert_eq!(capture.await_datagram(9999).unwrap(), b"into the dark");
            capture.ensure_silence_of(lab.server()).unwrap();

            lab.server().sh(&format!("{tables} -D INPUT -p udp -j DROP")).unwrap();
            lab.owner().send_udp(to, b"to a closed port").unwrap();
            let error = capture.ensure_silence_of(lab.server()).unwrap_err().to_string();
            let address = lab.server().address(family).to_string();
            assert!(error.contains(&format!("{address} > ")), "{error}");
        }
    }
}
