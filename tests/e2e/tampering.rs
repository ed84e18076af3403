//! Knocks that were changed on the way, and frames that no honest stack sends: nothing opens,
//! nothing panics, and the untouched knock still opens afterwards.

use anyhow::{Result, ensure};
use spa_tests::{Capture, Family, Frame, Host, Ipv4, Ipv6, PortState, SSH_PORT, Scene, eventually};
use std::net::{IpAddr, SocketAddr};

/// So many datagrams at a time: far less than what the capture holds.
const BATCH: usize = 200;

/// Sends all of them, and waits until as many have been dropped.
fn send_and_await_drops(scene: &Scene, family: Family, datagrams: &[Vec<u8>]) -> Result<()> {
    let wire = Capture::of_answers(scene.lab.server())?;
    for batch in datagrams.chunks(BATCH) {
        let before = scene.server.dropped_in_all()?;
        scene.lab.owner().send_udp_all(scene.door(family), batch)?;
        let wanted = before + u64::try_from(batch.len())?;
        eventually("all tampered knocks are to be dropped", || {
            Ok((scene.server.dropped_in_all()? >= wanted).then_some(()))
        })
        .map_err(|error| error.context(scene.server.account()))?;
    }
    wire.ensure_silence_of(scene.lab.server())
}

/// What comes to the daemon behind all else, and is dropped: noise would end in the kernel, at once.
fn marker(knock: &[u8]) -> Vec<u8> {
    let mut broken = knock.to_vec();
    if let Some(last) = broken.last_mut() {
        *last ^= 1;
    }
    broken
}

/// The end of each test: nothing is open, the daemon is well, and `untouched` opens.
fn ensure_only_the_untouched_opens(
    scene: &mut Scene,
    family: Family,
    untouched: &[u8],
) -> Result<()> {
    scene.server.ensure_unharmed()?;
    let status = scene.server.status()?;
    ensure!((status.accepted, status.opened) == (0, 0), "{status:?}");
    ensure!(status.kernel_drops == 0, "{status:?}");
    scene.ensure_shut()?;
    scene.knock(scene.lab.owner(), family, untouched)?;
    scene.await_open(scene.lab.owner(), family, SSH_PORT)
}

#[test]
fn a_knock_with_any_one_bit_flipped_opens_nothing() -> Result<()> {
    let mut scene = Scene::new()?;
    let knock = scene.laptop.open("ssh").seal()?;
    let flipped: Vec<_> = (0..knock.len() * 8)
        .map(|bit| {
            let mut flipped = knock.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            flipped
        })
        .collect();
    send_and_await_drops(&scene, Family::V4, &flipped)?;
    // The tag and the part of the nonce that masks it lead nowhere; all else breaks the MAC.
    let leads_nowhere = (16 + 12) * 8;
    ensure!(scene.server.dropped("unknown-tag")? == leads_nowhere, "{}", scene.server.account());
    let breaks_the_mac = u64::try_from(flipped.len())? - leads_nowhere;
    ensure!(scene.server.dropped("mac")? == breaks_the_mac, "{}", scene.server.account());
    ensure_only_the_untouched_opens(&mut scene, Family::V4, &knock)
}

#[test]
fn a_knock_that_is_cut_or_extended_opens_nothing() -> Result<()> {
    let mut scene = Scene::new()?;
    for family in Family::BOTH {
        let knock = scene.laptop.open("ssh").seal()?;
        let mut others: Vec<Vec<u8>> =
            (0..knock.len()).map(|length| knock[..length].to_vec()).collect();
        others.extend((0..knock.len()).map(|start| knock[start..].to_vec()).skip(1));
        for extra in (1..=64).chain([200, 500, 1000, 1400]) {
            let extended = [&knock[..], &vec![0; extra]].concat();
            others.push(extended);
        }
        for batch in others.chunks(BATCH) {
            scene.lab.owner().send_udp_all(scene.door(family), batch)?;
        }
        // The kernel's filter drops other lengths unread, so there is nothing to count; the
        // datagram of the right length comes after them in the same queue.
        let before = scene.server.dropped("mac")?;
        scene.knock(scene.lab.owner(), family, &marker(&knock))?;
        scene.server.await_dropped("mac", before + 1)?;
        scene.server.ensure_unharmed()?;
        ensure!(scene.server.status()?.accepted == 0, "{}", scene.server.account());
        scene.ensure_shut()?;
    }
    let knock = scene.laptop.open("ssh").seal()?;
    ensure_only_the_untouched_opens(&mut scene, Family::V6, &knock)
}

#[test]
fn two_knocks_spliced_at_any_byte_open_nothing() -> Result<()> {
    let mut scene = Scene::new()?;
    let stamp = scene.laptop.now();
    let first = scene.laptop.open("ssh").at(stamp).seal()?;
    let second = scene.laptop.open("ssh web").at(stamp).seal()?;
    let spliced: Vec<_> = (1..first.len())
        .flat_map(|at| {
            [[&first[..at], &second[at..]].concat(), [&second[..at], &first[at..]].concat()]
        })
        // Where their first or last bytes are the same, by chance, a splice is a whole knock.
        .filter(|spliced| *spliced != first && *spliced != second)
        .collect();
    send_and_await_drops(&scene, Family::V6, &spliced)?;
    ensure_only_the_untouched_opens(&mut scene, Family::V6, &first)
}

