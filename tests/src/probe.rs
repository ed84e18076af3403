//! How a port looks from a host: open, closed, or not there at all.

use crate::lab::Host;
use crate::wait::{eventually, uninterrupted};
use anyhow::{Context, Result, bail};
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A silent port is called filtered after this time: a thousand round trips on this link, and
/// less than the first retransmission of a SYN.
pub(crate) const PATIENCE: Duration = Duration::from_millis(500);

/// What came back from a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortState {
    /// An answer from a program.
    Open,
    /// A refusal from the host: a TCP reset, or an ICMP message.
    Closed,
    /// Nothing.
    Filtered,
}

impl fmt::Display for PortState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Closed => "closed",
            Self::Filtered => "filtered",
        })
    }
}

impl Host {
    /// Tries one TCP connection to `to`.
    pub fn tcp(&self, to: SocketAddr) -> Result<PortState> {
        self.tcp_connect(to).map(|outcome| match outcome {
            Ok(_) => PortState::Open,
            Err(state) => state,
        })
    }

    /// Opens a TCP connection to `to`, or tells what came back instead.
    pub fn tcp_connect(&self, to: SocketAddr) -> Result<Result<TcpStream, PortState>> {
        self.inside(|| try_tcp(to, PATIENCE))
    }

    /// Sends one datagram to the echo service (see [`Listener::udp`]) at `to`.
    pub fn udp(&self, to: SocketAddr) -> Result<PortState> {
        self.inside(|| {
            let socket = UdpSocket::bind((unspecified(to), 0))?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.send(b"anybody there?")?;
            match uninterrupted(|| socket.recv(&mut [0; 64])) {
                Ok(_) => Ok(PortState::Open),
                Err(error) => state_of(&error).with_context(|| format!("asking {to} by UDP")),
            }
        })
    }

    /// Sends a datagram the way a client does: from a socket that is not connected.
    pub fn send_udp(&self, to: SocketAddr, payload: &[u8]) -> Result<()> {
        self.inside(|| {
            let socket = UdpSocket::bind((unspecified(to), 0))?;
            let sent = socket.send_to(payload, to)?;
            anyhow::ensure!(sent == payload.len(), "only {sent} bytes went to {to}");
            Ok(())
        })
    }

    /// Sends many datagrams one after the other from one socket.
    pub fn send_udp_all<'a>(
        &self,
        to: SocketAddr,
        payloads: impl IntoIterator<Item = &'a Vec<u8>> + Send,
    ) -> Result<()> {
        self.inside(|| {
            let socket = UdpSocket::bind((unspecified(to), 0))?;
            for payload in payloads {
                socket.send_to(payload, to)?;
            }
            Ok(())
        })
    }

    /// Waits until TCP connections to `to` are admitted.
    pub fn await_open(&self, to: SocketAddr) -> Result<()> {
        self.await_state(to, PortState::Open)
    }

    /// Waits until the TCP port `to` looks like `wanted`.
    pub fn await_state(&self, to: SocketAddr, wanted: PortState) -> Result<()> {
        eventually(&format!("{to} is to be {wanted} as seen from {}", self.namespace()), || {
            Ok((self.tcp(to)? == wanted).then_some(()))
        })
    }
}

/// Opens a TCP connection from the present namespace, or tells what came back instead.
pub(crate) fn try_tcp(to: SocketAddr, patience: Duration) -> Result<Result<TcpStream, PortState>> {
    match TcpStream::connect_timeout(&to, patience) {
        Ok(stream) => Ok(Ok(stream)),
        Err(error) => state_of(&error).map(Err).with_context(|| format!("connecting to {to}")),
    }
}

fn unspecified(like: SocketAddr) -> std::net::IpAddr {
    if like.is_ipv4() {
        std::net::Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    }
}

fn state_of(error: &std::io::Error) -> Result<PortState> {
    match error.kind() {
        ErrorKind::ConnectionRefused => Ok(PortState::Closed),
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Ok(PortState::Filtered),
        _ => bail!("neither open nor closed nor filtered: {error}"),
    }
}

/// A real service in a namespace, on IPv4 and IPv6, that echoes what it gets.
pub struct Listener {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Echoes TCP connections.
    pub fn tcp(host: &Host, port: u16) -> Result<Self> {
        let listener = host.inside(|| {
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
                .with_context(|| format!("cannot listen on tcp/{port}"))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })?;
        Ok(Self::run(move |stop| {
            while !stop.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        // Ends with the connection, which ends with the test.
                        thread::spawn(move || echo(stream));
                    }
                    Err(_) => thread::sleep(Duration::from_millis(1)),
                }
            }
        }))
    }

    /// Echoes datagrams.
    pub fn udp(host: &Host, port: u16) -> Result<Self> {
        let socket = host.inside(|| {
            let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))
                .with_context(|| format!("cannot bind udp/{port}"))?;
            socket.set_read_timeout(Some(Duration::from_millis(20)))?;
            Ok(socket)
        })?;
        Ok(Self::run(move |stop| {
            let mut buffer = [0; 2048];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(buffer.get(..length).unwrap_or_default(), from);
                }
            }
        }))
    }

    fn run(work: impl FnOnce(&AtomicBool) + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        Self { stop, thread: Some(thread::spawn(move || work(&seen))) }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn echo(mut stream: TcpStream) {
    // An accepted socket is blocking on Linux, whatever the listener is.
    let mut buffer = [0; 1024];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(buffer.get(..length).unwrap_or_default()).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::{Family, Lab};

    #[test]
    fn open_closed_and_filtered_are_told_apart() {
        let lab = Lab::new().unwrap();
        let _tcp = Listener::tcp(lab.server(), 7000).unwrap();
        let _udp = Listener::udp(lab.server(), 7000).unwrap();
        for tables in ["iptables", "ip6tables"] {
            for transport in ["tcp", "udp"] {
                let rule = format!("{tables} -A INPUT -p {transport} --dport 7002 -j DROP");
                lab.server().sh(&rule).unwrap();
            }
        }
        for family in Family::BOTH {
            for (port, state) in
                [(7000, PortState::Open), (7001, PortState::Closed), (7002, PortState::Filtered)]
            {
                assert_eq!(lab.owner().tcp(lab.server().at(family, port)).unwrap(), state);
                assert_eq!(lab.owner().udp(lab.server().at(family, port)).unwrap(), state);
            }
        }
    }
}
