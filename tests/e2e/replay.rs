//! A knock that was accepted once opens nothing again, whatever happens to the daemon, its state
//! and its clock in between.
//!
//! Every test takes the owner's knock off the wire, as an eavesdropper would, and sends the same
//! bytes again. Each ends with the positive control: the owner still gets in.

use anyhow::{Context, Result, ensure};
use spa_server::replay_store::{BootId, FileStore, Mark, ReplayStore, Snapshot};
use spa_tests::{
    Capture, Clock, DEADLINE, Device, Family, Host, PortState, SSH_PORT, Scene, at_once,
    eventually, eventually_within,
};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// A short freshness window, because barriers are waited for; not so short that a slow machine
/// waits for one unknowingly.
const WINDOW: Duration = Duration::from_secs(15);

/// A running server that has accepted one knock, which was closed again, and what an
/// eavesdropper has of it.
fn after_one_knock(prepare: impl FnOnce(&mut Scene) -> Result<()>) -> Result<(Scene, Vec<u8>)> {
    // For a moment after its clock was set, the kernel would take for noise what the daemon is to judge.
    after_one_knock_with("off", prepare)
}

fn after_one_knock_with(
    prefilter: &str,
    prepare: impl FnOnce(&mut Scene) -> Result<()>,
) -> Result<(Scene, Vec<u8>)> {
    let mut scene = Scene::prepared(|configuration| {
        configuration.freshness = "15s".into();
        configuration.prefilter = prefilter.into();
    })?;
    prepare(&mut scene)?;
    scene.server.start()?;
    let wire = Capture::on(scene.lab.server(), "udp port 62201")?;
    scene.ensure_owner_gets_in(Family::V4)?;
    let stolen = wire.await_datagram(62201)?;
    scene.revoke_all()?;
    scene.ensure_shut()?;
    Ok((scene, stolen))
}

/// The same with a clock of the server's own.
fn after_one_knock_with_clock() -> Result<(Scene, Vec<u8>, Clock)> {
    after_one_knock_with_clock_and("off")
}

fn after_one_knock_with_clock_and(prefilter: &str) -> Result<(Scene, Vec<u8>, Clock)> {
    let mut clock = None;
    let (scene, stolen) = after_one_knock_with(prefilter, |scene| {
        clock = Some(scene.server.with_clock()?);
        Ok(())
    })?;
    Ok((scene, stolen, clock.context("the server has no clock")?))
}

/// Sends the stolen bytes and expects them to be dropped as `reason`, and nothing to open or to
/// be answered.
fn ensure_dropped_as(scene: &Scene, stolen: &[u8], reason: &str) -> Result<()> {
    let wire = Capture::of_answers(scene.lab.server())?;
    let before = scene.server.dropped(reason)?;
    scene.knock(scene.lab.owner(), Family::V4, stolen)?;
    scene.server.await_dropped(reason, before + 1)?;
    scene.ensure_shut()?;
    wire.ensure_silence_of(scene.lab.server())
}

/// Sends the stolen bytes and expects them to be dropped, and nothing to open. Which of the
/// checks is the first to fail depends on how much time has passed.
fn ensure_dropped(scene: &Scene, stolen: &[u8]) -> Result<()> {
    let wire = Capture::of_answers(scene.lab.server())?;
    let before = scene.server.dropped_in_all()?;
    scene.knock(scene.lab.owner(), Family::V4, stolen)?;
    eventually("the replay is to be dropped", || {
        Ok((scene.server.dropped_in_all()? > before).then_some(()))
    })
    .with_context(|| scene.server.account())?;
    scene.ensure_shut()?;
    wire.ensure_silence_of(scene.lab.server())
}

/// Knocks afresh from the owner's host until `ssh` is open.
fn await_owner_gets_in(scene: &Scene, device: &Device) -> Result<()> {
    let ssh = scene.lab.server().at(Family::V4, SSH_PORT);
    eventually_within(WINDOW + DEADLINE, "the owner is to get in", || {
        scene.knock(scene.lab.owner(), Family::V4, &device.open("ssh").seal()?)?;
        Ok((scene.lab.owner().tcp(ssh)? == PortState::Open).then_some(()))
    })
    .with_context(|| scene.server.account())
}