#[test]
fn a_knock_of_another_packet_length_opens_nothing() -> Result<()> {
    let mut scene = Scene::new()?;
    let longer = scene.laptop.with_length(200.try_into()?).open("ssh").seal()?;
    scene.knock(scene.lab.owner(), Family::V4, &longer)?;
    let knock = scene.laptop.open("ssh").seal()?;
    let before = scene.server.dropped("mac")?;
    scene.knock(scene.lab.owner(), Family::V4, &marker(&knock))?;
    scene.server.await_dropped("mac", before + 1)?;
    ensure_only_the_untouched_opens(&mut scene, Family::V4, &knock)
}

#[test]
fn noise_of_the_right_length_opens_nothing_and_writes_no_log() -> Result<()> {
    ensure_noise_comes_to_nothing("auto", "in the kernel")
}

#[test]
fn so_it_does_where_it_reaches_the_daemon() -> Result<()> {
    ensure_noise_comes_to_nothing("off", "off, by the configuration")
}

fn ensure_noise_comes_to_nothing(prefilter: &str, told: &str) -> Result<()> {
    let mut scene = Scene::prepared(|configuration| configuration.prefilter = prefilter.into())?;
    scene.server.start()?;
    ensure!(scene.server.status()?.prefilter == told, "{}", scene.server.account());
    let knock = scene.laptop.open("ssh").seal()?;
    let log = scene.server.log()?.len();
    let noise: Vec<_> = (0..5000_u32)
        .map(|seed| {
            let mut state = seed;
            std::iter::repeat_with(|| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state.to_be_bytes()[0]
            })
            .take(knock.len())
            .collect()
        })
        .collect();
    send_and_await_drops(&scene, Family::V4, &noise)?;
    ensure!(scene.server.dropped("unknown-tag")? == 5000, "{}", scene.server.account());
    ensure!(scene.server.log()?.len() == log, "noise makes the log grow");
    ensure_only_the_untouched_opens(&mut scene, Family::V4, &knock)
}

/// Frames around a right knock that a careless parser would take, misread, or die of.
fn hostile_frames(server: &Host, knock: &[u8]) -> Result<Vec<Frame>> {
    let source: SocketAddr = "10.66.0.2:4000".parse()?;
    let door: SocketAddr = "10.66.0.1:62201".parse()?;
    let IpAddr::V4(from) = source.ip() else { anyhow::bail!("not IPv4") };
    let IpAddr::V4(to) = door.ip() else { anyhow::bail!("not IPv4") };
    let ip = Ipv4 { source: from, destination: to, ..Ipv4::default() };
    let whole = Frame::udp(server, source, door, knock)?;
    let datagram = whole.0.get(34..).unwrap_or_default().to_vec();
    let mut frames = Vec::new();

    // First and later fragments, and a fragment that lies about being the last.
    for fragment in [0x2000, 0x2001, 0x0001, 0x1fff, 0x3fff] {
        frames.push(Ipv4 { fragment, ..ip.clone() }.around(server, &datagram));
    }
    // Header lengths and total lengths that lie.
    for first_byte in [0x40, 0x41, 0x44, 0x46, 0x4f, 0x05, 0x65, 0xf5] {
        let lies = Ipv4 { first_byte: Some(first_byte), ..ip.clone() };
        frames.push(lies.around(server, &datagram));
    }
    for total_length in [0, 19, 20, 27, 28, 100, 243, 245, 0xffff] {
        let lies = Ipv4 { total_length: Some(total_length), ..ip.clone() };
        frames.push(lies.around(server, &datagram));
    }
    // UDP lengths that lie.
    for length in [0_u16, 7, 8, 100, 223, 225, 1000, 0xffff] {
        let mut lies = datagram.clone();
        lies.splice(4..6, length.to_be_bytes());
        frames.push(ip.around(server, &lies));
    }
    // Not UDP at all.
    for protocol in [0, 1, 4, 6, 41, 47, 50, 51, 132, 255] {
        frames.push(Ipv4 { protocol, ..ip.clone() }.around(server, &datagram));
    }
    // Every truncation of the frame, down to the Ethernet header.
    frames.extend((14..whole.0.len()).step_by(3).map(|end| Frame(whole.0[..end].to_vec())));

    // IPv6 extension headers: chains that lie about lengths, that never end, and fragments.
    let source6 = "[fd66::2]:4000".parse()?;
    let door6: SocketAddr = "[fd66::1]:62201".parse()?;
    let whole6 = Frame::udp(server, source6, door6, knock)?;
    let datagram6 = whole6.0.get(54..).unwrap_or_default().to_vec();
    let (IpAddr::V6(from6), IpAddr::V6(to6)) = (source6.ip(), door6.ip()) else {
        anyhow::bail!("not IPv6")
    };
    let ip6 = Ipv6 { source: from6, destination: to6, ..Ipv6::default() };
    let chains: [(u8, Vec<u8>); 8] = [
        (44, vec![17, 0, 0, 1, 0, 0, 0, 1]),
        (44, vec![17, 0, 0, 8, 0, 0, 0, 1]),
        (44, vec![17, 0, 0xff, 0xf9, 0, 0, 0, 1]),
        (60, vec![17, 255, 0, 0, 0, 0, 0, 0]),
        (60, vec![17, 28, 0, 0, 0, 0, 0, 0]),
        (60, [60, 0, 1, 4, 0, 0, 0, 0].repeat(60)),
        (59, Vec::new()),
        (0, vec![59, 0, 1, 4, 0, 0, 0, 0]),
    ];
    for (next, extensions) in chains {
        frames.push(Ipv6 { next, extensions, ..ip6.clone() }.around(server, &datagram6));
    }
    frames.extend((14..whole6.0.len()).step_by(3).map(|end| Frame(whole6.0[..end].to_vec())));
    // VLAN tags without end, and one with nothing after it.
    let mut nested = whole.clone();
    for id in 1..=10 {
        nested = nested.tagged(id);
    }
    frames.push(nested);
    frames.push(Frame(whole.tagged(3).0[..18].to_vec()));
    Ok(frames)
}

