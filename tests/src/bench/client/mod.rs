//! The benchmark of the client: what the proxy costs beside a direct connection, and what a knock
//! costs beside those of other programs. What is compared is measured in turns.

mod page;
mod results;

pub use page::client_part;
#[cfg(test)]
pub(crate) use page::tests::results as example;
pub use results::ClientResults;

use super::results::Outcome;
use super::{machine, step};
use crate::command::finish;
use crate::desk::Desk;
use crate::lab::{Family, Host};
use crate::measure::Latencies;
use crate::programs::{our_binary, program};
use crate::scene::WEB_PORT;
use crate::weather::Weather;
use anyhow::{Context, Result, ensure};
use results::{FirstByte, KnockProcess, ProcessTime, Throughput};
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Where the server sends and takes bytes; no gate guards it, so that nothing but the carrying is
/// measured.
const BULK_PORT: u16 = 5201;
const BUFFER: usize = 256 * 1024;
/// One way, for what a path of the Internet has.
const PATH: Duration = Duration::from_millis(25);

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Extent {
    rounds: usize,
    bulk: u64,
    shaped: u64,
    ssh: u64,
    processes: usize,
    firsts: usize,
}

const FULL: Extent = Extent {
    rounds: 9,
    bulk: 2 << 30,
    shaped: 125 << 20,
    ssh: 1 << 30,
    processes: 200,
    firsts: 50,
};
const QUICK: Extent =
    Extent { rounds: 1, bulk: 8 << 20, shaped: 1 << 20, ssh: 1 << 20, processes: 3, firsts: 3 };

/// Measures everything; with `quick` next to nothing, only to show that it works.
pub fn measure_client(quick: bool) -> Result<ClientResults> {
    let start = Instant::now();
    let extent = if quick { QUICK } else { FULL };
    let mut machine = machine::describe();
    step(start, "bytes through the proxy");
    let throughput = throughput(extent)?;
    step(start, "the first byte");
    let firsts = firsts(extent)?;
    step(start, "a knock as a process");
    let processes = processes(extent)?;
    machine.load.1 = machine::load();
    Ok(ClientResults {
        machine,
        quick,
        seconds: start.elapsed().as_secs_f64(),
        throughput,
        firsts,
        processes,
    })
}

fn throughput(extent: Extent) -> Result<Vec<Throughput>> {
    let mut rows = Vec::new();
    let desk = Desk::new()?;
    bulk_service(desk.scene.lab.server())?;
    let lines = format!(
        "Host direct\n    HostName 10.66.0.1\nHost handed\n    HostName gateway\n{}    \
         ProxyUseFdpass yes\nHost gateway\n{}",
        desk.proxy_command("--fdpass -4")?,
        desk.proxy_command("-4")?
    );
    let config = desk.ssh_config(&lines)?;
    let words = ["open", "ssh", "--wait", "--lifetime", "1h"];
    desk.laptop.run(&words)?.ok()?;
    for (name, host) in [
        ("ssh, `head -c` of zeros, as `setup ssh` has it", "handed"),
        ("the same without `--fdpass`", "gateway"),
    ] {
        rows.push(in_turns(name, extent.rounds, extent.ssh, |proxied| {
            ssh(&desk, &config, if proxied { host } else { "direct" }, extent.ssh)
        })?);
    }
    let hub = desk.scene.lab.hub();
    for port in ["p1", "p2"] {
        hub.sh(&format!("tc qdisc add dev {port} root tbf rate 1gbit burst 256kb latency 20ms"))?;
    }
    for (name, down) in [("down a line of 1 Gbit/s", true), ("up it", false)] {
        rows.push(in_turns(name, extent.rounds, extent.shaped, |proxied| {
            bulk(&desk, proxied, down, extent.shaped)
        })?);
    }
    for port in ["p1", "p2"] {
        hub.sh(&format!("tc qdisc del dev {port} root"))?;
    }
    for (name, down) in [("down a link without a limit", true), ("up it", false)] {
        rows.push(in_turns(name, extent.rounds, extent.bulk, |proxied| {
            bulk(&desk, proxied, down, extent.bulk)
        })?);
    }
    Ok(rows)
}

/// Measures both in turns.
fn in_turns(
    what: &str,
    rounds: usize,
    bytes: u64,
    measure: impl Fn(bool) -> Result<Duration>,
) -> Result<Throughput> {
    let (mut direct, mut proxied) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        direct.push(measure(false)?);
        proxied.push(measure(true)?);
    }
    let rate = |times: Vec<Duration>| {
        let seconds = Latencies::new(times).median().as_secs_f64();
        Duration::from_secs(bytes * 8).as_secs_f64() / 1e6 / seconds
    };
    Ok(Throughput { what: what.to_owned(), direct: rate(direct), proxied: rate(proxied) })
}

