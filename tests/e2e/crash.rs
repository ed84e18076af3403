//! The daemon dies; the kernel keeps its promises, and the next daemon knows what is open.

use anyhow::{Context as _, Result, ensure};
use spa_tests::{Family, PortState, Rate, SSH_PORT, Scene, WEB_PORT, eventually};
use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{scope, sleep};
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

/// That what the daemon says is open is what the kernel admits.
fn ensure_daemon_and_kernel_agree(scene: &Scene) -> Result<()> {
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
    .with_context(|| scene.server.account())
}

/// At twenty moments that nobody has chosen, amid knocks that come all the time.
#[test]
fn killed_again_and_again_under_load_it_comes_back_with_what_the_kernel_has() -> Result<()> {
    let mut scene = Scene::prepared(|configuration| {
        configuration.clients[0].max_sources = Some(4096);
        configuration.clients[0].rate = Some(Rate { per_minute: 60_000, burst: 10_000 });
    })?;
    let owner = scene.lab.owner().clone();
    scene.server.start()?;
    scene.knock(&owner, Family::V4, &scene.laptop.open("web").lifetime(600).seal()?)?;
    scene.await_open(&owner, Family::V4, WEB_PORT)?;

    let (lab, laptop, door) = (&scene.lab, &scene.laptop, scene.door(Family::V4));
    let stop = AtomicBool::new(false);
    // By the id that the audit trail has.
    let knocks = Mutex::new(BTreeMap::new());
    let outcome = scope(|scope| {
        let load = scope.spawn(|| {
            for number in 0..u16::MAX {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let [high, low] = (number % 2000).to_be_bytes();
                let source = SocketAddr::from(([10, 66, 100 + high, low], 9));
                let mut nonce = [0x77; 24];
                nonce[..2].copy_from_slice(&number.to_be_bytes());
                let knock = laptop.open("ssh").lifetime(600).nonce(nonce).seal()?;
                lab.other().send_udp_as(source, lab.server(), door, &knock)?;
                let id = format!("id={number:04x}{}", "77".repeat(6));
                knocks.lock().unwrap_or_else(PoisonError::into_inner).insert(id, knock);
            }
            anyhow::Ok(())
        });
        let mut kill = || {
            for _ in 0..20 {
                let moment = RandomState::new().build_hasher().finish() % 60_000;
                sleep(Duration::from_micros(moment));
                scene.server.kill9()?;
                scene.server.start()?;
            }
            anyhow::Ok(())
        };
        let killed = kill();
        stop.store(true, Ordering::Relaxed);
        killed.and(load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    outcome.with_context(|| scene.server.account())?;
    ensure_daemon_and_kernel_agree(&scene)?;
    ensure!(scene.server.grants()?.len() > 20, "there was no load: {}", scene.server.account());
    scene.server.ensure_unharmed()?;
    scene.ensure_sees(&owner, Family::V4, WEB_PORT, PortState::Open)?;

    // What any of them has opened for opens nothing again.
    let mut knocks = knocks.into_inner().unwrap_or_else(PoisonError::into_inner);
    let opened = scene.server.audit("opened")?;
    let ids = opened.iter().filter_map(|line| line.split_whitespace().last());
    let again: Vec<_> = ids.filter_map(|id| knocks.remove(id)).collect();
    ensure!(again.len() > 20, "of the load {} were opened", again.len());
    scene.revoke_all()?;
    let replayed = scene.server.dropped("replay")?;
    for some in again.chunks(100) {
        scene.lab.other().send_udp_all(door, some)?;
    }
    scene.server.await_dropped("replay", replayed + u64::try_from(again.len())?)?;
    scene.ensure_shut()?;
    scene.ensure_owner_gets_in(Family::V4)
}

#[test]
fn a_damaged_list_of_grants_does_not_keep_the_daemon_from_starting() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.ensure_owner_gets_in(Family::V4)?;
    // The port is open a moment before that is written down, behind the line that the file begins with.
    let path = scene.server.configuration().state_directory.join("grants.log");
    let text = eventually("the grant is to be written down", || {
        let text = std::fs::read_to_string(&path)?;
        Ok((text.lines().count() > 1).then_some(text))
    })?;
    scene.server.kill9()?;
    std::fs::write(&path, format!("{text}{{ \"half a li"))?;
    scene.server.start()?;
    ensure!(scene.server.grants()?.len() == 1, "{:?}", scene.server.grants()?);
    scene.server.kill9()?;
    std::fs::write(&path, [0xff; 4096])?;
    scene.server.start()?;
    scene.server.ensure_unharmed()?;
    scene.ensure_owner_gets_in(Family::V6)
}
