//! `spa-client` under the programs that people work with: OpenSSH and what stands on it.

use anyhow::{Context, Result, ensure};
use spa_tests::{Desk, Family, PortState, SSH_PORT, at_once, finish};
use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// What is closed by the administrator, and not by the laptop: its record knows nothing of it.
fn shut(desk: &Desk) -> Result<()> {
    desk.scene.revoke_all()?;
    desk.scene.ensure_shut()
}

#[test]
fn ssh_scp_sftp_rsync_and_git_work_through_the_proxy_by_one_knock() -> Result<()> {
    let desk = Desk::new()?;
    let knocks = desk.knocks()?;
    let config = &set_up(&desk, &[])?;
    desk.scene.ensure_shut()?;
    let answer = desk.run("ssh", &["-F", config, "gateway", "echo in; echo err >&2; exit 3"])?;
    ensure!(answer.status.code() == Some(3), "{answer}");
    ensure!((answer.stdout.as_str(), answer.stderr.as_str()) == ("in\n", "err\n"), "{answer}");
    // That of the session; one more where this machine was busy, and two answers came at once.
    let first = desk.connections()?;
    ensure!((1..=2).contains(&first), "{}", desk.scene.sshd.log()?);

    let files = desk.scene.lab.directory().join("files");
    fs::create_dir(&files)?;
    let path = |name: &str| files.join(name).display().to_string();
    let content: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
    fs::write(files.join("a"), &content)?;
    let there = |name: &str| format!("gateway:{}", path(name));
    desk.run("scp", &["-F", config, &path("a"), &there("b")])?.ok()?;
    desk.run("scp", &["-O", "-F", config, &there("b"), &path("c")])?.ok()?;
    let batch = files.join("batch");
    fs::write(&batch, format!("get {} {}\n", path("c"), path("d")))?;
    let batch = batch.display().to_string();
    desk.run("sftp", &["-F", config, "-b", &batch, "gateway"])?.ok()?;
    let shell = format!("ssh -F {config}");
    desk.run("rsync", &["-e", &shell, &path("d"), &there("e")])?.ok()?;
    for name in ["b", "c", "d", "e"] {
        ensure!(fs::read(files.join(name))? == content, "{name} is another");
    }

    let git = |words: &[&str]| {
        let mut command = desk.command("git")?;
        command.env("GIT_SSH_COMMAND", &shell).env("GIT_CONFIG_GLOBAL", "/dev/null");
        for who in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{who}_NAME"), "a").env(format!("GIT_{who}_EMAIL"), "a@b");
        }
        finish(command.args(words))?.ok()
    };
    git(&["init", "--bare", "-q", "-b", "main", &path("bare")])?;
    git(&["clone", "-q", &there("bare"), &path("work")])?;
    fs::write(files.join("work/file"), "hello\n")?;
    git(&["-C", &path("work"), "add", "file"])?;
    git(&["-C", &path("work"), "commit", "-q", "-m", "A file"])?;
    git(&["-C", &path("work"), "push", "-q", "origin", "HEAD:main"])?;
    git(&["clone", "-q", "-b", "main", &there("bare"), &path("again")])?;
    ensure!(fs::read_to_string(files.join("again/file"))? == "hello\n");

    // All of that within the 30 seconds of the first knock; if not, a second one was right.
    let (knocked, connected) = (knocks.count(2)?, desk.connections()?);
    ensure!(knocked <= 2, "{knocked} knocks for {connected} connections");
    ensure!(connected >= 7 + first, "{connected} connections\n{}", desk.scene.sshd.log()?);
    Ok(())
}

#[test]
fn ten_at_the_same_moment_send_one_knock() -> Result<()> {
    let desk = Desk::new()?;
    let config = desk.ssh_config(&format!("Host gateway\n{}", desk.proxy_command("")?))?;
    let config = config.to_str().context("a path")?;
    let knocks = desk.knocks()?;
    at_once(0..10, |number| {
        let answer = desk.run("ssh", &["-F", config, "gateway", &format!("echo {number}")])?;
        ensure!(answer.clone().ok()? == format!("{number}\n"), "{answer}");
        Ok(())
    })?;
    ensure!(knocks.count(2)? == 1, "{} knocks", knocks.count(2)?);
    // The control: without a record, ten are sent.
    at_once(0..10, |_| {
        let mut command = desk.command("ssh")?;
        command.env("SPA_STATE_DIR", "/proc/nowhere").args(["-F", config, "gateway", "true"]);
        finish(&mut command)?.ok()
    })?;
    ensure!(knocks.count(2)? == 11, "{} knocks", knocks.count(2)?);
    Ok(())
}

