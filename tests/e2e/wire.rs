//! What somebody sees of knocks who captures all of them: addresses, ports and a length. The rest is
//! judged by its statistics (`tests/interop/randomness.py` says how sure that is).

use anyhow::{Context, Result, bail, ensure};
use ring::rand::SystemRandom;
use spa_client::{Asked, Host, Knocker, Options, Server, ServerName};
use spa_keys::{Overwrite, PrivateKey};
use spa_tests::{Capture, Family, Lab, Laptop, Packet, interop_python};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

const KNOCK_PORT: u16 = 62201;
/// So many datagrams leave before the capture is waited for: it has room for more.
const AT_ONCE: usize = 1000;
/// Local ports have 28,232 values, identifications more, and no step from one to the next is more
/// likely than 1 in so many. At 100,000 knocks none of them comes so often, but with a probability
/// below 1e-15.
const VALUE_AT_MOST: usize = 35;
/// The least that can be judged.
const PROCESSES: usize = 1000;

/// Clients that know the server by its address of this family.
fn clients(lab: &Lab, family: Family, count: usize) -> Result<Vec<Server>> {
    let random = SystemRandom::new();
    let server = PrivateKey::generate(&random)?.public();
    let name: ServerName = "gateway".parse()?;
    let host: Host = lab.server().address(family).to_string().parse()?;
    (0..count)
        .map(|number| {
            let file = lab.directory().join(format!("{family:?}-{number}.key"));
            let key = PrivateKey::generate(&random)?;
            spa_keys::write_private_key(&file, &key, Overwrite::Refuse)?;
            Ok(Server::new(name.clone(), host.clone(), server, file))
        })
        .collect()
}

/// Captures `count` knocks of these clients by turns. Each asks for the same all the time.
fn captured(lab: &Lab, clients: &[Server], count: usize) -> Result<Vec<Packet>> {
    let asked = Asked::open(["ssh".parse()?])?;
    let options = Options::default();
    let capture = Capture::on(lab.server(), &format!("udp dst port {KNOCK_PORT}"))?;
    lab.owner().inside(|| {
        let prepare = |server| Ok(Knocker::prepare(server, &asked, &options)?);
        let mut knockers = clients.iter().map(prepare).collect::<Result<Vec<_>>>()?;
        for number in 0..count {
            let at = number % clients.len();
            knockers.get_mut(at).context("a client")?.send()?;
            if number % AT_ONCE == 0 {
                capture.await_count(number + 1)?;
            }
        }
        Ok(())
    })?;
    capture.packets()
}

/// That nothing in the headers of these knocks tells one from another, or ours from others'.
fn ensure_headers_tell_nothing(packets: &[Packet]) -> Result<()> {
    let headers = packets.iter().map(|packet| packet.header().context("no IP"));
    let (headers, ports): (Vec<_>, Vec<_>) =
        headers.collect::<Result<Vec<_>>>()?.into_iter().unzip();
    let numbers = headers.iter().filter(|header| header.first() == Some(&0x45));
    let numbers = numbers.map(|header| Some(u16::from_be_bytes(*header.get(4..)?.first_chunk()?)));
    let numbers: Vec<u16> = numbers.collect::<Option<_>>().context("no header")?;
    let fixed = |header: &[u8]| match header.first().context("no header")? >> 4 {
        // Version and length, type of service, total length; flags, TTL, protocol.
        4 => Ok([&header[..4], &header[6..10]].concat()),
        // Without the flow label, which is random for each socket (RFC 6437).
        6 => Ok([&[header[0], header[1] & 0xf0], header.get(4..).unwrap_or_default()].concat()),
        version => bail!("IP version {version}"),
    };
    let fixed: BTreeSet<Vec<u8>> = headers.iter().map(|it| fixed(it)).collect::<Result<_>>()?;
    let [fixed] = &Vec::from_iter(fixed)[..] else {
        bail!("the headers differ, in some of {:02x?}", headers.first());
    };
    let hops = if fixed.first() == Some(&0x45) { fixed.get(6) } else { fixed.last() };
    ensure!(hops == Some(&64), "TTL or hop limit are not those of the system: {fixed:02x?}");

    for (what, values) in [("port", &ports), ("identification", &numbers)] {
        ensure_drawn(values).with_context(|| format!("local {what}"))?;
    }
    Ok(())
}

