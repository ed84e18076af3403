//! The tools that speak to the kernel are missing, fail or hang: the daemon refuses to start, or
//! says "failed", and never "opened".

use anyhow::{Result, ensure};
use spa_tests::{Family, PortState, SSH_PORT, Scene, eventually, eventually_within, program};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A tool in place of the real one, which it calls until a file tells it otherwise.
struct Stand {
    tool: PathBuf,
    trouble: PathBuf,
}

impl Stand {
    fn new(directory: &Path, name: &str) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let (tool, trouble) = (directory.join(name), directory.join(format!("{name}.trouble")));
        let text = format!(
            "#!/bin/sh\nif [ -e {trouble} ]; then . {trouble}; fi\nexec {real} \"$@\"\n",
            trouble = trouble.display(),
            real = program(name)?.display(),
        );
        fs::write(&tool, text)?;
        fs::set_permissions(&tool, Permissions::from_mode(0o755))?;
        Ok(Self { tool, trouble })
    }

    /// From now on it does this first.
    fn does(&self, script: &str) -> Result<()> {
        Ok(fs::write(&self.trouble, format!("{script}\n"))?)
    }

    fn is_well_again(&self) -> Result<()> {
        Ok(fs::remove_file(&self.trouble)?)
    }
}

/// A scene, not started, whose server uses a stand-in for the tool.
fn with_stand(name: &str) -> Result<(Scene, Stand)> {
    let mut scene = Scene::prepared(|_| {})?;
    let stand = Stand::new(&scene.lab.directory().join("tools"), name)?;
    let tool = stand.tool.clone();
    scene.server.reconfigure(|configuration| {
        configuration.gate.tools.insert(name.into(), tool);
    })?;
    Ok((scene, stand))
}

#[test]
fn without_a_tool_the_start_is_refused_and_the_tool_named() -> Result<()> {
    for name in ["iptables-restore", "ip6tables-restore", "iptables-save"] {
        let mut scene = Scene::prepared(|configuration| {
            configuration.gate.tools.insert(name.into(), "/nonexistent/tool".into());
        })?;
        let rules = scene.server.rules()?;
        let (_, log) = scene.server.start_in_vain()?;
        ensure!(log.contains("/nonexistent/tool"), "the tool is not named:\n{log}");
        ensure!(scene.server.rules()? == rules, "something was installed nevertheless");
        scene.server.reconfigure(|configuration| configuration.gate.tools.clear())?;
        scene.server.start()?;
        scene.ensure_owner_gets_in(Family::V4)?;
    }
    Ok(())
}

#[test]
fn when_a_tool_fails_the_start_is_refused_and_nothing_stays() -> Result<()> {
    for name in ["iptables-restore", "ip6tables-restore", "iptables-save"] {
        let (mut scene, stand) = with_stand(name)?;
        let rules = scene.server.rules()?;
        stand.does("echo 'no such luck' >&2; exit 3")?;
        let (_, log) = scene.server.start_in_vain()?;
        ensure!(log.contains("no such luck"), "{name}: its message is lost:\n{log}");
        ensure!(log.contains(name), "{name} is not named:\n{log}");
        let now = scene.server.rules()?;
        let left: Vec<_> = now.lines().filter(|rule| !rules.contains(*rule)).collect();
        let blocks = left.iter().any(|rule| rule.contains("DROP") || rule.contains("REJECT"));
        ensure!(!blocks, "{name} failed, and rules that block stay: {left:?}");
        // The control: the port is open to all, as before; then the tool works, and it is not.
        scene.ensure_sees(scene.lab.other(), Family::V4, SSH_PORT, PortState::Open)?;
        stand.is_well_again()?;
        scene.server.start()?;
        scene.ensure_sees(scene.lab.other(), Family::V4, SSH_PORT, PortState::Filtered)?;
        scene.ensure_owner_gets_in(Family::V4)?;
    }
    Ok(())
}

