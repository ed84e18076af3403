//! A gate on trial: undone by the kernel itself unless somebody confirms it who got in through it.

use anyhow::{Context, Result, ensure};
use spa_tests::{
    Family, Finished, PortState, SSH_PORT, Scene, eventually, eventually_within, our_binary,
};
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Time enough to do something in it, on a busy machine too.
const LONG: &str = "10m";
/// A trial that is waited for.
const SHORT: &str = "6s";
const SHORT_TIME: Duration = Duration::from_secs(6);

fn begin(scene: &Scene, length: &str) -> Result<()> {
    let begun = scene.server.admin(&["gate", "install", "--trial", length])?;
    ensure!(begun.success() && begun.said().contains("spa-server gate confirm"), "{begun}");
    hidden(scene)
}

fn hidden(scene: &Scene) -> Result<()> {
    for family in Family::BOTH {
        scene.ensure_sees(scene.lab.other(), family, SSH_PORT, PortState::Filtered)?;
    }
    Ok(())
}

/// Waits until the ports are as if there were no gate.
fn await_undone(scene: &Scene) -> Result<()> {
    for family in Family::BOTH {
        let to = scene.lab.server().at(family, SSH_PORT);
        eventually_within(SHORT_TIME * 10, "the kernel is to stop refusing", || {
            Ok((scene.lab.other().tcp(to)? == PortState::Open).then_some(()))
        })
        .with_context(|| scene.server.account())?;
    }
    Ok(())
}

/// Waits for the daemon to have taken it away, and to say so.
fn await_lapsed(scene: &Scene) -> Result<()> {
    eventually("the daemon is to say that the trial has lapsed", || {
        let status = scene.server.status()?;
        Ok((!status.guards && status.gate.contains("not confirmed")).then_some(()))
    })
    .with_context(|| scene.server.account())?;
    ensure!(scene.server.status()?.trial_seconds_left.is_none());
    eventually("the rules are to be gone", || {
        Ok((!scene.server.rules()?.contains("SPA-")).then_some(()))
    })?;
    let checked = scene.server.admin(&["check"])?;
    ensure!(checked.said().contains("not confirmed"), "{checked}");
    ensure!(scene.server.log()?.contains("its trial was not confirmed"));
    await_undone(scene)
}

fn confirm_command(scene: &Scene) -> Result<String> {
    let program = our_binary("spa-server")?;
    let config = scene.server.config_path();
    Ok(format!("{} --config {} gate confirm", program.display(), config.display()))
}

/// That it is no longer on trial.
fn stands_for_good(scene: &Scene) -> Result<()> {
    ensure!(scene.server.status()?.trial_seconds_left.is_none(), "{:?}", scene.server.status()?);
    hidden(scene)
}

#[test]
fn a_new_connection_confirms_and_the_session_of_the_beginning_does_not() -> Result<()> {
    let scene = Scene::new()?;
    let owner = scene.lab.owner().clone();
    scene.ensure_owner_gets_in(Family::V4)?;
    let mut old = scene.sshd.shell(&owner, Family::V4)?;
    // Long enough for all of it, and short enough to be waited for.
    begin(&scene, "40s")?;
    let (began, time) = (Instant::now(), Duration::from_secs(41));
    let left = scene.server.status()?.trial_seconds_left;
    ensure!(left.is_some_and(|left| (1..=40).contains(&left)), "{left:?}");

    let confirm = confirm_command(&scene)?;
    let (code, said) = old.run(&confirm)?;
    ensure!(code == 1 && said.contains("before the trial began"), "{code}: {said}");
    let (code, said) = old.run(&format!("{confirm} --from-console"))?;
    ensure!(code == 1 && said.contains("not the console"), "{code}: {said}");
    ensure!(scene.server.status()?.trial_seconds_left.is_some());

    scene.ensure_owner_gets_in(Family::V6)?;
    let confirmed = scene.sshd.login(&owner, Family::V6, &confirm)?;
    ensure!(confirmed.success(), "{confirmed}\n{}", scene.server.account());
    stands_for_good(&scene)?;
    let (code, said) = old.run(&confirm)?;
    ensure!(code == 1 && said.contains("not on trial"), "{code}: {said}");
    ensure!(began.elapsed() < time, "it was confirmed too late to show anything");
    eventually_within(time * 2, "the time of the trial is to be over", || {
        Ok((began.elapsed() > time).then_some(()))
    })?;
    stands_for_good(&scene)
}

#[test]
fn what_nobody_confirms_is_undone_and_stays_so_over_restarts_until_it_is_installed() -> Result<()> {
    let mut scene = Scene::new()?;
    begin(&scene, SHORT)?;
    await_lapsed(&scene)?;
    scene.server.restart()?;
    await_lapsed(&scene)?;
    // A reload doesn't bring it back, nor does what runs at boot.
    ensure!(scene.server.admin(&["reload"])?.success());
    ensure!(!scene.server.status()?.guards);
    scene.server.stop()?;
    let boot = scene.server.admin(&["gate", "install", "--boot"])?;
    ensure!(boot.success() && boot.said().contains("not confirmed"), "{boot}");
    ensure!(!scene.server.rules()?.contains("SPA-"));
    scene.server.start()?;
    await_lapsed(&scene)?;

    let installed = scene.server.admin(&["gate", "install"])?;
    ensure!(installed.success(), "{installed}");
    hidden(&scene)?;
    scene.server.restart()?;
    hidden(&scene)?;
    scene.ensure_owner_gets_in(Family::V4)
}

