//! One client's flood is that client's affair: with a key that has leaked, somebody sends fresh and
//! valid knocks by the thousand. The others get in meanwhile; log, state and the kernel's sets grow
//! by what the limits admit, and by nothing for what they refuse.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use spa_tests::{
    Backend, Device, Family, Frame, Host, Rate, SSH_PORT, Scene, WEB_PORT, eventually,
};
use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

/// Knocks of a flood that are under way at a time: half of them before the one of somebody else, half
/// after it. Far fewer than the server lets wait.
const WAVE: usize = 500;
/// What the limits of a client are when its file names none (the manual's tables).
const BURST: u64 = 30;
const PER_MINUTE: u64 = 60;
const MAX_SOURCES: usize = 16;
/// No grant ends while a test runs.
const LIFETIME: u32 = 600;

/// Where the flood comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Senders {
    /// The thief's own address, which is nobody else's.
    OneSource,
    /// Another one for each knock.
    ForgedSources,
}

/// The `n`-th address that no host of the lab has.
fn forged(family: Family, n: usize) -> Result<IpAddr> {
    let n = u16::try_from(n)?;
    Ok(match family {
        Family::V4 => {
            let [high, low] = n.to_be_bytes();
            Ipv4Addr::new(100, 64, high, low).into()
        }
        // A network of its own each, as clients of the real world have.
        Family::V6 => Ipv6Addr::new(0xfd64, 0, 0, n, 0, 0, 0, 1).into(),
    })
}

/// Unbound knocks that open `ssh` for these senders, one for each.
fn knocks(scene: &Scene, device: &Device, sources: &[IpAddr], lifetime: u32) -> Result<Vec<Frame>> {
    let server = scene.lab.server();
    let frame = |source: &IpAddr| {
        let family = if source.is_ipv4() { Family::V4 } else { Family::V6 };
        let knock = device.open("ssh").lifetime(lifetime).seal()?;
        Frame::udp(server, SocketAddr::new(*source, 40_001), scene.door(family), &knock)
    };
    sources.iter().map(frame).collect()
}

/// Whom the kernel's sets admit to the port of `ssh`, as the kernel's own tools tell it.
fn admitted(host: &Host, backend: Backend) -> Result<BTreeSet<IpAddr>> {
    let mut found = BTreeSet::new();
    if backend == Backend::IPSET {
        for set in ["spa4", "spa6"] {
            let listed = host.sh(&format!("ipset list {set}"))?;
            let (_, members) = listed.split_once("Members:").context("a list has members")?;
            for member in members.lines() {
                // `10.66.0.2,tcp:22 timeout 597`
                if let Some((source, _)) = member.split_once(",tcp:22 ") {
                    found.insert(source.parse()?);
                }
            }
        }
        return Ok(found);
    }
    for set in ["spa4", "spa6"] {
        let listed = host.sh(&format!("nft -j list set inet spa {set}"))?;
        let listed = described(&listed)?;
        let elements = listed.get("elem").and_then(Value::as_array);
        for element in elements.into_iter().flatten() {
            // `{"elem": {"val": {"concat": ["10.66.0.2", "tcp", 22]}, "timeout": 600, …}}`
            let words = element.pointer("/elem/val/concat").and_then(Value::as_array);
            let words = words.with_context(|| format!("{element} is no element of ours"))?;
            if words.last().and_then(Value::as_u64) == Some(SSH_PORT.into()) {
                let source = words.first().and_then(Value::as_str);
                found.insert(source.context("an element has a source")?.parse()?);
            }
        }
    }
    Ok(found)
}

/// How many elements each of the sets of services has room for, as the kernel's own tools tell it.
fn sizes(host: &Host, backend: Backend) -> Result<Vec<u64>> {
    let of = |set: &str| -> Result<u64> {
        if backend == Backend::IPSET {
            let listed = host.sh(&format!("ipset list -t {set}"))?;
            let mut words = listed.split_whitespace().skip_while(|word| *word != "maxelem");
            return Ok(words.nth(1).context("a set has a maxelem")?.parse()?);
        }
        let listed = described(&host.sh(&format!("nft -j list set inet spa {set}"))?)?;
        listed.get("size").and_then(Value::as_u64).with_context(|| format!("{listed} has no size"))
    };
    ["spa4", "spa6"].into_iter().map(of).collect()
}

