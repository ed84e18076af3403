//! A laptop at home: behind a router of its own, which forwards, filters or translates as a test
//! wants it; and the servers of other kinds (time, STUN) that it may ask.

use crate::lab::{Family, Host};
use crate::laptop::Laptop;
use crate::scene::Scene;
use crate::wait::eventually;
use anyhow::Result;
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds from 1900 (NTP) to 1970.
const NTP_TO_UNIX: u64 = 2_208_988_800;

/// See the module's text. The router is the lab's owner.
pub struct Home {
    /// Where the laptop is: 10.80.1.1 and fd80::1:1.
    pub host: Host,
    /// `spa-client` there, with a key that the server knows as `mine`.
    pub laptop: Laptop,
}

impl Home {
    /// Joins a home to the scene; the server is called `work` there, with these knock ports.
    pub fn new(scene: &Scene, knock_ports: &[u16], allow: &str) -> Result<Self> {
        let host = scene.lab.station(1)?;
        scene.lab.owner().sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 \
             net.ipv4.conf.all.send_redirects=0")?;
        scene.lab.owner().sh("ip addr add 10.80.1.2/24 dev station1")?;
        scene.lab.owner().sh("ip addr add fd80::1:2/112 dev station1 nodad")?;
        for other in [scene.lab.server(), scene.lab.other()] {
            other.sh("ip route add 10.80.1.0/24 via 10.66.0.2")?;
            other.sh("ip -6 route add fd80::1:0/112 via fd66::2")?;
        }
        // No name server is there, and that is told at once.
        std::fs::write(host.overlay().join("resolv.conf"), "nameserver 127.0.0.1\n")?;
        let laptop = Laptop::new(&scene.lab, &host, "home");
        let public = laptop.keygen()?;
        let admin = |words: &[&str]| scene.server.admin(words)?.ok();
        admin(&["client", "add", "mine", "--public-key", &public, "--allow", allow])?;
        admin(&["reload"])?;
        let key = scene.server_identity.public().to_string();
        let mut words = vec!["server", "add", "work", "--host", "gateway", "--public-key", &key];
        let ports: Vec<String> = knock_ports.iter().map(ToString::to_string).collect();
        words.extend(ports.iter().flat_map(|port| ["--knock-port", port]));
        laptop.run(&words)?.ok()?;
        Ok(Self { host, laptop })
    }

    /// Puts a line at the beginning of the laptop's configuration.
    pub fn configure(&self, line: &str) -> Result<()> {
        let file = self.laptop.configuration().join("config.toml");
        let text = std::fs::read_to_string(&file)?;
        Ok(std::fs::write(file, format!("{line}\n{text}"))?)
    }

    /// Adds a line to what the laptop's configuration has of `work`.
    pub fn configure_server(&self, line: &str) -> Result<()> {
        let file = self.laptop.configuration().join("config.toml");
        let text = std::fs::read_to_string(&file)?;
        Ok(std::fs::write(
            file,
            text.replace("[server.work]\n", &format!("[server.work]\n{line}\n")),
        )?)
    }
}

/// The router translates what leaves it into its own addresses.
pub fn masquerade(router: &Host) -> Result<()> {
    for tables in ["iptables", "ip6tables"] {
        router.sh(&format!("{tables} -t nat -A POSTROUTING -o eth0 -j MASQUERADE"))?;
    }
    Ok(())
}

/// An NTP server that says how late it is (RFC 5905): Debian's ones would set the machine's clock.
pub struct TimeServer {
    at: SocketAddr,
    host: Host,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl TimeServer {
    /// On the usual port of `host`.
    pub fn start(host: &Host, family: Family) -> Result<Self> {
        let at = host.at(family, 123);
        let socket = host.inside(|| Ok(UdpSocket::bind(at)?))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = spawn(move || {
            let mut asked = [0; 48];
            while let Ok((length, from)) = socket.recv_from(&mut asked) {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let fraction = (u64::from(since.subsec_nanos()) << 32) / 1_000_000_000;
                let now = (((since.as_secs() + NTP_TO_UNIX) << 32) | fraction).to_be_bytes();
                // No warning, version 4, server; stratum 1; then the four stamps.
                let mut answer = [0; 48];
                answer[..2].copy_from_slice(&[0b00_100_100, 1]);
                answer[12..16].copy_from_slice(b"LOCL");
                answer[16..24].copy_from_slice(&now);
                answer[24..32].copy_from_slice(&asked[40..48]);
                answer[32..40].copy_from_slice(&now);
                answer[40..48].copy_from_slice(&now);
                if length == 48 {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Ok(Self { at, host: host.clone(), stop, thread: Some(thread) })
    }
}

impl Drop for TimeServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.host.send_udp(self.at, b"end");
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Debian's coturn, as a STUN server alone, on the usual port by UDP and TCP.
pub struct StunServer(Child);

impl StunServer {
    /// On the addresses of both families of `host`.
    pub fn start(host: &Host) -> Result<Self> {
        let mut command = host.command("turnserver")?;
        command.args(["-n", "--stun-only", "--no-auth", "--no-cli", "--no-tls", "--no-dtls"]);
        command.args(["--log-file", "stdout", "--pidfile", "", "--no-rfc5780"]);
        for family in Family::BOTH {
            command.args(["--listening-ip", &host.address(family).to_string()]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let server = Self(command.spawn()?);
        for family in Family::BOTH {
            eventually("coturn is to listen", || {
                let socket = host.inside(|| Ok(UdpSocket::bind(host.at(family, 0))?))?;
                socket.set_read_timeout(Some(Duration::from_millis(100)))?;
                // A binding request: type, no attributes, magic cookie, transaction.
                let mut request = [7; 20];
                request[..8].copy_from_slice(&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42]);
                let asked = socket.send_to(&request, host.at(family, 3478));
                Ok((asked.is_ok() && socket.recv(&mut [0; 512]).is_ok()).then_some(()))
            })?;
            host.await_open(host.at(family, 3478))?;
        }
        Ok(server)
    }
}

impl Drop for StunServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
