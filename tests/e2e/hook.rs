//! Commands of the administrator's open and close in a firewall that the daemon knows nothing of;
//! and a dry run that does nothing at all.

use anyhow::{Context, Result, ensure};
use spa_tests::{Family, Hook, PortState, SSH_PORT, Scene, WEB_PORT, eventually};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The host's own firewall: it refuses by itself, and lets in what is in its sets.
const FIREWALL: &str = "table inet host {
    set open4 { type ipv4_addr . inet_service; }
    set open6 { type ipv6_addr . inet_service; }
    chain input {
        type filter hook input priority 0; policy accept;
        ct state established,related accept
        ip saddr . tcp dport @open4 accept
        ip6 saddr . tcp dport @open6 accept
        tcp dport { 22, 8080 } drop
    }
}
";

/// Closing is right also for what isn't open. Beside it lies what it is told to do instead.
const SCRIPT: &str = "#!/bin/sh
set -e
if [ -e \"$0.trouble\" ]; then . \"$0.trouble\"; fi
case $SPA_FAMILY in ipv4) set=open4 ;; *) set=open6 ;; esac
element=\"element inet host $set { $SPA_SOURCE . $SPA_PORT }\"
case $1 in
    open) nft \"add $element\" ;;
    close) nft \"add $element; delete $element\" ;;
esac
echo \"$1 $SPA_SOURCE $SPA_PORT $SPA_SECONDS\" >>\"$0.log\"
";

struct Place {
    scene: Scene,
    script: PathBuf,
}

impl Place {
    fn new() -> Result<Self> {
        let mut scene = Scene::prepared(|configuration| {
            configuration.gate.backend = Some("hook".into());
        })?;
        let script = scene.lab.directory().join("hook");
        fs::write(&script, SCRIPT)?;
        fs::set_permissions(&script, Permissions::from_mode(0o755))?;
        let rules = scene.lab.directory().join("firewall.nft");
        fs::write(&rules, FIREWALL)?;
        scene.server.host().sh(&format!("nft -f {}", rules.display()))?;
        let path = script.display().to_string();
        scene.server.reconfigure(|configuration| {
            configuration.gate.hook = Some(Hook {
                open: vec![path.clone(), "open".into()],
                close: vec![path, "close".into()],
                time_limit: "5s".into(),
            });
        })?;
        scene.server.start()?;
        Ok(Self { scene, script })
    }

    fn beside(&self, ending: &str) -> PathBuf {
        let mut path = self.script.clone().into_os_string();
        path.push(ending);
        path.into()
    }

    /// What the commands have done, each without its seconds.
    fn done(&self) -> Result<Vec<String>> {
        let path = self.beside(".log");
        if !path.exists() {
            return Ok(Vec::new());
        }
        let log = fs::read_to_string(path)?;
        Ok(log.lines().filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned())).collect())
    }

    fn open(&self, family: Family, service: &str, lifetime: u32) -> Result<()> {
        let knock = self.scene.laptop.open(service).lifetime(lifetime).seal()?;
        self.scene.knock(self.scene.lab.owner(), family, &knock)
    }

    fn owner_sees(&self, family: Family, port: u16, wanted: PortState) -> Result<()> {
        self.scene.ensure_sees(self.scene.lab.owner(), family, port, wanted)
    }
}

/// A zombie is dead, whoever has not swept it up yet.
fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, state)| !state.starts_with(" Z"))
}

fn rules(scene: &Scene) -> Result<String> {
    Ok(format!("{}{}", scene.server.rules()?, scene.server.host().sh("nft list tables")?))
}

#[test]
fn a_knock_opens_by_a_command_which_closes_again_in_time() -> Result<()> {
    let place = Place::new()?;
    let (scene, owner) = (&place.scene, place.scene.lab.owner().clone());
    for family in Family::BOTH {
        place.owner_sees(family, SSH_PORT, PortState::Filtered)?;
    }
    let began = Instant::now();
    let mut sessions = Vec::new();
    for family in Family::BOTH {
        place.open(family, "ssh", 3)?;
        scene.await_open(&owner, family, SSH_PORT)?;
        scene.ensure_sees(scene.lab.other(), family, SSH_PORT, PortState::Filtered)?;
        sessions.push(scene.sshd.session(&owner, family)?);
    }
    ensure!(scene.server.status()?.grants <= 2);
    for family in Family::BOTH {
        scene.await_state(&owner, family, SSH_PORT, PortState::Filtered)?;
    }
    ensure!(began.elapsed() >= Duration::from_secs(3), "closed after {:?}", began.elapsed());
    for session in &mut sessions {
        session.ensure_alive()?;
    }
    // A close before its time, and two at once.
    place.open(Family::V4, "ssh", 600)?;
    place.open(Family::V4, "web", 600)?;
    for port in [SSH_PORT, WEB_PORT] {
        scene.await_open(&owner, Family::V4, port)?;
    }
    scene.knock(&owner, Family::V4, &scene.laptop.close("ssh").seal()?)?;
    scene.await_state(&owner, Family::V4, SSH_PORT, PortState::Filtered)?;
    place.owner_sees(Family::V4, WEB_PORT, PortState::Open)?;
    scene.revoke_all()?;
    place.owner_sees(Family::V4, WEB_PORT, PortState::Filtered)?;
    let mut done = place.done()?;
    done.sort();
    let twice = |what: &str| [what.to_owned(), what.to_owned()];
    let once = |what: &str| [what.to_owned()];
    let wanted: Vec<String> = [
        twice("close 10.66.0.2 22").as_slice(),
        &once("close 10.66.0.2 8080"),
        &once("close fd66::2 22"),
        &twice("open 10.66.0.2 22"),
        &once("open 10.66.0.2 8080"),
        &once("open fd66::2 22"),
    ]
    .concat();
    ensure!(done == wanted, "{done:#?}");
    ensure!(!scene.server.rules()?.contains("SPA-"), "rules were made: {}", scene.server.rules()?);
    ensure!(scene.server.log()?.contains("the daemon alone closes what is open"));
    Ok(())
}