/// The set of which `nft -j` tells.
fn described(json: &str) -> Result<Value> {
    let listed: Value = serde_json::from_str(json)?;
    let all = listed.get("nftables").and_then(Value::as_array);
    let set = all.into_iter().flatten().find_map(|one| one.get("set"));
    set.cloned().with_context(|| format!("no set is in {json}"))
}

fn bytes_in(directory: &Path) -> Result<u64> {
    fs::read_dir(directory)?.map(|entry| Ok(entry?.metadata()?.len())).sum()
}

/// What is written, and how much: to be compared with later.
struct Written {
    accepted: u64,
    state: u64,
    lines: usize,
}

impl Written {
    fn by(scene: &Scene) -> Result<Self> {
        Ok(Self {
            accepted: scene.server.status()?.accepted,
            state: bytes_in(&scene.server.configuration().state_directory)?,
            lines: scene.server.log()?.lines().count(),
        })
    }
}

/// Waits until the server has judged so many knocks in all.
fn await_judged(scene: &Scene, count: u64) -> Result<()> {
    eventually(&format!("{count} knocks are to be judged"), || {
        let status = scene.server.status()?;
        ensure!(status.dropped.get("overloaded") == Some(&0), "the flood was too fast for a test");
        Ok((status.accepted + status.dropped.values().sum::<u64>() >= count).then_some(()))
    })
    .with_context(|| scene.server.account())
}

/// Somebody floods with the key of `leaked`, wave by wave, and in the middle of each wave the laptop
/// knocks from where it has nothing open yet, and gets in.
fn a_flood_is_no_matter_to_others(backend: Backend, family: Family, from: Senders) -> Result<()> {
    let mut scene = Scene::prepared(|configuration| backend.choose(configuration))?;
    let (_, leaked) = scene.add_client("leaked", |_| {})?;
    scene.server.start()?;
    let (lab, server) = (&scene.lab, &scene.server);
    let others = [lab.owner(), lab.third()].into_iter().flat_map(|host| {
        let services = [("ssh", SSH_PORT), ("web", WEB_PORT)];
        let each = services.map(|service| Family::BOTH.map(|family| (host, family, service)));
        each.into_iter().flatten()
    });
    let others: Vec<_> = others.collect();
    let sources = (0..WAVE * others.len())
        .map(|n| match from {
            Senders::OneSource => Ok(lab.other().address(family)),
            Senders::ForgedSources => forged(family, n),
        })
        .collect::<Result<Vec<_>>>()?;
    let flood = knocks(&scene, &leaked, &sources, LIFETIME)?;

    // What knocks cost that are accepted: of the laptop, again and again for what it has.
    let knock = |ask: &str, host, family| {
        scene.knock(host, family, &scene.laptop.open(ask).lifetime(LIFETIME).seal()?)
    };
    let start = Written::by(&scene)?;
    let calm = 10;
    for n in 1..=calm {
        knock("ssh", lab.other(), family)?;
        server.await_accepted(n)?;
    }
    scene.await_open(lab.other(), family, SSH_PORT)?;
    let before = Written::by(&scene)?;
    let each = (before.state - start.state).div_ceil(calm);
    ensure!(each > 0, "a knock that is accepted leaves something in the state directory");

    let began = server.status()?.uptime;
    let mut judged = calm;
    for (wave, (host, family, (service, port))) in flood.chunks(WAVE).zip(&others) {
        let (first, second) = wave.split_at(WAVE / 2);
        lab.other().inject(first)?;
        knock(service, *host, *family)?;
        lab.other().inject(second)?;
        scene.await_open(host, *family, *port).context("another client is kept out")?;
        judged += u64::try_from(WAVE)? + 1;
        await_judged(&scene, judged)?;
    }

    let reason = match from {
        Senders::OneSource => "rate",
        Senders::ForgedSources => "max-sources",
    };
    let refusals = || -> Result<usize> {
        Ok(server.audit("refused")?.iter().filter(|line| line.contains("client=leaked")).count())
    };
    eventually("the audit trail is to tell of the refusals", || {
        Ok((refusals()? > 0).then_some(()))
    })?;
    // Long enough for the server to write what it has to write.
    let uptime = server.status()?.uptime;
    eventually("some seconds are to pass", || {
        Ok((server.status()?.uptime > uptime + 2).then_some(()))
    })?;
    let seconds = server.status()?.uptime - began + 1;
    let after = Written::by(&scene)?;
    let accepted = after.accepted - before.accepted;
    let of_others = u64::try_from(others.len())?;
    let refused = u64::try_from(flood.len())? + of_others - accepted;

    // The flood was refused for one reason, but for what its limits let through.
    ensure!(server.dropped(reason)? == refused, "{}", server.account());
    let most = match from {
        Senders::OneSource => BURST + seconds * PER_MINUTE / 60 + 1,
        Senders::ForgedSources => u64::try_from(MAX_SOURCES)?,
    };
    ensure!(accepted - of_others <= most, "{} of the flood were accepted", accepted - of_others);
    let in_kernel = admitted(lab.server(), backend)?;
    let of_flood = in_kernel.iter().filter(|source| sources.contains(source)).count();
    let wanted = if from == Senders::OneSource { 1 } else { MAX_SOURCES };
    ensure!(of_flood == wanted, "the kernel admits {of_flood} sources of the flood: {in_kernel:?}");
    for host in [lab.owner(), lab.third()] {
        ensure!(Family::BOTH.iter().all(|family| in_kernel.contains(&host.address(*family))));
    }
    // One line for each that was accepted, one a minute for the others.
    let refusals = refusals()?;
    ensure!(u64::try_from(refusals)? <= 1 + seconds / 60, "{refusals} lines in {seconds} s");
    let lines = after.lines - before.lines;
    let log = server.log()?;
    let new: Vec<_> = log.lines().skip(before.lines).take(60).collect();
    ensure!(u64::try_from(lines - refusals)? == accepted, "{lines} lines: {}", new.join("\n"));
    // And nothing in the files but what those that were accepted need.
    let grown = after.state.saturating_sub(before.state);
    let most = accepted * each * 3 / 2;
    ensure!(grown <= most, "{grown} bytes for {accepted} accepted knocks, {each} each");
    Ok(())
}

