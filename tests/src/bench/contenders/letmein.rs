//! letmeind and letmeinfwd, over UDP, with rules of nftables. A knock is a dialogue (its
//! `doc/PROTOCOL.md`): KNOCK, CHALLENGE, RESPONSE. Who knocks here says it without letmein's client, as
//! soon as it can be said.

use super::process::{Daemon, Tail, installed};
use super::{Answers, Contender, Link, Noise, noisy};
use crate::bench::station::{GUARDED, KNOCK_PORT};
use crate::device::random;
use crate::frames::Frame;
use crate::lab::{Family, Host};
use crate::programs::foreign_program;
use crate::wait::eventually;
use anyhow::{Context, Result, bail};
use hmac::{KeyInit as _, Mac as _, SimpleHmac};
use sha3::Sha3_256;
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

const CHAIN: &str = "LETMEIN-INPUT";
/// No grant ends during a run.
const SECONDS: u32 = 7200;
const USER: u32 = 1;
const RESOURCE: u32 = 0x22;

const MAGIC: [u8; 4] = [0x3b, 0x1b, 0xb7, 0x19];
const KNOCK: u32 = 0;
const CHALLENGE: u32 = 1;
const RESPONSE: u32 = 2;
/// What stands for the challenge where there is none yet.
const NO_CHALLENGE: [u8; 32] = [0; 32];
/// Magic, operation, user, resource, salt, and a challenge or a MAC.
const LENGTH: usize = 56;

/// See the module's text.
#[derive(Default)]
pub(super) struct Letmein {
    directory: PathBuf,
    key: [u8; 32],
    /// That which has the rules, and that which has the socket.
    daemons: Vec<Daemon>,
    said: Option<Tail>,
}

impl Contender for Letmein {
    fn name(&self) -> String {
        "letmein, UDP".into()
    }

    fn knocks(&self) -> usize {
        50
    }

    fn levels(&self) -> &'static [usize] {
        &[0]
    }

    fn start(&mut self, host: &Host, _: &Link<'_>, directory: &Path, _: &[IpAddr]) -> Result<()> {
        let rules = installed("letmeinfwd", foreign_program)?;
        let socket = installed("letmeind", foreign_program)?;
        directory.clone_into(&mut self.directory);
        self.key = random()?;
        let config = directory.join("letmeind.conf");
        fs::write(&config, configuration(&self.key)?)?;
        let run = directory.join("run");
        let pid_file = run.join("letmeind/letmeind.pid");
        if run.exists() {
            fs::remove_dir_all(&run)?;
        }
        fs::create_dir_all(&run)?;
        base_table(host, directory)?;
        // The user that it insists on is root by another name: rights are not what is measured.
        let overlay = host.overlay();
        fs::write(overlay.join("passwd"), "root:x:0:0::/:/bin/sh\nletmeind:x:0:0::/:/bin/sh\n")?;
        fs::write(overlay.join("group"), "root:x:0:\nletmeind:x:0:\n")?;
        let [run, config, rules, socket] =
            [&run, &config, &rules, &socket].map(|path| path.to_string_lossy());
        let options = ["--no-systemd", "--rundir", &run, "--config", &config];
        let start = |words: &[&str], log: &str, ready: &str| {
            let words = [words, &options].concat();
            Daemon::start(host, &words, &directory.join(log), ready)
        };
        self.daemons.push(start(&[&rules], "rules.log", "A total of")?);
        // 64 is what it allows by itself, which loses knocks that come faster than nft is.
        let words = [&*socket, "--num-connections", "4096"];
        let mut socket = start(&words, "socket.log", "")?;
        self.said = Some(socket.count("successfully knocked")?);
        let pid = socket.pid().to_string();
        let ready = eventually("letmeind is to write its process id", || {
            socket.check()?;
            let written = fs::read_to_string(&pid_file).unwrap_or_default();
            Ok((written.trim() == pid).then_some(()))
        });
        self.daemons.push(socket);
        ready
    }

    fn packets(&mut self, host: &Host, sources: &[IpAddr]) -> Result<Vec<Frame>> {
        let to = host.at(Family::V4, KNOCK_PORT);
        sources
            .iter()
            .map(|source| {
                let knock = Message { operation: KNOCK, user: USER, resource: RESOURCE };
                let knock = knock.seal(&self.key, random()?, &NO_CHALLENGE)?;
                Frame::udp(host, SocketAddr::new(*source, 40_001), to, &knock)
            })
            .collect()
    }

    fn answers(&self, host: &Host) -> Option<Answers> {
        let (host, key) = (host.clone(), self.key);
        Some(Box::new(move |frame| respond(&host, &key, frame)))
    }

    fn heard(&mut self) -> Result<usize> {
        self.said.as_mut().context("it does not run")?.count()
    }

    fn granted(&self, host: &Host) -> Result<usize> {
        let rules = host.sh(&format!("nft list chain inet filter {CHAIN}"))?;
        Ok(rules.matches(&format!("tcp dport {GUARDED} ")).count())
    }

    fn pid(&self) -> Result<u32> {
        Ok(self.daemons.last().context("letmeind does not run")?.pid())
    }

    fn stop(&mut self, host: &Host) -> Result<()> {
        if self.daemons.is_empty() {
            return Ok(());
        }
        self.daemons.drain(..).try_for_each(|mut daemon| daemon.kill(host))?;
        host.sh("nft delete table inet filter").map(drop)
    }

    /// As long as a knock.
    fn noise(
        &mut self,
        host: &Host,
        _: &Link<'_>,
        kind: Noise,
        count: usize,
    ) -> Result<Vec<Frame>> {
        if kind != Noise::Random {
            bail!("no {} are made for letmein", kind.name());
        }
        let to = host.at(Family::V4, KNOCK_PORT);
        (0..count).map(|n| Frame::udp(host, noisy(n), to, &random::<LENGTH>()?)).collect()
    }

    fn files(&self) -> (Vec<PathBuf>, Vec<PathBuf>) {
        (["rules.log", "socket.log"].map(|name| self.directory.join(name)).into(), Vec::new())
    }
}

