//! The network layer: IPv4 (RFC 791) and IPv6 (RFC 8200), up to the UDP header.

use super::FrameError;
use super::link::Network;
use super::reader::Reader;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IPv6 extension headers that are followed. The kernel's capture filter follows two
/// ([`crate::capture::filter`]); nothing in practice has more.
const MAX_EXTENSION_HEADERS: usize = 4;

const IPV4_MIN_HEADER: u16 = 20;
const UDP: u8 = 17;

/// More fragments follow, or this is not the first one; the "don't fragment" bit aside.
const IPV4_FRAGMENT: u16 = 0x3fff;
/// The same of the IPv6 fragment header; two reserved bits aside.
const IPV6_FRAGMENT: u16 = 0xfff9;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// An IP packet that carries UDP: from the UDP header to the end of the packet.
pub(super) struct Ip<'a> {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) payload: &'a [u8],
}

pub(super) fn parse(network: Network, packet: &[u8]) -> Result<Ip<'_>, FrameError> {
    match network {
        Network::Ipv4 => ipv4(packet),
        Network::Ipv6 => ipv6(packet),
    }
}

fn ipv4(packet: &[u8]) -> Result<Ip<'_>, FrameError> {
    let mut reader = Reader::new(packet);
    let [version_and_length, _service] = reader.array()?;
    let total_length = reader.u16()?;
    let _identification = reader.u16()?;
    let fragment = reader.u16()?;
    let [_time_to_live, protocol] = reader.array()?;
    let _checksum = reader.u16()?;
    let source = Ipv4Addr::from(reader.array::<4>()?);
    let destination = Ipv4Addr::from(reader.array::<4>()?);

    let header_length = u16::from(version_and_length & 0x0f).saturating_mul(4);
    let options = header_length.checked_sub(IPV4_MIN_HEADER).ok_or(FrameError::BadHeader)?;
    let payload_length = total_length.checked_sub(header_length).ok_or(FrameError::BadHeader)?;
    if version_and_length >> 4 != 4 {
        return Err(FrameError::BadHeader);
    }
    reader.bytes(options.into())?;
    let payload = reader.bytes(payload_length.into())?;

    if protocol != UDP {
        return Err(FrameError::NotUdp);
    }
    if fragment & IPV4_FRAGMENT != 0 {
        return Err(FrameError::Fragment);
    }
    // RFC 1122, section 3.2.1.3: never source addresses of a packet.
    if source.is_unspecified() || source.is_multicast() || source.is_broadcast() {
        return Err(FrameError::BadSource);
    }
    Ok(Ip { source: source.into(), destination: destination.into(), payload })
}

fn ipv6(packet: &[u8]) -> Result<Ip<'_>, FrameError> {
    let mut reader = Reader::new(packet);
    let [version, ..]: [u8; 4] = reader.array()?;
    let payload_length = reader.u16()?;
    let [next_header, _hop_limit] = reader.array()?;
    let source = Ipv6Addr::from(reader.array::<16>()?);
    let destination = Ipv6Addr::from(reader.array::<16>()?);
    if version >> 4 != 6 {
        return Err(FrameError::BadHeader);
    }
    let payload = behind_extension_headers(next_header, reader.bytes(payload_length.into())?)?;

    // RFC 4291, section 2.5.2 and 2.7, and the v4-mapped addresses that mean IPv4 inside of hosts:
    // on the wire they are an attempt to be taken for someone else.
    if source.is_unspecified() || source.is_multicast() || source.to_ipv4_mapped().is_some() {
        return Err(FrameError::BadSource);
    }
    Ok(Ip { source: source.into(), destination: destination.into(), payload })
}

/// Skips the extension headers in front of UDP (RFC 8200, section 4).
fn behind_extension_headers(first: u8, payload: &[u8]) -> Result<&[u8], FrameError> {
    let mut reader = Reader::new(payload);
    let mut header = first;
    let mut count = 0_usize;
    while header != UDP {
        let this = header;
        if !matches!(this, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS) {
            return Err(FrameError::NotUdp);
        }
        // Section 4.1: hop-by-hop options come first or not at all.
        if this == HOP_BY_HOP && count > 0 {
            return Err(FrameError::BadHeader);
        }
        if count == MAX_EXTENSION_HEADERS {
            return Err(FrameError::TooManyHeaders);
        }
        count = count.saturating_add(1);

        // The packet is whole, so a header that ends outside of it contradicts the packet's
        // length.
        header = extension_header(this, &mut reader).map_err(|error| match error {
            FrameError::Truncated => FrameError::BadHeader,
            other => other,
        })?;
    }
    Ok(reader.rest())
}

/// Reads one extension header, returns the type of what follows it.
fn extension_header(this: u8, reader: &mut Reader<'_>) -> Result<u8, FrameError> {
    let [next, length] = reader.array()?;
    let length = usize::from(length);
    match this {
        // Section 4.5; "atomic" fragments (RFC 6946) are whole packets.
        FRAGMENT => {
            let fragment = reader.u16()?;
            let _identification: [u8; 4] = reader.array()?;
            if fragment & IPV6_FRAGMENT != 0 {
                return Err(FrameError::Fragment);
            }
        }
        // RFC 4302, section 2.2: the length is in units of 4 bytes, less 2 units.
        AUTHENTICATION => {
            reader.bytes(length.saturating_mul(4).saturating_add(6))?;
        }
        // Section 4.4: with segments left, this host is not where the packet ends.
        ROUTING => {
            let [_routing_type, segments_left] = reader.array()?;
            reader.bytes(length.saturating_mul(8).saturating_add(4))?;
            if segments_left != 0 {
                return Err(FrameError::BadHeader);
            }
        }
        // Sections 4.3 and 4.6: units of 8 bytes, not counting the first.
        _ => {
            reader.bytes(length.saturating_mul(8).saturating_add(6))?;
        }
    }
    Ok(next)
}
