//! Somebody else flushes the firewall: the gate stands again, with the grants that were live.
//! An administrator takes it away on purpose: it stays away.

use anyhow::{Context, Result, ensure};
use spa_tests::{Family, PortState, SSH_PORT, Scene, eventually};
use std::time::{Duration, Instant};

/// What other programs do to a firewall; lines of commands, and what of the gate goes with them.
const FLUSHES: [(&str, &[&str]); 5] = [
    (
        "all rules",
        &["iptables -F", "iptables -t mangle -F", "ip6tables -F", "ip6tables -t mangle -F"],
    ),
    ("the jumps", &["iptables -t mangle -F PREROUTING", "ip6tables -t mangle -F PREROUTING"]),
    ("everything of nftables", &["nft flush ruleset"]),
    ("the elements", &["ipset flush"]),
    ("one element", &["ipset del spa4 10.66.0.2,tcp:22"]),
];

/// The gate stands again as it was: hidden from strangers, open for the owner.
fn await_restored(scene: &Scene, times: u64) -> Result<Duration> {
    let began = Instant::now();
    eventually("the gate is to be put back", || {
        Ok((scene.server.status()?.restored >= times).then_some(()))
    })
    .with_context(|| scene.server.account())?;
    Ok(began.elapsed())
}

#[test]
fn a_flushed_gate_stands_again_within_a_second_with_the_live_grants() -> Result<()> {
    let scene = Scene::new()?;
    let owner = scene.lab.owner().clone();
    for family in Family::BOTH {
        let knock = scene.laptop.open("ssh").lifetime(600).seal()?;
        scene.knock(&owner, family, &knock)?;
        scene.await_open(&owner, family, SSH_PORT)?;
    }
    let mut session = scene.sshd.session(&owner, Family::V4)?;
    let rules = scene.server.rules()?;
    for (round, (what, commands)) in (1..).zip(FLUSHES) {
        let left: Vec<_> = scene.server.grants()?.iter().map(|grant| grant.seconds_left).collect();
        for command in commands {
            scene.server.host().sh(command)?;
        }
        let took = await_restored(&scene, round).context(what)?;
        // A second, and what a busy machine adds.
        ensure!(took < Duration::from_secs(5), "{what}: it took {took:?}");
        spa_tests::report(format!("{what}: restored after {took:?}"));
        ensure!(scene.server.rules()? == rules, "{what}: {}", scene.server.rules()?);
        for family in Family::BOTH {
            scene.ensure_sees(&owner, family, SSH_PORT, PortState::Open)?;
            scene.ensure_sees(scene.lab.other(), family, SSH_PORT, PortState::Filtered)?;
        }
        session.ensure_alive().context(what)?;
        // With what was left of their time, not with all of it.
        let after: Vec<_> = scene.server.grants()?.iter().map(|grant| grant.seconds_left).collect();
        ensure!(after.iter().max() <= left.iter().max(), "{what}: {left:?} became {after:?}");
        let saved = scene.server.host().sh("ipset save")?;
        let added = saved.lines().filter(|line| line.starts_with("add "));
        let timeouts = added.filter_map(|line| line.split(" timeout ").nth(1)?.parse::<u64>().ok());
        let longest = timeouts.max().unwrap_or(0);
        ensure!(longest <= left.iter().copied().max().unwrap_or(0) + 1, "{what}: {saved}");
        let lines = scene.server.audit("gate-restored")?;
        ensure!(!lines.is_empty(), "{what}: {}", scene.server.account());
    }
    let lines = scene.server.audit("gate-restored")?;
    ensure!(lines[0].contains("missing=") && lines[0].contains("grants="), "{lines:?}");
    ensure!(scene.server.status()?.gate == "installed");
    Ok(())
}

