//! What a packet costs with no grants and with very many.

use super::Extent;
use super::elements::to_f64;
use super::figures::Figure;
use super::fleet::Fleet;
use super::results::{PacketCost, PacketKind};
use super::sources::{Pool, admit, source, withdraw};
use super::station::{GUARDED, Station, UNGUARDED, new_host};
use super::volley::{Volleys, stay_on_one_processor};
use crate::frames::Frame;
use crate::lab::{Family, Host, Lab};
use anyhow::{Context, Result};
use spa_server::gate::Gate as _;
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

/// Those who send granted packets.
const SENDERS: usize = 16;
/// Packets that tell how many a round may have.
const TRIAL: usize = 200;

/// A host with two services that answer every SYN by a cookie: it remembers nothing of them.
struct Answering {
    host: Host,
    link: String,
    _services: [TcpListener; 2],
}

impl Answering {
    fn new(host: &Host, link: &str) -> Result<Self> {
        host.sh("sysctl -qw net.ipv4.tcp_syncookies=2")?;
        let listen = |port| host.inside(|| Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?));
        let services = [listen(GUARDED)?, listen(UNGUARDED)?];
        Ok(Self { host: host.clone(), link: link.to_owned(), _services: services })
    }

    /// The packets of one round: no two of one connection.
    fn frames(&self, family: Family, kind: PacketKind, count: usize) -> Result<Vec<Frame>> {
        let port = match kind {
            PacketKind::Granted | PacketKind::Refused => GUARDED,
            PacketKind::Unguarded => UNGUARDED,
        };
        let to = self.host.at(family, port);
        let per_sender = count.div_ceil(SENDERS).max(1);
        (0..count)
            .map(|n| {
                let from = match kind {
                    PacketKind::Granted => {
                        let port = 1024 + u16::try_from(n % per_sender)?;
                        SocketAddr::new(source(Pool::Senders, family, n / per_sender), port)
                    }
                    _ => SocketAddr::new(source(Pool::Strangers, family, n), 40_000),
                };
                Frame::syn(&self.host, from, to)
            })
            .collect()
    }
}

/// Measures all kinds of packets on all back-ends, in turns between the stations of each. One that
/// can't be measured is no reason to leave out the others.
pub(super) fn measure(
    lab: &Lab,
    fleets: &[&Fleet],
    extent: &Extent,
) -> Result<Vec<Result<Vec<PacketCost>>>> {
    let (host, link) = new_host(lab)?;
    let bare = Answering::new(&host, &link)?;
    let mut costs = Vec::new();
    for fleet in fleets {
        costs.push(of_fleet(lab, &bare, fleet, extent));
    }
    Ok(costs)
}

fn of_fleet(
    lab: &Lab,
    bare: &Answering,
    fleet: &Fleet,
    extent: &Extent,
) -> Result<Vec<PacketCost>> {
    let (Some(none), Some(many)) = (fleet.levels.first(), fleet.levels.last()) else {
        return Ok(Vec::new());
    };
    let stations = [&none.station, &fleet.control, &many.station];
    let mut answering = Vec::new();
    for station in stations {
        answering.push(Answering::new(&station.host, &station.link)?);
        change_senders(station, true)?;
    }
    let [none_at, control_at, many_at] = &answering[..] else { return Ok(Vec::new()) };
    let mut costs = Vec::new();
    for family in Family::BOTH {
        for kind in [PacketKind::Granted, PacketKind::Refused, PacketKind::Unguarded] {
            if kind != PacketKind::Granted {
                for station in stations {
                    change_senders(station, false)?;
                }
            }
            let samples = lab.owner().inside(|| {
                stay_on_one_processor()?;
                Samples::take([bare, none_at, control_at, many_at], family, kind, extent)
            })?;
            costs.push(samples.cost(family, kind, many.present(family)));
        }
        for station in stations {
            change_senders(station, true)?;
        }
    }
    for station in stations {
        change_senders(station, false)?;
    }
    Ok(costs)
}

