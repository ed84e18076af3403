//! From an invitation to a port that opens, and from one key of a client to the next: the real
//! server, the real client, and whoever comes too late.

#[path = "enrol/hardship.rs"]
mod hardship;

use anyhow::{Context, Result, ensure};
use spa_tests::{
    Family, Finished, Laptop, PortState, SSH_PORT, Scene, eventually, finish, finish_reading,
    interop_python, now,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The line that the client's user gets, by the real command.
fn invite(scene: &Scene, name: &str, words: &[&str]) -> Result<String> {
    let hosts = Family::BOTH.map(|family| scene.lab.server().address(family).to_string());
    let mut all = vec!["invite", name, "--allow", "ssh"];
    all.extend(hosts.iter().flat_map(|host| ["--host", host]));
    all.extend_from_slice(words);
    Ok(scene.server.admin(&all)?.ok()?.trim().to_owned())
}

/// Runs `spa-client join -` with this line on standard input.
fn join(laptop: &Laptop, line: &str, words: &[&str]) -> Result<Finished> {
    let words = [&["join", "-", "--name", "gateway"], words].concat();
    finish_reading(line, &mut laptop.command(&words)?)
}

fn laptop(scene: &Scene, name: &str) -> Laptop {
    Laptop::new(&scene.lab, scene.lab.owner(), name)
}

/// What a laptop is like that has a copy of all that this one has.
fn copy_of(scene: &Scene, laptop: &Laptop, name: &str) -> Result<Laptop> {
    let copy = self::laptop(scene, name);
    finish(Command::new("cp").arg("-a").arg(laptop.configuration()).arg(copy.configuration()))?
        .ok()?;
    // It has asked for nothing yet.
    let _ = fs::remove_dir_all(copy.configuration().join("state"));
    Ok(copy)
}

fn public_key(laptop: &Laptop) -> Result<String> {
    Ok(laptop.run(&["key", "show", "gateway"])?.ok()?.trim().to_owned())
}

/// By both families, whatever was open before.
fn ensure_gets_in(scene: &Scene, laptop: &Laptop) -> Result<()> {
    close(scene, laptop)?;
    laptop.run(&["open", "ssh@gateway", "--wait", "--fresh"])?.ok()?;
    for family in Family::BOTH {
        scene.await_open(scene.lab.owner(), family, SSH_PORT)?;
        scene.sshd.login(scene.lab.owner(), family, "true")?.ok()?;
    }
    close(scene, laptop)
}

fn close(scene: &Scene, laptop: &Laptop) -> Result<()> {
    laptop.run(&["close", "ssh@gateway"])?.ok()?;
    for family in Family::BOTH {
        scene.await_state(scene.lab.owner(), family, SSH_PORT, PortState::Filtered)?;
    }
    Ok(())
}

fn ensure_kept_out(scene: &Scene, laptop: &Laptop, reason: &str) -> Result<()> {
    let before = scene.server.dropped(reason)?;
    let tried = laptop.run(&["open", "ssh@gateway", "--wait", "--fresh", "--timeout", "2s"])?;
    ensure!(tried.status.code() == Some(1), "{tried}");
    ensure!(scene.server.dropped(reason)? > before, "{reason} is not counted");
    for family in Family::BOTH {
        scene.ensure_sees(scene.lab.owner(), family, SSH_PORT, PortState::Filtered)?;
    }
    Ok(())
}

#[test]
fn an_invited_client_joins_once_and_for_good() -> Result<()> {
    let mut scene = Scene::new()?;
    let line = invite(&scene, "tablet", &[])?;
    ensure!(line.starts_with("spa-client join spa1:") && !line.contains('\n'), "{line}");
    let listed = scene.server.admin(&["client", "list"])?.ok()?;
    ensure!(listed.contains("tablet") && listed.contains("invited"), "{listed}");

    let tablet = laptop(&scene, "tablet");
    let joined = join(&tablet, &line, &["--json"])?;
    ensure!(joined.success(), "{joined}");
    let report: serde_json::Value = serde_json::from_str(&joined.stdout)?;
    ensure!(report["server"] == "gateway" && report["opened"]["item"] == "ssh", "{report}");
    let key = public_key(&tablet)?;
    ensure!(report["public_key"] == key.as_str(), "{report}");
    let enrolled = scene.server.audit("enrolled")?;
    ensure!(enrolled.len() == 1, "{enrolled:?}");
    ensure!(enrolled[0].contains("client=tablet") && enrolled[0].contains(&key), "{enrolled:?}");
    let shown = scene.server.admin(&["client", "show", "tablet"])?.ok()?;
    ensure!(shown.contains(&key) && shown.contains("used"), "{shown}");
    ensure_gets_in(&scene, &tablet)?;

    // The same again has no effect, and opens as well.
    join(&tablet, &line, &[])?.ok()?;
    ensure!(scene.server.audit("enrolled")?.len() == 1);
    // What is open shows nothing, and is not taken for a sign.
    let thief = laptop(&scene, "thief");
    let sent = join(&thief, &line, &["--timeout", "2s", "--json"])?;
    ensure!(sent.success() && sent.stderr.contains("was open before"), "{sent}");
    let report: serde_json::Value = serde_json::from_str(&sent.stdout)?;
    ensure!(report["opened"].is_null(), "{report}");
    close(&scene, &tablet)?;
    // Another key comes too late: the trail has both.
    let refused = join(&thief, &line, &["--timeout", "2s"])?;
    ensure!(refused.status.code() == Some(1), "{refused}");
    ensure!(refused.stderr.contains("invitation-used"), "{refused}");
    let other = public_key(&thief)?;
    let told = eventually("the refusal is to be told", || {
        Ok(scene.server.audit("refused")?.into_iter().find(|it| it.contains("invitation-used")))
    })?;
    ensure!(
        told.contains("client=tablet") && told.contains(&key) && told.contains(&other),
        "{told}"
    );
    ensure_kept_out(&scene, &thief, "unknown-tag")?;

    // All of that outlives the daemon, also one that is killed.
    scene.server.restart()?;
    ensure_gets_in(&scene, &tablet)?;
    scene.server.kill9()?;
    scene.server.start()?;
    ensure_gets_in(&scene, &tablet)?;
    let refused = join(&thief, &line, &["--timeout", "2s"])?;
    ensure!(refused.status.code() == Some(1), "{refused}");
    // What it may do is the administrator's business, as for any other client.
    scene.server.admin(&["client", "disable", "tablet"])?.ok()?;
    ensure_kept_out(&scene, &tablet, "disabled")?;
    scene.server.admin(&["client", "enable", "tablet"])?.ok()?;
    ensure_gets_in(&scene, &tablet)?;
    scene.server.admin(&["client", "remove", "tablet"])?.ok()?;
    ensure_kept_out(&scene, &tablet, "unknown-tag")
}

#[test]
fn an_invitation_ends_and_is_no_use_after_the_records_were_lost() -> Result<()> {
    let mut scene = Scene::new()?;
    let line = invite(&scene, "tablet", &[])?;
    let file = scene.server.directory().join("clients.d/tablet.toml");
    let text = fs::read_to_string(&file)?;
    let expires = text.lines().find(|line| line.starts_with("expires")).context("no end")?;
    // The server's clock decides, whatever the line says.
    fs::write(&file, text.replace(expires, "expires = \"2026-01-01T00:00:00Z\""))?;
    scene.server.admin(&["reload"])?.ok()?;
    let tablet = laptop(&scene, "tablet");
    let refused = join(&tablet, &line, &["--timeout", "2s"])?;
    ensure!(refused.status.code() == Some(1), "{refused}");
    ensure!(scene.server.dropped("invitation-expired")? > 0);
    // Put right, the same line goes on where it was.
    fs::write(&file, &text)?;
    scene.server.admin(&["reload"])?.ok()?;
    let key = public_key(&tablet)?;
    join(&tablet, &line, &[])?.ok()?;
    ensure!(public_key(&tablet)? == key);

    close(&scene, &tablet)?;

    // Who was invited before the records were lost may have come before.
    let late = invite(&scene, "late", &[])?;
    scene.server.stop()?;
    fs::remove_file(scene.server.configuration().state_directory.join("enrolments"))?;
    scene.server.start()?;
    let phone = laptop(&scene, "phone");
    let refused = join(&phone, &late, &["--timeout", "2s"])?;
    ensure!(refused.status.code() == Some(1), "{refused}");
    ensure!(scene.server.dropped("invitation-void")? > 0);
    for family in Family::BOTH {
        scene.await_state(scene.lab.owner(), family, SSH_PORT, PortState::Filtered)?;
    }
    ensure_kept_out(&scene, &tablet, "unknown-tag")?;
    // A new one is good.
    scene.server.admin(&["client", "remove", "late"])?.ok()?;
    let line = invite(&scene, "late", &[])?;
    fs::remove_dir_all(phone.configuration())?;
    join(&phone, &line, &[])?.ok()?;
    ensure_gets_in(&scene, &phone)
}

#[test]
fn a_client_gets_a_new_key_and_the_old_one_dies() -> Result<()> {
    let mut scene = Scene::new()?;
    let tablet = laptop(&scene, "tablet");
    join(&tablet, &invite(&scene, "tablet", &[])?, &[])?.ok()?;
    let old = copy_of(&scene, &tablet, "old")?;
    let before = public_key(&tablet)?;
    let rotated = tablet.run(&["rotate", "--json"])?;
    ensure!(rotated.success(), "{rotated}");
    let report: serde_json::Value = serde_json::from_str(&rotated.stdout)?;
    let key = public_key(&tablet)?;
    ensure!(report["done"] == true && report["old_public_key"] == before.as_str(), "{report}");
    ensure!(report["public_key"] == key.as_str() && key != before, "{report}");
    for event in ["rotation-announced", "rotated"] {
        let told = scene.server.audit(event)?;
        ensure!(told.len() == 1, "{event}: {told:?}");
        let has_both = told[0].contains(&key) && told[0].contains(&format!("old={before}"));
        ensure!(has_both && told[0].contains("client=tablet"), "{told:?}");
    }
    ensure_gets_in(&scene, &tablet)?;
    ensure_kept_out(&scene, &old, "unknown-tag")?;
    scene.server.kill9()?;
    scene.server.start()?;
    ensure_gets_in(&scene, &tablet)?;
    ensure_kept_out(&scene, &old, "unknown-tag")?;
    // Once more, from the key that was announced, which another server has meanwhile.
    let other = scene.server_identity.public().to_string();
    let shared = tablet.configuration().join("gateway.key");
    let identity = shared.display().to_string();
    let words = ["server", "add", "other", "--host", "gw", "--public-key", &other];
    tablet.run(&[&words[..], &["--identity", &identity]].concat())?.ok()?;
    let kept = fs::read(&shared)?;
    tablet.run(&["rotate", "gateway"])?.ok()?;
    ensure!(fs::read(&shared)? == kept, "the other server's key is gone");
    ensure!(public_key(&tablet)? != key);
    ensure_gets_in(&scene, &tablet)?;
    // An interrupted end is an end.
    let place = tablet.configuration().join("gateway-2.key");
    fs::copy(&place, tablet.configuration().join("gateway-2.key.next"))?;
    let done = tablet.run(&["rotate", "gateway"])?;
    ensure!(done.success() && done.stderr.contains("already"), "{done}");
    ensure!(!tablet.configuration().join("gateway-2.key.next").exists());
    ensure_gets_in(&scene, &tablet)
}

#[test]
fn one_key_is_pending_at_a_time_and_who_is_disabled_is_so_with_both() -> Result<()> {
    let scene = Scene::new()?;
    let tablet = laptop(&scene, "tablet");
    join(&tablet, &invite(&scene, "tablet", &[])?, &[])?.ok()?;
    let thief = copy_of(&scene, &tablet, "thief")?;
    // Nothing of it can be probed, as far as this client knows: so nothing is tried.
    let configuration = tablet.configuration().join("config.toml");
    let text = fs::read_to_string(&configuration)?;
    fs::write(&configuration, text.replace("ssh = [\"tcp/22\"]", "ssh = [\"udp/22\"]"))?;
    let announced = tablet.run(&["rotate"])?;
    ensure!(announced.success() && announced.stderr.contains("--finish"), "{announced}");
    ensure!(scene.server.audit("rotation-announced")?.len() == 1);
    // The old key still opens, and so it does for whoever has a copy; but he can't announce his own.
    ensure_gets_in(&scene, &thief)?;
    let refused = thief.run(&["rotate", "--timeout", "2s"])?;
    ensure!(refused.status.code() == Some(1), "{refused}");
    ensure!(refused.stderr.contains("rotation-pending"), "{refused}");
    ensure!(scene.server.dropped("rotation-pending")? > 0);
    ensure!(scene.server.audit("rotation-announced")?.len() == 1);

    scene.server.admin(&["client", "disable", "tablet"])?.ok()?;
    ensure_kept_out(&scene, &thief, "disabled")?;
    tablet.run(&["rotate", "--finish"])?.ok()?;
    fs::write(&configuration, &text)?;
    set_identity_as(&tablet)?;
    ensure_kept_out(&scene, &tablet, "disabled")?;
    scene.server.admin(&["client", "enable", "tablet"])?.ok()?;
    ensure_gets_in(&scene, &tablet)?;
    ensure!(scene.server.audit("rotated")?.len() == 1);
    ensure_kept_out(&scene, &thief, "unknown-tag")
}

/// What `rotate` may have written into the file that was put back is of no use there.
fn set_identity_as(laptop: &Laptop) -> Result<()> {
    let shown = laptop.run(&["list", "--json"])?.ok()?;
    ensure!(shown.contains("gateway.key"), "{shown}");
    Ok(())
}

#[test]
fn a_client_in_another_language_joins() -> Result<()> {
    let scene = Scene::new()?;
    let line = invite(&scene, "python", &[])?;
    let invitation = line.split_whitespace().next_back().context("no invitation")?;
    let (python, directory) = interop_python()?;
    let files: Vec<PathBuf> =
        ["private", "psk"].map(|name| scene.lab.directory().join(name)).to_vec();
    let mut command = scene.lab.owner().command(&python)?;
    command.arg(directory.join("knock.py")).arg("join");
    command.arg("--client-private-file").arg(&files[0]).arg("--psk-file").arg(&files[1]);
    finish_reading(invitation, &mut command)?.ok()?;
    let enrolled = eventually("it is to be enrolled", || {
        Ok(scene.server.audit("enrolled")?.into_iter().next())
    })?;
    ensure!(enrolled.contains("client=python"), "{enrolled}");
    // Its keys are those that our own client takes over.
    let laptop = laptop(&scene, "taken");
    fs::create_dir_all(laptop.configuration())?;
    take_over(&scene, &laptop, &files)?;
    laptop.run(&["open", "ssh@gateway", "--wait"])?.ok()?;
    scene.await_open(scene.lab.owner(), Family::V4, SSH_PORT)
}

fn take_over(scene: &Scene, laptop: &Laptop, files: &[PathBuf]) -> Result<()> {
    let path = |file: &Path| file.display().to_string();
    let server = scene.server_identity.public().to_string();
    let host = scene.lab.server().address(Family::V4).to_string();
    let port = scene.server.configuration().knock_ports[0].to_string();
    laptop
        .run(&[
            "server",
            "add",
            "gateway",
            "--host",
            &host,
            "--public-key",
            &server,
            "--knock-port",
            &port,
            "--identity",
            &path(&files[0]),
            "--pre-shared-key-file",
            &path(&files[1]),
        ])?
        .ok()?;
    Ok(())
}

#[test]
fn a_server_gets_a_new_key_and_nobody_is_locked_out_meanwhile() -> Result<()> {
    let mut scene = Scene::new()?;
    let tablet = laptop(&scene, "tablet");
    join(&tablet, &invite(&scene, "tablet", &[])?, &[])?.ok()?;
    let invited = invite(&scene, "phone", &[])?;
    let printed = scene.server.admin(&["rotate-key", "--for", "1h"])?.ok()?;
    let key = printed.split_whitespace().next_back().context("no key")?;
    // By the old key, by an invitation from before, and after a restart.
    ensure_gets_in(&scene, &tablet)?;
    let opened = scene.server.audit("opened")?;
    let last = opened.last().context("nothing opened")?;
    ensure!(last.contains("server-key=previous"), "{last}");
    let phone = laptop(&scene, "phone");
    join(&phone, &invited, &[])?.ok()?;
    ensure_gets_in(&scene, &phone)?;
    scene.server.restart()?;
    ensure_gets_in(&scene, &phone)?;
    // What was stolen with the old key is not to outlive it.
    let refused = phone.run(&["rotate", "--timeout", "2s"])?;
    ensure!(refused.status.code() == Some(1), "{refused}");
    ensure!(scene.server.dropped("previous-server-key")? > 0);
    phone.run(&["rotate", "--abandon"])?.ok()?;
    // By the new key, beside it.
    tablet.run(&["server", "set-key", "gateway", key])?.ok()?;
    ensure_gets_in(&scene, &tablet)?;
    let opened = scene.server.audit("opened")?;
    ensure!(opened.last().is_some_and(|it| !it.contains("server-key")), "{opened:?}");
    ensure_gets_in(&scene, &phone)?;
    tablet.run(&["rotate"])?.ok()?;
    ensure_gets_in(&scene, &tablet)?;
    let again = scene.server.admin(&["rotate-key"])?;
    ensure!(!again.success() && again.stderr.contains("one at a time"), "{again}");
    // The time is over.
    let file = scene.server.config_path();
    let text = fs::read_to_string(&file)?;
    let until = text.lines().find(|it| it.starts_with("previous-key-until")).context("no end")?;
    fs::write(&file, text.replace(until, "previous-key-until = \"2026-01-01T00:00:00Z\""))?;
    scene.server.admin(&["reload"])?.ok()?;
    ensure_kept_out(&scene, &phone, "unknown-tag")?;
    ensure_gets_in(&scene, &tablet)?;
    phone.run(&["server", "set-key", "gateway", key])?.ok()?;
    ensure_gets_in(&scene, &phone)
}

#[test]
fn what_was_closed_with_the_old_key_stays_closed_for_the_new_one() -> Result<()> {
    let mut scene = Scene::new()?;
    let owner = scene.lab.owner().clone();
    let rotation = scene.identity.rotation(scene.server_identity.public())?;
    let next = rotation.next.device(scene.server_identity.public())?;
    scene.knock(&owner, Family::V4, &rotation.seal()?)?;
    scene.server.await_accepted(1)?;
    // Held back by somebody on the way; meanwhile the owner changes his mind.
    let held = |stamp| next.open("ssh").at(stamp).seal();
    let before = now();
    scene.knock(&owner, Family::V4, &scene.laptop.close("ssh").seal()?)?;
    scene.server.await_accepted(2)?;
    scene.knock(&owner, Family::V4, &held(before)?)?;
    scene.server.await_dropped("superseded", 1)?;
    ensure!(scene.server.audit("rotated")?.is_empty(), "{}", scene.server.account());

    // Also once the old key is none any more, and for the daemon after that.
    scene.knock(&owner, Family::V4, &next.open("web").seal()?)?;
    scene.server.await_accepted(3)?;
    scene.knock(&owner, Family::V4, &held(before)?)?;
    scene.server.await_dropped("superseded", 2)?;
    scene.server.kill9()?;
    scene.server.start()?;
    scene.knock(&owner, Family::V4, &held(before)?)?;
    scene.server.await_dropped("superseded", 1)?;
    scene.server.admin(&["reload"])?.ok()?;
    scene.knock(&owner, Family::V4, &held(before)?)?;
    scene.server.await_dropped("superseded", 2)?;
    scene.knock(&owner, Family::V4, &next.open("ssh").seal()?)?;
    scene.await_open(&owner, Family::V4, SSH_PORT)
}
