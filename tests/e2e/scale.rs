//! How fast a knock opens, with one client and with ten thousand. The figures are printed; what
//! is asserted is only what no machine that runs tests should miss.

use anyhow::{Result, ensure};
use spa_tests::{
    Client, Device, Family, Identity, Latencies, PortState, Scene, WEB_PORT, eventually, report,
    time_to_open,
};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::scope;
use std::time::{Duration, Instant};

/// One measurement at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// A figure beyond this is a fault, not a slow machine.
const BOUND: Duration = Duration::from_millis(500);

/// Knocks so many times, one after the other; each time the port was closed before.
fn measure(scene: &Scene, device: &Device, family: Family, count: usize) -> Result<Latencies> {
    let owner = scene.lab.owner();
    let web = scene.lab.server().at(family, WEB_PORT);
    let mut times = Vec::new();
    for _ in 0..count {
        let knock = device.open("web").seal()?;
        times.push(time_to_open(owner, &knock, scene.door(family), web)?);
        scene.revoke_all()?;
        eventually("the port is to be closed again", || {
            Ok(scene.server.elements()?.is_empty().then_some(()))
        })?;
    }
    ensure!(owner.tcp(web)? == PortState::Filtered, "the port is not closed between the knocks");
    Ok(Latencies::new(times))
}

#[test]
fn a_knock_opens_within_milliseconds() -> Result<()> {
    let _alone = ALONE.lock();
    let scene = Scene::new()?;
    for family in Family::BOTH {
        let latencies = measure(&scene, &scene.laptop, family, 50)?;
        report(format_args!("knock to open, {family:?}: {latencies}"));
        ensure!(latencies.median() < BOUND, "{latencies}");
    }
    Ok(())
}

const CLIENTS: usize = 10_000;

/// A scene with so many clients, not started, and the keys of all but the laptop.
fn ten_thousand() -> Result<(Scene, Vec<Identity>)> {
    let mut scene = Scene::prepared(|_| {})?;
    let mut identities = Vec::new();
    for _ in 1..CLIENTS {
        identities.push(Identity::generate()?);
    }
    scene.server.reconfigure(|configuration| {
        for (number, identity) in identities.iter().enumerate() {
            configuration.clients.push(Client {
                name: format!("client-{number}"),
                public_key: identity.public().to_string(),
                allow: vec!["ssh".into(), "web".into()],
                ..Client::default()
            });
        }
    })?;
    Ok((scene, identities))
}

#[test]
fn ten_thousand_clients_start_at_once_and_knock_as_fast() -> Result<()> {
    let _alone = ALONE.lock();
    let (mut scene, mut identities) = ten_thousand()?;
    let start = Instant::now();
    scene.server.start()?;
    let started = start.elapsed();
    report(format_args!("start with {CLIENTS} clients: {} ms", started.as_millis()));
    ensure!(started < Duration::from_secs(15), "the start took {started:?}");
    let status = scene.server.status()?;
    ensure!(status.clients.total == 10_000, "{:?}", status.clients);

    let latencies = measure(&scene, &scene.laptop, Family::V4, 50)?;
    report(format_args!("knock to open with {CLIENTS} clients: {latencies}"));
    ensure!(latencies.median() < BOUND, "{latencies}");
    // The last one of them is one of them.
    let last = identities.pop().map(|identity| identity.device(scene.server_identity.public()));
    let Some(last) = last.transpose()? else { anyhow::bail!("there are no clients") };
    let latencies = measure(&scene, &last, Family::V6, 5)?;
    ensure!(latencies.median() < BOUND, "{latencies}");
    Ok(())
}

#[test]
fn ten_thousand_clients_are_reloaded_while_others_knock() -> Result<()> {
    let _alone = ALONE.lock();
    let (mut scene, identities) = ten_thousand()?;
    scene.server.start()?;
    let (owner, web) = (scene.lab.owner(), scene.lab.server().at(Family::V4, WEB_PORT));
    let rounds = AtomicUsize::new(0);
    let (reloaded, times) = scope(|scope| {
        let reloads = scope.spawn(|| {
            for reloads in 1.. {
                scene.server.admin(&["reload"])?.ok()?;
                if reloads >= 3 && rounds.load(Ordering::Relaxed) >= 5 {
                    break;
                }
            }
            anyhow::Ok(())
        });
        let mut times = Vec::new();
        let mut knocks = || {
            while !reloads.is_finished() {
                let close = scene.laptop.close("web").seal()?;
                let open = scene.laptop.open("web").seal()?;
                times.push(time_to_open(owner, &open, scene.door(Family::V4), web)?);
                scene.knock(owner, Family::V4, &close)?;
                owner.await_state(web, PortState::Filtered)?;
                rounds.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        };
        let knocked = knocks();
        let reloaded = reloads.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (reloaded.and(knocked), times)
    });
    reloaded.map_err(|error| error.context(scene.server.account()))?;
    let latencies = Latencies::new(times);
    report(format_args!("knock to open while {CLIENTS} clients are reloaded: {latencies}"));
    ensure!(latencies.median() < BOUND, "{latencies}");
    ensure!(scene.server.status()?.clients.total == 10_000);
    let last = identities.last().map(|identity| identity.device(scene.server_identity.public()));
    let Some(last) = last.transpose()? else { anyhow::bail!("there are no clients") };
    measure(&scene, &last, Family::V6, 1)?;
    Ok(())
}
