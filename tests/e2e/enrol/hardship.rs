//! Keys that are announced against the server's will, too often, or where nothing can be kept.

use super::{ensure_gets_in, ensure_kept_out, invite, join, laptop};
use anyhow::{Context, Result, ensure};
use spa_tests::{Capture, Family, PortState, Rotation, SSH_PORT, Scene, eventually};
use std::fs;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// What the limit of new keys lets through at once (`docs/decisions.md`).
const NEW_KEYS_AT_ONCE: usize = 3;

/// Lets everything end that somebody has open: who is kept out has to see it.
fn shut(scene: &Scene) -> Result<()> {
    scene.revoke_all()?;
    for family in Family::BOTH {
        scene.await_state(scene.lab.owner(), family, SSH_PORT, PortState::Filtered)?;
    }
    Ok(())
}

fn announced_keys(scene: &Scene) -> Result<usize> {
    Ok(scene.server.audit("rotation-announced")?.len())
}

#[test]
fn who_floods_rotations_with_a_stolen_key_is_locked_out_all_the_same() -> Result<()> {
    let mut scene = Scene::new()?;
    let (began, thief) = (Instant::now(), scene.lab.other().clone());
    let server = scene.server_identity.public();
    // From key to key, as fast as it goes.
    let mut rotations: Vec<Rotation> = Vec::new();
    for number in 1..=NEW_KEYS_AT_ONCE {
        let before = rotations.last().map_or(&scene.identity, |rotation| &rotation.next);
        let rotation = before.rotation(server)?;
        scene.knock(&thief, Family::V4, &rotation.seal()?)?;
        eventually("the new key is to be known", || {
            Ok((announced_keys(&scene)? == number).then_some(()))
        })?;
        scene.knock(&thief, Family::V4, &rotation.next.device(server)?.open("ssh").seal()?)?;
        eventually("the new key is to take the old one's place", || {
            Ok((scene.server.audit("rotated")?.len() == number).then_some(()))
        })?;
        rotations.push(rotation);
    }
    let last = &rotations.last().context("there are some")?.next;
    let flood = (0..400).map(|_| last.rotation(server)?.seal()).collect::<Result<Vec<_>>>()?;
    let (door, over) = (scene.door(Family::V4), AtomicBool::new(false));

    let (accepted, records) = thread::scope(|scope| {
        let flooding = scope.spawn(|| {
            thief.inside(|| {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                for datagram in flood.iter().cycle().take_while(|_| !over.load(Ordering::Relaxed)) {
                    socket.send_to(datagram, door)?;
                }
                Ok(())
            })
        });
        let disabled = (|| {
            eventually("the flood is to arrive", || {
                Ok((scene.server.dropped("rate")? >= 200).then_some(()))
            })?;
            let ordered = Instant::now();
            scene.server.admin(&["client", "disable", "laptop"])?.ok()?;
            let took = ordered.elapsed();
            ensure!(took < Duration::from_secs(10), "it took {took:?}\n{}", scene.server.account());
            let accepted = scene.server.status()?.accepted;
            let records = fs::read(scene.server.enrolments())?;
            // It goes on all the while.
            let dropped = scene.server.dropped("disabled")?;
            eventually("the flood is to be refused", || {
                Ok((scene.server.dropped("disabled")? >= dropped + 1000).then_some(()))
            })?;
            Ok((accepted, records))
        })();
        over.store(true, Ordering::Relaxed);
        let flooded = flooding.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        flooded.and(disabled)
    })?;
    // What comes behind all of it, and is not lost in it; the daemon has to see it.
    eventually("all of the flood is to be seen", || {
        let mut broken = last.device(server)?.open("ssh").seal()?;
        broken.last_mut().into_iter().for_each(|byte| *byte ^= 1);
        scene.knock(&thief, Family::V4, &broken)?;
        Ok((scene.server.dropped("mac")? > 0).then_some(()))
    })?;
    ensure!(scene.server.status()?.accepted == accepted, "{}", scene.server.account());
    ensure!(fs::read(scene.server.enrolments())? == records, "the records have changed");
    // One more for each minute that this has taken.
    let most = NEW_KEYS_AT_ONCE + usize::try_from(began.elapsed().as_secs() / 60)?;
    let (keys, lines) =
        (announced_keys(&scene)?, records.split_inclusive(|it| *it == b'\n').count());
    ensure!(keys <= most, "{keys} new keys, {most} are the limit");
    ensure!(lines <= 1 + 2 * keys, "{lines} records of {keys} keys");
    let refused = scene.server.audit("refused")?;
    ensure!(refused.len() < 20, "the flood fills the log: {refused:?}");
    scene.server.ensure_unharmed()?;

    // With the last of his keys he is out; enabled again, he would not be.
    let knock = || last.device(server)?.open("ssh").seal();
    let dropped = scene.server.dropped("disabled")?;
    scene.knock(&thief, Family::V4, &knock()?)?;
    scene.server.await_dropped("disabled", dropped + 1)?;
    scene.ensure_shut()?;
    scene.server.admin(&["client", "enable", "laptop"])?.ok()?;
    scene.knock(&thief, Family::V4, &knock()?)?;
    scene.await_open(&thief, Family::V4, SSH_PORT)
}

