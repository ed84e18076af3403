//! The real `spa-client` and the administrator's commands, as a stranger uses them first.

use anyhow::{Context, Result, ensure};
use spa_tests::{
    Capture, Family, Finished, Host, PortState, SSH_PORT, Scene, WEB_PORT, finish, our_binary,
};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// `spa-client` on a host of the lab, with a configuration of its own.
struct Laptop {
    host: Host,
    configuration: PathBuf,
}

impl Laptop {
    /// Makes a key with the real command; gives back the public one too.
    fn new(scene: &Scene, host: &Host, name: &str) -> Result<(Self, String)> {
        let configuration = scene.lab.directory().join(name);
        let laptop = Self { host: host.clone(), configuration };
        let made = laptop.run(&["keygen"])?.ok()?;
        let public = made
            .split_whitespace()
            .find(|word| word.starts_with("spa-public-"))
            .with_context(|| format!("keygen prints no public key: {made:?}"))?;
        Ok((laptop, public.to_owned()))
    }

    fn command(&self, words: &[&str]) -> Result<Command> {
        let mut command = self.host.command(our_binary("spa-client")?)?;
        command.args(words).env("SPA_CONFIG_DIR", &self.configuration).env("HOME", "/nonexistent");
        Ok(command)
    }

    fn run(&self, words: &[&str]) -> Result<Finished> {
        finish(&mut self.command(words)?)
    }
}

/// A running server that knows a laptop which was set up by the real commands.
fn set_up() -> Result<(Scene, Laptop)> {
    let scene = Scene::new()?;
    let (laptop, public) = Laptop::new(&scene, scene.lab.owner(), "owner")?;
    scene
        .server
        .admin(&["client", "add", "mine", "--public-key", &public, "--allow", "ssh,web"])?
        .ok()?;
    scene.server.admin(&["reload"])?;
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
    // The first two datagrams, one of each family, are lost on their way.
    for tables in ["iptables", "ip6tables"] {
        scene.lab.owner().sh(&format!(
            "{tables} -A OUTPUT -p udp --dport 62201 -m statistic --mode nth --every 1000 -j DROP"
        ))?;
    }
    let opened = laptop.run(&["open", "ssh", "--wait"])?;
    ensure!(opened.success(), "{opened}\n{}", scene.server.account());
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
    let key = laptop.configuration.join("identity.key");
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
