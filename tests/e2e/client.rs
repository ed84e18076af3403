//! The real `spa-client` and the administrator's commands, as a stranger uses them first.

use anyhow::{Result, ensure};
use spa_tests::{
    Capture, Family, Lab, Laptop, PortState, SSH_PORT, Scene, Server, Sshd, WEB_PORT, finish,
    interop_python, our_binary,
};
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

/// A running server that knows a laptop which was set up by the real commands.
fn set_up() -> Result<(Scene, Laptop)> {
    let scene = Scene::new()?;
    let laptop = Laptop::new(&scene.lab, scene.lab.owner(), "owner");
    let public = laptop.keygen()?;
    scene
        .server
        .admin(&["client", "add", "mine", "--public-key", &public, "--allow", "ssh,web"])?
        .ok()?;
    scene.server.admin(&["reload"])?.ok()?;
    let key = scene.server_identity.public().to_string();
    laptop.run(&["server", "add", "work", "--host", "gateway", "--public-key", &key])?.ok()?;
    Ok((scene, laptop))
}

#[test]
fn open_knocks_by_both_families_and_says_when_it_is_open() -> Result<()> {
    let (scene, laptop) = set_up()?;
    let wire = Capture::on(scene.lab.owner(), "udp port 62201")?;
    let opened = laptop.run(&["open", "ssh", "--wait"])?;
    ensure!(opened.success(), "{opened}\n{}", scene.server.account());
    ensure!(opened.said().contains("ms"), "it does not say how long it took: {opened}");
    for family in Family::BOTH {
        scene.await_open(scene.lab.owner(), family, SSH_PORT)?;
        scene.ensure_sees(scene.lab.other(), family, SSH_PORT, PortState::Filtered)?;
    }
    let sent = wire.packets()?;
    for family in Family::BOTH {
        let to = scene.lab.server().address(family);
        ensure!(sent.iter().any(|packet| packet.destination() == Some(to)), "{sent:?}");
    }
    // Different bytes: one nonce is never used twice.
    ensure!(
        sent.len() == 2 && sent[0].datagram_to(62201) != sent[1].datagram_to(62201),
        "{sent:?}"
    );

    laptop.run(&["close", "ssh@work"])?.ok()?;
    for family in Family::BOTH {
        scene.await_state(scene.lab.owner(), family, SSH_PORT, PortState::Filtered)?;
    }
    Ok(())
}

#[test]
fn open_of_several_services_and_a_single_port() -> Result<()> {
    let (scene, laptop) = set_up()?;
    laptop.run(&["open", "ssh@work", "tcp/8080", "--lifetime", "10m", "--no-wait"])?.ok()?;
    scene.await_open(scene.lab.owner(), Family::V4, SSH_PORT)?;
    scene.await_open(scene.lab.owner(), Family::V4, WEB_PORT)?;
    let grants = scene.server.grants()?;
    ensure!(grants.iter().all(|grant| grant.seconds_left > 500), "{grants:?}");
    Ok(())
}

#[test]
fn open_that_is_refused_says_so_and_fails() -> Result<()> {
    let (scene, laptop) = set_up()?;
    scene.server.admin(&["client", "disable", "mine"])?.ok()?;
    scene.server.admin(&["reload"])?.ok()?;
    let refused = laptop.run(&["open", "ssh", "--wait", "--timeout", "2s"])?;
    ensure!(refused.status.code() == Some(1), "{refused}");
    ensure!(scene.server.dropped("disabled")? >= 1, "{}", scene.server.account());
    scene.ensure_shut()?;
    scene.server.admin(&["client", "enable", "mine"])?.ok()?;
    scene.server.admin(&["reload"])?.ok()?;
    laptop.run(&["open", "ssh", "--wait"])?.ok()?;
    scene.await_open(scene.lab.owner(), Family::V4, SSH_PORT)
}

#[test]
fn open_waits_through_a_lost_knock() -> Result<()> {
    let (scene, laptop) = set_up()?;
    scene.lab.lose_first_datagram_to(62201)?;
    let start = Instant::now();
    let opened = laptop.run(&["open", "ssh", "--wait"])?;
    ensure!(opened.success(), "{opened}\n{}", scene.server.account());
    // The control: the first ones were lost indeed, and it took the second ones.
    ensure!(start.elapsed() >= Duration::from_millis(500), "nothing was lost: {opened}");
    scene.await_open(scene.lab.owner(), Family::V4, SSH_PORT)
}

#[test]
fn a_client_behind_a_proxy_command_reaches_ssh_in_one_go() -> Result<()> {
    let (scene, laptop) = set_up()?;
    laptop.run(&["open", "ssh", "--wait"])?.ok()?;
    let answer = scene.sshd.login(scene.lab.owner(), Family::V6, "echo in")?.ok()?;
    ensure!(answer == "in\n");
    Ok(())
}