#[test]
fn a_refused_announcement_that_others_repeat_costs_its_owner_nothing() -> Result<()> {
    let scene = Scene::new()?;
    let (owner, server) = (scene.lab.owner().clone(), scene.server_identity.public());
    let announce = |rotation: &Rotation| scene.knock(&owner, Family::V4, &rotation.seal()?);
    announce(&scene.identity.rotation(server)?)?;
    scene.server.await_accepted(1)?;
    let refused = scene.identity.rotation(server)?.seal()?;
    scene.knock(&owner, Family::V4, &refused)?;
    scene.server.await_dropped("rotation-pending", 1)?;
    // More than the limit of announcements has at once, by somebody who has seen it.
    for count in 1..=60 {
        scene.knock(scene.lab.other(), Family::V4, &refused)?;
        scene.server.await_dropped("replay", count)?;
    }
    ensure!(scene.server.dropped("rotation-pending")? == 1, "{}", scene.server.account());

    scene.ensure_owner_gets_in(Family::V4)?;
    shut(&scene)?;
    scene.server.admin(&["client", "withdraw-key", "laptop"])?.ok()?;
    let rotation = scene.identity.rotation(server)?;
    announce(&rotation)?;
    eventually("the owner's own is to be accepted", || {
        Ok((announced_keys(&scene)? == 2).then_some(()))
    })
    .with_context(|| scene.server.account())?;
    scene.knock(&owner, Family::V4, &rotation.next.device(server)?.open("ssh").seal()?)?;
    scene.await_open(&owner, Family::V4, SSH_PORT)
}

#[test]
fn on_a_full_disk_nobody_enrols_and_who_has_a_key_gets_in() -> Result<()> {
    /// What a file system gives a file at a time.
    const PAGE: usize = 4096;
    let mut scene = Scene::prepared(|_| {})?;
    scene.server.with_tiny_disk(256)?;
    scene.server.start()?;
    let line = invite(&scene, "tablet", &[])?;
    // The next record has room for its beginning. (Empty lines say nothing.)
    scene.server.stop()?;
    let file = scene.server.enrolments();
    let mut padded = fs::read(&file)?;
    ensure!(padded.len() < PAGE - 100, "{} bytes", padded.len());
    padded.resize(PAGE - 100, b'\n');
    fs::write(&file, &padded)?;
    scene.server.start()?;
    scene.server.disk()?.fill()?;

    let tablet = laptop(&scene, "tablet");
    let refused = join(&tablet, &line, &["--timeout", "2s"])?;
    ensure!(refused.status.code() == Some(1), "{refused}");
    let told = scene.server.audit("failed")?;
    let told = told.first().with_context(|| scene.server.account())?;
    ensure!(told.contains("client=tablet") && told.contains("is the disk full"), "{told}");
    ensure!(fs::read(&file)? == padded, "something is left of a record");
    ensure!(scene.server.audit("enrolled")?.is_empty(), "{}", scene.server.account());
    for family in Family::BOTH {
        scene.ensure_owner_gets_in(family)?;
    }
    shut(&scene)?;
    ensure_kept_out(&scene, &tablet, "unknown-tag")?;

    // What could not be written down has cost nothing.
    scene.server.disk()?.free()?;
    join(&tablet, &line, &["--timeout", "10s"])?.ok().with_context(|| scene.server.account())?;
    ensure!(scene.server.audit("enrolled")?.len() == 1, "{}", scene.server.account());
    ensure_gets_in(&scene, &tablet)?;
    scene.server.kill9()?;
    scene.server.start()?;
    let log = scene.server.log()?;
    ensure!(!log.contains("was damaged"), "{log}");
    ensure_gets_in(&scene, &tablet)
}