#[test]
fn a_passphrase_is_wanted_for_one_knock_and_for_none_that_is_not_sent() -> Result<()> {
    let desk = Desk::new()?;
    let config = &set_up(&desk, &[])?;
    let file = |name: &str, words: &str| -> Result<PathBuf> {
        let path = desk.scene.lab.directory().join(name);
        fs::write(&path, format!("{words}\n"))?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(path)
    };
    let (right, wrong) = (file("right", "correct horse")?, file("wrong", "battery staple")?);
    let ssh = |passphrase: &Path| {
        let mut command = desk.command("ssh")?;
        command.env("SPA_PASSPHRASE_FILE", passphrase).args(["-F", config, "gateway", "echo in"]);
        finish(&mut command)
    };
    let file = right.to_str().context("a path")?;
    desk.laptop.run(&["key", "passphrase", "--new-passphrase-file", file])?.ok()?;
    let knocks = desk.knocks()?;
    let refused = ssh(&wrong)?;
    ensure!(refused.said().contains("is not it; correct SPA_PASSPHRASE_FILE"), "{refused}");
    at_once(0..10, |_| {
        let answer = ssh(&right)?;
        ensure!(answer.clone().ok()? == "in\n", "{answer}");
        Ok(())
    })?;
    ensure!(knocks.count(2)? == 1, "{} knocks", knocks.count(2)?);
    // Nobody needs it while the grant holds.
    let answer = ssh(&wrong)?;
    ensure!(answer.clone().ok()? == "in\n", "{answer}");
    shut(&desk)?;
    let refused = ssh(&wrong)?;
    ensure!(refused.said().contains("is not it; correct SPA_PASSPHRASE_FILE"), "{refused}");
    ensure!(knocks.count(2)? == 1, "{} knocks", knocks.count(2)?);
    ensure!(ssh(&right)?.ok()? == "in\n");
    ensure!(knocks.count(2)? == 2, "{} knocks", knocks.count(2)?);
    Ok(())
}

#[test]
fn a_grant_that_is_gone_costs_a_second_and_a_knock() -> Result<()> {
    let desk = Desk::new()?;
    let config = desk.ssh_config(&format!("Host gateway\n{}", desk.proxy_command("")?))?;
    let config = config.to_str().context("a path")?;
    let knocks = desk.knocks()?;
    desk.run("ssh", &["-F", config, "gateway", "true"])?.ok()?;
    shut(&desk)?;
    desk.run("ssh", &["-F", config, "gateway", "true"])?.ok()?;
    ensure!(knocks.count(2)? == 2, "{} knocks", knocks.count(2)?);
    Ok(())
}

#[test]
fn the_ssh_command_runs_ssh_with_all_its_words() -> Result<()> {
    let desk = Desk::new()?;
    let config = desk.ssh_config("")?;
    let config = config.to_str().context("a path")?;
    let knocks = desk.knocks()?;
    // The server is found by its host, by its name, and whatever follows is ssh's.
    for (host, words) in [
        ("gateway", &["ssh", "-F", config][..]),
        ("work", &["ssh", "-4", "-vF", config]),
        ("root@gateway", &["ssh", "-F", config, "-p", "22"]),
    ] {
        let words = [words, &[host, "echo", "in;", "exit 7"]].concat();
        let answer = desk.laptop.run(&words)?;
        ensure!(answer.status.code() == Some(7) && answer.stdout == "in\n", "{answer}");
    }
    ensure!(knocks.count(2)? == 1);
    let jump = desk.laptop.run(&["ssh", "-J", "other", "gateway"])?;
    ensure!(jump.status.code() == Some(2) && jump.said().contains("-J other"), "{jump}");
    let unknown = desk.laptop.run(&["ssh", "-F", config, "nowhere.example"])?;
    ensure!(unknown.said().contains("no server has the host or the name"), "{unknown}");
    Ok(())
}

#[test]
fn the_proxy_hands_on_ends_and_bytes_both_ways() -> Result<()> {
    let desk = Desk::new()?;
    // An echo service: it sends back until we end, and ends itself then.
    let mut proxy = desk
        .laptop
        .command(&["proxy", "gateway", "8080"])?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let content: Vec<u8> = (0..500_000u32).flat_map(u32::to_be_bytes).collect();
    let mut stdin = proxy.stdin.take().context("standard input")?;
    let mut stdout = proxy.stdout.take().context("standard output")?;
    let sent = content.clone();
    let writer = std::thread::spawn(move || {
        stdin.write_all(&sent)?;
        drop(stdin);
        std::io::Result::Ok(())
    });
    let mut came = Vec::new();
    stdout.read_to_end(&mut came)?;
    writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    let output = proxy.wait_with_output()?;
    ensure!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    ensure!(came == content, "{} bytes came back of {}", came.len(), content.len());
    Ok(())
}