/// That these were drawn from thousands of values, each for itself.
fn ensure_drawn(values: &[u16]) -> Result<()> {
    let mut often: BTreeMap<(bool, u16), usize> = BTreeMap::new();
    let steps = values.windows(2).map(|two| (true, two[1].wrapping_sub(two[0])));
    for value in values.iter().map(|value| (false, *value)).chain(steps) {
        *often.entry(value).or_default() += 1;
    }
    let most = often.into_iter().max_by_key(|(_, count)| *count);
    ensure!(most.is_none_or(|(_, count)| count < VALUE_AT_MOST), "a value, or a step, is {most:?}");
    let distinct = values.iter().collect::<BTreeSet<_>>().len();
    // Of as many values as there are draws, or more, 63% and more come at least once.
    ensure!(distinct >= values.len().min(28_000) / 2, "{distinct} values of {}", values.len());
    Ok(())
}

/// What the judge says of the payloads; an error if he noticed something.
fn judge(directory: &Path, packets: &[Packet]) -> Result<String> {
    let payloads = packets.iter().map(|packet| packet.datagram_to(KNOCK_PORT));
    let payloads: Vec<&[u8]> = payloads.collect::<Option<_>>().context("no datagram")?;
    let lengths: BTreeSet<usize> = payloads.iter().map(|payload| payload.len()).collect();
    let [length] = Vec::from_iter(lengths)[..] else { bail!("they differ in length") };
    let file = directory.join("payloads");
    fs::write(&file, payloads.concat())?;
    let (python, programs) = interop_python()?;
    let mut command = Command::new(python);
    command.env("PYTHONDONTWRITEBYTECODE", "1").arg(programs.join("randomness.py"));
    let output = command.arg(&file).arg(length.to_string()).output()?;
    let said = String::from_utf8([output.stdout, output.stderr].concat())?;
    ensure!(output.status.success(), "{said}");
    Ok(said)
}

fn ensure_all_is_noise(lab: &Lab, packets: &[Packet], count: usize) -> Result<()> {
    ensure!(packets.len() == count, "{} packets of {count} were captured", packets.len());
    ensure_headers_tell_nothing(packets)?;
    judge(lab.directory(), packets)?;
    Ok(())
}

#[test]
fn a_hundred_thousand_knocks_of_one_client_are_noise() -> Result<()> {
    let lab = Lab::new()?;
    let count = 100_000;
    let mut packets = captured(&lab, &clients(&lab, Family::V4, 1)?, count)?;
    ensure_all_is_noise(&lab, &packets, count)?;
    // The same with one of them twice, and with a TTL that is another: both are noticed.
    let last = packets.len() - 1;
    packets[last] = packets[7].clone();
    ensure!(judge(lab.directory(), &packets).is_err(), "a packet that came twice is not noticed");
    packets[last].0[14 + 8] = 63;
    ensure!(ensure_headers_tell_nothing(&packets).is_err(), "a TTL of its own is not noticed");
    Ok(())
}

#[test]
fn a_hundred_thousand_knocks_of_a_thousand_clients_are_noise() -> Result<()> {
    let lab = Lab::new()?;
    let count = 100_000;
    let packets = captured(&lab, &clients(&lab, Family::V6, 1000)?, count)?;
    ensure_all_is_noise(&lab, &packets, count)
}

/// Each knock by a process of its own: nothing begins with the same each time.
#[test]
fn the_knocks_of_a_thousand_processes_are_noise() -> Result<()> {
    let lab = Lab::new()?;
    let laptop = Laptop::new(&lab, lab.owner(), "laptop");
    laptop.keygen()?;
    let key = PrivateKey::generate(&SystemRandom::new())?.public().to_string();
    let host = lab.server().address(Family::V4).to_string();
    laptop.run(&["server", "add", "gateway", "--host", &host, "--public-key", &key])?.ok()?;
    let capture = Capture::on(lab.server(), &format!("udp dst port {KNOCK_PORT}"))?;
    for _ in 0..PROCESSES {
        laptop.run(&["open", "ssh", "--no-wait", "--fresh", "--quiet"])?.ok()?;
    }
    ensure_all_is_noise(&lab, &capture.packets()?, PROCESSES)
}
