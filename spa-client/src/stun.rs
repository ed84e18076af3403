//! What address others see this machine by: one binding request of RFC 8489 to the server that the
//! user has named. There is no other; none is built in.
//!
//! Twenty bytes without an attribute are asked, and one attribute of the answer is read. Crates
//! for it exist, but each brings a second generation of the cryptography that the rest of STUN
//! needs, and none of that is needed here: an answer that lies, or that somebody forges who sees
//! the request, makes a knock bound to a wrong address, which opens nothing for anybody.

use crate::endpoint::Endpoint;
use crate::knock::{any, within};
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use core::time::Duration;
use ring::rand::{SecureRandom as _, SystemRandom};
use std::io::{self, Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::time::Instant;

/// The port of STUN (RFC 8489, section 4).
const PORT: u16 = 3478;
/// How long a lookup may take in all.
pub(crate) const TIME_LIMIT: Duration = Duration::from_millis(800);
/// When the request is sent again, should nothing have come: after 200 ms, then after 400 ms more.
const FIRST_WAIT: Duration = Duration::from_millis(200);

const BINDING_REQUEST: [u8; 2] = [0x00, 0x01];
const BINDING_SUCCESS: [u8; 2] = [0x01, 0x01];
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const MAPPED_ADDRESS: [u8; 2] = [0x00, 0x01];
const XOR_MAPPED_ADDRESS: [u8; 2] = [0x00, 0x20];
const HEADER: usize = 20;
/// More than any answer to a request without attributes has.
const LONGEST_ANSWER: usize = 1500;

/// Which way the question goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    Udp,
    Tcp,
}

/// Why there is no answer to be had.
#[derive(Debug)]
pub(crate) enum StunError {
    Resolve(io::Error),
    Unresolved,
    NoAddress(&'static str),
    Io(io::Error),
    Silent,
    NotUnderstood,
    OtherFamily,
}

impl fmt::Display for StunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolve(error) => write!(f, "does not resolve: {}", crate::knock::plain(error)),
            Self::Unresolved => {
                write!(f, "did not resolve within {} ms", TIME_LIMIT.as_millis())
            }
            Self::NoAddress(family) => write!(f, "has no {family} address"),
            Self::Io(error) => write!(f, "can't be asked: {}", crate::knock::plain(error)),
            Self::Silent => write!(f, "did not answer within {} ms", TIME_LIMIT.as_millis()),
            Self::NotUnderstood => f.write_str("answered something else than STUN"),
            Self::OtherFamily => f.write_str("answered with an address of the other family"),
        }
    }
}

impl From<io::Error> for StunError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::Silent,
            _ => Self::Io(error),
        }
    }
}

/// The address that `server` sees this machine by, in the family of `like`.
pub(crate) fn lookup(server: &Endpoint, like: IpAddr, by: By) -> Result<IpAddr, StunError> {
    let start = Instant::now();
    let same_family = |address: &SocketAddr| address.is_ipv4() == like.is_ipv4();
    let named = server.clone();
    let addresses = within(TIME_LIMIT, move || named.resolve(PORT)).ok_or(StunError::Unresolved)?;
    let address = addresses.map_err(StunError::Resolve)?.into_iter().find(same_family);
    let family = if like.is_ipv4() { "IPv4" } else { "IPv6" };
    let to = address.ok_or(StunError::NoAddress(family))?;
    let mut transaction = [0; 12];
    SystemRandom::new()
        .fill(&mut transaction)
        .map_err(|_| StunError::Io(io::Error::other("no random numbers")))?;
    let seen = match by {
        By::Udp => over_udp(to, transaction, start),
        By::Tcp => over_tcp(to, transaction),
    }?;
    if seen.is_ipv4() == like.is_ipv4() { Ok(seen) } else { Err(StunError::OtherFamily) }
}

