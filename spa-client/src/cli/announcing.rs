//! What `join` and `rotate` have in common: a key is announced until a knock under it opens
//! something.

use super::CliError;
use super::open::{Voice, probes};
use super::report;
use crate::announce::{Announcement, Announcer};
use crate::knock::{Asked, Family, Knocker, Options, Sent};
use crate::probe::{Door, Known, Wait, until_open_without_knock, watch};
use crate::server::Server;
use core::net::IpAddr;
use core::time::Duration;
use spa_keys::ClientKeys;
use spa_proto::Item;
use std::thread;
use std::time::Instant;

/// The announcement has to be there before the knock under the new key: the server reads packets in
/// the order in which they come, but deals with announcements apart from knocks.
const HEAD_START: Duration = Duration::from_millis(60);
/// Without a probe: how often it is sent, and how far apart.
const BLIND_ROUNDS: u32 = 4;
const BLIND_GAP: Duration = Duration::from_millis(500);

/// What became of it, as far as can be seen from here.
pub(super) enum Outcome {
    /// A knock under the new key has opened this.
    Opened { item: Item, address: IpAddr, after: Duration },
    /// Nothing opened; what each address did last.
    NotOpened { item: Item, seen: String },
    /// This is open whatever is knocked, so that nothing shows.
    OpenAnyway { item: Item },
    /// There is nothing that could be probed.
    NotProbed,
}

/// For how long a port is looked at that is to be shut: an answer may take that long.
const LOOK: Duration = Duration::from_millis(1500);
/// How often: what was just closed may be seen open once more.
const LOOKS: u32 = 4;
const BETWEEN_LOOKS: Duration = Duration::from_millis(300);

/// Whether what is going to be probed is shut before.
pub(super) fn is_shut(knocker: &Knocker<'_>) -> Result<bool, CliError> {
    for _ in 0..LOOKS {
        let mut open = false;
        for probe in probes(knocker.route()).iter().take(1) {
            let looked = until_open_without_knock(probe, knocker.sockets(), LOOK)?;
            open = looked.result.is_ok();
        }
        if !open {
            return Ok(true);
        }
        thread::sleep(BETWEEN_LOOKS);
    }
    Ok(false)
}

/// Announces a key, and knocks with it, until that opens something or the time is over.
pub(super) fn announce(
    server: &Server,
    announcement: &Announcement,
    new: &ClientKeys,
    family: Family,
    timeout: Duration,
    voice: Voice,
) -> Result<Outcome, CliError> {
    let options = Options { family, ..Options::default() };
    let tell = |what: &str, sent: &[Sent]| {
        for datagram in sent {
            voice.detail(&format!("{}: {what}, {}", server.name, report::datagram(datagram)));
        }
    };
    let Some(item) = to_be_probed(server) else {
        let asked = Asked::open([first_service(server)])?;
        let knocker = Knocker::prepare_with_keys(server, &asked, &options, new)?;
        let mut announcer = Announcer::new(server, announcement, knocker.sockets());
        for round in 0..BLIND_ROUNDS {
            if round > 0 {
                thread::sleep(BLIND_GAP);
            }
            tell("key announced", &announcer.send()?);
        }
        return Ok(Outcome::NotProbed);
    };
    let asked = Asked::open([item.clone()])?;
    let mut knocker = Knocker::prepare_with_keys(server, &asked, &options, new)?;
    let addresses = knocker.sockets().to_vec();
    let probes = probes(knocker.route());
    // Else a port that others have open would pass for a sign of the server's.
    let shut = is_shut(&knocker)?;
    let mut announcer = Announcer::new(server, announcement, &addresses);
    let start = Instant::now();
    tell("key announced", &announcer.send()?);
    thread::sleep(HEAD_START);
    tell("under the new key", &knocker.send()?);
    let wait = Wait { start, timeout, rounds: 1, known: Known::Shut, wanted: None };
    // One port of the service is enough to see it.
    let doors = probes.iter().take(1).map(|probe| Door::new(probe, &addresses)).collect();
    let mut again = |_| {
        tell("key announced again", &announcer.send()?);
        thread::sleep(HEAD_START);
        let sent = knocker.send()?;
        tell("under the new key", &sent);
        Ok(sent)
    };
    let ended = watch(&mut again, doors, wait, &mut |_| {})?;
    let mut seen = Vec::new();
    for door in ended {
        match door.end().0.result {
            Ok(_) if !shut => return Ok(Outcome::OpenAnyway { item }),
            Ok((address, after)) => return Ok(Outcome::Opened { item, address, after }),
            Err(failures) => {
                seen.extend(failures.iter().map(|(address, it)| format!("{address}: {it}")));
            }
        }
    }
    Ok(Outcome::NotOpened { item, seen: seen.join("; ") })
}

/// A service of the server of which can be seen whether it is open: ssh, where there is one.
pub(super) fn to_be_probed(server: &Server) -> Option<Item> {
    let own = server.services.keys().cloned();
    let usual = "ssh".parse().ok();
    let is_probed = |item: &Item| {
        server.service_of(item).is_some_and(|service| service.probed().next().is_some())
    };
    let offered = server.services.is_empty();
    let mut items: Vec<Item> = own.map(Item::Service).filter(is_probed).collect();
    items.sort_by_key(|item| item.to_string() != "ssh");
    items.into_iter().next().or_else(|| usual.map(Item::Service).filter(|_| offered))
}

/// Anything: it only has to be well-formed.
fn first_service(server: &Server) -> Item {
    let first = server.services.keys().next().cloned();
    first.map_or_else(
        || {
            Item::Port(spa_proto::Port {
                transport: spa_proto::Transport::Tcp,
                number: core::num::NonZeroU16::MIN,
            })
        },
        Item::Service,
    )
}