#[test]
fn the_next_daemon_closes_what_a_killed_one_had_open() -> Result<()> {
    let mut place = Place::new()?;
    let owner = place.scene.lab.owner().clone();
    place.open(Family::V4, "ssh", 600)?;
    place.open(Family::V6, "ssh", 2)?;
    for family in Family::BOTH {
        place.scene.await_open(&owner, family, SSH_PORT)?;
    }
    let began = Instant::now();
    place.scene.server.kill9()?;
    // What the manual says: nobody closes now.
    while began.elapsed() < Duration::from_secs(3) {
        std::thread::sleep(Duration::from_millis(50));
    }
    place.owner_sees(Family::V6, SSH_PORT, PortState::Open)?;
    place.scene.server.start()?;
    place.owner_sees(Family::V6, SSH_PORT, PortState::Filtered)?;
    place.owner_sees(Family::V4, SSH_PORT, PortState::Open)?;
    let grants = place.scene.server.grants()?;
    ensure!(grants.len() == 1 && grants[0].seconds_left > 500, "{grants:?}");
    ensure!(place.done()?.iter().filter(|line| line.starts_with("open")).count() == 2);

    // Killed while a command runs: it may have opened, so it is closed; and it must not open later.
    fs::write(
        place.beside(".trouble"),
        "echo $$ >\"$0.pid.new\"; mv \"$0.pid.new\" \"$0.pid\"; sleep 600\n",
    )?;
    place.open(Family::V6, "ssh", 600)?;
    let pid = place.beside(".pid");
    eventually("the command is to begin", || Ok(pid.exists().then_some(())))?;
    place.scene.server.kill9()?;
    fs::remove_file(place.beside(".trouble"))?;
    let pid: u32 = fs::read_to_string(pid)?.trim().parse()?;
    ensure!(is_alive(pid), "the command died with the daemon");
    let closed = place.done()?.iter().filter(|line| *line == "close fd66::2 22").count();
    place.scene.server.start()?;
    let now = place.done()?.iter().filter(|line| *line == "close fd66::2 22").count();
    ensure!(now == closed + 1, "{:#?}", place.done()?);
    ensure!(!is_alive(pid), "the command of the killed daemon goes on");
    // Removed, all is closed.
    let removed = place.scene.server.admin(&["gate", "remove"])?;
    ensure!(removed.success(), "{removed}");
    place.owner_sees(Family::V4, SSH_PORT, PortState::Filtered)
}

#[test]
fn a_command_that_fails_or_hangs_opens_nothing_and_keeps_nobody_out() -> Result<()> {
    let mut place = Place::new()?;
    let owner = place.scene.lab.owner().clone();
    for (number, trouble) in ["echo 'no such zone' >&2; exit 1", "sleep 600"].iter().enumerate() {
        // Only to open for the owner: the close that cleans up works.
        let only = format!("if [ $1 = open ] && [ $SPA_SOURCE = 10.66.0.2 ]; then {trouble}; fi\n");
        fs::write(place.beside(".trouble"), only)?;
        place.open(Family::V4, "ssh", 600)?;
        eventually("the knock is to fail", || {
            Ok((place.scene.server.audit("failed")?.len() == number + 1).then_some(()))
        })
        .with_context(|| place.scene.server.account())?;
        ensure!(place.scene.server.audit("opened")?.len() == number, "said to be opened");
        place.owner_sees(Family::V4, SSH_PORT, PortState::Filtered)?;
        eventually("it is to be cleaned up", || {
            let closed = place.done()?.iter().filter(|line| line.starts_with("close")).count();
            Ok((closed > number).then_some(()))
        })?;
        // Another one gets in meanwhile.
        place.open(Family::V6, "ssh", 600)?;
        place.scene.await_open(&owner, Family::V6, SSH_PORT)?;
    }
    let failed = place.scene.server.audit("failed")?.join("\n");
    ensure!(failed.contains("no such zone") && failed.contains("did not end within"), "{failed}");
    fs::remove_file(place.beside(".trouble"))?;
    place.open(Family::V4, "ssh", 600)?;
    place.scene.await_open(&owner, Family::V4, SSH_PORT)?;
    place.scene.server.ensure_unharmed()
}

