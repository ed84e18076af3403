//! The match `recent` of iptables: port knocking in the kernel, without any daemon and without any
//! proof of who knocks. What is faster than this is not to be had from a firewall.

use super::process::{base_rules, clear_rules};
use super::sequence::{self, SEQUENCE};
use super::{Contender, Link, Noise};
use crate::bench::station::GUARDED;
use crate::frames::Frame;
use crate::lab::Host;
use anyhow::{Result, bail};
use std::net::IpAddr;
use std::path::Path;

/// How long a door stays open. The list of each step holds the last hundred addresses.
const SECONDS: u32 = 7200;

/// See the module's text.
pub(super) struct Recent;

impl Contender for Recent {
    fn name(&self) -> String {
        "iptables `recent`".into()
    }

    fn is_floor(&self) -> bool {
        true
    }

    fn knocks(&self) -> usize {
        100
    }

    fn levels(&self) -> &'static [usize] {
        &[0]
    }

    fn start(&mut self, host: &Host, _: &Link<'_>, _: &Path, _: &[IpAddr]) -> Result<()> {
        base_rules(host)?;
        let [first, second, third] = SEQUENCE;
        for chain in ["STEP1", "STEP2", "STEP3"] {
            host.sh(&format!("iptables -N {chain}"))?;
        }
        // Each step forgets the one before: the ports have to come in their order.
        for rule in [
            format!("STEP1 -p tcp --dport {first} -m recent --name KNOCK1 --set -j DROP"),
            "STEP2 -m recent --name KNOCK1 --remove".into(),
            format!("STEP2 -p tcp --dport {second} -m recent --name KNOCK2 --set -j DROP"),
            "STEP2 -j STEP1".into(),
            "STEP3 -m recent --name KNOCK2 --remove".into(),
            format!("STEP3 -p tcp --dport {third} -m recent --name OPEN --set -j DROP"),
            "STEP3 -j STEP1".into(),
            format!(
                "INPUT -p tcp --dport {GUARDED} -m recent --name OPEN --rcheck \
                 --seconds {SECONDS} -j ACCEPT"
            ),
            "INPUT -m recent --name KNOCK2 --rcheck --seconds 5 -j STEP3".into(),
            "INPUT -m recent --name KNOCK1 --rcheck --seconds 5 -j STEP2".into(),
            "INPUT -j STEP1".into(),
        ] {
            host.sh(&format!("iptables -A {rule}"))?;
        }
        Ok(())
    }

    fn packets(&mut self, host: &Host, sources: &[IpAddr]) -> Result<Vec<Frame>> {
        sequence::knocks(host, sources)
    }

    fn heard(&mut self) -> Result<usize> {
        bail!("nobody runs who could tell")
    }

    fn granted(&self, host: &Host) -> Result<usize> {
        Ok(host.sh("cat /proc/net/xt_recent/OPEN")?.matches("src=").count())
    }

    fn pid(&self) -> Result<u32> {
        bail!("nothing runs")
    }

    fn stop(&mut self, host: &Host) -> Result<()> {
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
}
