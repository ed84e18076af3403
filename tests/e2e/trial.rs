//! A gate on trial: undone by the kernel itself unless somebody confirms it who got in through it.

use anyhow::{Context, Result, ensure};
use spa_tests::{
    Backend, BreakableTool, Family, Finished, PortState, SSH_PORT, Scene, at_once, eventually,
    eventually_within, finish, our_binary,
};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Time enough to do something in it, on a busy machine too.
const LONG: &str = "10m";
/// Time enough to be refused twice in, and to be waited for.
const TRIED: &str = "20s";
const TRIED_TIME: Duration = Duration::from_secs(20);
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
    eventually("the rules are to be gone", || Ok((!scene.server.has_gate()?).then_some(())))?;
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
    ensure!(code == 1 && said.contains("before the gate on trial stood"), "{code}: {said}");
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
    ensure!(!scene.server.has_gate()?);
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
    at_once(Backend::ALL, |backend| is_undone_by_the_kernel(backend).context(backend.name))?;
    Ok(())
}

fn is_undone_by_the_kernel(backend: Backend) -> Result<()> {
    let mut scene = Scene::with(|configuration| backend.choose(configuration))?;
    scene.ensure_owner_gets_in(Family::V4)?;
    begin(&scene, SHORT)?;
    scene.server.kill9()?;
    await_undone(&scene)?;
    ensure!(scene.server.has_gate()?, "who took the rules away?");
    scene.server.start()?;
    await_lapsed(&scene)
}

#[test]
fn a_trial_goes_on_over_a_restart_of_the_daemon_and_a_flush() -> Result<()> {
    at_once(Backend::ALL, |backend| goes_on(backend).context(backend.name))?;
    Ok(())
}

fn goes_on(backend: Backend) -> Result<()> {
    let mut scene = Scene::with(|configuration| backend.choose(configuration))?;
    begin(&scene, "30s")?;
    scene.server.restart()?;
    hidden(&scene)?;
    let left = scene.server.status()?.trial_seconds_left;
    ensure!(left.is_some_and(|left| left <= 30), "{left:?}");
    scene.server.host().sh("nft flush ruleset")?;
    eventually("the gate is to be put back", || {
        Ok((scene.server.status()?.restored > 0).then_some(()))
    })?;
    hidden(&scene)?;
    // For what was left of its time, as the kernel has it.
    scene.server.kill9()?;
    await_undone(&scene)?;
    scene.server.start()?;
    await_lapsed(&scene)?;

    begin(&scene, LONG)?;
    scene.server.restart()?;
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
    // The same for the file that a boot goes by: with and without the daemon.
    let in_the_way = scene.server.configuration().gate_directory().join("trial.new");
    fs::create_dir(&in_the_way)?;
    let refused = trial(LONG)?;
    ensure!(!refused.success() && refused.said().contains("a boot would take it"), "{refused}");
    fs::remove_dir(&in_the_way)?;
    stands_for_good(&scene)?;
    begin(&scene, LONG)
}

#[test]
fn who_came_in_while_the_gate_was_put_up_confirms_nothing() -> Result<()> {
    at_once([false, true], |daemon_runs| {
        came_in_meanwhile(daemon_runs).with_context(|| format!("the daemon runs: {daemon_runs}"))
    })?;
    Ok(())
}

