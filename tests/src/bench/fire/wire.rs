//! A cable to a station: sends frames as they are, hears which SYNs were answered, and goes on with
//! dialogues.

use crate::bench::contenders::Answers;
use crate::bench::station::GUARDED;
use crate::bench::volley::address;
use crate::frames::Frame;
use crate::lab::Host;
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::sockopt::SndBuf;
use nix::sys::socket::{
    AddressFamily, MsgFlags, MultiHeaders, SockFlag, SockProtocol, SockType, bind, recv, send,
    sendmmsg, setsockopt, socket,
};
use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Frames of noise that one system call sends. At a million a second that is 32 us, which no
/// latency under noise is finer than.
const BATCH: usize = 32;
/// Below this, a pause is no use: waking up takes as long.
const SHORT: Duration = Duration::from_micros(200);

/// See the module's text.
pub(super) struct Wire {
    socket: OwnedFd,
    answers: Option<Answers>,
}

impl Wire {
    /// On this interface of the thread's namespace. What comes in is answered by `answers`.
    pub(super) fn on(link: &str, answers: Option<Answers>) -> Result<Self> {
        // Of IPv4 only what comes in: a socket for all protocols would hear its own frames too.
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            Some(SockProtocol::EthIp),
        )?;
        bind(socket.as_raw_fd(), &address(link)?)?;
        setsockopt(&socket, SndBuf, &(4 << 20))?;
        Ok(Self { socket, answers })
    }

    pub(super) fn send(&self, frame: &Frame) -> Result<()> {
        send(self.socket.as_raw_fd(), &frame.0, MsgFlags::empty())?;
        Ok(())
    }

    /// The next address whose SYN to the guarded port was answered, if there is one by now. What has
    /// come before it was answered where it had to be.
    pub(super) fn answered(&self) -> Result<Option<IpAddr>> {
        let mut buffer = [0; 128];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => {
                    let frame = buffer.get(..length).unwrap_or_default();
                    let found = syn_ack(frame);
                    if found.is_some() {
                        return Ok(found);
                    }
                    if let Some(answer) = self.answers.as_ref().and_then(|answers| answers(frame)) {
                        self.send(&answer)?;
                    }
                }
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("hearing of answers"),
            }
        }
    }

    /// Goes on with dialogues, if there are any.
    fn converse(&self) -> Result<bool> {
        if self.answers.is_some() {
            while self.answered()?.is_some() {}
        }
        Ok(self.answers.is_some())
    }

    /// Goes on with them until it is over.
    pub(super) fn converse_until(&self, is_over: &AtomicBool) -> Result<()> {
        while !is_over.load(Ordering::Relaxed) && self.converse()? {
            std::hint::spin_loop();
        }
        Ok(())
    }

    /// Sends these frames over and over.
    pub(super) fn barrage<'a>(&'a self, frames: &'a [Frame]) -> Barrage<'a> {
        Barrage {
            wire: self,
            slices: frames.iter().map(|frame| [IoSlice::new(&frame.0)]).collect(),
            next: 0,
            sent: 0,
        }
    }
}

/// To whom the frame answers: a SYN-ACK of the guarded port over IPv4 without options.
fn syn_ack(frame: &[u8]) -> Option<IpAddr> {
    let header = frame.get(14..34)?;
    let segment = frame.get(34..)?;
    let is_tcp = header.first() == Some(&0x45) && header.get(9) == Some(&6);
    let port = u16::from_be_bytes([*segment.first()?, *segment.get(1)?]);
    let is_syn_ack = segment.get(13)? & 0x12 == 0x12;
    let to: [u8; 4] = header.get(16..20)?.try_into().ok()?;
    (is_tcp && is_syn_ack && port == GUARDED).then_some(Ipv4Addr::from(to).into())
}

/// Frames that are sent over and over.
pub(super) struct Barrage<'a> {
    wire: &'a Wire,
    slices: Vec<[IoSlice<'a>; 1]>,
    next: usize,
    sent: u64,
}