/// Grants the senders of both families, or no more.
fn change_senders(station: &Station, granted: bool) -> Result<()> {
    let mut changes = Vec::new();
    for family in Family::BOTH {
        changes.extend(admit(Pool::Senders, family, 0, SENDERS)?);
    }
    let changes = if granted { changes } else { withdraw(&changes) };
    station.run(move |gate, runtime| Ok(runtime.block_on(gate.apply(&changes))?))
}

/// Nanoseconds by round: without a gate, with none, with none again, with many.
struct Samples {
    packets: usize,
    rounds: [Vec<f64>; 4],
    answered_permille: Option<usize>,
}

impl Samples {
    fn take(
        places: [&Answering; 4],
        family: Family,
        kind: PacketKind,
        extent: &Extent,
    ) -> Result<Self> {
        let mut senders = Vec::new();
        for place in places {
            senders.push(Volleys::on(&place.link)?);
        }
        let many = places.last().zip(senders.last()).context("no station")?;
        let packets = affordable(many.0, many.1, family, kind, extent)?;
        let mut volleys = Vec::new();
        for (place, sender) in places.into_iter().zip(&senders) {
            volleys.push((place, sender, place.frames(family, kind, packets)?));
        }
        let mut samples = Self { packets, rounds: Default::default(), answered_permille: None };
        for round in 0..extent.packet_rounds {
            let mut turns: Vec<_> = volleys.iter().zip(&mut samples.rounds).enumerate().collect();
            turns.rotate_left(round % 4);
            for (at, ((place, sender, frames), rounds)) in turns {
                // Every packet is that of a new connection, in every round.
                forget_connections(&place.host)?;
                let before = sender.received()?;
                rounds.push(sender.send(frames)?);
                let answers = sender.received()?.saturating_sub(before);
                if at > 0 && kind != PacketKind::Refused {
                    let answers = usize::try_from(answers)?;
                    let permille = answers * 1000 / packets;
                    let worst = samples.answered_permille.get_or_insert(permille);
                    *worst = permille.min(*worst);
                } else if at > 0 {
                    // A few packets of the host's own (neighbour and router discovery) may come.
                    anyhow::ensure!(
                        answers <= 20,
                        "{answers} of {packets} refused packets were answered"
                    );
                }
            }
        }
        Ok(samples)
    }

    fn cost(self, family: Family, kind: PacketKind, present: usize) -> PacketCost {
        let [bare, none, control, many] = &self.rounds;
        PacketCost {
            family: family.to_string(),
            kind,
            present,
            packets: self.packets,
            answered_permille: self.answered_permille,
            bare_ns: Figure::of(bare).filter(|_| kind == PacketKind::Unguarded),
            none_ns: Figure::of(none),
            many_ns: Figure::of(many),
            // A rate is the inverse of a cost.
            rate: Figure::of_ratios(none, many),
            control: Figure::of_ratios(none, control),
        }
    }
}

/// How many packets a round may have where they cost most.
fn affordable(
    place: &Answering,
    sender: &Volleys,
    family: Family,
    kind: PacketKind,
    extent: &Extent,
) -> Result<usize> {
    let nanoseconds = sender.send(&place.frames(family, kind, TRIAL)?)?;
    let packet = Duration::from_secs_f64(nanoseconds.max(1.0) / 1e9);
    let fit = extent.volley.as_nanos() / packet.as_nanos().max(1);
    Ok(usize::try_from(fit)?.clamp(TRIAL, extent.packets))
}

fn forget_connections(host: &Host) -> Result<()> {
    host.sh("conntrack -F").map(drop)
}

impl PacketKind {
    /// As the reports call it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Granted => "granted SYN",
            Self::Refused => "refused SYN",
            Self::Unguarded => "SYN to an unguarded port",
        }
    }
}

/// How many packets a second one processor takes at this cost.
pub(super) fn per_second(nanoseconds: f64) -> f64 {
    1e9 / nanoseconds.max(to_f64(1))
}