/// Where each grant is a rule, the tool that writes rules does `trouble` while the daemon runs.
fn knocks_fail_while_the_tool_does(trouble: &str) -> Result<()> {
    let (mut scene, stand) = with_stand("iptables-restore")?;
    scene.server.reconfigure(|configuration| {
        configuration.gate.backend = Some("iptables".into());
    })?;
    scene.server.start()?;
    scene.ensure_owner_gets_in(Family::V4)?;
    scene.revoke_all()?;
    let opened = scene.server.audit("opened")?.len();

    stand.does(trouble)?;
    let knock = scene.laptop.open("ssh").seal()?;
    scene.knock(scene.lab.owner(), Family::V4, &knock)?;
    // The daemon gives a tool some time, and mends the rules afterwards by the same tool.
    eventually_within(Duration::from_secs(90), "the knock is to fail", || {
        Ok((!scene.server.audit("failed")?.is_empty()).then_some(()))
    })
    .map_err(|error| error.context(scene.server.account()))?;
    let failed = scene.server.audit("failed")?;
    ensure!(failed[0].contains("client=laptop"), "{failed:?}");

    // Only now: while a tool hangs, the daemon can't tell how it is.
    stand.is_well_again()?;
    ensure!(scene.server.status()?.failed >= 1);
    ensure!(scene.server.grants()?.is_empty(), "{:?}", scene.server.grants()?);
    ensure!(scene.server.audit("opened")?.len() == opened, "{}", scene.server.account());
    scene.ensure_shut()?;
    scene.ensure_owner_gets_in(Family::V4)?;
    ensure!(scene.server.audit("opened")?.len() == opened + 1, "{}", scene.server.account());
    scene.server.ensure_unharmed()
}

#[test]
fn a_knock_whose_tool_fails_is_failed_and_never_opened() -> Result<()> {
    knocks_fail_while_the_tool_does("echo 'kernel says no' >&2; exit 1")
}

#[test]
fn a_knock_whose_tool_is_killed_is_failed_and_never_opened() -> Result<()> {
    knocks_fail_while_the_tool_does("kill -9 $$")
}

#[test]
fn a_knock_whose_tool_hangs_is_failed_and_never_opened() -> Result<()> {
    knocks_fail_while_the_tool_does("exec sleep 600")
}

#[test]
fn an_interface_that_does_not_exist_is_named_and_so_are_those_that_do() -> Result<()> {
    let mut scene =
        Scene::prepared(|configuration| configuration.interfaces = vec!["eth7".into()])?;
    let (_, log) = scene.server.start_in_vain()?;
    ensure!(log.contains("eth7") && log.contains("eth0"), "{log}");
    scene.ensure_sees(scene.lab.other(), Family::V4, SSH_PORT, PortState::Open)?;
    scene.server.reconfigure(|configuration| configuration.interfaces = vec!["eth0".into()])?;
    scene.server.start()?;
    scene.ensure_owner_gets_in(Family::V4)
}

#[test]
fn an_interface_that_goes_and_comes_back_is_captured_on_again() -> Result<()> {
    let mut scene = Scene::prepared(|configuration| {
        configuration.interfaces = vec!["eth0".into(), "lan0".into()];
    })?;
    let owner = scene.lab.owner().clone();
    let (door, ssh) = ("10.68.0.1:62201".parse()?, "10.68.0.1:22".parse()?);
    scene.lab.add_link("lan0")?;
    scene.server.start()?;
    for round in 0..3 {
        eventually("the knock on the second interface is to open", || {
            owner.send_udp(door, &scene.laptop.open("ssh").seal()?)?;
            Ok((owner.tcp(ssh)? == PortState::Open).then_some(()))
        })
        .map_err(|error| error.context(format!("round {round}\n{}", scene.server.account())))?;
        scene.revoke_all()?;
        scene.lab.remove_link("lan0")?;
        // The other one goes on.
        scene.ensure_owner_gets_in(Family::V4)?;
        scene.revoke_all()?;
        scene.lab.add_link("lan0")?;
    }
    scene.server.ensure_unharmed()
}

