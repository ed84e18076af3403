//! A service with `connections = 1`: a knock lets one connection in, and never another one, whatever
//! becomes of daemon and rules.

use anyhow::{Context, Result, ensure};
use spa_tests::{Family, PortState, SSH_PORT, Scene, WEB_PORT, eventually};
use std::time::Instant;

/// `ssh` is for one connection; `web`, the control, for as many as come.
fn scene() -> Result<Scene> {
    Scene::with(|configuration| {
        if let Some(ssh) = configuration.services.get_mut("ssh") {
            ssh.connections = Some(1);
        }
    })
}

/// Knocks, and waits until the kernel has taken it; a probe would use it up.
fn open(scene: &Scene, family: Family, items: &str) -> Result<()> {
    let before = scene.server.audit("opened")?.len();
    let knock = scene.laptop.open(items).lifetime(600).seal()?;
    scene.knock(scene.lab.owner(), family, &knock)?;
    eventually("the knock is to open", || {
        Ok((scene.server.audit("opened")?.len() > before).then_some(()))
    })
    .with_context(|| scene.server.account())
}

/// What the daemon says is open.
fn listed(scene: &Scene) -> Result<Vec<String>> {
    Ok(scene.server.grants()?.iter().map(|grant| grant.service.to_string()).collect())
}

fn await_used(scene: &Scene, times: usize) -> Result<()> {
    let began = Instant::now();
    eventually("the grant is to be used up", || {
        let is_over = listed(scene)? == ["web"] && scene.server.audit("used")?.len() == times;
        Ok(is_over.then_some(()))
    })
    .with_context(|| scene.server.account())?;
    spa_tests::report(format!("found to be used after {:?}", began.elapsed()));
    Ok(())
}

/// Nobody gets in to `ssh`; to `web` the owner does.
fn ensure_over(scene: &Scene, family: Family) -> Result<()> {
    let owner = scene.lab.owner();
    scene.await_open(owner, family, WEB_PORT)?;
    scene.ensure_sees(owner, family, SSH_PORT, PortState::Filtered)
}

fn one_knock_lets_one_session_in(family: Family) -> Result<()> {
    let mut scene = scene()?;
    let owner = scene.lab.owner().clone();
    open(&scene, family, "ssh web")?;
    let mut session = scene.sshd.session(&owner, family).context("the first one")?;
    ensure_over(&scene, family)?;
    await_used(&scene, 1)?;
    let used = scene.server.audit("used")?;
    ensure!(used[0].contains("services=ssh ports=tcp/22 id="), "{used:?}");
    // It is no disturbance.
    ensure!(scene.server.status()?.restored == 0, "{}", scene.server.account());

    scene.server.restart()?;
    ensure_over(&scene, family)?;
    let flush = match family {
        Family::V4 => "iptables -t mangle -F",
        Family::V6 => "ip6tables -t mangle -F",
    };
    for (command, times) in [(flush, 1), ("nft flush ruleset", 2)] {
        scene.server.host().sh(command)?;
        eventually("the gate is to be put back", || {
            Ok((scene.server.status()?.restored >= times).then_some(()))
        })
        .with_context(|| scene.server.account())?;
        ensure_over(&scene, family).context(command)?;
    }
    session.ensure_alive()?;

    // A new knock lets a new one in, and one that waits outlives the daemon.
    open(&scene, family, "ssh")?;
    scene.server.restart()?;
    ensure!(scene.sshd.login(&owner, family, "echo in")?.ok()? == "in\n");
    ensure_over(&scene, family)?;
    session.ensure_alive().map(|_| ())
}

#[test]
fn one_knock_lets_one_ssh_session_in_and_no_restart_or_flush_lets_in_another() -> Result<()> {
    one_knock_lets_one_session_in(Family::V4)
}

#[test]
fn so_it_does_over_ipv6() -> Result<()> {
    one_knock_lets_one_session_in(Family::V6)
}

#[test]
fn what_somebody_takes_from_the_kernel_before_it_is_used_is_not_put_back() -> Result<()> {
    let scene = scene()?;
    open(&scene, Family::V4, "ssh web")?;
    ensure!(listed(&scene)?.len() == 2, "{}", scene.server.account());
    scene.server.host().sh("ipset flush")?;
    await_used(&scene, 1)?;
    ensure_over(&scene, Family::V4)?;
    // The control: a new knock is as good as any.
    open(&scene, Family::V4, "ssh")?;
    let login = scene.sshd.login(scene.lab.owner(), Family::V4, "echo in")?;
    ensure!(login.ok()? == "in\n");
    Ok(())
}