/// The thread that has read the knock doesn't wait for the command: it goes on reading. And whoever
/// floods meanwhile takes a quarter of the queue.
#[test]
fn while_a_command_hangs_knocks_are_read_and_nobody_takes_all_the_room() -> Result<()> {
    const FLOOD: usize = 1_500;
    const SHARE: usize = 1_024;
    let mut place = Place::new()?;
    let (_, second) = place.scene.add_client("second", |_| {})?;
    place.scene.server.restart()?;
    let (owner, other) = (place.scene.lab.owner().clone(), place.scene.lab.other().clone());
    // The next one does not hang.
    let once = "if [ $1 = open ]; then rm \"$0.trouble\"; touch \"$0.hangs\"; sleep 600; fi\n";
    fs::write(place.beside(".trouble"), once)?;
    place.open(Family::V4, "ssh", 600)?;
    eventually("the command is to hang", || Ok(place.beside(".hangs").exists().then_some(())))?;
    // What has not been carried out yet is no replay.
    let knock = place.scene.laptop.open("ssh").lifetime(600).seal()?;
    owner.send_udp_all(place.scene.door(Family::V4), &vec![knock; FLOOD])?;
    place.scene.knock(&other, Family::V4, &second.open("ssh").lifetime(600).seal()?)?;
    ensure!(place.scene.server.audit("failed")?.is_empty(), "it did not hang for long enough");

    place.scene.await_open(&other, Family::V4, SSH_PORT)?;
    place.scene.await_open(&owner, Family::V4, SSH_PORT)?;
    let status = place.scene.server.status()?;
    let expected = u64::try_from(FLOOD - SHARE)?;
    ensure!(status.dropped["overloaded"] == expected, "{}", place.scene.server.account());
    ensure!(status.queue.deepest == u64::try_from(SHARE + 1)?, "{:?}", status.queue);
    ensure!((status.accepted, status.opened, status.failed) == (3, 2, 1), "{status:?}");
    place.scene.server.ensure_unharmed()
}

#[test]
fn a_command_that_others_could_have_written_is_never_run() -> Result<()> {
    let mut place = Place::new()?;
    fs::set_permissions(&place.script, Permissions::from_mode(0o757))?;
    place.open(Family::V4, "ssh", 600)?;
    eventually("the knock is to fail", || {
        Ok((!place.scene.server.audit("failed")?.is_empty()).then_some(()))
    })?;
    ensure!(place.done()?.is_empty(), "{:?}", place.done()?);
    place.scene.server.stop()?;
    let (_, log) = place.scene.server.start_in_vain()?;
    ensure!(log.contains("chmod go-w"), "{log}");
    fs::set_permissions(&place.script, Permissions::from_mode(0o755))?;
    place.scene.server.start()?;
    place.open(Family::V4, "ssh", 600)?;
    place.scene.await_open(place.scene.lab.owner(), Family::V4, SSH_PORT)
}

#[test]
fn a_dry_run_says_what_it_would_do_and_does_nothing() -> Result<()> {
    let mut scene = Scene::prepared(|configuration| {
        configuration.gate.backend = Some("dry-run".into());
    })?;
    let before = rules(&scene)?;
    scene.server.start()?;
    let (owner, other) = (scene.lab.owner().clone(), scene.lab.other().clone());
    // Nothing is hidden.
    scene.ensure_sees(&other, Family::V4, SSH_PORT, PortState::Open)?;
    scene.knock(&owner, Family::V4, &scene.laptop.open("ssh").lifetime(600).seal()?)?;
    eventually("the knock is to be carried out", || {
        let said = "dry run: tcp/22 from 10.66.0.2 would be admitted for 600 s";
        Ok(scene.server.log()?.contains(said).then_some(()))
    })?;
    ensure!(scene.server.log()?.contains("dry run: iptables-restore: *mangle"));
    ensure!(scene.server.status()?.grants == 1);
    scene.revoke_all()?;
    ensure!(scene.server.log()?.contains("tcp/22 from 10.66.0.2 would be admitted no longer"));
    ensure!(rules(&scene)? == before, "something was changed: {}", rules(&scene)?);
    ensure!(scene.server.elements()?.is_empty());
    scene.server.stop()?;
    // The control: the same with a gate.
    scene.server.reconfigure(|configuration| configuration.gate.backend = None)?;
    scene.server.start()?;
    scene.ensure_sees(&other, Family::V4, SSH_PORT, PortState::Filtered)?;
    ensure!(Path::new(&scene.server.config_path()).exists());
    scene.ensure_owner_gets_in(Family::V4)
}