#[test]
fn replay_at_once_opens_nothing() -> Result<()> {
    let (scene, stolen) = after_one_knock(|_| Ok(()))?;
    ensure_dropped_as(&scene, &stolen, "replay")?;
    scene.ensure_owner_gets_in(Family::V4)
}

/// Sends 200 copies from eight sockets at once.
fn send_two_hundred(scene: &Scene, from: &Host, datagram: &[u8]) -> Result<()> {
    let copies = vec![datagram.to_vec(); 25];
    at_once(0..8, |_| from.send_udp_all(scene.door(Family::V4), &copies))?;
    Ok(())
}

#[test]
fn replay_two_hundred_times_in_parallel_opens_nothing() -> Result<()> {
    let (scene, stolen) = after_one_knock(|_| Ok(()))?;
    send_two_hundred(&scene, scene.lab.other(), &stolen)?;
    scene.server.await_dropped("replay", 200)?;
    scene.ensure_shut()?;
    scene.ensure_owner_gets_in(Family::V4)
}

#[test]
fn one_knock_sent_two_hundred_times_in_parallel_opens_once() -> Result<()> {
    let scene = Scene::new()?;
    send_two_hundred(&scene, scene.lab.owner(), &scene.laptop.open("ssh").seal()?)?;
    scene.await_open(scene.lab.owner(), Family::V4, SSH_PORT)?;
    scene.server.await_dropped("replay", 199)?;
    scene.server.await_accepted(1)?;
    ensure!(scene.server.audit("opened")?.len() == 1, "{}", scene.server.account());
    Ok(())
}

#[test]
fn replay_from_another_address_opens_nothing() -> Result<()> {
    let (scene, stolen) = after_one_knock(|_| Ok(()))?;
    scene.knock(scene.lab.other(), Family::V4, &stolen)?;
    scene.knock(scene.lab.other(), Family::V6, &stolen)?;
    scene.knock_as("203.0.113.9:4000".parse()?, &stolen)?;
    scene.knock_as("[2001:db8::9]:4000".parse()?, &stolen)?;
    scene.server.await_dropped("replay", 4)?;
    scene.ensure_shut()?;
    scene.ensure_owner_gets_in(Family::V4)
}

#[test]
fn replay_after_a_restart_opens_nothing() -> Result<()> {
    let (mut scene, stolen) = after_one_knock(|_| Ok(()))?;
    scene.server.restart()?;
    ensure!(scene.server.status()?.barrier_until.is_none(), "a barrier after a clean stop");
    ensure_dropped_as(&scene, &stolen, "replay")?;
    scene.ensure_owner_gets_in(Family::V4)
}

#[test]
fn replay_after_kill_9_opens_nothing() -> Result<()> {
    let (mut scene, stolen) = after_one_knock(|_| Ok(()))?;
    for _ in 0..3 {
        scene.server.kill9()?;
        scene.server.start()?;
        ensure_dropped_as(&scene, &stolen, "replay")?;
    }
    // The kernel has kept what the killed process had written: there is no price to pay.
    scene.ensure_owner_gets_in(Family::V4)
}

#[test]
fn replay_of_knocks_that_opened_just_before_kill_9_opens_nothing() -> Result<()> {
    let mut scene = Scene::new()?;
    let mut stolen = Vec::new();
    for round in 0..8 {
        let knock = scene.laptop.open("ssh").seal()?;
        scene.knock(scene.lab.owner(), Family::V4, &knock)?;
        scene.await_open(scene.lab.owner(), Family::V4, SSH_PORT)?;
        scene.server.kill9()?;
        stolen.push(knock);
        scene.server.start()?;
        scene.revoke_all()?;
        scene.lab.other().send_udp_all(scene.door(Family::V4), &stolen)?;
        scene.server.await_dropped("replay", round + 1)?;
        let elements = scene.server.elements()?;
        ensure!(elements.is_empty(), "in round {round} the kernel admits {elements:?}");
    }
    scene.ensure_owner_gets_in(Family::V4)
}