fn came_in_meanwhile(daemon_runs: bool) -> Result<()> {
    let mut tool = None;
    let mut scene = Scene::prepared(|configuration| {
        configuration.gate.always_admit = vec!["10.66.0.4".into()];
        let path = configuration.state_directory.with_file_name("iptables-restore");
        configuration.gate.tools.insert("iptables-restore".into(), path.clone());
        tool = Some(path);
    })?;
    let tool = tool.context("the configuration was not made")?;
    let (hang, hangs) = (tool.with_extension("hang"), tool.with_extension("hangs"));
    let script = format!(
        "#!/bin/sh\n\
         while [ -e {} ]; do : >{}; sleep 0.02; done\n\
         exec /usr/sbin/iptables-restore \"$@\"\n",
        hang.display(),
        hangs.display(),
    );
    fs::write(&tool, script)?;
    fs::set_permissions(&tool, Permissions::from_mode(0o755))?;
    if daemon_runs {
        scene.server.start()?;
        ensure!(scene.server.admin(&["gate", "remove"])?.success());
    }

    fs::write(&hang, "")?;
    let mut install = scene.server.admin_command(&["gate", "install", "--trial", LONG])?;
    let install = install.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    eventually("the tool is to hang", || Ok(hangs.exists().then_some(())))?;
    let third = scene.lab.third();
    let mut meanwhile = scene.sshd.shell(third, Family::V4)?;
    fs::remove_file(&hang)?;
    let install = install.wait_with_output()?;
    ensure!(install.status.success(), "{}", String::from_utf8_lossy(&install.stderr));
    hidden(&scene)?;

    let confirm = confirm_command(&scene)?;
    let (code, said) = meanwhile.run(&confirm)?;
    ensure!(code == 1 && said.contains("before the gate on trial stood"), "{code}: {said}");
    // The control: from the same address, a moment later.
    let confirmed = scene.sshd.login(third, Family::V4, &confirm)?;
    ensure!(confirmed.success(), "{confirmed}");
    hidden(&scene)
}

#[test]
fn who_came_through_another_gate_than_the_one_on_trial_confirms_nothing() -> Result<()> {
    let mut scene = Scene::new()?;
    let owner = scene.lab.owner().clone();
    let confirm = confirm_command(&scene)?;
    begin(&scene, LONG)?;
    for again in ["another trial", "a reload", "a restart", "a flush"] {
        scene.ensure_owner_gets_in(Family::V4)?;
        let mut before = scene.sshd.shell(&owner, Family::V4)?;
        match again {
            "another trial" => begin(&scene, LONG)?,
            "a reload" => ensure!(scene.server.admin(&["reload"])?.success()),
            "a restart" => scene.server.restart()?,
            _ => {
                scene.server.host().sh("nft flush ruleset")?;
                eventually("the gate is to be put back", || {
                    Ok((scene.server.status()?.restored > 0).then_some(()))
                })?;
            }
        }
        let (code, said) = before.run(&confirm)?;
        let refused = code == 1 && said.contains("before the gate on trial stood");
        ensure!(refused, "{again}: {code}: {said}");
    }
    scene.ensure_owner_gets_in(Family::V4)?;
    let confirmed = scene.sshd.login(&owner, Family::V4, &confirm)?;
    ensure!(confirmed.success(), "{confirmed}");
    stands_for_good(&scene)
}

#[test]
fn a_gate_that_does_not_stand_is_not_confirmed() -> Result<()> {
    at_once([true, false], |daemon_runs| {
        does_not_stand(daemon_runs).with_context(|| format!("the daemon runs: {daemon_runs}"))
    })?;
    Ok(())
}

fn does_not_stand(daemon_runs: bool) -> Result<()> {
    let mut scene = Scene::prepared(|configuration| {
        configuration.gate.backend = Some("ipset".into());
        configuration.gate.always_admit = vec!["10.66.0.4".into()];
    })?;
    let tool = BreakableTool::put(&mut scene, "iptables-restore")?;
    if daemon_runs {
        scene.server.start()?;
    }
    begin(&scene, LONG)?;
    if daemon_runs {
        // Nobody puts it back for a while.
        tool.break_it()?;
    }
    for line in ["iptables -t mangle -F PREROUTING", "iptables -F INPUT"] {
        scene.server.host().sh(line)?;
    }
    if daemon_runs {
        eventually("the restoration is to fail", || {
            Ok(scene.server.status()?.gate.contains("can't be put back").then_some(()))
        })?;
    }
    let third = scene.lab.third();
    let confirm = confirm_command(&scene)?;
    let refused = scene.sshd.login(third, Family::V4, &confirm)?;
    ensure!(!refused.success() && refused.said().contains("does not stand"), "{refused}");
    let shown = scene.server.admin(&["gate", "show"])?;
    ensure!(shown.said().contains("on trial"), "{shown}");

    // The control.
    if daemon_runs {
        tool.mend()?;
        eventually("the gate is to be put back", || {
            Ok((scene.server.status()?.restored > 0).then_some(()))
        })?;
    } else {
        begin(&scene, LONG)?;
    }
    let confirmed = scene.sshd.login(third, Family::V4, &confirm)?;
    ensure!(confirmed.success(), "{confirmed}");
    hidden(&scene)
}