impl Barrage<'_> {
    /// How many were sent.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// Sends the next ones, at most so many.
    pub(super) fn some(&mut self, most: usize) -> Result<usize> {
        if self.next >= self.slices.len() {
            self.next = 0;
        }
        let end = (self.next + most.min(BATCH)).min(self.slices.len());
        let slices = self.slices.get(self.next..end).unwrap_or_default();
        let mut headers = MultiHeaders::<()>::preallocate(slices.len(), None);
        let nowhere = [None; BATCH];
        let none: [nix::sys::socket::ControlMessage<'_>; 0] = [];
        let sent = match sendmmsg(
            self.wire.socket.as_raw_fd(),
            &mut headers,
            slices,
            nowhere,
            none,
            MsgFlags::empty(),
        ) {
            Ok(results) => results.count(),
            Err(Errno::EINTR | Errno::ENOBUFS) => 0,
            Err(error) => return Err(error).context("sending noise"),
        };
        self.next += sent;
        self.sent += u64::try_from(sent)?;
        Ok(sent)
    }

    /// Sends as fast as it goes.
    pub(super) fn full_speed(&mut self) -> Result<()> {
        self.some(BATCH).map(drop)
    }

    /// Sends for so long: at this rate, or as fast as it goes. How long it took.
    pub(super) fn last(&mut self, duration: Duration, rate: Option<u64>) -> Result<Duration> {
        let Some(rate) = rate else {
            let start = Instant::now();
            while start.elapsed() < duration {
                self.full_speed()?;
            }
            return Ok(start.elapsed());
        };
        let most = (duration.as_secs_f64() * as_f64(rate)).round();
        self.paced(most, as_f64(rate))
    }

    /// Sends all of them once, at this rate.
    pub(super) fn once(&mut self, rate: f64) -> Result<Duration> {
        let most = crate::bench::elements::to_f64(self.slices.len());
        self.paced(most, rate)
    }

    fn paced(&mut self, most: f64, rate: f64) -> Result<Duration> {
        let before = self.sent;
        let start = Instant::now();
        loop {
            let talks = self.wire.converse()?;
            let sent = as_f64(self.sent - before);
            if sent >= most {
                return Ok(start.elapsed());
            }
            let due = (start.elapsed().as_secs_f64() * rate).min(most) - sent;
            if due >= 1.0 {
                // What is due is no more than a batch, or is sent in several.
                let due = (1..=BATCH).rev().find(|n| crate::bench::elements::to_f64(*n) <= due);
                self.some(due.unwrap_or(1))?;
            } else {
                let pause = Duration::from_secs_f64((1.0 - due) / rate);
                if pause > SHORT && !talks {
                    std::thread::sleep(pause.saturating_sub(SHORT / 2));
                } else {
                    std::hint::spin_loop();
                }
            }
        }
    }
}

/// As a number to calculate with; no count here needs more than 32 bits.
pub(super) fn as_f64(count: u64) -> f64 {
    u32::try_from(count).map_or(f64::MAX, f64::from)
}

/// The service behind the door. It answers every SYN by a cookie, and so remembers none.
pub(super) fn service(host: &Host) -> Result<TcpListener> {
    host.sh("sysctl -qw net.ipv4.tcp_syncookies=2")?;
    host.inside(|| Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, GUARDED))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::station::new_host;
    use crate::lab::{Family, Lab};
    use crate::wait::eventually;
    use std::net::SocketAddr;

    #[test]
    fn only_an_answered_syn_is_heard() {
        let lab = Lab::new().unwrap();
        let (host, link) = new_host(&lab).unwrap();
        let wire = lab.owner().inside(|| Wire::on(&link, None)).unwrap();
        let from: SocketAddr = "100.64.1.2:4000".parse().unwrap();
        let syn = Frame::syn(&host, from, host.at(Family::V4, GUARDED)).unwrap();
        // Nobody listens: a reset comes back.
        wire.send(&syn).unwrap();
        assert_eq!(wire.answered().unwrap(), None);
        let _service = service(&host).unwrap();
        wire.send(&syn).unwrap();
        let heard = eventually("the SYN is to be answered", || wire.answered()).unwrap();
        assert_eq!(heard, from.ip());
    }

    #[test]
    fn a_barrage_keeps_its_rate_and_is_counted() {
        let lab = Lab::new().unwrap();
        let (host, link) = new_host(&lab).unwrap();
        let frames = [7, 8, 9].map(|port| {
            Frame::syn(&host, ([100, 64, 1, 2], 4000).into(), host.at(Family::V4, port)).unwrap()
        });
        let before = host.inside(|| crate::bench::volley::received("eth0")).unwrap();
        let wire = lab.owner().inside(|| Wire::on(&link, None)).unwrap();
        let mut barrage = wire.barrage(&frames);
        let took = barrage.last(Duration::from_millis(100), Some(5_000)).unwrap();
        assert_eq!(barrage.sent(), 500);
        assert!(took >= Duration::from_millis(99), "{took:?}");
        let after = host.inside(|| crate::bench::volley::received("eth0")).unwrap();
        assert!(after - before >= 500, "{before} {after}");
    }
}
