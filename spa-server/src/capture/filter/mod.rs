//! The kernel's capture filter: which frames reach the daemon at all.
//!
//! A flood that doesn't have the port and the length of a knock costs the daemon nothing: the
//! kernel drops it before it is copied. The filter is written in libpcap's language
//! (pcap-filter(7)), and has to be understood together with what libpcap and the kernel make of
//! it:
//!
//! - `udp[…]` means IPv4 only, so IPv6 is spelt out. Classic BPF has no backward jumps, so
//!   `ip6 protochain` (a loop) is refused by the kernel; the offsets behind one or two extension
//!   headers are computed instead.
//! - The keyword `vlan` asks the kernel for the tag that it has taken out of the frame, is refused on
//!   `any`, and shifts every offset to its right. The kernel runs the filter *without* that
//!   outermost tag, so that a frame with one tag looks untagged to it; a second tag is in the data.
//!   Tags in the data are matched by their bytes, for Ethernet only: on `any`, the frame arrives
//!   on the VLAN's own interface too, untagged.
//! - On cooked captures (`any`) libpcap moves offsets behind the made-up header, or gives up and
//!   filters in the daemon. It can't tell an *indexed* load relative to the header from one at
//!   its start; `ip6[…]` compiles to loads it can move, `ether[…]` and `link[…]` don't.
//! - A load behind the end of a frame rejects the frame, whatever alternative it stands in. The
//!   types of headers are compared before their contents are read.
//! - In this language `and` and `or` bind equally strong: every alternative has its parentheses.
//!
//! The filter only spares work. [`crate::frame`] checks everything again.

use crate::frame::LinkType;
use std::fmt::Write as _;

/// The length of a UDP header, which the length field of UDP counts.
const UDP_HEADER: usize = 8;
/// The length of an Ethernet header, and of a VLAN tag.
const ETHERNET_HEADER: usize = 14;
const VLAN_TAG: usize = 4;

/// The largest number of knock ports. libpcap takes 0.1 s to compile this many for Ethernet, and
/// minutes for 1,000, which the kernel would then refuse.
pub const MAX_PORTS: usize = 64;

/// The filter for UDP datagrams with `packet_length` bytes of payload to one of `ports`.
///
/// It matches IPv4 with and without options, IPv6 with up to two extension headers, on Ethernet
/// also behind one or two VLAN tags; no fragments. It has to be compiled for the link type it was
/// made for.
///
/// ```
/// use spa_server::capture::filter;
/// use spa_server::frame::LinkType;
///
/// let text = filter::expression(LinkType::RawIp, &[53, 62201], 216);
/// assert!(text.starts_with(
///     "(ip[6:2] & 0x2000 = 0 and udp[4:2] = 224 and (udp[2:2] = 53 or udp[2:2] = 62201))"
/// ));
/// ```
pub fn expression(link: LinkType, ports: &[u16], packet_length: usize) -> String {
    let knock = Knock { ports, udp_length: packet_length.saturating_add(UDP_HEADER) };
    let mut alternatives = vec![knock.ipv4(), knock.ipv6(Base::Ipv6)];
    if link == LinkType::Ethernet {
        alternatives.extend([1, 2].map(|tags| knock.behind_vlan_tags(tags)));
    }
    alternatives.join(" or ")
}

/// The [`expression`] for a kernel that is asked, beside that, not to hand over what the host sends
/// itself.
///
/// libpcap drops those packets too, but only after they have filled the buffer, and it doesn't
/// count them as work done: a flood of them could hold a reading thread for ever. On all but
/// cooked captures `inbound` compiles to a load that only the kernel can make. libpcap filters the
/// first frames after a filter was set in the daemon as well, where the load fails, and the frame is
/// lost; so this text must not be given to libpcap there.
pub fn inbound_expression(link: LinkType, ports: &[u16], packet_length: usize) -> String {
    format!("inbound and ({})", expression(link, ports, packet_length))
}

/// What a header's fields are counted from.
#[derive(Clone, Copy)]
enum Base {
    /// libpcap's `ip6`: finds the header itself, and checks that it is there.
    Ipv6,
    /// So many bytes into an Ethernet frame.
    Frame(usize),
}

