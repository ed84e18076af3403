//! State that another version of this program has written: an earlier one, of before an upgrade, and a
//! later one, of before a downgrade. Nobody gets in by it, and nothing is lost that has to last.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use spa_keys::{Overwrite, PreSharedKey, PrivateKey, write_private_key};
use spa_proto::UnixMicros;
use spa_server::clock::BootMicros;
use spa_server::replay_store::BootId;
use spa_tests::{
    Family, Identity, PortState, SSH_PORT, Scene, WEB_PORT, eventually, now, workspace,
};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the version of 2026-11-30 has left that ran as root in one process: the client `laptop` had
/// announced its next key, and opened `ssh` with it for an hour; then the daemon was stopped.
struct Earlier(PathBuf);

impl Earlier {
    fn new() -> Result<Self> {
        Ok(Self(workspace()?.join("tests/vectors/state-before-the-split")))
    }

    fn identity(&self, name: &str) -> Result<Identity> {
        let text = fs::read_to_string(self.0.join(name))?;
        Ok(text.trim().parse::<PrivateKey>()?.into())
    }

    /// When it was stopped.
    fn at(&self) -> Result<UnixMicros> {
        Ok(UnixMicros(fs::read_to_string(self.0.join("at"))?.trim().parse()?))
    }

    /// The client's next key, with what belongs to it.
    fn next(&self) -> Result<Identity> {
        let text = fs::read_to_string(self.0.join("state/enrolments"))?;
        let (_, pre_shared) = text.split_once(r#""pre_shared":""#).context("none is announced")?;
        let (pre_shared, _) = pre_shared.split_once('"').context("half a key")?;
        Ok(self.identity("next.key")?.with_pre_shared(pre_shared.parse::<PreSharedKey>()?))
    }

    /// Puts its state in place of a server's. Its grants are made those of this boot: after another one
    /// there are none.
    fn put_into(&self, directory: &Path) -> Result<()> {
        let boot = BootId::read()?.to_string();
        let expires = BootMicros::now().0 + 3_600_000_000;
        for entry in fs::read_dir(self.0.join("state"))? {
            let entry = entry?;
            let to = directory.join(entry.file_name());
            if entry.file_name() != "grants.log" {
                fs::copy(entry.path(), &to)?;
                fs::set_permissions(&to, Permissions::from_mode(0o600))?;
                continue;
            }
            let mut lines = String::new();
            for line in fs::read_to_string(entry.path())?.lines() {
                let mut line: Value = serde_json::from_str(line)?;
                if let Some(of) = line.get_mut("boot-id") {
                    *of = boot.clone().into();
                }
                if let Some(until) = line.pointer_mut("/opened/expires") {
                    *until = expires.into();
                }
                lines += &line.to_string();
                lines.push('\n');
            }
            fs::write(to, lines)?;
        }
        Ok(())
    }
}

#[test]
fn state_of_an_earlier_version_is_read_whole() -> Result<()> {
    let earlier = Earlier::new()?;
    let (server, first) = (earlier.identity("server.key")?, earlier.identity("first.key")?);
    let next = earlier.next()?.device(server.public())?;
    let stolen = fs::read(earlier.0.join("knock"))?;
    let mut scene = Scene::prepared(|configuration| {
        for client in &mut configuration.clients {
            client.public_key = first.public().to_string();
        }
    })?;
    let configuration = scene.server.configuration();
    write_private_key(&configuration.private_key_file, server.private(), Overwrite::Replace)?;
    earlier.put_into(&configuration.state_directory)?;
    // It is as if the upgrade were done a second after the stop.
    let ahead =
        i64::try_from(earlier.at()?.0 / 1_000_000)? + 1 - i64::try_from(now().0 / 1_000_000)?;
    scene.server.with_clock()?.set(ahead)?;
    scene.server.start()?;

    let status = scene.server.status()?;
    ensure!(status.barrier_until.is_none(), "a barrier stands: {}", scene.server.account());
    let log = scene.server.log()?;
    for complaint in ["damaged", "ERROR", "is new"] {
        ensure!(!log.contains(complaint), "{log}");
    }
    // What was open is.
    let owner = scene.lab.owner().clone();
    ensure!(scene.server.grants()?.len() == 1, "{:?}", scene.server.grants()?);
    scene.await_open(&owner, Family::V4, SSH_PORT)?;
    scene.ensure_sees(&owner, Family::V4, WEB_PORT, PortState::Filtered)?;
    scene.revoke_all()?;
    // What was accepted is a replay, and the key that was replaced is none.
    scene.knock(scene.lab.other(), Family::V4, &stolen)?;
    scene.server.await_dropped("replay", 1)?;
    let former = first.device(server.public())?.with_clock_ahead(ahead);
    scene.knock(&owner, Family::V4, &former.open("ssh").seal()?)?;
    scene.server.await_dropped("unknown-tag", 1)?;
    scene.ensure_shut()?;
    // The key in its place opens.
    scene.knock(&owner, Family::V4, &next.with_clock_ahead(ahead).open("web").seal()?)?;
    scene.await_open(&owner, Family::V4, WEB_PORT)?;
    scene.server.ensure_unharmed()
}

/// Has a file of JSON say something that only a later version knows.
fn add_to_json(path: &Path) -> Result<()> {
    let mut record: Value = serde_json::from_str(&fs::read_to_string(path)?)?;
    let fields = record.as_object_mut().context("it is no object")?;
    fields.insert("of-a-later-version".into(), true.into());
    Ok(fs::write(path, format!("{record}\n"))?)
}

/// As after a downgrade: what a later version has written is not taken for ours.
#[test]
fn state_of_a_later_version_opens_nothing_for_a_window_and_then_all_is_well() -> Result<()> {
    let mut scene = Scene::with(|configuration| configuration.freshness = "10s".into())?;
    let owner = scene.lab.owner().clone();
    let server = scene.server_identity.public();
    let rotation = scene.identity.rotation(server)?;
    scene.knock(&owner, Family::V4, &rotation.seal()?)?;
    scene.server.await_accepted(1)?;
    let next = rotation.next.device(server)?;
    let stolen = next.open("ssh").lifetime(600).seal()?;
    scene.knock(&owner, Family::V4, &stolen)?;
    scene.await_open(&owner, Family::V4, SSH_PORT)?;
    scene.server.admin(&["refuse", "198.51.100.7", "--for", "10m"])?.ok()?;
    let mut session = scene.sshd.session(&owner, Family::V4)?;
    scene.server.stop()?;

    let state = scene.server.configuration().state_directory.clone();
    let mut store = fs::read(scene.server.replay_store())?;
    ensure!(store.starts_with(b"SPAREPL1"));
    store[7] = b'2';
    fs::write(scene.server.replay_store(), store)?;
    let list = state.join("grants.log");
    let grants = fs::read_to_string(&list)?;
    let later = grants.replacen("\"version\":1", "\"version\":2", 1);
    ensure!(later != grants, "{grants}");
    fs::write(&list, later)?;
    add_to_json(&state.join("refused-sources"))?;
    let mut of_gate = state.clone().into_os_string();
    of_gate.push("-gate");
    let last_gate = PathBuf::from(of_gate).join("last-gate");
    add_to_json(&last_gate)?;
    // A kind of event that this version has no word for, whole by its checksum.
    let of_later = "8d42bec79147c94e {\"event\":\"suspended\"}\n";
    let enrolments = scene.server.enrolments();
    fs::write(&enrolments, fs::read_to_string(&enrolments)? + of_later)?;

    scene.server.start()?;
    ensure!(scene.server.status()?.barrier_until.is_some(), "no barrier stands");
    ensure!(scene.server.grants()?.is_empty(), "{:?}", scene.server.grants()?);
    for knock in [stolen.clone(), next.open("ssh").seal()?] {
        let barred = scene.server.dropped("barrier")?;
        scene.knock(scene.lab.other(), Family::V4, &knock)?;
        scene.server.await_dropped("barrier", barred + 1)?;
    }
    scene.ensure_shut()?;
    session.ensure_alive()?;
    let log = scene.server.log()?;
    for told in [
        "the replay store is damaged",
        "it is not known who was refused",
        "has 1 lines of a later version of this program",
    ] {
        ensure!(log.contains(told), "{told}: {log}");
    }
    // A boot finds the gate that stands now.
    ensure!(!fs::read_to_string(&last_gate)?.contains("of-a-later-version"), "it was not written");

    scene.server.await_barrier_end(Duration::from_secs(10))?;
    scene.knock(&owner, Family::V4, &next.open("ssh").seal()?)?;
    scene.await_open(&owner, Family::V4, SSH_PORT)?;
    // It was told once, and is there for the version that knows it.
    let before = scene.server.log()?.len();
    scene.server.restart()?;
    let log = scene.server.log()?;
    ensure!(!log[before..].contains("later version"), "{log}");
    ensure!(fs::read_to_string(&enrolments)?.contains(of_later), "it is lost");
    eventually("what is open is to be", || {
        Ok((scene.sees(&owner, Family::V4, SSH_PORT)? == PortState::Open).then_some(()))
    })
}
