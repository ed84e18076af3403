//! What a server is short of, or what happens to it: nobody reads its log, descriptors or memory run
//! out, its control socket is flooded, an interface has another name or address, the table of
//! connections or a set of the gate's is full, its log is rotated, the name server is dead, it is
//! started twice. Nothing is lost by it that a knock does not bring back.

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::unistd::pipe2;
use spa_proto::Transport;
use spa_server::netlink::conntrack::{Conntrack, Tuple};
use spa_tests::{
    Backend, Client, Desk, Family, Host, PortState, SSH_PORT, Scene, WEB_PORT, eventually,
    eventually_within, finish, finish_reading, finish_within, program, workspace,
};
use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::scope;
use std::time::{Duration, Instant};

/// Writes until no byte more fits, which has to be told by the descriptor.
fn fill(pipe: &mut File) -> Result<usize> {
    let mut written = 0;
    for piece in [4096, 1] {
        loop {
            match pipe.write(&vec![b'.'; piece]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(written)
}

#[test]
fn a_log_that_nobody_reads_keeps_nobody_out_and_says_what_it_has_lost() -> Result<()> {
    let mut scene = Scene::prepared(|configuration| configuration.prefilter = "off".into())?;
    // The test does not wait for room, the server has an end that does.
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let mut reader = File::from(reader);
    let filled = fill(&mut File::from(writer.try_clone()?))?;
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&writer));
    let blocking = File::options().write(true).open(path)?;
    scene.server.log_into(blocking);
    scene.server.set_env("SPA_LOG", "debug");
    // It has something to say before it is ready.
    scene.server.start()?;
    for family in Family::BOTH {
        scene.ensure_owner_gets_in(family)?;
    }
    ensure!(scene.server.admin(&["grants", "revoke", "--all"])?.success());
    // More than may wait: at this level every datagram is a line.
    let noise = vec![vec![0x5a; 216]; 200];
    let door = scene.door(Family::V4);
    eventually("some thousand lines are to be due", || {
        scene.lab.other().send_udp_all(door, &noise)?;
        Ok((scene.server.dropped("unknown-tag")? > 10_000).then_some(()))
    })?;
    scene.ensure_owner_gets_in(Family::V4)?;

    // Somebody reads again.
    let mut said = Vec::new();
    let lost = eventually_within(Duration::from_secs(60), "the log is to go on", || {
        let mut piece = vec![0; 65_536];
        while let Ok(count) = reader.read(&mut piece) {
            ensure!(count > 0, "the server has closed its log");
            said.extend_from_slice(&piece[..count]);
        }
        let text = String::from_utf8_lossy(&said);
        Ok(text.contains("lines of the log that are lost").then(|| text.into_owned()))
    })?;
    let lost = lost.get(filled..).context("what filled the pipe is not there")?;
    let ready = lost.find(" ready").context("the first lines are lost")?;
    let opened = lost.find("event=opened client=laptop source=10.66.0.2 ");
    ensure!(opened.is_some_and(|opened| opened > ready), "{}", &lost[..lost.len().min(4000)]);
    ensure!(lost.contains("event=revoked client=laptop"), "the revocation is not told");
    ensure!(scene.server.status()?.pid == scene.server.pid()?);
    Ok(())
}

/// Sets a limit of the running server's, as `nofile=20:20`.
fn limit(scene: &Scene, limit: &str) -> Result<()> {
    let pid = scene.server.pid()?;
    scene.server.host().sh(&format!("prlimit --pid {pid} --{limit}"))?;
    Ok(())
}

#[test]
fn without_a_descriptor_left_it_goes_on_and_answers_when_there_is_one() -> Result<()> {
    let mut scene = Scene::new()?;
    let owner = scene.lab.owner().clone();
    scene.ensure_owner_gets_in(Family::V4)?;
    let mut session = scene.sshd.session(&owner, Family::V4)?;
    let open = fs::read_dir(format!("/proc/{}/fd", scene.server.pid()?))?;
    let numbers: Vec<u32> =
        open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    let free = (0..1024).find(|number| !numbers.contains(number)).context("all are in use")?;
    limit(&scene, &format!("nofile={free}:4096"))?;

    // The control: nobody is answered.
    let mut asking = scene.server.admin_command(&["status"])?;
    ensure!(finish_within(Duration::from_secs(3), &mut asking).is_err(), "it was answered");
    eventually("the log is to say why", || {
        Ok(scene.server.log()?.contains("the control socket does not accept").then_some(()))
    })?;
    // A knock opens, or is told to have failed.
    let knock = scene.laptop.open("web").seal()?;
    scene.knock(&owner, Family::V6, &knock)?;
    let is_open = eventually("the knock is to be told of", || {
        let opened = !scene.server.audit("opened")?.iter().all(|line| line.contains("ssh"));
        let failed = !scene.server.audit("failed")?.is_empty();
        Ok((opened || failed).then_some(opened))
    })?;
    let wanted = if is_open { PortState::Open } else { PortState::Filtered };
    scene.ensure_sees(&owner, Family::V6, WEB_PORT, wanted)?;
    session.ensure_alive()?;

    limit(&scene, "nofile=1024:4096")?;
    eventually("it is to answer again", || Ok(scene.server.status().ok().map(|_| ())))?;
    scene.server.ensure_unharmed()?;
    for family in Family::BOTH {
        scene.ensure_owner_gets_in(family)?;
    }
    session.ensure_alive()?;
    Ok(())
}

#[test]
fn a_daemon_that_gets_no_more_memory_ends_and_the_next_one_goes_on() -> Result<()> {
    let mut scene = Scene::new()?;
    let owner = scene.lab.owner().clone();
    scene.knock(&owner, Family::V4, &scene.laptop.open("ssh").lifetime(600).seal()?)?;
    scene.await_open(&owner, Family::V4, SSH_PORT)?;
    let mut session = scene.sshd.session(&owner, Family::V4)?;

    // It has as much as it has now, and is to read the files of so many clients more.
    scene.server.reconfigure(|configuration| {
        for number in 0..4000 {
            configuration.clients.push(Client {
                name: format!("client-{number}"),
                public_key: "spa-public-wMhVlcx9xJF13OjNS9umBc3un8KC_CmV1VONnUazdnferDP3".into(),
                allow: vec!["ssh".into()],
                ..Client::default()
            });
        }
    })?;
    let status = fs::read_to_string(format!("/proc/{}/status", scene.server.pid()?))?;
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
    let size = size.and_then(|size| size.split_whitespace().next()?.parse::<u64>().ok());
    limit(&scene, &format!("as={}", (size.context("no VmSize")? + 256) * 1024))?;
    ensure!(!scene.server.admin(&["reload"])?.success(), "there was enough memory");
    let ended = scene.server.await_end()?;
    ensure!(ended.signal() == Some(6), "it ended with {ended}");
    ensure!(scene.server.log()?.contains("memory allocation"), "{}", scene.server.account());
    scene.ensure_sees(&owner, Family::V4, SSH_PORT, PortState::Open)?;
    scene.ensure_sees(scene.lab.other(), Family::V4, SSH_PORT, PortState::Filtered)?;

    scene.server.reconfigure(|configuration| configuration.clients.truncate(1))?;
    scene.server.start()?;
    ensure!(scene.server.grants()?.len() == 1, "{:?}", scene.server.grants()?);
    ensure!(scene.server.elements()?.len() == 1, "{:?}", scene.server.elements()?);
    session.ensure_alive()?;
    scene.ensure_owner_gets_in(Family::V6)
}

/// What a peer of the control socket may do that nobody wants.
fn bother(socket: &std::path::Path, number: usize) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_write_timeout(Some(Duration::from_secs(1)))?;
    match number % 4 {
        0 => stream.write_all(&vec![b'['; 100_000]),
        1 => stream.write_all(&b"\xff\xfe\0\n{\"status\":1}\n\n".repeat(100)),
        // Answers that it does not read.
        2 => stream.write_all(&b"\"status\"\n".repeat(10_000)),
        _ => stream.write_all(b"\"sta"),
    }
}

