//! Somebody else takes the gate's rules away, as an administrator or another firewall does every
//! day. The gate stands again within a second, with the grants and what was left of their time; it
//! cuts who slipped in meanwhile, nobody else, and says so in the audit trail.

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use spa_tests::{
    ALLOWED_PORT, Backend, CONTAINER_PORT, Docker, Family, Firewalld, Heard, Host, NftablesService,
    Podman, PortState, Room, SavedRules, Scene, Service, Ssh, Talker, Talks, Ufw, at_once,
    eventually, eventually_within, report,
};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// In this time the gate stands again, on a machine that has nothing else to do,
const SOON: Duration = Duration::from_secs(1);
/// and on a busy one in that of so many looks more: it looks, reads, writes and reads back.
const LOOKS: u32 = 4;
/// In this time who slipped in is cut; that it is noticed takes longer.
const CUT: Duration = Duration::from_secs(2);
/// A besieger tries again after this time.
const HASTE: Duration = Duration::from_millis(20);
/// So many connections a besieger holds.
const HELD: usize = 8;
/// The service that talks. Its port is one that the firewalls of others let everybody in to: only
/// the gate hides it.
const TALK: &str = "talk";
const LIFETIME: u32 = 600;

/// What a disturbance does to a gate that nobody puts back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    /// Everybody gets in.
    Opens,
    /// The grants are gone; nobody gets in.
    Forgets,
    /// None, to these rules.
    None,
}

/// Does it; as often as it is called.
type Disturb<'a> = Box<dyn FnMut() -> Result<()> + 'a>;

/// A way in which somebody else disturbs.
struct Disturber {
    /// Starts what disturbs later.
    prepare: for<'a> fn(&'a Room) -> Result<Disturb<'a>>,
    harm: fn(Backend) -> Harm,
    legacy: bool,
}

fn nothing(_: Backend) -> Harm {
    Harm::None
}

/// Rules of iptables are gone, those of nftables not.
fn opens_tables(backend: Backend) -> Harm {
    if backend.in_iptables { Harm::Opens } else { Harm::None }
}

fn opens_all(_: Backend) -> Harm {
    Harm::Opens
}

/// Runs all of these lines, whatever they say, as an administrator's script does.
fn script<'a>(room: &'a Room, lines: &[&str]) -> Disturb<'a> {
    let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
    Box::new(move || lines.iter().try_for_each(|line| room.run(line).map(|_| ())))
}

const FLUSHES: [&str; 8] = [
    "iptables -t mangle -F",
    "iptables -F",
    "ip6tables -t mangle -F",
    "ip6tables -F",
    "iptables -t mangle -X",
    "iptables -X",
    "ip6tables -t mangle -X",
    "ip6tables -X",
];

const FLUSH: Disturber = Disturber {
    prepare: |room| Ok(script(room, FLUSHES.get(..4).unwrap_or_default())),
    harm: opens_tables,
    legacy: false,
};
const FLUSH_AND_DELETE: Disturber =
    Disturber { prepare: |room| Ok(script(room, &FLUSHES)), harm: opens_tables, legacy: false };
