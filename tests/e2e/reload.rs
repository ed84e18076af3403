//! A new configuration while the daemon runs: a bad one changes nothing, a good one closes what
//! it forbids and leaves everything else.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use spa_tests::{
    Backend, BreakableTool, Configuration, Family, PortState, SSH_PORT, Scene, Server, WEB_PORT,
    eventually,
};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

/// Sends SIGHUP and waits until the daemon says what came of it.
fn reload(scene: &Scene, refused: bool) -> Result<()> {
    // A reload that is refused leaves a reason, one that is not takes it away: begin with the
    // opposite where that can be had.
    scene.server.signal(Signal::SIGHUP)?;
    eventually("the daemon is to have reloaded", || {
        Ok((scene.server.status()?.last_reload.is_some() == refused).then_some(()))
    })
    .with_context(|| scene.server.account())
}

/// Reloads by the administrator's command, which comes back when it is done.
fn reload_now(scene: &Scene) -> Result<String> {
    scene.server.admin(&["reload"])?.ok()
}

#[test]
fn a_bad_configuration_keeps_the_old_one_and_says_so() -> Result<()> {
    let mut scene = Scene::new()?;
    let owner = scene.lab.owner().clone();
    scene.knock(&owner, Family::V4, &scene.laptop.open("ssh").lifetime(600).seal()?)?;
    scene.await_open(&owner, Family::V4, SSH_PORT)?;
    let mut session = scene.sshd.session(&owner, Family::V4)?;
    let (rules, grants) = (scene.server.rules()?, scene.server.grants()?.len());

    let path = scene.server.config_path();
    let good = fs::read_to_string(&path)?;
    let laptop = scene.server.directory().join("clients.d/laptop.toml");
    let good_client = fs::read_to_string(&laptop)?;
    let bad = [
        (&path, "this is no configuration"),
        (&path, ""),
        (&path, &format!("no-such-field = 1\n{good}")),
        (&path, &good.replace("tcp/22", "tcp/0")),
        (&laptop, "public-key = \"spa-public-x\"\nallow = [\"ssh\"]\n"),
        (&laptop, &good_client.replace("\"ssh\"", "\"no-such-service\"")),
    ];
    for (number, (file, text)) in bad.iter().enumerate() {
        let before = fs::read_to_string(file)?;
        fs::write(file, text)?;
        reload(&scene, true).with_context(|| format!("bad configuration {number}"))?;
        let log = scene.server.log()?;
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        ensure!(log.contains(&name), "the log does not name {name}:\n{log}");
        scene.ensure_sees(&owner, Family::V4, SSH_PORT, PortState::Open)?;
        ensure!(scene.server.rules()? == rules, "a bad configuration has changed the rules");
        ensure!(scene.server.grants()?.len() == grants, "{:?}", scene.server.grants()?);
        fs::write(file, before)?;
        reload(&scene, false)?;
    }
    session.ensure_alive()?;
    scene.server.ensure_unharmed()?;
    scene.ensure_owner_gets_in(Family::V6)
}

#[test]
fn a_configuration_that_others_may_write_is_refused() -> Result<()> {
    let scene = Scene::new()?;
    let path = scene.server.config_path();
    fs::set_permissions(&path, Permissions::from_mode(0o666))?;
    reload(&scene, true)?;
    let reason = scene.server.status()?.last_reload.unwrap_or_default();
    ensure!(reason.contains("chmod"), "it does not say how to mend it: {reason}");
    fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    reload(&scene, false)?;
    scene.ensure_owner_gets_in(Family::V4)
}