/// On one interface by name, and on all of them by cooked headers.
fn hostile_frames_neither_open_nor_harm(interface: &str) -> Result<()> {
    let mut scene = Scene::with(|configuration| configuration.interfaces = vec![interface.into()])?;
    let server = scene.lab.server().clone();
    let knock = scene.laptop.open("ssh").seal()?;
    let frames = hostile_frames(&server, &knock)?;
    scene.lab.other().inject(&frames)?;
    let before = scene.server.dropped("mac")?;
    scene.knock(scene.lab.owner(), Family::V4, &marker(&knock))?;
    scene.server.await_dropped("mac", before + 1)?;
    ensure_only_the_untouched_opens(&mut scene, Family::V4, &knock)
}

#[test]
fn hostile_frames_on_one_interface_neither_open_nor_harm() -> Result<()> {
    hostile_frames_neither_open_nor_harm("eth0")
}

#[test]
fn hostile_frames_on_all_interfaces_neither_open_nor_harm() -> Result<()> {
    hostile_frames_neither_open_nor_harm("any")
}

#[test]
fn a_right_knock_in_an_unusual_but_valid_packet_opens() -> Result<()> {
    let scene = Scene::new()?;
    let server = scene.lab.server();
    let opens = |frame: Frame, family: Family, what: &str| -> Result<()> {
        scene.lab.other().inject([&frame])?;
        scene
            .await_open(scene.lab.owner(), family, SSH_PORT)
            .map_err(|error| error.context(format!("a knock {what}")))?;
        scene.revoke_all()?;
        scene.ensure_sees(scene.lab.owner(), family, SSH_PORT, PortState::Filtered)
    };
    let (v4, v6) = (scene.lab.owner().at(Family::V4, 4000), scene.lab.owner().at(Family::V6, 4000));
    let datagram = |source: SocketAddr, family| -> Result<Vec<u8>> {
        let knock = scene.laptop.open("ssh").seal()?;
        let frame = Frame::udp(server, source, scene.door(family), &knock)?;
        let header = if family == Family::V4 { 34 } else { 54 };
        Ok(frame.0.get(header..).unwrap_or_default().to_vec())
    };
    let (IpAddr::V4(from4), IpAddr::V4(to4)) = (v4.ip(), server.address(Family::V4)) else {
        anyhow::bail!("not IPv4")
    };
    let (IpAddr::V6(from6), IpAddr::V6(to6)) = (v6.ip(), server.address(Family::V6)) else {
        anyhow::bail!("not IPv6")
    };

    let plain = Ipv4 { source: from4, destination: to4, ..Ipv4::default() };
    let with_options = Ipv4 { options: vec![1; 12], ..plain.clone() };
    opens(with_options.around(server, &datagram(v4, Family::V4)?), Family::V4, "with options")?;
    let mut padded = plain.around(server, &datagram(v4, Family::V4)?);
    padded.0.extend_from_slice(&[0; 18]);
    opens(padded, Family::V4, "with padding of the link")?;
    let tagged = plain.around(server, &datagram(v4, Family::V4)?).tagged(7);
    opens(tagged, Family::V4, "with a VLAN tag")?;

    let plain = Ipv6 { source: from6, destination: to6, ..Ipv6::default() };
    for (what, next, extensions) in [
        ("with hop-by-hop options", 0, vec![17, 0, 1, 4, 0, 0, 0, 0]),
        ("with destination options", 60, vec![17, 0, 1, 4, 0, 0, 0, 0]),
        (
            "with hop-by-hop and destination options",
            0,
            vec![60, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0],
        ),
    ] {
        let unusual = Ipv6 { next, extensions, ..plain.clone() };
        opens(unusual.around(server, &datagram(v6, Family::V6)?), Family::V6, what)?;
    }
    Ok(())
}