const LEGACY_FLUSH: Disturber = Disturber { legacy: true, ..FLUSH };
const LEGACY_FLUSH_AND_DELETE: Disturber = Disturber { legacy: true, ..FLUSH_AND_DELETE };
const ONLY_THE_JUMPS: Disturber = Disturber {
    prepare: |room| {
        let lines = ["iptables", "ip6tables"]
            .map(|tool| [format!("{tool} -t mangle -F PREROUTING"), format!("{tool} -F INPUT")]);
        let lines = lines.concat();
        let lines: Vec<_> = lines.iter().map(String::as_str).collect();
        Ok(script(room, &lines))
    },
    harm: opens_tables,
    legacy: false,
};
const NFT_FLUSH: Disturber = Disturber {
    prepare: |room| Ok(script(room, &["nft flush ruleset"])),
    harm: opens_all,
    legacy: false,
};
const IPSET_FLUSH: Disturber = Disturber {
    prepare: |room| Ok(script(room, &["ipset flush"])),
    harm: |backend| if backend == Backend::IPSET { Harm::Forgets } else { Harm::None },
    legacy: false,
};
const EVERYTHING: Disturber = Disturber {
    prepare: |room| Ok(script(room, &[&FLUSHES[..], &["ipset destroy"]].concat())),
    harm: opens_tables,
    legacy: false,
};
const UFW_RELOAD: Disturber = Disturber {
    prepare: |room| {
        let ufw = Ufw::enable(room, Ssh::Allowed)?;
        Ok(Box::new(move || ufw.reload()))
    },
    harm: nothing,
    legacy: false,
};
const UFW_OFF_AND_ON: Disturber = Disturber {
    prepare: |room| {
        let ufw = Ufw::enable(room, Ssh::Allowed)?;
        Ok(Box::new(move || ufw.disable().and_then(|()| ufw.again())))
    },
    harm: nothing,
    legacy: false,
};
/// firewalld flushes iptables too, though its own rules are in nftables.
const FIREWALLD_RELOAD: Disturber = Disturber {
    prepare: |room| {
        let firewalld = Firewalld::start(room, Ssh::Allowed)?;
        Ok(Box::new(move || firewalld.reload()))
    },
    harm: opens_tables,
    legacy: false,
};
const FIREWALLD_COMPLETE_RELOAD: Disturber = Disturber {
    prepare: |room| {
        let firewalld = Firewalld::start(room, Ssh::Allowed)?;
        Ok(Box::new(move || firewalld.complete_reload()))
    },
    harm: opens_tables,
    legacy: false,
};
const NFTABLES_RESTART: Disturber = Disturber {
    prepare: |room| {
        let service = NftablesService::start(room, Ssh::Allowed)?;
        Ok(Box::new(move || service.restart()))
    },
    harm: opens_all,
    legacy: false,
};
const NFTABLES_RELOAD: Disturber = Disturber {
    prepare: |room| {
        let service = NftablesService::start(room, Ssh::Allowed)?;
        Ok(Box::new(move || service.reload()))
    },
    harm: opens_all,
    legacy: false,
};
const RESTORE: Disturber = Disturber {
    prepare: |room| {
        let saved = SavedRules::load(room, Ssh::Allowed)?;
        Ok(Box::new(move || saved.restore()))
    },
    harm: opens_tables,
    legacy: false,
};
const LEGACY_RESTORE: Disturber = Disturber { legacy: true, ..RESTORE };
const DOCKER_START: Disturber = Disturber {
    prepare: |room| {
        let mut docker = None;
        Ok(Box::new(move || match &mut docker {
            None => Docker::start(room).and_then(|started| {
                started.publish()?;
                docker = Some(started);
                Ok(())
            }),
            Some(docker) => docker.restart(),
        }))
    },
    harm: nothing,
    legacy: false,
};
const PODMAN_START: Disturber = Disturber {
    prepare: |room| {
        let podman = Podman::new(room)?;
        Ok(Box::new(move || podman.publish()))
    },
    harm: nothing,
    legacy: false,
};

/// The scene: somebody is in from before the gate came, the owner by a knock, and the gate stands.
struct Stage {
    scene: Scene,
    early: Vec<Heard>,
    granted: Vec<Heard>,
    /// What the kernel had left for each grant, and when.
    left: Vec<(IpAddr, u64)>,
    since: Instant,
    /// What one look at the gate takes on this machine, with all that runs beside the test.
    look: Duration,
    _talker: Talker,
}

impl Stage {
    /// Whoever disturbs later is there already.
    fn set(mut scene: Scene) -> Result<Self> {
        let talker = Talker::tcp(scene.lab.server(), ALLOWED_PORT)?;
        let mut early = Vec::new();
        for family in Family::BOTH {
            early.push(connect(&scene, scene.lab.third(), family)?.context("the control")?);
        }
        scene.server.start()?;
        let mut granted = Vec::new();
        for family in Family::BOTH {
            ensure_refused(&scene, scene.lab.owner(), family)?;
            let knock = scene.laptop.open(TALK).lifetime(LIFETIME).seal()?;
            scene.knock(scene.lab.owner(), family, &knock)?;
            granted.push(eventually("the knock is to open", || {
                connect(&scene, scene.lab.owner(), family)
            })?);
        }
        let asked = Instant::now();
        let (left, since) = (scene.server.admitted()?, Instant::now());
        let look = since - asked;
        ensure!(left.len() == 2, "the kernel admits {left:?}");
        Ok(Self { scene, early, granted, left, since, look, _talker: talker })
    }