#[test]
fn a_service_for_one_connection_takes_that_of_the_proxy() -> Result<()> {
    let desk = Desk::with(&["--service", "ssh=tcp/22,once"], |configuration| {
        if let Some(ssh) = configuration.services.get_mut("ssh") {
            ssh.connections = Some(1);
        }
    })?;
    let config = desk.ssh_config(&format!("Host gateway\n{}", desk.proxy_command("")?))?;
    let config = config.to_str().context("a path")?;
    let knocks = desk.knocks()?;
    for number in 1..=3 {
        let answer = desk.run("ssh", &["-F", config, "gateway", "echo in"])?;
        ensure!(answer.clone().ok()? == "in\n", "{answer}\n{}", desk.scene.server.account());
        // A knock for each, at the address that was connected to; the other stays as it was.
        ensure!(knocks.count(1)? == number, "{} knocks", knocks.count(1)?);
        ensure!(desk.connections()? == number, "{}", desk.scene.sshd.log()?);
    }
    for family in Family::BOTH {
        desk.scene.ensure_sees(desk.owner(), family, SSH_PORT, PortState::Filtered)?;
    }
    // Where the favourite family has no route, the knock goes to the other one, and so does ssh.
    desk.owner().sh("ip -6 addr flush dev eth0")?;
    desk.owner().sh("ip -6 route flush dev eth0")?;
    let answer = desk.run("ssh", &["-F", config, "gateway", "echo in"])?;
    ensure!(answer.clone().ok()? == "in\n", "{answer}");
    ensure!(desk.connections()? == 4, "{}", desk.scene.sshd.log()?);
    Ok(())
}

/// Writes ssh's configuration by the real command, below which stands what every login needs.
fn set_up(desk: &Desk, words: &[&str]) -> Result<String> {
    let config = desk.ssh_config("# mine")?;
    let config = config.to_str().context("a path")?.to_owned();
    let words = [&["setup", "ssh", "--yes", "--file", &config], words].concat();
    desk.laptop.run(&words)?.ok()?;
    Ok(config)
}

#[test]
fn what_setup_writes_has_ssh_get_in_by_both_ways() -> Result<()> {
    let desk = Desk::new()?;
    desk.add_server("other", "10.66.0.3", &[])?;
    for (words, probes) in [(&[][..], 0), (&["--match-exec"], 1)] {
        let config = set_up(&desk, words)?;
        let knocks = desk.knocks()?;
        let before = desk.connections()?;
        at_once(0..10, |_| {
            for host in ["work", "gateway"] {
                let answer = desk.run("ssh", &["-F", &config, host, "echo in"])?;
                ensure!(answer.clone().ok()? == "in\n", "{answer}");
            }
            Ok(())
        })?;
        ensure!(knocks.count(2)? == 1, "{words:?}: {} knocks", knocks.count(2)?);
        // Twenty sessions, and for all of them one look whether the port is open, or none. Whoever
        // has waited a second for another's look has one of its own: some do where this machine is
        // busy, never all ten of a moment.
        let connections = desk.connections()? - before;
        let expected = 20 + probes..30;
        ensure!(expected.contains(&connections), "{words:?}: {connections} connections");
        // Other hosts are left alone, and so is what stood there before.
        let other = desk.run("ssh", &["-F", &config, "-G", "elsewhere"])?.ok()?;
        ensure!(!other.contains("proxycommand") && other.contains("hostkeyalias gateway"));
        desk.laptop.run(&["close", "ssh"])?.ok()?;
        desk.scene.await_shut(Duration::ZERO)?;
    }
    let config = desk.scene.lab.directory().join("ssh_config");
    let words = ["setup", "ssh", "--remove", "--yes", "--file", config.to_str().context("a path")?];
    desk.laptop.run(&words)?.ok()?;
    ensure!(fs::read_to_string(&config)?.starts_with("# mine\n"));
    Ok(())
}