/// A start may put up the gate of another configuration: if that can't be recorded, nobody is known
/// to have come in through it.
#[test]
fn what_can_not_be_recorded_at_a_restart_is_not_confirmed() -> Result<()> {
    let mut scene = Scene::with(|configuration| {
        configuration.gate.always_admit = vec!["10.66.0.4".into()];
    })?;
    begin(&scene, LONG)?;
    let third = scene.lab.third().clone();
    let mut before = scene.sshd.shell(&third, Family::V4)?;
    // A directory in place of the file's successor: it can't be written.
    let in_the_way = scene.server.configuration().state_directory.join("trial.new");
    scene.server.stop()?;
    fs::create_dir(&in_the_way)?;
    scene.server.start()?;
    fs::remove_dir(&in_the_way)?;
    let confirm = confirm_command(&scene)?;
    let (status, said) = before.run(&confirm)?;
    ensure!(status != 0 && said.contains("could not be recorded"), "{said}");
    let refused = scene.sshd.login(&third, Family::V4, &confirm)?;
    ensure!(!refused.success() && refused.said().contains("could not be recorded"), "{refused}");

    // The control.
    begin(&scene, LONG)?;
    let confirmed = scene.sshd.login(&third, Family::V4, &confirm)?;
    ensure!(confirmed.success(), "{confirmed}");
    stands_for_good(&scene)
}

/// What can't be taken away goes on admitting and refusing: it is tried again, and nobody is told
/// that a grant is revoked before it is.
#[test]
fn a_gate_whose_removal_fails_is_taken_away_as_soon_as_that_works() -> Result<()> {
    at_once([true, false], |by_an_administrator| {
        is_taken_away_late(by_an_administrator)
            .with_context(|| format!("by an administrator: {by_an_administrator}"))
    })?;
    Ok(())
}

fn is_taken_away_late(by_an_administrator: bool) -> Result<()> {
    let mut scene = Scene::prepared(|configuration| Backend::NFTABLES.choose(configuration))?;
    let tool = BreakableTool::put(&mut scene, "nft")?;
    scene.server.start()?;
    scene.ensure_owner_gets_in(Family::V4)?;
    if by_an_administrator {
        tool.break_it()?;
        let removed = scene.server.admin(&["gate", "remove"])?;
        ensure!(!removed.success(), "{removed}");
    } else {
        begin(&scene, SHORT)?;
        tool.break_it()?;
    }
    eventually("the daemon is to say what is left", || {
        let status = scene.server.status()?;
        Ok((!status.guards && status.gate.contains("something of it is left")).then_some(()))
    })
    .with_context(|| scene.server.account())?;
    ensure!(scene.server.has_gate()?);
    let revoked = scene.server.admin(&["grants", "revoke", "--all"])?;
    ensure!(!revoked.success() && revoked.said().contains("is left"), "{revoked}");
    tool.mend()?;
    eventually("the rest is to go", || Ok((!scene.server.has_gate()?).then_some(())))
        .with_context(|| scene.server.account())?;
    eventually("the daemon is to say that it is gone", || {
        Ok((!scene.server.status()?.gate.contains("is left")).then_some(()))
    })?;
    // The control.
    ensure!(scene.server.admin(&["grants", "revoke", "--all"])?.success());
    await_undone(&scene)
}