/// Does something to the store of a stopped server. After the start a barrier has to keep the
/// stolen knock out until it is too old anyway, and the owner too, but for no longer than W.
fn barrier_holds_and_ends_after(damage: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let (mut scene, stolen) = after_one_knock(|_| Ok(()))?;
    scene.server.stop()?;
    damage(&scene.server.replay_store())?;
    scene.server.start()?;
    let status = scene.server.status()?;
    let until = status.barrier_until.context("no barrier stands")?;
    ensure!(until > status.started, "the barrier lies in the past: {status:?}");

    ensure_dropped(&scene, &stolen)?;
    let barred = scene.server.dropped("barrier")?;
    scene.knock(scene.lab.owner(), Family::V4, &scene.laptop.open("ssh").seal()?)?;
    scene.server.await_dropped("barrier", barred + 1)?;
    // It outlives a clean restart: else two restarts would do what one must not.
    scene.server.restart()?;
    ensure!(scene.server.status()?.barrier_until == Some(until), "{:?}", scene.server.status()?);
    ensure_dropped(&scene, &stolen)?;

    scene.server.await_barrier_end(WINDOW)?;
    scene.ensure_owner_gets_in(Family::V4)?;
    scene.revoke_all()?;
    ensure_dropped(&scene, &stolen)
}

#[test]
fn replay_with_the_state_deleted_opens_nothing() -> Result<()> {
    barrier_holds_and_ends_after(|store| Ok(fs::remove_file(store)?))
}

#[test]
fn replay_with_the_state_truncated_opens_nothing() -> Result<()> {
    barrier_holds_and_ends_after(|store| {
        let bytes = fs::read(store)?;
        Ok(fs::write(store, &bytes[..bytes.len() - 1])?)
    })
}

#[test]
fn replay_with_the_state_emptied_opens_nothing() -> Result<()> {
    barrier_holds_and_ends_after(|store| Ok(fs::write(store, b"")?))
}

#[test]
fn replay_with_the_state_filled_with_noise_opens_nothing() -> Result<()> {
    barrier_holds_and_ends_after(|store| {
        let noise: Vec<u8> = (0..5000_u32)
            .flat_map(|number| number.wrapping_mul(2_654_435_761).to_be_bytes())
            .collect();
        Ok(fs::write(store, noise)?)
    })
}

#[test]
fn replay_with_the_state_replaced_by_a_directory_opens_nothing() -> Result<()> {
    let (mut scene, stolen) = after_one_knock(|_| Ok(()))?;
    scene.server.stop()?;
    let store = scene.server.replay_store();
    fs::remove_file(&store)?;
    fs::create_dir(&store)?;
    nothing_opens_while_the_store_cannot_be_written(&mut scene, &stolen)?;
    fs::remove_dir(&store)?;
    scene.server.start()?;
    scene.server.await_barrier_end(WINDOW)?;
    scene.ensure_owner_gets_in(Family::V4)
}

#[test]
fn replay_after_a_power_failure_opens_nothing() -> Result<()> {
    // The store says that it was in use when another boot ended, and has lost its last writes.
    barrier_holds_and_ends_after(|store| {
        let (mut lost, _, _) = FileStore::load(store, BootId([7; 16]));
        Ok(lost.rewrite(&Snapshot::default(), Mark::InUse)?)
    })
}

#[test]
fn no_barrier_stands_after_a_clean_stop_and_a_reboot() -> Result<()> {
    let (mut scene, stolen) = after_one_knock(|_| Ok(()))?;
    scene.server.stop()?;
    let (mut store, snapshot, _) = FileStore::load(&scene.server.replay_store(), BootId([7; 16]));
    store.rewrite(&snapshot, Mark::Clean)?;
    scene.server.start()?;
    ensure!(scene.server.status()?.barrier_until.is_none(), "{:?}", scene.server.status()?);
    ensure_dropped_as(&scene, &stolen, "replay")?;
    scene.ensure_owner_gets_in(Family::V4)
}

#[test]
fn state_deleted_under_the_running_daemon_opens_nothing_after_a_crash() -> Result<()> {
    let (mut scene, stolen) = after_one_knock(|_| Ok(()))?;
    fs::remove_file(scene.server.replay_store())?;
    ensure_dropped_as(&scene, &stolen, "replay")?;
    scene.server.kill9()?;
    scene.server.start()?;
    // Either the daemon had written it anew in time, or a barrier stands now.
    ensure_dropped(&scene, &stolen)?;
    scene.server.await_barrier_end(WINDOW)?;
    scene.ensure_owner_gets_in(Family::V4)
}

