//! Knocks one after the other, and for each the time until a SYN of its sender is answered. Who
//! asks also sends the noise, when there is any: the noise and the knocks share one cable.

use super::wire::{Barrage, Wire};
use crate::bench::station::GUARDED;
use crate::frames::Frame;
use crate::lab::{Family, Host};
use anyhow::Result;
use std::net::{IpAddr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A SYN goes out this often at first, and for a knock of some age after this part of its age: a
/// latency is never measured more coarsely than to a sixteenth.
const INTERVAL: Duration = Duration::from_micros(50);
const PART: u32 = 16;
/// What has not opened by then is not counted as open, where it is measured how soon knocks open.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// A knock that has yet to be sent.
pub(super) struct Shot {
    pub(super) source: IpAddr,
    pub(super) frames: Vec<Frame>,
    /// After the start.
    pub(super) at: Duration,
}

struct Pending {
    number: usize,
    source: IpAddr,
    sent: Instant,
    next: Instant,
    port: u16,
}

/// Sends the knocks, each at its time, and gives back after which time each has opened, if that was
/// within `patience`. Noise goes on as fast as it can meanwhile.
pub(super) fn shoot(
    wire: &Wire,
    host: &Host,
    shots: &[Shot],
    patience: Duration,
    mut noise: Option<&mut Barrage<'_>>,
) -> Result<Vec<Option<Duration>>> {
    let to = host.at(Family::V4, GUARDED);
    let mut latencies = vec![None; shots.len()];
    let mut pending: Vec<Pending> = Vec::new();
    let mut left = shots.iter().enumerate();
    let mut upcoming = left.next();
    while wire.answered()?.is_some() {}
    let start = Instant::now();
    while upcoming.is_some() || !pending.is_empty() {
        if let Some((number, shot)) = upcoming
            && start.elapsed() >= shot.at
        {
            let sent = Instant::now();
            for frame in &shot.frames {
                wire.send(frame)?;
            }
            pending.push(Pending { number, source: shot.source, sent, next: sent, port: 20_000 });
            upcoming = left.next();
        }
        for one in &mut pending {
            let now = Instant::now();
            if now >= one.next {
                wire.send(&Frame::syn(host, SocketAddr::new(one.source, one.port), to)?)?;
                one.port = if one.port == 59_999 { 20_000 } else { one.port + 1 };
                one.next = now + INTERVAL.max(one.sent.elapsed() / PART);
            }
        }
        if let Some(noise) = &mut noise {
            noise.full_speed()?;
        }
        while let Some(source) = wire.answered()? {
            if let Some(at) = pending.iter().position(|one| one.source == source) {
                let one = pending.swap_remove(at);
                if let Some(latency) = latencies.get_mut(one.number) {
                    *latency = Some(one.sent.elapsed());
                }
            }
        }
        pending.retain(|one| one.sent.elapsed() < patience);
        if let (None, true, Some((_, shot))) = (&noise, pending.is_empty(), upcoming) {
            sleep(shot.at.saturating_sub(start.elapsed()));
        }
    }
    Ok(latencies)
}

/// So many knocks of the given sources, each some time after the one before: `least` and up to as
/// much again, so that no rhythm of a daemon's is met.
pub(super) fn schedule(frames: &[Frame], sources: &[IpAddr], least: Duration) -> Result<Vec<Shot>> {
    let each = frames.len() / sources.len().max(1);
    let mut at = Duration::ZERO;
    sources
        .iter()
        .zip(frames.chunks(each.max(1)))
        .map(|(source, frames)| {
            at += least.mul_f64(1.0 + chance()?);
            Ok(Shot { source: *source, frames: frames.to_vec(), at })
        })
        .collect()
}

/// From 0 to 1.
fn chance() -> Result<f64> {
    let [byte, low] = crate::device::random::<2>()?;
    Ok(f64::from(u16::from_be_bytes([byte, low])) / f64::from(u16::MAX))
}