#[test]
fn a_flooded_control_socket_keeps_no_knock_out_and_is_answered_afterwards() -> Result<()> {
    let mut scene = Scene::new()?;
    let owner = scene.lab.owner().clone();
    let socket = scene.server.configuration().control_socket.clone();
    let status = scene.server.admin(&["status"])?;
    ensure!(status.success(), "{status}");
    let silent = (0..20).map(|_| UnixStream::connect(&socket)).collect::<Result<Vec<_>, _>>()?;
    let stop = AtomicBool::new(false);
    scope(|scope| {
        for thread in 0..4 {
            let (socket, stop) = (&socket, &stop);
            scope.spawn(move || {
                for number in thread.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    // Most of them are hung up on.
                    let _ = bother(socket, number);
                }
            });
        }
        let outcome = (|| {
            let flooded = scene.server.admin(&["status"])?;
            ensure!(!flooded.success() && flooded.said().contains("too many"), "{flooded}");
            for _ in 0..10 {
                for family in Family::BOTH {
                    scene.ensure_owner_gets_in(family)?;
                    scene.knock(&owner, family, &scene.laptop.close("ssh").seal()?)?;
                    scene.await_state(&owner, family, SSH_PORT, PortState::Filtered)?;
                }
            }
            anyhow::Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        outcome
    })?;
    drop(silent);
    eventually("the administrator is to be answered", || {
        Ok(scene.server.admin(&["grants", "list"])?.success().then_some(()))
    })?;
    scene.server.ensure_unharmed()
}

#[test]
fn an_interface_that_is_renamed_is_told_and_captured_again_under_its_name() -> Result<()> {
    let mut scene = Scene::with(|configuration| configuration.interfaces = vec!["eth0".into()])?;
    let owner = scene.lab.owner().clone();
    scene.knock(&owner, Family::V4, &scene.laptop.open("web").lifetime(600).seal()?)?;
    scene.await_open(&owner, Family::V4, WEB_PORT)?;
    let rename = |from: &str, to: &str| -> Result<()> {
        for words in [format!("{from} down"), format!("{from} name {to}"), format!("{to} up")] {
            scene.server.host().sh(&format!("ip link set {words}"))?;
        }
        Ok(())
    };
    rename("eth0", "wan0")?;
    eventually("the status is to name it", || {
        let status = scene.server.admin(&["status"])?.ok()?;
        Ok(status
            .lines()
            .any(|line| line.contains("eth0") && !line.contains("running"))
            .then_some(()))
    })?;
    // The gate knows no interfaces: what was open is open, what was shut is shut.
    scene.await_open(&owner, Family::V4, WEB_PORT)?;
    scene.ensure_sees(scene.lab.other(), Family::V4, WEB_PORT, PortState::Filtered)?;
    rename("wan0", "eth0")?;
    eventually("it is to be captured on again", || {
        let status = scene.server.admin(&["status"])?.ok()?;
        Ok(status.contains("eth0: running").then_some(()))
    })?;
    scene.ensure_owner_gets_in(Family::V4)?;
    scene.server.ensure_unharmed()
}

#[test]
fn an_interface_that_gets_another_address_is_captured_and_guarded_there() -> Result<()> {
    let mut scene = Scene::with(|configuration| configuration.interfaces = vec!["eth0".into()])?;
    let (owner, other) = (scene.lab.owner().clone(), scene.lab.other().clone());
    scene.ensure_owner_gets_in(Family::V4)?;
    let host = scene.server.host();
    host.sh("ip addr del 10.66.0.1/24 dev eth0")?;
    host.sh("ip addr add 10.66.0.9/24 dev eth0")?;
    let (door, web) = ("10.66.0.9:62201".parse()?, "10.66.0.9:8080".parse()?);
    ensure!(owner.tcp(web)? == PortState::Filtered, "not guarded at the new address");
    owner.send_udp(door, &scene.laptop.open("web").seal()?)?;
    owner.await_state(web, PortState::Open).with_context(|| scene.server.account())?;
    ensure!(other.tcp(web)? == PortState::Filtered, "open for all");
    scene.server.ensure_unharmed()
}

#[test]
fn a_full_table_of_connections_harms_no_session_and_no_start() -> Result<()> {
    let mut scene = Scene::new()?;
    let owner = scene.lab.owner().clone();
    scene.ensure_owner_gets_in(Family::V4)?;
    let mut session = scene.sshd.session(&owner, Family::V4)?;
    scene.revoke_all()?;

    // The kernel lets no namespace have a limit of its own, so there have to be as many as it says.
    let most: u32 =
        fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max")?.trim().parse()?;
    let server = scene.server.host().clone();
    let mut next: u32 = 0;
    let mut fill = || {
        server.inside(|| {
            let mut tracking = Conntrack::open()?;
            for entered in 0..=most {
                let [_, high, middle, low] = next.to_be_bytes();
                let tuple = Tuple {
                    transport: Transport::Tcp,
                    source: SocketAddr::from(([10, 99, high, middle], 1024 + u16::from(low))),
                    destination: SocketAddr::from(([10, 98, 0, 1], 9)),
                };
                if tracking.create(&tuple).is_err() {
                    return Ok(entered);
                }
                next += 1;
            }
            bail!("{most} connections more have found room")
        })
    };
    let entered = fill()?;
    ensure!(entered > most / 2, "{entered} of {most}");

    // Nobody gets in: the kernel itself drops what it can't track. The daemon hears knocks, says
    // what it has opened, and can be started again.
    let accepted = scene.server.status()?.accepted;
    scene.knock(&owner, Family::V4, &scene.laptop.open("ssh").lifetime(600).seal()?)?;
    scene.server.await_accepted(accepted + 1)?;
    eventually("no connection is to find room", || {
        // What ends makes some, as those do that were looked by before.
        fill()?;
        Ok((scene.sees(&owner, Family::V4, SSH_PORT)? == PortState::Filtered).then_some(()))
    })?;
    session.ensure_alive()?;
    scene.server.restart()?;
    ensure!(scene.server.grants()?.len() == 1, "{:?}", scene.server.grants()?);
    ensure!(scene.server.status()?.gate == "installed", "{:?}", scene.server.status()?.gate);
    session.ensure_alive()?;

    server.sh("conntrack -F")?;
    scene.ensure_sees(&owner, Family::V4, SSH_PORT, PortState::Open)?;
    scene.ensure_sees(scene.lab.other(), Family::V4, SSH_PORT, PortState::Filtered)?;
    session.ensure_alive()?;
    scene.server.ensure_unharmed()
}

/// Puts elements for this port into a set of the gate's until the kernel takes no more.
fn fill_set(host: &Host, backend: Backend, family: Family, port: u16) -> Result<()> {
    let set = if family == Family::V4 { "spa4" } else { "spa6" };
    let source = |number: usize| -> Result<IpAddr> {
        let number = u16::try_from(number)?;
        let [high, low] = number.to_be_bytes();
        Ok(match family {
            Family::V4 => [100, 64, high, low].into(),
            Family::V6 => [0xfd64, 0, 0, 0, 0, 0, 0, number].into(),
        })
    };
    let (mut next, mut piece) = (0, 512);
    loop {
        let sources = (next..next + piece).map(source).collect::<Result<Vec<_>>>()?;
        let added = if backend == Backend::IPSET {
            let lines = sources.iter().map(|it| format!("add {set} {it},tcp:{port} timeout 600\n"));
            let restore = &mut host.command("ipset")?;
            finish_reading(&lines.collect::<String>(), restore.args(["-exist", "restore"]))?
        } else {
            let elements: Vec<_> =
                sources.iter().map(|it| format!("{it} . tcp . {port} timeout 600s")).collect();
            let text = format!("add element inet spa {set} {{ {} }}\n", elements.join(", "));
            finish_reading(&text, host.command("nft")?.args(["-f", "-"]))?
        };
        if added.success() {
            next += piece;
            ensure!(next < 20_000, "{set} has no end");
            continue;
        }
        let is_full = ["is full", "Too many open files in system"];
        ensure!(is_full.iter().any(|it| added.said().contains(it)), "{added}");
        if piece == 1 {
            return Ok(());
        }
        piece /= 2;
    }
}

/// A server whose sets are soon full, with `ssh` open for the owner.
fn with_little_room(backend: Backend, family: Family) -> Result<(Scene, Host)> {
    let scene = Scene::with(|configuration| {
        backend.choose(configuration);
        configuration.max_grants = Some(100);
    })?;
    let owner = scene.lab.owner().clone();
    scene.knock(&owner, family, &scene.laptop.open("ssh").lifetime(600).seal()?)?;
    scene.await_open(&owner, family, SSH_PORT)?;
    Ok((scene, owner))
}

/// Another program's elements are in the kernel for a moment: a knock of that moment fails, and says
/// so, and what was open stays so.
fn a_filled_set_costs_a_knock(backend: Backend, family: Family) -> Result<()> {
    let (mut scene, owner) = with_little_room(backend, family)?;
    let mut session = scene.sshd.session(&owner, family)?;
    let mut known = 1;
    let failed = eventually("a knock is to come before the set is emptied", || {
        // As long as it stands still it takes out nothing, and what comes waits in the capture.
        scene.server.signal(Signal::SIGSTOP)?;
        let filled = fill_set(scene.server.host(), backend, family, SSH_PORT);
        scene.knock(&owner, family, &scene.laptop.open("web").lifetime(600).seal()?)?;
        scene.server.signal(Signal::SIGCONT)?;
        filled?;
        known += 1;
        scene.server.await_accepted(known)?;
        let of_web = || -> Result<bool> {
            Ok(scene.server.grants()?.iter().any(|it| it.service.to_string() == "web"))
        };
        let failed = eventually("the knock is to be told of", || {
            let told = scene.server.audit("failed")?.pop();
            Ok((told.is_some() || of_web()?).then_some(told))
        })?;
        if failed.is_some() {
            scene.ensure_sees(&owner, family, WEB_PORT, PortState::Filtered)?;
        } else {
            // It came too late. What it has opened needs no room the next time.
            scene.ensure_sees(&owner, family, WEB_PORT, PortState::Open)?;
            scene.knock(&owner, family, &scene.laptop.close("web").seal()?)?;
            known += 1;
            scene.server.await_accepted(known)?;
        }
        Ok(failed)
    })?;
    ensure!(failed.contains("is full"), "{failed}");
    session.ensure_alive()?;
    scene.ensure_sees(&owner, family, SSH_PORT, PortState::Open)?;
    eventually("the owner alone is to be admitted", || {
        let admitted = scene.server.admitted()?;
        Ok((admitted.len() == 1 && admitted[0].0 == owner.address(family)).then_some(()))
    })
    .with_context(|| {
        format!("{:?} {}", scene.server.admitted().map(|it| it.len()), scene.server.account())
    })?;
    session.ensure_alive()?;
    scene.knock(&owner, family, &scene.laptop.open("web").seal()?)?;
    scene.await_open(&owner, family, WEB_PORT)?;
    ensure!(scene.sees(scene.lab.other(), family, SSH_PORT)? == PortState::Filtered);
    scene.server.ensure_unharmed()
}

/// Elements of ports that the gate does not guard admit nobody, and make room for who is to be.
fn a_set_filled_with_what_admits_nobody_keeps_nobody_out(
    backend: Backend,
    family: Family,
) -> Result<()> {
    let (mut scene, owner) = with_little_room(backend, family)?;
    fill_set(scene.server.host(), backend, family, 9)?;
    ensure!(scene.server.admitted()?.len() > 100, "they are not there");
    scene.knock(&owner, family, &scene.laptop.open("web").lifetime(600).seal()?)?;
    scene.await_open(&owner, family, WEB_PORT)?;
    let admitted = scene.server.admitted()?;
    let of_owner = |(source, _): &(IpAddr, u64)| *source == owner.address(family);
    ensure!(admitted.len() == 2 && admitted.iter().all(of_owner), "{admitted:?}");
    ensure!(scene.server.status()?.failed == 0, "{}", scene.server.account());
    scene.ensure_sees(&owner, family, SSH_PORT, PortState::Open)?;
    scene.ensure_sees(scene.lab.other(), family, WEB_PORT, PortState::Filtered)?;
    scene.server.ensure_unharmed()
}

#[test]
fn a_set_filled_with_other_ports_keeps_nobody_out() -> Result<()> {
    a_set_filled_with_what_admits_nobody_keeps_nobody_out(Backend::IPSET, Family::V6)
}

#[test]
fn a_set_of_nftables_filled_with_other_ports_keeps_nobody_out() -> Result<()> {
    a_set_filled_with_what_admits_nobody_keeps_nobody_out(Backend::NFTABLES, Family::V4)
}

#[test]
fn a_set_that_somebody_has_filled_costs_a_knock_and_is_emptied() -> Result<()> {
    a_filled_set_costs_a_knock(Backend::IPSET, Family::V4)
}

#[test]
fn a_set_of_nftables_that_somebody_has_filled_costs_a_knock_and_is_emptied() -> Result<()> {
    a_filled_set_costs_a_knock(Backend::NFTABLES, Family::V6)
}

/// As the manual has it for a log that is no journal.
#[test]
fn a_log_that_logrotate_turns_over_goes_on_and_can_be_asked() -> Result<()> {
    let scene = Scene::new()?;
    let owner = scene.lab.owner().clone();
    let directory = scene.server.directory().join("rotated");
    fs::create_dir(&directory)?;
    let manual = fs::read_to_string(workspace()?.join("docs/manual.md"))?;
    let (_, example) = manual.split_once("```\n/var/log/spa-server.log {").context("no example")?;
    let (example, _) = example.split_once("\n```").context("it has no end")?;
    let (log, config) = (scene.server.directory().join("server.log"), directory.join("config"));
    fs::write(&config, format!("{} {{{example}\n", log.display()))?;
    let turn_over = || {
        let mut command = Command::new(program("logrotate")?);
        finish(command.arg("--force").arg("--state").arg(directory.join("state")).arg(&config))?
            .ok()
    };
    let file = |number: usize| match number {
        0 => log.clone(),
        _ => log.with_file_name(format!("server.log.{number}")),
    };
    for (turn, item) in ["ssh", "web", "ssh"].into_iter().enumerate() {
        scene.revoke_all()?;
        scene.knock(&owner, Family::V4, &scene.laptop.open(item).seal()?)?;
        eventually("it is to be written", || {
            Ok(scene.server.audit("opened")?.iter().any(|line| line.contains(item)).then_some(()))
        })?;
        if turn < 2 {
            turn_over()?;
            ensure!(fs::metadata(&log)?.len() == 0, "it was not cut");
        }
    }
    let mut opened = Vec::new();
    for number in [2, 1, 0] {
        let text = fs::read(file(number)).with_context(|| format!("turn {number}"))?;
        ensure!(!text.contains(&0) && text.ends_with(b"\n"), "a hole, or half a line");
        let file = file(number).display().to_string();
        let asked = scene.server.admin(&["log", "--file", &file, "--event", "opened", "--json"])?;
        opened.extend(asked.ok()?.lines().map(ToOwned::to_owned));
    }
    let items: Vec<_> = opened
        .iter()
        .map(|line| if line.contains(r#""services":"web""#) { "web" } else { "ssh" })
        .collect();
    ensure!(items == ["ssh", "web", "ssh"], "{opened:?}");
    Ok(())
}

#[test]
fn a_second_server_by_mistake_ends_and_the_first_goes_on() -> Result<()> {
    let mut scene = Scene::new()?;
    let owner = scene.lab.owner().clone();
    scene.knock(&owner, Family::V4, &scene.laptop.open("ssh").lifetime(600).seal()?)?;
    scene.await_open(&owner, Family::V4, SSH_PORT)?;
    let rules = scene.server.rules()?;
    let second = finish(&mut scene.server.admin_command(&["run"])?)?;
    ensure!(second.status.code() == Some(1), "{second}");
    ensure!(second.said().contains("works on the state directory"), "{second}");
    ensure!(scene.server.rules()? == rules, "it has changed the rules");
    ensure!(scene.server.grants()?.len() == 1, "{:?}", scene.server.grants()?);
    scene.ensure_sees(&owner, Family::V4, SSH_PORT, PortState::Open)?;
    scene.ensure_owner_gets_in(Family::V6)?;
    scene.server.ensure_unharmed()
}

#[test]
fn a_dead_name_server_costs_seconds_and_an_address_beside_the_name_opens() -> Result<()> {
    let desk = Desk::new()?;
    let lab = &desk.scene.lab;
    // It is there, and says nothing.
    lab.third().sh("iptables -A INPUT -p udp --dport 53 -j DROP")?;
    let resolver =
        format!("nameserver {}\noptions timeout:1 attempts:1\n", lab.third().address(Family::V4));
    fs::write(format!("/etc/netns/{}/resolv.conf", lab.owner().namespace()), resolver)?;
    desk.add_server("lost", "gw.lost.example", &[])?;
    let begun = Instant::now();
    let lost = desk.laptop.run(&["open", "ssh@lost", "--wait"])?;
    ensure!(!lost.success() && lost.stderr.contains("gw.lost.example"), "{lost}");
    // The control: somebody was waited for.
    ensure!(begun.elapsed() > Duration::from_millis(900), "{:?}", begun.elapsed());
    ensure!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    desk.scene.ensure_shut()?;

    let file = desk.laptop.configuration().join("config.toml");
    let text = fs::read_to_string(&file)?;
    let address = lab.server().address(Family::V4);
    let beside =
        text.replace("[server.lost]\n", &format!("[server.lost]\nmore-hosts = [\"{address}\"]\n"));
    ensure!(beside != text, "{text}");
    fs::write(&file, beside)?;
    let open = desk.laptop.run(&["open", "ssh@lost", "--wait", "--timeout", "30s"])?;
    ensure!(open.success(), "{open}\n{}", desk.scene.server.account());
    Ok(())
}