    /// What holds when the gate stands again, or still.
    fn ensure_as_before(&self, kept: &[Heard]) -> Result<()> {
        let scene = &self.scene;
        for family in Family::BOTH {
            ensure_refused(scene, scene.lab.other(), family)?;
            let again = connect(scene, scene.lab.owner(), family)?;
            again.context("the live grant opens no more")?.ensure_alive()?;
        }
        let (left, passed) = (scene.server.admitted()?, self.since.elapsed().as_secs());
        ensure!(left.len() == self.left.len(), "the kernel admits {left:?}");
        for (source, seconds) in &left {
            let before = self.left.iter().find(|(of, _)| of == source).map(|(_, before)| *before);
            let before = before.with_context(|| format!("{source} is admitted"))?;
            // Rounded on both sides.
            let span = before.saturating_sub(passed + 2)..=before.saturating_sub(passed) + 2;
            ensure!(span.contains(seconds), "{seconds} s are left of {before} after {passed} s");
        }
        for (heard, who) in (self.early.iter().map(|heard| (heard, "in from before the gate")))
            .chain(self.granted.iter().map(|heard| (heard, "granted before")))
            .chain(kept.iter().map(|heard| (heard, "granted, meanwhile")))
        {
            heard.ensure_alive().context(who)?;
        }
        Ok(())
    }

    /// Waits until the gate is as it was, as those see it whom it concerns: strangers are refused,
    /// and the owner gets in.
    fn await_standing(&self) -> Result<()> {
        let start = Instant::now();
        let (scene, hosts) = (&self.scene, [self.scene.lab.other(), self.scene.lab.owner()]);
        let views = hosts.into_iter().flat_map(|from| Family::BOTH.map(|family| (from, family)));
        let times = at_once(views, |(from, family)| {
            let is_owner = from.namespace() == scene.lab.owner().namespace();
            let mut away = start;
            eventually_within(SOON * 10, "the gate is to stand again", || {
                let asked = Instant::now();
                let seen = scene.sees(from, family, ALLOWED_PORT)?;
                let stands = (seen == PortState::Open) == is_owner;
                if !stands {
                    away = asked;
                }
                Ok(stands.then_some(()))
            })
            .with_context(|| {
                format!("{} {family:?}\n{}", from.namespace(), scene.server.account())
            })?;
            // When the question was asked, not answered: silence takes its time.
            ensure!(
                away - start <= SOON + self.look * LOOKS,
                "{} by {family:?} not yet after {:?}",
                from.namespace(),
                away - start
            );
            Ok(away - start)
        })?;
        let slowest = times.into_iter().max().unwrap_or_default();
        let backend = scene.server.configuration().gate.backend.clone().unwrap_or_default();
        report(format!("{backend}: restored after {} ms", slowest.as_millis()));
        Ok(())
    }

    /// Waits until all of these are cut, at both ends.
    fn await_cut(&self, intruders: &[Heard]) -> Result<()> {
        for intruder in intruders {
            let cut =
                intruder.await_cut(CUT + self.look * LOOKS).context("who slipped in is still in");
            cut.with_context(|| self.scene.server.account())?;
            let client = intruder.local()?;
            let (address, port) = (client.ip(), client.port());
            eventually_within(CUT, "the server's end is to be gone", || {
                let filter = format!("ss -Htn state established sport = :{ALLOWED_PORT}");
                let listed = self.scene.server.host().sh(&filter)?;
                let is_theirs = |line: &str| {
                    line.contains(&address.to_string()) && line.contains(&format!(":{port}"))
                };
                Ok((!listed.lines().any(is_theirs)).then_some(()))
            })?;
        }
        Ok(())
    }

    /// That the trail tells of a gate that was put back, if it was; `once`, if nothing came in between.
    fn await_told(&self, harm: Harm, once: bool) -> Result<()> {
        let lines = eventually("the audit trail is to tell it", || {
            let lines = self.scene.server.audit("gate-restored")?;
            Ok((harm == Harm::None || !lines.is_empty()).then_some(lines))
        })
        .with_context(|| self.scene.server.account())?;
        ensure!(lines.is_empty() == (harm == Harm::None), "told of no harm: {lines:?}");
        ensure!(lines.len() <= 1 || !once, "told {} times: {lines:?}", lines.len());
        Ok(())
    }
}