#[test]
fn own_changes_and_grants_that_end_are_no_alarm() -> Result<()> {
    let scene = Scene::new()?;
    let owner = scene.lab.owner().clone();
    for lifetime in [1, 2, 3] {
        let knock = scene.laptop.open("ssh web").lifetime(lifetime).seal()?;
        scene.knock(&owner, Family::V4, &knock)?;
        scene.await_open(&owner, Family::V4, SSH_PORT)?;
        scene.await_shut(Duration::from_secs(4))?;
    }
    ensure!(scene.server.admin(&["reload"])?.success());
    // The control: an alarm would be counted.
    let status = scene.server.status()?;
    ensure!(status.restored == 0 && status.gate == "installed", "{status:?}");
    scene.server.host().sh("iptables -t mangle -F PREROUTING")?;
    await_restored(&scene, 1)?;
    ensure!(scene.server.status()?.restored == 1);
    Ok(())
}

#[test]
fn a_gate_that_an_administrator_removes_stays_away_until_it_is_installed() -> Result<()> {
    let mut scene = Scene::new()?;
    let owner = scene.lab.owner().clone();
    let knock = scene.laptop.open("ssh").lifetime(600).seal()?;
    scene.knock(&owner, Family::V4, &knock)?;
    scene.await_open(&owner, Family::V4, SSH_PORT)?;

    let removed = scene.server.admin(&["gate", "remove"])?;
    ensure!(removed.success(), "{removed}");
    let stays_away = |scene: &Scene| {
        scene.ensure_sees(scene.lab.other(), Family::V4, SSH_PORT, PortState::Open)?;
        let gate = scene.server.status()?.gate;
        ensure!(gate.contains("spa-server gate install"), "{gate}");
        ensure!(!scene.server.rules()?.contains("SPA-"), "{}", scene.server.rules()?);
        let checked = scene.server.admin(&["check"])?;
        ensure!(checked.success() && checked.said().contains("gate install"), "{checked}");
        anyhow::Ok(())
    };
    stays_away(&scene)?;
    // A knock opens nothing, and says so. A reload leaves it away.
    scene.knock(&owner, Family::V4, &scene.laptop.open("web").seal()?)?;
    eventually("the knock is to be told", || {
        Ok((!scene.server.audit("failed")?.is_empty()).then_some(()))
    })?;
    let reloaded = scene.server.admin(&["reload"])?;
    ensure!(reloaded.success() && reloaded.said().contains("gate install"), "{reloaded}");
    let uptime = scene.server.status()?.uptime;
    eventually("some seconds are to pass", || {
        Ok((scene.server.status()?.uptime > uptime + 2).then_some(()))
    })?;
    stays_away(&scene)?;

    let installed = scene.server.admin(&["gate", "install"])?;
    ensure!(installed.success() && installed.said().contains("is installed"), "{installed}");
    ensure!(scene.server.status()?.gate == "installed");
    // The grant goes on where it was.
    scene.ensure_sees(&owner, Family::V4, SSH_PORT, PortState::Open)?;
    scene.ensure_sees(scene.lab.other(), Family::V4, SSH_PORT, PortState::Filtered)?;
    scene.server.host().sh("iptables -t mangle -F PREROUTING")?;
    await_restored(&scene, 1)?;

    // So does a restart put it back.
    ensure!(scene.server.admin(&["gate", "remove"])?.success());
    stays_away(&scene)?;
    scene.server.restart()?;
    scene.ensure_sees(scene.lab.other(), Family::V4, SSH_PORT, PortState::Filtered)?;
    scene.ensure_sees(&owner, Family::V4, SSH_PORT, PortState::Open)?;

    // Without a daemon it is done at once.
    scene.server.stop()?;
    ensure!(scene.server.admin(&["gate", "remove"])?.success());
    scene.ensure_sees(scene.lab.other(), Family::V4, SSH_PORT, PortState::Open)?;
    ensure!(scene.server.admin(&["gate", "install"])?.success());
    scene.ensure_sees(scene.lab.other(), Family::V4, SSH_PORT, PortState::Filtered)
}
