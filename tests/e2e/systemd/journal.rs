//! What the journal gets of the daemon, and who reads it there or asks over a socket of systemd's.

use super::Installation;
use anyhow::{Context, Result, ensure};
use spa_tests::{Family, Listener, SSH_PORT, eventually, finish_reading};
use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::iter;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

#[test]
fn the_audit_trail_is_asked_in_the_journal() -> Result<()> {
    let installation = Installation::started()?;
    let machine = &installation.machine;
    let _ssh = Listener::tcp(installation.lab.server(), SSH_PORT)?;
    installation.open("10m")?;
    // Somebody else's words are none of ours.
    let forged = "MESSAGE=event=opened client=mallory\nTARGET=audit\n";
    finish_reading(forged, machine.command("logger")?.arg("--journald"))?.ok()?;
    eventually("the forged line is in the journal", || {
        let all = machine.sh("journalctl --output=cat TARGET=audit")?;
        Ok(all.contains("mallory").then_some(()))
    })?;
    let of = |words: &str| machine.sh(&format!("spa-server log {words}"));
    eventually("the journal has it", || {
        Ok((of("--client laptop --since 1h")?.lines().count() == 2).then_some(()))
    })?;
    let all = of("--json")?;
    for line in all.lines() {
        let entry: serde_json::Value = serde_json::from_str(line)?;
        ensure!(entry["event"] == "opened" && entry["client"] == "laptop", "{all}");
        ensure!(entry["services"] == "ssh" && entry["time"].as_u64().is_some(), "{all}");
    }
    let source = installation.lab.owner().address(Family::V4);
    ensure!(of(&format!("--source {source} --service ssh"))?.lines().count() == 1);
    let nothing = machine.run("spa-server log --client laptop --until 1h")?;
    ensure!(nothing.success() && nothing.stdout.is_empty(), "{nothing}");
    ensure!(nothing.stderr.contains("nothing of that"), "{nothing}");

    // A journal that goes on in other files has the old lines, and takes new ones.
    machine.sh("journalctl --rotate")?;
    installation.open("20m")?;
    eventually("the journal has both", || {
        Ok((of("--client laptop --since 1h")?.lines().count() == 4).then_some(()))
    })?;
    Ok(())
}

#[test]
fn a_journal_that_hangs_keeps_nobody_out_and_hears_of_it_afterwards() -> Result<()> {
    let installation = Installation::started()?;
    let machine = &installation.machine;
    let _ssh = Listener::tcp(installation.lab.server(), SSH_PORT)?;
    let pid = installation.pid()?;
    machine.sh("systemctl kill --signal=STOP systemd-journald")?;
    // Until whoever waits for it would wait for ever. One sender alone has no room before the journal
    // has none: full it is when another one's first line doesn't fit.
    let socket = machine.path_of("/run/systemd/journal/socket");
    let mut others = Vec::new();
    loop {
        let sender = UnixDatagram::unbound()?;
        sender.set_nonblocking(true)?;
        let send = || sender.send_to(b"PRIORITY=7\nMESSAGE=others\n", &socket);
        let sent = iter::repeat_with(send).take_while(Result::is_ok).count();
        others.push(sender);
        if sent == 0 {
            break;
        }
    }
    ensure!(others.len() > 1, "nothing can be sent to the journal");
    for _ in 0..3 {
        installation.open("10m")?;
    }
    ensure!(machine.grants()?.len() == 2, "{:?}", machine.grants()?);
    machine.sh("systemctl kill --signal=CONT systemd-journald")?;
    eventually("the journal is to have it", || {
        let told = machine.sh("spa-server log --client laptop --event opened")?;
        Ok((told.lines().count() == 6).then_some(()))
    })?;
    ensure!(installation.pid()? == pid, "it was started again");
    Ok(())
}

#[test]
fn metrics_are_read_by_http_once_the_socket_is_enabled() -> Result<()> {
    let installation = Installation::started()?;
    let (machine, server) = (&installation.machine, installation.lab.server());
    let metrics = || {
        server.inside(|| {
            let mut stream = TcpStream::connect(("127.0.0.1", 9463))?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })
    };
    ensure!(metrics().is_err(), "it is off by default");
    machine.sh("systemctl enable --now spa-metrics.socket")?;
    let _ssh = Listener::tcp(installation.lab.server(), SSH_PORT)?;
    installation.open("10m")?;
    let answer = metrics()?;
    ensure!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}\n{}", machine.journal("*")?);
    ensure!(answer.contains("\nspa_up 1\n"), "{answer}");
    let grants = machine.grants()?.len();
    ensure!(answer.contains(&format!("\nspa_grants {grants}\n")), "{answer}");
    // Nobody has to be root to read it, and nobody gets at more by it.
    machine.sh("systemctl stop spa-server")?;
    let answer = metrics()?;
    ensure!(answer.contains("\nspa_up 0\n"), "{answer}\n{}", machine.journal("*")?);
    let score = machine.run("systemd-analyze security --threshold=15 spa-metrics@0.service")?;
    ensure!(score.success(), "{score}");
    Ok(())
}