/// What is there before the gate: the scene, and the room of whoever disturbs.
fn prepared(disturber: &Disturber, backend: Backend, refuse: &str) -> Result<(Scene, Room)> {
    let scene = Scene::prepared(|configuration| {
        backend.choose(configuration);
        configuration.gate.refuse = refuse.into();
        let ports = vec![format!("tcp/{ALLOWED_PORT}")];
        configuration.services.insert(TALK.into(), Service { ports, ..Service::default() });
        configuration.clients[0].allow.push(TALK.into());
    })?;
    if disturber.legacy {
        scene.lab.server().use_iptables_legacy()?;
    }
    let room = Room::new(&scene.lab)?;
    Ok((scene, room))
}

fn connect(scene: &Scene, from: &Host, family: Family) -> Result<Option<Heard>> {
    let to = scene.lab.server().at(family, ALLOWED_PORT);
    let Ok(heard) = Heard::connect(from, to, Talks::Service)? else { return Ok(None) };
    heard.ensure_alive()?;
    Ok(Some(heard))
}

fn ensure_refused(scene: &Scene, from: &Host, family: Family) -> Result<()> {
    let refused = match scene.server.configuration().gate.refuse.as_str() {
        "drop" => PortState::Filtered,
        _ => PortState::Closed,
    };
    scene.ensure_sees(from, family, ALLOWED_PORT, refused)
}

/// The back-ends that it is tried on: where it does no harm, one is enough.
fn backends(disturber: &Disturber) -> impl Iterator<Item = Backend> {
    let harms = |backend: Backend| (disturber.harm)(backend) != Harm::None;
    Backend::ALL.into_iter().filter(move |backend| *backend == Backend::IPSET || harms(*backend))
}

/// The daemon is frozen while it happens, so that it is certain that somebody slips in.
fn a_disturbance_is_mended_and_who_slipped_in_is_cut(disturber: &Disturber) -> Result<()> {
    for backend in backends(disturber) {
        disturb_frozen(disturber, backend, "drop")
            .with_context(|| format!("back-end {}", backend.name))?;
    }
    Ok(())
}

fn disturb_frozen(disturber: &Disturber, backend: Backend, refuse: &str) -> Result<()> {
    let (scene, room) = prepared(disturber, backend, refuse)?;
    let harm = (disturber.harm)(backend);
    let mut disturb = (disturber.prepare)(&room)?;
    let stage = Stage::set(scene)?;
    stage.scene.server.signal(Signal::SIGSTOP)?;
    disturb()?;
    let scene = &stage.scene;
    let (mut intruders, mut kept) = (Vec::new(), Vec::new());
    for family in Family::BOTH {
        let stranger = connect(scene, scene.lab.other(), family)?;
        ensure!(stranger.is_some() == (harm == Harm::Opens), "the harm is not {harm:?}");
        intruders.extend(stranger);
        let owner = connect(scene, scene.lab.owner(), family)?;
        ensure!(owner.is_some() == (harm != Harm::Forgets), "the harm is not {harm:?}");
        kept.extend(owner);
    }

    scene.server.signal(Signal::SIGCONT)?;
    stage.await_standing()?;
    stage.await_cut(&intruders)?;
    stage.ensure_as_before(&kept)?;
    stage.await_told(harm, true)
}

/// The daemon runs, and somebody tries to get in all the time.
fn a_disturbance_under_siege_is_mended_within_a_second(disturber: &Disturber) -> Result<()> {
    for backend in backends(disturber) {
        disturb_besieged(disturber, backend, "drop")
            .with_context(|| format!("back-end {}", backend.name))?;
    }
    Ok(())
}