#[test]
fn a_good_configuration_keeps_the_grants_but_for_those_that_it_forbids() -> Result<()> {
    let mut scene = Scene::prepared(|_| {})?;
    let (_, second) = scene.add_client("second", |_| {})?;
    let (_, third) = scene.add_client("third", |_| {})?;
    scene.server.start()?;
    let (owner, other, far) =
        (scene.lab.owner().clone(), scene.lab.other().clone(), scene.lab.third().clone());
    for (host, device) in [(&owner, &scene.laptop), (&other, &second), (&far, &third)] {
        scene.knock(host, Family::V4, &device.open("ssh web").lifetime(600).seal()?)?;
        scene.await_open(host, Family::V4, SSH_PORT)?;
        scene.await_open(host, Family::V4, WEB_PORT)?;
    }
    let mut session = scene.sshd.session(&other, Family::V4)?;
    reload_now(&scene)?;
    ensure!(scene.server.grants()?.len() == 6, "{:?}", scene.server.grants()?);

    // `laptop` loses a service, `second` is disabled, `third` may not come from there any more.
    scene.server.reconfigure(|configuration| {
        for client in &mut configuration.clients {
            match client.name.as_str() {
                "laptop" => client.allow = vec!["ssh".into()],
                "second" => client.enabled = Some(false),
                _ => client.sources = Some(vec!["192.0.2.0/24".into()]),
            }
        }
    })?;
    reload(&scene, false)?;
    eventually("what is forbidden is to be revoked", || {
        Ok((scene.server.grants()?.len() == 1).then_some(()))
    })
    .with_context(|| scene.server.account())?;
    scene.ensure_sees(&owner, Family::V4, SSH_PORT, PortState::Open)?;
    scene.ensure_sees(&owner, Family::V4, WEB_PORT, PortState::Filtered)?;
    for host in [&other, &far] {
        for port in [SSH_PORT, WEB_PORT] {
            scene.ensure_sees(host, Family::V4, port, PortState::Filtered)?;
        }
    }
    ensure!(scene.server.audit("revoked")?.len() == 5, "{:?}", scene.server.audit("revoked")?);
    // What is revoked admits no new connection; established ones live on.
    session.ensure_alive()?;
    scene.knock(&other, Family::V4, &second.open("ssh").seal()?)?;
    scene.server.await_dropped("disabled", 1)?;
    scene.ensure_owner_gets_in(Family::V6)
}

/// What is open for longer than may be by now ends earlier, in the kernel as well; and the server does
/// not take that for somebody else's doing.
#[test]
fn a_shorter_lifetime_holds_for_what_is_open() -> Result<()> {
    let mut scene = Scene::new()?;
    let owner = scene.lab.owner().clone();
    let open = |lifetime| scene.laptop.open("ssh").lifetime(lifetime).seal();
    scene.knock(&owner, Family::V4, &open(3000)?)?;
    scene.await_open(&owner, Family::V4, SSH_PORT)?;
    let shorten = |configuration: &mut Configuration| {
        configuration.clients[0].max_lifetime = Some("10m".into());
    };
    let (knock, late) = (open(600)?, open(3000)?);
    scene.server.reconfigure(shorten)?;
    reload_now(&scene)?;
    let ends_in_time = |server: &Server| -> Result<()> {
        let grants = server.grants()?;
        ensure!(matches!(&grants[..], [one] if one.seconds_left <= 600), "{grants:?}");
        Ok(())
    };
    ends_in_time(&scene.server)?;
    let admitted = scene.server.admitted()?;
    ensure!(matches!(admitted[..], [(_, left)] if left <= 602), "{admitted:?}");
    scene.knock(&owner, Family::V4, &late)?;
    scene.server.await_dropped("lifetime", 1)?;
    scene.knock(&owner, Family::V4, &knock)?;
    scene.server.await_accepted(2)?;
    // So long that every comparison that is due has been made.
    let since = scene.server.status()?.uptime;
    eventually("some seconds are to pass", || {
        Ok((scene.server.status()?.uptime >= since + 5).then_some(()))
    })?;
    ensure!(scene.server.status()?.restored == 0, "{}", scene.server.account());
    scene.ensure_sees(&owner, Family::V4, SSH_PORT, PortState::Open)?;
    // Also where the restart finds it longer.
    scene.server.restart()?;
    ends_in_time(&scene.server)
}

