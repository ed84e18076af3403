//! Measuring how fast a knock opens.

use crate::lab::Host;
use anyhow::{Result, bail};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, getpeername, socket,
};
use std::fmt;
use std::io::{self, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A new SYN leaves this often; the figures are no finer.
const INTERVAL: Duration = Duration::from_micros(50);

/// Sends `knock` to `door` and tries `target` with one SYN after the other. Gives the time from
/// the sending of the datagram to the first connection.
pub fn time_to_open(
    host: &Host,
    knock: &[u8],
    door: SocketAddr,
    target: SocketAddr,
) -> Result<Duration> {
    host.inside(|| {
        let local = if door.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let udp = UdpSocket::bind(local)?;
        let address = SockaddrStorage::from(target);
        let family = if target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let mut attempts: Vec<OwnedFd> = Vec::new();
        let start = Instant::now();
        udp.send_to(knock, door)?;
        while start.elapsed() < Duration::from_secs(10) {
            let attempt = socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK, None)?;
            match connect(attempt.as_raw_fd(), &address) {
                Ok(()) | Err(nix::Error::EINPROGRESS) => attempts.push(attempt),
                Err(error) => bail!("connecting to {target}: {error}"),
            }
            // A connected socket has a peer. Those that got nothing are not waited for: the
            // retransmission comes after a second.
            if attempts
                .iter()
                .any(|attempt| getpeername::<SockaddrStorage>(attempt.as_raw_fd()).is_ok())
            {
                return Ok(start.elapsed());
            }
            if attempts.len() > 500 {
                attempts.drain(..250);
            }
            sleep(INTERVAL);
        }
        bail!("{target} did not open within 10 s")
    })
}

/// Tells a figure on standard error, also when the test that measured it succeeds.
pub fn report(figure: impl fmt::Display) {
    // Not the macro, whose output the test runner keeps to itself.
    let _ = writeln!(io::stderr(), "measured: {figure}");
}

/// Times that were measured, sorted.
pub struct Latencies(Vec<Duration>);

impl Latencies {
    /// Takes measured times.
    pub fn new(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    /// The time that `percent` of the measurements did not exceed.
    pub fn percentile(&self, percent: usize) -> Duration {
        let at = (self.0.len() * percent / 100).min(self.0.len().saturating_sub(1));
        self.0.get(at).copied().unwrap_or_default()
    }

    /// The median.
    pub fn median(&self) -> Duration {
        self.percentile(50)
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |percent| self.percentile(percent).as_secs_f64() * 1e3;
        write!(
            f,
            "median {:.2} ms, p90 {:.2} ms, p99 {:.2} ms, worst {:.2} ms ({} knocks)",
            ms(50),
            ms(90),
            ms(99),
            ms(100),
            self.0.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::{Family, Lab};
    use crate::probe::Listener;

    #[test]
    fn the_time_until_a_firewall_opens_is_measured() {
        let lab = Lab::new().unwrap();
        let _listener = Listener::tcp(lab.server(), 7000).unwrap();
        let target = lab.server().at(Family::V4, 7000);
        lab.server().sh("iptables -A INPUT -p tcp --dport 7000 -j DROP").unwrap();
        let opener = std::thread::spawn({
            let server = lab.server().clone();
            move || {
                sleep(Duration::from_millis(300));
                server.sh("iptables -F INPUT").unwrap();
            }
        });
        let door = lab.server().at(Family::V4, 9);
        let time = time_to_open(lab.owner(), b"", door, target).unwrap();
        opener.join().unwrap();
        assert!(time >= Duration::from_millis(300), "{time:?}");
    }

    #[test]
    fn percentiles_are_taken_of_the_sorted_times() {
        let times = Latencies::new((1..=100).rev().map(Duration::from_millis).collect());
        assert_eq!(times.median(), Duration::from_millis(51));
        assert_eq!(times.percentile(99), Duration::from_millis(100));
    }
}
