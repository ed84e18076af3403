//! Two processes: what a worker that was taken over can have the gate helper do, and that neither
//! goes on without the other.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use spa_server::causes::with_causes;
use spa_server::config::Settings;
use spa_server::connections::Connections as _;
use spa_server::gate::{Change, Connection, Cut, Element, Gate, GateError, Guarded, Mode, Plan};
use spa_server::helper::Helper;
use spa_tests::{Family, Listener, PortState, SSH_PORT, Scene, ensure_locked, eventually};
use std::path::Path;
use std::time::Duration;

/// A port of the server that no service names.
const OTHER_PORT: u16 = 8443;

/// Bits of capabilities(7).
const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn admit(source: &str, ports: &str, seconds: u32) -> Result<[Change; 1]> {
    let element = Element { source: source.parse()?, ports: ports.parse()? };
    Ok([Change::Admit { element, seconds }])
}

/// What the helper says when it refuses.
fn refusal<T: std::fmt::Debug>(answer: Result<T, GateError>) -> Result<String> {
    match answer {
        Ok(done) => anyhow::bail!("it was done: {done:?}"),
        Err(error) => {
            let why = with_causes(&error);
            ensure!(!why.contains("does not answer"), "it did not refuse, but ended: {why}");
            Ok(why)
        }
    }
}

/// It speaks to a helper of its own as the worker does, and asks for all that a gate can do.
#[test]
fn a_worker_that_was_taken_over_opens_what_some_client_may_and_takes_nothing_away() -> Result<()> {
    let mut scene = Scene::with(|configuration| {
        configuration.clients.iter_mut().for_each(|it| it.max_lifetime = Some("1h".into()));
    })?;
    let plan = Settings::load(&scene.server.config_path())?.gate_plan();
    let _other = Listener::tcp(scene.lab.server(), OTHER_PORT)?;
    scene.server.stop()?;
    let mut command = scene.server.host().command(spa_tests::our_binary("spa-server")?)?;
    command.arg("--config").arg(scene.server.config_path()).arg("gate-helper");
    let runtime = runtime()?;
    let _entered = runtime.enter();
    let Helper { gate, connections, .. } = Helper::start_by(command, || Ok(()))?;
    runtime.block_on(async {
        gate.install(&plan).await?;
        let rules = scene.server.rules()?;

        // The gate stays, and stays what it is.
        ensure!(refusal(gate.remove().await)?.contains("gate remove"));
        for less in [
            Plan { trial_seconds: Some(1), ..plan.clone() },
            Plan { mode: Mode::Open, ..plan.clone() },
            Plan { always_admit: vec!["0.0.0.0/0".parse()?, "::/0".parse()?], ..plan.clone() },
            Plan { guarded: plan.guarded[..1].to_vec(), ..plan.clone() },
        ] {
            refusal(gate.install(&less).await).with_context(|| format!("{less:?}"))?;
        }
        ensure!(scene.server.rules()? == rules, "{}", scene.server.rules()?);

        // Nothing opens that no client may open, nor for everybody.
        for (source, ports) in [
            ("10.66.0.9", "tcp/8443"),
            ("10.66.0.9", "udp/22"),
            ("10.66.0.9", "tcp/1-65535"),
            ("10.66.0.0/24", "tcp/22"),
            ("0.0.0.0/0", "tcp/22"),
            ("::/0", "tcp/22"),
        ] {
            refusal(gate.apply(&admit(source, ports, 30)?).await)
                .with_context(|| format!("{ports} from {source}"))?;
        }
        ensure!(gate.snapshot().await?.is_empty());

        // The control: what some client may have, and for as long as that one may.
        gate.apply(&admit("10.66.0.9", "tcp/22", 2_000_000)?).await?;
        let live = gate.snapshot().await?;
        ensure!(live.len() == 1 && (3500..=3602).contains(&live[0].seconds_left), "{live:?}");

        // Connections to what is not guarded are nobody's to end.
        let ports: spa_proto::PortRange = format!("tcp/{OTHER_PORT}").parse()?;
        let connection = Connection {
            transport: spa_proto::Transport::Tcp,
            peer: "10.66.0.2:50000".parse()?,
            local: format!("10.66.0.1:{OTHER_PORT}").parse()?,
        };
        let cut = Cut { connection, answered_from: connection.local };
        refusal(gate.sever(&[cut]).await)?;
        let guarded = [Guarded::plain(ports)];
        let those = [connection].into();
        ensure!(connections.end(&those, &[cut], &guarded).is_err());
        ensure!(connections.list(&guarded).is_err());
        ensure!(connections.list(&plan.guarded).is_ok());
        anyhow::Ok(())
    })?;
    scene.ensure_sees(scene.lab.other(), Family::V4, SSH_PORT, PortState::Filtered)
}