/// What it ships, but for the port; for silence where nobody has shown a key, which is its stealth
/// mode; and for more rules than a hundred.
fn configuration(key: &[u8]) -> Result<String> {
    let mut text = format!(
        "[GENERAL]\ndebug = true\nport = {KNOCK_PORT} / udp\ncontrol-timeout = 5.0\n\
         control-error-policy = basic-auth\nseccomp = off\n\
         [NFTABLES]\nexe = nft\nfamily = inet\ntable = filter\nchain-input = {CHAIN}\n\
         timeout = {SECONDS}\nmax-nr-rules = 100000\n\
         [RESOURCES]\n{RESOURCE:08X} = port: {GUARDED}\n[KEYS]\n{USER:08X} = "
    );
    for byte in key {
        write!(text, "{byte:02X}")?;
    }
    text.push('\n');
    Ok(text)
}

/// The firewall that it asks for in its documentation, which drops what is not let in. It opens its own
/// port itself.
fn base_table(host: &Host, directory: &Path) -> Result<()> {
    let rules = format!(
        "add table inet filter\nadd chain inet filter {CHAIN}\n\
         add chain inet filter INPUT {{ type filter hook input priority filter; policy drop; }}\n\
         add rule inet filter INPUT iifname lo accept\n\
         add rule inet filter INPUT ct state established accept\n\
         add rule inet filter INPUT jump {CHAIN}\n"
    );
    let file = directory.join("rules");
    fs::write(&file, rules)?;
    host.sh(&format!("nft -f {}", file.display())).map(drop)
}

/// What stands in a message before its salt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Message {
    operation: u32,
    user: u32,
    resource: u32,
}

impl Message {
    fn seal(&self, key: &[u8], salt: [u8; 8], challenge: &[u8]) -> Result<Vec<u8>> {
        let mut signed = Vec::with_capacity(LENGTH);
        for number in [self.operation, self.user, self.resource] {
            signed.extend_from_slice(&number.to_be_bytes());
        }
        signed.extend_from_slice(&salt);
        let mut mac = SimpleHmac::<Sha3_256>::new_from_slice(key)?;
        mac.update(&signed);
        mac.update(challenge);
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&signed);
        bytes.extend_from_slice(&mac.finalize().into_bytes());
        Ok(bytes)
    }
}

/// The response to a challenge. Everything else that comes in is answered by nothing.
fn respond(host: &Host, key: &[u8], frame: &[u8]) -> Option<Frame> {
    let (to, challenge) = challenged(frame)?;
    let response = Message { operation: RESPONSE, user: USER, resource: RESOURCE };
    let response = response.seal(key, random().ok()?, challenge).ok()?;
    Frame::udp(host, to, host.at(Family::V4, KNOCK_PORT), &response).ok()
}

/// Who is challenged by a frame, and with what: a datagram over IPv4 without options.
fn challenged(frame: &[u8]) -> Option<(SocketAddr, &[u8])> {
    let header = frame.get(14..34)?;
    let datagram = frame.get(34..)?;
    let is_udp = header.first() == Some(&0x45) && header.get(9) == Some(&17);
    let port = |at: usize| Some(u16::from_be_bytes(datagram.get(at..at + 2)?.try_into().ok()?));
    let message = datagram.get(8..).filter(|message| message.len() == LENGTH)?;
    let is_challenge = message.get(4..8)? == CHALLENGE.to_be_bytes();
    let to: [u8; 4] = header.get(16..20)?.try_into().ok()?;
    let to = SocketAddr::new(Ipv4Addr::from(to).into(), port(2)?);
    let is_wanted = is_udp && port(0)? == KNOCK_PORT && message.starts_with(&MAGIC) && is_challenge;
    Some((to, message.get(24..)?)).filter(|_| is_wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What letmein's own tests expect of this key, salt, user and resource.
    #[test]
    fn a_knock_is_signed_as_letmein_signs_it() {
        let knock = Message { operation: KNOCK, user: 0xa423_dda7, resource: 0xbc5d_8077 };
        let bytes = knock.seal(&[0x9e; 32], [0x4a; 8], &NO_CHALLENGE).unwrap();
        assert_eq!(bytes.len(), LENGTH);
        assert_eq!(bytes[24..32], [99, 153, 229, 224, 255, 22, 33, 154]);
        assert_eq!(bytes[49..], [129, 184, 174, 249, 254, 6, 0]);
    }

    #[test]
    fn only_a_challenge_is_answered() {
        let challenge = |operation: u32, port: u16| {
            let message = Message { operation, user: USER, resource: RESOURCE };
            let message = message.seal(&[1; 32], [2; 8], &NO_CHALLENGE).unwrap();
            let mut frame = vec![0; 14];
            frame.extend([0x45, 0, 0, 84, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 100, 80, 0, 7]);
            frame.extend(port.to_be_bytes());
            frame.extend([0x9c, 0x41, 0, 64, 0, 0]);
            frame.extend(message);
            frame
        };
        let frame = challenge(CHALLENGE, KNOCK_PORT);
        let (to, nonce) = challenged(&frame).unwrap();
        assert_eq!((to.to_string().as_str(), nonce), ("100.80.0.7:40001", &frame[66..]));
        assert_eq!(challenged(&challenge(RESPONSE, KNOCK_PORT)), None);
        assert_eq!(challenged(&challenge(CHALLENGE, 53)), None);
        assert_eq!(challenged(&frame[..97]), None);
    }
}