#[test]
fn on_a_full_disk_nothing_opens_and_the_log_says_so() -> Result<()> {
    let (scene, stolen) = after_one_knock(|scene| scene.server.with_tiny_disk(256).map(|_| ()))?;
    let disk = scene.server.disk()?;
    disk.fill()?;
    // As many as it takes to fill what is left of the store's last page.
    let failed = scene.server.status()?.failed;
    eventually("knocks are to fail on a full disk", || {
        scene.knock(scene.lab.owner(), Family::V4, &scene.laptop.open("ssh").seal()?)?;
        Ok((scene.server.status()?.failed > failed).then_some(()))
    })
    .with_context(|| scene.server.account())?;
    scene.revoke_all()?;
    let failing = scene.laptop.open("ssh").seal()?;
    let failed = scene.server.status()?.failed;
    scene.knock(scene.lab.owner(), Family::V4, &failing)?;
    eventually("the knock is to fail", || {
        Ok((scene.server.status()?.failed > failed).then_some(()))
    })?;
    scene.ensure_shut()?;
    let log = scene.server.log()?;
    ensure!(log.contains("replay store"), "the log does not tell of the store:\n{log}");
    ensure!(!scene.server.audit("failed")?.is_empty(), "{}", scene.server.account());
    ensure_dropped_as(&scene, &stolen, "replay")?;

    disk.free()?;
    await_owner_gets_in(&scene, &scene.laptop)?;
    scene.revoke_all()?;
    ensure_dropped_as(&scene, &stolen, "replay")
}

/// Starts the server, which may refuse. If it runs, then neither the stolen nor a fresh knock
/// may open anything.
fn nothing_opens_while_the_store_cannot_be_written(scene: &mut Scene, stolen: &[u8]) -> Result<()> {
    if scene.server.start().is_ok() {
        scene.knock(scene.lab.owner(), Family::V4, stolen)?;
        scene.knock(scene.lab.owner(), Family::V4, &scene.laptop.open("ssh").seal()?)?;
        eventually("both datagrams are to be seen", || {
            let status = scene.server.status()?;
            Ok((status.dropped.values().sum::<u64>() + status.failed >= 2).then_some(()))
        })
        .with_context(|| scene.server.account())?;
        scene.ensure_shut()?;
        scene.server.kill9()?;
    } else {
        scene.server.await_end()?;
        ensure!(scene.server.elements()?.is_empty(), "{:?}", scene.server.elements()?);
    }
    let log = scene.server.log()?;
    ensure!(log.contains("replay store"), "the log does not tell of the store:\n{log}");
    Ok(())
}

#[test]
fn with_the_state_read_only_nothing_opens() -> Result<()> {
    let (mut scene, stolen) =
        after_one_knock(|scene| scene.server.with_tiny_disk(256).map(|_| ()))?;
    scene.server.kill9()?;
    // Root writes to files that are read-only by their mode, so the file system has to be.
    scene.server.disk()?.set_read_only(true)?;
    nothing_opens_while_the_store_cannot_be_written(&mut scene, &stolen)?;
    scene.server.disk()?.set_read_only(false)?;
    scene.server.start()?;
    scene.server.await_barrier_end(WINDOW)?;
    scene.ensure_owner_gets_in(Family::V4)
}

/// Moves the clock of the running daemon, and of a restarted one, away and back.
fn replay_with_the_clock_moved(seconds: i64) -> Result<()> {
    let (mut scene, stolen, clock) = after_one_knock_with_clock()?;
    clock.set(seconds)?;
    ensure_dropped(&scene, &stolen)?;
    clock.set(0)?;
    ensure_dropped(&scene, &stolen)?;

    clock.set(seconds)?;
    scene.server.restart()?;
    ensure_dropped(&scene, &stolen)?;
    clock.set(0)?;
    scene.server.kill9()?;
    scene.server.start()?;
    ensure_dropped(&scene, &stolen)?;

    // A clock that went forward has put up a barrier.
    scene.server.await_barrier_end(WINDOW)?;
    let fresh = scene.laptop.open("ssh").seal()?;
    scene.knock(scene.lab.owner(), Family::V4, &fresh)?;
    scene.await_open(scene.lab.owner(), Family::V4, SSH_PORT)?;
    scene.revoke_all()?;
    ensure_dropped_as(&scene, &fresh, "replay")
}