fn ssh(desk: &Desk, config: &std::path::Path, host: &str, bytes: u64) -> Result<Duration> {
    let mut command = desk.command("ssh")?;
    command.arg("-F").arg(config).args(["-c", "aes128-gcm@openssh.com", host]);
    command.arg(format!("head -c {bytes} /dev/zero")).stdin(Stdio::null()).stdout(Stdio::null());
    let began = Instant::now();
    ensure!(command.status()?.success(), "ssh {host} failed");
    Ok(began.elapsed())
}

/// Takes or sends bytes, as the first byte says.
fn bulk_service(host: &Host) -> Result<()> {
    let listener = host.inside(|| Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, BULK_PORT))?))?;
    // It ends with the benchmark.
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || serve(stream));
        }
    });
    Ok(())
}

fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    let mut order = [0; 9];
    stream.read_exact(&mut order)?;
    stream.write_all(b"r")?;
    let mut buffer = vec![0; BUFFER];
    let (down, bytes) = (order[0] == b'D', order.iter().skip(1));
    let mut left = bytes.fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    while down && left > 0 {
        let length = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
        stream.write_all(buffer.get(..length).unwrap_or_default())?;
        left = left.saturating_sub(length as u64);
    }
    while !down && stream.read(&mut buffer)? > 0 {}
    if !down {
        stream.write_all(b"k")?;
    }
    stream.shutdown(Shutdown::Write)
}

fn bulk(desk: &Desk, proxied: bool, down: bool, bytes: u64) -> Result<Duration> {
    let mut order = vec![if down { b'D' } else { b'U' }];
    order.extend(bytes.to_be_bytes());
    if proxied {
        let mut command =
            desk.laptop.command(&["proxy", "gateway", &BULK_PORT.to_string(), "-4"])?;
        let mut proxy = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut stdin = proxy.stdin.take().context("standard input")?;
        let mut stdout = proxy.stdout.take().context("standard output")?;
        stdin.write_all(&order)?;
        let time = carry(stdin, &mut stdout, down, bytes)?;
        ensure!(proxy.wait()?.success(), "the proxy failed");
        return Ok(time);
    }
    let to = desk.scene.lab.server().at(Family::V4, BULK_PORT);
    let mut stream = desk.owner().inside(|| Ok(TcpStream::connect(to)?))?;
    stream.write_all(&order)?;
    let up = HalfOpen(stream.try_clone()?);
    carry(up, &mut stream, down, bytes)
}

/// The sending half: what is dropped is ended.
struct HalfOpen(TcpStream);

impl Write for HalfOpen {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

impl Drop for HalfOpen {
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Write);
    }
}

fn carry(mut up: impl Write, from: &mut impl Read, down: bool, bytes: u64) -> Result<Duration> {
    let mut buffer = vec![0; BUFFER];
    // The other end is there: starting is measured elsewhere.
    from.read_exact(&mut [0])?;
    let began = Instant::now();
    let expected = if down {
        bytes
    } else {
        let mut left = bytes;
        while left > 0 {
            let length = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
            up.write_all(buffer.get(..length).unwrap_or_default())?;
            left -= length as u64;
        }
        1
    };
    drop(up);
    let mut came = 0;
    while came < expected {
        let length = from.read(&mut buffer)?;
        ensure!(length > 0, "{came} bytes came of {expected}");
        came += length as u64;
    }
    Ok(began.elapsed())
}

/// From the start of a program to the first byte that comes back.
fn firsts(extent: Extent) -> Result<Vec<FirstByte>> {
    let mut rows = Vec::new();
    for (name, slow) in [("none to speak of", false), ("50 ms there and back", true)] {
        let desk = Desk::new()?;
        desk.add_server("direct", "10.66.0.1", &[])?;
        let _weather = slow.then(|| Weather::over(&desk.scene.lab, PATH, 0)).transpose()?;
        let to = desk.scene.lab.server().at(Family::V4, WEB_PORT);
        let port = WEB_PORT.to_string();
        let item = format!("tcp/{WEB_PORT}");
        let mut times: [Vec<Duration>; 4] = Default::default();
        for _ in 0..extent.firsts {
            let knock = ["open", &format!("{item}@direct"), "--no-wait", "--fresh", "-q"];
            times[1].push(run(&desk, &knock, None)?);
            desk.owner().await_open(to)?;
            times[0].push(desk.owner().inside(|| {
                let began = Instant::now();
                let mut stream = TcpStream::connect(to)?;
                stream.write_all(b"x")?;
                stream.read_exact(&mut [0])?;
                Ok(began.elapsed())
            })?);
            desk.scene.revoke_all()?;
            let proxy = ["proxy", "10.66.0.1", &port, "--server", "direct", "--fresh"];
            times[2].push(run(&desk, &proxy, Some(b"x"))?);
            times[3].push(run(&desk, &proxy[..5], Some(b"x"))?);
            desk.scene.revoke_all()?;
        }
        let [direct_ms, knock_ms, proxy_ms, again_ms] =
            times.map(|times| Latencies::new(times).median().as_secs_f64() * 1e3);
        rows.push(FirstByte { path: name.to_owned(), direct_ms, knock_ms, proxy_ms, again_ms });
    }
    Ok(rows)
}

