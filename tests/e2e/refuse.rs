//! An address is refused for a time: by the administrator, and by fail2ban, which reads the log of
//! the sshd behind the gate. What is open for it is closed, who is in is thrown out, who knocks from
//! there opens nothing; and nobody else has anything of it.

use anyhow::{Context, Result, bail, ensure};
use spa_tests::{
    Device, Family, Finished, Host, PortState, SSH_PORT, Scene, eventually, finish, our_binary,
    program, workspace,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const REASON: &str = "source-refused";

/// A scene with two clients, each on a host of its own: the owner's laptop, and a guest's.
fn scene(change: impl FnOnce(&mut spa_tests::Configuration)) -> Result<(Scene, Device)> {
    let mut scene = Scene::prepared(change)?;
    let (_, guest) = scene.add_client("guest", |_| {})?;
    scene.server.start()?;
    Ok((scene, guest))
}

/// The host knocks with the device, and gets in.
fn open(scene: &Scene, host: &Host, device: &Device, family: Family) -> Result<()> {
    scene.knock(host, family, &device.open("ssh").lifetime(600).seal()?)?;
    scene.await_open(host, family, SSH_PORT)
}

fn refuse(scene: &Scene, words: &[&str]) -> Result<Finished> {
    let done = scene.server.admin(&[&["refuse"], words].concat())?;
    ensure!(done.success(), "{done}");
    Ok(done)
}

/// The sources that are refused, as the command lists them.
fn listed(scene: &Scene) -> Result<Vec<String>> {
    let shown = scene.server.admin(&["refuse", "--list", "--json"])?.ok()?;
    let shown: Vec<serde_json::Value> = serde_json::from_str(&shown)?;
    let source = |one: &serde_json::Value| Some(one.get("source")?.as_str()?.to_owned());
    shown.iter().map(source).collect::<Option<_>>().context("sources without a name")
}

fn ensure_has_grant(scene: &Scene, host: &Host, family: Family, has: bool) -> Result<()> {
    let grants = scene.server.grants()?;
    let found = grants.iter().any(|grant| grant.source.address() == host.address(family));
    ensure!(found == has, "{grants:?}");
    Ok(())
}

/// The session is ended within a generous time.
fn await_dead(session: &mut spa_tests::Session) -> Result<()> {
    eventually("the session is to be ended", || Ok(session.ensure_alive().is_err().then_some(())))
}

#[test]
fn a_refused_address_is_out_until_its_time_is_over_and_nobody_else_is() -> Result<()> {
    for family in Family::BOTH {
        let (scene, guest) = scene(|_| {})?;
        let (owner, host) = (scene.lab.owner(), scene.lab.other());
        open(&scene, owner, &scene.laptop, family)?;
        open(&scene, host, &guest, family)?;
        let mut of_owner = scene.sshd.session(owner, family)?;
        let mut of_guest = scene.sshd.session(host, family)?;
        let address = host.address(family).to_string();

        let done = refuse(&scene, &[&address, "--for", "10m"])?;
        ensure!(
            done.said().contains("refused for 10m: 1 grant revoked, 1 connection ended"),
            "{done}"
        );
        await_dead(&mut of_guest)?;
        of_owner.ensure_alive()?;
        ensure_has_grant(&scene, host, family, false)?;
        ensure_has_grant(&scene, owner, family, true)?;
        scene.ensure_sees(host, family, SSH_PORT, PortState::Filtered)?;
        ensure!(scene.server.status()?.refused == 1 && listed(&scene)? == [address.as_str()]);
        let trail = scene.server.audit(REASON)?;
        ensure!(
            trail.len() == 1 && trail[0].contains(&format!("source={address} for=600 until=")),
            "{trail:?}"
        );

        // One knock, again and again: one line, with a count.
        let knock = guest.open("ssh").lifetime(600).seal()?;
        for count in 1..=3 {
            scene.knock(host, family, &knock)?;
            scene.server.await_dropped(REASON, count)?;
        }
        scene.ensure_sees(host, family, SSH_PORT, PortState::Filtered)?;
        let told = || -> Result<Vec<String>> {
            let mut lines = scene.server.audit("refused")?;
            lines.retain(|line| {
                line.contains(&format!("client=guest source={address} reason={REASON}"))
            });
            Ok(lines)
        };
        eventually("the refusal is to be told", || Ok((!told()?.is_empty()).then_some(())))?;
        ensure!(told()?.len() == 1, "{:?}", told()?);

        // To close is nobody refused, and others get in.
        let accepted = scene.server.status()?.accepted;
        scene.knock(host, family, &guest.close("ssh").seal()?)?;
        scene.server.await_accepted(accepted + 1)?;
        scene.revoke_all()?;
        scene.ensure_owner_gets_in(family)?;

        refuse(&scene, &["--lift", &address])?;
        ensure!(listed(&scene)?.is_empty() && scene.server.status()?.refused == 0);
        ensure!(scene.server.audit("source-lifted")?.len() == 1);
        // It was never used up, so that it is no replay; but the close is younger.
        scene.knock(host, family, &knock)?;
        scene.server.await_dropped("superseded", 1)?;
        open(&scene, host, &guest, family)?;
    }
    Ok(())
}

#[test]
fn a_knock_that_was_refused_for_its_address_opens_when_that_is_lifted_or_over() -> Result<()> {
    let (scene, guest) = scene(|_| {})?;
    let host = scene.lab.other();
    let address = host.address(Family::V4).to_string();
    let network = "10.66.0.0/29";
    refuse(&scene, &[network, "--for", "1h"])?;
    refuse(&scene, &[&address, "--for", "2s"])?;
    let knock = guest.open("ssh").seal()?;
    scene.knock(host, Family::V4, &knock)?;
    scene.server.await_dropped(REASON, 1)?;
    // A shorter time takes nothing from a longer one.
    let again = refuse(&scene, &[network, "--for", "1s"])?;
    ensure!(again.said().contains("refused for 1h"), "{again}");
    refuse(&scene, &["--lift", network])?;
    eventually("the time is to be over", || Ok(listed(&scene)?.is_empty().then_some(())))?;
    scene.knock(host, Family::V4, &knock)?;
    scene.await_open(host, Family::V4, SSH_PORT)?;
    // Who is within a network that is refused still is told.
    refuse(&scene, &[network, "--no-cut"])?;
    let lifted = scene.server.admin(&["refuse", "--lift", &address])?;
    ensure!(!lifted.success() && lifted.said().contains(network), "{lifted}");
    Ok(())
}

#[test]
fn without_a_cut_sessions_live_on() -> Result<()> {
    let (scene, guest) = scene(|_| {})?;
    let host = scene.lab.other();
    open(&scene, host, &guest, Family::V4)?;
    let mut session = scene.sshd.session(host, Family::V4)?;
    let address = host.address(Family::V4).to_string();
    refuse(&scene, &[&address, "--no-cut"])?;
    ensure_has_grant(&scene, host, Family::V4, false)?;
    session.ensure_alive()?;
    // Its grant was revoked before: who is in is found all the same.
    let done = refuse(&scene, &[&address])?;
    ensure!(done.said().contains("0 grants revoked, 1 connection ended"), "{done}");
    await_dead(&mut session)
}

#[test]
fn who_is_refused_stays_so_over_a_reload_a_restart_and_a_crash() -> Result<()> {
    let (mut scene, guest) = scene(|_| {})?;
    let host = scene.lab.other().clone();
    for family in Family::BOTH {
        refuse(&scene, &[&host.address(family).to_string(), "--for", "1h"])?;
    }
    let before = listed(&scene)?;
    ensure!(before.len() == 2, "{before:?}");
    for round in ["reload", "restart", "crash"] {
        match round {
            "reload" => drop(scene.server.admin(&["reload"])?.ok()?),
            "restart" => scene.server.restart()?,
            _ => {
                scene.server.kill9()?;
                scene.server.start()?;
            }
        }
        ensure!(listed(&scene)? == before, "{round}");
        for family in Family::BOTH {
            let dropped = scene.server.dropped(REASON)?;
            scene.knock(&host, family, &guest.open("ssh").seal()?)?;
            scene.server.await_dropped(REASON, dropped + 1).context(round)?;
            scene.ensure_owner_gets_in(family)?;
        }
        scene.revoke_all()?;
    }
    Ok(())
}

#[test]
fn a_damaged_list_is_told_and_the_daemon_starts() -> Result<()> {
    let (mut scene, guest) = scene(|_| {})?;
    let host = scene.lab.other().clone();
    let address = host.address(Family::V4).to_string();
    refuse(&scene, &[&address])?;
    scene.server.stop()?;
    let list = scene.server.configuration().state_directory.join("refused-sources");
    let text = fs::read_to_string(&list)?;
    ensure!(text.contains(&address), "{text}");
    fs::write(&list, &text[..text.len() / 2])?;
    scene.server.start()?;
    let log = scene.server.log()?;
    ensure!(log.contains("refused-sources is damaged"), "{log}");
    ensure!(listed(&scene)?.is_empty());
    open(&scene, &host, &guest, Family::V4)?;
    // It is mended by the next order.
    refuse(&scene, &[&address])?;
    scene.server.restart()?;
    ensure!(listed(&scene)? == [address]);
    Ok(())
}

#[test]
fn who_needs_no_knock_is_not_refused() -> Result<()> {
    let (mut scene, _) =
        scene(|configuration| configuration.gate.always_admit = vec!["10.66.0.4".into()])?;
    for source in ["10.66.0.4", "10.66.0.0/24", "127.0.0.1", "0.0.0.0/0"] {
        let done = scene.server.admin(&["refuse", source])?;
        ensure!(!done.success() && done.said().contains("needs no knock"), "{done}");
    }
    let other = scene.lab.other().address(Family::V4).to_string();
    refuse(&scene, &[&other])?;
    scene.server.reconfigure(|configuration| configuration.gate.always_admit.push(other))?;
    scene.server.admin(&["reload"])?.ok()?;
    ensure!(listed(&scene)?.is_empty() && scene.server.audit("source-lifted")?.len() == 1);
    Ok(())
}

/// fail2ban, with the action and the jail that are shipped, reading the log of the scene's sshd.
struct Fail2ban {
    host: Host,
    directory: PathBuf,
    daemon: Child,
}

impl Fail2ban {
    fn start(scene: &Scene) -> Result<Self> {
        let directory = scene.lab.directory().join("fail2ban");
        fs::create_dir_all(&directory)?;
        // Debian's own files: the filter for sshd, and what a jail begins with.
        for part in [
            "fail2ban.conf",
            "jail.conf",
            "paths-common.conf",
            "paths-debian.conf",
            "filter.d",
            "action.d",
        ] {
            let theirs = Path::new("/etc/fail2ban").join(part);
            finish(Command::new(program("cp")?).arg("-r").args([&theirs, &directory]))?.ok()?;
        }
        fs::create_dir_all(directory.join("jail.d"))?;
        for part in ["action.d/spa.conf", "jail.d/spa.conf"] {
            let ours = workspace()?.join("packaging/fail2ban").join(part);
            fs::copy(&ours, directory.join(part)).with_context(|| ours.display().to_string())?;
        }
        // As they are shipped they are what fail2ban understands.
        let mut tried = scene.server.host().command("fail2ban-client")?;
        let tried = finish(tried.arg("-c").arg(&directory).arg("-t"))?;
        ensure!(tried.success() && tried.said().contains("successful"), "{tried}");
        let path = |name: &str| directory.join(name).display().to_string();
        // There is no journal here, and sshd writes what it has to say without the time and its name.
        let jail = format!(
            "[sshd]\n\
             backend = polling\n\
             logpath = {}\n\
             filter = sshd[__prefix_line=\"\"]\n\
             datepattern = {{NONE}}\n\
             banaction = spa[spa-server=\"{}\", options=\"--config {config}\", lift-options=\"--config {config}\"]\n",
            scene.sshd.log_path().display(),
            our_binary("spa-server")?.display(),
            config = scene.server.config_path().display(),
        );
        fs::write(directory.join("jail.local"), jail)?;
        let settings = format!(
            "[Definition]\nlogtarget = {}\nsocket = {}\npidfile = {}\ndbfile = None\n",
            path("fail2ban.log"),
            path("socket"),
            path("pid")
        );
        fs::write(directory.join("fail2ban.local"), settings)?;
        let said = fs::File::create(directory.join("said"))?;
        let daemon = scene
            .server
            .host()
            .command("fail2ban-server")?
            .args(["-f", "-c"])
            .arg(&directory)
            .arg("start")
            .stdin(Stdio::null())
            .stdout(said.try_clone()?)
            .stderr(said)
            .spawn()?;
        let mut fail2ban = Self { host: scene.server.host().clone(), directory, daemon };
        eventually("fail2ban is to watch over sshd", || {
            if let Some(status) = fail2ban.daemon.try_wait()? {
                bail!("fail2ban ended ({status}): {}", fail2ban.log());
            }
            Ok(fail2ban.client(&["status", "sshd"]).is_ok().then_some(()))
        })
        .with_context(|| fail2ban.log())?;
        Ok(fail2ban)
    }

    fn client(&self, words: &[&str]) -> Result<String> {
        let mut client = self.host.command("fail2ban-client")?;
        finish(client.arg("-c").arg(&self.directory).args(words))?.ok()
    }

    fn log(&self) -> String {
        let read = |name| fs::read_to_string(self.directory.join(name)).unwrap_or_default();
        read("said") + &read("fail2ban.log")
    }

    fn await_logged(&self, text: &str) -> Result<()> {
        eventually(&format!("fail2ban is to log {text:?}"), || {
            Ok(self.log().contains(text).then_some(()))
        })
        .with_context(|| self.log())
    }

    fn ensure_content(&self) -> Result<()> {
        let log = self.log();
        ensure!(!log.contains("ERROR") && !log.contains("Traceback"), "{log}");
        Ok(())
    }
}

impl Drop for Fail2ban {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

#[test]
fn who_fails_to_log_in_is_refused_by_fail2ban_and_nobody_else_is() -> Result<()> {
    let (scene, guest) = scene(|_| {})?;
    let (owner, host) = (scene.lab.owner(), scene.lab.other());
    let fail2ban = Fail2ban::start(&scene)?;
    for family in Family::BOTH {
        let address = host.address(family).to_string();
        open(&scene, owner, &scene.laptop, family)?;
        open(&scene, host, &guest, family)?;
        let mut of_owner = scene.sshd.session(owner, family)?;
        let mut of_guest = scene.sshd.session(host, family)?;
        // The control: two failures are not too many, and who fails from elsewhere is another one.
        for from in [host, host, owner] {
            ensure!(!scene.sshd.login_as("mallory", from, family, "true")?.success());
        }
        of_guest.ensure_alive()?;
        ensure!(!scene.sshd.login_as("mallory", host, family, "true")?.success());

        fail2ban.await_logged(&format!("[sshd] Ban {address}"))?;
        let is_out = || Ok((listed(&scene)? == [address.as_str()]).then_some(()));
        eventually("it is to be refused", is_out).with_context(|| fail2ban.log())?;
        await_dead(&mut of_guest)?;
        ensure_has_grant(&scene, host, family, false)?;
        let dropped = scene.server.dropped(REASON)?;
        scene.knock(host, family, &guest.open("ssh").seal()?)?;
        scene.server.await_dropped(REASON, dropped + 1)?;
        scene.ensure_sees(host, family, SSH_PORT, PortState::Filtered)?;
        // For as long as the jail says.
        let shown = scene.server.admin(&["refuse", "--list"])?.ok()?;
        ensure!(shown.contains("59m") || shown.contains("1h"), "{shown}");

        of_owner.ensure_alive()?;
        ensure_has_grant(&scene, owner, family, true)?;
        scene.revoke_all()?;
        open(&scene, owner, &scene.laptop, family)?;

        fail2ban.client(&["set", "sshd", "unbanip", &address])?;
        let is_in = || Ok(listed(&scene)?.is_empty().then_some(()));
        eventually("it is to be refused no more", is_in).with_context(|| fail2ban.log())?;
        open(&scene, host, &guest, family)?;
        scene.sshd.session(host, family)?;
        fail2ban.ensure_content()?;
        scene.revoke_all()?;
    }
    // An end that comes after that of the time is none of its own, and no error.
    let address = host.address(Family::V4).to_string();
    fail2ban.client(&["set", "sshd", "banip", &address])?;
    let is_out = || Ok((!listed(&scene)?.is_empty()).then_some(()));
    eventually("it is to be refused again", is_out).with_context(|| fail2ban.log())?;
    refuse(&scene, &["--lift", &address])?;
    fail2ban.client(&["set", "sshd", "unbanip", &address])?;
    fail2ban.await_logged(&format!("[sshd] Unban {address}"))?;
    fail2ban.ensure_content()
}
