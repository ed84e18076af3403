//! Frames for tests, built from the inside out. Included by the tests outside of this crate too.

/// The addresses of every IPv4 packet here.
pub(crate) const SOURCE_V4: [u8; 4] = [192, 0, 2, 1];
pub(crate) const DESTINATION_V4: [u8; 4] = [192, 0, 2, 2];
/// The addresses of every IPv6 packet here.
pub(crate) const SOURCE_V6: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
pub(crate) const DESTINATION_V6: [u8; 16] =
    [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
pub(crate) const SOURCE_PORT: u16 = 40_000;

pub(crate) const UDP: u8 = 17;
pub(crate) const HOP_BY_HOP: u8 = 0;
pub(crate) const ROUTING: u8 = 43;
pub(crate) const FRAGMENT: u8 = 44;
pub(crate) const AUTHENTICATION: u8 = 51;
pub(crate) const DESTINATION_OPTIONS: u8 = 60;

pub(crate) const IPV4: u16 = 0x0800;
pub(crate) const IPV6: u16 = 0x86dd;

pub(crate) fn udp(destination_port: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len() + 8).unwrap();
    let header = [SOURCE_PORT, destination_port, length, 0];
    let mut bytes: Vec<u8> = header.iter().flat_map(|field| field.to_be_bytes()).collect();
    bytes.extend_from_slice(payload);
    bytes
}

/// `options` has to be a multiple of 4 bytes.
pub(crate) fn ipv4(protocol: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let header_length = 20 + options.len();
    let total = u16::try_from(header_length + payload.len()).unwrap().to_be_bytes();
    let words = u8::try_from(header_length / 4).unwrap();
    let mut bytes = vec![0x40 | words, 0, total[0], total[1], 0, 1, 0, 0, 64, protocol, 0, 0];
    bytes.extend_from_slice(&SOURCE_V4);
    bytes.extend_from_slice(&DESTINATION_V4);
    bytes.extend_from_slice(options);
    let sum = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = |sum: u32| (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from(folded(folded(sum))).unwrap();
    bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

pub(crate) fn ipv6(next_header: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![0x60, 0, 0, 0, length[0], length[1], next_header, 64];
    bytes.extend_from_slice(&SOURCE_V6);
    bytes.extend_from_slice(&DESTINATION_V6);
    bytes.extend_from_slice(payload);
    bytes
}

/// An IPv6 packet with these extension headers, in this order, in front of `upper`.
pub(crate) fn ipv6_with(headers: &[u8], upper_protocol: u8, upper: &[u8]) -> Vec<u8> {
    let mut next = upper_protocol;
    let mut payload = upper.to_vec();
    for &header in headers.iter().rev() {
        let mut bytes = extension_header(header, next);
        bytes.append(&mut payload);
        payload = bytes;
        next = header;
    }
    ipv6(next, &payload)
}

/// One extension header; those with a length of their own are longer than their minimum.
fn extension_header(this: u8, next: u8) -> Vec<u8> {
    match this {
        FRAGMENT => vec![next, 0, 0, 0, 0, 0, 0, 7],
        // 12 fixed bytes and 12 of check value: (24 / 4) - 2.
        AUTHENTICATION => [vec![next, 4], vec![0xaa; 22]].concat(),
        // Segments left: 0.
        ROUTING => [vec![next, 2, 2, 0], vec![0xbb; 20]].concat(),
        // A padding option (PadN) of the whole length.
        _ => [vec![next, 1, 1, 12], vec![0; 12]].concat(),
    }
}

/// An Ethernet frame with one VLAN tag for each of `tags` (tag protocol identifiers).
pub(crate) fn ethernet(tags: &[u16], ethertype: u16, packet: &[u8]) -> Vec<u8> {
    let mut bytes = [[0xff; 6], [2, 0, 0, 0, 0, 1]].concat();
    bytes.extend(tagged(tags, ethertype));
    bytes.extend_from_slice(packet);
    bytes
}

/// `direction` is `sll_pkttype`: 0 for a packet to this host, 4 for one it sends.
pub(crate) fn sll(direction: u16, tags: &[u16], ethertype: u16, packet: &[u8]) -> Vec<u8> {
    let mut bytes = direction.to_be_bytes().to_vec();
    bytes.extend_from_slice(&[0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0]);
    bytes.extend(tagged(tags, ethertype));
    bytes.extend_from_slice(packet);
    bytes
}

/// Version 2 has the protocol in front, so that a tag follows the whole header.
pub(crate) fn sll2(direction: u8, interface: u32, protocol: u16, packet: &[u8]) -> Vec<u8> {
    let mut bytes = protocol.to_be_bytes().to_vec();
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(&interface.to_be_bytes());
    bytes.extend_from_slice(&[0, 1, direction, 6, 2, 0, 0, 0, 0, 1, 0, 0]);
    bytes.extend_from_slice(packet);
    bytes
}

/// The ethertype behind tags.
pub(crate) fn tagged(tags: &[u16], ethertype: u16) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        tags.iter().flat_map(|tag| [tag.to_be_bytes(), [0x20, 10]]).flatten().collect();
    bytes.extend_from_slice(&ethertype.to_be_bytes());
    bytes
}