#[test]
fn ansible_works_through_it_by_one_knock() -> Result<()> {
    let desk = Desk::new()?;
    let config = set_up(&desk, &[])?;
    let home = desk.scene.lab.directory().join("ansible");
    fs::create_dir(&home)?;
    let host = |number| format!("host{number} ansible_host=gateway ansible_user=root");
    let hosts: Vec<String> = (0..5).map(host).collect();
    fs::write(home.join("inventory"), hosts.join("\n"))?;
    let knocks = desk.knocks()?;
    let mut ansible = desk.command("ansible")?;
    // Each task with connections of its own: no session that stays is to hide them.
    ansible
        .env("HOME", &home)
        .env("ANSIBLE_LOCAL_TEMP", home.join("tmp"))
        .env("ANSIBLE_SSH_ARGS", format!("-F {config} -o ControlMaster=no"))
        .env("ANSIBLE_HOST_KEY_CHECKING", "True")
        .args(["-i", &home.join("inventory").display().to_string(), "all", "-m", "ping"]);
    let said = finish(&mut ansible)?;
    ensure!(said.stdout.matches("\"ping\": \"pong\"").count() == 5, "{said}");
    ensure!(knocks.count(2)? <= 2, "{} knocks", knocks.count(2)?);
    ensure!(desk.connections()? >= 10, "{}", desk.scene.sshd.log()?);
    Ok(())
}

#[test]
fn waiting_makes_one_connection_and_only_where_a_port_is_to_be_looked_at() -> Result<()> {
    let desk = Desk::new()?;
    // sshd takes a moment to note a connection; a later one that it has noted shows that all are.
    let mut logins = 0;
    let mut probes = || -> Result<usize> {
        desk.scene.sshd.login(desk.owner(), Family::V4, "true")?.ok()?;
        logins += 1;
        // The other family does not race the favourite one.
        ensure!(desk.connections_by(Family::V4)? == logins, "{}", desk.scene.sshd.log()?);
        desk.connections_by(Family::V6)
    };
    desk.laptop.run(&["open", "ssh", "--wait", "--lifetime", "5m"])?.ok()?;
    // A second one only where this machine was busy, and two answers came before it looked.
    let first = probes()?;
    ensure!((1..=2).contains(&first), "{}", desk.scene.sshd.log()?);
    for _ in 0..5 {
        desk.laptop.run(&["open", "ssh", "--wait", "--lifetime", "5m"])?.ok()?;
    }
    ensure!(probes()? == first, "{}", desk.scene.sshd.log()?);
    desk.laptop.run(&["open", "ssh", "--wait", "--lifetime", "5m", "--fresh"])?.ok()?;
    ensure!(probes()? > first, "{}", desk.scene.sshd.log()?);
    Ok(())
}

#[test]
fn each_address_family_will_do_and_a_dead_one_costs_little() -> Result<()> {
    let desk = Desk::new()?;
    desk.add_server("four", "10.66.0.1", &[])?;
    desk.add_server("six", "fd66::1", &[])?;
    let config = desk.ssh_config("")?;
    let config = config.to_str().context("a path")?;
    let ways = [
        (&["four"][..], Family::V4),
        (&["six"], Family::V6),
        (&["-4", "work"], Family::V4),
        (&["-6", "work"], Family::V6),
        (&["work"], Family::V6),
    ];
    let came_by = |words: &[&str], family: Family| -> Result<()> {
        let words = [&["ssh", "-F", config], words, &["echo $SSH_CONNECTION"]].concat();
        let answer = desk.laptop.run(&words)?.ok()?;
        let from = desk.owner().address(family).to_string();
        ensure!(answer.starts_with(&format!("{from} ")), "{words:?}, by {family}: {answer}");
        Ok(())
    };
    for (words, family) in ways {
        came_by(words, family)?;
    }
    // IPv6 leads nowhere: no answer comes, and then there is no route.
    desk.owner().sh("ip6tables -I INPUT -j DROP")?;
    came_by(&["work"], Family::V4)?;
    desk.owner().sh("ip -6 addr flush dev eth0")?;
    came_by(&["work"], Family::V4)?;
    desk.laptop.run(&["open", "ssh", "--wait", "--fresh"])?.ok()?;
    Ok(())
}

#[test]
fn a_server_that_is_down_is_told_in_time() -> Result<()> {
    let desk = Desk::new()?;
    desk.scene.lab.server().sh("ip link set eth0 down")?;
    for words in [
        &["open", "ssh", "--wait", "--timeout", "2s"][..],
        &["proxy", "gateway", "22", "--timeout", "2s"],
        // The second one finds what the first ones have asked for, and does not rely on it.
        &["open", "ssh", "--wait", "--timeout", "2s"],
    ] {
        let began = Instant::now();
        let failed = desk.laptop.run(words)?;
        ensure!(failed.status.code() == Some(1) && failed.stdout.is_empty(), "{failed}");
        ensure!(failed.stderr.contains("did not open within 2 s"), "{failed}");
        ensure!(failed.stderr.contains("10.66.0.1: no answer"), "{failed}");
        ensure!(began.elapsed() >= Duration::from_secs(2), "{failed}");
        ensure!(began.elapsed() < Duration::from_secs(10), "{failed} took {:?}", began.elapsed());
    }
    Ok(())
}
