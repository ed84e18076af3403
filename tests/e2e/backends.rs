//! The back-end changes while things are open: what is open stays open, and what is hidden is
//! hidden all the time.

use anyhow::{Result, ensure};
use spa_tests::{Backend, Family, Host, PortState, SSH_PORT, Scene, eventually};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

/// How long an attempt to get in waits: on this network an open port answers in much less.
const ATTEMPT: Duration = Duration::from_millis(20);

/// Who tries to get in again and again.
#[derive(Default)]
struct Stranger {
    attempts: AtomicU32,
    got_in: AtomicBool,
    goes_home: AtomicBool,
}

impl Stranger {
    fn tries(&self, from: &Host, door: SocketAddr) -> Result<()> {
        from.inside(|| {
            while !self.goes_home.load(Ordering::Acquire) {
                if TcpStream::connect_timeout(&door, ATTEMPT).is_ok() {
                    self.got_in.store(true, Ordering::Release);
                }
                self.attempts.fetch_add(1, Ordering::AcqRel);
            }
            Ok(())
        })
    }

    fn got_in(&self) -> bool {
        self.got_in.load(Ordering::Acquire)
    }

    /// Tries while `work` goes on.
    fn besets(
        &self,
        scene: &mut Scene,
        family: Family,
        work: impl FnOnce(&mut Scene) -> Result<()>,
    ) -> Result<()> {
        let (from, door) = (scene.lab.other().clone(), scene.lab.server().at(family, SSH_PORT));
        thread::scope(|scope| {
            let tries = scope.spawn(|| self.tries(&from, door));
            let before = self.attempts.load(Ordering::Acquire);
            let begun = eventually("the stranger is to begin", || {
                Ok((self.attempts.load(Ordering::Acquire) > before).then_some(()))
            });
            let done = begun.and_then(|()| work(scene));
            self.goes_home.store(true, Ordering::Release);
            let tried = tries.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            done.and(tried)
        })
    }
}

#[test]
fn another_backend_takes_over_without_a_gap() -> Result<()> {
    let mut scene = Scene::new()?;
    let owner = scene.lab.owner().clone();
    let mut sessions = Vec::new();
    for family in Family::BOTH {
        scene.knock(&owner, family, &scene.laptop.open("ssh").lifetime(3600).seal()?)?;
        scene.await_open(&owner, family, SSH_PORT)?;
        sessions.push(scene.sshd.session(&owner, family)?);
    }
    let hops = ["nftables", "iptables", "nftables", "ipset"].into_iter();
    for (backend, family) in hops.zip(Family::BOTH.into_iter().cycle()) {
        let stranger = Stranger::default();
        stranger.besets(&mut scene, family, |scene| {
            scene.server.reconfigure(|configuration| {
                configuration.gate.backend = Some(backend.into());
            })?;
            scene.server.restart()
        })?;
        ensure!(!stranger.got_in(), "{backend}: somebody slipped in by {family:?}");
        ensure!(scene.server.status()?.backend.to_string() == backend);
        ensure!(scene.server.grants()?.len() == 2, "{backend}: {:?}", scene.server.grants()?);
        for (family, session) in Family::BOTH.into_iter().zip(&mut sessions) {
            session.ensure_alive()?;
            scene.ensure_sees(&owner, family, SSH_PORT, PortState::Open)?;
            scene.ensure_sees(scene.lab.other(), family, SSH_PORT, PortState::Filtered)?;
        }
        let tables = scene.server.host().sh("nft list tables")?;
        let rules = scene.server.rules()?;
        let is_nftables = backend == "nftables";
        ensure!(tables.contains("table inet spa") == is_nftables, "{backend}: {tables}");
        ensure!(rules.contains("SPA-GUARD") != is_nftables, "{backend}: {rules}");
        let sets = scene.server.host().sh("ipset list -name")?;
        ensure!(sets.contains("spa4") == (backend == "ipset"), "{backend}: {sets}");
    }
    // The control: a stranger gets in where there is a gap.
    let stranger = Stranger::default();
    stranger.besets(&mut scene, Family::V4, |scene| {
        let removed = scene.server.admin(&["gate", "remove"])?;
        ensure!(removed.success(), "{removed}");
        eventually("the stranger is to get in", || Ok(stranger.got_in().then_some(())))
    })
}

#[test]
fn a_removal_takes_away_the_gate_of_every_backend_and_not_only_that_of_the_daemon() -> Result<()> {
    let mut scene = Scene::with(|configuration| Backend::NFTABLES.choose(configuration))?;
    let sees =
        |scene: &Scene, state| scene.ensure_sees(scene.lab.other(), Family::V4, SSH_PORT, state);
    sees(&scene, PortState::Filtered)?;
    scene.server.reconfigure(|configuration| {
        configuration.gate.backend = Some("dry-run".into());
    })?;
    scene.server.restart()?;
    let tables = || scene.server.host().sh("nft list tables");
    // The control: a daemon that only says what it would do leaves it where it is.
    ensure!(tables()?.contains("table inet spa"), "{}", tables()?);
    let removed = scene.server.admin(&["gate", "remove"])?;
    ensure!(removed.success() && removed.said().contains("as they were"), "{removed}");
    ensure!(removed.said().contains("restart of the daemon"), "{removed}");
    ensure!(!tables()?.contains("table inet spa"), "{}", tables()?);
    sees(&scene, PortState::Open)
}