#[test]
fn the_kernel_undoes_it_when_the_daemon_is_killed_and_the_next_daemon_leaves_it_so() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.ensure_owner_gets_in(Family::V4)?;
    begin(&scene, SHORT)?;
    scene.server.kill9()?;
    await_undone(&scene)?;
    ensure!(scene.server.rules()?.contains("SPA-"), "who took the rules away?");
    scene.server.start()?;
    await_lapsed(&scene)
}

#[test]
fn a_trial_goes_on_over_a_restart_of_the_daemon_and_a_flush() -> Result<()> {
    let mut scene = Scene::new()?;
    begin(&scene, LONG)?;
    scene.server.restart()?;
    hidden(&scene)?;
    let left = scene.server.status()?.trial_seconds_left;
    ensure!(left.is_some_and(|left| left <= 600), "{left:?}");
    scene.server.host().sh("iptables -t mangle -F PREROUTING")?;
    eventually("the gate is to be put back", || {
        Ok((scene.server.status()?.restored > 0).then_some(()))
    })?;
    // For what was left of its time, as the kernel has it.
    let sets = scene.server.host().sh("ipset save")?;
    let armed: Vec<_> = sets
        .lines()
        .filter(|line| line.starts_with("add ") && line.contains("armed"))
        .filter_map(|line| line.split(" timeout ").nth(1)?.parse::<u64>().ok())
        .collect();
    ensure!(!armed.is_empty() && armed.iter().all(|left| (1..=600).contains(left)), "{sets}");

    scene.ensure_owner_gets_in(Family::V4)?;
    let confirm = confirm_command(&scene)?;
    let confirmed = scene.sshd.login(scene.lab.owner(), Family::V4, &confirm)?;
    ensure!(confirmed.success(), "{confirmed}");
    stands_for_good(&scene)?;
    scene.server.restart()?;
    stands_for_good(&scene)
}

#[test]
fn a_trial_needs_no_daemon() -> Result<()> {
    let mut scene = Scene::prepared(|configuration| {
        configuration.gate.always_admit = vec!["10.66.0.4".into()];
    })?;
    begin(&scene, LONG)?;
    // From an address that needs no knock, nobody being there to hear one.
    let confirm = confirm_command(&scene)?;
    let confirmed = scene.sshd.login(scene.lab.third(), Family::V4, &confirm)?;
    ensure!(confirmed.success(), "{confirmed}");
    hidden(&scene)?;
    ensure!(!scene.server.admin(&["gate", "show"])?.said().contains("on trial"));

    begin(&scene, SHORT)?;
    let shown = scene.server.admin(&["gate", "show"])?;
    ensure!(shown.said().contains("on trial"), "{shown}");
    await_undone(&scene)?;
    let (confirmed, said) = as_on_the_console(&scene, &confirm)?;
    ensure!(confirmed == 1 && said.contains("not confirmed"), "{said}");
    scene.server.start()?;
    await_lapsed(&scene)
}

#[test]
fn on_the_console_it_has_to_be_said_that_it_is_one() -> Result<()> {
    let scene = Scene::new()?;
    begin(&scene, LONG)?;
    let confirm = confirm_command(&scene)?;
    let (code, said) = as_on_the_console(&scene, &confirm)?;
    ensure!(code == 1 && said.contains("--from-console"), "{code}: {said}");
    ensure!(scene.server.status()?.trial_seconds_left.is_some());
    let (code, said) = as_on_the_console(&scene, &format!("{confirm} --from-console"))?;
    ensure!(code == 0, "{code}: {said}");
    stands_for_good(&scene)
}

#[test]
fn a_trial_that_can_not_be_begun_leaves_the_gate_as_it_was() -> Result<()> {
    let scene = Scene::new()?;
    let trial = |length: &str| -> Result<Finished> {
        scene.server.admin(&["gate", "install", "--trial", length])
    };
    for wrong in ["soon", "1s", "2d"] {
        let refused = trial(wrong)?;
        ensure!(!refused.success() && refused.said().contains("--trial"), "{refused}");
    }
    // A directory in place of the file's successor: it can't be written.
    let state = &scene.server.configuration().state_directory;
    fs::create_dir(state.join("trial.new"))?;
    let refused = trial(LONG)?;
    ensure!(!refused.success() && refused.said().contains("trial.new"), "{refused}");
    fs::remove_dir(state.join("trial.new"))?;
    stands_for_good(&scene)?;
    begin(&scene, LONG)
}

/// Runs a command whose parents have no connection, whoever runs the tests: they are gone.
fn as_on_the_console(scene: &Scene, command: &str) -> Result<(i32, String)> {
    let directory = tempfile::tempdir_in(scene.lab.directory())?;
    let (said, status) = (directory.path().join("said"), directory.path().join("status"));
    let path = |path: &Path| path.display().to_string();
    let script = format!(
        "( while kill -0 $$ 2>/dev/null; do sleep 0.02; done; {command} >{said} 2>&1; echo $? >{status}.new; mv {status}.new {status} ) &",
        said = path(&said),
        status = path(&status),
    );
    let mut shell = scene.server.host().command("sh")?;
    shell.args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    ensure!(shell.status()?.success());
    let code = eventually("the command is to end", || Ok(fs::read_to_string(&status).ok()))?;
    Ok((code.trim().parse()?, fs::read_to_string(&said)?))
}