/// Makes the directories of the state read-only, for who runs the shell that this is given to.
fn make_read_only(scene: &Scene) -> String {
    let configuration = scene.server.configuration();
    let both = [configuration.state_directory.clone(), configuration.gate_directory()];
    let mounts = both.map(|directory| {
        let it = directory.display();
        format!("mkdir -p {it} && mount --bind {it} {it} && mount -o remount,bind,ro {it}")
    });
    mounts.join(" && ")
}

#[test]
fn a_trial_that_can_not_be_ended_in_the_file_goes_on_in_the_kernel() -> Result<()> {
    let mut scene = Scene::new()?;
    begin(&scene, TRIED)?;
    let pid = scene.server.pid()?;
    let ro = make_read_only(&scene);
    finish(Command::new("nsenter").args([
        &format!("--mount=/proc/{pid}/ns/mnt"),
        "sh",
        "-c",
        &ro,
    ]))?
    .ok()?;
    scene.ensure_owner_gets_in(Family::V4)?;
    let confirm = confirm_command(&scene)?;
    let refused = scene.sshd.login(scene.lab.owner(), Family::V4, &confirm)?;
    ensure!(!refused.success() && said_to_be_as_it_was(&refused), "{refused}");
    let refused = scene.server.admin(&["gate", "install"])?;
    ensure!(!refused.success() && said_to_be_as_it_was(&refused), "{refused}");
    let left = scene.server.status()?.trial_seconds_left;
    ensure!(left.is_some_and(|left| left > 0), "{left:?}: too late to show anything");
    // With nobody there who could do it, it is the kernel that undoes it.
    scene.server.kill9()?;
    await_undone(&scene)?;
    scene.server.start()?;
    await_lapsed(&scene)?;
    // The control: where it can be written, it is done.
    begin(&scene, LONG)?;
    scene.ensure_owner_gets_in(Family::V4)?;
    let confirmed = scene.sshd.login(scene.lab.owner(), Family::V4, &confirm)?;
    ensure!(confirmed.success(), "{confirmed}");
    scene.server.restart()?;
    stands_for_good(&scene)
}

#[test]
fn without_a_daemon_neither_is_a_trial_ended_that_can_not_be_ended_in_the_file() -> Result<()> {
    let scene = Scene::prepared(|configuration| {
        configuration.gate.always_admit = vec!["10.66.0.4".into()];
    })?;
    let ro = make_read_only(&scene);
    let program = our_binary("spa-server")?;
    let config = scene.server.config_path();
    let install = format!("{} --config {} gate install", program.display(), config.display());
    let in_vain = |order: &str| format!("unshare --mount sh -c '{ro} && exec {order}'");
    let shell = |line: &str| finish(scene.server.host().command("sh")?.args(["-c", line]));
    // What needs no record needs no file that can be written; it tells what it could not remember.
    let installed = shell(&in_vain(&install))?;
    ensure!(installed.success(), "{installed}");
    ensure!(installed.said().contains("does not know of this gate"), "{installed}");
    hidden(&scene)?;

    begin(&scene, TRIED)?;
    let began = Instant::now();
    let refused = shell(&in_vain(&install))?;
    ensure!(!refused.success() && said_to_be_as_it_was(&refused), "{refused}");
    let confirm = in_vain(&confirm_command(&scene)?);
    let refused = scene.sshd.login(scene.lab.third(), Family::V4, &confirm)?;
    ensure!(!refused.success() && said_to_be_as_it_was(&refused), "{refused}");
    ensure!(began.elapsed() < TRIED_TIME, "it was over before that could show anything");
    await_undone(&scene)?;
    let shown = scene.server.admin(&["gate", "show"])?;
    ensure!(shown.said().contains("not confirmed"), "{shown}");

    // After it, too: nothing is put up that the next start would take away.
    let refused = shell(&in_vain(&install))?;
    ensure!(!refused.success() && said_to_be_as_it_was(&refused), "{refused}");
    await_undone(&scene)?;
    let installed = shell(&install)?;
    ensure!(installed.success(), "{installed}");
    hidden(&scene)
}

fn said_to_be_as_it_was(refused: &Finished) -> bool {
    let said = refused.said();
    said.contains("the gate is as it was") && said.contains("Read-only file system")
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