#[test]
fn when_the_helper_is_killed_the_daemon_ends_and_what_is_open_stays() -> Result<()> {
    let mut scene = Scene::new()?;
    let owner = scene.lab.owner().clone();
    scene.knock(&owner, Family::V4, &scene.laptop.open("ssh").lifetime(600).seal()?)?;
    scene.await_open(&owner, Family::V4, SSH_PORT)?;
    let mut session = scene.sshd.session(&owner, Family::V4)?;
    kill_process(scene.server.helper_pid()?)?;
    let status = scene.server.await_end()?;
    ensure!(!status.success(), "a daemon that opens nothing any more is to be started anew");
    let log = scene.server.log()?;
    ensure!(log.contains("the gate helper has ended"), "{log}");
    session.ensure_alive()?;
    scene.ensure_sees(&owner, Family::V4, SSH_PORT, PortState::Open)?;
    scene.ensure_sees(scene.lab.other(), Family::V4, SSH_PORT, PortState::Filtered)?;
    // As systemd does.
    scene.server.start()?;
    ensure!(scene.server.grants()?.len() == 1);
    session.ensure_alive()?;
    scene.ensure_owner_gets_in(Family::V6)
}

#[test]
fn when_the_daemon_is_killed_its_helper_ends_and_the_next_one_has_its_own() -> Result<()> {
    let mut scene = Scene::new()?;
    let before = scene.server.helper_pid()?;
    scene.server.kill9()?;
    await_no_process(before)?;
    scene.server.start()?;
    let after = scene.server.helper_pid()?;
    scene.server.stop()?;
    await_no_process(after)
}

/// Standard input of a helper by hand is no daemon.
#[test]
fn a_helper_without_a_daemon_says_what_it_is_for() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.server.stop()?;
    let mut command = scene.server.host().command(spa_tests::our_binary("spa-server")?)?;
    command.arg("--config").arg(scene.server.config_path()).arg("gate-helper");
    let failed = spa_tests::finish(&mut command)?;
    ensure!(!failed.success() && failed.said().contains("spa-server run"), "{}", failed.said());
    Ok(())
}

/// The worker reads packets, and the helper changes the firewall: neither can do the other's.
#[test]
fn the_worker_can_not_change_the_firewall_nor_the_helper_capture() -> Result<()> {
    let scene = Scene::new()?;
    let (worker, helper) = (scene.server.pid()?, scene.server.helper_pid()?);
    for (process, may, may_not) in [(worker, NET_RAW, NET_ADMIN), (helper, NET_ADMIN, 0)] {
        let mut looked_at = 0;
        for task in tasks(process)? {
            let looked = permitted(&task).and_then(|permitted| {
                ensure!(permitted & may != 0 && permitted & may_not == 0, "{task}: {permitted:x}");
                ensure_confined(&task)
            });
            // A thread whose work is done ends, which was just now.
            if Path::new(&task).exists() {
                looked?;
                looked_at += 1;
            }
        }
        ensure!(looked_at >= 2, "each has several threads, and there are {looked_at}");
    }
    for pid in [worker, helper] {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
        let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size"));
        let core: Vec<_> = core.context("no limit")?.split_whitespace().collect();
        ensure!(core == ["0", "0", "bytes"], "{core:?}");
    }
    let log = scene.server.log()?;
    ensure!(!log.contains("not confined") && !log.contains("swap"), "{log}");
    // Keys and copies of them, wherever they are, do not go to a disk.
    ensure_locked(&std::fs::read_to_string(format!("/proc/{worker}/smaps"))?)?;
    // It has no socket but those that it was given, and none that packets come in by.
    let sockets = scene
        .server
        .host()
        .sh("ss --packet --raw --udp --tcp --all --numeric --processes --no-header")?;
    ensure!(!sockets.contains(&format!("pid={helper},")), "{sockets}");
    ensure!(sockets.contains(&format!("pid={worker},")), "the control: {sockets}");
    Ok(())
}

/// No program that it executes gets more, and there is a filter of system calls.
fn ensure_confined(task: &str) -> Result<()> {
    for (name, is) in [("NoNewPrivs", "1"), ("Seccomp", "2")] {
        ensure!(field(task, name)? == is, "{name} of {task}");
    }
    Ok(())
}

fn tasks(pid: u32) -> Result<Vec<String>> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))?;
    tasks.map(|task| Ok(task?.path().to_string_lossy().into_owned())).collect()
}

fn permitted(task: &str) -> Result<u64> {
    Ok(u64::from_str_radix(&field(task, "CapPrm")?, 16)?)
}

/// There the capability is one that the kernel does not ask for: whoever locked by it would get no more
/// memory from the limit on, and end.
#[test]
fn in_a_user_namespace_of_its_own_no_memory_is_locked() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.server.stop()?;
    // Whatever the limit is of who runs this.
    let mut command = scene.server.host().command("prlimit")?;
    command.args(["--memlock=8388608:8388608", "unshare", "--user", "--map-root-user"]);
    command.arg(spa_tests::our_binary("spa-server")?);
    command.arg("--config").arg(scene.server.config_path()).arg("run");
    // It may not capture there, so it ends.
    let ended = spa_tests::finish(&mut command)?;
    ensure!(!ended.success(), "{ended}");
    // Not since the kernel has refused it (12), which it would not under a limit of some more.
    let told = "can't lock its memory: Operation not permitted (os error 1)";
    ensure!(ended.said().contains(told), "{ended}");
    Ok(())
}