#[test]
fn a_flood_from_one_source_keeps_nobody_out() -> Result<()> {
    a_flood_is_no_matter_to_others(Backend::IPSET, Family::V4, Senders::OneSource)
}

#[test]
fn a_flood_from_one_source_keeps_nobody_out_of_nftables() -> Result<()> {
    a_flood_is_no_matter_to_others(Backend::NFTABLES, Family::V6, Senders::OneSource)
}

#[test]
fn a_flood_from_forged_sources_fills_no_more_than_its_client_may_have() -> Result<()> {
    a_flood_is_no_matter_to_others(Backend::IPSET, Family::V4, Senders::ForgedSources)
}

#[test]
fn a_flood_from_forged_sources_fills_no_more_by_ipv6() -> Result<()> {
    a_flood_is_no_matter_to_others(Backend::IPSET, Family::V6, Senders::ForgedSources)
}

#[test]
fn a_flood_from_forged_sources_fills_no_more_in_nftables() -> Result<()> {
    a_flood_is_no_matter_to_others(Backend::NFTABLES, Family::V4, Senders::ForgedSources)
}

/// A server with room for so many grants, and so many clients who are kept by nothing else.
fn crowded(backend: Backend, max_grants: u32, clients: usize) -> Result<(Scene, Vec<Device>)> {
    let mut scene = Scene::prepared(|configuration| {
        backend.choose(configuration);
        configuration.max_grants = Some(max_grants);
    })?;
    let devices = (0..clients).map(|number| {
        let (_, device) = scene.add_client(&format!("client-{number}"), |client| {
            client.max_sources = Some(max_grants);
            client.rate = Some(Rate { per_minute: 60_000, burst: 10_000 });
        })?;
        Ok(device)
    });
    let devices = devices.collect::<Result<_>>()?;
    scene.server.start()?;
    Ok((scene, devices))
}

/// One knock for each of these addresses, by the clients in turns.
fn in_turns(
    scene: &Scene,
    devices: &[Device],
    sources: &[IpAddr],
    lifetime: u32,
) -> Result<Vec<Frame>> {
    let turns = sources.iter().zip(devices.iter().cycle());
    let frames = turns.map(|(source, device)| knocks(scene, device, &[*source], lifetime));
    Ok(frames.collect::<Result<Vec<_>>>()?.concat())
}

fn addresses(family: Family, range: std::ops::Range<usize>) -> Result<Vec<IpAddr>> {
    range.map(|n| forged(family, n)).collect()
}