#[test]
fn a_stranger_gets_from_nothing_to_ssh_by_the_commands_alone() -> Result<()> {
    let lab = Lab::new()?;
    let sshd = Sshd::start(lab.server(), &lab.directory().join("ssh"), SSH_PORT)?;
    let directory = lab.server_directory();
    let made = finish(
        lab.server().command(our_binary("spa-server")?)?.args(["init", "--dir"]).arg(&directory),
    )?
    .ok()?;
    let server_key = made.trim();
    let laptop = Laptop::new(&lab, lab.owner(), "owner");
    let client_key = laptop.keygen()?;

    let mut server = Server::initialized(lab.server(), &directory);
    let added = server.admin(&[
        "client",
        "add",
        "laptop",
        "--public-key",
        &client_key,
        "--allow",
        "ssh",
    ])?;
    ensure!(added.success() && added.said().contains(server_key), "{added}");
    let checked = server.admin(&["check"])?;
    ensure!(checked.success(), "{checked}");
    let add = ["server", "add", "home", "--host", "gateway", "--public-key", server_key];
    laptop.run(&add)?.ok()?;
    server.start()?;
    // On a new server nothing was accepted before, so there is nothing to wait for.
    ensure!(server.status()?.barrier_until.is_none(), "{}", server.account());

    for family in Family::BOTH {
        ensure!(lab.owner().tcp(lab.server().at(family, SSH_PORT))? == PortState::Filtered);
    }
    laptop.run(&["open", "ssh", "--wait"])?.ok()?;
    for family in Family::BOTH {
        ensure!(sshd.login(lab.owner(), family, "echo in")?.ok()? == "in\n");
        ensure!(lab.other().tcp(lab.server().at(family, SSH_PORT))? == PortState::Filtered);
    }
    Ok(())
}

#[test]
fn a_client_in_another_language_opens_too() -> Result<()> {
    let scene = Scene::new()?;
    let (python, directory) = interop_python()?;
    let key = scene.lab.directory().join("laptop.key");
    spa_keys::write_private_key(&key, scene.identity.private(), spa_keys::Overwrite::Refuse)?;
    for family in Family::BOTH {
        let knock = |items: &[&str]| -> Result<Command> {
            let mut command = scene.lab.owner().command(&python)?;
            command.env("PYTHONDONTWRITEBYTECODE", "1").arg(directory.join("knock.py"));
            command.args(["--server", &scene.lab.server().address(family).to_string()]);
            command.args(["--server-public", &scene.server_identity.public().to_string()]);
            command.arg("--client-private-file").arg(&key).args(items);
            Ok(command)
        };
        finish(&mut knock(&["ssh"])?)?.ok()?;
        scene.await_open(scene.lab.owner(), family, SSH_PORT)?;
        scene.ensure_sees(scene.lab.other(), family, SSH_PORT, PortState::Filtered)?;
        finish(&mut knock(&["--type", "close", "ssh"])?)?.ok()?;
        scene.await_state(scene.lab.owner(), family, SSH_PORT, PortState::Filtered)?;
        let bound = scene.lab.owner().address(family).to_string();
        finish(&mut knock(&["--bound-source", &bound, "--lifetime", "60", "tcp/22"])?)?.ok()?;
        scene.await_open(scene.lab.owner(), family, SSH_PORT)?;
    }
    Ok(())
}

#[test]
fn what_is_wrong_before_the_packet_leaves_is_told() -> Result<()> {
    let (scene, laptop) = set_up()?;
    let wire = Capture::on(scene.lab.owner(), "udp port 62201")?;
    for (words, told) in [
        (&["open", "ssh@nowhere"][..], "nowhere"),
        (&["open", "Ssh"], "Ssh"),
        (&["open", "tcp/0"], "tcp/0"),
        (&["server", "add", "x", "--host", "h", "--public-key", "spa-public-x"], "spa-public"),
    ] {
        let wrong = laptop.run(words)?;
        ensure!(wrong.status.code() == Some(2), "{wrong}");
        ensure!(wrong.said().contains(told), "{wrong}");
    }
    let key = laptop.private_key_file();
    let text = fs::read_to_string(&key)?;
    fs::write(&key, "spa-private-x")?;
    let wrong = laptop.run(&["open", "ssh"])?;
    ensure!(wrong.status.code() == Some(78) && wrong.said().contains("identity.key"), "{wrong}");
    fs::write(&key, text)?;
    ensure!(wire.packets()?.is_empty(), "a knock left nevertheless");
    laptop.run(&["open", "ssh", "--no-wait"])?.ok()?;
    ensure!(!wire.packets()?.is_empty());
    Ok(())
}
