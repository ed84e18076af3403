//! How fast a knock opens, with one client and with ten thousand. The figures are printed; what
//! is asserted is only what no machine that runs tests should miss.

use anyhow::{Context, Result, ensure};
use spa_tests::{
    Client, Device, Family, Host, Identity, Latencies, PortState, Rate, SSH_PORT, Scene, WEB_PORT,
    eventually, report, time_to_open,
};
use std::panic::resume_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{ScopedJoinHandle, scope, sleep};
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
                rate: Some(Rate { per_minute: 6000, burst: 5000 }),
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

/// Somebody who opens and closes again and again while something else goes on.
struct Regular<'a> {
    host: &'a Host,
    family: Family,
    device: Device,
    item: &'static str,
    port: u16,
}

impl Regular<'_> {
    /// Until it is over; how long each knock took.
    fn come_and_go(
        &self,
        scene: &Scene,
        rounds: &AtomicUsize,
        is_over: impl Fn() -> bool,
    ) -> Result<Vec<Duration>> {
        let target = scene.lab.server().at(self.family, self.port);
        let mut times = Vec::new();
        while !is_over() {
            let close = self.device.close(self.item).seal()?;
            let open = self.device.open(self.item).seal()?;
            times.push(time_to_open(self.host, &open, scene.door(self.family), target)?);
            scene.knock(self.host, self.family, &close)?;
            self.host.await_state(target, PortState::Filtered)?;
            rounds.fetch_add(1, Ordering::Relaxed);
        }
        Ok(times)
    }
}

/// One datagram of each kind of noise that reaches the daemon, or its prefilter, with the reason for
/// which it is dropped.
fn noise(scene: &Scene) -> Result<[(&'static str, Vec<u8>); 4]> {
    let accepted = scene.laptop.open("web").seal()?;
    scene.knock(scene.lab.owner(), Family::V4, &accepted)?;
    scene.server.await_accepted(1)?;
    scene.revoke_all()?;
    let mut broken = scene.laptop.open("web").seal()?;
    if let Some(last) = broken.last_mut() {
        *last ^= 1;
    }
    let stale = scene.laptop.with_clock_ahead(-100).open("web").seal()?;
    let unknown = vec![0x5a; accepted.len()];
    Ok([("replay", accepted), ("mac", broken), ("too-old", stale), ("unknown-tag", unknown)])
}

#[test]
fn ten_thousand_clients_are_reloaded_amid_noise_while_others_knock() -> Result<()> {
    const RELOADS: usize = 3;
    const ROUNDS: usize = 15;
    let _alone = ALONE.lock();
    let (mut scene, identities) = ten_thousand()?;
    scene.server.start()?;
    let server = scene.server_identity.public();
    let device = |number: usize| -> Result<Device> {
        identities.get(number).context("there are as many")?.device(server)
    };
    let (owner, third) = (scene.lab.owner(), scene.lab.third());
    let regulars = [
        Regular {
            host: owner,
            family: Family::V4,
            device: scene.laptop.clone(),
            item: "web",
            port: WEB_PORT,
        },
        Regular {
            host: owner,
            family: Family::V6,
            device: device(0)?,
            item: "ssh",
            port: SSH_PORT,
        },
        Regular {
            host: third,
            family: Family::V4,
            device: device(5_000)?,
            item: "ssh",
            port: SSH_PORT,
        },
        Regular {
            host: third,
            family: Family::V6,
            device: device(CLIENTS - 2)?,
            item: "web",
            port: WEB_PORT,
        },
    ];
    let noise = noise(&scene)?;
    let datagrams: Vec<_> = noise.iter().map(|(_, datagram)| datagram.clone()).collect();
    let rounds = AtomicUsize::new(0);
    let is_over = AtomicBool::new(false);
    let (reloaded, came, sent) = scope(|scope| {
        let (scene, rounds, is_over) = (&scene, &rounds, &is_over);
        let noisy = scope.spawn(|| {
            let mut sent = 0_u64;
            while !is_over.load(Ordering::Relaxed) {
                scene.lab.other().send_udp_all(scene.door(Family::V4), &datagrams)?;
                sent += 1;
                sleep(Duration::from_millis(2));
            }
            anyhow::Ok(sent)
        });
        let regulars = regulars.iter().map(|regular| {
            scope.spawn(|| regular.come_and_go(scene, rounds, || is_over.load(Ordering::Relaxed)))
        });
        let regulars: Vec<_> = regulars.collect();
        let reload = |reloads: usize| -> Result<bool> {
            scene.server.admin(&["reload"])?.ok()?;
            // Whoever has failed comes no more.
            let go_on = regulars.iter().all(|regular| !regular.is_finished());
            Ok(go_on && (reloads < RELOADS || rounds.load(Ordering::Relaxed) < ROUNDS))
        };
        let mut reloads = 1;
        let reloaded = loop {
            match reload(reloads) {
                Ok(true) => reloads += 1,
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        is_over.store(true, Ordering::Relaxed);
        let came: Vec<_> = regulars.into_iter().map(ScopedJoinHandle::join).collect();
        (reloaded, came, noisy.join())
    });
    reloaded.with_context(|| scene.server.account())?;
    for (came, regular) in came.into_iter().zip(&regulars) {
        let times = came.unwrap_or_else(|panic| resume_unwind(panic));
        let latencies = Latencies::new(times.with_context(|| scene.server.account())?);
        let Regular { item, family, .. } = regular;
        report(format_args!(
            "knock to open {item} by {family:?} while {CLIENTS} clients are reloaded amid noise: {latencies}"
        ));
        ensure!(latencies.median() < BOUND, "{latencies}");
    }
    let sent = sent.unwrap_or_else(|panic| resume_unwind(panic))?;
    // The control: it was noise of each kind, and it has come.
    eventually("noise is to be dropped", || {
        Ok((scene.server.dropped_in_all()? > sent * 2).then_some(()))
    })
    .with_context(|| scene.server.account())?;
    for (reason, _) in &noise {
        ensure!(scene.server.dropped(reason)? > 0, "{reason}: {}", scene.server.account());
    }
    let status = scene.server.status()?;
    ensure!(status.clients.total == 10_000 && status.failed == 0, "{}", scene.server.account());
    scene.ensure_sees(scene.lab.other(), Family::V4, WEB_PORT, PortState::Filtered)?;
    scene.server.ensure_unharmed()
}