#[test]
fn replay_with_the_clock_set_back_a_minute_and_forward_again_opens_nothing() -> Result<()> {
    replay_with_the_clock_moved(-60)
}

#[test]
fn replay_with_the_clock_set_back_an_hour_and_forward_again_opens_nothing() -> Result<()> {
    replay_with_the_clock_moved(-3_600)
}

#[test]
fn replay_with_the_clock_set_back_a_day_and_forward_again_opens_nothing() -> Result<()> {
    replay_with_the_clock_moved(-86_400)
}

#[test]
fn a_clock_that_steps_forward_puts_up_a_barrier_that_ends() -> Result<()> {
    let (scene, stolen, clock) = after_one_knock_with_clock()?;
    clock.set(3_600)?;
    let ahead = scene.laptop.with_clock_ahead(3_600);
    let barred = scene.server.dropped("barrier")?;
    scene.knock(scene.lab.owner(), Family::V4, &ahead.open("ssh").seal()?)?;
    scene.server.await_dropped("barrier", barred + 1)?;
    ensure_dropped(&scene, &stolen)?;
    let until = scene.server.status()?.barrier_until.context("status tells of no barrier")?;
    ensure!(until > ahead.now(), "the barrier lies in the past");
    await_owner_gets_in(&scene, &ahead)
}

/// What the kernel holds of tags is of another hour then.
#[test]
fn a_clock_that_was_set_is_noticed_where_noise_ends_in_the_kernel() -> Result<()> {
    let (scene, stolen, clock) = after_one_knock_with_clock_and("auto")?;
    for seconds in [3_600, -3_600] {
        clock.set(seconds)?;
        let device = scene.laptop.with_clock_ahead(seconds);
        let judged = || -> Result<u64> {
            let status = scene.server.status()?;
            Ok(status.accepted + status.dropped.values().sum::<u64>()
                - status.dropped["unknown-tag"])
        };
        let before = judged()?;
        eventually("a knock by the new time is to reach the daemon", || {
            scene.knock(scene.lab.owner(), Family::V4, &device.open("ssh").seal()?)?;
            Ok((judged()? > before).then_some(()))
        })?;
        ensure_dropped(&scene, &stolen)?;
    }
    Ok(())
}

/// The hard case. While the clock is an hour ahead, the owner's knocks push the floor up, and
/// all earlier knocks may be forgotten. Then the clock is right again, and the stolen one fresh.
#[test]
fn replay_after_the_clock_was_ahead_and_is_set_back_opens_nothing() -> Result<()> {
    let (mut scene, stolen, clock) = after_one_knock_with_clock()?;
    clock.set(3_600)?;
    await_owner_gets_in(&scene, &scene.laptop.with_clock_ahead(3_600))?;
    scene.revoke_all()?;
    clock.set(0)?;
    // The time that this took has made the stolen knock too old: have the server go with it.
    let passed = i64::try_from(WINDOW.as_secs())?;
    clock.set(-passed)?;
    ensure_dropped(&scene, &stolen)?;
    scene.server.restart()?;
    ensure_dropped(&scene, &stolen)?;
    clock.set(0)?;

    // The price: the owner is locked out too, until an administrator steps in.
    let fresh = scene.laptop.open("ssh").seal()?;
    ensure_dropped(&scene, &fresh)?;
    scene.server.reset_replay_windows()?;
    ensure_dropped(&scene, &stolen)?;
    ensure_dropped(&scene, &fresh)?;
    await_owner_gets_in(&scene, &scene.laptop)
}

#[test]
fn a_knock_that_an_observer_kept_back_opens_nothing_when_it_is_too_old() -> Result<()> {
    let (scene, _) = after_one_knock(|_| Ok(()))?;
    let kept_back = scene.laptop.with_clock_ahead(-16).open("ssh").seal()?;
    ensure_dropped_as(&scene, &kept_back, "too-old")?;
    scene.ensure_owner_gets_in(Family::V4)
}