impl Base {
    /// The `size` bytes at `offset`, an arithmetic expression of the filter language.
    fn field(self, offset: &str, size: u8) -> String {
        match self {
            Self::Ipv6 => format!("ip6[{offset}:{size}]"),
            Self::Frame(start) => format!("ether[{start} + {offset}:{size}]"),
        }
    }
}

struct Knock<'a> {
    ports: &'a [u16],
    udp_length: usize,
}

impl Knock<'_> {
    /// The UDP header at `offset` has the length and one of the ports.
    fn udp(&self, base: Base, offset: &str) -> String {
        let length = base.field(&format!("{offset} + 4"), 2);
        let ports = self.one_of_the_ports(&base.field(&format!("{offset} + 2"), 2));
        format!("{length} = {} and {ports}", self.udp_length)
    }

    fn one_of_the_ports(&self, field: &str) -> String {
        let mut text = String::from("(");
        for (position, port) in self.ports.iter().enumerate() {
            let or = if position == 0 { "" } else { " or " };
            // Writing to a string does not fail.
            let _ = write!(text, "{or}{field} = {port}");
        }
        text.push(')');
        text
    }

    /// `udp[…]` finds its way past options, and passes no fragment but a first one.
    fn ipv4(&self) -> String {
        let ports = self.one_of_the_ports("udp[2:2]");
        format!("(ip[6:2] & 0x2000 = 0 and udp[4:2] = {} and {ports})", self.udp_length)
    }

    /// The same in bytes, for an IPv4 header that libpcap doesn't know of.
    fn ipv4_at(&self, base: Base) -> String {
        let protocol = base.field("9", 1);
        let fragment = base.field("6", 2);
        let header_length = format!("(({} & 0x0f) << 2)", base.field("0", 1));
        let udp = self.udp(base, &header_length);
        format!("({protocol} = 17 and {fragment} & 0x3fff = 0 and {udp})")
    }

    /// UDP at once, behind one extension header, or behind two.
    ///
    /// Hop-by-hop (0), routing (43) and destination options (60) have lengths in units of 8 bytes.
    /// So has the fragment header (44) of a whole packet, since its second byte is sent as zero.
    /// The authentication header (51) counts in units of 4.
    fn ipv6(&self, base: Base) -> String {
        let next = base.field("6", 1);
        let first_next = base.field("40", 1);
        let first_length = base.field("41", 1);
        let whole = format!("({next} = 44 and {} & 0xfff9 = 0)", base.field("42", 2));
        let first = format!("({next} = 0 or {next} = 60 or {next} = 43 or {whole})");

        let second_at = format!("48 + ({first_length} << 3)");
        let second = format!("({first_next} = 60 or {first_next} = 43 or {first_next} = 44)");
        let second_next = base.field(&second_at, 1);
        let second_length = base.field(&format!("{second_at} + 1"), 1);

        let plain = self.udp(base, "40");
        let behind_one = self.udp(base, &second_at);
        let behind_authentication = self.udp(base, &format!("48 + ({first_length} << 2)"));
        let behind_two = self.udp(base, &format!("{second_at} + 8 + ({second_length} << 3)"));
        format!(
            "(({next} = 17 and {plain}) \
             or ({first} and {first_next} = 17 and {behind_one}) \
             or ({next} = 51 and {first_next} = 17 and {behind_authentication}) \
             or ({first} and {second} and {second_next} = 17 and {behind_two}))"
        )
    }

    /// Either of them behind VLAN tags that are in the data.
    fn behind_vlan_tags(&self, tags: usize) -> String {
        let type_before = |header: usize| header.saturating_sub(2);
        let header_after =
            |tags: usize| ETHERNET_HEADER.saturating_add(tags.saturating_mul(VLAN_TAG));
        let tagged: Vec<String> = (0..tags)
            .map(|tag| type_before(header_after(tag)))
            .map(|at| {
                format!(
                    "(ether[{at}:2] = 0x8100 or ether[{at}:2] = 0x88a8 or ether[{at}:2] = 0x9100)"
                )
            })
            .collect();
        let start = header_after(tags);
        let ethertype = format!("ether[{}:2]", type_before(start));
        format!(
            "({} and (({ethertype} = 0x0800 and {}) or ({ethertype} = 0x86dd and {})))",
            tagged.join(" and "),
            self.ipv4_at(Base::Frame(start)),
            self.ipv6(Base::Frame(start)),
        )
    }
}

#[cfg(test)]
mod tests;