/// The limit of all grants together is met before the kernel would have to refuse one.
fn the_total_limit_comes_first(backend: Backend, family: Family) -> Result<()> {
    const LIMIT: usize = 100;
    let (scene, devices) = crowded(backend, u32::try_from(LIMIT)?, 8)?;
    let (lab, server) = (&scene.lab, &scene.server);
    let send =
        |sources: &[IpAddr]| lab.other().inject(&in_turns(&scene, &devices, sources, LIFETIME)?);
    let sources = addresses(family, 0..LIMIT + 60)?;
    send(&sources)?;
    server.await_dropped("max-grants", 60)?;
    server.await_accepted(LIMIT as u64)?;
    let in_kernel = || admitted(lab.server(), backend);
    let (in_time, late) = sources.split_at(LIMIT);
    eventually("the kernel is to hold as many as it may", || {
        Ok((in_kernel()? == in_time.iter().copied().collect()).then_some(()))
    })?;
    let sizes = sizes(lab.server(), backend)?;
    ensure!(sizes.iter().all(|size| *size > LIMIT as u64), "{sizes:?} for {LIMIT} grants");

    // Who is in stays in, and there is room for another one when one goes.
    send(in_time)?;
    server.await_accepted(2 * LIMIT as u64)?;
    let source = in_time.first().context("there are sources")?;
    server.admin(&["grants", "revoke", "--source", &source.to_string()])?.ok()?;
    send(late.get(..1).unwrap_or_default())?;
    server.await_accepted(2 * LIMIT as u64 + 1)?;
    eventually("the one is to be in place of the other", || {
        let now = in_kernel()?;
        let came = late.first().is_some_and(|late| now.contains(late));
        Ok((came && now.len() == LIMIT && !now.contains(source)).then_some(()))
    })?;
    ensure!(server.status()?.failed == 0, "{}", server.account());
    Ok(())
}

#[test]
fn many_clients_together_meet_the_total_limit_before_a_set_is_full() -> Result<()> {
    the_total_limit_comes_first(Backend::IPSET, Family::V4)
}

#[test]
fn many_clients_together_meet_the_total_limit_before_a_set_of_nftables_is_full() -> Result<()> {
    the_total_limit_comes_first(Backend::NFTABLES, Family::V6)
}

#[test]
fn sets_are_larger_than_a_limit_above_what_ipset_would_have_by_itself() -> Result<()> {
    for backend in [Backend::IPSET, Backend::NFTABLES] {
        let (scene, _) = crowded(backend, 100_000, 0)?;
        let sizes = sizes(scene.lab.server(), backend)?;
        ensure!(sizes.iter().all(|size| *size > 100_000), "{}: {sizes:?}", backend.name);
        scene.ensure_owner_gets_in(Family::V4)?;
    }
    Ok(())
}

/// The kernel takes away what has ended some time later than it ends, and counts it until then.
fn what_has_ended_takes_no_room(backend: Backend, family: Family) -> Result<()> {
    const LIMIT: usize = 500;
    let (scene, devices) = crowded(backend, u32::try_from(LIMIT)?, 4)?;
    let server = &scene.server;
    let list = server.configuration().state_directory.join("grants.log");
    for round in 0..3 {
        let sources = addresses(family, round * LIMIT..(round + 1) * LIMIT)?;
        let frames = in_turns(&scene, &devices, &sources, 2)?;
        // The server has put them off its list, which it does once a second.
        eventually("the grants of before are to end", || {
            let ended = fs::read_to_string(&list)?.matches("{\"closed\"").count();
            Ok((ended == round * LIMIT).then_some(()))
        })
        .with_context(|| server.account())?;
        scene.lab.other().inject(&frames)?;
        server.await_accepted(((round + 1) * LIMIT) as u64)?;
    }
    let status = server.status()?;
    ensure!(status.opened == status.accepted && status.failed == 0, "{}", server.account());
    Ok(())
}

#[test]
fn what_has_ended_takes_no_room_in_a_set() -> Result<()> {
    what_has_ended_takes_no_room(Backend::IPSET, Family::V4)
}

#[test]
fn what_has_ended_takes_no_room_in_a_set_of_nftables() -> Result<()> {
    what_has_ended_takes_no_room(Backend::NFTABLES, Family::V4)
}
