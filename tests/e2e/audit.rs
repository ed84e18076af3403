//! The audit trail: one line for each accepted knock, from which everything can be told.

use anyhow::{Context as _, Result, ensure};
use spa_tests::{Family, PortState, SSH_PORT, Scene, eventually};
use std::collections::BTreeMap;

/// The `key=value` pairs of a line, behind its time and level.
fn pairs(line: &str) -> BTreeMap<&str, &str> {
    line.split_whitespace().filter_map(|word| word.split_once('=')).collect()
}

#[test]
fn every_accepted_knock_leaves_one_line_that_tells_who_from_where_what_and_until_when() -> Result<()>
{
    let scene = Scene::new()?;
    let owner = scene.lab.owner();
    for (family, source) in [(Family::V4, "10.66.0.2"), (Family::V6, "fd66::2")] {
        let before = scene.server.audit("opened")?.len();
        let ask = scene
            .laptop
            .open("ssh web")
            .lifetime(600)
            .nonce([7 + u8::from(family == Family::V6); 24]);
        scene.knock(owner, family, &ask.seal()?)?;
        scene.await_open(owner, family, SSH_PORT)?;
        eventually("the knock is to be in the audit trail", || {
            Ok((scene.server.audit("opened")?.len() > before).then_some(()))
        })?;
        let lines = scene.server.audit("opened")?;
        ensure!(lines.len() == before + 1, "{lines:?}");
        let line = pairs(&lines[before]);
        let id = if family == Family::V4 { "0707070707070707" } else { "0808080808080808" };
        for (key, value) in [
            ("event", "opened"),
            ("client", "laptop"),
            ("source", source),
            ("services", "ssh,web"),
            ("lifetime", "600"),
            ("id", id),
        ] {
            ensure!(line.get(key) == Some(&value), "{key} is not {value}: {lines:?}");
        }
        let until: jiff::Timestamp = line.get("until").copied().unwrap_or_default().parse()?;
        let left = until.as_second() - jiff::Timestamp::now().as_second();
        ensure!((540..=600).contains(&left), "it ends in {left} s: {lines:?}");
        // The same id is in the list of grants.
        let grants = scene.server.grants()?;
        ensure!(grants.iter().filter(|grant| grant.request_id == id).count() == 2, "{grants:?}");
    }

    scene.knock(owner, Family::V4, &scene.laptop.close("ssh web").seal()?)?;
    scene.await_state(owner, Family::V4, SSH_PORT, PortState::Filtered)?;
    eventually("the close is to be in the audit trail", || {
        Ok((!scene.server.audit("closed")?.is_empty()).then_some(()))
    })?;
    let closed = scene.server.audit("closed")?;
    ensure!(closed.len() == 1, "{closed:?}");
    ensure!(pairs(&closed[0]).get("services") == Some(&"ssh,web"), "{closed:?}");

    scene.revoke_all()?;
    let revoked = scene.server.audit("revoked")?;
    ensure!(revoked.len() == 2, "one line for each grant that was left: {revoked:?}");
    ensure!(revoked.iter().all(|line| line.contains("by the administrator")), "{revoked:?}");
    Ok(())
}

#[test]
fn the_trail_in_a_file_is_asked_by_client_and_time() -> Result<()> {
    let scene = Scene::new()?;
    let owner = scene.lab.owner();
    scene.knock(owner, Family::V4, &scene.laptop.open("ssh").seal()?)?;
    scene.await_open(owner, Family::V4, SSH_PORT)?;
    let log = scene.server.directory().join("server.log");
    let log = log.to_str().context("no text")?;
    let asked =
        |words: &[&str]| scene.server.admin(&[&["log", "--file", log], words].concat())?.ok();
    let all = asked(&[])?;
    let [line] = all.lines().collect::<Vec<_>>()[..] else { anyhow::bail!("{all}") };
    let written = scene.server.audit("opened")?;
    let message = written.first().and_then(|line| line.split_once("audit: ")).context("no line")?.1;
    ensure!(line.ends_with(message), "{line}\n{message}");
    ensure!(asked(&["--client", "laptop", "--since", "1h"])? == all);
    ensure!(asked(&["--client", "desktop"])?.is_empty());
    ensure!(asked(&["--until", "1h"])?.is_empty());
    let wrong = scene.server.admin(&["log", "--file", log, "--since", "yesterday"])?;
    ensure!(wrong.status.code() == Some(2) && wrong.stderr.contains("7d"), "{wrong}");
    let missing = scene.server.admin(&["log", "--file", "/nowhere"])?;
    ensure!(!missing.success() && missing.stderr.contains("/nowhere"), "{missing}");
    Ok(())
}
