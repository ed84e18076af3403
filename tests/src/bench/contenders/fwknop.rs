//! fwknopd of Debian, in both of its modes, with packets of Debian's client.

use super::process::{Daemon, Tail, base_rules, clear_rules, installed, restore};
use super::{Contender, Link, Noise, noisy};
use crate::bench::station::{GUARDED, KNOCK_PORT};
use crate::command::finish;
use crate::device::{now, random};
use crate::frames::Frame;
use crate::lab::{Family, Host};
use crate::programs::program;
use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

const CHAIN: &str = "FWKNOP_INPUT";
/// No grant ends during a run.
const SECONDS: u64 = 7200;

/// See the module's text.
pub(super) struct Fwknopd {
    /// Whether it listens on a UDP socket instead of capturing.
    listens: bool,
    directory: PathBuf,
    /// Base64 of the keys for encryption and authentication.
    keys: (String, String),
    present: usize,
    daemon: Option<Daemon>,
    said: Option<Tail>,
}

impl Fwknopd {
    /// The mode that it has by default.
    pub(super) fn capturing() -> Self {
        Self {
            listens: false,
            directory: PathBuf::new(),
            keys: Default::default(),
            present: 0,
            daemon: None,
            said: None,
        }
    }

    /// `ENABLE_UDP_SERVER`.
    pub(super) fn listening() -> Self {
        Self { listens: true, ..Self::capturing() }
    }

    fn daemon(&self) -> Result<&Daemon> {
        self.daemon.as_ref().context("fwknopd does not run")
    }

    fn write(&self, name: &str, text: &str) -> Result<String> {
        let path = self.directory.join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(path.to_string_lossy().into_owned())
    }
}

impl Contender for Fwknopd {
    fn name(&self) -> String {
        format!("fwknopd, {}", if self.listens { "UDP mode" } else { "pcap mode" })
    }

    fn knocks(&self) -> usize {
        50
    }

    fn levels(&self) -> &'static [usize] {
        &[0, 1_000]
    }

    fn start(
        &mut self,
        host: &Host,
        _: &Link<'_>,
        directory: &Path,
        sources: &[IpAddr],
    ) -> Result<()> {
        directory.clone_into(&mut self.directory);
        let run = directory.join("run");
        fs::create_dir_all(&run)?;
        fs::set_permissions(&run, Permissions::from_mode(0o700))?;
        self.keys = (base64(&random::<32>()?), base64(&random::<64>()?));
        let listens = if self.listens { "Y" } else { "N" };
        let config = self.write(
            "fwknopd.conf",
            &format!(
                "PCAP_INTF eth0;\nPCAP_FILTER udp port {KNOCK_PORT};\n\
                 ENABLE_UDP_SERVER {listens};\nFIREWALL_EXE /usr/sbin/iptables;\n"
            ),
        )?;
        let access = self.write(
            "access.conf",
            &format!(
                "SOURCE ANY\nOPEN_PORTS tcp/{GUARDED}\nKEY_BASE64 {}\nHMAC_KEY_BASE64 {}\n\
                 FW_ACCESS_TIMEOUT {SECONDS}\nREQUIRE_SOURCE_ADDRESS N\n",
                self.keys.0, self.keys.1
            ),
        )?;
        base_rules(host)?;
        if self.listens {
            host.sh(&format!("iptables -A INPUT -p udp --dport {KNOCK_PORT} -j ACCEPT"))?;
        }
        let run = run.to_string_lossy();
        let ready = if self.listens {
            "Kicking off UDP server"
        } else {
            "Starting fwknopd main event loop"
        };
        let (pid_file, digests) = (format!("{run}/pid"), format!("{run}/digests"));
        let words = [
            "fwknopd", "-f", "-c", &config, "-a", &access, "-r", &run, "-p", &pid_file, "-d",
            &digests,
        ];
        let log = self.directory.join("log");
        let daemon = Daemon::start(host, &words, &log, ready)?;
        self.said = Some(daemon.count("Added access rule")?);
        self.daemon = Some(daemon);
        self.present = sources.len();
        // Rules as it writes them: so it knows them for its own, and when they end.
        let end = now().0 / 1_000_000 + SECONDS;
        let mut rules = String::new();
        for source in sources {
            writeln!(
                rules,
                "-A {CHAIN} -s {source}/32 -p tcp -m tcp --dport {GUARDED} \
                 -m comment --comment _exp_{end} -j ACCEPT"
            )?;
        }
        restore(host, &self.directory, &rules)
    }

    fn packets(&mut self, host: &Host, sources: &[IpAddr]) -> Result<Vec<Frame>> {
        let client = installed("fwknop", program)?;
        let file = self.directory.join("packet");
        let destination = host.at(Family::V4, KNOCK_PORT);
        let access = format!("tcp/{GUARDED}");
        let mut frames = Vec::new();
        for source in sources {
            let mut command = Command::new(&client);
            command.args(["--test", "-A", &access, "-a", &source.to_string()]);
            command.args(["-D", &destination.ip().to_string(), "--use-hmac"]);
            command.args(["--key-base64-rijndael", &self.keys.0]);
            command.args(["--key-base64-hmac", &self.keys.1]);
            command.arg("--save-packet").arg(&file).env("HOME", &self.directory);
            finish(&mut command)?.ok()?;
            let packet = fs::read_to_string(&file)?;
            fs::remove_file(&file)?;
            let from = SocketAddr::new(*source, 40_001);
            frames.push(Frame::udp(host, from, destination, packet.trim().as_bytes())?);
        }
        Ok(frames)
    }

    fn heard(&mut self) -> Result<usize> {
        let said = self.said.as_mut().context("it does not run")?;
        Ok(self.present + said.count()?)
    }

    fn granted(&self, host: &Host) -> Result<usize> {
        Ok(host.sh(&format!("iptables -S {CHAIN}"))?.matches("--dport 22 ").count())
    }

    fn pid(&self) -> Result<u32> {
        Ok(self.daemon()?.pid())
    }

    fn stop(&mut self, host: &Host) -> Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill(host)?;
        }
        clear_rules(host)
    }

    /// Letters of base64, as many as a knock has.
    fn noise(
        &mut self,
        host: &Host,
        _: &Link<'_>,
        kind: Noise,
        count: usize,
    ) -> Result<Vec<Frame>> {
        if kind != Noise::Random {
            bail!("no {} are made for fwknopd", kind.name());
        }
        let knock = self.packets(host, &[noisy(0).ip()])?;
        let length = knock.first().map_or(0, |frame| frame.payload().len());
        (0..count)
            .map(|n| {
                let mut letters = base64(&random::<512>()?).into_bytes();
                letters.truncate(length);
                Frame::udp(host, noisy(n), host.at(Family::V4, KNOCK_PORT), &letters)
            })
            .collect()
    }

    fn files(&self) -> (Vec<PathBuf>, Vec<PathBuf>) {
        (vec![self.directory.join("log")], vec![self.directory.join("run/digests")])
    }
}

/// The standard alphabet with padding (RFC 4648, section 4).
pub(in crate::bench) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        let encoded =
            ["", "f", "fo", "foo", "foob", "fooba", "foobar"].map(|t| base64(t.as_bytes()));
        assert_eq!(encoded, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"]);
    }
}
