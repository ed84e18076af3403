//! A bad link: nearly a third of all packets is lost, and an answer takes 600 ms.

use anyhow::{Context, Result, ensure};
use spa_tests::{Desk, Family, PortState, SSH_PORT, Weather, report};
use std::io::{Read, Write};
use std::process::Stdio;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

const DELAY: Duration = Duration::from_millis(300);
const PERCENT_LOST: u8 = 30;
/// TCP itself takes its time here: it waits twice as long after each loss.
const PATIENCE: Duration = Duration::from_secs(300);

fn desk() -> Result<(Desk, Weather)> {
    let desk = Desk::new()?;
    let weather = Weather::over(&desk.scene.lab, DELAY, PERCENT_LOST)?;
    Ok((desk, weather))
}

#[test]
fn open_ends_in_an_open_port() -> Result<()> {
    let (desk, weather) = desk()?;
    for _ in 0..5 {
        let began = Instant::now();
        let words = ["open", "ssh", "--wait", "--fresh", "--timeout", "1m", "--lifetime", "5m"];
        let opened = desk.laptop.run(&words)?;
        ensure!(opened.success(), "{opened}\n{}", desk.scene.server.account());
        // The control: nothing is faster than the link.
        ensure!(began.elapsed() >= 2 * DELAY, "it took {:?}", began.elapsed());
        report(format!("open after {:?}", began.elapsed()));
        desk.scene.revoke_all()?;
    }
    ensure!(weather.lost() > 0);
    desk.scene.ensure_sees(desk.scene.lab.other(), Family::V4, SSH_PORT, PortState::Filtered)?;
    Ok(())
}

#[test]
fn the_proxy_gets_through() -> Result<()> {
    let (desk, weather) = desk()?;
    for _ in 0..3 {
        let began = Instant::now();
        let mut proxy = desk
            .laptop
            .command(&["proxy", "gateway", "8080", "--timeout", "1m", "--fresh"])?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut stdin = proxy.stdin.take().context("standard input")?;
        let mut stdout = proxy.stdout.take().context("standard output")?;
        let (sender, came) = channel();
        thread::spawn(move || {
            let mut line = [0; 6];
            let _ = sender.send(stdout.read_exact(&mut line).map(|()| line));
        });
        stdin.write_all(b"hello\n")?;
        let line = came.recv_timeout(PATIENCE).context("nothing came back")?;
        proxy.kill()?;
        proxy.wait()?;
        ensure!(line.context("the proxy ended")? == *b"hello\n");
        report(format!("an answer through the proxy after {:?}", began.elapsed()));
        desk.scene.revoke_all()?;
    }
    ensure!(weather.lost() > 0);
    Ok(())
}

/// What is there is relied on, and what turns out to be gone is knocked for.
#[test]
fn a_grant_of_before_is_used_or_replaced() -> Result<()> {
    let (desk, weather) = desk()?;
    let words = ["open", "ssh", "--wait", "--timeout", "1m", "--lifetime", "5m"];
    for is_there in [false, true, true, false, true, false, true] {
        if !is_there {
            desk.scene.revoke_all()?;
        }
        let began = Instant::now();
        let opened = desk.laptop.run(&words)?;
        ensure!(opened.success(), "{opened}\n{}", desk.scene.server.account());
        report(format!("open after {:?}, there before: {is_there}", began.elapsed()));
    }
    ensure!(weather.lost() > 0);
    Ok(())
}