#[test]
fn check_says_what_is_wrong_and_how_to_mend_it() -> Result<()> {
    let mut scene = Scene::prepared(|_| {})?;
    let good = scene.server.admin(&["check"])?;
    ensure!(good.success(), "{good}");

    scene.server.reconfigure(|configuration| {
        configuration.gate.tools.insert("iptables-save".into(), "/nonexistent/save".into());
    })?;
    let missing = scene.server.admin(&["check"])?;
    ensure!(!missing.success() && missing.said().contains("/nonexistent/save"), "{missing}");

    scene.server.reconfigure(|configuration| {
        configuration.gate.tools.clear();
        configuration.interfaces = vec!["eth7".into()];
    })?;
    let missing = scene.server.admin(&["check"])?;
    ensure!(!missing.success() && missing.said().contains("eth7"), "{missing}");

    scene.server.reconfigure(|configuration| configuration.interfaces = vec!["eth0".into()])?;
    let key = scene.server.configuration().private_key_file.clone();
    fs::set_permissions(&key, Permissions::from_mode(0o644))?;
    let open = scene.server.admin(&["check"])?;
    ensure!(!open.success() && open.said().contains("chmod"), "{open}");
    let (status, _) = scene.server.start_in_vain()?;
    ensure!(status.code() == Some(78), "a wrong configuration ends with 78, not {status}");
    fs::set_permissions(&key, Permissions::from_mode(0o600))?;
    scene.server.start()?;
    scene.ensure_owner_gets_in(Family::V4)
}

#[test]
fn an_interface_that_is_gone_at_the_start_keeps_nobody_out_at_the_others() -> Result<()> {
    // As when a tunnel is down while the daemon is restarted: the ports are hidden, and the daemon
    // is the only way in.
    let scene = Scene::with(|configuration| configuration.interfaces.push("eth7".into()))?;
    let checked = scene.server.admin(&["check"])?;
    ensure!(!checked.success() && checked.said().contains("eth7"), "{checked}");
    ensure!(scene.server.log()?.contains("eth7"), "not told in the log");
    scene.ensure_owner_gets_in(Family::V4)
}

#[test]
fn check_and_status_tell_of_a_flushed_gate_that_can_not_be_put_back() -> Result<()> {
    let (mut scene, stand) = with_stand("iptables-restore")?;
    scene.server.start()?;
    let good = scene.server.admin(&["check"])?;
    ensure!(good.success() && good.said().contains("the gate is installed"), "{good}");
    scene.ensure_shut()?;
    stand.does("if [ \"$1\" = --noflush ]; then echo 'no such luck' >&2; exit 3; fi")?;
    let host = scene.server.host();
    host.sh("iptables -t mangle -F PREROUTING")?;
    eventually("the status is to tell", || {
        let gate = scene.server.status()?.gate;
        Ok((gate.contains("can't be put back") && gate.contains("no such luck")).then_some(()))
    })?;
    let flushed = scene.server.admin(&["check"])?;
    ensure!(!flushed.success() && flushed.said().contains("flushed them"), "{flushed}");
    // Tried every second, told once.
    let log = scene.server.log()?;
    let tries = |log: &str| log.matches("can't be put back").count();
    ensure!(tries(&log) == 1, "{log}");
    ensure!(scene.server.audit("gate-restored")?.is_empty());

    stand.is_well_again()?;
    eventually("the gate is to stand again", || {
        Ok((scene.server.status()?.gate == "installed").then_some(()))
    })?;
    ensure!(tries(&scene.server.log()?) == 1);
    ensure!(scene.server.audit("gate-restored")?.len() == 1, "{}", scene.server.account());
    let good = scene.server.admin(&["check"])?;
    ensure!(good.success(), "{good}");
    scene.ensure_shut()
}
