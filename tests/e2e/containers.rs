//! Ports that a container engine publishes, with the rules that Docker and Podman themselves write:
//! packets go through FORWARD, past everything that is said about INPUT. In guard mode they are
//! hidden like any other, and a knock opens them.

use anyhow::{Context, Result};
use spa_tests::{
    Backend, CONTAINER_PORT, DEADLINE, Docker, Family, Heard, Host, Neighbour, Podman, PortState,
    Room, Scene, Service, Talks, Watch, at_once, eventually, eventually_within,
};
use std::time::Duration;

/// The service whose port is published.
const SHOP: &str = "shop";
/// A grant whose end is waited for.
const LIFETIME: Duration = Duration::from_secs(4);

/// Makes an engine with its container.
type Start = for<'a> fn(&'a Room) -> Result<Box<dyn Neighbour + 'a>>;

const DOCKER: Start = |room| {
    let docker = Docker::start(room)?;
    docker.publish()?;
    Ok(Box::new(docker))
};
const PODMAN: Start = |room| {
    let podman = Podman::new(room)?;
    podman.publish()?;
    Ok(Box::new(podman))
};

/// Which `iptables` the host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    Nft,
    Legacy,
}

/// A scene, not started, whose laptop may open `shop`.
fn prepared(backend: Backend, refuse: &str) -> Result<Scene> {
    Scene::prepared(|configuration| {
        backend.choose(configuration);
        configuration.gate.refuse = refuse.into();
        let ports = vec![format!("tcp/{CONTAINER_PORT}")];
        configuration.services.insert(SHOP.into(), Service { ports, ..Service::default() });
        configuration.clients[0].allow.push(SHOP.into());
    })
}

/// How a hidden port looks.
fn hidden(scene: &Scene) -> PortState {
    match scene.server.configuration().gate.refuse.as_str() {
        "drop" => PortState::Filtered,
        _ => PortState::Closed,
    }
}

/// That the published port is there for nobody.
fn ensure_hidden(scene: &Scene) -> Result<()> {
    let hosts = [scene.lab.owner(), scene.lab.other()];
    let views = hosts.into_iter().flat_map(|from| Family::BOTH.map(|family| (from, family)));
    at_once(views, |(from, family)| {
        scene.ensure_sees(from, family, CONTAINER_PORT, hidden(scene))
    })?;
    Ok(())
}

/// Knocks, and waits until the container answers; that it is the container is the point.
fn open(scene: &Scene, family: Family, lifetime: u64) -> Result<Heard> {
    let knock = scene.laptop.open(SHOP).lifetime(u32::try_from(lifetime)?).seal()?;
    scene.knock(scene.lab.owner(), family, &knock)?;
    eventually("the published port is to open", || connect(scene, scene.lab.owner(), family))
        .with_context(|| scene.server.account())
}

fn connect(scene: &Scene, from: &Host, family: Family) -> Result<Option<Heard>> {
    let to = scene.lab.server().at(family, CONTAINER_PORT);
    let Ok(heard) = Heard::connect(from, to, Talks::Client)? else { return Ok(None) };
    heard.ensure_alive()?;
    Ok(Some(heard))
}

/// The whole of it, with one engine that runs before the gate comes.
fn published_ports_are_guarded(
    start: Start,
    variant: Variant,
    backend: Backend,
    refuse: &str,
) -> Result<()> {
    let mut scene = prepared(backend, refuse)?;
    if variant == Variant::Legacy {
        scene.lab.server().use_iptables_legacy()?;
    }
    let room = Room::new(&scene.lab)?;
    let engine = start(&room)?;
    // The control: without the gate, anybody gets in.
    engine.ensure_in_force(&scene.lab)?;
    let mut before = Vec::new();
    for family in Family::BOTH {
        before.push(connect(&scene, scene.lab.other(), family)?.context("the port is not open")?);
    }

    scene.server.start()?;
    ensure_hidden(&scene)?;
    for family in Family::BOTH {
        let opened = open(&scene, family, LIFETIME.as_secs())?;
        scene.ensure_sees(scene.lab.other(), family, CONTAINER_PORT, hidden(&scene))?;
        eventually_within(DEADLINE + LIFETIME, "the kernel is to close", || {
            Ok(scene.server.admitted()?.is_empty().then_some(()))
        })?;
        scene.ensure_sees(scene.lab.owner(), family, CONTAINER_PORT, hidden(&scene))?;
        opened.ensure_alive().context("opened by a knock, and cut off at its end")?;
    }
    for heard in &before {
        heard.ensure_alive().context("established before the gate came")?;
    }

    scene.server.stop()?;
    ensure_hidden(&scene)?;
    scene.server.admin(&["gate", "remove"])?.ok()?;
    engine.ensure_in_force(&scene.lab)?;
    Ok(())
}

fn on_all_backends(start: Start, variant: Variant, refuse: &str) -> Result<()> {
    for backend in Backend::ALL {
        published_ports_are_guarded(start, variant, backend, refuse)
            .with_context(|| format!("back-end {}, {refuse}", backend.name))?;
    }
    Ok(())
}

#[test]
fn a_port_that_docker_publishes_is_hidden_and_opened_by_a_knock() -> Result<()> {
    on_all_backends(DOCKER, Variant::Nft, "drop")
}

#[test]
fn a_port_that_docker_publishes_in_legacy_tables_is_hidden_and_opened_by_a_knock() -> Result<()> {
    on_all_backends(DOCKER, Variant::Legacy, "drop")
}

#[test]
fn a_port_that_podman_publishes_in_legacy_tables_looks_closed_where_the_gate_rejects() -> Result<()>
{
    on_all_backends(PODMAN, Variant::Legacy, "reject")
}

#[test]
fn a_port_that_docker_publishes_looks_closed_where_the_gate_rejects() -> Result<()> {
    on_all_backends(DOCKER, Variant::Nft, "reject")
}

#[test]
fn a_port_that_podman_publishes_is_hidden_and_opened_by_a_knock() -> Result<()> {
    on_all_backends(PODMAN, Variant::Nft, "drop")
}

#[test]
fn a_port_that_podman_publishes_looks_closed_where_the_gate_rejects() -> Result<()> {
    on_all_backends(PODMAN, Variant::Nft, "reject")
}

/// The engine comes later, and puts its rules before all others.
fn published_later_is_hidden_from_the_first_moment(start: Start) -> Result<()> {
    for backend in Backend::ALL {
        let mut scene = prepared(backend, "drop")?;
        let room = Room::new(&scene.lab)?;
        scene.server.start()?;
        let watches = Family::BOTH.map(|family| {
            let to = scene.lab.server().at(family, CONTAINER_PORT);
            Watch::on(scene.lab.other(), to, PortState::Filtered)
        });
        let _engine = start(&room)?;
        let opened = Family::BOTH.map(|family| open(&scene, family, 600));
        for watch in watches {
            watch.await_tries(20)?;
            watch.finish().with_context(|| backend.name)?;
        }
        for opened in opened {
            opened?.ensure_alive()?;
        }
    }
    Ok(())
}

#[test]
fn a_port_that_docker_publishes_later_is_hidden_from_the_first_moment() -> Result<()> {
    published_later_is_hidden_from_the_first_moment(DOCKER)
}

#[test]
fn a_port_that_podman_publishes_later_is_hidden_from_the_first_moment() -> Result<()> {
    published_later_is_hidden_from_the_first_moment(PODMAN)
}