fn disturb_besieged(disturber: &Disturber, backend: Backend, refuse: &str) -> Result<()> {
    let (scene, room) = prepared(disturber, backend, refuse)?;
    let harm = (disturber.harm)(backend);
    let mut disturb = (disturber.prepare)(&room)?;
    let stage = Stage::set(scene)?;
    let over = AtomicBool::new(false);
    let intruders = thread::scope(|scope| {
        let siege = Family::BOTH.map(|family| {
            let (scene, over) = (&stage.scene, &over);
            scope.spawn(move || besiege(scene, family, over))
        });
        let mended = disturb().and_then(|()| stage.await_standing());
        over.store(true, Ordering::Relaxed);
        let mut intruders = Vec::new();
        for besieger in siege {
            match besieger.join() {
                Ok(found) => intruders.extend(found?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        mended.map(|()| intruders)
    })?;
    if harm != Harm::Opens {
        ensure!(intruders.is_empty(), "{} got in", intruders.len());
    }
    stage.await_cut(&intruders)?;
    stage.ensure_as_before(&[])?;
    // Several commands in a row are several disturbances, if it stands in between.
    stage.await_told(harm, false)
}

/// Tries to get in again and again; those that succeeded, or the first of them: a siege must not
/// become what keeps the gate from standing.
fn besiege(scene: &Scene, family: Family, over: &AtomicBool) -> Result<Vec<Heard>> {
    let mut intruders = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let to = scene.lab.server().at(family, ALLOWED_PORT);
        // It may be cut before it has heard anything.
        match Heard::connect(scene.lab.other(), to, Talks::Service)? {
            Ok(heard) if intruders.len() < HELD => intruders.push(heard),
            Ok(_) | Err(PortState::Filtered | PortState::Closed) => {}
            Err(PortState::Open) => bail!("neither open nor refused"),
        }
        thread::sleep(HASTE);
    }
    Ok(intruders)
}

/// Two tests for each way to disturb.
macro_rules! disturbed_by {
    ($($name:ident: $disturber:expr;)*) => {
        mod who_slips_in_is_cut {
            use super::*;
            $(#[test]
            fn $name() -> Result<()> {
                a_disturbance_is_mended_and_who_slipped_in_is_cut(&$disturber)
            })*
        }
        mod under_siege_it_stands_within_a_second {
            use super::*;
            $(#[test]
            fn $name() -> Result<()> {
                a_disturbance_under_siege_is_mended_within_a_second(&$disturber)
            })*
        }
    };
}

disturbed_by! {
    after_iptables_flush: FLUSH;
    after_iptables_flush_and_delete: FLUSH_AND_DELETE;
    after_iptables_legacy_flush: LEGACY_FLUSH;
    after_iptables_legacy_flush_and_delete: LEGACY_FLUSH_AND_DELETE;
    after_a_flush_of_the_built_in_chains_only: ONLY_THE_JUMPS;
    after_nft_flush_ruleset: NFT_FLUSH;
    after_ipset_flush: IPSET_FLUSH;
    after_everything_is_gone: EVERYTHING;
    after_ufw_reload: UFW_RELOAD;
    after_ufw_disable_and_enable: UFW_OFF_AND_ON;
    after_firewalld_reload: FIREWALLD_RELOAD;
    after_firewalld_complete_reload: FIREWALLD_COMPLETE_RELOAD;
    after_a_restart_of_nftables_service: NFTABLES_RESTART;
    after_a_reload_of_nftables_service: NFTABLES_RELOAD;
    after_iptables_restore: RESTORE;
    after_iptables_legacy_restore: LEGACY_RESTORE;
    after_the_start_of_docker: DOCKER_START;
    after_the_start_of_podman: PODMAN_START;
}

#[test]
fn a_flushed_gate_that_rejects_is_mended_like_one_that_drops() -> Result<()> {
    for backend in Backend::ALL {
        disturb_frozen(&FLUSH_AND_DELETE, backend, "reject")?;
        disturb_besieged(&FLUSH_AND_DELETE, backend, "reject")?;
    }
    Ok(())
}

/// An engine's accept goes before a reject of ours in FORWARD, if it comes later.
#[test]
fn a_rejecting_gate_hides_within_a_second_what_docker_publishes_before_it() -> Result<()> {
    for backend in Backend::ALL {
        let scene = Scene::with(|configuration| {
            backend.choose(configuration);
            configuration.gate.refuse = "reject".into();
            let ports = vec![format!("tcp/{CONTAINER_PORT}")];
            configuration.services.insert(TALK.into(), Service { ports, ..Service::default() });
        })?;
        let room = Room::new(&scene.lab)?;
        let docker = Docker::start(&room)?;
        docker.publish()?;
        let published = Instant::now();
        for family in Family::BOTH {
            let mut seen_at = published;
            eventually("what is published is to be refused", || {
                let asked = Instant::now();
                let seen = scene.sees(scene.lab.other(), family, CONTAINER_PORT)?;
                if seen != PortState::Closed {
                    seen_at = asked;
                }
                Ok((seen == PortState::Closed).then_some(()))
            })?;
            ensure!(seen_at - published <= SOON, "still seen after {:?}", seen_at - published);
        }
    }
    Ok(())
}