fn over_udp(to: SocketAddr, transaction: [u8; 12], start: Instant) -> Result<IpAddr, StunError> {
    let socket = UdpSocket::bind(any(to))?;
    // Connected: only the server's own datagrams come in, and an ICMP error is told at once.
    socket.connect(to)?;
    let mut wait = FIRST_WAIT;
    let mut answer = [0; LONGEST_ANSWER];
    loop {
        socket.send(&request(transaction))?;
        let round = Instant::now();
        loop {
            let left = wait.min(TIME_LIMIT.saturating_sub(start.elapsed()));
            let left = left.saturating_sub(round.elapsed());
            if left.is_zero() {
                break;
            }
            socket.set_read_timeout(Some(left))?;
            match socket.recv(&mut answer) {
                Ok(length) => {
                    let answer = answer.get(..length).unwrap_or_default();
                    if let Some(address) = mapped_address(answer, transaction) {
                        return Ok(address);
                    }
                }
                Err(error) if is_pause(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if start.elapsed() >= TIME_LIMIT {
            return Err(StunError::Silent);
        }
        wait = wait.saturating_mul(2);
    }
}

fn over_tcp(to: SocketAddr, transaction: [u8; 12]) -> Result<IpAddr, StunError> {
    let mut stream = TcpStream::connect_timeout(&to, TIME_LIMIT)?;
    stream.set_read_timeout(Some(TIME_LIMIT))?;
    stream.write_all(&request(transaction))?;
    let mut header = [0; HEADER];
    stream.read_exact(&mut header)?;
    let [_, _, high, low, ..] = header;
    let mut answer = header.to_vec();
    answer.resize(HEADER.saturating_add(u16::from_be_bytes([high, low]).into()), 0);
    if answer.len() > LONGEST_ANSWER {
        return Err(StunError::NotUnderstood);
    }
    stream.read_exact(answer.get_mut(HEADER..).unwrap_or_default())?;
    mapped_address(&answer, transaction).ok_or(StunError::NotUnderstood)
}

fn is_pause(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}

/// Section 5: type, length of the attributes, magic cookie, transaction.
fn request(transaction: [u8; 12]) -> [u8; HEADER] {
    let mut request = [0; HEADER];
    let header = BINDING_REQUEST.into_iter().chain([0, 0]).chain(MAGIC_COOKIE).chain(transaction);
    request.iter_mut().zip(header).for_each(|(place, byte)| *place = byte);
    request
}

/// The address in a success response to that transaction: of XOR-MAPPED-ADDRESS (section 14.2),
/// else of MAPPED-ADDRESS (14.1), which is all that servers of RFC 3489 send.
fn mapped_address(answer: &[u8], transaction: [u8; 12]) -> Option<IpAddr> {
    let (header, mut rest) = answer.split_first_chunk::<HEADER>()?;
    let expected = BINDING_SUCCESS
        .into_iter()
        .chain(*header.get(2..4)?.first_chunk::<2>()?)
        .chain(MAGIC_COOKIE);
    if !expected.chain(transaction).eq(header.iter().copied()) {
        return None;
    }
    let mut plain = None;
    while let Some((attribute, after)) = rest.split_first_chunk::<4>() {
        let [kind_high, kind_low, high, low] = *attribute;
        let length = usize::from(u16::from_be_bytes([high, low]));
        let value = after.get(..length)?;
        match [kind_high, kind_low] {
            XOR_MAPPED_ADDRESS => return address(value, Some(transaction)),
            MAPPED_ADDRESS => plain = address(value, None),
            _ => {}
        }
        // Padded to four bytes, except where the message ends.
        rest = after.get(length.checked_next_multiple_of(4)?..).unwrap_or_default();
    }
    plain
}

/// The value of either attribute: a zero, the family, the port, the address.
fn address(value: &[u8], masked_by: Option<[u8; 12]>) -> Option<IpAddr> {
    let (&[_, family, _, _], bytes) = value.split_first_chunk::<4>()?;
    let mask = MAGIC_COOKIE.into_iter().chain(masked_by.unwrap_or_default());
    let mask = mask.map(|byte| if masked_by.is_some() { byte } else { 0 });
    let bytes: Vec<u8> = bytes.iter().zip(mask).map(|(byte, mask)| byte ^ mask).collect();
    let address: IpAddr = match (family, bytes.as_slice()) {
        (1, bytes) => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
        (2, bytes) => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical(),
        _ => return None,
    };
    (!address.is_unspecified() && !address.is_multicast()).then_some(address)
}

#[cfg(test)]
mod tests;