/// Somebody is to be out now, and something else is wrong with the configuration.
#[test]
fn whoever_is_locked_out_is_out_whatever_else_is_wrong() -> Result<()> {
    let mut scene = Scene::new()?;
    let owner = scene.lab.owner().clone();
    let (_, second) = scene.add_client("second", |_| {})?;
    reload_now(&scene)?;
    let directory = scene.server.directory().join("clients.d");
    let server_toml = scene.server.config_path();
    let good = fs::read_to_string(&server_toml)?;
    // Something else each time.
    let wrong = [(directory.join("third.toml"), None), (server_toml.clone(), Some(&good))];
    for ((file, before), order) in wrong.iter().zip(["disable", "remove"]) {
        for device in [&scene.laptop, &second] {
            let knock = device.open("ssh").lifetime(600).seal()?;
            let accepted = scene.server.status()?.accepted;
            scene.knock(&owner, Family::V4, &knock)?;
            scene.server.await_accepted(accepted + 1)?;
        }
        let mut session = scene.sshd.session(&owner, Family::V4)?;
        let neighbour = |count| {
            let grants = scene.server.grants()?;
            ensure!(grants.len() == count, "{grants:?}");
            anyhow::Ok(())
        };
        neighbour(2)?;
        fs::write(file, format!("no-such-field = 1\n{}", before.map_or("", String::as_str)))?;
        fs::set_permissions(file, Permissions::from_mode(0o600))?;

        let said = scene.server.admin(&["client", order, "second", "--cut"])?;
        ensure!(
            !said.success() && said.said().contains("locked out all the same: second"),
            "{said}"
        );
        // The other one's grant is for the same address: it protects the session.
        ensure!(said.said().contains("0 connections ended"), "{said}");
        session.ensure_alive()?;
        neighbour(1)?;
        let dropped = scene.server.dropped("disabled")?;
        scene.knock(&owner, Family::V4, &second.open("ssh").seal()?)?;
        scene.server.await_dropped("disabled", dropped + 1)?;
        scene.ensure_owner_gets_in(Family::V6)?;

        match before {
            Some(text) => fs::write(file, text)?,
            None => fs::remove_file(file)?,
        }
        if order == "disable" {
            ensure!(scene.server.admin(&["client", "enable", "second"])?.success());
        }
        reload_now(&scene)?;
        scene.revoke_all()?;
    }
    Ok(())
}

/// A gate whose tool fails: what is forbidden is still open, and whoever has forbidden it is told.
#[test]
fn what_the_kernel_does_not_take_is_told_to_whoever_forbids_it() -> Result<()> {
    let mut scene = Scene::prepared(|configuration| Backend::IPTABLES.choose(configuration))?;
    let tool = BreakableTool::put(&mut scene, "iptables-restore")?;
    scene.server.start()?;
    let owner = scene.lab.owner().clone();
    scene.knock(&owner, Family::V4, &scene.laptop.open("ssh web").lifetime(600).seal()?)?;
    scene.await_open(&owner, Family::V4, SSH_PORT)?;
    scene.await_open(&owner, Family::V4, WEB_PORT)?;
    // The control.
    let said = scene.server.admin(&["reload"])?;
    ensure!(said.success() && !said.said().contains("can't be withdrawn"), "{said}");

    tool.break_it()?;
    scene
        .server
        .reconfigure(|configuration| configuration.clients[0].allow = vec!["ssh".into()])?;
    let said = scene.server.admin(&["reload"])?;
    ensure!(said.said().contains("can't be withdrawn yet"), "{said}");
    // Nobody is told that it is done, however often he asks.
    for what in [&["--all", "--cut"][..], &["--all"], &["laptop", "--cut"], &["laptop"]] {
        let refused = scene.server.admin(&[&["grants", "revoke"], what].concat())?;
        ensure!(!refused.success() && refused.said().contains("tried again"), "{refused}");
        let cuts = what.contains(&"--cut");
        ensure!(refused.said().contains("repeat it with --cut") == cuts, "{refused}");
    }
    tool.mend()?;
    let repeated = scene.server.admin(&["grants", "revoke", "--all", "--cut"])?;
    ensure!(repeated.success(), "{repeated}");
    eventually("what is forbidden is to be shut", || {
        let shut = scene.sees(&owner, Family::V4, SSH_PORT)? == PortState::Filtered;
        Ok(shut.then_some(()))
    })
}