/// Runs `spa-client`; with `send`, until one byte has come back.
fn run(desk: &Desk, words: &[&str], send: Option<&[u8]>) -> Result<Duration> {
    let mut command = Command::new(our_binary("spa-client")?);
    command.args(words).env_clear().stdin(Stdio::piped()).stdout(Stdio::piped());
    command.envs(desk.laptop.environment());
    desk.owner().inside(|| {
        let began = Instant::now();
        let mut child = command.spawn()?;
        let Some(send) = send else {
            ensure!(child.wait()?.success(), "{words:?}");
            return Ok(began.elapsed());
        };
        let mut stdin = child.stdin.take().context("standard input")?;
        stdin.write_all(send)?;
        child.stdout.take().context("standard output")?.read_exact(&mut [0])?;
        let time = began.elapsed();
        child.kill()?;
        child.wait()?;
        Ok(time)
    })
}

/// Whole processes, side by side.
fn processes(extent: Extent) -> Result<Vec<KnockProcess>> {
    let desk = Desk::new()?;
    desk.add_server("direct", "10.66.0.1", &[])?;
    desk.add_server("six", "fd66::1", &[])?;
    let home = desk.scene.lab.directory().join("others");
    fs::create_dir(&home)?;
    let key = |byte: u8| super::contenders::base64(&[byte; 32]);
    let stanza = format!(
        "[host]\nSPA_SERVER 10.66.0.1\nACCESS tcp/22\nALLOW_IP 10.66.0.2\nKEY_BASE64 {}\n\
         HMAC_KEY_BASE64 {}\nUSE_HMAC Y\nSPA_SERVER_PORT 62202\n",
        key(1),
        key(2)
    );
    fs::write(home.join(".fwknoprc"), stanza)?;
    finish(Command::new(program("chmod")?).arg("600").arg(home.join(".fwknoprc")))?.ok()?;
    let server: SocketAddr = desk.scene.lab.server().at(Family::V4, 0);
    let address = server.ip().to_string();
    // As an installation does, and as the others are: what a linker has written lies in the page
    // cache in single pages, which takes a fifth longer to map.
    let client = desk.scene.lab.directory().join("spa-client");
    fs::copy(our_binary("spa-client")?, &client)?;
    let ours = || Some(client.clone());
    // `make bench-client` installs them.
    let there = |name| program(name).ok();
    let programs = [
        ("`spa-client open ssh --no-wait`", ours(), vec!["open", "ssh@direct", "--no-wait"]),
        ("the same over IPv6", ours(), vec!["open", "ssh@six", "--no-wait"]),
        ("`fwknop -n host`", there("fwknop"), vec!["-n", "host"]),
        ("`knock host 7000 8000 9000`", there("knock"), vec![&address, "7000", "8000", "9000"]),
    ];
    let mut times: Vec<Vec<Duration>> = programs.iter().map(|_| Vec::new()).collect();
    for _ in 0..extent.processes {
        for ((_, path, words), times) in programs.iter().zip(&mut times) {
            let Some(path) = path else { continue };
            let mut command = Command::new(path);
            command.args(words).env_clear().envs(desk.laptop.environment()).env("HOME", &home);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            times.push(desk.owner().inside(|| {
                let began = Instant::now();
                let status = command.status()?;
                let time = began.elapsed();
                ensure!(status.success(), "{} {words:?}: {status}", path.display());
                Ok(time)
            })?);
        }
    }
    let found = programs.iter().zip(times).map(|((name, path, _), times)| {
        let outcome = if times.is_empty() {
            Outcome::NotRun("it is not installed".to_owned())
        } else {
            let times = Latencies::new(times);
            let ms = |percent| times.percentile(percent).as_secs_f64() * 1e3;
            Outcome::Measured(ProcessTime { median_ms: ms(50), p90_ms: ms(90) })
        };
        KnockProcess { name: (*name).to_owned(), ours: path.as_deref() == Some(&client), outcome }
    });
    Ok(found.collect())
}
