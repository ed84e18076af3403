//! How long the gate is away when another program flushes the firewall: the whole daemon, with a
//! live grant, read from the kernel.

use super::backends::{CANDIDATES, Candidate};
use super::figures::Figure;
use super::results::{FlushFigures, FlushResults, Outcome};
use super::{Extent, with_causes};
use crate::lab::{Family, Host};
use crate::scene::{SSH_PORT, Scene};
use crate::wait::eventually;
use anyhow::{Context, Result};
use spa_server::gate::Backend;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Between two looks of the daemon's at most: flushes come at all moments in between.
const PERIOD: u64 = 500;
/// Coprime to it.
const STEP: u64 = 137;

/// Measures all back-ends, one after the other.
pub(super) fn measure(extent: &Extent) -> Vec<FlushResults> {
    let result = |candidate: Candidate| FlushResults {
        name: candidate.name.to_owned(),
        outcome: match of(candidate, extent.flushes) {
            Ok(figures) => Outcome::Measured(figures),
            Err(error) => Outcome::NotRun(with_causes(&error)),
        },
    };
    CANDIDATES.into_iter().map(result).collect()
}

fn of(candidate: Candidate, times: u64) -> Result<FlushFigures> {
    let mut scene = Scene::prepared(|configuration| {
        configuration.gate.backend = Some(candidate.backend.to_string());
        let tools = candidate.tools().into_iter();
        configuration.gate.tools = tools.map(|(name, path)| (name.into(), path.into())).collect();
    })?;
    if candidate.iptables == Some("legacy") {
        scene.lab.server().use_iptables_legacy()?;
    }
    scene.server.start()?;
    let owner = scene.lab.owner();
    scene.knock(owner, Family::V4, &scene.laptop.open("ssh").lifetime(600).seal()?)?;
    scene.await_open(owner, Family::V4, SSH_PORT)?;
    let granted = owner.address(Family::V4).to_string();
    let host = scene.server.host();
    let before = standing(host, candidate, &granted)?.context("the gate does not stand")?;
    let mut milliseconds = Vec::new();
    for time in 1..=times {
        sleep(Duration::from_millis(time.wrapping_mul(STEP) % PERIOD));
        let began = Instant::now();
        for line in flush(candidate) {
            host.sh(line)?;
        }
        eventually("the gate is to stand again", || {
            Ok((standing(host, candidate, &granted)?.as_ref() == Some(&before)).then_some(()))
        })?;
        milliseconds.push(began.elapsed().as_secs_f64() * 1e3);
        eventually("it is to be told", || {
            Ok((scene.server.status()?.restored >= time).then_some(()))
        })?;
    }
    Ok(FlushFigures {
        ms: Figure::of(&milliseconds),
        slowest_ms: milliseconds.iter().copied().reduce(f64::max),
    })
}

const fn flush(candidate: Candidate) -> &'static [&'static str] {
    match candidate.backend {
        Backend::Nftables => &["nft flush ruleset"],
        _ => &["iptables -t mangle -F", "iptables -F"],
    }
}

/// The rules as they are in the kernel; none where they, or the grant, are not there.
fn standing(host: &Host, candidate: Candidate, granted: &str) -> Result<Option<String>> {
    let in_iptables = ["iptables-save -t mangle", "iptables-save -t filter"];
    let (rules, grants) = match candidate.backend {
        Backend::Nftables => (&["nft -t list table inet spa"][..], "nft list table inet spa"),
        Backend::Ipset => (&in_iptables[..], "ipset save"),
        _ => (&in_iptables[..], "iptables-save"),
    };
    let mut text = String::new();
    for line in rules {
        let shown = host.run(line)?;
        if !shown.success() {
            return Ok(None);
        }
        // Neither dates nor counters; nor grants, whose end is rounded anew each time.
        let is_rule = |line: &&str| !line.starts_with(['#', ':']) && !line.contains("\"spa:");
        text.extend(shown.ok()?.lines().filter(is_rule).map(|line| format!("{line}\n")));
    }
    let shown = host.run(grants)?;
    Ok((shown.success() && shown.ok()?.contains(granted)).then_some(text))
}
