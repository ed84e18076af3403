//! Port knocking: SYNs to some ports in the right order.

use super::{Noise, noisy};
use crate::frames::Frame;
use crate::lab::{Family, Host};
use anyhow::{Result, bail};
use std::net::{IpAddr, SocketAddr};

pub(super) const SEQUENCE: [u16; 3] = [7000, 8000, 9000];

/// One knock for each source.
pub(super) fn knocks(host: &Host, sources: &[IpAddr]) -> Result<Vec<Frame>> {
    let steps = sources.iter().flat_map(|source| SEQUENCE.map(|port| (*source, port)));
    steps
        .map(|(source, port)| {
            Frame::syn(host, SocketAddr::new(source, 40_001), host.at(Family::V4, port))
        })
        .collect()
}

/// The first port of the sequence, from everywhere.
pub(super) fn noise(host: &Host, kind: Noise, count: usize) -> Result<Vec<Frame>> {
    if kind != Noise::Random {
        bail!("port knocking knows no {}", kind.name());
    }
    let [first, ..] = SEQUENCE;
    (0..count).map(|n| Frame::syn(host, noisy(n), host.at(Family::V4, first))).collect()
}
