//! knockd of Debian: three SYNs in the right order.

use super::process::{Daemon, Tail, base_rules, clear_rules, restore};
use super::sequence::{self, SEQUENCE};
use super::{Contender, Link, Noise};
use crate::bench::station::GUARDED;
use crate::frames::Frame;
use crate::lab::Host;
use anyhow::{Context, Result};
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

const CHAIN: &str = "KNOCK";
/// No grant ends during a run.
const SECONDS: u32 = 7200;

/// See the module's text.
#[derive(Default)]
pub(super) struct Knockd {
    log: PathBuf,
    present: usize,
    daemon: Option<Daemon>,
    said: Option<Tail>,
}

impl Knockd {
    fn daemon(&self) -> Result<&Daemon> {
        self.daemon.as_ref().context("knockd does not run")
    }
}

impl Contender for Knockd {
    fn name(&self) -> String {
        "knockd".into()
    }

    fn knocks(&self) -> usize {
        100
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
        let rule = format!("{CHAIN} -s %IP% -p tcp --dport {GUARDED} -j ACCEPT");
        let sequence = SEQUENCE.map(|port| format!("{port}:tcp")).join(",");
        let log = directory.join("log");
        let config = directory.join("knockd.conf");
        fs::write(
            &config,
            format!(
                "[options]\n\tlogfile = {}\n\n[open]\n\tsequence = {sequence}\n\tseq_timeout = 5\n\
                 \ttcpflags = syn\n\tstart_command = /usr/sbin/iptables -A {rule}\n\
                 \tcmd_timeout = {SECONDS}\n\tstop_command = /usr/sbin/iptables -D {rule}\n",
                log.display()
            ),
        )?;
        base_rules(host)?;
        host.sh(&format!("iptables -N {CHAIN}"))?;
        host.sh(&format!("iptables -I INPUT 1 -j {CHAIN}"))?;
        let config = config.to_string_lossy();
        let words = ["knockd", "-i", "eth0", "-c", &config];
        let daemon = Daemon::start(host, &words, &log, "starting up")?;
        self.said = Some(daemon.count("OPEN SESAME")?);
        self.daemon = Some(daemon);
        self.log = log;
        self.present = sources.len();
        let mut rules = String::new();
        for source in sources {
            writeln!(rules, "-A {CHAIN} -s {source}/32 -p tcp -m tcp --dport {GUARDED} -j ACCEPT")?;
        }
        restore(host, directory, &rules)
    }

    fn packets(&mut self, host: &Host, sources: &[IpAddr]) -> Result<Vec<Frame>> {
        sequence::knocks(host, sources)
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

    fn noise(
        &mut self,
        host: &Host,
        _: &Link<'_>,
        kind: Noise,
        count: usize,
    ) -> Result<Vec<Frame>> {
        sequence::noise(host, kind, count)
    }

    fn files(&self) -> (Vec<PathBuf>, Vec<PathBuf>) {
        (vec![self.log.clone()], Vec::new())
    }
}
