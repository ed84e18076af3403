//! What a service can be, from the knock to the port, with every back-end that stands in the kernel.
//! Each is tried in more depth, without knocks, by the contract suite of the gate.

use anyhow::{Result, ensure};
use spa_tests::{
    Backend, Configuration, Family, Host, Listener, PortState, SSH_PORT, Scene, Service,
    SourcePrefix, WEB_PORT, eventually,
};

/// Two of the ports of a range, and one behind it.
const RANGE: [u16; 2] = [10_000, 10_100];
const BEHIND_RANGE: u16 = 10_101;

fn scene(backend: Backend, change: impl FnOnce(&mut Configuration)) -> Result<Scene> {
    Scene::with(|configuration| {
        backend.choose(configuration);
        change(configuration);
    })
}

fn udp(scene: &Scene, from: &Host, family: Family, port: u16) -> Result<PortState> {
    from.udp(scene.lab.server().at(family, port))
}

fn await_udp(scene: &Scene, family: Family, port: u16) -> Result<()> {
    eventually(&format!("udp/{port} is to answer"), || {
        let seen = udp(scene, scene.lab.owner(), family, port)?;
        Ok((seen == PortState::Open).then_some(()))
    })
}

#[test]
fn one_knock_opens_several_services_at_once_a_range_among_them() -> Result<()> {
    for backend in Backend::ALL {
        let scene = scene(backend, |configuration| {
            let ports = vec![format!("udp/{}-{}", RANGE[0], RANGE[1]), "udp/9000".into()];
            configuration.services.insert("voice".into(), Service { ports, ..Service::default() });
            configuration.clients[0].allow.extend(["dns".into(), "voice".into()]);
        })?;
        let server = scene.lab.server();
        let mut listeners = Vec::new();
        for port in RANGE.into_iter().chain([9000, BEHIND_RANGE]) {
            listeners.push(Listener::udp(server, port)?);
        }
        let (owner, other) = (scene.lab.owner(), scene.lab.other());
        for family in Family::BOTH {
            for port in RANGE.into_iter().chain([9000]) {
                ensure!(udp(&scene, owner, family, port)? == PortState::Filtered, "{backend:?}");
            }
            // The control: nobody guards that one.
            ensure!(udp(&scene, other, family, BEHIND_RANGE)? == PortState::Open, "{backend:?}");

            let knock = scene.laptop.open("ssh tcp/8080 dns voice").seal()?;
            scene.knock(owner, family, &knock)?;
            scene.await_open(owner, family, SSH_PORT)?;
            scene.await_open(owner, family, WEB_PORT)?;
            for port in RANGE.into_iter().chain([9000, 8053]) {
                await_udp(&scene, family, port)?;
                ensure!(udp(&scene, other, family, port)? == PortState::Filtered, "{backend:?}");
            }
            scene.ensure_sees(other, family, SSH_PORT, PortState::Filtered)?;
        }
        let opened = scene.server.audit("opened")?;
        ensure!(opened.len() == 2, "a line for each knock: {opened:?}");

        // All of them go by one knock, too.
        let knock = scene.laptop.close("ssh tcp/8080 dns voice").seal()?;
        scene.knock(owner, Family::V4, &knock)?;
        scene.await_state(owner, Family::V4, SSH_PORT, PortState::Filtered)?;
        eventually("the grants over IPv4 are to be gone", || {
            let grants = scene.server.grants()?;
            Ok(grants.iter().all(|grant| !grant.source.address().is_ipv4()).then_some(()))
        })?;
        // A port that has had no flow yet, which would live on.
        let fresh = RANGE[0] + 1;
        listeners.push(Listener::udp(server, fresh)?);
        ensure!(udp(&scene, owner, Family::V4, fresh)? == PortState::Filtered, "{backend:?}");
        ensure!(udp(&scene, owner, Family::V6, fresh)? == PortState::Open, "{backend:?}");
    }
    Ok(())
}

#[test]
fn a_knock_opens_for_the_network_around_its_sender_where_the_policy_says_so() -> Result<()> {
    for backend in Backend::ALL {
        // The owner and the host beside it are in one network of two, the third is not.
        let scene = scene(backend, |configuration| {
            configuration.clients[0].source_prefix = Some(SourcePrefix { ipv4: 31, ipv6: 127 });
        })?;
        let (owner, beside, beyond) = (scene.lab.owner(), scene.lab.other(), scene.lab.third());
        for family in Family::BOTH {
            scene.ensure_sees(beside, family, SSH_PORT, PortState::Filtered)?;
            scene.knock(owner, family, &scene.laptop.open("ssh").seal()?)?;
            scene.await_open(owner, family, SSH_PORT)?;
            scene.ensure_sees(beside, family, SSH_PORT, PortState::Open)?;
            scene.ensure_sees(beyond, family, SSH_PORT, PortState::Filtered)?;
            scene.ensure_sees(beside, family, WEB_PORT, PortState::Filtered)?;
            // Whoever is in that network closes it: the address may have changed meanwhile.
            scene.knock(beside, family, &scene.laptop.close("ssh").seal()?)?;
            scene.await_state(owner, family, SSH_PORT, PortState::Filtered)?;
            scene.ensure_sees(beside, family, SSH_PORT, PortState::Filtered)?;
        }
    }
    Ok(())
}