#[test]
fn a_client_that_is_added_gets_in_and_one_that_is_removed_does_not() -> Result<()> {
    let mut scene = Scene::new()?;
    let owner = scene.lab.owner().clone();
    let (_, second) = scene.add_client("second", |_| {})?;
    let early = second.open("ssh").seal()?;
    scene.knock(&owner, Family::V4, &early)?;
    scene.server.await_dropped("unknown-tag", 1)?;

    reload_now(&scene)?;
    let knock = second.open("ssh").lifetime(600).seal()?;
    scene.knock(&owner, Family::V4, &knock)?;
    scene.await_open(&owner, Family::V4, SSH_PORT)?;

    let mut removed = None;
    scene.server.reconfigure(|configuration| removed = configuration.clients.pop())?;
    reload_now(&scene)?;
    scene.ensure_sees(&owner, Family::V4, SSH_PORT, PortState::Filtered)?;
    scene.knock(&owner, Family::V4, &second.open("ssh").seal()?)?;
    scene.server.await_dropped("unknown-tag", 2)?;

    // Back again, it is not open to its old knocks.
    let removed = removed.context("there was no client to remove")?;
    scene.server.reconfigure(|configuration| configuration.clients.push(removed))?;
    reload_now(&scene)?;
    scene.knock(&owner, Family::V4, &knock)?;
    scene.server.await_dropped("replay", 1)?;
    scene.ensure_shut()?;
    scene.knock(&owner, Family::V4, &second.open("ssh").seal()?)?;
    scene.await_open(&owner, Family::V4, SSH_PORT)
}

#[test]
fn a_service_that_is_added_is_hidden_and_opens() -> Result<()> {
    let mut scene = Scene::new()?;
    let owner = scene.lab.owner().clone();
    let _late = spa_tests::Listener::tcp(scene.lab.server(), 9443)?;
    scene.ensure_sees(&owner, Family::V4, 9443, PortState::Open)?;
    scene.server.reconfigure(|configuration| {
        let late =
            spa_tests::Service { ports: vec!["tcp/9443".into()], ..spa_tests::Service::default() };
        configuration.services.insert("late".into(), late);
        configuration.clients[0].allow.push("late".into());
    })?;
    reload_now(&scene)?;
    for family in Family::BOTH {
        scene.ensure_sees(&owner, family, 9443, PortState::Filtered)?;
        scene.knock(&owner, family, &scene.laptop.open("late").seal()?)?;
        scene.await_open(&owner, family, 9443)?;
    }
    Ok(())
}

#[test]
fn one_wrong_client_at_the_start_keeps_nobody_else_out() -> Result<()> {
    let mut scene = Scene::prepared(|_| {})?;
    let (_, second) = scene.add_client("second", |client| client.allow = vec!["nowhere".into()])?;
    scene.server.start()?;
    let status = scene.server.status()?;
    ensure!(status.clients.total == 1, "{status:?}");
    ensure!(status.left_out.len() == 1 && status.left_out[0].contains("second.toml"), "{status:?}");
    ensure!(scene.server.log()?.contains("no service nowhere"), "{}", scene.server.account());
    scene.knock(scene.lab.other(), Family::V4, &second.open("web").seal()?)?;
    scene.server.await_dropped("unknown-tag", 1)?;
    scene.ensure_owner_gets_in(Family::V4)?;

    // Mended, it is a client like any other.
    scene.server.reconfigure(|configuration| {
        for client in &mut configuration.clients {
            client.allow = vec!["ssh".into(), "web".into()];
        }
    })?;
    ensure!(scene.server.admin(&["reload"])?.success());
    ensure!(scene.server.status()?.left_out.is_empty());
    scene.knock(scene.lab.other(), Family::V4, &second.open("web").seal()?)?;
    scene.await_open(scene.lab.other(), Family::V4, WEB_PORT)
}

#[test]
fn a_service_that_comes_to_listen_on_a_knock_port_is_no_alarm() -> Result<()> {
    let scene = Scene::new()?;
    let port = scene.door(Family::V4).port();
    let _listener = spa_tests::Listener::udp(scene.server.host(), port)?;
    let uptime = scene.server.status()?.uptime;
    eventually("some seconds are to pass", || {
        Ok((scene.server.status()?.uptime > uptime + 2).then_some(()))
    })?;
    let status = scene.server.status()?;
    ensure!(status.gate == "installed" && status.restored == 0, "{status:?}");
    scene.ensure_owner_gets_in(Family::V4)
}