#[test]
fn the_unit_of_notifications_tells_what_the_journal_has_and_remembers_it() -> Result<()> {
    const NOTIFY: &str = "spa-notify.service";
    let installation = Installation::started()?;
    let machine = &installation.machine;
    let _ssh = Listener::tcp(installation.lab.server(), SSH_PORT)?;
    // What Debian does at boot: the group may read it.
    machine.sh("systemd-tmpfiles --create --prefix=/run/log/journal")?;
    let command = "/usr/local/bin/tell";
    machine.write(
        command,
        "#!/bin/sh\nid -u >/var/lib/spa-notify/user\ncat >>/var/lib/spa-notify/told\n",
    )?;
    fs::set_permissions(machine.path_of(command), Permissions::from_mode(0o755))?;
    machine.drop_in(
        NOTIFY,
        &format!("[Service]\nExecStart=\nExecStart=/usr/sbin/spa-server notify --event opened,revoked -- {command}\n"),
    )?;
    let told = || {
        let told = machine.read("/var/lib/private/spa-notify/told").unwrap_or_default();
        let told =
            told.lines().map(serde_json::from_str).collect::<Result<Vec<serde_json::Value>, _>>();
        told.context("not JSON")
    };
    let await_told = |count: usize| {
        eventually("it is to be told", || Ok(Some(told()?).filter(|told| told.len() >= count)))
            .with_context(|| machine.journal(NOTIFY).unwrap_or_default())
    };
    let enabled = machine.run("systemctl is-enabled spa-notify")?;
    ensure!(enabled.stdout == "disabled\n", "it is off by default: {enabled}");
    // Before it began.
    installation.open("10m")?;
    eventually("the journal has it", || {
        Ok((machine.sh("spa-server log --client laptop")?.lines().count() == 2).then_some(()))
    })?;
    // It begins with the second in which it is started.
    let before = Instant::now();
    eventually("another second is to begin", || {
        Ok((before.elapsed() > Duration::from_secs(1)).then_some(()))
    })?;
    machine.sh("systemctl enable --now spa-notify")?;
    machine.await_journal(NOTIFY, "follows the audit trail")?;
    // Somebody else's words are none of ours.
    let forged = "MESSAGE=event=opened client=mallory\nTARGET=audit\n";
    finish_reading(forged, machine.command("logger")?.arg("--journald"))?.ok()?;
    installation.open("20m")?;
    let events = await_told(2)?;
    let sources: Vec<_> = events.iter().filter_map(|event| event["source"].as_str()).collect();
    for family in Family::BOTH {
        let source = installation.lab.owner().address(family).to_string();
        ensure!(sources.contains(&source.as_str()), "{events:?}");
    }
    // The journal has them in fields, too.
    let fields = machine.sh("journalctl --output=cat SPA_CLIENT=laptop SPA_EVENT=opened")?;
    ensure!(fields.lines().count() == 4, "{fields}");

    machine.await_journal(NOTIFY, "told: ")?;
    machine.sh("systemctl stop spa-notify")?;
    ensure!(machine.property(NOTIFY, "Result")? == "success", "{}", machine.journal(NOTIFY)?);
    machine.sh("spa-server grants revoke --all")?;
    machine.sh("systemctl start spa-notify")?;
    let events = await_told(4)?;
    let names: Vec<_> = events.iter().filter_map(|event| event["event"].as_str()).collect();
    ensure!(names == ["opened", "opened", "revoked", "revoked"], "{events:?}");
    ensure!(events.iter().all(|event| event["client"] == "laptop"), "{events:?}");

    // It has no rights, and neither has what it runs.
    let user = machine.read("/var/lib/private/spa-notify/user")?;
    ensure!(user.trim() != "0", "it runs as user {user}");
    let status = machine.read(&format!("/proc/{}/status", machine.property(NOTIFY, "MainPID")?))?;
    for line in ["CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"] {
        ensure!(status.lines().any(|known| known == line), "{line}: {status}");
    }
    ensure!(!status.contains("\nUid:\t0"), "{status}");
    let score = machine.run("systemd-analyze security --threshold=15 spa-notify.service")?;
    ensure!(score.success(), "{score}");
    let verified = machine.run("systemd-analyze verify spa-notify.service")?;
    ensure!(verified.success() && verified.said().is_empty(), "{verified}");
    Ok(())
}
