//! One packet that comes in on several interfaces. Pure.

use crate::clock::BootMicros;
use spa_proto::Nonce;
use std::collections::VecDeque;
use std::time::Duration;

/// The knocks of the last moment, and where they came in: one packet that a bridge and its
/// member both show is no replay.
#[derive(Debug, Default)]
pub(super) struct Twins(VecDeque<(Nonce, u32, BootMicros)>);

impl Twins {
    const REMEMBERED: usize = 64;
    const TOGETHER: Duration = Duration::from_millis(100);

    pub(super) fn saw(&mut self, nonce: Nonce, interface: u32, now: BootMicros) {
        let is_over = |(_, _, at): &(_, _, BootMicros)| now.since(*at) > Self::TOGETHER;
        while self.0.len() >= Self::REMEMBERED || self.0.front().is_some_and(is_over) {
            self.0.pop_front();
        }
        self.0.push_back((nonce, interface, now));
    }

    pub(super) fn is_twin(&self, nonce: Nonce, interface: u32, now: BootMicros) -> bool {
        self.0.iter().any(|(seen, on, at)| {
            *seen == nonce && *on != interface && now.since(*at) <= Self::TOGETHER
        })
    }
}

/// The nonce stands behind the masked tag.
pub(super) fn nonce_of(payload: &[u8]) -> Option<Nonce> {
    let (_tag, rest) = payload.split_at_checked(spa_proto::TAG_LENGTH)?;
    rest.first_chunk().map(|nonce| Nonce(*nonce))
}