fn field(task: &str, name: &str) -> Result<String> {
    let status = std::fs::read_to_string(Path::new(task).join("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(line.with_context(|| format!("no {name} in {status}"))?.trim().to_owned())
}

fn kill_process(pid: u32) -> Result<()> {
    Ok(kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL)?)
}

fn await_no_process(pid: u32) -> Result<()> {
    eventually("the helper is to be gone", || {
        let state = field(&format!("/proc/{pid}"), "State");
        Ok(state.map_or(true, |state| state.starts_with('Z')).then_some(()))
    })
}

/// Who signals all of that name means the daemon.
#[test]
fn a_helper_that_is_signalled_goes_on() -> Result<()> {
    let scene = Scene::new()?;
    let helper = scene.server.helper_pid()?;
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM, Signal::SIGUSR1] {
        kill(Pid::from_raw(i32::try_from(helper)?), signal)?;
    }
    for family in Family::BOTH {
        let owner = scene.lab.owner();
        scene.knock(owner, family, &scene.laptop.open("ssh").seal()?)?;
        scene.await_open(owner, family, SSH_PORT)?;
    }
    ensure!(scene.server.helper_pid()? == helper, "another one");
    Ok(())
}

/// The file of a trial lies where the worker writes. Without an order of root's, nothing that it says
/// takes the gate away, nor has the gate stand with nobody who opens it.
#[test]
fn a_trial_that_nobody_has_ordered_is_none() -> Result<()> {
    let mut scene = Scene::new()?;
    for text in ["\"lapsed\"\n", "nonsense"] {
        let trial = scene.server.configuration().state_directory.join("trial");
        scene.server.stop()?;
        std::fs::write(&trial, text)?;
        scene.server.start()?;
        ensure!(scene.server.log()?.contains("it stands"), "{}", scene.server.log()?);
        scene.ensure_shut()?;
        scene.ensure_owner_gets_in(Family::V4)?;
        ensure!(!trial.exists(), "{text}");
        scene.revoke_all()?;
    }
    Ok(())
}

/// Without an end, a frozen helper would have every knock fail for good. What it was asked then does not
/// happen when it goes on.
#[test]
fn a_helper_that_is_frozen_is_given_up_and_the_daemon_ends() -> Result<()> {
    let mut scene = Scene::new()?;
    let helper = scene.server.helper_pid()?;
    let frozen = Pid::from_raw(i32::try_from(helper)?);
    kill(frozen, Signal::SIGSTOP)?;
    let owner = scene.lab.owner().clone();
    scene.knock(&owner, Family::V4, &scene.laptop.open("ssh").lifetime(600).seal()?)?;
    // It has patience for a minute.
    let ended = scene.server.await_end_within(Duration::from_secs(120));
    let ended = ended.with_context(|| scene.server.account())?;
    ensure!(!ended.success(), "a daemon that opens nothing any more is to be started anew");
    let log = scene.server.log()?;
    for told in ["the gate helper does not answer", "was given up", "event=failed"] {
        ensure!(log.contains(told), "{told}: {log}");
    }
    kill(frozen, Signal::SIGCONT)?;
    await_no_process(helper)?;
    scene.ensure_sees(&owner, Family::V4, SSH_PORT, PortState::Filtered)?;
    scene.server.start()?;
    ensure!(scene.server.elements()?.is_empty(), "{:?}", scene.server.elements()?);
    scene.ensure_owner_gets_in(Family::V4)
}

/// A debugger, `strace` or a batch system stops and continues a process; what it waited for in that
/// moment is not lost.
#[test]
fn a_daemon_that_is_stopped_while_it_waits_for_its_helper_goes_on() -> Result<()> {
    let mut scene = Scene::new()?;
    let of = |pid: u32| -> Result<Pid> { Ok(Pid::from_raw(i32::try_from(pid)?)) };
    let (helper, worker) = (of(scene.server.helper_pid()?)?, of(scene.server.pid()?)?);
    kill(helper, Signal::SIGSTOP)?;
    // The watch looks every second: by now the daemon waits for that.
    std::thread::sleep(Duration::from_secs(3));
    kill(worker, Signal::SIGSTOP)?;
    std::thread::sleep(Duration::from_millis(100));
    kill(worker, Signal::SIGCONT)?;
    kill(helper, Signal::SIGCONT)?;
    scene.ensure_owner_gets_in(Family::V4)?;
    std::thread::sleep(Duration::from_secs(1));
    scene.server.ensure_unharmed()
}
