//! The daemon dies; the kernel keeps its promises, and the next daemon knows what is open.

use anyhow::{Result, ensure};
use spa_tests::{Family, PortState, SSH_PORT, Scene, WEB_PORT, eventually};
use std::time::{Duration, Instant};

#[test]
fn the_kernel_closes_on_time_what_a_killed_daemon_had_opened() -> Result<()> {
    let mut scene = Scene::new()?;
    let owner = scene.lab.owner().clone();
    let start = Instant::now();
    for family in Family::BOTH {
        scene.knock(&owner, family, &scene.laptop.open("ssh").lifetime(4).seal()?)?;
        scene.await_open(&owner, family, SSH_PORT)?;
    }
    let mut session = scene.sshd.session(&owner, Family::V4)?;
    scene.server.kill9()?;
    scene.await_shut(Duration::from_secs(4))?;
    let closed = start.elapsed();
    ensure!(closed >= Duration::from_secs(3), "closed too early: {closed:?}");
    for family in Family::BOTH {
        scene.ensure_sees(&owner, family, SSH_PORT, PortState::Filtered)?;
    }
    session.ensure_alive()?;

    // The new daemon knows that they are over.
    scene.server.start()?;
    ensure!(scene.server.grants()?.is_empty(), "{:?}", scene.server.grants()?);
    ensure!(scene.server.status()?.grants == 0);
    session.ensure_alive()?;
    scene.ensure_owner_gets_in(Family::V4)
}

#[test]
fn grants_that_still_had_time_are_known_after_kill_9_and_nothing_is_doubled() -> Result<()> {
    let mut scene = Scene::new()?;
    let owner = scene.lab.owner().clone();
    for family in Family::BOTH {
        scene.knock(&owner, family, &scene.laptop.open("ssh").lifetime(600).seal()?)?;
        scene.await_open(&owner, family, SSH_PORT)?;
    }
    scene.knock(&owner, Family::V4, &scene.laptop.open("web").lifetime(3).seal()?)?;
    scene.await_open(&owner, Family::V4, WEB_PORT)?;
    let (rules, sets) = (scene.server.rules()?, scene.server.host().sh("ipset list -name")?);
    let grants = scene.server.grants()?;
    ensure!(grants.len() == 3, "{grants:?}");

    scene.server.kill9()?;
    eventually("the short grant is to end while the daemon is dead", || {
        Ok((scene.server.elements()?.len() == 2).then_some(()))
    })?;
    scene.server.start()?;
    let after = scene.server.grants()?;
    ensure!(after.len() == 2, "{after:?}");
    for grant in &after {
        let before = grants.iter().find(|before| {
            (before.source, &before.request_id) == (grant.source, &grant.request_id)
        });
        let Some(before) = before else { anyhow::bail!("a new grant has come up: {grant:?}") };
        ensure!((&before.client, &before.service) == (&grant.client, &grant.service));
        ensure!(grant.seconds_left <= before.seconds_left, "{before:?} has become {grant:?}");
        ensure!(grant.seconds_left > before.seconds_left.saturating_sub(60), "{grant:?}");
    }
    ensure!(scene.server.status()?.grants == 2);
    ensure!(scene.server.elements()?.len() == 2, "{:?}", scene.server.elements()?);
    ensure!(scene.server.rules()? == rules, "the rules have changed");
    ensure!(scene.server.host().sh("ipset list -name")? == sets, "the sets have changed");

    // They are grants like any other: refreshed, not doubled, and closed.
    scene.knock(&owner, Family::V4, &scene.laptop.open("ssh").lifetime(900).seal()?)?;
    eventually("the grant is to be refreshed", || {
        let left = scene.server.grants()?.iter().map(|grant| grant.seconds_left).max();
        Ok((left > Some(800)).then_some(()))
    })?;
    ensure!(scene.server.grants()?.len() == 2, "{:?}", scene.server.grants()?);
    scene.knock(&owner, Family::V6, &scene.laptop.close("ssh").seal()?)?;
    scene.await_state(&owner, Family::V6, SSH_PORT, PortState::Filtered)?;
    scene.ensure_sees(&owner, Family::V4, SSH_PORT, PortState::Open)
}

#[test]
fn grants_and_sessions_survive_a_restart() -> Result<()> {
    let mut scene = Scene::new()?;
    let owner = scene.lab.owner().clone();
    let mut sessions = Vec::new();
    for family in Family::BOTH {
        scene.knock(&owner, family, &scene.laptop.open("ssh").lifetime(600).seal()?)?;
        scene.await_open(&owner, family, SSH_PORT)?;
        sessions.push(scene.sshd.session(&owner, family)?);
    }
    let rules = scene.server.rules()?;
    scene.server.stop()?;
    for family in Family::BOTH {
        scene.ensure_sees(&owner, family, SSH_PORT, PortState::Open)?;
        scene.ensure_sees(scene.lab.other(), family, SSH_PORT, PortState::Filtered)?;
    }
    scene.server.start()?;
    ensure!(scene.server.grants()?.len() == 2, "{:?}", scene.server.grants()?);
    ensure!(scene.server.rules()? == rules, "the rules have changed");
    for session in &mut sessions {
        session.ensure_alive()?;
    }
    scene.revoke_all()?;
    for family in Family::BOTH {
        scene.ensure_sees(&owner, family, SSH_PORT, PortState::Filtered)?;
    }
    Ok(())
}

#[test]
fn killed_again_and_again_under_load_it_comes_back_with_what_the_kernel_has() -> Result<()> {
    let mut scene = Scene::prepared(|configuration| {
        configuration.clients[0].max_sources = Some(4096);
    })?;
    scene.server.start()?;
    for round in 0..5_u8 {
        for number in 0..30_u8 {
            let source = format!("10.66.{}.{}:9", 100 + round, number + 1);
            let knock = scene.laptop.open("ssh").lifetime(600).seal()?;
            scene.knock_as(source.parse()?, &knock)?;
        }
        // In the middle of the work, wherever that is.
        scene.server.kill9()?;
        scene.server.start()?;
        eventually("daemon and kernel are to agree", || {
            let mut known: Vec<_> =
                scene.server.grants()?.iter().map(|grant| grant.source.to_string()).collect();
            let mut open: Vec<_> = scene
                .server
                .elements()?
                .iter()
                .filter_map(|element| {
                    Some(element.split_whitespace().nth(1)?.split(',').next()?.to_owned())
                })
                .collect();
            known.sort_unstable();
            open.sort_unstable();
            Ok((known == open).then_some(()))
        })
        .map_err(|error| error.context(scene.server.account()))?;
    }
    scene.server.ensure_unharmed()?;
    scene.revoke_all()?;
    scene.ensure_shut()?;
    scene.ensure_owner_gets_in(Family::V4)
}

#[test]
fn a_damaged_list_of_grants_does_not_keep_the_daemon_from_starting() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.ensure_owner_gets_in(Family::V4)?;
    scene.server.kill9()?;
    let path = scene.server.configuration().state_directory.join("grants.log");
    let text = std::fs::read_to_string(&path)?;
    std::fs::write(&path, format!("{text}{{ \"half a li"))?;
    scene.server.start()?;
    ensure!(scene.server.grants()?.len() == 1, "{:?}", scene.server.grants()?);
    scene.server.kill9()?;
    std::fs::write(&path, [0xff; 4096])?;
    scene.server.start()?;
    scene.server.ensure_unharmed()?;
    scene.ensure_owner_gets_in(Family::V6)
}