#[test]
fn damaged_records_of_keys_are_told_and_keep_out_whom_they_named() -> Result<()> {
    let mut scene = Scene::new()?;
    let tablet = laptop(&scene, "tablet");
    join(&tablet, &invite(&scene, "tablet", &[])?, &[])?.ok()?;
    let file = scene.server.enrolments();
    let whole = fs::read(&file)?;
    let mut damaged = whole.clone();
    let at = damaged.len() - 20;
    damaged[at] ^= 1;

    // The daemon knows better than the file, and says so.
    for content in [Some(&damaged), None] {
        match content {
            Some(content) => fs::write(&file, content)?,
            None => fs::remove_file(&file)?,
        }
        let refused = scene.server.admin(&["reload"])?;
        ensure!(refused.status.code() == Some(1), "{refused}");
        let says = |words| refused.stderr.contains(words);
        ensure!(says("enrolments") && says("restart the server"), "{refused}");
        ensure_gets_in(&scene, &tablet)?;
        scene.ensure_owner_gets_in(Family::V4)?;
        shut(&scene)?;
    }
    // Whoever is to be locked out does not wait for that.
    let disabled = scene.server.admin(&["client", "disable", "tablet"])?;
    ensure!(disabled.stderr.contains("locked out all the same: tablet"), "{disabled}");
    ensure_kept_out(&scene, &tablet, "disabled")?;
    scene.ensure_owner_gets_in(Family::V4)?;
    shut(&scene)?;
    fs::write(&file, &whole)?;
    scene.server.admin(&["client", "enable", "tablet"])?.ok()?;
    ensure_gets_in(&scene, &tablet)?;

    fs::write(&file, &damaged)?;
    scene.server.restart()?;
    let log = scene.server.log()?;
    ensure!(log.contains("was damaged, 1 of its lines"), "{log}");
    ensure!(log.contains("invite those clients again"), "{log}");
    scene.ensure_owner_gets_in(Family::V4)?;
    shut(&scene)?;
    ensure_kept_out(&scene, &tablet, "unknown-tag")?;
    scene.server.admin(&["reload"])?.ok()?;
    scene.server.admin(&["client", "remove", "tablet"])?.ok()?;
    fs::remove_dir_all(tablet.configuration())?;
    join(&tablet, &invite(&scene, "tablet", &[])?, &[])?.ok()?;
    ensure_gets_in(&scene, &tablet)
}

/// Whoever has recorded all that a new client sends, until it has its next key, can do nothing with it.
#[test]
fn a_recorded_enrolment_and_rotation_do_nothing_also_after_a_crash() -> Result<()> {
    let mut scene = Scene::new()?;
    let port = scene.door(Family::V4).port();
    let wire = Capture::on(scene.lab.server(), &format!("udp dst port {port}"))?;
    let tablet = laptop(&scene, "tablet");
    join(&tablet, &invite(&scene, "tablet", &[])?, &[])?.ok()?;
    tablet.run(&["rotate"])?.ok()?;
    ensure!(scene.server.audit("rotated")?.len() == 1, "{}", scene.server.account());
    let packets = wire.packets()?;
    let recorded: Vec<_> =
        packets.iter().filter_map(|it| it.datagram_to(port)).map(<[u8]>::to_vec).collect();
    ensure!(
        u64::try_from(recorded.len())? >= scene.server.status()?.accepted,
        "{}",
        recorded.len()
    );
    let told = |scene: &Scene| {
        ["enrolled", "rotation-announced", "rotated"]
            .map(|event| scene.server.audit(event).map_or(0, |lines| lines.len()))
    };
    let before = told(&scene);
    ensure!(before.iter().all(|count| *count > 0), "{before:?}");
    let count = u64::try_from(recorded.len())?;
    for crashes in [false, true] {
        if crashes {
            scene.server.kill9()?;
            scene.server.start()?;
        }
        shut(&scene)?;
        let (accepted, dropped) = (scene.server.status()?.accepted, scene.server.dropped_in_all()?);
        scene.lab.other().send_udp_all(scene.door(Family::V4), &recorded)?;
        eventually("all of it is to be dropped", || {
            Ok((scene.server.dropped_in_all()? >= dropped + count).then_some(()))
        })
        .with_context(|| scene.server.account())?;
        ensure!(scene.server.status()?.accepted == accepted, "{}", scene.server.account());
        scene.ensure_shut()?;
    }
    ensure!(told(&scene) == before, "{before:?}, {:?}", told(&scene));
    ensure_gets_in(&scene, &tablet)
}
